//! Taking captured writes in whole units of visibility (SETTLED 2).
//!
//! Every transaction and every row spans an interval, from its first captured write to its last. A cut between two
//! writes is clean when no interval spans it. The writes are walked in order of time with the end of each one's
//! intervals (its *reach*); the cut before a write is clean when all reaches so far lie before it. A unit that is much
//! larger than a portion is not held in memory: it is walked to its end, then read again by key, portion by portion.
//!
//! The transaction's snapshot stands still, so a cursor over it stays right while writes are removed behind it.

use std::collections::{BTreeMap, VecDeque};

use branchline_core::change::{Effect, Key, Row as CoreRow};
use branchline_core::port::{DatabaseError, DbResult, First, Portion, Purpose, Taken};
use branchline_core::schema::{Schema, Table, TableId};
use futures_util::future::{join, join_all};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type as Wire, to_sql_checked};
use tokio_postgres::{Row, Statement};

use super::apply::selection;
use super::books::get;
use super::capture::{Moment, parse_key};
use super::connection::PostgresDatabase;
use super::error::{failed, on_table};
use super::layout::given;
use super::types::{self, Array};

/// A unit of more than so many portions is staged by key instead of held whole.
const LARGE: usize = 4;

const SMALL: &str = "DELETE FROM branchline.capture
WHERE (SELECT pg_catalog.count(*) FROM (SELECT FROM branchline.capture LIMIT $1) AS counted) < $1
RETURNING tbl, op, at, key";

const WALK: &str = "
SET LOCAL enable_mergejoin TO off; SET LOCAL enable_nestloop TO off; SET LOCAL cursor_tuple_fraction TO 1;
SET LOCAL work_mem TO '32MB';
DECLARE branchline_walk NO SCROLL CURSOR FOR
SELECT w.tbl, w.op, w.at, w.key, w.ctid, greatest(w.at, t.last, k.last) AS reach
FROM branchline.capture w
LEFT JOIN (SELECT tx, pg_catalog.max(at) AS last FROM branchline.capture GROUP BY tx
           HAVING pg_catalog.count(*) > 1) AS t ON t.tx = w.tx
LEFT JOIN (SELECT tbl, key, pg_catalog.max(at) AS last FROM branchline.capture GROUP BY tbl, key
           HAVING pg_catalog.count(*) > 1) AS k ON k.tbl = w.tbl AND k.key = w.key
ORDER BY w.at, w.ctid;
RESET enable_mergejoin; RESET enable_nestloop";

/// How far the open transaction has taken.
#[derive(Default)]
pub(super) enum Taking {
    /// Nothing taken yet.
    #[default]
    Fresh,
    /// Walking a large backlog.
    Walking(Walk),
    /// Nothing is left in this snapshot.
    Done,
}

#[derive(Default)]
pub(super) struct Walk {
    fetched: VecDeque<Write>,
    exhausted: bool,
    staged: Option<Staged>,
}

/// A large unit being read by key.
struct Staged {
    /// The time of its last write.
    end: Moment,
    fetched: VecDeque<Net>,
    exhausted: bool,
    writes: u64,
}

/// A captured write.
struct Write {
    table: u32,
    op: i8,
    at: Moment,
    key: Vec<String>,
    place: Place,
    reach: Moment,
}

/// A captured row: all of its writes in a unit.
struct Net {
    table: u32,
    key: Vec<String>,
    first: First,
    at: Moment,
}

pub(super) async fn take(
    db: &mut PostgresDatabase,
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
        Taking::Fresh => match all_of_few(db, schema, limit).await? {
            Some(portion) => Ok(portion),
            None => {
                db.execute(WALK).await?;
                portion(db, schema, limit, Walk::default()).await
            }
        },
        Taking::Walking(walk) => portion(db, schema, limit, walk).await,
    }
}

