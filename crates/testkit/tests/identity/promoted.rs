//! The head and its backups are gone; a branch takes its place.

use branchline_core::branch::Renewal;
use branchline_core::conflict::Reason;
use branchline_core::message::{Keep, Message};
use branchline_core::output::Notice;
use branchline_core::retention::Retention;
use branchline_core::value::Value;
use branchline_testkit::conformance::Op;

use crate::company::*;

fn shop(branches: u8) -> Company {
    let mut company = Company::new(branches);
    let mut ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    ops.push(Op::Insert(STOCK, amount(1, 100)));
    company.write_head(&ops);
    company.settle();
    company.write(0, &[update(1, "b1's"), stock(99)]);
    company.settle();
    company.write(1, &[update(2, "b2's"), stock(97)]);
    company.settle();
    company.assert_even();
    company
}

fn stock(to: i64) -> Op {
    Op::Update(STOCK, key(1), amount(1, to))
}

fn all_join_again(company: &mut Company) {
    for at in 0..company.branches.len() {
        assert_eq!(company.join_again(at), Renewal::Succeeded);
        company.settle();
    }
}

fn was_reloaded(company: &Company, at: usize) -> bool {
    company.was_noticed(at, |notice| {
        matches!(
            notice,
            Notice::CopiedAnew(_) | Notice::Reincarnated | Notice::Rewound(_)
        )
    })
}

fn take_part_again(company: &mut Company) {
    let stock_before = match company.head_amount(1) {
        Value::Int(amount) => amount,
        other => panic!("{other:?}"),
    };
    company.write_head(&[insert(30, "head's, later"), stock(stock_before - 1)]);
    company.settle();
    for at in 0..company.branches.len() {
        let id = 31 + i64::try_from(at).unwrap();
        let stock_now = stock_before - 2 - i64::try_from(at).unwrap();
        company.write(at, &[insert(id, "a branch's, later"), stock(stock_now)]);
        company.settle();
    }
    let left = stock_before - 1 - i64::try_from(company.branches.len()).unwrap();
    assert_eq!(company.head_amount(1), Value::Int(left));
    company.assert_even();
}

#[test]
fn the_other_branches_follow_without_a_reload() {
    let mut company = shop(3);
    let cursor = company.head.last();
    let frozen = company.branches[1].branch.state().frozen;
    let promotion = company.promote(0);
    assert_eq!((promotion.log, promotion.batches), (cursor, 0));
    assert_eq!(promotion.branch.as_str(), "b1");
    // The third has sent nothing yet, so that the log does not tell of it.
    let told: Vec<_> = promotion
        .branches
        .iter()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(told, ["b2"]);
    all_join_again(&mut company);
    company.assert_even();
    for at in 0..2 {
        assert!(!was_reloaded(&company, at));
    }
    assert_eq!(company.branches[0].branch.state().frozen, frozen);
    assert_eq!(company.head_amount(1), Value::Int(97));
    take_part_again(&mut company);
}

#[test]
fn what_no_head_had_answered_is_judged_once() {
    let mut company = shop(3);
    for at in 0..3 {
        company.cut(at);
    }
    company.write(
        0,
        &[
            insert(20, "b1's"),
            update(1, "b1's again"),
            delete(3),
            stock(90),
        ],
    );
    company.settle();
    company.write(0, &[update(20, "b1's second")]);
    company.write(1, &[insert(21, "b2's"), stock(95)]);
    company.write(2, &[update(1, "b3's, later")]);
    company.settle();
    let promotion = company.promote(0);
    assert_eq!(promotion.batches, 2);
    all_join_again(&mut company);
    company.assert_even();
    let names = company.head_names();
    assert_eq!(names[&20], "b1's second");
    assert_eq!(names[&21], "b2's");
    assert_eq!(names[&1], "b3's, later");
    assert!(!names.contains_key(&3));
    assert_eq!(company.head_amount(1), Value::Int(88));
    assert_eq!(company.listed(Reason::Newest).len(), 1);
    take_part_again(&mut company);
}

