//! Locks, snapshots, and waking.

use std::time::Duration;

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_database::sqlite::watch;

use super::office::{Office, SHOP};

#[tokio::test]
async fn a_writer_in_the_way_is_busy_and_a_read_keeps_its_snapshot() {
    let mut office = Office::new(&format!("PRAGMA journal_mode = WAL; {SHOP}")).await;
    let table = office.table("customer");
    office.ours.begin(Purpose::Read).await.unwrap();
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL)");
    assert!(
        office
            .ours
            .chunk(&table, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    office.ours.rollback().await.unwrap();
    assert_eq!(office.ours.chunk(&table, None, 10).await.unwrap().len(), 1);
    office.does("BEGIN IMMEDIATE");
    let refused = office.ours.begin(Purpose::Take).await.unwrap_err();
    assert!(matches!(refused, DatabaseError::Busy(_)), "{refused:?}");
    office.does("COMMIT");
    office.ours.begin(Purpose::Take).await.unwrap();
}

#[tokio::test]
async fn watching_wakes_at_a_commit_and_folds_what_comes_meanwhile() {
    for journal in ["WAL", "DELETE"] {
        let office = Office::new(&format!("PRAGMA journal_mode = {journal}; {SHOP}")).await;
        let mut watcher = watch(office.path().to_str().unwrap()).unwrap();
        let patience = Duration::from_secs(5);
        for id in 1..=3 {
            office.does(&format!("INSERT INTO customer VALUES ({id}, 'Ann', NULL)"));
            tokio::time::timeout(patience, watcher.wake.recv())
                .await
                .expect("wakes")
                .expect("watches");
        }
        office.does("BEGIN; INSERT INTO customer VALUES (9, 'Ann', NULL); ROLLBACK");
        let quiet = tokio::time::timeout(Duration::from_millis(500), watcher.wake.recv()).await;
        assert!(quiet.is_err(), "{journal}: nothing was committed");
    }
}
