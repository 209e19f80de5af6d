//! The demo's application: a small retail company. It knows nothing of Branchline; it only writes SQL.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rusqlite::{Connection, ErrorCode, params};

use crate::exit::{BUG, Failure, Outcome};

const SCHEMA: &str = "
CREATE TABLE products (sku TEXT PRIMARY KEY, name TEXT NOT NULL, price_cents INTEGER NOT NULL);
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT, city TEXT, visits INTEGER NOT NULL);
CREATE TABLE stock (office TEXT NOT NULL, sku TEXT NOT NULL REFERENCES products(sku), quantity INTEGER NOT NULL,
    PRIMARY KEY (office, sku));
CREATE TABLE sales (id TEXT PRIMARY KEY, office TEXT NOT NULL, customer INTEGER REFERENCES customers(id),
    sold_at TIMESTAMP NOT NULL, total_cents INTEGER NOT NULL);
CREATE TABLE sale_lines (sale TEXT NOT NULL REFERENCES sales(id), line INTEGER NOT NULL,
    sku TEXT NOT NULL REFERENCES products(sku), quantity INTEGER NOT NULL, PRIMARY KEY (sale, line));
";

const GOODS: [&str; 8] = [
    "Tea", "Coffee", "Bread", "Honey", "Soap", "Candle", "Notebook", "Lamp",
];
const SIZES: [&str; 5] = ["small", "medium", "large", "gift", "family"];
const CITIES: [&str; 6] = ["Lisboa", "Zürich", "Århus", "Kraków", "東京", "São Paulo"];

fn failed(error: &rusqlite::Error) -> Failure {
    Failure::new(BUG, format!("the demo's shop: {error}"))
}

/// How long the application waits for a lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a shop's database as its application does.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    write_ahead(&connection)?;
    connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON")?;
    Ok(connection)
}

/// Switches a new file to the write-ahead log. While anybody writes to it, SQLite refuses that at once, whatever the
/// busy time-out is.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connection.execute_batch("PRAGMA journal_mode = WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

/// Creates the head's shop with its first rows.
pub fn found(path: &Path, offices: &[String]) -> Outcome<()> {
    let fill = || -> rusqlite::Result<()> {
        let mut connection = open(path)?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        let mut number = 0;
        for good in GOODS {
            for size in SIZES {
                number += 1;
                let sku = format!("SKU-{number:03}");
                transaction.execute(
                    "INSERT INTO products VALUES (?1, ?2, ?3)",
                    params![sku, format!("{good}, {size}"), 199 + 37 * number],
                )?;
                for office in offices {
                    transaction.execute(
                        "INSERT INTO stock VALUES (?1, ?2, 500)",
                        params![office, sku],
                    )?;
                }
            }
        }
        for (id, city) in (1..=200_i64).zip(CITIES.iter().cycle()) {
            transaction.execute(
                "INSERT INTO customers VALUES (?1, ?2, ?3, ?4, 0)",
                params![
                    id,
                    format!("Customer {id}"),
                    format!("c{id}@example.org"),
                    city
                ],
            )?;
        }
        transaction.commit()
    };
    fill().map_err(|error| failed(&error))
}

/// An office's application at work, on a thread of its own.
pub struct Shop {
    /// Transactions committed so far.
    pub committed: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<rusqlite::Result<()>>,
}

impl Shop {
    /// Starts selling. `stop` ends it.
    pub fn start(path: &Path, office: &str, seed: u64, stop: Arc<AtomicBool>) -> Outcome<Self> {
        let committed = Arc::new(AtomicU64::new(0));
        let (path, office, counter) = (
            path.to_path_buf(),
            office.to_string(),
            Arc::clone(&committed),
        );
        let sell = move || -> rusqlite::Result<()> {
            let mut connection = open(&path)?;
            let mut random = SmallRng::seed_from_u64(seed);
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                work(&mut connection, &office, number, &mut random)?;
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(random.random_range(5..40)));
            }
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name(format!("shop {}", path_name(seed)))
            .spawn(sell);
        let thread = thread.map_err(crate::exit::io("cannot start a thread"))?;
        Ok(Self { committed, thread })
    }

    /// Whether it has ended by itself: it failed.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the last transaction.
    pub fn finish(self) -> Outcome<u64> {
        match self.thread.join() {
            Ok(Ok(())) => Ok(self.committed.load(Ordering::Relaxed)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(Failure::new(BUG, "the demo's shop panicked")),
        }
    }
}

