//! Decisions in sentences, for whoever has to live with them.

use branchline_core::conflict::Resolution;
use branchline_core::message::Keep;
use serde_json::Value;

use super::super::ask::{table, text};
use crate::config::RoleName;
use crate::listing::{Decision, Entry};

/// An entry in one line.
pub fn line(entry: &Entry) -> String {
    let document = &entry.document;
    let state = match (&document["settled"], document["held"] == true) {
        (_, true) => "set aside".to_string(),
        (Value::Null, false) => match document["result"]["stands"].as_str() {
            Some("ours") => "the head's row stands".into(),
            Some("theirs") => "the branch's row stands".into(),
            Some("merged") => "a row made of both stands".into(),
            _ => "a later change of the row is in its place".into(),
        },
        (settled, false) => format!("settled: {}", kept(settled)),
    };
    format!(
        "{:>5}  {}  {} {}  from {}: {} ({state})",
        entry.id,
        text(&document["at"]),
        text(&document["table"]),
        text(&document["key"]),
        text(&document["origin"]),
        text(&document["reason"]),
    )
}

/// How a conflict was settled, from the entry's `settled`.
pub fn kept(settled: &Value) -> String {
    let row = match (settled["keep"].as_str(), settled["row"].is_null()) {
        (Some("head"), _) => "the head's row stands",
        (Some("branch"), false) => "the branch's row stands",
        (Some("branch"), true) => "the branch's delete stands",
        (Some("base"), _) => "the row is again what it was before both changes",
        _ => "nothing is known of how",
    };
    match &settled["by"] {
        Value::Null => format!("{row} since {}, without a person", text(&settled["at"])),
        by => format!(
            "{row} since {}, as {} wished",
            text(&settled["at"]),
            text(by)
        ),
    }
}

/// What to do about a row that no decision of the head is about.
pub fn by_itself(entry: &Entry) -> String {
    let document = &entry.document;
    let detail = match &document["detail"] {
        Value::Null => String::new(),
        detail => format!(" ({})", text(detail)),
    };
    let end = if document["reason"] == "unreadable" {
        "mend the row in this office's database with any ordinary write: it is sent by itself then"
    } else {
        "change what is in its way in this office's tables: the head's row lands by itself then"
    };
    format!(
        "{} ends by itself: {}{detail}; {end}",
        entry.id,
        text(&document["explanation"])
    )
}

/// An entry whole.
pub fn whole(entry: &Entry, role: RoleName) -> String {
    let document = &entry.document;
    let mut lines = vec![format!(
        "{}: row {} of table `{}`{}",
        entry.id,
        text(&document["key"]),
        text(&document["table"]),
        if document["held"] == true {
            ", set aside"
        } else {
            ""
        }
    )];
    match &entry.decision {
        Some(decision) => lines.extend(decided(entry, decision, role)),
        None => {
            lines.extend(rows(document));
            lines.push(by_itself(entry));
        }
    }
    lines.join("\n")
}

fn decided(entry: &Entry, decision: &Decision, role: RoleName) -> Vec<String> {
    let document = &entry.document;
    let record = &decision.record;
    let mut lines = vec![what_happened(entry, decision)];
    if let Some(detail) = &record.detail {
        lines.push(format!("Known besides: {detail}."));
    }
    lines.push(format!(
        "Rule ({}): {}.",
        text(&document["reason"]),
        text(&document["explanation"])
    ));
    lines.extend(rows(document));
    lines.push(match record.result {
        Resolution::Ours => "Decided: the head's row stands.".into(),
        Resolution::Theirs => format!("Decided: {}'s row stands.", record.origin),
        Resolution::Merged => "Decided: a row made of both stands.".into(),
        Resolution::Held => format!(
            "Decided: {} keeps its row, the head and the other offices keep theirs.",
            record.origin
        ),
    });
    if !document["settled"].is_null() {
        lines.push(format!("Settled since: {}.", kept(&document["settled"])));
    } else if record.result == Resolution::Held && !decision.held {
        lines.push("A later change of the same row has taken its place.".into());
    }
    lines.extend(ways(decision, role));
    lines
}

