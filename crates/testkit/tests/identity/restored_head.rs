//! The head's database becomes an older image.

use branchline_core::conflict::Reason;
use branchline_core::output::Notice;
use branchline_core::value::Value;
use branchline_testkit::conformance::Op;

use crate::company::*;

/// Two branches with some rows, all even.
pub fn shop(branches: u8) -> Company {
    let mut company = Company::new(branches);
    let mut ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    ops.push(Op::Insert(STOCK, amount(1, 100)));
    company.write_head(&ops);
    company.settle();
    company.assert_even();
    company
}

pub fn stock(to: i64) -> Op {
    Op::Update(STOCK, key(1), amount(1, to))
}

/// What all offices do after the backup: changes on all sides, a counter, and a conflict.
fn go_on(company: &mut Company) {
    company.write_head(&[insert(20, "head's"), update(1, "head's"), stock(90)]);
    company.write(0, &[update(2, "b1's"), insert(21, "b1's"), delete(3)]);
    company.settle();
    company.cut(1);
    company.write_head(&[update(4, "head's")]);
    company.write(0, &[stock(85)]);
    company.write(1, &[update(4, "b2's"), stock(93), insert(22, "b2's")]);
    company.settle();
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(88));
    assert_eq!(company.listed(Reason::Newest).len(), 1);
}

pub fn take_part_again(company: &mut Company) {
    company.write_head(&[insert(30, "head's, later"), update(5, "head's, later")]);
    for at in 0..company.branches.len() {
        let id = 31 + i64::try_from(at).unwrap();
        company.write(at, &[insert(id, "a branch's, later")]);
    }
    company.settle();
    company.assert_even();
    let names = company.head_names();
    assert_eq!(names[&5], "head's, later");
    assert!(
        (30..31 + i64::try_from(company.branches.len()).unwrap()).all(|id| names.contains_key(&id))
    );
}

#[test]
fn the_branches_give_back_what_the_head_lost() {
    let mut company = shop(2);
    let image = company.head_image();
    let at_backup = company.head.last();
    go_on(&mut company);
    let before = (
        company.head.last(),
        company.conflicts(),
        company.head_names(),
        company.log(),
    );
    let seats = [company.seat_book(0), company.seat_book(1)];
    company.restore_head(&image);
    assert_eq!(company.head.last(), at_backup);
    company.settle();
    company.assert_even();
    let after = (
        company.head.last(),
        company.conflicts(),
        company.head_names(),
        company.log(),
    );
    assert_eq!(before, after);
    assert_eq!(company.head_amount(1), Value::Int(88));
    for (at, seat) in seats.into_iter().enumerate() {
        let again = company.seat_book(at);
        assert_eq!(
            (seat.cursor, seat.chain, seat.applied),
            (again.cursor, again.chain, again.applied)
        );
        assert!(!company.was_noticed(at, |notice| matches!(
            notice,
            Notice::Rewound(_) | Notice::Reincarnated
        )));
    }
    assert!(
        company
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::TakenBack(..)))
    );
    take_part_again(&mut company);
}

#[test]
fn a_batch_whose_answer_another_branch_gives_back_is_not_applied_twice() {
    let mut company = shop(2);
    let image = company.head_image();
    company.branches[0].deaf = true;
    company.write(0, &[stock(95), insert(20, "b1's")]);
    company.settle();
    assert_eq!(company.head_amount(1), Value::Int(95));
    assert!(company.names_at(1).contains_key(&20));
    company.write_head(&[stock(90)]);
    company.settle();
    company.branches[0].deaf = false;
    company.restore_head(&image);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(90));
    take_part_again(&mut company);
}

/// One branch has less of what was lost than the other, and all of it needs several messages.
#[test]
fn a_long_part_of_the_log_comes_back_in_pieces() {
    for first in [0, 1] {
        let mut company = shop(2);
        let image = company.head_image();
        for id in 0..12 {
            company.write(
                1,
                &[
                    insert(100 + id, &long_name(id)),
                    update(1, &format!("{id}")),
                ],
            );
            company.settle();
            if id == 3 {
                company.cut(0);
            }
        }
        company.cut(1);
        let last = company.head.last();
        company.restore_head(&image);
        company.connect(first);
        company.step();
        company.connect(1 - first);
        company.settle();
        company.assert_even();
        assert_eq!(company.head.last(), last, "just as it was");
        assert_eq!(company.conflicts(), []);
        assert_eq!(company.head_names()[&1], "11");
        take_part_again(&mut company);
    }
}

/// So slowly that the branch greets again between two pieces.
#[test]
fn a_long_part_of_the_log_comes_back_slowly_just_as_it_was() {
    for pause in [300, 500] {
        let mut company = shop(2);
        let image = company.head_image();
        for id in 0..14 {
            company.write(1, &[insert(100 + id, &long_name(id))]);
            company.settle();
        }
        company.cut(0);
        company.cut(1);
        let last = company.head.last();
        company.restore_head(&image);
        company.write_head(&[insert(50, "since the restore")]);
        company.connect(1);
        for _ in 0..60 {
            company.step_one_by_one();
            company.tick(pause);
        }
        company.connect(0);
        company.settle();
        company.assert_even();
        assert_eq!(company.head.last(), last.next(), "just as it was");
        assert_eq!(company.conflicts(), []);
        for at in 0..2 {
            assert!(!company.was_noticed(at, |notice| matches!(notice, Notice::Rewound(_))));
        }
        take_part_again(&mut company);
    }
}

