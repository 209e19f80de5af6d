//! Two machines run one branch.

use branchline_core::envelope;
use branchline_core::message::Message;
use branchline_core::output::Notice;

use crate::company::*;

fn refused(notice: &Notice) -> bool {
    matches!(notice, Notice::RefusedByHead(_))
}

fn warned(notice: &Notice) -> bool {
    matches!(notice, Notice::Warned(_))
}

#[test]
fn the_second_of_two_machines_with_one_database_is_refused() {
    let mut company = Company::new(2);
    company.write_head(&[insert(1, "old")]);
    company.settle();
    let image = company.branches[0].disk.image();
    let copy = company.start_copy(0, &image);
    company.settle();
    assert!(company.was_noticed(copy, refused));
    assert!(company.branches[copy].branch.state().refused.is_some());
    assert!(!company.was_noticed(0, refused));
    assert!(company.was_noticed(0, warned), "the first is told");
    assert!(
        company
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::Refused(..)))
    );
    // The first goes on; the second says nothing, whatever is written there.
    company.write(copy, &[insert(3, "the copy's")]);
    company.write(0, &[insert(2, "b1's")]);
    company.settle();
    assert!(!company.head_names().contains_key(&3));
    let gone = company.branches.remove(copy);
    assert_eq!(gone.branch.state().answered.0, 0);
    company.assert_even();
    assert_eq!(company.head_names()[&2], "b1's");
}

/// A person is told to run `leave` at the copy, which speaks in the first one's name and with its key.
#[test]
fn a_copy_that_leaves_does_not_take_the_first_with_it() {
    for restarted in [false, true] {
        let mut company = Company::new(2);
        let image = company.branches[0].disk.image();
        let copy = company.start_copy(0, &image);
        company.settle();
        assert!(company.was_noticed(copy, refused));
        if restarted {
            company.restart_branch(copy);
            company.step();
        }
        company.branches[copy].branch.leave().unwrap();
        company.settle();
        company.cut(copy);
        company.branches.remove(copy);
        company.write(0, &[insert(2, "b1's")]);
        company.settle();
        company.assert_even();
        let names = company.head_names();
        assert_eq!(names[&2], "b1's", "restarted: {restarted}");
    }
}

/// The copy wrote and sent before it was found out: what the first wrote under the same numbers is not lost.
#[test]
fn what_the_first_wrote_under_the_copys_numbers_is_not_lost() {
    let mut company = Company::new(2);
    company.write(0, &[insert(1, "old")]);
    company.settle();
    company.cut(0);
    let image = company.branches[0].disk.image();
    company.write(0, &[insert(2, "b1's")]);
    let copy = company.start_copy(0, &image);
    company.write(copy, &[insert(3, "the copy's")]);
    company.step();
    company.step();
    company.step();
    assert!(company.head_names().contains_key(&3));
    company.connect(0);
    company.settle();
    company.write(0, &[insert(4, "b1's, later")]);
    company.settle();
    let refused: Vec<bool> = [0, copy]
        .map(|at| company.branches[at].branch.state().refused.is_some())
        .into();
    assert_eq!(
        refused.iter().filter(|refused| **refused).count(),
        1,
        "{refused:?}"
    );
    // A person stops the machine that was refused, whichever it was, and takes it for the copy.
    let gone = if refused[0] { 0 } else { copy };
    company.cut(gone);
    company.branches.remove(gone);
    company.settle();
    company.assert_even();
    let names = company.head_names();
    assert_eq!(names[&3], "the copy's");
    if gone == copy {
        assert_eq!((&*names[&2], &*names[&4]), ("b1's", "b1's, later"));
    }
}

#[test]
fn a_restarted_process_is_never_taken_for_a_copy() {
    let mut company = Company::new(2);
    for round in 0..12 {
        company.write(0, &[insert(100 + round, "b1's")]);
        company.settle();
        let heard = company.heard.clone();
        company.restart_branch(0);
        company.settle();
        // The last words of the former processes come late, and twice.
        for (_, bytes) in heard.iter().rev().take(40).rev() {
            let message = envelope::open(bytes).unwrap().read_own().unwrap();
            if matches!(
                message,
                Message::Position(_) | Message::Hello(_) | Message::Applied(_)
            ) {
                company.deliver_late(bytes);
                company.deliver_late(bytes);
            }
        }
        company.settle();
    }
    assert!(!company.was_noticed(0, refused));
    assert!(!company.was_noticed(0, warned));
    let copy = |notice: &Notice| matches!(notice, Notice::Refused(_, why) if why.contains("copy"));
    assert!(!company.notices.iter().any(copy));
    company.assert_even();
}
