//! Check constraints, as the catalogue tells them and as `CREATE TABLE` makes them.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::check::{Check, Checks};
use branchline_core::port::{DbResult, LeftOut};
use branchline_core::schema::{Column, Table};

use super::capture::{ours, patiently};
use super::connection::{Flavour, MysqlDatabase};
use super::ddl::{columns, ident, numbers_itself};
use super::evolve::Step;
use super::layout::{self, Declared};
use super::literal::text_literal;
use crate::checks::{self, Dialect, Found, Made, Words};
use crate::lineage::{Stop, Tried, stop};

const WORDS: Words = Words {
    name: ident,
    text: text_literal,
};

/// A check as the catalogue tells it.
pub(super) struct Written {
    /// The constraint.
    pub(super) name: String,
    /// It stands with a column, whose name it has (MariaDB).
    pub(super) of_column: bool,
    /// Its condition.
    pub(super) text: String,
    /// Rows must obey it.
    enforced: bool,
}

/// The checks of these tables (of all, where no name is given), by table. Versions of MySQL that heed none tell none.
pub(super) async fn written(
    db: &mut MysqlDatabase,
    table: Option<&str>,
) -> DbResult<BTreeMap<String, Vec<Written>>> {
    let flavour = db.flavour;
    let only = |column: &str| {
        table.map_or(String::new(), |name| {
            format!(" AND {column} = {}", text_literal(name))
        })
    };
    let sql = match flavour {
        Flavour::MariaDb => format!(
            "SELECT TABLE_NAME, CONSTRAINT_NAME, CHECK_CLAUSE, LEVEL = 'Column', 1 FROM information_schema.CHECK_CONSTRAINTS
             WHERE CONSTRAINT_SCHEMA = DATABASE(){}",
            only("TABLE_NAME")
        ),
        Flavour::MySql => {
            let there = "SELECT 1 FROM information_schema.TABLES
                 WHERE TABLE_SCHEMA = 'information_schema' AND TABLE_NAME = 'CHECK_CONSTRAINTS'";
            if db.rows(there).await?.is_empty() {
                return Ok(BTreeMap::new());
            }
            format!(
                "SELECT t.TABLE_NAME, c.CONSTRAINT_NAME, c.CHECK_CLAUSE, 0, t.ENFORCED = 'YES'
                 FROM information_schema.TABLE_CONSTRAINTS t
                 JOIN information_schema.CHECK_CONSTRAINTS c USING (CONSTRAINT_SCHEMA, CONSTRAINT_NAME)
                 WHERE t.CONSTRAINT_TYPE = 'CHECK' AND t.TABLE_SCHEMA = DATABASE(){}",
                only("t.TABLE_NAME")
            )
        }
    };
    let mut found: BTreeMap<String, Vec<Written>> = BTreeMap::new();
    for row in db.rows(sql).await? {
        let table = row.text(0);
        if ours(&table) {
            continue;
        }
        let text = row.text(2);
        found.entry(table).or_default().push(Written {
            name: row.text(1),
            of_column: row.is(3),
            text: match flavour {
                Flavour::MariaDb => text,
                Flavour::MySql => unescaped(&text),
            },
            enforced: row.is(4),
        });
    }
    for checks in found.values_mut() {
        checks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(found)
}

/// MySQL tells a condition as it would stand within a text.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match rest.peek() {
            Some(&next @ ('\'' | '\\')) if c == '\\' => {
                plain.push(next);
                rest.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

/// The condition of a check that stands here, and those that cannot be carried over.
pub(super) fn carried(
    table: &str,
    columns: &[Column],
    declared: &[Declared],
    written: Vec<Written>,
    left_out: &mut Vec<LeftOut>,
) -> Checks {
    let of_json = |check: &Written| {
        let mut json = declared.iter().filter(|here| here.json);
        json.any(|here| check.text == format!("json_valid({})", ident(&here.name)))
    };
    let mut found = Vec::new();
    for check in written.into_iter().filter(|check| !of_json(check)) {
        let name = given(table, &check).then_some(check.name);
        if check.enforced {
            let text = check.text;
            found.push(Found { name, text });
        } else {
            let why = "it is not enforced here";
            left_out.push(checks::left(table, name, &check.text, why.into()));
        }
    }
    let folds = folds(declared);
    let dialect = Dialect::Mysql;
    Checks(checks::carried(
        dialect, table, columns, &folds, found, left_out,
    ))
}

/// Tells the columns in which the server takes different texts for equal.
fn folds(declared: &[Declared]) -> impl Fn(&Column) -> bool {
    |column| {
        let here = declared.iter().find(|here| here.name == column.name);
        here.is_none_or(Declared::loose)
    }
}

/// Whether a person may have named the check, not the server.
fn given(table: &str, check: &Written) -> bool {
    let numbered = |start: &str| {
        let number = check.name.strip_prefix(start);
        number.is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
    };
    !check.of_column && !numbered("CONSTRAINT_") && !numbered(&format!("{table}_chk_"))
}

/// The checks of a table in `CREATE TABLE`.
pub(super) fn clauses(flavour: Flavour, table: &Table) -> Vec<String> {
    let wanted = |check: &Check| refused(table, check).is_none();
    // MySQL's names are the whole database's.
    let named = flavour == Flavour::MariaDb;
    checks::clauses(&WORDS, table, wanted, named)
}

impl MysqlDatabase {
    /// What of a table's definition the server would not make.
    pub(crate) fn left_out(&self, table: &Table) -> Vec<LeftOut> {
        let left = |check: &Check| {
            let why = refused(table, check)?;
            Some(LeftOut {
                table: table.name.clone(),
                what: format!("check {}", checks::told(table, check)),
                why: why.into(),
            })
        };
        table.made_checks().filter_map(left).collect()
    }
}

/// Why the server does not take a check, where it does not.
fn refused(table: &Table, check: &Check) -> Option<&'static str> {
    let names = |at: usize| check.condition.names(at);
    let mut places = 0..table.columns.len();
    if places.any(|at| names(at) && numbers_itself(table, at)) {
        return Some("the server takes no check of a column that it numbers itself");
    }
    if checks::told(table, check).contains('\\') {
        return Some("the server may read a backslash in two ways");
    }
    let acts = |action: &str| !matches!(action, "NO ACTION" | "RESTRICT");
    let mut bound = table.foreign_keys.iter().filter(|key| {
        let set_null = acts(&key.on_delete) && !key.on_delete.eq_ignore_ascii_case("CASCADE");
        set_null || acts(&key.on_update)
    });
    let bound = bound.any(|key| key.columns.iter().any(|&at| names(usize::from(at))));
    bound.then_some("the server takes no check of a column that a foreign key's action changes")
}

/// What becomes of the checks of a table that changes: those that go with the version, and those of columns that go, are dropped.
/// MySQL lets no column be renamed that a check names: such a check is made anew. MariaDB renames in it. Returns the columns whose
/// own checks go: those go only by a change of the column.
pub(super) async fn follow(
    db: &mut MysqlDatabase,
    step: &Step<'_>,
    parts: &mut Vec<String>,
) -> Tried<BTreeSet<String>> {
    let columns = &step.live.columns;
    let flavour = db.flavour;
    let renamed = |name: &str| {
        let stays = step.columns.sources.iter().zip(&step.to.columns);
        flavour == Flavour::MySql
            && stays
                .into_iter()
                .any(|(source, column)| source.as_deref() == Some(name) && column.name != name)
    };
    let drops = &step.columns.drops;
    let touched = columns
        .iter()
        .any(|column| drops.contains(&column.name) || renamed(&column.name));
    let number = |column: &Column| step.columns.number(step.to, &column.name);
    // One that the server takes no more goes too: a foreign key may come to its column.
    let mut to = step.to.clone();
    to.checks
        .0
        .retain(|check| refused(step.to, check).is_none());
    let gone = checks::gone(step.before, &to, &step.live, number);
    let mut unchecked = BTreeSet::new();
    if gone.is_empty() && !touched {
        return Ok(unchecked);
    }
    let mut standing = written(db, Some(&step.to.name)).await?;
    for check in standing.remove(&step.to.name).unwrap_or_default() {
        let condition = checks::read(Dialect::Mysql, columns, &|_| false, &check.text);
        let Ok(condition) = condition else { continue };
        let names = |wanted: &dyn Fn(&str) -> bool| {
            let mut all = columns.iter().enumerate();
            all.any(|(at, column)| condition.names(at) && wanted(&column.name))
        };
        let goes = gone.iter().any(|gone| gone.condition == condition)
            || names(&|name| drops.iter().any(|drop| drop == name));
        let anew = !goes && names(&renamed);
        if check.of_column {
            unchecked.extend(goes.then_some(check.name));
            continue;
        }
        if !(goes || anew) {
            continue;
        }
        let word = match flavour {
            Flavour::MariaDb => "CONSTRAINT",
            Flavour::MySql => "CHECK",
        };
        parts.push(format!("DROP {word} {}", ident(&check.name)));
        if anew {
            let place = |at: u16| {
                let id = number(columns.get(usize::from(at))?)?;
                let place = step.to.columns.iter().position(|column| column.id == id)?;
                u16::try_from(place).ok()
            };
            let becomes = condition.moved(&place);
            let clause =
                becomes.and_then(|becomes| checks::clause(&WORDS, step.to, None, &becomes));
            parts.extend(clause.map(|clause| format!("ADD {clause}")));
        }
    }
    Ok(unchecked)
}

/// Makes the checks that the version brings, where all rows obey them. What keeps one out keeps nothing else out.
pub(super) async fn make(db: &mut MysqlDatabase, step: &Step<'_>) -> Tried<Made> {
    let (to, mut made) = (step.to, Made::default());
    let place = |at: u16| {
        let name = step.columns.sources.get(usize::from(at))?.as_ref()?;
        let mut columns = step.live.columns.iter();
        let place = columns.position(|column| column.name == *name)?;
        u16::try_from(place).ok()
    };
    let coming = checks::coming(step.before, to, &step.live, place);
    if coming.is_empty() {
        return Ok(made);
    }
    let declared = layout::declared(db, Some(&to.name)).await?;
    let declared = declared.get(&to.name).map_or(&[][..], Vec::as_slice);
    let named = db.flavour == Flavour::MariaDb;
    let mut taken = BTreeSet::new();
    for check in written(db, Some(&to.name))
        .await?
        .remove(&to.name)
        .into_iter()
        .flatten()
    {
        taken.insert(check.name.to_lowercase());
    }
    let (mut fit, mut parts) = (Vec::new(), Vec::new());
    for check in coming {
        let another = || checks::means_another(Dialect::Mysql, &WORDS, to, check, &folds(declared));
        if let Some(why) = refused(to, check).map(str::to_owned).or_else(another) {
            made.never(to, check, &why);
        } else if let Some(key) = broken(db, to, check).await? {
            made.waits(to, check, &checks::broken_by(&key));
        } else {
            let name = check.name.as_deref();
            let name = name.filter(|name| named && taken.insert(name.to_lowercase()));
            if let Some(clause) = checks::clause(&WORDS, to, name, &check.condition) {
                parts.push(format!("ADD {clause}"));
                fit.push(check);
            }
        }
    }
    if parts.is_empty() {
        return Ok(made);
    }
    let sql = format!("ALTER TABLE {} {}", ident(&to.name), parts.join(", "));
    let done = patiently(db, &to.name, &sql).await;
    match done.map_err(|error| stop(to.id, error)) {
        Err(Stop::Refused(_, why)) => {
            let why = format!("which the database refuses: {why}");
            for check in fit {
                made.waits(to, check, &why);
            }
            Ok(made)
        }
        done => done.map(|()| made),
    }
}

/// The key of a row that breaks a check, where one does.
async fn broken(db: &mut MysqlDatabase, to: &Table, check: &Check) -> DbResult<Option<String>> {
    let Some(broken) = checks::broken(&WORDS, to, check) else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT CONCAT_WS(', ', {}) FROM {} WHERE {broken} LIMIT 1",
        columns(to, &to.key),
        ident(&to.name)
    );
    Ok(db.rows(sql).await?.first().map(|row| row.text(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mysql_tells_of_checks_is_read_as_it_was_written() {
        let told = r"((`a` = _utf8mb4\'it\\\'s\') and (`b` > 0))";
        assert_eq!(unescaped(told), r"((`a` = _utf8mb4'it\'s') and (`b` > 0))");
    }
}
