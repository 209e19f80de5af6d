//! A check in an engine's words, read into a condition: a grammar of a few words, closed at every other one.

use branchline_core::check::{Comparison, Condition, is_whole};
use branchline_core::schema::Column;

use super::tokens::{Token, tokens};
use super::{Dialect, is_text};

/// How deep parentheses and NOTs stand in each other.
const DEPTH: usize = 40;

/// The condition that a text says, or why it is not carried over. `folds` tells the columns in which the engine takes different
/// texts for equal.
pub(crate) fn read(
    dialect: Dialect,
    columns: &[Column],
    folds: &dyn Fn(&Column) -> bool,
    text: &str,
) -> Result<Condition, String> {
    let tokens = tokens(dialect, text)?;
    let mut reader = Reader {
        dialect,
        columns,
        folds,
        tokens: &tokens,
        at: 0,
        depth: DEPTH,
    };
    let said = reader.any()?;
    if let Some(token) = reader.peek() {
        return Err(unknown(token));
    }
    let condition = reader.condition(said)?;
    if condition.is_bounded() {
        Ok(condition)
    } else {
        Err("it is too large".into())
    }
}

/// What a part of the text is.
enum Said {
    Condition(Condition),
    Column(u16),
    Number(i64),
    Text(String),
    /// `ARRAY[...]`
    List(Vec<Said>),
}

struct Reader<'r> {
    dialect: Dialect,
    columns: &'r [Column],
    folds: &'r dyn Fn(&Column) -> bool,
    tokens: &'r [Token],
    at: usize,
    depth: usize,
}

fn unknown(token: &Token) -> String {
    format!("`{}` is not known", token.shown())
}

fn ends() -> String {
    "it ends too early".into()
}

impl<'r> Reader<'r> {
    fn peek(&self) -> Option<&'r Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Result<&'r Token, String> {
        let token = self.peek().ok_or_else(ends)?;
        self.at += 1;
        Ok(token)
    }

    fn is_word(&self, at: usize, word: &str) -> bool {
        matches!(self.tokens.get(at), Some(Token::Word(there)) if there.eq_ignore_ascii_case(word))
    }

    fn is_sign(&self, at: usize, sign: &str) -> bool {
        matches!(self.tokens.get(at), Some(Token::Sign(there)) if *there == sign)
    }

    fn word(&mut self, word: &str) -> bool {
        let is = self.is_word(self.at, word);
        self.at += usize::from(is);
        is
    }

    fn sign(&mut self, sign: &str) -> bool {
        let is = self.is_sign(self.at, sign);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.sign(sign) {
            return Ok(());
        }
        Err(self.peek().map_or_else(ends, unknown))
    }

    fn condition(&self, said: Said) -> Result<Condition, String> {
        match said {
            Said::Condition(condition) => Ok(condition),
            Said::Column(at) => Err(format!("column `{}` stands alone", self.named(at))),
            _ => Err("it compares no column".into()),
        }
    }

    fn named(&self, at: u16) -> &str {
        let column = self.columns.get(usize::from(at));
        column.map_or("", |column| column.name.as_str())
    }

    fn any(&mut self) -> Result<Said, String> {
        let first = self.all()?;
        if !self.is_word(self.at, "OR") {
            return Ok(first);
        }
        let mut parts = vec![self.condition(first)?];
        while self.word("OR") {
            let part = self.all()?;
            parts.push(self.condition(part)?);
        }
        Ok(Said::Condition(Condition::any(parts)))
    }

    fn all(&mut self) -> Result<Said, String> {
        let first = self.not()?;
        if !self.is_word(self.at, "AND") {
            return Ok(first);
        }
        let mut parts = vec![self.condition(first)?];
        while self.word("AND") {
            let part = self.not()?;
            parts.push(self.condition(part)?);
        }
        Ok(Said::Condition(Condition::all(parts)))
    }

    fn not(&mut self) -> Result<Said, String> {
        if !self.word("NOT") {
            return self.comparison();
        }
        let inner = self.deeper(Self::not)?;
        Ok(Said::Condition(self.condition(inner)?.negated()))
    }

