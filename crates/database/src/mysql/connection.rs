//! The connection, its transactions and its statements.
//!
//! Statements go as text: any number of rows in one round trip, nothing to prepare again after an `ALTER`, and dates
//! and decimals come back as text, exactly as stored. Every value passes through [`super::literal`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::TableId;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};

use super::error::{LOCKED, code, ends_the_connection, failed, on_table};
use super::layout::Layout;
use super::session::session;
use super::still::Still;
use super::take::{Parts, Taking};
use super::tls::{Target, target};

/// How often, and after what pause, a lock that the application holds is asked for: 750 ms in all.
const LOCK_ATTEMPTS: u32 = 16;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Held by the connection of the one process that owns the office; each database has its own such lock.
const OWN_MARIADB: &str = "SELECT GET_LOCK(CONCAT('branchline:', MD5(DATABASE())), 0)";
/// MySQL has no `MD5` from 9.6 on, and no names of locks above 64 characters.
const OWN_MYSQL: &str =
    "SELECT GET_LOCK(CONCAT('branchline:', LEFT(SHA2(DATABASE(), 256), 40)), 0)";
/// The owner speaks every few seconds ([`MysqlDatabase::keep_owning`]): one that is silent for so long has vanished with
/// its machine. A server would wait for hours by default.
const OWNER: &str = "SET SESSION wait_timeout = 60";

/// The warning that a table was left out of the catalogue, since its definition is being changed.
const SKIPPED: u16 = 1684;
/// How long that is waited for to end.
const SKIPPED_FOR: Duration = Duration::from_secs(3);

/// Which of the two servers it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    MariaDb,
    MySql,
}

/// A statement that the server refused.
pub(super) struct Failure {
    /// The server's own code.
    pub(super) code: Option<u16>,
    pub(super) error: DatabaseError,
}

/// The columns of a result row; everything the text protocol carries is bytes.
pub(super) struct Cells(Vec<Option<Vec<u8>>>);

impl Cells {
    fn of(row: Row) -> Self {
        let cell = |value| match value {
            Value::NULL => None,
            Value::Bytes(bytes) => Some(bytes),
            other => Some(other.as_sql(true).into_bytes()),
        };
        Self(row.unwrap().into_iter().map(cell).collect())
    }

    /// The column's bytes, `None` for NULL.
    pub(super) fn bytes(&self, at: usize) -> Option<&[u8]> {
        self.0.get(at)?.as_deref()
    }

    /// Moves the column's bytes out.
    pub(super) fn take(&mut self, at: usize) -> Option<Vec<u8>> {
        self.0.get_mut(at)?.take()
    }

    /// A column of one of our own tables, or of the catalogue, as text; NULL is empty.
    pub(super) fn text(&self, at: usize) -> String {
        String::from_utf8_lossy(self.bytes(at).unwrap_or_default()).into_owned()
    }

    /// A whole number; NULL and what is none are `None`.
    pub(super) fn number<T: std::str::FromStr>(&self, at: usize) -> Option<T> {
        std::str::from_utf8(self.bytes(at)?).ok()?.parse().ok()
    }

    /// A truth value.
    pub(super) fn is(&self, at: usize) -> bool {
        self.number::<i64>(at).is_some_and(|number| number != 0)
    }
}

/// Something that is met again and again.
#[derive(Default)]
struct Spell(Option<(Instant, Instant)>);

impl Spell {
    /// It is met now. Whether the first time of this spell was less than so long ago.
    fn lasts_less_than(&mut self, long: Duration) -> bool {
        let now = Instant::now();
        let known = self.0.filter(|(_, last)| now - *last < long * 3);
        let since = known.map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        now - since < long
    }
}

/// A MariaDB or MySQL database behind the port.
pub struct MysqlDatabase {
    target: Target,
    conn: Option<Conn>,
    /// A statement was sent and its answer not read: the future was dropped, and the connection is of no more use.
    under_way: bool,
    pub(super) flavour: Flavour,
    version: String,
    layouts: HashMap<String, Arc<Layout>>,
    /// How the shared tables were defined when they were last looked at.
    shape: Option<Digest>,
    /// For how long tables have been left out of the catalogue.
    changing: Spell,
    /// Which foreign keys there were when they were last looked at.
    foreign_keys: Option<Digest>,
    /// They were looked at in this transaction.
    heeded: bool,
    /// The tables that the last look at the capture named because of what their triggers missed.
    pub(super) missed: BTreeSet<TableId>,
    open: Option<Purpose>,
    /// The open transaction can only be rolled back.
    spoilt: bool,
    /// This server undoes the whole transaction where a lock is not to be had.
    whole_rollback: bool,
    /// This process owns the office: so must each connection that replaces a broken one.
    owner: bool,
    pub(super) taking: Taking,
    pub(super) parts: Parts,
    pub(super) still: Still,
}

