//! The connection, its transactions and its prepared statements.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::error::failed;
use super::layout::Layout;
use super::shape::Stamped;
use super::take::Taking;
use super::tls::{Target, target};

/// Statements kept prepared; beyond it (schemas that change for ever) all are forgotten.
const MAX_STATEMENTS: usize = 2000;
/// How long an apply waits for the application's locks; the application waits behind it for as long at the most.
const LOCK_TIMEOUT: &str = "800ms";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);
/// After so many removed writes the capture's dead rows are swept.
const TIDY_AFTER: u64 = 10_000;

/// What makes every value's text independent of the server's and the role's settings.
const SESSION: &str = "SET DateStyle TO 'ISO, MDY'; SET IntervalStyle TO 'postgres'; SET TimeZone TO 'UTC';
SET extra_float_digits TO 1; SET bytea_output TO 'hex'; SET client_encoding TO 'UTF8'; SET statement_timeout TO 0;
SET idle_in_transaction_session_timeout TO 0; SET jit TO off; SET client_min_messages TO warning";

/// Held by the connection of the one process that owns the office; each database has its own such locks. A machine that
/// vanished is noticed within a minute or so, not after the hours that servers wait by default.
const OWN: &str = "SET tcp_keepalives_idle TO 20; SET tcp_keepalives_interval TO 5; SET tcp_keepalives_count TO 4;
SELECT pg_catalog.pg_try_advisory_lock(7091190276324713829)";

/// A PostgreSQL database behind the port.
pub struct PostgresDatabase {
    target: Target,
    client: Option<Client>,
    statements: HashMap<String, Statement>,
    layouts: HashMap<String, Arc<Layout>>,
    /// How the shared tables were defined when they were last looked at.
    shape: Option<Digest>,
    pub(super) stamped: Option<Stamped>,
    open: Option<Purpose>,
    /// This process owns the office: so must each connection that replaces a broken one.
    owner: bool,
    pub(super) taking: Taking,
    /// Captured writes removed since the capture was last swept, and those of the open transaction.
    removed: u64,
    pub(super) removing: u64,
}

impl PostgresDatabase {
    /// Connects. The URL's TLS parameters have libpq's meaning.
    pub async fn connect(url: &str) -> DbResult<Self> {
        let target = target(url)?;
        let client = connect(&target).await?;
        Ok(Self {
            target,
            client: Some(client),
            statements: HashMap::new(),
            layouts: HashMap::new(),
            shape: None,
            stamped: None,
            open: None,
            owner: false,
            taking: Taking::default(),
            removed: 0,
            removing: 0,
        })
    }

    /// Takes the right to be the one process that owns this office's database. False where another process has it.
    pub async fn own(&mut self) -> DbResult<bool> {
        self.reconnect().await?;
        if !self.owner {
            self.owner = try_own(self.client()?).await?;
        }
        Ok(self.owner)
    }

    /// The engine's name and the server's version.
    pub async fn describe(&mut self) -> DbResult<(String, String)> {
        self.reconnect().await?;
        let rows = self
            .client()?
            .simple_query("SHOW server_version")
            .await
            .map_err(|e| failed(&e))?;
        let version = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(("PostgreSQL".to_owned(), version.unwrap_or_default()))
    }

    /// Sweeps the capture's dead rows when there are many. Outside a transaction only; `commit` calls it.
    pub async fn tidy(&mut self) -> DbResult<()> {
        if self.removed < TIDY_AFTER || self.open.is_some() {
            return Ok(());
        }
        self.removed = 0;
        self.execute("VACUUM branchline.capture").await
    }

    pub(super) fn client(&self) -> DbResult<&Client> {
        match &self.client {
            Some(client) if !client.is_closed() => Ok(client),
            _ => Err(DatabaseError::Unreachable(
                "the connection is closed".to_owned(),
            )),
        }
    }

    /// Runs statements without parameters.
    pub(super) async fn execute(&self, sql: &str) -> DbResult<()> {
        self.client()?
            .batch_execute(sql)
            .await
            .map_err(|e| failed(&e))
    }

    /// Runs a prepared query on our own tables.
    pub(super) async fn query(
        &mut self,
        sql: &str,
        types: &[Type],
        values: &[&(dyn ToSql + Sync)],
    ) -> DbResult<Vec<Row>> {
        let statement = self.statement(sql, types).await?;
        self.client()?
            .query(&statement, values)
            .await
            .map_err(|e| failed(&e))
    }

    /// The prepared statement with this text, prepared once for the connection.
    pub(super) async fn statement(&mut self, sql: &str, types: &[Type]) -> DbResult<Statement> {
        self.statement_on("", sql, types).await
    }

