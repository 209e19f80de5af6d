//! The connection, its transactions and its prepared statements.

use std::collections::{HashMap, VecDeque};
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use branchline_core::port::{DatabaseError, DbResult, Purpose};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::copy::Copying;
use super::error::failed;
use super::layout::Layout;
use super::plan::Plan;
use super::shape::Stamped;
use super::take::Taking;
use super::tls::{Target, target};

/// Statements kept prepared; beyond it (schemas that change for ever) all are forgotten.
const MAX_STATEMENTS: usize = 2000;
/// How long an apply waits for the application's locks; the application waits behind it for as long at the most.
const LOCK_TIMEOUT: &str = "800ms";
/// How long what only reads waits for the application's `ALTER`: nobody is served meanwhile.
const READ_TIMEOUT: &str = "100ms";
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

/// Bytes of statements whose answers are not waited for yet, at the most, unless it is one.
const SENT_BYTES: usize = 2 * 1024 * 1024;
/// Their number, at the most.
const SENT: usize = 16;

/// From so many bytes on a statement is put on its way before the caller goes on.
const AT_ONCE: usize = 16 * 1024;

/// A parameter that is kept until it is sent.
pub(super) type Param = Box<dyn ToSql + Sync + Send>;

/// A statement that was sent and is not answered yet, and its size. The lock is never taken: it makes the future `Sync`.
struct Sent {
    bytes: usize,
    answer: Mutex<Answer>,
}

type Answer = Started<'static, DbResult<()>>;

/// What a statement that was sent will answer.
pub(super) type Started<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an apply wrote shows as soon as it is committed, before the disk has it: it shows a disk's turn earlier, and the
/// locks on its rows go as early. This writes to the same journal and does wait for the disk, and so for all before it.
const MAKE_DURABLE: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'branchline', '')";

/// A PostgreSQL database behind the port.
///
/// Statements that answer nothing are sent without waiting: the server runs them in turn, while the caller goes on. Their
/// errors are told in place of the next one, which they cause, and at the latest by the commit.
pub struct PostgresDatabase {
    target: Target,
    client: Option<Arc<Client>>,
    sent: VecDeque<Sent>,
    statements: HashMap<String, Statement>,
    layouts: HashMap<String, Arc<Layout>>,
    /// Tables into which so many writes more are not tried as new rows.
    not_copied: HashMap<String, u32>,
    pub(super) stamped: Option<Stamped>,
    /// Rows on their way that nobody has waited for yet.
    pub(super) copying: Option<Copying>,
    open: Option<Purpose>,
    /// This process owns the office: so must each connection that replaces a broken one.
    owner: bool,
    pub(super) taking: Taking,
    /// In which order the captured writes are taken. Forgotten with each taking that is undone.
    pub(super) plan: Option<Plan>,
    /// Captured writes removed since the capture was last swept, and those of the open transaction.
    removed: u64,
    pub(super) removing: u64,
    /// New partitions' tables, and the statements that give them their triggers; and when that was tried.
    pub(super) bare: Vec<(String, String)>,
    pub(super) covered: Option<Instant>,
}

