//! Rows that differ from the head's until a comparison has repaired them, and what is written to them meanwhile.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::conflict::Reason;
use branchline_core::message::Message;
use branchline_core::output::Notice;
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::Column;
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::{Store, run};

use super::horizon::two_hours;
use crate::company::*;

/// A branch is away while the head deletes a row, and until the log of that is gone.
fn away_for_too_long() -> Company {
    let mut company = Company::new(2);
    company.set_retention(two_hours());
    let ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    company.write_head(&ops);
    company.settle();
    company.cut(0);
    company.write_head(&[delete(6), update(7, "head's")]);
    company.settle();
    hours_pass(&mut company);
    company
}

fn hours_pass(company: &mut Company) {
    for hour in 0..5 {
        company.write_head(&[update(9, &format!("hour {hour}"))]);
        company.let_pass(60);
    }
}

/// What becomes of the row that the head deleted is decided like any conflict, and listed.
fn decided(company: &mut Company) -> Vec<(Key, Option<Row>, Option<Row>)> {
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    assert_eq!(company.names_at(0), company.head_names());
    assert_eq!(company.names_at(1), company.head_names());
    company.listed(Reason::Newest)
}

#[test]
fn a_row_that_is_gone_does_not_come_back_before_the_comparison() {
    let mut company = away_for_too_long();
    company.branches[0].lose = |message| matches!(message, Message::VerifyRequest(_));
    company.connect(0);
    company.settle();
    assert!(company.names_at(0).contains_key(&6));
    company.write(
        0,
        &[update(6, "b1's"), update(7, "b1's"), insert(20, "b1's")],
    );
    company.settle();
    company.write(0, &[update(8, "b1's")]);
    company.settle();
    company.branches[0].lose = |_| false;
    company.restart_branch(0);
    company.settle();
    // What was made on the copied rows contradicts nothing.
    assert_eq!(
        decided(&mut company),
        [(key(6), None, Some(row(6, "b1's")))]
    );
    let names = company.head_names();
    assert_eq!(
        (&*names[&7], &*names[&8], &*names[&20]),
        ("b1's", "b1's", "b1's")
    );
    // When the comparison is over, nothing is doubted any more.
    company.write(0, &[delete(20), delete(6)]);
    company.settle();
    company.write(0, &[insert(20, "again"), insert(6, "again")]);
    company.settle();
    company.write(0, &[update(6, "and again")]);
    company.settle();
    assert_eq!(company.head_names()[&6], "and again");
    assert_eq!(company.conflicts().len(), 1);
}

/// At any moment of the copy and of the comparison, taken at once or only after it.
#[test]
fn a_row_that_is_gone_does_not_come_back_by_what_is_written_meanwhile() {
    let mut written = 0;
    for steps in (0..40).step_by(3) {
        for taken_later in [false, true] {
            let mut company = away_for_too_long();
            company.connect(0);
            for _ in 0..steps {
                company.step();
            }
            let there = company.names_at(0).contains_key(&6);
            if there {
                company.branches[0].branch.set_moving(!taken_later);
                company.write(0, &[update(6, "b1's")]);
                for _ in 0..10 {
                    company.step();
                }
                company.branches[0].branch.set_moving(true);
            }
            company.settle();
            company.settle();
            let listed = decided(&mut company);
            let is_listed = listed == [(key(6), None, Some(row(6, "b1's")))];
            assert_eq!(is_listed, there, "after {steps} steps: {listed:?}");
            written += usize::from(there);
        }
    }
    assert!((8..28).contains(&written), "{written}");
}

#[test]
fn a_table_that_a_comparison_left_out_is_compared_when_it_is_alike_again() {
    let mut company = Company::new(2);
    company.set_retention(two_hours());
    let note = Column {
        name: "note".into(),
        kind: Type::Text { max: None },
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    };
    company.alter_head(NAMES, |names| names.columns.push(note));
    let noted = |id, name: &str| {
        let mut row = row(id, name);
        row.0.push(Value::Null);
        row
    };
    let ops: Vec<Op> = (1..=9)
        .map(|id| Op::Insert(NAMES, noted(id, "old")))
        .collect();
    company.write_head(&ops);
    company.settle();
    company.cut(0);
    company.alter(0, NAMES, |names| drop(names.columns.pop()));
    company.write_head(&[delete(6)]);
    for hour in 0..5 {
        let row = noted(9, &format!("hour {hour}"));
        company.write_head(&[Op::Update(NAMES, key(9), row)]);
        company.let_pass(60);
    }
    company.connect(0);
    company.settle();
    assert!(!company.branches[0].branch.awaits_comparison());
    company.alter_head(NAMES, |names| drop(names.columns.pop()));
    company.settle();
    company.settle();
    assert_eq!(decided(&mut company), []);
    assert!(!company.head_names().contains_key(&6));
}

#[test]
fn a_row_that_is_held_of_another_branch_is_repaired() {
    let mut company = Company::new(2);
    company.cut(1);
    company.write(1, &[insert(1, "b2's")]);
    company.write_head(&[insert(1, "head's"), insert(2, "head's")]);
    company.settle();
    company.connect(1);
    company.settle();
    assert_eq!(company.listed(Reason::InsertedTwice).len(), 1);
    let schema = company.schema.clone();
    let Store::Memory(db) = &mut company.branches[0].disk.store else {
        panic!("not in memory");
    };
    let tampered = [1, 2].map(|id| (NAMES, Effect::Put(row(id, "tampered"))));
    run(async {
        db.begin(Purpose::Load).await.unwrap();
        db.write(&schema, &tampered).await.unwrap();
        db.commit().await.unwrap();
    });
    company.head.verify(true);
    company.settle();
    let names = company.names_at(0);
    assert_eq!((&*names[&1], &*names[&2]), ("head's", "head's"));
    assert_eq!(company.names_at(1)[&1], "b2's");
    assert_eq!(company.listed(Reason::Repaired).len(), 2);
}

/// The head's row, which the copy brings, collides with another row of the branch, as one that is copied along does.
#[test]
fn a_held_row_stays_held_where_the_copied_one_does_not_fit() {
    let mut company = Company::new(1);
    company.alter_head(NAMES, |names| names.unique.push(vec![1]));
    company.write_head(&[insert(2, "two"), insert(4, "four")]);
    company.settle();
    company.join_in_part(2);
    while !(company.branches[1].branch.state().joining).is_some_and(|joining| joining.prepared) {
        assert!(company.step());
    }
    company.cut(1);
    // Its changes are judged before it gets the copy.
    company.branches[1].lose = |message| matches!(message, Message::ChunkRequest(_));
    company.connect(1);
    company.write(1, &[insert(2, "mine"), insert(3, "two"), insert(5, "four")]);
    company.settle();
    company.branches[1].lose = |_| false;
    company.let_pass(1);
    company.settle();
    assert_eq!(company.listed(Reason::InsertedTwice).len(), 1);
    assert_eq!(company.listed(Reason::DoesNotFit).len(), 2);
    // What stood in the way goes; the branch's own row stays until a person decides.
    company.write(1, &[delete(3), delete(5)]);
    company.settle();
    company.let_pass(5);
    company.settle();
    let names = company.names_at(1);
    assert_eq!((&*names[&2], &*names[&4]), ("mine", "four"));
    assert_eq!(company.head_names()[&2], "two");
    let held = company.listed(Reason::InsertedTwice).len();
    assert_eq!((held, company.seat_book(1).holds), (1, 1));
}
