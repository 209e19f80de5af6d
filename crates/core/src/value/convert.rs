//! Values of one type as values of another, when a column was retyped: only what loses nothing.

use std::str::FromStr;

use bigdecimal::BigDecimal;

use super::{Type, Value, canonical, is_spelled};

/// The value as one of type `to`, or nothing where that would lose something or cannot be: nothing is rounded, trimmed
/// or guessed (P7). NULL stays NULL.
pub fn convert(from: &Type, to: &Type, value: &Value) -> Option<Value> {
    if value.is_null() {
        return Some(Value::Null);
    }
    let converted = match to {
        Type::Bool => Value::Bool(truth(value)?),
        Type::Int16 | Type::Int32 | Type::Int64 => Value::Int(whole(value)?),
        Type::Float32 => {
            let float = float(value)?;
            #[allow(clippy::cast_possible_truncation, reason = "compared just below")]
            let narrow = f64::from(float as f32);
            (narrow.to_bits() == float.to_bits() || *from == Type::Float32 || float.is_nan())
                .then_some(Value::Float(narrow))?
        }
        Type::Float64 => Value::Float(float(value)?),
        Type::Decimal { limits } => Value::Text(decimal(value, *limits)?),
        Type::Bytes => match value {
            Value::Bytes(_) => value.clone(),
            _ => return None,
        },
        Type::Timestamp | Type::TimestampTz | Type::Date => Value::Text(moment(from, to, value)?),
        Type::Enum { labels, .. } => {
            let text = text(value)?;
            labels.contains(&text).then_some(Value::Text(text))?
        }
        Type::Json | Type::Jsonb => {
            let text = text(value)?;
            serde_json::from_str::<serde::de::IgnoredAny>(&text).ok()?;
            Value::Text(text)
        }
        Type::Text { max } => {
            let text = text(value)?;
            fits(&text, *max).then_some(Value::Text(text))?
        }
        Type::Char { length } => {
            let text = text(value)?;
            fits(&text, Some(*length)).then_some(Value::Text(text))?
        }
        _ => Value::Text(text(value)?),
    };
    if let Value::Text(text) = &converted
        && !is_spelled(to, text)
    {
        return None;
    }
    let converted = canonical(to, &converted).into_owned();
    to.holds(&converted).then_some(converted)
}

/// Whether every value of `from` is one of `to`, unchanged in meaning and in what names a row.
pub fn widens(from: &Type, to: &Type) -> bool {
    let integer = |kind: &Type| match kind {
        Type::Int16 => 16,
        Type::Int32 => 32,
        Type::Int64 => 64,
        _ => 0,
    };
    match (from, to) {
        (a, b) if a == b => true,
        (Type::Text { .. }, Type::Text { max: None }) => true,
        (Type::Text { max: Some(a) }, Type::Text { max: Some(b) }) => a <= b,
        (Type::Float32, Type::Float64) => true,
        (Type::Decimal { .. }, Type::Decimal { limits: None }) => true,
        (
            Type::Decimal {
                limits: Some((digits, scale)),
            },
            Type::Decimal {
                limits: Some((more, longer)),
            },
        ) => {
            scale <= longer
                && i32::from(*digits) - i32::from(*scale) <= i32::from(*more) - i32::from(*longer)
        }
        (Type::Enum { labels: few, .. }, Type::Enum { labels: many, .. }) => {
            few.iter().all(|label| many.contains(label))
        }
        (a, b) => integer(a) > 0 && integer(a) <= integer(b),
    }
}

fn fits(text: &str, max: Option<u32>) -> bool {
    max.is_none_or(|max| text.chars().count() <= usize::try_from(max).unwrap_or(usize::MAX))
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        Value::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "1" => Some(true),
            "f" | "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Bool(truth) => Some(i64::from(*truth)),
        Value::Float(_) | Value::Text(_) => {
            let number = BigDecimal::from_str(text(value)?.trim()).ok()?;
            number
                .is_integer()
                .then(|| number.with_scale(0).to_string())?
                .parse()
                .ok()
        }
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(float) => Some(*float),
        Value::Int(_) | Value::Text(_) => {
            let told = text(value)?;
            let float: f64 = told.trim().parse().ok()?;
            let back = BigDecimal::from_str(&float.to_string()).ok();
            let same = BigDecimal::from_str(told.trim()).ok() == back;
            (same || !float.is_finite()).then_some(float)
        }
        _ => None,
    }
}

fn decimal(value: &Value, limits: Option<(u16, i16)>) -> Option<String> {
    let told = text(value)?;
    if limits.is_none() && matches!(told.as_str(), "NaN" | "Infinity" | "-Infinity") {
        return Some(told);
    }
    let number = BigDecimal::from_str(told.trim()).ok()?.normalized();
    if let Some((precision, scale)) = limits {
        let whole_digits = i64::try_from(number.digits()).ok()? - number.fractional_digit_count();
        let few = number.fractional_digit_count() <= i64::from(scale)
            && whole_digits <= i64::from(precision) - i64::from(scale);
        if !few {
            return None;
        }
    }
    Some(number.to_plain_string())
}

