//! Names that tables and columns had before. Who renamed a table did not mean to take it out of the plan: the list and the
//! rules go on to count for it under the name that they know.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::books::{self, SCHEMAS};
use branchline_core::failure::OfficeResult;
use branchline_core::port::Database;
use branchline_core::schema::{ColumnId, Schema, Table, TableId};

use super::rules::adds_up;

/// All names that shared tables and their columns ever had.
#[derive(Clone, Debug, Default)]
pub struct Former {
    tables: BTreeMap<TableId, BTreeSet<String>>,
    columns: BTreeMap<(TableId, ColumnId), BTreeSet<String>>,
    /// Columns that were ever numbers outside the key.
    numbers: BTreeSet<(TableId, ColumnId)>,
}

impl Former {
    /// Reads them from the schema versions that an office keeps, in the open transaction.
    pub async fn load<D: Database>(db: &mut D) -> OfficeResult<Self> {
        let mut former = Self::default();
        for entry in db.entries(SCHEMAS, 1, usize::MAX / 2).await? {
            former.learn(&books::decode(&entry.bytes)?);
        }
        Ok(former)
    }

    /// Adds the names of one version.
    pub fn learn(&mut self, schema: &Schema) {
        for table in &schema.tables {
            let names = self.tables.entry(table.id).or_default();
            names.insert(table.name.clone());
            for (at, column) in table.columns.iter().enumerate() {
                let place = (table.id, column.id);
                let names = self.columns.entry(place).or_default();
                names.insert(column.name.clone());
                if adds_up(table, at) {
                    self.numbers.insert(place);
                }
            }
        }
    }

    /// The names of a shared table, the present one first.
    pub fn names<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a str> {
        let known = (table.id != 0)
            .then(|| self.tables.get(&table.id))
            .flatten();
        let before = known.into_iter().flatten().map(String::as_str);
        std::iter::once(table.name.as_str()).chain(before)
    }

    /// Where in a table the column is that goes, or went, by this name.
    pub fn column(&self, table: &Table, name: &str) -> Option<usize> {
        let went_by = |id: ColumnId| {
            let names = self.columns.get(&(table.id, id));
            table.id != 0 && names.is_some_and(|names| names.contains(name))
        };
        let columns = || table.columns.iter();
        columns()
            .position(|column| column.name == name)
            .or_else(|| columns().position(|column| went_by(column.id)))
    }

    /// Whether any table that was ever shared went by this name.
    pub fn knows_table(&self, name: &str) -> bool {
        self.tables.values().any(|names| names.contains(name))
    }

    /// Whether a table that went by this name ever had a column that went by that one and could add up.
    pub fn knows_number(&self, table: &str, column: &str) -> bool {
        self.columns.iter().any(|((id, at), names)| {
            let tables = self.tables.get(id);
            names.contains(column)
                && tables.is_some_and(|names| names.contains(table))
                && self.numbers.contains(&(*id, *at))
        })
    }
}