    /// As [`Self::statement`]; what does not fit is blamed on a table.
    pub(super) async fn statement_on(
        &mut self,
        table: &str,
        sql: &str,
        types: &[Type],
    ) -> DbResult<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let prepared = self.client()?.prepare_typed(sql, types).await;
        let statement = prepared.map_err(|e| super::error::on_table(table, &e))?;
        if self.statements.len() >= MAX_STATEMENTS {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// How this database declares a table, looked up once for the connection.
    pub(super) async fn layout(&mut self, table: &str) -> DbResult<Arc<Layout>> {
        if let Some(layout) = self.layouts.get(table) {
            return Ok(Arc::clone(layout));
        }
        let layout = Arc::new(Layout::load(self, table).await?);
        self.layouts.insert(table.to_owned(), Arc::clone(&layout));
        Ok(layout)
    }

    /// Forgets what was looked up about tables: they may have changed.
    pub(super) fn forget_layouts(&mut self) {
        self.layouts.clear();
        self.statements.clear();
    }

    /// Forgets what was looked up about tables if they are not defined as they were.
    pub(super) fn seen(&mut self, shape: Digest) {
        if self
            .shape
            .replace(shape)
            .is_some_and(|before| before != shape)
        {
            self.forget_layouts();
        }
    }

    pub(super) fn purpose(&self) -> Option<Purpose> {
        self.open
    }

    pub(super) async fn open(&mut self, purpose: Purpose) -> DbResult<()> {
        self.reconnect().await?;
        let before = if self.open.is_some() { "ROLLBACK;" } else { "" };
        self.taking = Taking::default();
        self.removing = 0;
        // Set before the statement is sent: a dropped future may leave the transaction open.
        self.open = Some(purpose);
        let begin = match purpose {
            Purpose::Take => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SET LOCAL lock_timeout TO '800ms'".into(),
            Purpose::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned(),
            Purpose::Apply | Purpose::Load => format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}';
                 SET LOCAL branchline.applying TO '1'"
            ),
        };
        self.execute(&format!("{before}{begin}")).await
    }

    pub(super) async fn close(&mut self, keep: bool) -> DbResult<()> {
        if self.open.is_none() {
            return Ok(());
        }
        self.taking = Taking::default();
        let removing = std::mem::take(&mut self.removing);
        if !keep {
            // A broken connection has rolled back by itself.
            if self.client().is_ok() {
                self.execute("ROLLBACK").await?;
            }
            self.open = None;
            return Ok(());
        }
        // COMMIT of a failed transaction rolls back without an error; the SELECT before it makes it one.
        self.execute("SELECT; COMMIT").await?;
        self.open = None;
        self.removed += removing;
        if let Err(error) = self.tidy().await {
            tracing::debug!(%error, "the capture was not swept");
        }
        Ok(())
    }

    /// Opens a transaction for a catalogue method, ending one that was left open.
    pub(super) async fn open_catalogue(&mut self) -> DbResult<()> {
        self.open(Purpose::Apply).await?;
        self.forget_layouts();
        Ok(())
    }

    async fn reconnect(&mut self) -> DbResult<()> {
        if self.client().is_ok() {
            return Ok(());
        }
        self.client = None;
        self.open = None;
        self.forget_layouts();
        let client = connect(&self.target).await?;
        if self.owner && !try_own(&client).await? {
            return Err(DatabaseError::Unreachable(
                "another process owns this office's database now, or the server has not noticed yet that the former connection broke".into(),
            ));
        }
        self.client = Some(client);
        Ok(())
    }
}

async fn try_own(client: &Client) -> DbResult<bool> {
    let answer = client.simple_query(OWN).await.map_err(|e| failed(&e))?;
    Ok(answer.iter().any(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
        _ => false,
    }))
}

async fn connect(target: &Target) -> DbResult<Client> {
    let (client, connection) = config(target)
        .connect(target.tls.clone())
        .await
        .map_err(|e| named(target, &e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %failed(&error), "the database connection ended");
        }
    });
    client
        .batch_execute(SESSION)
        .await
        .map_err(|e| failed(&e))?;
    Ok(client)
}

pub(super) fn config(target: &Target) -> tokio_postgres::Config {
    let mut config = target.config.clone();
    config.keepalives_idle(SILENCE).tcp_user_timeout(SILENCE);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("branchline");
    }
    config
}

/// The error of a connection attempt, with the place that it was made to.
pub(super) fn named(target: &Target, error: &tokio_postgres::Error) -> DatabaseError {
    let hosts: Vec<String> = target.config.get_hosts().iter().map(place).collect();
    let ports: Vec<String> = target
        .config
        .get_ports()
        .iter()
        .map(ToString::to_string)
        .collect();
    let at = format!(
        "{}:{}",
        hosts.join(","),
        if ports.is_empty() {
            "5432".to_owned()
        } else {
            ports.join(",")
        }
    );
    match failed(error) {
        DatabaseError::Unreachable(words) => DatabaseError::Unreachable(format!("{at}: {words}")),
        // The server let nobody in, whatever its reason is: it may let us in later.
        DatabaseError::Other(words) => DatabaseError::Unreachable(format!("{at}: {words}")),
        DatabaseError::Refused(words) => DatabaseError::Refused(format!("{at}: {words}")),
        other => other,
    }
}

fn place(host: &tokio_postgres::config::Host) -> String {
    match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    }
}
