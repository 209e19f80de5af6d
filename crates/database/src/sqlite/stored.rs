//! Values as SQLite stores them, and in canonical form.

use branchline_core::change::{Key, Row};
use branchline_core::port::{DbResult, Unreadable};
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, canonical, interval_of_micros, is_spelled};
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};

use super::error::failure;
use super::local::Local;

/// Characters shown of a text that cannot be read.
const SHOWN: usize = 40;

/// A value on its way into a statement.
pub(super) struct Stored<'a>(pub(super) &'a Value);

impl ToSql for Stored<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Bool(truth) => ValueRef::Integer(i64::from(*truth)),
            Value::Int(number) => ValueRef::Integer(*number),
            // SQLite turns a NaN into NULL. A column of REAL affinity keeps text that is no number.
            Value::Float(number) if number.is_nan() => ValueRef::Text(b"NaN"),
            Value::Float(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// A key's values, to bind.
pub(super) fn bound(key: &Key) -> impl Iterator<Item = Stored<'_>> {
    key.0.iter().map(Stored)
}

/// A value taken out of one statement's row, on its way into another statement, byte for byte.
pub(super) struct Copied<'a>(pub(super) ValueRef<'a>);

impl ToSql for Copied<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

/// Reads the table's columns, in row order, from a statement's row starting at column `from`; or says which one
/// cannot be read.
pub(super) fn row_at(
    local: &Local,
    table: &Table,
    row: &rusqlite::Row<'_>,
    from: usize,
) -> DbResult<Result<Row, Unreadable>> {
    let mut values = Vec::with_capacity(table.columns.len());
    for (at, column) in table.columns.iter().enumerate() {
        let stored = row.get_ref(from + at).map_err(failure)?;
        let read = if table.is_key(at) {
            key_value(local, table, column, stored)
        } else {
            value(&column.kind, stored)
        };
        match read {
            Ok(value) => values.push(value),
            Err(reason) => {
                let key = table.key.iter().map(|&at| from + usize::from(at));
                return unreadable(local, table, column, row, key, &reason).map(Err);
            }
        }
    }
    Ok(Ok(Row(values)))
}

/// Reads a key from a statement's row starting at column `from`; or says which part of it cannot be read.
pub(super) fn key_at(
    local: &Local,
    table: &Table,
    row: &rusqlite::Row<'_>,
    from: usize,
) -> DbResult<Result<Key, Unreadable>> {
    let mut values = Vec::with_capacity(table.key.len());
    for (at, column) in table.key_columns().enumerate() {
        let stored = row.get_ref(from + at).map_err(failure)?;
        match key_value(local, table, column, stored) {
            Ok(value) => values.push(value),
            Err(reason) => {
                let key = from..from + table.key.len();
                return unreadable(local, table, column, row, key, &reason).map(Err);
            }
        }
    }
    Ok(Ok(Key(values)))
}

fn unreadable(
    local: &Local,
    table: &Table,
    column: &Column,
    row: &rusqlite::Row<'_>,
    key: impl Iterator<Item = usize>,
    reason: &str,
) -> DbResult<Unreadable> {
    let mut values = Vec::with_capacity(table.key.len());
    for (at, column) in key.zip(table.key_columns()) {
        let stored = row.get_ref(at).map_err(failure)?;
        values
            .push(key_value(local, table, column, stored).unwrap_or_else(|_| as_it_stands(stored)));
    }
    Ok(Unreadable {
        table: table.id,
        key: Key(values),
        problem: format!("column `{}` {reason}", column.name),
    })
}

fn key_value(
    local: &Local,
    table: &Table,
    column: &Column,
    stored: ValueRef<'_>,
) -> Result<Value, String> {
    let kind = &column.kind;
    match value(kind, stored)? {
        Value::Null => Err(format!("is NULL where the plan says {kind}")),
        value if local.is_found_again(table, &column.name, &value, stored) => Ok(value),
        _ => Err(misfit(kind, stored).replacen(" where", ", not as keys are spelled here,", 1)),
    }
}

