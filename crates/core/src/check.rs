//! Check constraints that mean the same in every engine, as data: a peer can send these and nothing else (P12).
//!
//! What there is no word for does not travel. There is none for NOT: it is drawn into the comparisons, where it means the same in
//! three-valued logic too. A row obeys a check that is not false of it: one that compares a NULL is neither true nor false.
//!
//! A reader leaves a check out that it does not know or that is too large, and takes the others.

use minicbor::data::Type as Token;
use minicbor::decode::Error;
use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::schema::Table;
use crate::value::Type;

/// How much the engines' readers carry over. Raised when they learn more: what a head finds only since then was there before, and is
/// no change of its tables.
pub const WORDS: u32 = 1;
/// The most checks of one table.
pub const CHECKS: usize = 100;
/// How deep conditions stand in each other.
const DEPTH: usize = 8;
/// The most comparisons and listed values in one condition.
const PARTS: usize = 500;
/// The longest text in a condition, and the longest name, in bytes.
const TEXT: usize = 1_000;

/// The checks of a table, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks(pub Vec<Check>);

/// A condition that no row of a table may break.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Check {
    /// Its name, where it was given one.
    #[n(0)]
    pub name: Option<String>,
    /// What must not be false.
    #[n(1)]
    pub condition: Condition,
}

