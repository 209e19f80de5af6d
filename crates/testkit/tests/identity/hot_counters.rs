//! A branch that writes a counter without pause: the others' changes show there at once.

use branchline_core::message::Message;
use branchline_core::value::Value;
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::Image;

use crate::company::*;

fn shop() -> Company {
    let mut company = Company::new(2);
    company.write_head(&[Op::Insert(STOCK, amount(1, 1000))]);
    company.settle();
    company.assert_even();
    company
}

/// The application at a branch, or at the head, takes some out of what it sees.
fn sell(company: &mut Company, at: Option<usize>, count: i64) {
    let left = match at {
        Some(at) => company.amount_at(at, 1),
        None => company.head_amount(1),
    };
    let Value::Int(left) = left else {
        panic!("{left:?}")
    };
    let op = [Op::Update(STOCK, key(1), amount(1, left - count))];
    match at {
        Some(at) => company.write(at, &op),
        None => company.write_head(&op),
    }
}

#[test]
fn what_others_sold_shows_while_ones_own_is_unanswered() {
    let mut company = shop();
    company.branches[0].lose = |message| matches!(message, Message::Batch(_));
    sell(&mut company, Some(0), 1);
    company.settle();
    sell(&mut company, Some(0), 2);
    company.settle();
    assert_eq!(company.amount_at(0, 1), Value::Int(997));
    sell(&mut company, Some(1), 10);
    company.settle();
    assert_eq!(company.amount_at(0, 1), Value::Int(987));
    sell(&mut company, Some(0), 4);
    sell(&mut company, None, 100);
    company.settle();
    assert_eq!(company.amount_at(0, 1), Value::Int(883));
    // Also after a restart.
    company.restart_branch(0);
    sell(&mut company, Some(1), 20);
    company.settle();
    assert_eq!(company.amount_at(0, 1), Value::Int(863));
    company.branches[0].lose = |_| false;
    company.settle();
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(863));
    assert!(company.conflicts().is_empty());
}

/// Nobody returns anything: what shows only goes down, and is never behind the log by more than what is on its way.
#[test]
fn a_counter_that_is_never_at_rest_never_jumps_back() {
    let mut company = shop();
    let mut seen = [1000; 3];
    let mut sold = 0;
    for round in 0..200 {
        sell(&mut company, Some(0), 1);
        sold += 1;
        if round % 3 == 0 {
            sell(&mut company, Some(1), 1);
            sold += 1;
        }
        if round % 5 == 0 {
            sell(&mut company, None, 1);
            sold += 1;
        }
        if round == 100 {
            company.cut(1);
        } else if round == 150 {
            company.connect(1);
        }
        company.tick(100);
        company.step();
        for (office, last) in seen.iter_mut().enumerate() {
            let shown = match office {
                2 => company.head_amount(1),
                at => company.amount_at(at, 1),
            };
            let Value::Int(shown) = shown else {
                panic!("{shown:?}")
            };
            assert!(
                shown <= *last,
                "office {office} in round {round}: {shown} after {last}"
            );
            *last = shown;
        }
        // The first has nothing but what is on its way: it sees the others' although its own row never rests.
        if round < 100 {
            let Value::Int(at_head) = company.head_amount(1) else {
                panic!()
            };
            assert!(
                (at_head - seen[0]).abs() <= 6,
                "round {round}: {at_head} and {seen:?}"
            );
        }
    }
    company.settle();
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(1000 - sold));
    assert!(company.conflicts().is_empty());
}

/// Two or more branches, a backup of the head, and the first branch cut off.
fn backed_up(branches: u8) -> (Company, Image) {
    let mut company = Company::new(branches);
    company.write_head(&[Op::Insert(STOCK, amount(1, 1000)), insert(1, "old")]);
    company.settle();
    company.assert_even();
    let image = company.head_image();
    company.cut(0);
    (company, image)
}

