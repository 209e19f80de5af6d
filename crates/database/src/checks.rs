//! Check constraints between the engines' words and [`branchline_core::check`].
//!
//! [`read`] takes the text that an engine keeps of a check; what it does not know is not carried, with a reason. [`clauses`] says
//! checks in `CREATE TABLE`, from data alone: nothing that a peer sent becomes SQL but names and texts, quoted.

use std::collections::BTreeSet;

use branchline_core::check::{Check, Comparison, Condition};
use branchline_core::port::LeftOut;
use branchline_core::schema::{Column, Table, TableId};
use branchline_core::value::Type;

mod reading;
mod tokens;

pub(crate) use reading::read;

/// The longest name of a constraint that every engine keeps whole, in bytes.
const LONGEST_NAME: usize = 63;
/// How much of a check's own words is shown, in characters.
const SHOWN: usize = 200;

/// In whose words a check is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Mysql,
    Sqlite,
}

/// What the catalogue of an engine says of a check.
pub(crate) struct Found {
    /// The constraint's name, where a person may have given it.
    pub(crate) name: Option<String>,
    /// Its condition in the engine's words.
    pub(crate) text: String,
}

/// The checks of a table that can be carried over; why the others cannot is added to a list. `folds` tells the columns in
/// which the engine takes different texts for equal.
pub(crate) fn carried(
    dialect: Dialect,
    table: &str,
    columns: &[Column],
    folds: &dyn Fn(&Column) -> bool,
    found: impl IntoIterator<Item = Found>,
    left_out: &mut Vec<LeftOut>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    for Found { name, text } in found {
        match read(dialect, columns, folds, &text) {
            Ok(_) if checks.len() >= branchline_core::check::CHECKS => {
                left_out.push(left(table, name, &text, "the table has too many".into()));
            }
            Ok(condition) => checks.push(Check { name, condition }),
            Err(why) => left_out.push(left(table, name, &text, why)),
        }
    }
    checks
}

/// A check that is not carried over.
pub(crate) fn left(table: &str, name: Option<String>, text: &str, why: String) -> LeftOut {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    let name = name.map_or_else(String::new, |name| format!("`{name}` "));
    LeftOut {
        table: table.to_owned(),
        what: format!("check {name}({shown})"),
        why,
    }
}

/// How an engine writes names and texts.
pub(crate) struct Words {
    pub(crate) name: fn(&str) -> String,
    pub(crate) text: fn(&str) -> String,
}

/// The checks of a table as `CREATE TABLE` says them; those that do not fit the table, and those of counters, are left out.
pub(crate) fn clauses<'t>(
    words: &Words,
    table: &'t Table,
    wanted: impl Fn(&'t Check) -> bool,
    named: bool,
) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let checks = table.made_checks().filter(|check| wanted(check));
    let clause = |check: &'t Check| {
        let name = check.name.as_deref();
        let name = name.filter(|name| named && taken.insert(name.to_lowercase()));
        clause(words, table, name, &check.condition)
    };
    checks.filter_map(clause).collect()
}

/// One check as `CREATE TABLE` and `ALTER TABLE ... ADD` say it; nothing where a column is not there.
pub(crate) fn clause(
    words: &Words,
    table: &Table,
    name: Option<&str>,
    condition: &Condition,
) -> Option<String> {
    let condition = said(words, table, condition)?;
    let plain = |name: &&str| {
        !name.is_empty() && !name.contains(char::is_control) && name.len() <= LONGEST_NAME
    };
    let name = name.filter(plain).map_or_else(String::new, |name| {
        format!("CONSTRAINT {} ", (words.name)(name))
    });
    Some(format!("{name}CHECK ({condition})"))
}

/// A condition in words that all engines understand; nothing where a column is not there.
fn said(words: &Words, table: &Table, condition: &Condition) -> Option<String> {
    let name = |at: &u16| {
        let column = table.columns.get(usize::from(*at))?;
        Some((words.name)(&column.name))
    };
    let within = |within: &bool| if *within { "IN" } else { "NOT IN" };
    Some(match condition {
        Condition::All(parts) | Condition::Any(parts) => {
            let word = match condition {
                Condition::All(_) => " AND ",
                _ => " OR ",
            };
            let part = |part| {
                let inner = said(words, table, part)?;
                Some(match part {
                    Condition::All(_) | Condition::Any(_) => format!("({inner})"),
                    _ => inner,
                })
            };
            let parts: Option<Vec<String>> = parts.iter().map(part).collect();
            parts?.join(word)
        }
        Condition::Number(column, how, number) => {
            format!("{} {} {number}", name(column)?, sign(*how))
        }
        Condition::Columns(one, how, other) => {
            format!("{} {} {}", name(one)?, sign(*how), name(other)?)
        }
        Condition::Numbers(column, holds, list) => {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            format!("{} {} ({})", name(column)?, within(holds), list.join(", "))
        }
        Condition::Texts(column, holds, list) => {
            let list: Vec<String> = list.iter().map(|text| (words.text)(text)).collect();
            format!("{} {} ({})", name(column)?, within(holds), list.join(", "))
        }
        Condition::Null(column, true) => format!("{} IS NULL", name(column)?),
        Condition::Null(column, false) => format!("{} IS NOT NULL", name(column)?),
    })
}

