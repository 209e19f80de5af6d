//! Figures for NUMBERS.md: `cargo test --release --test postgres figures -- --ignored --nocapture`.

use std::time::Instant;

use branchline_core::change::Effect;
use branchline_core::port::{Database, Purpose};

use super::office::{Shop, shop};

const SALES: &str =
    "CREATE TABLE sales (id uuid PRIMARY KEY, branch int, sku text, qty int, price numeric(12,2),
                     sold_at timestamptz, note text)";
const ROWS: usize = 200_000;

fn per_second(rows: usize, since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64();
    format!("{seconds:.2} s, {:.0} rows/s", rows as f64 / seconds)
}

/// Portions in a transaction, as the office takes them.
const PORTIONS: usize = 24;
const BACKLOG: usize = 500_000;

async fn filled(rows: usize) -> Shop {
    let shop = shop(SALES).await;
    shop.sql(&format!(
        "SET synchronous_commit TO off;
         CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN FOR n IN 1..{rows} LOOP
             INSERT INTO sales VALUES (gen_random_uuid(), n % 50, 'sku' || n % 997, n % 7, (n % 10000) / 100.0,
                 now() - n * interval '1 second', CASE WHEN n % 5 = 0 THEN 'a note' END);
             COMMIT; END LOOP; END $$"
    ))
    .await;
    shop.sql("CALL fill()").await;
    shop
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run it alone and optimized"]
async fn figures() {
    let mut source = filled(ROWS).await;
    for limit in [1000, 2000] {
        let since = Instant::now();
        source.db.begin(Purpose::Take).await.unwrap();
        let (mut count, mut calls) = (0, 0);
        loop {
            let portion = source.db.take(&source.schema, limit).await.unwrap();
            (count, calls) = (count + portion.changes.len(), calls + 1);
            if calls == 1 {
                println!("take, first portion: {:?}", since.elapsed());
            }
            if !portion.more {
                break;
            }
        }
        assert_eq!(count, ROWS);
        println!(
            "take in portions of {limit}: {} in {calls} calls",
            per_second(ROWS, since)
        );
        source.db.rollback().await.unwrap();
    }
    let units = source.units(1000).await;
    println!("commit and sweep included: {} units", units.len());
    let target = shop(SALES).await;
    let Shop { mut db, schema, .. } = target;
    let id = schema.tables[0].id;
    let batches: Vec<Vec<_>> = units
        .into_iter()
        .map(|unit| unit.into_iter().map(|taken| (id, taken.effect)).collect())
        .collect();
    for what in ["new", "existing"] {
        let since = Instant::now();
        for batch in &batches {
            db.begin(Purpose::Apply).await.unwrap();
            db.write(&schema, batch).await.unwrap();
            db.commit().await.unwrap();
        }
        println!("write {what} rows: {}", per_second(ROWS, since));
    }
    let keys: Vec<_> = batches
        .iter()
        .flatten()
        .map(|(_, effect): &(_, Effect)| effect.key(&schema.tables[0]))
        .collect();
    let since = Instant::now();
    db.begin(Purpose::Read).await.unwrap();
    for some in keys.chunks(1000) {
        assert_eq!(
            db.read(&schema.tables[0], some).await.unwrap().len(),
            some.len()
        );
    }
    println!("read by key: {}", per_second(ROWS, since));
    db.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run it alone and optimized"]
async fn figures_of_a_long_drain() {
    let mut source = filled(BACKLOG).await;
    let since = Instant::now();
    let (mut count, mut more) = (0, true);
    while more {
        let begun = Instant::now();
        source.db.begin(Purpose::Take).await.unwrap();
        for _ in 0..PORTIONS {
            let portion = source.db.take(&source.schema, 1000).await.unwrap();
            (count, more) = (count + portion.changes.len(), portion.more);
            if !more {
                break;
            }
        }
        source.db.commit().await.unwrap();
        println!("{count}: {:?}", begun.elapsed());
    }
    assert_eq!(count, BACKLOG);
    println!("drained: {}", per_second(BACKLOG, since));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run it alone and optimized"]
async fn figures_of_a_look_at_the_definitions() {
    let tables: Vec<String> = (0..12)
        .map(|at| {
            format!(
                "CREATE TABLE t{at} (id bigint PRIMARY KEY, a text, b numeric(12,2) DEFAULT 0, c int NOT NULL, d date, e uuid,
                     f timestamptz, g text UNIQUE, h int REFERENCES t{at}_parent);"
            )
        })
        .collect();
    let parents: String = (0..12)
        .map(|at| format!("CREATE TABLE t{at}_parent (id int PRIMARY KEY);"))
        .collect();
    let mut shop = shop(&format!("{parents}{}", tables.concat())).await;
    shop.schema
        .tables
        .retain(|table| !table.name.ends_with("_parent"));
    assert_eq!(shop.schema.tables.len(), 12);
    for _ in 0..2 {
        let since = Instant::now();
        for _ in 0..500 {
            shop.db.begin(Purpose::Take).await.unwrap();
            shop.db.shape(&shop.schema).await.unwrap();
            shop.db.rollback().await.unwrap();
        }
        let with = since.elapsed() / 500;
        let since = Instant::now();
        for _ in 0..500 {
            shop.db.begin(Purpose::Take).await.unwrap();
            shop.db.rollback().await.unwrap();
        }
        println!(
            "a transaction with a look {with:?}, without {:?}",
            since.elapsed() / 500
        );
    }
}
