#![allow(clippy::unwrap_used, clippy::panic)]
//! The rules are held to the tables of cases in `docs/conflicts.md`, line by line.

use super::*;
use crate::schema::{Column, Counter};
use crate::value::{Type, Value};

const PAGE: &str = include_str!("../../../../docs/conflicts.md");
/// How many cases the page has. A line that is not read would not be tested.
const CASES: usize = 90;
const HEADER: [&str; 8] = [
    "what happened",
    "base",
    "ours",
    "theirs",
    "when",
    "plan",
    "result",
    "reason",
];
/// When the head's version was made.
const PRESENT: i64 = 1000;

pub(super) fn table() -> Table {
    let column = |name: &str, kind| Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    };
    Table {
        id: 1,
        name: "customers".into(),
        columns: vec![
            column("id", Type::Int64),
            column("name", Type::Text { max: None }),
            column("phone", Type::Text { max: None }),
            column("quantity", Type::Int32),
        ],
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Direction::Both,
        conflict: ConflictRule::Newest,
        insert: InsertRule::Hold,
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    }
}

/// `Ann, phone 1, quantity 10`; what is not named is NULL.
fn row(text: &str) -> Row {
    let mut row = Row(vec![Value::Int(1), Value::Null, Value::Null, Value::Null]);
    for field in text.split(", ") {
        match field.split_once(' ') {
            None => row.0[1] = Value::Text(field.into()),
            Some(("phone", value)) => row.0[2] = Value::Text(value.into()),
            Some(("quantity", value)) => row.0[3] = Value::Int(value.parse().unwrap()),
            Some(_) => panic!("no row: {text}"),
        }
    }
    row
}

fn row_or_none(text: &str) -> Option<Row> {
    (text != "none").then(|| row(text))
}

/// What a line says of the base.
struct BaseCell {
    on_present_version: bool,
    inserted: bool,
    before_joining: bool,
    before: Option<Row>,
}

fn base(text: &str) -> BaseCell {
    let (version, free) = match text.strip_suffix(", free") {
        Some(version) => (version, true),
        None => (text, false),
    };
    let known = !matches!(version, "present" | "older" | "new" | "before joining");
    BaseCell {
        on_present_version: free || version == "present",
        inserted: matches!(version, "new" | "before joining"),
        before_joining: version == "before joining",
        before: known.then(|| row(text)),
    }
}

/// When the change was made, and what is known of the head's version.
type When = (i64, Option<(i64, &'static str)>);

fn times(text: &str) -> Vec<When> {
    let all = [
        ("theirs later", (PRESENT + 1, Some((PRESENT, "HO")))),
        ("theirs earlier", (PRESENT - 1, Some((PRESENT, "HO")))),
        ("same time", (PRESENT, Some((PRESENT, "HO")))),
        ("same time as b2", (PRESENT, Some((PRESENT, "b2")))),
        ("unknown age", (PRESENT, None)),
    ];
    let meant = all
        .into_iter()
        .filter(|(name, _)| text == "-" || text == *name);
    meant.map(|(_, when)| when).collect()
}

/// The tables that a plan stands for: one, or all of them for `any`.
fn plans(text: &str) -> Vec<Table> {
    if text != "any" {
        return vec![plan(text)];
    }
    let mut plans = Vec::new();
    for conflict in ["newest", "head", "branch", "merge", "hold"] {
        for insert in ["hold", "newest"] {
            for more in ["", "; counters; floor = 0"] {
                plans.push(plan(&format!(
                    "conflict = \"{conflict}\"; insert = \"{insert}\"{more}"
                )));
            }
        }
    }
    plans
}

fn plan(text: &str) -> Table {
    let mut table = table();
    for rule in text.split("; ").filter(|rule| !rule.is_empty()) {
        match rule {
            "conflict = \"newest\"" => table.conflict = ConflictRule::Newest,
            "conflict = \"head\"" => table.conflict = ConflictRule::Head,
            "conflict = \"branch\"" => table.conflict = ConflictRule::Branch,
            "conflict = \"merge\"" => table.conflict = ConflictRule::Merge,
            "conflict = \"hold\"" => table.conflict = ConflictRule::Hold,
            "insert = \"hold\"" => table.insert = InsertRule::Hold,
            "insert = \"newest\"" => table.insert = InsertRule::Newest,
            "direction = \"down\"" => table.direction = Direction::Down,
            "counters" => {
                table.counters = vec![Counter {
                    column: 3,
                    floor: None,
                }];
            }
            "floor = 0" => table.counters[0].floor = Some(0),
            _ => panic!("no rule: {rule}"),
        }
    }
    table
}

/// A decision in the words of the page.
fn in_words(decision: &Decision) -> (String, &'static str) {
    let (result, reason) = match decision {
        Decision::Accept => ("theirs".into(), None),
        Decision::Same => ("same".into(), None),
        Decision::Win(reason) => ("theirs".into(), Some(*reason)),
        Decision::Lose(reason) => ("ours".into(), Some(*reason)),
        Decision::Hold(reason) => ("held".into(), Some(*reason)),
        Decision::Merge(row, reason) => (format!("{row:?}"), *reason),
    };
    (result, reason.map_or("-", Reason::code))
}

/// The cells of every line of every table of cases.
fn cases() -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| -> Vec<&'static str> {
        let inner = line.trim().strip_prefix('|').unwrap_or_default();
        let inner = inner.strip_suffix('|').unwrap_or_default();
        inner.split('|').map(str::trim).collect()
    };
    let mut cases = Vec::new();
    let mut within = false;
    for line in PAGE.lines() {
        let line = cells(line);
        if line == HEADER {
            within = true;
        } else if within && line.len() == HEADER.len() {
            let rule = line.iter().all(|cell| cell.chars().all(|c| c == '-'));
            if !rule || line[0].is_empty() {
                cases.push(line);
            }
        } else {
            within = false;
        }
    }
    cases
}

