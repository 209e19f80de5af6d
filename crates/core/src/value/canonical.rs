//! One spelling for values that mean the same, so that two engines agree on equality.

use std::borrow::Cow;

use super::spelling::spelling;
use super::{Type, Value};

/// The value in the one spelling that digests and comparisons use.
///
/// It folds: negative zero, exponents and needless zeros of decimals, trailing zeros of fractions of seconds, `T` between
/// date and time, zones, letter case and hyphens of UUIDs, spellings of intervals, arrays and addresses, white space, member
/// order and numbers of JSON, padding of `CHAR`.
pub fn canonical<'a>(kind: &Type, value: &'a Value) -> Cow<'a, Value> {
    match (kind, value) {
        (_, Value::Float(f)) if *f == 0.0 => Cow::Owned(Value::Float(0.0)),
        (Type::Float32, Value::Float(f)) if f64::from(*f as f32) != *f && f.is_finite() => {
            Cow::Owned(Value::Float(shortest_single(*f)))
        }
        (_, Value::Float(f)) if f.is_nan() => Cow::Owned(Value::Float(f64::NAN)),
        (_, Value::Text(text)) => match text_form(kind, text) {
            Cow::Borrowed(same) if same == text => Cow::Borrowed(value),
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
    // What is no value of the type equals nothing but itself.
    spelling(kind, text).unwrap_or(Cow::Borrowed(text))
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
                r#"{"a":[1.5],"b":1}"#,
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
