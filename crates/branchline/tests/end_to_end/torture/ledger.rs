//! Applications that keep a ledger of what their database acknowledged, while the database itself comes and goes.
//!
//! A commit whose answer was lost is looked up when the database is back, so a ledger is exact: every transaction is
//! in the tables of its office once, or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sql::Db;

/// Entries of one office begin here times its number.
const RANGE: u64 = 1_000_000;
/// Rows to which every office adds.
const COUNTERS: u64 = 3;
const PAUSE_MS: std::ops::Range<u64> = 20..160;

/// The tables, with a tally for each office.
pub fn schema(offices: usize) -> Vec<String> {
    let mut statements: Vec<String> = [
        "CREATE TABLE tally (office integer PRIMARY KEY, n bigint NOT NULL)",
        "CREATE TABLE entry (id bigint PRIMARY KEY, office integer NOT NULL REFERENCES tally (office), note text)",
        "CREATE TABLE counter (id integer PRIMARY KEY, value bigint NOT NULL)",
    ]
    .map(String::from)
    .into();
    statements.extend((0..offices).map(|at| format!("INSERT INTO tally VALUES ({at}, 0)")));
    statements.extend((0..COUNTERS).map(|at| format!("INSERT INTO counter VALUES ({at}, 0)")));
    statements
}

/// What one office's database acknowledged.
pub struct Ledger {
    office: u64,
    committed: u64,
    added: [u64; COUNTERS as usize],
    refusals: BTreeMap<String, u64>,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            office,
            committed,
            refusals,
            ..
        } = self;
        write!(
            f,
            "office {office}: {committed} commits, refused {refusals:?}"
        )
    }
}

/// An application at work.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Ledger>,
}

impl Keeper {
    /// Starts writing at office number `office`.
    pub fn start(url: &str, office: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (Arc::clone(&stop), url.to_owned());
        let thread = std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            let mut ledger = Ledger {
                office,
                committed: 0,
                added: [0; COUNTERS as usize],
                refusals: BTreeMap::new(),
            };
            // Its server may be struck before it is first here.
            let (mut db, _) = look_up(&url, 0);
            while !stopped.load(Ordering::Relaxed) {
                ledger.write(&mut db, &url, random.random_range(0..COUNTERS));
                std::thread::sleep(Duration::from_millis(random.random_range(PAUSE_MS)));
            }
            ledger
        });
        Self { stop, thread }
    }

    /// Ends the work. The database must be there.
    #[track_caller]
    pub fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the application ends in order")
    }
}

impl Ledger {
    fn write(&mut self, db: &mut Db, url: &str, counter: u64) {
        let (office, id) = (self.office, self.office * RANGE + self.committed + 1);
        let done = db.transaction(&[
            format!("INSERT INTO entry VALUES ({id}, {office}, 'entry {id}')"),
            format!("UPDATE tally SET n = n + 1 WHERE office = {office}"),
            format!("UPDATE counter SET value = value + 1 WHERE id = {counter}"),
        ]);
        let committed = match done {
            Ok(()) => true,
            Err(why) => {
                *self.refusals.entry(why).or_default() += 1;
                let (back, known) = look_up(url, id);
                *db = back;
                known
            }
        };
        if committed {
            self.committed += 1;
            self.added[usize::try_from(counter).unwrap()] += 1;
        }
    }
}

/// Connects anew as soon as the database is back, and looks whether the entry was committed.
fn look_up(url: &str, id: u64) -> (Db, bool) {
    let query = format!("SELECT count(*) FROM entry WHERE id = {id}");
    loop {
        if let Ok(mut db) = Db::try_open(url)
            && let Ok(rows) = db.try_rows(&query)
        {
            let known = rows[0][0] == "1";
            return (db, known);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Holds an office to all ledgers.
#[track_caller]
pub fn check(place: &str, db: &mut Db, ledgers: &[Ledger]) {
    let of = |ledger: &Ledger| {
        let (from, to) = (ledger.office * RANGE, (ledger.office + 1) * RANGE);
        let committed = ledger.committed.to_string();
        let last = if ledger.committed == 0 {
            "NULL".into()
        } else {
            (from + ledger.committed).to_string()
        };
        (
            format!("SELECT count(*), max(id) FROM entry WHERE id >= {from} AND id < {to}"),
            vec![committed, last],
        )
    };
    for ledger in ledgers {
        let (query, expected) = of(ledger);
        assert_eq!(db.rows(&query), [expected], "entries at {place}: {ledger}");
        let tally = db.one(&format!(
            "SELECT n FROM tally WHERE office = {}",
            ledger.office
        ));
        assert_eq!(
            tally,
            ledger.committed.to_string(),
            "tally at {place}: {ledger}"
        );
    }
    for (at, row) in db
        .rows("SELECT value FROM counter ORDER BY id")
        .iter()
        .enumerate()
    {
        let sum: u64 = ledgers.iter().map(|ledger| ledger.added[at]).sum();
        assert_eq!(row[0], sum.to_string(), "counter {at} at {place}");
    }
}

/// Looks all the time whether half of a transaction is to be seen (P5).
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Watcher {
    pub fn start(place: &str, url: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url, place) = (Arc::clone(&stop), url.to_owned(), place.to_owned());
        let query = "SELECT t.office, t.n, (SELECT count(*) FROM entry e WHERE e.office = t.office) FROM tally t";
        let thread = std::thread::spawn(move || {
            let (mut db, mut looks) = (None, 0);
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let rows = match &mut db {
                    None => {
                        db = Db::try_open(&url).ok();
                        continue;
                    }
                    Some(db) => db.try_rows(query),
                };
                match rows {
                    Ok(rows) => {
                        looks += 1;
                        for row in rows {
                            assert_eq!(row[1], row[2], "half a transaction at {place}: {row:?}");
                        }
                    }
                    Err(_) => db = None,
                }
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
            .expect("only whole transactions are seen");
        assert!(looks > 10, "it looked only {looks} times");
    }
}
