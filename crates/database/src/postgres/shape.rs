//! A fingerprint of how the shared tables are defined.
//!
//! An `ALTER` that rewrites a table is not safe for old snapshots: to them the table is empty, and every captured row
//! would look deleted. So a transaction that takes locks the tables against it before it has a snapshot.

use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::Schema;
use futures_util::future::join;
use tokio_postgres::types::{ToSql, Type as Wire};

use super::books::get;
use super::connection::PostgresDatabase;
use super::ddl::{names, relation};
use super::error::{failed, on_table};

/// How long it waits for an `ALTER` of the application.
const PATIENCE: &str = "100ms";

/// The tables that [`super::catalog`] would find, a line each, and what defines the shared ones.
const SHAPE: &str = "
WITH shared AS MATERIALIZED (
    SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relowner
    FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS g(nsp, place)
    JOIN pg_catalog.unnest($2::text[]) WITH ORDINALITY AS h(name, place) ON h.place = g.place
    JOIN pg_catalog.pg_namespace n ON n.nspname = g.nsp
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = h.name AND c.relkind IN ('r', 'p'))
SELECT ROW('t', s.*, EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = s.oid),
           s.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = s.oid))::text
FROM shared s
UNION ALL
SELECT ROW('p', s.oid, p.relid::pg_catalog.oid)::text
FROM shared s CROSS JOIN pg_catalog.pg_partition_tree(s.oid) p WHERE s.relkind = 'p'
UNION ALL
SELECT ROW('c', a.attrelid, a.attnum, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
           a.attgenerated, a.attcollation, pg_catalog.pg_get_expr(d.adbin, d.adrelid),
           t.typbasetype, t.typtypmod, CASE WHEN t.typtype IN ('e', 'd') OR t.typcategory = 'A' THEN ARRAY(SELECT e.enumlabel FROM pg_catalog.pg_enum e
               WHERE e.enumtypid IN (t.oid, t.typelem, t.typbasetype) ORDER BY e.enumtypid, e.enumsortorder) END)::text
FROM shared s JOIN pg_catalog.pg_attribute a ON a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT ROW('i', i.indrelid, i.indisunique, i.indisprimary, i.indimmediate, i.indisvalid, i.indnkeyatts, i.indkey,
           i.indpred IS NULL, i.indexprs IS NULL)::text
FROM shared s JOIN pg_catalog.pg_index i ON i.indrelid = s.oid
UNION ALL
SELECT ROW('f', f.conrelid, f.conkey, f.confrelid::pg_catalog.regclass, f.confkey, f.confdeltype, f.confupdtype)::text
FROM shared s JOIN pg_catalog.pg_constraint f ON f.conrelid = s.oid AND f.contype = 'f' AND f.conparentid = 0
UNION ALL
SELECT ROW('k', k.conrelid, k.conname, k.convalidated, pg_catalog.pg_get_expr(k.conbin, k.conrelid))::text
FROM shared s JOIN pg_catalog.pg_constraint k ON k.conrelid = s.oid AND k.contype = 'c'
UNION ALL
SELECT ROW('o', n.nspname, c.relname)::text
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'branchline') AND n.nspname NOT LIKE 'pg\\_%'
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
                  AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass)";

/// Tells whether any row of the catalogue behind [`SHAPE`] was written since, at a fraction of its cost: every `ALTER`
/// writes rows anew, under its transaction's number.
const STAMP: &str = "
SELECT pg_catalog.concat_ws(' ',
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(c.oid::text || ' ' || c.xmin::text)))
     FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND c.relpersistence <> 't'),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(a.attnum::text || ' ' || a.xmin::text)))
     FROM pg_catalog.pg_attribute a WHERE a.attrelid = ANY($1::int8[]::oid[]) AND a.attnum > 0),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(d.adnum::text || ' ' || d.xmin::text)))
     FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ANY($1::int8[]::oid[])),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(i.indexrelid::text || ' ' || i.xmin::text)))
     FROM pg_catalog.pg_index i WHERE i.indrelid = ANY($1::int8[]::oid[])),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(f.oid::text || ' ' || f.xmin::text)))
     FROM pg_catalog.pg_constraint f WHERE f.conrelid = ANY($1::int8[]::oid[]) OR f.confrelid = ANY($1::int8[]::oid[])),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(h.inhrelid::text || ' ' || h.xmin::text)))
     FROM pg_catalog.pg_inherits h),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(e.oid::text || ' ' || e.xmin::text)))
     FROM pg_catalog.pg_enum e),
    (SELECT pg_catalog.concat_ws(':', pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtext(t.oid::text || ' ' || t.xmin::text)))
     FROM pg_catalog.pg_type t WHERE t.typtype IN ('d', 'e') AND t.oid >= 16384),
    (SELECT pg_catalog.string_agg(n.oid::text || n.xmin::text, ':' ORDER BY n.oid)
     FROM pg_catalog.pg_namespace n WHERE n.nspname NOT LIKE 'pg\\_%'))";

