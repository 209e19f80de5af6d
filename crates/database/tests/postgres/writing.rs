//! Applying beside the application.

use std::time::Duration;

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_core::value::Value;
use branchline_database::postgres::PostgresDatabase;
use branchline_testkit::servers::postgres;
use tokio_postgres::Client;

use super::office::{client, int, row, shop};

/// Commits once the server says that somebody waits for a row.
async fn commits_once_waited_for(app: &Client, local: &Client) {
    let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
    let waits = async || app.query_one(blocked, &[]).await.unwrap().get::<_, i64>(0) > 0;
    while !waits().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    local.batch_execute("COMMIT").await.unwrap();
}

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
    let commit = commits_once_waited_for(&shop.app, &local);
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

/// What the application's own trigger, an index or a deferred check says no to is a row that does not fit (P6), by
/// whatever SQLSTATE.
#[tokio::test]
async fn a_row_that_the_applications_own_trigger_refuses_does_not_fit() {
    let raise = |code: &str| format!("RAISE EXCEPTION 'not here: %', NEW.name {code}");
    let trigger = |name: &str, rest: &str, says: &str| {
        format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.name = '{name}' THEN {says}; END IF; RETURN NEW; END $$; \
             CREATE {rest} ON t {} FOR EACH ROW EXECUTE FUNCTION {name}();",
            if rest.contains("CONSTRAINT") {
                "DEFERRABLE INITIALLY DEFERRED"
            } else {
                ""
            }
        )
    };
    let sql = [
        "CREATE TABLE t (id bigint PRIMARY KEY, name text); CREATE INDEX ON t (name);".to_owned(),
        trigger("plain", "TRIGGER plain AFTER INSERT", &raise("")),
        trigger(
            "coded",
            "TRIGGER coded AFTER INSERT",
            &raise("USING ERRCODE = 'XY123'"),
        ),
        trigger("late", "CONSTRAINT TRIGGER late AFTER INSERT", &raise("")),
        trigger(
            "asserts",
            "TRIGGER asserts AFTER INSERT",
            "ASSERT false, 'never'",
        ),
    ];
    let mut shop = shop(&sql.concat()).await;
    let table = shop.table("t");
    // No index entry of PostgreSQL's takes a text that stays so long when it is compressed.
    let long: String = (1..4000u64)
        .map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_string())
        .collect();
    for name in ["plain", "coded", "late", "asserts", &long] {
        shop.db.begin(Purpose::Apply).await.unwrap();
        let effects = [(table.id, Effect::Put(row(1, name)))];
        let written = shop.db.write(&shop.schema, &effects).await;
        let done = match written {
            Ok(_) => shop.db.commit().await,
            Err(error) => Err(error),
        };
        let shown = &name[..name.len().min(10)];
        assert!(
            matches!(done, Err(DatabaseError::Constraint { .. })),
            "{shown}: {done:?}"
        );
        shop.db.rollback().await.unwrap();
    }
}

/// A server that lets nobody into a database has refused: that is no bug.
#[tokio::test]
async fn a_database_that_takes_no_connections_has_refused() {
    let url = postgres().fresh_database();
    let name = url.rsplit('/').next().unwrap();
    let close = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false");
    postgres().sql("postgres", &[&close]);
    let refused = PostgresDatabase::connect(&url).await;
    let error = refused.err().expect("nobody is let in");
    assert!(!matches!(error, DatabaseError::Other(_)), "{error:?}");
    assert!(error.to_string().contains(name), "{error}");
}

