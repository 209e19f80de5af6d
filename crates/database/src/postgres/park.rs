//! Unique values that rows exchange in one transaction (a swap, a chain) are set aside before the rows are put.

use branchline_core::change::Row;
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Type;

use super::apply::on_rows;
use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::layout::{Layout, rows_now};

/// The shortest text that a parked value fits in.
const SHORTEST: u32 = 32;

/// Gives the rows that are about to be overwritten unique values that no row holds, where theirs change: others may
/// refer to those that stay.
pub(super) async fn park(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    rows: &[&Row],
) -> DbResult<()> {
    for unique in &table.unique {
        let columns = || {
            let found = unique.iter().filter(|&&at| !table.is_key(usize::from(at)));
            found
                .filter_map(|&at| table.columns.get(usize::from(at)))
                .filter(|column| !layout.fixed.contains(&column.name))
        };
        let parked = columns()
            .find(|column| column.nullable)
            .map(|column| (column, "NULL".to_owned()))
            .or_else(|| columns().find_map(|column| Some((column, placeholder(column)?))));
        let names: Vec<&String> = columns().map(|column| &column.name).collect();
        let changed = layout.changed(table, "r", &names)?;
        if let Some(((column, value), changed)) = parked.zip(changed) {
            let sql = format!(
                "UPDATE {} r SET {} = {value} FROM {} WHERE {} AND {changed}",
                layout.relation,
                ident(&column.name),
                rows_now(table),
                layout.row_join(table, "r")?
            );
            on_rows(db, table, &sql, rows, None).await?;
        }
    }
    Ok(())
}

/// A value that no row holds, for a column that must not be NULL.
fn placeholder(column: &Column) -> Option<String> {
    let digest = "pg_catalog.md5(pg_catalog.random()::text || r.ctid::text)";
    Some(match &column.kind {
        Type::Text { max } if max.is_none_or(|max| max >= SHORTEST) => digest.to_owned(),
        Type::Uuid => "pg_catalog.gen_random_uuid()".to_owned(),
        Type::Int32 => "(-1 - pg_catalog.random() * 2147483646)::pg_catalog.int4".to_owned(),
        Type::Int64 => "(-1 - pg_catalog.random() * 9007199254740991)::pg_catalog.int8".to_owned(),
        _ => return None,
    })
}