impl PostgresDatabase {
    /// Connects. The URL's TLS parameters have libpq's meaning.
    pub async fn connect(url: &str) -> DbResult<Self> {
        let target = target(url)?;
        let client = connect(&target).await?;
        Ok(Self {
            target,
            client: Some(Arc::new(client)),
            sent: VecDeque::new(),
            statements: HashMap::new(),
            layouts: HashMap::new(),
            not_copied: HashMap::new(),
            stamped: None,
            copying: None,
            open: None,
            owner: false,
            taking: Taking::default(),
            plan: None,
            removed: 0,
            removing: 0,
            bare: Vec::new(),
            covered: None,
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

    /// Sends statements without parameters, as [`Self::send`] does.
    pub(super) async fn send_all(&mut self, sql: String) -> DbResult<()> {
        let client = self.shared_client()?;
        let statements = async move { client.batch_execute(&sql).await.map_err(|e| failed(&e)) };
        self.post(0, statements).await
    }

    /// Sends a prepared statement on our own tables. Of its answer only an error is told, later.
    pub(super) async fn send(
        &mut self,
        sql: &str,
        types: &[Type],
        values: Vec<Param>,
        bytes: usize,
    ) -> DbResult<()> {
        let statement = self.statement(sql, types).await?;
        let client = self.shared_client()?;
        let statement = async move {
            let done = client.execute_raw(&statement, values).await;
            done.map(drop).map_err(|e| failed(&e))
        };
        self.post(bytes, statement).await
    }

    async fn post(
        &mut self,
        bytes: usize,
        statement: impl Future<Output = DbResult<()>> + Send + 'static,
    ) -> DbResult<()> {
        let unanswered: usize = self.sent.iter().map(|sent| sent.bytes).sum();
        if self.sent.len() >= SENT || unanswered + bytes > SENT_BYTES {
            self.answers().await?;
        }
        let answer = Mutex::new(started(statement).await);
        self.sent.push_back(Sent { bytes, answer });
        if bytes > AT_ONCE {
            // The connection is served by the same thread: it would wait for a pause of the caller.
            tokio::task::yield_now().await;
        }
        match self.open {
            Some(_) => Ok(()),
            None => self.answers().await,
        }
    }

    /// Waits for the answers to all that was sent.
    pub(super) async fn answers(&mut self) -> DbResult<()> {
        while let Some(sent) = self.sent.pop_front() {
            sent.answer
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)
                .await?;
        }
        Ok(())
    }

    /// Waits until what [`super::apply::begin_write`] began is done. False where what was asked meanwhile must be asked again.
    pub(super) async fn copied(&mut self) -> DbResult<bool> {
        let Some(copying) = self.copying.take() else {
            return Ok(true);
        };
        let new = copying.end(self).await;
        if let Err(DatabaseError::Mismatch { .. }) = &new {
            // The table may have been altered since it was looked up.
            self.forget_layouts();
        }
        new
    }

    /// An outcome, or the error of an earlier statement that made it fail.
    pub(super) async fn told<T>(&mut self, outcome: DbResult<T>) -> DbResult<T> {
        if outcome.is_err() {
            self.answers().await?;
        }
        outcome
    }

    pub(super) fn shared_client(&self) -> DbResult<Arc<Client>> {
        self.client()?;
        let client = self.client.as_ref().map(Arc::clone);
        client.ok_or_else(|| DatabaseError::Unreachable("the connection is closed".to_owned()))
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

    /// The prepared statement with this text, if it is prepared already.
    pub(super) fn prepared(&self, sql: &str) -> Option<Statement> {
        self.statements.get(sql).cloned()
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
        self.not_copied.clear();
    }

    /// Whether rows that are put into a table are probably new.
    pub(super) fn expects_new(&mut self, table: &str) -> bool {
        match self.not_copied.get_mut(table) {
            Some(0) => {
                self.not_copied.remove(table);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => true,
        }
    }

    /// Rows that were put into a table were not new.
    pub(super) fn pause_copying(&mut self, table: &str, writes: u32) {
        self.not_copied.insert(table.to_owned(), writes);
    }

    pub(super) fn purpose(&self) -> Option<Purpose> {
        self.open
    }

    pub(super) async fn open(&mut self, purpose: Purpose) -> DbResult<()> {
        self.reconnect().await?;
        let before = if self.open.is_some() { "ROLLBACK;" } else { "" };
        self.sent.clear();
        self.copying = None;
        self.taking = Taking::default();
        if self.open.is_some() {
            self.plan = None;
        }
        self.removing = 0;
        // Set before the statement is sent: a dropped future may leave the transaction open.
        self.open = Some(purpose);
        let begin = match purpose {
            // Told of an array's size, the planner would rather read whole tables, as nobody counted their rows yet.
            Purpose::Take => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SET LOCAL lock_timeout TO '800ms';
                 SET LOCAL plan_cache_mode TO force_generic_plan".into(),
            Purpose::Read => format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout TO '{READ_TIMEOUT}'"
            ),
            Purpose::Apply | Purpose::Load => format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}';
                 SET LOCAL branchline.applying TO '1'; SET LOCAL synchronous_commit TO off"
            ),
        };
        self.send_all(format!("{before}{begin}")).await?;
        match purpose {
            // What only reads may be on its way already.
            Purpose::Take | Purpose::Read => Ok(()),
            Purpose::Apply | Purpose::Load => self.answers().await,
        }
    }

    pub(super) async fn close(&mut self, keep: bool) -> DbResult<()> {
        let Some(purpose) = self.open else {
            return Ok(());
        };
        if keep {
            self.copied().await?;
        }
        self.copying = None;
        self.taking = Taking::default();
        let plan = self.plan.take();
        let removing = std::mem::take(&mut self.removing);
        if !keep {
            self.sent.clear();
            // A broken connection has rolled back by itself.
            if self.client().is_ok() {
                self.execute("ROLLBACK").await?;
            }
            self.open = None;
            // Only taking makes a plan tell of what is not so once it is undone.
            self.plan = plan.filter(|_| purpose != Purpose::Take);
            return Ok(());
        }
        // COMMIT of a failed transaction rolls back without an error; the SELECT before it makes it one.
        let commit = match purpose {
            Purpose::Take | Purpose::Read => "SELECT; COMMIT".to_owned(),
            Purpose::Apply | Purpose::Load => format!("SELECT; COMMIT; {MAKE_DURABLE}"),
        };
        self.send_all(commit).await?;
        match self.answers().await {
            // Interrupted after the commit proper, it may have happened: nobody may take it for surely undone.
            Err(DatabaseError::Busy(what)) if purpose != Purpose::Take => {
                return Err(DatabaseError::Unreachable(format!(
                    "the answer to a commit was lost: {what}"
                )));
            }
            other => other?,
        }
        self.open = None;
        self.plan = plan;
        self.removed += removing;
        if let Err(error) = self.tidy().await {
            tracing::debug!(%error, "the capture was not swept");
        }
        if let Err(error) = super::install::cover(self).await {
            tracing::debug!(%error, "new partitions have no triggers yet");
        }
        Ok(())
    }

    /// Opens a transaction for a catalogue method, ending one that was left open.
    pub(super) async fn open_catalogue(&mut self) -> DbResult<()> {
        self.open(Purpose::Apply).await?;
        self.forget_layouts();
        // Keys may be written anew, and so move.
        self.plan = None;
        Ok(())
    }

    async fn reconnect(&mut self) -> DbResult<()> {
        if self.client().is_ok() {
            return Ok(());
        }
        self.client = None;
        self.open = None;
        self.plan = None;
        self.forget_layouts();
        let client = connect(&self.target).await?;
        if self.owner && !try_own(&client).await? {
            return Err(DatabaseError::Unreachable(
                "another process owns this office's database now, or the server has not noticed yet that the former connection broke".into(),
            ));
        }
        self.client = Some(Arc::new(client));
        Ok(())
    }
}

/// A statement on its way to the server, which a future is once it was polled.
pub(super) async fn started<'a, T: Send + 'a>(
    statement: impl Future<Output = T> + Send + 'a,
) -> Started<'a, T> {
    let mut statement = Box::pin(statement);
    match poll_fn(|cx| Poll::Ready(statement.as_mut().poll(cx))).await {
        Poll::Ready(answer) => Box::pin(ready(answer)),
        Poll::Pending => statement,
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
