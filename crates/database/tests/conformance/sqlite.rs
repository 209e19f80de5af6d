//! SQLite, in a file that the application put into WAL mode.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use branchline_core::identity::Micros;
use branchline_core::schema::{Schema, Table};
use branchline_core::value::Type;
use branchline_database::sqlite::{SqliteDatabase, compatible};
use branchline_testkit::conformance::sql::{Dialect, quoted, statement};
use branchline_testkit::conformance::{Application, Office, Op};
use rusqlite::Connection;
use tempfile::TempDir;

struct SqliteOffice {
    folder: TempDir,
}

struct SqliteApplication {
    connection: Arc<Mutex<Connection>>,
}

branchline_testkit::conformance_tests!(office);

async fn office() -> SqliteOffice {
    let office = SqliteOffice {
        folder: TempDir::new().unwrap(),
    };
    office
        .connect()
        .pragma_update(None, "journal_mode", "wal")
        .unwrap();
    office
}

impl SqliteOffice {
    fn path(&self) -> String {
        self.folder.path().join("office.db").display().to_string()
    }

    fn connect(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection
            .pragma_update(None, "foreign_keys", "on")
            .unwrap();
        connection
    }
}

impl Office for SqliteOffice {
    type Db = SqliteDatabase;
    type App = SqliteApplication;
    const CONCURRENT_WRITERS: bool = false;
    const TELLS_TRANSACTIONS_APART: bool = false;

    async fn open(&self) -> SqliteDatabase {
        SqliteDatabase::open(&self.path(), false).unwrap()
    }

    async fn application(&self) -> SqliteApplication {
        SqliteApplication {
            connection: Arc::new(Mutex::new(self.connect())),
        }
    }

    async fn objects(&self) -> Vec<String> {
        let connection = self.connect();
        let mut all = connection
            .prepare("SELECT type || ' ' || name FROM sqlite_schema ORDER BY 1")
            .unwrap();
        let names = all.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    }

    fn now(&self) -> Micros {
        super::now()
    }

    fn serves(&self, planned: &Type, found: &Type) -> bool {
        compatible(planned, found)
    }
}

impl SqliteApplication {
    /// Runs statements on a thread that may wait for the write lock.
    async fn execute(&self, statements: Vec<String>) -> Result<(), String> {
        let connection = Arc::clone(&self.connection);
        let run = move || {
            let connection = connection.lock().unwrap();
            for statement in statements {
                connection
                    .execute_batch(&statement)
                    .map_err(|error| format!("{statement}: {error}"))?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

impl Application for SqliteApplication {
    async fn begin(&mut self) {
        self.execute(vec!["BEGIN IMMEDIATE".into()]).await.unwrap();
    }

    async fn run(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        self.execute(
            ops.iter()
                .map(|op| statement(Dialect::Sqlite, schema, op))
                .collect(),
        )
        .await
    }

    async fn commit(&mut self) -> Result<(), String> {
        self.execute(vec!["COMMIT".into()]).await
    }

    async fn roll_back(&mut self) {
        self.execute(vec!["ROLLBACK".into()]).await.unwrap();
    }

    async fn define(&mut self, _: &Table, _: &Table, statements: &[(Option<Dialect>, String)]) {
        let mine = statements
            .iter()
            .filter(|(dialect, _)| dialect.is_none_or(|dialect| dialect == Dialect::Sqlite));
        self.execute(mine.map(|(_, sql)| sql.clone()).collect())
            .await
            .unwrap();
    }

    async fn break_capture(&mut self, table: &Table) {
        let triggers: Vec<String> = {
            let connection = self.connection.lock().unwrap();
            let of_table =
                "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1";
            let mut of_table = connection.prepare(of_table).unwrap();
            let names = of_table.query_map([&table.name], |row| row.get(0)).unwrap();
            names.map(Result::unwrap).collect()
        };
        assert!(
            !triggers.is_empty(),
            "`{}` has no triggers to drop",
            table.name
        );
        self.execute(
            triggers
                .iter()
                .map(|name| format!("DROP TRIGGER {}", quoted(name)))
                .collect(),
        )
        .await
        .unwrap();
    }
}
