//! The capture: row triggers that note the keys of written rows in the application's own transaction.
//!
//! The triggers run with the rights of the user that created them, so that the application needs none. They look at
//! `@branchline_applying`, which only our own connection sets.
//!
//! **Transactions.** No function that a trigger may call names its transaction. What is noted instead is sure to be one
//! for all writes of a transaction: the connection's number, and for a statement that is a transaction of its own
//! also the statement's time. So the transactions of one connection that wait at the same time are one unit: coarser
//! than need be, never torn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use branchline_core::change::Key;
use branchline_core::identity::Micros;
use branchline_core::port::{Backlog, DatabaseError, DbResult};
use branchline_core::schema::{Schema, Table, TableId};

use super::books::TABLES;
use super::cascade::{self, Cascade};
use super::catalog::{self, Reference};
use super::connection::{Flavour, MysqlDatabase};
use super::ddl::ident;
use super::encoding::{decoded_key, encoded, key_expression, key_moved, row_expression};
use super::layout::Layout;
use super::literal::push_bytes;
use super::read;

/// How often a catalogue change gives way to the application's transactions before it gives up.
const ATTEMPTS: u32 = 40;
/// Keys named in one statement.
const PAGE: usize = 500;

pub(super) const INTO: &str = "INSERT INTO branchline_capture (tbl, op, at, tx, `key`, `before`)";

/// When and in which transaction, as an expression.
pub(super) fn stamp(flavour: Flavour) -> &'static str {
    match flavour {
        // A statement's time is the same in all triggers that it fires, and in theirs.
        Flavour::MariaDb => {
            "UTC_TIMESTAMP(6), CONCAT(CONNECTION_ID(), IF(@@in_transaction, '', CONCAT('/', UTC_TIMESTAMP(6))))"
        }
        Flavour::MySql => "UTC_TIMESTAMP(6), CONNECTION_ID()",
    }
}

pub(super) async fn prepare(db: &mut MysqlDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    for (name, columns) in TABLES {
        db.execute(format!(
            "CREATE TABLE IF NOT EXISTS {name} ({columns}) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET ascii"
        ))
        .await?;
    }
    Ok(())
}

/// What stands before the statements of a trigger. The application may have renamed or retyped what they name; its write
/// must not fail for that. What was missed is noted, and found by a look through the table.
pub(super) fn or_missed<'t>(tables: impl IntoIterator<Item = &'t TableId>) -> String {
    let values: Vec<String> = tables.into_iter().map(|id| format!("({id})")).collect();
    format!(
        "DECLARE EXIT HANDLER FOR 1048, 1054, 1146, 1292, 1366 INSERT INTO branchline_missed (tbl) VALUES {};",
        values.join(", ")
    )
}

/// One of the capture's triggers.
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) table: String,
    /// `AFTER INSERT`, ...
    pub(super) event: &'static str,
    pub(super) body: String,
}

/// The triggers that note the writes to a table.
fn triggers(flavour: Flavour, table: &Table, layout: &Layout) -> DbResult<Vec<Trigger>> {
    let (id, stamp) = (table.id, stamp(flavour));
    let (new, old) = (
        key_expression(table, layout, "NEW")?,
        key_expression(table, layout, "OLD")?,
    );
    let moved = key_moved(table, layout)?;
    let before = if table.keeps_before() {
        row_expression(table, layout, "OLD")?
    } else {
        "NULL".to_owned()
    };
    let inserted = format!("{INTO} VALUES ({id}, 'I', {stamp}, {new}, NULL);");
    let trigger = |event: &'static str, name: &str, work: &str| Trigger {
        name: format!("branchline_{id}_{name}"),
        table: table.name.clone(),
        event,
        body: format!(
            "BEGIN {} IF @branchline_applying IS NULL THEN {work} END IF; END",
            or_missed([&id])
        ),
    };
    Ok(vec![
        trigger("AFTER INSERT", "insert", &inserted),
        trigger(
            "AFTER UPDATE",
            "update",
            &format!(
                "{INTO} VALUES ({id}, 'U', {stamp}, {old}, {before}); IF {moved} THEN {inserted} END IF;"
            ),
        ),
        trigger(
            "AFTER DELETE",
            "delete",
            &format!("{INTO} VALUES ({id}, 'U', {stamp}, {old}, {before});"),
        ),
    ])
}

/// All triggers that a schema needs, and the tables that each serves.
async fn wanted(
    db: &mut MysqlDatabase,
    schema: &Schema,
) -> DbResult<Vec<(Trigger, BTreeSet<TableId>)>> {
    let mut all = Vec::new();
    for table in &schema.tables {
        let layout = db.layout(&table.name).await?;
        for trigger in triggers(db.flavour, table, &layout)? {
            all.push((trigger, BTreeSet::from([table.id])));
        }
    }
    for Cascade { trigger, reaches } in cascade::triggers(db, schema).await? {
        all.push((trigger, reaches));
    }
    Ok(all)
}