impl MysqlDatabase {
    /// Connects. The URL's TLS parameters have libpq's names and meaning.
    pub async fn connect(url: &str) -> DbResult<Self> {
        let target = target(url)?;
        let session = session(&target).await?;
        Ok(Self {
            target,
            conn: Some(session.conn),
            under_way: false,
            flavour: session.flavour,
            version: session.version,
            layouts: HashMap::new(),
            shape: None,
            changing: Spell::default(),
            foreign_keys: None,
            heeded: false,
            missed: BTreeSet::new(),
            open: None,
            spoilt: false,
            whole_rollback: session.whole_rollback,
            owner: false,
            taking: Taking::default(),
            parts: Parts::default(),
            still: Still::default(),
        })
    }

    /// Takes the right to be the one process that owns this office's database. False where another process has it.
    pub async fn own(&mut self) -> DbResult<bool> {
        self.reconnect().await?;
        if !self.owner {
            self.owner = self.take_lock().await?;
        }
        Ok(self.owner)
    }

    async fn take_lock(&mut self) -> DbResult<bool> {
        let own = match self.flavour {
            Flavour::MariaDb => OWN_MARIADB,
            Flavour::MySql => OWN_MYSQL,
        };
        let taken = self.rows(own).await?;
        let taken = taken.first().is_some_and(|row| row.is(0));
        if taken {
            self.execute(OWNER).await?;
        }
        Ok(taken)
    }

    /// Lets the server hear from the owner between its transactions.
    pub async fn keep_owning(&mut self) -> DbResult<()> {
        if !self.owner || self.open.is_some() {
            return Ok(());
        }
        self.reconnect().await?;
        match self.execute("DO 0").await {
            // The server has closed the connection: the lock is taken anew with another one.
            Err(DatabaseError::Unreachable(_)) => self.reconnect().await,
            heard => heard,
        }
    }

    /// The engine's name and the server's version.
    pub async fn describe(&mut self) -> DbResult<(String, String)> {
        let name = match self.flavour {
            Flavour::MariaDb => "MariaDB",
            Flavour::MySql => "MySQL",
        };
        Ok((name.to_owned(), self.version.clone()))
    }

    /// The database's name.
    pub(super) fn database(&self) -> &str {
        &self.target.database
    }