#[tokio::test]
async fn many_rows_are_put_whether_they_are_new_or_not() {
    let mut shop = shop(
        "CREATE TABLE t (id bigint PRIMARY KEY, b boolean, f double precision, g real, raw bytea, name text, n numeric)",
    )
    .await;
    let table = shop.table("t");
    let texts = [
        "",
        "\\N",
        "\\.",
        "\\",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "\\t",
        "\u{b}\u{8}",
        "'\"",
        "\u{1F600}",
        "NULL",
    ];
    let floats = [
        0.0,
        -0.0,
        0.1,
        1e300,
        -5e-324,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let rows = |shift: usize| -> Vec<Row> {
        (0..200_usize)
            .map(|at| {
                let turn = at + shift;
                let or_null = |value: Value, every: usize| {
                    if turn.is_multiple_of(every) {
                        Value::Null
                    } else {
                        value
                    }
                };
                Row(vec![
                    Value::Int(at as i64 - 100),
                    or_null(Value::Bool(turn.is_multiple_of(2)), 7),
                    or_null(Value::Float(floats[turn % floats.len()]), 11),
                    or_null(
                        Value::Float([0.5, 0.1, f64::NAN, f64::INFINITY][turn % 4]),
                        13,
                    ),
                    or_null(Value::Bytes((0..turn).map(|byte| byte as u8).collect()), 17),
                    or_null(Value::Text(texts[turn % texts.len()].to_owned()), 19),
                    or_null(
                        Value::Text(
                            ["0", "12345678901234567890.5", "NaN", "-0.001"][turn % 4].to_owned(),
                        ),
                        23,
                    ),
                ])
            })
            .collect()
    };
    // New ones, the same ones, other values, and new ones beside one that is there.
    for (shift, gone) in [(0, 0), (0, 0), (5, 0), (9, 199)] {
        shop.sql(&format!("SET branchline.applying TO '1'; DELETE FROM t WHERE id < {gone} - 100; RESET branchline.applying"))
            .await;
        let wanted = rows(shift);
        let effects: Vec<_> = wanted
            .iter()
            .map(|row| (table.id, Effect::Put(row.clone())))
            .collect();
        shop.db.begin(Purpose::Apply).await.unwrap();
        shop.db.write(&shop.schema, &effects).await.unwrap();
        shop.db.commit().await.unwrap();
        let keys: Vec<_> = wanted.iter().map(|row| table.key_of(row)).collect();
        shop.db.begin(Purpose::Read).await.unwrap();
        let found = shop.db.read(&table, &keys).await.unwrap();
        shop.db.commit().await.unwrap();
        assert_eq!(found.len(), wanted.len());
        for row in &wanted {
            let here = &found[&table.key_of(row)];
            assert_eq!(
                here.digest(&table),
                row.digest(&table),
                "{here:?} is not {row:?}"
            );
        }
    }
    assert_eq!(
        shop.taken().await.len(),
        0,
        "what is applied is not captured"
    );
}

#[tokio::test]
async fn many_rows_wait_for_an_insert_that_is_not_committed() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, name text)").await;
    let table = shop.table("t");
    let local = client(&shop.url).await;
    local
        .batch_execute("BEGIN; INSERT INTO t VALUES (50, 'local')")
        .await
        .unwrap();
    let effects: Vec<_> = (1..=100)
        .map(|id| (table.id, Effect::Put(row(id, "remote"))))
        .collect();
    shop.db.begin(Purpose::Apply).await.unwrap();
    let commit = commits_once_waited_for(&shop.app, &local);
    let (written, ()) = tokio::join!(shop.db.write(&shop.schema, &effects), commit);
    written.unwrap();
    let keys: Vec<_> = (1..=100).map(int).collect();
    let captured = shop.db.captured(&table, Some(&keys)).await.unwrap();
    assert_eq!(captured.into_iter().collect::<Vec<_>>(), [int(50)]);
    shop.db.rollback().await.unwrap();
}

