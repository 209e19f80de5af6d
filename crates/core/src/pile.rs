//! Effects gathered for one write, netted by row.

use std::collections::BTreeMap;

use crate::change::{Effect, Key, Row};
use crate::failure::OfficeResult;
use crate::port::{Database, DatabaseError, Purpose};
use crate::schema::{Schema, TableId};

/// How many rows are written in one go.
pub const WRITE_ROWS: usize = 4000;

/// Effects waiting to be written, at most one for a row: the last.
#[derive(Debug, Default)]
pub struct Pile {
    effects: BTreeMap<TableId, BTreeMap<Key, Effect>>,
    rows: usize,
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

    /// Whether it is time to write.
    pub fn is_full(&self) -> bool {
        self.rows >= WRITE_ROWS
    }

    /// Rows in the pile.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes the pile, then looks which of its rows the application changed meanwhile. Where any is named, the
    /// caller must roll the transaction back: the write may have covered those changes (trap 3).
    pub async fn write<D: Database>(
        &mut self,
        db: &mut D,
        schema: &Schema,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        let effects = std::mem::take(&mut self.effects);
        self.rows = 0;
        let mut keys: Vec<(TableId, Vec<Key>)> = Vec::with_capacity(effects.len());
        let mut flat = Vec::new();
        for (table, rows) in effects {
            let mut names = Vec::with_capacity(rows.len());
            flat.reserve(rows.len());
            for (key, effect) in rows {
                names.push(key);
                flat.push((table, effect));
            }
            keys.push((table, names));
        }
        if flat.is_empty() {
            return Ok(Vec::new());
        }
        match db.write(schema, &flat).await {
            Ok(()) => clashes_with(db, schema, keys).await,
            Err(error @ DatabaseError::Constraint { .. }) => {
                // A row may not fit only because the application has just changed it, or its parent.
                db.rollback().await?;
                db.begin(Purpose::Read).await?;
                let clashes = clashes_with(db, schema, keys).await?;
                if clashes.is_empty() {
                    Err(error.into())
                } else {
                    Ok(clashes)
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn clashes_with<D: Database>(
    db: &mut D,
    schema: &Schema,
    keys: Vec<(TableId, Vec<Key>)>,
) -> OfficeResult<Vec<(TableId, Key)>> {
    let mut clashes = Vec::new();
    for (id, keys) in keys {
        if let Some(table) = schema.table(id) {
            let captured = db.captured(table, Some(&keys)).await?;
            clashes.extend(captured.into_iter().map(|key| (id, key)));
        }
    }
    Ok(clashes)
}
