//! Transactions larger than all that may be on its way at once arrive, whole.

use std::time::Duration;

use tempfile::TempDir;

use crate::items::head_and_branch;
use crate::office::settle;
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
