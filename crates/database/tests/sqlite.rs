//! SQLite's own behaviour; what every engine must do is in the conformance suite.
//!
//! The application is a second, plain connection to the same file: no functions loaded, its own pragmas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, DatabaseError, Entry, First, Purpose, Taken};
use branchline_core::schema::{Column, ForeignKey, Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::sqlite::{SqliteDatabase, watch};
use rusqlite::Connection;
use tempfile::TempDir;

const SHOP: &str = "
    CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE);
    CREATE TABLE invoice (
        branch TEXT NOT NULL, number INTEGER NOT NULL,
        customer INTEGER REFERENCES customer(id) ON DELETE CASCADE, total DECIMAL(10,2),
        PRIMARY KEY (branch, number));
    CREATE TABLE line (id INTEGER PRIMARY KEY, branch TEXT, number INTEGER,
        FOREIGN KEY (branch, number) REFERENCES invoice);
    CREATE VIEW names AS SELECT name FROM customer;
    CREATE INDEX by_name ON customer(name);
";

/// An office: the file, the application's connection and ours.
struct Office {
    directory: TempDir,
    app: Connection,
    ours: SqliteDatabase,
    schema: Schema,
}

impl Office {
    async fn new(sql: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let app = Connection::open(directory.path().join("shop.db")).unwrap();
        app.execute_batch("PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000")
            .unwrap();
        app.execute_batch(sql).unwrap();
        let mut ours =
            SqliteDatabase::open(directory.path().join("shop.db").to_str().unwrap(), false)
                .unwrap();
        let inspection = ours.inspect().await.unwrap();
        let mut schema = Schema {
            version: 1,
            tables: inspection.tables,
        };
        schema.sort_parents_first();
        for (table, id) in schema.tables.iter_mut().zip(1..) {
            table.id = id;
        }
        ours.prepare().await.unwrap();
        ours.install(&schema).await.unwrap();
        Self {
            directory,
            app,
            ours,
            schema,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("shop.db")
    }

    fn does(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap();
    }

    fn table(&self, name: &str) -> Table {
        self.schema.table_named(name).unwrap().clone()
    }

    fn id(&self, name: &str) -> u32 {
        self.table(name).id
    }

    async fn take(&mut self) -> Vec<Taken> {
        self.take_by(1000).await.concat()
    }

    async fn take_by(&mut self, limit: usize) -> Vec<Vec<Taken>> {
        let mut portions = Vec::new();
        self.ours.begin(Purpose::Take).await.unwrap();
        loop {
            let portion = self.ours.take(&self.schema, limit).await.unwrap();
            assert_eq!(portion.open, portion.more);
            portions.push(portion.changes);
            if !portion.open {
                break;
            }
        }
        self.ours.commit().await.unwrap();
        portions
    }

    async fn apply(&mut self, effects: &[(u32, Effect)]) -> Result<(), DatabaseError> {
        self.ours.begin(Purpose::Apply).await?;
        let result = match self.ours.write(&self.schema, effects).await {
            Ok(()) => self.ours.commit().await,
            refused => refused,
        };
        self.ours.rollback().await?;
        result
    }

    fn texts(&self, sql: &str) -> Vec<String> {
        self.app
            .prepare(sql)
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn customer(id: i64, name: &str, email: &str) -> Row {
    Row(vec![Value::Int(id), text(name), text(email)])
}

fn key(id: i64) -> Key {
    Key(vec![Value::Int(id)])
}

/// (key, what became of it, how it stood before), sorted.
fn summary(office: &Office, taken: &[Taken]) -> Vec<(Key, bool, First)> {
    let mut summary: Vec<_> = taken
        .iter()
        .map(|taken| {
            let table = office.schema.table(taken.table).unwrap();
            (
                taken.effect.key(table),
                taken.effect.row().is_some(),
                taken.first,
            )
        })
        .collect();
    summary.sort();
    summary
}

fn dump(app: &Connection) -> Vec<(String, String, Option<String>)> {
    app.prepare("SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[tokio::test]
async fn uninstall_leaves_the_schema_as_it_was() {
    let fresh = Connection::open_in_memory().unwrap();
    fresh.execute_batch(SHOP).unwrap();
    let mut office = Office::new(SHOP).await;
    assert_ne!(dump(&office.app), dump(&fresh));
    office.does("INSERT INTO customer VALUES (1, 'Ann', 'a@x'); ANALYZE");
    office.ours.uninstall().await.unwrap();
    office.does("DROP TABLE IF EXISTS sqlite_stat1; DROP TABLE IF EXISTS sqlite_stat4");
    assert_eq!(dump(&office.app), dump(&fresh));
    office.ours.uninstall().await.unwrap();
}

#[tokio::test]
async fn inserts_updates_and_deletes_are_taken_net() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', 'b@x'), (3, 'Cid', 'c@x');
         UPDATE customer SET name = 'Anna' WHERE id = 1;
         DELETE FROM customer WHERE id = 3;",
    );
    assert_eq!(office.ours.backlog().await.unwrap().writes, 5);
    let before = office.ours.backlog().await.unwrap().oldest.unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64;
    assert!(
        (now - before.0).abs() < 60_000_000,
        "{before:?} against {now}"
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Inserted),
            (key(2), true, First::Inserted),
            (key(3), false, First::Inserted)
        ]
    );
    assert_eq!(taken[0].effect, Effect::Put(customer(1, "Anna", "a@x")));
    assert_eq!(office.ours.backlog().await.unwrap().writes, 0);
    office.does("UPDATE customer SET name = 'Bo' WHERE id = 2; DELETE FROM customer WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(2), true, First::Existing)
        ]
    );
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn a_rolled_back_write_is_not_captured() {
    let mut office = Office::new(SHOP).await;
    office.does("BEGIN; INSERT INTO customer VALUES (1, 'Ann', NULL); ROLLBACK");
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn keys_that_swap_are_two_existing_rows() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL), (2, 'Bob', NULL)");
    office.take().await;
    office.does(
        "BEGIN; UPDATE customer SET id = 0 WHERE id = 1; UPDATE customer SET id = 1 WHERE id = 2;
         UPDATE customer SET id = 2 WHERE id = 0; COMMIT",
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(0), false, First::Inserted),
            (key(1), true, First::Existing),
            (key(2), true, First::Existing)
        ]
    );
}

