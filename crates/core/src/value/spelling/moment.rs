//! Dates, times of day and moments.

use std::borrow::Cow;

use super::digits;

pub(super) fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(body) => (body, true),
        None => (text, false),
    }
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
pub(super) fn date(text: &str, before: bool) -> Option<i64> {
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
pub(super) fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

pub(super) struct Clock {
    pub(super) seconds: i64,
    /// Six digits at the most, without needless zeros.
    pub(super) fraction: String,
}

impl Clock {
    pub(super) fn text(&self) -> String {
        let (hours, minutes) = (self.seconds / 3600, self.seconds / 60 % 60);
        let point = if self.fraction.is_empty() { "" } else { "." };
        let (seconds, fraction) = (self.seconds % 60, &self.fraction);
        format!("{hours:02}:{minutes:02}:{seconds:02}{point}{fraction}")
    }
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff`.
pub(super) fn time(text: &str, midnight: bool) -> Option<Clock> {
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

pub(super) fn time_with_zone(text: &str) -> Option<Cow<'_, str>> {
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
pub(super) fn moment(text: &str, has_zone: bool) -> Option<Cow<'_, str>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
