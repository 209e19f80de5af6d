//! An office: a database that survives, a machine that does not, a clock that may be wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use branchline_core::branch::Branch;
use branchline_core::change::{Key, Row};
use branchline_core::head::Head;
use branchline_core::identity::{Micros, OfficeName};
use branchline_core::output::Output;
use branchline_core::port::Database;
use branchline_core::schema::{Schema, Table};
use branchline_database::sqlite::SqliteDatabase;
use rusqlite::params_from_iter;
use rusqlite::types::Value as SqlValue;

use super::faults::Plan;
use super::model::{RowName, WriteId};
use crate::conformance::Op;
use crate::conformance::sql::quoted;
use crate::memory::{MemoryDatabase, Snapshot};
use branchline_core::value::Value;

/// Runs a future that never waits.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a step of the simulation waited for something"),
    }
}

/// An office's database, and whether anything was committed since somebody last looked.
pub struct Disk {
    /// Where it is.
    pub store: Store,
    /// Something was committed, or the process died: what is checked at every step must be checked again.
    pub changed: bool,
    /// The numbers that the next transaction of the application drew before it commits.
    pub late: Option<u64>,
}

/// Where an office's database is.
#[allow(clippy::large_enum_variant, reason = "a company has few of them")]
pub enum Store {
    /// In memory.
    Memory(MemoryDatabase),
    /// In SQLite.
    Sqlite(Box<File>),
}

/// Which kind of place a new database gets.
#[derive(Clone, Copy, Debug)]
pub enum Place<'p> {
    /// The fake in memory.
    Memory,
    /// SQLite, its file kept in the memory of this process (SQLite's own `memdb`). The file's locks are the same.
    SqliteMemory,
    /// SQLite, a file in this folder.
    SqliteFile(&'p Path),
}

/// A SQLite database, with Branchline's connection and the application's.
pub struct File {
    /// Branchline's connection.
    pub database: SqliteDatabase,
    application: rusqlite::Connection,
    /// Keeps a file in memory in being while no process is.
    _anchor: Option<rusqlite::Connection>,
    address: String,
}

/// A copy of a database's content.
pub enum Image {
    /// Of one in memory.
    Memory(Snapshot),
    /// Of SQLite's.
    Sqlite(rusqlite::Connection),
}

fn open(address: &str) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(address).expect("the file opens");
    connection
        .execute_batch(
            "PRAGMA busy_timeout = 0; PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF",
        )
        .expect("settings");
    connection.set_prepared_statement_cache_capacity(256);
    connection
}

/// Copies all pages.
fn copy(from: &rusqlite::Connection, to: &mut rusqlite::Connection) {
    let backup = rusqlite::backup::Backup::new(from, to).expect("no transaction is open");
    let step = backup.step(-1).expect("the pages are copied");
    assert_eq!(step, rusqlite::backup::StepResult::Done);
}

impl File {
    fn new(address: String, in_memory: bool) -> Self {
        let anchor = in_memory.then(|| open(&address));
        Self {
            database: SqliteDatabase::open(&address, true).expect("the file opens"),
            application: open(&address),
            _anchor: anchor,
            address,
        }
    }

    /// Branchline's process died, the application's did not; SQLite undoes what was not committed.
    fn reopen(&mut self) {
        // A file in memory lets nobody in, not even to open it, while a transaction writes.
        run(self.database.rollback()).expect("a transaction can be undone");
        self.database = SqliteDatabase::open(&self.address, true).expect("the file opens");
    }

    fn image(&self) -> rusqlite::Connection {
        let mut image = rusqlite::Connection::open_in_memory().expect("memory");
        copy(&self.application, &mut image);
        image
    }

