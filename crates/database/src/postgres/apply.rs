//! Rows in and out of the application's tables, set by set.
//!
//! Deletes go first, children before parents; then puts, parents before children. Where that order cannot work a
//! second one is tried behind a savepoint: rows to be deleted that refer to each other across tables let go of each
//! other first; a parent whose children are re-parented by the same effects is deleted after them; a reference into a
//! table that comes later is filled in at the end; unique values that rows exchange are parked. Referential actions
//! never reach other rows: a delete or a put that would change them is refused.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::{ForeignKey, Schema, Table, TableId};
use branchline_core::value::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::connection::PostgresDatabase;
use super::copy::{Copying, copy};
use super::ddl::ident;
use super::delete::delete;
use super::error::on_table;
use super::layout::{Child, Layout, given, mismatch};
use super::park::park;
use super::references::{free_followers, let_go, optional, within_key};
use super::shape::hold_still;
use super::types::{self, Array};

/// What is to be done to one table.
#[derive(Default)]
struct Work<'e> {
    deletes: Vec<Key>,
    puts: Vec<&'e Row>,
}

pub(super) async fn write(
    db: &mut PostgresDatabase,
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
        let work = work.entry(*id).or_default();
        match effect {
            Effect::Put(row) => work.puts.push(row),
            Effect::Delete(key) => work.deletes.push(key.clone()),
        }
    }
    if let Some(unknown) = work.keys().find(|id| schema.table(**id).is_none()) {
        return Err(mismatch(
            &format!("number {unknown}"),
            "the plan has no such table",
        ));
    }
    let done = ordered(db, schema, &work).await;
    if let Err(DatabaseError::Mismatch { .. }) = &done {
        // The table may have been altered since it was looked up.
        db.forget_layouts();
    }
    done
}

/// As [`write`]. New rows of one table may still be on their way when it returns.
pub(super) async fn begin_write(
    db: &mut PostgresDatabase,
    schema: &Schema,
    effects: Vec<(TableId, Effect)>,
) -> DbResult<()> {
    let first = effects.first().and_then(|(id, _)| schema.table(*id));
    let alone = first.filter(|table| {
        let put = |(id, effect): &(TableId, Effect)| *id == table.id && effect.row().is_some();
        let within = |key: &ForeignKey| key.parent == table.name;
        db.purpose() == Some(Purpose::Apply)
            && effects.iter().all(put)
            && !table.foreign_keys.iter().any(within)
    });
    let Some(table) = alone else {
        return write(db, schema, &effects).await;
    };
    let layout = db.layout(&table.name).await?;
    // What follows a changed parent, or waits for the end of the write, takes its turn.
    let follows = |child: &Child| child.follows_update;
    if layout.deferrable || layout.children.iter().any(follows) {
        return write(db, schema, &effects).await;
    }
    let rows: Vec<&Row> = effects.iter().filter_map(|(_, e)| e.row()).collect();
    layout.check_digits(table, &rows)?;
    let arrays = row_arrays(table, &rows, &[])?;
    match super::copy::begin(db, table, &layout, rows.len(), &arrays).await? {
        Some(answer) => {
            db.copying = Some(Copying::new(table, effects, answer));
            Ok(())
        }
        None => write(db, schema, &effects).await,
    }
}

