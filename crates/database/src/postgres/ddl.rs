//! Names in SQL, and the shared tables that do not exist yet.

use std::collections::BTreeSet;

use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, ForeignKey, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::checks::WORDS;
use super::connection::PostgresDatabase;
use super::install::{patiently, prepare};
use super::layout::mismatch;
use super::{literal, types};
use crate::checks;

/// An identifier, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Schema and name of a table or type as the plan names it.
pub(super) fn names(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

/// The quoted, qualified form of a name in the plan.
pub(super) fn relation(name: &str) -> String {
    let (schema, name) = names(name);
    format!("{}.{}", ident(schema), ident(name))
}

/// A list of the columns at these indexes, quoted.
pub(super) fn columns(table: &Table, at: &[u16]) -> String {
    let found = at
        .iter()
        .filter_map(|&at| table.columns.get(usize::from(at)));
    found
        .map(|column| ident(&column.name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Bytes of a name; the server cuts a longer one.
const LONGEST_NAME: usize = 63;

/// Refuses names that the server would cut, after which they could be others'.
fn check_names(table: &Table) -> DbResult<()> {
    let (schema, name) = names(&table.name);
    let columns = table.columns.iter().map(|column| column.name.as_str());
    let mut all = [schema, name].into_iter().chain(columns);
    match all.find(|name| name.len() > LONGEST_NAME) {
        None => Ok(()),
        Some(long) => Err(mismatch(
            &table.name,
            format!(
                "the name `{long}` has {} bytes, and PostgreSQL keeps {LONGEST_NAME}; shorten it at the head, or leave the table out",
                long.len()
            ),
        )),
    }
}

/// Creates the tables that are missing. Which they are is noted until [`add_foreign_keys`] completes them.
pub(super) async fn create_tables(
    db: &mut PostgresDatabase,
    schema: &Schema,
) -> DbResult<Vec<String>> {
    prepare(db).await?;
    db.open_catalogue().await?;
    let created = create_missing(db, schema).await;
    let created = created.map_err(|(_, error)| error)?;
    db.close(true).await?;
    db.forget_layouts();
    Ok(created)
}

/// As [`create_tables`], in the transaction that is open. An error comes with the table that it is about.
pub(super) async fn create_missing(
    db: &mut PostgresDatabase,
    schema: &Schema,
) -> Result<Vec<String>, (TableId, DatabaseError)> {
    let mut created = Vec::new();
    for table in &schema.tables {
        let made = async {
            if exists(db, &table.name).await? {
                return Ok(false);
            }
            check_names(table)?;
            for sql in enums(table) {
                db.execute(&sql).await?;
            }
            db.execute(&create(table)).await?;
            for index in &table.indexes {
                let (relation, columns) = (relation(&table.name), columns(table, index));
                db.execute(&format!("CREATE INDEX ON {relation} ({columns})"))
                    .await?;
            }
            Ok(true)
        };
        if made.await.map_err(|error| (table.id, error))? {
            created.push(table.name.clone());
        }
    }
    let note = "INSERT INTO branchline.created SELECT pg_catalog.unnest($1::text[]) ON CONFLICT DO NOTHING";
    let noted = db.query(note, &[Wire::TEXT_ARRAY], &[&created]).await;
    noted.map_err(|error| (0, error))?;
    Ok(created)
}

/// The tables that wait for [`add_foreign_keys`].
pub(super) async fn waiting(db: &mut PostgresDatabase) -> DbResult<BTreeSet<String>> {
    let noted = db
        .query("SELECT name FROM branchline.created", &[], &[])
        .await?;
    noted.iter().map(|row| get(row, 0)).collect()
}

/// Adds the foreign keys of tables that [`create_tables`] made, each table's in one transaction with its note.
pub(super) async fn add_foreign_keys(db: &mut PostgresDatabase, schema: &Schema) -> DbResult<()> {
    db.open_catalogue().await?;
    let noted = waiting(db).await?;
    let mut work = Vec::new();
    for table in schema
        .tables
        .iter()
        .filter(|table| noted.contains(&table.name))
    {
        let mut sql = format!(
            "DELETE FROM branchline.created WHERE name = {};",
            literal::text(&Value::Text(table.name.clone()))
        );
        for key in &table.foreign_keys {
            if exists(db, &key.parent).await? {
                sql.push_str(&foreign_key(table, key, ""));
            }
        }
        work.push((table.name.clone(), sql));
    }
    db.close(false).await?;
    let mut refused = None;
    for (table, sql) in work {
        match patiently(db, &table, &sql).await {
            Ok(()) => {}
            Err(error @ (DatabaseError::Constraint { .. } | DatabaseError::Mismatch { .. })) => {
                refused.get_or_insert(error);
            }
            Err(other) => return Err(other),
        }
    }
    db.forget_layouts();
    refused.map_or(Ok(()), Err)
}

pub(super) async fn exists(db: &mut PostgresDatabase, name: &str) -> DbResult<bool> {
    let sql =
        "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";
    let (schema, name) = names(name);
    Ok(!db
        .query(sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &name])
        .await?
        .is_empty())
}

/// The name of an enum's type here; engines without named enums leave it empty.
fn enum_name(table: &Table, column: &str, name: &str) -> String {
    if name.is_empty() {
        format!("{}_{column}", table.name)
    } else {
        name.to_owned()
    }
}

pub(super) fn enums(table: &Table) -> Vec<String> {
    let mut made = Vec::new();
    for column in &table.columns {
        let mut kind = &column.kind;
        while let Type::Array(of) = kind {
            kind = of;
        }
        if let Type::Enum { name, labels } = kind {
            let name = enum_name(table, &column.name, name);
            let labels: Vec<String> = labels
                .iter()
                .map(|l| literal::text(&Value::Text(l.clone())))
                .collect();
            made.push(format!(
                "{} DO $make$ BEGIN
                     IF pg_catalog.to_regtype({}) IS NULL THEN CREATE TYPE {} AS ENUM ({}); END IF;
                 END $make$",
                in_schema(&name),
                literal::text(&Value::Text(relation(&name))),
                relation(&name),
                labels.join(", ")
            ));
        }
    }
    made
}

/// Creates a schema where it is missing. The right to do so is only needed then.
fn in_schema(name: &str) -> String {
    let (schema, _) = names(name);
    format!(
        "DO $make$ BEGIN
             IF pg_catalog.to_regnamespace({}) IS NULL THEN CREATE SCHEMA {}; END IF;
         END $make$;",
        literal::text(&Value::Text(ident(schema))),
        ident(schema)
    )
}

/// The column at this place in `CREATE TABLE`.
pub(super) fn column_definition(table: &Table, at: usize) -> String {
    let column = table.columns.get(at);
    column.map_or_else(String::new, |column| defined(table, at, column))
}

/// The type that a column is declared with.
pub(super) fn declared(table: &Table, column: &Column) -> String {
    match &column.kind {
        Type::Enum { name, .. } => relation(&enum_name(table, &column.name, name)),
        kind => types::declaration(kind),
    }
}

fn defined(table: &Table, at: usize, column: &Column) -> String {
    let kind = declared(table, column);
    let required = if column.nullable && !table.is_key(at) {
        ""
    } else {
        " NOT NULL"
    };
    let default = match &column.default {
        Some(value) if !column.generated_key => {
            format!(" DEFAULT {}", literal::text(value))
        }
        _ => String::new(),
    };
    let whole = matches!(column.kind, Type::Int16 | Type::Int32 | Type::Int64);
    let generated = if column.generated_key && whole {
        " GENERATED BY DEFAULT AS IDENTITY"
    } else {
        ""
    };
    format!(
        "{} {kind}{required}{default}{generated}",
        ident(&column.name)
    )
}

fn create(table: &Table) -> String {
    let mut parts: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| defined(table, at, column))
        .collect();
    parts.push(format!("PRIMARY KEY ({})", columns(table, &table.key)));
    parts.extend(
        table
            .unique
            .iter()
            .map(|unique| format!("UNIQUE ({})", columns(table, unique))),
    );
    parts.extend(checks::clauses(&WORDS, table, |_| true, true));
    format!(
        "{} CREATE TABLE {} ({})",
        in_schema(&table.name),
        relation(&table.name),
        parts.join(", ")
    )
}

pub(super) fn foreign_key(table: &Table, key: &ForeignKey, deferral: &str) -> String {
    let parents: Vec<String> = key.parent_columns.iter().map(|name| ident(name)).collect();
    let action = |when: &str, action: &str| match action.to_ascii_uppercase().as_str() {
        known @ ("CASCADE" | "SET NULL" | "SET DEFAULT" | "RESTRICT") => format!(" {when} {known}"),
        _ => String::new(),
    };
    format!(
        "ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({}){}{}{deferral};",
        relation(&table.name),
        columns(table, &key.columns),
        relation(&key.parent),
        parents.join(", "),
        action("ON DELETE", &key.on_delete),
        action("ON UPDATE", &key.on_update),
    )
}
