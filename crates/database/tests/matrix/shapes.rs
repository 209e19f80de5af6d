//! Tables of unusual shapes: they are shared whole, or not at all.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError};
use branchline_core::value::Value;
use branchline_testkit::servers;

use super::place::{Engine, Place, schema};

/// What the application writes, what is taken of it, and what else fits where a put comes from elsewhere.
struct Shape {
    engine: Engine,
    sql: &'static str,
    written: &'static str,
    taken: &'static [&'static str],
}

const SHAPES: [Shape; 9] = [
    Shape {
        engine: Engine::Postgres,
        sql: "CREATE SCHEMA \"Other one\"; CREATE TYPE \"Other one\".mood AS ENUM ('ok', 'so so');
              CREATE DOMAIN \"Other one\".name AS varchar(20) CHECK (VALUE <> '');
              CREATE TABLE \"Other one\".\"T\" (id int PRIMARY KEY, m \"Other one\".mood, ms \"Other one\".mood[], n \"Other one\".name)",
        written: "INSERT INTO \"Other one\".\"T\" VALUES (1, 'so so', '{ok,\"so so\"}', 'x')",
        taken: &["1", "so so", "{ok,\"so so\"}", "x"],
    },
    Shape {
        engine: Engine::Postgres,
        sql: "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)",
        written: "INSERT INTO t (a) VALUES (5)",
        taken: &["1", "5"],
    },
    Shape {
        engine: Engine::Postgres,
        sql: "CREATE TABLE t (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
              CREATE TABLE north PARTITION OF t FOR VALUES IN ('n') PARTITION BY RANGE (id);
              CREATE TABLE north_1 PARTITION OF north FOR VALUES FROM (0) TO (10);
              CREATE TABLE rest PARTITION OF t DEFAULT",
        written: "INSERT INTO north_1 VALUES (1, 'n')",
        taken: &["1", "n"],
    },
    Shape {
        engine: Engine::Postgres,
        sql: "CREATE TABLE t (id int PRIMARY KEY, during int, EXCLUDE (during WITH =))",
        written: "INSERT INTO t VALUES (1, 5)",
        taken: &["1", "5"],
    },
    Shape {
        engine: Engine::Postgres,
        sql: "CREATE TABLE t (id int, a text, UNIQUE (a) DEFERRABLE INITIALLY DEFERRED, PRIMARY KEY (id) INCLUDE (a))",
        written: "INSERT INTO t VALUES (1, 'x')",
        taken: &["1", "x"],
    },
    Shape {
        engine: Engine::Sqlite,
        sql: "CREATE TABLE t (a TEXT, b INTEGER, c REAL, PRIMARY KEY (b, a)) WITHOUT ROWID",
        written: "INSERT INTO t VALUES ('x', 1, 0.5)",
        taken: &["x", "1", "0.5"],
    },
    Shape {
        engine: Engine::Sqlite,
        sql: "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB, c REAL, d INT) STRICT",
        written: "INSERT INTO t VALUES (1, 'x', x'00', 5, 7)",
        taken: &["1", "x", "00", "5.0", "7"],
    },
    Shape {
        engine: Engine::Sqlite,
        sql: "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a INT, twice INT AS (a * 2) STORED, half AS (a / 2))",
        written: "INSERT INTO t (a) VALUES (4)",
        taken: &["1", "4"],
    },
    Shape {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (id INT, at DATE, a INT, twice INT AS (a * 2) STORED, PRIMARY KEY (id, at)) PARTITION BY HASH (id) PARTITIONS 3",
        written: "INSERT INTO t (id, at, a) VALUES (1, '2024-01-02', 5)",
        taken: &["1", "2024-01-02", "5"],
    },
];

fn told(row: &Row) -> Vec<String> {
    let cell = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => other.to_json().to_string().trim_matches('"').to_owned(),
    };
    row.0.iter().map(cell).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_unusual_shapes_are_shared() {
    for Shape {
        engine,
        sql,
        written,
        taken,
    } in SHAPES
    {
        let mut office = Place::with(engine, sql).await;
        let found = office.look().await;
        assert_eq!(found.tables.len(), 1, "{sql}: {:?}", found.findings);
        let plan = schema(found.tables);
        office.share(&plan).await.unwrap();
        office.sql(written).await;
        let (rows, unreadable) = office.take(&plan).await;
        assert_eq!(unreadable, [], "{sql}");
        assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), [taken], "{sql}");
        // Away, and back by what was sent.
        let table = &plan.tables[0];
        let away = Effect::Delete(table.key_of(&rows[0]));
        office.write(&plan, &[(1, away)]).await.unwrap();
        assert_eq!(office.take_all(&plan).await.0, [], "{sql}");
        office.put(&plan, &rows[0]).await.unwrap();
        office.put(&plan, &rows[0]).await.unwrap();
        assert_eq!(office.take_all(&plan).await.0, rows, "{sql}");
        // Every engine makes a table for it that serves.
        for other in super::place::ENGINES {
            let mut branch = Place::new(other).await;
            branch.share(&plan).await.unwrap();
            branch.put(&plan, &rows[0]).await.unwrap();
            assert_eq!(branch.take_all(&plan).await.0, rows, "{sql} at {other}");
        }
    }
}

