//! Reading while the application alters its tables.

use std::time::{Duration, Instant};

use branchline_core::port::{Database, DatabaseError, Purpose};

use super::office::{Shop, client, int, shop};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n int); INSERT INTO t SELECT g, g FROM generate_series(1, 9) g";
const PARTITIONED: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n int) PARTITION BY RANGE (id);
    CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (5); CREATE TABLE t2 PARTITION OF t DEFAULT;
    INSERT INTO t SELECT g, g FROM generate_series(1, 9) g";

/// A transaction that reads, with a snapshot of before this statement, which commits.
async fn reading_across(table: &str, sql: &str) -> Shop {
    let mut shop = shop(table).await;
    let t = shop.table("t");
    shop.db.begin(Purpose::Read).await.unwrap();
    assert_eq!(shop.db.chunk(&t, None, 100).await.unwrap().len(), 9);
    shop.db.commit().await.unwrap();
    shop.db.begin(Purpose::Read).await.unwrap();
    shop.db.meta("anything").await.unwrap();
    shop.sql(sql).await;
    shop
}

/// To a snapshot from before, a table that was rewritten is empty.
#[tokio::test]
async fn a_table_that_was_rewritten_after_the_snapshot_is_not_read_as_empty() {
    for (table, sql) in [
        (TABLE, "ALTER TABLE t ALTER n TYPE bigint"),
        (TABLE, "TRUNCATE t"),
        (PARTITIONED, "ALTER TABLE t ALTER n TYPE bigint"),
        (PARTITIONED, "TRUNCATE t2"),
    ] {
        let mut shop = reading_across(table, sql).await;
        let t = shop.table("t");
        let chunk = shop.db.chunk(&t, None, 100).await;
        assert!(
            matches!(chunk, Err(DatabaseError::Busy(_))),
            "{sql}: {chunk:?}"
        );
        let mut shop = reading_across(table, sql).await;
        let read = shop.db.read(&t, &[int(7)]).await;
        assert!(
            matches!(read, Err(DatabaseError::Busy(_))),
            "{sql}: {read:?}"
        );
        // The next transaction sees the table as it is.
        shop.db.begin(Purpose::Read).await.unwrap();
        let left = match (sql, table == PARTITIONED) {
            ("TRUNCATE t", _) => 0,
            ("TRUNCATE t2", _) => 4,
            _ => 9,
        };
        assert_eq!(
            shop.db.chunk(&t, None, 100).await.unwrap().len(),
            left,
            "{sql}"
        );
        shop.db.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_table_that_stays_as_it_is_is_read_in_the_snapshot() {
    let mut shop = reading_across(
        TABLE,
        "DELETE FROM t; ALTER TABLE t ADD COLUMN more text; ANALYZE t",
    )
    .await;
    let t = shop.table("t");
    assert_eq!(shop.db.chunk(&t, None, 100).await.unwrap().len(), 9);
    assert_eq!(shop.db.read(&t, &[int(7)]).await.unwrap().len(), 1);
}

/// An office does nothing else while it waits for a table.
#[tokio::test]
async fn reading_does_not_wait_for_a_long_alter() {
    let mut shop = shop(TABLE).await;
    let t = shop.table("t");
    let migration = client(&shop.url).await;
    migration
        .batch_execute("BEGIN; ALTER TABLE t ALTER n TYPE bigint")
        .await
        .unwrap();
    shop.db.begin(Purpose::Read).await.unwrap();
    let began = Instant::now();
    let chunk = tokio::time::timeout(Duration::from_secs(5), shop.db.chunk(&t, None, 100)).await;
    assert!(
        matches!(chunk, Ok(Err(DatabaseError::Busy(_)))),
        "{chunk:?}"
    );
    assert!(
        began.elapsed() < Duration::from_millis(700),
        "{:?}",
        began.elapsed()
    );
    shop.db.rollback().await.unwrap();
    migration.batch_execute("COMMIT").await.unwrap();
    shop.db.begin(Purpose::Read).await.unwrap();
    assert_eq!(shop.db.chunk(&t, None, 100).await.unwrap().len(), 9);
}
