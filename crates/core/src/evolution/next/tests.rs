#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::*;
use crate::check::{Comparison, Condition};
use crate::evolution::Follow;
use crate::port::Finding;
use crate::schema::Direction;
use crate::value::Type;

fn column(name: &str, kind: Type) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    }
}

fn table(name: &str, columns: &[(&str, Type)]) -> Table {
    let columns = columns.iter();
    let mut table = Table {
        id: 0,
        name: name.into(),
        columns: columns
            .map(|(name, kind)| column(name, kind.clone()))
            .collect(),
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Direction::default(),
        conflict: crate::schema::ConflictRule::default(),
        insert: crate::schema::InsertRule::default(),
        counters: vec![],
        before: false,
        columns_ever: 0,
        indexes: vec![],
        checks: Default::default(),
    };
    if let Some(key) = table.columns.first_mut() {
        key.nullable = false;
    }
    table
}

const TEXT: Type = Type::Text { max: None };

fn shop() -> Table {
    table(
        "shop",
        &[("id", Type::Int32), ("name", TEXT), ("size", Type::Int32)],
    )
}

fn first(tables: &[Table]) -> Schema {
    let mut schema = Schema {
        version: 1,
        tables: tables.to_vec(),
        tables_ever: 0,
    };
    schema.number();
    schema
}

fn found(tables: &[Table]) -> Inspection {
    Inspection {
        tables: tables.to_vec(),
        ..Inspection::default()
    }
}

/// What engines without lasting names tell.
fn next(present: &Schema, tables: &[Table], renamed: &[Renamed]) -> Next {
    let known = Known {
        renamed: renamed.to_vec(),
        ..Known::default()
    };
    follow(present, &known, &found(tables), &Plan::default())
}

fn ids(next: &Next) -> Vec<(String, ColumnId)> {
    let columns = next.schema.tables.iter().flat_map(|table| &table.columns);
    columns
        .map(|column| (column.name.clone(), column.id))
        .collect()
}

fn named(pairs: &[(&str, ColumnId)]) -> Vec<(String, ColumnId)> {
    let pairs = pairs.iter();
    pairs.map(|(name, id)| ((*name).to_owned(), *id)).collect()
}

#[test]
fn what_did_not_change_is_no_version() {
    let present = first(&[shop()]);
    let next = next(&present, &[shop()], &[]);
    assert_eq!(next.schema, present);
    assert_eq!(next.sentences(), Vec::<String>::new());
}

#[test]
fn numbers_stay_with_columns_that_are_added_dropped_and_moved() {
    let present = first(&[shop()]);
    let now = table(
        "shop",
        &[
            ("id", Type::Int32),
            ("city", TEXT),
            ("colour", TEXT),
            ("name", TEXT),
        ],
    );
    let next = next(&present, &[now], &[]);
    assert_eq!(next.schema.version, 2);
    assert_eq!(
        ids(&next),
        named(&[("id", 1), ("name", 2), ("city", 4), ("colour", 5)])
    );
    assert_eq!(next.added, [(1, 4), (1, 5)]);
    assert_eq!(next.told.len(), 3);
    // A number is never given to another column.
    let again = follow(
        &next.schema,
        &Known::default(),
        &found(&[table(
            "shop",
            &[("id", Type::Int32), ("extra", TEXT), ("fresh", Type::Int64)],
        )]),
        &Plan::default(),
    );
    let highest = ids(&again).into_iter().map(|(_, id)| id).max();
    assert_eq!(highest, Some(7), "{:?}", ids(&again));
}

#[test]
fn one_column_of_the_same_kind_in_the_same_place_is_taken_for_renamed_and_compared() {
    let present = first(&[shop()]);
    let now = table(
        "shop",
        &[("id", Type::Int32), ("title", TEXT), ("size", Type::Int32)],
    );
    let next = next(&present, &[now], &[]);
    assert_eq!(ids(&next), named(&[("id", 1), ("title", 2), ("size", 3)]));
    assert!(next.doubtful.contains(&1));
    assert_eq!(next.added, []);
}