/// What a key column holds that its type does not: it names the row, and no legal key equals it.
fn as_it_stands(stored: ValueRef<'_>) -> Value {
    match stored {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Real(number) => Value::Float(number),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_or_else(
            |_| Value::Bytes(bytes.to_vec()),
            |text| Value::Text(text.to_owned()),
        ),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

/// The canonical form of what is stored, or why there is none.
pub(super) fn value(kind: &Type, stored: ValueRef<'_>) -> Result<Value, String> {
    let value = match (kind, stored) {
        (_, ValueRef::Null) => Some(Value::Null),
        (Type::Bool, stored) => truth(stored).map(Value::Bool),
        (Type::Int16 | Type::Int32 | Type::Int64, stored) => integer(stored).map(Value::Int),
        (Type::Float32 | Type::Float64, stored) => float(stored).map(Value::Float),
        (Type::Bytes, ValueRef::Blob(bytes) | ValueRef::Text(bytes)) => {
            Some(Value::Bytes(bytes.to_vec()))
        }
        (Type::Bytes, _) => None,
        (kind, ValueRef::Text(text)) => {
            let text = std::str::from_utf8(text).map_err(|_| misfit(kind, stored))?;
            let text = if matches!(kind, Type::Char { .. }) {
                text.trim_end_matches(' ')
            } else {
                text
            };
            let legal = match kind {
                Type::Enum { labels, .. } => labels.iter().any(|label| label == text),
                kind => is_spelled(kind, text),
            };
            legal.then(|| travelling(kind, text))
        }
        (Type::Interval, ValueRef::Integer(micros)) => {
            Some(Value::Text(interval_of_micros(micros)))
        }
        (Type::Decimal { limits }, stored) => {
            decimal(stored, limits.map_or(0, |(_, scale)| scale)).map(Value::Text)
        }
        // Columns of NUMERIC affinity turn a bare number into a number.
        (Type::Json | Type::Jsonb, ValueRef::Integer(number)) => {
            Some(Value::Text(number.to_string()))
        }
        (Type::Json | Type::Jsonb, ValueRef::Real(number)) if number.is_finite() => {
            Some(Value::Text(format!("{number:?}")))
        }
        (Type::Text { .. } | Type::Char { .. }, ValueRef::Integer(number)) => {
            Some(Value::Text(number.to_string()))
        }
        _ => None,
    };
    match value {
        Some(value) if kind.holds(&value) => Ok(value),
        _ => Err(misfit(kind, stored)),
    }
}

/// A legal text as it travels: JSON, arrays and plain decimals as they are written.
fn travelling(kind: &Type, text: &str) -> Value {
    let as_written = match kind {
        Type::Decimal { .. } => text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-')),
        Type::Json | Type::Jsonb | Type::Array(_) => true,
        _ => false,
    };
    let value = Value::Text(text.to_owned());
    if as_written {
        value
    } else {
        canonical(kind, &value).into_owned()
    }
}

/// What stands there, and what should.
fn misfit(kind: &Type, stored: ValueRef<'_>) -> String {
    let found = match stored {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => format!("the integer {number}"),
        ValueRef::Real(number) => format!("the float {number:?}"),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => format!(
                "the text {:?}",
                text.chars().take(SHOWN).collect::<String>()
            ),
            Err(_) => "text that is not UTF-8".to_owned(),
        },
        ValueRef::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    };
    format!("holds {found} where the plan says {kind}")
}

fn truth(stored: ValueRef<'_>) -> Option<bool> {
    match stored {
        ValueRef::Integer(0) => Some(false),
        ValueRef::Integer(1) => Some(true),
        ValueRef::Text(text) => match text.to_ascii_lowercase().as_slice() {
            b"f" | b"false" => Some(false),
            b"t" | b"true" => Some(true),
            _ => None,
        },
        _ => None,
    }
}

fn integer(stored: ValueRef<'_>) -> Option<i64> {
    match stored {
        ValueRef::Integer(number) => Some(number),
        // Beyond 2^53 neighbouring integers share a float.
        ValueRef::Real(number)
            if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 =>
        {
            format!("{number:.0}").parse().ok()
        }
        ValueRef::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn float(stored: ValueRef<'_>) -> Option<f64> {
    match stored {
        ValueRef::Real(number) => Some(number),
        ValueRef::Integer(number) if number.unsigned_abs() <= 1 << 53 => {
            number.to_string().parse().ok()
        }
        ValueRef::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// A number of a NUMERIC column as exact text with at least `scale` digits after the point.
///
/// Floats are read at the 15 digits that every decimal of 15 digits survives, so that 0.1 + 0.2 is 0.3. A value with
/// more digits than the column declares stays as it is: who cannot hold it refuses it.
fn decimal(stored: ValueRef<'_>, scale: i16) -> Option<String> {
    let plain = match stored {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) if number.is_finite() => plain_digits(&format!("{number:.14e}"))?,
        _ => return None,
    };
    let scale = usize::try_from(scale).unwrap_or(0);
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    if scale == 0 && fraction.is_empty() {
        return Some(whole.to_owned());
    }
    Some(format!("{whole}.{fraction:0<scale$}"))
}

/// `-1.23000e-2` as `-0.0123`.
fn plain_digits(scientific: &str) -> Option<String> {
    let (mantissa, exponent) = scientific.split_once('e')?;
    let exponent: i32 = exponent.parse().ok()?;
    let (sign, mantissa) = mantissa
        .strip_prefix('-')
        .map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        return Some("0".into());
    }
    let point = exponent + 1;
    let Ok(point) = usize::try_from(point) else {
        return Some(format!(
            "{sign}0.{}{digits}",
            "0".repeat(usize::try_from(-point).ok()?)
        ));
    };
    Some(match point {
        0 => format!("{sign}0.{digits}"),
        _ if point >= digits.len() => format!("{sign}{digits:0<point$}"),
        _ => format!("{sign}{}.{}", &digits[..point], &digits[point..]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_decimal_column_are_read_exactly() {
        let cases = [
            (ValueRef::Real(5.1), 2, "5.10"),
            (ValueRef::Real(0.1 + 0.2), 2, "0.30"),
            (ValueRef::Real(12.089), 2, "12.089"),
            (ValueRef::Real(-0.0123), 4, "-0.0123"),
            (ValueRef::Real(9_999_999_999_999.99), 2, "9999999999999.99"),
            (ValueRef::Real(1e20), 0, "100000000000000000000"),
            (ValueRef::Real(-0.0), 2, "0.00"),
            (ValueRef::Integer(7), 2, "7.00"),
            (ValueRef::Integer(-7), 0, "-7"),
        ];
        for (stored, scale, text) in cases {
            assert_eq!(decimal(stored, scale).as_deref(), Some(text), "{stored:?}");
        }
        assert_eq!(decimal(ValueRef::Real(f64::INFINITY), 2), None);
    }

    #[test]
    fn storage_of_another_class_is_converted_only_without_loss() {
        let legal = [
            (Type::Int32, ValueRef::Real(5.0), Value::Int(5)),
            (Type::Int64, ValueRef::Text(b"-12"), Value::Int(-12)),
            (Type::Bool, ValueRef::Text(b"TRUE"), Value::Bool(true)),
            (Type::Float64, ValueRef::Integer(3), Value::Float(3.0)),
            (
                Type::Char { length: 4 },
                ValueRef::Text(b"ab  "),
                Value::Text("ab".into()),
            ),
        ];
        for (kind, stored, expected) in legal {
            assert_eq!(value(&kind, stored), Ok(expected), "{kind} {stored:?}");
        }
        let refused = [
            (Type::Int64, ValueRef::Text(b"twelve")),
            (Type::Int64, ValueRef::Real(5.5)),
            (Type::Int16, ValueRef::Integer(70_000)),
            (Type::Bool, ValueRef::Integer(2)),
            (Type::Float64, ValueRef::Integer(i64::MAX)),
            (Type::Date, ValueRef::Integer(2024)),
            (Type::Text { max: None }, ValueRef::Blob(b"x")),
            (Type::Text { max: None }, ValueRef::Text(b"\xff")),
            (Type::Decimal { limits: None }, ValueRef::Text(b"twelve")),
            (Type::Decimal { limits: None }, ValueRef::Text(b"")),
            (
                Type::Enum {
                    name: "size".into(),
                    labels: vec!["big".into()],
                },
                ValueRef::Text(b"Big"),
            ),
            (Type::Bytes, ValueRef::Integer(1)),
        ];
        for (kind, stored) in refused {
            assert!(value(&kind, stored).is_err(), "{kind} {stored:?}");
        }
    }
}
