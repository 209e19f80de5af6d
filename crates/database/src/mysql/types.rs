//! Logical types against MariaDB's, and values on their way out.

use branchline_core::change::Row;
use branchline_core::port::DbResult;
use branchline_core::schema::Table;
use branchline_core::value::{Type, Value, canonical, interval_of_micros, is_spelled};

use super::connection::Cells;
use super::ddl::ident;
use super::layout::{Declared, Layout};

/// The logical type of a declared column, or why its values cannot travel unchanged.
pub(super) fn logical(here: &Declared) -> Result<Type, &'static str> {
    let length = || here.length.and_then(|length| u32::try_from(length).ok());
    Ok(match here.base.as_str() {
        "tinyint" if here.whole.starts_with("tinyint(1)") && !here.unsigned() => Type::Bool,
        "year" if here.whole == "year(2)" => return Err("a year of two digits has no century"),
        "tinyint" | "year" => Type::Int16,
        "smallint" if !here.unsigned() => Type::Int16,
        "smallint" | "mediumint" => Type::Int32,
        "int" if !here.unsigned() => Type::Int32,
        "int" => Type::Int64,
        "bigint" if !here.unsigned() => Type::Int64,
        "bigint" => Type::Decimal {
            limits: Some((20, 0)),
        },
        "bit" => match here.precision {
            Some(1) => Type::Bool,
            Some(2..=63) => Type::Int64,
            _ => return Err("64 bits do not fit the integers of the other engines"),
        },
        "float" | "double" if here.scale.is_some() => {
            return Err("a float with a fixed number of digits rounds what is stored in it");
        }
        "float" => Type::Float32,
        "double" => Type::Float64,
        "decimal" => Type::Decimal {
            limits: here
                .precision
                .zip(here.scale)
                .map(|(precision, scale)| (precision, i16::try_from(scale).unwrap_or(0))),
        },
        "char" => Type::Char {
            length: length().ok_or("its length is unknown")?,
        },
        "varchar" => Type::Text { max: length() },
        _ if here.json => Type::Json,
        "tinytext" | "text" | "mediumtext" | "longtext" => Type::Text { max: None },
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Type::Bytes,
        "date" => Type::Date,
        "time" => Type::Time,
        "datetime" => Type::Timestamp,
        "timestamp" => Type::TimestampTz,
        "uuid" => Type::Uuid,
        "json" => Type::Jsonb,
        "enum" => Type::Enum {
            name: String::new(),
            labels: labels(&here.whole),
        },
        "set" => return Err("a set stores its members in an order of its own"),
        _ => return Err("no other engine has this type"),
    })
}

/// The labels of `enum('a','b')`.
pub(super) fn labels(whole: &str) -> Vec<String> {
    let inside = whole
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .unwrap_or_default();
    let (mut labels, mut label, mut within) = (Vec::new(), String::new(), false);
    let mut characters = inside.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' if !within => within = true,
            '\'' if characters.peek() == Some(&'\'') => {
                characters.next();
                label.push('\'');
            }
            '\'' => {
                within = false;
                labels.push(std::mem::take(&mut label));
            }
            other if within => label.push(other),
            _ => {}
        }
    }
    labels
}

