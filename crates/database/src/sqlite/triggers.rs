//! The capture triggers: their text, their installation, and whether they are still there.
//!
//! Each appends the row's key to `branchline_capture` unless the marker row is there. Two rules shape them. The outer
//! statement's `OR IGNORE` or `OR REPLACE` overrides what a trigger says, so they only ever append, to a table without
//! constraints: they cannot make the application's write fail. And `OR REPLACE` deletes the rows in its way without
//! firing delete triggers, so `BEFORE` triggers record the rows that share the new row's key or unique values.
//! Behind each such row, and behind OLD, stands its image where the table keeps one (`image`).

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::port::DbResult;
use branchline_core::schema::{Schema, Table, TableId};
use rusqlite::Connection;

use super::catalog::Live;
use super::declared::serves;
use super::error::{failure, mismatch};
use super::image;
use super::sql::{KEY_COLUMNS, NOW, all, key_slots, list, quoted};

/// What every trigger of ours is named after.
pub(super) const PREFIX: &str = "branchline_capture_";

const UNMARKED: &str = "WHEN NOT EXISTS (SELECT 1 FROM branchline_applying)";

/// Columns that no two rows share, each with its collation.
type UniqueColumns<'a> = Vec<(&'a str, &'a str)>;

/// A trigger's name and whole text.
struct Trigger {
    name: String,
    sql: String,
}

/// See [`branchline_core::port::Database::install`].
pub(super) fn install(connection: &Connection, schema: &Schema) -> DbResult<()> {
    install_beside(connection, schema, &BTreeSet::new())
}

/// As [`install`]; the capture of the tables with numbers in `keeps` stays as it is.
pub(super) fn install_beside(
    connection: &Connection,
    schema: &Schema,
    keeps: &BTreeSet<TableId>,
) -> DbResult<()> {
    let mut wanted = Vec::new();
    for table in &schema.tables {
        let live = Live::find(connection, &table.name)?.ok_or_else(|| {
            mismatch(
                &table.name,
                "there is no such table; create it or let `create_tables` do so",
            )
        })?;
        check(table, &live)?;
        wanted.extend(definitions(table, &live));
    }
    let mut installed = installed(connection)?;
    let outdated = |name: &String, sql: &String| {
        let kept = table_of(name).is_some_and(|id| keeps.contains(&id));
        let mut wanted = wanted.iter();
        !kept && !wanted.any(|trigger| trigger.name == *name && trigger.sql == *sql)
    };
    let mut dropped = Vec::new();
    installed.retain(|name, sql| {
        let stays = !outdated(name, sql);
        if !stays {
            dropped.push(format!("DROP TRIGGER {}", quoted(name)));
        }
        stays
    });
    for drop in &dropped {
        connection.execute_batch(drop).map_err(failure)?;
    }
    for trigger in &wanted {
        if !installed.contains_key(&trigger.name) {
            connection.execute_batch(&trigger.sql).map_err(failure)?;
        }
    }
    let shared = schema.tables.iter().map(|table| &table.id).chain(keeps);
    let shared = list(shared.map(TableId::to_string));
    // The numbers of the last ones may be given again, to writes that the mark behind them does not part.
    let forget = format!(
        "DELETE FROM branchline_capture WHERE tbl NOT IN ({shared});
         DELETE FROM branchline_part
         WHERE number > (SELECT coalesce(max(number), 0) FROM branchline_capture)"
    );
    connection.execute_batch(&forget).map_err(failure)
}

/// See [`branchline_core::port::Database::missing_capture`].
pub(super) fn missing(connection: &Connection, schema: &Schema) -> DbResult<Vec<TableId>> {
    let installed = installed(connection)?;
    let mut missing = Vec::new();
    for table in &schema.tables {
        let live = Live::find(connection, &table.name)?;
        let whole = live.is_some_and(|live| {
            let mut wanted = definitions(table, &live).into_iter();
            wanted.all(|trigger| installed.get(&trigger.name) == Some(&trigger.sql))
        });
        if !whole {
            missing.push(table.id);
        }
    }
    Ok(missing)
}

/// The number of the table that a trigger of ours captures, by the trigger's name.
pub(super) fn table_of(trigger: &str) -> Option<TableId> {
    trigger
        .strip_prefix(PREFIX)?
        .split('_')
        .next()?
        .parse()
        .ok()
}