#[tokio::test]
async fn rows_that_or_replace_removes_are_captured() {
    let mut office = Office::new(SHOP).await;
    office
        .does("INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', 'b@x'), (3, 'Cid', 'c@x'), (4, 'Dan', 'd@x')");
    office.take().await;
    office.does("INSERT OR REPLACE INTO customer VALUES (1, 'Eve', 'b@x')");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Existing),
            (key(2), false, First::Existing)
        ]
    );
    office.does("UPDATE OR REPLACE customer SET id = 4, email = 'c@x' WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(3), false, First::Existing),
            (key(4), true, First::Existing)
        ]
    );
}

#[tokio::test]
async fn conflict_clauses_do_not_disturb_the_capture() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', 'a@x');
         INSERT OR IGNORE INTO customer VALUES (1, 'Bad', 'z@x');
         INSERT OR IGNORE INTO customer VALUES (2, 'Bob', 'b@x');
         INSERT INTO customer VALUES (1, 'Anna', 'a@x') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
         UPDATE OR IGNORE customer SET email = 'a@x' WHERE id = 2;",
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Inserted),
            (key(2), true, First::Inserted)
        ]
    );
    assert_eq!(
        office.texts("SELECT name FROM customer ORDER BY id"),
        ["Anna", "Bob"]
    );
}

#[tokio::test]
async fn cascades_of_the_application_are_captured() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL); INSERT INTO invoice VALUES ('b1', 7, 1, 5.1)");
    office.take().await;
    office.does("DELETE FROM customer WHERE id = 1");
    let taken = office.take().await;
    let invoice = Key(vec![text("b1"), Value::Int(7)]);
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (invoice, false, First::Existing)
        ]
    );
}

