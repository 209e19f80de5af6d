//! Tables and columns of any name, through capture, take, write, read and removal.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::{Column, Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::AnyDatabase;
use branchline_testkit::servers::{self, MariaDb};

use super::place::{ENGINES, Engine, Place, schema};

/// 63 bytes, which is PostgreSQL's limit; they differ in the last.
fn longest(end: char) -> String {
    format!("{}{end}", "é".repeat(31))
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "order",
        "SELECT",
        "user",
        "MixedCase",
        "two words",
        "Größe 漢",
        "a\"b",
        "it's",
        "a`b",
        "a\\b",
        "a;--b",
        "%s",
        "$1",
        ":x",
        "?",
        "{x}",
        "[x]",
        "1st",
        "null",
        "a/*b",
        "new",
        "old",
        "r",
        "t",
        "now",
        "given",
        "excluded",
        "k0",
        "c0",
        "key",
        "op",
        "tbl",
    ]
    .map(String::from)
    .into();
    names.extend(['a', 'b'].map(longest));
    names
}

fn column(name: &str, kind: Type, nullable: bool) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable,
        default: None,
        generated_key: false,
        id: 0,
    }
}

fn table(name: &str, columns: Vec<Column>) -> Table {
    Table {
        id: 0,
        name: name.into(),
        columns,
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: true,
        columns_ever: 0,
        indexes: vec![],
        checks: Default::default(),
    }
}

/// A table under each name that this engine can have, with the name as key and as column; and one with a column of each name.
fn plan(engine: Engine) -> Schema {
    let mut names = names();
    if engine == Engine::MariaDb && servers::mariadb().is_mysql() {
        names.retain(|name| !name.contains('`'));
    }
    let text = || Type::Text { max: Some(100) };
    let mut tables: Vec<Table> = names
        .iter()
        .map(|name| {
            table(
                name,
                vec![column(name, text(), false), column("content", text(), true)],
            )
        })
        .collect();
    let mut columns = vec![column("id", Type::Int64, false)];
    columns.extend(names.iter().map(|name| column(name, text(), true)));
    let last = columns.len() - 1;
    let mut wide = table("all of them", columns);
    wide.unique = vec![vec![u16::try_from(last).unwrap()]];
    tables.push(wide);
    schema(tables)
}