#[test]
fn what_a_person_says_of_a_rename_counts() {
    let present = first(&[shop()]);
    let now = table(
        "shop",
        &[
            ("id", Type::Int32),
            ("size", Type::Int32),
            ("title", Type::Text { max: Some(9) }),
        ],
    );
    let said = Renamed {
        table: "shop".into(),
        column: Some("name".into()),
        to: "title".into(),
    };
    let next = next(&present, &[now], &[said]);
    assert_eq!(ids(&next), named(&[("id", 1), ("title", 2), ("size", 3)]));
    assert_eq!(next.added, []);
}

/// Two columns swap their names: only the engine's own numbers tell. One that was made anew under an old name is that one.
#[test]
fn lasting_names_tell_a_swap_and_a_column_made_anew_takes_the_place_of_its_name() {
    let columns = |names: [&'static str; 3]| {
        let [a, b, c] = names;
        table(
            "shop",
            &[("id", Type::Int32), (a, TEXT), (b, TEXT), (c, TEXT)],
        )
    };
    let origin = |columns: [u64; 4]| {
        let origin = Origin {
            table: 77,
            columns: columns.to_vec(),
        };
        BTreeMap::from([("shop".to_owned(), origin)])
    };
    let present = first(&[columns(["a", "b", "c"])]);
    let cases = [
        (
            ["b", "a", "d"],
            [1, 2, 3, 4],
            [("b", 2), ("a", 3), ("d", 4)],
        ),
        (
            ["b", "a", "c"],
            [1, 2, 3, 4],
            [("b", 2), ("a", 3), ("c", 4)],
        ),
        (
            ["b", "c", "a"],
            [1, 3, 4, 9],
            [("a", 2), ("b", 3), ("c", 4)],
        ),
    ];
    for (names, origins, expected) in cases {
        let now = Inspection {
            tables: vec![columns(names)],
            origins: origin(origins),
            ..Inspection::default()
        };
        let known = Known {
            origins: origin([1, 2, 3, 4]),
            ..Known::default()
        };
        let next = follow(&present, &known, &now, &Plan::default());
        let expected = [vec![("id", 1)], expected.to_vec()].concat();
        assert_eq!(ids(&next), named(&expected), "{names:?}");
        assert!(next.doubtful.is_empty());
    }
}

#[test]
fn what_the_plan_adds_and_takes_out_is_not_asked_about() {
    let present = first(&[shop(), table("old", &[("id", Type::Int32)])]);
    let rules = |table: &Table| (table.name != "old" && table.name != "own").then(Rules::default);
    let plan = Plan {
        rules: Arc::new(rules),
        follow: Follow::Refuse,
    };
    let tables = ["old", "own", "new"].map(|name| table(name, &[("id", Type::Int32)]));
    let tables = [vec![shop()], tables.to_vec()].concat();
    let next = follow(&present, &Known::default(), &found(&tables), &plan);
    let names: Vec<(TableId, &str)> = next
        .schema
        .tables
        .iter()
        .map(|table| (table.id, table.name.as_str()))
        .collect();
    assert_eq!(names, [(1, "shop"), (3, "new")]);
    assert_eq!(next.told, Vec::<String>::new());
    assert_eq!(
        next.planned,
        ["table `old` is no longer shared", "table `new` is new"]
    );
    // It was taken out, not dropped.
    assert!(next.dropped.is_empty());
}

#[test]
fn a_table_that_cannot_be_shared_any_more_stays_as_it_was_and_a_missing_one_is_dropped() {
    let present = first(&[shop(), table("gone", &[("id", Type::Int32)])]);
    let finding = Finding {
        fatal: true,
        table: Some("shop".into()),
        problem: "it has no key".into(),
        advice: String::new(),
    };
    let now = Inspection {
        findings: vec![finding],
        ..Inspection::default()
    };
    let next = follow(&present, &Known::default(), &now, &Plan::default());
    assert_eq!(next.stuck, [(1, "it has no key".to_owned())]);
    assert_eq!(next.schema.table(1), present.table(1));
    assert_eq!(next.dropped, [2]);
}

