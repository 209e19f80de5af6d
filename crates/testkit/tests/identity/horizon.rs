//! A branch is away for longer than the head's log waits.

use branchline_core::conflict::Reason;
use branchline_core::output::Notice;
use branchline_core::retention::Retention;
use branchline_core::schema::Column;
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;

use crate::company::*;

const HOUR: i64 = 60 * 60 * 1000;

/// A branch may be away for two hours.
pub fn two_hours() -> Retention {
    Retention {
        absent_ms: 2 * HOUR,
        recovery_ms: HOUR,
        bytes: u64::MAX >> 1,
    }
}

/// Two branches, and a log that waits for two hours.
fn forgetful() -> Company {
    let mut company = Company::new(2);
    company.set_retention(two_hours());
    company
}

fn shop() -> Company {
    let mut company = forgetful();
    let mut ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    ops.push(Op::Insert(STOCK, amount(1, 100)));
    company.write_head(&ops);
    company.settle();
    company.assert_even();
    company
}

/// The head and the other branch work for some hours.
fn hours_pass(company: &mut Company) {
    for hour in 0..5 {
        company.write_head(&[update(9, &format!("hour {hour}"))]);
        company.write(1, &[insert(100 + hour, "b2's")]);
        company.let_pass(60);
    }
}

/// What the first branch inserted is held, and the verdict lies in the part of the log that it never gets: its link is cut.
pub fn hold_unheard() -> Company {
    let mut company = forgetful();
    company.alter_head(NAMES, |names| names.unique.push(vec![1]));
    company.write_head(&[insert(1, "one"), insert(9, "nine")]);
    company.settle();
    company.branches[0].deaf = true;
    company.write_head(&[insert(2, "two")]);
    company.write(0, &[insert(20, "two")]);
    company.settle();
    assert_eq!(company.listed(Reason::DoesNotFit).len(), 1);
    for hour in 0..5 {
        company.write_head(&[update(9, &format!("hour {hour}"))]);
        company.let_pass(60);
    }
    company.branches[0].deaf = false;
    company.cut(0);
    company
}

/// What stood in the way of the held row goes, and it comes in.
pub fn assert_comes_in(company: &mut Company) {
    company.write_head(&[delete(2)]);
    company.let_pass(5);
    company.settle();
    assert_eq!(company.head_names()[&20], "two");
    assert_eq!(company.names_at(0), company.head_names());
}

#[test]
fn a_branch_that_copies_the_tables_anew_is_told_what_is_held_of_it() {
    let mut company = hold_unheard();
    company.connect(0);
    company.settle();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    assert!(!company.branches[0].branch.awaits_comparison());
    assert_eq!(company.conflicts_at(0).len(), 1);
    assert!(!company.head_names().contains_key(&20));
    assert_eq!(company.names_at(0)[&20], "two");
    assert_comes_in(&mut company);
}

/// Its link stands all the while, so that nothing makes it greet by itself.
#[test]
fn a_branch_that_hears_nothing_for_too_long_copies_the_tables_anew() {
    let mut company = shop();
    company.branches[0].deaf = true;
    company.write(0, &[insert(20, "b1's")]);
    company.settle();
    hours_pass(&mut company);
    company.branches[0].deaf = false;
    company.settle();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    assert_eq!(company.head_names()[&20], "b1's");
    let first = company.log().first;
    company.assert_even_since(first);
}