/// The tables that have a trigger of ours, by number.
pub(super) fn captured_tables(connection: &Connection) -> DbResult<BTreeMap<TableId, String>> {
    let found: Vec<(String, String)> = connection
        .prepare_cached(
            "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name GLOB ?1 || '*'",
        )
        .and_then(|mut all| {
            all.query_map([PREFIX], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .map_err(failure)?;
    let number = |(name, table): (String, String)| Some((table_of(&name)?, table));
    Ok(found.into_iter().filter_map(number).collect())
}

/// All capture triggers in the database, by name, with their text.
pub(super) fn installed(connection: &Connection) -> DbResult<BTreeMap<String, String>> {
    connection
        .prepare_cached(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB ?1 || '*'",
        )
        .and_then(|mut all| {
            all.query_map([PREFIX], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .map_err(failure)
}

/// Whether the table can hold the plan's rows, column by column.
fn check(table: &Table, live: &Live) -> DbResult<()> {
    let refuse = |message: String| Err(mismatch(&table.name, message));
    for column in &table.columns {
        let Some(found) = live.column(&column.name).filter(|found| !found.generated) else {
            return refuse(format!("column `{}` is missing", column.name));
        };
        if let Err(why) = serves(&column.kind, &found.declared) {
            return refuse(format!("column `{}` {why}", column.name));
        }
    }
    let (plan, found) = (
        sorted(table.key_columns().map(|c| &c.name)),
        sorted(live.key().into_iter().map(|c| &c.name)),
    );
    if plan != found {
        return refuse(format!(
            "its primary key is ({}) here and ({}) in the plan",
            found.join(", "),
            plan.join(", ")
        ));
    }
    if plan.len() > KEY_COLUMNS {
        return refuse(format!(
            "its primary key has more than {KEY_COLUMNS} columns"
        ));
    }
    if let Some(collation) = live.folding_key() {
        return refuse(format!(
            "its primary key has collation {collation}, under which different keys are the same"
        ));
    }
    let unset = live.columns.iter().find(|found| {
        let planned = table
            .columns
            .iter()
            .any(|column| column.name.eq_ignore_ascii_case(&found.name));
        !planned && !found.generated && found.not_null && found.default.is_none()
    });
    match unset {
        Some(found) => refuse(format!(
            "column `{}` is not in the plan, NOT NULL and has no default",
            found.name
        )),
        None => Ok(()),
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<_> = names.map(|name| name.to_lowercase()).collect();
    names.sort();
    names
}

/// The triggers that this table needs in its present shape.
fn definitions(table: &Table, live: &Live) -> Vec<Trigger> {
    let append =
        |op: &str, row: &str| format!("{} SELECT {}", into(table), captured(table, op, row));
    let key: UniqueColumns<'_> = table
        .key_columns()
        .map(|column| (column.name.as_str(), "BINARY"))
        .collect();
    let key_changed = changed(&key);
    let found = image::statements(table, "OLD", "");
    let sets: Vec<UniqueColumns<'_>> = std::iter::once(key).chain(live.unique_columns()).collect();
    let inserted = sets.iter().map(|set| replaced(table, set, "")).collect();
    let updated = sets
        .iter()
        .map(|set| replaced(table, set, &format!(" AND ({})", changed(set))))
        .collect();
    [
        ("before_insert", "BEFORE INSERT", inserted),
        ("before_update", "BEFORE UPDATE", updated),
        (
            "insert",
            "AFTER INSERT",
            format!("{}; ", append("I", "NEW")),
        ),
        (
            "update",
            "AFTER UPDATE",
            format!(
                "{}; {found}{} WHERE {key_changed}; ",
                append("U", "OLD"),
                append("I", "NEW")
            ),
        ),
        (
            "delete",
            "AFTER DELETE",
            format!("{}; {found}", append("U", "OLD")),
        ),
    ]
    .into_iter()
    .map(|(suffix, event, body)| {
        let name = format!("{PREFIX}{}_{suffix}", table.id);
        let sql = format!(
            "CREATE TRIGGER {} {event} ON {} FOR EACH ROW {UNMARKED} BEGIN {body}END",
            quoted(&name),
            quoted(&table.name)
        );
        Trigger { name, sql }
    })
    .collect()
}

/// Records the rows that hold NEW's values in these columns.
fn replaced(table: &Table, columns: &[(&str, &str)], guard: &str) -> String {
    let same = all(columns.iter().map(|(name, collation)| {
        let name = quoted(name);
        format!("x.{name} = NEW.{name} COLLATE {}", quoted(collation))
    }));
    let (into, existing) = (into(table), captured(table, "U", "x"));
    let from = format!(" FROM {} AS x WHERE {same}{guard}", quoted(&table.name));
    let found = image::statements(table, "x", &from);
    format!("{into} SELECT {existing}{from}; {found}")
}

/// `INSERT INTO branchline_capture(...)` with the key columns that this table uses.
pub(super) fn into(table: &Table) -> String {
    format!(
        "INSERT INTO branchline_capture(tbl, op, at, {})",
        key_slots(table.key.len())
    )
}

/// The values of one captured write, read from `row` (`NEW`, `OLD` or an alias).
pub(super) fn captured(table: &Table, op: &str, row: &str) -> String {
    let key = super::sql::columns(row, table.key_columns());
    format!("{}, '{op}', {NOW}, {key}", table.id)
}

fn changed(columns: &[(&str, &str)]) -> String {
    let differs = columns
        .iter()
        .map(|(name, _)| format!("OLD.{0} IS NOT NEW.{0}", quoted(name)));
    differs.collect::<Vec<_>>().join(" OR ")
}
