//! Branchline's own tables, and the capture's triggers on the shared ones: made, looked after, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_core::port::{DatabaseError, DbResult, Inspection};
use branchline_core::schema::{Column, Schema, Table, TableId};
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::catalog;
use super::connection::PostgresDatabase;
use super::ddl::{ident, names, relation};
use super::layout::Layout;
use super::triggers::{TRUNCATE, Trigger, triggers};

/// How often a catalogue change gives way to the application's transactions before it gives up.
const ATTEMPTS: u32 = 40;
/// How soon partitions that could not be covered are tried again.
const COVER_AGAIN: Duration = Duration::from_secs(2);

const PREPARE: &str = "
CREATE SCHEMA IF NOT EXISTS branchline;
CREATE TABLE IF NOT EXISTS branchline.capture (
    tbl int4 NOT NULL, op \"char\" NOT NULL, at timestamptz NOT NULL, tx xid8 NOT NULL, key text[] COLLATE \"C\" NOT NULL, old text[]);
CREATE TABLE IF NOT EXISTS branchline.meta (name text PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE IF NOT EXISTS branchline.stream (
    stream text, number int8, bytes bytea NOT NULL, PRIMARY KEY (stream, number));
ALTER TABLE branchline.stream ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS branchline.note (tbl int4, key bytea, note bytea NOT NULL, PRIMARY KEY (tbl, key));
CREATE TABLE IF NOT EXISTS branchline.created (name text PRIMARY KEY);
CREATE SEQUENCE IF NOT EXISTS branchline.asleep_until MINVALUE 0 START 0";

/// Our triggers: on which relation, which function they call.
const OURS: &str = "
SELECT s.nspname::text, c.relname::text, t.tgname::text, p.proname::text, p.prosrc, t.tgenabled IN ('O', 'A'),
       pg_catalog.array_to_string(p.proconfig, ';'), c.relispartition
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace AND f.nspname = 'branchline'
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0";

pub(super) async fn prepare(db: &mut PostgresDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    // Two processes of one office must not create the same schema at once.
    db.execute(
        "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('branchline prepare'))",
    )
    .await?;
    if db
        .query(
            "SELECT pg_catalog.to_regclass('branchline.asleep_until') IS NOT NULL AS done",
            &[],
            &[],
        )
        .await?
        .first()
        .is_some_and(|row| row.try_get(0).unwrap_or(false))
    {
        return db.close(false).await;
    }
    db.execute(PREPARE).await?;
    db.close(true).await
}

/// A trigger of ours as found.
struct Found {
    table: String,
    trigger: String,
    function: String,
    source: String,
    enabled: bool,
    settings: String,
    partition: bool,
}

async fn found(db: &mut PostgresDatabase) -> DbResult<Vec<Found>> {
    let rows = db.query(OURS, &[], &[]).await?;
    let one = |row| {
        Ok(Found {
            table: catalog::plan_name(get(row, 0)?, get(row, 1)?),
            trigger: get(row, 2)?,
            function: get(row, 3)?,
            source: get(row, 4)?,
            enabled: get(row, 5)?,
            settings: get::<Option<String>>(row, 6)?.unwrap_or_default(),
            partition: get(row, 7)?,
        })
    };
    rows.iter().map(one).collect()
}

pub(super) async fn missing(db: &mut PostgresDatabase, schema: &Schema) -> DbResult<Vec<TableId>> {
    db.open_catalogue().await?;
    let found = found(db).await?;
    let mut missing = Vec::new();
    // Writes whose rows cannot be told any more.
    let lost = "SELECT DISTINCT tbl FROM branchline.capture WHERE pg_catalog.array_position(key, NULL) IS NOT NULL";
    let mut unknown = BTreeSet::new();
    let prepared = "SELECT pg_catalog.to_regclass('branchline.capture') IS NOT NULL";
    let prepared = db.query(prepared, &[], &[]).await?;
    if prepared
        .first()
        .map(|row| get::<bool>(row, 0))
        .transpose()?
        == Some(true)
    {
        for row in db.query(lost, &[], &[]).await? {
            unknown.insert(get::<i32>(&row, 0)?.unsigned_abs());
        }
    }
    db.bare.clear();
    for table in &schema.tables {
        let whole =
            match db.layout(&table.name).await {
                Ok(layout) => {
                    let state = state(db, &found, table, &layout).await?;
                    let truncate = triggers(table, layout.partitioned)?.pop();
                    db.bare.extend(
                        state.bare.iter().zip(truncate.iter().cycle()).map(
                            |(partition, trigger)| (table.name.clone(), on(trigger, partition)),
                        ),
                    );
                    state.whole
                }
                Err(DatabaseError::Mismatch { .. }) => false,
                Err(other) => return Err(other),
            };
        if !whole || unknown.contains(&table.id) {
            missing.push(table.id);
        }
    }
    db.close(false).await?;
    Ok(missing)
}

/// What a table has of the triggers that it should have.
struct State {
    /// All, or all but those of `bare`.
    whole: bool,
    /// Partitions without the one of theirs, quoted. They are new: their rows are captured by their parent's triggers, and
    /// were not taken yet, since the tables are looked at first; so no `TRUNCATE` was missed.
    bare: Vec<String>,
}

async fn state(
    db: &mut PostgresDatabase,
    found: &[Found],
    table: &Table,
    layout: &Layout,
) -> DbResult<State> {
    let as_wanted = |f: &Found, wanted: &Trigger| {
        f.trigger == wanted.name
            && f.function == wanted.function
            && f.source == wanted.body
            && f.enabled
            && f.settings.split_terminator(';').count() == wanted.settings.matches(" SET ").count()
    };
    let wanted = triggers(table, layout.partitioned)?;
    let here = || found.iter().filter(|f| f.table == table.name);
    let mut state = State {
        whole: wanted.iter().all(|one| here().any(|f| as_wanted(f, one))),
        bare: Vec::new(),
    };
    if !layout.partitioned {
        return Ok(state);
    }
    for partition in partitions(db, &table.name).await? {
        let ours = found.iter().filter(|f| relation(&f.table) == partition);
        let mut ours = ours.filter(|f| f.trigger == TRUNCATE).peekable();
        if ours.peek().is_none() {
            state.bare.push(partition);
        } else {
            state.whole &= ours.all(|f| wanted.iter().any(|one| as_wanted(f, one)));
        }
    }
    Ok(state)
}

/// Gives new partitions their trigger, one by one, where no transaction is in the way: nobody waits for it for long, and
/// it is tried again. Outside a transaction only; `commit` calls it.
pub(super) async fn cover(db: &mut PostgresDatabase) -> DbResult<()> {
    if db.bare.is_empty() || db.covered.is_some_and(|at| at.elapsed() < COVER_AGAIN) {
        return Ok(());
    }
    for (table, sql) in std::mem::take(&mut db.bare) {
        let all = format!("BEGIN; SET LOCAL lock_timeout TO '100ms'; {sql} COMMIT");
        let Err(error) = db.client()?.batch_execute(&all).await else {
            continue;
        };
        db.execute("ROLLBACK").await?;
        match super::error::on_table(&table, &error) {
            DatabaseError::Busy(_) => db.bare.push((table, sql)),
            // It may be gone again.
            error => tracing::debug!(%error, "a partition was not given its trigger"),
        }
    }
    db.covered = Some(Instant::now());
    Ok(())
}

pub(super) async fn install(db: &mut PostgresDatabase, schema: &Schema) -> DbResult<()> {
    let inspection = catalog::inspect(db).await?;
    for table in &schema.tables {
        catalog::compatible(table, &inspection)?;
    }
    db.open_catalogue().await?;
    let found = found(db).await?;
    let mut work: Vec<(String, String)> = Vec::new();
    for table in &schema.tables {
        let layout = db.layout(&table.name).await?;
        catalog::insertable(table, &layout)?;
        let state = state(db, &found, table, &layout).await?;
        if !state.whole || !state.bare.is_empty() {
            work.push((table.name.clone(), creation(db, table, &layout).await?));
        }
    }
    for stray in found
        .iter()
        .filter(|f| !f.partition && schema.table_named(&f.table).is_none())
    {
        let (schema, name) = names(&stray.table);
        let sql = format!(
            "DROP TRIGGER {} ON {}.{}",
            ident(&stray.trigger),
            ident(schema),
            ident(name)
        );
        work.push((stray.table.clone(), sql));
    }
    db.close(false).await?;
    for (table, sql) in work {
        patiently(db, &table, &sql).await?;
    }
    drop_unused(db).await?;
    db.open_catalogue().await?;
    note_origins(db, schema, &inspection).await?;
    db.close(true).await
}

/// A table's `oid`, and its columns' numbers in the plan with their `attnum`.
pub(super) type Noted = (u64, Vec<(u32, u64)>);

/// Under which name a table's [`Noted`] is remembered.
pub(super) fn origin(id: TableId) -> String {
    format!("origin.{id}")
}

/// Remembers what the catalogue calls the tables and their columns: a rename leaves that as it is.
pub(super) async fn note_origins(
    db: &mut PostgresDatabase,
    schema: &Schema,
    found: &Inspection,
) -> DbResult<()> {
    for table in &schema.tables {
        let here = found.tables.iter().find(|here| here.name == table.name);
        let (Some(here), Some(origin)) = (here, found.origins.get(&table.name)) else {
            continue;
        };
        let number = |column: &Column| {
            let at = here
                .columns
                .iter()
                .position(|one| one.name == column.name)?;
            Some((column.id, *origin.columns.get(at)?))
        };
        let columns = table.columns.iter().filter(|column| column.id != 0);
        let noted: Noted = (origin.table, columns.filter_map(number).collect());
        let bytes = minicbor::to_vec(noted)
            .map_err(|error| DatabaseError::Other(format!("a note cannot be encoded: {error}")))?;
        super::books::set_meta(db, &self::origin(table.id), Some(&bytes)).await?;
    }
    Ok(())
}

/// The tables that have a trigger of ours, by the number that it notes.
pub(super) async fn captured_tables(
    db: &mut PostgresDatabase,
) -> DbResult<BTreeMap<TableId, String>> {
    let mut tables = BTreeMap::new();
    for found in found(db).await?.into_iter().filter(|one| !one.partition) {
        let number = found.function.strip_prefix("capture_");
        let number = number.and_then(|rest| rest.split('_').next()?.parse().ok());
        tables.extend(number.map(|number| (number, found.table)));
    }
    Ok(tables)
}

/// As [`install`], in the transaction that is open. Tables whose number is in `keeps` stay as they are.
pub(super) async fn install_here(
    db: &mut PostgresDatabase,
    schema: &Schema,
    keeps: &BTreeSet<TableId>,
) -> DbResult<()> {
    let found = found(db).await?;
    let kept = captured_tables(db).await?;
    let kept: BTreeSet<&String> = kept
        .iter()
        .filter(|(id, _)| keeps.contains(id))
        .map(|(_, name)| name)
        .collect();
    for stray in found.iter().filter(|one| !one.partition) {
        let known = schema.table_named(&stray.table).is_some() || kept.contains(&stray.table);
        // One that came here with its table's former number or name.
        let wrong = schema.table_named(&stray.table).is_some_and(|table| {
            !stray
                .function
                .starts_with(&format!("capture_{}_", table.id))
        });
        if !known || wrong {
            db.execute(&removal(stray)).await?;
        }
    }
    for table in &schema.tables {
        let layout = db.layout(&table.name).await?;
        let state = state(db, &found, table, &layout).await?;
        if !state.whole || !state.bare.is_empty() {
            let sql = creation(db, table, &layout).await?;
            db.execute(&sql).await?;
        }
    }
    drop_unused_here(db).await
}

fn removal(stray: &Found) -> String {
    let (schema, name) = names(&stray.table);
    format!(
        "DROP TRIGGER IF EXISTS {} ON {}.{};",
        ident(&stray.trigger),
        ident(schema),
        ident(name)
    )
}

/// Creates functions and triggers; what stands under these names is replaced.
async fn creation(db: &mut PostgresDatabase, table: &Table, layout: &Layout) -> DbResult<String> {
    let mut relations = vec![(layout.relation.clone(), false)];
    if layout.partitioned {
        relations.extend(
            partitions(db, &table.name)
                .await?
                .into_iter()
                .map(|relation| (relation, true)),
        );
    }
    let mut sql = String::new();
    for trigger in triggers(table, layout.partitioned)? {
        sql.push_str(&trigger.creation());
        for (relation, partition) in &relations {
            if !partition || trigger.name == TRUNCATE {
                sql.push_str(&on(&trigger, relation));
            }
        }
    }
    Ok(sql)
}

/// Puts a trigger, whose function exists, on a relation.
fn on(trigger: &Trigger, relation: &str) -> String {
    let Trigger {
        name,
        function,
        clause,
        ..
    } = trigger;
    let clause = clause.replace("{}", relation);
    format!(
        "DROP TRIGGER IF EXISTS {name} ON {relation};
         CREATE TRIGGER {name} {clause} EXECUTE FUNCTION branchline.{function}();"
    )
}

/// All partitions below a table, quoted; `TRUNCATE` of one fires only its own triggers.
async fn partitions(db: &mut PostgresDatabase, table: &str) -> DbResult<Vec<String>> {
    let sql = "SELECT s.nspname::text, c.relname::text
               FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace q ON q.oid = r.relnamespace,
                    pg_catalog.pg_partition_tree(r.oid) p
               JOIN pg_catalog.pg_class c ON c.oid = p.relid
               JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
               WHERE q.nspname = $1 AND r.relname = $2 AND p.level > 0 AND c.relkind IN ('r', 'p')";
    let (schema, name) = names(table);
    let rows = db
        .query(sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &name])
        .await?;
    rows.iter()
        .map(|row| Ok(format!("{}.{}", ident(get(row, 0)?), ident(get(row, 1)?))))
        .collect()
}

/// Drops capture functions that no trigger calls any more.
async fn drop_unused(db: &mut PostgresDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    drop_unused_here(db).await?;
    db.close(true).await
}

async fn drop_unused_here(db: &mut PostgresDatabase) -> DbResult<()> {
    let sql = "SELECT p.proname::text FROM pg_catalog.pg_proc p
               JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace AND n.nspname = 'branchline'
               WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid)";
    for row in db.query(sql, &[], &[]).await? {
        db.execute(&format!(
            "DROP FUNCTION branchline.{}()",
            ident(get(&row, 0)?)
        ))
        .await?;
    }
    Ok(())
}

