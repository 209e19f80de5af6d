//! Following a schema version: the shared tables are turned into its tables, in the open transaction.
//!
//! An attempt does all tables, step by step: names first, then foreign keys out of the way, then each table, then the
//! foreign keys again. Where a table cannot follow, everything is undone and tried anew without it. So no table is ever
//! left between two versions, and none stops the others.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::check::Check;
use branchline_core::port::{DatabaseError, DbResult, Evolution, Inspection, Purpose};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::Value;
use tokio_postgres::types::Type as Wire;

use super::bonds::{self, Bonds};
use super::books;
use super::catalog;
use super::connection::PostgresDatabase;
use super::ddl::{self, ident, names, relation};
use super::error::on_table;
use super::{install, literal, rekey, retype};
use crate::checks::{self, Made};
use crate::lineage::{self, Columns, Known, Stop, Tried, filling, in_order, stop};

/// A shared table on its way.
pub(super) struct Step<'s> {
    /// What it was made last: the version before, or the new one where that is done.
    pub(super) former: Option<&'s Table>,
    /// As the version before has it.
    before: Option<&'s Table>,
    pub(super) to: &'s Table,
    /// As it is now, or was before anything was renamed.
    pub(super) live: Table,
    pub(super) columns: Columns,
}

impl Step<'_> {
    /// Checks that stand here and go with this version. Those of columns that go, go with them.
    fn checks_gone(&self) -> Vec<&Check> {
        let number = |column: &Column| self.columns.number(self.to, &column.name);
        checks::gone(self.before, self.to, &self.live, number)
    }

    /// Checks that come with this version and do not stand here.
    pub(super) fn checks_coming(&self) -> Vec<&Check> {
        let place = |at: u16| {
            let name = self.columns.sources.get(usize::from(at))?.as_ref()?;
            let mut columns = self.live.columns.iter();
            let place = columns.position(|column| column.name == *name)?;
            u16::try_from(place).ok()
        };
        checks::coming(self.before, self.to, &self.live, place)
    }
}

/// Locks a table as its `ALTER` or `DROP` will, so that the two wait only once.
pub(super) async fn hold_still(db: &mut PostgresDatabase, table: &Table) -> DbResult<()> {
    let sql = format!(
        "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        relation(&table.name)
    );
    let locked = db.client()?.batch_execute(&sql).await;
    locked.map_err(|error| on_table(&table.name, &error))
}

pub(super) async fn evolve(
    db: &mut PostgresDatabase,
    from: &Schema,
    to: &Schema,
    dropped: &[TableId],
) -> DbResult<Evolution> {
    if db.purpose() != Some(Purpose::Load) {
        return Err(DatabaseError::Other(
            "a schema version needs a transaction that was opened for loading".into(),
        ));
    }
    let mut refused: BTreeMap<TableId, String> = BTreeMap::new();
    db.execute("SAVEPOINT branchline_evolve").await?;
    loop {
        db.forget_layouts();
        match attempt(db, from, to, dropped, &refused).await {
            Ok((found, made)) => {
                db.execute("RELEASE SAVEPOINT branchline_evolve").await?;
                db.forget_layouts();
                return Ok(Evolution {
                    refused: refused.into_iter().collect(),
                    found,
                    unbound: made.never,
                    unmade: made.unmade,
                    untaken: Vec::new(),
                });
            }
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Refused(id, reason)) => {
                db.execute("ROLLBACK TO SAVEPOINT branchline_evolve")
                    .await?;
                tracing::debug!(table = id, reason, "a table cannot follow a schema version");
                if refused.insert(id, reason.clone()).is_some() {
                    return Err(DatabaseError::Other(format!(
                        "table number {id} cannot be left out: {reason}"
                    )));
                }
            }
        }
    }
}

