//! Arrays in PostgreSQL's text form.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use super::Type;
use super::spelling::{is_spelled, spelling as of_element};

/// Dimensions that PostgreSQL's arrays have at the most.
const DEEPEST: usize = 6;

enum Item {
    Null,
    Element(String),
    Row(Vec<Item>),
}

/// The one spelling of an array of this element type; `None` where the text is no array.
pub(super) fn spelling(of: &Type, text: &str) -> Option<String> {
    let (bounds, body) = match text.find('{')? {
        0 => ("", text),
        at => {
            let (bounds, body) = text.split_at(at);
            (bounds, bounds.ends_with('=').then_some(body)?)
        }
    };
    let legal = |c: char| c.is_ascii_digit() || "[]:-+=".contains(c);
    if !bounds.chars().all(legal) {
        return None;
    }
    let mut characters = body.chars().peekable();
    let items = row(of, &mut characters, 1)?;
    if characters.next().is_some() {
        return None;
    }
    shape(&items)?;
    let mut spelled = bounds.to_owned();
    write(&items, &mut spelled);
    Some(spelled)
}

/// A row after which anything may follow.
fn row(of: &Type, characters: &mut Peekable<Chars<'_>>, depth: usize) -> Option<Vec<Item>> {
    if depth > DEEPEST || characters.next()? != '{' {
        return None;
    }
    let mut items = Vec::new();
    blanks(characters);
    if characters.next_if_eq(&'}').is_some() {
        return Some(items);
    }
    loop {
        blanks(characters);
        items.push(match characters.peek()? {
            '{' => Item::Row(row(of, characters, depth + 1)?),
            '"' => Item::Element(element(of, &quoted(characters)?)?),
            _ => bare(of, characters)?,
        });
        blanks(characters);
        match characters.next()? {
            ',' => {}
            '}' => return Some(items),
            _ => return None,
        }
    }
}

/// What PostgreSQL passes over between elements.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

fn blanks(characters: &mut Peekable<Chars<'_>>) {
    while characters.next_if(|c| is_blank(*c)).is_some() {}
}

fn quoted(characters: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut text = String::new();
    characters.next();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            other => text.push(other),
        }
    }
}

fn bare(of: &Type, characters: &mut Peekable<Chars<'_>>) -> Option<Item> {
    let (mut text, mut escaped) = (String::new(), false);
    while let Some(&next) = characters.peek() {
        match next {
            ',' | '}' => break,
            '{' | '"' => return None,
            '\\' => {
                characters.next();
                escaped = true;
                text.push(characters.next()?);
            }
            other => {
                characters.next();
                text.push(other);
            }
        }
    }
    let text = text.trim_end_matches(is_blank);
    match text {
        "" => None,
        null if null.eq_ignore_ascii_case("null") && !escaped => Some(Item::Null),
        text => Some(Item::Element(element(of, text)?)),
    }
}

fn element(of: &Type, text: &str) -> Option<String> {
    match of {
        Type::Bool => match text {
            "t" | "true" => Some("t".into()),
            "f" | "false" => Some("f".into()),
            _ => None,
        },
        Type::Int16 | Type::Int32 | Type::Int64 => Some(text.parse::<i64>().ok()?.to_string()),
        Type::Float32 => Some(float(
            f64::from(text.parse::<f32>().ok()?),
            6,
            text.parse::<f32>().ok()?.to_string(),
        )),
        Type::Float64 => {
            let number: f64 = text.parse().ok()?;
            Some(float(number, 15, number.to_string()))
        }
        // Deeper than is worth folding, or with half of a character, it is JSON nevertheless.
        Type::Json | Type::Jsonb if is_spelled(of, text) => {
            Some(of_element(of, text).map_or_else(|| text.to_owned(), Cow::into_owned))
        }
        kind => of_element(kind, text).map(Cow::into_owned),
    }
}

/// A float by its shortest digits; with an exponent where PostgreSQL writes one.
fn float(number: f64, widest: i32, shortest: String) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    if number == 0.0 {
        return "0".into();
    }
    let scientific = shortest
        .parse::<f64>()
        .map_or_else(|_| shortest.clone(), |f| format!("{f:e}"));
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return shortest;
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..widest).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => shortest,
    }
}

/// The lengths of the dimensions; `None` where rows beside each other differ in them.
fn shape(items: &[Item]) -> Option<Vec<usize>> {
    let mut inner: Option<Vec<usize>> = None;
    for item in items {
        let here = match item {
            Item::Row(items) => shape(items)?,
            _ => Vec::new(),
        };
        if inner.as_ref().is_some_and(|inner| *inner != here) {
            return None;
        }
        inner = Some(here);
    }
    let mut all = vec![items.len()];
    all.extend(inner.unwrap_or_default());
    Some(all)
}

fn write(items: &[Item], out: &mut String) {
    out.push('{');
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at > 0 { "," } else { "" });
        match item {
            Item::Null => out.push_str("NULL"),
            Item::Row(items) => write(items, out),
            Item::Element(text) => {
                let plain = |c: char| !is_blank(c) && !"{},\"\\".contains(c);
                if text.is_empty() || text.eq_ignore_ascii_case("null") || !text.chars().all(plain)
                {
                    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
                    out.push_str(&format!("\"{escaped}\""));
                } else {
                    out.push_str(text);
                }
            }
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_have_one_spelling_or_none() {
        let texts = Type::Text { max: None };
        let cases = [
            (
                &texts,
                r#"{ a , "b c" ,NULL, "NULL", "", \N\U }"#,
                Some(r#"{a,"b c",NULL,"NULL","",NU}"#),
            ),
            (&texts, r#"{"a,b","c\"d\\"}"#, Some(r#"{"a,b","c\"d\\"}"#)),
            (&texts, "{\"\u{b}\"}", Some("{\"\u{b}\"}")),
            (&texts, "{}", Some("{}")),
            (&texts, "{{a,b},{c,d}}", Some("{{a,b},{c,d}}")),
            (&Type::Int32, "[2:3]={ 1,02}", Some("[2:3]={1,2}")),
            (
                &Type::Float64,
                "{1.0,1e20,-0,1e-5,0.0001}",
                Some("{1,1e+20,0,1e-05,0.0001}"),
            ),
            (
                &Type::Decimal { limits: None },
                "{1.50,1e1}",
                Some("{1.5,10}"),
            ),
            (
                &Type::TimestampTz,
                r#"{"2024-01-01 02:00:00+02"}"#,
                Some(r#"{"2024-01-01 00:00:00+00"}"#),
            ),
            (&texts, "a,b", None),
            (&texts, "{", None),
            (&texts, "{a,}", None),
            (&texts, "{a}b", None),
            (&texts, "{{a},b}", None),
            (&texts, "{{a},{b,c}}", None),
            (&texts, "[1,2]", None),
            (&Type::Int32, "{x}", None),
            (&Type::Date, "{today}", None),
            (&texts, "{{{{{{{a}}}}}}}", None),
        ];
        for (of, text, one) in cases {
            assert_eq!(spelling(of, text).as_deref(), one, "{text}");
        }
    }
}
