//! Check constraints, as the text of a `CREATE TABLE` tells them, and those that a schema version brings.

use branchline_core::check::{Check, Checks};
use branchline_core::port::{DbResult, LeftOut};
use branchline_core::schema::{Column, Table};
use branchline_core::value::Type;
use rusqlite::{Connection, OptionalExtension};

use super::ddl;
use super::definition::{Definition, Part, What};
use super::error::failure;
use super::evolve::Step;
use super::rebuild::{self, numbers};
use super::sql::{quoted, text};
use crate::checks::{self, Dialect, Found, Made, Words};
use crate::lineage::Tried;

pub(super) const WORDS: Words = Words { name: quoted, text };

/// The checks that can be carried over.
pub(super) fn carried(
    connection: &Connection,
    name: &str,
    columns: &[Column],
    left_out: &mut Vec<LeftOut>,
) -> DbResult<Checks> {
    let sql: Option<String> = connection
        .prepare_cached(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
        )
        .and_then(|mut text| text.query_row([name], |row| row.get(0)).optional())
        .map_err(failure)?
        .flatten();
    let Some(sql) = sql else {
        return Ok(Checks::default());
    };
    let Some(definition) = Definition::parse(&sql) else {
        let why = "the table's definition is not understood";
        if sql.to_uppercase().contains("CHECK") {
            left_out.push(checks::left(name, None, "...", why.into()));
        }
        return Ok(Checks::default());
    };
    let found = definition.checks().filter(|part| !is_own(part, columns));
    let found: Vec<Found> = found.map(Part::found).collect();
    let folds = |column: &Column| definition.folds(&column.name);
    let dialect = Dialect::Sqlite;
    let carried = checks::carried(dialect, name, columns, &folds, found, left_out);
    Ok(Checks(carried))
}

/// Whether a check is one that Branchline wrote for a column's type: the type is carried over.
fn is_own(part: &Part, columns: &[Column]) -> bool {
    columns.iter().any(|column| {
        let kinds = [&column.kind, &Type::Int16, &Type::Int32];
        let own = |kind| ddl::check(&quoted(&column.name), kind);
        let own = kinds.into_iter().filter_map(own);
        own.into_iter()
            .any(|own| part.says(&format!("CHECK ({own})")))
    })
}

/// Makes the checks that the version brings, where all rows obey them. What keeps one out keeps nothing else out.
pub(super) fn make(connection: &Connection, step: &Step<'_>) -> Tried<Made> {
    let (to, mut made) = (step.to, Made::default());
    let place = |at: u16| {
        let name = &to.columns.get(usize::from(at))?.name;
        let mut columns = step.live.columns.iter();
        let place = columns.position(|column| column.name.eq_ignore_ascii_case(name))?;
        u16::try_from(place).ok()
    };
    let coming = checks::coming(step.before, to, &step.live, place);
    if coming.is_empty() {
        return Ok(made);
    }
    let mut definition = rebuild::definition(connection, to)?;
    let mut fit = false;
    for check in coming {
        let folds = |column: &Column| definition.folds(&column.name);
        let dialect = Dialect::Sqlite;
        if let Some(why) = checks::means_another(dialect, &WORDS, to, check, &folds) {
            made.never(to, check, &why);
        } else if let Some(key) = broken(connection, to, check)? {
            made.waits(to, check, &checks::broken_by(&key));
        } else if let Some(clause) =
            checks::clause(&WORDS, to, check.name.as_deref(), &check.condition)
        {
            let part = Part::new(What::Check, clause);
            definition.constraints.push(part);
            fit = true;
        }
    }
    if fit {
        rebuild::made_anew(connection, definition, step)?;
    }
    Ok(made)
}

/// The key of a row that breaks a check, where one does.
fn broken(connection: &Connection, to: &Table, check: &Check) -> Tried<Option<String>> {
    let Some(broken) = checks::broken(&WORDS, to, check) else {
        return Ok(None);
    };
    let key: Vec<String> = to
        .key_columns()
        .map(|column| format!("CAST({} AS TEXT)", quoted(&column.name)))
        .collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE {broken} LIMIT 1",
        key.join(" || ', ' || "),
        quoted(&to.name)
    );
    let row = connection.query_row(&sql, [], |row| row.get::<_, Option<String>>(0));
    let row = row.optional().map_err(failure)?;
    Ok(row.map(Option::unwrap_or_default))
}

/// Takes the checks out of a table's definition that the former version had and the new one has not. Whether there were any.
pub(super) fn drop_gone(definition: &mut Definition, step: &Step<'_>) -> bool {
    let columns = &step.live.columns;
    let number = |column: &Column| numbers(step, std::slice::from_ref(&column.name))?.pop();
    let gone = checks::gone(step.before, step.to, &step.live, number);
    if gone.is_empty() {
        return false;
    }
    definition.without_checks(|part| {
        let read = checks::read(Dialect::Sqlite, columns, &|_| false, &part.found().text);
        read.is_ok_and(|said| gone.iter().any(|check| check.condition == said))
    })
}
