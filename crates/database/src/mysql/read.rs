//! Rows out of the application's tables: by key, in chunks, under lock.

use std::collections::BTreeMap;

use branchline_core::change::{Key, Row};
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, canonical};

use super::connection::{Cells, MysqlDatabase};
use super::ddl::ident;
use super::error::mismatch;
use super::layout::{Declared, Layout};
use super::literal::push_value;
use super::types::{row_of, selected, selection, value_of};

/// Keys named in one statement.
const PAGE: usize = 500;

/// A row, or why it is none of the plan's table.
pub(super) type Found = Result<Row, String>;

/// The condition that names these rows of `row`; `None` where no row can have any of these keys.
pub(super) fn matching(
    table: &Table,
    layout: &Layout,
    row: &str,
    keys: &[Key],
) -> DbResult<Option<Vec<u8>>> {
    let columns = table.key_columns().map(|column| {
        let here = layout.column(table, column)?;
        Ok((column, here, format!("{row}.{}", ident(&here.name))))
    });
    let columns: Vec<(&Column, &Declared, String)> = columns.collect::<DbResult<_>>()?;
    let mut sql = Vec::new();
    for key in keys {
        let mut one = Vec::new();
        let mut fits = key.0.len() == columns.len();
        for ((column, here, name), value) in columns.iter().zip(&key.0) {
            if columns.len() > 1 {
                one.extend_from_slice(if one.is_empty() { b"(" } else { b" AND " });
                one.extend_from_slice(name.as_bytes());
                one.extend_from_slice(b" = ");
            }
            // What the column cannot hold, it does not hold.
            fits &= push_value(&mut one, table, column, here, value).is_ok();
        }
        if !fits {
            continue;
        }
        match (columns.as_slice(), sql.is_empty()) {
            ([(_, _, name)], true) => sql.extend_from_slice(format!("{name} IN (").as_bytes()),
            ([_], false) => sql.extend_from_slice(b", "),
            (_, true) => sql.push(b'('),
            (_, false) => sql.extend_from_slice(b" OR "),
        }
        sql.extend_from_slice(&one);
        if columns.len() > 1 {
            sql.push(b')');
        }
    }
    if sql.is_empty() {
        return Ok(None);
    }
    sql.push(b')');
    Ok(Some(sql))
}

/// The key in the one spelling that comparisons use.
pub(super) fn folded(table: &Table, key: &Key) -> Key {
    let values = table.key_columns().zip(&key.0);
    Key(values
        .map(|(column, value)| canonical(&column.kind, value).into_owned())
        .collect())
}

/// The select list of a table's key, in `row`.
fn key_selection(table: &Table, layout: &Layout, row: &str) -> DbResult<String> {
    let columns = table
        .key_columns()
        .map(|column| Ok(selected(layout.column(table, column)?, row)));
    Ok(columns.collect::<DbResult<Vec<_>>>()?.join(", "))
}

/// The folded key in the first columns of a row.
fn key_of(table: &Table, cells: &Cells) -> Option<Key> {
    let values = table.key_columns().enumerate().map(|(at, column)| {
        let value = value_of(&column.kind, cells.bytes(at)?).ok()?;
        Some(canonical(&column.kind, &value).into_owned())
    });
    values.collect::<Option<Vec<_>>>().map(Key)
}

/// The rows with exactly these keys that exist. A row whose key this database merely takes for equal (another letter
/// case, blanks at the end) is another row.
pub(super) async fn find(
    db: &mut MysqlDatabase,
    table: &Table,
    keys: &[Key],
) -> DbResult<BTreeMap<Key, Found>> {
    let mut found = BTreeMap::new();
    if keys.is_empty() {
        return Ok(found);
    }
    let layout = db.layout(&table.name).await?;
    let head = format!(
        "SELECT {}, {} FROM {} r FORCE INDEX (PRIMARY) WHERE ",
        key_selection(table, &layout, "r")?,
        selection(table, &layout, "r")?,
        layout.relation
    );
    let width = table.key.len();
    for keys in keys.chunks(PAGE) {
        let Some(which) = matching(table, &layout, "r", keys)? else {
            continue;
        };
        let asked: BTreeMap<Key, &Key> = keys.iter().map(|key| (folded(table, key), key)).collect();
        let sql = [head.as_bytes(), &which].concat();
        for mut row in db.rows_on(&table.name, sql).await? {
            if let Some(key) = key_of(table, &row).and_then(|key| asked.get(&key)) {
                found.insert((*key).clone(), row_of(table, &mut row, width));
            }
        }
    }
    Ok(found)
}