#[tokio::test]
async fn what_is_applied_is_not_captured_and_local_writes_before_it_are_seen() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    office
        .apply(&[(id, Effect::Put(customer(1, "Ann", "a@x")))])
        .await
        .unwrap();
    office
        .apply(&[
            (id, Effect::Put(customer(1, "Anna", "a@x"))),
            (id, Effect::Put(customer(2, "Bob", "b@x"))),
        ])
        .await
        .unwrap();
    office.apply(&[(id, Effect::Delete(key(2)))]).await.unwrap();
    assert_eq!(office.texts("SELECT name FROM customer"), ["Anna"]);
    assert!(office.take().await.is_empty());
    office.does("UPDATE customer SET name = 'Eve'");
    let table = office.table("customer");
    office.ours.begin(Purpose::Apply).await.unwrap();
    let captured = office
        .ours
        .captured(&table, Some(&[key(1), key(2)]))
        .await
        .unwrap();
    assert_eq!(captured.into_iter().collect::<Vec<_>>(), [key(1)]);
    office.ours.rollback().await.unwrap();
    assert_eq!(office.take().await.len(), 1, "the marker is gone");
}

#[tokio::test]
async fn taking_pages_by_limit_and_gives_back_what_was_not_fetched() {
    let mut office = Office::new(SHOP).await;
    for id in 1..=25 {
        office.does(&format!("INSERT INTO customer VALUES ({id}, 'c', NULL)"));
    }
    office.does("UPDATE customer SET name = 'd'");
    office.ours.begin(Purpose::Take).await.unwrap();
    let portion = office.ours.take(&office.schema, 10).await.unwrap();
    assert!(portion.open && portion.changes.len() == 10);
    let left = office
        .ours
        .captured(&office.table("customer"), None)
        .await
        .unwrap();
    assert_eq!(left.len(), 15);
    office.ours.rollback().await.unwrap();
    assert_eq!(
        office.ours.backlog().await.unwrap().writes,
        50,
        "rolled back, nothing is taken"
    );
    office.ours.begin(Purpose::Take).await.unwrap();
    assert_eq!(
        office
            .ours
            .take(&office.schema, 10)
            .await
            .unwrap()
            .changes
            .len(),
        10
    );
    office.ours.commit().await.unwrap();
    let portions = office.take_by(6).await;
    let sizes: Vec<_> = portions.iter().map(Vec::len).collect();
    assert_eq!(sizes, [6, 6, 3]);
    let keys: Vec<_> = portions
        .concat()
        .iter()
        .map(|taken| taken.effect.key(&office.table("customer")))
        .collect();
    assert_eq!(keys, (11..=25).map(key).collect::<Vec<_>>(), "oldest first");
    assert!(
        portions
            .concat()
            .iter()
            .all(|taken| taken.first == First::Inserted)
    );
}

#[tokio::test]
async fn recapture_offers_every_row_or_the_given_ones() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    office
        .apply(&[
            (id, Effect::Put(customer(1, "A", "a"))),
            (id, Effect::Put(customer(2, "B", "b"))),
        ])
        .await
        .unwrap();
    let table = office.table("customer");
    office.ours.recapture(&table, None).await.unwrap();
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Unknown),
            (key(2), true, First::Unknown)
        ]
    );
    office
        .ours
        .recapture(&table, Some(&[key(2), key(9)]))
        .await
        .unwrap();
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(2), true, First::Existing),
            (key(9), false, First::Existing)
        ]
    );
}

#[tokio::test]
async fn triggers_of_the_application_fire_on_what_is_applied_unless_silenced() {
    let mut office = Office::new(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY); CREATE TABLE tally (id INTEGER PRIMARY KEY, sold TEXT);
         INSERT INTO tally VALUES (1, '');
         CREATE TRIGGER count AFTER INSERT ON sale BEGIN UPDATE tally SET sold = sold || '.'; END;",
    )
    .await;
    let sale = |id| (1, Effect::Put(Row(vec![Value::Int(id)])));
    office.apply(&[sale(1)]).await.unwrap();
    assert_eq!(office.texts("SELECT sold FROM tally"), ["."]);
    office.ours.silence_triggers(true).unwrap();
    office.apply(&[sale(2)]).await.unwrap();
    assert_eq!(office.texts("SELECT sold FROM tally"), ["."]);
    assert!(office.take().await.is_empty());
    office.does("INSERT INTO sale VALUES (3)");
    assert_eq!(
        office.take().await.len(),
        2,
        "the application's connection is not concerned"
    );
    assert_eq!(office.texts("SELECT sold FROM tally"), [".."]);
}

