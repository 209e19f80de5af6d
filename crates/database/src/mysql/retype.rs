//! Columns that become another type: what the server makes of their values is tried out in a temporary table.

use std::collections::BTreeMap;

use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::Column;
use branchline_core::value::{Type, canonical, convert, widens};

use super::connection::{Flavour, MysqlDatabase};
use super::ddl::{Dialect, ident, indexed};
use super::evolve::Step;
use super::layout::Declared;
use super::literal::text_literal;
use super::types;
use crate::lineage::{Stop, Tried, stop};

/// Values compared at a time.
const PAGE: usize = 5000;

/// Tries out on all different values whether they become what they become elsewhere.
pub(super) async fn check(db: &mut MysqlDatabase, step: &Step<'_>) -> Tried<()> {
    let (to, dialect) = (step.to, Dialect::of(db));
    for (at, column) in to.columns.iter().enumerate() {
        let Some((live, here)) = step.source(at) else {
            continue;
        };
        let indexed = indexed(to).contains(&at);
        let was = step.was(column, live, here, indexed);
        if step.stays(at, column, here, &was)
            || (widens(&was, &column.kind) && was == live.kind && was != Type::Float32)
        {
            continue;
        }
        let failed = |error| stop(to.id, error).about(&column.name);
        let (declared, _) = dialect.declaration(&column.kind, "becomes", indexed);
        let whole = whole(here);
        let name = ident(&live.name);
        let trial = format!(
            "CREATE OR REPLACE TEMPORARY TABLE branchline_trial (number BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
                 was {whole} NULL, becomes {declared} NULL) ENGINE = InnoDB"
        );
        let trial = match db.flavour {
            Flavour::MariaDb => trial,
            Flavour::MySql => trial.replace("OR REPLACE ", ""),
        };
        let made = db.execute(trial).await.map_err(names_the_right);
        made.map_err(failed)?;
        let filled = format!(
            "INSERT INTO branchline_trial (was, becomes) SELECT DISTINCT {name}, {name} FROM {} WHERE {name} IS NOT NULL",
            ident(&step.live.name)
        );
        let filled = db.execute_on(&to.name, filled).await;
        let outcome = match filled {
            Ok(()) => compare(db, step, column, &was, here).await,
            Err(error) => Err(failed(error)),
        };
        db.execute("DROP TEMPORARY TABLE branchline_trial").await?;
        outcome?;
    }
    Ok(())
}

async fn compare(
    db: &mut MysqlDatabase,
    step: &Step<'_>,
    column: &Column,
    was: &Type,
    here: &Declared,
) -> Tried<()> {
    let mut last = 0_u64;
    let named = |name: &str| {
        types::selected(
            &Declared {
                name: name.into(),
                ..here.clone()
            },
            "t",
        )
    };
    loop {
        let sql = format!(
            "SELECT t.number, {}, t.becomes FROM branchline_trial t WHERE t.number > {last} ORDER BY t.number LIMIT {PAGE}",
            named("was")
        );
        let rows = db.rows(sql).await?;
        for row in &rows {
            last = row.number(0).unwrap_or(u64::MAX);
            let before = row
                .bytes(1)
                .and_then(|bytes| types::value_of(was, bytes).ok());
            let becomes = row
                .bytes(2)
                .and_then(|bytes| types::value_of(&column.kind, bytes).ok());
            let wanted = before
                .as_ref()
                .and_then(|value| convert(was, &column.kind, value));
            let same = matches!((&wanted, &becomes), (Some(wanted), Some(becomes))
                if *wanted == *canonical(&column.kind, becomes));
            if !same {
                let shown: String = row.text(1).chars().take(60).collect();
                let reason = format!("column `{}`: {shown} is no {}", column.name, column.kind);
                return Err(Stop::Refused(step.to.id, reason));
            }
        }
        if rows.len() < PAGE {
            return Ok(());
        }
    }
}

/// The checks of length that [`Dialect::declaration`] made, by column: name and length. In MariaDB such a check is part of its
/// column; in MySQL it is the table's, keeps the column from being renamed, and stays when the column is declared anew.
pub(super) async fn lengths(
    db: &mut MysqlDatabase,
    table: &str,
) -> DbResult<BTreeMap<String, (String, u64)>> {
    if db.flavour == Flavour::MariaDb {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT c.CONSTRAINT_NAME, c.CHECK_CLAUSE FROM information_schema.TABLE_CONSTRAINTS t
         JOIN information_schema.CHECK_CONSTRAINTS c USING (CONSTRAINT_SCHEMA, CONSTRAINT_NAME)
         WHERE t.CONSTRAINT_TYPE = 'CHECK' AND t.TABLE_SCHEMA = DATABASE() AND t.TABLE_NAME = {}",
        text_literal(table)
    );
    let rows = db.rows(sql).await?;
    let found = rows.iter().filter_map(|row| {
        let clause = row.text(1);
        let (column, longest) = clause
            .strip_prefix("(char_length(`")?
            .strip_suffix(')')?
            .rsplit_once("`) <= ")?;
        Some((
            column.replace("``", "`"),
            (row.text(0), longest.parse().ok()?),
        ))
    });
    Ok(found.collect())
}

/// The server does not say which right it misses.
fn names_the_right(error: DatabaseError) -> DatabaseError {
    match error {
        DatabaseError::Refused(why) => {
            DatabaseError::Refused(format!("{why}. It needs CREATE TEMPORARY TABLES there"))
        }
        other => other,
    }
}

/// A column's type as it is declared, with its collation.
pub(super) fn whole(here: &Declared) -> String {
    if here.json {
        return "JSON".to_owned();
    }
    match &here.collation {
        Some(collation) => format!("{} COLLATE {collation}", here.whole),
        None => here.whole.clone(),
    }
}
