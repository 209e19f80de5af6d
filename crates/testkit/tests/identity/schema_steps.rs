//! The head's tables change while branches are up to date, behind with unsent changes, or ahead.

use branchline_core::change::Row;
use branchline_core::conflict::{ConflictRecord, Reason};
use branchline_core::evolution::{Follow, Plan};
use branchline_core::output::Notice;
use branchline_core::schema::{Column, Rules, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::Store;
use std::sync::Arc;

use crate::company::{Company, NAMES, STOCK, amount, delete, insert, key, row, update};

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

fn add_note(table: &mut Table) {
    table.columns.push(column("note", Type::Text { max: None }));
}

/// The tables of a branch whose application changed one of them first.
fn ahead(company: &Company, id: TableId, change: impl FnOnce(&mut Table)) -> Schema {
    let mut ahead = company.branches[0].branch.schema().clone();
    let table = ahead.tables.iter_mut().find(|table| table.id == id);
    change(table.unwrap());
    ahead
}

fn noted(id: i64, name: &str, note: Option<&str>) -> Row {
    let note = note.map_or(Value::Null, |note| Value::Text(note.into()));
    let mut row = row(id, name);
    row.0.push(note);
    row
}

fn named(company: &mut Company, id: i64) -> Row {
    let table = company.head.schema().table(NAMES).unwrap().clone();
    company.at_head.row(&table, &key(id)).unwrap()
}

#[test]
fn a_new_column_comes_to_branches_with_what_the_head_wrote_there() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Update(
        NAMES,
        key(1),
        noted(1, "one", Some("from the head")),
    )]);
    company.settle();
    company.assert_even();
    assert_eq!(company.branches[0].branch.schema().version, 2);
    company.write(
        0,
        &[Op::Update(
            NAMES,
            key(2),
            noted(2, "two", Some("from a branch")),
        )],
    );
    company.settle();
    company.assert_even();
    assert_eq!(
        named(&mut company, 2),
        noted(2, "two", Some("from a branch"))
    );
    assert!(company.conflicts().is_empty());
}

#[test]
fn a_branch_that_is_three_versions_behind_loses_nothing() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(2, "two"), insert(3, "three")]);
    company.settle();
    company.cut(0);
    company.write(0, &[update(1, "uno"), insert(10, "diez")]);
    company.alter_head(NAMES, add_note);
    company.settle();
    company.write_head(&[Op::Update(NAMES, key(1), noted(1, "one", Some("kept")))]);
    company.settle();
    company.alter_head(NAMES, |table| table.columns[1].name = "title".into());
    company.settle();
    company.alter_head(STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    company.settle();
    company.write(0, &[update(2, "dos")]);
    company.connect(0);
    company.settle();
    company.assert_even();
    assert_eq!(company.branches[0].branch.schema().version, 4);
    assert_eq!(named(&mut company, 2), noted(2, "dos", None));
    assert_eq!(named(&mut company, 10), noted(10, "diez", None));
    // Both changed row 1: the later change wins, and the column that the branch did not know keeps what the head wrote.
    let conflicts = company.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(named(&mut company, 1).0[2], Value::Text("kept".into()));
}

#[test]
fn what_was_written_to_a_column_that_is_gone_is_listed() {
    let mut company = Company::new(1);
    company.alter_head(NAMES, add_note);
    company.settle();
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", None))]);
    company.settle();
    company.cut(0);
    company.write(
        0,
        &[Op::Update(NAMES, key(1), noted(1, "uno", Some("lost?")))],
    );
    company.alter_head(NAMES, |table| drop(table.columns.pop()));
    company.settle();
    company.connect(0);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&1], "uno");
    let listed = company.listed(Reason::SchemaChanged);
    assert_eq!(
        listed,
        [(key(1), None, Some(noted(1, "uno", Some("lost?"))))]
    );
    assert_eq!(company.conflicts_at(0).len(), 1);
}

