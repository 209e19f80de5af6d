//! In which order captured writes are taken, and where units of visibility end (SETTLED 2).
//!
//! Every transaction and every row spans an interval, from its first captured write to its last. A cut between two
//! writes is clean when no interval spans it. The writes are gone through in order of time with the end of each one's
//! intervals (its *reach*); the cut before a write is clean when all reaches so far lie before it.
//!
//! Of a large backlog only the oldest writes are planned; the others are merely looked through, whether they belong to a
//! transaction or row of the plan. Its end is not a clean cut, so its last writes begin the next one.
//!
//! A plan outlives the transaction that made it, as looking through a backlog costs as much as taking from it: the next
//! one adds what has become visible since. A write's place in the heap stays the same until it is removed; the plan is
//! forgotten where that may not be so.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::pin;

use branchline_core::port::DbResult;
use futures_util::{TryStreamExt, future::try_join};
use tokio_postgres::types::{FromSql, ToSql, Type as Wire};
use tokio_postgres::{Client, Row, Statement};

use super::books::get;
use super::capture::Moment;
use super::connection::PostgresDatabase;
use super::error::failed;
use super::net::Place;
use super::take::wide;

/// Portions in a plan.
const PORTIONS: usize = 128;
/// A unit of more than so many portions is not held whole.
const LARGE: usize = 4;

/// The oldest writes. The hash stands for the key: rows that share one are taken for one row, so that a unit may be
/// larger than it must be, never smaller. Of 64 bits, since of 32 two in a hundred thousand rows are the same.
const OLDEST: &str =
    "SELECT at, tx, tbl, pg_catalog.hash_array_extended(key, 0), ctid FROM branchline.capture
ORDER BY at, ctid LIMIT $1";

/// What identifies the state that a plan was made of: what its transaction saw, and the capture's file.
const STATE: &str = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text,
    pg_catalog.pg_relation_filenode('branchline.capture'::pg_catalog.regclass)";

/// The later writes, each held here against what is planned: a look that needs no memory of the server. A join there costs
/// about as much, and one condition with `OR` is a list that is gone through for each write, once it is larger than `work_mem`.
const LATER: &str =
    "SELECT at, tx, tbl, pg_catalog.hash_array_extended(key, 0), ctid FROM branchline.capture
WHERE at >= $1";

/// Writes that a snapshot did not show. Its lowest number is looked up once, by a query of its own, and passes over nearly all.
const SINCE: &str =
    "SELECT at, tx, tbl, pg_catalog.hash_array_extended(key, 0), ctid FROM branchline.capture
WHERE tx >= (SELECT pg_catalog.pg_snapshot_xmin($1::pg_catalog.text::pg_catalog.pg_snapshot))
  AND NOT pg_catalog.pg_visible_in_snapshot(tx, $1::pg_catalog.text::pg_catalog.pg_snapshot)
LIMIT $2";

/// A captured write in the plan.
#[derive(Clone, Copy)]
pub(super) struct Planned {
    pub(super) at: Moment,
    /// The time of the last write of its transaction or row.
    reach: Moment,
    tx: u64,
    /// Its table and the hash of its key.
    row: (i32, i64),
    pub(super) place: Place,
}

/// Where the next unit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// After so many planned writes: whole units, about as many as were asked for.
    After(usize),
    /// After so many planned writes, too many to be held; and the time of the last.
    Large(usize, Moment),
    /// Beyond the plan.
    Beyond,
}

/// The oldest captured writes.
pub(super) struct Plan {
    writes: VecDeque<Planned>,
    /// No others are captured.
    whole: bool,
    /// The time of its last write when it was made; later ones are planned only where it is whole.
    until: Moment,
    /// How many were asked for.
    size: usize,
    snapshot: String,
    file: Option<u32>,
}

impl Planned {
    fn read(row: &Row) -> DbResult<Self> {
        let at = get(row, 0)?;
        Ok(Self {
            at,
            reach: at,
            tx: get::<Tx>(row, 1)?.0,
            row: (get(row, 2)?, get(row, 3)?),
            place: get(row, 4)?,
        })
    }

