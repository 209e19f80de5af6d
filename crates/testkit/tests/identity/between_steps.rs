//! A piece of work is cut short between any two of its database steps: the process dies, or another transaction is in the
//! way and it goes on with what it remembers.

use branchline_core::failure::OfficeError;
use branchline_core::message::Message;
use branchline_core::output::Notice;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Type;
use branchline_testkit::sim::faults::Plan;
use branchline_testkit::sim::office::Place;

use crate::company::*;

/// A table is built anew by the application, which drops its triggers, and a row is written that nobody sees.
const REBUILT: &str = "
    CREATE TABLE fresh (id BIGINT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (id));
    INSERT INTO fresh SELECT id, name FROM names;
    DROP TABLE names;
    ALTER TABLE fresh RENAME TO names;
    INSERT INTO names VALUES (2, 'unseen');";

fn dies_at(step: u32) -> Plan {
    Plan {
        crash: Some((step, false)),
        ..Plan::default()
    }
}

fn is_hindered_at(step: u32) -> Plan {
    Plan {
        busy: Some(step),
        ..Plan::default()
    }
}

/// Does one piece of work with the fault at each of its steps in turn. The driver reads a machine anew unless it was only
/// in somebody's way.
fn at_each_step(prepared: impl Fn() -> Company, fault: fn(u32) -> Plan, end: impl Fn(Company)) {
    for step in 0.. {
        let mut company = prepared();
        let mut plan = fault(step);
        let outcome = company.work_under(0, &mut plan);
        match outcome {
            Ok(_) if !plan.hindered => {
                assert!(step > 3, "the work has steps");
                return;
            }
            Ok(_) | Err(OfficeError::InTheWay(_)) => {}
            Err(_) => company.restart_branch(0),
        }
        println!("step {step}");
        company.settle();
        end(company);
    }
}

#[test]
fn what_a_branch_wrote_without_capture_is_found_whatever_is_cut_short() {
    let rebuilt = || {
        let mut company = Company::new_on(Place::SqliteMemory, 1);
        company.write_head(&[insert(1, "one")]);
        company.settle();
        company.branches[0].disk.execute(REBUILT);
        company.restart_branch(0);
        company
    };
    for fault in [dies_at, is_hindered_at] {
        at_each_step(rebuilt, fault, |mut company| {
            assert_eq!(company.head_names()[&2], "unseen");
            company.assert_even();
        });
    }
}

/// Where DDL is no transaction, capture is there before the log says that it was missing.
#[test]
fn what_a_head_wrote_without_capture_is_found_though_it_was_put_back_before() {
    let mut company = Company::new_on(Place::SqliteMemory, 1);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    company.at_head.execute(REBUILT);
    company.at_head.execute(
        "CREATE TRIGGER no_log BEFORE INSERT ON branchline_stream
         WHEN NEW.stream = 'log' BEGIN SELECT raise(ABORT, 'not now'); END",
    );
    company.start_head();
    company.now = company.now.plus_millis(60_000);
    assert!(company.try_head().is_err());
    company.at_head.execute("DROP TRIGGER no_log");
    company.install_at_head();
    company.start_head();
    company.settle();
    assert_eq!(company.names_at(0)[&2], "unseen");
    company.assert_even();
}

#[test]
fn a_step_of_the_schema_is_taken_once_whoever_is_in_the_way() {
    let note = |table: &mut Table| {
        table.columns.push(Column {
            name: "note".into(),
            kind: Type::Text { max: None },
            nullable: true,
            default: None,
            generated_key: false,
            id: 0,
        });
    };
    let before_it = || {
        let mut company = Company::new(1);
        company.write_head(&[insert(1, "one"), insert(2, "two")]);
        company.settle();
        company.branches[0].lose = |message| matches!(message, Message::Batch(_));
        company.write(0, &[update(1, "b1's")]);
        company.step();
        company.alter_head(NAMES, note);
        company.step();
        company.branches[0].lose = |_| false;
        let state = company.branches[0].branch.state();
        assert!(state.known_last > state.cursor && state.frozen > state.answered);
        company
    };
    for fault in [dies_at, is_hindered_at] {
        at_each_step(before_it, fault, |mut company| {
            assert_eq!(company.branches[0].branch.schema().version, 2);
            assert!(company.conflicts().is_empty());
            company.assert_even();
        });
    }
}

/// What did not fit and came in one transaction shows in one when it fits (P5).
#[test]
fn rows_that_did_not_fit_are_put_together_as_they_came() {
    let before_it = || {
        let mut company = Company::new(1);
        company.write_head(&[insert(10, "a"), insert(11, "b")]);
        company.alter(0, NAMES, |table| table.unique.push(vec![1]));
        company.settle();
        // The third never fits.
        company.write_head(&[insert(1, "a"), insert(2, "b"), insert(3, "a")]);
        company.settle();
        company.write_head(&[delete(10), delete(11)]);
        while company.step() {}
        assert!(company.names_at(0).is_empty());
        company.now = company.now.plus_millis(6_000);
        company
    };
    for step in 0.. {
        let mut company = before_it();
        let mut plan = dies_at(step);
        let outcome = company.work_under(0, &mut plan);
        let here: Vec<i64> = company.names_at(0).into_keys().collect();
        if !plan.dead {
            outcome.unwrap();
            assert!(step > 3 && here == [1, 2], "step {step}: {here:?}");
            return;
        }
        assert!(here.is_empty() || here == [1, 2], "step {step}: {here:?}");
    }
}

#[test]
fn a_comparison_is_answered_whoever_is_in_the_way() {
    let before_it = || {
        let mut company = Company::new(1);
        company.write_head(&[insert(1, "one")]);
        company.settle();
        company.notices.clear();
        company.head.verify(false);
        company.step();
        let state = company.branches[0].branch.state();
        assert!(state.known_last > state.cursor);
        company
    };
    at_each_step(before_it, is_hindered_at, |company| {
        let told = company.notices.iter().find_map(|notice| match notice {
            Notice::Verified(verification) => Some(&verification.branches),
            _ => None,
        });
        let told = told.expect("the comparison ended");
        assert!(told.iter().all(|branch| branch.answered), "{told:?}");
    });
}

/// A branch that had so many rows before it joined that they are not all sent at once has passed an entry about one of them,
/// which the application then deletes.
#[test]
fn a_row_from_before_the_join_that_is_deleted_unsent_is_what_the_head_says() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one"), insert(2, "two")]);
    company.settle();
    company.join_still(0, &key(1));
    company.write(0, &[delete(1)]);
    company.restart_branch(0);
    company.settle();
    assert_eq!(company.names_at(0).get(&1).map(String::as_str), Some("one"));
    company.assert_even();
}