fn what_happened(entry: &Entry, decision: &Decision) -> String {
    let record = &decision.record;
    let at = text(&entry.document["at"]);
    let origin = &record.origin;
    let did = match (&record.theirs, record.reason.code()) {
        (_, "unreadable") => {
            return format!("{origin} wrote a row that cannot be sent, seen {at}.");
        }
        (None, _) => "deleted this row",
        (Some(_), "inserted-twice") => "created a row under this key",
        (Some(_), _) => "wrote this row",
    };
    format!(
        "{origin} {did} at {at}; the head decided at {}.",
        text(&entry.document["decided_at"])
    )
}

/// The rows beside each other: columns in which they differ.
fn rows(document: &Value) -> Option<String> {
    let sides = [
        ("before", &document["before"]),
        ("at the head", &document["ours"]),
        ("at the branch", &document["theirs"]),
        ("decided", &document["result"]["row"]),
    ];
    let sides: Vec<_> = sides
        .into_iter()
        .filter(|(name, row)| *name != "before" || !row.is_null())
        .collect();
    let columns: Vec<&String> = sides
        .iter()
        .find_map(|(_, row)| row.as_object())
        .map(|row| row.keys().collect())?;
    let cell = |row: &Value, column: &str| match row {
        Value::Null => "(no row)".to_string(),
        row => text(&row[column]),
    };
    let header: Vec<&str> = std::iter::once("column")
        .chain(sides.iter().map(|(name, _)| *name))
        .collect();
    let mut shown = table(&header);
    let mut same = 0;
    for column in columns {
        let cells: Vec<String> = sides.iter().map(|(_, row)| cell(row, column)).collect();
        if cells.windows(2).all(|pair| pair[0] == pair[1]) {
            same += 1;
            continue;
        }
        shown.add_row(std::iter::once(column.clone()).chain(cells));
    }
    let note = if same == 0 {
        String::new()
    } else {
        format!("\n({same} columns are the same in all of them)")
    };
    Some(format!("{shown}{note}"))
}

/// What a person can do from here on.
fn ways(decision: &Decision, role: RoleName) -> Vec<String> {
    let record = &decision.record;
    let id = record.id;
    if record.reason.code() == "unreadable" {
        return vec!["Mend the row in its office's database with any ordinary write: it is sent by itself then.".into()];
    }
    if record.result == Resolution::Held && !decision.held {
        return Vec::new();
    }
    let (head, branch) = match role {
        RoleName::Head => ("local", "remote"),
        RoleName::Branch => ("remote", "local"),
    };
    let resolve = |word: &str, what: &str| {
        format!("  branchline conflicts resolve {id} --keep {word}   {what}")
    };
    let mut ways = Vec::new();
    if decision.held {
        ways.push(format!(
            "  branchline holds retry {id}   tries the branch's row again"
        ));
        ways.push(format!(
            "  branchline holds drop {id}   lets the head's row stand"
        ));
        ways.push(resolve(branch, "lets the branch's row stand"));
    } else {
        let now = decision.settled.as_ref().map(|settled| settled.keep);
        let stands = |keep: Keep, result: Resolution| match now {
            Some(now) => now == keep,
            None => record.result == result,
        };
        if !stands(Keep::Head, Resolution::Ours) {
            ways.push(resolve(head, "lets the head's row stand"));
        }
        if !stands(Keep::Branch, Resolution::Theirs) {
            ways.push(resolve(branch, "lets the branch's row stand"));
        }
    }
    if record.before.is_some() {
        ways.push(resolve("base", "goes back to the row before both changes"));
    }
    ways.insert(0, "To change that, everywhere:".into());
    ways
}
