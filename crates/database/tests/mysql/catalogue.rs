//! Inspecting and creating tables.

use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::Schema;
use branchline_testkit::conformance::sample;
use branchline_testkit::servers;

use crate::shop::{beside, shop, unshared};

#[tokio::test]
async fn tables_that_cannot_be_shared_are_named_with_a_way_out() {
    let history = match servers::mariadb().is_mysql() {
        true => "",
        false => "CREATE TABLE history (id INT PRIMARY KEY) WITH SYSTEM VERSIONING;",
    };
    let tables = format!(
        "CREATE TABLE no_key (id INT);
         CREATE TABLE old (id INT PRIMARY KEY) ENGINE = MyISAM;
         CREATE TABLE prefix (t TEXT, PRIMARY KEY (t(10)));
         CREATE TABLE float_key (f DOUBLE PRIMARY KEY);
         {history}
         CREATE TABLE fine (id INT PRIMARY KEY, n INT GENERATED ALWAYS AS (id + 1))"
    );
    let mut shop = unshared(&tables).await;
    let found = shop.db.inspect().await.unwrap();
    let names: Vec<&str> = found
        .tables
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    assert_eq!(names, ["fine"]);
    assert_eq!(found.tables[0].columns.len(), 1);
    let told = ["no_key", "old", "prefix", "float_key", "history"];
    for name in told
        .into_iter()
        .filter(|name| tables.contains(&format!("TABLE {name} ")))
    {
        let told = found
            .findings
            .iter()
            .find(|f| f.fatal && f.table.as_deref() == Some(name));
        assert!(told.is_some_and(|told| !told.advice.is_empty()), "{name}");
    }
}

#[tokio::test]
async fn what_will_hurt_is_told() {
    let mut shop = unshared(
        "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, at DATETIME, mail VARCHAR(50) COLLATE utf8mb4_general_ci UNIQUE);
         CREATE TRIGGER own BEFORE INSERT ON t FOR EACH ROW SET NEW.at = NOW();
         CREATE TABLE s (sku VARCHAR(10) COLLATE utf8mb4_bin PRIMARY KEY)",
    )
    .await;
    let found = shop.db.inspect().await.unwrap();
    assert_eq!(found.tables.len(), 2);
    let told: Vec<String> = found.findings.iter().map(|f| f.problem.clone()).collect();
    for part in [
        "TRUNCATE",
        "`own`",
        "numbers `id` by itself",
        "0 digits of a second",
        "`mail`",
        "end of `sku`",
    ] {
        assert!(
            told.iter().any(|told| told.contains(part)),
            "{part}: {told:?}"
        );
    }
}

/// A run that was interrupted between its note and its work, or in the middle of it, is taken up.
#[tokio::test]
async fn creating_tables_is_taken_up_where_it_ended() {
    let mut shop = unshared("").await;
    let schema = sample::schema();
    shop.db.prepare().await.unwrap();
    shop.app("INSERT INTO branchline_created VALUES ('customers'), ('orders')")
        .await;
    shop.db
        .create_tables(&Schema {
            version: 1,
            tables_ever: 0,
            tables: schema.tables[..2].to_vec(),
        })
        .await
        .unwrap();
    shop.app("ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers (id)")
        .await;
    shop.db.create_tables(&schema).await.unwrap();
    shop.db.add_foreign_keys(&schema).await.unwrap();
    let keys = "SELECT COUNT(*) FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = DATABASE()";
    assert_eq!(shop.see(keys).await, [Some("3".into())]);
    assert_eq!(
        shop.see("SELECT COUNT(*) FROM branchline_created").await,
        [Some("0".into())]
    );
}

#[tokio::test]
async fn a_table_that_differs_from_the_plan_is_refused() {
    let mut shop =
        shop("CREATE TABLE t (id INT PRIMARY KEY, n SMALLINT NOT NULL, name VARCHAR(10))").await;
    for (change, part) in [
        ("MODIFY n DECIMAL(3,0) NOT NULL", "`n` is decimal(3,0)"),
        (
            "MODIFY n SMALLINT NOT NULL, MODIFY name VARCHAR(9)",
            "`name` is varchar(9)",
        ),
        (
            "MODIFY name VARCHAR(10) NOT NULL",
            "`name` must not be NULL",
        ),
        (
            "MODIFY name VARCHAR(20), ADD extra INT NOT NULL",
            "`extra` is not in the plan",
        ),
        ("DROP extra, DROP name", "`name` does not exist"),
        (
            "ADD name VARCHAR(10), DROP PRIMARY KEY, ADD PRIMARY KEY (id, n)",
            "the primary key is (id, n)",
        ),
    ] {
        shop.app(&format!("ALTER TABLE t {change}")).await;
        match shop.db.install(&shop.schema).await {
            Err(DatabaseError::Mismatch { message, .. }) => {
                assert!(message.contains(part), "{message}")
            }
            other => panic!("{change}: {other:?}"),
        }
    }
}

/// To a connection that holds any lock, and the owner's does, the catalogue leaves out what is being renamed. That must not
/// look as if the table were gone.
#[tokio::test]
async fn a_table_that_is_being_renamed_is_not_gone() {
    let mut shop =
        shop("CREATE TABLE old (id INT PRIMARY KEY); CREATE TABLE zone (id INT PRIMARY KEY)").await;
    assert!(shop.db.own().await.unwrap());
    shop.app("BEGIN; SELECT * FROM zone").await;
    // Holds its lock on the first table while it waits for the second.
    let renaming = beside(&shop.url, "RENAME TABLE old TO archive, zone TO region").await;
    let found = shop.db.definitions().await;
    assert!(matches!(found, Err(DatabaseError::Busy(_))), "{found:?}");
    let missing = shop.db.missing_capture(&shop.schema).await;
    assert!(
        matches!(missing, Err(DatabaseError::Busy(_))),
        "{missing:?}"
    );
    shop.app("COMMIT").await;
    renaming.await.unwrap().unwrap();
    let found = shop.db.definitions().await.unwrap();
    let names: Vec<&str> = found.tables.iter().map(|table| &*table.name).collect();
    assert_eq!(names, ["archive", "region"]);
    assert_eq!(found.captured[&shop.id("old")], "archive");
}
