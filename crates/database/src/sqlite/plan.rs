//! Where a SQLite backlog can be cut.
//!
//! SQLite shows triggers nothing of a transaction. But there is one writer at a time: whenever this office has the write
//! lock, everything captured is whole transactions. While nothing is taken (the office is offline for long, or moves data
//! only when asked), it therefore puts a *mark* into the capture now and then. What lies between two marks counts as one
//! transaction, and so does what was written while no process of the office was up.

use std::hash::{DefaultHasher, Hash, Hasher};

use branchline_core::port::DbResult;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::SqliteDatabase;
use super::capture::SLOTS;
use super::connection::run;
use super::error::failure;
use crate::backlog::{self, End, PORTIONS};

/// The "table" of a mark, and its kind.
pub(super) const MARK: (i32, &str) = (-1, "C");

/// So many captured writes are worth a mark.
const APART: i64 = 1_000;

/// A write's number in the capture says when it was made, and where it is.
type Planned = backlog::Planned<i64, ()>;

/// The oldest captured writes. It outlives its transaction: their numbers stay the same until they are taken. Where they
/// do not (`VACUUM`), their count tells.
#[derive(Debug)]
pub(super) struct Plan {
    backlog: backlog::Plan<i64, ()>,
    /// The last number that was looked at.
    seen: i64,
    /// Marks passed so far, and looks: what was captured before a look is as if there had been a mark.
    part: u64,
}

/// A part of the capture that can be taken for itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unit {
    /// The number of the last write that may be in it.
    pub(super) through: i64,
    /// How many writes it has.
    pub(super) writes: usize,
}

impl Plan {
    /// Plans the oldest writes to these tables, given as a list for `IN`: about so many portions of this size.
    pub(super) fn make(connection: &Connection, tables: &str, limit: usize) -> DbResult<Self> {
        let size = limit.saturating_mul(PORTIONS);
        let (mut seen, mut part) = (0, 0);
        let mut writes = Vec::new();
        each(connection, tables, &mut seen, &mut part, |write| {
            writes.push(write);
            writes.len() <= size
        })?;
        let (mut plan, mut last) = backlog::Plan::of(writes, size);
        if plan.until().is_some() {
            each(connection, tables, &mut seen, &mut part, |write| {
                last.note_again(&write);
                true
            })?;
        }
        plan.settle(&last);
        Ok(Self {
            backlog: plan,
            seen,
            part,
        })
    }

    /// Adds what was captured since. False where the plan must be made anew.
    pub(super) fn renew(&mut self, connection: &Connection, tables: &str) -> DbResult<bool> {
        let size = self.backlog.size();
        self.part += 1;
        let mut fresh = Vec::new();
        each(
            connection,
            tables,
            &mut self.seen,
            &mut self.part,
            |write| {
                fresh.push(write);
                fresh.len() < size
            },
        )?;
        Ok(self.backlog.add(fresh))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }

    pub(super) fn more(&self) -> bool {
        self.backlog.more()
    }

    /// The next unit, of at least `limit` writes where there are so many. None where it ends beyond the plan.
    pub(super) fn next(&self, limit: usize) -> Option<Unit> {
        let writes = match self.backlog.end(0, limit) {
            End::After(writes) | End::Large(writes, _) => writes,
            End::Beyond => return None,
        };
        // A write's image stands behind it.
        let behind = self.backlog.some(writes, 1).next();
        let through = behind.map_or(i64::MAX, |next| next.at - 1);
        Some(Unit { through, writes })
    }

    /// Forgets a unit that was taken.
    pub(super) fn take(&mut self, unit: Unit) {
        self.backlog.take(unit.writes);
    }
}

/// Reads what is captured behind the number `seen`, in order, until `act` wants no more.
fn each(
    connection: &Connection,
    tables: &str,
    seen: &mut i64,
    part: &mut u64,
    mut act: impl FnMut(Planned) -> bool,
) -> DbResult<()> {
    let (mark, kind) = MARK;
    let sql = format!(
        "SELECT rowid, tbl, op, {SLOTS} FROM branchline_capture
         WHERE rowid > ?1 AND op <> 'B' AND tbl IN ({mark}, {tables}) ORDER BY rowid"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(failure)?;
    let mut rows = statement.query([*seen]).map_err(failure)?;
    while let Some(row) = rows.next().map_err(failure)? {
        *seen = row.get(0).map_err(failure)?;
        if row.get_ref(2).map_err(failure)? == ValueRef::Text(kind.as_bytes()) {
            *part += 1;
            continue;
        }
        let named = (row.get(1).map_err(failure)?, name(row).map_err(failure)?);
        if !act(Planned::new(*seen, (), *part, named)) {
            break;
        }
    }
    Ok(())
}

/// A hash that all spellings of a captured key share: of texts their case and the blanks at their ends do not count,
/// since a collation may overlook them, of numbers their storage class.
fn name(row: &rusqlite::Row<'_>) -> rusqlite::Result<i64> {
    let mut hash = DefaultHasher::new();
    for slot in 3..11 {
        match row.get_ref(slot)? {
            ValueRef::Null => {}
            ValueRef::Integer(number) => number.hash(&mut hash),
            #[expect(clippy::cast_possible_truncation, reason = "a hash may be coarse")]
            ValueRef::Real(number) => (number as i64).hash(&mut hash),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                bytes.trim_ascii_end().to_ascii_lowercase().hash(&mut hash);
            }
        }
    }
    Ok(hash.finish().cast_signed())
}

impl SqliteDatabase {
    /// See [`branchline_core::port::Database::mark`].
    pub(super) fn mark_captured(&mut self) -> DbResult<()> {
        self.roll_back()?;
        let last = "SELECT coalesce(max(rowid), 0) FROM branchline_capture";
        let last: i64 = self
            .connection
            .prepare_cached(last)
            .and_then(|mut last| last.query_row([], |row| row.get(0)))
            .map_err(failure)?;
        if last < self.marked {
            // What was captured then is taken, and numbers begin again.
            self.marked = 0;
        }
        if last - self.marked < APART {
            return Ok(());
        }
        let (table, kind) = MARK;
        run(
            &self.connection,
            &format!("INSERT INTO branchline_capture(tbl, op) VALUES ({table}, '{kind}')"),
        )?;
        self.marked = self.connection.last_insert_rowid();
        Ok(())
    }
}