/// The whole backlog where it is at most `limit` writes: one unit, in one statement.
async fn all_of_few(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
) -> DbResult<Option<Portion>> {
    let more_than = i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1;
    let rows = db.query(SMALL, &[Wire::INT8], &[&more_than]).await?;
    if rows.is_empty() {
        let left = db
            .query("SELECT EXISTS (SELECT FROM branchline.capture)", &[], &[])
            .await?;
        let any = left
            .first()
            .map(|row| get::<bool>(row, 0))
            .transpose()?
            .unwrap_or_default();
        return Ok(if any {
            None
        } else {
            db.taking = Taking::Done;
            Some(Portion::default())
        });
    }
    let mut writes = rows
        .iter()
        .map(|row| write(row, false))
        .collect::<DbResult<Vec<_>>>()?;
    writes.sort_by_key(|write| write.at);
    db.removing += writes.len() as u64;
    let changes = changes(db, schema, net(writes)).await?;
    db.taking = Taking::Done;
    Ok(Some(Portion {
        changes,
        unreadable: Vec::new(),
        open: false,
        more: false,
    }))
}

async fn portion(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
    mut walk: Walk,
) -> DbResult<Portion> {
    if walk.staged.is_some() {
        return staged(db, schema, limit, walk).await;
    }
    let Some(writes) = walk.unit(db, limit).await? else {
        return staged(db, schema, limit, walk).await;
    };
    let places: Vec<Place> = writes.iter().map(|write| write.place).collect();
    db.removing += places.len() as u64;
    let remove = "DELETE FROM branchline.capture WHERE ctid = ANY ($1)";
    let remove = db.statement(remove, &[Wire::TID_ARRAY]).await?;
    let reads = Reads::prepare(db, schema, net(writes)).await?;
    let client = db.client()?;
    let places: [&(dyn ToSql + Sync); 1] = [&places];
    let (removed, changes) = join(client.execute(&remove, &places), reads.run(client)).await;
    removed.map_err(|e| failed(&e))?;
    let more = walk.more(db, limit).await?;
    db.taking = if more {
        Taking::Walking(walk)
    } else {
        Taking::Done
    };
    Ok(Portion {
        changes: changes?,
        unreadable: Vec::new(),
        open: false,
        more,
    })
}

impl Walk {
    /// The smallest number of whole units with at least `limit` writes (fewer at the end, or before a large unit),
    /// or `None` after staging a large one.
    async fn unit(
        &mut self,
        db: &mut PostgresDatabase,
        limit: usize,
    ) -> DbResult<Option<Vec<Write>>> {
        let mut taken: Vec<Write> = Vec::new();
        let (mut reach, mut clean) = (Moment(i64::MIN), 0);
        while self.more(db, limit).await? {
            let Some(next) = self.fetched.pop_front() else {
                break;
            };
            if reach < next.at {
                clean = taken.len();
            }
            if clean >= limit {
                self.fetched.push_front(next);
                return Ok(Some(taken));
            }
            reach = reach.max(next.reach);
            taken.push(next);
            if taken.len() > limit.saturating_mul(LARGE) {
                if clean > 0 {
                    self.give_back(taken.drain(clean..));
                    return Ok(Some(taken));
                }
                let seen = taken.len() as u64;
                drop(taken);
                self.stage(db, limit, reach, seen).await?;
                return Ok(None);
            }
        }
        Ok(Some(taken))
    }

    fn give_back(&mut self, writes: impl DoubleEndedIterator<Item = Write>) {
        writes
            .rev()
            .for_each(|write| self.fetched.push_front(write));
    }

    /// Whether a write is left; fetches when none is at hand.
    async fn more(&mut self, db: &PostgresDatabase, limit: usize) -> DbResult<bool> {
        if self.fetched.is_empty() && !self.exhausted {
            let rows = fetch(db, "branchline_walk", limit).await?;
            self.exhausted = rows.len() < limit;
            for row in &rows {
                self.fetched.push_back(write(row, true)?);
            }
        }
        Ok(!self.fetched.is_empty())
    }

    /// Walks to the end of a large unit and opens a cursor over its rows.
    async fn stage(
        &mut self,
        db: &PostgresDatabase,
        limit: usize,
        mut reach: Moment,
        seen: u64,
    ) -> DbResult<()> {
        let mut writes = seen;
        while self.more(db, limit).await? {
            let Some(next) = self.fetched.pop_front() else {
                break;
            };
            if reach < next.at {
                self.fetched.push_front(next);
                break;
            }
            reach = reach.max(next.reach);
            writes += 1;
        }
        // Earlier units are removed already, so "up to its end" is this unit.
        db.execute(&format!(
            "DECLARE branchline_unit NO SCROLL CURSOR FOR
             SELECT tbl, key, pg_catalog.max(at), pg_catalog.min(at), pg_catalog.min(at) FILTER (WHERE op = 'I'),
                    pg_catalog.min(at) FILTER (WHERE op = 'X')
             FROM branchline.capture WHERE at <= {} GROUP BY tbl, key",
            reach.literal()
        ))
        .await?;
        self.staged = Some(Staged {
            end: reach,
            fetched: VecDeque::new(),
            exhausted: false,
            writes,
        });
        Ok(())
    }
}

