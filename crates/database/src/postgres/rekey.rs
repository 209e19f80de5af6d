//! Captured writes follow their table to another schema version: their keys and the rows before them.
//!
//! A key's part that the former key had is converted as the column was. One that it had not is looked up in the row; a
//! row that is gone, and that kept no image, had in it what the column's default says, as it has at the other offices.

use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};
use branchline_core::value::Value;

use super::books::table_number;
use super::connection::PostgresDatabase;
use super::ddl::{self, ident, relation};
use super::evolve::Step;
use super::{literal, retype, types};
use crate::lineage::filling;

pub(super) async fn follow(db: &mut PostgresDatabase, step: &Step<'_>) -> DbResult<()> {
    let Some(former) = step.former else {
        return Ok(());
    };
    images(db, former, step).await?;
    whole_rows(db, step.to).await?;
    let same = |a: &Column, b: &Column| a.id == b.id && a.kind == b.kind;
    let (was, becomes): (Vec<_>, Vec<_>) = (
        former.key_columns().collect(),
        step.to.key_columns().collect(),
    );
    if was.len() == becomes.len() && was.iter().zip(&becomes).all(|(a, b)| same(a, b)) {
        return Ok(());
    }
    let parts: Vec<String> = becomes
        .iter()
        .map(|column| part(&was, step.to, column))
        .collect();
    let sql = format!(
        "UPDATE branchline.capture c SET key = ARRAY[{}] WHERE c.tbl = {} AND pg_catalog.array_position(c.key, NULL) IS NULL
             AND pg_catalog.cardinality(c.key) = {}",
        parts.join(", "),
        table_number(step.to.id)?,
        was.len()
    );
    let done = db.client()?.batch_execute(&sql).await;
    done.map_err(|error| super::error::on_table(&step.to.name, &error))
}

/// The text of a key column, made of the former key.
fn part(was: &[&Column], to: &Table, column: &Column) -> String {
    let held = |at: usize| format!("c.key[{}]", at + 1);
    let declared = ddl::declared(to, column);
    if let Some(at) = was.iter().position(|one| one.id == column.id) {
        let Some(before) = was.get(at).filter(|one| one.kind != column.kind) else {
            return held(at);
        };
        let value = format!("{}::{}", held(at), types::declaration(&before.kind));
        return types::key_text(
            &column.kind,
            &format!(
                "({})",
                retype::cast(&before.kind, &column.kind, &format!("({value})"), &declared)
            ),
        );
    }
    let joined: Option<Vec<String>> = was
        .iter()
        .enumerate()
        .map(|(at, one)| {
            let now = to.columns.iter().find(|column| column.id == one.id)?;
            Some(format!(
                "{} = {}",
                types::key_text(&now.kind, &format!("r.{}", ident(&now.name))),
                held(at)
            ))
        })
        .collect();
    let otherwise = types::key_text(
        &column.kind,
        &format!("{}::{declared}", literal::text(&filling(column, true))),
    );
    match joined {
        Some(joined) => format!(
            "coalesce((SELECT {} FROM {} r WHERE {} LIMIT 1), {otherwise})",
            types::key_text(&column.kind, &format!("r.{}", ident(&column.name))),
            relation(&to.name),
            joined.join(" AND ")
        ),
        None => otherwise,
    }
}

/// The rows before: their columns by new names, and what came to them.
async fn images(db: &mut PostgresDatabase, former: &Table, step: &Step<'_>) -> DbResult<()> {
    let (mut renamed, mut added) = (String::new(), Vec::new());
    for column in &step.to.columns {
        match former.columns.iter().find(|one| one.id == column.id) {
            Some(before) if before.name != column.name => {
                let text = |name: &str| literal::text(&Value::Text(name.to_owned()));
                renamed.push_str(&format!(
                    " WHEN {} THEN {}",
                    text(&before.name),
                    text(&column.name)
                ));
            }
            Some(_) => {}
            None => {
                let value = filling(
                    column,
                    step.to.is_key(
                        step.to
                            .columns
                            .iter()
                            .position(|one| one.id == column.id)
                            .unwrap_or(0),
                    ),
                );
                let name = literal::text(&Value::Text(column.name.clone()));
                let declared = ddl::declared(step.to, column);
                added.push(format!(
                    "{name}, ({}::{declared})::text",
                    literal::text(&value)
                ));
            }
        }
    }
    if renamed.is_empty() && added.is_empty() {
        return Ok(());
    }
    let names = if renamed.is_empty() {
        "u.v".to_owned()
    } else {
        format!("CASE WHEN u.i % 2 = 1 THEN CASE u.v{renamed} ELSE u.v END ELSE u.v END")
    };
    let sql = format!(
        "UPDATE branchline.capture c
         SET old = ARRAY(SELECT {names} FROM pg_catalog.unnest(c.old) WITH ORDINALITY AS u(v, i) ORDER BY u.i) || ARRAY[{}]::text[]
         WHERE c.tbl = {} AND c.old[1] IS NOT NULL",
        added.join(", "),
        table_number(step.to.id)?
    );
    db.execute(&sql).await
}

/// Writes whose key could not be told, since the application had renamed its columns: the whole row was noted, under
/// names that the plan may know by now.
async fn whole_rows(db: &mut PostgresDatabase, to: &Table) -> DbResult<()> {
    let text = |column: &Column| {
        format!(
            "(c.old[2]::pg_catalog.jsonb ->> {})",
            literal::text(&Value::Text(column.name.clone()))
        )
    };
    let parts: Vec<String> = to
        .key_columns()
        .map(|column| {
            types::key_text(
                &column.kind,
                &format!("{}::{}", text(column), ddl::declared(to, column)),
            )
        })
        .collect();
    let known: Vec<String> = to
        .key_columns()
        .map(|column| format!("{} IS NOT NULL", text(column)))
        .collect();
    let sql = format!(
        "UPDATE branchline.capture c SET key = ARRAY[{}], old = NULL
         WHERE c.tbl = {} AND c.old IS NOT NULL AND c.old[1] IS NULL AND {}",
        parts.join(", "),
        table_number(to.id)?,
        known.join(" AND ")
    );
    db.execute(&sql).await
}