/// One branch that follows sends more than may wait, while the head waits for what another may give back.
#[test]
fn a_branch_that_sends_much_keeps_no_other_from_giving_back() {
    let mut company = shop(2);
    company.cut(1);
    let image = company.head_image();
    company.restore_head(&image);
    for id in 0..30 {
        company.write(0, &[insert(100 + id, "b1's")]);
        company.step();
    }
    assert!(!company.head_names().contains_key(&100), "it waits");
    assert!(company.head.has_room());
    company.settle();
    company.connect(1);
    company.settle();
    company.assert_even();
    take_part_again(&mut company);
}

/// A branch was restored too and used a number twice, and counts its batches anew by now.
#[test]
fn a_number_that_was_used_twice_is_answered_once() {
    let mut company = shop(2);
    company.write(1, &[insert(70, "b2's")]);
    company.settle();
    let (image, at_branch) = (company.head_image(), company.branches[1].disk.image());
    company.write(1, &[insert(71, "b2's, lost")]);
    company.settle();
    company.cut(0);
    company.cut(1);
    company.restore_branch(1, &at_branch);
    company.restore_head(&image);
    company.write(1, &[insert(72, "b2's, since")]);
    company.connect(1);
    company.settle();
    company.restore_branch(1, &at_branch);
    company.settle();
    assert!(company.was_noticed(1, |notice| matches!(notice, Notice::Reincarnated)));
    company.connect(0);
    company.settle();
    company.assert_even();
    let names = company.head_names();
    assert_eq!((&*names[&71], &*names[&72]), ("b2's, lost", "b2's, since"));
    take_part_again(&mut company);
}

/// The head's application writes after the restore, before any branch is heard.
#[test]
fn what_the_application_wrote_since_the_restore_stands_beside_what_comes_back() {
    let mut company = shop(2);
    let image = company.head_image();
    go_on(&mut company);
    company.write(
        0,
        &[
            insert(60, "lost"),
            update(6, "lost"),
            delete(7),
            update(8, "lost"),
        ],
    );
    company.settle();
    company.cut(0);
    company.cut(1);
    let last = company.head.last();
    company.restore_head(&image);
    company.write_head(&[
        insert(50, "after"),
        insert(60, "after"),
        update(6, "after"),
        update(7, "after"),
        delete(8),
        update(9, "after"),
    ]);
    company.connect(0);
    company.connect(1);
    company.settle();
    company.assert_even();
    assert!(company.head.last() > last);
    let names = company.head_names();
    for id in [50, 60, 6, 7, 9] {
        assert_eq!(names[&id], "after", "{id}");
    }
    assert!(!names.contains_key(&8));
    assert_eq!(
        (&*names[&20], &*names[&21], &*names[&22]),
        ("head's", "b1's", "b2's")
    );
    let listed = company.listed(Reason::Restored);
    assert_eq!(
        listed,
        [
            (key(6), Some(row(6, "after")), Some(row(6, "lost"))),
            (key(7), Some(row(7, "after")), None),
            (key(8), None, Some(row(8, "lost"))),
            (key(60), Some(row(60, "after")), Some(row(60, "lost"))),
        ]
    );
    assert_eq!(company.head_amount(1), Value::Int(88));
    take_part_again(&mut company);
}

/// The same, with lost conflicts that come back in a later piece: all are listed.
#[test]
fn lost_conflicts_keep_their_place_in_the_list() {
    let mut company = shop(2);
    let image = company.head_image();
    let long = "x".repeat(200_000);
    for id in 0..4 {
        company.write(0, &[insert(100 + id, &long), update(6, "lost")]);
        company.settle();
    }
    go_on(&mut company);
    company.cut(0);
    company.cut(1);
    let lost = company.conflicts();
    company.restore_head(&image);
    company.write_head(&[update(6, "after")]);
    company.connect(0);
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_eq!(company.listed(Reason::Restored).len(), 1);
    let newest = company.listed(Reason::Newest);
    assert_eq!(
        newest,
        [(key(4), lost[0].ours.clone(), lost[0].theirs.clone())]
    );
    take_part_again(&mut company);
}

/// The head is restored again, to an image from after the first fork.
#[test]
fn a_head_may_be_restored_twice() {
    let mut company = shop(2);
    let image = company.head_image();
    go_on(&mut company);
    company.restore_head(&image);
    company.settle();
    let image = company.head_image();
    go_on_again(&mut company);
    let last = company.head.last();
    company.restore_head(&image);
    company.settle();
    company.assert_even();
    assert_eq!(company.head.last(), last);
    assert_eq!(company.head_names()[&70], "head's");
}

fn go_on_again(company: &mut Company) {
    company.write_head(&[insert(70, "head's")]);
    company.write(1, &[insert(71, "b2's")]);
    company.settle();
}

/// The branch keeps nothing of the log up to where it joined, and that is where head and branch agree.
#[test]
fn a_head_that_was_restored_to_where_a_branch_joined_gets_back_what_it_lost() {
    for before in [0, 1] {
        let mut company = Company::new(0);
        if before > 0 {
            company.write_head(&[insert(9, "nine")]);
            company.settle();
        }
        company.join_in_part(1);
        company.settle();
        let image = company.head_image();
        company.write_head(&[insert(1, "one")]);
        company.write(0, &[insert(2, "two")]);
        company.settle();
        company.cut(0);
        company.restore_head(&image);
        company.write_head(&[insert(3, "three")]);
        company.settle();
        company.connect(0);
        company.settle();
        assert!(company.branches[0].branch.state().refused.is_none());
        let names = company.head_names();
        assert_eq!(
            (&*names[&1], &*names[&2], &*names[&3]),
            ("one", "two", "three")
        );
        assert_eq!(company.names_at(0), names);
    }
}
