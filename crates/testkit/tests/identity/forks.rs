//! A fork of the log: a head that was restored has gone on before its branches have said what it lost.

use branchline_core::conflict::Reason;
use branchline_core::message::Keep;
use branchline_core::output::Notice;
use branchline_core::value::Value;
use branchline_testkit::sim::office::Image;

use super::restored_head::{shop, stock, take_part_again};
use crate::company::*;

/// The head is restored, hears only a branch that knows nothing of what was lost, and goes on without it.
fn fork(company: &mut Company, image: &Image, others: &[usize]) {
    for at in 1..company.branches.len() {
        company.cut(at);
    }
    company.restore_head(image);
    company.connect(0);
    company.write_head(&[update(1, "head's, after"), insert(40, "head's, after")]);
    company.write(
        0,
        &[
            update(2, "b1's, after"),
            insert(41, "b1's, after"),
            stock(99),
        ],
    );
    company.settle();
    assert!(company.names_at(0).contains_key(&40));
    assert!(company.head_names().contains_key(&41));
    for at in others {
        company.connect(*at);
        company.settle();
    }
}

#[test]
fn a_head_that_has_gone_on_takes_what_was_lost_as_changes() {
    let mut company = shop(2);
    let image = company.head_image();
    company.cut(0);
    company.write_head(&[update(1, "head's, lost"), insert(20, "head's, lost")]);
    company.write(
        1,
        &[update(2, "b2's, lost"), insert(22, "b2's, lost"), delete(3)],
    );
    company.settle();
    company.write(1, &[update(22, "b2's, lost too"), update(4, "b2's, lost")]);
    company.settle();
    company.cut(1);
    // Never sent before the restore.
    company.write(
        1,
        &[
            update(5, "b2's, unsent"),
            insert(23, "b2's, unsent"),
            update(22, "b2's, unsent"),
        ],
    );
    company.settle();
    fork(&mut company, &image, &[1]);
    company.assert_even();
    assert!(company.was_noticed(1, |notice| matches!(notice, Notice::Rewound(_))));
    assert!(!company.was_noticed(0, |notice| matches!(notice, Notice::Rewound(_))));
    let names = company.head_names();
    let expected = [
        (1, "head's, after"),
        (2, "b1's, after"),
        (4, "b2's, lost"),
        (5, "b2's, unsent"),
        (20, "head's, lost"),
        (22, "b2's, unsent"),
        (23, "b2's, unsent"),
        (40, "head's, after"),
        (41, "b1's, after"),
    ];
    for (id, name) in expected {
        assert_eq!(names[&id], name, "{id}");
    }
    assert!(!names.contains_key(&3));
    let listed = company.listed(Reason::Restored);
    assert_eq!(
        listed,
        [
            (
                key(1),
                Some(row(1, "head's, after")),
                Some(row(1, "head's, lost"))
            ),
            (
                key(2),
                Some(row(2, "b1's, after")),
                Some(row(2, "b2's, lost"))
            ),
        ]
    );
    assert_eq!(company.head_amount(1), Value::Int(99));
    take_part_again(&mut company);
}

/// A branch that went back keeps what it had followed up to there.
#[test]
fn a_head_may_be_restored_to_before_the_place_to_which_a_branch_went_back() {
    let mut company = shop(2);
    let older = company.head_image();
    company.write_head(&[update(5, "five")]);
    company.settle();
    company.write_head(&[update(6, "six")]);
    company.settle();
    let image = company.head_image();
    company.cut(0);
    company.write_head(&[update(7, "lost")]);
    company.settle();
    fork(&mut company, &image, &[1]);
    company.assert_even();
    assert!(company.was_noticed(1, |notice| matches!(notice, Notice::Rewound(_))));
    company.cut(0);
    let (last, names) = (company.head.last(), company.head_names());
    company.restore_head(&older);
    company.settle();
    assert_eq!(company.head.last(), last);
    company.connect(0);
    company.settle();
    company.assert_even();
    assert_eq!((company.head.last(), company.head_names()), (last, names));
    take_part_again(&mut company);
}

/// Several branches followed what was lost, some not so far: what one gave back is not taken from another once more.
#[test]
fn what_several_branches_followed_is_taken_back_once() {
    for order in [[1, 2], [2, 1]] {
        let mut company = shop(3);
        let image = company.head_image();
        company.cut(0);
        company.write_head(&[update(1, "head's, lost"), update(6, "first")]);
        company.write(1, &[insert(22, "b2's, lost")]);
        company.settle();
        company.cut(2);
        company.write_head(&[update(6, "second"), update(7, "head's, lost")]);
        company.write(1, &[update(22, "b2's, lost too")]);
        company.settle();
        company.write(2, &[insert(23, "b3's, unsent"), update(22, "b3's, unsent")]);
        fork(&mut company, &image, &order);
        company.assert_even();
        let names = company.head_names();
        assert_eq!((&*names[&6], &*names[&7]), ("second", "head's, lost"));
        assert_eq!(names[&23], "b3's, unsent");
        assert_eq!(names[&1], "head's, after");
        let mut listed = company.listed(Reason::Restored);
        // Row 22 was written by two branches that did not see each other: one stands, the other is listed.
        listed.retain(|(k, ..)| *k != key(22));

        assert_eq!(
            listed,
            [(
                key(1),
                Some(row(1, "head's, after")),
                Some(row(1, "head's, lost"))
            )]
        );
        take_part_again(&mut company);
    }
}