    /// By which they are taken.
    fn turn(&self) -> (Moment, Place) {
        (self.at, self.place)
    }
}

impl Plan {
    /// Plans the oldest writes: about so many portions of this size.
    pub(super) async fn make(db: &mut PostgresDatabase, limit: usize) -> DbResult<Self> {
        let size = limit.saturating_mul(PORTIONS);
        let oldest = db.statement(OLDEST, &[Wire::INT8]).await?;
        let state = db.statement(STATE, &[]).await?;
        // The application's server should not give it several processes at a time.
        db.send_all("SET LOCAL max_parallel_workers_per_gather TO 0".to_owned())
            .await?;
        let client = db.client()?;
        let one_more = wide(size) + 1;
        let (state, writes) = try_join(
            state_of(client, &state),
            planned(client, &oldest, &[&one_more]),
        )
        .await?;
        let (snapshot, file) = state;
        let mut plan = Self {
            whole: writes.len() <= size,
            writes: writes.into(),
            until: Moment(i64::MAX),
            size,
            snapshot,
            file,
        };
        plan.writes.truncate(size);
        let mut last = Last::default();
        plan.writes.iter().for_each(|write| last.note(write));
        if !plan.whole {
            plan.until = plan.writes.back().map_or(plan.until, |write| write.at);
            let later = db.statement(LATER, &[Wire::TIMESTAMPTZ]).await?;
            each(db.client()?, &later, &[&plan.until], |write| {
                last.note_again(&write);
            })
            .await?;
        }
        plan.writes.iter_mut().for_each(|write| last.extend(write));
        Ok(plan)
    }

    /// Adds what has become visible since the plan was made or renewed. False where it must be made anew.
    pub(super) async fn renew(&mut self, db: &mut PostgresDatabase) -> DbResult<bool> {
        let state = db.statement(STATE, &[]).await?;
        let since = db.statement(SINCE, &[Wire::TEXT, Wire::INT8]).await?;
        let client = db.client()?;
        let many = wide(self.size);
        let ((snapshot, file), mut fresh) = try_join(
            state_of(client, &state),
            planned(client, &since, &[&self.snapshot, &many]),
        )
        .await?;
        // Of a write between planned ones it is not known whether its row is written again beyond the plan.
        let between = !self.whole && fresh.iter().any(|write| write.at <= self.until);
        if file != self.file || fresh.len() >= self.size || between {
            return Ok(false);
        }
        self.snapshot = snapshot;
        if fresh.is_empty() {
            return Ok(true);
        }
        let mut last = Last::default();
        fresh.iter().for_each(|write| last.note(write));
        for write in &self.writes {
            last.note_again(write);
        }
        self.writes.iter_mut().for_each(|write| last.extend(write));
        if self.whole {
            fresh.iter_mut().for_each(|write| last.extend(write));
            fresh.sort_unstable_by_key(Planned::turn);
            let after = self.writes.back().map(Planned::turn);
            self.writes.extend(&fresh);
            if after > fresh.first().map(Planned::turn) {
                self.writes
                    .make_contiguous()
                    .sort_unstable_by_key(Planned::turn);
            }
            if self.writes.len() > self.size.saturating_mul(2) {
                self.writes.truncate(self.size);
                self.whole = false;
                self.until = self.writes.back().map_or(self.until, |write| write.at);
            }
        }
        Ok(true)
    }

    /// Whether nothing of it is left.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether anything is captured that was not taken.
    pub(super) fn more(&self) -> bool {
        !self.writes.is_empty() || !self.whole
    }

