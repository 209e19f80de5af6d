//! Values as SQL text, checked so that the server stores what was sent or an error (P7).
//!
//! Even a strict session rounds decimals and fractions of seconds, cuts blanks off texts and pads `BINARY` without a
//! word; such values are refused here. The session has backslash escapes, and utf8mb4 in and out.

use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, canonical, micros_of_interval};

use super::connection::Flavour;
use super::error::mismatch;
use super::layout::Declared;
use super::types::{labels, shortest, value_of};

/// A text as a literal.
pub(super) fn text_literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('\'');
    for character in text.chars() {
        match character {
            '\'' => literal.push_str("''"),
            '\\' => literal.push_str("\\\\"),
            '\0' => literal.push_str("\\0"),
            other => literal.push(other),
        }
    }
    literal.push('\'');
    literal
}

/// Bytes as a literal.
pub(super) fn push_bytes(sql: &mut Vec<u8>, bytes: &[u8]) {
    sql.extend_from_slice(b"_binary'");
    for &byte in bytes {
        match byte {
            b'\'' => sql.extend_from_slice(b"''"),
            b'\\' => sql.extend_from_slice(b"\\\\"),
            0 => sql.extend_from_slice(b"\\0"),
            other => sql.push(other),
        }
    }
    sql.push(b'\'');
}

/// Appends a value of a column; one that the column would alter is a mismatch of the table.
pub(super) fn push_value(
    sql: &mut Vec<u8>,
    table: &Table,
    column: &Column,
    here: &Declared,
    value: &Value,
) -> DbResult<()> {
    let done = match (value, here.base.as_str()) {
        (Value::Null, _) => {
            sql.extend_from_slice(b"NULL");
            Ok(())
        }
        (Value::Bytes(bytes), base) => match here.length {
            Some(length) if base == "binary" && bytes.len() as u64 != length => {
                Err(format!("it has {} bytes, not {length}", bytes.len()))
            }
            _ => {
                push_bytes(sql, bytes);
                Ok(())
            }
        },
        _ => literal(&column.kind, here, value).map(|text| sql.extend_from_slice(text.as_bytes())),
    };
    done.map_err(|why| unfit(table, column, &why))
}

fn unfit(table: &Table, column: &Column, why: &str) -> DatabaseError {
    mismatch(
        &table.name,
        format!(
            "a value of column `{}` does not fit this database unaltered: {why}",
            column.name
        ),
    )
}

fn literal(kind: &Type, here: &Declared, value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Bool(truth) => u8::from(*truth).to_string(),
        // Of other numbers the server makes years: 2005 of 5, 1970 of 70.
        Value::Int(number) if here.base == "year" && !matches!(number, 0 | 1901..=2155) => {
            return Err(format!("{number} is no year from 1901 to 2155, and not 0"));
        }
        Value::Int(number) => number.to_string(),
        Value::Float(number) => float(here, *number)?,
        Value::Text(_) => match canonical(kind, value).as_ref() {
            Value::Text(text) => written(kind, here, text, value)?,
            _ => return Err("it is of another kind".to_owned()),
        },
        Value::Null | Value::Bytes(_) => return Err("it is of another kind".to_owned()),
    })
}

fn float(here: &Declared, number: f64) -> Result<String, String> {
    if !number.is_finite() {
        return Err("it has no NaN and no infinity".to_owned());
    }
    if here.base != "float" {
        return Ok(format!("{number:e}"));
    }
    let single = number as f32;
    if shortest(single) != number {
        return Err(format!("{number} is no single-precision float"));
    }
    // The float itself: its shortest text may lie above the largest that the server takes.
    Ok(format!("{:e}", f64::from(single)))
}

