//! Branchline's own tables, shared tables that do not exist yet, and the removal of everything that is ours.

use std::collections::BTreeSet;

use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, ForeignKey, Schema, Table};
use branchline_core::value::Type;
use rusqlite::Connection;

use super::catalog::Live;
use super::checks::WORDS;
use super::declared::declaration;
use super::error::{failure, mismatch, on};
use super::sql::{list, literal, quoted, text};
use super::triggers;
use crate::checks;

/// Our tables. The capture's key columns have no type, so that keys keep their storage class; its numbers are a column, so
/// that `VACUUM` leaves them alone. Nothing is `AUTOINCREMENT`, which would leave `sqlite_sequence` behind.
const OWN_TABLES: [(&str, &str); 6] = [
    (
        "branchline_capture",
        "(number INTEGER PRIMARY KEY, tbl INTEGER, op TEXT, at INTEGER, k0, k1, k2, k3, k4, k5, k6, k7)",
    ),
    ("branchline_part", "(number INTEGER PRIMARY KEY)"),
    ("branchline_applying", "(x INTEGER)"),
    (
        "branchline_meta",
        "(name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    ),
    (
        "branchline_stream",
        "(stream TEXT, number INTEGER, bytes BLOB, PRIMARY KEY (stream, number))",
    ),
    (
        "branchline_note",
        "(tbl INTEGER, key BLOB, note BLOB, PRIMARY KEY (tbl, key)) WITHOUT ROWID",
    ),
];

/// What a foreign key may do. The plan comes from another office: nothing else becomes SQL.
const ACTIONS: [&str; 5] = [
    "NO ACTION",
    "RESTRICT",
    "CASCADE",
    "SET NULL",
    "SET DEFAULT",
];

/// See [`branchline_core::port::Database::prepare`].
pub(super) fn prepare(connection: &Connection) -> DbResult<()> {
    OWN_TABLES.iter().try_for_each(|(name, shape)| {
        connection
            .execute_batch(&format!("CREATE TABLE IF NOT EXISTS {name}{shape}"))
            .map_err(failure)
    })
}

/// See [`branchline_core::port::Database::uninstall`].
pub(super) fn uninstall(connection: &Connection) -> DbResult<()> {
    for (name, _) in triggers::installed(connection)? {
        connection
            .execute_batch(&format!("DROP TRIGGER {}", quoted(&name)))
            .map_err(failure)?;
    }
    OWN_TABLES.iter().try_for_each(|(name, _)| {
        connection
            .execute_batch(&format!("DROP TABLE IF EXISTS {name}"))
            .map_err(failure)
    })
}

/// Refuses names that differ in letter case alone, which is nothing here.
fn check_names(schema: &Schema) -> DbResult<()> {
    let mut tables = BTreeSet::new();
    for table in &schema.tables {
        if !tables.insert(table.name.to_ascii_lowercase()) {
            return Err(mismatch(
                &table.name,
                "another table's name differs from its name in letter case alone, which SQLite does not tell apart; rename one at the head, or leave it out",
            ));
        }
        let mut columns = BTreeSet::new();
        for column in &table.columns {
            if !columns.insert(column.name.to_ascii_lowercase()) {
                return Err(mismatch(
                    &table.name,
                    format!(
                        "another column's name differs from `{}` in letter case alone, which SQLite does not tell apart; rename one at the head, or leave the table out",
                        column.name
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// See [`branchline_core::port::Database::create_tables`].
pub(super) fn create_tables(connection: &Connection, schema: &Schema) -> DbResult<Vec<String>> {
    check_names(schema)?;
    let mut ordered = schema.clone();
    ordered.sort_parents_first();
    let mut created = Vec::new();
    for table in &ordered.tables {
        if Live::find(connection, &table.name)?.is_none() {
            connection
                .execute_batch(&definition(table)?)
                .map_err(on(&table.name))?;
            for index in &table.indexes {
                let sql = index_definition(connection, table, index, false)?;
                connection.execute_batch(&sql).map_err(on(&table.name))?;
            }
            created.push(table.name.clone());
        }
    }
    Ok(created)
}

/// An index under a name that is free.
pub(super) fn index_definition(
    connection: &Connection,
    table: &Table,
    columns: &[u16],
    unique: bool,
) -> DbResult<String> {
    let (word, suffix) = if unique {
        ("UNIQUE ", "key")
    } else {
        ("", "idx")
    };
    let parts: Vec<String> = std::iter::once(table.name.clone())
        .chain(crate::lineage::names_of(table, columns))
        .collect();
    let base = format!("{}_{suffix}", parts.join("_"));
    let mut name = base.clone();
    let mut taken = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?1 COLLATE NOCASE)",
        )
        .map_err(failure)?;
    let mut number = 1;
    while taken
        .query_row([&name], |row| row.get(0))
        .map_err(failure)?
    {
        number += 1;
        name = format!("{base}{number}");
    }
    Ok(format!(
        "CREATE {word}INDEX {} ON {} ({})",
        quoted(&name),
        quoted(&table.name),
        named(table, columns)?
    ))
}

fn definition(table: &Table) -> DbResult<String> {
    if table.name.starts_with("sqlite_") || table.name.starts_with("branchline_") {
        return Err(mismatch(
            &table.name,
            "this name belongs to SQLite or Branchline",
        ));
    }
    let numbered = numbered_key(table);
    let mut parts: Vec<String> = Vec::new();
    for (at, column) in table.columns.iter().enumerate() {
        parts.push(column_definition(
            column,
            numbered == Some(at),
            table.is_key(at),
        ));
    }
    if numbered.is_none() {
        parts.push(format!(
            "PRIMARY KEY ({})",
            list(table.key_columns().map(|column| quoted(&column.name)))
        ));
    }
    for unique in &table.unique {
        parts.push(format!("UNIQUE ({})", named(table, unique)?));
    }
    for reference in &table.foreign_keys {
        parts.push(reference_definition(table, reference)?);
    }
    parts.extend(checks::clauses(&WORDS, table, |_| true, true));
    Ok(format!(
        "CREATE TABLE {} (\n  {}\n)",
        quoted(&table.name),
        parts.join(",\n  ")
    ))
}

/// The column that becomes `INTEGER PRIMARY KEY`: the only key column, where it holds integers.
pub(super) fn numbered_key(table: &Table) -> Option<usize> {
    let [at] = table.key.as_slice() else {
        return None;
    };
    let at = usize::from(*at);
    let integer = matches!(
        table.columns.get(at)?.kind,
        Type::Int16 | Type::Int32 | Type::Int64
    );
    integer.then_some(at)
}

pub(super) fn column_definition(column: &Column, numbered: bool, key: bool) -> String {
    let name = quoted(&column.name);
    let check =
        check(&name, &column.kind).map_or_else(String::new, |check| format!(" CHECK ({check})"));
    if numbered {
        return format!("{name} INTEGER PRIMARY KEY{check}");
    }
    let not_null = if key || !column.nullable {
        " NOT NULL"
    } else {
        ""
    };
    let default = column.default.as_ref().and_then(literal);
    let default = default.map_or_else(String::new, |literal| format!(" DEFAULT {literal}"));
    format!(
        "{name} {}{not_null}{default}{check}",
        declaration(&column.kind)
    )
}

/// What the plan's type refuses and SQLite would take: it is refused where it is written, not at another office.
pub(super) fn check(name: &str, kind: &Type) -> Option<String> {
    match kind {
        Type::Bool => Some(format!("{name} IN (0, 1)")),
        Type::Int16 => Some(format!("{name} BETWEEN -32768 AND 32767")),
        Type::Int32 => Some(format!("{name} BETWEEN -2147483648 AND 2147483647")),
        Type::Text { max: Some(max) } => Some(format!("length({name}) <= {max}")),
        Type::Char { length } => Some(format!("length({name}) <= {length}")),
        Type::Enum { labels, .. } => Some(format!(
            "{name} IN ({})",
            list(labels.iter().map(|label| text(label)))
        )),
        _ => None,
    }
}

pub(super) fn reference_definition(table: &Table, reference: &ForeignKey) -> DbResult<String> {
    let action = |action: &str| {
        let known = ACTIONS
            .iter()
            .find(|known| known.eq_ignore_ascii_case(action.trim()));
        known.ok_or_else(|| mismatch(&table.name, format!("`{action}` is no referential action")))
    };
    Ok(format!(
        "FOREIGN KEY ({}) REFERENCES {} ({}) ON DELETE {} ON UPDATE {}",
        named(table, &reference.columns)?,
        quoted(&reference.parent),
        list(reference.parent_columns.iter().map(|name| quoted(name))),
        action(&reference.on_delete)?,
        action(&reference.on_update)?,
    ))
}

fn named(table: &Table, columns: &[u16]) -> DbResult<String> {
    let name = |&at: &u16| {
        table
            .columns
            .get(usize::from(at))
            .map(|column| quoted(&column.name))
    };
    let names: Option<Vec<String>> = columns.iter().map(name).collect();
    names.map(list).ok_or_else(|| {
        DatabaseError::Other(format!(
            "a constraint of table `{}` names no column",
            table.name
        ))
    })
}