/// Our triggers as found: name to table, event and body.
async fn found(db: &mut MysqlDatabase) -> DbResult<BTreeMap<String, (String, String, String)>> {
    let sql = "SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE, CONCAT(ACTION_TIMING, ' ', EVENT_MANIPULATION), ACTION_STATEMENT
               FROM information_schema.TRIGGERS
               WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND TRIGGER_NAME LIKE 'branchline\\_%'";
    let rows = db.catalogue(sql).await?;
    Ok(rows
        .iter()
        .map(|row| (row.text(0), (row.text(1), row.text(2), row.text(3))))
        .collect())
}

/// The tables that have a trigger of ours for their own rows, by number.
pub(super) async fn captured_tables(db: &mut MysqlDatabase) -> DbResult<BTreeMap<TableId, String>> {
    let mut tables = BTreeMap::new();
    for (name, (table, _, _)) in found(db).await? {
        let number = name.strip_prefix("branchline_");
        let number = number.and_then(|rest| rest.strip_suffix("_insert")?.parse().ok());
        tables.extend(number.map(|number| (number, table)));
    }
    Ok(tables)
}

fn stands(found: &BTreeMap<String, (String, String, String)>, wanted: &Trigger) -> bool {
    found.get(&wanted.name).is_some_and(|(table, event, body)| {
        *table == wanted.table && event == wanted.event && *body == wanted.body
    })
}

