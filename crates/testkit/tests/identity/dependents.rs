//! What refers to a row that is held waits with it.

use std::sync::Arc;

use branchline_core::change::Row;
use branchline_core::conflict::Reason;
use branchline_core::evolution::{Follow, Plan};
use branchline_core::message::Keep;
use branchline_core::schema::{Column, ForeignKey, Table, TableId};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;

use crate::company::*;

/// Visits of persons.
fn visits() -> Table {
    let column = |name: &str| Column {
        name: name.into(),
        kind: Type::Int64,
        nullable: false,
        default: None,
        generated_key: false,
        id: 0,
    };
    Table {
        id: 0,
        name: "visits".into(),
        columns: vec![column("id"), column("person")],
        key: vec![0],
        unique: Vec::new(),
        foreign_keys: vec![ForeignKey {
            columns: vec![1],
            parent: "names".into(),
            parent_columns: vec!["id".into()],
            on_delete: "NO ACTION".into(),
            on_update: "NO ACTION".into(),
        }],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    }
}

fn visit(id: i64, person: i64) -> Row {
    Row(vec![Value::Int(id), Value::Int(person)])
}

/// Two clinics gave away one number; the second one's patient has been there twice, the last time after the hold.
fn two_patients(in_one_batch: bool) -> (Company, TableId) {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "Zoe")]);
    company.set_plan(Plan {
        rules: Arc::new(|table: &Table| Some(table.rules())),
        follow: Follow::Follow,
    });
    let id = company.create_at_head(visits(), &[]);
    company.settle();
    company.write_head(&[Op::Insert(id, visit(7, 1))]);
    company.settle();
    company.assert_even();
    company.cut(1);
    company.write(0, &[insert(100, "Ann")]);
    company.settle();
    company.write(1, &[insert(100, "Bob")]);
    if !in_one_batch {
        company.settle();
    }
    company.write(1, &[Op::Insert(id, visit(8, 100))]);
    company.settle();
    company.connect(1);
    company.settle();
    company.write(1, &[Op::Update(id, key(7), visit(7, 100))]);
    company.write(1, &[Op::Insert(id, visit(9, 1))]);
    company.settle();
    (company, id)
}

fn visits_at_head(company: &mut Company, id: TableId) -> Vec<(i64, i64)> {
    let table = company.head.schema().table(id).unwrap().clone();
    let rows = company.at_head.rows(&table).into_iter();
    let number = |value: &Value| match value {
        Value::Int(number) => *number,
        other => panic!("{other:?}"),
    };
    rows.map(|row| (number(&row.0[0]), number(&row.0[1])))
        .collect()
}

#[test]
fn what_an_office_wrote_of_its_own_row_does_not_go_to_another_offices() {
    for in_one_batch in [true, false] {
        let (mut company, id) = two_patients(in_one_batch);
        assert_eq!(company.listed(Reason::InsertedTwice).len(), 1);
        // Both visits wait, the other one does not.
        assert_eq!(visits_at_head(&mut company, id), [(7, 1), (9, 1)]);
        let waiting: Vec<_> = company
            .conflicts()
            .into_iter()
            .filter(|record| record.reason == Reason::DoesNotFit)
            .collect();
        assert_eq!(waiting.len(), 2);
        assert_eq!(waiting[1].ours, Some(visit(7, 1)));
        for record in &waiting {
            let detail = record.detail.clone().unwrap_or_default();
            assert!(detail.contains("which is held as conflict 1"), "{detail}");
        }
        let other = company.settle_conflict(waiting[0].id, Keep::Retry);
        assert!(other.unwrap_err().contains("held as conflict 1"));
        company.let_pass(5);
        assert_eq!(visits_at_head(&mut company, id), [(7, 1), (9, 1)]);
        // The clinic gives its patient another number.
        company.write(
            1,
            &[
                insert(101, "Bob"),
                Op::Update(id, key(8), visit(8, 101)),
                Op::Update(id, key(7), visit(7, 101)),
                delete(100),
            ],
        );
        company.settle();
        company.let_pass(5);
        company.settle();
        company.assert_even();
        assert_eq!(
            visits_at_head(&mut company, id),
            [(7, 101), (8, 101), (9, 1)]
        );
        let names = company.head_names();
        assert_eq!((&*names[&100], &*names[&101]), ("Ann", "Bob"));
        assert_eq!(company.seat_book(1).holds, 0);
    }
}

#[test]
fn what_waits_comes_in_when_the_hold_ends() {
    let (mut company, id) = two_patients(true);
    let parent = company.conflicts()[0].id;
    company.settle_conflict(parent, Keep::Branch).unwrap();
    company.settle();
    company.let_pass(5);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&100], "Bob");
    assert_eq!(
        visits_at_head(&mut company, id),
        [(7, 100), (8, 100), (9, 1)]
    );
}
