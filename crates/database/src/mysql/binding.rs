//! Foreign keys that come: under names of their own, and left out where the server refuses them (P6).

use std::collections::BTreeSet;

use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{ForeignKey, Schema, Table, TableId};

use super::capture::{self, patiently};
use super::catalog::{self, Reference};
use super::connection::MysqlDatabase;
use super::ddl::{columns, ident, tables};
use super::error::mismatch;
use super::literal::text_literal;
use crate::lineage::{Stop, Tried, names_of, stop};

/// A name for a foreign key that no other has, in this database or a copy of it. InnoDB numbers those that it names by
/// itself, and takes numbers twice: in an `ALTER` with `foreign_key_checks = 0` it counts none that are there already.
async fn fresh_name(db: &mut MysqlDatabase) -> DbResult<String> {
    let rows = db.rows("SELECT LOWER(HEX(UUID_SHORT()))").await?;
    let number = rows.first().map(|row| row.text(0)).unwrap_or_default();
    Ok(format!("fk_{number}"))
}

/// The action as it is declared here. There is no `SET DEFAULT`; without an action it is only stricter.
fn action(action: &str) -> Option<String> {
    let action = action.to_ascii_uppercase();
    matches!(action.as_str(), "CASCADE" | "SET NULL" | "RESTRICT").then_some(action)
}

/// What adds a foreign key in `ALTER TABLE`.
pub(super) async fn addition(
    db: &mut MysqlDatabase,
    table: &Table,
    key: &ForeignKey,
) -> DbResult<String> {
    let name = fresh_name(db).await?;
    let parents: Vec<String> = key.parent_columns.iter().map(|name| ident(name)).collect();
    let when = |when: &str, rule: &str| {
        action(rule).map_or(String::new(), |action| format!(" {when} {action}"))
    };
    Ok(format!(
        "ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){}{}",
        ident(&name),
        columns(table, &key.columns),
        ident(&key.parent),
        parents.join(", "),
        when("ON DELETE", &key.on_delete),
        when("ON UPDATE", &key.on_update),
    ))
}

/// As the catalogue will show it.
fn expected(table: &Table, key: &ForeignKey) -> Reference {
    let rule = |rule: &str| match action(rule) {
        Some(action) if action != "RESTRICT" => action,
        _ => "NO ACTION".to_owned(),
    };
    Reference {
        child: table.name.clone(),
        name: String::new(),
        columns: names_of(table, &key.columns),
        parent: key.parent.clone(),
        parent_columns: key.parent_columns.clone(),
        on_delete: rule(&key.on_delete),
        on_update: rule(&key.on_update),
    }
}

fn same(a: &Reference, b: &Reference) -> bool {
    a.child == b.child
        && a.parent == b.parent
        && a.columns == b.columns
        && a.parent_columns == b.parent_columns
}

/// Adds one foreign key.
pub(super) async fn add(db: &mut MysqlDatabase, table: &Table, key: &ForeignKey) -> DbResult<()> {
    let add = addition(db, table, key).await?;
    let sql = format!("ALTER TABLE {} {add}", ident(&table.name));
    patiently(db, &table.name, &sql).await
}

