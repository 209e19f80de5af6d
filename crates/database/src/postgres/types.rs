//! Logical types against PostgreSQL's, and values on their way in and out.
//!
//! Numbers, truth values and bytes cross in binary; everything else as text in the session's fixed output format.

use branchline_core::change::{Key, Row as CoreRow};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, canonical, is_spelled};
use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{IsNull, ToSql, Type as Wire, to_sql_checked};

/// The logical type of a built-in type, or `None` where it cannot travel. Arrays and enums are the caller's.
pub(super) fn logical(name: &str, modifier: i32) -> Option<Type> {
    let length = || u32::try_from(modifier - 4).ok();
    Some(match name {
        "bool" => Type::Bool,
        "int2" => Type::Int16,
        "int4" => Type::Int32,
        "int8" => Type::Int64,
        "float4" => Type::Float32,
        "float8" => Type::Float64,
        "numeric" if modifier < 4 => Type::Decimal { limits: None },
        "numeric" => {
            let bits = modifier - 4;
            let scale = ((bits & 0x7ff) ^ 1024) - 1024;
            Type::Decimal {
                limits: Some((
                    u16::try_from((bits >> 16) & 0xffff).ok()?,
                    i16::try_from(scale).ok()?,
                )),
            }
        }
        "text" => Type::Text { max: None },
        "varchar" => Type::Text { max: length() },
        "bpchar" => Type::Char { length: length()? },
        "bytea" => Type::Bytes,
        "date" => Type::Date,
        "time" => Type::Time,
        "timetz" => Type::TimeTz,
        "timestamp" => Type::Timestamp,
        "timestamptz" => Type::TimestampTz,
        // With a precision or fields it would round and cut.
        "interval" if modifier < 0 => Type::Interval,
        "uuid" => Type::Uuid,
        "json" => Type::Json,
        "jsonb" => Type::Jsonb,
        "inet" => Type::Inet,
        _ => return None,
    })
}

/// The type in `CREATE TABLE`; enums by their own name.
pub(super) fn declaration(kind: &Type) -> String {
    match kind {
        Type::Bool => "boolean".into(),
        Type::Int16 => "smallint".into(),
        Type::Int32 => "integer".into(),
        Type::Int64 => "bigint".into(),
        Type::Float32 => "real".into(),
        Type::Float64 => "double precision".into(),
        Type::Decimal { limits: None } => "numeric".into(),
        Type::Decimal {
            limits: Some((precision, scale)),
        } => format!("numeric({precision},{scale})"),
        Type::Text { max: None } => "text".into(),
        Type::Text { max: Some(max) } => format!("character varying({max})"),
        Type::Char { length } => format!("character({length})"),
        Type::Bytes => "bytea".into(),
        Type::Date => "date".into(),
        Type::Time => "time without time zone".into(),
        Type::TimeTz => "time with time zone".into(),
        Type::Timestamp => "timestamp without time zone".into(),
        Type::TimestampTz => "timestamp with time zone".into(),
        Type::Interval => "interval".into(),
        Type::Uuid => "uuid".into(),
        Type::Json => "json".into(),
        Type::Jsonb => "jsonb".into(),
        Type::Inet => "inet".into(),
        Type::Enum { name, .. } => super::ddl::relation(name),
        Type::Array(of) => format!("{}[]", declaration(of)),
    }
}

/// How a column's values cross the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bool,
    Int,
    Float,
    Bytes,
    Text,
}

fn form(kind: &Type) -> Form {
    match kind {
        Type::Bool => Form::Bool,
        Type::Int16 | Type::Int32 | Type::Int64 => Form::Int,
        Type::Float32 | Type::Float64 => Form::Float,
        Type::Bytes => Form::Bytes,
        _ => Form::Text,
    }
}

/// The expression that selects a column in the form that [`read_value`] expects.
pub(super) fn selected(kind: &Type, column: &str) -> String {
    match kind {
        Type::Bool => format!("{column}::pg_catalog.bool"),
        Type::Int16 | Type::Int32 | Type::Int64 => format!("{column}::pg_catalog.int8"),
        Type::Float32 => format!("{column}::pg_catalog.float4"),
        Type::Float64 => format!("{column}::pg_catalog.float8"),
        Type::Bytes => format!("{column}::pg_catalog.bytea"),
        _ => format!("{column}::pg_catalog.text"),
    }
}

