//! The port to a database: small set-based steps with written contracts, which the office's procedures compose.
//!
//! One conformance suite (`branchline_testkit::conformance`) holds every adapter, and the in-memory fake, to this page.
//!
//! **Transactions.** All methods between [`Database::begin`] and [`Database::commit`] act in that transaction. A failed
//! call leaves it to be rolled back; `begin` after a dropped future rolls back what was left open. Catalogue methods
//! (`inspect`, `install`, ...) open their own transaction.
//!
//! **Exactly once.** Rows, bookkeeping and capture live in one database, so one commit moves them together (P2).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::change::{Effect, Key, Row};
use crate::check::Check;
use minicbor::{Decode, Encode};

use crate::identity::{Digest, Micros};
use crate::schema::{ColumnId, Schema, Table, TableId};

/// What a transaction is for; an adapter chooses its isolation by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Take captured changes with their rows: everything is read in one snapshot. (PostgreSQL: REPEATABLE READ.)
    Take,
    /// Apply changes and keep books. Statements see what committed before them. What this transaction writes to
    /// shared tables is not captured. (PostgreSQL: READ COMMITTED; SQLite: `BEGIN IMMEDIATE`.)
    Apply,
    /// As `Apply`, while the first copy of the tables is loaded: foreign keys are not enforced where the engine lets
    /// one connection do without (SQLite: `PRAGMA foreign_keys = OFF` for this transaction). Elsewhere the same as
    /// `Apply`, since [`Database::create_tables`] leaves the foreign keys of tables that it creates to
    /// [`Database::add_foreign_keys`].
    Load,
    /// Read a consistent snapshot; nothing is written, the application is not blocked.
    Read,
}

/// How a captured row stood before the application first touched it since the last take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum First {
    /// It existed.
    Existing,
    /// The application inserted it.
    Inserted,
    /// It was there before the office joined: [`Database::recapture`] put it into the capture.
    Unknown,
}

/// The net effect of the application's writes on one row since the last take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The row's table.
    pub table: TableId,
    /// The row as it is in this transaction's snapshot, or that it is gone.
    pub effect: Effect,
    /// How it stood before.
    pub first: First,
    /// When the application last wrote it.
    pub at: Micros,
    /// The row as the application found it at its first write since the last take. Only of tables for which
    /// [`Table::keeps_before`] holds, and only where it existed and that is known.
    pub before: Option<Row>,
}

/// A captured row whose present content is not a row of the plan's table: a text in an integer column, invalid UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The row's table.
    pub table: TableId,
    /// The row's key. Where the key itself cannot be read, it holds what stands there: it does not fit the table, equals
    /// no legal key, and must not be sent. Once no row has such a key any more, nothing is reported.
    pub key: Key,
    /// What cannot be read, in a sentence: column, what stands there, what was expected.
    pub problem: String,
}

/// What one call of [`Database::take`] returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// Net changes, at most one for each row.
    pub changes: Vec<Taken>,
    /// Rows that were written and cannot be read. Their captured writes are removed like the others'; the next write to
    /// such a row captures it anew.
    pub unreadable: Vec<Unreadable>,
    /// The unit of visibility goes on: the next call in this transaction returns more of it (SETTLED 2).
    pub open: bool,
    /// More is captured than was returned.
    pub more: bool,
}

/// What waits in the capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Captured writes not yet taken (before netting).
    pub writes: u64,
    /// When the oldest was made.
    pub oldest: Option<Micros>,
}

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the stream.
    pub number: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// How large a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The lowest number kept, or 0.
    pub first: u64,
    /// The highest number kept, or 0.
    pub last: u64,
    /// How many entries are kept.
    pub entries: u64,
    /// How many bytes they hold.
    pub bytes: u64,
}

/// What an inspection of the application's tables found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Tables that can be shared. Their `id`, direction and rules are unset.
    pub tables: Vec<Table>,
    /// Tables that cannot be shared, or not safely.
    pub findings: Vec<Finding>,
    /// What the engine itself calls the tables and columns, where it has lasting names for them, by table name.
    pub origins: BTreeMap<String, Origin>,
    /// What each table with capture is called now: the capture goes with a table that is renamed.
    pub captured: BTreeMap<TableId, String>,
    /// What the tables have and would not have where they are created.
    pub left_out: Vec<LeftOut>,
}

