//! The offices' own applications: plain clients of their databases that know nothing of Branchline.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How an application waits for a lock of SQLite.
const BUSY: Duration = Duration::from_secs(10);

/// A client.
pub enum Db {
    Postgres {
        runtime: tokio::runtime::Runtime,
        client: tokio_postgres::Client,
    },
    Sqlite(rusqlite::Connection),
    Mysql {
        runtime: tokio::runtime::Runtime,
        conn: mysql_async::Conn,
    },
}

impl Db {
    /// Connects to the database of an office.
    #[track_caller]
    pub fn open(url: &str) -> Self {
        Self::try_open(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// Connects, or says why not.
    pub fn try_open(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let open = || {
                let connection = rusqlite::Connection::open(path)?;
                connection.busy_timeout(BUSY)?;
                connection.execute_batch("PRAGMA foreign_keys = ON")?;
                Ok(connection)
            };
            return open()
                .map(Self::Sqlite)
                .map_err(|error: rusqlite::Error| error.to_string());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        if url.starts_with("mysql:") {
            return match runtime.block_on(mysql_async::Conn::from_url(url)) {
                Ok(conn) => Ok(Self::Mysql { runtime, conn }),
                Err(error) => Err(error.to_string()),
            };
        }
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        });
        client
            .map(|client| Self::Postgres { runtime, client })
            .map_err(|error: tokio_postgres::Error| error.to_string())
    }

    /// Runs statements as one transaction.
    pub fn transaction(&mut self, statements: &[String]) -> Result<(), String> {
        match self {
            // Statements of one simple query are one transaction.
            Self::Postgres { runtime, client } => runtime
                .block_on(client.batch_execute(&statements.join(";\n")))
                .map_err(|error| {
                    error
                        .as_db_error()
                        .map_or(error.to_string(), ToString::to_string)
                }),
            Self::Sqlite(connection) => {
                let begin = rusqlite::TransactionBehavior::Immediate;
                let transaction = connection
                    .transaction_with_behavior(begin)
                    .map_err(|error| error.to_string())?;
                for statement in statements {
                    transaction
                        .execute_batch(statement)
                        .map_err(|error| error.to_string())?;
                }
                transaction.commit().map_err(|error| error.to_string())
            }
            Self::Mysql { runtime, conn } => {
                let all = format!("START TRANSACTION;\n{};\nCOMMIT", statements.join(";\n"));
                runtime.block_on(async {
                    let done = conn.query_drop(all).await;
                    if done.is_err() {
                        // A connection that is gone has rolled back.
                        drop(conn.query_drop("ROLLBACK").await);
                    }
                    done.map_err(|error| error.to_string())
                })
            }
        }
    }

    /// Runs one statement that must succeed.
    #[track_caller]
    pub fn run(&mut self, statement: impl Into<String>) {
        let statement = statement.into();
        if let Err(error) = self.transaction(std::slice::from_ref(&statement)) {
            panic!("{statement}: {error}");
        }
    }

    /// The rows of a query, all as text.
    #[track_caller]
    pub fn rows(&mut self, query: &str) -> Vec<Vec<String>> {
        self.try_rows(query)
            .unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    pub fn try_rows(&mut self, query: &str) -> Result<Vec<Vec<String>>, String> {
        match self {
            Self::Postgres { runtime, client } => {
                let messages = runtime
                    .block_on(client.simple_query(query))
                    .map_err(|error| format!("{error:?}"))?;
                let rows = messages.into_iter().filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(
                        (0..row.len())
                            .map(|at| row.get(at).unwrap_or("NULL").to_owned())
                            .collect(),
                    ),
                    _ => None,
                });
                Ok(rows.collect())
            }
            Self::Sqlite(connection) => read(connection, query).map_err(|error| error.to_string()),
            Self::Mysql { runtime, conn } => {
                let rows = runtime.block_on(conn.query::<mysql_async::Row, _>(query));
                let cell = |value| match value {
                    mysql_async::Value::NULL => "NULL".to_owned(),
                    mysql_async::Value::Bytes(text) => String::from_utf8_lossy(&text).into_owned(),
                    other => other.as_sql(true),
                };
                let rows = rows.map_err(|error| error.to_string())?.into_iter();
                Ok(rows
                    .map(|row| row.unwrap().into_iter().map(cell).collect())
                    .collect())
            }
        }
    }

    /// The single value of a query, as text.
    #[track_caller]
    pub fn one(&mut self, query: &str) -> String {
        let rows = self.rows(query);
        assert!(
            rows.len() == 1 && rows[0].len() == 1,
            "{query} has not one value: {rows:?}"
        );
        rows[0][0].clone()
    }
}

fn read(connection: &rusqlite::Connection, query: &str) -> rusqlite::Result<Vec<Vec<String>>> {
    use rusqlite::types::ValueRef;
    let mut statement = connection.prepare(query)?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut cells = Vec::with_capacity(width);
        for at in 0..width {
            cells.push(match row.get_ref(at)? {
                ValueRef::Null => "NULL".into(),
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Real(number) => number.to_string(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                ValueRef::Blob(bytes) => format!("{bytes:02x?}"),
            });
        }
        found.push(cells);
    }
    Ok(found)
}

/// Runs a program of PostgreSQL's distribution to its end.
#[track_caller]
pub fn tool(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A URL with another user and password.
pub fn as_user(url: &str, user: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.rsplit_once('@').unwrap();
    format!("{scheme}://{user}:{password}@{place}")
}