/// One try with all tables but those refused. Returns the new columns that stood there already, and what came of checks.
async fn attempt(
    db: &mut PostgresDatabase,
    from: &Schema,
    to: &Schema,
    dropped: &[TableId],
    refused: &BTreeMap<TableId, String>,
) -> Tried<(Vec<(TableId, u32)>, Made)> {
    let looked = catalog::look(db).await?;
    let captured = install::captured_tables(db).await?;
    let stand = standing(db, from, to).await?;
    let places = lineage::tables(from, to, &stand, &captured);
    // What is left out stays what it was, under the name that it has now.
    let mut goal = to.clone();
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    let mut steps = Vec::new();
    for table in &goal.tables {
        if let Some(name) = places.get(&table.id) {
            steps.push(step(db, from, table, name, &looked).await?);
        }
    }
    drop_tables(db, from, &goal, dropped, &places, refused).await?;
    rename_tables(db, &goal, &places).await?;
    for step in &steps {
        let renames = in_order(step.columns.renames(step.to), "branchline_aside");
        for (was, becomes) in renames {
            let (was, becomes) = (ident(&was), ident(&becomes));
            alter(db, step.to, &format!("RENAME COLUMN {was} TO {becomes}")).await?;
        }
    }
    let created = ddl::create_missing(db, &goal).await;
    let created = created.map_err(|(id, error)| stop(id, error))?;
    let bonds = Bonds::load(db, from, &goal, &steps).await?;
    bonds.loosen(db, &steps).await?;
    for step in &steps {
        reshape(db, &bonds, step).await?;
    }
    bonds.fasten(db, &goal, &created).await?;
    let mut made = Made::default();
    for step in &steps {
        made.extend(super::checks::make(db, step).await?);
    }
    for step in &steps {
        rekey::follow(db, step)
            .await
            .map_err(|error| stop(step.to.id, error))?;
        if let Some(former) = step.former {
            let notes = books::notes(db, former, None).await?;
            books::set_notes(db, former, &lineage::moved_notes(former, step.to, notes)).await?;
        }
        books::set_meta(
            db,
            &lineage::mark(step.to.id),
            Some(&lineage::marked(step.to)),
        )
        .await?;
    }
    db.forget_layouts();
    let looked = catalog::look(db).await?;
    for table in &goal.tables {
        let fits = catalog::compatible(table, &looked);
        fits.map_err(|error| stop(table.id, error))?;
    }
    // A table that is left out keeps its capture.
    let keeps = from
        .tables
        .iter()
        .filter(|table| refused.contains_key(&table.id));
    let keeps: BTreeSet<TableId> = keeps.map(|table| table.id).collect();
    install::install_here(db, &goal, &keeps).await?;
    install::note_origins(db, &goal, &looked).await?;
    let found = steps.iter().flat_map(|step| {
        step.columns
            .found
            .iter()
            .map(|&column| (step.to.id, column))
    });
    Ok((found.collect(), made))
}

/// Those of the names of both versions under which a table stands.
async fn standing(
    db: &mut PostgresDatabase,
    from: &Schema,
    to: &Schema,
) -> DbResult<BTreeSet<String>> {
    let captured = install::captured_tables(db).await?;
    let all = from
        .tables
        .iter()
        .chain(&to.tables)
        .map(|table| table.name.clone());
    let mut there = BTreeSet::new();
    for name in all.chain(captured.into_values()) {
        if ddl::exists(db, &name).await? {
            there.insert(name);
        }
    }
    Ok(there)
}

async fn step<'s>(
    db: &mut PostgresDatabase,
    from: &'s Schema,
    to: &'s Table,
    name: &str,
    looked: &Inspection,
) -> Tried<Step<'s>> {
    let Some(live) = looked.tables.iter().find(|table| table.name == name) else {
        let why = looked
            .findings
            .iter()
            .find(|one| one.fatal && one.table.as_deref() == Some(name));
        let why = why.map_or_else(
            || format!("`{name}` is no table"),
            |one| format!("{} {}", one.problem, one.advice),
        );
        return Err(Stop::Refused(to.id, why));
    };
    let done = books::meta(db, &lineage::mark(to.id)).await?;
    let former = if done.is_some_and(|done| done == lineage::marked(to)) {
        Some(to)
    } else {
        from.table(to.id)
    };
    let known = known(db, to.id, looked, live).await?;
    Ok(Step {
        former,
        before: from.table(to.id),
        to,
        live: live.clone(),
        columns: Columns::of(former, to, live, &known, catalog::same),
    })
}

