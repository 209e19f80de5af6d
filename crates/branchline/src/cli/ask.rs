//! `sync`, `status` and `verify`: asked of the running office, or answered by one started for the purpose.

use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets};

use super::{Context, SHORT};
use crate::config::RoleName;
use crate::exit::Outcome;
use crate::office::{Lock, Office};
use crate::request::{Answer, Ask};
use crate::{api, config};

/// How long a head that serves for one round goes on when all are even.
const FAREWELL: Duration = Duration::from_secs(2);

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
    let Some(_lock) = Lock::take_soon(&context.config).await? else {
        return api::call_with(&context.config, method, path, body, patience).await;
    };
    let served = settings.role == RoleName::Head && matches!(ask, Ask::Sync { .. });
    let office = Office::start(&settings).await?;
    let answer = office.handle().ask(ask).await;
    if served && answer.is_ok() {
        // The branch that was the last to become even asks whether it is.
        tokio::time::sleep(FAREWELL).await;
    }
    office.stop().await;
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
