//! The rows of a table on their way into its successor.

use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, convert};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ToSql, params_from_iter};

use super::ddl::numbered_key;
use super::definition::{What, Written};
use super::error::on;
use super::evolve::Step;
use super::rebuild::Work;
use super::sql::{list, places, quoted};
use super::stored::{self, Copied, Stored};
use crate::lineage::{Stop, Tried, filling, stop};

impl Work {
    /// Copies the rows, converting what is to be converted.
    pub(super) fn copy(&self, connection: &Connection, step: &Step<'_>, aside: &str) -> Tried<()> {
        let (to, id) = (step.to, step.to.id);
        let computed =
            |column: &&Written| !column.parts.iter().any(|part| part.what == What::Computed);
        let is_new = |column: &&Written| {
            let at = to.columns.iter().position(|one| one.name == column.name);
            at.is_some_and(|at| self.adds.contains(&at))
        };
        let columns: Vec<&Written> = self.definition.columns.iter().filter(computed).collect();
        let (new, old): (Vec<&Written>, Vec<&Written>) = columns.into_iter().partition(is_new);
        let values: Vec<Value> = new
            .iter()
            .filter_map(|column| fill(to, &column.name))
            .collect();
        let names = list(old.iter().chain(&new).map(|column| quoted(&column.name)));
        let sources = list(
            old.iter()
                .map(|column| format!("t.{}", quoted(&column.name))),
        );
        let (table, aside) = (quoted(&to.name), quoted(aside));
        let failed = |error: rusqlite::Error| stop(id, on(&to.name)(error));
        if self.converts.is_empty() {
            let comma = if values.is_empty() || old.is_empty() {
                ""
            } else {
                ", "
            };
            let sql = format!(
                "INSERT INTO {aside} ({names}) SELECT {sources}{comma}{} FROM {table} AS t",
                places(values.len())
            );
            let values = values.iter().map(Stored);
            return connection
                .execute(&sql, params_from_iter(values))
                .map(drop)
                .map_err(failed);
        }
        let converts: Vec<Option<(&Column, &Type)>> = old
            .iter()
            .map(|column| {
                let mut all = self.converts.iter();
                all.find_map(|(at, was)| {
                    Some((to.columns.get(*at)?, was))
                        .filter(|(one, _)| one.name.eq_ignore_ascii_case(&column.name))
                })
            })
            .collect();
        let mut select = connection
            .prepare(&format!("SELECT {sources} FROM {table} AS t"))
            .map_err(failed)?;
        let sql = format!(
            "INSERT INTO {aside} ({names}) VALUES ({})",
            places(old.len() + values.len())
        );
        let mut insert = connection.prepare(&sql).map_err(failed)?;
        let mut rows = select.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let mut converted: Vec<Option<Value>> = Vec::with_capacity(old.len());
            for (at, convert) in converts.iter().enumerate() {
                let stored = row.get_ref(at).map_err(failed)?;
                converted.push(match convert {
                    Some((column, was)) => {
                        Some(value(column, was, stored).map_err(|why| Stop::Refused(id, why))?)
                    }
                    None => None,
                });
            }
            let mut bound: Vec<Box<dyn ToSql + '_>> = Vec::with_capacity(old.len() + values.len());
            for (at, converted) in converted.iter().enumerate() {
                match converted {
                    Some(value) => bound.push(Box::new(Stored(value))),
                    None => bound.push(Box::new(Copied(row.get_ref(at).map_err(failed)?))),
                }
            }
            for value in &values {
                bound.push(Box::new(Stored(value)));
            }
            insert
                .execute(params_from_iter(bound.iter()))
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// A stored value as one of the column's new type, or why it is none.
pub(super) fn value(column: &Column, was: &Type, stored: ValueRef<'_>) -> Result<Value, String> {
    let value =
        stored::value(was, stored).map_err(|why| format!("column `{}` {why}", column.name))?;
    convert(was, &column.kind, &value).ok_or_else(|| {
        let shown: String = value.to_json().to_string().chars().take(60).collect();
        format!("column `{}`: {shown} is no {}", column.name, column.kind)
    })
}

/// What the rows that are there hold in a new column; the database numbers a new key by itself.
fn fill(to: &Table, name: &str) -> Option<Value> {
    let at = to.columns.iter().position(|column| column.name == name)?;
    if numbered_key(to) == Some(at) {
        return Some(Value::Null);
    }
    Some(filling(to.columns.get(at)?, to.is_key(at)))
}