#[test]
fn a_branch_that_was_away_for_too_long_copies_the_tables_anew() {
    for frozen in [true, false] {
        let mut company = shop();
        company.cut(0);
        if !frozen {
            // The process is down: what its application writes is captured only.
            company.branches[0].branch.set_moving(false);
        }
        company.write(
            0,
            &[
                insert(20, "b1's, unsent"),
                update(1, "b1's, unsent"),
                update(2, "b1's, unsent"),
                update(3, "b1's, unsent"),
                delete(4),
                delete(5),
            ],
        );
        company.write(0, &[Op::Update(STOCK, key(1), amount(1, 95))]);
        company.settle();
        company.write_head(&[
            update(2, "head's"),
            delete(3),
            update(5, "head's"),
            delete(6),
            insert(21, "head's"),
        ]);
        company.write_head(&[Op::Update(STOCK, key(1), amount(1, 90))]);
        company.settle();
        hours_pass(&mut company);
        let log = company.log();
        assert!(
            log.first > company.branches[0].branch.state().cursor.0 + 1,
            "{log:?}"
        );
        company.branches[0].branch.set_moving(true);
        company.connect(0);
        company.settle();
        assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
        assert!(!company.was_noticed(1, |notice| matches!(notice, Notice::CopiedAnew(_))));
        let first = company.log().first;
        assert!(first > 1);
        let names = company.head_names();
        assert_eq!(company.names_at(0), names);
        assert_eq!(names[&20], "b1's, unsent");
        assert_eq!(names[&2], "head's");
        assert_eq!(names[&5], "head's");
        assert_eq!(names[&21], "head's");
        assert!(!names.contains_key(&3), "it does not come back");
        assert!(!names.contains_key(&6), "it does not come back");
        company.assert_even_since(first);
        let listed = company.listed(Reason::Newest);
        for id in [2, 3] {
            let lost = Some(row(id, "b1's, unsent"));
            assert!(
                listed
                    .iter()
                    .any(|(k, _, theirs)| *k == key(id) && *theirs == lost),
                "{id}: {listed:?}"
            );
        }
        assert!(listed.iter().any(|(k, ours, theirs)| {
            *k == key(5) && *ours == Some(row(5, "head's")) && theirs.is_none()
        }));
        // What nobody else touched is in the rows or in the list.
        for (id, unsent) in [(1, Some(row(1, "b1's, unsent"))), (4, None)] {
            let here = names.get(&id).map(|name| row(id, name)) == unsent;
            let kept = listed
                .iter()
                .any(|(k, _, theirs)| *k == key(id) && *theirs == unsent);
            assert!(here || kept, "{id}");
        }
        // A counter's deltas count whatever the age of their base.
        assert_eq!(company.head_amount(1), Value::Int(85));
        // From here on it follows like before.
        company.write(0, &[update(1, "b1's, later"), insert(30, "b1's, later")]);
        company.write_head(&[update(7, "head's, later")]);
        company.settle();
        company.assert_even_since(first);
        let names = company.head_names();
        assert_eq!(
            (&*names[&1], &*names[&7], &*names[&30]),
            ("b1's, later", "head's, later", "b1's, later")
        );
    }
}

/// The application writes while the tables are copied anew.
#[test]
fn writes_during_the_copy_are_kept() {
    let mut company = shop();
    company.cut(0);
    company.write_head(&[delete(6), update(2, "head's")]);
    company.settle();
    hours_pass(&mut company);
    company.connect(0);
    company.write(0, &[update(2, "b1's, on the old row"), insert(20, "b1's")]);
    for id in 40..60 {
        company.step();
        company.write(0, &[insert(id, "b1's, meanwhile")]);
    }
    company.settle();
    let first = company.log().first;
    company.assert_even_since(first);
    let names = company.head_names();
    assert!((40..60).all(|id| names[&id] == "b1's, meanwhile"));
    assert_eq!(names[&20], "b1's");
    assert!(!names.contains_key(&6));
    if names[&2] != "b1's, on the old row" {
        let lost = Some(row(2, "b1's, on the old row"));
        assert!(
            company
                .conflicts()
                .iter()
                .any(|record| record.theirs == lost)
        );
    }
}

/// What the branch had sent before it went away, and whose answers it never saw, counts once.
#[test]
fn batches_that_were_answered_beyond_the_horizon_count_once() {
    let mut company = shop();
    company.branches[0].deaf = true;
    company.write(
        0,
        &[Op::Update(STOCK, key(1), amount(1, 95)), update(1, "b1's")],
    );
    company.settle();
    company.cut(0);
    company.branches[0].deaf = false;
    hours_pass(&mut company);
    company.write(0, &[Op::Update(STOCK, key(1), amount(1, 93))]);
    company.connect(0);
    company.settle();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    let first = company.log().first;
    company.assert_even_since(first);
    assert_eq!(company.head_amount(1), Value::Int(93));
    assert_eq!(company.head_names()[&1], "b1's");
}

