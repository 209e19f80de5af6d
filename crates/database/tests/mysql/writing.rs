//! Applying beside an application that is at work.

use std::time::{Duration, Instant};

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_core::value::Value;
use mysql_async::prelude::Queryable;

use crate::shop::{connect, gone, put, shop, text};

const STOCK: &str = "CREATE TABLE stock (sku VARCHAR(20) PRIMARY KEY, amount INT)";

/// Two keys that are one here and two elsewhere: neither row gives way.
#[tokio::test]
async fn a_key_that_only_this_database_takes_for_the_same_overwrites_nothing() {
    let mut shop = shop(STOCK).await;
    shop.apply(&[put(1, vec![text("Nail"), Value::Int(1)])])
        .await
        .unwrap();
    for other in ["nail", "NAIL", "Nail "] {
        let refused = shop
            .apply(&[put(1, vec![text(other), Value::Int(2)])])
            .await;
        assert!(
            matches!(
                refused,
                Err(DatabaseError::Constraint {
                    foreign_key: false,
                    ..
                })
            ),
            "{other}: {refused:?}"
        );
        shop.apply(&[gone(1, vec![text(other)])]).await.unwrap();
        let stock = shop.table("stock").clone();
        shop.db.begin(Purpose::Apply).await.unwrap();
        let key = branchline_core::change::Key(vec![text(other)]);
        assert!(shop.db.read(&stock, &[key]).await.unwrap().is_empty());
        shop.db.rollback().await.unwrap();
    }
    let both = [
        put(1, vec![text("a"), Value::Int(1)]),
        put(1, vec![text("A"), Value::Int(2)]),
    ];
    assert!(matches!(
        shop.apply(&both).await,
        Err(DatabaseError::Constraint { .. })
    ));
    assert_eq!(shop.rows("stock").await[0].0, [text("Nail"), Value::Int(1)]);
    // A renamed key arrives as a delete and a put.
    let renamed = [
        gone(1, vec![text("Nail")]),
        put(1, vec![text("nail"), Value::Int(3)]),
    ];
    shop.apply(&renamed).await.unwrap();
    assert_eq!(shop.rows("stock").await[0].0, [text("nail"), Value::Int(3)]);
}

/// An apply gives way to a row that the application holds, soon, and the application is never the one to die.
#[tokio::test]
async fn a_lock_of_the_application_is_waited_for_less_than_a_second() {
    let mut shop = shop(STOCK).await;
    shop.apply(&[
        put(1, vec![text("a"), Value::Int(1)]),
        put(1, vec![text("b"), Value::Int(1)]),
    ])
    .await
    .unwrap();
    shop.app("BEGIN; UPDATE stock SET amount = 5 WHERE sku = 'b'")
        .await;
    let began = Instant::now();
    let both = [
        put(1, vec![text("a"), Value::Int(2)]),
        put(1, vec![text("b"), Value::Int(2)]),
    ];
    let busy = shop.apply(&both).await;
    assert!(matches!(busy, Err(DatabaseError::Busy(_))), "{busy:?}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    // Nothing of ours is left in its way.
    shop.app("UPDATE stock SET amount = 5 WHERE sku = 'a'; COMMIT")
        .await;
    shop.apply(&both).await.unwrap();
    assert_eq!(shop.rows("stock").await[0].0, [text("a"), Value::Int(2)]);
}

/// Locks in the opposite order: we give way, the application commits.
#[tokio::test]
async fn the_application_does_not_die_of_our_locks() {
    let mut shop = shop(STOCK).await;
    shop.app("INSERT INTO stock VALUES ('a', 1), ('b', 1)")
        .await;
    shop.take().await;
    shop.app("BEGIN; UPDATE stock SET amount = 5 WHERE sku = 'b'")
        .await;
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db
        .write(&shop.schema, &[put(1, vec![text("a"), Value::Int(2)])])
        .await
        .unwrap();
    let schema = shop.schema.clone();
    let (app, db) = (&mut shop.app, &mut shop.db);
    let (local, ours) = tokio::join!(
        app.query_drop("UPDATE stock SET amount = 6 WHERE sku = 'a'"),
        async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let ours = db
                .write(&schema, &[put(1, vec![text("b"), Value::Int(2)])])
                .await;
            db.rollback().await.unwrap();
            ours
        }
    );
    assert!(matches!(ours, Err(DatabaseError::Busy(_))), "{ours:?}");
    local.unwrap();
    shop.app("COMMIT").await;
    assert_eq!(shop.take().await.len(), 2);
}

/// A transaction in which a statement failed is never made durable.
#[tokio::test]
async fn what_failed_half_way_cannot_be_committed() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL UNIQUE)").await;
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.set_meta("mark", Some(b"x")).await.unwrap();
    let twice = [
        put(1, vec![Value::Int(1), Value::Int(7)]),
        put(1, vec![Value::Int(2), Value::Int(7)]),
    ];
    assert!(shop.db.write(&shop.schema, &twice).await.is_err());
    assert!(shop.db.commit().await.is_err());
    shop.db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(shop.db.meta("mark").await.unwrap(), None);
    shop.db.commit().await.unwrap();
}

