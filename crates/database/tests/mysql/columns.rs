//! Columns that change in a step: what stands with them in MariaDB, checks above all.

use branchline_core::port::{Database, Evolution, Purpose};
use branchline_core::schema::{Schema, Table};
use branchline_core::value::Type;
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;

use super::shop::{Shop, shop};

/// Shares these tables, with numbers.
async fn numbered(tables: &str) -> Shop {
    let mut shop = shop(tables).await;
    shop.schema.number();
    shop.install().await;
    shop
}

/// Follows a version in which the first table is another.
async fn follow(shop: &mut Shop, change: impl FnOnce(&mut Table)) {
    let mut to: Schema = shop.schema.clone();
    to.version += 1;
    change(&mut to.tables[0]);
    shop.db.begin(Purpose::Load).await.unwrap();
    let done = shop.db.evolve(&shop.schema, &to, &[]).await.unwrap();
    assert_eq!(done, Evolution::default());
    shop.db.commit().await.unwrap();
    shop.schema = to;
}

/// The line of a table's definition that is about this column.
async fn line(shop: &mut Shop, column: &str) -> String {
    let told: Option<(String, String)> = shop
        .app
        .exec_first("SHOW CREATE TABLE t", ())
        .await
        .unwrap();
    let told = told.unwrap().1;
    let mut lines = told.lines();
    let begin = format!("  `{column}` ");
    let line = lines.find(|line| line.starts_with(&begin)).unwrap();
    line.trim_end_matches(',').to_owned()
}

async fn is_refused(shop: &mut Shop, sql: &str) -> bool {
    shop.app.query_drop(sql).await.is_err()
}

/// The text's longest length is a check, which stands with its column in MariaDB.
#[tokio::test]
async fn a_long_text_keeps_its_length_where_null_is_forbidden_and_allowed() {
    let mut shop = shop("").await;
    let mut to = Schema {
        version: 1,
        tables: vec![sample()],
        tables_ever: 0,
    };
    to.number();
    shop.db.prepare().await.unwrap();
    shop.db.create_tables(&to).await.unwrap();
    shop.schema = to;
    shop.install().await;
    let long = "INSERT INTO t VALUES (1, REPEAT('x', 3001))";
    assert!(is_refused(&mut shop, long).await);
    for nullable in [false, true] {
        follow(&mut shop, |table| table.columns[1].nullable = nullable).await;
        assert!(is_refused(&mut shop, long).await, "nullable: {nullable}");
        shop.app("INSERT INTO t VALUES (1, REPEAT('x', 3000)); DELETE FROM t")
            .await;
    }
    follow(&mut shop, |table| {
        table.columns[1].kind = Type::Text { max: Some(4000) };
    })
    .await;
    shop.app("INSERT INTO t VALUES (1, REPEAT('x', 4000)); DELETE FROM t")
        .await;
    let longer = "INSERT INTO t VALUES (1, REPEAT('x', 4001))";
    assert!(is_refused(&mut shop, longer).await);
}

fn sample() -> Table {
    let column = |name: &str, kind| branchline_core::schema::Column {
        name: name.into(),
        kind,
        nullable: name != "id",
        default: None,
        generated_key: false,
        id: 0,
    };
    Table {
        id: 0,
        name: "t".into(),
        columns: vec![
            column("id", Type::Int32),
            column("body", Type::Text { max: Some(3000) }),
        ],
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: vec![],
        before: false,
        columns_ever: 0,
        indexes: vec![],
        checks: Default::default(),
    }
}

const COLUMNS: &str = "CREATE TABLE t (id INT PRIMARY KEY,
    qty INT NOT NULL DEFAULT 3 COMMENT 'it''s, `so`) CHECK (1)' CHECK (qty > 0),
    `lo``w` INT INVISIBLE DEFAULT 4 CHECK (`lo``w` <> 7 AND qty <> 8),
    status VARCHAR(20) COLLATE utf8mb4_nopad_bin CHECK (status IN ('open', 'qty, `qty`')))";

/// A check of the application's own that stands with its column goes where it goes at the head; the column stays.
#[tokio::test]
async fn a_check_that_stands_with_its_column_goes() {
    if servers::mariadb().is_mysql() {
        return;
    }
    let mut shop = numbered(COLUMNS).await;
    let before = line(&mut shop, "qty").await;
    assert_eq!(shop.table("t").checks.0.len(), 3);
    follow(&mut shop, |table| {
        table.columns[1].name = "amount".into();
        table
            .checks
            .0
            .retain(|check| !check.condition.names(1) || check.condition.names(2));
    })
    .await;
    let expected = before
        .strip_suffix(" CHECK (`qty` > 0)")
        .unwrap()
        .replacen("`qty`", "`amount`", 1);
    assert_eq!(line(&mut shop, "amount").await, expected);
    shop.app("INSERT INTO t (id, amount, status) VALUES (1, 0, 'open')")
        .await;
    let eight = "INSERT INTO t (id, amount) VALUES (2, 8)";
    assert!(is_refused(&mut shop, eight).await);
    let unknown = "INSERT INTO t (id, status) VALUES (2, 'paid')";
    assert!(is_refused(&mut shop, unknown).await);
    // And again, together with another change of the column.
    follow(&mut shop, |table| {
        table.columns[3].nullable = false;
        table.checks.0.retain(|check| !check.condition.names(3));
    })
    .await;
    shop.app("INSERT INTO t (id, status) VALUES (2, 'paid')")
        .await;
}

/// A column that changes otherwise keeps its check.
#[tokio::test]
async fn a_check_that_stands_with_its_column_stays_when_the_column_changes() {
    if servers::mariadb().is_mysql() {
        return;
    }
    let mut shop = numbered(COLUMNS).await;
    follow(&mut shop, |table| {
        table.columns[1].name = "amount".into();
        table.columns[1].kind = Type::Int64;
        table.columns[2].nullable = false;
        table.columns[3].nullable = false;
        table.columns[3].name = "state".into();
    })
    .await;
    for row in [
        "1, 0, 4, 'open'",
        "1, 1, 7, 'open'",
        "1, 8, 4, 'open'",
        "1, 1, 4, 'paid'",
    ] {
        let sql = format!("INSERT INTO t (id, amount, `lo``w`, state) VALUES ({row})");
        assert!(is_refused(&mut shop, &sql).await, "{row}");
    }
    shop.app("INSERT INTO t (id, amount, `lo``w`, state) VALUES (1, 5000000000, 4, 'qty, `qty`')")
        .await;
}
