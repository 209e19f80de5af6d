//! Rows of schema versions that a restored head lost (decision 16): their numbers may be other versions' by now.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::Versions;
use super::next::same_for_branches;
use crate::message::{Batch, LogEntry};
use crate::schema::{Column, ColumnId, Schema, SchemaVersion, Table, TableId};

/// The number of a table, and of a column, that the present version does not have.
const NOBODYS: u32 = u32::MAX;

/// The version in which the rows of a batch stand, where the head has lost it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LostVersion {
    /// The last version that is the same at both ends.
    #[n(0)]
    pub since: SchemaVersion,
    /// The tables of which the batch has rows.
    #[n(1)]
    pub tables: Vec<Table>,
}

/// The tables in which rows stand, by the numbers that the rows name; they have the numbers of the present version.
#[derive(Debug)]
pub enum Shapes<'v> {
    /// A version that this office has.
    Known(&'v Schema),
    /// One that it does not have, or no more.
    Lost(BTreeMap<TableId, Table>),
}

impl Shapes<'_> {
    /// The table that rows name by this number.
    pub fn table(&self, id: TableId) -> Option<&Table> {
        match self {
            Self::Known(schema) => schema.table(id),
            Self::Lost(tables) => tables.get(&id),
        }
    }

    fn lost(tables: &[Table], shared: &Schema, present: &Schema) -> Self {
        let tables = tables.iter();
        let renumbered = tables.map(|table| (table.id, renumbered(table, shared, present)));
        Self::Lost(renumbered.collect())
    }
}

impl Versions {
    /// The tables in which the rows of a batch stand; nothing where this office cannot know them.
    pub fn shapes_of(&self, batch: &Batch, present: &Schema) -> Option<Shapes<'_>> {
        let Some(lost) = &batch.lost else {
            return self.get(batch.schema).map(Shapes::Known);
        };
        let shared = self.get(lost.since)?;
        Some(Shapes::lost(&lost.tables, shared, present))
    }

    /// Those among these versions that are later than one, which is the last that a restored head has, too.
    pub(crate) fn after(&self, since: SchemaVersion) -> Vec<Schema> {
        let later = self.0.range(since.saturating_add(1)..);
        later.map(|(_, schema)| Schema::clone(schema)).collect()
    }

    /// Forgets all that are later than one.
    pub(crate) fn forget_after(&mut self, last: SchemaVersion) {
        self.0.split_off(&last.saturating_add(1));
    }
}

/// A table of a lost version with the present version's numbers. What was numbered before the two versions parted has the
/// same number in both; what came later is the same where it has the same name.
fn renumbered(lost: &Table, shared: &Schema, present: &Schema) -> Table {
    let known = lost.id <= shared.tables_ever;
    let now = if known {
        present.table(lost.id)
    } else {
        let named = present.table_named(&lost.name);
        named.filter(|table| table.id > shared.tables_ever)
    };
    let ever = shared
        .table(lost.id)
        .filter(|_| known)
        .map_or(0, |table| table.columns_ever);
    let number = |(place, column): (ColumnId, &Column)| {
        if column.id <= ever {
            return column.id;
        }
        let mut columns = now.into_iter().flat_map(|table| &table.columns);
        let like = columns.find(|one| one.name == column.name && one.id > ever);
        like.map_or(NOBODYS - place, |column| column.id)
    };
    let columns = (0..).zip(&lost.columns).map(|(place, column)| Column {
        id: number((place, column)),
        ..column.clone()
    });
    Table {
        id: now.map_or(NOBODYS, |table| table.id),
        columns: columns.collect(),
        ..lost.clone()
    }
}

/// Reads a part of the log that this head lost and does not make its own as it was: which version its entries stand in.
#[derive(Clone, Debug)]
pub(crate) struct LostPart {
    /// The last version of that part that this log has, too.
    shared: SchemaVersion,
    /// A later one, that this log does not have.
    parted: Option<Schema>,
}

impl LostPart {
    /// It begins in this version, which this log has.
    pub fn new(shared: SchemaVersion) -> Self {
        Self {
            shared,
            parted: None,
        }
    }

    /// The version in which both stand, where they have not parted.
    pub fn shared(&self) -> Option<SchemaVersion> {
        self.parted.is_none().then_some(self.shared)
    }

    /// The part comes to another version. Returns whether this log has that one.
    pub fn comes_to(&mut self, next: &Schema, versions: &Versions) -> bool {
        let here = versions.get(next.version);
        let same = here.is_some_and(|here| same_for_branches(here, next));
        if self.parted.is_none() && same {
            self.shared = next.version;
            return true;
        }
        false
    }

    /// The part goes on in a version that this log does not have.
    pub fn parts(&mut self, next: &Schema) {
        self.parted = Some(next.clone());
    }

    /// Whether rows of this version are to be read by this log's version of that number.
    pub fn is_shared(&self, version: SchemaVersion) -> bool {
        version <= self.shared
    }

    /// The tables in which the rows of an entry stand.
    pub fn shapes_of<'v>(
        &self,
        entry: &LogEntry,
        versions: &'v Versions,
        present: &Schema,
    ) -> Option<Shapes<'v>> {
        if self.is_shared(entry.schema) {
            return versions.get(entry.schema).map(Shapes::Known);
        }
        let shared = versions.get(self.shared)?;
        let lost = self.parted.as_ref()?;
        Some(Shapes::lost(&lost.tables, shared, present))
    }
}
