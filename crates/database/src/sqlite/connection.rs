//! The connection, and the one transaction open on it.

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use branchline_core::port::{DatabaseError, DbResult, Purpose};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::apply::Touched;
use super::courtesy::Courtesy;
use super::error::{failure, is_busy, is_foreign_key};
use super::local::Locals;
use super::plan::Plan;
use super::references::{self, References};

/// How long a transaction waits for the application's before it reports [`DatabaseError::Busy`].
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, while it waits to take, it looks where the capture can be parted.
const BETWEEN_MARKS: Duration = Duration::from_millis(200);

/// Prepared statements kept: a handful for each shared table.
const STATEMENTS: usize = 512;

/// What [`SqliteDatabase::take_portion`] still has to return in this transaction. Created once for each connection,
/// since creating it in every transaction would throw away all prepared statements.
const TAKING: &str = "CREATE TEMP TABLE IF NOT EXISTS branchline_taking(
    first INTEGER PRIMARY KEY, tbl, op, at, k0, k1, k2, k3, k4, k5, k6, k7)";

/// A connection, and what was looked up of the tables on it.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    pub(super) locals: RefCell<Locals>,
}

impl Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// An office's SQLite database.
#[derive(Debug)]
pub struct SqliteDatabase {
    pub(super) connection: Session,
    pub(super) transaction: Option<Transaction>,
    pub(super) references: References,
    pub(super) courtesy: Courtesy,
    /// Foreign keys are switched off for a [`Purpose::Load`] transaction.
    unenforced: bool,
    path: PathBuf,
    pub(super) shape: Option<super::shape::Known>,
    pub(super) plan: Option<Plan>,
    /// Marks that are not written down yet.
    pub(super) marks: Vec<i64>,
    /// Locked while this process owns the office.
    owned: Option<File>,
}

/// Which engine an office runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `sqlite`.
    pub engine: &'static str,
    /// The version of the library built into this process.
    pub version: String,
}

/// The state of the open transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// What it is for.
    pub(super) purpose: Purpose,
    /// The marker row is in place.
    pub(super) marked: bool,
    /// Rows of tables with foreign keys are written.
    pub(super) concerned: bool,
    /// Foreign keys wait for the commit.
    pub(super) deferred: bool,
    /// A unit has been moved to `branchline_taking`, and not all of it was fetched.
    pub(super) taking: bool,
    /// The plan is one of this transaction.
    pub(super) planned: bool,
    /// Rows written, to name the one behind a foreign key that fails at the commit.
    pub(super) touched: Vec<Touched>,
}

impl SqliteDatabase {
    /// Opens the database file at a path or `sqlite:PATH` address. A file that does not exist is made only with `create`.
    pub fn open(address: &str, create: bool) -> DbResult<Self> {
        let path = path_of(address);
        if !create && !path.exists() {
            let path = path.display();
            return Err(DatabaseError::Unreachable(format!(
                "there is no database file at {path}; check the path"
            )));
        }
        if create {
            make_private(&path);
        }
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let connection = Connection::open_with_flags(&path, flags).map_err(failure)?;
        settle(&connection).map_err(failure)?;
        Ok(Self {
            connection: Session {
                connection,
                locals: RefCell::default(),
            },
            transaction: None,
            references: References::default(),
            courtesy: Courtesy::new(),
            unenforced: false,
            path,
            shape: None,
            plan: None,
            marks: Vec::new(),
            owned: None,
        })
    }

