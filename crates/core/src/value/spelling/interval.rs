//! Intervals, in PostgreSQL's words and as microseconds.

use super::digits;
use super::moment::{Clock, time};

/// An interval: three quantities that no calendar turns into each other.
pub(super) struct Span {
    months: i64,
    days: i64,
    /// Wide enough for the smallest that PostgreSQL writes.
    micros: i128,
}

impl Span {
    /// Reads PostgreSQL's style `postgres`: `1 year 2 mons -3 days +04:05:06.7`.
    pub(super) fn read(text: &str) -> Option<Self> {
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

    pub(super) fn text(&self) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
