//! Where a SQLite backlog can be cut.
//!
//! SQLite shows triggers nothing of a transaction. But there is one writer at a time, and captured writes have ascending
//! numbers: those that a snapshot shows are whole transactions, and what comes later has higher ones. While nothing is
//! taken (the office is offline for long, or moves data only when asked), the highest number is therefore noted now and
//! then as a *mark*. What lies between two marks counts as one transaction, and so does what was written while no process
//! of the office was up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use branchline_core::port::{DatabaseError, DbResult};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::SqliteDatabase;
use super::capture::SLOTS;
use super::connection::{BUSY_TIMEOUT, run};
use super::error::failure;
use crate::backlog::{self, End, PORTIONS};

/// So many captured writes are worth a mark.
const APART: i64 = 1_000;

/// A write's number in the capture says when it was made, and where it is.
type Planned = backlog::Planned<i64, ()>;

/// The oldest captured writes. It outlives its transaction: their numbers stay the same until they are taken.
#[derive(Debug)]
pub(super) struct Plan {
    backlog: backlog::Plan<i64, ()>,
    /// The last number that was looked at.
    seen: i64,
    /// Marks passed so far, and looks: what was captured before a look is as if there had been a mark.
    part: u64,
}

/// A part of the capture that can be taken for itself: how many writes, and the highest number that is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    writes: usize,
    pub(super) through: i64,
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
        if let Some(until) = plan.until() {
            // From there on, since one more was read than is planned.
            seen = until;
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
    let marks = marks_behind(connection, *seen)?;
    let mut marks = marks.into_iter().peekable();
    let sql = format!(
        "SELECT number, tbl, {SLOTS} FROM branchline_capture
         WHERE number > ?1 AND op <> 'B' AND tbl IN ({tables}) ORDER BY number"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(failure)?;
    let mut rows = statement.query([*seen]).map_err(failure)?;
    while let Some(row) = rows.next().map_err(failure)? {
        *seen = row.get(0).map_err(failure)?;
        while marks.next_if(|mark| *mark < *seen).is_some() {
            *part += 1;
        }
        let named = (row.get(1).map_err(failure)?, name(row).map_err(failure)?);
        if !act(Planned::new(*seen, (), *part, named)) {
            break;
        }
    }
    Ok(())
}

/// The marks at or behind a number.
fn marks_behind(connection: &Connection, number: i64) -> DbResult<Vec<i64>> {
    let marks = "SELECT number FROM branchline_part WHERE number >= ?1 ORDER BY number";
    let mut marks = connection.prepare_cached(marks).map_err(failure)?;
    let marks = marks.query_map([number], |row| row.get(0));
    marks.and_then(Iterator::collect).map_err(failure)
}

/// A hash that all spellings of a captured key share: of texts their case and the blanks at their ends do not count,
/// since a collation may overlook them, of numbers their storage class.
fn name(row: &rusqlite::Row<'_>) -> rusqlite::Result<i64> {
    let mut hash = DefaultHasher::new();
    for slot in 2..10 {
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
    /// See [`branchline_core::port::Database::mark`]. To see where a mark can be needs no lock; to write it down does, which an
    /// application that writes without pause leaves to nobody. It is kept in memory until then.
    pub(super) fn mark_captured(&mut self) -> DbResult<()> {
        self.roll_back()?;
        self.see_mark()?;
        if self.marks.is_empty() {
            return Ok(());
        }
        self.connection
            .busy_timeout(Duration::ZERO)
            .map_err(failure)?;
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        self.connection
            .busy_timeout(BUSY_TIMEOUT)
            .map_err(failure)?;
        match begun.map_err(failure) {
            Err(DatabaseError::Busy(_)) => return Ok(()),
            begun => begun?,
        }
        let written = self
            .write_marks()
            .and_then(|()| run(&self.connection, "COMMIT"));
        match written {
            Ok(()) => self.marks.clear(),
            Err(_) => self.roll_back()?,
        }
        written
    }

    /// Notes, outside of a transaction, what is captured by now as whole transactions.
    pub(super) fn see_mark(&mut self) -> DbResult<()> {
        let last = "SELECT coalesce((SELECT max(number) FROM branchline_capture), 0),
             coalesce((SELECT max(number) FROM branchline_part), 0)";
        let (last, marked): (i64, i64) = self
            .connection
            .prepare_cached(last)
            .and_then(|mut last| last.query_row([], |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(failure)?;
        let marked = self.marks.last().copied().unwrap_or(marked);
        if last - marked >= APART {
            self.marks.push(last);
        }
        Ok(())
    }

    /// Writes down, in the open transaction, which marks are not yet.
    pub(super) fn write_marks(&self) -> DbResult<()> {
        let one = "INSERT OR IGNORE INTO branchline_part(number) VALUES (?1)";
        let mut one = self.connection.prepare_cached(one).map_err(failure)?;
        self.marks
            .iter()
            .try_for_each(|mark| one.execute([mark]).map(drop))
            .map_err(failure)
    }
}