/// The comparison that ends the copy is asked for again until it was made.
#[test]
fn the_comparison_after_the_copy_survives_a_restart() {
    use branchline_core::message::Message;
    let mut company = shop();
    company.cut(0);
    company.write_head(&[delete(6)]);
    company.settle();
    hours_pass(&mut company);
    company.branches[0].lose = |message| matches!(message, Message::VerifyRequest(_));
    company.connect(0);
    company.settle();
    company.branches[0].lose = |_| false;
    company.restart_branch(0);
    company.settle();
    let first = company.log().first;
    company.assert_even_since(first);
}

#[test]
fn a_branch_that_was_taken_out_holds_the_log_no_longer() {
    let mut company = shop();
    company.set_retention(Retention {
        absent_ms: 1_000 * HOUR,
        recovery_ms: HOUR,
        bytes: u64::MAX >> 1,
    });
    company.cut(0);
    let cursor = company.branches[0].branch.state().cursor.0;
    hours_pass(&mut company);
    let log = company.log();
    assert!(
        log.first <= cursor + 1,
        "it waits for the branch: {log:?}, {cursor}"
    );
    company.remove(0);
    company.let_pass(90);
    let log = company.log();
    assert!(log.first > cursor + 1, "{log:?}");
}

/// Where a restored head went on, notes on what it logged anew of the lost part are kept as long as anybody may give that
/// back.
#[test]
fn notes_on_what_was_logged_anew_go_with_the_log() {
    let mut company = shop();
    let image = company.head_image();
    company.cut(0);
    company.write(1, &[update(2, "lost")]);
    company.settle();
    company.cut(1);
    company.restore_head(&image);
    company.connect(0);
    company.write_head(&[update(1, "after")]);
    company.settle();
    company.connect(1);
    company.settle();
    assert_eq!(company.head_names()[&2], "lost");
    let streams = company.lost_streams();
    assert_eq!(streams.len(), 1);
    assert_eq!(company.stream(&streams[0]).entries, 1);
    hours_pass(&mut company);
    assert!(company.log().first > 3);
    assert_eq!(company.lost_streams(), Vec::<String>::new());
    assert_eq!(company.stream(&streams[0]).entries, 0);
}

/// Only taking what is captured sends it by the column that goes when the branch comes to the head's present tables.
#[test]
fn what_was_not_frozen_at_the_horizon_is_listed_where_its_column_is_gone() {
    let mut company = forgetful();
    let with_note = |id, name, note: &str| {
        let mut row = row(id, name);
        row.0.push(Value::Text(note.into()));
        row
    };
    let note = Column {
        name: "note".into(),
        kind: Type::Text { max: None },
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    };
    company.alter_head(NAMES, |names| names.columns.push(note));
    company.write_head(&[Op::Insert(NAMES, with_note(1, "one", "the head's"))]);
    company.settle();
    company.cut(0);
    company.branches[0].branch.set_moving(false);
    let mine = with_note(1, "b1's", "b1's");
    company.write(0, &[Op::Update(NAMES, key(1), mine.clone())]);
    company.alter_head(NAMES, |names| drop(names.columns.pop()));
    company.write_head(&[insert(9, "nine")]);
    company.settle();
    hours_pass(&mut company);
    company.connect(0);
    company.settle();
    company.branches[0].branch.set_moving(true);
    company.settle();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::CopiedAnew(_))));
    let listed = company.listed(Reason::SchemaChanged);
    assert!(
        listed
            .iter()
            .any(|(_, _, theirs)| theirs.as_ref() == Some(&mine)),
        "{listed:?}"
    );
    assert_eq!(company.names_at(0), company.head_names());
}
