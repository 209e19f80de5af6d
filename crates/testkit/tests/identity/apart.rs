//! Head and branch have no place of the log in common by which they could compare: the branch begins again from the
//! head's tables, and uploads its own rows.

use branchline_core::message::Message;
use branchline_core::output::Notice;
use branchline_core::value::Value;
use branchline_testkit::conformance::Op;

use crate::company::*;

fn stock(to: i64) -> Op {
    Op::Update(STOCK, key(1), amount(1, to))
}

/// A branch that fell behind takes the head's place, and another one joined after the place up to which it had come.
/// The first of the others followed all, the second is the one that joined.
fn promoted() -> Company {
    let mut company = Company::new(2);
    let mut ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    ops.push(Op::Insert(STOCK, amount(1, 100)));
    company.write_head(&ops);
    company.settle();
    company.cut(0);
    company.write_head(&[insert(20, "head's, lost"), update(3, "head's, lost")]);
    company.settle();
    company.join(3);
    company.write(2, &[insert(21, "b3's"), update(4, "b3's")]);
    company.settle();
    company.cut(1);
    company.cut(2);
    company.write(
        2,
        &[
            insert(22, "b3's, unsent"),
            update(5, "b3's, unsent"),
            stock(95),
        ],
    );
    company.settle();
    company.promote(0);
    company.write_head(&[insert(30, "promoted"), stock(90)]);
    company.settle();
    company
}

fn was_copied(company: &Company, at: usize) -> bool {
    company.was_noticed(at, |notice| matches!(notice, Notice::CopiedAnew(_)))
}

#[test]
fn a_branch_that_joined_after_what_a_promoted_head_knows_begins_again_by_itself() {
    let mut company = promoted();
    company.join_again(1);
    company.settle();
    company.settle();
    assert!(was_copied(&company, 1));
    assert_eq!(company.branches[1].branch.state().refused, None);
    let names = company.head_names();
    // What only the branch had is there, and what it had not sent was made on what it says.
    assert_eq!(names[&20], "head's, lost");
    assert_eq!(names[&21], "b3's");
    assert_eq!(names[&22], "b3's, unsent");
    assert_eq!(names[&5], "b3's, unsent");
    assert_eq!(names[&30], "promoted");
    assert_eq!(company.amount_at(1, 1), company.head_amount(1));
    assert_eq!(company.head_amount(1), Value::Int(85));
    // Of rows that the head has otherwise nobody can tell which is newer.
    assert_eq!((&*names[&3], &*names[&4]), ("old", "old"));
    let at_branch = company.names_at(1);
    assert_eq!((&*at_branch[&3], &*at_branch[&4]), ("head's, lost", "b3's"));
    assert_eq!(company.seat_book(1).holds, 2);
    // The other one gives the lost part back, which tells it: nothing is left to be decided.
    company.join_again(0);
    company.settle();
    company.settle();
    assert!(!was_copied(&company, 0));
    let names = company.head_names();
    assert_eq!(names[&3], "head's, lost");
    assert_eq!(names[&4], "b3's");
    assert_eq!(company.seat_book(1).holds, 0);
    company.assert_even();
}

/// The answer may be lost, and the branch may end at any time.
#[test]
fn beginning_again_may_be_cut_short() {
    for steps in 0..12 {
        let mut company = promoted();
        company.branches[1].lose = |message| matches!(message, Message::ChunkRequest(_));
        company.join_again(1);
        for _ in 0..steps {
            company.step();
        }
        company.restart_branch(1);
        company.tick(100);
        company.step();
        company.branches[1].lose = |_| false;
        company.restart_branch(1);
        company.settle();
        company.join_again(0);
        company.settle();
        company.settle();
        assert_eq!(company.head_amount(1), Value::Int(85), "{steps}");
        assert_eq!(company.head_names()[&22], "b3's, unsent");
        company.assert_even();
    }
}
