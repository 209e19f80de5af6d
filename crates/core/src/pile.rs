//! Effects gathered for one write, netted by row.

use std::collections::BTreeMap;

use crate::change::{Effect, Key, Row};
use crate::failure::{OfficeError, OfficeResult};
use crate::port::{Database, DatabaseError, Purpose};
use crate::schema::{Schema, TableId};

/// How many rows are handed to the database in one go, which goes on with them while the next ones are judged.
const PIECE_ROWS: usize = 2000;
/// After how many rows it is looked which of them the application changed meanwhile.
const WRITE_ROWS: usize = 4000;

/// Effects waiting to be written, at most one for a row: the last.
#[derive(Debug, Default)]
pub struct Pile {
    effects: BTreeMap<TableId, BTreeMap<Key, Effect>>,
    rows: usize,
    /// The names of rows that were handed over, and were not looked for in the capture since.
    handed: BTreeMap<TableId, Vec<Key>>,
    handed_rows: usize,
}

impl Pile {
    /// Adds an effect, replacing an earlier one on the same row.
    pub fn put(&mut self, table: TableId, key: Key, effect: Effect) {
        if self
            .effects
            .entry(table)
            .or_default()
            .insert(key, effect)
            .is_none()
        {
            self.rows += 1;
        }
    }

    /// What the pile says of a row: nothing, that it is gone, or what it is.
    pub fn get(&self, table: TableId, key: &Key) -> Option<Option<&Row>> {
        self.effects.get(&table)?.get(key).map(Effect::row)
    }

    /// Rows in the pile.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Hands the pile to the database where it has grown large. Returns what [`Pile::write`] does; where anything goes wrong
    /// before that is called, also elsewhere, [`Pile::excuse`] must be asked.
    pub async fn write_if_full<D: Database>(
        &mut self,
        db: &mut D,
        schema: &Schema,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        if self.rows < PIECE_ROWS {
            Ok(Vec::new())
        } else if self.handed_rows + self.rows >= WRITE_ROWS {
            self.write(db, schema).await
        } else {
            self.hand_over(db, schema).await?;
            Ok(Vec::new())
        }
    }

    /// Writes the pile, then looks which of its rows the application changed meanwhile. Where any is named, the
    /// caller must roll the transaction back: the write may have covered those changes (trap 3).
    pub async fn write<D: Database>(
        &mut self,
        db: &mut D,
        schema: &Schema,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        let outcome = match self.hand_over(db, schema).await {
            Ok(()) => clashes_with(db, schema, &self.handed).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(clashes) => {
                self.handed.clear();
                self.handed_rows = 0;
                Ok(clashes)
            }
            Err(error) => self.excuse(db, schema, error).await,
        }
    }

    async fn hand_over<D: Database>(&mut self, db: &mut D, schema: &Schema) -> OfficeResult<()> {
        let effects = std::mem::take(&mut self.effects);
        self.handed_rows += std::mem::take(&mut self.rows);
        let mut flat = Vec::new();
        for (table, rows) in effects {
            let names = self.handed.entry(table).or_default();
            names.reserve(rows.len());
            flat.reserve(rows.len());
            for (key, effect) in rows {
                names.push(key);
                flat.push((table, effect));
            }
        }
        if flat.is_empty() {
            return Ok(());
        }
        Ok(db.begin_write(schema, flat).await?)
    }

    /// A row may not fit only because the application has just changed it, or its parent: such rows of those that were
    /// handed over instead of the error. The transaction is undone.
    pub async fn excuse<D: Database>(
        &mut self,
        db: &mut D,
        schema: &Schema,
        error: OfficeError,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        let handed = std::mem::take(&mut self.handed);
        let unfit = matches!(
            &error,
            OfficeError::Database(DatabaseError::Constraint { .. })
        );
        if !unfit || handed.is_empty() {
            return Err(error);
        }
        db.rollback().await?;
        db.begin(Purpose::Read).await?;
        let clashes = clashes_with(db, schema, &handed).await?;
        if clashes.is_empty() {
            Err(error)
        } else {
            Ok(clashes)
        }
    }
}

async fn clashes_with<D: Database>(
    db: &mut D,
    schema: &Schema,
    handed: &BTreeMap<TableId, Vec<Key>>,
) -> OfficeResult<Vec<(TableId, Key)>> {
    let mut clashes = Vec::new();
    for (id, keys) in handed {
        if let Some(table) = schema.table(*id) {
            let captured = db.captured(table, Some(keys)).await?;
            clashes.extend(captured.into_iter().map(|key| (*id, key)));
        }
    }
    Ok(clashes)
}
