//! What a text of each logical type may look like, and its one spelling.
//!
//! Engines without a type keep its values as text, which an application may fill with anything. PostgreSQL would read
//! more into some texts than stands there (`today`, `01/02/2024`, a zone that it ignores), each office for itself. So
//! whatever is not told here is no value.

use std::borrow::Cow;

use super::{Type, array};

mod interval;
mod json;
mod moment;
mod number;

use interval::Span;
pub use interval::{interval_of_micros, micros_of_interval};
use json::json;
use moment::{date, era, moment, time, time_with_zone};
use number::decimal;

/// Whether a text can stand for a value of this type. Lengths and limits are not looked at.
pub fn is_spelled(kind: &Type, text: &str) -> bool {
    match kind {
        // Their own form is kept, and may be deeper than is worth folding.
        Type::Json | Type::Jsonb => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        kind => spelling(kind, text).is_some(),
    }
}

/// The one spelling of what a text stands for; `None` where it stands for no value of this type.
pub(super) fn spelling<'a>(kind: &Type, text: &'a str) -> Option<Cow<'a, str>> {
    match kind {
        Type::Decimal { .. } => decimal(text),
        Type::Char { .. } => Some(Cow::Borrowed(text.trim_end_matches(' '))),
        Type::Uuid => uuid(text),
        Type::Date => endless(text).or_else(|| {
            let (body, before) = era(text);
            date(body, before)?;
            Some(Cow::Borrowed(text))
        }),
        Type::Time => Some(Cow::Owned(time(text, true)?.text())),
        Type::TimeTz => time_with_zone(text),
        Type::Timestamp => endless(text).or_else(|| moment(text, false)),
        Type::TimestampTz => endless(text).or_else(|| moment(text, true)),
        Type::Interval => endless(text).or_else(|| Some(Cow::Owned(Span::read(text)?.text()?))),
        Type::Inet => inet(text),
        Type::Json | Type::Jsonb => json(text),
        Type::Array(of) => array::spelling(of, text).map(Cow::Owned),
        _ => Some(Cow::Borrowed(text)),
    }
}

fn endless(text: &str) -> Option<Cow<'_, str>> {
    matches!(text, "infinity" | "-infinity").then_some(Cow::Borrowed(text))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Hyphens may stand after any four digits, braces around it all, as PostgreSQL reads it.
fn uuid(text: &str) -> Option<Cow<'_, str>> {
    let hyphen = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let proper = |(at, byte): (usize, u8)| match hyphen(at) {
        true => byte == b'-',
        false => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    if text.len() == 36 && text.bytes().enumerate().all(proper) {
        return Some(Cow::Borrowed(text));
    }
    let bare = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut spelled = String::with_capacity(36);
    let (mut count, mut hyphenated) = (0, true);
    for byte in bare.bytes() {
        match byte {
            b'-' if count % 4 == 0 && !hyphenated && count < 32 => hyphenated = true,
            _ if byte.is_ascii_hexdigit() && count < 32 => {
                if matches!(count, 8 | 12 | 16 | 20) {
                    spelled.push('-');
                }
                spelled.push(char::from(byte.to_ascii_lowercase()));
                count += 1;
                hyphenated = false;
            }
            _ => return None,
        }
    }
    (count == 32 && !hyphenated).then_some(Cow::Owned(spelled))
}