#[tokio::test]
async fn unique_values_swap_within_one_write_and_strangers_are_never_touched() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    let put = |n, name: &str, email: &str| (id, Effect::Put(customer(n, name, email)));
    office
        .apply(&[put(1, "A", "a"), put(2, "B", "b"), put(3, "C", "c")])
        .await
        .unwrap();
    office
        .apply(&[put(1, "A", "b"), put(2, "B", "a")])
        .await
        .unwrap();
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["b", "a", "c"]
    );
    office
        .apply(&[put(1, "A", "a"), put(2, "B", "z")])
        .await
        .unwrap();
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["a", "z", "c"]
    );
    let refused = office.apply(&[put(4, "D", "c")]).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: false, .. } if table == "customer"),
        "{refused:?}"
    );
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["a", "z", "c"]
    );
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn a_table_that_replaces_by_definition_does_not_when_we_write() {
    let mut office = Office::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE ON CONFLICT REPLACE)",
    )
    .await;
    office.does("INSERT INTO t VALUES (1, 'x')");
    let refused = office
        .apply(&[(1, Effect::Put(Row(vec![Value::Int(2), text("x")])))])
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            DatabaseError::Constraint {
                foreign_key: false,
                ..
            }
        ),
        "{refused:?}"
    );
    office.take().await;
    office.does("INSERT INTO t VALUES (3, 'x')");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(3), true, First::Inserted)
        ]
    );
}

#[tokio::test]
async fn a_missing_parent_is_named_at_the_commit_and_order_within_a_write_is_free() {
    let mut office = Office::new(SHOP).await;
    let (parent, child) = (office.id("customer"), office.id("invoice"));
    let invoice = |to: i64| {
        Effect::Put(Row(vec![
            text("b1"),
            Value::Int(7),
            Value::Int(to),
            text("5.10"),
        ]))
    };
    let refused = office.apply(&[(child, invoice(9))]).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: true, message } if table == "invoice" && message.contains("customer")),
        "{refused:?}"
    );
    office
        .apply(&[
            (child, invoice(1)),
            (parent, Effect::Put(customer(1, "A", "a"))),
        ])
        .await
        .unwrap();
    let invoice_key = Effect::Delete(Key(vec![text("b1"), Value::Int(7)]));
    office
        .apply(&[(parent, Effect::Delete(key(1))), (child, invoice_key)])
        .await
        .unwrap();
    assert!(office.texts("SELECT name FROM customer").is_empty());
}

#[tokio::test]
async fn a_delete_never_cascades_to_rows_that_the_deleter_had_not_seen() {
    let mut office = Office::new(SHOP).await;
    let (parent, child) = (office.id("customer"), office.id("invoice"));
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', NULL), (2, 'Bob', NULL); INSERT INTO invoice VALUES ('b1', 7, 1, 5.1);
         INSERT INTO line VALUES (1, 'b1', 7)",
    );
    let refused = office
        .apply(&[(parent, Effect::Delete(key(1)))])
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: true, .. } if table == "invoice"),
        "{refused:?}"
    );
    let moved = Effect::Put(Row(vec![
        text("b1"),
        Value::Int(7),
        Value::Int(2),
        text("5.10"),
    ]));
    office
        .apply(&[(parent, Effect::Delete(key(1))), (child, moved)])
        .await
        .unwrap();
    assert_eq!(office.texts("SELECT branch FROM invoice"), ["b1"]);
    assert_eq!(
        office.texts("SELECT branch FROM line"),
        ["b1"],
        "not cascaded to on the way"
    );
}

