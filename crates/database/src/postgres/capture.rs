//! The capture: triggers that note the keys of written rows in the application's own transaction.
//!
//! Statement triggers with transition tables, one function per table and event; row triggers where the table is
//! partitioned, since writes straight into a partition do not fire its parent's statement triggers. The functions
//! run with our rights, so that the application needs none.

use std::collections::BTreeSet;
use std::time::Duration;

use branchline_core::change::Key;
use branchline_core::identity::Micros;
use branchline_core::port::{Backlog, DatabaseError, DbResult};
use branchline_core::schema::{Schema, Table, TableId};
use tokio_postgres::types::{FromSql, ToSql, Type as Wire};

use super::books::{get, table_number};
use super::connection::PostgresDatabase;
use super::ddl::{ident, names};
use super::layout::{Layout, given};
use super::{catalog, types};

/// Microseconds from 1970 to PostgreSQL's epoch, 2000.
const EPOCH: i64 = 946_684_800_000_000;
/// How often a catalogue change gives way to the application's transactions before it gives up.
const ATTEMPTS: u32 = 40;

const PREPARE: &str = "
CREATE SCHEMA IF NOT EXISTS branchline;
CREATE TABLE IF NOT EXISTS branchline.capture (
    tbl int4 NOT NULL, op \"char\" NOT NULL, at timestamptz NOT NULL, tx xid8 NOT NULL, key text[] COLLATE \"C\" NOT NULL);
CREATE TABLE IF NOT EXISTS branchline.meta (name text PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE IF NOT EXISTS branchline.stream (
    stream text, number int8, bytes bytea NOT NULL, PRIMARY KEY (stream, number));
ALTER TABLE branchline.stream ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS branchline.note (tbl int4, key bytea, note bytea NOT NULL, PRIMARY KEY (tbl, key));
CREATE TABLE IF NOT EXISTS branchline.created (name text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS branchline.sleeper (asleep_until timestamptz NOT NULL);
INSERT INTO branchline.sleeper SELECT '-infinity' WHERE NOT EXISTS (SELECT FROM branchline.sleeper)";

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

/// A moment as the capture stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    pub(super) fn micros(self) -> Micros {
        Micros(self.0.saturating_add(EPOCH))
    }
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Wire, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TIMESTAMPTZ
    }
}