fn moment(from: &Type, to: &Type, value: &Value) -> Option<String> {
    let told = text(value)?;
    match (from, to) {
        (Type::Date, Type::Timestamp) => Some(format!("{told} 00:00:00")),
        (Type::Date, Type::TimestampTz) => Some(format!("{told} 00:00:00+00")),
        (Type::Timestamp, Type::TimestampTz) => Some(format!("{told}+00")),
        (Type::TimestampTz, Type::Timestamp) => Some(told.strip_suffix("+00")?.to_owned()),
        (Type::Timestamp, Type::Date) => Some(told.strip_suffix(" 00:00:00")?.to_owned()),
        (Type::TimestampTz, Type::Date) => Some(told.strip_suffix(" 00:00:00+00")?.to_owned()),
        (a, b) if a == b => Some(told),
        (Type::Text { .. } | Type::Char { .. }, _) => Some(told),
        _ => None,
    }
}

/// The value as text, as PostgreSQL casts it.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Float(float) if float.is_infinite() => Some(
            if *float > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }
            .into(),
        ),
        Value::Float(float) => Some(float.to_string()),
        Value::Null | Value::Bytes(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text_of(max: u32) -> Type {
        Type::Text { max: Some(max) }
    }

    fn decimal_of(precision: u16, scale: i16) -> Type {
        Type::Decimal {
            limits: Some((precision, scale)),
        }
    }

    #[test]
    fn what_loses_nothing_passes() {
        let told = |text: &str| Value::Text(text.into());
        let cases = [
            (Type::Int32, Type::Int64, Value::Int(7), Value::Int(7)),
            (Type::Int32, text_of(9), Value::Int(-7), told("-7")),
            (text_of(9), Type::Int32, told(" 42"), Value::Int(42)),
            (text_of(9), decimal_of(5, 2), told("12.50"), told("12.5")),
            (decimal_of(5, 2), Type::Int16, told("12.00"), Value::Int(12)),
            (Type::Int32, Type::Bool, Value::Int(1), Value::Bool(true)),
            (Type::Bool, Type::Int16, Value::Bool(true), Value::Int(1)),
            (
                Type::Date,
                Type::Timestamp,
                told("2026-01-02"),
                told("2026-01-02 00:00:00"),
            ),
            (
                Type::Timestamp,
                Type::TimestampTz,
                told("2026-01-02 03:04:05"),
                told("2026-01-02 03:04:05+00"),
            ),
            (
                decimal_of(5, 2),
                Type::Float64,
                told("0.5"),
                Value::Float(0.5),
            ),
            (
                Type::Bytes,
                Type::Bytes,
                Value::Bytes(vec![1]),
                Value::Bytes(vec![1]),
            ),
            (Type::Int32, Type::Int64, Value::Null, Value::Null),
        ];
        for (from, to, value, expected) in cases {
            assert_eq!(
                convert(&from, &to, &value),
                Some(expected),
                "{from} to {to}: {value:?}"
            );
        }
    }

    #[test]
    fn what_would_lose_something_does_not() {
        let told = |text: &str| Value::Text(text.into());
        let cases = [
            (Type::Int64, Type::Int32, Value::Int(1 << 40)),
            (Type::Int32, Type::Bool, Value::Int(2)),
            (text_of(9), Type::Int32, told("twelve")),
            (text_of(9), text_of(3), told("long")),
            (decimal_of(5, 2), Type::Int32, told("1.5")),
            (decimal_of(5, 2), decimal_of(5, 1), told("1.25")),
            (decimal_of(5, 2), decimal_of(3, 1), told("123")),
            (Type::Timestamp, Type::Date, told("2026-01-02 03:04:05")),
            (Type::Int32, Type::Bytes, Value::Int(1)),
            (text_of(9), Type::Jsonb, told("{")),
        ];
        for (from, to, value) in cases {
            assert_eq!(
                convert(&from, &to, &value),
                None,
                "{from} to {to}: {value:?}"
            );
        }
    }

    #[test]
    fn widening_keeps_every_value() {
        assert!(widens(&Type::Int16, &Type::Int64));
        assert!(!widens(&Type::Int64, &Type::Int32));
        assert!(widens(&text_of(3), &Type::Text { max: None }));
        assert!(widens(&decimal_of(5, 2), &decimal_of(7, 3)));
        assert!(!widens(&decimal_of(5, 2), &decimal_of(5, 3)));
        assert!(!widens(&Type::Int32, &text_of(20)));
    }
}