#[tokio::test]
async fn loading_does_not_enforce_foreign_keys_and_applying_afterwards_does() {
    let mut office = Office::new(SHOP).await;
    let child = office.id("invoice");
    let orphan = |number| {
        (
            child,
            Effect::Put(Row(vec![
                text("b1"),
                Value::Int(number),
                Value::Int(9),
                text("1.00"),
            ])),
        )
    };
    office.ours.begin(Purpose::Load).await.unwrap();
    office
        .ours
        .write(&office.schema, &[orphan(1)])
        .await
        .unwrap();
    office.ours.commit().await.unwrap();
    assert!(office.take().await.is_empty());
    let refused = office.apply(&[orphan(2)]).await.unwrap_err();
    assert!(
        matches!(
            refused,
            DatabaseError::Constraint {
                foreign_key: true,
                ..
            }
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_dropped_trigger_and_a_new_unique_index_are_noticed_and_repaired() {
    let mut office = Office::new(SHOP).await;
    assert!(
        office
            .ours
            .missing_capture(&office.schema)
            .await
            .unwrap()
            .is_empty()
    );
    let id = office.id("customer");
    office.does(&format!("DROP TRIGGER branchline_capture_{id}_update"));
    assert_eq!(
        office.ours.missing_capture(&office.schema).await.unwrap(),
        [id]
    );
    office.ours.install(&office.schema).await.unwrap();
    assert!(
        office
            .ours
            .missing_capture(&office.schema)
            .await
            .unwrap()
            .is_empty()
    );
    office.does("CREATE UNIQUE INDEX once ON line(branch, number)");
    assert_eq!(
        office.ours.missing_capture(&office.schema).await.unwrap(),
        [office.id("line")]
    );
    let before = dump(&office.app);
    office.ours.install(&office.schema).await.unwrap();
    assert_ne!(dump(&office.app), before);
    let only = Schema {
        version: 2,
        tables: vec![office.table("line")],
    };
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL)");
    office.ours.install(&only).await.unwrap();
    assert_eq!(
        office.texts("SELECT DISTINCT tbl_name FROM sqlite_master WHERE type = 'trigger'"),
        ["line"]
    );
    assert_eq!(
        office.ours.backlog().await.unwrap().writes,
        0,
        "tables no longer shared leave nothing behind"
    );
}

fn extremes() -> Vec<(&'static str, Type, Vec<Value>)> {
    let planes: String = [
        0x1, 0x7f, 0x80, 0x7ff, 0xffff, 0x10000, 0x1f600, 0x2_0000, 0x3_0000, 0xe_0001, 0x10_ffff,
    ]
    .into_iter()
    .filter_map(char::from_u32)
    .collect();
    let ints = |values: &[i64]| values.iter().copied().map(Value::Int).collect();
    let floats = |values: &[f64]| values.iter().copied().map(Value::Float).collect();
    let texts = |values: &[&str]| values.iter().copied().map(text).collect();
    vec![
        (
            "truth",
            Type::Bool,
            vec![Value::Bool(true), Value::Bool(false)],
        ),
        (
            "small",
            Type::Int16,
            ints(&[i16::MIN.into(), i16::MAX.into()]),
        ),
        (
            "medium",
            Type::Int32,
            ints(&[i32::MIN.into(), i32::MAX.into()]),
        ),
        ("large", Type::Int64, ints(&[i64::MIN, i64::MAX, 0])),
        (
            "single",
            Type::Float32,
            floats(&[f64::from(f32::MAX), f64::NAN, f64::INFINITY]),
        ),
        (
            "double",
            Type::Float64,
            floats(&[
                f64::MIN,
                f64::MAX,
                5e-324,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                2.0,
            ]),
        ),
        (
            "exact",
            Type::Decimal { limits: None },
            texts(&[
                "1234567890123456789012345678901234567890",
                "-0.0000000000000000000000000000000000000001",
                "1.50",
                "NaN",
            ]),
        ),
        (
            "limited",
            Type::Decimal {
                limits: Some((40, 2)),
            },
            texts(&["99999999999999999999999999999999999999.99", "7.00"]),
        ),
        (
            "words",
            Type::Text { max: None },
            vec![
                text(&planes),
                text(""),
                text("007"),
                text("1e5"),
                text("a\0b"),
                text("'\""),
            ],
        ),
        ("short", Type::Text { max: Some(3) }, texts(&["€€€", " 1 "])),
        ("fixed", Type::Char { length: 4 }, texts(&["ab", "0012"])),
        (
            "raw",
            Type::Bytes,
            vec![Value::Bytes((0..=255).collect()), Value::Bytes(vec![])],
        ),
        (
            "day",
            Type::Date,
            texts(&["infinity", "-infinity", "0044-03-15 BC", "99999-12-31"]),
        ),
        ("time", Type::Time, texts(&["24:00:00", "00:00:00.000001"])),
        ("timetz", Type::TimeTz, texts(&["23:59:59.999999+15:59"])),
        (
            "moment",
            Type::Timestamp,
            texts(&["infinity", "2024-01-02 03:04:05.123456"]),
        ),
        (
            "instant",
            Type::TimestampTz,
            texts(&["2024-01-02 03:04:05.1+00"]),
        ),
        (
            "span",
            Type::Interval,
            texts(&["1 year 2 mons -3 days +04:05:06.7"]),
        ),
        (
            "unique id",
            Type::Uuid,
            texts(&["00000000-0000-0000-0000-0000000000e5"]),
        ),
        ("json", Type::Json, texts(&["1.50", "123", "{\"a\" : 1}"])),
        ("jsonb", Type::Jsonb, texts(&["1e2", "null"])),
        (
            "colour \"of\" it",
            Type::Enum {
                name: "colour".into(),
                labels: vec!["red".into(), "it's".into(), "5".into()],
            },
            texts(&["red", "it's", "5"]),
        ),
        (
            "many",
            Type::Array(Box::new(Type::Int32)),
            texts(&["{1,2}", "{}"]),
        ),
    ]
}

fn column(name: &str, kind: Type, nullable: bool) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable,
        default: None,
        generated_key: false,
    }
}