impl Moment {
    /// The moment as an expression. Whole microseconds below 2^53 are exact in the interval's arithmetic.
    fn literal(self) -> String {
        format!(
            "(timestamptz '2000-01-01 00:00:00+00' + {} * interval '1 microsecond')",
            self.0
        )
    }
}

/// The next rows of a large unit.
async fn staged(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
    mut walk: Walk,
) -> DbResult<Portion> {
    let Some(unit) = &mut walk.staged else {
        return Ok(Portion::default());
    };
    while unit.fetched.len() <= limit && !unit.exhausted {
        let rows = fetch(db, "branchline_unit", limit + 1).await?;
        unit.exhausted = rows.len() < limit + 1;
        for row in &rows {
            unit.fetched.push_back(grouped(row)?);
        }
    }
    let some = unit
        .fetched
        .drain(..limit.min(unit.fetched.len()))
        .collect();
    let open = !unit.fetched.is_empty();
    if !open {
        db.removing += unit.writes;
        let end = unit.end.literal();
        db.execute(&format!(
            "CLOSE branchline_unit; DELETE FROM branchline.capture WHERE at <= {end}"
        ))
        .await?;
        walk.staged = None;
    }
    let changes = changes(db, schema, some).await?;
    let more = open || walk.more(db, limit).await?;
    db.taking = if more {
        Taking::Walking(walk)
    } else {
        Taking::Done
    };
    Ok(Portion {
        changes,
        unreadable: Vec::new(),
        open,
        more,
    })
}

async fn fetch(db: &PostgresDatabase, cursor: &str, count: usize) -> DbResult<Vec<Row>> {
    let sql = format!("FETCH FORWARD {count} FROM {cursor}");
    db.client()?
        .query_typed(&sql, &[])
        .await
        .map_err(|e| failed(&e))
}

fn write(row: &Row, walking: bool) -> DbResult<Write> {
    Ok(Write {
        table: get::<i32>(row, 0)?.unsigned_abs(),
        op: get(row, 1)?,
        at: get(row, 2)?,
        key: get(row, 3)?,
        place: if walking {
            get(row, 4)?
        } else {
            Place::default()
        },
        reach: if walking { get(row, 5)? } else { Moment(0) },
    })
}

fn grouped(row: &Row) -> DbResult<Net> {
    let earliest: Moment = get(row, 3)?;
    let first = if get::<Option<Moment>>(row, 5)? == Some(earliest) {
        First::Unknown
    } else if get::<Option<Moment>>(row, 4)? == Some(earliest) {
        First::Inserted
    } else {
        First::Existing
    };
    Ok(Net {
        table: get::<i32>(row, 0)?.unsigned_abs(),
        key: get(row, 1)?,
        first,
        at: get(row, 2)?,
    })
}

/// One entry for each row, in order of its first write.
fn net(writes: Vec<Write>) -> Vec<Net> {
    let mut rows: Vec<Net> = Vec::with_capacity(writes.len());
    let mut places: std::collections::HashMap<(u32, Vec<String>), usize> =
        std::collections::HashMap::with_capacity(writes.len());
    for write in writes {
        let name = (write.table, write.key);
        if let Some(row) = places.get(&name).and_then(|&at| rows.get_mut(at)) {
            row.at = row.at.max(write.at);
            continue;
        }
        let first = match write.op as u8 {
            b'I' => First::Inserted,
            b'X' => First::Unknown,
            _ => First::Existing,
        };
        rows.push(Net {
            table: name.0,
            key: name.1.clone(),
            first,
            at: write.at,
        });
        places.insert(name, rows.len() - 1);
    }
    rows
}

