//! Following a schema version, in the open transaction.
//!
//! An attempt does all tables: names first, which SQLite carries into triggers, views and references by itself, then
//! each table by itself ([`super::rebuild`]). Where a table cannot follow, everything is undone and tried anew without
//! it. So no table is ever left between two versions, and none stops the others.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::port::{DatabaseError, DbResult, Evolution, Inspection, Purpose};
use branchline_core::schema::{Schema, Table, TableId};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::SqliteDatabase;
use super::declared::compatible;
use super::error::{failure, on};
use super::inspect;
use super::sql::{places, quoted};
use super::{books, checks, ddl, rebuild, rekey, triggers};
use crate::checks::Made;
use crate::lineage::{self, Columns, Known, Stop, Tried, in_order, stop};

/// A shared table on its way.
pub(super) struct Step<'s> {
    /// What it was made last: the version before, or the new one where that is done.
    pub(super) former: Option<&'s Table>,
    /// As the version before has it.
    pub(super) before: Option<&'s Table>,
    pub(super) to: &'s Table,
    /// As it is now, under the new names.
    pub(super) live: Table,
    pub(super) columns: Columns,
}

impl SqliteDatabase {
    pub(super) fn follow(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        if self.applying()?.purpose != Purpose::Load {
            return Err(DatabaseError::Other(
                "a schema version needs a transaction that was opened for loading".into(),
            ));
        }
        // Captured keys may be written anew, or go.
        self.plan = None;
        self.marks.clear();
        let run = |sql: &str| self.connection.execute_batch(sql).map_err(failure);
        let mut refused: BTreeMap<TableId, String> = BTreeMap::new();
        run("SAVEPOINT branchline_evolve")?;
        loop {
            match attempt(&self.connection, from, to, dropped, &refused) {
                Ok((found, made)) => {
                    run("RELEASE branchline_evolve")?;
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
                    run("ROLLBACK TO branchline_evolve")?;
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
}

/// One try with all tables but those refused. Returns the new columns that stood there already, and what came of checks.
fn attempt(
    connection: &Connection,
    from: &Schema,
    to: &Schema,
    dropped: &[TableId],
    refused: &BTreeMap<TableId, String>,
) -> Tried<(Vec<(TableId, u32)>, Made)> {
    let views = working_views(connection).map_err(failure)?;
    let captured = triggers::captured_tables(connection)?;
    let looked = looked(connection, from, to)?;
    let there = inspect::relations(connection).map_err(failure)?;
    let there: BTreeSet<String> = there
        .into_iter()
        .filter(|(_, kind)| kind == "table")
        .map(|(name, _)| spelt(from, to, name))
        .collect();
    let places = lineage::tables(from, to, &there, &captured);
    let mut goal = to.clone();
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    let mut steps = Vec::new();
    for table in &goal.tables {
        if let Some(name) = places.get(&table.id) {
            steps.push(step(connection, from, table, name, &looked)?);
        }
    }
    for step in &steps {
        silence(connection, step.to.id)?;
    }
    let goes = |id: &&TableId| goal.table(**id).is_none() && !refused.contains_key(*id);
    for id in dropped.iter().filter(goes) {
        if let Some(name) = places.get(id).filter(|_| from.table(*id).is_some()) {
            drop_table(connection, *id, name, &places)?;
        }
    }
    rename(connection, &goal, &places, &steps)?;
    ddl::create_tables(connection, &goal).map_err(|error| blamed(&goal, error))?;
    looked_again(connection, &mut steps)?;
    for step in &steps {
        rebuild::reshape(connection, from, &goal, step)?;
    }
    let mut made = Made::default();
    for step in &steps {
        made.extend(checks::make(connection, step)?);
    }
    for step in &steps {
        rekey::follow(connection, step).map_err(|error| stop(step.to.id, error))?;
        if let Some(former) = step.former {
            let notes = books::notes(connection, former.id, None)?;
            let notes = lineage::moved_notes(former, step.to, notes);
            books::set_notes(connection, step.to.id, &notes)?;
        }
        let mark = lineage::mark(step.to.id);
        books::set_meta(connection, &mark, Some(&lineage::marked(step.to)))?;
    }
    check(connection, &steps, &views)?;
    let keeps = from
        .tables
        .iter()
        .filter(|table| refused.contains_key(&table.id));
    let keeps: BTreeSet<TableId> = keeps.map(|table| table.id).collect();
    triggers::install_beside(connection, &goal, &keeps).map_err(|error| blamed(&goal, error))?;
    let found = steps.iter().flat_map(|step| {
        step.columns
            .found
            .iter()
            .map(|&column| (step.to.id, column))
    });
    Ok((found.collect(), made))
}

/// An error as that of the table that it names.
fn blamed(goal: &Schema, error: DatabaseError) -> Stop {
    let table = match &error {
        DatabaseError::Mismatch { table, .. } | DatabaseError::Constraint { table, .. } => {
            goal.table_named(table)
        }
        _ => None,
    };
    match table {
        Some(table) => stop(table.id, error),
        None => Stop::Failed(error),
    }
}

/// Names as the versions spell them: to SQLite letter case is no difference.
fn spelt(from: &Schema, to: &Schema, name: String) -> String {
    let mut known = from.tables.iter().chain(&to.tables);
    let same = known.find(|table| table.name.eq_ignore_ascii_case(&name));
    same.map_or(name, |table| table.name.clone())
}

fn looked(connection: &Connection, from: &Schema, to: &Schema) -> DbResult<Inspection> {
    let mut looked = inspect::inspect(connection)?;
    for table in &mut looked.tables {
        table.name = spelt(from, to, std::mem::take(&mut table.name));
        let known: Vec<&Table> = from.tables.iter().chain(&to.tables).collect();
        for column in &mut table.columns {
            let mut columns = known.iter().flat_map(|table| &table.columns);
            if columns.all(|one| one.name != column.name) {
                let mut columns = known.iter().flat_map(|table| &table.columns);
                if let Some(same) = columns.find(|one| one.name.eq_ignore_ascii_case(&column.name))
                {
                    column.name.clone_from(&same.name);
                }
            }
        }
    }
    Ok(looked)
}

fn step<'s>(
    connection: &Connection,
    from: &'s Schema,
    to: &'s Table,
    name: &str,
    looked: &Inspection,
) -> Tried<Step<'s>> {
    let live = present(to, name, looked)?;
    let done = books::meta(connection, &lineage::mark(to.id))?;
    let former = if done.is_some_and(|done| done == lineage::marked(to)) {
        Some(to)
    } else {
        from.table(to.id)
    };
    Ok(Step {
        former,
        before: from.table(to.id),
        to,
        live: live.clone(),
        columns: Columns::of(former, to, live, &Known::new(), compatible),
    })
}

fn present<'l>(to: &Table, name: &str, looked: &'l Inspection) -> Tried<&'l Table> {
    let found = looked
        .tables
        .iter()
        .find(|table| table.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let why = looked
            .findings
            .iter()
            .find(|one| one.fatal && one.table.as_deref() == Some(name));
        let why = why.map_or_else(
            || format!("`{name}` is no table"),
            |one| format!("{}; {}", one.problem, one.advice),
        );
        Stop::Refused(to.id, why)
    })
}

