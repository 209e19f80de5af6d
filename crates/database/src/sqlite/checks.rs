//! Check constraints, as the text of a `CREATE TABLE` tells them.

use branchline_core::check::Checks;
use branchline_core::port::{DbResult, LeftOut};
use branchline_core::schema::Column;
use branchline_core::value::Type;
use rusqlite::{Connection, OptionalExtension};

use super::ddl;
use super::definition::{Definition, Part};
use super::error::failure;
use super::evolve::Step;
use super::rebuild::numbers;
use super::sql::quoted;
use crate::checks::{self, Dialect, Found};

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

/// Takes the checks out of a table's definition that the former version had and the new one has not. Whether there were any.
pub(super) fn drop_gone(definition: &mut Definition, step: &Step<'_>) -> bool {
    let Some(former) = step.former else {
        return false;
    };
    let columns = &step.live.columns;
    let number = |column: &Column| numbers(step, std::slice::from_ref(&column.name))?.pop();
    let gone = checks::gone(former, step.to, &step.live, number);
    if gone.is_empty() {
        return false;
    }
    definition.without_checks(|part| {
        let read = checks::read(Dialect::Sqlite, columns, &|_| false, &part.found().text);
        read.is_ok_and(|said| gone.iter().any(|check| check.condition == said))
    })
}
