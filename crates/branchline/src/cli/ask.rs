//! `sync`, `status` and `verify`: asked of the running office, or answered by one started for the purpose.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets};
use indicatif::ProgressBar;

use super::{Context, SHORT};
use crate::config::RoleName;
use crate::exit::Outcome;
use crate::office::{Lock, OWN_SOON, Office};
use crate::request::{Answer, Ask};
use crate::{api, config, say};

/// How long a head that serves for one round goes on when all are even.
const FAREWELL: Duration = Duration::from_secs(2);

/// How often it is told what is waited for; where that goes into a file, ever less often.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(16);

/// The flags of `sync`.
#[derive(Debug, Args)]
pub struct Sync {
    /// Seconds after which to give up.
    #[arg(long, default_value_t = api::SYNC_SECONDS)]
    timeout: u64,
}

impl Sync {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let patience = Duration::from_secs(self.timeout.min(86_400));
        let path = format!("/api/sync?timeout={}", self.timeout);
        let ask = Ask::Sync {
            deadline: Instant::now() + patience,
        };
        let (code, status) = either(context, "POST", &path, None, patience + SHORT, ask).await?;
        context.show(&status, || {
            "in sync: everything is out, everything is in".to_string()
        })?;
        Ok(code)
    }
}

/// The flags of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Seconds after which to give up.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Make rows that differ at a branch what they are at the head. What the branch had is kept: see `conflicts`.
    #[arg(long)]
    repair: bool,
}

impl Verify {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let patience = Duration::from_secs(self.timeout.min(86_400));
        let verb = if self.repair { "repair" } else { "verify" };
        let path = format!("/api/{verb}?timeout={}", self.timeout);
        let ask = Ask::Verify {
            deadline: Instant::now() + patience,
            repair: self.repair,
        };
        let (code, document) = either(context, "POST", &path, None, patience + SHORT, ask).await?;
        context.show(&document, || explain(&document))?;
        Ok(code)
    }
}

/// `status`.
pub async fn status(context: &Context) -> Outcome<u8> {
    let (code, status) = either(context, "GET", "/api/status", None, SHORT, Ask::Status).await?;
    context.show(&status, || describe(&status))?;
    Ok(code)
}

/// Asks the running office, or starts one for this question.
pub async fn either(
    context: &Context,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
    patience: Duration,
    ask: Ask,
) -> Answer {
    let settings = config::read(&context.config)?;
    let config = &context.config;
    let shown = shown(&ask);
    let Some(_lock) = Lock::take_soon(config).await? else {
        let answer = api::call_with(config, method, path, body, patience);
        let look = || api::call(config, "GET", "/api/status", SHORT);
        return with_progress(shown, answer, look).await;
    };
    let served = settings.role == RoleName::Head && matches!(ask, Ask::Sync { .. });
    let office = Office::start(&settings, OWN_SOON).await?;
    let handle = office.handle();
    let answer = with_progress(shown, handle.ask(ask), || handle.ask(Ask::Status)).await;
    if served && answer.is_ok() {
        // The branch that was the last to become even asks whether it is.
        tokio::time::sleep(FAREWELL).await;
    }
    office.stop().await;
    answer
}

/// What is told of an office while someone waits for its answer; nothing where the answer comes at once.
type Shown = Option<fn(&serde_json::Value) -> String>;

fn shown(ask: &Ask) -> Shown {
    match ask {
        Ask::Sync { .. } => Some(syncing),
        Ask::Verify { repair: true, .. } => {
            Some(|status| format!("comparing and repairing{}", apart(status)))
        }
        Ask::Verify { .. } => Some(|status| format!("comparing{}", apart(status))),
        _ => None,
    }
}

/// What a round still waits for.
fn syncing(status: &serde_json::Value) -> String {
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
    let branches = status["branches"].as_array().into_iter().flatten();
    let lags: Vec<String> = branches
        .filter(|branch| number(&branch["lag_changes"]) > 0)
        .map(|branch| {
            let lag = number(&branch["lag_changes"]);
            format!(", {} {lag} log entries behind", text(&branch["name"]))
        })
        .collect();
    format!(
        "syncing: {} captured writes and {} unanswered batches wait here{}{}",
        number(&status["pending_changes"]),
        number(&status["outbox"]["batches"]),
        lags.concat(),
        apart(status)
    )
}

/// What keeps an office from the others.
fn apart(status: &serde_json::Value) -> String {
    let link = &status["transport"];
    if link["connected"] == true {
        return String::new();
    }
    let problem = link["problem"].as_str();
    let problem = problem.map_or_else(String::new, |problem| format!(" ({problem})"));
    format!("; the link is not up{problem}")
}

