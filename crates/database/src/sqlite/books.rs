//! Branchline's own books: remembered values, streams, and notes on rows.

use std::collections::BTreeMap;

use branchline_core::change::Key;
use branchline_core::port::{DatabaseError, DbResult, Entry, Extent};
use branchline_core::schema::TableId;
use rusqlite::{Connection, OptionalExtension, params};

use super::error::failure;

pub(super) fn meta(connection: &Connection, name: &str) -> DbResult<Option<Vec<u8>>> {
    connection
        .prepare_cached("SELECT value FROM branchline_meta WHERE name = ?1")
        .and_then(|mut get| get.query_row([name], |row| row.get(0)).optional())
        .map_err(failure)
}

pub(super) fn set_meta(connection: &Connection, name: &str, value: Option<&[u8]>) -> DbResult<()> {
    let done = match value {
        Some(value) => connection
            .prepare_cached(
                "INSERT INTO branchline_meta(name, value) VALUES (?1, ?2)
                 ON CONFLICT(name) DO UPDATE SET value = excluded.value",
            )
            .and_then(|mut set| set.execute(params![name, value])),
        None => connection
            .prepare_cached("DELETE FROM branchline_meta WHERE name = ?1")
            .and_then(|mut forget| forget.execute([name])),
    };
    done.map(drop).map_err(failure)
}

pub(super) fn append(connection: &Connection, stream: &str, entries: &[Entry]) -> DbResult<()> {
    let mut add = connection
        .prepare_cached("INSERT INTO branchline_stream(stream, number, bytes) VALUES (?1, ?2, ?3)")
        .map_err(failure)?;
    for entry in entries {
        add.execute(params![stream, signed(entry.number)?, entry.bytes])
            .map_err(failure)?;
    }
    Ok(())
}

pub(super) fn entries(
    connection: &Connection,
    stream: &str,
    from: u64,
    max_bytes: usize,
) -> DbResult<Vec<Entry>> {
    let mut get = connection
        .prepare_cached(
            "SELECT number, length(bytes), bytes FROM branchline_stream WHERE stream = ?1 AND number >= ?2 ORDER BY number",
        )
        .map_err(failure)?;
    let mut rows = get.query(params![stream, signed(from)?]).map_err(failure)?;
    let (mut found, mut total) = (Vec::new(), 0u64);
    let most = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    while let Some(row) = rows.next().map_err(failure)? {
        total = total.saturating_add(row.get::<_, i64>(1).map_err(failure)?.unsigned_abs());
        if total > most && !found.is_empty() {
            break;
        }
        let number: i64 = row.get(0).map_err(failure)?;
        found.push(Entry {
            number: number.unsigned_abs(),
            bytes: row.get(2).map_err(failure)?,
        });
    }
    Ok(found)
}

pub(super) fn trim(connection: &Connection, stream: &str, through: u64) -> DbResult<()> {
    connection
        .prepare_cached("DELETE FROM branchline_stream WHERE stream = ?1 AND number <= ?2")
        .and_then(|mut trim| {
            trim.execute(params![stream, i64::try_from(through).unwrap_or(i64::MAX)])
        })
        .map(drop)
        .map_err(failure)
}

pub(super) fn extent(connection: &Connection, stream: &str) -> DbResult<Extent> {
    connection
        .prepare_cached(
            "SELECT ifnull(min(number), 0), ifnull(max(number), 0), count(*), ifnull(sum(length(bytes)), 0)
             FROM branchline_stream WHERE stream = ?1",
        )
        .and_then(|mut measure| {
            measure.query_row([stream], |row| {
                let number = |at| row.get::<_, i64>(at).map(i64::unsigned_abs);
                Ok(Extent { first: number(0)?, last: number(1)?, entries: number(2)?, bytes: number(3)? })
            })
        })
        .map_err(failure)
}

pub(super) fn notes(
    connection: &Connection,
    table: TableId,
    keys: Option<&[Key]>,
) -> DbResult<BTreeMap<Key, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let Some(keys) = keys else {
        let mut all = connection
            .prepare_cached("SELECT key, note FROM branchline_note WHERE tbl = ?1")
            .map_err(failure)?;
        let mut rows = all.query([table]).map_err(failure)?;
        while let Some(row) = rows.next().map_err(failure)? {
            let key: Vec<u8> = row.get(0).map_err(failure)?;
            let key = minicbor::decode(&key).map_err(|error| {
                DatabaseError::Other(format!(
                    "a row of branchline_note for table number {table} is damaged: {error}"
                ))
            })?;
            found.insert(key, row.get(1).map_err(failure)?);
        }
        return Ok(found);
    };
    let mut one = connection
        .prepare_cached("SELECT note FROM branchline_note WHERE tbl = ?1 AND key = ?2")
        .map_err(failure)?;
    for key in keys {
        if let Some(note) = one
            .query_row(params![table, bytes(key)?], |row| row.get(0))
            .optional()
            .map_err(failure)?
        {
            found.insert(key.clone(), note);
        }
    }
    Ok(found)
}

pub(super) fn set_notes(
    connection: &Connection,
    table: TableId,
    notes: &[(Key, Option<Vec<u8>>)],
) -> DbResult<()> {
    let mut set = connection
        .prepare_cached(
            "INSERT INTO branchline_note(tbl, key, note) VALUES (?1, ?2, ?3)
             ON CONFLICT(tbl, key) DO UPDATE SET note = excluded.note",
        )
        .map_err(failure)?;
    let mut clear = connection
        .prepare_cached("DELETE FROM branchline_note WHERE tbl = ?1 AND key = ?2")
        .map_err(failure)?;
    for (key, note) in notes {
        match note {
            Some(note) => set.execute(params![table, bytes(key)?, note]),
            None => clear.execute(params![table, bytes(key)?]),
        }
        .map_err(failure)?;
    }
    Ok(())
}

fn bytes(key: &Key) -> DbResult<Vec<u8>> {
    minicbor::to_vec(key)
        .map_err(|error| DatabaseError::Other(format!("a key cannot be encoded: {error}")))
}

fn signed(number: u64) -> DbResult<i64> {
    i64::try_from(number)
        .map_err(|_| DatabaseError::Other(format!("{number} is too large for an entry's number")))
}
