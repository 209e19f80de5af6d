//! Rows into the application's tables, set by set.
//!
//! Deletes go first, children before parents; then puts, parents before children. Foreign keys hold at every row here
//! and cannot wait for the commit. Where the order cannot work another is tried behind a savepoint: a parent whose
//! children are re-parented by the same effects is deleted after them; a reference into a table, or to a row, that
//! comes later is filled in at the end; unique values that rows exchange are parked. Referential actions never run.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::Value;

use super::connection::MysqlDatabase;
use super::delete::delete;
use super::error::mismatch;
use super::put::put;

/// What is to be done to one table.
#[derive(Default)]
struct Work<'e> {
    deletes: Vec<Key>,
    puts: Vec<&'e Row>,
}

pub(super) async fn write(
    db: &mut MysqlDatabase,
    schema: &Schema,
    effects: &[(TableId, Effect)],
) -> DbResult<()> {
    if !matches!(db.purpose(), Some(Purpose::Apply | Purpose::Load)) {
        return Err(DatabaseError::Other(
            "writing needs a transaction that was opened for it".to_owned(),
        ));
    }
    let mut work: BTreeMap<TableId, Work<'_>> = BTreeMap::new();
    for (id, effect) in effects {
        let Some(table) = schema.table(*id) else {
            return Err(mismatch(
                &format!("number {id}"),
                "the plan has no such table",
            ));
        };
        if !effect.fits(table) {
            return Err(mismatch(
                &table.name,
                "a row to write does not have the columns and types of the plan",
            ));
        }
        let work = work.entry(*id).or_default();
        match effect {
            Effect::Put(row) => work.puts.push(row),
            Effect::Delete(key) => work.deletes.push(key.clone()),
        }
    }
    let done = ordered(db, schema, &work).await;
    if let Err(DatabaseError::Mismatch { .. }) = &done {
        // The table may have been altered since it was looked up.
        db.forget_layouts();
    }
    done
}

async fn ordered(
    db: &mut MysqlDatabase,
    schema: &Schema,
    work: &BTreeMap<TableId, Work<'_>>,
) -> DbResult<()> {
    let mut later = Vec::new();
    for (table, work_here) in worked(schema.tables.iter().rev(), work) {
        if work_here.deletes.is_empty() {
            continue;
        }
        let reparents = schema.tables.iter().any(|child| {
            let refers = child
                .foreign_keys
                .iter()
                .any(|key| key.parent == table.name);
            let puts = work
                .get(&child.id)
                .is_some_and(|work| !work.puts.is_empty());
            refers && puts
        });
        if !reparents {
            delete(db, table, &work_here.deletes).await?;
            continue;
        }
        db.savepoint("branchline_delete").await?;
        match delete(db, table, &work_here.deletes).await {
            Err(DatabaseError::Constraint {
                foreign_key: true, ..
            }) => {
                db.back_to("branchline_delete").await?;
                later.push((table, work_here));
            }
            other => other?,
        }
    }
    puts(db, schema, work).await?;
    for (table, work) in later {
        delete(db, table, &work.deletes).await?;
    }
    Ok(())
}

/// The tables among these that there is work for.
fn worked<'w, 'e>(
    tables: impl Iterator<Item = &'w Table>,
    work: &'w BTreeMap<TableId, Work<'e>>,
) -> impl Iterator<Item = (&'w Table, &'w Work<'e>)> {
    tables.filter_map(|table| Some((table, work.get(&table.id)?)))
}

async fn puts(
    db: &mut MysqlDatabase,
    schema: &Schema,
    work: &BTreeMap<TableId, Work<'_>>,
) -> DbResult<()> {
    let mut again = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for (table, work_here) in worked(schema.tables.iter(), work) {
        if work_here.puts.is_empty() {
            continue;
        }
        let (rows, circle) = parents_first(table, &work_here.puts);
        let ahead: BTreeSet<usize> = table
            .foreign_keys
            .iter()
            .filter(|key| match schema.table_named(&key.parent) {
                Some(parent) if parent.id == table.id => circle,
                Some(parent) => {
                    !done.contains(key.parent.as_str())
                        && work.get(&parent.id).is_some_and(|w| !w.puts.is_empty())
                }
                None => false,
            })
            .flat_map(|key| key.columns.iter().map(|&at| usize::from(at)))
            .filter(|&at| {
                table.columns.get(at).is_some_and(|column| column.nullable) && !table.is_key(at)
            })
            .collect();
        put(db, table, &rows, &ahead).await?;
        done.insert(&table.name);
        if !ahead.is_empty() {
            again.push((table, rows));
        }
    }
    for (table, rows) in again {
        put(db, table, &rows, &BTreeSet::new()).await?;
    }
    Ok(())
}

/// The rows in an order in which each comes after the row of its own table that it refers to, as far as there is one,
/// and whether some refer to each other in a circle.
fn parents_first<'e>(table: &Table, rows: &[&'e Row]) -> (Vec<&'e Row>, bool) {
    let mut links = Vec::new();
    for key in table
        .foreign_keys
        .iter()
        .filter(|key| key.parent == table.name)
    {
        let place = |name: &String| table.columns.iter().position(|column| column.name == *name);
        let parents: Option<Vec<usize>> = key.parent_columns.iter().map(place).collect();
        if let Some(parents) = parents {
            let own: Vec<usize> = key.columns.iter().map(|&at| usize::from(at)).collect();
            links.push((own, parents));
        }
    }
    if links.is_empty() || rows.len() < 2 {
        return (rows.to_vec(), false);
    }
    let values = |row: &'e Row, at: &[usize]| -> Vec<&'e Value> {
        at.iter().filter_map(|&at| row.0.get(at)).collect()
    };
    let mut left: Vec<&Row> = rows.to_vec();
    let mut placed = Vec::with_capacity(rows.len());
    while !left.is_empty() {
        let waiting: Vec<BTreeSet<Vec<&Value>>> = links
            .iter()
            .map(|(_, parents)| left.iter().map(|row| values(row, parents)).collect())
            .collect();
        let waits = |row: &'e Row| {
            links.iter().zip(&waiting).any(|((own, parents), waiting)| {
                let wanted = values(row, own);
                waiting.contains(&wanted) && wanted != values(row, parents)
            })
        };
        let (later, now): (Vec<&Row>, Vec<&Row>) = left.iter().partition(|row| waits(row));
        if now.is_empty() {
            placed.extend(later);
            return (placed, true);
        }
        placed.extend(now);
        left = later;
    }
    (placed, false)
}