#[test]
fn a_value_that_the_new_type_does_not_hold_is_listed_and_the_heads_row_stands() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "11"), insert(2, "22")]);
    company.settle();
    company.cut(0);
    company.write(
        0,
        &[update(1, "eleven"), update(2, "222"), insert(3, "three")],
    );
    company.alter_head(NAMES, |table| table.columns[1].kind = Type::Int64);
    company.settle();
    company.connect(0);
    company.settle();
    let listed = company.listed(Reason::SchemaChanged);
    assert_eq!(listed.len(), 2);
    let table = company.head.schema().table(NAMES).unwrap().clone();
    assert_eq!(
        company.at_head.row(&table, &key(1)).unwrap().0[1],
        Value::Int(11)
    );
    assert_eq!(
        company.at_head.row(&table, &key(2)).unwrap().0[1],
        Value::Int(222)
    );
    company.assert_even();
}

#[test]
fn a_table_that_was_dropped_keeps_unsent_changes_in_the_list() {
    let mut company = Company::new(2);
    company.write_head(&[Op::Insert(STOCK, amount(1, 5))]);
    company.settle();
    company.cut(0);
    company.write(
        0,
        &[Op::Update(STOCK, key(1), amount(1, 7)), insert(4, "four")],
    );
    company.drop_at_head(STOCK);
    company.settle();
    company.connect(0);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&4], "four");
    assert_eq!(
        company.listed(Reason::SchemaChanged),
        [(key(1), None, Some(amount(1, 7)))]
    );
    assert!(company.branches[0].branch.schema().table(STOCK).is_none());
}

#[test]
fn a_new_table_is_loaded_and_nothing_else_stops() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    company.set_plan(share_all());
    let mut table = company.schema.table(NAMES).unwrap().clone();
    table.id = 0;
    table.name = "added".into();
    let id = company.create_at_head(table, &[row(7, "seven")]);
    company.settle();
    company.assert_even();
    let at_branch = company.branches[1]
        .branch
        .schema()
        .table(id)
        .unwrap()
        .clone();
    assert_eq!(company.branches[1].disk.rows(&at_branch), [row(7, "seven")]);
    company.write(1, &[Op::Insert(id, row(8, "eight")), update(1, "uno")]);
    company.settle();
    company.assert_even();
    assert_eq!(
        company.at_head.row(&at_branch, &key(8)).unwrap(),
        row(8, "eight")
    );
}

fn share_all() -> Plan {
    let rules = |table: &Table| {
        Some(if table.id == 0 {
            Rules::default()
        } else {
            table.rules()
        })
    };
    Plan {
        rules: Arc::new(rules),
        follow: Follow::Follow,
    }
}

#[test]
fn a_renamed_table_is_the_same_table() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    company.cut(0);
    company.write(0, &[update(1, "uno")]);
    company.alter_head(NAMES, |table| table.name = "people".into());
    company.settle();
    company.connect(0);
    company.settle();
    company.assert_even();
    assert_eq!(
        company.branches[0]
            .branch
            .schema()
            .table(NAMES)
            .unwrap()
            .name,
        "people"
    );
    assert_eq!(company.head_names()[&1], "uno");
    assert!(company.conflicts().is_empty());
}

#[test]
fn a_branch_that_migrated_first_is_no_second_change_and_its_values_come_up() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.alter(0, NAMES, add_note);
    company.settle();
    let ahead = ahead(&company, NAMES, add_note);
    company.write_as(
        0,
        &ahead,
        &[Op::Update(NAMES, key(1), noted(1, "uno", Some("early")))],
    );
    company.settle();
    assert_eq!(company.head_names()[&1], "uno");
    company.alter_head(NAMES, add_note);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "uno", Some("early")));
    assert_eq!(company.head.schema().version, 2);
    assert!(company.conflicts().is_empty());
}

#[test]
fn a_plan_that_asks_waits_for_a_person() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    company.set_plan(Plan {
        follow: Follow::Ask,
        ..Plan::default()
    });
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Update(NAMES, key(1), noted(1, "uno", None))]);
    company.settle();
    assert_eq!(
        company.head.waiting_changes(),
        ["column `names.note` is new"]
    );
    assert_eq!(company.names_at(0)[&1], "one");
    assert!(
        company
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::Trouble(_)))
    );
    company.accept_changes();
    company.settle();
    company.assert_even();
    assert!(company.head.waiting_changes().is_empty());
}

