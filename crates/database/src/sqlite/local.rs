//! How this database's columns spell the plan's values.
//!
//! A column that Branchline made keeps a value as it travels. One that a framework made has the framework's own spelling,
//! which its queries count on: a UUID without hyphens in `char(32)`, a moment in UTC without its zone in `datetime`, an
//! interval as microseconds in `bigint`. Keys have one spelling each, or a row would not be found again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, Table};
use branchline_core::value::{Type, Value, canonical, micros_of_interval};
use rusqlite::types::ValueRef;

use super::catalog::{self, Live};
use super::connection::Session;
use super::declared::{EXACT_DIGITS, Form, form};
use super::error::mismatch;

/// How one column spells its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spelling {
    form: Form,
    key: bool,
}

/// How a table's columns spell the plan's values, in the plan's order.
#[derive(Debug)]
pub(super) struct Local {
    columns: Vec<(String, Type)>,
    key: Vec<u16>,
    spellings: Vec<Spelling>,
}

/// What is known of tables, as they are declared in one version of the catalogue.
#[derive(Debug, Default)]
pub(super) struct Locals {
    schema_version: Option<i64>,
    known: BTreeMap<String, Arc<Local>>,
}

impl Locals {
    /// The table as it is declared now.
    fn find(&mut self, connection: &Session, table: &Table) -> DbResult<Arc<Local>> {
        let present = Some(catalog::version(connection)?);
        if self.schema_version != present {
            self.known.clear();
            self.schema_version = present;
        }
        if let Some(known) = self.known.get(&table.name)
            && known.is_of(table)
        {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(Local::look_up(connection, table)?);
        self.known.insert(table.name.clone(), Arc::clone(&found));
        Ok(found)
    }
}

impl Local {
    /// The table as it is declared now.
    pub(super) fn of(connection: &Session, table: &Table) -> DbResult<Arc<Self>> {
        connection.locals.borrow_mut().find(connection, table)
    }

    fn is_of(&self, table: &Table) -> bool {
        let columns = table.columns.iter();
        self.key == table.key
            && columns
                .map(|column| (&column.name, &column.kind))
                .eq(self.columns.iter().map(|(name, kind)| (name, kind)))
    }

    fn look_up(connection: &Session, table: &Table) -> DbResult<Self> {
        let live = Live::columns_of(connection, &table.name)?;
        let spelling = |(at, column): (usize, &Column)| {
            let mut columns = live.iter();
            let here = columns.find(|here| here.name.eq_ignore_ascii_case(&column.name));
            Spelling {
                form: here.map_or(Form::AsItTravels, |here| form(&column.kind, &here.declared)),
                key: table.is_key(at),
            }
        };
        let columns = table.columns.iter();
        Ok(Self {
            spellings: columns.clone().enumerate().map(spelling).collect(),
            columns: columns.map(|c| (c.name.clone(), c.kind.clone())).collect(),
            key: table.key.clone(),
        })
    }

    /// A row as it is stored here.
    pub(super) fn row<'r>(&self, table: &Table, row: &'r Row) -> DbResult<Cow<'r, Row>> {
        let mut changed: Option<Row> = None;
        for ((at, spelling), column) in self.spellings.iter().enumerate().zip(&table.columns) {
            let Some(value) = row.0.get(at) else { continue };
            if let Cow::Owned(spelled) = spelling.of(table, column, value)? {
                let row = changed.get_or_insert_with(|| row.clone());
                if let Some(place) = row.0.get_mut(at) {
                    *place = spelled;
                }
            }
        }
        Ok(changed.map_or(Cow::Borrowed(row), Cow::Owned))
    }

    /// A key as it is stored here.
    pub(super) fn key(&self, table: &Table, key: &Key) -> DbResult<Key> {
        let columns = table.key.iter().zip(table.key_columns()).zip(&key.0);
        let values =
            columns.map(
                |((&at, column), value)| match self.spellings.get(usize::from(at)) {
                    Some(spelling) => spelling.of(table, column, value).map(Cow::into_owned),
                    None => Ok(value.clone()),
                },
            );
        values.collect::<DbResult<_>>().map(Key)
    }

    /// Whether a value read from a key column stands there in the one spelling under which it is looked up.
    pub(super) fn is_found_again(
        &self,
        table: &Table,
        name: &str,
        value: &Value,
        stored: ValueRef<'_>,
    ) -> bool {
        let mut columns = self.spellings.iter().zip(&table.columns);
        let Some((spelling, column)) = columns.find(|(_, column)| column.name == name) else {
            return false;
        };
        match (spelling.of(table, column, value).as_deref(), stored) {
            (Ok(Value::Text(spelled)), ValueRef::Text(text)) => spelled.as_bytes() == text,
            // Numbers are equal whatever class they are stored in.
            (Ok(_), _) => true,
            (Err(_), _) => false,
        }
    }
}

