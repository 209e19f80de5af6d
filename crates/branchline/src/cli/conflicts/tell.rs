//! Decisions in sentences, for whoever has to live with them.

use branchline_core::change::Row;
use branchline_core::conflict::Resolution;
use branchline_core::message::Keep;
use serde_json::Value;

use super::super::ask::{moment, table, text};
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
        moment(&document["at"]),
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
        Value::Null => format!("{row} since {}, without a person", moment(&settled["at"])),
        by => format!(
            "{row} since {}, as {} wished",
            moment(&settled["at"]),
            text(by)
        ),
    }
}

/// What to do about a row that no decision of the head is about.
pub fn by_itself(entry: &Entry) -> String {
    let document = &entry.document;
    let told = match &document["detail"] {
        Value::Null => String::new(),
        detail => format!("What is known: {}.\n", text(detail)),
    };
    let end = if document["reason"] == "unreadable" {
        "mend the row in this office's database with any ordinary write: it is sent then"
    } else {
        "change what is in its way in this office's tables: the head's row lands then"
    };
    format!(
        "Set aside here: {}.\n{told}It ends by itself: {end}.",
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
    let at = moment(&entry.document["at"]);
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
        moment(&entry.document["decided_at"])
    )
}

/// The rows beside each other: columns in which they differ.
fn rows(document: &Value) -> Option<String> {
    let held = document["result"]["stands"] == "held";
    let settled = document["settled"].as_object();
    let sides = [
        ("before", &document["before"], !document["before"].is_null()),
        ("at the head", &document["ours"], true),
        ("at the branch", &document["theirs"], true),
        ("decided", &document["result"]["row"], !held),
        ("settled", &document["settled"]["row"], settled.is_some()),
    ];
    let sides: Vec<_> = sides
        .into_iter()
        .filter(|(.., shown)| *shown)
        .map(|(name, row, _)| (name, row))
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
    let note = match same {
        0 => "",
        1 => "\n(one more column is the same in all of them)",
        _ => "\n(the other columns are the same in all of them)",
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
    // Of large rows neither is at hand.
    let unknown = record.ours.is_none() && record.theirs.is_none();
    let lets = |side: &str, row: &Option<Row>| {
        if row.is_some() || unknown {
            format!("lets {side}'s row stand")
        } else {
            format!("lets it stand that {side} has no row")
        }
    };
    let (ours, theirs) = (
        lets("the head", &record.ours),
        lets(record.origin.as_str(), &record.theirs),
    );
    let mut ways = Vec::new();
    if decision.held {
        ways.push(format!(
            "  branchline holds retry {id}   tries the branch's row again"
        ));
        ways.push(format!("  branchline holds drop {id}   {ours}"));
        ways.push(resolve(branch, &theirs));
    } else {
        let now = decision.settled.as_ref().map(|settled| settled.keep);
        let stands = |keep: Keep, result: Resolution| match now {
            Some(now) => now == keep,
            None => record.result == result,
        };
        if !stands(Keep::Head, Resolution::Ours) {
            ways.push(resolve(head, &ours));
        }
        if !stands(Keep::Branch, Resolution::Theirs) {
            ways.push(resolve(branch, &theirs));
        }
    }
    if record.before.is_some() {
        ways.push(resolve("base", "goes back to the row before both changes"));
    }
    ways.insert(0, "To change that, everywhere:".into());
    ways
}
