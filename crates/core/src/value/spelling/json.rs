//! JSON documents, whose order and blanks mean nothing.

use std::borrow::Cow;

use super::number::decimal;

/// Members in order of their names, the last of a name alone; numbers as decimals; no blanks.
pub(super) fn json(text: &str) -> Option<Cow<'_, str>> {
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