/// A text in canonical form, as the column's declared type takes it.
fn written(kind: &Type, here: &Declared, text: &str, as_sent: &Value) -> Result<String, String> {
    match here.base.as_str() {
        "bigint" if *kind == Type::Interval => micros_of_interval(text)
            .map(|micros| micros.to_string())
            .ok_or_else(|| {
                format!("`{text}` is not days with a time of less than a day, as microseconds are")
            }),
        "decimal" | "bigint" => decimal(here, text),
        "date" => {
            day(text)?;
            Ok(text_literal(text))
        }
        "datetime" | "timestamp" => {
            let moment = match kind {
                Type::TimestampTz => text
                    .strip_suffix("+00")
                    .ok_or_else(|| format!("`{text}` is not in UTC"))?,
                _ => text,
            };
            let (date, time) = moment
                .split_once(' ')
                .ok_or_else(|| format!("`{text}` is no date and time"))?;
            day(date)?;
            seconds(here, time)?;
            Ok(text_literal(moment))
        }
        "time" => {
            seconds(here, text)?;
            Ok(text_literal(text))
        }
        "json" => match exact_numbers(text) {
            true => Ok(text_literal(text)),
            false => {
                Err("it keeps numbers of JSON as integers of 64 bits or double floats".to_owned())
            }
        },
        "enum" => match labels(&here.whole).iter().any(|label| label == text) {
            true => Ok(text_literal(text)),
            false => Err(format!("`{text}` is none of its labels")),
        },
        _ => {
            let text = match (kind, as_sent) {
                // JSON stays as written.
                (Type::Json | Type::Jsonb, Value::Text(sent)) => sent,
                _ => text,
            };
            let without_hyphens = text.replace('-', "");
            let text = match here.length {
                Some(32..=35) if *kind == Type::Uuid => without_hyphens.as_str(),
                _ => text,
            };
            let characters = matches!(here.base.as_str(), "char" | "varchar");
            match here.length {
                Some(length) if characters && text.chars().count() as u64 > length => {
                    Err(format!("it is longer than {length} characters"))
                }
                _ => Ok(text_literal(text)),
            }
        }
    }
}

/// Whether the numbers of a canonical document are whole ones of 64 bits, or doubles: MySQL's own JSON keeps no others.
fn exact_numbers(document: &str) -> bool {
    let (mut quoted, mut escaped, mut number) = (false, false, String::new());
    for character in document.chars().chain(std::iter::once(' ')) {
        let part = !quoted
            && match character {
                '-' | '.' | '0'..='9' => true,
                'e' | 'E' | '+' => !number.is_empty(),
                _ => false,
            };
        if part {
            number.push(character);
            continue;
        }
        let whole = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
        let double = || {
            number
                .parse::<f64>()
                .is_ok_and(|double| double.to_string() == number)
        };
        if !number.is_empty() && !whole && !double() {
            return false;
        }
        number.clear();
        match character {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && !escaped && character == '\\';
    }
    true
}

fn decimal(here: &Declared, text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('-').unwrap_or(text);
    let (whole, after) = bare.split_once('.').unwrap_or((bare, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(after) {
        return Err(format!("`{text}` is no plain decimal"));
    }
    let (precision, scale) = match here.base.as_str() {
        "decimal" => (here.precision.unwrap_or(10), here.scale.unwrap_or(0)),
        _ => (20, 0),
    };
    if after.len() > usize::from(scale) {
        return Err(format!(
            "`{text}` has more than {scale} digits after the point"
        ));
    }
    if whole.trim_start_matches('0').len() > usize::from(precision.saturating_sub(scale)) {
        return Err(format!("`{text}` has too many digits"));
    }
    Ok(text.to_owned())
}

/// `YYYY-MM-DD`, in years that this server has.
fn day(text: &str) -> Result<(), String> {
    let numbers = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut parts = text.split('-');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(year), Some(month), Some(day), None)
            if numbers(year, 4) && numbers(month, 2) && numbers(day, 2) && year != "0000" =>
        {
            Ok(())
        }
        _ => Err(format!("it has no date `{text}`")),
    }
}

/// `HH:MM:SS.ffffff` with no more digits than the column keeps.
fn seconds(here: &Declared, text: &str) -> Result<(), String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let plain = |c: char| c.is_ascii_digit() || c == ':';
    if whole.len() != 8
        || !whole.chars().all(plain)
        || !fraction.chars().all(|c| c.is_ascii_digit())
    {
        return Err(format!("it has no time `{text}`"));
    }
    if fraction.len() > usize::from(here.fraction) {
        return Err(format!("it keeps {} digits of a second", here.fraction));
    }
    Ok(())
}

/// The value of a default as the catalogue writes it, where it is a plain literal.
pub(super) fn default_value(flavour: Flavour, kind: &Type, here: &Declared) -> Option<Value> {
    let stated = here.default.as_deref()?;
    let bare = match flavour {
        Flavour::MariaDb => match stated.strip_prefix('\'') {
            Some(quoted) => unquoted(quoted.strip_suffix('\'')?)?,
            None => {
                let plain = |c: char| c.is_ascii_digit() || c == '.';
                let number = stated.strip_prefix('-').unwrap_or(stated);
                (!number.is_empty() && number.chars().all(plain)).then(|| stated.to_owned())?
            }
        },
        Flavour::MySql if here.extra.contains("default_generated") => return None,
        Flavour::MySql => stated.to_owned(),
    };
    let moment = matches!(kind, Type::Date | Type::Timestamp | Type::TimestampTz);
    if moment && !bare.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    value_of(kind, bare.as_bytes()).ok()
}