/// A hold that was made in the lost part is a hold again, and conflicts get numbers that no branch has already.
#[test]
fn holds_and_conflicts_of_the_lost_part_come_back() {
    let mut company = shop(2);
    let image = company.head_image();
    company.cut(0);
    company.cut(1);
    company.write_head(&[insert(25, "head's, lost"), update(4, "head's, lost")]);
    company.write(1, &[update(4, "b2's, lost"), insert(25, "b2's, held")]);
    company.settle();
    company.connect(1);
    company.settle();
    assert_eq!(company.listed(Reason::InsertedTwice).len(), 1);
    assert_eq!(company.names_at(1)[&25], "b2's, held");
    let lost = company.conflicts_at(1);
    fork(&mut company, &image, &[1]);
    // A conflict with the branch whose list has the lost numbers.
    company.cut(1);
    company.write_head(&[update(9, "head's")]);
    company.write(1, &[update(9, "b2's")]);
    company.settle();
    company.connect(1);
    company.settle();
    assert_eq!(company.head_names()[&9], "b2's");
    assert_eq!(company.names_at(1)[&25], "b2's, held");
    let held = company
        .conflicts()
        .into_iter()
        .find(|record| record.reason == Reason::InsertedTwice);
    let held = held.expect("the hold is listed again");
    assert_eq!(held.theirs, Some(row(25, "b2's, held")));
    assert_eq!(company.seat_book(1).holds, 1);
    let kept = company.conflicts_at(1);
    assert!(lost.iter().all(|record| kept.contains(record)));
    let settled = company.settle_conflict(held.id, Keep::Branch);
    assert!(settled.is_ok(), "{settled:?}");
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&25], "b2's, held");
    assert_eq!(company.seat_book(1).holds, 0);
    take_part_again(&mut company);
}

/// A person's decision that was lost is a decision again.
#[test]
fn a_hold_that_was_settled_in_the_lost_part_is_settled() {
    let mut company = shop(2);
    company.cut(1);
    company.write_head(&[insert(25, "head's")]);
    company.write(1, &[insert(25, "b2's, held")]);
    company.connect(1);
    company.settle();
    let image = company.head_image();
    company.cut(0);
    let held = company.conflicts()[0].id;
    company.settle_conflict(held, Keep::Branch).unwrap();
    company.settle();
    assert_eq!(company.head_names()[&25], "b2's, held");
    assert_eq!(company.seat_book(1).holds, 0);
    fork(&mut company, &image, &[1]);
    company.assert_even();
    assert_eq!(company.head_names()[&25], "b2's, held");
    assert_eq!(company.seat_book(1).holds, 0);
    take_part_again(&mut company);
}

/// A broker brings a branch's batches before its greeting.
#[test]
fn a_batch_that_was_made_on_a_lost_part_of_the_log_waits_for_the_greeting() {
    let mut company = shop(2);
    let image = company.head_image();
    company.write_head(&[update(2, "lost")]);
    company.settle();
    company.branches[0].deaf = true;
    company.heard.clear();
    company.write(0, &[update(1, "b1's")]);
    company.settle();
    let sent: Vec<_> = company.heard.drain(..).collect();
    company.cut(0);
    company.cut(1);
    company.branches[0].deaf = false;
    company.restore_head(&image);
    // Longer than it waits for its branches.
    company.settle();
    company.write_head(&[update(1, "head's")]);
    company.settle();
    for (_, bytes) in sent {
        company.deliver_late(&bytes);
        company.settle();
    }
    assert_eq!(company.head_names()[&1], "head's");
    company.connect(0);
    company.connect(1);
    company.settle();
    company.settle();
    company.assert_even();
    let records = company.conflicts();
    let contested = records.iter().filter(|record| record.key == key(1));
    assert!(contested.count() > 0, "both changed it: {records:?}");
    take_part_again(&mut company);
}

/// A company whose head was restored and has gone on by one entry; its branch, which greeted it before and hears nothing
/// of that, has followed the one that was lost.
fn with_lost_entries_heard_late() -> Company {
    let mut company = shop(1);
    let image = company.head_image();
    company.cut(0);
    let at_backup = company.head.last();
    company.write_head(&[update(2, "lost")]);
    company.settle();
    let lost = company.entries_after(at_backup);
    company.restore_head(&image);
    company.connect(0);
    company.settle();
    company.branches[0].deaf = true;
    company.write_head(&[update(1, "head's")]);
    company.settle();
    assert_eq!(lost.len(), 1);
    company.hear_late(0, &lost);
    assert_eq!(company.names_at(0)[&2], "lost");
    company
}

