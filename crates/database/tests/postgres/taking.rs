//! Units of visibility on a backlog of interleaved transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use branchline_core::change::Key;
use branchline_core::port::{Database, Entry, Purpose, Taken};
use branchline_core::value::Value;
use branchline_database::postgres::PostgresDatabase;

use super::office::{Shop, client, shop};

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

/// A row: its table's number and its key.
type Name = (i32, i64);

fn name(shop: &Shop, taken: &Taken) -> Name {
    let table = shop.schema.table(taken.table).unwrap();
    let Key(values) = taken.effect.key(table);
    let Value::Int(id) = values[0] else { panic!() };
    (i32::try_from(taken.table).unwrap(), id)
}

/// Which rows each transaction wrote, from the capture itself.
async fn captured(shop: &Shop) -> BTreeMap<String, BTreeSet<Name>> {
    let rows = "SELECT tx::text, tbl, key[1]::int8 FROM branchline.capture";
    let mut transactions: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
    for row in &shop.app.query(rows, &[]).await.unwrap() {
        let rows = transactions.entry(row.get(0)).or_default();
        rows.insert((row.get(1), row.get(2)));
    }
    transactions
}

/// Three clients whose transactions interleave.
struct Crowd {
    dice: Dice,
    clients: [tokio_postgres::Client; 3],
    open: [bool; 3],
    fresh: [u64; 3],
}

impl Crowd {
    async fn new(shop: &Shop, seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            clients: [
                client(&shop.url).await,
                client(&shop.url).await,
                client(&shop.url).await,
            ],
            open: [false; 3],
            fresh: [1, 1001, 2001],
        }
    }

    async fn writes(&mut self, turns: u64) {
        for turn in 1..=turns {
            let who = self.dice.below(3) as usize;
            if !self.open[who] {
                self.clients[who].batch_execute("BEGIN").await.unwrap();
                self.open[who] = true;
            }
            // Rows of one's own mostly, so that no client waits for another; rows of others only in whole transactions.
            let table = if self.dice.below(2) == 0 { "a" } else { "b" };
            let row = self.fresh[who] + self.dice.below(3);
            let sql = format!("UPDATE {table} SET n = n + 1 WHERE id = {row}");
            self.clients[who].batch_execute(&sql).await.unwrap();
            self.fresh[who] += self.dice.below(3);
            if turn % 50 == 0 {
                // A place where a cut is clean, if no row is written on both sides.
                self.commits().await;
                self.fresh = self.fresh.map(|next| next + 3);
            } else if self.dice.below(4) == 0 {
                self.clients[who].batch_execute("COMMIT").await.unwrap();
                self.open[who] = false;
                if self.dice.below(5) == 0 {
                    let count = 1 + self.dice.below(60);
                    let from = 3000 + self.dice.below(1500);
                    let sql = format!(
                        "UPDATE a SET n = n + 1 WHERE id BETWEEN {from} AND {}",
                        from + count
                    );
                    self.clients[who].batch_execute(&sql).await.unwrap();
                }
            }
        }
    }

    /// All end their transactions.
    async fn commits(&mut self) {
        for (who, client) in self.clients.iter().enumerate() {
            if std::mem::take(&mut self.open[who]) {
                client.batch_execute("COMMIT").await.unwrap();
            }
        }
    }
}

/// Two tables of 5,000 rows, all taken, and a crowd that writes to them.
async fn crowded(seed: u64) -> (Shop, Crowd) {
    let mut shop = shop(
        "CREATE TABLE a (id bigint PRIMARY KEY, n int); CREATE TABLE b (id bigint PRIMARY KEY, n int);
         INSERT INTO a SELECT n, 0 FROM generate_series(1, 5000) n; INSERT INTO b SELECT n, 0 FROM generate_series(1, 5000) n",
    )
    .await;
    shop.taken().await;
    let crowd = Crowd::new(&shop, seed).await;
    (shop, crowd)
}

/// What was captured before and after one transaction that took: no unit of it may split a transaction or a row.
fn assert_whole(
    units: &[BTreeSet<Name>],
    before: &BTreeMap<String, BTreeSet<Name>>,
    after: &BTreeMap<String, BTreeSet<Name>>,
    why: &str,
) {
    for (transaction, rows) in before {
        let left = after.get(transaction);
        assert!(
            left.is_none_or(|left| left == rows),
            "{why}: transaction {transaction} was taken in part"
        );
        let unit = units.iter().find(|unit| !unit.is_disjoint(rows));
        match left {
            // Its writes are gone, so one unit told of all of them.
            None => assert!(
                unit.is_some_and(|unit| unit.is_superset(rows)),
                "{why}: transaction {transaction} is split or lost"
            ),
            Some(_) => assert!(
                unit.is_none(),
                "{why}: rows of {transaction} were told before their time"
            ),
        }
    }
}