/// What a row is held against. Columns are indexes into the table's columns.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub enum Condition {
    /// All of these.
    #[n(0)]
    All(#[n(0)] Vec<Condition>),
    /// Any of these.
    #[n(1)]
    Any(#[n(0)] Vec<Condition>),
    /// A column of whole numbers against a number.
    #[n(2)]
    Number(#[n(0)] u16, #[n(1)] Comparison, #[n(2)] i64),
    /// A column of whole numbers against another one.
    #[n(3)]
    Columns(#[n(0)] u16, #[n(1)] Comparison, #[n(2)] u16),
    /// A column of whole numbers holds one of these, or (`false`) none of them.
    #[n(4)]
    Numbers(#[n(0)] u16, #[n(1)] bool, #[n(2)] Vec<i64>),
    /// A column of texts holds one of these, or (`false`) none of them, told apart byte by byte.
    #[n(5)]
    Texts(#[n(0)] u16, #[n(1)] bool, #[n(2)] Vec<String>),
    /// A column is NULL, or (`false`) is not.
    #[n(6)]
    Null(#[n(0)] u16, #[n(1)] bool),
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Comparison {
    /// =
    #[n(0)]
    Equal,
    /// <>
    #[n(1)]
    Unequal,
    /// <
    #[n(2)]
    Less,
    /// <=
    #[n(3)]
    AtMost,
    /// >
    #[n(4)]
    Greater,
    /// >=
    #[n(5)]
    AtLeast,
}

impl Comparison {
    /// What holds just where this one does not, but for NULL.
    pub fn negated(self) -> Self {
        match self {
            Self::Equal => Self::Unequal,
            Self::Unequal => Self::Equal,
            Self::Less => Self::AtLeast,
            Self::AtMost => Self::Greater,
            Self::Greater => Self::AtMost,
            Self::AtLeast => Self::Less,
        }
    }

    /// The same with its two sides exchanged.
    pub fn turned(self) -> Self {
        match self {
            Self::Equal | Self::Unequal => self,
            Self::Less => Self::Greater,
            Self::AtMost => Self::AtLeast,
            Self::Greater => Self::Less,
            Self::AtLeast => Self::AtMost,
        }
    }
}

impl Condition {
    /// All of these; a list within the list becomes part of it.
    pub fn all(parts: Vec<Self>) -> Self {
        joined(parts, Self::All, |part| match part {
            Self::All(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// Any of these; a list within the list becomes part of it.
    pub fn any(parts: Vec<Self>) -> Self {
        joined(parts, Self::Any, |part| match part {
            Self::Any(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// NOT of it.
    #[must_use]
    pub fn negated(self) -> Self {
        let all = |parts: Vec<Self>| parts.into_iter().map(Self::negated).collect();
        match self {
            Self::All(parts) => Self::any(all(parts)),
            Self::Any(parts) => Self::all(all(parts)),
            Self::Number(column, how, number) => Self::Number(column, how.negated(), number),
            Self::Columns(one, how, other) => Self::Columns(one, how.negated(), other),
            Self::Numbers(column, within, list) => Self::Numbers(column, !within, list),
            Self::Texts(column, within, list) => Self::Texts(column, !within, list),
            Self::Null(column, null) => Self::Null(column, !null),
        }
    }

    /// The same of other places of the columns; nothing where one has no place any more.
    pub fn moved(&self, place: &impl Fn(u16) -> Option<u16>) -> Option<Self> {
        let all = |parts: &[Self]| {
            let parts = parts.iter().map(|part| part.moved(place));
            parts.collect::<Option<Vec<_>>>()
        };
        Some(match self {
            Self::All(parts) => Self::All(all(parts)?),
            Self::Any(parts) => Self::Any(all(parts)?),
            Self::Number(column, how, number) => Self::Number(place(*column)?, *how, *number),
            Self::Columns(one, how, other) => Self::Columns(place(*one)?, *how, place(*other)?),
            Self::Numbers(column, within, list) => {
                Self::Numbers(place(*column)?, *within, list.clone())
            }
            Self::Texts(column, within, list) => {
                Self::Texts(place(*column)?, *within, list.clone())
            }
            Self::Null(column, null) => Self::Null(place(*column)?, *null),
        })
    }

    /// Whether it speaks of this column.
    pub fn names(&self, column: usize) -> bool {
        let is = |at: &u16| usize::from(*at) == column;
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|part| part.names(column)),
            Self::Columns(one, _, other) => is(one) || is(other),
            Self::Number(at, ..)
            | Self::Numbers(at, ..)
            | Self::Texts(at, ..)
            | Self::Null(at, _) => is(at),
        }
    }

    /// Whether it is small enough to travel.
    pub fn is_bounded(&self) -> bool {
        let mut left = PARTS;
        self.takes(DEPTH, &mut left)
    }

    fn takes(&self, depth: usize, left: &mut usize) -> bool {
        let mut take = |parts: usize| match left.checked_sub(parts) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        };
        if depth == 0 {
            return false;
        }
        match self {
            Self::All(parts) | Self::Any(parts) => {
                take(1) && parts.iter().all(|part| part.takes(depth - 1, left))
            }
            Self::Number(..) | Self::Columns(..) | Self::Null(..) => take(1),
            Self::Numbers(_, _, list) => take(1 + list.len()),
            Self::Texts(_, _, list) => {
                take(1 + list.len()) && list.iter().all(|text| text.len() <= TEXT)
            }
        }
    }

    /// Whether the columns are there and can be compared so.
    fn fits(&self, table: &Table) -> bool {
        let kind = |at: &u16| table.columns.get(usize::from(*at)).map(|one| &one.kind);
        let whole = |at: &u16| kind(at).is_some_and(is_whole);
        match self {
            Self::All(parts) | Self::Any(parts) => {
                !parts.is_empty() && parts.iter().all(|part| part.fits(table))
            }
            Self::Number(column, ..) => whole(column),
            Self::Columns(one, _, other) => whole(one) && whole(other),
            Self::Numbers(column, _, list) => whole(column) && !list.is_empty(),
            Self::Texts(column, _, list) => {
                let plain = |text: &String| !text.contains('\0');
                matches!(kind(column), Some(Type::Text { .. }))
                    && !list.is_empty()
                    && list.iter().all(plain)
            }
            Self::Null(column, _) => kind(column).is_some(),
        }
    }
}

impl Check {
    /// Whether it can be a check of this table.
    pub fn fits(&self, table: &Table) -> bool {
        self.condition.is_bounded() && self.condition.fits(table)
    }
}

impl Checks {
    /// Whether one of them says just this.
    pub fn say(&self, condition: &Condition) -> bool {
        self.0.iter().any(|check| check.condition == *condition)
    }
}

/// Whether values of this type are whole numbers that every engine compares alike.
pub fn is_whole(kind: &Type) -> bool {
    matches!(kind, Type::Int16 | Type::Int32 | Type::Int64)
}

fn joined(
    parts: Vec<Condition>,
    join: impl Fn(Vec<Condition>) -> Condition,
    inner: impl Fn(Condition) -> Result<Vec<Condition>, Condition>,
) -> Condition {
    let mut flat = Vec::with_capacity(parts.len());
    for part in parts {
        match inner(part) {
            Ok(list) => flat.extend(list),
            Err(other) => flat.push(other),
        }
    }
    match flat.pop() {
        Some(only) if flat.is_empty() => only,
        last => {
            flat.extend(last);
            join(flat)
        }
    }
}

impl<C> Encode<C> for Checks {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.0.encode(encoder, context)
    }

    fn is_nil(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'b, C> Decode<'b, C> for Checks {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        if decoder.datatype()? == Token::Null {
            decoder.skip()?;
            return Ok(Self::default());
        }
        let mut checks = Vec::new();
        for _ in 0..length(decoder)? {
            let begin = decoder.position();
            match check(decoder, context) {
                Ok(check) if checks.len() < CHECKS => checks.push(check),
                Ok(_) => {}
                Err(_) => {
                    // Of a kind that this program does not know.
                    decoder.set_position(begin);
                    decoder.skip()?;
                }
            }
        }
        Ok(Self(checks))
    }

    fn nil() -> Option<Self> {
        Some(Self::default())
    }
}

fn length(decoder: &mut Decoder<'_>) -> Result<u64, Error> {
    let length = decoder.array()?;
    length.ok_or_else(|| Error::message("a list without its length"))
}

/// Reads an array of just this length.
fn array(decoder: &mut Decoder<'_>, wanted: u64) -> Result<(), Error> {
    if length(decoder)? == wanted {
        Ok(())
    } else {
        Err(Error::message("an unknown part of a check"))
    }
}

fn check<C>(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Check, Error> {
    array(decoder, 2)?;
    let name: Option<String> = decoder.decode_with(context)?;
    let mut left = PARTS;
    let condition = condition(decoder, context, DEPTH, &mut left)?;
    if name.as_ref().is_some_and(|name| name.len() > TEXT) {
        return Err(too_large());
    }
    Ok(Check { name, condition })
}

fn too_large() -> Error {
    Error::message("a check is too large")
}

fn condition<C>(
    decoder: &mut Decoder<'_>,
    context: &mut C,
    depth: usize,
    left: &mut usize,
) -> Result<Condition, Error> {
    if depth == 0 {
        return Err(too_large());
    }
    *left = left.checked_sub(1).ok_or_else(too_large)?;
    array(decoder, 2)?;
    let what = decoder.u32()?;
    array(
        decoder,
        match what {
            0 | 1 => 1,
            6 => 2,
            _ => 3,
        },
    )?;
    Ok(match what {
        0 | 1 => {
            let mut parts = Vec::new();
            for _ in 0..length(decoder)? {
                parts.push(condition(decoder, context, depth - 1, left)?);
            }
            if what == 0 {
                Condition::All(parts)
            } else {
                Condition::Any(parts)
            }
        }
        2 => Condition::Number(
            decoder.u16()?,
            decoder.decode_with(context)?,
            decoder.i64()?,
        ),
        3 => Condition::Columns(
            decoder.u16()?,
            decoder.decode_with(context)?,
            decoder.u16()?,
        ),
        4 => Condition::Numbers(
            decoder.u16()?,
            decoder.bool()?,
            list(decoder, left, Decoder::i64)?,
        ),
        5 => {
            let (column, within) = (decoder.u16()?, decoder.bool()?);
            let text = |decoder: &mut Decoder<'_>| {
                let text = decoder.str()?;
                (text.len() <= TEXT)
                    .then(|| text.to_owned())
                    .ok_or_else(too_large)
            };
            Condition::Texts(column, within, list(decoder, left, text)?)
        }
        6 => Condition::Null(decoder.u16()?, decoder.bool()?),
        _ => return Err(Error::message("an unknown condition")),
    })
}

fn list<'b, T>(
    decoder: &mut Decoder<'b>,
    left: &mut usize,
    one: impl Fn(&mut Decoder<'b>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let length = usize::try_from(length(decoder)?).unwrap_or(usize::MAX);
    *left = left.checked_sub(length).ok_or_else(too_large)?;
    (0..length).map(|_| one(decoder)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