#[test]
fn a_restored_head_takes_the_steps_that_it_lost_back() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    let image = company.head_image();
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Update(NAMES, key(1), noted(1, "one", Some("after")))]);
    company.settle();
    company.write(0, &[Op::Insert(NAMES, noted(2, "two", Some("too")))]);
    company.settle();
    company.restore_head(&image);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "one", Some("after")));
    assert_eq!(named(&mut company, 2), noted(2, "two", Some("too")));
}

#[test]
fn a_restored_branch_passes_the_steps_again() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    let image = company.branches[0].disk.image();
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Update(NAMES, key(1), noted(1, "one", Some("after")))]);
    company.settle();
    company.write(0, &[Op::Insert(NAMES, noted(2, "two", Some("sent")))]);
    company.settle();
    company.restore_branch(0, &image);
    company.write(0, &[insert(3, "three")]);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 2), noted(2, "two", Some("sent")));
    assert_eq!(named(&mut company, 3), noted(3, "three", None));
}

#[test]
fn a_branch_that_dropped_a_column_first_takes_nothing_from_the_others() {
    let mut company = Company::new(2);
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", Some("kept")))]);
    company.settle();
    company.alter(0, NAMES, |table| drop(table.columns.pop()));
    company.settle();
    let ahead = ahead(&company, NAMES, |table| drop(table.columns.pop()));
    company.write_as(0, &ahead, &[update(1, "uno"), insert(2, "dos")]);
    company.write_head(&[Op::Insert(NAMES, noted(3, "three", Some("later")))]);
    company.settle();
    assert_eq!(named(&mut company, 1), noted(1, "uno", Some("kept")));
    assert_eq!(named(&mut company, 2), noted(2, "dos", None));
    assert_eq!(
        company.branches[1]
            .disk
            .rows(&company.schema.tables[0].clone())
            .len(),
        3
    );
    company.alter_head(NAMES, |table| drop(table.columns.pop()));
    company.settle();
    company.assert_even();
    assert!(company.conflicts().is_empty());
}

#[test]
fn a_delete_at_a_branch_that_dropped_a_column_first_is_taken() {
    let mut company = Company::new(2);
    company.alter_head(NAMES, add_note);
    company.write_head(&[
        Op::Insert(NAMES, noted(1, "one", Some("kept"))),
        Op::Insert(NAMES, noted(2, "two", Some("kept"))),
    ]);
    company.settle();
    company.alter(0, NAMES, |table| drop(table.columns.pop()));
    let mut ahead = company.branches[0].branch.schema().clone();
    let names = ahead.tables.iter_mut().find(|table| table.id == NAMES);
    names.unwrap().columns.pop();
    company.write_as(0, &ahead, &[Op::Delete(NAMES, key(1))]);
    company.settle();
    let table = company.head.schema().table(NAMES).unwrap().clone();
    assert!(company.at_head.row(&table, &key(1)).is_none());
    company.alter_head(NAMES, |table| drop(table.columns.pop()));
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names().len(), 1);
}

#[test]
fn a_null_that_a_branch_wrote_where_others_have_the_default_comes_up() {
    let with_default = |table: &mut Table| {
        table.columns.push(Column {
            default: Some(Value::Text("none".into())),
            ..column("note", Type::Text { max: None })
        });
    };
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    company.alter(0, NAMES, with_default);
    company.settle();
    let mut ahead = company.branches[0].branch.schema().clone();
    let names = ahead.tables.iter_mut().find(|table| table.id == NAMES);
    with_default(names.unwrap());
    company.write_as(
        0,
        &ahead,
        &[Op::Update(NAMES, key(1), noted(1, "uno", None))],
    );
    company.settle();
    company.alter_head(NAMES, with_default);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "uno", None));
}

/// The step on its way speaks of another table; it must not bring back what the application here has renamed.
#[test]
fn a_branch_that_renamed_a_column_first_keeps_its_values_through_other_steps() {
    let mut company = Company::new(2);
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", Some("kept")))]);
    company.settle();
    let rename = |table: &mut Table| table.columns[2].name = "remark".into();
    company.alter(0, NAMES, rename);
    company.settle();
    company.alter_head(STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    company.settle();
    company.alter_head(NAMES, rename);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "one", Some("kept")));
}