/// A key has one spelling, or another office's change would not find the row and make a second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_sqlite_that_others_spell_otherwise_stay_and_are_told() {
    for (declared, fine, bad) in [
        (
            "UUID",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A12",
        ),
        (
            "UUID",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc999c0b4ef8bb6d6bb9bd380a12",
        ),
        ("CHAR(4)", "ab", "ac "),
        ("DATETIME", "2024-01-02 03:04:05", "2024-01-02T03:04:06"),
        (
            "DATETIME",
            "2024-01-02 03:04:05.500000",
            "2024-01-02 03:04:06.5",
        ),
        (
            "TIMESTAMPTZ",
            "2024-01-02 03:04:05+00",
            "2024-01-02 03:04:05+02:00",
        ),
        ("DECIMAL_TEXT(8,2)", "1.50", "1.5"),
        ("TIME_TEXT", "12:30:00", "12:31"),
    ] {
        let sql = format!("CREATE TABLE t (k {declared} NOT NULL PRIMARY KEY, n INTEGER)");
        let mut office = Place::with(Engine::Sqlite, &sql).await;
        let plan = schema(office.look().await.tables);
        office.share(&plan).await.unwrap();
        office
            .sql(&format!("INSERT INTO t VALUES ('{fine}', 1), ('{bad}', 2)"))
            .await;
        let (rows, unreadable) = office.take(&plan).await;
        assert_eq!(
            (rows.len(), unreadable.len()),
            (1, 1),
            "{declared} {rows:?}"
        );
        assert!(unreadable[0].problem.contains("`k`"), "{unreadable:?}");
        // What is sent comes back, changed, to the row that it came from.
        let mut row = rows[0].clone();
        row.0[1] = Value::Int(5);
        office.put(&plan, &row).await.unwrap();
        let fives = format!("SELECT CAST(count(*) AS TEXT) FROM t WHERE n = 5 AND k = '{fine}'");
        assert_eq!(
            office.see(&fives).await,
            [Some("1".to_owned())],
            "{declared}"
        );
        let all = office.see("SELECT CAST(count(*) AS TEXT) FROM t").await;
        assert_eq!(all, [Some("2".to_owned())], "{declared}");
        let key = plan.tables[0].key_of(&row);
        office
            .write(&plan, &[(1, Effect::Delete(key))])
            .await
            .unwrap();
        let all = office.see("SELECT CAST(count(*) AS TEXT) FROM t").await;
        assert_eq!(all, [Some("1".to_owned())], "{declared}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_an_exclusion_or_domain_refuses_is_a_row_that_does_not_fit() {
    let mut office = Place::with(
        Engine::Postgres,
        "CREATE DOMAIN price AS numeric(8,2) CHECK (VALUE >= 0);
         CREATE TABLE t (id int PRIMARY KEY, room int, cost price, EXCLUDE (room WITH =))",
    )
    .await;
    let plan = schema(office.look().await.tables);
    office.share(&plan).await.unwrap();
    let row = |id: i64, room: i64, cost: &str| {
        Row(vec![
            Value::Int(id),
            Value::Int(room),
            Value::Text(cost.into()),
        ])
    };
    office.put(&plan, &row(1, 7, "5.00")).await.unwrap();
    for bad in [row(2, 7, "5.00"), row(2, 8, "-1.00")] {
        match office.put(&plan, &bad).await {
            Err(DatabaseError::Constraint {
                table,
                foreign_key: false,
                ..
            }) => assert_eq!(table, "t"),
            other => panic!("{bad:?}: {other:?}"),
        }
    }
    assert_eq!(office.take_all(&plan).await.0.len(), 1);
}

/// Each with a word that the finding must say, beside the way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_travel_is_named_with_a_way_out() {
    let columns: [(Engine, &[&str]); 3] = [
        (
            Engine::Postgres,
            &[
                "money",
                "cidr",
                "macaddr",
                "xml",
                "int4range",
                "tsvector",
                "point",
                "bit(8)",
                "bit varying",
                "oid",
                "interval year to month",
                "interval(0)",
                "pair",
                "hstore",
                "citext",
                "money[]",
                "\"char\"",
            ],
        ),
        (
            Engine::MariaDb,
            &["SET('a','b')", "BIT(64)", "INET6", "POINT", "FLOAT(7,2)"],
        ),
        (
            Engine::Sqlite,
            &[
                "",
                "STRING",
                "geometry",
                "DECIMAL(20,2)",
                "NUMERIC",
                "DECIMAL",
                "ANY",
            ],
        ),
    ];
    for (engine, columns) in columns {
        // MySQL has fewer types to refuse.
        let has = |declared: &&&str| **declared != "INET6" || !servers::mariadb().is_mysql();
        let columns: Vec<&str> = columns.iter().filter(has).copied().collect();
        let mut sql = match engine {
            Engine::Postgres => "CREATE TYPE pair AS (a int, b int); CREATE EXTENSION hstore; CREATE EXTENSION citext;".to_owned(),
            _ => String::new(),
        };
        for (at, declared) in columns.iter().enumerate() {
            sql.push_str(&format!(
                "CREATE TABLE t{at} (id INT PRIMARY KEY, odd {declared});"
            ));
        }
        let mut office = Place::with(engine, &sql).await;
        let found = office.look().await;
        assert_eq!(found.tables, [], "{engine}");
        for (at, declared) in columns.iter().enumerate() {
            let of = |finding: &&branchline_core::port::Finding| {
                finding.fatal && finding.table == Some(format!("t{at}"))
            };
            let finding = found
                .findings
                .iter()
                .find(of)
                .unwrap_or_else(|| panic!("{engine} {declared}"));
            assert!(
                finding.problem.contains("`odd`") && !finding.advice.is_empty(),
                "{finding:?}"
            );
        }
        let mut plan = schema(vec![]);
        plan.version = 2;
        office.db.install(&plan).await.unwrap();
    }
}
