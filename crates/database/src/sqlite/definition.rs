//! The text of a `CREATE TABLE`, taken apart so that some of it can be altered and the rest kept as it was written:
//! checks, collations, computed columns, `AUTOINCREMENT`, `STRICT`, `WITHOUT ROWID`.

use crate::checks::Found;

/// A table as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) columns: Vec<Written>,
    /// Constraints of the table as a whole.
    pub(super) constraints: Vec<Part>,
    /// What follows the closing parenthesis.
    pub(super) options: String,
}

/// A column as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) parts: Vec<Part>,
}

/// One constraint with its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) what: What,
    pub(super) text: String,
    /// The identifiers in it, unquoted.
    pub(super) names: Vec<String>,
}

/// What a constraint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Primary,
    NotNull,
    Null,
    Unique,
    Check,
    Default,
    Collate,
    Reference,
    Computed,
}

impl Part {
    /// A part in words of our own.
    pub(super) fn new(what: What, text: String) -> Self {
        let names = tokens(&text).iter().filter_map(Token::name).collect();
        Self { what, text, names }
    }

    pub(super) fn mentions(&self, column: &str) -> bool {
        self.names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(column))
    }

    /// Whether it says the same as another text, whatever the blanks.
    pub(super) fn says(&self, text: &str) -> bool {
        let words = |text: &str| {
            tokens(text)
                .iter()
                .map(|token| token.0.to_lowercase())
                .collect::<Vec<_>>()
        };
        words(&self.text) == words(text)
    }

    /// A check's name and condition.
    pub(super) fn found(&self) -> Found {
        let all = tokens(&self.text);
        let named = all.first().is_some_and(|first| first.is("CONSTRAINT"));
        let name = all.get(1).filter(|_| named).and_then(Token::name);
        let open = all.iter().position(|token| token.0 == "(");
        let close = all.iter().rposition(|token| token.0 == ")");
        // What may follow is `ON CONFLICT ...`, which SQLite does not heed in a check.
        let inner = open
            .zip(close)
            .and_then(|(open, close)| all.get(open + 1..close));
        Found {
            name,
            text: inner.map_or_else(String::new, joined),
        }
    }

    /// The columns in the first parentheses.
    pub(super) fn columns(&self) -> Vec<String> {
        let all = tokens(&self.text);
        let inner = all.iter().skip_while(|token| token.0 != "(").skip(1);
        inner
            .take_while(|token| token.0 != ")")
            .filter_map(Token::name)
            .collect()
    }
}

impl Definition {
    /// Takes a text apart; `None` where it is not understood.
    pub(super) fn parse(sql: &str) -> Option<Self> {
        let all = tokens(sql);
        let open = all.iter().position(|token| token.0 == "(")?;
        let close = all.iter().rposition(|token| token.0 == ")")?;
        let mut items: Vec<&[Token<'_>]> = Vec::new();
        let (mut depth, mut begin) = (0_usize, open + 1);
        for at in open + 1..close {
            match all.get(at)?.0 {
                "(" => depth += 1,
                ")" => depth = depth.checked_sub(1)?,
                "," if depth == 0 => {
                    items.push(all.get(begin..at)?);
                    begin = at + 1;
                }
                _ => {}
            }
        }
        items.push(all.get(begin..close)?);
        let (mut columns, mut constraints) = (Vec::new(), Vec::new());
        for item in items {
            let first = item.first()?;
            if first.is_any(&["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"]) {
                constraints.extend(parts(item)?);
            } else {
                columns.push(written(item)?);
            }
        }
        Some(Self {
            columns,
            constraints,
            options: joined(all.get(close + 1..)?),
        })
    }

    /// The text that makes a table of this name.
    pub(super) fn creation(&self, quoted: &str) -> String {
        let mut lines: Vec<String> = Vec::new();
        for column in &self.columns {
            let mut line = super::sql::quoted(&column.name);
            for word in
                std::iter::once(&column.declared).chain(column.parts.iter().map(|part| &part.text))
            {
                if !word.is_empty() {
                    line.push(' ');
                    line.push_str(word);
                }
            }
            lines.push(line);
        }
        lines.extend(self.constraints.iter().map(|part| part.text.clone()));
        let options = if self.options.is_empty() {
            String::new()
        } else {
            format!(" {}", self.options)
        };
        format!(
            "CREATE TABLE {quoted} (\n  {}\n){options}",
            lines.join(",\n  ")
        )
    }

    /// All checks, those of columns first.
    pub(super) fn checks(&self) -> impl Iterator<Item = &Part> {
        let columns = self.columns.iter().flat_map(|column| &column.parts);
        let parts = columns.chain(&self.constraints);
        parts.filter(|part| part.what == What::Check)
    }

    /// Takes checks away, and tells whether there were any such.
    pub(super) fn without_checks(&mut self, goes: impl Fn(&Part) -> bool) -> bool {
        let stays = |part: &Part| part.what != What::Check || !goes(part);
        let before = self.checks().count();
        for column in &mut self.columns {
            column.parts.retain(stays);
        }
        self.constraints.retain(stays);
        self.checks().count() < before
    }

    /// Whether a column has a collation that takes different texts for equal.
    pub(super) fn folds(&self, name: &str) -> bool {
        let column = self
            .columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name));
        let mut parts = column.into_iter().flat_map(|column| &column.parts);
        parts.any(|part| part.what == What::Collate && !part.mentions("BINARY"))
    }

    pub(super) fn column(&mut self, name: &str) -> Option<&mut Written> {
        self.columns
            .iter_mut()
            .find(|column| column.name.eq_ignore_ascii_case(name))
    }
}

