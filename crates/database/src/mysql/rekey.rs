//! Captured writes follow their table to another schema version: their keys and the rows before them.
//!
//! A key's part that the former key had is converted as the column was. One that it had not is looked up in the row; a
//! row that is gone had in it what it had before, where that is kept, or what the column's default says.

use branchline_core::change::{Key, Row};
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Value, convert};

use super::connection::MysqlDatabase;
use super::encoding::{decoded_key, decoded_row, encoded};
use super::literal::push_bytes;
use super::read;
use crate::lineage::filling;

/// Captured writes looked at together.
const PAGE: usize = 500;

pub(super) async fn follow(db: &mut MysqlDatabase, former: &Table, to: &Table) -> DbResult<()> {
    let same = |a: &Column, b: &Column| a.id == b.id && a.kind == b.kind;
    let all = |a: Vec<&Column>, b: Vec<&Column>| {
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same(a, b))
    };
    let same_key = all(former.key_columns().collect(), to.key_columns().collect());
    let same_rows = all(former.columns.iter().collect(), to.columns.iter().collect());
    if same_key && same_rows {
        return Ok(());
    }
    let mut last = 0_u64;
    loop {
        let mut rows = db
            .rows(format!(
                "SELECT id, `key`, `before` FROM branchline_capture WHERE tbl = {} AND id > {last} ORDER BY id LIMIT {PAGE}",
                to.id
            ))
            .await?;
        let count = rows.len();
        for row in &mut rows {
            last = row.number(0).unwrap_or(u64::MAX);
            let before = row.bytes(2).and_then(|bytes| decoded_row(former, bytes));
            let before = before.and_then(|before| image(former, to, &before));
            // What cannot be read stays as it is, and will be reported so.
            let Ok(key) = decoded_key(former, row.bytes(1).unwrap_or_default()) else {
                continue;
            };
            let Some(key) = rekeyed(db, former, to, &key, before.as_ref()).await? else {
                continue;
            };
            let mut sql = b"UPDATE branchline_capture SET `key` = ".to_vec();
            push_bytes(&mut sql, &encoded(to, &key));
            sql.extend_from_slice(b", `before` = ");
            match before {
                Some(before) => push_bytes(&mut sql, &encoded_row(to, before)),
                None => sql.extend_from_slice(b"NULL"),
            }
            sql.extend_from_slice(format!(" WHERE id = {last}").as_bytes());
            db.execute(sql).await?;
        }
        if count < PAGE {
            return Ok(());
        }
    }
}

/// A row as the capture stores it: like a key of all columns.
fn encoded_row(table: &Table, row: Row) -> Vec<u8> {
    let mut whole = table.clone();
    whole.key = (0..).take(table.columns.len()).collect();
    encoded(&whole, &Key(row.0))
}

fn image(former: &Table, to: &Table, before: &Row) -> Option<Row> {
    let value = |(at, column): (usize, &Column)| match former
        .columns
        .iter()
        .position(|one| one.id == column.id)
    {
        Some(was) => convert(
            &former.columns.get(was)?.kind,
            &column.kind,
            before.0.get(was)?,
        ),
        None => Some(filling(column, to.is_key(at))),
    };
    let row = Row(to
        .columns
        .iter()
        .enumerate()
        .map(value)
        .collect::<Option<_>>()?);
    to.fits(&row).then_some(row)
}

async fn rekeyed(
    db: &mut MysqlDatabase,
    former: &Table,
    to: &Table,
    key: &Key,
    before: Option<&Row>,
) -> DbResult<Option<Key>> {
    let held = |id: u32, column: &Column| {
        let (at, was) = former
            .key_columns()
            .enumerate()
            .find(|(_, one)| one.id == id)?;
        convert(&was.kind, &column.kind, key.0.get(at)?)
    };
    let kept: Vec<Option<Value>> = to
        .key_columns()
        .map(|column| held(column.id, column))
        .collect();
    let had = |column: &Column| former.key_columns().any(|one| one.id == column.id);
    if to
        .key_columns()
        .zip(&kept)
        .any(|(column, value)| had(column) && value.is_none())
    {
        return Ok(None);
    }
    if let Some(all) = kept.iter().cloned().collect::<Option<Vec<_>>>() {
        return Ok(Some(Key(all)));
    }
    if let Some(before) = before {
        return Ok(Some(to.key_of(before)));
    }
    // The row under what its former key is now.
    let mut by_former = to.clone();
    let places = former.key_columns().map(|was| {
        let at = to.columns.iter().position(|one| one.id == was.id)?;
        u16::try_from(at).ok()
    });
    if let Some(places) = places.collect::<Option<Vec<u16>>>() {
        by_former.key = places;
        let now: Option<Vec<Value>> = by_former
            .key_columns()
            .map(|column| held(column.id, column))
            .collect();
        if let Some(now) = now.map(Key) {
            let found = read::read(db, &by_former, std::slice::from_ref(&now)).await?;
            if let Some(row) = found.values().next() {
                return Ok(Some(to.key_of(row)));
            }
        }
    }
    let parts = to.key_columns().zip(kept);
    let parts = parts.map(|(column, kept)| kept.unwrap_or_else(|| filling(column, true)));
    Ok(Some(Key(parts.collect())))
}