/// The head is restored and goes on with the first branch: 7 are sold there.
fn fork(company: &mut Company, image: &Image) {
    for at in 1..company.branches.len() {
        company.cut(at);
    }
    company.restore_head(image);
    company.connect(0);
    sell(company, Some(0), 3);
    company.settle();
    sell(company, None, 4);
    company.settle();
    assert_eq!(company.amount_at(0, 1), Value::Int(993));
}

#[test]
fn what_was_sold_on_both_sides_of_a_fork_of_the_log_adds_up() {
    let (mut company, image) = backed_up(2);
    sell(&mut company, None, 10);
    company.settle();
    sell(&mut company, Some(1), 20);
    company.settle();
    sell(&mut company, None, 30);
    company.settle();
    company.cut(1);
    sell(&mut company, Some(1), 100);
    company.settle();
    fork(&mut company, &image);
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(1000 - 7 - 60 - 100));
    assert_eq!(company.conflicts(), []);
}

#[test]
fn what_two_branches_give_back_adds_up_once() {
    for order in [[1, 2], [2, 1]] {
        let (mut company, image) = backed_up(3);
        sell(&mut company, None, 10);
        company.settle();
        sell(&mut company, Some(1), 20);
        company.settle();
        company.cut(2);
        sell(&mut company, Some(1), 30);
        company.settle();
        sell(&mut company, Some(2), 100);
        company.settle();
        fork(&mut company, &image);
        for at in order {
            company.connect(at);
            company.settle();
        }
        company.assert_even();
        assert_eq!(company.head_amount(1), Value::Int(1000 - 7 - 60 - 100));
        assert_eq!(company.conflicts(), []);
    }
}

/// The lost part comes in several messages; also so slowly that the branch greets again between two of them.
#[test]
fn a_long_lost_part_adds_up() {
    for slowly in [false, true] {
        let (mut company, image) = backed_up(2);
        for id in 0..8 {
            company.write(1, &[insert(100 + id, &long_name(id))]);
            sell(&mut company, Some(1), 10);
            company.settle();
        }
        fork(&mut company, &image);
        company.connect(1);
        for _ in 0..if slowly { 60 } else { 0 } {
            company.step_one_by_one();
            company.tick(1_000);
        }
        company.settle();
        company.assert_even();
        assert_eq!(company.head_amount(1), Value::Int(1000 - 7 - 80));
        assert_eq!(company.conflicts(), []);
    }
}

/// The head is restored from one backup twice, and goes on each time: what was lost first comes from two branches.
#[test]
fn what_two_restores_from_one_backup_lost_adds_up_once() {
    let (mut company, image) = backed_up(4);
    company.cut(3);
    sell(&mut company, None, 10);
    company.settle();
    company.cut(1);
    company.cut(2);
    company.restore_head(&image);
    company.connect(3);
    company.settle();
    sell(&mut company, None, 20);
    company.settle();
    fork(&mut company, &image);
    for at in [3, 1, 2] {
        company.connect(at);
        company.settle();
    }
    company.assert_even();
    assert_eq!(company.head_amount(1), Value::Int(1000 - 7 - 10 - 20));
}

/// A batch that the lost part answers was sent again, and was judged since the restore.
#[test]
fn a_batch_on_both_sides_of_a_fork_counts_once() {
    for order in [[1, 2], [2, 1]] {
        for heard in [false, true] {
            let (mut company, image) = backed_up(3);
            if heard {
                sell(&mut company, None, 10);
                company.settle();
            }
            company.branches[1].deaf = true;
            sell(&mut company, Some(1), 20);
            company.settle();
            sell(&mut company, Some(1), 100);
            company.settle();
            sell(&mut company, Some(2), 30);
            company.settle();
            company.branches[1].deaf = false;
            company.cut(1);
            sell(&mut company, Some(1), 200);
            fork(&mut company, &image);
            for at in order {
                company.connect(at);
                company.settle();
            }
            company.assert_even();
            let sold = 7 + 150 + 200 + if heard { 10 } else { 0 };
            let told = format!("{order:?} {heard}");
            assert_eq!(company.head_amount(1), Value::Int(1000 - sold), "{told}");
        }
    }
}
