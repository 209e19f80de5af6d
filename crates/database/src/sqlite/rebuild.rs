//! One table on its way to another schema version, under its new names.
//!
//! Columns are added and dropped by `ALTER TABLE` where that suffices. Anything else needs SQLite's own procedure: a new
//! table, the rows copied into it, the old one dropped, the new one under its name. What the version says nothing of is
//! taken over as it was written: checks, collations, computed columns, other indexes, the application's triggers.

use branchline_core::schema::{Column, ForeignKey, Schema, Table};
use branchline_core::value::{Type, widens};
use rusqlite::{Connection, OptionalExtension};

use super::bonds::{link, obeyed};
use super::catalog::Live;
use super::checks;
use super::ddl::{self, check, numbered_key};
use super::declared::{compatible, declaration};
use super::definition::{Definition, Part, What, Written};
use super::error::failure;
use super::evolve::{Step, renaming_quietly, run};
use super::sql::{list, literal, quoted, text};
use crate::lineage::{Stop, Tried, links, names_of, numbers_of};

/// What has to be done to a table.
pub(super) struct Work {
    pub(super) definition: Definition,
    /// The definition says something else now: only a rebuild brings it about.
    rebuild: bool,
    /// Columns that come, by their place in the version's table.
    pub(super) adds: Vec<usize>,
    drops: Vec<String>,
    /// Columns whose values are converted: place, former type.
    pub(super) converts: Vec<(usize, Type)>,
    /// Indexes that go.
    unindexed: Vec<String>,
    /// Foreign keys that come.
    bound: Vec<ForeignKey>,
}

pub(super) fn reshape(
    connection: &Connection,
    from: &Schema,
    goal: &Schema,
    step: &Step<'_>,
) -> Tried<()> {
    let (to, id) = (step.to, step.to.id);
    let definition = definition(connection, to)?;
    let live = Live::find(connection, &to.name)?;
    let live = live.ok_or_else(|| Stop::Refused(id, "it is gone".into()))?;
    let mut work = Work {
        drops: step.columns.drops_renamed(to),
        ..Work::of(definition)
    };
    for (at, column) in to.columns.iter().enumerate() {
        match step
            .live
            .columns
            .iter()
            .find(|one| one.name.eq_ignore_ascii_case(&column.name))
        {
            Some(here) if step.columns.sources.get(at).is_some_and(Option::is_some) => {
                work.settle(step, at, column, here);
            }
            _ => work.adds.push(at),
        }
    }
    work.rebuild |= checks::drop_gone(&mut work.definition, step);
    work.key(step);
    work.unindex(step, &live);
    work.references(from, goal, step);
    work.apply(connection, step)?;
    index(connection, step)?;
    obeyed(connection, step, &work.bound)
}

/// A table's own definition, under its new names.
pub(super) fn definition(connection: &Connection, to: &Table) -> Tried<Definition> {
    let written = connection
        .query_row(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
            [&to.name],
            |row| row.get::<_, String>(0),
        )
        .map_err(failure)?;
    let definition = Definition::parse(&written);
    definition.ok_or_else(|| Stop::Refused(to.id, "its definition is not understood".into()))
}

/// Makes a table anew that has its columns already.
pub(super) fn made_anew(
    connection: &Connection,
    definition: Definition,
    step: &Step<'_>,
) -> Tried<()> {
    Work::of(definition).anew(connection, step)
}

impl Work {
    fn of(definition: Definition) -> Self {
        Self {
            definition,
            rebuild: false,
            adds: Vec::new(),
            drops: Vec::new(),
            converts: Vec::new(),
            unindexed: Vec::new(),
            bound: Vec::new(),
        }
    }

