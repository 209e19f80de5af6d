//! Exact decimals.

use std::borrow::Cow;

use super::digits;

/// Digits that an exact decimal may have: what PostgreSQL's `numeric` has room for.
const DIGITS: u64 = 131_072 + 16_383;

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