/// What the application wrote last was not even frozen.
#[test]
fn what_only_the_capture_holds_is_judged_as_the_branchs_own() {
    let mut company = shop(2);
    company.write(0, &[update(4, "b1's")]);
    assert_eq!(company.promote(0).batches, 1);
    all_join_again(&mut company);
    company.assert_even();
    assert_eq!(company.head_names()[&4], "b1's");
}

#[test]
fn a_batch_that_the_kept_log_answers_is_not_applied_again() {
    let mut company = shop(2);
    company.branches[1].deaf = true;
    company.write(1, &[insert(20, "b2's"), stock(90)]);
    company.settle();
    assert_eq!(company.names_at(0)[&20], "b2's");
    company.promote(0);
    company.branches[0].deaf = false;
    all_join_again(&mut company);
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(90));
    assert!(!was_reloaded(&company, 0));
    take_part_again(&mut company);
}

/// The promoted branch's own answer was lost, and another branch has it.
#[test]
fn its_own_batch_that_another_branch_followed_is_not_applied_again() {
    let mut company = shop(2);
    company.branches[0].deaf = true;
    company.write(0, &[insert(20, "b1's"), stock(90)]);
    company.settle();
    company.write_head(&[insert(21, "head's")]);
    company.settle();
    assert_eq!(company.names_at(1)[&20], "b1's");
    assert_eq!(company.promote(0).batches, 1);
    company.write_head(&[update(20, "changed since")]);
    company.settle();
    all_join_again(&mut company);
    company.assert_even();
    let names = company.head_names();
    assert_eq!(
        (names[&20].as_str(), names[&21].as_str()),
        ("changed since", "head's")
    );
    assert_eq!(company.head_amount(1), Value::Int(90));
    assert_eq!(company.listed(Reason::Restored).len(), 0);
    take_part_again(&mut company);
}

#[test]
fn a_branch_that_is_ahead_gives_back_what_it_followed() {
    let mut company = shop(3);
    company.cut(0);
    company.write_head(&[insert(20, "head's"), update(4, "head's")]);
    company.write(1, &[insert(21, "b2's"), stock(90)]);
    company.settle();
    company.write(0, &[update(4, "b1's, later")]);
    company.cut(2);
    company.write(1, &[update(21, "b2's again")]);
    company.settle();
    company.promote(0);
    company.settle();
    assert!(!company.head_names().contains_key(&20));
    all_join_again(&mut company);
    company.assert_even();
    let names = company.head_names();
    assert_eq!(names[&20], "head's");
    assert_eq!(names[&21], "b2's again");
    assert_eq!(names[&4], "b1's, later");
    assert_eq!(company.head_amount(1), Value::Int(90));
    take_part_again(&mut company);
}

/// Whether the lost part came back just as it was, or behind what the restored head had written by then.
#[test]
fn what_a_restored_head_listed_is_listed_by_the_branch_that_takes_its_place() {
    for gone_on in [false, true] {
        let mut company = shop(3);
        let image = company.head_image();
        company.write(0, &[delete(6)]);
        company.write_head(&[update(7, "head's, lost")]);
        company.settle();
        for at in 0..3 {
            company.cut(at);
        }
        company.restore_head(&image);
        company.write_head(&[update(6, "head's, after"), update(7, "head's, after")]);
        if gone_on {
            company.settle();
        }
        for at in 0..3 {
            company.connect(at);
        }
        company.settle();
        company.assert_even();
        assert_eq!(was_reloaded(&company, 0), gone_on);
        let mut listed = company.listed(Reason::Restored);
        listed.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        assert_eq!(
            listed,
            [
                (key(6), Some(row(6, "head's, after")), None),
                (
                    key(7),
                    Some(row(7, "head's, after")),
                    Some(row(7, "head's, lost"))
                ),
            ]
        );
        for (at, keys) in [(0, vec![key(6)]), (1, vec![])] {
            let there = company.conflicts_at(at).into_iter();
            let there: Vec<_> = there.map(|record| record.key).collect();
            assert_eq!(there, keys, "its own alone");
        }
        company.promote(2);
        company.settle();
        let mut again = company.listed(Reason::Restored);
        again.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        assert_eq!(again, listed);
        all_join_again(&mut company);
        let first = company.log().first;
        company.assert_even_since(first);
    }
}