pub(super) async fn prepare(db: &mut PostgresDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    // Two processes of one office must not create the same schema at once.
    db.execute(
        "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('branchline prepare'))",
    )
    .await?;
    if db
        .query(
            "SELECT pg_catalog.to_regclass('branchline.sleeper') IS NOT NULL AS done",
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

/// One of the capture's triggers on a table.
struct Trigger {
    name: &'static str,
    function: String,
    body: String,
    settings: String,
    /// From the event on; `None` where the trigger is on partitions only.
    clause: &'static str,
}

fn triggers(table: &Table, partitioned: bool) -> DbResult<Vec<Trigger>> {
    let id = table_number(table.id)?;
    let fixed: BTreeSet<&str> = table
        .key_columns()
        .flat_map(|column| types::settings(&column.kind))
        .copied()
        .collect();
    let settings: String = fixed
        .iter()
        .map(|setting| format!(" SET {setting}"))
        .collect();
    let key = |row: &str| {
        let texts: Vec<String> = table
            .key_columns()
            .map(|column| types::key_text(&column.kind, &format!("{row}.{}", ident(&column.name))))
            .collect();
        format!("ARRAY[{}]", texts.join(", "))
    };
    let stamp = "pg_catalog.clock_timestamp(), pg_catalog.pg_current_xact_id()";
    let into = "INSERT INTO branchline.capture (tbl, op, at, tx, key)";
    let trigger = |event: &str, name, clause, work: String| Trigger {
        name,
        function: format!("capture_{id}_{event}"),
        body: body(&work),
        settings: settings.clone(),
        clause,
    };
    let truncated = format!(
        "EXECUTE pg_catalog.format($truncated$ {into} SELECT {id}, 'U', {stamp}, {} FROM %s r $truncated$,
             TG_RELID::pg_catalog.regclass);",
        key("r")
    );
    let truncate = trigger(
        "truncate",
        "branchline_truncate",
        "BEFORE TRUNCATE ON {} FOR EACH STATEMENT",
        truncated,
    );
    if partitioned {
        let (new, old) = (key("NEW"), key("OLD"));
        return Ok(vec![
            trigger(
                "insert",
                "branchline_insert",
                "AFTER INSERT ON {} FOR EACH ROW",
                format!("{into} VALUES ({id}, 'I', {stamp}, {new});"),
            ),
            trigger(
                "update",
                "branchline_update",
                "AFTER UPDATE ON {} FOR EACH ROW",
                format!(
                    "{into} VALUES ({id}, 'U', {stamp}, {old});
    IF {new} <> {old} THEN {into} VALUES ({id}, 'I', {stamp}, {new}); END IF;"
                ),
            ),
            trigger(
                "delete",
                "branchline_delete",
                "AFTER DELETE ON {} FOR EACH ROW",
                format!("{into} VALUES ({id}, 'U', {stamp}, {old});"),
            ),
            truncate,
        ]);
    }
    let (new, old) = (key("n"), key("o"));
    Ok(vec![
        trigger(
            "insert",
            "branchline_insert",
            "AFTER INSERT ON {} REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
            format!("{into} SELECT {id}, 'I', {stamp}, {new} FROM new_rows n;"),
        ),
        // EXCEPT, not an anti-join: its plan is good for one row and for a million, and plpgsql keeps the first plan.
        trigger(
            "update",
            "branchline_update",
            "AFTER UPDATE ON {} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT",
            format!(
                "{into} SELECT {id}, 'U', {stamp}, {old} FROM old_rows o
    UNION ALL SELECT {id}, 'I', {stamp}, moved.key
    FROM (SELECT {new} FROM new_rows n EXCEPT SELECT {old} FROM old_rows o) AS moved(key);"
            ),
        ),
        trigger(
            "delete",
            "branchline_delete",
            "AFTER DELETE ON {} REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT",
            format!("{into} SELECT {id}, 'U', {stamp}, {old} FROM old_rows o;"),
        ),
        truncate,
    ])
}

fn body(work: &str) -> String {
    format!(
        "
BEGIN
    IF pg_catalog.current_setting('branchline.applying', true) = '1' THEN RETURN NULL; END IF;
    {work}
    PERFORM pg_catalog.pg_notify('branchline', '') FROM branchline.sleeper s
        WHERE s.asleep_until > pg_catalog.clock_timestamp();
    RETURN NULL;
END "
    )
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
    for table in &schema.tables {
        let whole = match db.layout(&table.name).await {
            Ok(layout) => whole(&found, table, &layout)?,
            Err(DatabaseError::Mismatch { .. }) => false,
            Err(other) => return Err(other),
        };
        if !whole {
            missing.push(table.id);
        }
    }
    db.close(false).await?;
    Ok(missing)
}

fn whole(found: &[Found], table: &Table, layout: &Layout) -> DbResult<bool> {
    let there = |wanted: &Trigger| {
        found.iter().any(|f| {
            f.table == table.name
                && f.trigger == wanted.name
                && f.function == wanted.function
                && f.source == wanted.body
                && f.enabled
                && f.settings.matches(';').count() == wanted.settings.matches(" SET ").count()
        })
    };
    Ok(triggers(table, layout.partitioned)?.iter().all(there))
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
        if !whole(&found, table, &layout)? || layout.partitioned {
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
    drop_unused(db).await
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
        let Trigger {
            name,
            function,
            body,
            settings,
            clause,
        } = trigger;
        sql.push_str(&format!(
            "CREATE OR REPLACE FUNCTION branchline.{function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
                 SET search_path TO pg_catalog, pg_temp{settings} AS $capture${body}$capture$;
             REVOKE ALL ON FUNCTION branchline.{function}() FROM PUBLIC;"
        ));
        for (relation, partition) in &relations {
            if !partition || name == "branchline_truncate" {
                let clause = clause.replace("{}", relation);
                sql.push_str(&format!(
                    "DROP TRIGGER IF EXISTS {name} ON {relation};
                     CREATE TRIGGER {name} {clause} EXECUTE FUNCTION branchline.{function}();"
                ));
            }
        }
    }
    Ok(sql)
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
    db.close(true).await
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
    let sql: String = found
        .iter()
        .map(|f| {
            let (schema, name) = names(&f.table);
            // A partition's row triggers go with its parent's.
            format!(
                "DROP TRIGGER IF EXISTS {} ON {}.{};",
                ident(&f.trigger),
                ident(schema),
                ident(name)
            )
        })
        .collect();
    patiently(
        db,
        "",
        &format!("{sql} DROP SCHEMA IF EXISTS branchline CASCADE"),
    )
    .await
}

pub(super) async fn captured(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<BTreeSet<Key>> {
    let id = table_number(table.id)?;
    let Some(keys) = keys else {
        let rows = db
            .query(
                "SELECT DISTINCT key FROM branchline.capture WHERE tbl = $1",
                &[Wire::INT4],
                &[&id],
            )
            .await?;
        return rows
            .iter()
            .map(|row| parse_key(table, &get::<Vec<&str>>(row, 0)?))
            .collect();
    };
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let layout = db.layout(&table.name).await?;
    let texts = given_key(table, &layout)?;
    // The answer is by place: the caller may spell a key otherwise than the capture does.
    let sql = format!(
        "SELECT DISTINCT given.place FROM branchline.capture c JOIN {} ON c.key = {texts} WHERE c.tbl = $1",
        given(table, 2, true)
    );
    let arrays = types::key_arrays(table, keys)?;
    let mut types = vec![Wire::INT4];
    types.extend(types::key_types(table));
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&id];
    values.extend(types::parameters(&arrays));
    let rows = db.query(&sql, &types, &values).await?;
    let place = |row| {
        Ok(usize::try_from(get::<i64>(row, 0)? - 1)
            .ok()
            .and_then(|at| keys.get(at))
            .cloned())
    };
    rows.iter()
        .filter_map(|row| place(row).transpose())
        .collect()
}

pub(super) async fn recapture(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<()> {
    let id = table_number(table.id)?;
    let layout = db.layout(&table.name).await?;
    let head = "INSERT INTO branchline.capture (tbl, op, at, tx, key) SELECT $1";
    let stamp = "pg_catalog.clock_timestamp(), pg_catalog.pg_current_xact_id()";
    let Some(keys) = keys else {
        let texts: Vec<String> = table
            .key_columns()
            .map(|column| types::key_text(&column.kind, &format!("r.{}", ident(&column.name))))
            .collect();
        let sql = format!(
            "{head}, 'X', {stamp}, ARRAY[{}] FROM {} r",
            texts.join(", "),
            layout.relation
        );
        db.query(&sql, &[Wire::INT4], &[&id]).await?;
        return Ok(());
    };
    let sql = format!(
        "{head}, 'U', {stamp}, {} FROM {}",
        given_key(table, &layout)?,
        given(table, 2, false)
    );
    let arrays = types::key_arrays(table, keys)?;
    let mut types = vec![Wire::INT4];
    types.extend(types::key_types(table));
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&id];
    values.extend(types::parameters(&arrays));
    db.query(&sql, &types, &values).await?;
    Ok(())
}

/// The capture's text of a given key.
fn given_key(table: &Table, layout: &Layout) -> DbResult<String> {
    let texts = table.key_columns().enumerate().map(|(at, column)| {
        let value = format!("given.k{at}::{}", layout.cast(table, column)?);
        Ok(types::key_text(&column.kind, &value))
    });
    Ok(format!(
        "ARRAY[{}]",
        texts.collect::<DbResult<Vec<_>>>()?.join(", ")
    ))
}

pub(super) async fn backlog(db: &mut PostgresDatabase) -> DbResult<Backlog> {
    let sql = "SELECT pg_catalog.count(*), pg_catalog.min(at) FROM branchline.capture";
    let rows = db.query(sql, &[], &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Backlog::default());
    };
    let oldest = get::<Option<Moment>>(row, 1)?.map(Moment::micros);
    Ok(Backlog {
        writes: get::<i64>(row, 0)?.unsigned_abs(),
        oldest,
    })
}

/// A captured key.
pub(super) fn parse_key(table: &Table, texts: &[&str]) -> DbResult<Key> {
    let values: Option<Vec<_>> = table
        .key_columns()
        .zip(texts)
        .map(|(column, text)| types::parsed(&column.kind, text))
        .collect();
    match values {
        Some(values) if values.len() == table.key.len() && texts.len() == values.len() => {
            Ok(Key(values))
        }
        _ => Err(DatabaseError::Mismatch {
            table: table.name.clone(),
            message: format!(
                "a captured key of {} values is no key of the plan's table",
                texts.len()
            ),
        }),
    }
}
