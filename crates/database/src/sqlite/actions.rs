//! Referential actions, none of which may reach a row that is not among the effects.
//!
//! Foreign keys wait for the commit where they must (which includes RESTRICT, under `defer_foreign_keys`), but what they
//! would *do* comes at once, and a commit that fails does not say which row it was. So a row that children hang on is deleted after the
//! puts, which may have given the children another parent. What is left then are lines and circles of rows that all go,
//! or the write is refused. A put
//! that changes columns which children follow is refused unless the children are among the effects too.

use std::collections::BTreeSet;

use branchline_core::change::{Effect, Key};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Schema, Table, TableId};
use rusqlite::{Connection, params_from_iter};

use super::connection::Session;
use super::error::on;
use super::local::Local;
use super::references::Reference;
use super::sql::{key_equals, quoted};
use super::stored::bound;

/// A row to delete.
pub(super) type Doomed<'a> = (&'a Table, &'a Key);

/// Deletes the rows whose deletion reaches no other row; returns those held back.
pub(super) fn delete_free<'a>(
    connection: &Session,
    references: &[Reference],
    table: &'a Table,
    keys: &[&'a Key],
) -> DbResult<Vec<Doomed<'a>>> {
    let key_columns = key_columns(table);
    let referring: Vec<&Reference> = referring(references, table).collect();
    let delete = delete_one(table);
    let mut held = Vec::new();
    if keys.is_empty() {
        return Ok(held);
    }
    let local = Local::of(connection, table)?;
    for key in keys {
        let Ok(stored) = local.key(table, key) else {
            continue;
        };
        if holder(connection, &referring, &key_columns, &stored)?.is_some() {
            held.push((table, *key));
        } else {
            execute(connection, &delete, table, &stored)?;
        }
    }
    Ok(held)
}

/// Deletes rows that were held back, or refuses.
pub(super) fn delete_held(
    connection: &Session,
    references: &[Reference],
    schema: &Schema,
    mut held: Vec<Doomed<'_>>,
) -> DbResult<()> {
    let mut left = usize::MAX;
    while held.len() < left {
        left = held.len();
        let mut still = Vec::new();
        // Parents came first in a line, so the other way round it is undone in one pass.
        for (table, key) in held.into_iter().rev() {
            still.extend(delete_free(connection, references, table, &[key])?);
        }
        held = still;
    }
    let all: BTreeSet<(TableId, &Key)> = held.iter().map(|(table, key)| (table.id, *key)).collect();
    for (table, key) in &held {
        let key_columns = key_columns(table);
        let stored = &Local::of(connection, table)?.key(table, key)?;
        for reference in referring(references, table) {
            let others = match reference.child_table(schema) {
                Some(child) => reference
                    .children(connection, child, &key_columns, stored)?
                    .iter()
                    .any(|one| !all.contains(&(child.id, one))),
                None => reference.has_child(connection, &key_columns, stored)?,
            };
            if others {
                return Err(strangers(reference, "deleted"));
            }
        }
    }
    held.iter().try_for_each(|(table, key)| {
        let stored = Local::of(connection, table)?.key(table, key)?;
        execute(connection, &delete_one(table), table, &stored)
    })
}

/// Refuses puts after which a reference would act on rows that are not among the effects.
pub(super) fn check_updates(
    connection: &Session,
    references: &[Reference],
    schema: &Schema,
    effects: &[(TableId, Effect)],
) -> DbResult<()> {
    let mut written: Option<BTreeSet<(TableId, Key)>> = None;
    for table in &schema.tables {
        let key_columns = key_columns(table);
        let follow = references.iter().filter(|reference| {
            reference.parent.eq_ignore_ascii_case(&table.name) && reference.follows(&key_columns)
        });
        for reference in follow {
            let rows = effects
                .iter()
                .filter(|(id, _)| *id == table.id)
                .filter_map(|(_, effect)| effect.row());
            let mut rows = rows.peekable();
            if rows.peek().is_none() {
                continue;
            }
            let local = Local::of(connection, table)?;
            for row in rows {
                let row = local.row(table, row)?;
                let children = reference.followers(connection, schema, table, &row)?;
                if children.is_empty() {
                    continue;
                }
                let written = written.get_or_insert_with(|| names(schema, effects));
                let known = |(id, key): &(TableId, Key)| written.contains(&(*id, key.clone()));
                if !children
                    .iter()
                    .all(|child| child.as_ref().is_some_and(known))
                {
                    return Err(strangers(reference, "changed"));
                }
            }
        }
    }
    Ok(())
}

fn names(schema: &Schema, effects: &[(TableId, Effect)]) -> BTreeSet<(TableId, Key)> {
    let named = |(id, effect): &(TableId, Effect)| Some((*id, effect.key(schema.table(*id)?)));
    effects.iter().filter_map(named).collect()
}

/// The names of the columns of a table's key.
pub(super) fn key_columns(table: &Table) -> Vec<String> {
    table
        .key_columns()
        .map(|column| column.name.clone())
        .collect()
}

/// The references to this table.
fn referring<'r>(
    references: &'r [Reference],
    table: &'r Table,
) -> impl Iterator<Item = &'r Reference> {
    references
        .iter()
        .filter(|reference| reference.parent.eq_ignore_ascii_case(&table.name))
}

fn holder<'r>(
    connection: &Connection,
    referring: &[&'r Reference],
    key_columns: &[String],
    key: &Key,
) -> DbResult<Option<&'r Reference>> {
    for reference in referring {
        if reference.has_child(connection, key_columns, key)? {
            return Ok(Some(reference));
        }
    }
    Ok(None)
}

fn delete_one(table: &Table) -> String {
    format!(
        "DELETE FROM {} AS t WHERE {}",
        quoted(&table.name),
        key_equals(table)
    )
}

fn execute(connection: &Connection, delete: &str, table: &Table, key: &Key) -> DbResult<()> {
    connection
        .prepare_cached(delete)
        .and_then(|mut delete| delete.execute(params_from_iter(bound(key))))
        .map(drop)
        .map_err(on(&table.name))
}

fn strangers(reference: &Reference, fate: &str) -> DatabaseError {
    DatabaseError::Constraint {
        table: reference.child.clone(),
        message: format!(
            "rows still refer to a row of table `{}` that is to be {fate}",
            reference.parent
        ),
        foreign_key: true,
    }
}
