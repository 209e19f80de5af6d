//! `sync`, `status` and `verify`: asked of the running office, or answered by one started for the purpose.

use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets};

use super::{Context, SHORT};
use crate::exit::{Failure, Outcome};
use crate::office::{Lock, Office};
use crate::request::{Answer, Ask};
use crate::{api, config};

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
        });
        Ok(code)
    }
}

/// The flags of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Seconds after which to give up.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Make differing rows the same (not there yet).
    #[arg(long)]
    repair: bool,
}

impl Verify {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        if self.repair {
            return Err(Failure::usage(
                "verify --repair is not there yet; without --repair the differing rows are listed",
            ));
        }
        let patience = Duration::from_secs(self.timeout.min(86_400));
        let path = format!("/api/verify?timeout={}", self.timeout);
        let ask = Ask::Verify {
            deadline: Instant::now() + patience,
        };
        let (code, document) = either(context, "POST", &path, None, patience + SHORT, ask).await?;
        context.show(&document, || explain(&document));
        Ok(code)
    }
}

/// `status`.
pub async fn status(context: &Context) -> Outcome<u8> {
    let (code, status) = either(context, "GET", "/api/status", None, SHORT, Ask::Status).await?;
    context.show(&status, || describe(&status));
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
    let office = Office::start(&settings).await?;
    let answer = office.handle().ask(ask).await;
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
    let mut rows = table(&[
        "branch",
        "table",
        "rows at head",
        "different",
        "only head",
        "only branch",
        "pending",
    ]);
    for branch in document["branches"].as_array().into_iter().flatten() {
        if branch["answered"] == false {
            lines.push(format!("{} did not answer in time", text(&branch["name"])));
        }
        for compared in branch["tables"].as_array().into_iter().flatten() {
            let fields = [
                "name",
                "rows",
                "different",
                "only_head",
                "only_branch",
                "pending",
            ]
            .map(|key| text(&compared[key]));
            rows.add_row(std::iter::once(text(&branch["name"])).chain(fields));
        }
    }
    let verdict = if document["equal"] == true {
        "equal"
    } else {
        "DIFFERENT"
    };
    lines.push(rows.to_string());
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
