//! What a text of each logical type may look like, and its one spelling.
//!
//! Engines without a type keep its values as text, which an application may fill with anything. PostgreSQL would read
//! more into some texts than stands there (`today`, `01/02/2024`, a zone that it ignores), each office for itself. So
//! whatever is not told here is no value.

use std::borrow::Cow;

use super::{Type, array};

/// Digits that an exact decimal may have: what PostgreSQL's `numeric` has room for.
const DIGITS: u64 = 131_072 + 16_383;

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

/// An exact decimal without an exponent, needless zeros or a plus.
pub(super) fn decimal(text: &str) -> Option<Cow<'_, str>> {
    for (name, spelled) in [
        ("nan", "NaN"),
        ("infinity", "Infinity"),
        ("+infinity", "Infinity"),
        ("-infinity", "-Infinity"),
        ("inf", "Infinity"),
        ("-inf", "-Infinity"),
    ] {
        if text.eq_ignore_ascii_case(name) {
            return Some(Cow::Borrowed(spelled));
        }
    }
    let (negative, bare) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match bare.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            (
                mantissa,
                digits(unsigned).then(|| exponent.parse::<i64>().ok())??,
            )
        }
        None => (bare, 0),
    };
    let (whole, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if !(digits(whole) || whole.is_empty() && digits(after)) || !(digits(after) || after.is_empty())
    {
        return None;
    }
    let needless = text.starts_with('+')
        || bare.len() > mantissa.len()
        || whole.is_empty()
        || (whole.len() > 1 && whole.starts_with('0'))
        || mantissa.ends_with('.')
        || after.ends_with('0')
        || (negative && mantissa == "0");
    if !needless {
        return Some(Cow::Borrowed(text));
    }
    let all = format!("{whole}{after}");
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Some(Cow::Borrowed("0"));
    }
    // The place of the point within the significant digits.
    let leading = i64::try_from(all.len() - significant.len()).ok()?;
    let point = (i64::try_from(whole.len()).ok()? - leading).checked_add(exponent)?;
    let significant = significant.trim_end_matches('0');
    let length = i64::try_from(significant.len()).ok()?;
    if point.unsigned_abs() > DIGITS || length.unsigned_abs() > DIGITS {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    Some(Cow::Owned(match usize::try_from(point) {
        Ok(at) if at > 0 && point < length => {
            let (whole, after) = significant.split_at(at);
            format!("{sign}{whole}.{after}")
        }
        Ok(at) if at > 0 => format!("{sign}{significant}{}", zeros(point - length)),
        _ => format!("{sign}0.{}{significant}", zeros(-point)),
    }))
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

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(body) => (body, true),
        None => (text, false),
    }
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
fn date(text: &str, before: bool) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let long = year.len() > 4 && year.starts_with('0');
    let shape = (4..=7).contains(&year.len()) && month.len() == 2 && day.len() == 2 && !long;
    if parts.next().is_some() || !shape || ![year, month, day].into_iter().all(digits) {
        return None;
    }
    let (year, month, day): (i64, i64, i64) =
        (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    if year == 0 {
        return None;
    }
    let year = if before { 1 - year } else { year };
    let leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    (1..=longest).contains(&day).then(|| days(year, month, day))
}

/// Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

struct Clock {
    seconds: i64,
    /// Six digits at the most, without needless zeros.
    fraction: String,
}