/// Looks at the tables under their new names.
fn looked_again(connection: &Connection, steps: &mut [Step<'_>]) -> Tried<()> {
    let looked = inspect::inspect(connection)?;
    for step in steps {
        step.live = present(step.to, &step.to.name, &looked)?.clone();
    }
    Ok(())
}

/// Removes our triggers from a table on its way.
fn silence(connection: &Connection, id: TableId) -> DbResult<()> {
    for (name, _) in triggers::installed(connection)? {
        if triggers::table_of(&name) == Some(id) {
            let sql = format!("DROP TRIGGER {}", quoted(&name));
            connection.execute_batch(&sql).map_err(failure)?;
        }
    }
    Ok(())
}

fn drop_table(
    connection: &Connection,
    id: TableId,
    name: &str,
    places: &BTreeMap<TableId, String>,
) -> Tried<()> {
    let others: Vec<String> = connection
        .prepare(
            "SELECT DISTINCT m.name FROM sqlite_master AS m JOIN pragma_foreign_key_list(m.name) AS f
             WHERE m.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE AND m.name <> ?1 COLLATE NOCASE",
        )
        .and_then(|mut select| select.query_map([name], |row| row.get(0))?.collect())
        .map_err(failure)?;
    let shared = |other: &String| places.values().any(|name| name.eq_ignore_ascii_case(other));
    if let Some(other) = others.iter().find(|other| !shared(other)) {
        let reason = format!("table `{other}`, which is not shared, refers to it");
        return Err(Stop::Refused(id, reason));
    }
    run(
        connection,
        id,
        name,
        &format!("DROP TABLE {}", quoted(name)),
    )?;
    books::set_meta(connection, &lineage::mark(id), None)?;
    Ok(())
}

fn rename(
    connection: &Connection,
    goal: &Schema,
    places: &BTreeMap<TableId, String>,
    steps: &[Step<'_>],
) -> Tried<()> {
    let renames = goal
        .tables
        .iter()
        .filter_map(|table| Some((places.get(&table.id)?.clone(), table.name.clone())));
    for (was, becomes) in in_order(renames.collect(), "branchline_aside") {
        let named = goal.tables.iter().find(|table| table.name == becomes);
        let named = named.or_else(|| {
            goal.tables
                .iter()
                .find(|table| places.get(&table.id) == Some(&was))
        });
        let id = named.map_or(0, |table| table.id);
        let sql = format!(
            "ALTER TABLE {} RENAME TO {}",
            quoted(&was),
            quoted(&becomes)
        );
        run(connection, id, &was, &sql)?;
    }
    for step in steps {
        for (was, becomes) in in_order(step.columns.renames(step.to), "branchline_aside") {
            let (table, was, becomes) = (quoted(&step.to.name), quoted(&was), quoted(&becomes));
            let sql = format!("ALTER TABLE {table} RENAME COLUMN {was} TO {becomes}");
            run(connection, step.to.id, &step.to.name, &sql)?;
        }
    }
    Ok(())
}

/// The application's views that can be read.
fn working_views(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut names = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'view'")?;
    let names: Vec<String> = names
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let works = |name: &String| {
        connection
            .prepare(&format!("SELECT * FROM {}", quoted(name)))
            .is_ok()
    };
    Ok(names.into_iter().filter(works).collect())
}

/// Whether the application can still do what it could: read its views, and write to the tables past its triggers.
fn check(connection: &Connection, steps: &[Step<'_>], views: &[String]) -> Tried<()> {
    let id = steps.first().map_or(0, |step| step.to.id);
    for view in views {
        if let Err(error) = connection.prepare(&format!("SELECT * FROM {}", quoted(view))) {
            let words = error.to_string();
            let meant = steps.iter().find(|step| {
                let mut drops = step.columns.drops.iter();
                drops.any(|name| words.contains(name.as_str()))
            });
            let id = meant.map_or(id, |step| step.to.id);
            return Err(Stop::Refused(
                id,
                format!("the view `{view}` could not be read any more: {words}"),
            ));
        }
    }
    for step in steps {
        let table = quoted(&step.to.name);
        let names: Vec<String> = step
            .to
            .columns
            .iter()
            .map(|column| quoted(&column.name))
            .collect();
        let statements = [
            format!(
                "INSERT INTO {table} ({}) VALUES ({})",
                names.join(", "),
                places(names.len())
            ),
            format!(
                "UPDATE {table} SET {}",
                names
                    .iter()
                    .map(|name| format!("{name} = {name}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            format!("DELETE FROM {table}"),
        ];
        for sql in statements {
            let done = connection
                .prepare(&sql)
                .map(drop)
                .map_err(on(&step.to.name));
            done.map_err(|error| stop(step.to.id, error))?;
        }
    }
    Ok(())
}

/// Runs a statement on behalf of a table; what the database says against it refuses the table.
pub(super) fn run(connection: &Connection, id: TableId, table: &str, sql: &str) -> Tried<()> {
    let done = connection.execute_batch(sql).map_err(on(table));
    done.map_err(|error| stop(id, error))
}

/// Runs something with the old meaning of `ALTER TABLE ... RENAME`: it touches no view, trigger or reference.
pub(super) fn renaming_quietly<T>(
    connection: &Connection,
    work: impl FnOnce() -> Tried<T>,
) -> Tried<T> {
    let set = |on| {
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, on)
            .map_err(failure)
    };
    set(true)?;
    let done = work();
    set(false)?;
    done
}
