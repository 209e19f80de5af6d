//! Taking captured writes in whole units of visibility (SETTLED 2).
//!
//! Writes are taken in the order of their numbers, up to a cut that no transaction and no row's writes span: the first
//! such cut after about `limit` writes. Looking for it moves the cut on to the last write of every transaction and row
//! before it, until nothing moves. A unit much larger than a portion is not held in memory but read by key, page by page.
//!
//! What a connection wrote in explicit transactions has one name. Where it waits for long it is parted by marks: a
//! connection's writes have ascending numbers, so those up to the highest that a snapshot shows are whole transactions.
//!
//! Everything is read in the transaction's snapshot, and exactly the writes that it showed are deleted, by number:
//! what commits late, with whatever number, is found by a later transaction. A range would reach it.

use std::collections::BTreeMap;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Micros;
use branchline_core::port::{DatabaseError, DbResult, First, Portion, Purpose, Taken, Unreadable};
use branchline_core::schema::{Schema, Table, TableId};

use super::capture::MICROS;
use super::connection::{Cells, MysqlDatabase};
use super::encoding::{decoded_key, decoded_row};
use super::read::find;

/// A unit of more than so many portions is paged by key instead of held whole.
const LARGE: usize = 2;
/// Writes deleted in one statement.
const PAGE: usize = 500;
/// After so many looks the cut moves on in growing steps: a long chain of transactions is found in few.
const PATIENCE: u32 = 8;

/// So many captured writes are worth a mark.
const APART: u64 = 1_000;

/// What is known of the marks that part connections' writes.
pub(super) struct Parts {
    /// The highest number captured when the last mark was made.
    marked: u64,
    /// There may be marks.
    any: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            marked: 0,
            any: true,
        }
    }
}

/// How far the open transaction has taken.
#[derive(Default)]
pub(super) enum Taking {
    /// Between two units.
    #[default]
    Between,
    /// Within a large unit.
    Paging(Paging),
    /// Nothing is left in this snapshot.
    Done,
}

/// A large unit being read by key.
pub(super) struct Paging {
    /// The number of its last write.
    end: u64,
    /// The table and captured key that were returned last.
    last: Option<(TableId, Vec<u8>)>,
}

/// A captured row: all of its writes in a unit.
struct Net {
    table: TableId,
    key: Vec<u8>,
    first: First,
    at: Micros,
    before: Option<Vec<u8>>,
}

pub(super) async fn take(
    db: &mut MysqlDatabase,
    schema: &Schema,
    limit: usize,
) -> DbResult<Portion> {
    if db.purpose() != Some(Purpose::Take) {
        return Err(DatabaseError::Other(
            "taking needs a transaction that was opened for it".to_owned(),
        ));
    }
    let limit = limit.max(1);
    match std::mem::take(&mut db.taking) {
        Taking::Done => {
            db.taking = Taking::Done;
            Ok(Portion::default())
        }
        Taking::Between => unit(db, schema, limit).await,
        Taking::Paging(paging) => page(db, schema, limit, paging).await,
    }
}

async fn unit(db: &mut MysqlDatabase, schema: &Schema, limit: usize) -> DbResult<Portion> {
    let writes = writes(db, "", limit + 1).await?;
    if writes.len() <= limit {
        forget_marks(db, writes.last().map_or(0, number)).await?;
        db.parts.any = false;
        return small(db, schema, writes, false).await;
    }
    let Some(start) = writes.get(limit - 1).map(number) else {
        return Ok(Portion::default());
    };
    drop(writes);
    let end = clean_cut(db, start).await?;
    forget_marks(db, end).await?;
    let large = limit.saturating_mul(LARGE);
    let writes = self::writes(db, &format!("WHERE id <= {end}"), large + 1).await?;
    if writes.len() <= large {
        let more = any_after(db, end).await?;
        return small(db, schema, writes, more).await;
    }
    page(db, schema, limit, Paging { end, last: None }).await
}

async fn writes(db: &mut MysqlDatabase, which: &str, limit: usize) -> DbResult<Vec<Cells>> {
    db.rows(format!(
        "SELECT id, tbl, op, {MICROS}, `key`, `before` FROM branchline_capture {which} ORDER BY id LIMIT {limit}"
    ))
    .await
}

fn number(write: &Cells) -> u64 {
    write.number(0).unwrap_or(0)
}

/// Returns writes that are whole units.
async fn small(
    db: &mut MysqlDatabase,
    schema: &Schema,
    mut writes: Vec<Cells>,
    more: bool,
) -> DbResult<Portion> {
    let numbers: Vec<u64> = writes.iter().map(number).collect();
    for numbers in numbers.chunks(PAGE) {
        remove(db, numbers).await?;
    }
    let mut nets: Vec<Net> = Vec::new();
    let mut places: BTreeMap<(TableId, Vec<u8>), usize> = BTreeMap::new();
    for write in &mut writes {
        let net = net(write);
        let name = (net.table, net.key.clone());
        match places.get(&name).and_then(|&at| nets.get_mut(at)) {
            Some(known) => known.at = known.at.max(net.at),
            None => {
                places.insert(name, nets.len());
                nets.push(net);
            }
        }
    }
    db.taking = if more { Taking::Between } else { Taking::Done };
    changes(db, schema, nets, false, more).await
}