    /// A transaction of the application.
    fn write(&self, schema: &Schema, ops: &[Op]) -> rusqlite::Result<()> {
        let run = |sql: &str, values: Vec<SqlValue>| {
            let mut statement = self.application.prepare_cached(sql)?;
            statement.execute(params_from_iter(values))
        };
        run("BEGIN IMMEDIATE", Vec::new())?;
        for op in ops {
            let (Op::Insert(table, _) | Op::Update(table, _, _) | Op::Delete(table, _)) = op;
            let table = schema.table(*table).expect("a shared table");
            let name = quoted(&table.name);
            match op {
                Op::Insert(_, row) => {
                    let places = vec!["?"; row.0.len()].join(", ");
                    let columns = listed(table);
                    let sql = format!("INSERT INTO {name}({columns}) VALUES ({places})");
                    run(&sql, row.0.iter().map(stored).collect())?;
                }
                Op::Update(_, key, row) => {
                    let columns = table.columns.iter().enumerate();
                    let set: Vec<String> = columns
                        .map(|(at, column)| format!("{} = ?{}", quoted(&column.name), at + 1))
                        .collect();
                    let condition = key_equals(table, table.columns.len() + 1);
                    let sql = format!("UPDATE {name} SET {} WHERE {condition}", set.join(", "));
                    run(&sql, row.0.iter().chain(&key.0).map(stored).collect())?;
                }
                Op::Delete(_, key) => {
                    let sql = format!("DELETE FROM {name} WHERE {}", key_equals(table, 1));
                    run(&sql, key.0.iter().map(stored).collect())?;
                }
            }
        }
        run("COMMIT", Vec::new()).map(drop)
    }

