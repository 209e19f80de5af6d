//! A branch settles conflicts about its own changes, within what the plan lets it write (P12).

use std::sync::Arc;

use branchline_core::evolution::{Follow, Plan};
use branchline_core::message::Keep;
use branchline_core::output::Notice;
use branchline_core::schema::{Direction, Table};

use crate::company::*;

/// A branch, and names that only the head writes.
fn told_by_the_head() -> Company {
    let mut company = Company::new(1);
    company.set_plan(Plan {
        rules: Arc::new(|table: &Table| {
            let mut rules = table.rules();
            if table.id == NAMES {
                rules.direction = Direction::Down;
            }
            Some(rules)
        }),
        follow: Follow::Follow,
    });
    company.write_head(&[insert(1, "head's")]);
    company.settle();
    company
}

/// What the head answers to a branch that settles its conflict.
fn settled_by_branch(company: &mut Company, conflict: u64, keep: Keep) -> Result<(), String> {
    let question = company.branches[0].branch.settle(conflict, keep).unwrap();
    company.settle();
    let mut notices = company.branches[0].notices.iter();
    let reply = notices.find_map(|notice| match notice {
        Notice::Reply(number, answer) if *number == question => Some(answer.clone()),
        _ => None,
    });
    reply.expect("the head answers").map(drop)
}

#[test]
fn a_branch_cannot_settle_its_way_into_a_table_that_only_the_head_writes() {
    let mut company = told_by_the_head();
    company.write(0, &[update(1, "b1's")]);
    company.settle();
    let listed = company.conflicts();
    let [conflict] = &listed[..] else {
        panic!("one conflict: {listed:?}");
    };
    for keep in [Keep::Branch, Keep::Base, Keep::Retry] {
        let why = settled_by_branch(&mut company, conflict.id, keep).unwrap_err();
        assert!(why.contains("only the head"), "{why}");
        assert_eq!(company.head_names()[&1], "head's");
    }
    settled_by_branch(&mut company, conflict.id, Keep::Head).unwrap();
    company.assert_even();
    assert_eq!(company.head_names()[&1], "head's");
}

/// The head's row of then is no less a write than any other.
#[test]
fn a_branch_cannot_undo_what_the_head_settled_in_a_table_that_only_the_head_writes() {
    let mut company = told_by_the_head();
    company.write(0, &[update(1, "b1's")]);
    company.settle();
    let conflict = company.conflicts()[0].id;
    company.settle_conflict(conflict, Keep::Branch).unwrap();
    company.settle();
    let why = settled_by_branch(&mut company, conflict, Keep::Head).unwrap_err();
    assert!(why.contains("only the head"), "{why}");
    assert_eq!(company.head_names()[&1], "b1's");
    company.assert_even();
}