/// What a write says, where it is the row's first.
fn net(write: &mut Cells) -> Net {
    Net {
        table: write.number(1).unwrap_or(0),
        key: write.take(4).unwrap_or_default(),
        first: first(write.bytes(2)),
        at: Micros(write.number(3).unwrap_or(0)),
        before: write.take(5),
    }
}

/// How a row stood before a write of this kind.
fn first(op: Option<&[u8]>) -> First {
    match op {
        Some(b"I") => First::Inserted,
        Some(b"X") => First::Unknown,
        _ => First::Existing,
    }
}

/// The first cut at or after this write that nothing spans.
async fn clean_cut(db: &mut MysqlDatabase, start: u64) -> DbResult<u64> {
    let (mut seen, mut end, mut looks) = (0, start, 0);
    loop {
        let range = format!("id > {seen} AND id <= {end}");
        let reach = db
            .rows(format!(
                "SELECT MAX(COALESCE((SELECT MIN(p.id) FROM branchline_part p WHERE p.tx = w.tx AND p.id >= w.last),
                     (SELECT MAX(c.id) FROM branchline_capture c WHERE c.tx = w.tx)))
                 FROM (SELECT tx, MAX(id) AS last FROM branchline_capture WHERE {range} GROUP BY tx) w
                 UNION ALL
                 SELECT MAX((SELECT MAX(c.id) FROM branchline_capture c WHERE c.tbl = w.tbl AND c.`key` = w.`key`))
                 FROM (SELECT DISTINCT tbl, `key` FROM branchline_capture WHERE {range}) w"
            ))
            .await?;
        let reached = reach.iter().map(number).max().unwrap_or(0);
        if reached <= end {
            return Ok(end);
        }
        seen = end;
        end = reached;
        looks += 1;
        if looks > PATIENCE {
            let step = db
                .rows(format!(
                    "SELECT COALESCE((SELECT id FROM branchline_capture WHERE id > {end} ORDER BY id
                         LIMIT 1 OFFSET {}), (SELECT MAX(id) FROM branchline_capture))",
                    1_u64 << looks.min(30)
                ))
                .await?;
            end = step.first().map_or(end, number).max(end);
        }
    }
}

/// Marks up to a number that is taken part nothing any more.
async fn forget_marks(db: &mut MysqlDatabase, through: u64) -> DbResult<()> {
    if db.parts.any {
        db.execute(format!("DELETE FROM branchline_part WHERE id <= {through}"))
            .await?;
    }
    Ok(())
}

/// See [`branchline_core::port::Database::mark`]. Leaves its transaction open, to be committed.
pub(super) async fn mark(db: &mut MysqlDatabase) -> DbResult<()> {
    db.open(Purpose::Take).await?;
    let last = "SELECT COALESCE(MAX(id), 0) FROM branchline_capture";
    let last = db.rows(last).await?.first().map_or(0, number);
    let from = db.parts.marked;
    if last < from.saturating_add(APART) {
        return Ok(());
    }
    // A statement that is a transaction of its own has a name of its own, with its time.
    let ends = format!(
        "SELECT MAX(id), tx FROM branchline_capture WHERE id > {from} AND tx NOT LIKE '%/%' GROUP BY tx"
    );
    let mut ends = db.rows(ends).await?;
    for ends in ends.chunks_mut(PAGE) {
        let mut sql = b"INSERT IGNORE INTO branchline_part (id, tx) VALUES ".to_vec();
        for (at, end) in ends.iter_mut().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            sql.extend_from_slice(format!("{comma}({}, ", number(end)).as_bytes());
            super::literal::push_bytes(&mut sql, &end.take(1).unwrap_or_default());
            sql.extend_from_slice(b")");
        }
        db.execute(sql).await?;
    }
    db.parts = Parts {
        marked: last,
        any: true,
    };
    Ok(())
}

async fn any_after(db: &mut MysqlDatabase, end: u64) -> DbResult<bool> {
    let rows = db
        .rows(format!(
            "SELECT 1 FROM branchline_capture WHERE id > {end} LIMIT 1"
        ))
        .await?;
    Ok(!rows.is_empty())
}