/// Waits for an answer. From the second second on it tells how things are: in one line on a terminal, in plain lines
/// elsewhere, whenever they have changed.
async fn with_progress<L: Future<Output = Answer>>(
    shown: Shown,
    answer: impl Future<Output = Answer>,
    look: impl Fn() -> L,
) -> Answer {
    let Some(shown) = shown else {
        return answer.await;
    };
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    tokio::pin!(answer);
    let mut told = String::new();
    let mut pause = LOOK;
    let answer = loop {
        if let Ok(answer) = tokio::time::timeout(pause, &mut answer).await {
            break answer;
        }
        let status = tokio::select! {
            answer = &mut answer => break answer,
            status = look() => status,
        };
        let Ok((_, status)) = status else {
            continue;
        };
        let line = shown(&status);
        bar.set_message(line.clone());
        if line != told {
            if !terminal {
                say::say(&line);
                pause = (pause * 2).min(LONGEST_LOOK);
            }
            told = line;
        }
    };
    bar.finish_and_clear();
    answer
}

/// A table for a terminal.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(header.to_vec());
    table
}

/// A time for a person, to the second.
pub fn moment(value: &serde_json::Value) -> String {
    let text = text(value);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// A JSON value for a person.
pub fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// A comparison for a person.
pub fn explain(document: &serde_json::Value) -> String {
    let mut lines = Vec::new();
    let mut columns = vec![
        ("rows at head", "rows"),
        ("different", "different"),
        ("only head", "only_head"),
        ("only branch", "only_branch"),
        ("pending", "pending"),
    ];
    if document["repair"] == true {
        columns.push(("repaired", "repaired"));
    }
    let titles = columns.iter().map(|(title, _)| *title);
    let header: Vec<&str> = ["branch", "table"].into_iter().chain(titles).collect();
    let mut rows = table(&header);
    for branch in document["branches"].as_array().into_iter().flatten() {
        if branch["answered"] == false {
            lines.push(format!("{} did not answer in time", text(&branch["name"])));
        }
        for compared in branch["tables"].as_array().into_iter().flatten() {
            if compared["more"] == true {
                lines.push(format!(
                    "more rows of {} differ at {} than were looked at",
                    text(&compared["name"]),
                    text(&branch["name"])
                ));
            }
            if compared["unlike"] == true {
                lines.push(format!(
                    "{} at {} is not what the plan says and was not compared; `branchline status` there tells why",
                    text(&compared["name"]),
                    text(&branch["name"])
                ));
            }
            let fields = columns.iter().map(|(_, key)| text(&compared[*key]));
            let names = [text(&branch["name"]), text(&compared["name"])];
            rows.add_row(names.into_iter().chain(fields));
        }
    }
    let branches = document["branches"].as_array();
    let mut answered = branches
        .into_iter()
        .flatten()
        .filter(|branch| branch["answered"] != false);
    let verdict = if document["equal"] == true {
        "equal"
    } else if answered.any(|branch| branch["equal"] == false) {
        "DIFFERENT"
    } else {
        "NOT COMPARED with all: no row is known to differ"
    };
    if !rows.is_empty() {
        lines.push(rows.to_string());
    }
    lines.push(format!(
        "{verdict} at log position {} ({} bytes exchanged)",
        text(&document["cut"]),
        text(&document["bytes_exchanged"])
    ));
    lines.join("\n")
}

fn describe(status: &serde_json::Value) -> String {
    let database = &status["database"];
    let transport = &status["transport"];
    let link = if transport["connected"] == true {
        "connected"
    } else {
        "not connected"
    };
    let mut lines = vec![
        format!(
            "{} ({}), {} {}: {}",
            text(&status["office"]),
            text(&status["role"]),
            text(&database["engine"]),
            text(&database["version"]),
            if status["in_sync"] == true {
                "in sync"
            } else {
                "not in sync"
            },
        ),
        format!(
            "{}: {link} since {}",
            text(&transport["kind"]),
            text(&transport["since"])
        ),
        format!(
            "waiting here: {} captured writes, {} unanswered batches; conflicts listed: {}, held: {}",
            text(&status["pending_changes"]),
            text(&status["outbox"]["batches"]),
            text(&status["conflicts"]),
            text(&status["holds"]),
        ),
    ];
    for problem in [
        &transport["problem"],
        &status["problem"],
        &status["refused"],
    ] {
        if !problem.is_null() {
            lines.push(format!("problem: {}", text(problem)));
        }
    }
    let waiting = status["schema_waiting"].as_array().into_iter().flatten();
    let waiting: Vec<String> = waiting.map(text).collect();
    if !waiting.is_empty() {
        lines.push(format!(
            "the tables changed, and nothing moves until that is let pass: {} (`branchline schema show`)",
            waiting.join("; ")
        ));
    }
    if let Some(branches) = status["branches"].as_array() {
        let mut rows = table(&[
            "branch",
            "online",
            "last seen",
            "behind",
            "holds",
            "clock offset ms",
        ]);
        for branch in branches {
            let fields = [
                "name",
                "online",
                "last_seen",
                "lag_changes",
                "holds",
                "clock_offset_ms",
            ];
            rows.add_row(fields.map(|key| text(&branch[key])));
        }
        lines.push(rows.to_string());
    }
    lines.join("\n")
}