/// A future that is dropped in the middle of a statement: its transaction is undone, its locks are gone.
#[tokio::test]
async fn a_dropped_write_is_undone_by_the_next_begin() {
    let mut shop = shop(STOCK).await;
    shop.app("INSERT INTO stock VALUES ('a', 1), ('b', 1)")
        .await;
    shop.take().await;
    let mut other = connect(&shop.url).await;
    other
        .query_drop("BEGIN; UPDATE stock SET amount = 9 WHERE sku = 'b'")
        .await
        .unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db
        .write(&shop.schema, &[put(1, vec![text("a"), Value::Int(7)])])
        .await
        .unwrap();
    let schema = shop.schema.clone();
    let waits = [put(1, vec![text("b"), Value::Int(7)])];
    let cut = tokio::time::timeout(Duration::from_millis(30), shop.db.write(&schema, &waits)).await;
    assert!(cut.is_err());
    shop.db.begin(Purpose::Apply).await.unwrap();
    other
        .query_drop(
            "SET innodb_lock_wait_timeout = 5; UPDATE stock SET amount = 9 WHERE sku = 'a'; COMMIT",
        )
        .await
        .unwrap();
    shop.db.commit().await.unwrap();
    assert_eq!(shop.rows("stock").await[0].0, [text("a"), Value::Int(9)]);
}

/// Rows without NULL in their references, in the worst order; swaps of unique values that must not be NULL.
#[tokio::test]
async fn references_and_unique_values_that_must_not_be_null() {
    let tables = "CREATE TABLE tree (id INT PRIMARY KEY, up INT NOT NULL, code VARCHAR(40) NOT NULL UNIQUE, FOREIGN KEY (up) REFERENCES tree (id))";
    let mut shop = shop(tables).await;
    let node =
        |id: i64, up: i64, code: &str| put(1, vec![Value::Int(id), Value::Int(up), text(code)]);
    shop.apply(&[node(3, 2, "c"), node(2, 1, "b"), node(1, 1, "a")])
        .await
        .unwrap();
    shop.apply(&[
        node(3, 2, "a"),
        node(2, 1, "c"),
        node(1, 1, "b"),
        node(4, 3, "d"),
    ])
    .await
    .unwrap();
    assert_eq!(
        shop.see("SELECT GROUP_CONCAT(code ORDER BY id) FROM tree")
            .await,
        [Some("b,c,a,d".into())]
    );
    shop.apply(&[2, 3, 4].map(|id| gone(1, vec![Value::Int(id)])))
        .await
        .unwrap();
    assert_eq!(shop.rows("tree").await.len(), 1);
    assert_eq!(shop.take().await, []);
}

/// A row that the server takes in no statement is the row's fault, not the connection's.
#[tokio::test]
async fn a_row_larger_than_the_server_takes_does_not_fit() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY, b LONGBLOB)").await;
    let row = |bytes: usize| put(1, vec![Value::Int(1), Value::Bytes(vec![7; bytes])]);
    shop.apply(&[row(8 << 20)]).await.unwrap();
    let limit = shop
        .see("SELECT @@max_allowed_packet")
        .await
        .remove(0)
        .unwrap();
    let refused = shop.apply(&[row(limit.parse().unwrap())]).await;
    assert!(
        matches!(refused, Err(DatabaseError::Mismatch { .. })),
        "{refused:?}"
    );
    assert_eq!(shop.rows("t").await.len(), 1);
    shop.apply(&[row(3)]).await.unwrap();
    assert_eq!(shop.take().await, []);
}

/// A child that the application has inserted but not committed cannot be looked up; the update that it would follow
/// must not be made before it can.
#[tokio::test]
async fn an_update_waits_for_children_that_are_not_committed() {
    let mut shop = shop(
        "CREATE TABLE areas (id INT PRIMARY KEY, code INT NOT NULL UNIQUE);
         CREATE TABLE shops (id INT PRIMARY KEY, code INT,
             FOREIGN KEY (code) REFERENCES areas (code) ON UPDATE CASCADE)",
    )
    .await;
    let areas = shop.id("areas");
    let area = |code| put(areas, vec![Value::Int(1), Value::Int(code)]);
    shop.apply(&[area(100)]).await.unwrap();
    shop.app("BEGIN; INSERT INTO shops VALUES (1, 100)").await;
    let busy = shop.apply(&[area(300)]).await;
    assert!(matches!(busy, Err(DatabaseError::Busy(_))), "{busy:?}");
    shop.app("COMMIT").await;
    let refused = shop.apply(&[area(300)]).await;
    assert!(
        matches!(
            refused,
            Err(DatabaseError::Constraint {
                foreign_key: true,
                ..
            })
        ),
        "{refused:?}"
    );
    let child = &shop.rows("shops").await[0];
    assert_eq!(child.0, [Value::Int(1), Value::Int(100)]);
}

/// What the application's own trigger says no to is a row that does not fit (P6), by whatever SQLSTATE and number.
#[tokio::test]
async fn a_row_that_the_applications_own_trigger_refuses_does_not_fit() {
    let mut shop = shop(STOCK).await;
    let mut app = connect(&shop.url).await;
    app.query_drop(
        "CREATE TRIGGER refuses BEFORE INSERT ON stock FOR EACH ROW BEGIN \
         IF NEW.sku = 'plain' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not here'; END IF; \
         IF NEW.sku = 'numbered' THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 31000, MESSAGE_TEXT = 'not here'; END IF; \
         IF NEW.sku = 'coded' THEN SIGNAL SQLSTATE 'XY123' SET MYSQL_ERRNO = 31001, MESSAGE_TEXT = 'not here'; END IF; END",
    )
    .await
    .unwrap();
    for name in ["plain", "numbered", "coded"] {
        let refused = shop.apply(&[put(1, vec![text(name), Value::Int(1)])]).await;
        assert!(
            matches!(refused, Err(DatabaseError::Constraint { .. })),
            "{name}: {refused:?}"
        );
    }
}
