//! The head is restored and goes on while its branches have log entries from after the backup, among them steps of the
//! schema: rows are never read by the columns of another version.

use branchline_core::change::Row;
use branchline_core::conflict::Reason;
use branchline_core::schema::{Column, Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::{Image, Place};

use crate::company::{Company, NAMES, insert, key, row, update};

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
    a_lost_step_is_made_again_where_the_head_made_none,
    a_lost_column_is_not_read_as_the_one_that_the_head_added_since,
    a_migration_that_ran_again_at_the_head_is_the_same_one,
    columns_of_a_lost_version_are_the_heads_of_the_same_name,
    a_lost_step_takes_no_column_away_that_was_written_since,
    two_branches_give_back_the_same_step,
);

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

fn add(column: &'static str) -> impl FnOnce(&mut Table) {
    move |table| table.columns.push(text(column))
}

/// A row of `names` with further columns.
fn with(id: i64, name: &str, further: &[Option<&str>]) -> Row {
    let mut row = row(id, name);
    let further = further.iter();
    row.0
        .extend(further.map(|value| value.map_or(Value::Null, |value| Value::Text(value.into()))));
    row
}

fn put(row: Row) -> Op {
    let Some(Value::Int(id)) = row.0.first() else {
        panic!("{row:?}");
    };
    Op::Update(NAMES, key(*id), row)
}

fn new(row: Row) -> Op {
    Op::Insert(NAMES, row)
}

/// What the head had when the backup was made.
struct Backup {
    image: Image,
    schema: Schema,
}

/// Two branches, all even; the backup; then only the second branch follows what comes.
fn shop(place: Place<'static>) -> (Company, Backup) {
    let mut company = Company::new_on(place, 2);
    let ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    company.write_head(&ops);
    company.settle();
    company.assert_even();
    let backup = back_up(&mut company);
    (company, backup)
}

fn back_up(company: &mut Company) -> Backup {
    let backup = Backup {
        image: company.head_image(),
        schema: company.schema.clone(),
    };
    company.cut(0);
    backup
}

/// The head becomes what it was, and goes on with the first branch, which knows of nothing that was lost.
fn fork(company: &mut Company, backup: &Backup) {
    company.cut(1);
    company.schema = backup.schema.clone();
    company.restore_head(&backup.image);
    company.connect(0);
    company.settle();
}

fn at_head(company: &mut Company, id: i64) -> Row {
    let table = company.head.schema().table(NAMES).unwrap().clone();
    company.at_head.row(&table, &key(id)).unwrap()
}

/// The second branch comes with what it has; all are even afterwards.
fn come_back(company: &mut Company) {
    company.connect(1);
    company.settle();
    company.schema = company.head.schema().clone();
    company.assert_even();
}

fn take_part_again(company: &mut Company) {
    let width = company.head.schema().table(NAMES).unwrap().columns.len();
    let full = |id| with(id, "later", &vec![Some("later"); width - 2]);
    company.write_head(&[new(full(90))]);
    company.write(0, &[new(full(91))]);
    company.write(1, &[new(full(92))]);
    company.settle();
    company.assert_even();
    for id in 90..93 {
        assert_eq!(at_head(company, id), full(id));
    }
}

fn a_lost_step_is_made_again_where_the_head_made_none(place: Place<'static>) {
    let (mut company, backup) = shop(place);
    company.write_head(&[update(1, "lost before")]);
    company.alter_head(NAMES, add("note"));
    company.write_head(&[put(with(2, "lost", &[Some("head's")]))]);
    company.settle();
    company.write(
        1,
        &[
            put(with(3, "lost", &[Some("b2's")])),
            new(with(20, "lost", &[Some("b2's")])),
        ],
    );
    company.settle();
    company.cut(1);
    company.write(1, &[put(with(4, "unsent", &[Some("unsent")]))]);
    company.settle();
    // Written and not yet taken when the head sends it back.
    company.write(1, &[put(with(5, "untaken", &[Some("untaken")]))]);
    fork(&mut company, &backup);
    company.write_head(&[update(6, "head's, after"), insert(30, "head's, after")]);
    company.write(0, &[update(7, "b1's, after")]);
    company.settle();
    come_back(&mut company);
    assert_eq!(company.head.schema().version, 2);
    let expected = [
        with(1, "lost before", &[None]),
        with(2, "lost", &[Some("head's")]),
        with(3, "lost", &[Some("b2's")]),
        with(4, "unsent", &[Some("unsent")]),
        with(5, "untaken", &[Some("untaken")]),
        with(6, "head's, after", &[None]),
        with(7, "b1's, after", &[None]),
        with(20, "lost", &[Some("b2's")]),
        with(30, "head's, after", &[None]),
    ];
    for row in expected {
        let Value::Int(id) = row.0[0] else { panic!() };
        assert_eq!(at_head(&mut company, id), row);
    }
    assert_eq!(company.conflicts(), []);
    take_part_again(&mut company);
}

