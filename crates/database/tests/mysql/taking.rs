//! Units of visibility, and what a take leaves alone.

use std::collections::BTreeSet;

use branchline_core::port::{Database, Purpose};

use crate::shop::{connect, shop};
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;

const NUMBERS: &str = "CREATE TABLE numbers (id INT PRIMARY KEY, n INT)";

/// Writes these numbers in one statement.
async fn fill(shop: &mut crate::shop::Shop, ids: std::ops::RangeInclusive<u32>) {
    let rows: Vec<String> = ids.map(|id| format!("({id}, 0)")).collect();
    shop.app(&format!("INSERT INTO numbers VALUES {}", rows.join(", ")))
        .await;
}

/// Takes unit by unit, and returns the keys of each.
async fn units(shop: &mut crate::shop::Shop, limit: usize) -> Vec<BTreeSet<i64>> {
    let mut units = Vec::new();
    loop {
        shop.db.begin(Purpose::Take).await.unwrap();
        let (mut unit, mut more) = (BTreeSet::new(), true);
        while more {
            let portion = shop.db.take(&shop.schema, limit).await.unwrap();
            assert!(portion.changes.len() <= 2 * limit);
            for change in &portion.changes {
                let key = change.effect.key(shop.table("numbers"));
                let [branchline_core::value::Value::Int(id)] = key.0[..] else {
                    panic!("{key:?}")
                };
                assert!(unit.insert(id), "{id} came twice");
            }
            more = portion.open;
            if !portion.open && !portion.more {
                shop.db.commit().await.unwrap();
                units.push(unit);
                return units;
            }
        }
        shop.db.commit().await.unwrap();
        units.push(unit);
    }
}

/// Statements that are transactions of their own are told apart, also those of one connection.
#[tokio::test]
async fn statements_of_one_connection_are_units_of_their_own() {
    let mut shop = shop(NUMBERS).await;
    for pair in 0..30 {
        let (a, b) = (2 * pair, 2 * pair + 1);
        shop.app(&format!("INSERT INTO numbers VALUES ({a}, 0), ({b}, 0)"))
            .await;
    }
    let units = units(&mut shop, 5).await;
    // In MySQL no trigger can tell them apart: they are one.
    let least = if servers::mariadb().is_mysql() { 1 } else { 6 };
    assert!(units.len() >= least, "{units:?}");
    for unit in &units {
        for id in unit {
            assert!(unit.contains(&(id ^ 1)), "half a transaction: {unit:?}");
        }
    }
    assert_eq!(units.iter().map(BTreeSet::len).sum::<usize>(), 60);
}

/// Sessions that write between each other's writes; the transactions of each stay whole.
#[tokio::test]
async fn interleaved_transactions_stay_whole() {
    let mut shop = shop(NUMBERS).await;
    let (mut one, mut two) = (connect(&shop.url).await, connect(&shop.url).await);
    one.query_drop("BEGIN; INSERT INTO numbers VALUES (1, 0)")
        .await
        .unwrap();
    for id in 10..25 {
        shop.app(&format!("INSERT INTO numbers VALUES ({id}, 0)"))
            .await;
    }
    two.query_drop("BEGIN; INSERT INTO numbers VALUES (3, 0)")
        .await
        .unwrap();
    one.query_drop("INSERT INTO numbers VALUES (2, 0); COMMIT")
        .await
        .unwrap();
    // The second is still open: nothing of it is seen, and nothing of it is lost.
    let first = units(&mut shop, 4).await;
    let of_one = first.iter().find(|unit| unit.contains(&1)).unwrap();
    assert!(of_one.contains(&2), "{first:?}");
    assert!(first.iter().all(|unit| !unit.contains(&3)));
    two.query_drop("INSERT INTO numbers VALUES (4, 0); COMMIT")
        .await
        .unwrap();
    assert_eq!(units(&mut shop, 4).await, [BTreeSet::from([3, 4])]);
}

/// What one connection wrote in transactions is parted where it was marked off; a transaction that was open then stays whole.
#[tokio::test]
async fn marks_part_what_a_connection_wrote() {
    let mut shop = shop(NUMBERS).await;
    let mut two = connect(&shop.url).await;
    let mut last = 0;
    for part in 0..4 {
        if part == 1 {
            two.query_drop("BEGIN; INSERT INTO numbers VALUES (100000, 0)")
                .await
                .unwrap();
        }
        for _ in 0..2 {
            shop.app("BEGIN").await;
            fill(&mut shop, last + 1..=last + 600).await;
            shop.app("COMMIT").await;
            last += 600;
        }
        if part == 2 {
            two.query_drop("INSERT INTO numbers VALUES (100001, 0); COMMIT")
                .await
                .unwrap();
        }
        shop.db.mark().await.unwrap();
        shop.db.mark().await.unwrap();
    }
    let units = units(&mut shop, 700).await;
    let sizes: Vec<usize> = units.iter().map(BTreeSet::len).collect();
    assert_eq!(sizes, [1_200, 2_400 + 2, 1_200]);
    assert!(units[1].contains(&100_000) && units[1].contains(&100_001));
    assert_eq!(
        shop.see("SELECT COUNT(*) FROM branchline_part").await,
        [Some("0".into())]
    );
}

/// A unit of many portions is paged; every row comes once, and the capture is empty after it.
#[tokio::test]
async fn a_very_large_unit_is_paged() {
    let mut shop = shop(NUMBERS).await;
    fill(&mut shop, 1..=5000).await;
    shop.app("UPDATE numbers SET n = 1 WHERE id <= 100; DELETE FROM numbers WHERE id > 4990")
        .await;
    let units = units(&mut shop, 100).await;
    assert_eq!(
        units.len(),
        1,
        "the deletes and updates bind all to the first"
    );
    assert_eq!(units[0].len(), 5000);
    assert_eq!(
        shop.see("SELECT COUNT(*) FROM branchline_capture").await,
        [Some("0".into())]
    );
}

/// A chain of transactions, each bound to the next by a row: found in a few looks, and never cut.
#[tokio::test]
async fn a_long_chain_is_one_unit() {
    let mut shop = shop(NUMBERS).await;
    fill(&mut shop, 0..=300).await;
    shop.take().await;
    for id in 0..300 {
        let next = id + 1;
        shop.app(&format!(
            "UPDATE numbers SET n = n + 1 WHERE id IN ({id}, {next})"
        ))
        .await;
    }
    assert_eq!(units(&mut shop, 3).await.len(), 1);
}

/// While a take is open the application writes on, without waiting.
#[tokio::test]
async fn the_application_does_not_wait_for_a_take() {
    let mut shop = shop(NUMBERS).await;
    fill(&mut shop, 1..=50).await;
    shop.db.begin(Purpose::Take).await.unwrap();
    assert_eq!(
        shop.db
            .take(&shop.schema, 1000)
            .await
            .unwrap()
            .changes
            .len(),
        50
    );
    shop.app("SET innodb_lock_wait_timeout = 1; INSERT INTO numbers VALUES (99, 0); UPDATE numbers SET n = 7 WHERE id <= 50").await;
    shop.db.commit().await.unwrap();
    assert_eq!(shop.take().await.len(), 51);
}
