//! One spelling for values that mean the same, so that two engines agree on equality.

use std::borrow::Cow;

use super::{Type, Value};

/// The value in the one spelling that digests and comparisons use.
///
/// It folds: negative zero, trailing zeros of decimals and of fractions of seconds, `T` between date and time, zone
/// suffixes that mean UTC, letter case of UUIDs, white space and member order of JSON, padding of `CHAR`.
pub fn canonical<'a>(kind: &Type, value: &'a Value) -> Cow<'a, Value> {
    match (kind, value) {
        (_, Value::Float(f)) if *f == 0.0 => Cow::Owned(Value::Float(0.0)),
        (Type::Float32, Value::Float(f)) if f64::from(*f as f32) != *f && f.is_finite() => {
            Cow::Owned(Value::Float(shortest_single(*f)))
        }
        (_, Value::Float(f)) if f.is_nan() => Cow::Owned(Value::Float(f64::NAN)),
        (_, Value::Text(text)) => match text_form(kind, text) {
            Cow::Borrowed(same) if same.len() == text.len() => Cow::Borrowed(value),
            changed => Cow::Owned(Value::Text(changed.into_owned())),
        },
        _ => Cow::Borrowed(value),
    }
}

/// The shortest decimal that names the same single-precision float, as a double: how PostgreSQL writes `real`.
fn shortest_single(f: f64) -> f64 {
    (f as f32).to_string().parse().unwrap_or(f)
}

fn text_form<'a>(kind: &Type, text: &'a str) -> Cow<'a, str> {
    match kind {
        Type::Decimal { .. } => decimal(text),
        Type::Char { .. } => Cow::Borrowed(text.trim_end_matches(' ')),
        Type::Uuid => Cow::Owned(text.to_ascii_lowercase()),
        Type::Time => Cow::Borrowed(trim_fraction(text)),
        Type::Timestamp => moment(text.strip_suffix('Z').unwrap_or(text)),
        Type::TimestampTz => zoned(text),
        Type::Json | Type::Jsonb => json(text),
        _ => Cow::Borrowed(text),
    }
}

fn decimal(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let trimmed = match text.split_once('.') {
        Some(_) if !text.contains(['e', 'E']) => text.trim_end_matches('0').trim_end_matches('.'),
        _ => text,
    };
    match trimmed {
        "-0" | "" | "-" => Cow::Borrowed("0"),
        _ if trimmed.starts_with('.') => Cow::Owned(format!("0{trimmed}")),
        _ if trimmed.starts_with("-.") => Cow::Owned(format!("-0{}", &trimmed[1..])),
        other => Cow::Borrowed(other),
    }
}

fn trim_fraction(text: &str) -> &str {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

fn moment(text: &str) -> Cow<'_, str> {
    let (body, era) = match text.strip_suffix(" BC") {
        Some(body) => (body, " BC"),
        None => (text, ""),
    };
    let trimmed = trim_fraction(body);
    if trimmed.contains('T') || !era.is_empty() {
        Cow::Owned(format!("{}{era}", trimmed.replacen('T', " ", 1)))
    } else {
        Cow::Borrowed(trimmed)
    }
}

fn zoned(text: &str) -> Cow<'_, str> {
    let (body, era) = match text.strip_suffix(" BC") {
        Some(body) => (body, " BC"),
        None => (text, ""),
    };
    let local = ["Z", "+00:00", "+0000", "+00"]
        .iter()
        .find_map(|utc| body.strip_suffix(utc));
    match local {
        Some(local) => Cow::Owned(format!("{}+00{era}", moment(local))),
        None => Cow::Borrowed(text),
    }
}

fn json(text: &str) -> Cow<'_, str> {
    // serde_json keeps members sorted (no `preserve_order`) and numbers as written (`arbitrary_precision`).
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(parsed) => Cow::Owned(parsed.to_string()),
        Err(_) => Cow::Borrowed(text),
    }
}

/// Feeds a value's canonical form, with its kind and length, into a hash.
pub(crate) fn feed(hasher: &mut blake3::Hasher, kind: &Type, value: &Value) {
    match canonical(kind, value).as_ref() {
        Value::Null => hasher.update(&[0]),
        Value::Bool(b) => hasher.update(&[1, u8::from(*b)]),
        Value::Int(i) => hasher.update(&[2]).update(&i.to_be_bytes()),
        Value::Float(f) => hasher.update(&[3]).update(&f.to_bits().to_be_bytes()),
        Value::Text(t) => hasher
            .update(&[4])
            .update(&(t.len() as u64).to_be_bytes())
            .update(t.as_bytes()),
        Value::Bytes(b) => hasher
            .update(&[5])
            .update(&(b.len() as u64).to_be_bytes())
            .update(b),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_that_mean_the_same_become_one() {
        let decimal = Type::Decimal { limits: None };
        let cases = [
            (&decimal, "5.10", "5.1"),
            (&decimal, "5.00", "5"),
            (&decimal, "-0.00", "0"),
            (&decimal, "100", "100"),
            (&decimal, ".5", "0.5"),
            (&decimal, "NaN", "NaN"),
            (
                &Type::Timestamp,
                "2024-01-02T03:04:05.500000",
                "2024-01-02 03:04:05.5",
            ),
            (
                &Type::Timestamp,
                "0044-03-15 12:00:00.10 BC",
                "0044-03-15 12:00:00.1 BC",
            ),
            (&Type::Timestamp, "infinity", "infinity"),
            (
                &Type::TimestampTz,
                "2024-01-02T03:04:05Z",
                "2024-01-02 03:04:05+00",
            ),
            (
                &Type::TimestampTz,
                "2024-01-02 03:04:05.120+00:00",
                "2024-01-02 03:04:05.12+00",
            ),
            (&Type::Time, "10:00:00.000", "10:00:00"),
            (
                &Type::Jsonb,
                r#"{"b": 1, "a": [1.50]}"#,
                r#"{"a":[1.50],"b":1}"#,
            ),
            (&Type::Char { length: 4 }, "ab  ", "ab"),
        ];
        for (kind, from, to) in cases {
            assert_eq!(
                *canonical(kind, &Value::Text(from.into())),
                Value::Text(to.into()),
                "{kind} {from}"
            );
        }
        assert_eq!(
            *canonical(&Type::Float64, &Value::Float(-0.0)),
            Value::Float(0.0)
        );
    }
}