/// Locks the rows that have these keys in this database's eyes, and returns their folded keys.
pub(super) async fn lock(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    keys: &[Key],
) -> DbResult<Vec<Key>> {
    let head = format!(
        "SELECT {} FROM {} r FORCE INDEX (PRIMARY) WHERE ",
        key_selection(table, layout, "r")?,
        layout.relation
    );
    let mut found = Vec::new();
    for keys in keys.chunks(PAGE) {
        let Some(which) = matching(table, layout, "r", keys)? else {
            continue;
        };
        let sql = [head.as_bytes(), &which, b" FOR UPDATE NOWAIT"].concat();
        let rows = db.locked_rows(&table.name, sql).await?;
        found.extend(rows.iter().filter_map(|row| key_of(table, row)));
    }
    Ok(found)
}

pub(super) async fn read(
    db: &mut MysqlDatabase,
    table: &Table,
    keys: &[Key],
) -> DbResult<BTreeMap<Key, Row>> {
    let found = find(db, table, keys).await?.into_iter();
    Ok(found
        .filter_map(|(key, row)| Some((key, row.ok()?)))
        .collect())
}

pub(super) async fn chunk(
    db: &mut MysqlDatabase,
    table: &Table,
    after: Option<&Key>,
    limit: usize,
) -> DbResult<Vec<Row>> {
    let (mut found, mut passed) = (Vec::new(), 0);
    loop {
        let wanted = limit - found.len();
        let rows = next_rows(db, table, after, (wanted, passed)).await?;
        let last = rows.len() < wanted;
        passed += rows.len();
        found.extend(rows.into_iter().flatten());
        if last || found.len() == limit {
            return Ok(found);
        }
    }
}

/// A row that is none of the plan's table: its key, where that can be read, and why.
pub(super) type Misfit = (Option<Key>, String);

/// Up to `limit` rows after the row with key `after`, the first `passed` left out, in the database's own order.
pub(super) async fn next_rows(
    db: &mut MysqlDatabase,
    table: &Table,
    after: Option<&Key>,
    place: (usize, usize),
) -> DbResult<Vec<Result<Row, Misfit>>> {
    let layout = db.layout(&table.name).await?;
    let columns = selection(table, &layout, "r")?;
    let rows = page(db, table, &columns, after, place).await?.into_iter();
    Ok(rows
        .map(|mut row| {
            let key = key_of(table, &row);
            row_of(table, &mut row, table.key.len()).map_err(|problem| (key, problem))
        })
        .collect())
}

/// The keys of up to `limit` rows after the row with key `after`, in the database's own order.
pub(super) async fn keys(
    db: &mut MysqlDatabase,
    table: &Table,
    after: Option<&Key>,
    limit: usize,
) -> DbResult<Vec<Key>> {
    let rows = page(db, table, "1", after, (limit, 0)).await?;
    let keys = rows.iter().map(|row| {
        key_of(table, row).ok_or_else(|| mismatch(&table.name, "the key of a row cannot be read"))
    });
    keys.collect()
}

/// Key and columns of up to `limit` rows after the row with key `after`, the first `passed` left out, in the database's own
/// order.
async fn page(
    db: &mut MysqlDatabase,
    table: &Table,
    selected: &str,
    after: Option<&Key>,
    (limit, passed): (usize, usize),
) -> DbResult<Vec<Cells>> {
    let layout = db.layout(&table.name).await?;
    let mut columns = Vec::new();
    for column in table.key_columns() {
        let here = layout.column(table, column)?;
        columns.push((column, here, ordered(column, here)));
    }
    let mut sql = format!(
        "SELECT {}, {selected} FROM {} r FORCE INDEX (PRIMARY)",
        key_selection(table, &layout, "r")?,
        layout.relation
    )
    .into_bytes();
    if let Some(after) = after {
        // (a, b) > (x, y), spelled so that the index serves.
        for depth in (0..columns.len()).rev() {
            let first = depth + 1 == columns.len();
            sql.extend_from_slice(if first { b" WHERE (" } else { b" OR (" });
            for (at, ((column, here, name), value)) in
                columns.iter().zip(&after.0).enumerate().take(depth + 1)
            {
                let relation = if at == depth { ">" } else { "=" };
                let and = if at > 0 { " AND " } else { "" };
                sql.extend_from_slice(format!("{and}{name} {relation} ").as_bytes());
                push_value(&mut sql, table, column, here, value)?;
            }
            sql.push(b')');
        }
    }
    let order: Vec<&str> = columns.iter().map(|(_, _, name)| name.as_str()).collect();
    let rest = format!(
        " ORDER BY {} LIMIT {limit} OFFSET {passed}",
        order.join(", ")
    );
    sql.extend_from_slice(rest.as_bytes());
    db.rows_on(&table.name, sql).await
}

/// What a key column is sorted and compared by: labels by their text, which their own order is not.
fn ordered(column: &Column, here: &Declared) -> String {
    let name = format!("r.{}", ident(&here.name));
    match column.kind {
        Type::Enum { .. } => format!("CONVERT({name} USING utf8mb4) COLLATE utf8mb4_bin"),
        _ => name,
    }
}