#[test]
fn what_the_rules_change_at_the_branches_is_told() {
    let present = first(&[shop()]);
    let rules = Rules {
        direction: Direction::Down,
        before: true,
        ..Rules::default()
    };
    let plan = Plan {
        rules: Arc::new(move |_: &Table| Some(rules.clone())),
        follow: Follow::Follow,
    };
    let next = follow(&present, &Known::default(), &found(&[shop()]), &plan);
    assert_eq!(next.schema.version, 2);
    assert_eq!(
        next.sentences(),
        [
            "table `shop` goes down only",
            "branches keep the rows of table `shop` as they were before a change"
        ]
    );
    assert!(next.told.is_empty(), "nobody is asked: {:?}", next.told);
}

fn checked(mut table: Table, conditions: &[Condition]) -> Table {
    let check = |condition: &Condition| Check {
        name: None,
        condition: condition.clone(),
    };
    table.checks.0 = conditions.iter().map(check).collect();
    table
}

fn small(place: u16, most: i64) -> Condition {
    Condition::Number(place, Comparison::AtMost, most)
}

/// A head whose program learns of checks must not change every branch's tables.
#[test]
fn checks_that_a_program_learns_of_are_no_version() {
    let present = first(&[shop()]);
    let next = next(&present, &[checked(shop(), &[small(2, 5)])], &[]);
    assert_eq!(next.schema.version, 1);
    assert!(next.schema.tables[0].checks.say(&small(2, 5)));
    assert_eq!(next.sentences(), Vec::<String>::new());
}

#[test]
fn a_check_that_comes_is_a_version() {
    let known = Known {
        words: Some(WORDS),
        ..Known::default()
    };
    let present = first(&[shop()]);
    let now = found(&[checked(shop(), &[small(2, 5)])]);
    let after = follow(&present, &known, &now, &Plan::default());
    assert_eq!(after.schema.version, 2);
    assert_eq!(after.told, ["a check of table `shop` is new"]);
    assert!(after.schema.tables[0].checks.say(&small(2, 5)));
    let again = follow(&after.schema, &known, &now, &Plan::default());
    assert_eq!(again.schema.version, 2);
    // One of a counter is made nowhere.
    let counting = Plan {
        rules: Arc::new(|table| {
            let column = 2;
            let counters = vec![crate::schema::Counter {
                column,
                floor: None,
            }];
            Some(Rules {
                counters,
                ..table.rules()
            })
        }),
        ..Plan::default()
    };
    let after = follow(&present, &known, &now, &counting);
    assert_eq!(after.told, Vec::<String>::new());
}

#[test]
fn a_check_that_goes_or_becomes_another_is_a_version() {
    let present = first(&[checked(shop(), &[small(2, 5), small(0, 99)])]);
    let after = next(&present, &[checked(shop(), &[small(0, 99)])], &[]);
    assert_eq!(after.schema.version, 2);
    assert_eq!(after.told, ["a check of table `shop` is gone"]);
    let other = checked(shop(), &[small(2, 6), small(0, 99)]);
    assert_eq!(next(&present, &[other], &[]).schema.version, 2);
    let turned = checked(shop(), &[small(0, 99), small(2, 5)]);
    assert_eq!(next(&present, &[turned], &[]).schema.version, 1);
}

#[test]
fn checks_follow_their_columns_to_other_places() {
    let present = first(&[checked(shop(), &[small(2, 5)])]);
    let now = table("shop", &[("id", Type::Int32), ("size", Type::Int32)]);
    let after = next(&present, &[checked(now, &[small(1, 5)])], &[]);
    assert_eq!(after.told, ["column `shop.name` is gone"]);
    let now = table(
        "shop",
        &[("size", Type::Int32), ("id", Type::Int32), ("name", TEXT)],
    );
    let after = next(&present, &[checked(now, &[small(0, 5)])], &[]);
    assert!(after.schema.tables[0].checks.say(&small(2, 5)));
}

#[test]
fn a_check_goes_with_its_column() {
    let present = first(&[checked(shop(), &[small(2, 5)])]);
    let now = table("shop", &[("id", Type::Int32), ("name", TEXT)]);
    let after = next(&present, &[now], &[]);
    assert_eq!(after.told, ["column `shop.size` is gone"]);
}
