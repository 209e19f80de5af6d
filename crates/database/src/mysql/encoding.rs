//! Keys and rows as the capture stores them: the columns' texts one after the other, each with its length before it.
//!
//! The triggers write this form in the application's session and [`encoded`] writes it here, byte for byte the same:
//! equal keys have equal bytes whatever the session's time zone, character set or SQL mode is.

use branchline_core::change::{Key, Row};
use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, canonical};

use super::ddl::ident;
use super::layout::{Declared, Layout};
use super::types::value_of;

/// Bytes that a key may have in the capture.
pub(super) const KEY_BYTES: u64 = 3000;

/// The expression for the encoded key of `row` (`NEW`, `OLD`, an alias).
pub(super) fn key_expression(table: &Table, layout: &Layout, row: &str) -> DbResult<String> {
    let parts = table
        .key_columns()
        .map(|column| part(table, layout, column, row));
    Ok(joined(&parts.collect::<DbResult<Vec<_>>>()?))
}

/// The condition that an update changed the key.
pub(super) fn key_moved(table: &Table, layout: &Layout) -> DbResult<String> {
    let mut moved = Vec::new();
    for column in table.key_columns() {
        let here = layout.column(table, column)?;
        let name = ident(&here.name);
        // Numbers need no text to be told apart.
        moved.push(match here.base.as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => {
                format!("OLD.{name} <> NEW.{name}")
            }
            _ => format!(
                "{} <> {}",
                part(table, layout, column, "OLD")?,
                part(table, layout, column, "NEW")?
            ),
        });
    }
    Ok(moved.join(" OR "))
}

/// The expression for all columns of `row`.
pub(super) fn row_expression(table: &Table, layout: &Layout, row: &str) -> DbResult<String> {
    let parts = table
        .columns
        .iter()
        .map(|column| part(table, layout, column, row));
    Ok(joined(&parts.collect::<DbResult<Vec<_>>>()?))
}

fn joined(parts: &[String]) -> String {
    format!("CAST(CONCAT({}) AS BINARY)", parts.join(", "))
}

fn part(table: &Table, layout: &Layout, column: &Column, row: &str) -> DbResult<String> {
    let here = layout.column(table, column)?;
    let text = format!("CAST({} AS BINARY)", text(&column.kind, here, row));
    let full = format!("CONCAT(LENGTH({text}), ':', {text})");
    Ok(if here.nullable {
        format!("IF({row}.{} IS NULL, '-', {full})", ident(&here.name))
    } else {
        full
    })
}

/// The expression whose text is one for equal values.
fn text(kind: &Type, here: &Declared, row: &str) -> String {
    let column = format!("{row}.{}", ident(&here.name));
    let number = format!("CAST({column} + 0 AS CHAR)");
    let without_zeros =
        |text: String| format!("TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {text}))");
    match here.base.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "bit" | "year" => number,
        // MySQL keeps 22 characters of an expression's, or of what is cast: enough for a single float alone.
        "float" => format!("CONCAT({column} + 0e0)"),
        "double" => format!("CONCAT({column})"),
        "decimal" if here.scale.is_some_and(|scale| scale > 0) => {
            without_zeros(format!("CAST({column} AS CHAR)"))
        }
        "time" | "datetime" if here.fraction > 0 => {
            without_zeros(format!("CAST({column} AS CHAR)"))
        }
        // The seconds since 1970 do not depend on the session's time zone.
        "timestamp" => {
            let moment = format!(
                "CAST(TIMESTAMP '1970-01-01 00:00:00' + INTERVAL UNIX_TIMESTAMP({column}) SECOND AS CHAR)"
            );
            if here.fraction > 0 {
                without_zeros(moment)
            } else {
                moment
            }
        }
        "uuid" => format!("REPLACE(CAST({column} AS CHAR), '-', '')"),
        "date" | "decimal" | "time" | "datetime" => format!("CAST({column} AS CHAR)"),
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => column,
        _ => {
            let text = format!("CONVERT({column} USING utf8mb4)");
            match kind {
                Type::Char { .. } => format!("TRIM(TRAILING ' ' FROM {text})"),
                Type::Uuid => format!("REPLACE(LOWER({text}), '-', '')"),
                _ => text,
            }
        }
    }
}

/// The encoded form of a key.
pub(super) fn encoded(table: &Table, key: &Key) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (column, value) in table.key_columns().zip(&key.0) {
        let text: Vec<u8> = match canonical(&column.kind, value).as_ref() {
            Value::Null => {
                bytes.push(b'-');
                continue;
            }
            Value::Bool(truth) => vec![b'0' + u8::from(*truth)],
            Value::Int(number) => number.to_string().into_bytes(),
            Value::Float(number) => number.to_string().into_bytes(),
            Value::Text(text) => match column.kind {
                Type::TimestampTz => text.strip_suffix("+00").unwrap_or(text).as_bytes().to_vec(),
                Type::Uuid => text.replace('-', "").into_bytes(),
                _ => text.clone().into_bytes(),
            },
            Value::Bytes(raw) => raw.clone(),
        };
        bytes.extend_from_slice(format!("{}:", text.len()).as_bytes());
        bytes.extend_from_slice(&text);
    }
    bytes
}

/// A captured key; where it is none of the plan's table, its texts, and why.
pub(super) fn decoded_key(table: &Table, bytes: &[u8]) -> Result<Key, (Key, String)> {
    let texts = split(bytes);
    let values =
        values(table.key_columns(), &texts).filter(|values| values.len() == table.key.len());
    values.map(Key).ok_or_else(|| {
        let raw = texts.iter().map(|text| match text {
            Some(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            None => Value::Null,
        });
        let problem = "the key is none that the plan's table can have".to_owned();
        (Key(raw.collect()), problem)
    })
}

/// A captured row, where it is one of the plan's table.
pub(super) fn decoded_row(table: &Table, bytes: &[u8]) -> Option<Row> {
    let row = Row(values(table.columns.iter(), &split(bytes))?);
    table.fits(&row).then_some(row)
}

fn values<'c>(
    columns: impl Iterator<Item = &'c Column>,
    texts: &[Option<&[u8]>],
) -> Option<Vec<Value>> {
    let read = columns.zip(texts).map(|(column, text)| match text {
        None => Some(Value::Null),
        Some(text) => value_of(&column.kind, text).ok(),
    });
    read.collect()
}

/// The texts of an encoded key or row; what is malformed ends it.
fn split(mut bytes: &[u8]) -> Vec<Option<&[u8]>> {
    let mut texts = Vec::new();
    while let Some((&first, tail)) = bytes.split_first() {
        if first == b'-' {
            texts.push(None);
            bytes = tail;
            continue;
        }
        let length = bytes.iter().position(|&byte| byte == b':').and_then(|at| {
            let length: usize = std::str::from_utf8(bytes.get(..at)?).ok()?.parse().ok()?;
            Some((at + 1, at.checked_add(1)?.checked_add(length)?))
        });
        let Some((from, to)) = length else { break };
        let Some(text) = bytes.get(from..to) else {
            break;
        };
        texts.push(Some(text));
        bytes = &bytes[to..];
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_apart_as_they_were_joined() {
        assert_eq!(
            split(b"2:ab-0:5:1:2-3"),
            [Some(&b"ab"[..]), None, Some(b""), Some(b"1:2-3")]
        );
        assert!(split(b"9:short").is_empty());
        assert!(split(b"x").is_empty());
    }
}