/// Reads the rows as they are in the snapshot.
async fn changes(
    db: &mut PostgresDatabase,
    schema: &Schema,
    nets: Vec<Net>,
) -> DbResult<Vec<Taken>> {
    let reads = Reads::prepare(db, schema, nets).await?;
    reads.run(db.client()?).await
}

/// The reads of a portion: one statement for each table, sent together.
struct Reads<'s> {
    tables: Vec<TableRead<'s>>,
    count: usize,
}

struct TableRead<'s> {
    table: &'s Table,
    statement: Statement,
    /// Place in the portion, and what was captured, beside each key.
    nets: Vec<(usize, First, Moment)>,
    keys: Vec<Key>,
}

impl<'s> Reads<'s> {
    async fn prepare(
        db: &mut PostgresDatabase,
        schema: &'s Schema,
        nets: Vec<Net>,
    ) -> DbResult<Self> {
        let count = nets.len();
        let mut by_table: BTreeMap<TableId, Vec<(usize, Net)>> = BTreeMap::new();
        for (place, net) in nets.into_iter().enumerate() {
            by_table.entry(net.table).or_default().push((place, net));
        }
        let mut tables = Vec::new();
        for (id, nets) in by_table {
            // A table that has left the plan: its last writes concern nobody.
            let Some(table) = schema.table(id) else {
                continue;
            };
            let layout = db.layout(&table.name).await?;
            let sql = format!(
                "SELECT given.place, {} FROM {} JOIN {} r ON {}",
                selection(table, "r"),
                given(table, 1, true),
                layout.relation,
                layout.key_join(table, "r")?
            );
            let statement = db
                .statement_on(&table.name, &sql, &types::key_types(table))
                .await?;
            let mut read = TableRead {
                table,
                statement,
                nets: Vec::new(),
                keys: Vec::new(),
            };
            for (place, net) in nets {
                let texts: Vec<&str> = net.key.iter().map(String::as_str).collect();
                read.keys.push(parse_key(table, &texts)?);
                read.nets.push((place, net.first, net.at));
            }
            tables.push(read);
        }
        Ok(Self { tables, count })
    }

    async fn run(self, client: &tokio_postgres::Client) -> DbResult<Vec<Taken>> {
        let rows = join_all(self.tables.iter().map(|read| read.rows(client))).await;
        let mut changes: Vec<Option<Taken>> = (0..self.count).map(|_| None).collect();
        for (read, rows) in self.tables.into_iter().zip(rows) {
            for (((place, first, at), key), row) in read.nets.into_iter().zip(read.keys).zip(rows?)
            {
                let effect = row.map_or(Effect::Delete(key), Effect::Put);
                if let Some(slot) = changes.get_mut(place) {
                    *slot = Some(Taken {
                        table: read.table.id,
                        effect,
                        first,
                        at: at.micros(),
                        before: None,
                    });
                }
            }
        }
        Ok(changes.into_iter().flatten().collect())
    }
}

impl TableRead<'_> {
    /// The row of each key, where it exists.
    async fn rows(&self, client: &tokio_postgres::Client) -> DbResult<Vec<Option<CoreRow>>> {
        let arrays: Vec<Array<'_>> = types::key_arrays(self.table, &self.keys)?;
        let found = client
            .query(&self.statement, &types::parameters(&arrays))
            .await;
        let found = found.map_err(|e| on_table(&self.table.name, &e))?;
        let mut rows: Vec<Option<CoreRow>> = self.keys.iter().map(|_| None).collect();
        for row in &found {
            let place = usize::try_from(get::<i64>(row, 0)? - 1).unwrap_or(usize::MAX);
            if let Some(slot) = rows.get_mut(place) {
                *slot = Some(types::read_row(self.table, row, 1)?);
            }
        }
        Ok(rows)
    }
}

/// Where a captured write lies in the heap.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    block: u32,
    offset: u16,
}

impl<'a> FromSql<'a> for Place {
    fn from_sql(_: &Wire, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let (block, offset) = raw
            .split_at_checked(4)
            .ok_or("a place of the wrong length")?;
        Ok(Self {
            block: u32::from_be_bytes(block.try_into()?),
            offset: u16::from_be_bytes(offset.try_into()?),
        })
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TID
    }
}

impl ToSql for Place {
    fn to_sql(
        &self,
        _: &Wire,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.block.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        Ok(IsNull::No)
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TID
    }
    to_sql_checked!();
}