impl Spelling {
    fn of<'v>(self, table: &Table, column: &Column, value: &'v Value) -> DbResult<Cow<'v, Value>> {
        let Value::Text(sent) = value else {
            return Ok(Cow::Borrowed(value));
        };
        if self.form == Form::AsItTravels && !self.key {
            return Ok(Cow::Borrowed(value));
        }
        let number = |text: &str| text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if self.form == Form::Document && !number(sent.trim_start()) {
            return Ok(Cow::Borrowed(value));
        }
        let one = canonical(&column.kind, value);
        let Value::Text(text) = one.as_ref() else {
            return Ok(one);
        };
        let spelled = match self.form {
            Form::AsItTravels => match &column.kind {
                Type::Decimal {
                    limits: Some((_, scale)),
                } => Some(with_scale(text, *scale)),
                Type::Json | Type::Jsonb => Some(sent.clone()),
                _ => return Ok(one),
            },
            Form::WithoutHyphens => Some(text.replace('-', "")),
            Form::Moment { digits } => Some(moment(text, digits)),
            Form::Micros => match micros_of_interval(text) {
                Some(micros) => return Ok(Cow::Owned(Value::Int(micros))),
                None => None,
            },
            Form::Document => survives_as_a_number(text).then(|| sent.clone()),
            Form::Number => (significant(text) <= usize::from(EXACT_DIGITS)).then(|| sent.clone()),
        };
        spelled
            .map(|text| Cow::Owned(Value::Text(text)))
            .ok_or_else(|| unfit(table, column, self.form, text))
    }
}

fn unfit(table: &Table, column: &Column, form: Form, text: &str) -> DatabaseError {
    let why = match form {
        Form::Micros => {
            "the column counts microseconds, and this is not days with a time of less than a day"
                .to_owned()
        }
        _ => format!("SQLite keeps {EXACT_DIGITS} digits in such a column"),
    };
    let shown: String = text.chars().take(60).collect();
    mismatch(
        &table.name,
        format!(
            "a value of column `{}` does not fit this database unaltered: `{shown}`: {why}",
            column.name
        ),
    )
}

/// A moment or time of day as frameworks write it: without a zone, and with six digits of a second or none.
fn moment(text: &str, digits: bool) -> String {
    let (body, era) = match text.strip_suffix(" BC") {
        Some(body) => (body, " BC"),
        None => (text, ""),
    };
    let local = match body.strip_suffix("+00") {
        Some(local) if local.contains(':') => local,
        _ => body,
    };
    match local.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{fraction:0<6}{era}"),
        None if digits && local.contains(':') => format!("{local}.000000{era}"),
        None => format!("{local}{era}"),
    }
}

/// A decimal in its one spelling with exactly this many digits after the point, if it has no more.
fn with_scale(text: &str, scale: i16) -> String {
    let scale = usize::try_from(scale).unwrap_or(0);
    match text.split_once('.') {
        _ if scale == 0 || !text.ends_with(|c: char| c.is_ascii_digit()) => text.to_owned(),
        Some((whole, fraction)) => format!("{whole}.{fraction:0<scale$}"),
        None => format!("{text}.{}", "0".repeat(scale)),
    }
}

/// Whether SQLite's integers or floats hold this canonical number.
fn survives_as_a_number(text: &str) -> bool {
    let float: f64 = text.parse().unwrap_or(f64::NAN);
    let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-'));
    let rounded = plain && significant(text) <= usize::from(EXACT_DIGITS);
    text.parse::<i64>().is_ok() || (rounded && float.is_normal())
}

fn significant(text: &str) -> usize {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.trim_start_matches('0').trim_end_matches('0').len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spelled_as_frameworks_do() {
        let cases = [
            ("2024-01-02 03:04:05+00", false, "2024-01-02 03:04:05"),
            (
                "2024-01-02 03:04:05.5+00",
                false,
                "2024-01-02 03:04:05.500000",
            ),
            ("2024-01-02 03:04:05", true, "2024-01-02 03:04:05.000000"),
            ("12:30:00.5", false, "12:30:00.500000"),
            ("infinity", true, "infinity"),
            ("0044-03-15 12:00:00+00 BC", false, "0044-03-15 12:00:00 BC"),
        ];
        for (text, digits, spelled) in cases {
            assert_eq!(moment(text, digits), spelled);
        }
    }

    #[test]
    fn decimals_of_keys_have_all_their_digits() {
        assert_eq!(with_scale("1.5", 2), "1.50");
        assert_eq!(with_scale("7", 2), "7.00");
        assert_eq!(with_scale("7", 0), "7");
        assert_eq!(with_scale("NaN", 2), "NaN");
        assert_eq!(significant("-0.00123450"), 5);
        assert_eq!(significant("1200"), 2);
    }
}
