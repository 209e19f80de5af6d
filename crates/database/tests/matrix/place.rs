//! A new, empty database of any engine, with the application's SQL on one side and the adapter on the other.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DbResult, Inspection, Purpose, Unreadable};
use branchline_core::schema::{Schema, Table};
use branchline_core::value::canonical;
use branchline_database::AnyDatabase;
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    Postgres,
    MariaDb,
    Sqlite,
}

pub const ENGINES: [Engine; 3] = [Engine::Postgres, Engine::MariaDb, Engine::Sqlite];

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
            Self::Sqlite => "SQLite",
        })
    }
}

pub struct Place {
    pub engine: Engine,
    pub db: AnyDatabase,
    url: String,
    _folder: TempDir,
}

impl Place {
    pub async fn new(engine: Engine) -> Self {
        let folder = TempDir::new().unwrap();
        let url = match engine {
            Engine::Postgres => servers::postgres().fresh_database(),
            Engine::MariaDb => servers::mariadb().fresh_database(),
            Engine::Sqlite => format!("sqlite:{}", folder.path().join("office.db").display()),
        };
        let mut db = AnyDatabase::open(&url, true).await.unwrap();
        db.prepare().await.unwrap();
        Self {
            engine,
            db,
            url,
            _folder: folder,
        }
    }

    /// One with a table that the application made.
    pub async fn with(engine: Engine, sql: &str) -> Self {
        let place = Self::new(engine).await;
        place.sql(sql).await;
        place
    }

    /// Statements of the application.
    pub async fn sql(&self, sql: &str) {
        self.try_sql(sql)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}: {sql}", self.engine));
    }

    pub async fn try_sql(&self, sql: &str) -> Result<(), String> {
        match self.engine {
            Engine::Postgres => {
                let (client, connection) =
                    tokio_postgres::connect(&self.url, tokio_postgres::NoTls)
                        .await
                        .unwrap();
                let connection = tokio::spawn(connection);
                let done = client.batch_execute(sql).await;
                connection.abort();
                done.map_err(|error| format!("{error:?}"))
            }
            Engine::MariaDb => {
                let opts = mysql_async::Opts::from_url(&self.url).unwrap();
                let mut conn = mysql_async::Conn::new(opts).await.unwrap();
                let done = conn.query_drop(sql).await;
                conn.disconnect().await.unwrap();
                done.map_err(|error| error.to_string())
            }
            Engine::Sqlite => {
                let path = self.url.trim_start_matches("sqlite:");
                let connection = rusqlite::Connection::open(path).unwrap();
                connection
                    .execute_batch(sql)
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// The texts of one column of a query of the application's.
    pub async fn see(&self, sql: &str) -> Vec<Option<String>> {
        match self.engine {
            Engine::Postgres => {
                let (client, connection) =
                    tokio_postgres::connect(&self.url, tokio_postgres::NoTls)
                        .await
                        .unwrap();
                let connection = tokio::spawn(connection);
                let rows = client.query(sql, &[]).await.unwrap();
                connection.abort();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Engine::MariaDb => {
                let opts = mysql_async::Opts::from_url(&self.url).unwrap();
                let mut conn = mysql_async::Conn::new(opts).await.unwrap();
                let rows = conn.query(sql).await.unwrap();
                conn.disconnect().await.unwrap();
                rows
            }
            Engine::Sqlite => {
                let path = self.url.trim_start_matches("sqlite:");
                let connection = rusqlite::Connection::open(path).unwrap();
                let mut select = connection.prepare(sql).unwrap();
                let rows = select.query_map([], |row| row.get(0)).unwrap();
                rows.map(Result::unwrap).collect()
            }
        }
    }

    /// What an inspection finds, with the tables numbered.
    pub async fn look(&mut self) -> Inspection {
        let mut found = self.db.inspect().await.unwrap();
        for (id, table) in (1..).zip(&mut found.tables) {
            table.id = id;
        }
        found
    }

    /// Shares a plan's table, which is made here where it is missing.
    pub async fn share(&mut self, schema: &Schema) -> DbResult<()> {
        self.db.create_tables(schema).await?;
        self.db.add_foreign_keys(schema).await?;
        self.db.install(schema).await
    }

    /// Writes one row as sync does, or nothing.
    pub async fn put(&mut self, schema: &Schema, row: &Row) -> DbResult<()> {
        self.write(schema, &[(schema.tables[0].id, Effect::Put(row.clone()))])
            .await
    }

    /// Writes as sync does, or nothing.
    pub async fn write(&mut self, schema: &Schema, effects: &[(u32, Effect)]) -> DbResult<()> {
        self.db.begin(Purpose::Apply).await.unwrap();
        match self.db.write(schema, effects).await {
            Ok(()) => self.db.commit().await,
            Err(error) => {
                self.db.rollback().await.unwrap();
                Err(error)
            }
        }
    }

    /// All that was captured, the rows by table and in their one spelling; deletes are left out.
    pub async fn take_tables(&mut self, schema: &Schema) -> (Vec<(u32, Row)>, Vec<Unreadable>) {
        self.db.begin(Purpose::Take).await.unwrap();
        let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let portion = self.db.take(schema, 1000).await.unwrap();
            for taken in portion.changes {
                let table = schema.table(taken.table).unwrap();
                rows.extend(taken.effect.row().map(|row| (table.id, folded(table, row))));
            }
            unreadable.extend(portion.unreadable);
            if !portion.open && !portion.more {
                break;
            }
        }
        self.db.commit().await.unwrap();
        rows.sort();
        (rows, unreadable)
    }

    /// All rows of all tables, as sync takes them when it joins.
    pub async fn take_all_tables(&mut self, schema: &Schema) -> (Vec<(u32, Row)>, Vec<Unreadable>) {
        self.db.begin(Purpose::Apply).await.unwrap();
        for table in &schema.tables {
            self.db.recapture(table, None).await.unwrap();
        }
        self.db.commit().await.unwrap();
        self.take_tables(schema).await
    }

    /// As [`Place::take_tables`], of the one table that there is.
    pub async fn take(&mut self, schema: &Schema) -> (Vec<Row>, Vec<Unreadable>) {
        let (rows, unreadable) = self.take_tables(schema).await;
        (rows.into_iter().map(|(_, row)| row).collect(), unreadable)
    }

    /// As [`Place::take_all_tables`], of the one table that there is.
    pub async fn take_all(&mut self, schema: &Schema) -> (Vec<Row>, Vec<Unreadable>) {
        let (rows, unreadable) = self.take_all_tables(schema).await;
        (rows.into_iter().map(|(_, row)| row).collect(), unreadable)
    }
}

/// The row with every value in its one spelling.
pub fn folded(table: &Table, row: &Row) -> Row {
    assert!(table.fits(row), "{row:?} has the shape of `{}`", table.name);
    let values = table.columns.iter().zip(&row.0);
    Row(values
        .map(|(column, value)| canonical(&column.kind, value).into_owned())
        .collect())
}

/// A schema of these tables, which get their numbers.
pub fn schema(tables: Vec<Table>) -> Schema {
    let mut schema = Schema {
        version: 1,
        tables_ever: 0,
        tables,
    };
    schema.sort_parents_first();
    for (id, table) in (1..).zip(&mut schema.tables) {
        table.id = id;
    }
    schema
}