pub(super) async fn missing(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<Vec<TableId>> {
    db.open_catalogue().await?;
    let (mut there, mut missing) = (schema.clone(), BTreeSet::new());
    db.learn_layouts().await?;
    for table in &schema.tables {
        let whole = match db.layout(&table.name).await {
            Ok(layout) => triggers(db.flavour, table, &layout).map(|_| ()),
            Err(error) => Err(error),
        };
        match whole {
            Ok(()) => {}
            Err(DatabaseError::Mismatch { .. }) => {
                missing.insert(table.id);
                there.tables.retain(|other| other.id != table.id);
            }
            Err(other) => return Err(other),
        }
    }
    let noted = "SELECT DISTINCT m.tbl FROM branchline_missed m";
    let prepared = "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'branchline_missed'";
    if !db.rows(prepared).await?.is_empty() {
        let noted: Vec<TableId> = db
            .rows(noted)
            .await?
            .iter()
            .filter_map(|row| row.number(0))
            .collect();
        db.missed = noted.iter().copied().collect();
        missing.extend(noted.into_iter().filter(|id| schema.table(*id).is_some()));
    }
    let found = found(db).await?;
    for (trigger, tables) in wanted(db, &there).await? {
        if !stands(&found, &trigger) {
            missing.extend(tables);
        }
    }
    Ok(missing.into_iter().collect())
}

pub(super) async fn install(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<()> {
    catalog::compatible(db, schema).await?;
    // An older version made fewer tables.
    prepare(db).await?;
    install_on_fitting(db, schema).await
}

/// As [`install`], where it was looked at already whether the tables fit.
pub(super) async fn install_on_fitting(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<()> {
    db.learn_layouts().await?;
    let found = found(db).await?;
    let wanted = wanted(db, schema).await?;
    for (trigger, _) in &wanted {
        if !stands(&found, trigger) {
            create(db, trigger).await?;
        }
    }
    for (name, (table, _, _)) in &found {
        if !wanted.iter().any(|(trigger, _)| trigger.name == *name) {
            let sql = format!("DROP TRIGGER IF EXISTS {}", ident(name));
            patiently(db, table, &sql).await?;
        }
    }
    // The caller looks through the tables that were named as missing. What was missed only since is for the next look.
    let named = std::mem::take(&mut db.missed);
    let others = schema
        .tables
        .iter()
        .filter(|table| !named.contains(&table.id));
    let others: Vec<String> = others.map(|table| table.id.to_string()).collect();
    let others = match others.as_slice() {
        [] => String::new(),
        others => format!(" WHERE tbl NOT IN ({})", others.join(", ")),
    };
    db.execute(format!("DELETE FROM branchline_missed{others}"))
        .await?;
    db.forget_layouts();
    Ok(())
}

/// Captures what the actions of these foreign keys do to children, where anything is captured at all; and the writes to a
/// table that has just changed.
pub(super) async fn follow_actions(
    db: &mut MysqlDatabase,
    schema: &Schema,
    keys: &[Reference],
    changed: Option<&Table>,
) -> DbResult<()> {
    let found = found(db).await?;
    if found.is_empty() {
        return Ok(());
    }
    db.learn_layouts().await?;
    let mut wanted = Vec::new();
    if let Some(table) = changed {
        let layout = db.layout(&table.name).await?;
        wanted.extend(triggers(db.flavour, table, &layout)?);
    }
    let cascades = cascade::triggers_of(db, schema, keys).await?;
    wanted.extend(cascades.into_iter().map(|Cascade { trigger, .. }| trigger));
    for trigger in wanted {
        if !stands(&found, &trigger) {
            create(db, &trigger).await?;
        }
    }
    Ok(())
}

/// Creates a trigger in the place of one of its name, with no moment between in which the table has none.
async fn create(db: &mut MysqlDatabase, trigger: &Trigger) -> DbResult<()> {
    let Trigger {
        name,
        table,
        event,
        body,
    } = trigger;
    let rest = format!(
        "TRIGGER {} {event} ON {} FOR EACH ROW {body}",
        ident(name),
        ident(table)
    );
    match db.flavour {
        Flavour::MariaDb => patiently(db, table, &format!("CREATE OR REPLACE {rest}")).await,
        Flavour::MySql => {
            // What is locked cannot be written between the two.
            let lock = format!("LOCK TABLES {} WRITE", ident(table));
            patiently(db, table, &lock).await?;
            let drop = format!("DROP TRIGGER IF EXISTS {}", ident(name));
            let made = async {
                db.execute_on(table, drop).await?;
                db.execute_on(table, format!("CREATE {rest}")).await
            }
            .await;
            db.execute("UNLOCK TABLES").await?;
            made
        }
    }
}

/// Runs a catalogue change, giving way to the application's transactions: while it waits for its lock the application
/// waits behind it, so it waits a second at most, and often.
pub(super) async fn patiently(db: &mut MysqlDatabase, table: &str, sql: &str) -> DbResult<()> {
    let mut attempt = 1;
    loop {
        match db.execute_on(table, sql).await {
            Err(DatabaseError::Busy(_)) if attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(50 + u64::from(attempt) * 10)).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

pub(super) async fn uninstall(db: &mut MysqlDatabase) -> DbResult<()> {
    db.open_catalogue().await?;
    for (name, (table, _, _)) in found(db).await? {
        let sql = format!("DROP TRIGGER IF EXISTS {}", ident(&name));
        patiently(db, &table, &sql).await?;
    }
    for (name, _) in TABLES {
        patiently(db, "", &format!("DROP TABLE IF EXISTS {name}")).await?;
    }
    db.forget_layouts();
    Ok(())
}

pub(super) async fn captured(
    db: &mut MysqlDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<BTreeSet<Key>> {
    let select = format!(
        "SELECT DISTINCT `key` FROM branchline_capture WHERE tbl = {}",
        table.id
    );
    let Some(keys) = keys else {
        let rows = db.rows(select).await?;
        let key = |bytes| decoded_key(table, bytes).unwrap_or_else(|(key, _)| key);
        return Ok(rows
            .iter()
            .filter_map(|row| row.bytes(0))
            .map(key)
            .collect());
    };
    let mut found = BTreeSet::new();
    for keys in keys.chunks(PAGE) {
        let mut sql = format!("{select} AND `key` IN (").into_bytes();
        let mut names: BTreeMap<Vec<u8>, &Key> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            let name = encoded(table, key);
            if at > 0 {
                sql.push(b',');
            }
            push_bytes(&mut sql, &name);
            names.insert(name, key);
        }
        sql.push(b')');
        for row in db.rows(sql).await? {
            // The answer is in the caller's spelling.
            let named = row.bytes(0).and_then(|name| names.get(name));
            found.extend(named.map(|key| (*key).clone()));
        }
    }
    Ok(found)
}

pub(super) async fn recapture(
    db: &mut MysqlDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<()> {
    if let Some(keys) = keys {
        for keys in keys.chunks(PAGE) {
            note(db, table, "U", keys).await?;
        }
        return Ok(());
    }
    // Page by page: `INSERT ... SELECT` would keep the capture's counter, and the application's writes, waiting to its end.
    let mut last: Option<Key> = None;
    loop {
        let keys = read::keys(db, table, last.as_ref(), PAGE).await?;
        if keys.is_empty() {
            return Ok(());
        }
        note(db, table, "X", &keys).await?;
        last = keys.into_iter().next_back();
    }
}

/// Puts keys into the capture.
async fn note(db: &mut MysqlDatabase, table: &Table, op: &str, keys: &[Key]) -> DbResult<()> {
    let stamp = stamp(db.flavour);
    let mut sql = format!("{INTO} VALUES ").into_bytes();
    for (at, key) in keys.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        sql.extend_from_slice(format!("{comma}({}, '{op}', {stamp}, ", table.id).as_bytes());
        push_bytes(&mut sql, &encoded(table, key));
        sql.extend_from_slice(b", NULL)");
    }
    db.execute(sql).await
}

/// Microseconds since 1970 of a column of ours.
pub(super) const MICROS: &str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', at)";

pub(super) async fn backlog(db: &mut MysqlDatabase) -> DbResult<Backlog> {
    let rows = db
        .rows("SELECT COUNT(*), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', MIN(at)) FROM branchline_capture")
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Backlog::default());
    };
    Ok(Backlog {
        writes: row.number(0).unwrap_or(0),
        oldest: row.number(1).map(Micros),
    })
}

/// Whether a table of ours has this name.
pub(super) fn ours(table: &str) -> bool {
    TABLES.iter().any(|(name, _)| *name == table)
}