/// A step must not make a column again, empty, that was renamed after the table was: what is written there waits in it.
#[test]
fn a_change_to_a_table_that_a_branch_renamed_first_is_noticed() {
    let mut company = Company::new(2);
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", Some("kept")))]);
    company.settle();
    let people = |table: &mut Table| table.name = "people".into();
    let rename = |table: &mut Table| table.columns[2].name = "remark".into();
    company.alter(0, NAMES, people);
    company.settle();
    let renamed = ahead(&company, NAMES, people);
    company.alter_from(0, &renamed, NAMES, rename);
    company.settle();
    let both = ahead(&company, NAMES, |table| {
        people(table);
        rename(table);
    });
    company.write_as(
        0,
        &both,
        &[Op::Insert(NAMES, noted(2, "two", Some("waits")))],
    );
    company.settle();
    company.alter_head(STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    company.settle();
    company.alter_head(NAMES, people);
    company.settle();
    company.alter_head(NAMES, rename);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "one", Some("kept")));
    assert_eq!(named(&mut company, 2), noted(2, "two", Some("waits")));
    assert!(company.conflicts().is_empty());
}

#[test]
fn a_branch_that_dropped_a_table_first_does_not_get_it_back_by_another_step() {
    let mut company = Company::new(2);
    company.write_head(&[Op::Insert(STOCK, amount(1, 5)), insert(1, "one")]);
    company.settle();
    let stock = company.schema.table(STOCK).unwrap().name.clone();
    let Store::Memory(database) = &mut company.branches[0].disk.store else {
        panic!("only in memory");
    };
    database.application().drop_now(&stock).unwrap();
    company.branches[0].branch.wake();
    company.settle();
    company.alter_head(NAMES, add_note);
    company.settle();
    let Store::Memory(database) = &company.branches[0].disk.store else {
        panic!("only in memory");
    };
    assert!(database.tables().iter().all(|table| table.name != stock));
    company.drop_at_head(STOCK);
    company.settle();
    company.assert_even();
}

#[test]
fn what_a_branch_wrote_to_a_table_that_is_away_for_a_moment_is_sent() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.write(0, &[delete(1)]);
    let names = company.schema.tables[0].clone();
    let Store::Memory(database) = &mut company.branches[0].disk.store else {
        panic!("only in memory");
    };
    database.application().drop_now(&names.name).unwrap();
    company.tick(250);
    for _ in 0..5 {
        company.step();
    }
    let Store::Memory(database) = &mut company.branches[0].disk.store else {
        panic!("only in memory");
    };
    database.application().create_now(&names).unwrap();
    company.write(0, &[insert(2, "two"), insert(3, "three")]);
    company.settle();
    company.assert_even();
    let ids: Vec<i64> = company.head_names().into_keys().collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn a_branch_that_renamed_a_column_first_sends_what_it_wrote_when_the_head_follows() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.alter(0, NAMES, |table| table.columns[1].name = "title".into());
    company.settle();
    let ahead = ahead(&company, NAMES, |table| {
        table.columns[1].name = "title".into()
    });
    company.write_as(0, &ahead, &[update(1, "uno")]);
    company.settle();
    company.alter_head(NAMES, |table| table.columns[1].name = "title".into());
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&1], "uno");
}

#[test]
fn a_table_that_is_away_for_a_moment_is_not_dropped() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    let names = company.schema.tables[0].clone();
    company.drop_at_head(NAMES);
    company.tick(250);
    company.step();
    company.bring_back(names, &[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.assert_even();
    assert_eq!(company.names_at(0).len(), 2);
    assert_eq!(
        company.branches[0]
            .branch
            .schema()
            .table(NAMES)
            .unwrap()
            .name,
        "names"
    );
}

#[test]
fn a_table_that_could_not_follow_gets_the_values_of_a_new_column_when_it_does() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "11"), insert(2, "22")]);
    company.settle();
    company.cut(0);
    company.write(0, &[insert(3, "three")]);
    company.alter_head(NAMES, |table| {
        table.columns[1].kind = Type::Int64;
        add_note(table);
    });
    company.settle();
    let table = company.head.schema().table(NAMES).unwrap().clone();
    let mut one = company.at_head.row(&table, &key(1)).unwrap();
    one.0[2] = Value::Text("kept".into());
    company.write_head(&[Op::Update(NAMES, key(1), one)]);
    company.settle();
    company.connect(0);
    company.settle();
    company.assert_even();
}