    /// Whether the server is MariaDB of at least this version.
    pub(super) fn mariadb_from(&self, major: u16, minor: u16) -> bool {
        let mut numbers = self
            .version
            .split(['.', '-'])
            .map_while(|number| number.parse::<u16>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        self.flavour == Flavour::MariaDb && version >= (major, minor)
    }

    /// Runs a statement on our own tables or the catalogue and returns its rows.
    pub(super) async fn rows(&mut self, sql: impl AsRef<[u8]>) -> DbResult<Vec<Cells>> {
        self.rows_on("", sql).await
    }

    /// As [`Self::rows`]; what does not fit is blamed on a table.
    pub(super) async fn rows_on(
        &mut self,
        table: &str,
        sql: impl AsRef<[u8]>,
    ) -> DbResult<Vec<Cells>> {
        let sent = self.send(sql.as_ref()).await;
        let rows = sent.map_err(|error| on_table(table, &error))?;
        Ok(rows.into_iter().map(Cells::of).collect())
    }

    /// As [`Self::rows`], of the catalogue, whole. Where the connection holds any lock, and the owner's does, MariaDB leaves
    /// out a table whose definition is being changed, and tells that by a warning alone. For a while that is an error, to be
    /// tried again; a table that is kept locked for longer (`CREATE TABLE ... SELECT`) is left out: one that is shared
    /// stops the look at its shape already.
    pub(super) async fn catalogue(&mut self, sql: impl AsRef<[u8]>) -> DbResult<Vec<Cells>> {
        let rows = self.rows(sql).await?;
        let warned = |conn: &Conn| conn.get_warnings() > 0;
        if self.conn.as_ref().is_some_and(warned) {
            let warnings = self.rows("SHOW WARNINGS").await?;
            let skipped = |row: &&Cells| row.number(1) == Some(SKIPPED);
            if let Some(skipped) = warnings.iter().find(skipped)
                && self.changing.lasts_less_than(SKIPPED_FOR)
            {
                return Err(DatabaseError::Busy(skipped.text(2)));
            }
        }
        Ok(rows)
    }

    /// Runs statements, separated by semicolons, for their effect.
    pub(super) async fn execute(&mut self, sql: impl AsRef<[u8]>) -> DbResult<()> {
        self.execute_on("", sql).await
    }

    /// As [`Self::execute`]; what does not fit is blamed on a table.
    pub(super) async fn execute_on(&mut self, table: &str, sql: impl AsRef<[u8]>) -> DbResult<()> {
        let sent = self.send(sql.as_ref()).await;
        sent.map(|_| ()).map_err(|error| on_table(table, &error))
    }

    /// As [`Self::execute_on`]; the server's own code comes with the error.
    pub(super) async fn try_execute_on(
        &mut self,
        table: &str,
        sql: impl AsRef<[u8]>,
    ) -> Result<(), Failure> {
        let sent = self.send(sql.as_ref()).await;
        sent.map(|_| ()).map_err(|error| Failure {
            code: code(&error),
            error: on_table(table, &error),
        })
    }

    /// As [`Self::rows`]; the server's own code comes with the error.
    pub(super) async fn try_rows(&mut self, sql: impl AsRef<[u8]>) -> Result<Vec<Cells>, Failure> {
        let sent = self.send(sql.as_ref()).await;
        let rows = sent.map_err(|error| Failure {
            code: code(&error),
            error: failed(&error),
        })?;
        Ok(rows.into_iter().map(Cells::of).collect())
    }

    /// Runs a `SELECT ... FOR UPDATE NOWAIT`, again and again for a while.
    ///
    /// Nothing waits within the database meanwhile: so no deadlock is found in which the application would be the one
    /// to die, and it waits for us no longer than we wait for it.
    pub(super) async fn locked_rows(
        &mut self,
        table: &str,
        sql: impl AsRef<[u8]>,
    ) -> DbResult<Vec<Cells>> {
        let mut attempt = 1;
        loop {
            match self.send(sql.as_ref()).await {
                Ok(rows) => return Ok(rows.into_iter().map(Cells::of).collect()),
                Err(error) => {
                    let waits = code(&error).is_some_and(|code| LOCKED.contains(&code));
                    if !waits || self.whole_rollback || attempt == LOCK_ATTEMPTS {
                        return Err(on_table(table, &error));
                    }
                }
            }
            // Only the statement was undone.
            self.spoilt = false;
            attempt += 1;
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    /// Runs statements and returns the rows of the first.
    async fn send(&mut self, sql: &[u8]) -> Result<Vec<Row>, mysql_async::Error> {
        let closed = || {
            mysql_async::Error::Io(mysql_async::IoError::Io(std::io::Error::other(
                "the connection is closed",
            )))
        };
        if self.under_way {
            return Err(closed());
        }
        let conn = self.conn.as_mut().ok_or_else(closed)?;
        self.under_way = true;
        let answer = conn.query::<Row, _>(sql).await;
        self.under_way = false;
        if let Err(error) = &answer {
            self.spoilt = true;
            if ends_the_connection(error) {
                self.conn = None;
            } else {
                // A deadlock has rolled the transaction back: what follows must not stand alone.
                tracing::trace!(code = code(error), "a statement failed");
            }
        }
        answer
    }

    /// Marks a place to return to within the transaction.
    pub(super) async fn savepoint(&mut self, name: &str) -> DbResult<()> {
        self.execute(format!("SAVEPOINT {name}")).await
    }

    /// Undoes what was done since a savepoint, and with it the failure of a statement.
    pub(super) async fn back_to(&mut self, name: &str) -> DbResult<()> {
        self.execute(format!("ROLLBACK TO SAVEPOINT {name}"))
            .await?;
        self.spoilt = false;
        Ok(())
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

    /// Looks up how this database declares all of its tables: for what needs many of them, as a look for each reads the
    /// catalogue from end to end.
    pub(super) async fn learn_layouts(&mut self) -> DbResult<()> {
        let all = Layout::load_all(self).await?.into_iter();
        self.layouts = all.map(|(name, one)| (name, Arc::new(one))).collect();
        Ok(())
    }

    /// Forgets what was looked up about tables: they may have changed.
    pub(super) fn forget_layouts(&mut self) {
        self.layouts.clear();
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

    /// Looks whether other foreign keys are there than before, and if so forgets what was looked up about tables. A table
    /// that is not shared may have got one: nothing else tells of it. Once in a transaction, or `again` where a parent is
    /// locked now: from here on it gets no other children.
    pub(super) async fn heed_foreign_keys(&mut self, again: bool) -> DbResult<()> {
        if self.heeded && !again {
            return Ok(());
        }
        let sql = "SELECT TABLE_NAME, CONSTRAINT_NAME, REFERENCED_TABLE_NAME, UNIQUE_CONSTRAINT_NAME, UPDATE_RULE, DELETE_RULE
             FROM information_schema.REFERENTIAL_CONSTRAINTS
             WHERE CONSTRAINT_SCHEMA = DATABASE() AND UNIQUE_CONSTRAINT_SCHEMA = DATABASE()";
        let rows = self.rows(sql).await?;
        let mut told: Vec<Vec<String>> = rows
            .iter()
            .map(|row| (0..6).map(|at| row.text(at)).collect())
            .collect();
        told.sort_unstable();
        let now = Digest::of(format!("{told:?}").as_bytes());
        if self.foreign_keys.replace(now) != Some(now) {
            self.forget_layouts();
        }
        self.heeded = true;
        Ok(())
    }

    /// Begins the taking transaction anew, so that it holds the definitions of these tables before it has a snapshot.
    pub(super) async fn touch(&mut self, tables: &[&String]) -> DbResult<()> {
        let mut sql = String::from(
            "ROLLBACK; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION",
        );
        for table in tables {
            sql.push_str(&format!(
                "; SELECT 1 FROM {} LIMIT 0",
                super::ddl::ident(table)
            ));
        }
        match self.execute(sql).await {
            // One that has gone meanwhile.
            Err(DatabaseError::Mismatch { message, .. } | DatabaseError::Other(message)) => {
                Err(DatabaseError::Busy(message))
            }
            other => other,
        }
    }

    pub(super) fn purpose(&self) -> Option<Purpose> {
        self.open
    }

    pub(super) async fn open(&mut self, purpose: Purpose) -> DbResult<()> {
        self.taking = Taking::default();
        let alone = self.open.is_none();
        self.reconnect().await?;
        let begun = self.start(purpose).await;
        // An idle connection that the server has closed shows only now.
        if alone && matches!(begun, Err(DatabaseError::Unreachable(_))) {
            self.reconnect().await?;
            return self.start(purpose).await;
        }
        begun
    }

    async fn start(&mut self, purpose: Purpose) -> DbResult<()> {
        let before = if self.open.is_some() { "ROLLBACK;" } else { "" };
        // Set before the statement is sent: a dropped future may leave the transaction open.
        self.open = Some(purpose);
        self.heeded = false;
        let begin = match purpose {
            Purpose::Take => {
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT"
            }
            Purpose::Read => {
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
            }
            Purpose::Apply | Purpose::Load => {
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION"
            }
        };
        self.execute(format!("{before}{begin}")).await?;
        self.spoilt = false;
        Ok(())
    }

    pub(super) async fn close(&mut self, keep: bool) -> DbResult<()> {
        if self.open.is_none() {
            return Ok(());
        }
        self.taking = Taking::default();
        if self.conn.is_none() || self.under_way {
            // A broken connection rolls back by itself.
            self.open = None;
            return if keep {
                Err(DatabaseError::Unreachable(
                    "the connection is closed".to_owned(),
                ))
            } else {
                Ok(())
            };
        }
        if keep && self.spoilt {
            return Err(DatabaseError::Other(
                "a statement of this transaction failed; it can only be rolled back".to_owned(),
            ));
        }
        self.execute(if keep { "COMMIT" } else { "ROLLBACK" })
            .await?;
        self.open = None;
        Ok(())
    }

    /// Ends a transaction that was left open, for a catalogue method: its statements commit by themselves.
    pub(super) async fn open_catalogue(&mut self) -> DbResult<()> {
        self.open(Purpose::Apply).await?;
        self.close(false).await?;
        self.forget_layouts();
        Ok(())
    }

    async fn reconnect(&mut self) -> DbResult<()> {
        if self.conn.is_some() && !self.under_way {
            return Ok(());
        }
        let left = self.conn.take().map(|conn| conn.id());
        self.open = None;
        self.under_way = false;
        self.forget_layouts();
        let session = session(&self.target).await?;
        (self.flavour, self.version) = (session.flavour, session.version);
        self.whole_rollback = session.whole_rollback;
        let mut conn = session.conn;
        if let Some(left) = left {
            // Its locks must not outlive it until the server notices.
            let ended = conn.query_drop(format!("KILL CONNECTION {left}")).await;
            if let Err(error) = ended.filter_server() {
                return Err(failed(&error));
            }
        }
        self.conn = Some(conn);
        if self.owner && !self.take_lock().await? {
            self.conn = None;
            return Err(DatabaseError::Unreachable(
                "another process has taken this office over while the connection was broken; stop one of the two".into(),
            ));
        }
        Ok(())
    }
}

trait FilterServer {
    /// Only what broke the connection; what the server merely refuses is no error.
    fn filter_server(self) -> Result<(), mysql_async::Error>;
}

impl FilterServer for Result<(), mysql_async::Error> {
    fn filter_server(self) -> Self {
        match self {
            Err(error) if ends_the_connection(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
