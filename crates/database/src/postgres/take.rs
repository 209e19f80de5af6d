//! Taking captured writes in whole units of visibility (SETTLED 2).
//!
//! Every transaction and every row spans an interval, from its first captured write to its last. A cut between two
//! writes is clean when no interval spans it. The writes are walked in order of time with the end of each one's
//! intervals (its *reach*); the cut before a write is clean when all reaches so far lie before it. A unit that is much
//! larger than a portion is not held in memory: it is walked to its end, then read again by key, portion by portion.
//!
//! Of a large backlog only the oldest writes are sorted and walked, the *part*; the others are merely asked whether
//! they belong to a transaction or row of it. Its end is not a clean cut, so the last writes of a part begin the next.
//!
//! The transaction's snapshot stands still, so a cursor over it stays right while writes are removed behind it.

use std::collections::VecDeque;

use branchline_core::port::{DatabaseError, DbResult, Portion, Purpose};
use branchline_core::schema::Schema;
use futures_util::future::join;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type as Wire};

use super::books::get;
use super::capture::Moment;
use super::connection::PostgresDatabase;
use super::error::failed;
use super::net::{Net, Place, Write, net};
use super::reads::{Reads, befores, changes};

/// A unit of more than so many portions is staged by key instead of held whole.
const LARGE: usize = 4;
/// Portions in a part of the backlog.
const PART: usize = 32;
/// How much larger the next part is where one held no clean cut.
const GROWTH: usize = 4;

const SMALL: &str = "DELETE FROM branchline.capture
WHERE (SELECT pg_catalog.count(*) FROM (SELECT FROM branchline.capture LIMIT $1) AS counted) < $1
RETURNING tbl, op, at, key, ctid, old";

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
    /// The part's size in writes; 0 before the first.
    size: usize,
    /// Whether the part is all that is left.
    whole: bool,
    /// Whether the part's cursor has no more.
    exhausted: bool,
    /// Whether a unit ended in this part.
    cut: bool,
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
    // Only in a transaction that has surely begun.
    db.answers().await?;
    let taken = next(db, schema, limit.max(1)).await;
    if let Err(DatabaseError::Mismatch { .. }) = &taken {
        // The table may have been altered since it was looked up.
        db.forget_layouts();
    }
    taken
}