/// Something of a table that is not carried over to where Branchline creates the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The table.
    pub table: String,
    /// What it is, with its name and its own words.
    pub what: String,
    /// Why not, in half a sentence.
    pub why: String,
}

/// The engine's own lasting names of a table and its columns, which survive renaming (PostgreSQL: `oid` and `attnum`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Origin {
    /// The table.
    #[n(0)]
    pub table: u64,
    /// Its columns, in the order of the inspected table's.
    #[n(1)]
    pub columns: Vec<u64>,
}

/// What [`Database::evolve`] found and could not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evolution {
    /// Tables that were left as they were, with the reason in a sentence: a cast that fails, a unique key that rows break.
    pub refused: Vec<(TableId, String)>,
    /// New columns of tables that were there before, which the application had added already: what it wrote to them has
    /// not been sent.
    pub found: Vec<(TableId, ColumnId)>,
    /// Foreign keys and checks of the version that the database does not take, each in a sentence: their tables do without.
    pub unbound: Vec<String>,
    /// Rows that the application wrote after the caller's last look at the capture, of tables that it had told to
    /// [`Database::hold_still`], as they were before the change, with the table that they stood in. Only where DDL commits by
    /// itself.
    pub untaken: Vec<(Table, Vec<Row>)>,
    /// Checks of the version that rows break, as [`Database::evolve`]'s `to` has them, with the reason in a sentence. Their tables
    /// are otherwise what it says.
    pub unmade: Vec<(TableId, Check, String)>,
}

/// Something in a database that will hurt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it forbids sharing the table (or, with no table, using the database).
    pub fatal: bool,
    /// The table concerned.
    pub table: Option<String>,
    /// What is wrong and where, in a sentence.
    pub problem: String,
    /// What to do about it, in a sentence.
    pub advice: String,
}

/// Why a database did not do what was asked, sorted by what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be reached, or the connection broke. Retry later; exit code 4.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// It refused us: wrong password, missing right, wrong database. A person must act; exit code 4.
    #[error("the database refused: {0}")]
    Refused(String),
    /// Another transaction was in the way (lock time-out, deadlock, serialization). Retry at once.
    #[error("another transaction was in the way: {0}")]
    Busy(String),
    /// A row does not fit: a constraint of the application's schema.
    #[error("a row does not fit table `{table}`: {message}")]
    Constraint {
        /// The table.
        table: String,
        /// The database's own words.
        message: String,
        /// Whether it is a foreign key: a missing parent may still come.
        foreign_key: bool,
    },
    /// A value or column that this office's tables cannot take.
    #[error("table `{table}` does not match the plan: {message}")]
    Mismatch {
        /// The table.
        table: String,
        /// What does not match.
        message: String,
    },
    /// Anything else; a bug or a broken database.
    #[error("the database failed: {0}")]
    Other(String),
}

/// The result of a database step.
pub type DbResult<T> = Result<T, DatabaseError>;

/// An office's database.
pub trait Database: Send {
    /// About how many changes one transaction should write where several units wait. Engines on which our transaction
    /// keeps the application's from writing anything ask for less (P8). A unit may be larger.
    fn changes_at_a_time(&self) -> usize {
        8_000
    }

    /// Opens a transaction, rolling back one that was left open.
    fn begin(&mut self, purpose: Purpose) -> impl Future<Output = DbResult<()>> + Send;
    /// Makes the transaction durable.
    fn commit(&mut self) -> impl Future<Output = DbResult<()>> + Send;
    /// Undoes the transaction. Harmless when none is open.
    fn rollback(&mut self) -> impl Future<Output = DbResult<()>> + Send;

