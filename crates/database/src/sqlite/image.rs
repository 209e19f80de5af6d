//! The row before a change, of tables whose rules need it.
//!
//! An image stands in `branchline_capture` right behind the write that it belongs to: rows of op `B`, which hold the
//! values of some columns each in slots without a type. Every value keeps its storage class and its bytes, which no
//! text form made by an old library could promise. `at` counts the rows of an image, so that each names its write.
//! The first slot names the columns: an image of other columns is not read (trap 18).

use branchline_core::change::{Key, Row};
use branchline_core::port::DbResult;
use branchline_core::schema::Table;
use rusqlite::Connection;

use super::capture::{KEY_AT, SLOTS};
use super::error::failure;
use super::sql::{KEY_COLUMNS, columns, key_slots, list, quoted, text};
use super::stored::value;

/// The statements of a trigger that store `row` (`OLD`, or an alias that `from` explains) behind the write just
/// captured. Nothing for tables that keep no image.
pub(super) fn statements(table: &Table, row: &str, from: &str) -> String {
    if !table.keeps_before() {
        return String::new();
    }
    let values = table
        .columns
        .iter()
        .map(|column| format!("{row}.{}", quoted(&column.name)));
    let cells: Vec<String> = std::iter::once(text(&layout(table)))
        .chain(values)
        .collect();
    let statement = |(at, cells): (usize, &[String])| {
        format!(
            "INSERT INTO branchline_capture(tbl, op, at, {}) SELECT {}, 'B', {at}, {}{from}; ",
            key_slots(cells.len()),
            table.id,
            list(cells.iter().cloned()),
        )
    };
    cells
        .chunks(KEY_COLUMNS)
        .enumerate()
        .map(statement)
        .collect()
}

/// The image behind the write with this number in `branchline_taking`; None where there is none that can be read.
pub(super) fn read(
    connection: &Connection,
    table: &Table,
    key: &Key,
    write: i64,
) -> DbResult<Option<Row>> {
    let behind = format!(
        "SELECT first, tbl, op, at, {SLOTS} FROM temp.branchline_taking WHERE first > ?1 ORDER BY first"
    );
    let mut behind = connection.prepare_cached(&behind).map_err(failure)?;
    let mut rows = behind.query([write]).map_err(failure)?;
    let layout = layout(table);
    let mut values = Vec::with_capacity(table.columns.len());
    let (mut place, mut known) = (0_usize, true);
    while let Some(row) = rows.next().map_err(failure)? {
        if !is_image(row)? {
            break;
        }
        for slot in KEY_AT..KEY_AT + KEY_COLUMNS {
            let stored = row.get_ref(slot).map_err(failure)?;
            match place.checked_sub(1).map(|at| table.columns.get(at)) {
                None => known &= stored.as_bytes().is_ok_and(|it| it == layout.as_bytes()),
                Some(Some(column)) => match value(&column.kind, stored) {
                    Ok(value) => values.push(value),
                    Err(_) => known = false,
                },
                Some(None) => {}
            }
            place += 1;
        }
    }
    let image = Row(values);
    Ok((known && table.fits(&image) && table.key_of(&image) == *key).then_some(image))
}

/// Whether a row of `branchline_taking` is a part of an image.
pub(super) fn is_image(row: &rusqlite::Row<'_>) -> DbResult<bool> {
    Ok(row.get_ref(2).map_err(failure)?.as_str() == Ok("B"))
}

pub(super) fn layout(table: &Table) -> String {
    columns("t", table.columns.iter())
}