/// Whether a column declared so serves for one planned with this type: it holds every value of it unaltered.
/// `indexed` is for columns of keys, which need a length here.
pub(super) fn serves(planned: &Type, here: &Declared, indexed: bool) -> bool {
    let Ok(found) = logical(here) else {
        return false;
    };
    let whole = |kind: &Type| match kind {
        Type::Bool => Some(1),
        Type::Int16 => Some(2),
        Type::Int32 => Some(3),
        Type::Int64 => Some(4),
        _ => None,
    };
    match (planned, &found) {
        (Type::Enum { labels: a, .. }, Type::Enum { labels: b, .. }) => a == b,
        (a, b) if a == b => true,
        (a, b) if whole(a).is_some() && whole(b).is_some() => {
            let larger = whole(a) < whole(b);
            larger
                && matches!(
                    here.base.as_str(),
                    "smallint" | "mediumint" | "int" | "bigint"
                )
        }
        // Frameworks' numbers that are not negative, and their intervals.
        (Type::Int64, Type::Decimal { .. }) => here.base == "bigint",
        (Type::Interval, Type::Int64) => here.base == "bigint",
        (Type::Inet, Type::Char { length: n } | Type::Text { max: Some(n) }) => *n >= 39,
        (
            Type::Decimal {
                limits: Some((precision, scale)),
            },
            Type::Decimal {
                limits: Some((p, s)),
            },
        ) => {
            let before = |precision: u16, scale: i16| i32::from(precision) - i32::from(scale);
            here.base == "decimal" && s >= scale && before(*p, *s) >= before(*precision, *scale)
        }
        (Type::Float32, Type::Float64) | (Type::TimestampTz, Type::Timestamp) => true,
        (Type::Json | Type::Jsonb, Type::Json | Type::Jsonb) => true,
        (Type::Char { length }, Type::Char { length: n }) => n >= length,
        (Type::Char { length }, Type::Text { max })
        | (Type::Text { max: Some(length) }, Type::Text { max }) => {
            max.is_none_or(|max| max >= *length)
        }
        (Type::Uuid, Type::Char { length: n } | Type::Text { max: Some(n) }) => *n >= 32,
        (
            Type::Text { .. }
            | Type::Decimal { .. }
            | Type::TimeTz
            | Type::Interval
            | Type::Json
            | Type::Jsonb
            | Type::Array(_)
            | Type::Inet
            | Type::Enum { .. },
            Type::Text { max },
        ) => max.is_none_or(|max| indexed && max >= INDEXED_TEXT),
        _ => false,
    }
}

/// The length of a text column that is planned without one and stands in a key: an index needs a length here.
pub(super) const INDEXED_TEXT: u32 = 255;

/// The expression that selects a column in the form that [`value_of`] reads, in our own session.
pub(super) fn selected(here: &Declared, row: &str) -> String {
    let column = format!("{row}.{}", ident(&here.name));
    match here.base.as_str() {
        // A float's own text has six digits only.
        "float" => format!("{column} + 0e0"),
        "bit" => format!("{column} + 0"),
        _ if here.whole.contains("zerofill") => format!("{column} + 0"),
        _ => column,
    }
}

/// The select list of a whole row.
pub(super) fn selection(table: &Table, layout: &Layout, row: &str) -> DbResult<String> {
    let columns = table.columns.iter();
    let selected = columns.map(|column| Ok(selected(layout.column(table, column)?, row)));
    Ok(selected.collect::<DbResult<Vec<_>>>()?.join(", "))
}

/// Reads a whole row whose columns start at `first`; what is not of the plan's type is told in a sentence.
pub(super) fn row_of(table: &Table, cells: &mut Cells, first: usize) -> Result<Row, String> {
    let values = table.columns.iter().enumerate().map(|(at, column)| {
        let Some(bytes) = cells.take(first + at) else {
            return Ok(Value::Null);
        };
        if matches!(column.kind, Type::Bytes) {
            return Ok(Value::Bytes(bytes));
        }
        value_of(&column.kind, &bytes).map_err(|expected| problem(&column.name, &bytes, &expected))
    });
    values.collect::<Result<_, _>>().map(Row)
}

fn problem(column: &str, bytes: &[u8], expected: &str) -> String {
    let shown: String = String::from_utf8_lossy(bytes).chars().take(60).collect();
    format!("column `{column}` holds `{shown}`, where {expected} was expected")
}

