//! Applying beside the application.

use std::time::Duration;

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_core::value::Value;

use super::office::{client, int, row, shop};

#[tokio::test]
async fn an_update_that_commits_while_the_apply_waits_is_seen_afterwards() {
    let mut shop =
        shop("CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'old')")
            .await;
    let table = shop.table("t");
    let local = client(&shop.url).await;
    local
        .batch_execute("BEGIN; UPDATE t SET name = 'local' WHERE id = 1")
        .await
        .unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    let effects = [(table.id, Effect::Put(row(1, "remote")))];
    let commit = async {
        // The apply waits for the row's lock; the server says so.
        let blocked =
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
        while shop
            .app
            .query_one(blocked, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        local.batch_execute("COMMIT").await.unwrap();
    };
    let (written, ()) = tokio::join!(shop.db.write(&shop.schema, &effects), commit);
    written.unwrap();
    let captured = shop
        .db
        .captured(&table, Some(&[int(1), int(2)]))
        .await
        .unwrap();
    assert_eq!(captured.into_iter().collect::<Vec<_>>(), [int(1)]);
    shop.db.rollback().await.unwrap();
    let name: String = shop
        .app
        .query_one("SELECT name FROM t", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(name, "local");
}

#[tokio::test]
async fn a_row_locked_for_long_makes_the_apply_busy() {
    let mut shop =
        shop("CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'old')")
            .await;
    let table = shop.table("t");
    let local = client(&shop.url).await;
    local
        .batch_execute("BEGIN; UPDATE t SET name = 'local' WHERE id = 1")
        .await
        .unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    let failed = shop
        .db
        .write(&shop.schema, &[(table.id, Effect::Put(row(1, "remote")))])
        .await;
    assert!(matches!(failed, Err(DatabaseError::Busy(_))), "{failed:?}");
    assert!(
        shop.db.commit().await.is_err(),
        "a failed transaction cannot be committed"
    );
    shop.db.rollback().await.unwrap();
}

#[tokio::test]
async fn tables_that_refer_to_each_other_are_written_together() {
    let mut shop = shop(
        "CREATE TABLE a (id bigint PRIMARY KEY, b bigint); CREATE TABLE b (id bigint PRIMARY KEY, a bigint REFERENCES a);
         ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b",
    )
    .await;
    let put = |table: &str, id: i64, other: i64| {
        (
            shop.table(table).id,
            Effect::Put(Row(vec![Value::Int(id), Value::Int(other)])),
        )
    };
    let effects = [put("a", 1, 2), put("b", 2, 1)];
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.write(&shop.schema, &effects).await.unwrap();
    shop.db.commit().await.unwrap();
    let count: i64 = shop
        .app
        .query_one(
            "SELECT count(*) FROM a JOIN b ON a.b = b.id AND b.a = a.id",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_cascade_that_would_take_unseen_children_is_refused() {
    let mut shop = shop(
        "CREATE TABLE parent (id bigint PRIMARY KEY);
         CREATE TABLE child (id bigint PRIMARY KEY, parent bigint REFERENCES parent ON DELETE CASCADE);
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (7, 1)",
    )
    .await;
    let (parent, child) = (shop.table("parent").id, shop.table("child").id);
    shop.db.begin(Purpose::Apply).await.unwrap();
    let failed = shop
        .db
        .write(&shop.schema, &[(parent, Effect::Delete(int(1)))])
        .await;
    assert!(
        matches!(
            failed,
            Err(DatabaseError::Constraint {
                foreign_key: true,
                ..
            })
        ),
        "{failed:?}"
    );
    shop.db.begin(Purpose::Apply).await.unwrap();
    let both = [
        (parent, Effect::Delete(int(1))),
        (child, Effect::Delete(int(7))),
    ];
    shop.db.write(&shop.schema, &both).await.unwrap();
    shop.db.commit().await.unwrap();
}

#[tokio::test]
async fn what_would_be_rounded_or_cut_is_refused() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n numeric(6,2), v varchar(3), f real, at timestamp)").await;
    let table = shop.table("t").id;
    let text = |t: &str| Value::Text(t.into());
    let good = [
        Value::Int(1),
        text("1.500"),
        text("abc"),
        Value::Float(0.1),
        text("2024-01-01 00:00:00.123456"),
    ];
    let bad = [
        (1, text("1.005")),
        (2, text("ab  ")),
        (3, Value::Float(0.1 + 1e-9)),
        (4, text("2024-01-01 00:00:00.1234567")),
    ];
    for (column, value) in bad {
        let mut values = good.to_vec();
        values[column] = value;
        shop.db.begin(Purpose::Apply).await.unwrap();
        let failed = shop
            .db
            .write(&shop.schema, &[(table, Effect::Put(Row(values)))])
            .await;
        assert!(
            matches!(failed, Err(DatabaseError::Mismatch { .. })),
            "column {column}: {failed:?}"
        );
    }
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db
        .write(&shop.schema, &[(table, Effect::Put(Row(good.to_vec())))])
        .await
        .unwrap();
    shop.db.commit().await.unwrap();
}