async fn next(db: &mut PostgresDatabase, schema: &Schema, limit: usize) -> DbResult<Portion> {
    match std::mem::take(&mut db.taking) {
        Taking::Done => {
            db.taking = Taking::Done;
            Ok(Portion::default())
        }
        Taking::Fresh => match all_of_few(db, schema, limit).await? {
            Some(portion) => Ok(portion),
            None => portion(db, schema, limit, Walk::default()).await,
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
    let rows = db
        .query(SMALL, &[Wire::INT8], &[&(wide(limit) + 1)])
        .await?;
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
        .map(Write::with_old)
        .collect::<DbResult<Vec<_>>>()?;
    writes.sort_by_key(|write| write.at);
    db.removing += writes.len() as u64;
    let portion = changes(db, schema, net(writes)).await?;
    db.taking = Taking::Done;
    Ok(Some(portion))
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
    let mut nets = net(writes);
    befores(db, schema, &mut nets).await?;
    let remove = "DELETE FROM branchline.capture WHERE ctid = ANY ($1)";
    let remove = db.statement(remove, &[Wire::TID_ARRAY]).await?;
    let reads = Reads::prepare(db, schema, nets).await?;
    let client = db.client()?;
    let places: [&(dyn ToSql + Sync); 1] = [&places];
    let (removed, portion) = join(client.execute(&remove, &places), reads.run(client)).await;
    removed.map_err(|e| failed(&e))?;
    let more = walk.more(db, limit).await?;
    db.taking = if more {
        Taking::Walking(walk)
    } else {
        Taking::Done
    };
    Ok(Portion { more, ..portion? })
}

impl Walk {
    /// The smallest number of whole units with at least `limit` writes (fewer at the end, or before a large unit),
    /// or `None` after staging a large one.
    async fn unit(
        &mut self,
        db: &mut PostgresDatabase,
        limit: usize,
    ) -> DbResult<Option<Vec<Write>>> {
        loop {
            let mut taken: Vec<Write> = Vec::new();
            let (mut reach, mut clean) = (Moment(i64::MIN), 0);
            while let Some(next) = self.next(db, limit).await? {
                if reach < next.at {
                    clean = taken.len();
                }
                if clean >= limit {
                    self.fetched.push_front(next);
                    break;
                }
                reach = reach.max(next.reach);
                taken.push(next);
                if taken.len() > limit.saturating_mul(LARGE) {
                    if clean > 0 {
                        break;
                    }
                    let seen = taken.len() as u64;
                    drop(taken);
                    self.stage(db, limit, reach, seen).await?;
                    return Ok(None);
                }
            }
            if self.whole && self.exhausted && self.fetched.is_empty() {
                return Ok(Some(taken));
            }
            if clean > 0 {
                self.cut = true;
                let rest = taken.drain(clean..).rev();
                rest.for_each(|write| self.fetched.push_front(write));
                return Ok(Some(taken));
            }
            drop(taken);
            self.open(db, limit).await?;
        }
    }

    /// Whether a write is left.
    async fn more(&mut self, db: &PostgresDatabase, limit: usize) -> DbResult<bool> {
        self.fetch(db, limit).await?;
        Ok(!self.fetched.is_empty() || !self.whole)
    }

    /// The part's next write.
    async fn next(&mut self, db: &PostgresDatabase, limit: usize) -> DbResult<Option<Write>> {
        self.fetch(db, limit).await?;
        Ok(self.fetched.pop_front())
    }

    async fn fetch(&mut self, db: &PostgresDatabase, limit: usize) -> DbResult<()> {
        if self.size > 0 && self.fetched.is_empty() && !self.exhausted {
            let rows = fetch(db, "branchline_walk", limit).await?;
            self.exhausted = rows.len() < limit;
            for row in &rows {
                self.fetched.push_back(Write::with_reach(row)?);
            }
        }
        Ok(())
    }

    /// Begins anew with the oldest writes that are left: more of them, if no unit ended in the part before.
    async fn open(&mut self, db: &mut PostgresDatabase, limit: usize) -> DbResult<()> {
        let before = match self.size {
            0 => "",
            _ => "CLOSE branchline_walk;",
        };
        self.size = match self.size {
            0 => limit.saturating_mul(PART),
            same if self.cut => same,
            small => small.saturating_mul(GROWTH),
        };
        let counted = db
            .query(
                "SELECT pg_catalog.count(*) FROM (SELECT FROM branchline.capture LIMIT $1) AS counted",
                &[Wire::INT8],
                &[&(wide(self.size) + 1)],
            )
            .await?;
        let count = counted.first().map(|row| get::<i64>(row, 0)).transpose()?;
        self.whole = count.unwrap_or(0) <= wide(self.size);
        db.execute(&format!("{before} {}", part(self.size))).await?;
        (self.fetched, self.exhausted, self.cut) = (VecDeque::new(), false, false);
        Ok(())
    }

    /// Walks to the end of a large unit and opens a cursor over its rows.
    async fn stage(
        &mut self,
        db: &mut PostgresDatabase,
        limit: usize,
        mut reach: Moment,
        mut seen: u64,
    ) -> DbResult<()> {
        loop {
            match self.next(db, limit).await? {
                Some(next) if seen > 0 && reach < next.at => {
                    self.fetched.push_front(next);
                    break;
                }
                Some(next) => {
                    reach = reach.max(next.reach);
                    seen += 1;
                }
                None if self.whole => break,
                None => {
                    self.open(db, limit).await?;
                    (reach, seen) = (Moment(i64::MIN), 0);
                }
            }
        }
        self.cut = true;
        // Earlier units are removed already, so "up to its end" is this unit.
        db.execute(&format!(
            "DECLARE branchline_unit NO SCROLL CURSOR FOR
             SELECT tbl, op, last, key, place FROM (
                 SELECT tbl, op, key, ctid AS place, pg_catalog.max(at) OVER written AS last,
                        pg_catalog.row_number() OVER (written ORDER BY at, ctid) AS turn
                 FROM branchline.capture WHERE at <= {}
                 WINDOW written AS (PARTITION BY tbl, key)) AS writes
             WHERE turn = 1",
            reach.literal()
        ))
        .await?;
        self.staged = Some(Staged {
            end: reach,
            fetched: VecDeque::new(),
            exhausted: false,
            writes: seen,
        });
        Ok(())
    }
}

/// Opens the cursor over the oldest writes. The rest is looked through once, by a number, not by key: *near* are the part
/// and what may belong to its transactions and rows.
fn part(size: usize) -> String {
    format!(
        "SET LOCAL enable_mergejoin TO off; SET LOCAL enable_nestloop TO off; SET LOCAL cursor_tuple_fraction TO 1;
         SET LOCAL work_mem TO '32MB';
         DECLARE branchline_walk NO SCROLL CURSOR FOR
         WITH part AS MATERIALIZED (
             SELECT tbl, op, at, key, ctid AS place, tx FROM branchline.capture ORDER BY at LIMIT {size}),
         near AS MATERIALIZED (
             SELECT tbl, at, key, tx FROM part
             UNION ALL
             SELECT c.tbl, c.at, c.key, c.tx FROM branchline.capture c
             WHERE c.at >= (SELECT at FROM part ORDER BY at DESC LIMIT 1)
               AND (c.tx <= (SELECT tx FROM part ORDER BY tx DESC LIMIT 1) AND c.tx IN (SELECT tx FROM part)
                    OR pg_catalog.hash_array(c.key) IN (SELECT pg_catalog.hash_array(key) FROM part)))
         SELECT w.tbl, w.op, w.at, w.key, w.place, greatest(w.at, t.last, k.last) AS reach
         FROM part w
         LEFT JOIN (SELECT tx, pg_catalog.max(at) AS last FROM near
                    GROUP BY tx HAVING pg_catalog.count(*) > 1) AS t ON t.tx = w.tx
         LEFT JOIN (SELECT tbl, key, pg_catalog.max(at) AS last FROM near
                    GROUP BY tbl, key HAVING pg_catalog.count(*) > 1) AS k ON k.tbl = w.tbl AND k.key = w.key
         ORDER BY w.at, w.place;
         RESET enable_mergejoin; RESET enable_nestloop"
    )
}

fn wide(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX - 1)
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
            unit.fetched.push_back(Net::of(row)?);
        }
    }
    let mut some: Vec<Net> = unit
        .fetched
        .drain(..limit.min(unit.fetched.len()))
        .collect();
    let open = !unit.fetched.is_empty();
    befores(db, schema, &mut some).await?;
    if !open {
        db.removing += unit.writes;
        let end = unit.end.literal();
        db.execute(&format!(
            "CLOSE branchline_unit; DELETE FROM branchline.capture WHERE at <= {end}"
        ))
        .await?;
        walk.staged = None;
    }
    let portion = changes(db, schema, some).await?;
    let more = open || walk.more(db, limit).await?;
    db.taking = if more {
        Taking::Walking(walk)
    } else {
        Taking::Done
    };
    Ok(Portion {
        open,
        more,
        ..portion
    })
}

async fn fetch(db: &PostgresDatabase, cursor: &str, count: usize) -> DbResult<Vec<Row>> {
    let sql = format!("FETCH FORWARD {count} FROM {cursor}");
    db.client()?
        .query_typed(&sql, &[])
        .await
        .map_err(|e| failed(&e))
}