/// The value that a column's text means; if none, what was expected.
pub(super) fn value_of(kind: &Type, bytes: &[u8]) -> Result<Value, String> {
    let expected = || format!("a value of type {kind}");
    if matches!(kind, Type::Bytes) {
        return Ok(Value::Bytes(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "text in UTF-8".to_owned())?;
    let value = match kind {
        Type::Bool => match text {
            "0" => Value::Bool(false),
            "1" => Value::Bool(true),
            _ => return Err("0 or 1".to_owned()),
        },
        Type::Int16 | Type::Int32 | Type::Int64 => {
            Value::Int(text.parse().map_err(|_| expected())?)
        }
        Type::Float32 => {
            let wide: f64 = text.parse().map_err(|_| expected())?;
            Value::Float(shortest(wide as f32))
        }
        Type::Float64 => Value::Float(text.parse().map_err(|_| expected())?),
        Type::TimestampTz => Value::Text(format!("{}+00", dated(text)?)),
        Type::Date | Type::Timestamp => Value::Text(dated(text)?.to_owned()),
        Type::Time => Value::Text(within_a_day(text)?.to_owned()),
        Type::Enum { labels, .. } if !labels.iter().any(|label| label == text) => {
            return Err("one of its labels".to_owned());
        }
        Type::Interval if text.parse::<i64>().is_ok() => {
            Value::Text(interval_of_micros(text.parse().unwrap_or_default()))
        }
        _ => Value::Text(text.to_owned()),
    };
    let spelled = match (&value, kind) {
        (_, Type::Enum { .. }) => true,
        (Value::Text(text), kind) => is_spelled(kind, text),
        _ => true,
    };
    if !spelled || !kind.holds(&value) {
        return Err(expected());
    }
    Ok(match kind {
        Type::Time
        | Type::Timestamp
        | Type::TimestampTz
        | Type::Char { .. }
        | Type::Uuid
        | Type::Inet => canonical(kind, &value).into_owned(),
        _ => value,
    })
}

/// A date, or one with a time, that every engine has: no zero in it.
fn dated(text: &str) -> Result<&str, String> {
    let zero = |at: std::ops::Range<usize>| {
        text.get(at)
            .is_none_or(|part| part.bytes().all(|byte| byte == b'0'))
    };
    if zero(0..4) || zero(5..7) || zero(8..10) {
        return Err("a date without zeros".to_owned());
    }
    Ok(text)
}

fn within_a_day(text: &str) -> Result<&str, String> {
    let fine = text.len() >= 8 && !text.starts_with('-') && text.as_bytes().get(2) == Some(&b':');
    let late = text > "24:00:00" && text.trim_end_matches(['0', '.']) != "24:00:";
    if !fine || (late && text.get(..2).is_none_or(|hour| hour >= "24")) {
        return Err("a time of day from 00:00:00 to 24:00:00".to_owned());
    }
    Ok(text)
}

/// The `f64` whose shortest text is that of this `f32`: what its decimal text means to every engine.
pub(super) fn shortest(single: f32) -> f64 {
    if single.is_finite() {
        single.to_string().parse().unwrap_or(f64::from(single))
    } else {
        f64::from(single)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_with_their_quotes() {
        assert_eq!(
            labels("enum('low','it''s high','a,b','größer','')"),
            ["low", "it's high", "a,b", "größer", ""]
        );
    }

    #[test]
    fn what_no_other_engine_has_is_told() {
        let told = |kind: &Type, text: &str| value_of(kind, text.as_bytes()).err();
        assert_eq!(told(&Type::Bool, "2").unwrap(), "0 or 1");
        for date in ["0000-00-00", "2024-00-10", "2024-01-00", "0000-01-01"] {
            assert!(told(&Type::Date, date).is_some(), "{date}");
        }
        for time in [
            "-01:00:00",
            "25:00:00",
            "838:59:59",
            "24:00:01",
            "24:00:00.5",
        ] {
            assert!(told(&Type::Time, time).is_some(), "{time}");
        }
        assert!(told(&Type::Int16, "65535").is_some());
        for (kind, text, value) in [
            (Type::Time, "24:00:00.000000", "24:00:00"),
            (Type::Time, "23:59:59.500000", "23:59:59.5"),
            (
                Type::Timestamp,
                "2024-01-02 03:04:05.000000",
                "2024-01-02 03:04:05",
            ),
            (
                Type::TimestampTz,
                "2024-01-02 03:04:05",
                "2024-01-02 03:04:05+00",
            ),
        ] {
            assert_eq!(
                value_of(&kind, text.as_bytes()),
                Ok(Value::Text(value.into()))
            );
        }
    }
}