#[test]
fn a_branch_that_is_behind_follows_the_gone_heads_part_and_goes_on() {
    let mut company = shop(3);
    company.cut(2);
    company.write(2, &[insert(22, "b3's"), update(5, "b3's")]);
    company.write_head(&[insert(20, "head's"), update(5, "head's")]);
    company.write(1, &[insert(21, "b2's"), stock(90)]);
    company.settle();
    company.promote(0);
    all_join_again(&mut company);
    company.assert_even();
    for at in 0..2 {
        assert!(!was_reloaded(&company, at));
    }
    let names = company.head_names();
    assert_eq!(
        (names[&20].as_str(), names[&22].as_str()),
        ("head's", "b3's")
    );
    assert_eq!(company.listed(Reason::Newest).len(), 1);
    assert_eq!(company.head_amount(1), Value::Int(90));
    take_part_again(&mut company);
}

/// The log has an entry for a row that the branch had changed too, and was not answered.
#[test]
fn a_conflict_that_waited_for_an_answer_is_decided_by_the_plan() {
    for head_is_later in [false, true] {
        let mut company = shop(2);
        company.branches[0].lose = |message| matches!(message, Message::Batch(_));
        if head_is_later {
            company.write(0, &[update(4, "b1's"), stock(90)]);
        }
        company.write_head(&[update(4, "head's"), stock(95)]);
        if !head_is_later {
            company.write(0, &[update(4, "b1's"), stock(90)]);
        }
        company.settle();
        assert_eq!(company.names_at(0)[&4], "b1's");
        assert_eq!(company.names_at(1)[&4], "head's");
        company.promote(0);
        all_join_again(&mut company);
        company.assert_even();
        let expected = if head_is_later { "head's" } else { "b1's" };
        assert_eq!(company.head_names()[&4], expected);
        assert_eq!(company.head_amount(1), Value::Int(88));
        assert_eq!(company.listed(Reason::Newest).len(), 1);
        take_part_again(&mut company);
    }
}

#[test]
fn held_rows_stay_listed_and_can_be_let_in() {
    let mut company = shop(2);
    company.cut(0);
    company.cut(1);
    company.write(0, &[insert(40, "b1's forty"), insert(41, "b1's")]);
    company.write(1, &[insert(41, "b2's later"), insert(42, "b2's")]);
    company.write_head(&[insert(40, "head's forty"), insert(42, "head's")]);
    company.connect(0);
    company.settle();
    company.connect(1);
    company.settle();
    assert_eq!(company.listed(Reason::InsertedTwice).len(), 3);
    let before = company.conflicts();
    company.promote(0);
    assert_eq!(company.conflicts(), before);
    all_join_again(&mut company);
    let names = company.head_names();
    assert_eq!(
        (names[&40].as_str(), names[&41].as_str()),
        ("head's forty", "b1's")
    );
    assert_eq!(company.names_at(0)[&42], "b2's");
    assert_eq!(company.seat_book(0).holds, 2);
    for (id, keep) in [(40, Keep::Branch), (41, Keep::Head), (42, Keep::Branch)] {
        let records = company.conflicts();
        let record = records.iter().find(|record| record.key == key(id)).unwrap();
        company.settle_conflict(record.id, keep).unwrap();
        company.settle();
    }
    company.assert_even();
    let names = company.head_names();
    assert_eq!(
        (
            names[&40].as_str(),
            names[&41].as_str(),
            names[&42].as_str()
        ),
        ("b1's forty", "b1's", "b2's")
    );
    take_part_again(&mut company);
}

#[test]
fn the_old_head_is_refused_when_it_comes_back() {
    let mut company = shop(2);
    let image = company.head_image();
    company.promote(0);
    all_join_again(&mut company);
    let before = company.names_at(0);
    let noticed = company.old_head_speaks(&image, &[insert(50, "the old head's")]);
    let refused = |notice: &Notice| matches!(notice, Notice::Refused(_, why) if why.contains("took this one's place"));
    assert!(noticed.iter().any(refused), "{noticed:?}");
    let told = |notice: &Notice| matches!(notice, Notice::Dropped(why) if why.contains("another head has taken its place"));
    assert!(company.was_noticed(0, told));
    company.settle();
    assert_eq!(company.names_at(0), before);
    company.assert_even();
    take_part_again(&mut company);
}

