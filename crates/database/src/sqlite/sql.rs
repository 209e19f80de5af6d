//! Pieces of SQL text.
//!
//! Columns are always qualified (`t."name"`): SQLite reads a bare double-quoted name that is no column as a text.

use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value};

/// The most key columns that the capture table has room for.
pub(super) const KEY_COLUMNS: usize = 8;

/// This moment in microseconds since 1970, computed with what SQLite 3.24 has.
pub(super) const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)";

/// An identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Items separated by commas.
pub(super) fn list(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}

/// Conditions that must all hold.
pub(super) fn all(conditions: impl IntoIterator<Item = String>) -> String {
    conditions.into_iter().collect::<Vec<_>>().join(" AND ")
}

/// `alias."a", alias."b"`.
pub(super) fn columns<'a>(alias: &str, columns: impl Iterator<Item = &'a Column>) -> String {
    list(columns.map(|column| format!("{alias}.{}", quoted(&column.name))))
}

/// The capture table's key columns for a key of this many: `k0, k1`.
pub(super) fn key_slots(count: usize) -> String {
    list((0..count).map(|at| format!("k{at}")))
}

/// `?1, ?2`.
pub(super) fn places(count: usize) -> String {
    list((1..=count).map(|at| format!("?{at}")))
}

/// `t."a" = ?1 AND t."b" = ?2` over the key columns.
pub(super) fn key_equals(table: &Table) -> String {
    all(table
        .key_columns()
        .enumerate()
        .map(|(at, column)| format!("t.{} = ?{}", quoted(&column.name), at + 1)))
}

/// Reads the whole row with a key, which may hold NULL as SQLite allows it.
pub(super) fn select_row(table: &Table) -> String {
    let key = table.key_columns().enumerate();
    format!(
        "SELECT {} FROM {} AS t WHERE {}",
        columns("t", table.columns.iter()),
        quoted(&table.name),
        all(key.map(|(at, column)| format!("t.{} IS ?{}", quoted(&column.name), at + 1))),
    )
}

/// A value as a literal for DEFAULT. None where there is no plain spelling.
pub(super) fn literal(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(truth) => Some(i64::from(*truth).to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Float(number) if number.is_nan() => Some("'NaN'".into()),
        Value::Float(number) if number.is_infinite() => {
            Some(if *number > 0.0 { "9e999" } else { "-9e999" }.into())
        }
        Value::Float(number) => Some(format!("{number:?}")),
        Value::Text(content) if content.contains('\0') => None,
        Value::Text(content) => Some(text(content)),
        Value::Bytes(bytes) => Some(format!(
            "X'{}'",
            bytes
                .iter()
                .map(|byte| format!("{byte:02X}"))
                .collect::<String>()
        )),
    }
}

/// The value behind a DEFAULT, where it is a plain literal of the column's type.
pub(super) fn plain_default(kind: &Type, sql: &str) -> Option<Value> {
    let sql = sql.trim();
    let value = if let Some(inside) = sql
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''))
    {
        // A lone quote within means an expression such as 'a' || 'b'.
        let content = inside.replace("''", "\u{0}");
        (!content.contains('\'')).then(|| Value::Text(content.replace('\u{0}', "'")))?
    } else if sql.eq_ignore_ascii_case("true") || sql.eq_ignore_ascii_case("false") {
        Value::Bool(sql.eq_ignore_ascii_case("true"))
    } else if let Ok(number) = sql.parse::<i64>() {
        match kind {
            Type::Bool => Value::Bool(number != 0),
            Type::Float32 | Type::Float64 => Value::Float(sql.parse().ok()?),
            Type::Decimal { .. } => Value::Text(number.to_string()),
            _ => Value::Int(number),
        }
    } else if sql.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        let number: f64 = sql.parse().ok()?;
        match kind {
            Type::Decimal { .. } if !sql.contains(['e', 'E']) => Value::Text(sql.to_owned()),
            _ => Value::Float(number),
        }
    } else {
        return None;
    };
    kind.holds(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_break_out() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
        assert_eq!(text("it's"), "'it''s'");
    }

    #[test]
    fn only_plain_literals_are_defaults() {
        let words = Type::Text { max: None };
        let price = Type::Decimal {
            limits: Some((10, 2)),
        };
        let cases = [
            (&words, "'it''s'", Some(Value::Text("it's".into()))),
            (&words, "'a' || 'b'", None),
            (&words, "CURRENT_TIMESTAMP", None),
            (&words, "NULL", None),
            (&Type::Int64, "-5", Some(Value::Int(-5))),
            (&Type::Int64, "(random())", None),
            (&Type::Bool, "1", Some(Value::Bool(true))),
            (&Type::Bool, "TRUE", Some(Value::Bool(true))),
            (&Type::Float64, "1", Some(Value::Float(1.0))),
            (&price, "0.00", Some(Value::Text("0.00".into()))),
        ];
        for (kind, sql, expected) in cases {
            assert_eq!(plain_default(kind, sql), expected, "{sql}");
        }
    }
}
