//! The plain model: a journal of every write that an application committed, and what each was made on.
//!
//! Every write has a payload of its own, so a row's content names the write that made it. A write made on top of
//! another *follows* it. What nothing follows is a *tip*; no tip may vanish (P1).

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::Key;
use branchline_core::schema::TableId;
use branchline_core::value::Value;

/// A write's number; its payload is `w` and the number.
pub type WriteId = u64;

/// A row's name in the model.
pub type RowName = (TableId, Key);

/// A committed write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The office whose application made it.
    pub office: usize,
    /// Whether it deleted the row.
    pub delete: bool,
    /// The write whose result it saw; none where there was no row.
    pub on: Option<WriteId>,
    /// It was made between a backup and the restoration of it: the restoration may have undone it.
    pub undone: bool,
    /// What it wrote into the columns beside the payload, by what lasts of their names, where tables change.
    pub values: BTreeMap<String, Value>,
}

/// All writes.
#[derive(Debug, Default)]
pub struct Journal {
    writes: BTreeMap<WriteId, Write>,
    rows: BTreeMap<RowName, Vec<WriteId>>,
    followers: BTreeMap<WriteId, Vec<WriteId>>,
    /// The inserts that came after a delete of the same row at the same office: together they may be one change.
    reborn: BTreeMap<WriteId, Vec<WriteId>>,
    last: WriteId,
    /// What was added to each counter.
    counts: BTreeMap<Key, i64>,
}

impl Journal {
    /// A number for the next write; it counts only if [`Journal::commit`] follows.
    pub fn draw(&mut self) -> WriteId {
        self.last += 1;
        self.last
    }

    /// The last number drawn.
    pub fn last(&self) -> WriteId {
        self.last
    }

    /// The transaction that made these writes was committed.
    pub fn commit(&mut self, writes: Vec<(RowName, WriteId, Write)>) {
        for (row, id, write) in writes {
            if let Some(on) = write.on {
                self.followers.entry(on).or_default().push(id);
            } else if let Some(deleted) = self.last_delete(&row, write.office) {
                self.reborn.entry(deleted).or_default().push(id);
            }
            self.rows.entry(row).or_default().push(id);
            self.writes.insert(id, write);
        }
    }

    /// The committed transaction added these to counters.
    pub fn count(&mut self, sold: Vec<(Key, i64)>) {
        for (key, delta) in sold {
            *self.counts.entry(key).or_default() += delta;
        }
    }

    /// What all offices together added to a counter.
    pub fn counted(&self, key: &Key) -> i64 {
        self.counts.get(key).copied().unwrap_or_default()
    }

    /// The office's database became what it was when `since` was the last write. What living offices have of it is not
    /// lost.
    pub fn restored(&mut self, office: usize, since: WriteId, kept: &BTreeSet<WriteId>) {
        for (id, write) in self.writes.range_mut(since + 1..) {
            write.undone |= write.office == office && !kept.contains(id);
        }
    }

    /// All rows ever written, with their writes in order.
    pub fn rows(&self) -> impl Iterator<Item = (&RowName, &[WriteId])> {
        self.rows
            .iter()
            .map(|(row, writes)| (row, writes.as_slice()))
    }

    /// A write.
    pub fn write(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(&id)
    }

    /// Whether a later write was made on top of this one.
    pub fn is_followed(&self, id: WriteId) -> bool {
        self.followers.contains_key(&id)
    }

    /// The writes made on top of this one.
    pub fn followers(&self, id: WriteId) -> &[WriteId] {
        self.followers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Whether any write put this value into a column of the row.
    pub fn wrote(&self, row: &RowName, column: &str, value: &Value) -> bool {
        let writes = self.rows.get(row).into_iter().flatten();
        let mut writes = writes.filter_map(|id| self.write(*id));
        writes.any(|write| write.values.get(column) == Some(value))
    }

    /// The inserts after this delete, at its office.
    pub fn reborn(&self, delete: WriteId) -> &[WriteId] {
        self.reborn.get(&delete).map_or(&[], Vec::as_slice)
    }

    fn last_delete(&self, row: &RowName, office: usize) -> Option<WriteId> {
        let here = |id: &&WriteId| self.write(**id).is_some_and(|write| write.office == office);
        let last = self.rows.get(row)?.iter().rev().find(here)?;
        self.write(*last).filter(|write| write.delete)?;
        Some(*last)
    }

    /// Nobody that is left knows of these.
    pub fn forgotten(&mut self, writes: &BTreeSet<WriteId>) {
        for id in writes {
            if let Some(write) = self.writes.get_mut(id) {
                write.undone = true;
            }
        }
    }

    /// The office's application dropped the table, and with it what was not sent.
    pub fn dropped(&mut self, office: usize, table: TableId) {
        let rows = self.rows.iter().filter(|((id, _), _)| *id == table);
        for id in rows.flat_map(|(_, writes)| writes) {
            if let Some(write) = self.writes.get_mut(id) {
                write.undone |= write.office == office;
            }
        }
    }

    /// The office left with its rows and joined anew: what it had not sent is known by its rows, its deletes are not.
    pub fn rejoined(&mut self, office: usize) {
        for write in self.writes.values_mut() {
            write.undone |= write.office == office && write.delete;
        }
    }

    /// Whether a write is one of these, or made on top of one.
    pub fn descends(&self, id: WriteId, from: &BTreeSet<WriteId>) -> bool {
        let mut at = Some(id);
        while let Some(id) = at {
            if from.contains(&id) {
                return true;
            }
            at = self.write(id).and_then(|write| write.on);
        }
        false
    }

    /// The insert from which a write descends. Inserts of one key that did not see each other are different rows of
    /// the business; a delete speaks of its own only.
    pub fn lineage(&self, id: WriteId) -> WriteId {
        let mut at = id;
        while let Some(on) = self.write(at).and_then(|write| write.on) {
            at = on;
        }
        at
    }
}
