//! The database in memory keeps the port's contract, and plays the faults that the simulator asks of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use branchline_core::identity::Micros;
use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_testkit::conformance::sample::{STOCK, item, put, schema, sku};
use branchline_testkit::conformance::{Office, Op};
use branchline_testkit::memory::{LostCommit, MemoryApplication, MemoryDatabase};

struct MemoryOffice(MemoryDatabase);

impl Office for MemoryOffice {
    type Db = MemoryDatabase;
    type App = MemoryApplication;
    const CONCURRENT_WRITERS: bool = false;
    const TELLS_TRANSACTIONS_APART: bool = true;

    async fn open(&self) -> MemoryDatabase {
        self.0.clone()
    }

    async fn application(&self) -> MemoryApplication {
        self.0.application()
    }

    async fn objects(&self) -> Vec<String> {
        self.0.objects()
    }

    fn now(&self) -> Micros {
        self.0.now()
    }
}

async fn office() -> MemoryOffice {
    MemoryOffice(MemoryDatabase::new())
}

branchline_testkit::conformance_tests!(office);

async fn with_one_item() -> MemoryDatabase {
    let mut db = MemoryDatabase::new();
    db.create_tables(&schema()).await.unwrap();
    db.prepare().await.unwrap();
    db.install(&schema()).await.unwrap();
    db.application()
        .write_now(&schema(), &[Op::Insert(STOCK, item("nail", 1))])
        .unwrap();
    db
}

fn is_gone<T>(result: &Result<T, DatabaseError>) -> bool {
    matches!(result, Err(DatabaseError::Unreachable(_)))
}

#[tokio::test]
async fn a_crash_loses_open_transactions_only() {
    let mut db = with_one_item().await;
    db.begin(Purpose::Apply).await.unwrap();
    db.write(&schema(), &[put(STOCK, item("bolt", 1))])
        .await
        .unwrap();
    db.crash();
    assert!(is_gone(&db.commit().await));
    assert_eq!(db.rows("stock"), [item("nail", 1)]);
    db.begin(Purpose::Apply).await.unwrap();
    db.commit().await.unwrap();
}

#[tokio::test]
async fn a_restored_backup_is_what_it_was() {
    let mut db = with_one_item().await;
    let backup = db.snapshot();
    db.application()
        .write_now(&schema(), &[Op::Delete(STOCK, sku("nail"))])
        .unwrap();
    assert!(db.rows("stock").is_empty());
    db.restore(&backup);
    assert_eq!(db.rows("stock"), [item("nail", 1)]);
    db.begin(Purpose::Read).await.unwrap();
    assert_eq!(db.backlog().await.unwrap().writes, 1);
}

#[tokio::test]
async fn the_answer_to_a_commit_can_be_lost_either_way() {
    let mut db = with_one_item().await;
    for (how, rows) in [(LostCommit::Undone, 1), (LostCommit::Done, 2)] {
        db.begin(Purpose::Apply).await.unwrap();
        db.write(&schema(), &[put(STOCK, item("bolt", 1))])
            .await
            .unwrap();
        db.lose_next_commit(how);
        assert!(is_gone(&db.commit().await));
        assert_eq!(db.rows("stock").len(), rows);
    }
}

#[tokio::test]
async fn an_unreachable_database_still_serves_its_application() {
    let mut db = with_one_item().await;
    db.set_reachable(false);
    assert!(is_gone(&db.begin(Purpose::Apply).await));
    db.application()
        .write_now(&schema(), &[Op::Delete(STOCK, sku("nail"))])
        .unwrap();
    db.set_reachable(true);
    db.begin(Purpose::Take).await.unwrap();
    assert_eq!(db.take(&schema(), 10).await.unwrap().changes.len(), 1);
}