fn ident(engine: Engine, name: &str) -> String {
    match engine {
        Engine::MariaDb => format!("`{}`", name.replace('`', "``")),
        _ => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_columns_of_any_name_are_shared() {
    let text = |text: &str| Value::Text(text.into());
    for engine in ENGINES {
        let plan = plan(engine);
        let mut office = Place::new(engine).await;
        office.share(&plan).await.unwrap();
        // A second time, it finds all in place.
        office.share(&plan).await.unwrap();
        assert!(office.db.missing_capture(&plan).await.unwrap().is_empty());
        let mut wanted = Vec::new();
        for table in &plan.tables {
            let wide = table.name == "all of them";
            let name = ident(engine, &table.name);
            let columns: Vec<String> = table
                .columns
                .iter()
                .map(|c| ident(engine, &c.name))
                .collect();
            let row = Row(if wide {
                let cells = (1..columns.len()).map(|at| text(&format!("v{at}")));
                std::iter::once(Value::Int(1)).chain(cells).collect()
            } else {
                vec![text("k"), text("v")]
            });
            let literals: Vec<String> = row
                .0
                .iter()
                .map(|value| match value {
                    Value::Text(text) => format!("'{text}'"),
                    _ => "1".to_owned(),
                })
                .collect();
            let (columns, literals) = (columns.join(", "), literals.join(", "));
            office
                .sql(&format!("INSERT INTO {name} ({columns}) VALUES ({literals}); UPDATE {name} SET {} = 'changed'", ident(engine, &table.columns[1].name)))
                .await;
            let mut row = row;
            row.0[1] = text("changed");
            wanted.push((table.id, row));
        }
        let (taken, unreadable) = office.take_tables(&plan).await;
        assert_eq!(
            (&taken, unreadable.as_slice()),
            (&wanted, &[][..]),
            "{engine}"
        );
        // What is put back is what was there; what is deleted is captured.
        for table in &plan.tables {
            office
                .sql(&format!("DELETE FROM {}", ident(engine, &table.name)))
                .await;
        }
        assert_eq!(office.take_tables(&plan).await.0, []);
        let puts: Vec<(u32, Effect)> = wanted
            .iter()
            .map(|(id, row)| (*id, Effect::Put(row.clone())))
            .collect();
        office.write(&plan, &puts).await.unwrap();
        office.write(&plan, &puts).await.unwrap();
        for (id, row) in &wanted {
            let table = plan.table(*id).unwrap();
            let key = table.key_of(row);
            let read = office
                .db
                .read(table, std::slice::from_ref(&key))
                .await
                .unwrap();
            assert_eq!(read.get(&key), Some(row), "{engine} {}", table.name);
            assert_eq!(
                office.db.chunk(table, None, 10).await.unwrap(),
                std::slice::from_ref(row)
            );
        }
        assert_eq!(office.take_tables(&plan).await.0, []);
        // An inspection finds the same tables, and nothing of ours stays behind.
        let found = office.look().await;
        assert_eq!(
            found.tables.len(),
            plan.tables.len(),
            "{engine}: {:?}",
            found.findings
        );
        for table in &found.tables {
            assert!(plan.table_named(&table.name).is_some(), "{}", table.name);
        }
        office.db.uninstall().await.unwrap();
        let left = match engine {
            Engine::Postgres => {
                "SELECT nspname::text FROM pg_namespace WHERE nspname = 'branchline' UNION ALL SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal"
            }
            Engine::MariaDb => {
                "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() UNION ALL SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'branchline%'"
            }
            Engine::Sqlite => {
                "SELECT name FROM sqlite_schema WHERE type = 'trigger' OR name LIKE 'branchline%'"
            }
        };
        assert_eq!(office.see(left).await, [], "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_folds_the_names_of_tables_says_so() {
    let server = MariaDb::start_with(&["lower-case-table-names=1"]);
    let one = |name: &str| table(name, vec![column("id", Type::Int64, false)]);
    for (tables, part) in [
        (vec![one("goods")], None),
        (vec![one("Goods")], Some("lower case")),
        (vec![one("stock"), one("Stock")], Some("lower case")),
    ] {
        let mut db = AnyDatabase::open(&server.fresh_database(), false)
            .await
            .unwrap();
        let made = db.create_tables(&schema(tables)).await;
        match part {
            None => assert_eq!(made, Ok(vec!["goods".to_owned()])),
            Some(part) => assert!(
                matches!(&made, Err(DatabaseError::Mismatch { message, .. }) if message.contains(part)),
                "{made:?}"
            ),
        }
    }
}

async fn shared(engine: Engine, tables: Vec<Table>) -> Result<(), DatabaseError> {
    Place::new(engine).await.share(&schema(tables)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_an_engine_cannot_tell_apart_or_hold_are_refused() {
    let one = |name: &str, columns: &[&str]| {
        let mut all = vec![column("id", Type::Int64, false)];
        all.extend(columns.iter().map(|name| column(name, Type::Int64, true)));
        table(name, all)
    };
    for engine in ENGINES {
        let tables = shared(engine, vec![one("goods", &[]), one("Goods", &[])]).await;
        let columns = shared(engine, vec![one("goods", &["size", "Size"])]).await;
        // 64 characters of two bytes, and two that are the same up to PostgreSQL's limit.
        let long = shared(engine, vec![one(&"é".repeat(32), &[])]).await;
        let long_column = shared(
            engine,
            vec![one("goods", &[&format!("{}1", "x".repeat(63))])],
        )
        .await;
        let quoted = shared(engine, vec![one("goods", &["a`b"])]).await;
        let mysql = engine == Engine::MariaDb && servers::mariadb().is_mysql();
        let (folds, limited) = (engine == Engine::Sqlite, engine == Engine::Postgres);
        for (what, done, fails) in [
            ("tables", tables, folds),
            ("columns", columns, engine != Engine::Postgres),
            ("a long table", long, limited),
            ("a long column", long_column, limited),
            ("a grave accent", quoted, mysql),
        ] {
            match done {
                Ok(()) => assert!(!fails, "{engine}: {what}"),
                Err(DatabaseError::Mismatch { message, .. }) => {
                    assert!(fails, "{engine}: {what}: {message}");
                    assert!(message.contains("name"), "{engine}: {what}: {message}");
                }
                Err(other) => panic!("{engine}: {what}: {other:?}"),
            }
        }
    }
}