fn plain(id: u32, name: &str, columns: Vec<Column>) -> Table {
    Table {
        id,
        name: name.into(),
        columns,
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: false,
    }
}

#[tokio::test]
async fn values_at_the_extremes_come_back_as_they_went_in() {
    let extremes = extremes();
    let mut columns = vec![column("id", Type::Int64, false)];
    columns.extend(
        extremes
            .iter()
            .map(|(name, kind, _)| column(name, kind.clone(), true)),
    );
    let table = plain(1, "every \"type\"", columns);
    let schema = Schema {
        version: 1,
        tables: vec![table.clone()],
    };
    let directory = TempDir::new().unwrap();
    let address = format!("sqlite:{}", directory.path().join("new.db").display());
    assert!(matches!(
        SqliteDatabase::open(&address, false),
        Err(DatabaseError::Unreachable(_))
    ));
    let mut ours = SqliteDatabase::open(&address, true).unwrap();
    ours.prepare().await.unwrap();
    assert_eq!(
        ours.create_tables(&schema).await.unwrap(),
        ["every \"type\""]
    );
    assert!(ours.create_tables(&schema).await.unwrap().is_empty());
    ours.install(&schema).await.unwrap();
    let most = extremes
        .iter()
        .map(|(_, _, values)| values.len())
        .max()
        .unwrap();
    let mut rows = vec![];
    for at in 0..=most {
        let value = |values: &Vec<Value>| values.get(at).cloned().unwrap_or(Value::Null);
        let id = if at == 0 { i64::MIN } else { at as i64 };
        rows.push(Row(std::iter::once(Value::Int(id))
            .chain(extremes.iter().map(|(_, _, v)| value(v)))
            .collect()));
    }
    let effects: Vec<_> = rows
        .iter()
        .map(|row| (1, Effect::Put(row.clone())))
        .collect();
    ours.begin(Purpose::Apply).await.unwrap();
    ours.write(&schema, &effects).await.unwrap();
    ours.commit().await.unwrap();
    let same = |found: &Row, wanted: &Row| {
        for ((found, wanted), column) in found.0.iter().zip(&wanted.0).zip(&table.columns) {
            let nan = |value: &Value| matches!(value, Value::Float(f) if f.is_nan());
            assert!(
                found == wanted || (nan(found) && nan(wanted)),
                "{}: {found:?} {wanted:?}",
                column.name
            );
        }
    };
    let found = ours.chunk(&table, None, 100).await.unwrap();
    assert_eq!(found.len(), rows.len());
    found
        .iter()
        .zip(&rows)
        .for_each(|(found, wanted)| same(found, wanted));
    let after = table.key_of(&rows[1]);
    assert_eq!(ours.chunk(&table, Some(&after), 2).await.unwrap().len(), 2);
    let keys: Vec<_> = rows.iter().map(|row| table.key_of(row)).collect();
    let read = ours.read(&table, &keys).await.unwrap();
    rows.iter()
        .for_each(|row| same(&read[&table.key_of(row)], row));

    let inspected = ours.inspect().await.unwrap();
    assert!(
        inspected.findings.iter().all(|finding| !finding.fatal),
        "{:?}",
        inspected.findings
    );
    let again = &inspected.tables[0];
    assert!(again.columns[0].generated_key);
    for (found, planned) in again.columns.iter().zip(&table.columns) {
        assert!(
            branchline_database::sqlite::compatible(&planned.kind, &found.kind),
            "{}",
            planned.name
        );
        assert_eq!(found.name, planned.name);
    }
}

