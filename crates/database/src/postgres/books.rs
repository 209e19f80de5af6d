//! Streams, notes and remembered values.

use std::collections::BTreeMap;

use branchline_core::change::Key;
use branchline_core::port::{DatabaseError, DbResult, Entry, Extent};
use branchline_core::schema::{Table, TableId};
use tokio_postgres::types::Type as Wire;

use super::connection::{Param, PostgresDatabase};
use super::error::failed;

/// Entries looked at in one statement.
const PAGE: i64 = 512;

pub(super) async fn meta(db: &mut PostgresDatabase, name: &str) -> DbResult<Option<Vec<u8>>> {
    let rows = db
        .query(
            "SELECT value FROM branchline.meta WHERE name = $1",
            &[Wire::TEXT],
            &[&name],
        )
        .await?;
    rows.first()
        .map(|row| row.try_get(0))
        .transpose()
        .map_err(|e| failed(&e))
}

pub(super) async fn set_meta(
    db: &mut PostgresDatabase,
    name: &str,
    value: Option<&[u8]>,
) -> DbResult<()> {
    let name = name.to_owned();
    match value {
        Some(value) => {
            let sql = "INSERT INTO branchline.meta (name, value) VALUES ($1, $2)
                       ON CONFLICT (name) DO UPDATE SET value = excluded.value";
            let bytes = value.len();
            let values: Vec<Param> = vec![Box::new(name), Box::new(value.to_vec())];
            db.send(sql, &[Wire::TEXT, Wire::BYTEA], values, bytes)
                .await
        }
        None => {
            let sql = "DELETE FROM branchline.meta WHERE name = $1";
            db.send(sql, &[Wire::TEXT], vec![Box::new(name)], 0).await
        }
    }
}

pub(super) async fn append(
    db: &mut PostgresDatabase,
    stream: &str,
    entries: &[Entry],
) -> DbResult<()> {
    let numbers = entries
        .iter()
        .map(|entry| number(entry.number))
        .collect::<DbResult<Vec<i64>>>()?;
    let bytes: Vec<Vec<u8>> = entries.iter().map(|entry| entry.bytes.clone()).collect();
    let sql = "INSERT INTO branchline.stream (stream, number, bytes)
               SELECT $1, e.number, e.bytes FROM unnest($2::int8[], $3::bytea[]) AS e(number, bytes)";
    let size = bytes.iter().map(Vec::len).sum();
    db.send(
        sql,
        &[Wire::TEXT, Wire::INT8_ARRAY, Wire::BYTEA_ARRAY],
        vec![
            Box::new(stream.to_owned()),
            Box::new(numbers),
            Box::new(bytes),
        ],
        size,
    )
    .await
}

pub(super) async fn entries(
    db: &mut PostgresDatabase,
    stream: &str,
    from: u64,
    max_bytes: usize,
) -> DbResult<Vec<Entry>> {
    // The lengths are known without reading the values; only what fits is read.
    let sql = "SELECT number, bytes FROM (
                   SELECT number, bytes,
                          pg_catalog.sum(pg_catalog.octet_length(bytes)) OVER (ORDER BY number)::int8 AS filled,
                          pg_catalog.row_number() OVER (ORDER BY number) AS place
                   FROM branchline.stream WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3) AS e
               WHERE filled <= $4 OR (place = 1 AND $5) ORDER BY number";
    let types = [Wire::TEXT, Wire::INT8, Wire::INT8, Wire::INT8, Wire::BOOL];
    let (mut found, mut next) = (Vec::new(), number(from)?);
    let mut left = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    loop {
        let first = found.is_empty();
        let rows = db
            .query(sql, &types, &[&stream, &next, &PAGE, &left, &first])
            .await?;
        for row in &rows {
            let (number, bytes): (i64, Vec<u8>) = (get(row, 0)?, get(row, 1)?);
            left = left.saturating_sub(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            next = number.saturating_add(1);
            found.push(Entry {
                number: number.unsigned_abs(),
                bytes,
            });
        }
        if (rows.len() as i64) < PAGE || left <= 0 {
            return Ok(found);
        }
    }
}