impl Written {
    pub(super) fn without(&mut self, what: What) {
        self.parts.retain(|part| part.what != what);
    }

    /// Puts a constraint in the place of those of its kind.
    pub(super) fn set(&mut self, what: What, text: impl Into<String>) {
        self.without(what);
        self.parts.push(Part::new(what, text.into()));
    }
}

/// A word, a name, a literal or a mark, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token<'t>(
    &'t str,
    /// Nothing stands between it and the one before.
    bool,
);

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        self.0.eq_ignore_ascii_case(word)
    }

    fn is_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(word))
    }

    /// The name that it spells, where it can be one.
    fn name(&self) -> Option<String> {
        let inner = |close: char| {
            let inner = self.0.get(1..self.0.len().checked_sub(1)?)?;
            Some(inner.replace(&format!("{close}{close}"), &close.to_string()))
        };
        match self.0.chars().next()? {
            '"' => inner('"'),
            '`' => inner('`'),
            '[' => inner(']'),
            '\'' => inner('\''),
            first if first.is_alphabetic() || first == '_' || !first.is_ascii() => {
                Some(self.0.to_owned())
            }
            _ => None,
        }
    }
}

fn tokens(sql: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut rest, mut close) = (sql, false);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if first.is_whitespace() => {
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
                close = false;
                continue;
            }
            '-' if rest.starts_with("--") => {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
                close = false;
                continue;
            }
            '/' if rest.starts_with("/*") => {
                rest = rest.split_once("*/").map_or("", |(_, after)| after);
                close = false;
                continue;
            }
            '"' | '`' | '\'' => enclosed(rest, first),
            '[' => rest.find(']').map_or(rest.len(), |at| at + 1),
            _ if word(first) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        found.push(Token(token, close));
        (rest, close) = (after, true);
    }
    found
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '.') || !c.is_ascii()
}

/// The length of what stands between two marks, of which two in a row are one within.
fn enclosed(text: &str, mark: char) -> usize {
    let mut inside = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = inside.next() {
        if c == mark {
            if inside.peek().is_some_and(|(_, next)| *next == mark) {
                inside.next();
            } else {
                return at + 1;
            }
        }
    }
    text.len()
}

/// The tokens as they were written, but for comments and the size of gaps.
fn joined(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    for Token(token, close) in tokens {
        if !close && !text.is_empty() {
            text.push(' ');
        }
        text.push_str(token);
    }
    text
}