#[test]
fn every_case_of_the_page_is_decided_as_written() {
    let cases = cases();
    assert_eq!(cases.len(), CASES, "lines that were read of the page");
    let mut decided = 0;
    for case in cases {
        let [what, base_text, ours, theirs, when, plan, result, reason] = case[..] else {
            panic!("a line with {} cells: {case:?}", case.len());
        };
        let base = base(base_text);
        let (ours, theirs) = (row_or_none(ours), row_or_none(theirs));
        let expected = match result {
            "theirs" | "ours" | "same" | "held" => result.into(),
            merged => format!("{:?}", row(merged)),
        };
        let origin = OfficeName::new("b1").unwrap();
        for table in plans(plan) {
            for (at, present) in times(when) {
                let present = present.map(|(at, by)| (Micros(at), OfficeName::new(by).unwrap()));
                let facts = Facts {
                    table: &table,
                    origin: &origin,
                    on_present_version: base.on_present_version,
                    inserted: base.inserted,
                    before: base.before.as_ref(),
                    theirs: theirs.as_ref(),
                    at: Micros(if base.before_joining { i64::MIN } else { at }),
                    ours: ours.as_ref(),
                    present: present.as_ref().map(|(at, by)| (*at, by)),
                };
                let found = in_words(&decide(&facts));
                assert_eq!(
                    found,
                    (expected.clone(), reason),
                    "{what}, base {base_text}, {when}, {plan}; {facts:?}"
                );
                decided += 1;
            }
        }
    }
    assert!(
        decided > 3 * CASES,
        "`-` and `any` stand for many: {decided}"
    );
}

/// Every rule, result and reason that `decide` can give stands on the page.
#[test]
fn the_page_leaves_nothing_out() {
    let cases = cases();
    let mut reasons: Vec<&str> = cases.iter().map(|case| case[7]).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let all = [
        "-",
        "below-floor",
        "branch",
        "down-only",
        "head",
        "hold",
        "inserted-twice",
        "merged",
        "newest",
    ];
    assert_eq!(reasons, all);
    for case in &cases {
        assert!(!times(case[4]).is_empty(), "no time: {case:?}");
    }
}

#[test]
fn times_are_written_as_rfc_3339() {
    let cases = [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_709_210_096_123_456, "2024-02-29T12:34:56.123456Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ];
    for (micros, text) in cases {
        assert_eq!(rfc3339(Micros(micros)), text);
    }
}