/// Runs a catalogue change in its own transaction, giving way to the application's: while it waits for its lock the
/// application waits behind it, so it waits briefly and often.
pub(super) async fn patiently(db: &mut PostgresDatabase, table: &str, sql: &str) -> DbResult<()> {
    for attempt in 1.. {
        db.open_catalogue().await?;
        let done = db
            .client()?
            .batch_execute(sql)
            .await
            .map_err(|e| super::error::on_table(table, &e));
        match done {
            Ok(()) => return db.close(true).await,
            Err(DatabaseError::Busy(_)) if attempt < ATTEMPTS => {
                db.close(false).await?;
                tokio::time::sleep(Duration::from_millis(50 + u64::from(attempt) * 10)).await;
            }
            Err(error) => {
                db.close(false).await?;
                return Err(error);
            }
        }
    }
    Ok(())
}

pub(super) async fn uninstall(db: &mut PostgresDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    let found = found(db).await?;
    db.close(false).await?;
    // Table by table: whoever waits for one does not keep the others from the application.
    let mut removals: BTreeMap<&str, String> = BTreeMap::new();
    for one in &found {
        // A partition's row triggers go with its parent's.
        let sql = removals.entry(&one.table).or_default();
        sql.push_str(&removal(one));
    }
    for (table, sql) in removals {
        patiently(db, table, &sql).await?;
    }
    patiently(db, "", "DROP SCHEMA IF EXISTS branchline CASCADE").await
}
