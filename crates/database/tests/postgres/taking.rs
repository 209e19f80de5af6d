//! Units of visibility on a backlog of interleaved transactions.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::Key;

use super::office::{client, shop};

/// A small generator, so that a seed names a run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

async fn units_are_whole(seed: u64) {
    let mut shop = shop(
        "CREATE TABLE a (id bigint PRIMARY KEY, n int); CREATE TABLE b (id bigint PRIMARY KEY, n int);
         INSERT INTO a SELECT n, 0 FROM generate_series(1, 5000) n; INSERT INTO b SELECT n, 0 FROM generate_series(1, 5000) n",
    )
    .await;
    shop.taken().await;
    let mut dice = Dice(seed);
    let clients = [
        client(&shop.url).await,
        client(&shop.url).await,
        client(&shop.url).await,
    ];
    let mut open = [false; 3];
    let mut fresh = [1_u64, 1001, 2001];
    for turn in 1..=600 {
        let who = dice.below(3) as usize;
        if !open[who] {
            clients[who].batch_execute("BEGIN").await.unwrap();
            open[who] = true;
        }
        // Rows of one's own mostly, so that no client waits for another; rows of others only in whole transactions.
        let table = if dice.below(2) == 0 { "a" } else { "b" };
        let row = fresh[who] + dice.below(3);
        clients[who]
            .batch_execute(&format!("UPDATE {table} SET n = n + 1 WHERE id = {row}"))
            .await
            .unwrap();
        fresh[who] += dice.below(3);
        if turn % 50 == 0 {
            // All end: a place where a cut is clean, if no row is written on both sides.
            for (_, client) in clients.iter().enumerate().filter(|(who, _)| open[*who]) {
                client.batch_execute("COMMIT").await.unwrap();
            }
            open = [false; 3];
            fresh = fresh.map(|next| next + 3);
        } else if dice.below(4) == 0 {
            clients[who].batch_execute("COMMIT").await.unwrap();
            open[who] = false;
            if dice.below(5) == 0 {
                let count = 1 + dice.below(60);
                let from = 3000 + dice.below(1500);
                let sql = format!(
                    "UPDATE a SET n = n + 1 WHERE id BETWEEN {from} AND {}",
                    from + count
                );
                clients[who].batch_execute(&sql).await.unwrap();
            }
        }
    }
    for (who, client) in clients.iter().enumerate() {
        if open[who] {
            client.batch_execute("COMMIT").await.unwrap();
        }
    }
    // Which rows each transaction wrote, from the capture itself.
    let rows = shop
        .app
        .query(
            "SELECT tx::text, tbl, key[1]::int8 FROM branchline.capture",
            &[],
        )
        .await
        .unwrap();
    let mut transactions: BTreeMap<String, BTreeSet<(i32, i64)>> = BTreeMap::new();
    for row in &rows {
        transactions
            .entry(row.get(0))
            .or_default()
            .insert((row.get(1), row.get(2)));
    }
    let units = shop.units(1 + dice.below(40) as usize).await;
    let name = |t: &branchline_core::port::Taken| {
        let table = shop.schema.table(t.table).unwrap();
        let Key(values) = t.effect.key(table);
        let branchline_core::value::Value::Int(id) = values[0] else {
            panic!()
        };
        (i32::try_from(t.table).unwrap(), id)
    };
    let mut place: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    for (unit, changes) in units.iter().enumerate() {
        for change in changes {
            assert_eq!(
                place.insert(name(change), unit),
                None,
                "seed {seed}: a row comes once"
            );
        }
    }
    for (transaction, rows) in &transactions {
        let places: BTreeSet<_> = rows.iter().map(|row| place.get(row)).collect();
        assert_eq!(
            places.len(),
            1,
            "seed {seed}: transaction {transaction} is split or lost: {places:?}"
        );
        assert!(
            !places.contains(&None),
            "seed {seed}: {transaction} is lost"
        );
    }
    assert!(units.len() > 1, "seed {seed}: there is something to cut");
    assert_eq!(shop.taken().await.len(), 0);
}

#[tokio::test]
async fn no_unit_splits_a_transaction_or_a_shared_row() {
    for seed in 1..=6 {
        units_are_whole(seed).await;
    }
}

#[tokio::test]
async fn a_unit_larger_than_a_portion_is_paged_between_its_neighbours() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n int)").await;
    for id in 1..=5 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    shop.sql("INSERT INTO t SELECT n, 0 FROM generate_series(100, 1099) n")
        .await;
    for id in 6..=9 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    let sizes: Vec<usize> = shop.units(10).await.iter().map(Vec::len).collect();
    assert_eq!(sizes, [5, 1000, 4]);
}

#[tokio::test]
async fn a_row_written_again_far_later_binds_all_between() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n int)").await;
    let late = client(&shop.url).await;
    for id in 1..=10 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    late.batch_execute("BEGIN; INSERT INTO t VALUES (11, 0)")
        .await
        .unwrap();
    for id in 12..=300 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    late.batch_execute("INSERT INTO t VALUES (301, 0); COMMIT")
        .await
        .unwrap();
    for id in 302..=600 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    shop.sql("UPDATE t SET n = 1 WHERE id = 500").await;
    for id in 601..=610 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    // A part of the backlog is smaller than what the transaction and the row bind together.
    let sizes: Vec<usize> = shop.units(2).await.iter().map(Vec::len).collect();
    assert_eq!(sizes[5], 291, "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 610);
    assert_eq!(sizes[sizes.len() - 6], 101, "{sizes:?}");
}