async fn ordered(
    db: &mut PostgresDatabase,
    schema: &Schema,
    work: &BTreeMap<TableId, Work<'_>>,
) -> DbResult<()> {
    let mut deferrable = false;
    for table in schema
        .tables
        .iter()
        .filter(|table| work.contains_key(&table.id))
    {
        deferrable |= db.layout(&table.name).await?.deferrable;
    }
    if deferrable {
        db.send_all("SET CONSTRAINTS ALL DEFERRED".to_owned())
            .await?;
    }
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
    if deferrable {
        db.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
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
async fn try_delete(db: &mut PostgresDatabase, table: &Table, keys: &[Key]) -> DbResult<bool> {
    db.send_all("SAVEPOINT branchline_delete".to_owned())
        .await?;
    let deleted = match delete(db, table, keys).await {
        Err(DatabaseError::Constraint {
            foreign_key: true, ..
        }) => {
            db.execute("ROLLBACK TO branchline_delete").await?;
            false
        }
        other => {
            other?;
            true
        }
    };
    db.send_all("RELEASE branchline_delete".to_owned()).await?;
    Ok(deleted)
}

/// Deletes rows that refer to each other across tables; returns those that must wait for the puts.
async fn delete_together<'w>(
    db: &mut PostgresDatabase,
    mut held: Vec<(&'w Table, &'w [Key])>,
) -> DbResult<Vec<(&'w Table, &'w [Key])>> {
    if held.len() < 2 {
        return Ok(held);
    }
    db.execute("SAVEPOINT branchline_let_go").await?;
    match let_go(db, &held).await {
        // The application wants the references filled in.
        Err(DatabaseError::Constraint { .. }) => {
            db.execute("ROLLBACK TO branchline_let_go").await?;
        }
        other => other?,
    }
    db.execute("RELEASE branchline_let_go").await?;
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
    db: &mut PostgresDatabase,
    schema: &Schema,
    work: &BTreeMap<TableId, Work<'_>>,
) -> DbResult<()> {
    let mut again = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for (table, work_here) in worked(schema.tables.iter(), work) {
        if work_here.puts.is_empty() {
            continue;
        }
        let layout = db.layout(&table.name).await?;
        let ahead: Vec<usize> = table
            .foreign_keys
            .iter()
            .filter(|key| !done.contains(key.parent.as_str()))
            // Within one statement, an action would follow a value that changes into rows that are put with it.
            .filter(|key| key.parent != table.name || !within_key(table, &key.parent_columns))
            .filter(|key| {
                let parent = schema
                    .table_named(&key.parent)
                    .and_then(|parent| work.get(&parent.id));
                parent.is_some_and(|work| !work.puts.is_empty())
            })
            .flat_map(|key| optional(table, key))
            .filter(|&at| {
                let referred_to = layout.children.iter().flat_map(|c| &c.parent_columns);
                let name = table.columns.get(at).map(|column| &column.name);
                referred_to.into_iter().all(|column| Some(column) != name)
            })
            .collect();
        put(db, table, &work_here.puts, &ahead).await?;
        done.insert(&table.name);
        if !ahead.is_empty() {
            again.push((table, work_here));
        }
    }
    for (table, work) in again {
        put(db, table, &work.puts, &[]).await?;
    }
    Ok(())
}

/// Puts rows, leaving some columns NULL for now.
pub(super) async fn put(
    db: &mut PostgresDatabase,
    table: &Table,
    rows: &[&Row],
    left_null: &[usize],
) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    let sql = upsert(table, &layout)?;
    let statement = db
        .statement_on(&table.name, &sql, &row_types(table))
        .await?;
    layout.check_digits(table, rows)?;
    let arrays = row_arrays(table, rows, left_null)?;
    if left_null.is_empty() && copy(db, table, &layout, rows.len(), &arrays).await? {
        return Ok(());
    }
    let values = types::parameters(&arrays);
    // Rows of one set may exchange unique values; only tables that have such pay for the savepoint.
    let exchange = layout.unique && rows.len() > 1;
    if exchange {
        db.send_all("SAVEPOINT branchline_put".to_owned()).await?;
    }
    let first = db.client()?.execute(&statement, &values).await;
    let written = match first {
        Err(error) if exchange && error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            db.execute("ROLLBACK TO branchline_put").await?;
            park(db, table, &layout, rows).await?;
            let second = db.client()?.execute(&statement, &values).await;
            second.map_err(|e| on_table(&table.name, &e))?
        }
        other => other.map_err(|e| on_table(&table.name, &e))?,
    };
    if exchange {
        db.send_all("RELEASE branchline_put".to_owned()).await?;
    }
    let fixed = fixed(table, &layout);
    if !fixed.is_empty() && usize::try_from(written) != Ok(rows.len()) {
        return Err(DatabaseError::Constraint {
            table: table.name.clone(),
            message: format!(
                "the row has another value here in {}, GENERATED ALWAYS AS IDENTITY, which only an insert can set; ALTER TABLE {} ALTER COLUMN ... SET GENERATED BY DEFAULT lets it be changed",
                fixed.join(", "),
                layout.relation
            ),
            foreign_key: false,
        });
    }
    Ok(())
}