async fn units_stay_whole(seed: u64) {
    let (mut shop, mut crowd) = crowded(seed).await;
    // Below it the plan is less than the backlog, above it all of it.
    let limit = 1 + crowd.dice.below(6) as usize;
    crowd.writes(700).await;
    let mut most = 0;
    for round in 1..=25 {
        crowd.writes(7).await;
        let before = captured(&shop).await;
        let units = shop.some_units(limit, 3).await;
        let after = captured(&shop).await;
        let units: Vec<BTreeSet<Name>> = units
            .iter()
            .map(|unit| unit.iter().map(|taken| name(&shop, taken)).collect())
            .collect();
        most = units.len().max(most);
        assert_whole(
            &units,
            &before,
            &after,
            &format!("seed {seed}, round {round}"),
        );
    }
    assert!(most > 1, "seed {seed}: there is something to cut");
    crowd.commits().await;
    shop.taken().await;
    assert_eq!(captured(&shop).await, BTreeMap::new(), "seed {seed}");
}

#[tokio::test]
async fn units_stay_whole_where_others_commit_between_two_takes() {
    for seed in 1..=4 {
        units_stay_whole(seed).await;
    }
}

#[tokio::test]
async fn writes_that_were_moved_in_the_heap_are_taken_all_the_same() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n int)").await;
    for id in 1..=60 {
        shop.sql(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
    }
    let first = shop.some_units(5, 3).await.concat();
    shop.sql("VACUUM FULL branchline.capture").await;
    let rest = shop.units(5).await.concat();
    let ids: Vec<i64> = first
        .iter()
        .chain(&rest)
        .map(|taken| name(&shop, taken).1)
        .collect();
    assert_eq!(ids, (1..=60).collect::<Vec<_>>());
}

async fn units_are_whole(seed: u64) {
    let (mut shop, mut crowd) = crowded(seed).await;
    crowd.writes(600).await;
    crowd.commits().await;
    // Which rows each transaction wrote, from the capture itself.
    let transactions = captured(&shop).await;
    let units = shop.units(1 + crowd.dice.below(40) as usize).await;
    let mut place: BTreeMap<Name, usize> = BTreeMap::new();
    for (unit, changes) in units.iter().enumerate() {
        for change in changes {
            assert_eq!(
                place.insert(name(&shop, change), unit),
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

/// Of a backlog beyond its memory the server once went through all that was planned for each later write: of a million
/// writes it never came to the end. It takes minutes of this one, a look through all a second.
#[tokio::test]
async fn a_backlog_beyond_the_memory_of_the_server_is_taken() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n int)").await;
    shop.sql(
        "INSERT INTO t SELECT n, 0 FROM generate_series(1, 400000) n; DELETE FROM branchline.capture;
         INSERT INTO branchline.capture (tbl, op, at, tx, key)
         SELECT 1, 'I', clock_timestamp() - interval '1 day' + n * interval '1 microsecond', (3 + n)::text::xid8, ARRAY[n::text]
         FROM generate_series(1, 400000) n",
    )
    .await;
    shop.sql(
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET work_mem TO ''64kB''', current_database());
         END $$",
    )
    .await;
    shop.db = PostgresDatabase::connect(&shop.url).await.unwrap();
    shop.db.begin(Purpose::Take).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(60), shop.db.take(&shop.schema, 1000));
    let portion = taken.await.expect("the server comes to an end").unwrap();
    assert_eq!(portion.changes.len(), 1000);
    shop.db.rollback().await.unwrap();
}

#[tokio::test]
async fn the_books_are_read_and_written_while_the_next_portion_is_on_its_way() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, name text)").await;
    shop.sql("DO $$ BEGIN FOR n IN 1..6000 LOOP INSERT INTO t VALUES (n, repeat('x', 200)); COMMIT; END LOOP; END $$")
        .await;
    shop.db.begin(Purpose::Take).await.unwrap();
    let mut taken = 0;
    for number in 1.. {
        let portion = shop.db.take(&shop.schema, 1000).await.unwrap();
        taken += portion.changes.len();
        let entry = [Entry {
            number,
            bytes: vec![0; 10_000],
        }];
        shop.db.append("log", &entry).await.unwrap();
        assert_eq!(shop.db.meta("nothing").await.unwrap(), None);
        if !portion.more {
            break;
        }
    }
    shop.db.commit().await.unwrap();
    assert_eq!(taken, 6000);
}
