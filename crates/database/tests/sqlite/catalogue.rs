//! Tables, triggers, and what an inspection says of them.

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_core::schema::{ForeignKey, Schema};
use branchline_core::value::{Type, Value};
use branchline_database::sqlite::SqliteDatabase;
use rusqlite::Connection;
use tempfile::TempDir;

use super::office::{Office, SHOP, column, dump, key, plain};

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
        tables_ever: 0,
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
        tables_ever: 0,
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
            tables_ever: 0,
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
async fn a_table_of_other_types_than_the_plans_is_refused() {
    let mut office = Office::new(SHOP).await;
    let mut other = office.schema.clone();
    other.tables[0].columns[1].kind = Type::Int64;
    let refused = office.ours.install(&other).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Mismatch { message, .. } if message.contains("`name`")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn one_process_owns_a_database() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("shop.db");
    let open = || SqliteDatabase::open(path.to_str().unwrap(), true).unwrap();
    let (mut owner, mut second) = (open(), open());
    assert!(owner.own().unwrap());
    assert!(owner.own().unwrap(), "again");
    assert!(!second.own().unwrap());
    drop(owner);
    assert!(second.own().unwrap());
    second.prepare().await.unwrap();
    second.uninstall().await.unwrap();
    drop(second);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// The office must be able to tell that from a database that fails.
#[tokio::test]
async fn a_table_or_column_that_is_gone_is_told_as_such() {
    let mut office = Office::new(SHOP).await;
    let table = office.table("customer");
    for change in [
        "ALTER TABLE customer RENAME COLUMN name TO called",
        "PRAGMA foreign_keys = OFF; DROP TABLE customer",
    ] {
        office.does(change);
        office.ours.begin(Purpose::Read).await.unwrap();
        let outcome = office.ours.read(&table, &[key(1)]).await;
        assert!(
            matches!(&outcome, Err(DatabaseError::Mismatch { table, .. }) if table == "customer"),
            "{change}: {outcome:?}"
        );
        office.ours.rollback().await.unwrap();
    }
}