/// The columns besides the key that an update cannot set here, quoted.
fn fixed(table: &Table, layout: &Layout) -> Vec<String> {
    let columns = table.columns.iter().enumerate();
    columns
        .filter(|(at, column)| !table.is_key(*at) && layout.fixed.contains(&column.name))
        .map(|(_, column)| ident(&column.name))
        .collect()
}

/// Whole rows as one array for each column, some columns NULL.
fn row_arrays<'r>(
    table: &Table,
    rows: &[&'r Row],
    left_null: &[usize],
) -> DbResult<Vec<Array<'r>>> {
    let columns = table.columns.iter().enumerate().map(|(at, column)| {
        let null = left_null.contains(&at);
        Array::of(
            table,
            column,
            rows.iter().map(|row| {
                if null {
                    Some(&Value::Null)
                } else {
                    row.0.get(at)
                }
            }),
        )
    });
    columns.collect()
}

fn row_types(table: &Table) -> Vec<Wire> {
    let columns = table.columns.iter();
    columns
        .map(|column| types::array_type(&column.kind))
        .collect()
}

/// Runs a statement whose parameters are the columns of whole rows, and after them the key columns of rows of another
/// table.
pub(super) async fn on_rows(
    db: &mut PostgresDatabase,
    table: &Table,
    sql: &str,
    rows: &[&Row],
    others: Option<(&Table, &[Key])>,
) -> DbResult<Vec<tokio_postgres::Row>> {
    let (mut types, mut arrays) = (row_types(table), row_arrays(table, rows, &[])?);
    if let Some((other, keys)) = others {
        types.extend(types::key_types(other));
        arrays.extend(types::key_arrays(other, keys)?);
    }
    let statement = db.statement_on(&table.name, sql, &types).await?;
    let found = db
        .client()?
        .query(&statement, &types::parameters(&arrays))
        .await;
    found.map_err(|e| on_table(&table.name, &e))
}

fn upsert(table: &Table, layout: &Layout) -> DbResult<String> {
    let count = table.columns.len();
    let names: Vec<String> = table
        .columns
        .iter()
        .map(|column| ident(&column.name))
        .collect();
    let casts = table.columns.iter().enumerate();
    let casts =
        casts.map(|(at, column)| Ok(format!("given.c{at}::{}", layout.cast(table, column)?)));
    let arrays: Vec<String> = (1..=count).map(|at| format!("${at}")).collect();
    let aliases: Vec<String> = (0..count).map(|at| format!("c{at}")).collect();
    let keys: Vec<String> = table
        .key_columns()
        .map(|column| ident(&column.name))
        .collect();
    let fixed = fixed(table, layout);
    let mut sets: Vec<&String> = (0..count)
        .filter(|&at| !table.is_key(at))
        .filter_map(|at| names.get(at))
        .filter(|name| !fixed.contains(name))
        .collect();
    if sets.is_empty() && !fixed.is_empty() {
        // What it is already: only a row that is written is counted.
        sets.extend(keys.first());
    }
    let sets: Vec<String> = sets
        .iter()
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let same: Vec<String> = fixed
        .iter()
        .map(|name| format!("r.{name} = excluded.{name}"))
        .collect();
    let action = match (sets.is_empty(), same.is_empty()) {
        (true, _) => "NOTHING".to_owned(),
        (false, true) => format!("UPDATE SET {}", sets.join(", ")),
        (false, false) => format!(
            "UPDATE SET {} WHERE {}",
            sets.join(", "),
            same.join(" AND ")
        ),
    };
    Ok(format!(
        "INSERT INTO {} AS r ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest({}) AS given({})
         ON CONFLICT ({}) DO {action}",
        layout.relation,
        names.join(", "),
        casts.collect::<DbResult<Vec<_>>>()?.join(", "),
        arrays.join(", "),
        aliases.join(", "),
        keys.join(", "),
    ))
}