/// The numbers of these tables.
const NUMBERS: &str = "
SELECT c.oid::bigint
FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS g(nsp, place)
JOIN pg_catalog.unnest($2::text[]) WITH ORDINALITY AS h(name, place) ON h.place = g.place
JOIN pg_catalog.pg_namespace n ON n.nspname = g.nsp
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = h.name AND c.relkind IN ('r', 'p')";

/// A fingerprint, and the stamp that the catalogue had when it was taken or before.
#[derive(Debug)]
pub(super) struct Stamped {
    tables: Vec<String>,
    numbers: Vec<i64>,
    stamp: String,
    shape: Digest,
}

async fn stamp(db: &mut PostgresDatabase, numbers: &[i64]) -> DbResult<String> {
    let rows = db.query(STAMP, &[Wire::INT8_ARRAY], &[&numbers]).await?;
    rows.first().map_or(Ok(String::new()), |row| get(row, 0))
}

/// Which of these tables exist.
const THERE: &str = "
SELECT h.place FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS g(nsp, place)
JOIN pg_catalog.unnest($2::text[]) WITH ORDINALITY AS h(name, place) ON h.place = g.place
JOIN pg_catalog.pg_namespace n ON n.nspname = g.nsp
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = h.name AND c.relkind IN ('r', 'p')";

/// Whether a table, with its partitions, is stored where it was stored to the transaction's snapshot.
const STORED: &str = "
SELECT pg_catalog.bool_and(c.oid IS NOT NULL AND c.relfilenode IN (0, pg_catalog.pg_relation_filenode(c.oid)))
FROM (SELECT pg_catalog.to_regclass($1)::pg_catalog.oid AS relid
      UNION SELECT p.relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) p) t
LEFT JOIN pg_catalog.pg_class c ON c.oid = t.relid";

const NAMES: [Wire; 2] = [Wire::TEXT_ARRAY, Wire::TEXT_ARRAY];

pub(super) async fn shape(db: &mut PostgresDatabase, schema: &Schema) -> DbResult<Digest> {
    let tables: Vec<&str> = schema.tables.iter().map(|table| &*table.name).collect();
    let stamped = db.stamped.take().filter(|known| known.tables == tables);
    let mut now = None;
    if db.purpose() == Some(Purpose::Take) {
        now = lock(db, &tables, stamped.as_ref()).await?;
    }
    if let Some(known) = stamped {
        let now = match now {
            Some(now) => now,
            None => stamp(db, &known.numbers).await?,
        };
        if now == known.stamp {
            let shape = known.shape;
            db.stamped = Some(known);
            return Ok(shape);
        }
    }
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|name| names(name)).unzip();
    let mut numbers = Vec::new();
    for row in db.query(NUMBERS, &NAMES, &[&schemas, &names]).await? {
        numbers.push(get::<i64>(&row, 0)?);
    }
    // Before the fingerprint: what is written between the two shows the next time.
    let stamp = stamp(db, &numbers).await?;
    let mut lines = Vec::new();
    for row in db.query(SHAPE, &NAMES, &[&schemas, &names]).await? {
        lines.push(get::<String>(&row, 0)?);
    }
    lines.sort_unstable();
    let shape = Digest::of(lines.join("\n").as_bytes());
    // Statements made for other definitions would fail, or cast to what a column was. The stamp tells more than the
    // fingerprint does: a table that is not shared may refer to one that is.
    db.forget_layouts();
    db.stamped = Some(Stamped {
        tables: tables.into_iter().map(String::from).collect(),
        numbers,
        stamp,
        shape,
    });
    Ok(shape)
}

