//! The words of a condition.

use super::Dialect;

/// The longest text of a condition that is looked at, in bytes.
const LONGEST: usize = 20_000;

/// A word of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A word that is not quoted: a keyword or a name.
    Word(String),
    /// A quoted name.
    Name(String),
    /// A text.
    Text(String),
    /// Digits.
    Number(String),
    /// A sign.
    Sign(&'static str),
}

impl Token {
    /// As it is shown.
    pub(super) fn shown(&self) -> &str {
        match self {
            Self::Word(text) | Self::Name(text) | Self::Text(text) | Self::Number(text) => text,
            Self::Sign(sign) => sign,
        }
    }
}

/// The signs, longer ones first.
const SIGNS: [&str; 18] = [
    "::", "<=", ">=", "<>", "!=", "==", "<", ">", "=", "(", ")", ",", "-", "+", "[", "]", ";", ".",
];

/// Takes a text apart; what is not known is told.
pub(super) fn tokens(dialect: Dialect, text: &str) -> Result<Vec<Token>, String> {
    if text.len() > LONGEST {
        return Err("it is too long".into());
    }
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = rest.trim_start();
            continue;
        }
        let (token, after) = match first {
            '\'' if dialect == Dialect::Mysql => escaped(rest)?,
            '\'' => {
                let (inner, after) = enclosed(rest, '\'')?;
                (Token::Text(inner), after)
            }
            '"' if dialect != Dialect::Mysql => name(enclosed(rest, '"')?),
            '`' if dialect != Dialect::Postgres => name(enclosed(rest, '`')?),
            '[' if dialect == Dialect::Sqlite => {
                let inner = rest.get(1..).and_then(|inner| inner.split_once(']'));
                let (inner, after) = inner.ok_or_else(open)?;
                (Token::Name(inner.to_owned()), after)
            }
            _ if first.is_ascii_digit() => {
                let (word, after) = run(rest);
                if !word.chars().all(|c| c.is_ascii_digit()) || after.starts_with('.') {
                    return Err(format!("`{word}` is no whole number"));
                }
                (Token::Number(word.to_owned()), after)
            }
            _ if is_word(first) => {
                let (word, after) = run(rest);
                (Token::Word(word.to_owned()), after)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let sign = sign.ok_or_else(|| format!("`{first}` is not known"))?;
                (
                    Token::Sign(sign),
                    rest.get(sign.len()..).unwrap_or_default(),
                )
            }
        };
        found.push(token);
        rest = after;
    }
    Ok(found)
}

fn name((inner, after): (String, &str)) -> (Token, &str) {
    (Token::Name(inner), after)
}

fn open() -> String {
    "a quotation in it does not end".into()
}

/// What stands between two marks, of which two in a row are one within; and what follows.
fn enclosed(text: &str, mark: char) -> Result<(String, &str), String> {
    let mut inner = String::new();
    let mut rest = text.get(mark.len_utf8()..).unwrap_or_default();
    loop {
        let (before, after) = rest.split_once(mark).ok_or_else(open)?;
        inner.push_str(before);
        match after.strip_prefix(mark) {
            Some(further) => {
                inner.push(mark);
                rest = further;
            }
            None => return Ok((inner, after)),
        }
    }
}

/// A text of MariaDB or MySQL, which mark the mark in it with a backslash. Any other backslash may be read in two ways.
fn escaped(text: &str) -> Result<(Token, &str), String> {
    let mut inner = String::new();
    let mut rest = text.get(1..).unwrap_or_default();
    loop {
        let at = rest.find(['\'', '\\']).ok_or_else(open)?;
        let (before, after) = rest.split_at(at);
        inner.push_str(before);
        if let Some(further) = after.strip_prefix("''").or(after.strip_prefix("\\'")) {
            inner.push('\'');
            rest = further;
        } else if let Some(after) = after.strip_prefix('\'') {
            return Ok((Token::Text(inner), after));
        } else {
            return Err("a text in it holds a backslash".into());
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

fn run(text: &str) -> (&str, &str) {
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    text.split_at(end)
}
