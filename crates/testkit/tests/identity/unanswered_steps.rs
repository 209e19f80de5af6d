//! The head's tables change while a branch has as many unanswered batches as it may have, or writes without pause.

use branchline_core::change::Row;
use branchline_core::conflict::Reason;
use branchline_core::message::Message;
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::faults::Plan;

use crate::company::{Company, NAMES, STOCK, insert, key, row};

fn text(name: &str) -> Column {
    Column {
        name: name.into(),
        kind: Type::Text { max: None },
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    }
}

fn noted(id: i64, name: &str, note: &str) -> Row {
    let mut row = row(id, name);
    row.0.push(Value::Text(note.into()));
    row
}

fn change(row: Row) -> Op {
    let Some(Value::Int(id)) = row.0.first() else {
        panic!("{row:?}");
    };
    Op::Update(NAMES, key(*id), row)
}

/// All have a column `note`, and a row with something in it.
fn with_notes() -> Company {
    let mut company = Company::new(2);
    company.alter_head(NAMES, |table| table.columns.push(text("note")));
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", "kept"))]);
    company.settle();
    company
}

/// The first branch writes, and no batch of it is answered, until it freezes no more.
fn fill_window(company: &mut Company) {
    company.branches[0].lose = |message| matches!(message, Message::Batch(_));
    let mut before = None;
    for id in 1_000.. {
        company.write(0, &[Op::Insert(NAMES, noted(id, "many", "more"))]);
        company.tick(250);
        company.step();
        let state = company.branches[0].branch.state();
        if before.replace(state.frozen) == Some(state.frozen) {
            assert!(state.frozen.0 - state.answered.0 > 200);
            return;
        }
    }
}

/// The head's step arrives while the window is full; then the batches do.
fn follow(company: &mut Company) {
    let version = company.branches[0].branch.schema().version;
    while company.branches[0].branch.schema().version == version {
        company.tick(250);
        company.step();
        assert!(company.branches[0].branch.state().answered.0 < 200);
    }
    company.branches[0].lose = |_| false;
    company.settle();
}

#[test]
fn a_column_that_a_branch_renamed_meanwhile_is_not_made_again() {
    let mut company = with_notes();
    fill_window(&mut company);
    let rename = |table: &mut Table| table.columns[2].name = "remark".into();
    company.alter(0, NAMES, rename);
    let mut ahead = company.branches[0].branch.schema().clone();
    ahead
        .tables
        .iter_mut()
        .filter(|t| t.id == NAMES)
        .for_each(rename);
    company.write_as(0, &ahead, &[Op::Insert(NAMES, noted(2, "two", "waits"))]);
    company.alter_head(STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    follow(&mut company);
    company.alter_head(NAMES, rename);
    company.settle();
    company.assert_even();
    let names = company.head.schema().table(NAMES).unwrap().clone();
    for row in [noted(1, "one", "kept"), noted(2, "two", "waits")] {
        let Value::Int(id) = row.0[0] else { panic!() };
        assert_eq!(company.at_head.row(&names, &key(id)), Some(row));
    }
    assert!(company.conflicts().is_empty());
}

#[test]
fn what_a_branch_could_not_freeze_of_a_column_that_goes_is_listed() {
    let mut company = with_notes();
    fill_window(&mut company);
    company.write(0, &[change(noted(1, "uno", "lost?"))]);
    company.alter_head(NAMES, |table| drop(table.columns.pop()));
    follow(&mut company);
    company.assert_even();
    assert_eq!(company.head_names()[&1], "uno");
    let listed = company.listed(Reason::SchemaChanged);
    let of_one = listed.iter().filter(|(row, ..)| *row == key(1));
    let of_one: Vec<_> = of_one.collect();
    assert_eq!(of_one, [&(key(1), None, Some(noted(1, "uno", "lost?")))]);
}

/// A restored head went on without the column.
#[test]
fn what_a_branch_could_not_freeze_of_a_column_that_goes_when_it_goes_back_is_listed() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    let (image, schema) = (company.head_image(), company.schema.clone());
    company.cut(1);
    company.alter_head(NAMES, |table| table.columns.push(text("note")));
    company.settle();
    fill_window(&mut company);
    company.write(0, &[change(noted(1, "uno", "lost?"))]);
    company.cut(0);
    company.schema = schema;
    company.restore_head(&image);
    company.connect(1);
    company.alter_head(NAMES, |table| table.columns.push(text("remark")));
    company.write_head(&[insert_with_remark(2)]);
    company.settle();
    company.branches[0].lose = |_| false;
    company.connect(0);
    company.settle();
    company.schema = company.head.schema().clone();
    company.assert_even();
    assert_eq!(company.head_names()[&1], "uno");
    let listed = company.listed(Reason::SchemaChanged);
    let of_one = listed.iter().filter(|(row, ..)| *row == key(1));
    let of_one: Vec<_> = of_one.collect();
    assert_eq!(of_one, [&(key(1), None, Some(noted(1, "uno", "lost?")))]);
}

fn insert_with_remark(id: i64) -> Op {
    Op::Insert(NAMES, noted(id, "two", "a remark"))
}

/// It never pauses: the step is not kept out for ever, and what it takes away last is listed at the branch.
#[test]
fn what_a_branch_writes_without_pause_to_a_column_that_goes_is_listed() {
    let mut company = with_notes();
    company.branches[0].lose = |message| matches!(message, Message::Batch(_));
    company.alter_head(NAMES, |table| drop(table.columns.pop()));
    company.step();
    let mut plan = Plan {
        restless: vec![change(noted(1, "uno", "without pause"))],
        ..Plan::default()
    };
    company.work_under(0, &mut plan).unwrap();
    assert_eq!(company.branches[0].branch.schema().version, 3);
    let listed = company.conflicts_at(0);
    let rows: Vec<_> = listed.iter().map(|record| &record.theirs).collect();
    assert_eq!(rows, [&Some(noted(1, "uno", "without pause"))]);
    assert_eq!(listed[0].reason, Reason::SchemaChanged);
    company.branches[0].lose = |_| false;
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&1], "uno");
}
