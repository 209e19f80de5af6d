//! Unique values that rows exchange in one transaction (a swap, a chain) are set aside before the rows are put.

use branchline_core::change::Row;
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Type;

use super::connection::MysqlDatabase;
use super::ddl::ident;
use super::layout::Layout;
use super::references::changing;

/// The shortest text that a parked value fits in.
const SHORTEST: u32 = 36;
/// Rows named in one statement.
const PAGE: usize = 500;

/// Gives the rows that are about to be overwritten unique values that no row holds, where theirs change: others may
/// refer to those that stay.
pub(super) async fn park(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    rows: &[&Row],
) -> DbResult<()> {
    for unique in &table.unique {
        let columns = || {
            let found = unique.iter().filter(|&&at| !table.is_key(usize::from(at)));
            found.filter_map(|&at| table.columns.get(usize::from(at)))
        };
        let parked = columns()
            .find(|column| column.nullable)
            .map(|column| (column, "NULL"))
            .or_else(|| columns().find_map(|column| Some((column, placeholder(column)?))));
        let Some((column, value)) = parked else {
            continue;
        };
        let names: Vec<&String> = columns().map(|column| &column.name).collect();
        for rows in rows.chunks(PAGE) {
            let Some(which) = changing(table, layout, rows, &names)? else {
                continue;
            };
            let head = format!(
                "UPDATE {} r SET r.{} = {value} WHERE ",
                layout.relation,
                ident(&column.name)
            );
            let sql = [head.as_bytes(), &which].concat();
            db.execute_on(&table.name, sql).await?;
        }
    }
    Ok(())
}

/// A value that no row holds, for a column that must not be NULL.
fn placeholder(column: &Column) -> Option<&'static str> {
    Some(match &column.kind {
        Type::Text { max } if max.is_none_or(|max| max >= SHORTEST) => "UUID()",
        Type::Uuid => "UUID()",
        Type::Int32 => "-1 - FLOOR(RAND() * 2147483646)",
        Type::Int64 => "-1 - FLOOR(RAND() * 9007199254740991)",
        _ => return None,
    })
}