/// The expression whose text is one for equal keys, whoever runs it under [`settings`]. Whatever type the column has by
/// now, it does not fail.
pub(super) fn key_text(kind: &Type, column: &str) -> String {
    let text = format!("{column}::pg_catalog.text");
    match kind {
        // Zeros at the end say nothing.
        Type::Decimal { .. } => format!(
            "CASE WHEN pg_catalog.strpos({text}, '.') OPERATOR(pg_catalog.>) 0
                 THEN pg_catalog.rtrim(pg_catalog.rtrim({text}, '0'), '.') ELSE {text} END"
        ),
        Type::Float32 | Type::Float64 => {
            format!("CASE WHEN {text} OPERATOR(pg_catalog.=) '-0' THEN '0' ELSE {text} END")
        }
        _ => text,
    }
}

/// The settings that a capture function must fix for keys of this type. Each costs a little at every call.
pub(super) fn settings(kind: &Type) -> &'static [&'static str] {
    match kind {
        Type::Float32 | Type::Float64 => &["extra_float_digits TO 1"],
        Type::Bytes => &["bytea_output TO 'hex'"],
        Type::Date | Type::Timestamp => &["datestyle TO 'ISO, MDY'"],
        Type::TimestampTz => &["datestyle TO 'ISO, MDY'", "timezone TO 'UTC'"],
        Type::Interval => &["intervalstyle TO 'postgres'"],
        Type::Array(of) => settings(of),
        _ => &[],
    }
}

/// Reads a column selected by [`selected`].
pub(super) fn read_value(kind: &Type, row: &Row, at: usize) -> DbResult<Value> {
    let value = match form(kind) {
        Form::Bool => row
            .try_get::<_, Option<bool>>(at)
            .map(|v| v.map(Value::Bool)),
        Form::Int => row.try_get::<_, Option<i64>>(at).map(|v| v.map(Value::Int)),
        Form::Float if *kind == Type::Float32 => row
            .try_get::<_, Option<f32>>(at)
            .map(|v| v.map(|f| Value::Float(shortest(f)))),
        Form::Float => row
            .try_get::<_, Option<f64>>(at)
            .map(|v| v.map(Value::Float)),
        Form::Bytes => row
            .try_get::<_, Option<Vec<u8>>>(at)
            .map(|v| v.map(Value::Bytes)),
        Form::Text => row
            .try_get::<_, Option<String>>(at)
            .map(|v| v.map(|text| read_text(kind, text))),
    };
    Ok(value
        .map_err(|e| super::error::failed(&e))?
        .unwrap_or(Value::Null))
}

/// Reads a whole row whose columns start at `first`.
pub(super) fn read_row(table: &Table, row: &Row, first: usize) -> DbResult<CoreRow> {
    let values = table.columns.iter().enumerate();
    values
        .map(|(at, column)| read_value(&column.kind, row, first + at))
        .collect::<DbResult<_>>()
        .map(CoreRow)
}

/// Whether every value of a column that is declared so here can be selected as [`selected`] does.
pub(super) fn casts_always(kind: &Type, declared: &str) -> bool {
    let built_in = declared
        .strip_prefix("\"pg_catalog\".")
        .map_or("", |name| name.trim_matches('"'));
    match form(kind) {
        Form::Bool => built_in == "bool",
        Form::Int => matches!(built_in, "int2" | "int4" | "int8"),
        Form::Float if *kind == Type::Float32 => built_in == "float4",
        Form::Float => matches!(built_in, "float4" | "float8"),
        Form::Bytes => built_in == "bytea",
        Form::Text => true,
    }
}

/// The value of a text in PostgreSQL's output format.
pub(super) fn parsed(kind: &Type, text: &str) -> Option<Value> {
    Some(match form(kind) {
        Form::Bool => match text {
            "t" | "true" => Value::Bool(true),
            "f" | "false" => Value::Bool(false),
            _ => return None,
        },
        Form::Int => Value::Int(text.parse().ok()?),
        Form::Float if *kind == Type::Float32 => Value::Float(shortest(text.parse().ok()?)),
        Form::Float => Value::Float(text.parse().ok()?),
        Form::Bytes => {
            let digits = text.strip_prefix("\\x")?;
            let pairs = (0..digits.len())
                .step_by(2)
                .map(|at| digits.get(at..at + 2));
            Value::Bytes(
                pairs
                    .map(|pair| u8::from_str_radix(pair?, 16).ok())
                    .collect::<Option<_>>()?,
            )
        }
        Form::Text => read_text(kind, text.to_owned()),
    })
}