/// The inside of a quoted text; `None` where a quote in it ends it early.
fn unquoted(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' => (characters.next()? == '\'').then(|| plain.push('\''))?,
            '\\' => plain.push(match characters.next()? {
                '0' => '\0',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'b' => '\u{8}',
                'Z' => '\u{1a}',
                other => other,
            }),
            other => plain.push(other),
        }
    }
    Some(plain)
}

/// A default in `CREATE TABLE`.
pub(super) fn default_literal(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(truth) => u8::from(*truth).to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) if number.is_finite() => format!("{number:e}"),
        Value::Text(text) => text_literal(text),
        Value::Bytes(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("x'{hex}'")
        }
        Value::Float(_) => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn here(base: &str, fraction: u8) -> Declared {
        Declared {
            base: base.into(),
            whole: "enum('low','it''s')".into(),
            length: Some(3),
            precision: Some(5),
            scale: Some(2),
            fraction,
            ..Declared::default()
        }
    }

    #[test]
    fn numbers_that_json_of_mysql_would_round_are_found() {
        for fine in [
            "{\"a\":18446744073709551615,\"b\":[-9223372036854775808,0.1]}",
            "\"1e400 \\\"123456789012345678901234567890\"",
            "10000000000000000000000",
            "[true,false,null]",
        ] {
            assert!(exact_numbers(fine), "{fine}");
        }
        for rounded in [
            "123456789012345678901234567890",
            "{\"a\":0.12345678901234567891}",
            "[\"\\\\\",18446744073709551617]",
            "1e400",
        ] {
            assert!(!exact_numbers(rounded), "{rounded}");
        }
    }

    #[test]
    fn what_the_server_would_alter_is_refused() {
        let decimals = Type::Decimal { limits: None };
        let text = Type::Text { max: None };
        let level = Type::Enum {
            name: String::new(),
            labels: vec![],
        };
        let cases: [(&Type, Declared, &str, Option<&str>); 16] = [
            (&decimals, here("decimal", 0), "1.50", Some("1.5")),
            (&decimals, here("decimal", 0), "1.505", None),
            (&decimals, here("decimal", 0), "1000", None),
            (&decimals, here("decimal", 0), "NaN", None),
            (&decimals, here("decimal", 0), "1e2", Some("100")),
            (&text, here("varchar", 0), "ab ", Some("'ab '")),
            (&text, here("varchar", 0), "ab  ", None),
            (&Type::Date, here("date", 0), "0044-03-15 BC", None),
            (&Type::Date, here("date", 0), "infinity", None),
            (&Type::Time, here("time", 6), "24:00:00", Some("'24:00:00'")),
            (&Type::Time, here("time", 3), "12:00:00.1234", None),
            (
                &Type::Timestamp,
                here("datetime", 0),
                "2024-01-02 03:04:05.5",
                None,
            ),
            (
                &Type::Timestamp,
                here("datetime", 0),
                "12024-01-02 03:04:05",
                None,
            ),
            (
                &Type::TimestampTz,
                here("timestamp", 0),
                "2024-01-02T03:04:05Z",
                Some("'2024-01-02 03:04:05'"),
            ),
            (&level, here("enum", 0), "it's", Some("'it''s'")),
            (&level, here("enum", 0), "LOW", None),
        ];
        for (kind, here, value, literal_text) in cases {
            let made = literal(kind, &here, &Value::Text(value.into())).ok();
            assert_eq!(made.as_deref(), literal_text, "{value} in {}", here.base);
        }
        assert!(literal(&Type::Float64, &here("double", 0), &Value::Float(f64::NAN)).is_err());
        assert!(
            literal(
                &Type::Float32,
                &here("float", 0),
                &Value::Float(0.1 + 1e-12)
            )
            .is_err()
        );
    }

    #[test]
    fn a_literal_cannot_be_left() {
        assert_eq!(text_literal("a'b\\c\0"), "'a''b\\\\c\\0'");
        let mut sql = Vec::new();
        push_bytes(&mut sql, &[0, b'\'', b'\\', 255]);
        assert_eq!(sql, b"_binary'\\0''\\\\\xff'");
    }

    #[test]
    fn only_plain_literals_are_defaults() {
        let stated = |default: &str| Declared {
            default: Some(default.into()),
            ..Declared::default()
        };
        let text = Type::Text { max: None };
        let read =
            |kind: &Type, default: &str| default_value(Flavour::MariaDb, kind, &stated(default));
        assert_eq!(read(&text, "'it''s'"), Some(Value::Text("it's".into())));
        assert_eq!(read(&Type::Int32, "-1"), Some(Value::Int(-1)));
        assert_eq!(read(&Type::Timestamp, "current_timestamp()"), None);
        assert_eq!(read(&text, "uuid()"), None);
        assert_eq!(read(&Type::Bool, "1"), Some(Value::Bool(true)));
    }
}
