#![allow(clippy::unwrap_used)]
//! The rules as a table: base / ours / theirs / expected, a sentence each.

use super::*;
use crate::schema::Column;
use crate::value::{Type, Value};

fn table() -> Table {
    let column = |name: &str, kind| Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
    };
    Table {
        id: 1,
        name: "customers".into(),
        columns: vec![
            column("id", Type::Int64),
            column("name", Type::Text { max: None }),
        ],
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Direction::Both,
        conflict: ConflictRule::Newest,
        insert: InsertRule::Hold,
        counters: Vec::new(),
        before: false,
    }
}

fn row(name: &str) -> Row {
    Row(vec![Value::Int(1), Value::Text(name.into())])
}

struct Case {
    sentence: &'static str,
    on_present: bool,
    inserted: bool,
    ours: Option<&'static str>,
    theirs: Option<&'static str>,
    /// The branch's time against the head's version's (1000); `None` when the head's version is not recent.
    at: Option<i64>,
    shape: fn(&mut Table),
    expected: Decision,
}

#[test]
fn every_case_of_the_table_is_decided_as_written() {
    let plain: fn(&mut Table) = |_| {};
    let natural: fn(&mut Table) = |table| table.insert = InsertRule::Newest;
    let case = |sentence, on_present, inserted, ours, theirs, at, shape, expected| Case {
        sentence,
        on_present,
        inserted,
        ours,
        theirs,
        at,
        shape,
        expected,
    };
    let cases = [
        case(
            "a change to the present version is accepted",
            true,
            false,
            Some("a"),
            Some("b"),
            Some(500),
            plain,
            Decision::Accept,
        ),
        case(
            "a delete of the present version is accepted",
            true,
            false,
            Some("a"),
            None,
            Some(500),
            plain,
            Decision::Accept,
        ),
        case(
            "a new row under a free key is accepted",
            true,
            true,
            None,
            Some("b"),
            None,
            plain,
            Decision::Accept,
        ),
        case(
            "the later of two updates stands",
            false,
            false,
            Some("a"),
            Some("b"),
            Some(2000),
            plain,
            Decision::Win(Reason::Newest),
        ),
        case(
            "the earlier of two updates is listed",
            false,
            false,
            Some("a"),
            Some("b"),
            Some(500),
            plain,
            Decision::Lose(Reason::Newest),
        ),
        case(
            "a tie goes to the smaller office name",
            false,
            false,
            Some("a"),
            Some("b"),
            Some(1000),
            plain,
            Decision::Lose(Reason::Newest),
        ),
        case(
            "the same content twice is no conflict",
            false,
            false,
            Some("a"),
            Some("a"),
            Some(500),
            plain,
            Decision::Same,
        ),
        case(
            "two deletes are no conflict",
            false,
            false,
            None,
            None,
            Some(500),
            plain,
            Decision::Same,
        ),
        case(
            "a later update beats a delete",
            false,
            false,
            None,
            Some("b"),
            Some(2000),
            plain,
            Decision::Win(Reason::Newest),
        ),
        case(
            "a later delete beats an update",
            false,
            false,
            Some("a"),
            None,
            Some(2000),
            plain,
            Decision::Win(Reason::Newest),
        ),
        case(
            "an earlier delete loses to an update",
            false,
            false,
            Some("a"),
            None,
            Some(500),
            plain,
            Decision::Lose(Reason::Newest),
        ),
        case(
            "two inserts of one key are two business rows",
            false,
            true,
            Some("a"),
            Some("b"),
            Some(2000),
            plain,
            Decision::Hold(Reason::InsertedTwice),
        ),
        case(
            "two inserts of a natural key follow the rule",
            false,
            true,
            Some("a"),
            Some("b"),
            Some(2000),
            natural,
            Decision::Win(Reason::Newest),
        ),
        case(
            "two inserts with the same content are one row",
            false,
            true,
            Some("a"),
            Some("a"),
            Some(2000),
            plain,
            Decision::Same,
        ),
        case(
            "a row from before the join does not beat a version of unknown age",
            false,
            true,
            Some("a"),
            Some("b"),
            None,
            natural,
            Decision::Lose(Reason::Newest),
        ),
        case(
            "the plan may prefer the head",
            false,
            false,
            Some("a"),
            Some("b"),
            Some(2000),
            |t| t.conflict = ConflictRule::Head,
            Decision::Lose(Reason::HeadPreferred),
        ),
        case(
            "the plan may prefer branches",
            false,
            false,
            Some("a"),
            Some("b"),
            Some(500),
            |t| t.conflict = ConflictRule::Branch,
            Decision::Win(Reason::BranchPreferred),
        ),
        case(
            "a downward table written at a branch is restored",
            true,
            false,
            Some("a"),
            Some("b"),
            Some(2000),
            |t| t.direction = Direction::Down,
            Decision::Lose(Reason::DownOnly),
        ),
    ];
    let (head, branch) = (
        OfficeName::new("HO").unwrap(),
        OfficeName::new("b1").unwrap(),
    );
    for case in cases {
        let mut table = table();
        (case.shape)(&mut table);
        let (ours, theirs) = (case.ours.map(row), case.theirs.map(row));
        let facts = Facts {
            before: None,
            table: &table,
            origin: &branch,
            on_present_version: case.on_present,
            inserted: case.inserted,
            theirs: theirs.as_ref(),
            at: Micros(case.at.unwrap_or(2000)),
            ours: ours.as_ref(),
            present: case.at.map(|_| (Micros(1000), &head)),
        };
        assert_eq!(decide(&facts), case.expected, "{}", case.sentence);
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
