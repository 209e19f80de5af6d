//! Waking.

use std::time::{Duration, Instant};

use branchline_core::port::Database;
use branchline_database::postgres::watch;
use branchline_testkit::servers::Postgres;

use super::office::{client, shop, shop_at};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

async fn asleep(app: &tokio_postgres::Client, wanted: bool) {
    let since = Instant::now();
    while app
        .query_one(
            "SELECT coalesce(pg_sequence_last_value('branchline.asleep_until') > date_part('epoch', clock_timestamp()), false)",
            &[],
        )
        .await
        .unwrap()
        .get::<_, bool>(0)
        != wanted
    {
        assert!(
            since.elapsed() < PATIENCE,
            "the watcher is asleep: {}",
            !wanted
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_wakes_a_sleeping_watcher_at_once() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY)").await;
    let mut watcher = watch(&shop.url).await.unwrap();
    watcher.wake.recv().await.unwrap();
    let mut fastest = PATIENCE;
    for id in 0..5 {
        asleep(&shop.app, true).await;
        while watcher.wake.try_recv().is_ok() {}
        shop.sql(&format!("INSERT INTO t VALUES ({id})")).await;
        let committed = Instant::now();
        tokio::time::timeout(PATIENCE, watcher.wake.recv())
            .await
            .unwrap()
            .unwrap();
        fastest = fastest.min(committed.elapsed());
        shop.taken().await;
    }
    assert!(
        fastest < Duration::from_millis(300),
        "notified, not polled: {fastest:?}"
    );
    println!("woken {fastest:?} after the commit");
    asleep(&shop.app, true).await;
    drop(watcher);
    asleep(&shop.app, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_older_than_the_sleep_is_not_missed_for_long() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY)").await;
    let mut watcher = watch(&shop.url).await.unwrap();
    let old = client(&shop.url).await;
    old.batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    asleep(&shop.app, true).await;
    while watcher.wake.try_recv().is_ok() {}
    old.batch_execute("COMMIT").await.unwrap();
    tokio::time::timeout(PATIENCE, watcher.wake.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shop.taken().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_returns_after_its_connection_broke() {
    let shop = shop("CREATE TABLE t (id bigint PRIMARY KEY)").await;
    let mut watcher = watch(&shop.url).await.unwrap();
    watcher.wake.recv().await.unwrap();
    asleep(&shop.app, true).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND query LIKE '%pg_snapshot_xmin%' AND pid <> pg_backend_pid()";
    // Its last statement is another one at times.
    tokio::time::timeout(PATIENCE, async {
        while shop.app.execute(kill, &[]).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    tokio::time::timeout(PATIENCE, watcher.wake.recv())
        .await
        .unwrap()
        .unwrap();
    let mut db = shop.db;
    db.uninstall().await.unwrap();
}

/// A transaction that notifies cannot be prepared.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_may_commit_in_two_phases() {
    let server = Postgres::start_with(&[("max_prepared_transactions", "5"), ("fsync", "off")]);
    let mut shop = shop_at(
        server.fresh_database(),
        "CREATE TABLE t (id bigint PRIMARY KEY)",
    )
    .await;
    let told = shop.db.inspect().await.unwrap().findings;
    let told = told
        .iter()
        .any(|finding| !finding.fatal && finding.problem.contains("prepared transactions"));
    assert!(told, "doctor tells it");
    let mut watcher = watch(&shop.url).await.unwrap();
    watcher.wake.recv().await.unwrap();
    for id in 0..8 {
        // Longer than it stays awake while nothing is written.
        tokio::time::sleep(Duration::from_millis(150)).await;
        while watcher.wake.try_recv().is_ok() {}
        shop.sql(&format!(
            "BEGIN; INSERT INTO t VALUES ({id}); PREPARE TRANSACTION 'p'"
        ))
        .await;
        shop.sql("COMMIT PREPARED 'p'").await;
        tokio::time::timeout(PATIENCE, watcher.wake.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(shop.taken().await.len(), 1);
    }
}
