//! Taking captured writes in whole units of visibility (SETTLED 2), in the order of a [`Plan`].
//!
//! While the caller works on a portion, the server removes its writes from the capture, reads the rows of the next one and
//! the writes of the one after that: it never waits for the office. A unit that is much larger than a portion is not held
//! in memory: it is read again by key, portion by portion.
//!
//! The transaction's snapshot stands still, so a cursor over it stays right while writes are removed behind it.

use std::collections::VecDeque;

use branchline_core::office::PORTIONS_PER_TAKE;
use branchline_core::port::{DatabaseError, DbResult, Portion, Purpose};
use branchline_core::schema::Schema;
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type as Wire};

use super::books::get;
use super::capture::Moment;
use super::connection::{Param, PostgresDatabase, started};
use super::error::failed;
use super::net::{Net, Place, Write, net};
use super::plan::{End, Plan, Planned};
use super::reads::{Reads, befores, changes};
use super::walk;

const SMALL: &str = "DELETE FROM branchline.capture
WHERE (SELECT pg_catalog.count(*) FROM (SELECT FROM branchline.capture LIMIT $1) AS counted) < $1
RETURNING tbl, op, at, key, ctid, old";
const WRITES: &str =
    "SELECT tbl, op, at, key, ctid, old FROM branchline.capture WHERE ctid = ANY ($1)";
const REMOVE: &str = "DELETE FROM branchline.capture WHERE ctid = ANY ($1)";

/// How far the open transaction has taken.
#[derive(Default)]
pub(super) enum Taking {
    /// Nothing taken yet.
    #[default]
    Fresh,
    /// Following the plan.
    Going(Going),
    /// Nothing is left in this snapshot.
    Done,
}

#[derive(Default)]
pub(super) struct Going {
    staged: Option<Staged>,
    /// The next portion.
    reading: Option<Reading>,
    /// The writes of the one after it.
    ahead: Option<Ahead>,
    /// Portions taken so far.
    portions: usize,
}

/// A large unit being read by key.
struct Staged {
    /// The time of its last write.
    end: Moment,
    fetched: VecDeque<Net>,
    exhausted: bool,
    writes: usize,
}

/// A portion's writes, on their way. A task of its own receives them, as it does a portion's rows: the connection hands
/// out answers in turn, and what was asked for later would wait for them.
struct Ahead {
    count: usize,
    rows: JoinHandle<DbResult<Vec<Row>>>,
}

/// A portion whose rows are on their way.
struct Reading {
    places: Vec<Place>,
    portion: JoinHandle<DbResult<Portion>>,
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
        Taking::Fresh => {
            if let Some(mut plan) = db.plan.take()
                && !plan.is_empty()
                && plan.renew(db).await?
            {
                db.plan = Some(plan);
            } else if let Some(portion) = all_of_few(db, schema, limit).await? {
                return Ok(portion);
            }
            portion(db, schema, limit, Going::default()).await
        }
        Taking::Going(going) => portion(db, schema, limit, going).await,
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
        if any(db).await? {
            return Ok(None);
        }
        db.taking = Taking::Done;
        return Ok(Some(Portion::default()));
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

/// Whether anything is captured.
async fn any(db: &mut PostgresDatabase) -> DbResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM branchline.capture)";
    let rows = db.query(sql, &[], &[]).await?;
    let any = rows.first().map(|row| get::<bool>(row, 0)).transpose()?;
    Ok(any.unwrap_or_default())
}

async fn portion(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
    mut going: Going,
) -> DbResult<Portion> {
    if going.staged.is_some() {
        return staged(db, schema, limit, going).await;
    }
    loop {
        let plan = match db.plan.take() {
            Some(plan) if !plan.is_empty() => plan,
            _ => Plan::make(db, limit).await?,
        };
        let (end, fresh) = (plan.end(0, limit), plan.is_fresh());
        db.plan = Some(plan);
        let (writes, end) = match end {
            End::After(count) => return planned(db, schema, limit, count, going).await,
            End::Large(writes, end) => (writes, end),
            End::Beyond => {
                db.plan = None;
                if !fresh {
                    continue;
                }
                walk::to_end(db, limit).await?
            }
        };
        going.staged = Some(Staged::open(db, writes, end).await?);
        return staged(db, schema, limit, going).await;
    }
}

/// The portion of the plan's next writes.
async fn planned(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
    count: usize,
    mut going: Going,
) -> DbResult<Portion> {
    let reading = match going.reading.take() {
        Some(reading) if reading.places.len() == count => reading,
        _ => {
            going.ahead = None;
            let ahead = Ahead::send(db, 0, count).await?;
            Reading::begin(db, schema, 0, ahead).await?
        }
    };
    db.removing += count as u64;
    let places: Vec<Param> = vec![Box::new(reading.places)];
    db.send(REMOVE, &[Wire::TID_ARRAY], places, 0).await?;
    going.portions += 1;
    read_ahead(db, schema, limit, count, &mut going).await?;
    let Some(plan) = &mut db.plan else {
        return Err(moved());
    };
    plan.take(count);
    let more = plan.more();
    if !more {
        db.plan = None;
    }
    db.taking = if more {
        Taking::Going(going)
    } else {
        Taking::Done
    };
    let portion = reading.portion.await;
    let portion = portion.map_err(|ended| DatabaseError::Other(ended.to_string()))??;
    Ok(Portion { more, ..portion })
}