/// A table that is not shared may begin to refer to one that is, at any time.
#[tokio::test]
async fn a_delete_never_follows_a_foreign_key_that_came_later() {
    for action in ["CASCADE", "SET NULL"] {
        let mut shop = shop(
            "CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        )
        .await;
        let table = shop.table("t");
        let delete = |id| [(table.id, Effect::Delete(int(id)))];
        shop.db.begin(Purpose::Apply).await.unwrap();
        shop.db.write(&shop.schema, &delete(3)).await.unwrap();
        shop.db.commit().await.unwrap();
        shop.sql(&format!(
            "CREATE TABLE own (t bigint REFERENCES t ON DELETE {action}); INSERT INTO own VALUES (1)"
        ))
        .await;
        shop.db.begin(Purpose::Apply).await.unwrap();
        let refused = shop.db.write(&shop.schema, &delete(1)).await;
        assert!(
            matches!(
                refused,
                Err(DatabaseError::Constraint {
                    foreign_key: true,
                    ..
                })
            ),
            "{action}: {refused:?}"
        );
        shop.db.rollback().await.unwrap();
        shop.db.begin(Purpose::Apply).await.unwrap();
        shop.db.write(&shop.schema, &delete(2)).await.unwrap();
        shop.db.commit().await.unwrap();
        let kept = shop.app.query_one("SELECT t FROM own", &[]).await.unwrap();
        assert_eq!(kept.get::<_, i64>(0), 1);
    }
}

/// So may what changes with a value that it refers to; that is looked up again when the tables are looked at.
#[tokio::test]
async fn an_update_never_follows_a_foreign_key_that_was_seen() {
    let mut shop = shop(
        "CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    )
    .await;
    let table = shop.table("t");
    let put = |id, name| [(table.id, Effect::Put(row(id, name)))];
    shop.sql("CREATE TABLE own (t text); INSERT INTO own VALUES ('a')")
        .await;
    shop.db.begin(Purpose::Take).await.unwrap();
    shop.db.shape(&shop.schema).await.unwrap();
    shop.db.commit().await.unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.write(&shop.schema, &put(2, "c")).await.unwrap();
    shop.db.commit().await.unwrap();
    shop.sql("ALTER TABLE own ADD FOREIGN KEY (t) REFERENCES t (name) ON UPDATE CASCADE")
        .await;
    shop.db.begin(Purpose::Take).await.unwrap();
    shop.db.shape(&shop.schema).await.unwrap();
    shop.db.commit().await.unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    let refused = shop.db.write(&shop.schema, &put(1, "z")).await;
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
    shop.db.rollback().await.unwrap();
}

/// PostgreSQL lets no update set such a column, so rows that leave it alone must pass, and others must say why not.
#[tokio::test]
async fn a_column_that_is_always_generated_takes_rows_from_elsewhere() {
    for more in ["name text", "name text UNIQUE"] {
        let mut shop = shop(&format!(
            "CREATE TABLE t (id bigint PRIMARY KEY, {more}, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)"
        ))
        .await;
        let table = shop.table("t");
        let put = |id, name: &str, seq| {
            let mut row = row(id, name);
            row.0.push(Value::Int(seq));
            (table.id, Effect::Put(row))
        };
        for effects in [
            [put(1, "a", 70), put(2, "b", 71)],
            [put(1, "b", 70), put(2, "a", 71)],
        ] {
            shop.db.begin(Purpose::Apply).await.unwrap();
            shop.db.write(&shop.schema, &effects).await.unwrap();
            shop.db.commit().await.unwrap();
        }
        shop.db.begin(Purpose::Apply).await.unwrap();
        let refused = shop.db.write(&shop.schema, &[put(1, "c", 72)]).await;
        let told = refused.unwrap_err();
        assert!(
            matches!(&told, DatabaseError::Constraint { message, foreign_key: false, .. } if message.contains("\"seq\"")),
            "{told}"
        );
        shop.db.rollback().await.unwrap();
        let rows = shop
            .app
            .query("SELECT name || seq FROM t ORDER BY id", &[])
            .await
            .unwrap();
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(rows, ["b70", "a71"]);
    }
}

#[tokio::test]
async fn a_table_of_a_key_and_an_always_generated_column_takes_its_rows_again() {
    let mut shop =
        shop("CREATE TABLE t (id bigint PRIMARY KEY, seq bigint GENERATED ALWAYS AS IDENTITY)")
            .await;
    let table = shop.table("t");
    let put = |seq| {
        [(
            table.id,
            Effect::Put(Row(vec![Value::Int(1), Value::Int(seq)])),
        )]
    };
    for _ in 0..2 {
        shop.db.begin(Purpose::Apply).await.unwrap();
        shop.db.write(&shop.schema, &put(7)).await.unwrap();
        shop.db.commit().await.unwrap();
    }
    shop.db.begin(Purpose::Apply).await.unwrap();
    assert!(shop.db.write(&shop.schema, &put(8)).await.is_err());
    shop.db.rollback().await.unwrap();
}
