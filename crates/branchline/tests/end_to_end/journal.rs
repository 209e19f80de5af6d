//! Writers that keep a journal of every write that their database acknowledged, and hold every office to it at the end.
//!
//! Each writer owns a range of keys and some rows in tables of its own kind ([`schema`]); only what several writers
//! share may be overridden by another, and then the last write of one of them stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sql::Db;

/// Keys of one office begin here times its number.
const RANGE: u64 = 1_000_000;
/// Every account starts with this.
const BALANCE: i64 = 1_000;
/// Rows that all offices update.
pub const SHARED: u64 = 8;

/// The tables that the writers need, for offices numbered below `offices`.
pub fn schema(offices: u64) -> Vec<String> {
    let mut statements: Vec<String> = [
        "CREATE TABLE maker (id bigint PRIMARY KEY, name varchar(120))",
        "CREATE TABLE work (id bigint PRIMARY KEY, title varchar(160) NOT NULL, maker_id bigint NOT NULL REFERENCES maker (id))",
        "CREATE TABLE event (id bigint PRIMARY KEY, office integer NOT NULL, note text)",
        "CREATE TABLE tally (office integer PRIMARY KEY, n bigint NOT NULL)",
        "CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL)",
        "CREATE TABLE price (id integer PRIMARY KEY, amount numeric(12,2) NOT NULL, who text NOT NULL)",
    ]
    .map(String::from)
    .into();
    for office in 0..offices {
        statements.push(format!("INSERT INTO tally VALUES ({office}, 0)"));
        for id in [office * 2, office * 2 + 1] {
            statements.push(format!("INSERT INTO account VALUES ({id}, {BALANCE})"));
        }
    }
    for id in 0..SHARED {
        statements.push(format!("INSERT INTO price VALUES ({id}, 1.50, 'start')"));
    }
    statements
}

/// What one office's database acknowledged.
#[derive(Debug, Default)]
pub struct Journal {
    pub office: u64,
    pub seed: u64,
    pub commits: u64,
    works: BTreeMap<u64, Option<String>>,
    events: u64,
    moved: i64,
    prices: BTreeMap<u64, String>,
}

/// A writer at work.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Journal>,
}

impl Writer {
    /// Starts writing to the database of office number `office`, about every `pause`.
    pub fn start(url: &str, office: u64, seed: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (Arc::clone(&stop), url.to_owned());
        let thread = std::thread::spawn(move || {
            let mut db = Db::open(&url);
            let mut random = StdRng::seed_from_u64(seed);
            let mut journal = Journal {
                office,
                seed,
                ..Journal::default()
            };
            while !stopped.load(Ordering::Relaxed) {
                journal.write(&mut db, &mut random);
                std::thread::sleep(pause.mul_f64(random.random_range(0.2..1.8)));
            }
            journal
        });
        Self { stop, thread }
    }

    /// Stops writing and returns the journal.
    #[track_caller]
    pub fn stop(self) -> Journal {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .expect("the writer's database took every write")
    }
}

impl Journal {
    fn write(&mut self, db: &mut Db, random: &mut StdRng) {
        let living: Vec<u64> = self
            .works
            .iter()
            .filter(|(_, title)| title.is_some())
            .map(|(id, _)| *id)
            .collect();
        let choice = random.random_range(0..100);
        match choice {
            50..65 if !living.is_empty() => {
                let id = living[random.random_range(0..living.len())];
                let title = format!("work {id} again {}", self.commits);
                self.commit(
                    db,
                    &[format!("UPDATE work SET title = '{title}' WHERE id = {id}")],
                );
                self.works.insert(id, Some(title));
            }
            65..75 if !living.is_empty() => {
                let id = living[random.random_range(0..living.len())];
                self.commit(
                    db,
                    &[
                        format!("DELETE FROM work WHERE id = {id}"),
                        format!("DELETE FROM maker WHERE id = {id}"),
                    ],
                );
                self.works.insert(id, None);
            }
            75..85 => {
                let id = random.random_range(0..SHARED);
                let who = format!("{}-{}", self.office, self.commits);
                self.commit(
                    db,
                    &[format!(
                        "UPDATE price SET amount = amount + 0.25, who = '{who}' WHERE id = {id}"
                    )],
                );
                self.prices.insert(id, who);
            }
            85..100 => {
                let amount = random.random_range(-9..=9_i64);
                let (from, to) = (self.office * 2, self.office * 2 + 1);
                self.commit(
                    db,
                    &[
                        format!(
                            "UPDATE account SET balance = balance - {amount} WHERE id = {from}"
                        ),
                        format!("UPDATE account SET balance = balance + {amount} WHERE id = {to}"),
                    ],
                );
                self.moved += amount;
            }
            _ => self.add(db),
        }
    }

