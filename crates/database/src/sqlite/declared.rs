//! Declared column types and the logical types behind them, both ways.
//!
//! SQLite stores by affinity, which it reads out of the declared type's letters. What Branchline declares is spelt so
//! that the affinity never alters a value: exact decimals, dates and the like contain `TEXT`, and none contains `INT`.

use branchline_core::value::Type;

/// Decimals of up to this many digits survive a column of NUMERIC affinity, which keeps floats.
pub(super) const EXACT_DIGITS: u16 = 15;

/// Why a declared type cannot be shared, and what to declare instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsuitable {
    pub(super) problem: String,
    pub(super) advice: String,
}

/// The logical type of a column declared so.
pub(super) fn logical(declared: &str) -> Result<Type, Unsuitable> {
    let upper = declared.trim().to_ascii_uppercase();
    let (words, numbers) = split(&upper);
    let first = numbers
        .first()
        .and_then(|&number| u32::try_from(number).ok());
    Ok(match words.as_str() {
        "BOOLEAN" | "BOOL" => Type::Bool,
        "FLOAT4" => Type::Float32,
        "REAL" | "DOUBLE" | "DOUBLE PRECISION" | "FLOAT" | "FLOAT8" => Type::Float64,
        "BLOB" | "TINYBLOB" | "MEDIUMBLOB" | "LONGBLOB" => Type::Bytes,
        "DATE" | "DATE_TEXT" => Type::Date,
        "TIME" | "TIME_TEXT" => Type::Time,
        "TIMETZ_TEXT" => Type::TimeTz,
        "DATETIME" | "TIMESTAMP" | "TIMESTAMP_TEXT" | "TIMESTAMP WITHOUT TIME ZONE" => {
            Type::Timestamp
        }
        "TIMESTAMPTZ" | "TIMESTAMPTZ_TEXT" | "TIMESTAMP WITH TIME ZONE" => Type::TimestampTz,
        "SPAN_TEXT" => Type::Interval,
        "UUID" | "UUID_TEXT" => Type::Uuid,
        "JSON" | "JSON_TEXT" => Type::Json,
        "JSONB" | "JSONB_TEXT" => Type::Jsonb,
        "INET" | "INET_TEXT" => Type::Inet,
        "ARRAY_TEXT" => Type::Array(Box::new(Type::Text { max: None })),
        "CHAR" | "CHARACTER" | "NCHAR" | "NATIVE CHARACTER" => match first {
            Some(length) => Type::Char { length },
            None => Type::Text { max: None },
        },
        "DECIMAL_TEXT" => Type::Decimal {
            limits: limits(&numbers),
        },
        "DECIMAL" | "NUMERIC" | "DEC" => numeric(declared, limits(&numbers))?,
        "TEXT" | "CLOB" | "ENUM_TEXT" => Type::Text { max: None },
        _ if is_integer(&words) => Type::Int64,
        _ if is_text(&words) => Type::Text { max: first },
        _ => return Err(unknown(declared)),
    })
}

/// `VARCHAR(20) BINARY` without its parentheses, and the numbers within them.
fn split(upper: &str) -> (String, Vec<i32>) {
    let (before, rest) = upper.split_once('(').unwrap_or((upper, ""));
    let (inside, after) = rest.split_once(')').unwrap_or((rest, ""));
    let words: Vec<&str> = before
        .split_whitespace()
        .chain(after.split_whitespace())
        .collect();
    let numbers = inside
        .split(',')
        .map_while(|number| number.trim().parse().ok())
        .collect();
    (words.join(" "), numbers)
}

fn limits(numbers: &[i32]) -> Option<(u16, i16)> {
    let precision = u16::try_from(*numbers.first()?).ok()?;
    let scale = i16::try_from(numbers.get(1).copied().unwrap_or(0)).ok()?;
    Some((precision, scale))
}

fn numeric(declared: &str, limits: Option<(u16, i16)>) -> Result<Type, Unsuitable> {
    if limits.is_some_and(|(precision, _)| precision <= EXACT_DIGITS) {
        return Ok(Type::Decimal { limits });
    }
    let wanted = limits.map_or_else(String::new, |(precision, scale)| {
        format!("({precision},{scale})")
    });
    Err(Unsuitable {
        problem: format!(
            "it is declared `{declared}`, in which SQLite rounds to floats without a word"
        ),
        advice: format!(
            "declare it `DECIMAL_TEXT{wanted}`, or with a precision of at most {EXACT_DIGITS} digits"
        ),
    })
}

/// SQLite's own rule, less the words that only happen to contain `INT`.
fn is_integer(words: &str) -> bool {
    words.contains("INT") && !words.contains("INTERVAL") && !words.contains("POINT")
}

fn is_text(words: &str) -> bool {
    !words.contains("INT")
        && ["CHAR", "CLOB", "TEXT"]
            .iter()
            .any(|mark| words.contains(mark))
}

