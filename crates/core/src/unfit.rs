//! Finding the rows that a database will not take, so that they can be set aside and the rest goes on (P6).
//!
//! A database names a table when a constraint breaks, seldom the row. The row is found by trying: shorter and shorter
//! runs of the changes are written and rolled back. That costs some transactions, and only when something does not fit.

use std::collections::BTreeMap;

use crate::books::RowNames;
use crate::change::{Effect, Key};
use crate::failure::{OfficeError, OfficeResult};
use crate::port::{Database, DatabaseError, Purpose};
use crate::schema::{Schema, TableId};

/// Rows that do not fit, with what the database says of each.
pub(crate) type Reasons = BTreeMap<(TableId, Key), String>;

/// Whether an error means that a row does not fit the application's tables.
pub(crate) fn is_unfit(error: &OfficeError) -> bool {
    matches!(
        error,
        OfficeError::Database(DatabaseError::Constraint { .. } | DatabaseError::Mismatch { .. })
    )
}

/// The rows among these changes that keep the others from being written. Never empty when the changes are not.
pub(crate) async fn find<D: Database>(
    db: &mut D,
    schema: &Schema,
    purpose: Purpose,
    effects: Vec<(TableId, Effect)>,
) -> OfficeResult<RowNames> {
    let found = reasons(db, schema, purpose, effects).await?;
    Ok(found.into_keys().collect())
}

/// The same, each with what the database says of it; empty where it says nothing.
pub(crate) async fn reasons<D: Database>(
    db: &mut D,
    schema: &Schema,
    purpose: Purpose,
    effects: Vec<(TableId, Effect)>,
) -> OfficeResult<Reasons> {
    // The last word on each row.
    let last: BTreeMap<(TableId, Key), Effect> = effects
        .into_iter()
        .filter_map(|(table, effect)| Some((name(schema, table, &effect)?, effect)))
        .collect();
    let mut effects: Vec<(TableId, Effect)> = last
        .into_iter()
        .map(|((table, _), effect)| (table, effect))
        .collect();
    arrange(schema, &mut effects);
    let mut unfit = Reasons::new();
    while let Some(mut why) = refusal(db, schema, purpose, &effects).await? {
        let (mut fitting, mut failing) = (0, effects.len());
        while failing - fitting > 1 {
            let middle = fitting.midpoint(failing);
            match refusal(db, schema, purpose, &effects[..middle]).await? {
                None => fitting = middle,
                Some(refused) => {
                    failing = middle;
                    why = refused;
                }
            }
        }
        let (table, effect) = effects.remove(failing - 1);
        unfit.extend(name(schema, table, &effect).map(|name| (name, why)));
    }
    let unnamed = |name| (name, String::new());
    if unfit.is_empty() {
        // Only the commit failed: a foreign key that the engine checks there.
        let orphans = orphans(db, schema, &effects).await?;
        unfit = orphans.into_iter().map(unnamed).collect();
    }
    if unfit.is_empty() {
        let all = effects
            .iter()
            .filter_map(|(table, effect)| name(schema, *table, effect));
        unfit = all.map(unnamed).collect();
    }
    Ok(unfit)
}

/// Deletes first, children before parents; then puts, parents before children.
fn arrange(schema: &Schema, effects: &mut [(TableId, Effect)]) {
    let place = |id: TableId| {
        schema
            .tables
            .iter()
            .position(|table| table.id == id)
            .unwrap_or(0)
    };
    effects.sort_by_key(|(table, effect)| match effect {
        Effect::Delete(_) => (0, schema.tables.len() - place(*table)),
        Effect::Put(_) => (1, place(*table)),
    });
}

/// What the database says where it does not take these changes.
async fn refusal<D: Database>(
    db: &mut D,
    schema: &Schema,
    purpose: Purpose,
    effects: &[(TableId, Effect)],
) -> OfficeResult<Option<String>> {
    db.begin(purpose).await?;
    let outcome = db.write(schema, effects).await.map_err(OfficeError::from);
    db.rollback().await?;
    match outcome {
        Ok(()) => Ok(None),
        Err(error) if is_unfit(&error) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

fn name(schema: &Schema, table: TableId, effect: &Effect) -> Option<(TableId, Key)> {
    Some((table, effect.key(schema.table(table)?)))
}

/// Rows whose parent is neither in the database nor among the changes.
async fn orphans<D: Database>(
    db: &mut D,
    schema: &Schema,
    effects: &[(TableId, Effect)],
) -> OfficeResult<RowNames> {
    let mut found = RowNames::new();
    db.begin(Purpose::Read).await?;
    let outcome = async {
        for table in &schema.tables {
            for reference in &table.foreign_keys {
                let Some(parent) = schema.table_named(&reference.parent) else {
                    continue;
                };
                if !parent
                    .key_columns()
                    .map(|column| &column.name)
                    .eq(&reference.parent_columns)
                {
                    continue;
                }
                let mut wanted: Vec<(Key, Key)> = Vec::new();
                for (_, effect) in effects.iter().filter(|(id, _)| *id == table.id) {
                    let Some(row) = effect.row() else { continue };
                    let columns = reference.columns.iter();
                    let values: Vec<_> = columns
                        .filter_map(|&at| row.0.get(usize::from(at)).cloned())
                        .collect();
                    if !values.iter().any(crate::value::Value::is_null) {
                        wanted.push((Key(values), table.key_of(row)));
                    }
                }
                let keys: Vec<Key> = wanted.iter().map(|(parent, _)| parent.clone()).collect();
                let there = db.read(parent, &keys).await?;
                let state = |key: &Key| {
                    let mut own = effects.iter().filter(|(id, _)| *id == parent.id);
                    own.find(|(_, effect)| effect.key(parent) == *key)
                        .map(|(_, effect)| effect.row().is_some())
                };
                for (parent_key, child) in wanted {
                    if !state(&parent_key).unwrap_or_else(|| there.contains_key(&parent_key)) {
                        found.insert((table.id, child));
                    }
                }
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    crate::office::conclude(db, outcome).await?;
    Ok(found)
}