    /// A parent, its child, an event and its count, in one transaction.
    fn add(&mut self, db: &mut Db) {
        let id = self.office * RANGE + self.works.len() as u64;
        let title = format!("work {id}");
        let office = self.office;
        self.commit(
            db,
            &[
                format!("INSERT INTO maker VALUES ({id}, 'maker {id}')"),
                format!("INSERT INTO work VALUES ({id}, '{title}', {id})"),
                format!("INSERT INTO event VALUES ({id}, {office}, 'added')"),
                format!("UPDATE tally SET n = n + 1 WHERE office = {office}"),
            ],
        );
        self.works.insert(id, Some(title));
        self.events += 1;
    }

    fn commit(&mut self, db: &mut Db, statements: &[String]) {
        // The application must never fail for what sync does beside it (P8).
        if let Err(error) = db.transaction(statements) {
            panic!(
                "office {} (seed {}): {statements:?}: {error}",
                self.office, self.seed
            );
        }
        self.commits += 1;
    }

    /// Holds an office to this journal.
    #[track_caller]
    pub fn check(&self, place: &str, db: &mut Db) {
        let (office, seed) = (self.office, self.seed);
        let said = format!("at {place}, of office {office}, seed {seed}");
        let (from, to) = (office * RANGE, (office + 1) * RANGE);
        let expected: Vec<Vec<String>> = self
            .works
            .iter()
            .filter_map(|(id, title)| {
                Some(vec![id.to_string(), title.clone()?, format!("maker {id}")])
            })
            .collect();
        let found = db.rows(&format!(
            "SELECT w.id, w.title, m.name FROM work w JOIN maker m ON m.id = w.maker_id \
             WHERE w.id >= {from} AND w.id < {to} ORDER BY w.id"
        ));
        let missing: Vec<_> = expected
            .iter()
            .filter(|row| !found.contains(row))
            .take(10)
            .collect();
        let foreign: Vec<_> = found
            .iter()
            .filter(|row| !expected.contains(row))
            .take(10)
            .collect();
        assert!(
            missing.is_empty() && foreign.is_empty(),
            "works {said}: missing {missing:?}, not written {foreign:?}"
        );
        let makers = db.one(&format!(
            "SELECT count(*) FROM maker WHERE id >= {from} AND id < {to}"
        ));
        assert_eq!(makers, expected.len().to_string(), "makers {said}");
        let events = db.one(&format!(
            "SELECT count(*) FROM event WHERE office = {office}"
        ));
        assert_eq!(events, self.events.to_string(), "events {said}");
        let tally = db.one(&format!("SELECT n FROM tally WHERE office = {office}"));
        assert_eq!(tally, self.events.to_string(), "tally {said}");
        let balances = db.rows(&format!(
            "SELECT balance FROM account WHERE id IN ({0}, {0} + 1) ORDER BY id",
            office * 2
        ));
        let expected =
            [BALANCE - self.moved, BALANCE + self.moved].map(|balance| vec![balance.to_string()]);
        assert_eq!(balances, expected, "accounts {said}");
    }
}

/// What all wrote to ends as the last write of one of them.
#[track_caller]
pub fn check_shared(place: &str, db: &mut Db, journals: &[Journal]) {
    for row in db.rows("SELECT id, who FROM price ORDER BY id") {
        let id: u64 = row[0].parse().unwrap();
        let last: Vec<&String> = journals
            .iter()
            .filter_map(|journal| journal.prices.get(&id))
            .collect();
        let known = last.contains(&&row[1]) || (last.is_empty() && row[1] == "start");
        assert!(
            known,
            "price {id} at {place} is {}, the last writes were {last:?}",
            row[1]
        );
    }
}

/// Looks all the time whether a reader ever sees half of a transaction (P5).
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Reader {
    /// Each query gives, in one snapshot, rows of a name and two values that every transaction keeps equal.
    pub fn start(place: &str, url: &str, queries: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let queries: Vec<String> = queries.iter().map(|query| (*query).to_owned()).collect();
        let (stopped, url, place) = (Arc::clone(&stop), url.to_owned(), place.to_owned());
        let thread = std::thread::spawn(move || {
            let mut db = Db::open(&url);
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                for query in &queries {
                    for row in db.rows(query) {
                        assert_eq!(
                            row[1], row[2],
                            "half a transaction is seen at {place}: {row:?} by {query}"
                        );
                    }
                }
                looks += 1;
                // All the readers together leave most of a small machine to the offices.
                std::thread::sleep(
                    (Duration::from_millis(20) + began.elapsed() * 8).min(Duration::from_secs(1)),
                );
            }
            looks
        });
        Self { stop, thread }
    }

    #[track_caller]
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self
            .thread
            .join()
            .expect("every look saw whole transactions");
        assert!(looks > 10, "the reader looked only {looks} times");
    }
}

/// What the writers' transactions keep equal.
pub const TALLY: &str =
    "SELECT t.office, t.n, (SELECT count(*) FROM event e WHERE e.office = t.office) FROM tally t";
pub const ACCOUNTS: &str = "SELECT id / 2, sum(balance), 2000 FROM account GROUP BY id / 2";
