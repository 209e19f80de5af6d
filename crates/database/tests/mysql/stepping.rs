//! What the application writes in the moment in which a step takes a column or a table away.

use std::time::Duration;

use branchline_core::change::Row;
use branchline_core::port::{Database, DatabaseError, DbResult, Evolution, Purpose};
use branchline_core::schema::{Schema, TableId};
use branchline_core::value::Value;
use mysql_async::prelude::Queryable;

use crate::shop::{Shop, connect, shop, text};

const TABLES: &str = "CREATE TABLE item (id INT PRIMARY KEY, name VARCHAR(20), note VARCHAR(20));
    CREATE TABLE other (id INT PRIMARY KEY);
    INSERT INTO item VALUES (1, 'one', 'first')";
const LATE: &str = "UPDATE item SET note = 'late' WHERE id = 1";

/// A version without the column `note`, or without the table.
fn after(shop: &Shop, drops_table: bool) -> (Schema, Vec<TableId>) {
    let mut to = shop.schema.clone();
    to.version += 1;
    if drops_table {
        to.tables.retain(|table| table.name != "item");
        return (to, vec![shop.id("item")]);
    }
    for table in to.tables.iter_mut().filter(|table| table.name == "item") {
        table.columns.retain(|column| column.name != "note");
    }
    (to, Vec::new())
}

async fn numbered() -> Shop {
    let mut shop = shop(TABLES).await;
    shop.schema.number();
    shop.install().await;
    assert_eq!(shop.take().await.len(), 0);
    shop
}

/// As a branch does it; the application does something after its look at the capture.
async fn step(shop: &mut Shop, to: &(Schema, Vec<TableId>), late: &str) -> DbResult<Evolution> {
    shop.db.begin(Purpose::Load).await?;
    let item = shop.table("item").clone();
    shop.db.hold_still(&item).await?;
    assert!(shop.db.captured(&item, None).await?.is_empty());
    if !late.is_empty() {
        shop.app(late).await;
    }
    let done = shop.db.evolve(&shop.schema, &to.0, &to.1).await;
    match done {
        Ok(done) => shop.db.commit().await.map(|()| done),
        Err(error) => {
            shop.db.rollback().await?;
            Err(error)
        }
    }
}

fn late_row() -> Row {
    Row(vec![Value::Int(1), text("one"), text("late")])
}

#[tokio::test]
async fn what_is_written_before_a_column_or_a_table_goes_is_taken_first() {
    for drops_table in [false, true] {
        let mut shop = numbered().await;
        let to = after(&shop, drops_table);
        let given_way = step(&mut shop, &to, LATE).await;
        assert!(
            matches!(given_way, Err(DatabaseError::Busy(_))),
            "{given_way:?}"
        );
        let taken = shop.take().await;
        assert_eq!(taken[0].effect.row(), Some(&late_row()));
        assert_eq!(step(&mut shop, &to, "").await, Ok(Evolution::default()));
        assert!(shop.app.query_drop("SELECT note FROM item").await.is_err());
    }
}

/// The `ALTER` waits for a transaction, which then commits.
#[tokio::test]
async fn what_a_transaction_wrote_for_which_a_step_waits_is_taken_first() {
    let mut shop = numbered().await;
    let to = after(&shop, false);
    let (mut writer, mut watcher) = (connect(&shop.url).await, connect(&shop.url).await);
    writer.query_drop("START TRANSACTION").await.unwrap();
    writer.query_drop(LATE).await.unwrap();
    let commits = async {
        let waits = "SELECT COUNT(*) FROM information_schema.PROCESSLIST
             WHERE db = DATABASE() AND state LIKE 'Waiting for table %lock'";
        while watcher.query_first::<u64, _>(waits).await.unwrap() != Some(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        writer.query_drop("COMMIT").await.unwrap();
    };
    let (given_way, ()) = tokio::join!(step(&mut shop, &to, ""), commits);
    assert!(
        matches!(given_way, Err(DatabaseError::Busy(_))),
        "{given_way:?}"
    );
    assert_eq!(shop.take().await[0].effect.row(), Some(&late_row()));
    assert_eq!(step(&mut shop, &to, "").await, Ok(Evolution::default()));
}

#[tokio::test]
async fn what_an_application_that_never_pauses_writes_is_told() {
    let mut shop = numbered().await;
    let to = after(&shop, false);
    for _ in 0..3 {
        let given_way = step(&mut shop, &to, LATE).await;
        assert!(
            matches!(given_way, Err(DatabaseError::Busy(_))),
            "{given_way:?}"
        );
        shop.take().await;
        shop.app("UPDATE item SET note = 'again' WHERE id = 1")
            .await;
        shop.take().await;
    }
    let done = step(&mut shop, &to, LATE).await.unwrap();
    assert_eq!(
        done.untaken,
        [(shop.table("item").clone(), vec![late_row()])]
    );
    assert_eq!(done.refused, []);
}
