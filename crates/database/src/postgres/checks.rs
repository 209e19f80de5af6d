//! Check constraints, as the catalogue tells them, and those that a schema version brings.

use branchline_core::check::{Check, Checks};
use branchline_core::port::{DbResult, LeftOut};
use branchline_core::schema::{Column, Table};
use branchline_core::value::Value;
use tokio_postgres::Row;

use super::books::get;
use super::catalog::Columns;
use super::connection::PostgresDatabase;
use super::ddl::{ident, relation};
use super::evolve::{Step, alter, hold_still};
use super::literal;
use crate::checks::{self, Dialect, Found, Made, Words};
use crate::lineage::{Stop, Tried, stop};

pub(super) const WORDS: Words = Words {
    name: ident,
    text: |text| literal::text(&Value::Text(text.to_owned())),
};

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

/// Makes the checks that the version brings, where all rows obey them. What keeps one out keeps nothing else out.
pub(super) async fn make(db: &mut PostgresDatabase, step: &Step<'_>) -> Tried<Made> {
    let (to, mut made) = (step.to, Made::default());
    for (at, check) in step.checks_coming().into_iter().enumerate() {
        if at == 0 {
            // Nobody writes a row that breaks it between the look and the constraint.
            let held = hold_still(db, to).await;
            held.map_err(|error| stop(to.id, error))?;
        }
        db.execute("SAVEPOINT branchline_check").await?;
        let why = match make_one(db, to, check).await {
            Ok(why) => why,
            Err(Stop::Refused(_, why)) => Some(format!("which the database refuses: {why}")),
            Err(failed) => return Err(failed),
        };
        if let Some(why) = why {
            db.execute("ROLLBACK TO SAVEPOINT branchline_check").await?;
            made.waits(to, check, &why);
        }
        db.execute("RELEASE SAVEPOINT branchline_check").await?;
    }
    Ok(made)
}

/// Makes one check, or says why not.
async fn make_one(db: &mut PostgresDatabase, to: &Table, check: &Check) -> Tried<Option<String>> {
    let Some(broken) = checks::broken(&WORDS, to, check) else {
        return Ok(None);
    };
    let failed = |error| stop(to.id, error);
    let relation = relation(&to.name);
    let key: Vec<String> = to
        .key_columns()
        .map(|column| format!("{}::text", ident(&column.name)))
        .collect();
    let sql = format!(
        "SELECT pg_catalog.concat_ws(', ', {}) FROM {relation} WHERE {broken} LIMIT 1",
        key.join(", ")
    );
    let rows = db.query(&sql, &[], &[]).await.map_err(failed)?;
    if let Some(row) = rows.first() {
        return Ok(Some(checks::broken_by(&get::<String>(row, 0)?)));
    }
    let taken = format!(
        "SELECT conname::text FROM pg_catalog.pg_constraint WHERE conrelid = {}::pg_catalog.regclass",
        literal::text(&Value::Text(relation))
    );
    let taken = db.query(&taken, &[], &[]).await.map_err(failed)?;
    let taken: Vec<String> = taken
        .iter()
        .map(|row| get(row, 0))
        .collect::<DbResult<_>>()?;
    let name = check.name.as_deref();
    let name = name.filter(|name| !taken.iter().any(|one| one == name));
    if let Some(clause) = checks::clause(&WORDS, to, name, &check.condition) {
        alter(db, to, &format!("ADD {clause}")).await?;
    }
    Ok(None)
}