    /// Removes captured writes and returns their net effect, about `limit` rows at a time, oldest first.
    ///
    /// The calls made in one transaction up to a portion with `open == false` return whole transactions of the
    /// application, and never part transactions that share a row (SETTLED 2). Between two such points no captured
    /// write is left behind that was committed before one that was returned and touches the same row or transaction.
    /// Writes that commit later are returned by a later transaction, whatever their sequence. Memory is bounded by `limit`.
    /// Needs [`Purpose::Take`].
    fn take(
        &mut self,
        schema: &Schema,
        limit: usize,
    ) -> impl Future<Output = DbResult<Portion>> + Send;
    /// Which of these rows (all of the table's where `keys` is `None`) have captured writes not yet taken. In an `Apply` transaction, called after
    /// [`Database::write`] on the same rows, the answer stays true until the commit: a local write to such a row has
    /// either been captured by now or waits for this transaction.
    fn captured(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> impl Future<Output = DbResult<BTreeSet<Key>>> + Send;
    /// Puts every row of the table into the capture as [`First::Unknown`], or, where keys are given, those rows as `Existing`.
    fn recapture(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> impl Future<Output = DbResult<()>> + Send;
    /// Notes, outside of a transaction, how far the capture is whole transactions, where the database's triggers cannot tell
    /// one from the next: a large backlog is then taken in more than one unit. To be called while nothing is taken, as often
    /// as one likes; nothing is written where nothing new was captured.
    fn mark(&mut self) -> impl Future<Output = DbResult<()>> + Send;
    /// What waits in the capture.
    fn backlog(&mut self) -> impl Future<Output = DbResult<Backlog>> + Send;

    /// Makes these rows so, in a few statements: deletes children first, then puts parents first. At most one effect
    /// for a row. Nothing is captured. Never deletes or changes another row to make one fit: a delete whose referential
    /// actions would reach rows that are not among the effects is a broken foreign key. Needs [`Purpose::Apply`].
    fn write(
        &mut self,
        schema: &Schema,
        effects: &[(TableId, Effect)],
    ) -> impl Future<Output = DbResult<()>> + Send;
    /// As [`Database::write`], but it may return before it is done. The error is then told in place of what is asked next in
    /// the transaction, whatever that is, and at the latest by its commit.
    fn begin_write(
        &mut self,
        schema: &Schema,
        effects: Vec<(TableId, Effect)>,
    ) -> impl Future<Output = DbResult<()>> + Send {
        async move { self.write(schema, &effects).await }
    }
    /// The rows with these keys that exist. Those that cannot be read are left out, here and in [`Database::chunk`].
    fn read(
        &mut self,
        table: &Table,
        keys: &[Key],
    ) -> impl Future<Output = DbResult<BTreeMap<Key, Row>>> + Send;
    /// Up to `limit` rows in the database's own key order, after the row with key `after`. A table that was rewritten or
    /// emptied since a `Read` transaction's snapshot is [`DatabaseError::Busy`] where the snapshot cannot see its rows any more
    /// (PostgreSQL); here and in [`Database::read`].
    fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> impl Future<Output = DbResult<Vec<Row>>> + Send;

    // Writing a remembered value, a stream or a note may tell its error later: in place of what is asked next in the
    /// A remembered value.
    fn meta(&mut self, name: &str) -> impl Future<Output = DbResult<Option<Vec<u8>>>> + Send;
    /// Remembers a value, or forgets it.
    fn set_meta(
        &mut self,
        name: &str,
        value: Option<&[u8]>,
    ) -> impl Future<Output = DbResult<()>> + Send;
    /// Appends entries to a stream. A number that is there already is an error. Here, and where a value is remembered or a
    /// stream trimmed, the error may be told later: in place of what is asked next in the transaction, or by its commit.
    fn append(
        &mut self,
        stream: &str,
        entries: &[Entry],
    ) -> impl Future<Output = DbResult<()>> + Send;
    /// Entries numbered `from` and up, in order, until `max_bytes` are exceeded (at least one where there is one).
    fn entries(
        &mut self,
        stream: &str,
        from: u64,
        max_bytes: usize,
    ) -> impl Future<Output = DbResult<Vec<Entry>>> + Send;
    /// Removes entries numbered up to `through`.
    fn trim(&mut self, stream: &str, through: u64) -> impl Future<Output = DbResult<()>> + Send;
    /// How large a stream is.
    fn extent(&mut self, stream: &str) -> impl Future<Output = DbResult<Extent>> + Send;
    /// The notes on these rows, or on all rows of the table where `keys` is `None`.
    fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> impl Future<Output = DbResult<BTreeMap<Key, Vec<u8>>>> + Send;
    /// Sets or clears notes on rows.
    fn set_notes(
        &mut self,
        table: &Table,
        notes: &[(Key, Option<Vec<u8>>)],
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// Looks at the application's tables.
    fn inspect(&mut self) -> impl Future<Output = DbResult<Inspection>> + Send;
    /// What [`Database::inspect`] says of the tables' definitions alone: no rows are looked at, so that it costs the same
    /// whatever the tables hold.
    fn definitions(&mut self) -> impl Future<Output = DbResult<Inspection>> + Send {
        self.inspect()
    }
    /// Creates Branchline's own tables where they are missing. Nothing of the application's is touched.
    fn prepare(&mut self) -> impl Future<Output = DbResult<()>> + Send;
    /// Installs capture on the schema's tables and removes it from tables no longer in it. Idempotent. Writes that
    /// commit after this returns are captured.
    fn install(&mut self, schema: &Schema) -> impl Future<Output = DbResult<()>> + Send;
    /// A fingerprint of how the schema's tables are defined, and of which other tables there are. Equal fingerprints mean
    /// equal inspections of what concerns the schema. In a `Take` transaction it must be asked first: it is that of the
    /// snapshot, and what defines the schema's tables does not change until the transaction ends (PostgreSQL, MariaDB: their
    /// definitions are locked, so that an `ALTER` waits; one that holds the lock makes this [`DatabaseError::Busy`]).
    /// Branchline's own tables, triggers and functions do not count. Cheap: asked at every take.
    fn shape(&mut self, schema: &Schema) -> impl Future<Output = DbResult<Digest>> + Send;
    /// Waits for the application's transactions that write to this table, and keeps others from writing to it until the open
    /// [`Purpose::Load`] transaction ends: what they wrote is [`Self::captured`] then. Where DDL commits by itself (MariaDB)
    /// they are kept out while the table changes: [`Self::evolve`] is [`DatabaseError::Busy`], a few times, where something
    /// is captured by then, and later tells it as [`Evolution::untaken`].
    fn hold_still(&mut self, table: &Table) -> impl Future<Output = DbResult<()>> + Send;
    /// Turns the tables of `from` into those of `to` by the engine's own DDL, and installs capture for `to`. Needs an open
    /// [`Purpose::Load`] transaction, in which it becomes true with the books; where DDL commits by itself (MariaDB) it ends that
    /// transaction and opens another one.
    ///
    /// Tables and columns of the two versions are the same where their numbers are. What the database really has counts,
    /// not `from`: a step that the application has made already, or that a crash cut off, is not made twice. Tables that
    /// only `to` has are created (as by `create_tables`); of those that only `from` has, the ones named in `dropped` are
    /// dropped, the others only lose their capture. Columns renamed, added, dropped, retyped, nullability, defaults, unique
    /// constraints, foreign keys, indexes, key columns and enum labels follow. Checks that `from` has and `to` has not are
    /// dropped, and those of dropped columns. Those that only `to` has are made last, where all rows obey them; what they say
    /// never keeps a table from the rest of the version. Other checks stay, and none is made. Rows keep their values; a new
    /// column holds its default. What cannot be done to a table leaves that table whole as it was, and the others go on.
    /// Captured writes stay captured.
    fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> impl Future<Output = DbResult<Evolution>> + Send;
    /// The tables of the schema whose capture is missing, disabled or altered.
    fn missing_capture(
        &mut self,
        schema: &Schema,
    ) -> impl Future<Output = DbResult<Vec<TableId>>> + Send;
    /// Creates shared tables that do not exist, with keys, unique keys and checks, parents first, and returns their names.
    /// Foreign keys are created with them where the engine cannot add them later (SQLite).
    fn create_tables(
        &mut self,
        schema: &Schema,
    ) -> impl Future<Output = DbResult<Vec<String>>> + Send;
    /// Adds the foreign keys that `create_tables` left out, on the tables that it created (now or in an earlier run),
    /// and nothing on others. One that rows break, or that the database refuses, keeps no other table's out: the first such
    /// refusal is the error, after the others were made. Idempotent; called when the first copy is complete.
    fn add_foreign_keys(&mut self, schema: &Schema) -> impl Future<Output = DbResult<()>> + Send;
    /// Removes everything that Branchline ever made in this database, and nothing else.
    fn uninstall(&mut self) -> impl Future<Output = DbResult<()>> + Send;
}