/// A broker's queue still holds what the head lost: the branch follows it after it has greeted the restored head, and what
/// its application writes then is made on that.
#[test]
fn a_batch_that_was_made_on_lost_entries_which_came_late_is_a_conflict() {
    let mut company = with_lost_entries_heard_late();
    company.write(0, &[update(1, "b1's")]);
    company.settle();
    company.branches[0].deaf = false;
    company.settle();
    company.settle();
    company.assert_even();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::Rewound(_))));
    assert_eq!(company.head_names()[&2], "lost");
    let records = company.conflicts();
    let contested = records.iter().filter(|record| record.key == key(1));
    assert!(contested.count() > 0, "both changed it: {records:?}");
    take_part_again(&mut company);
}

/// As above, and nobody writes again: the logs are equally long, and no entry that comes tells that they differ.
#[test]
fn lost_entries_that_came_late_are_noticed_where_nothing_follows_them() {
    let mut company = with_lost_entries_heard_late();
    company.branches[0].deaf = false;
    company.settle();
    company.settle();
    company.assert_even();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::Rewound(_))));
    assert_eq!(company.head_names()[&1], "head's");
    take_part_again(&mut company);
}

/// The lost log had a comparison where the log that the head went on with has one, and a broker brings an answer to that late.
#[test]
fn an_answer_to_a_lost_comparison_is_none_to_the_one_in_its_place() {
    let mut company = shop(2);
    let image = company.head_image();
    company.cut(1);
    company.write_head(&[update(2, "twice the same")]);
    company.settle();
    let heard = company.heard.len();
    company.head.verify(false);
    company.settle();
    let (lost, late) = (company.head.last(), company.heard[heard..].to_vec());
    company.cut(0);
    company.restore_head(&image);
    company.connect(1);
    company.write_head(&[update(2, "twice the same")]);
    company.settle();
    company.notices.clear();
    company.head.verify(false);
    company.try_head().unwrap();
    assert_eq!(company.head.last(), lost);
    for (_, bytes) in &late {
        company.deliver_late(bytes);
    }
    company.settle();
    company.tick(61_000);
    company.settle();
    let found = company.notices.iter().find_map(|notice| match notice {
        Notice::Verified(verification) => Some(verification.branches.clone()),
        _ => None,
    });
    let answered = found
        .unwrap()
        .into_iter()
        .map(|branch| (branch.name, branch.answered));
    assert_eq!(
        answered.collect::<Vec<_>>(),
        [("b1".into(), false), ("b2".into(), true)]
    );
}

/// The backup has the row in its capture only, and what came of it is in the lost part of the log.
#[test]
fn a_row_that_came_before_the_backup_and_goes_after_it_is_gone_everywhere() {
    let mut company = shop(1);
    company.cut(0);
    company.write_head(&[insert(70, "head's")]);
    let image = company.head_image();
    company.connect(0);
    company.settle();
    assert_eq!(company.names_at(0)[&70], "head's");
    company.cut(0);
    company.restore_head(&image);
    company.write_head(&[delete(70)]);
    company.connect(0);
    company.settle();
    company.assert_even();
    assert!(!company.head_names().contains_key(&70));
    take_part_again(&mut company);
}

#[test]
fn a_decision_of_the_lost_part_stays_listed_where_the_head_has_gone_on() {
    let mut company = shop(2);
    let image = company.head_image();
    company.cut(0);
    company.write(1, &[update(4, "b2's")]);
    company.settle();
    company.cut(1);
    company.write(0, &[update(4, "b1's, later")]);
    company.connect(0);
    company.settle();
    let listed = company.listed(Reason::Newest);
    assert_eq!(
        listed,
        [(key(4), Some(row(4, "b2's")), Some(row(4, "b1's, later")))]
    );
    company.cut(0);
    company.restore_head(&image);
    company.settle();
    company.write_head(&[insert(60, "head's")]);
    company.settle();
    company.connect(0);
    company.connect(1);
    company.settle();
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&4], "b1's, later");
    let kept = company.conflicts();
    let lost = Some(row(4, "b2's"));
    assert!(kept.iter().any(|record| record.ours == lost), "{kept:?}");
    take_part_again(&mut company);
}

/// The places that its chunks name are the lost log's.
#[test]
fn a_branch_that_goes_back_in_the_midst_of_its_first_copy_completes_it() {
    let mut company = shop(1);
    let long = "x".repeat(200_000);
    for id in 100..140 {
        company.write_head(&[insert(id, &long)]);
    }
    company.settle();
    company.join_in_part(2);
    let image = company.head_image();
    company.cut(0);
    for id in 0..6 {
        company.write_head(&[update(1, &format!("lost {id}"))]);
        company.step();
    }
    let state = company.branches[1].branch.state();
    assert!(state.joining.is_some_and(|joining| joining.rows > 0));
    company.cut(1);
    company.restore_head(&image);
    company.write_head(&[update(1, "since the restore")]);
    company.settle();
    company.connect(0);
    company.connect(1);
    company.settle();
    company.settle();
    assert!(company.was_noticed(1, |notice| matches!(notice, Notice::Rewound(_))));
    company.assert_even();
    take_part_again(&mut company);
}
