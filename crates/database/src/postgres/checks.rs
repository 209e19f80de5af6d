//! Check constraints, as the catalogue tells them.

use branchline_core::check::Checks;
use branchline_core::port::{DbResult, LeftOut};
use branchline_core::schema::Column;
use tokio_postgres::Row;

use super::books::get;
use super::catalog::Columns;
use crate::checks::{self, Dialect, Found};

/// Check constraints, and whether the rows that were there obey them. PostgreSQL 18 has some that are not enforced at all, which
/// nobody validates either.
pub(super) const CHECKS: &str = "
SELECT c.conrelid, c.conname::text, pg_catalog.pg_get_expr(c.conbin, c.conrelid), c.convalidated
FROM pg_catalog.pg_constraint c WHERE c.contype = 'c' AND c.conrelid <> 0 ORDER BY c.oid";

/// The checks that can be carried over.
pub(super) fn carried(
    table: &str,
    rows: &[Row],
    columns: &Columns,
    left_out: &mut Vec<LeftOut>,
) -> DbResult<Checks> {
    let mut found = Vec::new();
    for row in rows {
        let name = Some(get(row, 1)?);
        // One of a table that was dropped since the snapshot has no words any more.
        let Some(text) = get::<Option<String>>(row, 2)? else {
            continue;
        };
        if get(row, 3)? {
            found.push(Found { name, text });
        } else {
            let why = "it is not validated: rows that are there may break it";
            left_out.push(checks::left(table, name, &text, why.into()));
        }
    }
    let folds = |column: &Column| columns.folds(column);
    let dialect = Dialect::Postgres;
    let carried = checks::carried(dialect, table, &columns.columns, &folds, found, left_out);
    Ok(Checks(carried))
}
