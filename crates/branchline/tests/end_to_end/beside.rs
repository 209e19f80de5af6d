//! The application at a SQLite office while its office has much to do with the same file (P8).

use std::time::{Duration, Instant};

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(120);
/// The backlog: transactions of so many rows.
const BACKLOG: [u32; 2] = [40_000, 10];
/// How long the application may wait for its lock, in 99 of 100 writes and ever, on a machine with much else to do.
const BOUNDS: [Duration; 2] = [Duration::from_millis(600), Duration::from_secs(2)];

#[track_caller]
fn the_application_goes_on_while_its_office_catches_up(mode: &str) {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run("CREATE TABLE item (id bigint PRIMARY KEY, note text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    let mut at_branch = Db::open(&branch.database);
    at_branch.rows(&format!("PRAGMA journal_mode = {mode}"));
    let [transactions, rows] = BACKLOG;
    at_head.run(format!(
        "DO $$ BEGIN FOR t IN 1..{transactions} LOOP \
         INSERT INTO item SELECT t * {rows} + n, 'of transaction ' || t FROM generate_series(1, {rows}) n; \
         COMMIT; END LOOP; END $$"
    ));
    wait_until("the head has taken it", SOON, || {
        let status = head.status();
        (status["pending_changes"] == 0)
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
    branch.run();
    let began = Instant::now();
    let mut waits = Vec::new();
    loop {
        let wrote = Instant::now();
        let id = 1_000_000 + waits.len();
        at_branch.run(format!("INSERT INTO item VALUES ({id}, 'at the counter')"));
        waits.push(wrote.elapsed());
        let landed = at_branch.one("SELECT count(*) FROM item WHERE id < 1000000");
        if landed == (transactions * rows).to_string() {
            break;
        }
        assert!(began.elapsed() < SOON, "only {landed} rows landed");
        std::thread::sleep(Duration::from_millis(10));
    }
    waits.sort();
    let share = |of: usize| waits[(waits.len() - 1) * of / 100];
    println!(
        "{mode}: {} writes while {transactions} transactions landed in {:?}: p50 {:?}, p99 {:?}, longest {:?}",
        waits.len(),
        began.elapsed(),
        share(50),
        share(99),
        share(100)
    );
    assert!(
        waits.len() > 10,
        "the application wrote meanwhile: {}",
        waits.len()
    );
    assert!(share(99) < BOUNDS[0] && share(100) < BOUNDS[1], "{waits:?}");
    settle(&head, &[&branch], SOON);
    branch.stop();
    head.stop();
}

#[test]
fn an_application_goes_on_while_its_office_catches_up_in_wal_mode() {
    the_application_goes_on_while_its_office_catches_up("WAL");
}

#[test]
fn an_application_goes_on_while_its_office_catches_up_with_a_rollback_journal() {
    the_application_goes_on_while_its_office_catches_up("DELETE");
}

/// A migration that holds a table for long is in the way of the office's own work for as long, and of nothing else.
#[test]
fn a_migration_that_takes_long_closes_no_link() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run("CREATE TABLE item (id bigint PRIMARY KEY, note text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);
    let since = branch.status()["transport"]["since"].clone();
    at_head.run("BEGIN; ALTER TABLE item ADD COLUMN more text");
    Db::open(&branch.database).run("INSERT INTO item VALUES (1, 'at the counter')");
    wait_until("the migration is in the way", SOON, || {
        let status = head.status();
        let problem = status["problem"].as_str().unwrap_or_default();
        problem
            .contains("in the way")
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
    at_head.run("COMMIT");
    settle(&head, &[&branch], SOON);
    assert_eq!(at_head.one("SELECT note FROM item"), "at the counter");
    assert_eq!(branch.status()["transport"]["since"], since);
    branch.stop();
    head.stop();
}