/// The next rows of a large unit.
async fn page(
    db: &mut MysqlDatabase,
    schema: &Schema,
    limit: usize,
    mut paging: Paging,
) -> DbResult<Portion> {
    let end = paging.end;
    let mut sql = b"SELECT MIN(id), tbl, NULL, MAX(".to_vec();
    sql.extend_from_slice(MICROS.as_bytes());
    sql.extend_from_slice(b"), `key` FROM branchline_capture FORCE INDEX (by_key) WHERE ");
    if let Some((table, key)) = &paging.last {
        // In this form the server begins at the key; given `tbl >=` it walks there from the table's first.
        let after = format!("(tbl > {table} OR tbl = {table} AND `key` > ");
        sql.extend_from_slice(after.as_bytes());
        super::literal::push_bytes(&mut sql, key);
        sql.extend_from_slice(b") AND ");
    }
    let rest = format!(
        "id <= {end} GROUP BY tbl, `key` ORDER BY tbl, `key` LIMIT {}",
        limit + 1
    );
    sql.extend_from_slice(rest.as_bytes());
    let mut rows = db.rows(sql).await?;
    let open = rows.len() > limit;
    rows.truncate(limit);
    // Kind and image of each row's first write, by its number.
    let (mut ops, mut images) = (BTreeMap::new(), BTreeMap::new());
    let numbers: Vec<String> = rows.iter().map(|row| number(row).to_string()).collect();
    for numbers in numbers.chunks(PAGE) {
        let sql = format!(
            "SELECT id, op, `before` FROM branchline_capture WHERE id IN ({})",
            numbers.join(", ")
        );
        for mut row in db.rows(sql).await? {
            ops.insert(number(&row), first(row.bytes(1)));
            images.insert(number(&row), row.take(2));
        }
    }
    let mut nets = Vec::with_capacity(rows.len());
    for row in &mut rows {
        let at = number(row);
        nets.push(Net {
            first: ops.remove(&at).unwrap_or(First::Existing),
            before: images.remove(&at).flatten(),
            ..net(row)
        });
    }
    paging.last = nets.last().map(|net| (net.table, net.key.clone()));
    let more = if open {
        db.taking = Taking::Paging(paging);
        true
    } else {
        remove_through(db, end).await?;
        let more = any_after(db, end).await?;
        db.taking = if more { Taking::Between } else { Taking::Done };
        more
    };
    changes(db, schema, nets, open, more).await
}

/// Deletes the writes with these numbers, each looked up by itself: given a list of numbers the server may well walk the
/// whole table, and then it waits for, and stops, the application's writes. Only of a join does it heed the order.
async fn remove(db: &mut MysqlDatabase, numbers: &[u64]) -> DbResult<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    let numbers: Vec<String> = numbers
        .iter()
        .map(|number| format!("SELECT {number} AS id"))
        .collect();
    db.execute(format!(
        "DELETE c FROM ({}) x STRAIGHT_JOIN branchline_capture c FORCE INDEX (PRIMARY) ON c.id = x.id",
        numbers.join(" UNION ALL ")
    ))
    .await
}

/// Deletes the writes up to a number that the snapshot shows.
async fn remove_through(db: &mut MysqlDatabase, end: u64) -> DbResult<()> {
    let mut last = 0;
    loop {
        let rows = db
            .rows(format!(
                "SELECT id FROM branchline_capture WHERE id > {last} AND id <= {end} ORDER BY id LIMIT {PAGE}"
            ))
            .await?;
        let numbers: Vec<u64> = rows.iter().map(number).collect();
        match numbers.last() {
            None => return Ok(()),
            Some(&highest) => last = highest,
        }
        remove(db, &numbers).await?;
    }
}

/// The rows as they are in the snapshot.
async fn changes(
    db: &mut MysqlDatabase,
    schema: &Schema,
    nets: Vec<Net>,
    open: bool,
    more: bool,
) -> DbResult<Portion> {
    let mut portion = Portion {
        open,
        more,
        ..Portion::default()
    };
    let mut by_table: BTreeMap<TableId, Vec<(usize, Key, Net)>> = BTreeMap::new();
    for (place, net) in nets.into_iter().enumerate() {
        // A table that has left the plan: its last writes concern nobody.
        let Some(table) = schema.table(net.table) else {
            continue;
        };
        match decoded_key(table, &net.key) {
            Ok(key) => by_table
                .entry(net.table)
                .or_default()
                .push((place, key, net)),
            Err((key, problem)) => portion.unreadable.push(Unreadable {
                table: net.table,
                key,
                problem,
            }),
        }
    }
    let mut placed: BTreeMap<usize, Taken> = BTreeMap::new();
    for (id, nets) in by_table {
        let Some(table) = schema.table(id) else {
            continue;
        };
        let keys: Vec<Key> = nets.iter().map(|(_, key, _)| key.clone()).collect();
        let mut found = find(db, table, &keys).await?;
        for (place, key, net) in nets {
            match found.remove(&key) {
                Some(Err(problem)) => portion.unreadable.push(Unreadable {
                    table: id,
                    key,
                    problem,
                }),
                row => {
                    let row = row.and_then(Result::ok);
                    placed.insert(place, taken(table, net, key, row));
                }
            }
        }
    }
    portion.changes = placed.into_values().collect();
    Ok(portion)
}

fn taken(table: &Table, net: Net, key: Key, row: Option<Row>) -> Taken {
    let before = match net.first {
        First::Existing if table.keeps_before() => net.before,
        _ => None,
    };
    Taken {
        table: net.table,
        effect: row.map_or(Effect::Delete(key), Effect::Put),
        first: net.first,
        at: net.at,
        before: before.and_then(|bytes| decoded_row(table, &bytes)),
    }
}