/// A text as PostgreSQL casts it, without the padding of `char(n)` and the needless `/32` of an address.
fn read_text(kind: &Type, text: String) -> Value {
    match kind {
        Type::Char { .. } => Value::Text(text.trim_end_matches(' ').to_owned()),
        Type::Inet => canonical(kind, &Value::Text(text)).into_owned(),
        _ => Value::Text(text),
    }
}

/// As [`parsed`], of a text that another type wrote: nothing is rounded.
pub(super) fn parsed_exactly(kind: &Type, text: &str) -> Option<Value> {
    let wide = match kind {
        Type::Float32 => &Type::Float64,
        other => other,
    };
    parsed(wide, text).filter(|value| exact(kind, value))
}

/// The `f64` whose shortest text is that of this `f32`: what its decimal text means to every engine.
fn shortest(single: f32) -> f64 {
    if single.is_finite() {
        single.to_string().parse().unwrap_or(f64::from(single))
    } else {
        f64::from(single)
    }
}

/// Whether PostgreSQL would store this value as it is: on assignment it rounds decimals, floats and fractions of
/// seconds and cuts blanks off texts, and it reads words such as `today`, without a word (P7).
fn exact(kind: &Type, value: &Value) -> bool {
    match (kind, value) {
        (Type::Float32, Value::Float(f)) => f.is_nan() || shortest(*f as f32) == *f,
        (
            Type::Decimal {
                limits: Some((_, scale)),
            },
            Value::Text(text),
        ) if plain_fraction(text)
            .is_some_and(|digits| usize::try_from(*scale).is_ok_and(|scale| digits <= scale)) =>
        {
            true
        }
        (
            Type::Decimal {
                limits: Some((_, scale)),
            },
            Value::Text(_),
        ) => match canonical(kind, value).as_ref() {
            Value::Text(text) => is_spelled(kind, text) && has_scale(text, *scale),
            _ => false,
        },
        (Type::Text { max: Some(max) }, Value::Text(text)) => {
            let max = *max as usize;
            text.len() <= max || text.chars().count() <= max
        }
        // PostgreSQL's own parser is stricter than ours.
        (Type::Json | Type::Jsonb, _) => true,
        (kind, Value::Text(text)) => is_spelled(kind, text),
        _ => true,
    }
}

/// How many digits stand after the point of a decimal that is nothing but digits; `None` of any other, and of a long one.
fn plain_fraction(text: &str) -> Option<usize> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let bare = text.strip_prefix('-').unwrap_or(text);
    let short = bare.len() < 1000;
    match bare.split_once('.') {
        Some((whole, after)) => (short && digits(whole) && digits(after)).then_some(after.len()),
        None => (short && digits(bare)).then_some(0),
    }
}

/// Whether a decimal in its one spelling has no digit beyond this place.
fn has_scale(text: &str, scale: i16) -> bool {
    match usize::try_from(scale) {
        Ok(scale) => fraction(text) <= scale,
        Err(_) => {
            let zeros = text.len() - text.trim_end_matches('0').len();
            text == "0" || (!text.contains('.') && zeros >= usize::from(scale.unsigned_abs()))
        }
    }
}

/// The beginning of a value, for a message.
fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "it".to_owned(), |value| value.to_json().to_string());
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// The digits after the point that say something.
pub(super) fn fraction(text: &str) -> usize {
    let Some((_, after)) = text.split_once('.') else {
        return 0;
    };
    let end = after
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(after.len());
    after
        .get(..end)
        .unwrap_or_default()
        .trim_end_matches('0')
        .len()
}