/// Runs a statement whose parameters are the key columns of many rows.
pub(super) async fn on_keys(
    db: &mut PostgresDatabase,
    table: &Table,
    sql: &str,
    keys: &[Key],
) -> DbResult<Vec<tokio_postgres::Row>> {
    let statement = db
        .statement_on(&table.name, sql, &types::key_types(table))
        .await?;
    let arrays = types::key_arrays(table, keys)?;
    let rows = db
        .client()?
        .query(&statement, &types::parameters(&arrays))
        .await;
    rows.map_err(|e| on_table(&table.name, &e))
}

/// The select list of a whole row.
pub(super) fn selection(table: &Table, row: &str) -> String {
    let columns = table.columns.iter();
    let selected = columns
        .map(|column| types::selected(&column.kind, &format!("{row}.{}", ident(&column.name))));
    selected.collect::<Vec<_>>().join(", ")
}

pub(super) async fn read(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: &[Key],
) -> DbResult<BTreeMap<Key, Row>> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    hold_still(db, &table.name).await?;
    let layout = db.layout(&table.name).await?;
    let sql = format!(
        "SELECT given.place, {} FROM {} JOIN {} r ON {}",
        selection(table, "r"),
        given(table, 1, true),
        layout.relation,
        layout.key_join(table, "r")?
    );
    let mut found = BTreeMap::new();
    for row in on_keys(db, table, &sql, keys).await? {
        // By place: the row's own spelling of the key may differ from the caller's.
        let place = usize::try_from(get::<i64>(&row, 0)? - 1).unwrap_or(usize::MAX);
        if let Some(key) = keys.get(place) {
            found.insert(key.clone(), types::read_row(table, &row, 1)?);
        }
    }
    Ok(found)
}

pub(super) async fn chunk(
    db: &mut PostgresDatabase,
    table: &Table,
    after: Option<&Key>,
    limit: usize,
) -> DbResult<Vec<Row>> {
    hold_still(db, &table.name).await?;
    let layout = db.layout(&table.name).await?;
    let columns: Vec<String> = table
        .key_columns()
        .map(|column| format!("r.{}", ident(&column.name)))
        .collect();
    let order = columns.join(", ");
    let select = format!("SELECT {} FROM", selection(table, "r"));
    let rows = match after {
        None => {
            let sql = format!(
                "{select} {} r ORDER BY {order} LIMIT {limit}",
                layout.relation
            );
            on_keys_of_none(db, table, &sql).await?
        }
        Some(after) => {
            let given_values: Vec<String> = table
                .key_columns()
                .enumerate()
                .map(|(at, column)| {
                    Ok(format!(
                        "(${}::{})[1]::{}",
                        at + 1,
                        array_name(column),
                        layout.cast(table, column)?
                    ))
                })
                .collect::<DbResult<_>>()?;
            let sql = format!(
                "{select} {} r WHERE ({order}) > ({}) ORDER BY {order} LIMIT {limit}",
                layout.relation,
                given_values.join(", ")
            );
            on_keys(db, table, &sql, std::slice::from_ref(after)).await?
        }
    };
    rows.iter()
        .map(|row| types::read_row(table, row, 0))
        .collect()
}

fn array_name(column: &branchline_core::schema::Column) -> String {
    format!("pg_catalog.{}", types::array_type(&column.kind).name())
}

async fn on_keys_of_none(
    db: &mut PostgresDatabase,
    table: &Table,
    sql: &str,
) -> DbResult<Vec<tokio_postgres::Row>> {
    let statement = db.statement_on(&table.name, sql, &[]).await?;
    db.client()?
        .query(&statement, &[])
        .await
        .map_err(|e| on_table(&table.name, &e))
}
