//! Puts, also where rows swap unique values.
//!
//! A row whose unique value is still held by a row that comes later waits for it. Rows that wait for each other in a
//! ring are first given values nobody has. No other row is touched: a value that a stranger holds stays an error.

use std::collections::BTreeSet;

use branchline_core::change::Row;
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Type;
use rusqlite::{Connection, params_from_iter};

use super::connection::Session;
use super::error::{failure, is_taken, on};
use super::local::Local;
use super::sql::{all, list, places, quoted};
use super::stored::Stored;

/// Makes these rows of one table so.
pub(super) fn put_rows(connection: &Session, table: &Table, rows: &[&Row]) -> DbResult<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let local = Local::of(connection, table)?;
    let rows = rows
        .iter()
        .map(|row| local.row(table, row))
        .collect::<DbResult<Vec<_>>>()?;
    let rows: Vec<&Row> = rows.iter().map(AsRef::as_ref).collect();
    let mut waiting = put_free(connection, table, &rows)?;
    let mut broken_up = false;
    while let Some((error, rest)) = waiting {
        let before = rest.len();
        let progressed = put_free(connection, table, &rest)?;
        let stuck = progressed
            .as_ref()
            .is_some_and(|(_, left)| left.len() == before);
        if stuck && (broken_up || !move_aside(connection, table, &rest)?) {
            return Err(on(&table.name)(error));
        }
        broken_up |= stuck;
        waiting = progressed;
    }
    Ok(())
}

/// Puts the rows whose unique values are free; returns the others with the last refusal.
fn put_free<'a>(
    connection: &Connection,
    table: &Table,
    rows: &[&'a Row],
) -> DbResult<Option<(rusqlite::Error, Vec<&'a Row>)>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut put = connection
        .prepare_cached(&upsert(table))
        .map_err(on(&table.name))?;
    let (mut taken, mut refusal) = (Vec::new(), None);
    for row in rows {
        match put.execute(params_from_iter(row.0.iter().map(Stored))) {
            Ok(_) => {}
            Err(error) if is_taken(&error) => {
                taken.push(*row);
                refusal = Some(error);
            }
            Err(error) => return Err(on(&table.name)(error)),
        }
    }
    Ok(refusal.map(|error| (error, taken)))
}

/// `OR ABORT`, lest a conflict clause in the application's own table definition deletes the row in the way.
fn upsert(table: &Table) -> String {
    let set: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .filter(|(at, _)| !table.is_key(*at))
        .map(|(_, column)| format!("{0} = excluded.{0}", quoted(&column.name)))
        .collect();
    let existing = if set.is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", set.join(", "))
    };
    format!(
        "INSERT OR ABORT INTO {} AS t ({}) VALUES ({}) ON CONFLICT ({}) DO {existing}",
        quoted(&table.name),
        list(table.columns.iter().map(|column| quoted(&column.name))),
        places(table.columns.len()),
        list(table.key_columns().map(|column| quoted(&column.name))),
    )
}

/// Gives the unique columns of these rows that are to change values nobody has. False where the table has no such columns.
fn move_aside(connection: &Connection, table: &Table, rows: &[&Row]) -> DbResult<bool> {
    let unique: BTreeSet<usize> = table
        .unique
        .iter()
        .flatten()
        .map(|&at| usize::from(at))
        .filter(|at| !table.is_key(*at))
        .collect();
    let set: Vec<String> = unique
        .into_iter()
        .filter_map(|at| Some((at + 1, table.columns.get(at)?)))
        .map(|(place, column)| {
            let name = quoted(&column.name);
            let aside = unheard_of(column);
            format!("{name} = CASE WHEN t.{name} IS ?{place} THEN t.{name} ELSE {aside} END")
        })
        .collect();
    if set.is_empty() {
        return Ok(false);
    }
    let key = table.key.iter().zip(table.key_columns());
    // The last condition lets the statement take whole rows, whatever columns it names.
    let sql = format!(
        "UPDATE OR ABORT {0} AS t SET {1} WHERE {2} AND ?{3} IS ?{3}",
        quoted(&table.name),
        set.join(", "),
        all(key.map(|(at, column)| format!("t.{} = ?{}", quoted(&column.name), at + 1))),
        table.columns.len(),
    );
    // For a moment only: the rows get their real values, checks included, before anyone can see them.
    connection
        .execute_batch("PRAGMA ignore_check_constraints = ON")
        .map_err(failure)?;
    let moved = connection
        .prepare_cached(&sql)
        .map_err(on(&table.name))
        .and_then(|mut aside| {
            rows.iter().try_for_each(|row| {
                aside
                    .execute(params_from_iter(row.0.iter().map(Stored)))
                    .map(drop)
                    .map_err(on(&table.name))
            })
        });
    connection
        .execute_batch("PRAGMA ignore_check_constraints = OFF")
        .map_err(failure)?;
    moved.map(|()| true)
}

fn unheard_of(column: &Column) -> &'static str {
    match column.kind {
        _ if column.nullable => "NULL",
        Type::Bool | Type::Int16 | Type::Int32 | Type::Int64 => "random()",
        Type::Float32 | Type::Float64 => "CAST(random() AS REAL)",
        Type::Bytes => "randomblob(24)",
        _ => "'branchline ' || hex(randomblob(16))",
    }
}