fn path_name(seed: u64) -> String {
    seed.to_string()
}

/// One transaction: mostly a sale, now and then a customer's new city or a new price.
fn work(
    connection: &mut Connection,
    office: &str,
    number: u64,
    random: &mut SmallRng,
) -> rusqlite::Result<()> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let sku = |random: &mut SmallRng| {
        format!(
            "SKU-{:03}",
            random.random_range(1..=GOODS.len() * SIZES.len())
        )
    };
    let customer = random.random_range(1..=200);
    match random.random_range(0..10) {
        0 => {
            let city = CITIES[random.random_range(0..CITIES.len())];
            transaction.execute(
                "UPDATE customers SET city = ?2 WHERE id = ?1",
                params![customer, city],
            )?;
        }
        1 if office == "HO" => {
            let price: i64 = random.random_range(100..9_000);
            transaction.execute(
                "UPDATE products SET price_cents = ?2 WHERE sku = ?1",
                params![sku(random), price],
            )?;
        }
        _ => {
            let sale = format!("{office}-{number:06}");
            let mut total = 0_i64;
            transaction.execute(
                "INSERT INTO sales VALUES (?1, ?2, ?3, strftime('%Y-%m-%d %H:%M:%f', 'now'), 0)",
                params![sale, office, customer],
            )?;
            for line in 1..=random.random_range(1..4) {
                let (sku, quantity) = (sku(random), random.random_range(1..4_i64));
                transaction.execute(
                    "INSERT INTO sale_lines VALUES (?1, ?2, ?3, ?4)",
                    params![sale, line, sku, quantity],
                )?;
                transaction.execute(
                    "UPDATE stock SET quantity = quantity - ?3 WHERE office = ?1 AND sku = ?2",
                    params![office, sku, quantity],
                )?;
                let price: i64 = transaction.query_row(
                    "SELECT price_cents FROM products WHERE sku = ?1",
                    [&sku],
                    |row| row.get(0),
                )?;
                total += price * quantity;
            }
            transaction.execute(
                "UPDATE sales SET total_cents = ?2 WHERE id = ?1",
                params![sale, total],
            )?;
        }
    }
    transaction.commit()
}

/// How many sales a shop's database holds.
pub fn sales(path: &Path) -> Outcome<u64> {
    let count =
        || open(path)?.query_row("SELECT count(*) FROM sales", [], |row| row.get::<_, i64>(0));
    count()
        .map(|count| count.unsigned_abs())
        .map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo failed by this: an office wrote at the moment at which a shop opened its new file.
    #[test]
    fn a_shop_opens_a_new_file_while_its_office_writes() -> rusqlite::Result<()> {
        let path = std::env::temp_dir().join(format!("branchline-shop-{}.db", std::process::id()));
        let office = Connection::open(&path)?;
        office.execute_batch("CREATE TABLE t (x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")?;
        let asked = Connection::open(&path)?.execute_batch("PRAGMA journal_mode = WAL");
        assert_eq!(
            asked.map_err(|error| error.sqlite_error_code()),
            Err(Some(ErrorCode::DatabaseBusy))
        );
        let opened = std::thread::scope(|scope| {
            let shop = scope.spawn(|| open(&path).map(drop));
            std::thread::sleep(Duration::from_millis(100));
            let ended_early = shop.is_finished();
            office
                .execute_batch("COMMIT")
                .map(|()| (ended_early, shop.join()))
        });
        drop(office);
        for end in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{end}", path.display())));
        }
        assert!(matches!(opened, Ok((false, Ok(Ok(()))))), "{opened:?}");
        Ok(())
    }
}