/// One column of many rows, as an array parameter for `unnest`.
#[derive(Debug)]
pub(super) enum Array<'a> {
    Bool(Vec<Option<bool>>),
    Int(Vec<Option<i64>>),
    Float(Vec<Option<f64>>),
    Bytes(Vec<Option<&'a [u8]>>),
    Text(Vec<Option<&'a str>>),
}

/// The type of the parameter that [`Array::of`] makes.
pub(super) fn array_type(kind: &Type) -> Wire {
    match form(kind) {
        Form::Bool => Wire::BOOL_ARRAY,
        Form::Int => Wire::INT8_ARRAY,
        Form::Float => Wire::FLOAT8_ARRAY,
        Form::Bytes => Wire::BYTEA_ARRAY,
        Form::Text => Wire::TEXT_ARRAY,
    }
}

impl<'a> Array<'a> {
    /// Gathers a column's values; one of the wrong variant is a mismatch of the table.
    pub(super) fn of(
        table: &Table,
        column: &Column,
        values: impl Iterator<Item = Option<&'a Value>>,
    ) -> DbResult<Self> {
        let mut unfit = None;
        let values = values.map(|value| {
            let fits = |value: &&Value| exact(&column.kind, value);
            let kept = value.filter(fits);
            if kept.is_none() {
                unfit = value;
            }
            kept
        });
        macro_rules! gather {
            ($variant:ident, $accept:pat => $value:expr) => {
                values
                    .map(|value| match value {
                        Some(Value::Null) => Some(None),
                        Some($accept) => Some(Some($value)),
                        _ => None,
                    })
                    .collect::<Option<Vec<_>>>()
                    .map(Self::$variant)
            };
        }
        let gathered = match form(&column.kind) {
            Form::Bool => gather!(Bool, Value::Bool(b) => *b),
            Form::Int => gather!(Int, Value::Int(i) => *i),
            Form::Float => gather!(Float, Value::Float(f) => *f),
            Form::Bytes => gather!(Bytes, Value::Bytes(b) => b.as_slice()),
            Form::Text => gather!(Text, Value::Text(t) => t.as_str()),
        };
        gathered.ok_or_else(|| DatabaseError::Mismatch {
            table: table.name.clone(),
            message: format!(
                "a value of column `{}` does not fit this database unaltered: {} is no {}",
                column.name,
                shown(unfit),
                column.kind
            ),
        })
    }
}

impl ToSql for Array<'_> {
    fn to_sql(
        &self,
        ty: &Wire,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Bool(values) => values.to_sql(ty, out),
            Self::Int(values) => values.to_sql(ty, out),
            Self::Float(values) => values.to_sql(ty, out),
            Self::Bytes(values) => values.to_sql(ty, out),
            Self::Text(values) => values.to_sql(ty, out),
        }
    }

    fn accepts(ty: &Wire) -> bool {
        [
            Wire::BOOL_ARRAY,
            Wire::INT8_ARRAY,
            Wire::FLOAT8_ARRAY,
            Wire::BYTEA_ARRAY,
            Wire::TEXT_ARRAY,
        ]
        .contains(ty)
    }

    to_sql_checked!();
}

/// The columns of a table's key over many keys.
pub(super) fn key_arrays<'a>(table: &Table, keys: &'a [Key]) -> DbResult<Vec<Array<'a>>> {
    let columns = table.key_columns().enumerate();
    columns
        .map(|(at, column)| Array::of(table, column, keys.iter().map(|key| key.0.get(at))))
        .collect()
}

/// The parameter types of [`key_arrays`].
pub(super) fn key_types(table: &Table) -> Vec<Wire> {
    table
        .key_columns()
        .map(|column| array_type(&column.kind))
        .collect()
}

/// Arrays as parameters.
pub(super) fn parameters<'p>(arrays: &'p [Array<'_>]) -> Vec<&'p (dyn ToSql + Sync)> {
    arrays
        .iter()
        .map(|array| array as &(dyn ToSql + Sync))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_single_float_travels_as_its_shortest_text() {
        assert_eq!(shortest(0.1), 0.1);
        assert_eq!(shortest(f32::MAX), 3.4028235e38);
        for bits in (0..u32::MAX).step_by(99_991) {
            let single = f32::from_bits(bits);
            assert!(
                single.is_nan() || (shortest(single) as f32).to_bits() == bits,
                "{single}"
            );
        }
    }

    #[test]
    fn texts_of_keys_become_values() {
        assert_eq!(
            parsed(&Type::Bytes, "\\x00ff"),
            Some(Value::Bytes(vec![0, 255]))
        );
        assert_eq!(parsed(&Type::Bool, "true"), Some(Value::Bool(true)));
        assert_eq!(parsed(&Type::Int16, "-7"), Some(Value::Int(-7)));
        assert_eq!(
            parsed(&Type::Float64, "-Infinity"),
            Some(Value::Float(f64::NEG_INFINITY))
        );
        assert_eq!(parsed(&Type::Int16, "x"), None);
    }

    #[test]
    fn numeric_modifiers_are_read_with_negative_scales() {
        assert_eq!(
            logical("numeric", (12 << 16 | 2) + 4),
            Some(Type::Decimal {
                limits: Some((12, 2))
            })
        );
        assert_eq!(
            logical("numeric", (3 << 16 | (0x7ff & -2)) + 4),
            Some(Type::Decimal {
                limits: Some((3, -2))
            })
        );
        assert_eq!(logical("money", -1), None);
    }
}