    /// Whether nothing was taken of it yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.writes.len() >= self.size
    }

    /// Where, of the writes after the first `after`, which are whole units, the smallest number of whole units ends that
    /// has at least `limit` writes; fewer at the end, or before a large unit.
    pub(super) fn end(&self, after: usize, limit: usize) -> End {
        let (mut reach, mut clean) = (Moment(i64::MIN), 0);
        for (place, write) in self.writes.iter().skip(after).enumerate() {
            if reach < write.at {
                clean = place;
                if clean > limit.saturating_mul(LARGE) {
                    return End::Large(clean, reach);
                }
                if clean >= limit {
                    return End::After(clean);
                }
            }
            if clean > 0 && place > limit.saturating_mul(LARGE) {
                return End::After(clean);
            }
            reach = reach.max(write.reach);
        }
        match self.writes.len().saturating_sub(after) {
            all if self.whole && all <= limit.saturating_mul(LARGE) => End::After(all),
            _ if clean > 0 => End::After(clean),
            all if self.whole => End::Large(all, reach),
            _ => End::Beyond,
        }
    }

    /// So many writes after the first `after`.
    pub(super) fn some(&self, after: usize, count: usize) -> impl Iterator<Item = &Planned> {
        self.writes.iter().skip(after).take(count)
    }

    /// Forgets the next so many writes: they are taken.
    pub(super) fn take(&mut self, count: usize) {
        self.writes.drain(..count.min(self.writes.len()));
    }
}

/// The last write of each transaction and of each row.
#[derive(Default)]
struct Last {
    of_tx: HashMap<u64, Moment, BuildHasherDefault<Mixed>>,
    of_row: HashMap<(i32, i64), Moment, BuildHasherDefault<Mixed>>,
}

/// Mixes a few numbers, of which one is a hash already or counts up: a backlog is hashed several times over.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 by the golden ratio; the upper bits depend on all, so they are turned to the lower end.
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn write_i32(&mut self, number: i32) {
        self.write_i64(number.into());
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

impl Last {
    fn note(&mut self, write: &Planned) {
        let of_tx = self.of_tx.entry(write.tx).or_insert(write.at);
        *of_tx = write.at.max(*of_tx);
        let of_row = self.of_row.entry(write.row).or_insert(write.at);
        *of_row = write.at.max(*of_row);
    }

    /// Notes another write where its transaction or row is known.
    fn note_again(&mut self, write: &Planned) {
        if let Some(of_tx) = self.of_tx.get_mut(&write.tx) {
            *of_tx = write.at.max(*of_tx);
        }
        if let Some(of_row) = self.of_row.get_mut(&write.row) {
            *of_row = write.at.max(*of_row);
        }
    }

    fn extend(&self, write: &mut Planned) {
        let known = [self.of_tx.get(&write.tx), self.of_row.get(&write.row)];
        let last = known.into_iter().flatten().max();
        write.reach = write.reach.max(last.copied().unwrap_or(write.reach));
    }
}

async fn state_of(client: &Client, statement: &Statement) -> DbResult<(String, Option<u32>)> {
    let row = client.query_one(statement, &[]).await;
    let row = row.map_err(|e| failed(&e))?;
    Ok((get(&row, 0)?, get(&row, 1)?))
}

async fn planned(
    client: &Client,
    statement: &Statement,
    values: &[&(dyn ToSql + Sync)],
) -> DbResult<Vec<Planned>> {
    let mut writes = Vec::new();
    each(client, statement, values, |write| writes.push(write)).await?;
    Ok(writes)
}

/// Reads writes one by one: their rows would take several times the memory.
async fn each(
    client: &Client,
    statement: &Statement,
    values: &[&(dyn ToSql + Sync)],
    mut act: impl FnMut(Planned),
) -> DbResult<()> {
    let rows = client.query_raw(statement, values.iter().copied()).await;
    let mut rows = pin!(rows.map_err(|e| failed(&e))?);
    while let Some(row) = rows.try_next().await.map_err(|e| failed(&e))? {
        act(Planned::read(&row)?);
    }
    Ok(())
}

/// A transaction's number.
struct Tx(u64);

impl<'a> FromSql<'a> for Tx {
    fn from_sql(_: &Wire, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::XID8
    }
}