    /// Takes the right to be the one process that owns this office's database: a lock on the file `PATH.branchline-lock`.
    /// False where another process has it.
    pub fn own(&mut self) -> DbResult<bool> {
        if self.owned.is_some() {
            return Ok(true);
        }
        let path = self.lock_path();
        let refused = |error: std::io::Error| {
            DatabaseError::Refused(format!("cannot lock {}: {error}", path.display()))
        };
        // Never the database file itself: closing it would drop SQLite's own locks.
        let mut options = File::options();
        let options = options.create(true).write(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {
                self.owned = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(refused(error)),
        }
    }

    /// The file whose lock says who owns the office.
    pub(super) fn lock_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".branchline-lock");
        name.into()
    }

    /// The engine and its version.
    pub fn describe(&self) -> Description {
        Description {
            engine: "sqlite",
            version: rusqlite::version().to_owned(),
        }
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the application's own triggers stay silent when we write. They fire unless this is called.
    ///
    /// Fired, a trigger that writes to a shared table acts a second time on what it already did at the office that
    /// wrote first. Silent, a trigger that keeps a local index or audit table misses what other offices wrote.
    pub fn silence_triggers(&mut self, silent: bool) -> DbResult<()> {
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, !silent)
            .map(drop)
            .map_err(failure)
    }

    pub(super) fn begin_transaction(&mut self, purpose: Purpose) -> DbResult<()> {
        self.roll_back()?;
        if purpose == Purpose::Load {
            // Has no effect within a transaction, so it comes before; `enforce_again` undoes it.
            self.connection
                .execute_batch("PRAGMA foreign_keys = OFF")
                .map_err(failure)?;
            self.unenforced = true;
        }
        match purpose {
            Purpose::Take => {
                self.courtesy.leave_gap();
                self.begin_taking().inspect(|()| self.courtesy.taken())
            }
            Purpose::Apply | Purpose::Load => {
                self.courtesy.leave_gap();
                execute(&self.connection, "BEGIN IMMEDIATE").inspect(|()| self.courtesy.taken())
            }
            // A deferred transaction has its snapshot only once it has read something.
            Purpose::Read => execute(&self.connection, "BEGIN")
                .and_then(|()| execute(&self.connection, "SELECT 1 FROM sqlite_master LIMIT 1")),
        }
        .map_err(failure)?;
        self.transaction = Some(Transaction {
            purpose,
            marked: false,
            concerned: false,
            deferred: false,
            taking: false,
            planned: false,
            touched: Vec::new(),
        });
        Ok(())
    }

    /// Takes the write lock. As long as an application that writes without pause keeps it, it is marked where the capture can be
    /// parted: what comes meanwhile need not be one unit.
    fn begin_taking(&mut self) -> rusqlite::Result<()> {
        let since = Instant::now();
        let begun = loop {
            if let Err(error) = self.see_mark() {
                tracing::debug!(%error, "the capture was not looked at");
            }
            self.connection.busy_timeout(BETWEEN_MARKS)?;
            match execute(&self.connection, "BEGIN IMMEDIATE") {
                Err(error) if is_busy(&error) && since.elapsed() < BUSY_TIMEOUT => {}
                begun => break begun,
            }
        };
        self.connection.busy_timeout(BUSY_TIMEOUT)?;
        begun
    }

    pub(super) fn commit_transaction(&mut self) -> DbResult<()> {
        let Some(transaction) = &self.transaction else {
            return Err(DatabaseError::Other(
                "there is no transaction to commit".into(),
            ));
        };
        if self.connection.is_autocommit() {
            self.transaction = None;
            self.courtesy.released();
            return Err(DatabaseError::Other(
                "a trigger of the application rolled the transaction back".into(),
            ));
        }
        let (marked, planned) = (transaction.marked, transaction.planned);
        if transaction.taking {
            self.put_back_untaken()?;
        }
        if marked {
            run(&self.connection, "DELETE FROM branchline_applying")?;
        }
        match execute(&self.connection, "COMMIT") {
            Ok(()) => {
                self.transaction = None;
                self.courtesy.released();
                if planned {
                    self.marks.clear();
                }
                self.enforce_again()
            }
            Err(error) if is_foreign_key(&error) => Err(self.name_broken_reference(&error)),
            Err(error) => Err(failure(error)),
        }
    }

    pub(super) fn roll_back(&mut self) -> DbResult<()> {
        let open = self.transaction.take();
        if !self.connection.is_autocommit() {
            run(&self.connection, "ROLLBACK")?;
            if open.is_none_or(|open| open.purpose != Purpose::Read) {
                // SQLite's count of changes to the catalogue goes back with them.
                self.shape = None;
                self.plan = None;
                self.references = References::default();
                self.connection.locals.take();
            }
        }
        self.courtesy.released();
        self.enforce_again()
    }

    fn enforce_again(&mut self) -> DbResult<()> {
        if self.unenforced {
            self.connection
                .execute_batch("PRAGMA foreign_keys = ON")
                .map_err(failure)?;
            self.unenforced = false;
        }
        Ok(())
    }

    /// The open transaction, which must take captured changes.
    pub(super) fn taking(&mut self) -> DbResult<&mut Transaction> {
        self.begun_for(&[Purpose::Take])
    }

    /// The open transaction, which must write to shared tables.
    pub(super) fn applying(&mut self) -> DbResult<&mut Transaction> {
        self.begun_for(&[Purpose::Apply, Purpose::Load])
    }

    fn begun_for(&mut self, purposes: &[Purpose]) -> DbResult<&mut Transaction> {
        match &mut self.transaction {
            Some(transaction) if purposes.contains(&transaction.purpose) => Ok(transaction),
            _ => Err(DatabaseError::Other(format!(
                "this step needs a transaction begun for one of {purposes:?}"
            ))),
        }
    }

    /// Runs a catalogue step in a transaction of its own that may write.
    pub(super) fn catalogue_write<T>(
        &mut self,
        step: impl FnOnce(&Connection) -> DbResult<T>,
    ) -> DbResult<T> {
        self.roll_back()?;
        // Captured keys may be written anew, or go.
        self.plan = None;
        self.marks.clear();
        self.connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(failure)?;
        let result = step(&self.connection).and_then(|done| {
            self.connection
                .execute_batch("COMMIT")
                .map_err(failure)
                .map(|()| done)
        });
        if result.is_err() {
            self.roll_back()?;
        }
        result
    }

    /// Runs a catalogue step in one snapshot.
    pub(super) fn catalogue_read<T>(
        &mut self,
        step: impl FnOnce(&Connection) -> DbResult<T>,
    ) -> DbResult<T> {
        self.roll_back()?;
        self.connection.execute_batch("BEGIN").map_err(failure)?;
        let result = step(&self.connection);
        self.roll_back()?;
        result
    }

    fn name_broken_reference(&mut self, error: &rusqlite::Error) -> DatabaseError {
        let touched = self
            .transaction
            .as_ref()
            .map(|open| open.touched.as_slice())
            .unwrap_or_default();
        let broken = self
            .references
            .load(&self.connection)
            .and_then(|all| references::broken(&self.connection, all, touched))
            .ok()
            .flatten();
        let (table, message) = match broken {
            Some((table, parent)) => (
                table,
                format!("{error}: a row refers to one that is not in table `{parent}`"),
            ),
            None => (
                touched
                    .first()
                    .map(|row| row.table.clone())
                    .unwrap_or_default(),
                error.to_string(),
            ),
        };
        DatabaseError::Constraint {
            table,
            message,
            foreign_key: true,
        }
    }
}

