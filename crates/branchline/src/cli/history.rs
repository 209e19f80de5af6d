//! `history`: how a row came to be what it is, from the head's log.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::ask::{either, moment, text};
use super::{Context, SHORT};
use crate::api::RowOf;
use crate::exit::Outcome;
use crate::request::Ask;

/// The flags of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// The table.
    table: String,
    /// The values of the row's key, in key order.
    #[arg(required = true, allow_negative_numbers = true)]
    key: Vec<String>,
    /// Seconds after which to give up (a branch asks the head).
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

impl History {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let patience = Duration::from_secs(self.timeout.min(86_400));
        let path = format!("/api/history?timeout={}", self.timeout);
        let row = RowOf {
            table: self.table.clone(),
            key: self.key.clone(),
        };
        let body = serde_json::json!(row);
        let ask = Ask::History {
            table: self.table,
            key: self.key,
            deadline: Instant::now() + patience,
        };
        let asked = either(context, "POST", &path, Some(&body), patience + SHORT, ask);
        let (code, document) = asked.await?;
        context.show(&document, || tell(&document))?;
        Ok(code)
    }
}

/// Versions and decisions in the order of their times, newest last.
fn tell(history: &Value) -> String {
    let list = |key: &str| history[key].as_array().cloned().unwrap_or_default();
    let mut events: Vec<(String, String)> = Vec::new();
    let mut former = Value::Null;
    for version in list("versions") {
        let what = match text(&version["what"]).as_str() {
            "deleted" => "deleted it".to_string(),
            "merged" => format!(
                "changed it, put together with another office's change: {}",
                changes(&former, &version["row"])
            ),
            _ => changes(&former, &version["row"]),
        };
        former = version["row"].clone();
        let line = format!("{} {what}", text(&version["origin"]));
        events.push((text(&version["at"]), line));
    }
    for decision in list("decisions") {
        let line = format!(
            "decided about a change of {} (conflict {}, {}): {}",
            text(&decision["origin"]),
            text(&decision["id"]),
            text(&decision["reason"]),
            stands(&decision["result"]["stands"]),
        );
        events.push((text(&decision["decided_at"]), line));
        let settled = &decision["settled"];
        if !settled.is_null() {
            let line = format!(
                "settled conflict {}: {}",
                text(&decision["id"]),
                super::conflicts::kept(settled)
            );
            events.push((text(&settled["at"]), line));
        }
    }
    events.sort_by(|one, other| one.0.cmp(&other.0));
    let name = format!(
        "row {} of table `{}`",
        text(&history["key"]),
        text(&history["table"])
    );
    let mut lines = vec![if history["row"].is_null() {
        format!("{name}: not there")
    } else {
        format!("{name}: {}", fields(&history["row"]))
    }];
    lines.extend(events.iter().map(|(at, line)| {
        let at = moment(&at.as_str().into());
        format!("  {at}  {line}")
    }));
    if events.is_empty() {
        lines.push(format!(
            "  the head's log, which begins at {}, says nothing of it",
            text(&history["log_begins_at"])
        ));
    }
    lines.join("\n")
}

fn stands(word: &Value) -> &'static str {
    match word.as_str() {
        Some("ours") => "the head's row stands",
        Some("theirs") => "the branch's row stands",
        Some("merged") => "a row made of both stands",
        _ => "the branch's row is set aside",
    }
}

/// What changed from one version to the next.
fn changes(from: &Value, to: &Value) -> String {
    let (Some(from), Some(fields_to)) = (from.as_object(), to.as_object()) else {
        return format!("wrote {}", fields(to));
    };
    let differing: Vec<String> = fields_to
        .iter()
        .filter(|(name, value)| from.get(*name) != Some(*value))
        .map(|(name, value)| {
            let former = from.get(name).unwrap_or(&Value::Null);
            format!("{name}: {} -> {}", text(former), text(value))
        })
        .collect();
    if differing.is_empty() {
        "wrote it as it was".into()
    } else {
        format!("changed {}", differing.join(", "))
    }
}

/// A row in one line.
fn fields(row: &Value) -> String {
    let fields = row.as_object().into_iter().flatten();
    let fields: Vec<String> = fields
        .map(|(name, value)| format!("{name} = {}", text(value)))
        .collect();
    fields.join(", ")
}