#[test]
fn a_column_that_a_branch_dropped_and_put_back_holds_what_the_head_has() {
    let mut company = Company::new(2);
    company.alter_head(NAMES, add_note);
    company.write_head(&[Op::Insert(NAMES, noted(1, "one", Some("kept")))]);
    company.settle();
    company.alter(0, NAMES, |table| drop(table.columns.pop()));
    company.settle();
    company.write_head(&[Op::Insert(NAMES, noted(2, "two", Some("later")))]);
    company.settle();
    company.alter(0, NAMES, |_| ());
    // Before the branch has the head's values again.
    company.write(0, &[Op::Update(NAMES, key(1), noted(1, "uno", None))]);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "uno", Some("kept")));
    let repaired = |record: &ConflictRecord| record.reason == Reason::Repaired;
    assert!(company.conflicts().iter().all(repaired));
    company.write(0, &[Op::Update(NAMES, key(1), noted(1, "uno", None))]);
    company.settle();
    company.assert_even();
    assert_eq!(named(&mut company, 1), noted(1, "uno", None));
}

#[test]
fn rows_that_never_fit_do_not_keep_others_from_being_tried_again() {
    let mut company = Company::new(1);
    company.alter(0, NAMES, |table| table.unique.push(vec![1]));
    let same: Vec<Op> = (100..350).map(|id| insert(id, "same")).collect();
    company.write_head(&same);
    company.write_head(&[insert(400, "late"), insert(401, "late")]);
    company.settle();
    assert_eq!(company.names_at(0).len(), 2);
    company.write_head(&[delete(400)]);
    company.settle();
    company.let_pass(5);
    assert_eq!(
        company.names_at(0).get(&401).map(String::as_str),
        Some("late")
    );
}

#[test]
fn a_table_that_a_branch_renamed_first_goes_on_both_ways() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.alter(0, NAMES, |table| table.name = "people".into());
    let ahead = ahead(&company, NAMES, |table| table.name = "people".into());
    company.write_as(0, &ahead, &[update(1, "uno"), insert(3, "tres")]);
    company.write_head(&[update(2, "deux")]);
    company.settle();
    let names = company.head_names();
    assert_eq!((&*names[&1], &*names[&3]), ("uno", "tres"));
    company.alter_head(NAMES, |table| table.name = "people".into());
    company.settle();
    company.assert_even();
    assert_eq!(company.names_at(0)[&2], "deux");
    assert!(company.conflicts().is_empty());
}

#[test]
fn what_a_branch_ahead_wrote_is_sent_when_the_plan_has_a_place_for_it() {
    let mut company = Company::new(1);
    company.write_head(&[Op::Insert(STOCK, amount(1, 5))]);
    company.settle();
    company.alter(0, STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    let ahead = ahead(&company, STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    let precise = |id: i64| Row(vec![Value::Int(id), Value::Text("7.25".into())]);
    company.write_as(
        0,
        &ahead,
        &[
            Op::Update(STOCK, key(1), precise(1)),
            Op::Insert(STOCK, precise(2)),
        ],
    );
    company.settle();
    company.alter_head(STOCK, |table| {
        table.columns[1].kind = Type::Decimal { limits: None }
    });
    company.settle();
    company.assert_even();
    let table = company.head.schema().table(STOCK).unwrap().clone();
    assert_eq!(company.at_head.row(&table, &key(1)), Some(precise(1)));
    assert_eq!(company.at_head.row(&table, &key(2)), Some(precise(2)));
    assert!(company.conflicts().is_empty());
}