/// What the columns of a table are called now, by what the catalogue called them when it was last looked after.
async fn known(
    db: &mut PostgresDatabase,
    id: TableId,
    looked: &Inspection,
    live: &Table,
) -> DbResult<Known> {
    let noted = books::meta(db, &install::origin(id)).await?;
    let noted: Option<install::Noted> = noted.and_then(|bytes| minicbor::decode(&bytes).ok());
    let origin = looked.origins.get(&live.name);
    let (Some((oid, numbers)), Some(origin)) = (noted, origin) else {
        return Ok(Known::new());
    };
    if oid != origin.table {
        return Ok(Known::new());
    }
    let name = |number| {
        let at = origin.columns.iter().position(|one| *one == number)?;
        live.columns.get(at).map(|column| column.name.clone())
    };
    Ok(numbers
        .into_iter()
        .map(|(column, number)| (column, name(number)))
        .collect())
}

async fn drop_tables(
    db: &mut PostgresDatabase,
    from: &Schema,
    goal: &Schema,
    dropped: &[TableId],
    places: &BTreeMap<TableId, String>,
    refused: &BTreeMap<TableId, String>,
) -> Tried<()> {
    let goes = |id: &&TableId| goal.table(**id).is_none() && !refused.contains_key(*id);
    for &id in dropped.iter().filter(goes) {
        let (Some(name), Some(_)) = (places.get(&id), from.table(id)) else {
            continue;
        };
        // References of the plan's own tables go with it; any other one keeps it.
        let shared: Vec<&String> = places.values().collect();
        for (child, constraint) in bonds::references_to(db, name).await? {
            if shared.contains(&&child) && child != *name {
                let sql = format!(
                    "ALTER TABLE {} DROP CONSTRAINT {}",
                    relation(&child),
                    ident(&constraint)
                );
                run(db, id, name, &sql).await?;
            }
        }
        run(db, id, name, &format!("DROP TABLE {}", relation(name))).await?;
        books::set_meta(db, &lineage::mark(id), None).await?;
    }
    Ok(())
}

async fn rename_tables(
    db: &mut PostgresDatabase,
    goal: &Schema,
    places: &BTreeMap<TableId, String>,
) -> Tried<()> {
    let renames = goal
        .tables
        .iter()
        .filter_map(|table| Some((places.get(&table.id)?.clone(), table.name.clone())));
    for (was, becomes) in in_order(renames.collect(), "branchline_aside") {
        let id = goal.tables.iter().find(|table| table.name == becomes);
        let id = id.or_else(|| {
            goal.tables
                .iter()
                .find(|table| places.get(&table.id) == Some(&was))
        });
        let id = id.map_or(0, |table| table.id);
        let ((old_schema, old_name), (schema, name)) = (names(&was), names(&becomes));
        if schema != old_schema {
            let sql = format!(
                "CREATE SCHEMA IF NOT EXISTS {0}; ALTER TABLE {1} SET SCHEMA {0}",
                ident(schema),
                relation(&was)
            );
            run(db, id, &was, &sql).await?;
        }
        if name != old_name {
            let sql = format!(
                "ALTER TABLE {}.{} RENAME TO {}",
                ident(schema),
                ident(old_name),
                ident(name)
            );
            run(db, id, &was, &sql).await?;
        }
        let note = "UPDATE branchline.created SET name = $2 WHERE name = $1";
        db.query(note, &[Wire::TEXT, Wire::TEXT], &[&was, &becomes])
            .await?;
    }
    Ok(())
}

/// Turns one table, whose columns have their new names, into what the version says; without foreign keys.
async fn reshape(db: &mut PostgresDatabase, bonds: &Bonds, step: &Step<'_>) -> Tried<()> {
    let to = step.to;
    bonds.drop_keys(db, step).await?;
    for check in step.checks_gone() {
        if let Some(name) = &check.name {
            alter(db, to, &format!("DROP CONSTRAINT {}", ident(name))).await?;
        }
    }
    for name in step.columns.drops_renamed(to) {
        alter(db, to, &format!("DROP COLUMN {}", ident(&name))).await?;
    }
    for (at, column) in to.columns.iter().enumerate() {
        let source = step.columns.sources.get(at).cloned().flatten();
        match source.and_then(|name| step.live.columns.iter().find(|one| one.name == name)) {
            Some(live) => {
                let retyped = retype::retype(db, step, column, live).await;
                retyped.map_err(|stop| stop.about(&column.name))?;
                settle(db, step, at, live).await?;
            }
            None => add(db, to, at).await?,
        }
    }
    bonds.add_keys(db, step).await
}