/// Locks the tables that exist. The transaction has no snapshot yet; where some are gone, it is begun anew. Returns the
/// stamp where it came along with the locks.
async fn lock(
    db: &mut PostgresDatabase,
    tables: &[&str],
    stamped: Option<&Stamped>,
) -> DbResult<Option<String>> {
    if let Some(Locked { stamp }) = lock_all(db, tables, stamped).await? {
        return Ok(stamp);
    }
    let (schemas, named): (Vec<&str>, Vec<&str>) = tables.iter().map(|name| names(name)).unzip();
    db.close(false).await?;
    let there = db.query(THERE, &NAMES, &[&schemas, &named]).await?;
    let mut left = Vec::new();
    for row in &there {
        let place = usize::try_from(get::<i64>(row, 0)? - 1).unwrap_or(usize::MAX);
        left.extend(tables.get(place).copied());
    }
    db.open(Purpose::Take).await?;
    match lock_all(db, &left, None).await? {
        Some(Locked { stamp }) => Ok(stamp),
        None => Err(DatabaseError::Busy(
            "tables come and go at this moment".into(),
        )),
    }
}

/// The tables are locked.
struct Locked {
    stamp: Option<String>,
}

/// `None` where one of them does not exist; the transaction has failed then.
async fn lock_all(
    db: &mut PostgresDatabase,
    tables: &[&str],
    stamped: Option<&Stamped>,
) -> DbResult<Option<Locked>> {
    if tables.is_empty() {
        return Ok(Some(Locked { stamp: None }));
    }
    let relations: Vec<String> = tables.iter().map(|name| relation(name)).collect();
    // None of these statements takes the snapshot.
    let sql = format!(
        "SET LOCAL lock_timeout TO '{PATIENCE}'; LOCK TABLE {} IN ACCESS SHARE MODE; SET LOCAL lock_timeout TO '800ms'",
        relations.join(", ")
    );
    // To prepare a statement does take it: the stamp comes along only where it is prepared already.
    let question = stamped.and_then(|known| Some((db.prepared(STAMP)?, &known.numbers)));
    let client = db.client()?;
    let (locked, found) = match question {
        Some((statement, numbers)) => {
            // Sent together, and together with what opens the transaction.
            let values: [&(dyn ToSql + Sync); 1] = [numbers];
            join(
                client.batch_execute(&sql),
                client.query(&statement, &values),
            )
            .await
        }
        None => (client.batch_execute(&sql).await, Ok(Vec::new())),
    };
    db.answers().await?;
    match locked {
        Ok(()) => {
            let found = found.map_err(|e| failed(&e))?;
            let stamp = found.first().map(|row| get(row, 0)).transpose()?;
            Ok(Some(Locked { stamp }))
        }
        Err(error) => match error.code().map(tokio_postgres::error::SqlState::code) {
            // No such table, no such schema, no table.
            Some("42P01" | "3F000" | "42809") => Ok(None),
            _ => Err(failed(&error)),
        },
    }
}

/// Before a table is read in a transaction that only reads and may have its snapshot already: locks the table, and
/// fails where it was written anew since. Its rows are invisible to that snapshot then, whichever they are.
pub(super) async fn hold_still(db: &mut PostgresDatabase, table: &str) -> DbResult<()> {
    if db.purpose() != Some(Purpose::Read) {
        return Ok(());
    }
    let statement = db.statement(STORED, &[Wire::TEXT]).await?;
    let name = relation(table);
    let lock = format!("LOCK TABLE {name} IN ACCESS SHARE MODE");
    let client = db.client()?;
    let values: [&(dyn ToSql + Sync); 1] = [&name];
    let (locked, found) = join(
        client.batch_execute(&lock),
        client.query(&statement, &values),
    )
    .await;
    locked.map_err(|e| on_table(table, &e))?;
    let found = found.map_err(|e| on_table(table, &e))?;
    let stays = found.first().map(|row| get::<Option<bool>>(row, 0));
    if stays.transpose()?.flatten() == Some(true) {
        return Ok(());
    }
    db.forget_layouts();
    Err(DatabaseError::Busy(format!(
        "table `{table}` was rewritten at this moment"
    )))
}