    /// Rows of a table; none where there is no such table.
    fn select(
        &self,
        table: &Table,
        how: &str,
        values: Vec<SqlValue>,
    ) -> rusqlite::Result<Vec<Row>> {
        let select = format!(
            "SELECT {} FROM {} {how}",
            listed(table),
            quoted(&table.name)
        );
        let mut select = match self.application.prepare_cached(&select) {
            Ok(select) => select,
            Err(rusqlite::Error::SqliteFailure(_, Some(why))) if why.contains("no such table") => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let width = table.columns.len();
        let rows = select.query_map(params_from_iter(values), |row| {
            (0..width)
                .map(|at| row.get::<_, SqlValue>(at).map(plain))
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.map(|row| row.map(Row)).collect()
    }
}

impl Disk {
    /// A new database.
    pub fn new(place: Place<'_>, name: &str) -> Self {
        static FILES: AtomicU64 = AtomicU64::new(0);
        let store = match place {
            Place::Memory => Store::Memory(MemoryDatabase::new()),
            Place::SqliteMemory => {
                let number = FILES.fetch_add(1, Ordering::Relaxed);
                let address = format!("file:/branchline-{number}?vfs=memdb");
                Store::Sqlite(Box::new(File::new(address, true)))
            }
            Place::SqliteFile(folder) => {
                let path = folder.join(format!("{name}.db"));
                Store::Sqlite(Box::new(File::new(path.display().to_string(), false)))
            }
        };
        Self {
            store,
            changed: true,
            late: None,
        }
    }

    /// The process died: what was not committed is gone.
    pub fn reopen(&mut self) {
        self.changed = true;
        match &mut self.store {
            Store::Memory(database) => {
                database.crash();
                let again = database.clone();
                *database = again;
            }
            Store::Sqlite(file) => file.reopen(),
        }
    }

    /// Copies the committed content; no transaction is open.
    pub fn image(&self) -> Image {
        match &self.store {
            Store::Memory(database) => Image::Memory(database.snapshot()),
            Store::Sqlite(file) => Image::Sqlite(file.image()),
        }
    }

    /// Becomes what it was.
    pub fn restore(&mut self, image: &Image) {
        match (&mut self.store, image) {
            (Store::Memory(database), Image::Memory(snapshot)) => database.restore(snapshot),
            (Store::Sqlite(file), Image::Sqlite(image)) => {
                file.reopen();
                copy(image, &mut file.application);
            }
            _ => panic!("an image of another engine"),
        }
        self.reopen();
    }

    /// Sets the clock that captured writes are stamped with, where the engine lets us.
    pub fn set_now(&self, now: Micros) {
        if let Store::Memory(database) = &self.store {
            database.set_now(now);
        }
    }

    /// One whole transaction of the application.
    pub fn write_now(&mut self, schema: &Schema, ops: &[Op], now: Micros) -> Result<(), String> {
        self.set_now(now);
        self.changed = true;
        match &mut self.store {
            Store::Memory(database) => match self.late {
                Some(first) => database.application().write_late(schema, ops, first),
                None => database.application().write_now(schema, ops),
            },
            Store::Sqlite(file) => file.write(schema, ops).map_err(|error| {
                let _none_open = file.application.execute_batch("ROLLBACK");
                error.to_string()
            }),
        }
    }

    /// The application's own DDL. Only in SQLite.
    pub fn execute(&mut self, sql: &str) {
        self.changed = true;
        match &mut self.store {
            Store::Memory(_) => panic!("no SQL in memory"),
            Store::Sqlite(file) => file.application.execute_batch(sql).expect("DDL"),
        }
    }

    /// A committed row, as the application sees it. Nothing, too, where another transaction keeps it from looking;
    /// then it cannot write either.
    pub fn row(&mut self, table: &Table, key: &Key) -> Option<Row> {
        match &self.store {
            Store::Memory(database) => database.row(&table.name, key),
            Store::Sqlite(file) => {
                let how = format!("WHERE {}", key_equals(table, 1));
                let key: Vec<SqlValue> = key.0.iter().map(stored).collect();
                file.select(table, &how, key).ok()?.pop()
            }
        }
    }

    /// All committed rows, in key order.
    pub fn rows(&mut self, table: &Table) -> Vec<Row> {
        match &self.store {
            Store::Memory(database) => database.rows(&table.name),
            Store::Sqlite(file) => {
                let keys = table.key_columns().map(|column| quoted(&column.name));
                let how = format!("ORDER BY {}", keys.collect::<Vec<_>>().join(", "));
                file.select(table, &how, Vec::new()).expect("rows")
            }
        }
    }
}

/// The columns of a table, whatever their order is in the database.
fn listed(table: &Table) -> String {
    let columns = table.columns.iter().map(|column| quoted(&column.name));
    columns.collect::<Vec<_>>().join(", ")
}

/// `"a" = ?1 AND "b" = ?2`, with the places counted from `first`.
fn key_equals(table: &Table, first: usize) -> String {
    let columns = table.key_columns().enumerate();
    let equal: Vec<String> = columns
        .map(|(at, column)| format!("{} = ?{}", quoted(&column.name), first + at))
        .collect();
    equal.join(" AND ")
}

fn stored(value: &Value) -> SqlValue {
    match value {
        Value::Null => SqlValue::Null,
        Value::Bool(truth) => SqlValue::Integer(i64::from(*truth)),
        Value::Int(number) => SqlValue::Integer(*number),
        Value::Float(number) => SqlValue::Real(*number),
        Value::Text(text) => SqlValue::Text(text.clone()),
        Value::Bytes(bytes) => SqlValue::Blob(bytes.clone()),
    }
}

fn plain(value: SqlValue) -> Value {
    match value {
        SqlValue::Null => Value::Null,
        SqlValue::Integer(number) => Value::Int(number),
        SqlValue::Real(number) => Value::Float(number),
        SqlValue::Text(text) => Value::Text(text),
        SqlValue::Blob(bytes) => Value::Bytes(bytes),
    }
}

/// The machine of an office.
pub enum Machine {
    /// The head's.
    Head(Box<Head>),
    /// A branch's.
    Branch(Box<Branch>),
}

impl Machine {
    /// The next output.
    pub fn output(&mut self) -> Option<Output> {
        match self {
            Self::Head(head) => head.output(),
            Self::Branch(branch) => branch.output(),
        }
    }

    /// Whether an arrival can be taken in.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Head(head) => head.has_room(),
            Self::Branch(branch) => branch.has_room(),
        }
    }
}

/// An office.
pub struct Office {
    /// Its name.
    pub name: OfficeName,
    /// Its database.
    pub disk: Disk,
    /// Its process, while it runs.
    pub machine: Option<Machine>,
    /// Its clock minus the true time, in microseconds.
    pub skew: i64,
    /// The faults that wait for its next database steps.
    pub plan: Plan,
    /// When each row was last written here, by the office's clock.
    pub times: BTreeMap<RowName, Micros>,
    /// How often it was started.
    pub lives: u64,
    /// It is a head, or a branch whose database is set up.
    pub founded: bool,
    /// A piece of work is on the agenda.
    pub working: bool,
    /// A step failed; nothing is worked on until the machine is read anew.
    pub troubled: bool,
    /// How many steps failed in a row.
    pub failures: u32,
    /// It moves data only when asked.
    pub manual: bool,
    /// How often it was invited.
    pub invitations: u32,
    /// A backup, and the last write before it.
    pub image: Option<(Image, WriteId)>,
    /// It was restored, or joined anew with its rows, at least once.
    pub restored: bool,
    /// The first copy is complete.
    pub joined: bool,
}

impl Office {
    /// The time by its own clock.
    pub fn clock(&self, now: i64) -> Micros {
        Micros(now + self.skew)
    }
}