    /// Type, NULL and default of a column that was there.
    fn settle(&mut self, step: &Step<'_>, at: usize, column: &Column, here: &Column) {
        let to = step.to;
        let former = step
            .former
            .and_then(|former| former.columns.iter().find(|one| one.id == column.id));
        let was = former
            .map(|former| &former.kind)
            .filter(|kind| compatible(kind, &here.kind));
        let was = was.unwrap_or(&here.kind).clone();
        let numbered = numbered_key(to) == Some(at);
        let name = quoted(&column.name);
        let Some(written) = self.definition.column(&column.name) else {
            return;
        };
        let before = written.clone();
        if was != column.kind {
            let own = check(&name, &was);
            let is_own = |part: &Part| {
                part.what == What::Check
                    && own
                        .as_ref()
                        .is_some_and(|own| part.says(&format!("CHECK ({own})")))
            };
            let ours = own.is_none() || written.parts.iter().any(is_own);
            written.parts.retain(|part| !is_own(part));
            let spelt = |kind: &Type| declaration(kind).replace(' ', "").to_uppercase();
            let declared = written.declared.replace(' ', "").to_uppercase();
            let integer = numbered && declared == "INTEGER";
            if !integer && (declared == spelt(&was) || !compatible(&column.kind, &here.kind)) {
                written.declared = declaration(&column.kind);
            }
            if ours && let Some(check) = check(&name, &column.kind) {
                written
                    .parts
                    .push(Part::new(What::Check, format!("CHECK ({check})")));
            }
            if !widens(&was, &column.kind) || !compatible(&column.kind, &here.kind) {
                self.converts.push((at, was.clone()));
                self.rebuild = true;
            }
        }
        let key = to.is_key(at);
        if !key && column.nullable != here.nullable {
            if column.nullable {
                written.without(What::NotNull);
            } else {
                written.set(What::NotNull, "NOT NULL");
            }
        }
        let plain =
            here.default.is_some() || !written.parts.iter().any(|part| part.what == What::Default);
        let follows =
            former.is_none_or(|former| former.default != column.default) || was != column.kind;
        if plain && follows && here.default != column.default && !numbered {
            match column.default.as_ref().and_then(literal) {
                Some(literal) => written.set(What::Default, format!("DEFAULT {literal}")),
                None => written.without(What::Default),
            }
        }
        self.rebuild |= *written != before;
    }

    /// The primary key.
    fn key(&mut self, step: &Step<'_>) {
        let to = step.to;
        let (wanted, present) = (names_of(to, &to.key), names_of(&step.live, &step.live.key));
        let retyped = self.converts.iter().any(|(at, _)| to.is_key(*at));
        let same = wanted.len() == present.len()
            && wanted
                .iter()
                .zip(&present)
                .all(|(a, b)| a.eq_ignore_ascii_case(b));
        if same && !retyped {
            return;
        }
        self.rebuild = true;
        for column in &mut self.definition.columns {
            column.without(What::Primary);
        }
        self.definition
            .constraints
            .retain(|part| part.what != What::Primary);
        if let Some(numbered) = numbered_key(to).and_then(|at| to.columns.get(at)) {
            if let Some(written) = self.definition.column(&numbered.name) {
                written.declared = "INTEGER".into();
                written.set(What::Primary, "PRIMARY KEY");
            }
            return;
        }
        for name in &wanted {
            if let Some(written) = self.definition.column(name) {
                written.set(What::NotNull, "NOT NULL");
                if written.declared.eq_ignore_ascii_case("INTEGER") && wanted.len() == 1 {
                    written.declared = "BIGINT".into();
                }
            }
        }
        let columns = list(wanted.iter().map(|name| quoted(name)));
        let primary = Part::new(What::Primary, format!("PRIMARY KEY ({columns})"));
        self.definition.constraints.insert(0, primary);
    }

    /// Unique constraints and indexes that the former version had and the new one has not.
    fn unindex(&mut self, step: &Step<'_>, live: &Live) {
        let Some(former) = step.former else {
            return;
        };
        for index in live
            .indexes
            .iter()
            .filter(|index| !index.primary && !index.partial)
        {
            let columns: Option<Vec<String>> =
                index.columns.iter().map(|(name, _)| name.clone()).collect();
            let Some(columns) = columns else {
                continue;
            };
            let Some(numbers) = numbers(step, &columns) else {
                continue;
            };
            let has = |table: &Table| {
                let sets = if index.unique {
                    &table.unique
                } else {
                    &table.indexes
                };
                sets.iter().any(|set| numbers_of(table, set) == numbers)
            };
            if !has(former) || has(step.to) {
                continue;
            }
            if !index.name.starts_with("sqlite_autoindex_") {
                self.unindexed.push(index.name.clone());
                continue;
            }
            self.rebuild = true;
            let same = |part: &Part| {
                part.what == What::Unique
                    && part
                        .columns()
                        .iter()
                        .map(|name| name.to_lowercase())
                        .eq(columns.iter().map(|name| name.to_lowercase()))
            };
            self.definition.constraints.retain(|part| !same(part));
            if let [only] = columns.as_slice()
                && let Some(written) = self.definition.column(only)
            {
                written.without(What::Unique);
            }
        }
    }

