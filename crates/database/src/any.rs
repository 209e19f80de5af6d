//! One database of any engine: a closed set, dispatched by `match`.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DatabaseError, DbResult, Entry, Evolution, Extent, Inspection, LeftOut,
    Portion, Purpose,
};
use branchline_core::schema::{Schema, Table, TableId};

use crate::checks;
use crate::mysql::{self, MysqlDatabase};
use crate::postgres::{self, PostgresDatabase};
use crate::sqlite::{self, SqliteDatabase};

/// An office's database.
pub enum AnyDatabase {
    /// MariaDB or MySQL.
    Mysql(Box<MysqlDatabase>),
    /// PostgreSQL.
    Postgres(Box<PostgresDatabase>),
    /// SQLite.
    Sqlite(Box<SqliteDatabase>),
}

/// Tells when the application has written.
pub enum AnyWatcher {
    /// MariaDB or MySQL.
    Mysql(mysql::Watcher),
    /// PostgreSQL.
    Postgres(postgres::Watcher),
    /// SQLite.
    Sqlite(sqlite::Watcher),
}

impl AnyWatcher {
    /// Waits until the application has probably written something; `None` when the watch ended.
    pub async fn wake(&mut self) -> Option<()> {
        match self {
            Self::Mysql(watcher) => watcher.wake.recv().await,
            Self::Postgres(watcher) => watcher.wake.recv().await,
            Self::Sqlite(watcher) => watcher.wake.recv().await,
        }
    }
}

/// Which engine a database address names.
enum Engine {
    Mysql,
    Postgres,
    Sqlite,
}

fn engine_of(url: &str) -> Result<Engine, &'static str> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => Ok(Engine::Postgres),
        Some("sqlite") => Ok(Engine::Sqlite),
        Some("mysql" | "mariadb") => Ok(Engine::Mysql),
        _ => Err("the database address must begin with `postgres://`, `mysql://` or `sqlite:`"),
    }
}

impl AnyDatabase {
    /// What of a table's definition this engine would not make where the table is created here.
    pub fn left_out(&self, table: &Table) -> Vec<LeftOut> {
        let mut left = checks::of_counters(table);
        if let Self::Mysql(db) = self {
            left.extend(db.left_out(table));
        }
        left
    }

    /// Whether an address names an engine that is known; if not, a sentence that says so without repeating it.
    pub fn check_address(url: &str) -> Result<(), &'static str> {
        engine_of(url).map(|_| ())
    }

    /// Opens the database at an address: `postgres://...`, `mysql://...`, or `sqlite:PATH` (created where `create` says so).
    pub async fn open(url: &str, create: bool) -> DbResult<Self> {
        Ok(
            match engine_of(url).map_err(|told| DatabaseError::Refused(told.into()))? {
                Engine::Mysql => Self::Mysql(Box::new(MysqlDatabase::connect(url).await?)),
                Engine::Postgres => Self::Postgres(Box::new(PostgresDatabase::connect(url).await?)),
                Engine::Sqlite => {
                    let mut db = SqliteDatabase::open(url, create)?;
                    // What the application's triggers did at the other office travels as changes of its own (trap 4).
                    db.silence_triggers(true)?;
                    Self::Sqlite(Box::new(db))
                }
            },
        )
    }

    /// Takes the right to be the one process that owns this office's database, for as long as this value lives. False
    /// where another process has it.
    pub async fn own(&mut self) -> DbResult<bool> {
        match self {
            Self::Mysql(db) => db.own().await,
            Self::Postgres(db) => db.own().await,
            Self::Sqlite(db) => db.own(),
        }
    }

    /// To be called every few seconds by the process that owns the office, however idle it is: a server that hears nothing
    /// for a minute takes its machine for vanished and lets others have the database.
    pub async fn keep_owning(&mut self) -> DbResult<()> {
        match self {
            Self::Mysql(db) => db.keep_owning().await,
            // The servers' systems ask the machine itself; a file's lock goes with its process.
            Self::Postgres(_) | Self::Sqlite(_) => Ok(()),
        }
    }

    /// The engine's name and version.
    pub async fn describe(&mut self) -> DbResult<(String, String)> {
        match self {
            Self::Mysql(db) => db.describe().await,
            Self::Postgres(db) => db.describe().await,
            Self::Sqlite(db) => {
                let description = db.describe();
                Ok((description.engine.to_string(), description.version))
            }
        }
    }
}

/// Watches the database at an address for writes of the application.
pub async fn watch(url: &str) -> DbResult<AnyWatcher> {
    Ok(
        match engine_of(url).map_err(|told| DatabaseError::Refused(told.into()))? {
            Engine::Mysql => AnyWatcher::Mysql(mysql::watch(url).await?),
            Engine::Postgres => AnyWatcher::Postgres(postgres::watch(url).await?),
            Engine::Sqlite => AnyWatcher::Sqlite(sqlite::watch(url)?),
        },
    )
}

macro_rules! dispatch {
    ($(fn $name:ident(&mut self $(, $arg:ident: $kind:ty)*) -> $result:ty;)*) => {
        impl Database for AnyDatabase {
            fn changes_at_a_time(&self) -> usize {
                match self {
                    Self::Mysql(db) => db.changes_at_a_time(),
                    Self::Postgres(db) => db.changes_at_a_time(),
                    Self::Sqlite(db) => db.changes_at_a_time(),
                }
            }

            $(async fn $name(&mut self $(, $arg: $kind)*) -> DbResult<$result> {
                match self {
                    Self::Mysql(db) => db.$name($($arg),*).await,
                    Self::Postgres(db) => db.$name($($arg),*).await,
                    Self::Sqlite(db) => db.$name($($arg),*).await,
                }
            })*
        }
    };
}

dispatch! {
    fn begin(&mut self, purpose: Purpose) -> ();
    fn commit(&mut self) -> ();
    fn rollback(&mut self) -> ();
    fn take(&mut self, schema: &Schema, limit: usize) -> Portion;
    fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> BTreeSet<Key>;
    fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> ();
    fn mark(&mut self) -> ();
    fn backlog(&mut self) -> Backlog;
    fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> ();
    fn begin_write(&mut self, schema: &Schema, effects: Vec<(TableId, Effect)>) -> ();
    fn read(&mut self, table: &Table, keys: &[Key]) -> BTreeMap<Key, Row>;
    fn chunk(&mut self, table: &Table, after: Option<&Key>, limit: usize) -> Vec<Row>;
    fn meta(&mut self, name: &str) -> Option<Vec<u8>>;
    fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> ();
    fn append(&mut self, stream: &str, entries: &[Entry]) -> ();
    fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> Vec<Entry>;
    fn trim(&mut self, stream: &str, through: u64) -> ();
    fn extent(&mut self, stream: &str) -> Extent;
    fn notes(&mut self, table: &Table, keys: Option<&[Key]>) -> BTreeMap<Key, Vec<u8>>;
    fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> ();
    fn inspect(&mut self) -> Inspection;
    fn definitions(&mut self) -> Inspection;
    fn prepare(&mut self) -> ();
    fn install(&mut self, schema: &Schema) -> ();
    fn shape(&mut self, schema: &Schema) -> Digest;
    fn hold_still(&mut self, table: &Table) -> ();
    fn evolve(&mut self, from: &Schema, to: &Schema, dropped: &[TableId]) -> Evolution;
    fn missing_capture(&mut self, schema: &Schema) -> Vec<TableId>;
    fn create_tables(&mut self, schema: &Schema) -> Vec<String>;
    fn add_foreign_keys(&mut self, schema: &Schema) -> ();
    fn uninstall(&mut self) -> ();
}
