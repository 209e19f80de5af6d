//! An office: a database that survives, a machine that does not, a clock that may be wrong.

use std::cell::RefCell;
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
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_database::sqlite::SqliteDatabase;
use rusqlite::params_from_iter;
use rusqlite::types::Value as SqlValue;

use super::faults::Plan;
use super::migrations::{Change, Migration, column_of, lasting};
use super::model::{RowName, WriteId};
use super::workload;
use crate::conformance::Op;
use crate::conformance::sql::quoted;
use crate::memory::{MemoryDatabase, Snapshot};
use branchline_core::value::{Type, Value};

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
    /// How often Branchline's process died.
    deaths: u32,
    /// The application's tables, as they were in this version of the catalogue.
    known: RefCell<Option<(i64, Vec<Table>)>>,
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
            deaths: 0,
            known: RefCell::default(),
        }
    }

    /// Branchline's process died, the application's did not; SQLite undoes what was not committed. A new connection each
    /// time would cost a fourth of a run, to read the catalogue and to prepare all statements.
    fn die(&mut self) {
        self.deaths += 1;
        if self.deaths % 4 == 1 {
            self.reopen();
        } else {
            run(self.database.rollback()).expect("a transaction can be undone");
        }
    }

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

    /// Read again where the catalogue has changed.
    fn tables(&self) -> Vec<Table> {
        let version = self.application.prepare_cached("PRAGMA schema_version");
        let version = version.and_then(|mut one| one.query_row([], |row| row.get::<_, i64>(0)));
        // Where another transaction keeps the application from looking, it cannot write either.
        let Ok(version) = version else {
            return Vec::new();
        };
        let mut known = self.known.borrow_mut();
        if known.as_ref().is_none_or(|(then, _)| *then != version) {
            *known = self.read_tables().ok().map(|tables| (version, tables));
        }
        known
            .iter()
            .flat_map(|(_, tables)| tables)
            .cloned()
            .collect()
    }

    fn read_tables(&self) -> rusqlite::Result<Vec<Table>> {
        let names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
        let mut names = self.application.prepare_cached(names)?;
        let names = names.query_map([], |row| row.get::<_, String>(0))?;
        let table = |name: String| {
            let mut columns = self
                .application
                .prepare_cached("SELECT name, type FROM pragma_table_info(?)")?;
            let columns = columns.query_map([&name], |row| {
                Ok(Column {
                    name: row.get(0)?,
                    kind: match row.get::<_, String>(1)?.to_uppercase() {
                        kind if kind.contains("INT") => Type::Int64,
                        _ => Type::Text { max: None },
                    },
                    nullable: true,
                    default: None,
                    generated_key: false,
                    id: 0,
                })
            })?;
            let mut told = workload::table(0, &name, Default::default(), Default::default());
            told.columns = columns.collect::<rusqlite::Result<_>>()?;
            Ok(told)
        };
        names.map(|name| table(name?)).collect()
    }

    fn migrate(&self, migration: &Migration, here: Option<&Table>) -> bool {
        let sql = match (&migration.change, here) {
            (Change::CreateTable, None) => {
                let name = quoted(&migration.table);
                format!(
                    "CREATE TABLE {name} (id INTEGER NOT NULL PRIMARY KEY, payload TEXT NOT NULL, extra INTEGER)"
                )
            }
            (Change::DropTable, Some(here)) => format!("DROP TABLE {}", quoted(&here.name)),
            (change, Some(here)) => {
                let Some((from, to)) = migration.altered(here) else {
                    return false;
                };
                let name = quoted(&from.name);
                let column = |name: &str| {
                    let at = column_of(&from, name).unwrap_or_default();
                    quoted(&from.columns[at].name)
                };
                match change {
                    Change::AddColumn(added) => {
                        let kind = match added.kind {
                            Type::Text { .. } => "TEXT",
                            _ => "INTEGER",
                        };
                        let default = match &added.default {
                            Some(Value::Int(number)) => format!(" DEFAULT {number}"),
                            Some(Value::Text(text)) => format!(" DEFAULT '{text}'"),
                            _ => String::new(),
                        };
                        format!(
                            "ALTER TABLE {name} ADD COLUMN {} {kind}{default}",
                            quoted(&added.name)
                        )
                    }
                    Change::DropColumn(gone) => {
                        format!("ALTER TABLE {name} DROP COLUMN {}", column(gone))
                    }
                    Change::RenameColumn(old, new) => format!(
                        "ALTER TABLE {name} RENAME COLUMN {} TO {}",
                        column(old),
                        quoted(new)
                    ),
                    Change::RenameTable(_) => {
                        format!("ALTER TABLE {name} RENAME TO {}", quoted(&to.name))
                    }
                    _ => return false,
                }
            }
            (_, None) => return false,
        };
        self.application.execute_batch(&sql).is_ok()
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
            Store::Sqlite(file) => file.die(),
        }
    }

    /// The kind of place that it is in. A file's copy is kept in memory.
    pub fn place(&self) -> Place<'static> {
        match &self.store {
            Store::Memory(_) => Place::Memory,
            Store::Sqlite(_) => Place::SqliteMemory,
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
                file.reopen();
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

    /// The tables that the application finds here, numbered by what lasts of their names.
    pub fn tables(&self, ids: &BTreeMap<String, TableId>) -> Schema {
        let tables = match &self.store {
            Store::Memory(database) => database.tables(),
            Store::Sqlite(file) => file.tables(),
        };
        let numbered = tables.into_iter().filter_map(|mut table| {
            table.id = *ids.get(lasting(&table.name))?;
            Some(table)
        });
        Schema {
            tables: numbered.collect(),
            ..Schema::default()
        }
    }

    /// The application changes its tables. Returns whether it could.
    pub fn migrate(&mut self, migration: &Migration, tables: &Schema) -> bool {
        let here = tables.table(migration.id);
        self.changed = true;
        match &mut self.store {
            Store::Memory(database) => {
                let mut application = database.application();
                match (&migration.change, here) {
                    (Change::CreateTable, None) => {
                        application.create_now(&migration.new_table()).is_ok()
                    }
                    (Change::DropTable, Some(here)) => application.drop_now(&here.name).is_ok(),
                    (_, Some(here)) => migration
                        .altered(here)
                        .is_some_and(|(from, to)| application.alter_now(&from, &to).is_ok()),
                    (_, None) => false,
                }
            }
            Store::Sqlite(file) => file.migrate(migration, here),
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
    /// A step failed a moment ago; nothing is worked on.
    pub troubled: bool,
    /// The machine is read anew before it does anything: it may not know what its database says.
    pub stale: bool,
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
    /// The application has changed its tables, and the process has not worked since.
    pub altered: bool,
}

impl Office {
    /// An office that is not set up, with an empty database in memory.
    pub fn new(name: OfficeName) -> Self {
        Self {
            disk: Disk::new(Place::Memory, name.as_str()),
            name,
            machine: None,
            skew: 0,
            plan: Plan::default(),
            times: BTreeMap::new(),
            lives: 0,
            founded: false,
            working: false,
            troubled: false,
            stale: false,
            failures: 0,
            manual: false,
            invitations: 0,
            image: None,
            restored: false,
            joined: false,
            altered: false,
        }
    }

    /// The time by its own clock.
    pub fn clock(&self, now: i64) -> Micros {
        Micros(now + self.skew)
    }
}
