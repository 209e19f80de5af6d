//! Connections: refused, broken, secured; and the watch.

use std::time::Duration;

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_database::mysql::{MysqlDatabase, watch};
use branchline_testkit::servers::{self, MariaDb};

use crate::shop::shop;

#[tokio::test]
async fn what_is_wrong_with_an_address_is_told_without_its_password() {
    let good = servers::mariadb().fresh_database();
    let wrong = good.replace("root:branchline", "root:mistaken");
    let nowhere = "mysql://root:mistaken@127.0.0.1:1/x".to_owned();
    let elsewhere = good.replace("/test_", "/no_such_");
    for (url, refused) in [
        (wrong, true),
        (nowhere, false),
        (elsewhere, true),
        ("mysql://h".into(), true),
    ] {
        let told = MysqlDatabase::connect(&url).await.map(|_| ()).unwrap_err();
        assert_eq!(
            matches!(told, DatabaseError::Refused(_)),
            refused,
            "{told:?}"
        );
        assert_eq!(
            matches!(told, DatabaseError::Unreachable(_)),
            !refused,
            "{told:?}"
        );
        assert!(!told.to_string().contains("mistaken"), "{told}");
    }
    let mut db = MysqlDatabase::connect(&good).await.unwrap();
    let (name, version) = db.describe().await.unwrap();
    assert!(
        name == "MariaDB" && version.contains('.'),
        "{name} {version}"
    );
}

#[tokio::test]
async fn a_connection_that_the_server_ended_is_made_anew() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let all =
        "SELECT GROUP_CONCAT(CONCAT('KILL ', ID) SEPARATOR ';') FROM information_schema.PROCESSLIST
               WHERE DB = DATABASE() AND ID <> CONNECTION_ID()";
    let kill = shop.see(all).await.remove(0).unwrap();
    shop.app(&kill).await;
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.set_meta("a", Some(b"1")).await.unwrap();
    let kill = shop.see(all).await.remove(0).unwrap();
    shop.app(&kill).await;
    let broken = shop.db.commit().await.unwrap_err();
    assert!(
        matches!(broken, DatabaseError::Unreachable(_)),
        "{broken:?}"
    );
    shop.db.rollback().await.unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(shop.db.meta("a").await.unwrap(), None);
    shop.db.commit().await.unwrap();
}

#[tokio::test]
async fn the_watch_wakes_soon_after_a_write_and_outlives_the_server() {
    let mut server = tokio::task::spawn_blocking(MariaDb::start).await.unwrap();
    let url = server.fresh_database();
    let mut app = crate::shop::connect(&url).await;
    let mut db = MysqlDatabase::connect(&url).await.unwrap();
    db.prepare().await.unwrap();
    let mut watcher = watch(&url).await.unwrap();
    let soon = |watcher: &mut branchline_database::mysql::Watcher| {
        let wake = watcher.wake.try_recv();
        wake.is_ok()
    };
    watcher.wake.recv().await.unwrap();
    // Nothing is captured, so nothing wakes, however long.
    assert!(
        tokio::time::timeout(Duration::from_millis(600), watcher.wake.recv())
            .await
            .is_err()
    );
    let write = "INSERT INTO branchline_capture (tbl, op, at, tx, `key`) VALUES (1, 'I', NOW(6), 'x', '1:1')";
    mysql_async::prelude::Queryable::query_drop(&mut app, write)
        .await
        .unwrap();
    let woken = tokio::time::timeout(Duration::from_millis(1500), watcher.wake.recv()).await;
    assert_eq!(woken, Ok(Some(())));
    drop(app);
    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        server.start_again();
        server
    });
    let server = server.await.unwrap();
    while soon(&mut watcher) {}
    let woken = tokio::time::timeout(Duration::from_secs(20), watcher.wake.recv()).await;
    assert_eq!(woken, Ok(Some(())));
    drop(server);
}
