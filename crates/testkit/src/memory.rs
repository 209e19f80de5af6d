//! An office's database in memory: the port's contract without a file, a server or a wait.
//!
//! It passes the same suite as the real adapters ([`crate::conformance`]). One writer at a time; a transaction works on
//! a copy that shares what it does not touch, and its commit puts the copy in place. The clock stands until it is set.
//! All handles of one database share its [`Snapshot`], which can be kept and restored, to play crashes and backups.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use branchline_core::change::{Key, Row};
use branchline_core::identity::Micros;
use branchline_core::port::{Database, DatabaseError, DbResult, Purpose, Taken};
use branchline_core::schema::Table;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

mod application;
mod capture;
mod evolve;
mod kept;
mod port;
mod state;

pub use application::MemoryApplication;
use state::State;

/// A database's whole content at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(State);

/// What becomes of the next commit on any handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostCommit {
    /// It did not happen, and the caller hears that the database is gone.
    Undone,
    /// It happened, and the caller hears that the database is gone.
    Done,
}

/// A handle to a database in memory. A clone is another handle to the same database.
#[derive(Debug)]
pub struct MemoryDatabase {
    shared: Arc<Shared>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    writer: Arc<Semaphore>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    now: Micros,
    reachable: bool,
    lost_commit: Option<LostCommit>,
    /// Counts crashes and restores; a transaction does not outlive one.
    life: u64,
}

#[derive(Debug)]
struct Open {
    purpose: Purpose,
    work: State,
    life: u64,
    failed: bool,
    /// What is left of the unit that the last portion began.
    unit: VecDeque<Taken>,
    _writer: Option<OwnedSemaphorePermit>,
}

impl Default for MemoryDatabase {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryDatabase {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            open: None,
        }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no test panics while it holds the state")
    }
}

/// What an operator or a fault does to the database.
impl MemoryDatabase {
    /// A new, empty database.
    pub fn new() -> Self {
        let now = Micros(1_700_000_000_000_000);
        let inner = Inner {
            state: State::default(),
            now,
            reachable: true,
            lost_commit: None,
            life: 0,
        };
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                writer: Arc::new(Semaphore::new(1)),
            }),
            open: None,
        }
    }

    /// The application's connection.
    pub fn application(&self) -> MemoryApplication {
        MemoryApplication::new(Arc::clone(&self.shared))
    }

    /// The time by the database's clock.
    pub fn now(&self) -> Micros {
        self.shared.inner().now
    }

    /// Sets the database's clock.
    pub fn set_now(&self, now: Micros) {
        self.shared.inner().now = now;
    }

    /// What is committed.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.shared.inner().state.clone())
    }

    /// Makes the database what it was; open transactions are lost.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut inner = self.shared.inner();
        inner.state = snapshot.0.clone();
        inner.life += 1;
    }

    /// Draws this many numbers for captured writes, for a transaction that is to commit late. Returns the first.
    pub fn reserve_numbers(&self, count: u64) -> u64 {
        let mut inner = self.shared.inner();
        let first = inner.state.numbers + 1;
        inner.state.numbers += count;
        first
    }

    /// Forgets captured writes with these numbers, as a reader would that follows a watermark.
    pub fn forget_captured(&self, numbers: std::ops::Range<u64>) {
        let mut inner = self.shared.inner();
        Arc::make_mut(&mut inner.state.capture).retain(|number, _| !numbers.contains(number));
    }

    /// Loses all open transactions, on every handle.
    pub fn crash(&self) {
        self.shared.inner().life += 1;
    }

    /// Whether Branchline can reach the database; the application always can.
    pub fn set_reachable(&self, reachable: bool) {
        self.shared.inner().reachable = reachable;
    }

    /// Loses the answer to the next commit of any of Branchline's handles.
    pub fn lose_next_commit(&self, how: LostCommit) {
        self.shared.inner().lost_commit = Some(how);
    }

    /// All committed rows of a table, in key order.
    pub fn rows(&self, table: &str) -> Vec<Row> {
        let inner = self.shared.inner();
        inner
            .state
            .tables
            .get(table)
            .map(|table| table.rows.values().map(|row| Row::clone(row)).collect())
            .unwrap_or_default()
    }

    /// The committed row with this key.
    pub fn row(&self, table: &str, key: &Key) -> Option<Row> {
        let inner = self.shared.inner();
        let row = inner.state.tables.get(table)?.rows.get(key)?;
        Some(Row::clone(row))
    }

    /// The definitions of all tables, as the application knows them.
    pub fn tables(&self) -> Vec<Table> {
        let inner = self.shared.inner();
        let tables = inner.state.tables.values();
        tables.map(|stored| Table::clone(&stored.table)).collect()
    }

    /// The names of all that the database holds.
    pub fn objects(&self) -> Vec<String> {
        self.shared.inner().state.objects()
    }
}

fn gone() -> DatabaseError {
    DatabaseError::Unreachable("the database in memory is away".into())
}

fn misuse(what: &str) -> DatabaseError {
    DatabaseError::Other(what.into())
}

impl MemoryDatabase {
    /// Runs a step in the open transaction. A failed step leaves nothing to do but to roll back.
    fn step<T>(&mut self, run: impl FnOnce(&mut Open, Micros) -> DbResult<T>) -> DbResult<T> {
        let (now, life, reachable) = {
            let inner = self.shared.inner();
            (inner.now, inner.life, inner.reachable)
        };
        // As on the real engines, a look without a transaction sees what is committed at that moment.
        let alone = self
            .open
            .is_none()
            .then(|| self.shared.inner().state.clone());
        let mut alone = alone.map(|work| Open {
            purpose: Purpose::Read,
            work,
            life,
            failed: false,
            unit: VecDeque::new(),
            _writer: None,
        });
        let open = self
            .open
            .as_mut()
            .or(alone.as_mut())
            .ok_or_else(|| misuse("no transaction is open"))?;
        let result = match (reachable && open.life == life, open.failed) {
            (false, _) => Err(gone()),
            (true, true) => Err(misuse("the transaction has failed; roll it back")),
            (true, false) => run(open, now),
        };
        open.failed |= result.is_err();
        result
    }

    fn change<T>(&mut self, run: impl FnOnce(&mut Open, Micros) -> DbResult<T>) -> DbResult<T> {
        self.step(|open, now| match open.purpose {
            Purpose::Read => Err(misuse("a transaction for reading writes nothing")),
            Purpose::Take | Purpose::Apply | Purpose::Load => run(open, now),
        })
    }

    /// A transaction of one step.
    async fn alone<T>(&mut self, run: impl FnOnce(&mut State) -> DbResult<T>) -> DbResult<T> {
        self.begin(Purpose::Apply).await?;
        let result = self.step(|open, _| run(&mut open.work));
        match result {
            Ok(value) => self.commit().await.map(|()| value),
            Err(error) => {
                self.rollback().await?;
                Err(error)
            }
        }
    }
}