/// Asks for the portion after the next `count` writes, and for the writes of the one after it. Not beyond what a
/// transaction takes: it would only wait for what nobody wants.
async fn read_ahead(
    db: &mut PostgresDatabase,
    schema: &Schema,
    limit: usize,
    count: usize,
    going: &mut Going,
) -> DbResult<()> {
    let left = PORTIONS_PER_TAKE.saturating_sub(going.portions);
    let end =
        |db: &PostgresDatabase, after| match db.plan.as_ref().map(|plan| plan.end(after, limit)) {
            Some(End::After(count)) => count,
            _ => 0,
        };
    let next = end(db, count);
    if left < 1 || next == 0 {
        return Ok(());
    }
    let ahead = match going.ahead.take() {
        Some(ahead) if ahead.count == next => ahead,
        _ => Ahead::send(db, count, next).await?,
    };
    going.reading = Some(Reading::begin(db, schema, count, ahead).await?);
    let after = end(db, count + next);
    if left > 1 && after > 0 {
        going.ahead = Some(Ahead::send(db, count + next, after).await?);
    }
    Ok(())
}

/// What is planned is not where it was.
fn moved() -> DatabaseError {
    DatabaseError::Busy("the captured writes were moved while they were taken".to_owned())
}

impl Reading {
    /// Asks for the rows of the plan's writes after the first `after`.
    async fn begin(
        db: &mut PostgresDatabase,
        schema: &Schema,
        after: usize,
        ahead: Ahead,
    ) -> DbResult<Self> {
        let rows = ahead.rows.await;
        let rows = rows.map_err(|ended| DatabaseError::Other(ended.to_string()))??;
        let mut writes = rows
            .iter()
            .map(Write::with_old)
            .collect::<DbResult<Vec<_>>>()?;
        drop(rows);
        writes.sort_unstable_by_key(|write| (write.at, write.place));
        let Some(plan) = &db.plan else {
            return Err(moved());
        };
        let turns = |planned: &Planned| (planned.at, planned.place);
        if !plan
            .some(after, ahead.count)
            .map(turns)
            .eq(writes.iter().map(|write| (write.at, write.place)))
        {
            return Err(moved());
        }
        let places = writes.iter().map(|write| write.place).collect();
        let reads = Reads::prepare(db, schema, net(writes)).await?;
        let portion = tokio::spawn(started(reads.run(db.shared_client()?)).await);
        Ok(Self { places, portion })
    }
}

impl Ahead {
    /// Asks for so many of the plan's writes after the first `after`.
    async fn send(db: &mut PostgresDatabase, after: usize, count: usize) -> DbResult<Self> {
        let plan = db.plan.iter();
        let places: Vec<Place> = plan
            .flat_map(|plan| plan.some(after, count))
            .map(|write| write.place)
            .collect();
        let statement = db.statement(WRITES, &[Wire::TID_ARRAY]).await?;
        let client = db.shared_client()?;
        let rows = async move {
            let places: [&(dyn ToSql + Sync); 1] = [&places];
            let rows = client.query(&statement, &places).await;
            rows.map_err(|e| failed(&e))
        };
        let rows = tokio::spawn(started(rows).await);
        Ok(Self { count, rows })
    }
}

impl Staged {
    /// Opens a cursor over a unit's rows. Earlier units are removed already, so "up to its end" is this unit.
    async fn open(db: &mut PostgresDatabase, writes: usize, end: Moment) -> DbResult<Self> {
        db.execute(&format!(
            "DECLARE branchline_unit NO SCROLL CURSOR FOR
             SELECT tbl, op, last, key, place FROM (
                 SELECT tbl, op, key, ctid AS place, pg_catalog.max(at) OVER written AS last,
                        pg_catalog.row_number() OVER (written ORDER BY at, ctid) AS turn
                 FROM branchline.capture WHERE at <= {}
                 WINDOW written AS (PARTITION BY tbl, key)) AS writes
             WHERE turn = 1",
            end.literal()
        ))
        .await?;
        Ok(Self {
            end,
            fetched: VecDeque::new(),
            exhausted: false,
            writes,
        })
    }
}

pub(super) fn wide(count: usize) -> i64 {
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
    mut going: Going,
) -> DbResult<Portion> {
    let Some(unit) = &mut going.staged else {
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
        db.removing += unit.writes as u64;
        let end = unit.end.literal();
        db.execute(&format!(
            "CLOSE branchline_unit; DELETE FROM branchline.capture WHERE at <= {end}"
        ))
        .await?;
        if let Some(plan) = &mut db.plan {
            plan.take(unit.writes);
        }
        going.staged = None;
    }
    let portion = changes(db, schema, some).await?;
    let more = match &db.plan {
        _ if open => true,
        Some(plan) => plan.more(),
        None => any(db).await?,
    };
    db.taking = if more {
        Taking::Going(going)
    } else {
        Taking::Done
    };
    Ok(Portion {
        open,
        more,
        ..portion
    })
}

pub(super) async fn fetch(db: &PostgresDatabase, cursor: &str, count: usize) -> DbResult<Vec<Row>> {
    let sql = format!("FETCH FORWARD {count} FROM {cursor}");
    db.client()?
        .query_typed(&sql, &[])
        .await
        .map_err(|e| failed(&e))
}