/// Both new columns have the same number and the same type.
fn a_lost_column_is_not_read_as_the_one_that_the_head_added_since(place: Place<'static>) {
    let (mut company, backup) = shop(place);
    company.alter_head(NAMES, add("note"));
    company.write_head(&[put(with(2, "lost", &[Some("a note")]))]);
    company.settle();
    company.write(1, &[put(with(3, "lost", &[None]))]);
    company.settle();
    company.cut(1);
    company.write(1, &[put(with(4, "unsent", &[Some("unsent note")]))]);
    company.settle();
    fork(&mut company, &backup);
    company.alter_head(NAMES, add("remark"));
    company.write_head(&[put(with(2, "old", &[Some("a remark")]))]);
    company.write_head(&[put(with(3, "old", &[Some("a remark")]))]);
    company.write_head(&[put(with(5, "old", &[Some("a remark")]))]);
    company.settle();
    come_back(&mut company);
    let names = &company.head.schema().table(NAMES).unwrap().columns;
    let names: Vec<&str> = names.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "name", "remark"]);
    assert_eq!(
        at_head(&mut company, 2),
        with(2, "old", &[Some("a remark")])
    );
    assert_eq!(
        at_head(&mut company, 3),
        with(3, "old", &[Some("a remark")])
    );
    // Nobody else changed the row: what has a place is taken.
    assert_eq!(at_head(&mut company, 4), with(4, "unsent", &[None]));
    let mut listed = company.listed(Reason::SchemaChanged);
    listed.sort();
    assert_eq!(
        listed,
        [
            (key(2), None, Some(with(2, "lost", &[Some("a note")]))),
            (
                key(4),
                None,
                Some(with(4, "unsent", &[Some("unsent note")]))
            ),
        ]
    );
    // The head changed these two as well, later: what has a place loses by that.
    assert_eq!(company.listed(Reason::Restored).len(), 2);
    take_part_again(&mut company);
}

fn a_migration_that_ran_again_at_the_head_is_the_same_one(place: Place<'static>) {
    let (mut company, backup) = shop(place);
    company.alter_head(NAMES, add("note"));
    company.write_head(&[put(with(2, "lost", &[Some("lost")]))]);
    company.settle();
    company.cut(1);
    company.write(1, &[put(with(4, "unsent", &[Some("unsent")]))]);
    company.settle();
    fork(&mut company, &backup);
    company.alter_head(NAMES, add("note"));
    company.write_head(&[put(with(3, "after", &[Some("after")]))]);
    company.settle();
    come_back(&mut company);
    assert_eq!(at_head(&mut company, 2), with(2, "lost", &[Some("lost")]));
    assert_eq!(at_head(&mut company, 3), with(3, "after", &[Some("after")]));
    assert_eq!(
        at_head(&mut company, 4),
        with(4, "unsent", &[Some("unsent")])
    );
    assert_eq!(company.head.schema().version, 2);
    assert_eq!(company.conflicts(), []);
    take_part_again(&mut company);
}