fn unknown(declared: &str) -> Unsuitable {
    let problem = match declared.trim() {
        "" => "it has no declared type".to_owned(),
        other => format!("its declared type `{other}` is not known"),
    };
    let advice =
        "declare it INTEGER, REAL, TEXT, BLOB, BOOLEAN, DATE, TIMESTAMP, DECIMAL(p,s), UUID or JSON".to_owned();
    Unsuitable { problem, advice }
}

/// How a column of this logical type is declared.
pub(super) fn declaration(kind: &Type) -> String {
    match kind {
        Type::Bool => "BOOLEAN".into(),
        Type::Int16 => "SMALLINT".into(),
        Type::Int32 => "INTEGER".into(),
        Type::Int64 => "BIGINT".into(),
        Type::Float32 => "FLOAT4".into(),
        Type::Float64 => "REAL".into(),
        Type::Decimal { limits: None } => "DECIMAL_TEXT".into(),
        Type::Decimal {
            limits: Some((precision, scale)),
        } => format!("DECIMAL_TEXT({precision},{scale})"),
        Type::Text { max: None } => "TEXT".into(),
        Type::Text { max: Some(max) } => format!("VARCHAR({max})"),
        Type::Char { length } => format!("CHAR({length})"),
        Type::Bytes => "BLOB".into(),
        Type::Date => "DATE_TEXT".into(),
        Type::Time => "TIME_TEXT".into(),
        Type::TimeTz => "TIMETZ_TEXT".into(),
        Type::Timestamp => "TIMESTAMP_TEXT".into(),
        Type::TimestampTz => "TIMESTAMPTZ_TEXT".into(),
        Type::Interval => "SPAN_TEXT".into(),
        Type::Uuid => "UUID_TEXT".into(),
        Type::Json => "JSON_TEXT".into(),
        Type::Jsonb => "JSONB_TEXT".into(),
        Type::Enum { .. } => "ENUM_TEXT".into(),
        Type::Array(_) => "ARRAY_TEXT".into(),
        Type::Inet => "INET_TEXT".into(),
    }
}

/// How a column spells values of the plan's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    AsItTravels,
    /// A UUID in `char(32)`.
    WithoutHyphens,
    /// A time, or a moment in UTC without its zone; six digits of a second always, or where they are not all zero.
    Moment {
        digits: bool,
    },
    /// An interval in an integer column.
    Micros,
    /// A decimal in a column of NUMERIC affinity.
    Number,
    /// A document in a column of NUMERIC affinity, in which a number alone becomes one.
    Document,
}

/// How a column declared so spells values of the plan's type.
pub(super) fn form(plan: &Type, declared: &str) -> Form {
    let upper = declared.trim().to_ascii_uppercase();
    let (words, numbers) = split(&upper);
    let first = numbers.first().copied();
    let ours = words.ends_with("_TEXT");
    match (plan, logical(declared)) {
        (
            Type::Uuid,
            Ok(
                Type::Char {
                    length: 32..=35, ..
                }
                | Type::Text {
                    max: Some(32..=35), ..
                },
            ),
        ) => Form::WithoutHyphens,
        (Type::TimestampTz, Ok(Type::Timestamp)) if ours => Form::Moment { digits: false },
        (Type::Timestamp | Type::TimestampTz, Ok(Type::Timestamp))
        | (Type::Time, Ok(Type::Time))
            if !ours =>
        {
            Form::Moment {
                digits: first == Some(6),
            }
        }
        (Type::Interval, Ok(Type::Int64)) => Form::Micros,
        (Type::Json | Type::Jsonb, Ok(Type::Json | Type::Jsonb)) if !ours => Form::Document,
        (Type::Decimal { .. }, _) if matches!(words.as_str(), "DECIMAL" | "NUMERIC" | "DEC") => {
            Form::Number
        }
        _ => Form::AsItTravels,
    }
}

/// Whether a column declared so serves for one of the plan's type; if not, why.
pub(super) fn serves(plan: &Type, declared: &str) -> Result<(), String> {
    match logical(declared) {
        Ok(found) if compatible(plan, &found) => Ok(()),
        Ok(found) => Err(format!("is {found} here and {plan} in the plan")),
        Err(reason) => match (plan, form(plan, declared)) {
            // Without limits of its own it takes what the plan limits to the digits that are exact.
            (
                Type::Decimal {
                    limits: Some((0..=EXACT_DIGITS, _)),
                },
                Form::Number,
            ) if !declared.contains('(') => Ok(()),
            _ => Err(format!(
                "cannot be shared: {}; {}",
                reason.problem, reason.advice
            )),
        },
    }
}

