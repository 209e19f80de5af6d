//! Column defaults: the plain literals that every engine can state.

use branchline_core::value::{Type, Value};

use super::types::parsed;

/// The value of a default expression as `pg_get_expr` writes it, where it is a plain literal.
pub(super) fn value(kind: &Type, expression: &str) -> Option<Value> {
    let bare = unwrapped(expression.trim());
    if let Some(rest) = bare.strip_prefix('\'') {
        return parsed(kind, &quoted(rest)?);
    }
    let word = bare.split("::").next().unwrap_or(bare);
    let word = unwrapped(word);
    let numeric = word
        .strip_prefix('-')
        .unwrap_or(word)
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'.');
    match word {
        "true" | "false" if *kind == Type::Bool => parsed(kind, word),
        _ if numeric && !word.is_empty() && !matches!(kind, Type::Bool) => parsed(kind, word),
        _ => None,
    }
}

/// The literal that states a value.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) if f.is_finite() => format!("'{f:e}'"),
        Value::Float(f) if f.is_nan() => "'NaN'".into(),
        Value::Float(f) => if *f > 0.0 {
            "'Infinity'"
        } else {
            "'-Infinity'"
        }
        .into(),
        // An E-string has the same meaning whatever `standard_conforming_strings` is.
        Value::Text(t) => format!("E'{}'", t.replace('\\', "\\\\").replace('\'', "''")),
        Value::Bytes(b) => format!(
            "E'\\\\x{}'",
            b.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        ),
    }
}

fn unwrapped(text: &str) -> &str {
    text.strip_prefix('(')
        .and_then(|inner| inner.strip_suffix(')'))
        .unwrap_or(text)
}

/// The string that ends at the closing quote, where only casts follow it.
fn quoted(rest: &str) -> Option<String> {
    let mut string = String::new();
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        if character != '\'' {
            string.push(character);
        } else if rest[at + 1..].starts_with('\'') {
            string.push('\'');
            characters.next();
        } else {
            let tail = &rest[at + 1..];
            let cast = |c: char| c.is_alphanumeric() || " _\".,()[]:".contains(c);
            return ((tail.is_empty() || tail.starts_with("::")) && tail.chars().all(cast))
                .then_some(string);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_literals_are_defaults() {
        let text_type = Type::Text { max: None };
        assert_eq!(
            value(&text_type, "'it''s'::text"),
            Some(Value::Text("it's".into()))
        );
        assert_eq!(value(&text_type, "'a'::text || 'b'::text"), None);
        assert_eq!(value(&Type::Int32, "'-1'::integer"), Some(Value::Int(-1)));
        assert_eq!(value(&Type::Int32, "(-1)"), Some(Value::Int(-1)));
        assert_eq!(value(&Type::Bool, "true"), Some(Value::Bool(true)));
        assert_eq!(
            value(&Type::Decimal { limits: None }, "0.00"),
            Some(Value::Text("0.00".into()))
        );
        assert_eq!(value(&Type::TimestampTz, "now()"), None);
        assert_eq!(value(&Type::Int64, "nextval('s'::regclass)"), None);
    }
}
