//! Rows in and out of the application's tables, set by set.
//!
//! Deletes go first, children before parents; then puts, parents before children. Where that order cannot work a
//! second one is tried behind a savepoint: a parent whose children are re-parented by the same effects is deleted
//! after them; a reference into a table that comes later is filled in at the end; unique values that rows exchange
//! are parked. Referential actions never run: a delete that would change other rows is refused.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::error::on_table;
use super::layout::{Child, Layout, given, mismatch};
use super::park::park;
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
        db.execute("SET CONSTRAINTS ALL DEFERRED").await?;
    }
    let mut later = Vec::new();
    for (table, work_here) in worked(schema.tables.iter().rev(), work) {
        if work_here.deletes.is_empty() {
            continue;
        }
        let reparents = schema.tables.iter().any(|child| {
            child
                .foreign_keys
                .iter()
                .any(|key| key.parent == table.name)
                && work
                    .get(&child.id)
                    .is_some_and(|work| !work.puts.is_empty())
        });
        if !reparents {
            delete(db, table, &work_here.deletes).await?;
            continue;
        }
        db.execute("SAVEPOINT branchline_delete").await?;
        match delete(db, table, &work_here.deletes).await {
            Err(DatabaseError::Constraint {
                foreign_key: true, ..
            }) => {
                db.execute("ROLLBACK TO branchline_delete").await?;
                later.push((table, work_here));
            }
            other => other?,
        }
        db.execute("RELEASE branchline_delete").await?;
    }
    puts(db, schema, work).await?;
    for (table, work) in later {
        delete(db, table, &work.deletes).await?;
    }
    if deferrable {
        db.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
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
        let ahead: Vec<usize> = table
            .foreign_keys
            .iter()
            .filter(|key| key.parent != table.name && !done.contains(key.parent.as_str()))
            .filter(|key| {
                let parent = schema
                    .table_named(&key.parent)
                    .and_then(|parent| work.get(&parent.id));
                parent.is_some_and(|work| !work.puts.is_empty())
            })
            .flat_map(|key| key.columns.iter().map(|&at| usize::from(at)))
            .filter(|&at| {
                table.columns.get(at).is_some_and(|column| column.nullable) && !table.is_key(at)
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
async fn put(
    db: &mut PostgresDatabase,
    table: &Table,
    rows: &[&Row],
    left_null: &[usize],
) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    let sql = upsert(table, &layout)?;
    let types: Vec<Wire> = table
        .columns
        .iter()
        .map(|column| types::array_type(&column.kind))
        .collect();
    let statement = db.statement_on(&table.name, &sql, &types).await?;
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
    let arrays = columns.collect::<DbResult<Vec<_>>>()?;
    let values = types::parameters(&arrays);
    // Rows of one set may exchange unique values; only tables that have such pay for the savepoint.
    let exchange = layout.unique && rows.len() > 1;
    if exchange {
        db.execute("SAVEPOINT branchline_put").await?;
    }
    let first = db.client()?.execute(&statement, &values).await;
    match first {
        Err(error) if exchange && error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            db.execute("ROLLBACK TO branchline_put").await?;
            let keys: Vec<Key> = rows.iter().map(|row| table.key_of(row)).collect();
            park(db, table, &layout, &keys).await?;
            let second = db.client()?.execute(&statement, &values).await;
            second.map_err(|e| on_table(&table.name, &e))?;
        }
        other => {
            other.map_err(|e| on_table(&table.name, &e))?;
        }
    }
    if exchange {
        db.execute("RELEASE branchline_put").await?;
    }
    Ok(())
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
    let sets: Vec<String> = (0..count)
        .filter(|&at| !table.is_key(at))
        .filter_map(|at| {
            names
                .get(at)
                .map(|name| format!("{name} = excluded.{name}"))
        })
        .collect();
    let action = if sets.is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", sets.join(", "))
    };
    Ok(format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest({}) AS given({})
         ON CONFLICT ({}) DO {action}",
        layout.relation,
        names.join(", "),
        casts.collect::<DbResult<Vec<_>>>()?.join(", "),
        arrays.join(", "),
        aliases.join(", "),
        keys.join(", "),
    ))
}

async fn delete(db: &mut PostgresDatabase, table: &Table, keys: &[Key]) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    if !layout.children.is_empty() {
        // Locked first: no child can come between the look and the delete.
        let sql = format!(
            "SELECT FROM {} r JOIN {} ON {} FOR UPDATE OF r",
            layout.relation,
            given(table, 1, false),
            layout.key_join(table, "r")?
        );
        on_keys(db, table, &sql, keys).await?;
        for child in &layout.children {
            refuse_orphans(db, table, &layout, child, keys).await?;
        }
    }
    let sql = format!(
        "DELETE FROM {} r USING {} WHERE {}",
        layout.relation,
        given(table, 1, false),
        layout.key_join(table, "r")?
    );
    on_keys(db, table, &sql, keys).await?;
    Ok(())
}

/// Fails where the foreign key's action on delete would change a row that is not itself deleted here.
async fn refuse_orphans(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    child: &Child,
    keys: &[Key],
) -> DbResult<()> {
    let refers: Vec<String> = child
        .columns
        .iter()
        .zip(&child.parent_columns)
        .map(|(column, parent)| format!("c.{} = r.{}", ident(column), ident(parent)))
        .collect();
    let itself = if child.relation == layout.relation {
        format!(
            " AND NOT EXISTS (SELECT FROM {} WHERE {})",
            given(table, 1, false),
            layout.key_join(table, "c")?
        )
    } else {
        String::new()
    };
    let sql = format!(
        "SELECT FROM {} JOIN {} r ON {} JOIN {} c ON {} WHERE true{itself} LIMIT 1",
        given(table, 1, false),
        layout.relation,
        layout.key_join(table, "r")?,
        child.relation,
        refers.join(" AND "),
    );
    if on_keys(db, table, &sql, keys).await?.is_empty() {
        return Ok(());
    }
    Err(DatabaseError::Constraint {
        table: table.name.clone(),
        message: format!(
            "rows of {} refer to a row that is to be deleted, and would change with it",
            child.relation
        ),
        foreign_key: true,
    })
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