    /// Foreign keys that go, and those that come.
    fn references(&mut self, from: &Schema, goal: &Schema, step: &Step<'_>) {
        let to = step.to;
        let known = step
            .former
            .map_or_else(Vec::new, |former| links(from, former));
        let same = |a: &(Vec<String>, String, Vec<String>, String, String),
                    table: &Table,
                    key: &ForeignKey| {
            a.0.iter()
                .map(|name| name.to_lowercase())
                .eq(names_of(table, &key.columns)
                    .iter()
                    .map(|name| name.to_lowercase()))
                && a.1.eq_ignore_ascii_case(&key.parent)
                && a.2
                    .iter()
                    .map(|name| name.to_lowercase())
                    .eq(key.parent_columns.iter().map(|name| name.to_lowercase()))
                && a.3.eq_ignore_ascii_case(&key.on_delete)
                && a.4.eq_ignore_ascii_case(&key.on_update)
        };
        let mut standing = Vec::new();
        for key in &step.live.foreign_keys {
            let told = (
                names_of(&step.live, &key.columns),
                key.parent.clone(),
                key.parent_columns.clone(),
                key.on_delete.clone(),
                key.on_update.clone(),
            );
            let wanted = to.foreign_keys.iter().any(|one| same(&told, to, one));
            let link = link(goal, from, step, key);
            if !wanted && link.is_some_and(|link| known.contains(&link)) {
                self.unbind(&told.0, &key.parent);
            } else {
                standing.push(told);
            }
        }
        for key in &to.foreign_keys {
            if !standing.iter().any(|one| same(one, to, key))
                && let Ok(definition) = ddl::reference_definition(to, key)
            {
                self.definition
                    .constraints
                    .push(Part::new(What::Reference, definition));
                self.bound.push(key.clone());
                self.rebuild = true;
            }
        }
    }

    fn unbind(&mut self, columns: &[String], parent: &str) {
        self.rebuild = true;
        let same = |part: &Part| part.what == What::Reference && part.mentions(parent);
        self.definition.constraints.retain(|part| {
            !(same(part)
                && part
                    .columns()
                    .iter()
                    .map(|name| name.to_lowercase())
                    .eq(columns.iter().map(|name| name.to_lowercase())))
        });
        if let [only] = columns
            && let Some(written) = self.definition.column(only)
        {
            written.parts.retain(|part| !same(part));
        }
    }

    fn apply(&mut self, connection: &Connection, step: &Step<'_>) -> Tried<()> {
        let (to, id) = (step.to, step.to.id);
        for index in &self.unindexed {
            run(
                connection,
                id,
                &to.name,
                &format!("DROP INDEX {}", quoted(index)),
            )?;
        }
        let filled = |at: &usize| {
            let column = to.columns.get(*at);
            !to.is_key(*at)
                && column.is_some_and(|column| {
                    column.nullable || column.default.as_ref().and_then(literal).is_some()
                })
        };
        self.rebuild |= !self.adds.iter().all(filled);
        if !self.rebuild {
            let simple = self.alter(connection, step);
            match simple {
                Err(Stop::Refused(..)) => {
                    run(
                        connection,
                        id,
                        &to.name,
                        "ROLLBACK TO branchline_alter; RELEASE branchline_alter",
                    )?;
                }
                other => return other,
            }
        }
        self.anew(connection, step)
    }

    /// Adds and drops columns in the table as it is.
    fn alter(&self, connection: &Connection, step: &Step<'_>) -> Tried<()> {
        let (to, id) = (step.to, step.to.id);
        let table = quoted(&to.name);
        run(connection, id, &to.name, "SAVEPOINT branchline_alter")?;
        for column in self.adds.iter().filter_map(|&at| to.columns.get(at)) {
            let definition = ddl::column_definition(column, false, false);
            run(
                connection,
                id,
                &to.name,
                &format!("ALTER TABLE {table} ADD COLUMN {definition}"),
            )?;
        }
        for name in &self.drops {
            run(
                connection,
                id,
                &to.name,
                &format!("ALTER TABLE {table} DROP COLUMN {}", quoted(name)),
            )?;
        }
        run(connection, id, &to.name, "RELEASE branchline_alter")
    }