/// The same columns, numbered the other way round.
fn columns_of_a_lost_version_are_the_heads_of_the_same_name(place: Place<'static>) {
    let (mut company, backup) = shop(place);
    company.alter_head(NAMES, add("note"));
    company.settle();
    company.alter_head(NAMES, add("remark"));
    company.write_head(&[put(with(2, "lost", &[Some("a note"), Some("a remark")]))]);
    company.settle();
    company.cut(1);
    company.write(
        1,
        &[put(with(4, "unsent", &[Some("a note"), Some("a remark")]))],
    );
    company.settle();
    fork(&mut company, &backup);
    company.alter_head(NAMES, |table| {
        table.columns.extend([text("remark"), text("note")]);
    });
    company.settle();
    company.write_head(&[put(with(3, "after", &[Some("a remark"), Some("a note")]))]);
    company.settle();
    come_back(&mut company);
    let swapped = |id, name| with(id, name, &[Some("a remark"), Some("a note")]);
    assert_eq!(at_head(&mut company, 2), swapped(2, "lost"));
    assert_eq!(at_head(&mut company, 3), swapped(3, "after"));
    assert_eq!(at_head(&mut company, 4), swapped(4, "unsent"));
    assert_eq!(company.conflicts(), []);
    take_part_again(&mut company);
}

fn drop_name(table: &mut Table) {
    table.columns.remove(1);
}

fn noted(id: i64, note: &str) -> Row {
    Row(vec![Value::Int(id), Value::Text(note.into())])
}

fn a_lost_step_takes_no_column_away_that_was_written_since(place: Place<'static>) {
    for written in [false, true] {
        let (mut company, _) = shop(place);
        company.connect(0);
        company.alter_head(NAMES, add("note"));
        company.settle();
        let backup = back_up(&mut company);
        company.alter_head(NAMES, drop_name);
        company.write_head(&[put(noted(2, "lost note"))]);
        company.settle();
        company.write(1, &[put(noted(3, "lost note"))]);
        company.settle();
        company.cut(1);
        company.write(1, &[put(noted(4, "unsent note"))]);
        company.settle();
        fork(&mut company, &backup);
        if written {
            company.write_head(&[put(with(5, "after", &[Some("after")]))]);
        } else {
            company.write_head(&[Op::Insert(
                crate::company::STOCK,
                crate::company::amount(1, 5),
            )]);
        }
        company.settle();
        come_back(&mut company);
        if written {
            for (id, note) in [(2, "lost note"), (3, "lost note"), (4, "unsent note")] {
                assert_eq!(at_head(&mut company, id), with(id, "old", &[Some(note)]));
            }
            assert_eq!(at_head(&mut company, 5), with(5, "after", &[Some("after")]));
        } else {
            assert_eq!(company.head.schema().version, 3);
            for (id, note) in [(2, "lost note"), (3, "lost note"), (4, "unsent note")] {
                assert_eq!(at_head(&mut company, id), noted(id, note));
            }
        }
        // The branch's tables had lost the column, and are repaired.
        let repaired = company.listed(Reason::Repaired).len();
        assert_eq!(company.conflicts().len(), repaired, "{written}");
        assert_eq!(repaired > 0, written);
    }
}

/// What one branch gave back is not taken from another, also where a step stands between.
fn two_branches_give_back_the_same_step(place: Place<'static>) {
    let mut company = Company::new_on(place, 3);
    let ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    company.write_head(&ops);
    company.settle();
    let backup = back_up(&mut company);
    company.alter_head(NAMES, add("note"));
    company.write_head(&[put(with(2, "lost", &[Some("lost")]))]);
    company.settle();
    company.cut(1);
    company.alter_head(NAMES, add("remark"));
    company.write_head(&[put(with(3, "lost", &[Some("lost"), Some("lost")]))]);
    company.settle();
    company.cut(2);
    company.write(1, &[put(with(4, "unsent", &[Some("unsent")]))]);
    company.write(
        2,
        &[put(with(5, "unsent", &[Some("unsent"), Some("unsent")]))],
    );
    fork(&mut company, &backup);
    company.write_head(&[update(6, "after")]);
    company.settle();
    company.connect(1);
    company.settle();
    company.connect(2);
    company.settle();
    company.schema = company.head.schema().clone();
    company.assert_even();
    assert_eq!(company.head.schema().version, 3);
    let expected = [
        with(2, "lost", &[Some("lost"), None]),
        with(3, "lost", &[Some("lost"), Some("lost")]),
        with(4, "unsent", &[Some("unsent"), None]),
        with(5, "unsent", &[Some("unsent"), Some("unsent")]),
        with(6, "after", &[None, None]),
    ];
    for (id, row) in (2..).zip(expected) {
        assert_eq!(at_head(&mut company, id), row);
    }
    assert_eq!(company.conflicts(), []);
    take_part_again(&mut company);
}
