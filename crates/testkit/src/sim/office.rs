//! An office: a database that survives, a machine that does not, a clock that may be wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use branchline_core::branch::Branch;
use branchline_core::change::{Key, Row};
use branchline_core::head::Head;
use branchline_core::identity::{Micros, OfficeName};
use branchline_core::output::Output;
use branchline_core::schema::{Schema, Table};
use branchline_database::sqlite::SqliteDatabase;
use rusqlite::types::Value as SqlValue;

use super::faults::Plan;
use super::model::{RowName, WriteId};
use crate::conformance::Op;
use crate::conformance::sql::{Dialect, quoted, statement};
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

/// An office's database.
pub enum Disk {
    /// In memory.
    Memory(MemoryDatabase),
    /// A SQLite file.
    Sqlite(Box<File>),
}

/// A SQLite file, with Branchline's connection and the application's.
pub struct File {
    /// Branchline's connection.
    pub database: SqliteDatabase,
    application: rusqlite::Connection,
    path: PathBuf,
}

/// A copy of a database's content.
pub enum Image {
    /// Of one in memory.
    Memory(Snapshot),
    /// Of a file.
    Sqlite(Vec<u8>),
}

fn connect(path: &std::path::Path) -> (SqliteDatabase, rusqlite::Connection) {
    let database = SqliteDatabase::open(&path.display().to_string(), true).expect("the file opens");
    let application = rusqlite::Connection::open(path).expect("the file opens");
    application
        .execute_batch(
            "PRAGMA busy_timeout = 0; PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF",
        )
        .expect("settings");
    (database, application)
}

impl Disk {
    /// A new database, in memory or as a file in this folder.
    pub fn new(folder: Option<&std::path::Path>, name: &str) -> Self {
        match folder {
            None => Self::Memory(MemoryDatabase::new()),
            Some(folder) => {
                let path = folder.join(format!("{name}.db"));
                let (database, application) = connect(&path);
                Self::Sqlite(Box::new(File {
                    database,
                    application,
                    path,
                }))
            }
        }
    }

    /// The process died: what was not committed is gone.
    pub fn reopen(&mut self) {
        match self {
            Self::Memory(database) => {
                database.crash();
                let again = database.clone();
                *database = again;
            }
            Self::Sqlite(file) => {
                let (database, application) = connect(&file.path);
                file.database = database;
                file.application = application;
            }
        }
    }

    /// Copies the committed content; no transaction is open.
    pub fn image(&self) -> Image {
        match self {
            Self::Memory(database) => Image::Memory(database.snapshot()),
            Self::Sqlite(file) => Image::Sqlite(std::fs::read(&file.path).expect("the file reads")),
        }
    }

    /// Becomes what it was.
    pub fn restore(&mut self, image: &Image) {
        match (&mut *self, image) {
            (Self::Memory(database), Image::Memory(snapshot)) => database.restore(snapshot),
            (Self::Sqlite(file), Image::Sqlite(bytes)) => {
                std::fs::write(&file.path, bytes).expect("the file writes")
            }
            _ => panic!("an image of another engine"),
        }
        self.reopen();
    }

    /// Sets the clock that captured writes are stamped with, where the engine lets us.
    pub fn set_now(&self, now: Micros) {
        if let Self::Memory(database) = self {
            database.set_now(now);
        }
    }

    /// One whole transaction of the application.
    pub fn write_now(&mut self, schema: &Schema, ops: &[Op], now: Micros) -> Result<(), String> {
        self.set_now(now);
        match self {
            Self::Memory(database) => database.application().write_now(schema, ops),
            Self::Sqlite(file) => {
                let mut sql = String::from("BEGIN IMMEDIATE;");
                for op in ops {
                    sql.push_str(&statement(Dialect::Sqlite, schema, op));
                    sql.push(';');
                }
                sql.push_str("COMMIT");
                file.application.execute_batch(&sql).map_err(|error| {
                    let _none_open = file.application.execute_batch("ROLLBACK");
                    error.to_string()
                })
            }
        }
    }

    /// A committed row, as the application sees it.
    pub fn row(&mut self, table: &Table, key: &Key) -> Option<Row> {
        self.rows(table)
            .into_iter()
            .find(|row| table.key_of(row) == *key)
    }

    /// All committed rows, in key order.
    pub fn rows(&mut self, table: &Table) -> Vec<Row> {
        match self {
            Self::Memory(database) => database.rows(&table.name),
            Self::Sqlite(file) => {
                let select = format!("SELECT * FROM {} ORDER BY 1", quoted(&table.name));
                let Ok(mut select) = file.application.prepare(&select) else {
                    return Vec::new();
                };
                let width = table.columns.len();
                let rows = select.query_map([], |row| {
                    (0..width)
                        .map(|at| row.get::<_, SqlValue>(at))
                        .collect::<Result<Vec<_>, _>>()
                });
                let row = |row: Result<Vec<SqlValue>, _>| {
                    Row(row.expect("a row").into_iter().map(plain).collect())
                };
                rows.expect("rows").map(row).collect()
            }
        }
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
    /// A backup, and the last write before it.
    pub image: Option<(Image, WriteId)>,
    /// It was restored at least once.
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