impl Clock {
    fn text(&self) -> String {
        let (hours, minutes) = (self.seconds / 3600, self.seconds / 60 % 60);
        let point = if self.fraction.is_empty() { "" } else { "." };
        let (seconds, fraction) = (self.seconds % 60, &self.fraction);
        format!("{hours:02}:{minutes:02}:{seconds:02}{point}{fraction}")
    }
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff`.
fn time(text: &str, midnight: bool) -> Option<Clock> {
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, digits(fraction).then_some(fraction)?),
        None => (text, ""),
    };
    let fraction = fraction.trim_end_matches('0');
    let parts: Vec<&str> = whole.split(':').collect();
    let two = |part: &&str| part.len() == 2 && digits(part);
    if fraction.len() > 6 || !parts.iter().all(two) || (parts.len() == 2 && text.contains('.')) {
        return None;
    }
    let numbers: Vec<i64> = parts
        .iter()
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match numbers.as_slice() {
        [hours, minutes] => (*hours, *minutes, 0),
        [hours, minutes, seconds] => (*hours, *minutes, *seconds),
        _ => return None,
    };
    let last = hours == 24 && minutes == 0 && seconds == 0 && fraction.is_empty() && midnight;
    ((hours < 24 || last) && minutes < 60 && seconds < 60).then(|| Clock {
        seconds: hours * 3600 + minutes * 60 + seconds,
        fraction: fraction.to_owned(),
    })
}

/// A time or moment without the zone at its end, and the zone's seconds east of Greenwich where there is one.
fn zoned(text: &str) -> Option<(&str, Option<i64>)> {
    if let Some(local) = text.strip_suffix('Z') {
        return Some((local, Some(0)));
    }
    let colon = text.find(':')?;
    let Some(at) = text.get(colon..)?.find(['+', '-']).map(|at| at + colon) else {
        return Some((text, None));
    };
    let (local, zone) = text.split_at(at);
    let parts: Vec<&str> = match zone.get(1..)? {
        plain if plain.len() == 4 && !plain.contains(':') => vec![plain.get(..2)?, plain.get(2..)?],
        other => other.split(':').collect(),
    };
    if parts.len() > 3 || !parts.iter().all(|part| part.len() == 2 && digits(part)) {
        return None;
    }
    let mut seconds = 0;
    for (part, weight) in parts.iter().zip([3600, 60, 1]) {
        let number: i64 = part.parse().ok()?;
        if weight < 3600 && number > 59 {
            return None;
        }
        seconds += number * weight;
    }
    let seconds = if zone.starts_with('-') {
        -seconds
    } else {
        seconds
    };
    (seconds.abs() < 16 * 3600).then_some((local, Some(seconds)))
}

fn time_with_zone(text: &str) -> Option<Cow<'_, str>> {
    let (local, zone) = zoned(text)?;
    let zone = zone?;
    let sign = if zone < 0 { '-' } else { '+' };
    let (hours, minutes, seconds) = (zone.abs() / 3600, zone.abs() / 60 % 60, zone.abs() % 60);
    let mut spelled = format!("{}{sign}{hours:02}", time(local, true)?.text());
    if minutes > 0 || seconds > 0 {
        spelled.push_str(&format!(":{minutes:02}"));
    }
    if seconds > 0 {
        spelled.push_str(&format!(":{seconds:02}"));
    }
    Some(Cow::Owned(spelled))
}

/// A date and a time, with a blank or a `T` between them. What has a zone is told in UTC; what has none is in UTC. A
/// moment without a zone may have that of UTC, which says nothing more.
fn moment(text: &str, has_zone: bool) -> Option<Cow<'_, str>> {
    if is_plain_moment(text, has_zone) {
        return Some(Cow::Borrowed(text));
    }
    any_moment(text, has_zone)
}

fn any_moment(text: &str, has_zone: bool) -> Option<Cow<'_, str>> {
    let (body, before) = era(text);
    let (local, zone) = zoned(body)?;
    let at = local.find([' ', 'T'])?;
    let (day, clock) = (local.get(..at)?, time(local.get(at + 1..)?, false)?);
    let number = date(day, before)?;
    let zone = zone.unwrap_or(0);
    if zone != 0 && !has_zone {
        return None;
    }
    let utc = if has_zone { "+00" } else { "" };
    let era = if before { " BC" } else { "" };
    if zone == 0 {
        return Some(Cow::Owned(format!("{day} {}{utc}{era}", clock.text())));
    }
    let seconds = number * 86_400 + clock.seconds - zone;
    let (year, month, day) = crate::conflict::civil(seconds.div_euclid(86_400));
    let (year, era) = if year < 1 {
        (1 - year, " BC")
    } else {
        (year, "")
    };
    let clock = Clock {
        seconds: seconds.rem_euclid(86_400),
        ..clock
    };
    Some(Cow::Owned(format!(
        "{year:04}-{month:02}-{day:02} {}{utc}{era}",
        clock.text()
    )))
}

/// Whether a moment is one of the last centuries in its one spelling, as nearly all are: told without taking it apart.
fn is_plain_moment(text: &str, has_zone: bool) -> bool {
    let local = match has_zone {
        true => text.strip_suffix("+00"),
        false => Some(text),
    };
    let Some((front, fraction)) = local.and_then(|local| local.as_bytes().split_at_checked(19))
    else {
        return false;
    };
    let shape = front.iter().enumerate().all(|(at, byte)| match at {
        4 | 7 => *byte == b'-',
        10 => *byte == b' ',
        13 | 16 => *byte == b':',
        _ => byte.is_ascii_digit(),
    });
    let two = |at: usize| match front.get(at..at + 2) {
        Some([tens, ones]) => 10 * u32::from(tens & 15) + u32::from(ones & 15),
        _ => u32::MAX,
    };
    let part = match fraction {
        [] => true,
        [b'.', digits @ .., last] => {
            digits.len() < 6
                && digits.iter().all(u8::is_ascii_digit)
                && (b'1'..=b'9').contains(last)
        }
        _ => false,
    };
    // Every month has 28 days; the last ones, and early years, are looked at more closely.
    shape
        && part
        && two(0) > 0
        && (1..=12).contains(&two(5))
        && (1..=28).contains(&two(8))
        && two(11) < 24
        && two(14) < 60
        && two(17) < 60
}

/// An interval: three quantities that no calendar turns into each other.
struct Span {
    months: i64,
    days: i64,
    /// Wide enough for the smallest that PostgreSQL writes.
    micros: i128,
}

impl Span {
    /// Reads PostgreSQL's style `postgres`: `1 year 2 mons -3 days +04:05:06.7`.
    fn read(text: &str) -> Option<Self> {
        let mut span = Self {
            months: 0,
            days: 0,
            micros: 0,
        };
        let mut words = text.split(' ').peekable();
        let (mut last, mut any) = (0, false);
        while let Some(word) = words.next() {
            any = true;
            if word.contains(':') {
                span.micros = clock_micros(word)?;
                return words.next().is_none().then_some(span);
            }
            let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
            let number: i64 = digits(unsigned).then(|| word.parse().ok())??;
            let place = match words.next()? {
                "year" | "years" => {
                    span.months = number.checked_mul(12)?;
                    1
                }
                "mon" | "mons" => {
                    span.months = span.months.checked_add(number)?;
                    2
                }
                "day" | "days" => {
                    span.days = number;
                    3
                }
                _ => return None,
            };
            if place <= last {
                return None;
            }
            last = place;
        }
        let fits = |number: i64| i32::try_from(number).is_ok();
        (any && fits(span.months) && fits(span.days)).then_some(span)
    }

    fn text(&self) -> Option<String> {
        let (mut text, mut negative) = (String::new(), false);
        for (number, unit) in [
            (self.months / 12, "year"),
            (self.months % 12, "mon"),
            (self.days, "day"),
        ] {
            if number == 0 {
                continue;
            }
            let blank = if text.is_empty() { "" } else { " " };
            let plus = if negative && number > 0 { "+" } else { "" };
            let plural = if number == 1 { "" } else { "s" };
            text.push_str(&format!("{blank}{plus}{number} {unit}{plural}"));
            negative = number < 0;
        }
        if text.is_empty() || self.micros != 0 {
            let size = self.micros.checked_abs()?;
            let clock = Clock {
                seconds: i64::try_from(size / 1_000_000).ok()?,
                fraction: match size % 1_000_000 {
                    0 => String::new(),
                    rest => format!("{rest:06}").trim_end_matches('0').to_owned(),
                },
            };
            let blank = if text.is_empty() { "" } else { " " };
            let sign = match (self.micros < 0, negative) {
                (true, _) => "-",
                (false, true) => "+",
                (false, false) => "",
            };
            text.push_str(&format!("{blank}{sign}{}", clock.text()));
        }
        Some(text)
    }
}

/// `[+-]HH:MM:SS.ffffff`, with as many hours as there are.
fn clock_micros(word: &str) -> Option<i128> {
    let (negative, bare) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let (hours, rest) = bare.split_once(':')?;
    let within = time(&format!("00:{rest}"), false)?;
    if hours.len() < 2 || !digits(hours) || rest.len() < 5 {
        return None;
    }
    let seconds = i128::from(hours.parse::<i64>().ok()?) * 3600 + i128::from(within.seconds);
    let fraction: i128 = format!("{:0<6}", within.fraction).parse().ok()?;
    let micros = seconds * 1_000_000 + fraction;
    Some(if negative { -micros } else { micros })
}

/// A whole number of microseconds as an interval of days and a time within a day, which is what frameworks mean by it.
pub fn interval_of_micros(micros: i64) -> String {
    let span = Span {
        months: 0,
        days: micros.div_euclid(86_400_000_000),
        micros: i128::from(micros.rem_euclid(86_400_000_000)),
    };
    span.text().unwrap_or_default()
}

/// The microseconds of an interval, where [`interval_of_micros`] would make the same interval of them.
pub fn micros_of_interval(text: &str) -> Option<i64> {
    let span = Span::read(text)?;
    let within_a_day = (0..86_400_000_000).contains(&span.micros);
    let micros = i128::from(span.days) * 86_400_000_000 + span.micros;
    let micros = i64::try_from(micros).ok()?;
    (span.months == 0 && within_a_day).then_some(micros)
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

/// Members in order of their names, the last of a name alone; numbers as decimals; no blanks.
fn json(text: &str) -> Option<Cow<'_, str>> {
    let parsed: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut spelled = String::with_capacity(text.len());
    write_json(&parsed, &mut spelled);
    Some(Cow::Owned(spelled))
}

/// As deep as the parser went, which has a limit.
fn write_json(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value::{Array, Number, Object};
    match value {
        Number(number) => {
            let text = number.to_string();
            out.push_str(&decimal(&text).unwrap_or(Cow::Borrowed(&text)));
        }
        Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_json(item, out);
            }
            out.push(']');
        }
        Object(members) => {
            out.push('{');
            for (at, (name, member)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                out.push(':');
                write_json(member, out);
            }
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(kind: &Type, text: &str) -> Option<String> {
        spelling(kind, text).map(Cow::into_owned)
    }

    proptest::proptest! {
        #[test]
        fn a_moment_that_is_told_at_a_glance_is_in_its_one_spelling(
            text in "(0[01]|1[0-9]|20|99)[0-9]{2}-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,7})?(\\+00|Z|)( BC)?"
        ) {
            for has_zone in [false, true] {
                if is_plain_moment(&text, has_zone) {
                    proptest::prop_assert_eq!(any_moment(&text, has_zone), Some(Cow::Borrowed(text.as_str())));
                }
            }
        }
    }

    #[test]
    fn usual_moments_are_told_at_a_glance() {
        assert!(is_plain_moment("2024-01-02 03:04:05.120001+00", true));
        assert!(is_plain_moment("2024-01-02 03:04:05", false));
        for (text, has_zone) in [
            ("2024-01-02 03:04:05", true),
            ("2024-01-02 03:04:05+00", false),
            ("2024-01-02 03:04:05.10", false),
            ("2024-01-02 03:04:05.", false),
            ("0000-01-02 03:04:05", false),
            ("2024-00-02 03:04:05", false),
            ("2024-02-30 03:04:05", false),
            ("2024-01-02 24:00:00", false),
            ("infinity", true),
        ] {
            assert!(!is_plain_moment(text, has_zone), "{text}");
        }
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

    #[test]
    fn an_interval_of_days_and_hours_is_a_number_too() {
        for (micros, text) in [
            (0, "00:00:00"),
            (90_000_000, "00:01:30"),
            (86_400_000_000, "1 day"),
            (-1, "-1 days +23:59:59.999999"),
        ] {
            assert_eq!(interval_of_micros(micros), text);
            assert_eq!(micros_of_interval(text), Some(micros));
        }
        for text in ["24:00:00", "-00:00:01", "1 mon", "1 year"] {
            assert_eq!(micros_of_interval(text), None, "{text}");
        }
    }
}
