//! Transactions larger than all that may be on its way at once arrive, whole.

use std::time::Duration;

use tempfile::TempDir;

use crate::items::head_and_branch;
use crate::office::{settle, wait_until};
use crate::sql::Db;

const PATIENCE: Duration = Duration::from_secs(180);
/// More than 40 log entries of a thousand rows: the head's window.
const ROWS: u32 = 45_000;

#[test]
fn a_transaction_of_the_head_that_is_larger_than_its_window_arrives() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = head_and_branch(&folder);
    Db::open(&head.database).run(format!(
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {ROWS}) \
         INSERT INTO item SELECT id, 'one of many' FROM n"
    ));
    let status = head.wait_in_sync(PATIENCE);
    assert!(
        status["log"].as_u64() > Some(40),
        "one entry each thousand rows: {status}"
    );
    settle(&head, &[&branch], PATIENCE);
    let found = Db::open(&branch.database).one("SELECT count(*) FROM item");
    assert_eq!(found, ROWS.to_string());
    branch.stop();
    head.stop();
}

#[test]
fn what_a_branch_writes_while_nothing_moves_lands_in_parts() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = head_and_branch(&folder);
    branch.stop();
    branch.edit("mode = \"live\"", "mode = \"manual\"");
    branch.run();
    let mut at_branch = Db::open(&branch.database);
    let marks = "SELECT count(*) FROM branchline_part";
    for part in 0..3 {
        let (from, to) = (part * 10_000, part * 10_000 + 2_499);
        at_branch.run(format!(
            "WITH RECURSIVE n(id) AS (SELECT {from} UNION ALL SELECT id + 1 FROM n WHERE id < {to}) \
             INSERT INTO item SELECT id, 'of part {part}' FROM n"
        ));
        wait_until("the part is marked off", PATIENCE, || {
            match at_branch.one(marks) {
                count if count == (part + 1).to_string() => Ok(()),
                count => Err(format!("{count} marks")),
            }
        });
    }
    let before = head.status()["log"].as_u64().unwrap();
    branch.cmd(&["sync"]).expect(0);
    // Each part is a unit, of three batches; as one unit they would be eight.
    let after = head.status()["log"].as_u64().unwrap();
    assert_eq!(after - before, 9);
    let found = Db::open(&head.database).one("SELECT count(*) FROM item");
    assert_eq!(found, "7500");
    assert_eq!(
        at_branch.one("SELECT count(*) FROM branchline_capture"),
        "0"
    );
    branch.stop();
    head.stop();
}