    fn deeper<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        self.depth = self.depth.checked_sub(1).ok_or("it is too deep")?;
        let read = read(self);
        self.depth += 1;
        read
    }

    /// One comparison, after which another one does not go on: engines differ in what that would mean.
    fn comparison(&mut self) -> Result<Said, String> {
        let left = self.operand()?;
        if let Some(how) = self.how() {
            if self.word("ANY") {
                return self.among(&left, how, Comparison::Equal);
            }
            if self.word("ALL") {
                return self.among(&left, how, Comparison::Unequal);
            }
            let right = self.operand()?;
            return Ok(Said::Condition(self.compared(left, how, right)?));
        }
        if self.word("IS") {
            let null = !self.word("NOT");
            if !self.word("NULL") {
                return Err(self.peek().map_or_else(ends, unknown));
            }
            return match left {
                Said::Column(at) => Ok(Said::Condition(Condition::Null(at, null))),
                _ => Err("`IS NULL` is of no column".into()),
            };
        }
        let not = self.is_word(self.at, "NOT");
        let after = self.at + usize::from(not);
        if self.is_word(after, "IN") {
            self.at = after + 1;
            self.expect("(")?;
            let list = self.list(")")?;
            return Ok(Said::Condition(self.listed(&left, !not, list)?));
        }
        if self.is_word(after, "BETWEEN") {
            self.at = after + 1;
            let low = self.operand()?;
            if !self.word("AND") {
                return Err(self.peek().map_or_else(ends, unknown));
            }
            let high = self.operand()?;
            let again = match &left {
                Said::Column(at) => Said::Column(*at),
                _ => return Err("`BETWEEN` is of no column".into()),
            };
            let within = Condition::all(vec![
                self.compared(left, Comparison::AtLeast, low)?,
                self.compared(again, Comparison::AtMost, high)?,
            ]);
            let said = if not { within.negated() } else { within };
            return Ok(Said::Condition(said));
        }
        Ok(left)
    }

    fn how(&mut self) -> Option<Comparison> {
        let how = match self.peek()? {
            Token::Sign("=") => Comparison::Equal,
            Token::Sign("==") if self.dialect == Dialect::Sqlite => Comparison::Equal,
            Token::Sign("<>" | "!=") => Comparison::Unequal,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::AtMost,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::AtLeast,
            _ => return None,
        };
        self.at += 1;
        Some(how)
    }

    /// `= ANY (ARRAY[...])`, as PostgreSQL keeps `IN`; and `<> ALL (ARRAY[...])`.
    fn among(&mut self, left: &Said, how: Comparison, wanted: Comparison) -> Result<Said, String> {
        self.expect("(")?;
        let list = self.deeper(Self::any)?;
        self.expect(")")?;
        match list {
            Said::List(list) if how == wanted && self.dialect == Dialect::Postgres => {
                let within = how == Comparison::Equal;
                Ok(Said::Condition(self.listed(left, within, list)?))
            }
            _ => Err("`ANY` and `ALL` are known of lists only".into()),
        }
    }

    /// Items up to a closing sign.
    fn list(&mut self, close: &str) -> Result<Vec<Said>, String> {
        let mut list = vec![self.deeper(Self::operand)?];
        while self.sign(",") {
            list.push(self.deeper(Self::operand)?);
        }
        self.expect(close)?;
        Ok(list)
    }

    /// A value, a column, or anything in parentheses; with PostgreSQL's casts.
    fn operand(&mut self) -> Result<Said, String> {
        let mut said = match self.next()? {
            Token::Sign("(") => {
                let inner = self.deeper(Self::any)?;
                self.expect(")")?;
                inner
            }
            Token::Sign("-") => match self.next()? {
                Token::Number(digits) => number(&format!("-{digits}"))?,
                // MySQL puts the digits in parentheses.
                Token::Sign("(") => match self.deeper(Self::operand)? {
                    Said::Number(number) if self.sign(")") => {
                        Said::Number(number.checked_neg().ok_or_else(ends)?)
                    }
                    _ => return Err("a sign is of no number".into()),
                },
                token => return Err(unknown(token)),
            },
            Token::Sign("+") => match self.next()? {
                Token::Number(digits) => number(digits)?,
                token => return Err(unknown(token)),
            },
            Token::Number(digits) => number(digits)?,
            Token::Text(text) => Said::Text(text.clone()),
            Token::Name(name) => self.column(name)?,
            Token::Word(word) => self.worded(word)?,
            token => return Err(unknown(token)),
        };
        while self.sign("::") {
            said = self.cast(said)?;
        }
        Ok(said)
    }

    fn worded(&mut self, word: &str) -> Result<Said, String> {
        // What a server says of the encoding in which it keeps a text.
        let encoding = ["_utf8mb4", "_utf8mb3", "_utf8"];
        if self.dialect == Dialect::Mysql
            && encoding.contains(&word)
            && let Some(Token::Text(text)) = self.peek()
        {
            self.at += 1;
            return Ok(Said::Text(text.clone()));
        }
        if self.dialect == Dialect::Postgres && word == "ARRAY" && self.sign("[") {
            return Ok(Said::List(self.list("]")?));
        }
        if self.is_sign(self.at, "(") {
            return Err(format!("`{word}(...)` does not mean the same everywhere"));
        }
        self.column(word)
    }

    fn column(&self, name: &str) -> Result<Said, String> {
        let place = self.columns.iter().position(|column| match self.dialect {
            Dialect::Postgres => column.name == name,
            Dialect::Mysql | Dialect::Sqlite => column.name.eq_ignore_ascii_case(name),
        });
        place
            .and_then(|place| u16::try_from(place).ok())
            .map(Said::Column)
            .ok_or_else(|| format!("`{name}` is no column that travels"))
    }

    fn cast(&mut self, said: Said) -> Result<Said, String> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            if ["AND", "OR", "IS", "IN", "NOT", "BETWEEN"].contains(&word.as_str()) {
                break;
            }
            words.push(word.as_str());
            self.at += 1;
        }
        let kind = words.join(" ");
        let list = self.sign("[");
        if list {
            self.expect("]")?;
        }
        let cut = self.is_sign(self.at, "(");
        let text = matches!(kind.as_str(), "text" | "character varying") && !cut;
        let whole = matches!(kind.as_str(), "smallint" | "integer" | "bigint");
        match said {
            Said::Text(value) if text && !list => Ok(Said::Text(value)),
            Said::Text(value) if whole && !list => number(&value),
            Said::Number(value) if whole && !list => Ok(Said::Number(value)),
            Said::List(values) if list && (text || whole) => Ok(Said::List(values)),
            Said::Column(at)
                if text && !list && self.columns.get(usize::from(at)).is_some_and(texts) =>
            {
                Ok(Said::Column(at))
            }
            _ if kind == "numeric" => Err("decimals are not compared alike everywhere".into()),
            _ => Err(format!("`::{kind}` does not mean the same everywhere")),
        }
    }

    fn compared(&self, left: Said, how: Comparison, right: Said) -> Result<Condition, String> {
        match (left, right) {
            (Said::Column(at), Said::Number(number)) => {
                self.whole(at)?;
                Ok(Condition::Number(at, how, number))
            }
            (Said::Number(number), Said::Column(at)) => {
                self.whole(at)?;
                Ok(Condition::Number(at, how.turned(), number))
            }
            (Said::Column(one), Said::Column(other)) => {
                self.whole(one)?;
                self.whole(other)?;
                Ok(Condition::Columns(one, how, other))
            }
            (Said::Column(at), Said::Text(text)) | (Said::Text(text), Said::Column(at)) => {
                self.exact(at)?;
                match how {
                    Comparison::Equal => Ok(Condition::Texts(at, true, vec![text])),
                    Comparison::Unequal => Ok(Condition::Texts(at, false, vec![text])),
                    _ => Err("texts are not in the same order everywhere".into()),
                }
            }
            _ => Err("it compares what is no column".into()),
        }
    }

    fn listed(&self, left: &Said, within: bool, list: Vec<Said>) -> Result<Condition, String> {
        let Said::Column(at) = left else {
            return Err("a list is compared with what is no column".into());
        };
        if list.iter().all(|one| matches!(one, Said::Text(_))) {
            self.exact(*at)?;
            let texts = list.into_iter().filter_map(|one| match one {
                Said::Text(text) => Some(text),
                _ => None,
            });
            return Ok(Condition::Texts(*at, within, texts.collect()));
        }
        self.whole(*at)?;
        let numbers: Option<Vec<i64>> = list
            .iter()
            .map(|one| match one {
                Said::Number(number) => Some(*number),
                _ => None,
            })
            .collect();
        let numbers = numbers.ok_or("a list holds something else than numbers or texts")?;
        Ok(match (numbers.as_slice(), within) {
            ([only], true) => Condition::Number(*at, Comparison::Equal, *only),
            ([only], false) => Condition::Number(*at, Comparison::Unequal, *only),
            _ => Condition::Numbers(*at, within, numbers),
        })
    }

    fn whole(&self, at: u16) -> Result<(), String> {
        match self.columns.get(usize::from(at)) {
            Some(column) if is_whole(&column.kind) => Ok(()),
            Some(column) => Err(format!(
                "column `{}` is {}: only whole numbers are compared alike everywhere",
                column.name, column.kind
            )),
            None => Err(ends()),
        }
    }

    fn exact(&self, at: u16) -> Result<(), String> {
        match self.columns.get(usize::from(at)) {
            Some(column) if !texts(column) => Err(format!(
                "column `{}` is {}: it is not compared with texts alike everywhere",
                column.name, column.kind
            )),
            Some(column) if (self.folds)(column) => Err(format!(
                "column `{}` takes different texts for equal here",
                column.name
            )),
            Some(_) => Ok(()),
            None => Err(ends()),
        }
    }
}

fn texts(column: &Column) -> bool {
    is_text(&column.kind)
}

fn number(digits: &str) -> Result<Said, String> {
    let number = digits.parse().map(Said::Number);
    number.map_err(|_| format!("`{digits}` is no whole number of 64 bits"))
}
