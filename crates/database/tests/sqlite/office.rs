//! A new database file, with the application beside it: a second, plain connection, no functions loaded, its own pragmas.

use std::path::PathBuf;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, DatabaseError, First, Purpose, Taken};
use branchline_core::schema::{Column, Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::sqlite::SqliteDatabase;
use rusqlite::Connection;
use tempfile::TempDir;

pub const SHOP: &str = "
    CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE);
    CREATE TABLE invoice (
        branch TEXT NOT NULL, number INTEGER NOT NULL,
        customer INTEGER REFERENCES customer(id) ON DELETE CASCADE, total DECIMAL(10,2),
        PRIMARY KEY (branch, number));
    CREATE TABLE line (id INTEGER PRIMARY KEY, branch TEXT, number INTEGER,
        FOREIGN KEY (branch, number) REFERENCES invoice);
    CREATE VIEW names AS SELECT name FROM customer;
    CREATE INDEX by_name ON customer(name);
";

/// An office: the file, the application's connection and ours.
pub struct Office {
    directory: TempDir,
    pub app: Connection,
    pub ours: SqliteDatabase,
    pub schema: Schema,
}

impl Office {
    pub async fn new(sql: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let app = Connection::open(directory.path().join("shop.db")).unwrap();
        app.execute_batch("PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000")
            .unwrap();
        app.execute_batch(sql).unwrap();
        let mut ours =
            SqliteDatabase::open(directory.path().join("shop.db").to_str().unwrap(), false)
                .unwrap();
        let inspection = ours.inspect().await.unwrap();
        let mut schema = Schema {
            version: 1,
            tables_ever: 0,
            tables: inspection.tables,
        };
        schema.sort_parents_first();
        for (table, id) in schema.tables.iter_mut().zip(1..) {
            table.id = id;
        }
        ours.prepare().await.unwrap();
        ours.install(&schema).await.unwrap();
        Self {
            directory,
            app,
            ours,
            schema,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("shop.db")
    }

    pub fn does(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap();
    }

    pub fn table(&self, name: &str) -> Table {
        self.schema.table_named(name).unwrap().clone()
    }

    pub fn id(&self, name: &str) -> u32 {
        self.table(name).id
    }

    pub async fn take(&mut self) -> Vec<Taken> {
        self.take_by(1000).await.concat()
    }

    pub async fn take_by(&mut self, limit: usize) -> Vec<Vec<Taken>> {
        let mut portions = Vec::new();
        self.ours.begin(Purpose::Take).await.unwrap();
        loop {
            let portion = self.ours.take(&self.schema, limit).await.unwrap();
            assert_eq!(portion.open, portion.more);
            portions.push(portion.changes);
            if !portion.open {
                break;
            }
        }
        self.ours.commit().await.unwrap();
        portions
    }

    pub async fn apply(&mut self, effects: &[(u32, Effect)]) -> Result<(), DatabaseError> {
        self.ours.begin(Purpose::Apply).await?;
        let result = match self.ours.write(&self.schema, effects).await {
            Ok(()) => self.ours.commit().await,
            refused => refused,
        };
        self.ours.rollback().await?;
        result
    }

    pub fn texts(&self, sql: &str) -> Vec<String> {
        self.app
            .prepare(sql)
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }
}

pub fn text(text: &str) -> Value {
    Value::Text(text.into())
}

pub fn customer(id: i64, name: &str, email: &str) -> Row {
    Row(vec![Value::Int(id), text(name), text(email)])
}

pub fn key(id: i64) -> Key {
    Key(vec![Value::Int(id)])
}

/// (key, what became of it, how it stood before), sorted.
pub fn summary(office: &Office, taken: &[Taken]) -> Vec<(Key, bool, First)> {
    let mut summary: Vec<_> = taken
        .iter()
        .map(|taken| {
            let table = office.schema.table(taken.table).unwrap();
            (
                taken.effect.key(table),
                taken.effect.row().is_some(),
                taken.first,
            )
        })
        .collect();
    summary.sort();
    summary
}

pub fn dump(app: &Connection) -> Vec<(String, String, Option<String>)> {
    app.prepare("SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

pub fn column(name: &str, kind: Type, nullable: bool) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable,
        default: None,
        generated_key: false,
        id: 0,
    }
}

pub fn plain(id: u32, name: &str, columns: Vec<Column>) -> Table {
    Table {
        id,
        name: name.into(),
        columns,
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    }
}
