//! Rows into the application's tables, set by set.
//!
//! Deletes go first, children before parents; then puts, parents before children. Foreign keys hold at every row here
//! and cannot wait for the commit. Where the order cannot work another is tried behind a savepoint: rows to be
//! deleted that refer to each other across tables let go of each other first; a parent whose children are re-parented
//! by the same effects is deleted after them; a reference into a table, or to a row, that comes later is filled in at
//! the end; unique values that rows exchange are parked. Referential actions never reach other rows.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::Value;

use super::connection::MysqlDatabase;
use super::delete::delete;
use super::error::mismatch;
use super::put::put;
use super::references::{free_followers, let_go, optional, within_key};

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
    let (mut held, mut done) = (Vec::new(), BTreeSet::new());
    for (table, work_here) in worked(schema.tables.iter().rev(), work) {
        if work_here.deletes.is_empty() {
            continue;
        }
        if !may_have_to_wait(schema, work, &done, table) {
            delete(db, table, &work_here.deletes).await?;
        } else if !try_delete(db, table, &work_here.deletes).await? {
            held.push((table, work_here.deletes.as_slice()));
            continue;
        }
        done.insert(table.id);
    }
    let later = delete_together(db, held).await?;
    let mentioned = |table: &Table| {
        let Some(work) = work.get(&table.id) else {
            return Vec::new();
        };
        let put = work.puts.iter().map(|row| table.key_of(row));
        put.chain(work.deletes.iter().cloned()).collect()
    };
    for (table, work) in worked(schema.tables.iter(), work) {
        free_followers(db, schema, table, &work.puts, mentioned).await?;
    }
    puts(db, schema, work).await?;
    for (table, keys) in later {
        delete(db, table, keys).await?;
    }
    Ok(())
}

/// Whether rows that refer to this table's may be put, or deleted, only after its deletes were tried.
fn may_have_to_wait(
    schema: &Schema,
    work: &BTreeMap<TableId, Work<'_>>,
    done: &BTreeSet<TableId>,
    table: &Table,
) -> bool {
    let refer = |child: &&Table| child.foreign_keys.iter().any(|k| k.parent == table.name);
    schema.tables.iter().filter(refer).any(|child| {
        work.get(&child.id).is_some_and(|work| {
            let deletes = child.id != table.id && !done.contains(&child.id);
            !work.puts.is_empty() || (deletes && !work.deletes.is_empty())
        })
    })
}

/// Deletes rows, or nothing where a foreign key speaks against it.
async fn try_delete(db: &mut MysqlDatabase, table: &Table, keys: &[Key]) -> DbResult<bool> {
    db.savepoint("branchline_delete").await?;
    let deleted = match delete(db, table, keys).await {
        Err(DatabaseError::Constraint {
            foreign_key: true, ..
        }) => {
            db.back_to("branchline_delete").await?;
            false
        }
        other => {
            other?;
            true
        }
    };
    Ok(deleted)
}

/// Deletes rows that refer to each other across tables; returns those that must wait for the puts.
async fn delete_together<'w>(
    db: &mut MysqlDatabase,
    mut held: Vec<(&'w Table, &'w [Key])>,
) -> DbResult<Vec<(&'w Table, &'w [Key])>> {
    if held.len() < 2 {
        return Ok(held);
    }
    db.savepoint("branchline_let_go").await?;
    match let_go(db, &held).await {
        // The application wants the references filled in.
        Err(DatabaseError::Constraint { .. }) => {
            db.back_to("branchline_let_go").await?;
        }
        other => other?,
    }
    loop {
        let (before, mut left) = (held.len(), Vec::new());
        for (table, keys) in held {
            if !try_delete(db, table, keys).await? {
                left.push((table, keys));
            }
        }
        if left.is_empty() || left.len() == before {
            return Ok(left);
        }
        held = left;
    }
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
        let layout = db.layout(&table.name).await?;
        let ahead: BTreeSet<usize> = table
            .foreign_keys
            .iter()
            .filter(|key| match schema.table_named(&key.parent) {
                // An action would follow a value that changes into rows that are put with it.
                Some(parent) if parent.id == table.id => {
                    circle || !within_key(table, &key.parent_columns)
                }
                Some(parent) => {
                    !done.contains(key.parent.as_str())
                        && work.get(&parent.id).is_some_and(|w| !w.puts.is_empty())
                }
                None => false,
            })
            .flat_map(|key| optional(table, key))
            .filter(|&at| {
                let referred_to = layout.children.iter().flat_map(|child| &child.columns);
                let name = table.columns.get(at).map(|column| &column.name);
                referred_to
                    .into_iter()
                    .all(|(_, column)| Some(column) != name)
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
