//! The application beside an office that writes without a pause: SQLite's write lock has no queue, and a busy handler
//! looks for it less and less often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use branchline_core::change::Effect;
use branchline_core::port::DatabaseError;
use rusqlite::{Connection, TransactionBehavior};

use crate::office::{Office, SHOP, customer};

/// What many applications set.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the application writes during the test.
const WRITES: i64 = 100;
/// How long it may wait for the lock in 99 of 100 writes. Without gaps it is refused, or comes near to it; how long it
/// really waits is told, and depends on what else the machine does.
const FAR_FROM_REFUSED: Duration = Duration::from_millis(2500);

/// Lands rows in transactions of `rows` without a pause until told to stop. Returns how many transactions.
async fn land(office: &mut Office, rows: i64, stop: &AtomicBool) -> u64 {
    let table = office.id("customer");
    let mut landed = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("landed {landed}");
        let effects: Vec<_> = (0..rows)
            .map(|id| {
                (
                    table,
                    Effect::Put(customer(id, &name, &format!("{id}@example.org"))),
                )
            })
            .collect();
        match office.apply(&effects).await {
            Ok(()) => landed += 1,
            Err(DatabaseError::Busy(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    landed
}

async fn the_application_gets_its_lock(mode: &str, rows: i64) {
    let mut office = Office::new(SHOP).await;
    office.does(&format!("PRAGMA journal_mode = {mode}"));
    let path = office.path();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let application = std::thread::spawn(move || {
        let mut connection = Connection::open(path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        let write = |connection: &mut Connection, id: i64| {
            let begin = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(begin)?;
            transaction.execute(
                "INSERT INTO customer VALUES (?1, 'at the counter', NULL)",
                [1_000_000 + id],
            )?;
            transaction.commit()
        };
        let mut waits = Vec::new();
        for id in 0..WRITES {
            let began = Instant::now();
            let done = write(&mut connection, id);
            let refused = done.is_err();
            waits.push((began.elapsed(), done));
            if refused {
                break;
            }
            std::thread::sleep(Duration::from_millis(u64::try_from(id % 17).unwrap()));
        }
        stopped.store(true, Ordering::Relaxed);
        waits
    });
    let began = Instant::now();
    let landed = land(&mut office, rows, &stop).await;
    let took = began.elapsed();
    let mut waits = Vec::new();
    for (wait, done) in application.join().unwrap() {
        waits.push(wait);
        assert!(
            done.is_ok(),
            "the application was refused after {wait:?}: {done:?}"
        );
    }
    waits.sort();
    let share = |of: usize| waits[(waits.len() - 1) * of / 100];
    println!(
        "{mode}, {rows} rows: waits p50 {:?}, p99 {:?}, longest {:?}; {landed} transactions landed in {took:?}",
        share(50),
        share(99),
        share(100)
    );
    assert!(landed > 20, "the office got on, too: {landed}");
    assert!(share(99) < FAR_FROM_REFUSED, "{waits:?}");
}

#[tokio::test]
async fn an_application_gets_the_lock_between_short_landings_in_wal_mode() {
    the_application_gets_its_lock("WAL", 1).await;
}

#[tokio::test]
async fn an_application_gets_the_lock_between_long_landings_in_wal_mode() {
    the_application_gets_its_lock("WAL", 1000).await;
}

#[tokio::test]
async fn an_application_gets_the_lock_between_short_landings_with_a_rollback_journal() {
    the_application_gets_its_lock("DELETE", 1).await;
}

#[tokio::test]
async fn an_application_gets_the_lock_between_long_landings_with_a_rollback_journal() {
    the_application_gets_its_lock("DELETE", 1000).await;
}