/// Adds the foreign keys of tables that [`super::ddl::create_tables`] made. A table keeps its note, and is tried again the
/// next time, while one of its own is refused.
pub(super) async fn add_foreign_keys(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<()> {
    db.open_catalogue().await?;
    let noted = db.rows("SELECT name FROM branchline_created").await?;
    let noted: BTreeSet<String> = noted.iter().map(|row| row.text(0)).collect();
    let created = |table: &&Table| noted.contains(&table.name);
    let created: Vec<&Table> = schema.tables.iter().filter(created).collect();
    let (mut keys, there) = (catalog::foreign_keys(db).await?, tables(db).await?);
    let mut coming = Vec::new();
    for (&table, key) in created
        .iter()
        .flat_map(|table| table.foreign_keys.iter().map(move |key| (table, key)))
    {
        let reference = expected(table, key);
        let stands = keys.iter().any(|one| same(one, &reference));
        if !stands && there.contains(&key.parent) {
            keys.push(reference);
            coming.push((table, key));
        }
    }
    db.forget_layouts();
    if !coming.is_empty() {
        captured(db, schema, &keys, None).await?;
    }
    let mut refused: Option<DatabaseError> = None;
    let mut bound: BTreeSet<&str> = created.iter().map(|table| table.name.as_str()).collect();
    for (table, key) in coming {
        let error = match add(db, table, key).await {
            Ok(()) => continue,
            Err(error @ (DatabaseError::Busy(_) | DatabaseError::Unreachable(_))) => {
                return Err(error);
            }
            Err(error @ (DatabaseError::Mismatch { .. } | DatabaseError::Constraint { .. })) => {
                error
            }
            Err(other) => mismatch(&table.name, other.to_string()),
        };
        tracing::warn!(table = table.name, parent = key.parent, %error, "a foreign key was refused");
        bound.remove(table.name.as_str());
        refused.get_or_insert(error);
    }
    for name in bound {
        let note = text_literal(name);
        db.execute(format!(
            "DELETE FROM branchline_created WHERE name = {note}"
        ))
        .await?;
    }
    if refused.is_some() {
        let keys = catalog::foreign_keys(db).await?;
        captured(db, schema, &keys, None).await?;
    }
    db.forget_layouts();
    refused.map_or(Ok(()), Err)
}

/// Captures what these foreign keys' actions do to children: before they are there, so that nothing goes unseen; and the
/// writes to a table that has `changed`. Where tables are not what the plan says that is left to the next look at the
/// capture.
pub(super) async fn captured(
    db: &mut MysqlDatabase,
    schema: &Schema,
    keys: &[Reference],
    changed: Option<&Table>,
) -> DbResult<()> {
    let done = capture::follow_actions(db, schema, keys, changed).await;
    db.forget_layouts();
    match done {
        Err(DatabaseError::Mismatch { .. }) => Ok(()),
        other => other,
    }
}

/// As [`captured`], before a table gets these foreign keys with the rest of a step. They are not there before its columns
/// have their new names; the triggers have the former ones. In the moment between they note that they missed something.
pub(super) async fn captured_before<'k>(
    db: &mut MysqlDatabase,
    now: &Schema,
    standing: &[Reference],
    table: &Table,
    coming: impl Iterator<Item = (&'k ForeignKey, Vec<String>)>,
) -> DbResult<()> {
    let reference = |(key, columns)| Reference {
        columns,
        ..expected(table, key)
    };
    let acting: Vec<Reference> = coming.map(reference).filter(Reference::acts).collect();
    if acting.is_empty() {
        return Ok(());
    }
    captured(db, now, &[standing, &acting].concat(), None).await
}

/// A foreign key that its table could not get with the rest of a step: its other end may have changed only afterwards.
pub(super) struct Late<'s> {
    pub(super) table: &'s Table,
    pub(super) key: &'s ForeignKey,
}

/// Adds what was late, and tells what cannot be added even now.
pub(super) async fn add_late(
    db: &mut MysqlDatabase,
    goal: &Schema,
    refused: impl Fn(TableId) -> bool,
    late: &[Late<'_>],
) -> DbResult<Vec<String>> {
    let mut unbound = Vec::new();
    if !late.is_empty() {
        let mut keys = catalog::foreign_keys(db).await?;
        keys.extend(late.iter().map(|late| expected(late.table, late.key)));
        captured(db, goal, &keys, None).await?;
    }
    for Late { table, key } in late.iter().filter(|late| !refused(late.table.id)) {
        let parent = goal.table_named(&key.parent);
        let made = if parent.is_some_and(|parent| !refused(parent.id)) {
            // As with the rest of the step, whose rows were looked at before.
            db.execute("SET SESSION foreign_key_checks = 0").await?;
            let made = add(db, table, key).await;
            db.execute("SET SESSION foreign_key_checks = 1").await?;
            made.map_err(|error| stop(table.id, error))
        } else {
            Err(Stop::Refused(table.id, "that table did not follow".into()))
        };
        match made {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Refused(_, reason)) => unbound.push(format!(
                "table `{}` does without its foreign key to `{}`: {reason}",
                table.name, key.parent
            )),
        }
    }
    Ok(unbound)
}

/// Drops a foreign key that stands in the way of a step. Where the server refuses that, it will refuse the step of the
/// table concerned too.
pub(super) async fn drop_key(db: &mut MysqlDatabase, key: &Reference) -> DbResult<()> {
    let (table, name) = (ident(&key.child), ident(&key.name));
    let sql = format!("ALTER TABLE {table} DROP FOREIGN KEY {name}");
    let done = patiently(db, &key.child, &sql).await;
    unless_refused(done, &key.child, "a foreign key could not be dropped")
}

/// Only what is not the table's fault.
pub(super) fn unless_refused(done: DbResult<()>, table: &str, what: &str) -> DbResult<()> {
    let tried: Tried<()> = done.map_err(|error| stop(0, error));
    match tried {
        Ok(()) => Ok(()),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Refused(_, reason)) => {
            tracing::warn!(table, reason, "{what}");
            Ok(())
        }
    }
}
