//! Held changes, and decisions about them, at a head that was restored or promoted.

use branchline_core::conflict::Reason;
use branchline_core::message::Keep;
use branchline_core::output::Notice;
use branchline_testkit::sim::office::Image;

use super::horizon::{assert_comes_in, hold_unheard};
use crate::company::*;

/// Two branches with some rows, of which the second made a row that another office made too. Returns an image of the
/// head from before it heard of that.
fn shop_with_a_hold(row: &str) -> (Company, Image) {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(9, "nine")]);
    company.settle();
    company.cut(1);
    company.write_head(&[insert(25, "head's")]);
    company.settle();
    let image = company.head_image();
    company.write(1, &[insert(25, row)]);
    company.connect(1);
    company.settle();
    assert_eq!(company.conflicts()[0].reason, Reason::InsertedTwice);
    (company, image)
}

fn assert_held(company: &mut Company, at: usize, row: &str) {
    for _ in 0..2 {
        company.settle();
    }
    assert_eq!(company.head_names()[&25], "head's");
    assert_eq!(company.names_at(at)[&25], row);
    assert_eq!(company.seat_book(at).holds, 1);
}

fn assert_decided_by_a_person(company: &mut Company, at: usize, row: &str) {
    let records = company.conflicts().into_iter();
    let mut records = records.filter(|record| record.key == key(25));
    let newest = records.next_back().unwrap().id;
    company.settle_conflict(newest, Keep::Branch).unwrap();
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&25], row);
    assert_eq!(company.seat_book(at).holds, 0);
}

/// The same, where the branch changed its row once more, which is held too.
fn held_again() -> (Company, Image) {
    let (mut company, image) = shop_with_a_hold("b2's");
    company.write(1, &[update(25, "b2's, again")]);
    company.settle();
    assert_eq!(company.conflicts()[1].reason, Reason::AlreadyHeld);
    (company, image)
}

fn assert_waits_for_a_person(company: &mut Company, at: usize) {
    assert_held(company, at, "b2's, again");
    assert_decided_by_a_person(company, at, "b2's, again");
}

#[test]
fn what_was_held_again_waits_for_a_person_after_a_restore() {
    let (mut company, image) = held_again();
    company.restore_head(&image);
    assert_waits_for_a_person(&mut company, 1);
}

/// The backup has the hold; what was lost is that it was changed again.
#[test]
fn a_hold_that_a_backup_has_keeps_its_reason() {
    let (mut company, _) = shop_with_a_hold("b2's");
    let image = company.head_image();
    company.write(1, &[update(25, "b2's, again")]);
    company.settle();
    company.restore_head(&image);
    assert_held(&mut company, 1, "b2's, again");
    // The key is free: what is held fits by itself.
    company.write_head(&[delete(25)]);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&25], "b2's, again");
}

#[test]
fn what_was_held_again_waits_for_a_person_at_a_head_that_has_gone_on() {
    let (mut company, image) = held_again();
    company.cut(0);
    company.cut(1);
    company.restore_head(&image);
    company.write_head(&[update(1, "since the restore")]);
    company.settle();
    company.connect(0);
    company.connect(1);
    assert_waits_for_a_person(&mut company, 1);
}

#[test]
fn what_was_held_again_waits_for_a_person_at_a_promoted_head() {
    let (mut company, _) = held_again();
    company.promote(0);
    company.join_again(0);
    assert_waits_for_a_person(&mut company, 0);
}

/// A hold that could end adds nothing to the log before the branches have said what the head lost.
#[test]
fn no_hold_is_tried_again_before_the_branches_were_heard() {
    let (mut company, _) = shop_with_a_hold("b2's");
    company.write_head(&[delete(25)]);
    company.step();
    let image = company.head_image();
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&25], "b2's");
    let last = company.head.last();
    company.restore_head(&image);
    company.settle();
    company.assert_even();
    assert_eq!(company.head.last(), last, "just as it was");
    for at in 0..2 {
        assert!(!company.was_noticed(at, |notice| matches!(notice, Notice::Rewound(_))));
    }
}

/// Records of large rows travel without them: a restored head has nothing to try again.
#[test]
fn a_large_row_that_is_held_stays_at_its_branch_after_a_restore() {
    let long = "x".repeat(300_000);
    let (mut company, image) = shop_with_a_hold(&long);
    company.restore_head(&image);
    assert_held(&mut company, 1, &long);
    company.write_head(&[delete(25)]);
    company.settle();
    assert_eq!(company.names_at(1)[&25], long);
    let held = company.conflicts()[0].id;
    for keep in [Keep::Branch, Keep::Base, Keep::Retry] {
        assert!(company.settle_conflict(held, keep).is_err(), "{keep:?}");
    }
    assert_eq!(company.seat_book(1).holds, 1);
    // Written again, it is at the head as it is.
    company.write(1, &[update(25, "b2's, shorter")]);
    company.settle();
    assert_decided_by_a_person(&mut company, 1, "b2's, shorter");
}

/// That a branch was told of a hold ends no hold.
#[test]
fn a_hold_of_which_a_branch_was_told_lasts_after_a_restore() {
    let mut company = hold_unheard();
    let image = company.head_image();
    company.connect(0);
    company.settle();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    let last = company.head.last();
    company.restore_head(&image);
    company.settle();
    assert_eq!(company.head.last(), last);
    assert_eq!(company.names_at(0)[&20], "two");
    assert_eq!(company.seat_book(0).holds, 1);
    assert_comes_in(&mut company);
}

/// The head's own decision has the number under which the lost one was settled.
#[test]
fn a_lost_settlement_settles_no_other_decision() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "one"), insert(9, "nine")]);
    company.settle();
    company.cut(1);
    company.write_head(&[insert(25, "head's")]);
    company.settle();
    company.cut(0);
    let image = company.head_image();
    company.write(1, &[insert(25, "b2's")]);
    company.connect(1);
    company.settle();
    let lost = company.conflicts()[0].id;
    company.settle_conflict(lost, Keep::Head).unwrap();
    company.settle();
    company.cut(1);
    company.restore_head(&image);
    company.write_head(&[update(9, "head's")]);
    company.write(0, &[update(9, "b1's")]);
    company.settle();
    company.connect(0);
    company.settle();
    let own = company.conflicts();
    assert_eq!((own.len(), own[0].id), (1, lost));
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_eq!(company.settled(lost), None);
    let records = company.conflicts().into_iter();
    let mut again = records.filter(|record| record.reason == Reason::InsertedTwice);
    let again = again.next().unwrap().id;
    let settled = company.settled(again).unwrap();
    assert_eq!((settled.conflict, settled.keep), (again, Keep::Head));
    assert_eq!(company.seat_book(1).holds, 0);
}
