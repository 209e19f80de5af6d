//! Streams, notes and remembered values.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::Key;
use branchline_core::port::{DatabaseError, DbResult, Entry, Extent};
use branchline_core::schema::Table;

use super::connection::MysqlDatabase;
use super::literal::{push_bytes, text_literal};

/// Entries or notes named in one statement.
const PAGE: usize = 512;
/// Bytes sent in one statement, besides those of its first entry; well below any server's `max_allowed_packet`.
const STATEMENT: usize = 1 << 20;

/// Our own tables. Names and streams are compared byte by byte.
pub(super) const TABLES: [(&str, &str); 7] = [
    (
        "branchline_capture",
        "id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, tbl INT UNSIGNED NOT NULL, op CHAR(1) NOT NULL,
         at DATETIME(6) NOT NULL, tx VARBINARY(64) NOT NULL, `key` VARBINARY(3000) NOT NULL, `before` LONGBLOB NULL,
         INDEX by_key (tbl, `key`), INDEX by_tx (tx)",
    ),
    (
        "branchline_part",
        "tx VARBINARY(64) NOT NULL, id BIGINT UNSIGNED NOT NULL, PRIMARY KEY (tx, id)",
    ),
    (
        "branchline_meta",
        "name VARBINARY(255) NOT NULL PRIMARY KEY, value LONGBLOB NOT NULL",
    ),
    (
        "branchline_stream",
        "stream VARBINARY(255) NOT NULL, number BIGINT UNSIGNED NOT NULL, size INT UNSIGNED NOT NULL,
         bytes LONGBLOB NOT NULL, PRIMARY KEY (stream, number)",
    ),
    (
        "branchline_note",
        "tbl INT UNSIGNED NOT NULL, digest BINARY(16) NOT NULL, `key` LONGBLOB NOT NULL, note LONGBLOB NOT NULL,
         PRIMARY KEY (tbl, digest)",
    ),
    (
        "branchline_missed",
        "id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, tbl INT UNSIGNED NOT NULL",
    ),
    (
        "branchline_created",
        "name VARBINARY(255) NOT NULL PRIMARY KEY",
    ),
];

pub(super) async fn meta(db: &mut MysqlDatabase, name: &str) -> DbResult<Option<Vec<u8>>> {
    let sql = format!(
        "SELECT value FROM branchline_meta WHERE name = {}",
        text_literal(name)
    );
    let mut rows = db.rows(sql).await?;
    Ok(rows.first_mut().and_then(|row| row.take(0)))
}

/// The remembered values whose names begin with one of these.
pub(super) async fn metas(
    db: &mut MysqlDatabase,
    beginnings: &[&str],
) -> DbResult<BTreeMap<String, Vec<u8>>> {
    let named = |start: &&str| format!("name LIKE {}", text_literal(&format!("{start}%")));
    let named: Vec<String> = beginnings.iter().map(named).collect();
    let sql = format!(
        "SELECT name, value FROM branchline_meta WHERE {}",
        named.join(" OR ")
    );
    let mut rows = db.rows(sql).await?;
    let found = rows.iter_mut();
    Ok(found
        .filter_map(|row| Some((row.text(0), row.take(1)?)))
        .collect())
}

pub(super) async fn clear_metas(db: &mut MysqlDatabase, names: &[String]) -> DbResult<()> {
    for names in names.chunks(PAGE) {
        let names: Vec<String> = names.iter().map(|name| text_literal(name)).collect();
        let sql = format!(
            "DELETE FROM branchline_meta WHERE name IN ({})",
            names.join(", ")
        );
        db.execute(sql).await?;
    }
    Ok(())
}

pub(super) async fn set_meta(
    db: &mut MysqlDatabase,
    name: &str,
    value: Option<&[u8]>,
) -> DbResult<()> {
    let name = text_literal(name);
    let sql = match value {
        Some(value) => {
            let mut sql = format!("REPLACE INTO branchline_meta (name, value) VALUES ({name}, ");
            let mut bytes = std::mem::take(&mut sql).into_bytes();
            push_bytes(&mut bytes, value);
            bytes.push(b')');
            bytes
        }
        None => format!("DELETE FROM branchline_meta WHERE name = {name}").into_bytes(),
    };
    db.execute(sql).await
}

pub(super) async fn append(
    db: &mut MysqlDatabase,
    stream: &str,
    entries: &[Entry],
) -> DbResult<()> {
    let head = "INSERT INTO branchline_stream (stream, number, size, bytes) VALUES ";
    let stream = text_literal(stream);
    let mut sql = Vec::new();
    for entry in entries {
        sql.extend_from_slice(if sql.is_empty() {
            head.as_bytes()
        } else {
            b","
        });
        let fields = format!("({stream}, {}, {}, ", entry.number, entry.bytes.len());
        sql.extend_from_slice(fields.as_bytes());
        push_bytes(&mut sql, &entry.bytes);
        sql.push(b')');
        if sql.len() > STATEMENT {
            db.execute(std::mem::take(&mut sql)).await?;
        }
    }
    if !sql.is_empty() {
        db.execute(sql).await?;
    }
    Ok(())
}