/// Runs a statement that stays prepared; what it selects is stepped through.
fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// The same, for a statement that concerns no shared table.
pub(super) fn run(connection: &Connection, sql: &str) -> DbResult<()> {
    execute(connection, sql).map_err(failure)
}

/// Makes the file if there is none. It will hold the office's signing key: others are kept out, until its owner lets them in.
/// What stands in the way SQLite tells when it opens the file.
fn make_private(path: &Path) {
    if path != Path::new(":memory:") {
        let mut options = File::options();
        drop(options.write(true).create_new(true).mode(0o600).open(path));
    }
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    connection.execute_batch("PRAGMA recursive_triggers = OFF")?;
    // The first read of the file: this is where something else than a database is noticed.
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    connection.execute_batch(TAKING)
}

/// The file behind a path or a `sqlite:` address (`sqlite:PATH` or `sqlite://PATH`).
pub(super) fn path_of(address: &str) -> PathBuf {
    let path = address.strip_prefix("sqlite:").unwrap_or(address);
    PathBuf::from(path.strip_prefix("//").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_files() {
        for (address, path) in [
            ("shop.db", "shop.db"),
            ("sqlite:shop.db", "shop.db"),
            ("sqlite:/var/shop.db", "/var/shop.db"),
            ("sqlite:///var/shop.db", "/var/shop.db"),
        ] {
            assert_eq!(path_of(address), PathBuf::from(path), "{address}");
        }
    }
}