#[tokio::test]
async fn created_tables_refuse_what_the_plan_refuses() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("new.db");
    let mut ours = SqliteDatabase::open(path.to_str().unwrap(), true).unwrap();
    let mut child = plain(
        2,
        "child",
        vec![
            column("id", Type::Int32, false),
            column("up", Type::Int32, true),
        ],
    );
    child.unique = vec![vec![1]];
    child.foreign_keys = vec![ForeignKey {
        columns: vec![1],
        parent: "parent".into(),
        parent_columns: vec!["id".into()],
        on_delete: "SET NULL".into(),
        on_update: "NO ACTION".into(),
    }];
    let mut parent = plain(
        1,
        "parent",
        vec![
            column("id", Type::Int64, false),
            column("size", Type::Int16, false),
        ],
    );
    parent.columns[1].default = Some(Value::Int(3));
    let schema = Schema {
        version: 1,
        tables: vec![child.clone(), parent.clone()],
    };
    assert_eq!(
        ours.create_tables(&schema).await.unwrap(),
        ["parent", "child"]
    );
    let found = ours.inspect().await.unwrap().tables;
    assert_eq!(found[0].foreign_keys, child.foreign_keys);
    assert_eq!(found[0].unique, child.unique);
    assert_eq!(found[1].columns[1].default, Some(Value::Int(3)));
    let app = Connection::open(&path).unwrap();
    app.execute_batch("INSERT INTO parent(size) VALUES (32767)")
        .unwrap();
    assert!(
        app.execute_batch("INSERT INTO parent(size) VALUES (32768)")
            .is_err()
    );
    child.foreign_keys[0].on_delete = "CASCADE; DROP TABLE parent".into();
    child.name = "evil".into();
    let refused = ours
        .create_tables(&Schema {
            version: 1,
            tables: vec![child],
        })
        .await;
    assert!(
        matches!(refused, Err(DatabaseError::Mismatch { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn inspection_finds_what_will_hurt() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "CREATE TABLE heap (a TEXT);
         CREATE TABLE untyped (id INTEGER PRIMARY KEY, a);
         CREATE TABLE money (id INTEGER PRIMARY KEY, amount DECIMAL(20,2));
         CREATE TABLE folded (code TEXT PRIMARY KEY COLLATE NOCASE NOT NULL);
         CREATE TABLE wide (a INT, b INT, c INT, d INT, e INT, f INT, g INT, h INT, i INT, PRIMARY KEY (a,b,c,d,e,f,g,h,i));
         CREATE TABLE keyless (a TEXT PRIMARY KEY); INSERT INTO keyless VALUES (NULL);
         CREATE VIRTUAL TABLE found USING fts5(body);
         CREATE TABLE good (a TEXT, b INTEGER, twice INTEGER AS (b * 2) STORED, PRIMARY KEY (a, b)) WITHOUT ROWID;
         CREATE TRIGGER tidy AFTER INSERT ON good BEGIN DELETE FROM heap; END;
         CREATE TABLE audited (id INTEGER PRIMARY KEY);
         CREATE TRIGGER audit AFTER INSERT ON audited BEGIN SELECT application_function(NEW.id); END;",
    );
    let inspection = office.ours.inspect().await.unwrap();
    let tables: Vec<_> = inspection
        .tables
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    assert_eq!(tables, ["customer", "good", "invoice", "line"]);
    let mut fatal: Vec<_> = inspection
        .findings
        .iter()
        .filter(|found| found.fatal)
        .map(|found| found.table.as_deref().unwrap())
        .collect();
    fatal.dedup();
    assert_eq!(
        fatal,
        [
            "audited", "folded", "found", "heap", "keyless", "money", "names", "untyped", "wide"
        ]
    );
    let money = inspection
        .findings
        .iter()
        .find(|found| found.table.as_deref() == Some("money"))
        .unwrap();
    assert!(
        money.problem.contains("`amount`") && money.advice.contains("DECIMAL_TEXT(20,2)"),
        "{money:?}"
    );
    assert!(
        inspection
            .findings
            .iter()
            .any(|found| !found.fatal && found.problem.contains("`tidy`"))
    );
    let good = inspection
        .tables
        .iter()
        .find(|table| table.name == "good")
        .unwrap();
    assert_eq!(good.columns.len(), 2, "generated columns do not travel");
    let customer = &inspection.tables[0];
    assert_eq!(
        (&customer.key, &customer.unique),
        (&vec![0], &vec![vec![2]])
    );
    assert!(customer.columns[0].generated_key && !customer.columns[1].nullable);
    let line = inspection
        .tables
        .iter()
        .find(|table| table.name == "line")
        .unwrap();
    assert_eq!(line.foreign_keys[0].parent_columns, ["branch", "number"]);
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_with_their_place() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (5, CAST(X'ff' AS TEXT), NULL)");
    office.ours.begin(Purpose::Take).await.unwrap();
    let refused = office.ours.take(&office.schema, 10).await.unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains("customer") && said.contains("`name`") && said.contains("key 5"),
        "{said}"
    );
    let mut other = office.schema.clone();
    other.tables[0].columns[1].kind = Type::Int64;
    let refused = office.ours.install(&other).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Mismatch { message, .. } if message.contains("`name`")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn books_are_kept_in_the_transaction() {
    let mut office = Office::new(SHOP).await;
    let table = office.table("customer");
    let entry = |number| Entry {
        number,
        bytes: vec![7; 10],
    };
    let ours = &mut office.ours;
    ours.begin(Purpose::Apply).await.unwrap();
    ours.set_meta("name", Some(b"x")).await.unwrap();
    ours.append("out", &[entry(1), entry(2), entry(3)])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(1), Some(vec![1])), (key(2), Some(vec![2]))])
        .await
        .unwrap();
    ours.rollback().await.unwrap();
    assert_eq!(ours.meta("name").await.unwrap(), None);
    assert_eq!(ours.extent("out").await.unwrap().entries, 0);
    ours.begin(Purpose::Apply).await.unwrap();
    ours.append("out", &[entry(1), entry(2), entry(3)])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(1), Some(vec![1])), (key(2), Some(vec![2]))])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(2), None)]).await.unwrap();
    ours.commit().await.unwrap();
    assert_eq!(ours.entries("out", 1, 20).await.unwrap().len(), 2);
    assert_eq!(ours.entries("out", 2, 1).await.unwrap(), [entry(2)]);
    assert!(ours.append("out", &[entry(3)]).await.is_err());
    ours.trim("out", 1).await.unwrap();
    let extent = ours.extent("out").await.unwrap();
    assert_eq!(
        (extent.first, extent.last, extent.entries, extent.bytes),
        (2, 3, 2, 20)
    );
    assert_eq!(ours.notes(&table, None).await.unwrap().len(), 1);
    assert_eq!(
        ours.notes(&table, Some(&[key(1), key(2)])).await.unwrap()[&key(1)],
        [1]
    );
}

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