pub(super) async fn entries(
    db: &mut MysqlDatabase,
    stream: &str,
    from: u64,
    max_bytes: usize,
) -> DbResult<Vec<Entry>> {
    let stream = text_literal(stream);
    let (mut found, mut next, mut left) = (Vec::new(), from, max_bytes);
    loop {
        // The sizes are read first; only what fits is fetched.
        let sizes = db
            .rows(format!(
                "SELECT number, size FROM branchline_stream WHERE stream = {stream} AND number >= {next}
                 ORDER BY number LIMIT {PAGE}"
            ))
            .await?;
        let (mut last, mut full) = (None, false);
        for row in &sizes {
            let size = row.number::<usize>(1).unwrap_or(0);
            let first = found.is_empty() && last.is_none();
            if size > left && !first {
                full = true;
                break;
            }
            left = left.saturating_sub(size);
            last = row.number::<u64>(0);
        }
        let Some(last) = last else { return Ok(found) };
        let mut rows = db
            .rows(format!(
                "SELECT number, bytes FROM branchline_stream WHERE stream = {stream} AND number BETWEEN {next} AND {last}
                 ORDER BY number"
            ))
            .await?;
        found.extend(rows.iter_mut().map(|row| Entry {
            number: row.number(0).unwrap_or(0),
            bytes: row.take(1).unwrap_or_default(),
        }));
        next = last.saturating_add(1);
        if full || left == 0 || sizes.len() < PAGE {
            return Ok(found);
        }
    }
}

pub(super) async fn trim(db: &mut MysqlDatabase, stream: &str, through: u64) -> DbResult<()> {
    let stream = text_literal(stream);
    db.execute(format!(
        "DELETE FROM branchline_stream WHERE stream = {stream} AND number <= {through}"
    ))
    .await
}

pub(super) async fn extent(db: &mut MysqlDatabase, stream: &str) -> DbResult<Extent> {
    let sql = format!(
        "SELECT COALESCE(MIN(number), 0), COALESCE(MAX(number), 0), COUNT(*), COALESCE(SUM(size), 0)
         FROM branchline_stream WHERE stream = {}",
        text_literal(stream)
    );
    let rows = db.rows(sql).await?;
    let field = |at| rows.first().and_then(|row| row.number(at)).unwrap_or(0);
    Ok(Extent {
        first: field(0),
        last: field(1),
        entries: field(2),
        bytes: field(3),
    })
}

pub(super) async fn notes(
    db: &mut MysqlDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<BTreeMap<Key, Vec<u8>>> {
    let all = format!(
        "SELECT `key`, note FROM branchline_note WHERE tbl = {}",
        table.id
    );
    let mut found = BTreeMap::new();
    let Some(keys) = keys else {
        for row in db.rows(all).await? {
            found.insert(
                decoded(row.bytes(0))?,
                row.bytes(1).unwrap_or_default().to_vec(),
            );
        }
        return Ok(found);
    };
    let wanted: BTreeSet<&Key> = keys.iter().collect();
    for keys in keys.chunks(PAGE) {
        let sql = format!("{all} AND digest IN ({})", digests(table, keys.iter()));
        for row in db.rows(sql).await? {
            let key = decoded(row.bytes(0))?;
            if wanted.contains(&key) {
                found.insert(key, row.bytes(1).unwrap_or_default().to_vec());
            }
        }
    }
    Ok(found)
}

pub(super) async fn set_notes(
    db: &mut MysqlDatabase,
    table: &Table,
    notes: &[(Key, Option<Vec<u8>>)],
) -> DbResult<()> {
    let cleared: Vec<&Key> = notes
        .iter()
        .filter_map(|(key, note)| note.is_none().then_some(key))
        .collect();
    for keys in cleared.chunks(PAGE) {
        db.execute(format!(
            "DELETE FROM branchline_note WHERE tbl = {} AND digest IN ({})",
            table.id,
            digests(table, keys.iter().copied())
        ))
        .await?;
    }
    let mut sql = Vec::new();
    for (key, note) in notes {
        let Some(note) = note else { continue };
        let head: &[u8] = b"REPLACE INTO branchline_note (tbl, digest, `key`, note) VALUES ";
        sql.extend_from_slice(if sql.is_empty() { head } else { b"," });
        sql.extend_from_slice(format!("({}, {}, ", table.id, digest(table, key)).as_bytes());
        let bytes = minicbor::to_vec(key)
            .map_err(|e| DatabaseError::Other(format!("a key cannot be encoded: {e}")))?;
        push_bytes(&mut sql, &bytes);
        sql.push(b',');
        push_bytes(&mut sql, note);
        sql.push(b')');
        if sql.len() > STATEMENT {
            db.execute(std::mem::take(&mut sql)).await?;
        }
    }
    if !sql.is_empty() {
        db.execute(sql).await?;
    }
    Ok(())
}

fn digests<'k>(table: &Table, keys: impl Iterator<Item = &'k Key>) -> String {
    let digests: Vec<String> = keys.map(|key| digest(table, key)).collect();
    digests.join(", ")
}

fn digest(table: &Table, key: &Key) -> String {
    let hex: String = key
        .digest(table)
        .0
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("x'{hex}'")
}

fn decoded(bytes: Option<&[u8]>) -> DbResult<Key> {
    minicbor::decode(bytes.unwrap_or_default())
        .map_err(|e| DatabaseError::Other(format!("a note's key cannot be read: {e}")))
}
