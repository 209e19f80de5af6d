//! Texts that one engine takes for equal and another does not: no row makes way for another.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::Schema;
use branchline_core::value::Value;

use super::place::{ENGINES, Engine, Place, schema};

/// Pairs of which some engine, in some collation, makes one.
const PAIRS: [(&str, &str); 6] = [
    ("a", "A"),
    ("ss", "ß"),
    ("e", "é"),
    ("a", "a "),
    ("é", "e\u{301}"),
    ("", " "),
];

fn row(key: &str, content: &str) -> Row {
    Row(vec![Value::Text(key.into()), Value::Text(content.into())])
}

fn key(text: &str) -> Key {
    Key(vec![Value::Text(text.into())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_were_made_here_tell_all_texts_apart() {
    let mut head = Place::with(
        Engine::Postgres,
        "CREATE TABLE t (code varchar(20) PRIMARY KEY, mail text UNIQUE)",
    )
    .await;
    let plan = schema(head.look().await.tables);
    for engine in ENGINES {
        let mut office = Place::new(engine).await;
        office.share(&plan).await.unwrap();
        let mut texts: Vec<&str> = PAIRS.iter().flat_map(|(a, b)| [*a, *b]).collect();
        texts.sort_unstable();
        texts.dedup();
        for text in &texts {
            office.put(&plan, &row(text, text)).await.unwrap();
        }
        let (rows, _) = office.take_all(&plan).await;
        let found: Vec<Row> = texts.iter().map(|text| row(text, text)).collect();
        assert_eq!(rows, found, "{engine}");
        // Each goes alone.
        for text in &texts {
            let before = office.take_all(&plan).await.0.len();
            office
                .write(&plan, &[(1, Effect::Delete(key(text)))])
                .await
                .unwrap();
            assert_eq!(
                office.take_all(&plan).await.0.len(),
                before - 1,
                "{engine} {text:?}"
            );
        }
    }
}

/// A table of the application's in which the two are one, as key or as unique value.
struct Loose {
    engine: Engine,
    sql: &'static str,
    pair: (&'static str, &'static str),
}

const LOOSE_KEYS: [Loose; 4] = [
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (code VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, mail TEXT NOT NULL)",
        pair: ("a", "A"),
    },
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (code VARCHAR(20) COLLATE utf8mb4_unicode_ci PRIMARY KEY, mail TEXT NOT NULL)",
        pair: ("ss", "ß"),
    },
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (code VARCHAR(20) COLLATE utf8mb4_bin PRIMARY KEY, mail TEXT NOT NULL)",
        pair: ("a", "a "),
    },
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (code VARCHAR(20) COLLATE utf8mb4_unicode_ci PRIMARY KEY, mail TEXT NOT NULL)",
        pair: ("é", "e\u{301}"),
    },
];

const LOOSE_VALUES: [Loose; 4] = [
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (id INT PRIMARY KEY, mail VARCHAR(40) COLLATE utf8mb4_general_ci NOT NULL UNIQUE)",
        pair: ("a", "A"),
    },
    Loose {
        engine: Engine::MariaDb,
        sql: "CREATE TABLE t (id INT PRIMARY KEY, mail VARCHAR(40) COLLATE utf8mb4_bin NOT NULL UNIQUE)",
        pair: ("a", "a "),
    },
    Loose {
        engine: Engine::Sqlite,
        sql: "CREATE TABLE t (id INTEGER PRIMARY KEY, mail TEXT NOT NULL COLLATE NOCASE UNIQUE ON CONFLICT REPLACE)",
        pair: ("a", "A"),
    },
    Loose {
        engine: Engine::Postgres,
        sql: "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
              CREATE TABLE t (id int PRIMARY KEY, mail text COLLATE loose NOT NULL UNIQUE)",
        pair: ("a", "A"),
    },
];

fn refused(done: Result<(), DatabaseError>, what: &str) {
    match done {
        Err(DatabaseError::Constraint {
            table, foreign_key, ..
        }) => assert!(table == "t" && !foreign_key, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_database_takes_for_anothers_does_not_fit() {
    for Loose { engine, sql, pair } in LOOSE_KEYS {
        let (first, second) = pair;
        let mut office = Place::with(engine, sql).await;
        let found = office.look().await;
        let warned = found.findings.iter().any(|finding| {
            !finding.fatal
                && finding.table.as_deref() == Some("t")
                && finding.problem.contains("`code`")
        });
        assert!(warned, "{:?}", found.findings);
        let plan = schema(found.tables);
        office.share(&plan).await.unwrap();
        let original = row(first, "original");
        office.put(&plan, &original).await.unwrap();
        refused(office.put(&plan, &row(second, "other")).await, sql);
        let both = [
            (1, Effect::Put(row("zz", "new"))),
            (1, Effect::Put(row(second, "other"))),
        ];
        refused(office.write(&plan, &both).await, sql);
        // The other's change and deletion do not reach it either.
        office
            .write(&plan, &[(1, Effect::Delete(key(second)))])
            .await
            .unwrap();
        let table = &plan.tables[0];
        let found = office
            .db
            .read(table, &[key(first), key(second)])
            .await
            .unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(key(first), original.clone())],
            "{sql}"
        );
        assert_eq!(office.take_all(&plan).await.0, [original], "{sql}");
    }
    // Where a database could not even tell rows apart, the table is not shared.
    for (engine, sql) in [
        (Engine::Sqlite, "CREATE TABLE t (code TEXT PRIMARY KEY COLLATE NOCASE NOT NULL, mail TEXT NOT NULL)"),
        (
            Engine::Postgres,
            "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE t (code text COLLATE loose PRIMARY KEY, mail text NOT NULL)",
        ),
        (
            Engine::Postgres,
            "CREATE EXTENSION citext; CREATE TABLE t (code citext PRIMARY KEY, mail text NOT NULL)",
        ),
    ] {
        let mut office = Place::with(engine, sql).await;
        let found = office.look().await;
        assert!(found.tables.is_empty());
        let fatal: Vec<_> = found.findings.iter().filter(|finding| finding.fatal).collect();
        assert!(!fatal.is_empty() && fatal.iter().all(|it| !it.advice.is_empty()), "{fatal:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unique_value_that_the_database_takes_for_anothers_does_not_fit() {
    for Loose { engine, sql, pair } in LOOSE_VALUES {
        let row = |id: i64, mail: &str| Row(vec![Value::Int(id), Value::Text(mail.into())]);
        let mut office = Place::with(engine, sql).await;
        let plan: Schema = schema(office.look().await.tables);
        office.share(&plan).await.unwrap();
        office.put(&plan, &row(1, pair.0)).await.unwrap();
        office.put(&plan, &row(3, "z")).await.unwrap();
        refused(office.put(&plan, &row(2, pair.1)).await, sql);
        refused(office.put(&plan, &row(3, pair.1)).await, sql);
        let both = [
            (1, Effect::Put(row(2, pair.1))),
            (1, Effect::Put(row(3, "y"))),
        ];
        refused(office.write(&plan, &both).await, sql);
        assert_eq!(
            office.take_all(&plan).await.0,
            [row(1, pair.0), row(3, "z")],
            "{sql}"
        );
        // Its own row may change from the one to the other.
        office.put(&plan, &row(1, pair.1)).await.unwrap();
        assert_eq!(
            office.take_all(&plan).await.0,
            [row(1, pair.1), row(3, "z")],
            "{sql}"
        );
    }
}