pub(super) async fn trim(db: &mut PostgresDatabase, stream: &str, through: u64) -> DbResult<()> {
    let through = i64::try_from(through).unwrap_or(i64::MAX);
    let sql = "DELETE FROM branchline.stream WHERE stream = $1 AND number <= $2";
    let values: Vec<Param> = vec![Box::new(stream.to_owned()), Box::new(through)];
    db.send(sql, &[Wire::TEXT, Wire::INT8], values, 0).await
}

pub(super) async fn extent(db: &mut PostgresDatabase, stream: &str) -> DbResult<Extent> {
    let sql = "SELECT coalesce(pg_catalog.min(number), 0), coalesce(pg_catalog.max(number), 0), pg_catalog.count(*),
                      coalesce(pg_catalog.sum(pg_catalog.octet_length(bytes)), 0)::int8
               FROM branchline.stream WHERE stream = $1";
    let rows = db.query(sql, &[Wire::TEXT], &[&stream]).await?;
    let Some(row) = rows.first() else {
        return Ok(Extent::default());
    };
    let field = |at: usize| get::<i64>(row, at).map(i64::unsigned_abs);
    Ok(Extent {
        first: field(0)?,
        last: field(1)?,
        entries: field(2)?,
        bytes: field(3)?,
    })
}

pub(super) async fn notes(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<BTreeMap<Key, Vec<u8>>> {
    let id = table_number(table.id)?;
    let rows = match keys {
        None => {
            db.query(
                "SELECT key, note FROM branchline.note WHERE tbl = $1",
                &[Wire::INT4],
                &[&id],
            )
            .await?
        }
        Some(keys) => {
            let names = keys.iter().map(encoded).collect::<DbResult<Vec<_>>>()?;
            let sql = "SELECT n.key, n.note FROM pg_catalog.unnest($2::bytea[]) AS k(key)
                       JOIN branchline.note n ON n.tbl = $1 AND n.key = k.key";
            db.query(sql, &[Wire::INT4, Wire::BYTEA_ARRAY], &[&id, &names])
                .await?
        }
    };
    let note = |row| {
        let key = minicbor::decode(get::<&[u8]>(row, 0)?);
        Ok((
            key.map_err(|e| DatabaseError::Other(format!("a note's key cannot be read: {e}")))?,
            get(row, 1)?,
        ))
    };
    rows.iter().map(note).collect()
}

pub(super) async fn set_notes(
    db: &mut PostgresDatabase,
    table: &Table,
    notes: &[(Key, Option<Vec<u8>>)],
) -> DbResult<()> {
    let id = table_number(table.id)?;
    let (mut set, mut bytes, mut cleared) = (Vec::new(), Vec::new(), Vec::new());
    for (key, note) in notes {
        match note {
            Some(note) => {
                set.push(encoded(key)?);
                bytes.push(note.as_slice());
            }
            None => cleared.push(encoded(key)?),
        }
    }
    if !cleared.is_empty() {
        let sql = "DELETE FROM branchline.note n USING pg_catalog.unnest($2::bytea[]) AS k(key)
                   WHERE n.tbl = $1 AND n.key = k.key";
        db.query(sql, &[Wire::INT4, Wire::BYTEA_ARRAY], &[&id, &cleared])
            .await?;
    }
    if !set.is_empty() {
        let sql = "INSERT INTO branchline.note (tbl, key, note)
                   SELECT $1, k.key, k.note FROM unnest($2::bytea[], $3::bytea[]) AS k(key, note)
                   ON CONFLICT (tbl, key) DO UPDATE SET note = excluded.note";
        db.query(
            sql,
            &[Wire::INT4, Wire::BYTEA_ARRAY, Wire::BYTEA_ARRAY],
            &[&id, &set, &bytes],
        )
        .await?;
    }
    Ok(())
}

/// A column of one of our own tables.
pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    at: usize,
) -> DbResult<T> {
    row.try_get(at).map_err(|e| failed(&e))
}

/// A table's number as our tables hold it.
pub(super) fn table_number(id: TableId) -> DbResult<i32> {
    i32::try_from(id)
        .map_err(|_| DatabaseError::Other(format!("the table number {id} is too large")))
}

fn number(number: u64) -> DbResult<i64> {
    i64::try_from(number)
        .map_err(|_| DatabaseError::Other(format!("the entry number {number} is too large")))
}

fn encoded(key: &Key) -> DbResult<Vec<u8>> {
    minicbor::to_vec(key).map_err(|e| DatabaseError::Other(format!("a key cannot be encoded: {e}")))
}
