//! Where a unit ends that is larger than a plan: the server sorts and walks, so that nothing of it is held here.

use branchline_core::port::DbResult;
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::capture::Moment;
use super::connection::PostgresDatabase;
use super::take::{fetch, wide};

/// Portions that are walked at first.
const PART: usize = 512;
/// How much larger the next part is where one held no clean cut.
const GROWTH: usize = 4;

/// How many writes the first unit has, and the time of its last.
pub(super) async fn to_end(db: &mut PostgresDatabase, limit: usize) -> DbResult<(usize, Moment)> {
    let mut size = limit.saturating_mul(PART);
    loop {
        let counted = db
            .query(
                "SELECT pg_catalog.count(*) FROM (SELECT FROM branchline.capture LIMIT $1) AS counted",
                &[Wire::INT8],
                &[&(wide(size) + 1)],
            )
            .await?;
        let count = counted.first().map(|row| get::<i64>(row, 0)).transpose()?;
        let whole = count.unwrap_or(0) <= wide(size);
        db.execute(&part(size)).await?;
        let (mut seen, mut reach) = (0, Moment(i64::MIN));
        let ended = 'walk: loop {
            let rows = fetch(db, "branchline_walk", limit).await?;
            for row in &rows {
                let at = get(row, 0)?;
                if seen > 0 && reach < at {
                    break 'walk true;
                }
                reach = reach.max(get(row, 1)?);
                seen += 1;
            }
            if rows.len() < limit {
                break whole;
            }
        };
        db.execute("CLOSE branchline_walk").await?;
        if ended {
            return Ok((seen, reach));
        }
        size = size.saturating_mul(GROWTH);
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
             SELECT tbl, at, key, tx FROM branchline.capture ORDER BY at LIMIT {size}),
         near AS MATERIALIZED (
             SELECT tbl, at, key, tx FROM part
             UNION ALL
             SELECT c.tbl, c.at, c.key, c.tx FROM branchline.capture c
             WHERE c.at >= (SELECT at FROM part ORDER BY at DESC LIMIT 1)
               AND c.tx <= (SELECT tx FROM part ORDER BY tx DESC LIMIT 1) AND c.tx IN (SELECT tx FROM part)
             UNION ALL
             SELECT c.tbl, c.at, c.key, c.tx FROM branchline.capture c
             WHERE c.at >= (SELECT at FROM part ORDER BY at DESC LIMIT 1)
               AND pg_catalog.hash_array(c.key) IN (SELECT pg_catalog.hash_array(key) FROM part))
         SELECT w.at, greatest(w.at, t.last, k.last) AS reach
         FROM part w
         LEFT JOIN (SELECT tx, pg_catalog.max(at) AS last FROM near
                    GROUP BY tx HAVING pg_catalog.count(*) > 1) AS t ON t.tx = w.tx
         LEFT JOIN (SELECT tbl, key, pg_catalog.max(at) AS last FROM near
                    GROUP BY tbl, key HAVING pg_catalog.count(*) > 1) AS k ON k.tbl = w.tbl AND k.key = w.key
         ORDER BY w.at;
         RESET enable_mergejoin; RESET enable_nestloop"
    )
}
