//! Captured writes follow their table to another schema version.
//!
//! A key's part that the former key had is converted as the column was. One that it had not is looked up in the row; a
//! row that is gone had in it what the column's default says, as it has at the other offices. The row before a write is
//! kept where its columns stay the same but for their names; otherwise it counts as unknown.

use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Value;
use rusqlite::types::Value as Raw;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::capture::SLOTS;
use super::copy::value;
use super::error::{failure, on};
use super::evolve::Step;
use super::image;
use super::sql::{all, list, quoted};
use crate::lineage::filling;

pub(super) fn follow(connection: &Connection, step: &Step<'_>) -> DbResult<()> {
    let Some(former) = step.former else {
        return Ok(());
    };
    images(connection, former, step.to)?;
    let (was, becomes): (Vec<&Column>, Vec<&Column>) = (
        former.key_columns().collect(),
        step.to.key_columns().collect(),
    );
    let same = |(a, b): (&&Column, &&Column)| a.id == b.id && a.kind == b.kind;
    if was.len() == becomes.len() && was.iter().zip(&becomes).all(same) {
        return Ok(());
    }
    let captured: Vec<(i64, Vec<Raw>)> = connection
        .prepare(&format!(
            "SELECT number, {SLOTS} FROM branchline_capture WHERE tbl = ?1 AND op <> 'B'"
        ))
        .and_then(|mut select| {
            let row = |row: &rusqlite::Row<'_>| {
                let key = (1..=was.len())
                    .map(|at| row.get(at))
                    .collect::<Result<_, _>>()?;
                Ok((row.get(0)?, key))
            };
            select.query_map([step.to.id], row)?.collect()
        })
        .map_err(failure)?;
    for (number, key) in captured {
        let key = rekeyed(connection, step.to, &was, &becomes, &key)?;
        let slots = list((0..becomes.len()).map(|at| format!("k{at} = ?{}", at + 2)));
        let rest = (becomes.len()..was.len())
            .map(|at| format!(", k{at} = NULL"))
            .collect::<String>();
        let sql = format!("UPDATE branchline_capture SET {slots}{rest} WHERE number = ?1");
        let bound = std::iter::once(Raw::Integer(number)).chain(key);
        connection
            .prepare_cached(&sql)
            .and_then(|mut update| update.execute(params_from_iter(bound)))
            .map_err(failure)?;
    }
    Ok(())
}

fn rekeyed(
    connection: &Connection,
    to: &Table,
    was: &[&Column],
    becomes: &[&Column],
    key: &[Raw],
) -> DbResult<Vec<Raw>> {
    // The former key's columns as they are now.
    let now: Option<Vec<(&Column, Raw)>> = was
        .iter()
        .zip(key)
        .map(|(before, held)| {
            let column = to.columns.iter().find(|one| one.id == before.id)?;
            Some((column, converted(before, column, held)))
        })
        .collect();
    let mut made = Vec::with_capacity(becomes.len());
    for column in becomes {
        let held = was
            .iter()
            .zip(key)
            .find(|(before, _)| before.id == column.id);
        if let Some((before, held)) = held {
            made.push(converted(before, column, held));
            continue;
        }
        let row = match &now {
            Some(now) => {
                let places = now
                    .iter()
                    .enumerate()
                    .map(|(at, (one, _))| format!("t.{} IS ?{}", quoted(&one.name), at + 1));
                let sql = format!(
                    "SELECT t.{} FROM {} AS t WHERE {}",
                    quoted(&column.name),
                    quoted(&to.name),
                    all(places)
                );
                let values = now.iter().map(|(_, value)| value);
                connection
                    .prepare_cached(&sql)
                    .and_then(|mut select| {
                        select
                            .query_row(params_from_iter(values), |row| row.get(0))
                            .optional()
                    })
                    .map_err(on(&to.name))?
            }
            None => None,
        };
        made.push(row.unwrap_or_else(|| raw(&filling(column, true))));
    }
    Ok(made)
}

/// What cannot be converted stays as it stands: it will be reported as unreadable.
fn converted(before: &Column, column: &Column, held: &Raw) -> Raw {
    if before.kind == column.kind {
        return held.clone();
    }
    value(column, &before.kind, held.into()).map_or_else(|_| held.clone(), |value| raw(&value))
}

fn raw(value: &Value) -> Raw {
    match value {
        Value::Null => Raw::Null,
        Value::Bool(truth) => Raw::Integer(i64::from(*truth)),
        Value::Int(number) => Raw::Integer(*number),
        Value::Float(number) if number.is_nan() => Raw::Text("NaN".into()),
        Value::Float(number) => Raw::Real(*number),
        Value::Text(text) => Raw::Text(text.clone()),
        Value::Bytes(bytes) => Raw::Blob(bytes.clone()),
    }
}

fn images(connection: &Connection, former: &Table, to: &Table) -> DbResult<()> {
    let (was, becomes) = (image::layout(former), image::layout(to));
    let same = |(a, b): (&Column, &Column)| a.id == b.id && a.kind == b.kind;
    let only_names = former.columns.len() == to.columns.len()
        && former.columns.iter().zip(&to.columns).all(same);
    if was == becomes || !only_names {
        return Ok(());
    }
    connection
        .execute(
            "UPDATE branchline_capture SET k0 = ?3 WHERE tbl = ?1 AND op = 'B' AND at = 0 AND k0 = ?2",
            rusqlite::params![to.id, was, becomes],
        )
        .map(drop)
        .map_err(failure)
}
