//! The application's statements as SQL text, for offices on real engines.

use branchline_core::change::{Key, Row};
use branchline_core::schema::{Column, Schema, Table};
use branchline_core::value::{Type, Value};

use super::Op;

/// How an engine spells literals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
    /// MariaDB, in a session with `ANSI_QUOTES` and `NO_BACKSLASH_ESCAPES`.
    Mysql,
}

/// The statement that does it.
pub fn statement(dialect: Dialect, schema: &Schema, op: &Op) -> String {
    let (Op::Insert(table, _) | Op::Update(table, _, _) | Op::Delete(table, _)) = op;
    let table = schema.table(*table).expect("a shared table");
    let name = quoted(&table.name);
    match op {
        Op::Insert(_, row) => {
            let columns: Vec<String> = table
                .columns
                .iter()
                .map(|column| quoted(&column.name))
                .collect();
            let values: Vec<String> = table
                .columns
                .iter()
                .zip(&row.0)
                .map(|(column, value)| literal(dialect, &column.kind, value))
                .collect();
            format!(
                "INSERT INTO {name} ({}) VALUES ({})",
                columns.join(", "),
                values.join(", ")
            )
        }
        Op::Update(_, key, row) => {
            format!(
                "UPDATE {name} SET {} WHERE {}",
                assignments(dialect, table, row),
                condition(dialect, table, key)
            )
        }
        Op::Delete(_, key) => format!(
            "DELETE FROM {name} WHERE {}",
            condition(dialect, table, key)
        ),
    }
}

fn assignments(dialect: Dialect, table: &Table, row: &Row) -> String {
    let pairs = table.columns.iter().zip(&row.0);
    pairs
        .map(|(column, value)| equal(dialect, column, value))
        .collect::<Vec<_>>()
        .join(", ")
}

fn condition(dialect: Dialect, table: &Table, key: &Key) -> String {
    let pairs = table.key_columns().zip(&key.0);
    pairs
        .map(|(column, value)| equal(dialect, column, value))
        .collect::<Vec<_>>()
        .join(" AND ")
}

fn equal(dialect: Dialect, column: &Column, value: &Value) -> String {
    format!(
        "{} = {}",
        quoted(&column.name),
        literal(dialect, &column.kind, value)
    )
}

/// A name as SQL writes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(dialect: Dialect, kind: &Type, value: &Value) -> String {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    match (dialect, value) {
        (_, Value::Null) => "NULL".into(),
        (Dialect::Postgres, Value::Bool(truth)) => format!("{truth}"),
        (_, Value::Bool(truth)) => u8::from(*truth).to_string(),
        (_, Value::Int(number)) => number.to_string(),
        (Dialect::Postgres, Value::Float(number)) => format!("'{number}'"),
        (_, Value::Float(number)) => format!("{number:?}"),
        (Dialect::Mysql, Value::Text(text)) if *kind == Type::TimestampTz => format!(
            "CONVERT_TZ('{}', '+00:00', @@time_zone)",
            text.trim_end_matches("+00")
        ),
        (_, Value::Text(text)) => format!("'{}'", text.replace('\'', "''")),
        (Dialect::Postgres, Value::Bytes(bytes)) => format!("'\\x{}'", hex(bytes)),
        (_, Value::Bytes(bytes)) => format!("X'{}'", hex(bytes)),
    }
}
