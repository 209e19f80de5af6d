//! A branch takes the head's place, and its log and its outbox hold rows of earlier schema versions.

use std::sync::Arc;

use branchline_core::branch::Renewal;
use branchline_core::change::Row;
use branchline_core::conflict::Reason;
use branchline_core::evolution::{Follow, Plan};
use branchline_core::message::{Keep, Message};
use branchline_core::schema::{Column, Direction, Rules, Table, TableId};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::Place;

use crate::company::{Company, NAMES, key};

/// Rows with something useless before their key.
const GOODS: TableId = 3;

/// Each script in memory and on SQLite.
macro_rules! scripts {
    ($($script:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $script() { super::$script(super::Place::Memory); })*
        }
        mod on_sqlite {
            $(#[test] fn $script() { super::$script(super::Place::SqliteMemory); })*
        }
    };
}

scripts!(
    entries_of_earlier_versions_are_read_as_they_were_written,
    held_rows_of_earlier_versions_become_what_the_head_had,
    unanswered_rows_of_earlier_versions_are_found_by_their_keys,
);

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn row(id: i64, label: &str) -> Row {
    Row(vec![text("useless"), Value::Int(id), text(label)])
}

fn put(id: i64, label: &str) -> Op {
    Op::Update(GOODS, key(id), row(id, label))
}

fn insert(id: i64, label: &str) -> Op {
    Op::Insert(GOODS, row(id, label))
}

/// Three branches with a further table.
fn shop(place: Place<'static>, direction: Direction) -> Company {
    let mut company = Company::new_on(place, 3);
    let rules = move |table: &Table| {
        Some(if table.id == 0 {
            Rules {
                direction,
                ..Rules::default()
            }
        } else {
            table.rules()
        })
    };
    company.set_plan(Plan {
        rules: Arc::new(rules),
        follow: Follow::Follow,
    });
    let column = |name: &str, kind: Type| Column {
        name: name.into(),
        kind,
        nullable: name != "id",
        default: None,
        generated_key: false,
        id: 0,
    };
    let mut table = company.schema.table(NAMES).unwrap().clone();
    table.id = 0;
    table.name = "goods".into();
    table.columns = vec![
        column("junk", Type::Text { max: None }),
        column("id", Type::Int64),
        column("label", Type::Text { max: None }),
    ];
    table.columns_ever = 0;
    table.key = vec![1];
    let rows: Vec<Row> = (1..=6).map(|id| row(id, "old")).collect();
    let id = company.create_at_head(table, &rows);
    assert_eq!(id, GOODS);
    company.settle();
    company.assert_even();
    company
}

/// The head drops the column before the key.
fn step(company: &mut Company) {
    company.alter_head(GOODS, |table| {
        table.columns.remove(0);
        table.key = vec![0];
    });
    company.settle();
    assert_eq!(company.branches[0].branch.schema().version, 3);
}

fn promote(company: &mut Company) {
    company.promote(0);
    for at in 0..company.branches.len() {
        assert_eq!(company.join_again(at), Renewal::Succeeded);
        company.settle();
    }
    company.assert_even();
}

fn label(company: &mut Company, id: i64) -> Option<Value> {
    let table = company.head.schema().table(GOODS).unwrap().clone();
    let row = company.at_head.row(&table, &key(id))?;
    assert_eq!(row.0.len(), 2);
    row.0.last().cloned()
}

fn entries_of_earlier_versions_are_read_as_they_were_written(place: Place<'static>) {
    let mut company = shop(place, Direction::Both);
    company.branches[0].lose = |message| matches!(message, Message::Batch(_));
    company.write(0, &[put(1, "b1's"), put(3, "b1's")]);
    company.settle();
    company.cut(2);
    company.write(2, &[put(2, "b3's")]);
    // The first branch leaves row 1 alone, since it has not been answered.
    company.write_head(&[put(1, "head's"), put(2, "head's")]);
    company.settle();
    step(&mut company);
    company.branches[0].lose = |_| false;
    promote(&mut company);
    assert_eq!(label(&mut company, 1), Some(text("head's")));
    assert_eq!(label(&mut company, 2), Some(text("head's")));
    assert_eq!(label(&mut company, 3), Some(text("b1's")));
    let mut listed = company.listed(Reason::Newest);
    listed.sort();
    let keys: Vec<_> = listed.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, [key(1), key(2)]);
}

fn held_rows_of_earlier_versions_become_what_the_head_had(place: Place<'static>) {
    let mut company = shop(place, Direction::Both);
    company.cut(0);
    company.write(0, &[insert(10, "b1's")]);
    company.write_head(&[insert(10, "head's")]);
    company.connect(0);
    company.settle();
    assert_eq!(company.listed(Reason::InsertedTwice).len(), 1);
    step(&mut company);
    promote(&mut company);
    assert_eq!(label(&mut company, 10), Some(text("head's")));
    let held = company.conflicts();
    let held = held
        .iter()
        .find(|record| record.reason == Reason::InsertedTwice);
    let held = held.expect("still listed").id;
    company.settle_conflict(held, Keep::Branch).unwrap();
    company.settle();
    assert_eq!(label(&mut company, 10), Some(text("b1's")));
    company.assert_even();
}

/// What a branch wrote to a table that only goes down is the head's own when it becomes the head.
fn unanswered_rows_of_earlier_versions_are_found_by_their_keys(place: Place<'static>) {
    let mut company = shop(place, Direction::Down);
    company.branches[0].lose = |message| matches!(message, Message::Batch(_));
    company.write(0, &[put(1, "b1's")]);
    company.settle();
    step(&mut company);
    company.branches[0].lose = |_| false;
    promote(&mut company);
    assert_eq!(label(&mut company, 1), Some(text("b1's")));
    assert_eq!(label(&mut company, 2), Some(text("old")));
}