fn written(item: &[Token<'_>]) -> Option<Written> {
    const BEGIN: [&str; 10] = [
        "CONSTRAINT",
        "PRIMARY",
        "NOT",
        "NULL",
        "UNIQUE",
        "CHECK",
        "DEFAULT",
        "COLLATE",
        "REFERENCES",
        "GENERATED",
    ];
    let (name, rest) = item.split_first()?;
    let end = rest
        .iter()
        .position(|token| token.is_any(&BEGIN) || token.is("AS"))
        .unwrap_or(rest.len());
    let (kind, rest) = rest.split_at_checked(end)?;
    Some(Written {
        name: name.name()?,
        declared: joined(kind),
        parts: parts(rest)?,
    })
}

/// The constraints of a column or table, one after the other.
fn parts(mut rest: &[Token<'_>]) -> Option<Vec<Part>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let named = if rest.first()?.is("CONSTRAINT") { 2 } else { 0 };
        let (what, begin) = begin(rest.get(named..)?)?;
        let mut end = named + begin;
        // Up to the next constraint; what is in parentheses belongs to this one.
        let mut depth = 0_usize;
        while let Some(token) = rest.get(end) {
            match token.0 {
                "(" => depth += 1,
                ")" => depth = depth.checked_sub(1)?,
                _ if depth == 0 && ends(what, rest, end) => break,
                _ => {}
            }
            end += 1;
        }
        let (tokens, after) = rest.split_at_checked(end)?;
        found.push(Part {
            what,
            text: joined(tokens),
            names: tokens.iter().filter_map(Token::name).collect(),
        });
        rest = after;
    }
    Some(found)
}

/// What a constraint is by its first words, and how many those are.
fn begin(rest: &[Token<'_>]) -> Option<(What, usize)> {
    let first = rest.first()?;
    let known = [
        ("PRIMARY", What::Primary, 2),
        ("NOT", What::NotNull, 2),
        ("NULL", What::Null, 1),
        ("UNIQUE", What::Unique, 1),
        ("CHECK", What::Check, 1),
        ("DEFAULT", What::Default, 2),
        ("COLLATE", What::Collate, 2),
        ("REFERENCES", What::Reference, 2),
        ("FOREIGN", What::Reference, 2),
        ("GENERATED", What::Computed, 3),
        ("AS", What::Computed, 1),
    ];
    let (_, what, words) = known.into_iter().find(|(word, _, _)| first.is(word))?;
    // A default in parentheses begins with them; a sign belongs to its number.
    let words = match (what, rest.get(1).map(|token| token.0)) {
        (What::Default, Some("(")) => 1,
        (What::Default, Some("-" | "+")) => 3,
        _ => words,
    };
    (words <= rest.len()).then_some((what, words))
}

/// Whether another constraint begins here.
fn ends(what: What, rest: &[Token<'_>], at: usize) -> bool {
    let Some(token) = rest.get(at) else {
        return true;
    };
    let before = at.checked_sub(1).and_then(|at| rest.get(at));
    let after_word = |words: &[&str]| before.is_some_and(|token| token.is_any(words));
    match what {
        // `ON DELETE SET NULL`, `SET DEFAULT`, `NOT DEFERRABLE`, `FOREIGN KEY (...) REFERENCES`.
        What::Reference => {
            let own = (token.is_any(&["NULL", "DEFAULT"]) && after_word(&["SET"]))
                || (token.is("NOT") && rest.get(at + 1).is_some_and(|next| next.is("DEFERRABLE")))
                || (token.is("REFERENCES")
                    && !rest.iter().take(at).any(|token| token.is("REFERENCES")));
            !own && opens(token)
        }
        _ => opens(token),
    }
}

fn opens(token: &Token<'_>) -> bool {
    token.is_any(&[
        "CONSTRAINT",
        "PRIMARY",
        "NOT",
        "NULL",
        "UNIQUE",
        "CHECK",
        "DEFAULT",
        "COLLATE",
        "REFERENCES",
        "GENERATED",
        "AS",
        "FOREIGN",
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_comes_apart_and_together_again() {
        let sql = "CREATE TABLE \"a\"\"b\" ( -- the key\n id INTEGER PRIMARY KEY AUTOINCREMENT,
            [full name] VARCHAR ( 20 ) NOT NULL DEFAULT 'it''s, (so)' COLLATE NOCASE CHECK (length([full name]) < 20),
            n DECIMAL(10, 2) DEFAULT -1.5 NULL UNIQUE, m INT AS (n * 2) STORED, `x` REFERENCES p(id) ON DELETE SET NULL NOT DEFERRABLE NOT NULL,
            at TEXT DEFAULT (datetime('now')), CONSTRAINT u UNIQUE (n, x) ON CONFLICT IGNORE, CHECK (n >= 1e-5 AND m IN (1, 2) AND x <> x'00'),
            FOREIGN KEY (n) REFERENCES q (a) ON UPDATE SET DEFAULT DEFERRABLE INITIALLY DEFERRED ) WITHOUT ROWID, STRICT";
        let parsed = Definition::parse(sql).unwrap();
        let shown: Vec<_> = parsed
            .columns
            .iter()
            .map(|column| {
                let whats: Vec<_> = column.parts.iter().map(|part| part.what).collect();
                (column.name.as_str(), column.declared.as_str(), whats)
            })
            .collect();
        use What::{Check, Collate, Computed, Default, NotNull, Null, Primary, Reference, Unique};
        assert_eq!(
            shown,
            [
                ("id", "INTEGER", vec![Primary]),
                (
                    "full name",
                    "VARCHAR ( 20 )",
                    vec![NotNull, Default, Collate, Check]
                ),
                ("n", "DECIMAL(10, 2)", vec![Default, Null, Unique]),
                ("m", "INT", vec![Computed]),
                ("x", "", vec![Reference, NotNull]),
                ("at", "TEXT", vec![Default]),
            ]
        );
        let whats: Vec<_> = parsed.constraints.iter().map(|part| part.what).collect();
        assert_eq!(whats, [Unique, Check, Reference]);
        assert_eq!(parsed.constraints[0].columns(), ["n", "x"]);
        assert_eq!(parsed.options, "WITHOUT ROWID, STRICT");
        let again = Definition::parse(&parsed.creation("t")).unwrap();
        assert_eq!(again, parsed);
    }
}