/// NULL, default and numbering of a column that was there.
async fn settle(db: &mut PostgresDatabase, step: &Step<'_>, at: usize, live: &Column) -> Tried<()> {
    let to = step.to;
    let Some(column) = to.columns.get(at) else {
        return Ok(());
    };
    let name = ident(&column.name);
    let former = step
        .former
        .and_then(|former| former.columns.iter().find(|one| one.id == column.id));
    let retyped = !catalog::same(&column.kind, &live.kind) && live.default.is_some();
    if former.is_none_or(|former| former.default != column.default) || retyped {
        match &column.default {
            Some(value) if live.default.as_ref() != Some(value) || retyped => {
                let sql = format!("ALTER COLUMN {name} SET DEFAULT {}", literal::text(value));
                alter(db, to, &sql).await?;
            }
            None if live.default.is_some() => {
                alter(db, to, &format!("ALTER COLUMN {name} DROP DEFAULT")).await?;
            }
            _ => {}
        }
    }
    let required = to.is_key(at) || !column.nullable;
    if required == live.nullable {
        let what = if required { "SET" } else { "DROP" };
        alter(db, to, &format!("ALTER COLUMN {name} {what} NOT NULL")).await?;
    }
    if former.is_some_and(|former| former.generated_key != column.generated_key)
        && live.generated_key != column.generated_key
    {
        if column.generated_key {
            let table = literal::text(&Value::Text(relation(&to.name)));
            let quoted = literal::text(&Value::Text(column.name.clone()));
            alter(
                db,
                to,
                &format!("ALTER COLUMN {name} ADD GENERATED BY DEFAULT AS IDENTITY"),
            )
            .await?;
            let sql = format!(
                "SELECT pg_catalog.setval(pg_catalog.pg_get_serial_sequence({table}, {quoted}),
                     (SELECT coalesce(pg_catalog.max({name}), 0) + 1 FROM {}), false)",
                relation(&to.name)
            );
            run(db, to.id, &to.name, &sql).await?;
        } else {
            let sql = format!(
                "ALTER COLUMN {name} DROP IDENTITY IF EXISTS, ALTER COLUMN {name} DROP DEFAULT"
            );
            alter(db, to, &sql).await?;
        }
    }
    Ok(())
}

async fn add(db: &mut PostgresDatabase, to: &Table, at: usize) -> Tried<()> {
    let Some(column) = to.columns.get(at) else {
        return Ok(());
    };
    for sql in ddl::enums(to) {
        run(db, to.id, &to.name, &sql).await?;
    }
    let name = ident(&column.name);
    let definition = ddl::column_definition(to, at);
    let numbered = definition.ends_with("IDENTITY");
    let value = filling(column, to.is_key(at));
    if numbered || column.default.is_some() || value.is_null() {
        return alter(db, to, &format!("ADD COLUMN {definition}")).await;
    }
    // A constant default fills the rows that are there without writing them.
    let value = literal::text(&value);
    alter(db, to, &format!("ADD COLUMN {definition} DEFAULT {value}")).await?;
    alter(db, to, &format!("ALTER COLUMN {name} DROP DEFAULT")).await
}

pub(super) async fn alter(db: &PostgresDatabase, table: &Table, what: &str) -> Tried<()> {
    let sql = format!("ALTER TABLE {} {what}", relation(&table.name));
    run(db, table.id, &table.name, &sql).await
}

/// Runs a statement on behalf of a table; what the database says against it refuses the table.
pub(super) async fn run(db: &PostgresDatabase, id: TableId, table: &str, sql: &str) -> Tried<()> {
    let done = db.client()?.batch_execute(sql).await;
    done.map_err(|error| stop(id, on_table(table, &error)))
}