fn sign(how: Comparison) -> &'static str {
    match how {
        Comparison::Equal => "=",
        Comparison::Unequal => "<>",
        Comparison::Less => "<",
        Comparison::AtMost => "<=",
        Comparison::Greater => ">",
        Comparison::AtLeast => ">=",
    }
}

/// The checks of a table that are made nowhere, since they speak of a counter.
pub fn of_counters(table: &Table) -> Vec<LeftOut> {
    let checks = table.fitting_checks().filter(|check| table.counts(check));
    let left = |check| LeftOut {
        table: table.name.clone(),
        what: format!("check {}", told(table, check)),
        why: "it speaks of a counter, whose sum stands whatever it is; `floor` reports one".into(),
    };
    checks.map(left).collect()
}

/// A check for a person: its name and what it says.
pub fn told(table: &Table, check: &Check) -> String {
    let words = Words {
        name: str::to_owned,
        text: |text| format!("'{}'", text.replace('\'', "''")),
    };
    let condition = said(&words, table, &check.condition).unwrap_or_default();
    match &check.name {
        Some(name) => format!("`{name}`: {condition}"),
        None => condition,
    }
}

/// The checks of a table as it stands that a schema version takes away: the version before has them, and the new one has not.
/// `number` tells the number of a column that stands.
pub(crate) fn gone<'l>(
    before: Option<&Table>,
    to: &Table,
    live: &'l Table,
    number: impl Fn(&Column) -> Option<u32>,
) -> Vec<&'l Check> {
    let Some(former) = before else {
        return Vec::new();
    };
    let place = |at: u16| {
        let id = number(live.columns.get(usize::from(at))?)?;
        let place = former.columns.iter().position(|column| column.id == id)?;
        u16::try_from(place).ok()
    };
    let going: Vec<&Condition> = former
        .checks_gone_in(to)
        .map(|check| &check.condition)
        .collect();
    let goes = |check: &&Check| {
        let before = check.condition.moved(&place);
        before.is_some_and(|before| going.contains(&&before))
    };
    live.checks.0.iter().filter(goes).collect()
}

/// The checks that a schema version brings to a table as it stands: the version before has them not, and the table neither. `place`
/// tells where a column of the new version stands.
pub(crate) fn coming<'t>(
    before: Option<&Table>,
    to: &'t Table,
    live: &Table,
    place: impl Fn(u16) -> Option<u16>,
) -> Vec<&'t Check> {
    let stands = |check: &Check| {
        let here = check.condition.moved(&place);
        here.is_some_and(|here| live.checks.say(&here))
    };
    let new = before
        .into_iter()
        .flat_map(|before| to.checks_new_since(before));
    new.filter(|check| !stands(check)).collect()
}

/// What came of the checks that a schema version brings.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Those that rows break, with the reason.
    pub(crate) unmade: Vec<(TableId, Check, String)>,
    /// Those that are never made here, each in a sentence.
    pub(crate) never: Vec<String>,
}

impl Made {
    pub(crate) fn waits(&mut self, table: &Table, check: &Check, why: &str) {
        let why = format!("the head's check {}, {why}", told(table, check));
        self.unmade.push((table.id, check.clone(), why));
    }

    pub(crate) fn never(&mut self, table: &Table, check: &Check, why: &str) {
        let (name, check) = (&table.name, told(table, check));
        self.never.push(format!(
            "table `{name}` does without the head's check {check}: {why}"
        ));
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.unmade.extend(other.unmade);
        self.never.extend(other.never);
    }
}

/// Why a check waits where rows break it, of which one has this key.
pub(crate) fn broken_by(key: &str) -> String {
    let key: String = key.chars().take(SHOWN).collect();
    format!("which the row with the key {key} breaks: change or delete such rows")
}

/// What is true of the rows that break a check; nothing where a column is not there.
pub(crate) fn broken(words: &Words, table: &Table, check: &Check) -> Option<String> {
    let condition = said(words, table, &check.condition)?;
    Some(format!("NOT ({condition})"))
}

/// Why a check would not mean here what it means at the head: texts are compared in a column that takes different ones for equal.
pub(crate) fn means_another(
    dialect: Dialect,
    words: &Words,
    table: &Table,
    check: &Check,
    folds: &dyn Fn(&Column) -> bool,
) -> Option<String> {
    let condition = said(words, table, &check.condition)?;
    read(dialect, &table.columns, folds, &condition).err()
}

/// Whether a column holds texts, which are compared where the engine tells them apart byte by byte.
fn is_text(kind: &Type) -> bool {
    matches!(kind, Type::Text { .. })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