/// Whether a column found with one logical type can hold every value of the plan's type without altering it.
///
/// Column types here say less than the plan's: all integers are 64-bit, enums and intervals are text.
pub fn compatible(plan: &Type, found: &Type) -> bool {
    use Type::{
        Array, Bool, Bytes, Char, Date, Decimal, Float32, Float64, Int16, Int32, Int64, Interval,
        Json, Jsonb, Text, Time, TimeTz, Timestamp, TimestampTz,
    };
    match (plan, found) {
        _ if plan == found => true,
        (Bool | Int16 | Int32 | Int64, Int16 | Int32 | Int64)
        | (Float32 | Float64, Float32 | Float64)
        | (Interval, Int64) => true,
        (
            Decimal { limits: Some(plan) },
            Decimal {
                limits: Some(found),
            },
        ) => {
            let whole = |(precision, scale): &(u16, i16)| i32::from(*precision) - i32::from(*scale);
            plan.1 <= found.1 && whole(plan) <= whole(found)
        }
        (Decimal { .. }, Decimal { limits: None }) => true,
        (
            Date | Time | TimeTz | Timestamp | TimestampTz,
            Date | Time | TimeTz | Timestamp | TimestampTz,
        ) => true,
        (Json | Jsonb, Json | Jsonb) | (Array(_), Array(_)) => true,
        // Text columns keep any text as it is; lengths are not enforced by SQLite.
        (Bool | Int16 | Int32 | Int64 | Float32 | Float64 | Bytes, _) => false,
        (_, Text { .. } | Char { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_names_are_read_back_as_the_same_type() {
        let kinds = [
            Type::Bool,
            Type::Int64,
            Type::Float32,
            Type::Float64,
            Type::Decimal { limits: None },
            Type::Decimal {
                limits: Some((40, 10)),
            },
            Type::Decimal {
                limits: Some((5, -2)),
            },
            Type::Text { max: None },
            Type::Text { max: Some(20) },
            Type::Char { length: 5 },
            Type::Bytes,
            Type::Date,
            Type::Time,
            Type::TimeTz,
            Type::Timestamp,
            Type::TimestampTz,
            Type::Interval,
            Type::Uuid,
            Type::Json,
            Type::Jsonb,
            Type::Array(Box::new(Type::Text { max: None })),
            Type::Inet,
        ];
        for kind in kinds {
            assert_eq!(
                form(&kind, &declaration(&kind)),
                Form::AsItTravels,
                "{kind}"
            );
            assert_eq!(logical(&declaration(&kind)), Ok(kind.clone()), "{kind}");
        }
    }

    #[test]
    fn what_is_declared_fits_its_plan() {
        let kinds = [
            Type::Int16,
            Type::Int32,
            Type::Enum {
                name: "colour".into(),
                labels: vec!["red".into()],
            },
            Type::Array(Box::new(Type::Int32)),
        ];
        for kind in kinds {
            let found = logical(&declaration(&kind));
            assert!(found.is_ok_and(|found| compatible(&kind, &found)), "{kind}");
        }
        assert!(!compatible(&Type::Int32, &Type::Text { max: None }));
        assert!(!compatible(
            &Type::Decimal {
                limits: Some((20, 2))
            },
            &Type::Decimal {
                limits: Some((10, 2))
            }
        ));
        assert!(
            !compatible(&Type::Text { max: None }, &Type::Date),
            "a DATE column turns 007 into 7"
        );
        assert!(!compatible(&Type::Decimal { limits: None }, &Type::Float64));
    }

    #[test]
    fn declarations_of_applications_are_understood() {
        let text = |max| Ok(Type::Text { max });
        let cases = [
            ("integer", Ok(Type::Int64)),
            ("UNSIGNED BIG INT", Ok(Type::Int64)),
            ("int(11)", Ok(Type::Int64)),
            ("tinyint(1)", Ok(Type::Int64)),
            ("varchar(255)", text(Some(255))),
            ("NVARCHAR (100)", text(Some(100))),
            ("character varying(20)", text(Some(20))),
            ("LONGTEXT", text(None)),
            ("character(20)", Ok(Type::Char { length: 20 })),
            (
                "decimal(10, 2)",
                Ok(Type::Decimal {
                    limits: Some((10, 2)),
                }),
            ),
            (
                "numeric(5)",
                Ok(Type::Decimal {
                    limits: Some((5, 0)),
                }),
            ),
            ("double precision", Ok(Type::Float64)),
            ("timestamp with time zone", Ok(Type::TimestampTz)),
            ("timestamp(6)", Ok(Type::Timestamp)),
        ];
        for (declared, kind) in cases {
            assert_eq!(logical(declared), kind, "{declared}");
        }
        for refused in [
            "",
            "STRING",
            "decimal(20,2)",
            "NUMERIC",
            "INTERVAL",
            "geometry",
            "ANY",
        ] {
            assert!(logical(refused).is_err(), "{refused}");
        }
        assert!(
            logical("decimal(20,2)")
                .is_err_and(|refused| refused.advice.contains("DECIMAL_TEXT(20,2)"))
        );
    }
}