    /// Makes the table anew.
    fn anew(&mut self, connection: &Connection, step: &Step<'_>) -> Tried<()> {
        let (to, id) = (step.to, step.to.id);
        let drops = self.drops.clone();
        let dropped = |part: &Part| drops.iter().any(|name| part.mentions(name));
        self.definition.columns.retain(|column| {
            !drops
                .iter()
                .any(|name| name.eq_ignore_ascii_case(&column.name))
        });
        // A reference mentions columns of its parent too: only its own count.
        let own = |part: &Part| match part.what {
            What::Reference => part
                .columns()
                .iter()
                .any(|name| drops.iter().any(|gone| gone.eq_ignore_ascii_case(name))),
            _ => dropped(part),
        };
        self.definition.constraints.retain(|part| !own(part));
        for &at in &self.adds {
            self.definition.columns.extend(added(to, at));
        }
        let kept = kept(connection, to, &drops)?;
        let sequence: Option<i64> = connection
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = ?1 COLLATE NOCASE",
                [&to.name],
                |row| row.get(0),
            )
            .optional()
            .unwrap_or(None);
        let aside = format!("branchline_new_{id}");
        let creation = self.definition.creation(&quoted(&aside));
        run(connection, id, &to.name, &creation)?;
        self.copy(connection, step, &aside)?;
        renaming_quietly(connection, || {
            let (table, aside) = (quoted(&to.name), quoted(&aside));
            let sql = format!("DROP TABLE {table}; ALTER TABLE {aside} RENAME TO {table}");
            run(connection, id, &to.name, &sql)
        })?;
        for sql in kept {
            run(connection, id, &to.name, &sql)?;
        }
        if let Some(sequence) = sequence.filter(|_| self.numbers()) {
            let name = text(&to.name);
            let sql = format!(
                "DELETE FROM sqlite_sequence WHERE name = {name}; INSERT INTO sqlite_sequence(name, seq) VALUES ({name}, {sequence})"
            );
            run(connection, id, &to.name, &sql)?;
        }
        Ok(())
    }

    fn numbers(&self) -> bool {
        let mut parts = self
            .definition
            .columns
            .iter()
            .flat_map(|column| &column.parts);
        parts.any(|part| part.what == What::Primary && part.mentions("AUTOINCREMENT"))
    }
}

/// A new column as [`ddl`] writes it. The key itself is said where all its columns are.
fn added(to: &Table, at: usize) -> Option<Written> {
    let column = to.columns.get(at)?;
    let numbered = numbered_key(to) == Some(at);
    let definition = ddl::column_definition(column, numbered, to.is_key(at));
    let parsed = Definition::parse(&format!("CREATE TABLE t ({definition})"))?;
    parsed.columns.into_iter().next()
}

/// The texts of the application's indexes and triggers on a table, but for what goes with dropped columns.
fn kept(connection: &Connection, to: &Table, drops: &[String]) -> Tried<Vec<String>> {
    let mut all = connection
        .prepare(
            "SELECT type, sql FROM sqlite_master WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger')
             AND sql IS NOT NULL ORDER BY type, rowid",
        )
        .map_err(failure)?;
    let texts: Vec<(String, String)> = all
        .query_map([&to.name], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .map_err(failure)?;
    let goes = |(kind, sql): &(String, String)| {
        let part = Part::new(What::Check, sql.clone());
        kind == "index" && drops.iter().any(|name| part.mentions(name))
    };
    Ok(texts
        .into_iter()
        .filter(|one| !goes(one))
        .map(|(_, sql)| sql)
        .collect())
}

/// Adds unique constraints and indexes that are missing, as indexes.
fn index(connection: &Connection, step: &Step<'_>) -> Tried<()> {
    let (to, id) = (step.to, step.to.id);
    let Some(live) = Live::find(connection, &to.name)? else {
        return Ok(());
    };
    let same = |a: &[&str], b: &[String]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.eq_ignore_ascii_case(b))
    };
    for unique in &to.unique {
        let columns = names_of(to, unique);
        let stands = live.unique_columns().any(|set| {
            same(
                &set.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
                &columns,
            )
        });
        if !stands {
            run(
                connection,
                id,
                &to.name,
                &ddl::index_definition(connection, to, unique, true)?,
            )?;
        }
    }
    for index in &to.indexes {
        let columns = names_of(to, index);
        if !live.plain_indexes().any(|set| same(&set, &columns)) {
            run(
                connection,
                id,
                &to.name,
                &ddl::index_definition(connection, to, index, false)?,
            )?;
        }
    }
    Ok(())
}

/// The numbers of a table's columns by their new names; `None` where one is not the plan's.
pub(super) fn numbers(step: &Step<'_>, named: &[String]) -> Option<Vec<u32>> {
    let drops = step.columns.drops_renamed(step.to);
    let number = |name: &String| {
        let stays = step
            .to
            .columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name));
        let goes = || {
            let at = drops
                .iter()
                .position(|dropped| dropped.eq_ignore_ascii_case(name))?;
            let was = step.columns.drops.get(at)?;
            step.former?
                .columns
                .iter()
                .find(|column| column.name == *was)
        };
        stays.or_else(goes).map(|column| column.id)
    };
    named.iter().map(number).collect()
}