/// An address with the length of its network, which is left out where it is the whole address.
fn inet(text: &str) -> Option<Cow<'_, str>> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) if digits(bits) && bits.len() <= 3 => bits.parse().ok()?,
        Some(_) => return None,
        None => whole,
    };
    (bits <= whole).then(|| {
        Cow::Owned(if bits == whole {
            address.to_string()
        } else {
            format!("{address}/{bits}")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(kind: &Type, text: &str) -> Option<String> {
        spelling(kind, text).map(Cow::into_owned)
    }

    #[test]
    fn each_value_has_one_spelling() {
        let decimal = Type::Decimal { limits: None };
        let cases: &[(&Type, &[&str], &str)] = &[
            (
                &decimal,
                &["5.10", "+5.1", "05.1", "51e-1", "0.51E+1"],
                "5.1",
            ),
            (&decimal, &["0", "-0", "0.00", ".0", "0e99", "-0.0"], "0"),
            (&decimal, &["100", "1e2", "100.", "1.00E2"], "100"),
            (&decimal, &["-0.05", "-.05", "-5e-2"], "-0.05"),
            (&decimal, &["NaN", "nan"], "NaN"),
            (
                &Type::Uuid,
                &[
                    "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                    "a0eebc999c0b4ef8bb6d6bb9bd380a11",
                    "{a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11}",
                ],
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (&Type::Date, &["2024-02-29"], "2024-02-29"),
            (&Type::Date, &["0005-02-29 BC"], "0005-02-29 BC"),
            (
                &Type::Time,
                &["10:00", "10:00:00", "10:00:00.000"],
                "10:00:00",
            ),
            (&Type::Time, &["24:00"], "24:00:00"),
            (
                &Type::TimeTz,
                &["10:00Z", "10:00:00+00:00", "10:00:00-00"],
                "10:00:00+00",
            ),
            (&Type::TimeTz, &["10:00:00-03:30"], "10:00:00-03:30"),
            (
                &Type::Timestamp,
                &["2024-02-29T10:00:00.50Z", "2024-02-29 10:00:00.5"],
                "2024-02-29 10:00:00.5",
            ),
            (
                &Type::TimestampTz,
                &[
                    "2024-03-01T01:30:00+02:00",
                    "2024-02-29 23:30Z",
                    "2024-02-29 23:30:00",
                    "2024-02-29 19:30:00.0-0400",
                ],
                "2024-02-29 23:30:00+00",
            ),
            (
                &Type::TimestampTz,
                &["0001-01-01 00:00:00+01", "0001-12-31 23:00:00+00 BC"],
                "0001-12-31 23:00:00+00 BC",
            ),
            (
                &Type::Interval,
                &["1 year 2 mons", "14 mons", "1 years +2 mons"],
                "1 year 2 mons",
            ),
            (
                &Type::Interval,
                &["-1 days +02:03:00", "-1 day 02:03:00.000"],
                "-1 days +02:03:00",
            ),
            (&Type::Interval, &["00:00:00", "0 days"], "00:00:00"),
            (&Type::Interval, &["-100:00:00.000001"], "-100:00:00.000001"),
            (&Type::Inet, &["10.0.0.1", "10.0.0.1/32"], "10.0.0.1"),
            (&Type::Inet, &["2001:DB8:0::1/64"], "2001:db8::1/64"),
            (
                &Type::Jsonb,
                &[
                    r#"{"b": 1e2, "a":[1.50, -0]}"#,
                    r#"{"a":[1.5,0],"b":1,"b":100}"#,
                ],
                r#"{"a":[1.5,0],"b":100}"#,
            ),
            (&Type::Json, &["\"\\u00e9\"", "\"é\""], "\"é\""),
        ];
        for (kind, texts, one) in cases {
            for text in *texts {
                assert_eq!(spelled(kind, text).as_deref(), Some(*one), "{kind} {text}");
                assert!(is_spelled(kind, text));
            }
            assert_eq!(spelled(kind, one).as_deref(), Some(*one), "{kind} {one}");
        }
    }

    #[test]
    fn what_is_no_value_has_none() {
        let decimal = Type::Decimal { limits: None };
        let cases: &[(&Type, &[&str])] = &[
            (
                &decimal,
                &[
                    "",
                    "-",
                    ".",
                    "e5",
                    "1e",
                    "1e+",
                    "0x10",
                    "1_000",
                    " 5",
                    "5 ",
                    "+-1",
                    "1e999999999999",
                    ".5e-9223372036854775808",
                    "1e200000",
                    "١",
                ],
            ),
            (
                &Type::Uuid,
                &[
                    "",
                    "a0ee",
                    "-a0eebc999c0b4ef8bb6d6bb9bd380a11",
                    "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
                    "a0eeb-c999c0b4ef8bb6d6bb9bd380a11",
                    "{a0eebc999c0b4ef8bb6d6bb9bd380a11",
                ],
            ),
            (
                &Type::Date,
                &[
                    "",
                    "today",
                    "2024-02-30",
                    "2023-02-29",
                    "0000-01-01",
                    "2024-1-1",
                    "20240101",
                    "01/02/2024",
                    "2024-01-01 ",
                    "02024-01-01",
                ],
            ),
            (
                &Type::Time,
                &[
                    "",
                    "25:00",
                    "24:00:01",
                    "12:60:00",
                    "12:00:60",
                    "1:00",
                    "12:00:00.1234567",
                    "12:00.5",
                    "12:30 PM",
                ],
            ),
            (
                &Type::TimeTz,
                &["12:00:00", "12:00:00+16", "12:00:00+1", "12:00:00 UTC"],
            ),
            (
                &Type::Timestamp,
                &[
                    "now",
                    "2024-01-01",
                    "2024-01-01 24:00:00",
                    "2024-01-01 10:00:00+02",
                    "2024-01-01  10:00:00",
                ],
            ),
            (
                &Type::TimestampTz,
                &["2024-01-01 10:00:00 CET", "2024-01-01 10:00:00+99"],
            ),
            (
                &Type::Interval,
                &[
                    "",
                    "1",
                    "P1D",
                    "1 week",
                    "90 minutes",
                    "1 day 1 year",
                    "1 day 1:00:00",
                    "1 day 00:61:00",
                    "00:00:00 1 day",
                ],
            ),
            (&Type::Inet, &["10.0.0", "10.0.0.1/33", "10.0.0.256", "x"]),
            (&Type::Json, &["", "{a:1}", "[1,]", "NaN", "1 2"]),
        ];
        for (kind, texts) in cases {
            for text in *texts {
                assert!(!is_spelled(kind, text), "{kind} {text}");
            }
        }
    }
}