/// While nobody told them, branches go on with the old head; what they followed there comes back.
#[test]
fn what_the_old_head_wrote_meanwhile_is_not_lost_where_a_branch_followed_it() {
    let mut company = shop(3);
    let image = company.branches[0].disk.image();
    company.cut(0);
    company.write_head(&[insert(50, "the old head's")]);
    company.write(1, &[insert(51, "b2's"), stock(90)]);
    company.settle();
    company.branches[0].disk.restore(&image);
    company.restart_branch(0);
    company.promote(0);
    company.write_head(&[insert(52, "the new head's"), stock(96)]);
    company.settle();
    all_join_again(&mut company);
    company.assert_even();
    let names = company.head_names();
    assert!([50, 51, 52].iter().all(|id| names.contains_key(id)));
    take_part_again(&mut company);
}

#[test]
fn a_second_head_is_followed_by_a_branch_that_never_saw_the_first() {
    let mut company = shop(4);
    company.write(3, &[insert(24, "b4's"), stock(91)]);
    company.settle();
    company.cut(3);
    company.write(3, &[insert(25, "b4's, unsent"), stock(90)]);
    company.promote(0);
    for at in 0..2 {
        company.join_again(at);
        company.settle();
    }
    company.write(0, &[insert(20, "b2's")]);
    company.write_head(&[insert(21, "the first's")]);
    company.settle();
    company.promote(0);
    all_join_again(&mut company);
    company.assert_even();
    let names = company.head_names();
    assert!([20, 21, 24, 25].iter().all(|id| names.contains_key(id)));
    assert_eq!(company.head_amount(1), Value::Int(90));
    for at in 0..2 {
        assert!(!was_reloaded(&company, at));
    }
    take_part_again(&mut company);
}

#[test]
fn a_promoted_head_that_is_restored_gets_its_log_back() {
    let mut company = shop(3);
    company.write(2, &[insert(24, "b3's")]);
    company.settle();
    company.promote(0);
    let image = company.head_image();
    all_join_again(&mut company);
    company.write(0, &[insert(20, "b2's"), stock(90)]);
    company.write_head(&[insert(21, "head's")]);
    company.settle();
    company.assert_even();
    let seats: Vec<_> = (0..2).map(|at| company.join_secret_of(at)).collect();
    company.restore_head(&image);
    for (at, secret) in seats.into_iter().enumerate() {
        company.let_in(at, secret);
    }
    company.settle();
    company.assert_even();
    assert_eq!(company.head_names()[&20], "b2's");
    assert_eq!(company.head_amount(1), Value::Int(90));
    take_part_again(&mut company);
}

/// Nothing is kept of the log, so that it tells of nobody.
#[test]
fn a_branch_says_itself_how_far_it_was_answered() {
    let mut company = shop(3);
    company.set_retention(Retention {
        absent_ms: 60 * 60 * 1000,
        recovery_ms: 60 * 60 * 1000,
        ..Retention::default()
    });
    company.let_pass(300);
    company.write(1, &[insert(20, "b2's")]);
    company.settle();
    company.let_pass(300);
    company.cut(1);
    company.write(1, &[stock(90), insert(21, "b2's, unsent")]);
    company.settle();
    company.promote(0);
    all_join_again(&mut company);
    let first = company.log().first;
    assert!(first > 1);
    company.assert_even_since(first);
    assert!(!was_reloaded(&company, 0));
    assert_eq!(company.head_amount(1), Value::Int(90));
    assert_eq!(company.head_names()[&21], "b2's, unsent");
    assert_eq!(company.conflicts().len(), 0);
}

#[test]
fn a_branch_that_lacks_rows_is_not_promoted() {
    let mut company = shop(2);
    company.join_in_part(3);
    let why = company.try_promoting(2).unwrap_err();
    assert!(why.contains("first copy"), "{why}");
    company.connect(2);
    company.settle();
    company.assert_even();
}
