//! The plan of a backlog ([`crate::backlog`]) by time of capture, which outlives the transaction that made it.
//!
//! A write's place in the heap stays the same until it is removed; the plan is forgotten where that may not be so.

use std::ops::{Deref, DerefMut};
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
use crate::backlog::{self, PORTIONS};

/// The oldest writes.
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
pub(super) type Planned = backlog::Planned<Moment, Place>;

/// Where the next unit ends.
pub(super) type End = backlog::End<Moment>;

/// The oldest captured writes.
pub(super) struct Plan {
    backlog: backlog::Plan<Moment, Place>,
    snapshot: String,
    file: Option<u32>,
}

impl Deref for Plan {
    type Target = backlog::Plan<Moment, Place>;

    fn deref(&self) -> &Self::Target {
        &self.backlog
    }
}

impl DerefMut for Plan {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.backlog
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
        let (mut plan, mut last) = backlog::Plan::of(writes, size);
        if let Some(until) = plan.until() {
            let later = db.statement(LATER, &[Wire::TIMESTAMPTZ]).await?;
            each(db.client()?, &later, &[&until], |write| {
                last.note_again(&write);
            })
            .await?;
        }
        plan.settle(&last);
        Ok(Self {
            backlog: plan,
            snapshot,
            file,
        })
    }

    /// Adds what has become visible since the plan was made or renewed. False where it must be made anew.
    pub(super) async fn renew(&mut self, db: &mut PostgresDatabase) -> DbResult<bool> {
        let state = db.statement(STATE, &[]).await?;
        let since = db.statement(SINCE, &[Wire::TEXT, Wire::INT8]).await?;
        let client = db.client()?;
        let many = wide(self.size());
        let ((snapshot, file), fresh) = try_join(
            state_of(client, &state),
            planned(client, &since, &[&self.snapshot, &many]),
        )
        .await?;
        self.snapshot = snapshot;
        Ok(file == self.file && self.add(fresh))
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
        act(read(&row)?);
    }
    Ok(())
}

fn read(row: &Row) -> DbResult<Planned> {
    let row_of = (get(row, 2)?, get(row, 3)?);
    Ok(Planned::new(
        get(row, 0)?,
        get(row, 4)?,
        get::<Tx>(row, 1)?.0,
        row_of,
    ))
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
