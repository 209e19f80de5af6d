//! Following a schema version. Each statement of DDL commits by itself here: so a table changes in one `ALTER TABLE`,
//! which is done wholly or not at all, after its values have been tried out in a temporary table, and a run that was cut
//! off is taken up by the next, which looks at what is there. Names that swap show in nothing: what a table was like
//! before is noted before it changes.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::port::{DatabaseError, DbResult, Evolution, Inspection, Purpose};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::{Type, canonical, convert, widens};

use super::books;
use super::capture::{self, patiently};
use super::catalog::{self, Index, Reference};
use super::connection::{Flavour, MysqlDatabase};
use super::ddl::{self, Dialect, ident, indexed};
use super::layout::{Declared, declared};
use super::literal::text_literal;
use super::types::{self, serves};
use super::{rekey, shape};
use crate::lineage::{self, Columns, Known, Stop, Tried, filling, in_order, links, names_of, stop};

/// Values compared at a time.
const PAGE: usize = 5000;

/// A shared table on its way.
pub(super) struct Step<'s> {
    pub(super) former: Option<&'s Table>,
    pub(super) to: &'s Table,
    /// As it is now, under its present names.
    live: Table,
    declared: Vec<Declared>,
    columns: Columns,
}

pub(super) async fn evolve(
    db: &mut MysqlDatabase,
    from: &Schema,
    to: &Schema,
    dropped: &[TableId],
) -> DbResult<Evolution> {
    if db.purpose() != Some(Purpose::Load) {
        return Err(DatabaseError::Other(
            "a schema version needs a transaction that was opened for loading".into(),
        ));
    }
    db.close(true).await?;
    let done = follow(db, from, to, dropped).await;
    db.execute("SET SESSION foreign_key_checks = 1").await?;
    db.forget_layouts();
    let (steps, evolution) = done?;
    db.open(Purpose::Load).await?;
    for step in &steps {
        let Some(former) = step.former else { continue };
        rekey::follow(db, former, step.to).await?;
        let notes = books::notes(db, former, None).await?;
        let (gone, set): (Vec<_>, Vec<_>) = lineage::moved_notes(former, step.to, notes)
            .into_iter()
            .partition(|(_, note)| note.is_none());
        books::set_notes(db, former, &gone).await?;
        books::set_notes(db, step.to, &set).await?;
    }
    for step in &steps {
        let mark = lineage::mark(step.to.id);
        books::set_meta(db, &mark, Some(&lineage::marked(step.to))).await?;
        books::set_meta(db, &begun(step.to.id), None).await?;
    }
    Ok(evolution)
}

/// Under which name is noted what a table was like before it was to change.
fn begun(id: TableId) -> String {
    format!("evolving.{id}")
}

async fn follow<'s>(
    db: &mut MysqlDatabase,
    from: &'s Schema,
    to: &'s Schema,
    dropped: &[TableId],
) -> DbResult<(Vec<Step<'s>>, Evolution)> {
    let mut refused: BTreeMap<TableId, String> = BTreeMap::new();
    let looked = catalog::inspect(db).await?;
    let columns = declared(db, None).await?;
    let captured = capture::captured_tables(db).await?;
    let there: BTreeSet<String> = columns.keys().cloned().collect();
    let places = lineage::tables(from, to, &there, &captured);
    let mut steps = Vec::new();
    for table in &to.tables {
        let Some(name) = places.get(&table.id) else {
            continue;
        };
        let made = step(db, from, table, name, &looked, &columns).await;
        let made = match made {
            Ok(step) => check(db, &step).await.map(|()| step),
            Err(stop) => Err(stop),
        };
        match made {
            Ok(step) => steps.push(step),
            Err(Stop::Refused(id, reason)) => drop(refused.insert(id, reason)),
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    drop_tables(db, to, dropped, &places, &mut refused).await?;
    let renamed = rename_tables(db, &places, &mut steps, &mut refused).await?;
    let mut goal = to.clone();
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    create_tables(db, &goal, &mut refused).await?;
    let mut left = Vec::new();
    for step in steps {
        match alter(db, from, &goal, &step).await {
            Ok(()) => left.push(step),
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Refused(id, reason)) => {
                // It gets its former name back.
                if let Some(was) = renamed.get(&id) {
                    let sql = format!("RENAME TABLE {} TO {}", ident(&step.to.name), ident(was));
                    patiently(db, was, &sql).await?;
                }
                refused.insert(id, reason);
            }
        }
    }
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    for (id, error) in catalog::misfits(db, &goal).await? {
        refused.insert(id, error.to_string());
    }
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    left.retain(|step| !refused.contains_key(&step.to.id));
    // A table that is left out keeps its capture.
    let mut captured = goal.clone();
    let kept = from
        .tables
        .iter()
        .filter(|table| refused.contains_key(&table.id));
    captured.tables.extend(kept.cloned());
    let misfits: Vec<TableId> = catalog::misfits(db, &captured)
        .await?
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    captured.tables.retain(|table| !misfits.contains(&table.id));
    capture::install(db, &captured).await?;
    let found = left.iter().flat_map(|step| {
        step.columns
            .found
            .iter()
            .map(|&column| (step.to.id, column))
    });
    let found = found.collect();
    let refused = refused.into_iter().collect();
    Ok((left, Evolution { refused, found }))
}

async fn step<'s>(
    db: &mut MysqlDatabase,
    from: &'s Schema,
    to: &'s Table,
    name: &str,
    looked: &Inspection,
    columns: &BTreeMap<String, Vec<Declared>>,
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
    let marked = lineage::marked(to);
    let done = books::meta(db, &lineage::mark(to.id)).await?;
    // Begun, and not what it was then: its one statement has been run.
    let begun = books::meta(db, &begun(to.id)).await?;
    let begun = begun.and_then(|noted| {
        let (version, before) = noted.split_at_checked(marked.len())?;
        (version == marked).then(|| before.to_vec())
    });
    let changed = match begun {
        Some(before) => shape::written(db, name).await?.as_bytes() != before,
        None => false,
    };
    let former = if changed || done.is_some_and(|done| done == marked) {
        Some(to)
    } else {
        from.table(to.id)
    };
    let declared = columns.get(name).cloned().unwrap_or_default();
    let same = |planned: &Type, here: &Type| planned == here || enums(planned, here);
    Ok(Step {
        former,
        to,
        live: live.clone(),
        declared,
        columns: Columns::of(former, to, live, &Known::new(), same),
    })
}

fn enums(a: &Type, b: &Type) -> bool {
    matches!((a, b), (Type::Enum { labels: a, .. }, Type::Enum { labels: b, .. }) if a == b)
}

impl Step<'_> {
    /// The present column that a column of the version is made of.
    fn source(&self, at: usize) -> Option<(&Column, &Declared)> {
        let name = self.columns.sources.get(at)?.as_ref()?;
        let column = self.live.columns.iter().find(|one| one.name == *name)?;
        Some((column, self.declared.iter().find(|one| one.name == *name)?))
    }

    fn former(&self, column: &Column) -> Option<&Column> {
        self.former?.columns.iter().find(|one| one.id == column.id)
    }

    /// What a column's values are now.
    fn was(&self, column: &Column, live: &Column, here: &Declared, indexed: bool) -> Type {
        let former = self.former(column).map(|former| &former.kind);
        former
            .filter(|kind| serves(kind, here, indexed))
            .unwrap_or(&live.kind)
            .clone()
    }

    /// Whether a column's declaration stays as it is.
    fn stays(&self, at: usize, column: &Column, here: &Declared, was: &Type) -> bool {
        let indexed = indexed(self.to).contains(&at);
        let same = *was == column.kind || enums(was, &column.kind);
        same && serves(&column.kind, here, indexed)
    }
}

/// Tries out on all different values whether they become what they become elsewhere.
async fn check(db: &mut MysqlDatabase, step: &Step<'_>) -> Tried<()> {
    let (to, dialect) = (step.to, Dialect::of(db));
    for (at, column) in to.columns.iter().enumerate() {
        let Some((live, here)) = step.source(at) else {
            continue;
        };
        let indexed = indexed(to).contains(&at);
        let was = step.was(column, live, here, indexed);
        if step.stays(at, column, here, &was) || (widens(&was, &column.kind) && was == live.kind) {
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
        db.execute(trial).await.map_err(failed)?;
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

/// A column's type as it is declared, with its collation.
fn whole(here: &Declared) -> String {
    if here.json {
        return "JSON".to_owned();
    }
    match &here.collation {
        Some(collation) => format!("{} COLLATE {collation}", here.whole),
        None => here.whole.clone(),
    }
}

async fn drop_tables(
    db: &mut MysqlDatabase,
    to: &Schema,
    dropped: &[TableId],
    places: &BTreeMap<TableId, String>,
    refused: &mut BTreeMap<TableId, String>,
) -> DbResult<()> {
    let gone = dropped.iter().filter(|id| to.table(**id).is_none());
    for (&id, name) in gone.filter_map(|id| Some((id, places.get(id)?))) {
        for key in catalog::foreign_keys(db).await? {
            if key.parent == *name
                && key.child != *name
                && places.values().any(|name| *name == key.child)
            {
                let sql = format!(
                    "ALTER TABLE {} DROP FOREIGN KEY {}",
                    ident(&key.child),
                    ident(&key.name)
                );
                patiently(db, &key.child, &sql).await?;
            }
        }
        match patiently(db, name, &format!("DROP TABLE {}", ident(name)))
            .await
            .map_err(|error| stop(id, error))
        {
            Ok(()) => {}
            Err(Stop::Refused(id, reason)) => drop(refused.insert(id, reason)),
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Renames tables, all at once. Returns the former names of those that can go back to them.
async fn rename_tables(
    db: &mut MysqlDatabase,
    places: &BTreeMap<TableId, String>,
    steps: &mut Vec<Step<'_>>,
    refused: &mut BTreeMap<TableId, String>,
) -> DbResult<BTreeMap<TableId, String>> {
    let mut back = BTreeMap::new();
    let pairs = steps
        .iter()
        .map(|step| (step.live.name.clone(), step.to.name.clone()))
        .collect();
    let parts: Vec<String> = in_order(pairs, "branchline_aside")
        .iter()
        .map(|(was, becomes)| format!("{} TO {}", ident(was), ident(becomes)))
        .collect();
    if parts.is_empty() {
        return Ok(back);
    }
    let done = patiently(db, "", &format!("RENAME TABLE {}", parts.join(", "))).await;
    let renamed = |step: &Step<'_>| step.live.name != step.to.name;
    match done.map_err(|error| stop(0, error)) {
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::Refused(_, reason)) => {
            for step in steps.iter().filter(|step| renamed(step)) {
                refused.insert(step.to.id, reason.clone());
            }
            steps.retain(|step| !renamed(step));
            return Ok(back);
        }
        Ok(()) => {}
    }
    let names: Vec<String> = steps.iter().map(|step| step.to.name.clone()).collect();
    for step in steps.iter_mut().filter(|step| renamed(step)) {
        let noted = format!(
            "UPDATE branchline_created SET name = {} WHERE name = {}",
            text_literal(&step.to.name),
            text_literal(&step.live.name)
        );
        db.execute(noted).await?;
        if !names.contains(&step.live.name) {
            back.insert(
                step.to.id,
                places.get(&step.to.id).cloned().unwrap_or_default(),
            );
        }
        step.live.name.clone_from(&step.to.name);
    }
    Ok(back)
}

async fn create_tables(
    db: &mut MysqlDatabase,
    goal: &Schema,
    refused: &mut BTreeMap<TableId, String>,
) -> DbResult<()> {
    for table in &goal.tables {
        let mut alone = goal.clone();
        alone.tables.retain(|one| one.id == table.id);
        match ddl::create_tables(db, &alone)
            .await
            .map_err(|error| stop(table.id, error))
        {
            Ok(_) => {}
            Err(Stop::Refused(id, reason)) => drop(refused.insert(id, reason)),
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Makes a table what the version says, in one statement.
async fn alter(db: &mut MysqlDatabase, from: &Schema, goal: &Schema, step: &Step<'_>) -> Tried<()> {
    let (to, id) = (step.to, step.to.id);
    let (mut parts, mut afterwards) = (Vec::new(), Vec::new());
    references(db, from, goal, step, &mut parts).await?;
    keys(db, step, &mut parts).await?;
    for name in &step.columns.drops {
        parts.push(format!("DROP COLUMN {}", ident(name)));
    }
    let dialect = Dialect::of(db);
    for (at, column) in to.columns.iter().enumerate() {
        match step.source(at) {
            Some((live, here)) => parts.extend(changed(&dialect, step, at, column, live, here)),
            None => {
                let value = filling(column, to.is_key(at));
                let definition = dialect.column(to, at);
                if column.default.is_some()
                    || value.is_null()
                    || definition.contains(" AUTO_INCREMENT")
                {
                    parts.push(format!("ADD COLUMN {definition}"));
                    continue;
                }
                let (declared, _) =
                    dialect.declaration(&column.kind, &column.name, indexed(to).contains(&at));
                let default = dialect.default(&column.kind, &declared, &value);
                parts.push(format!("ADD COLUMN {definition}{default}"));
                afterwards.push(format!("ALTER COLUMN {} DROP DEFAULT", ident(&column.name)));
            }
        }
    }
    if parts.is_empty() {
        return Ok(());
    }
    // What it is like now, for a run that finds it after this one was cut off.
    let mut noted = lineage::marked(to);
    noted.extend_from_slice(shape::written(db, &to.name).await?.as_bytes());
    books::set_meta(db, &begun(id), Some(&noted)).await?;
    // Both ends of a reference change one after the other; that rows obey the new ones was looked at before.
    db.execute("SET SESSION foreign_key_checks = 0").await?;
    let sql = format!("ALTER TABLE {} {}", ident(&to.name), parts.join(", "));
    let mut done = patiently(db, &to.name, &sql).await;
    if done.is_ok() && !afterwards.is_empty() {
        let sql = format!("ALTER TABLE {} {}", ident(&to.name), afterwards.join(", "));
        done = patiently(db, &to.name, &sql).await;
    }
    db.execute("SET SESSION foreign_key_checks = 1").await?;
    done.map_err(|error| stop(id, error))
}

/// What becomes of a column that is there.
fn changed(
    dialect: &Dialect,
    step: &Step<'_>,
    at: usize,
    column: &Column,
    live: &Column,
    here: &Declared,
) -> Option<String> {
    let to = step.to;
    let is_indexed = indexed(to).contains(&at);
    let was = step.was(column, live, here, is_indexed);
    let stays = step.stays(at, column, here, &was);
    let nullable = column.nullable && !to.is_key(at);
    let follows = step
        .former(column)
        .is_none_or(|former| former.default != column.default);
    let default_differs =
        (follows && live.default != column.default) || (!stays && live.default.is_some());
    if stays && nullable == here.nullable && !default_differs {
        let renamed = live.name != column.name;
        return renamed.then(|| {
            format!(
                "RENAME COLUMN {} TO {}",
                ident(&live.name),
                ident(&column.name)
            )
        });
    }
    let (declared, check) = if stays {
        (whole(here), String::new())
    } else {
        dialect.declaration(&column.kind, &column.name, is_indexed)
    };
    let null = if nullable { " NULL" } else { " NOT NULL" };
    let plain = live.default.is_some() || here.default.is_none();
    let default = match (&column.default, &here.default) {
        _ if here.extra.contains("auto_increment") => String::new(),
        (Some(value), _) if follows || plain => dialect.default(&column.kind, &declared, value),
        (None, Some(raw)) if !plain => format!(" DEFAULT {raw}"),
        (_, Some(raw)) if !follows && stays => format!(" DEFAULT {raw}"),
        _ => String::new(),
    };
    let numbered = here.extra.contains("auto_increment");
    let extra = if numbered && is_whole(&column.kind) {
        " AUTO_INCREMENT"
    } else {
        ""
    };
    let update = if here.extra.contains("on update") && stays {
        format!(" ON UPDATE CURRENT_TIMESTAMP({})", here.fraction)
    } else {
        String::new()
    };
    Some(format!(
        "CHANGE COLUMN {} {} {declared}{null}{default}{update}{extra}{check}",
        ident(&live.name),
        ident(&column.name)
    ))
}

fn is_whole(kind: &Type) -> bool {
    matches!(kind, Type::Int16 | Type::Int32 | Type::Int64)
}

/// The new name of a present column; `None` where it goes or is not the plan's.
fn becomes<'s>(step: &'s Step<'_>, name: &str) -> Option<&'s Column> {
    let mut all = step.to.columns.iter().zip(&step.columns.sources);
    all.find(|(_, source)| source.as_deref() == Some(name))
        .map(|(column, _)| column)
}

/// The number of a present column.
fn number(step: &Step<'_>, name: &str) -> Option<u32> {
    let goes = || {
        let drops = step.columns.drops.iter().any(|dropped| dropped == name);
        let mut columns = step.former.filter(|_| drops)?.columns.iter();
        columns.find(|column| column.name == name)
    };
    becomes(step, name).or_else(goes).map(|column| column.id)
}

/// Primary key, unique constraints and indexes.
async fn keys(db: &mut MysqlDatabase, step: &Step<'_>, parts: &mut Vec<String>) -> Tried<()> {
    let to = step.to;
    let all = catalog::indexes(db).await?;
    let present: Vec<&Index> = all
        .get(&to.name)
        .into_iter()
        .flatten()
        .filter(|index| !index.partial)
        .collect();
    let renamed = |index: &Index| -> Option<Vec<String>> {
        index
            .columns
            .iter()
            .map(|name| becomes(step, name).map(|column| column.name.clone()))
            .collect()
    };
    let key = names_of(to, &to.key);
    let primary = present.iter().find(|index| index.name == "PRIMARY");
    if primary.and_then(|index| renamed(index)).as_ref() != Some(&key) {
        if primary.is_some() {
            parts.push("DROP PRIMARY KEY".to_owned());
        }
        parts.push(format!("ADD PRIMARY KEY ({})", ddl::columns(to, &to.key)));
    }
    let bound: Vec<Vec<String>> = to
        .foreign_keys
        .iter()
        .map(|key| names_of(to, &key.columns))
        .collect();
    let mut kept: Vec<(Vec<String>, bool)> = Vec::new();
    for index in present.iter().filter(|index| index.name != "PRIMARY") {
        let numbers: Option<Vec<u32>> = index
            .columns
            .iter()
            .map(|name| number(step, name))
            .collect();
        let named = renamed(index);
        let has = |table: &Table| {
            let sets = if index.unique {
                &table.unique
            } else {
                &table.indexes
            };
            sets.iter()
                .any(|set| Some(lineage::numbers_of(table, set)) == numbers)
        };
        // The index that a foreign key brought stays behind when the key goes.
        let brought = |former: &Table| {
            let mut keys = former.foreign_keys.iter();
            !index.unique
                && keys.any(|key| Some(lineage::numbers_of(former, &key.columns)) == numbers)
        };
        let needed = named
            .as_ref()
            .is_some_and(|named| bound.iter().any(|columns| named.starts_with(columns)));
        let known = step
            .former
            .is_some_and(|former| has(former) || brought(former));
        match named {
            Some(named) if !known || has(to) || needed => kept.push((named, index.unique)),
            _ if known => parts.push(format!("DROP INDEX {}", ident(&index.name))),
            _ => {}
        }
    }
    for unique in &to.unique {
        if !kept.contains(&(names_of(to, unique), true)) {
            parts.push(format!("ADD UNIQUE ({})", ddl::columns(to, unique)));
        }
    }
    for index in &to.indexes {
        let named = names_of(to, index);
        if !kept.contains(&(named.clone(), false)) && !bound.contains(&named) {
            parts.push(format!("ADD INDEX ({})", ddl::columns(to, index)));
        }
    }
    Ok(())
}

/// Foreign keys that go, and those that come.
async fn references(
    db: &mut MysqlDatabase,
    from: &Schema,
    goal: &Schema,
    step: &Step<'_>,
    parts: &mut Vec<String>,
) -> Tried<()> {
    let to = step.to;
    let present: Vec<Reference> = catalog::foreign_keys(db)
        .await?
        .into_iter()
        .filter(|key| key.child == to.name)
        .collect();
    let action = |action: &str| match action {
        "RESTRICT" | "SET DEFAULT" => "NO ACTION".to_owned(),
        other => other.to_owned(),
    };
    let known = step
        .former
        .map_or_else(Vec::new, |former| links(from, former));
    let mut standing = Vec::new();
    for key in present {
        let columns: Option<Vec<u32>> = key.columns.iter().map(|name| number(step, name)).collect();
        let wanted = to.foreign_keys.iter().any(|one| {
            let own: Vec<u32> = lineage::numbers_of(to, &one.columns);
            Some(own) == columns
                && one.parent == key.parent
                && action(&one.on_delete) == action(&key.on_delete)
                && action(&one.on_update) == action(&key.on_update)
        });
        if wanted {
            standing.extend(columns);
        } else if known
            .iter()
            .any(|link| Some(&link.columns) == columns.as_ref())
        {
            parts.push(format!("DROP FOREIGN KEY {}", ident(&key.name)));
        }
    }
    let waits = db
        .rows(format!(
            "SELECT 1 FROM branchline_created WHERE name = {}",
            text_literal(&to.name)
        ))
        .await?;
    if !waits.is_empty() {
        return Ok(());
    }
    for key in &to.foreign_keys {
        let columns = lineage::numbers_of(to, &key.columns);
        if standing.contains(&columns) || goal.table_named(&key.parent).is_none() {
            continue;
        }
        obeyed(db, step, key).await?;
        parts.push(ddl::foreign_key(to, key));
    }
    Ok(())
}

/// Whether the rows obey a foreign key that comes. Columns that come too hold nothing real yet.
async fn obeyed(
    db: &mut MysqlDatabase,
    step: &Step<'_>,
    key: &branchline_core::schema::ForeignKey,
) -> Tried<()> {
    let own: Option<Vec<String>> = key
        .columns
        .iter()
        .map(|&at| step.columns.sources.get(usize::from(at)).cloned().flatten())
        .collect();
    let Some(own) = own else { return Ok(()) };
    let there = declared(db, Some(&key.parent))
        .await?
        .remove(&key.parent)
        .unwrap_or_default();
    // The parent's columns may get these names only now: then they are as they were.
    if !key
        .parent_columns
        .iter()
        .all(|name| there.iter().any(|one| one.name == *name))
    {
        return Ok(());
    }
    let joined: Vec<String> = own
        .iter()
        .zip(&key.parent_columns)
        .map(|(own, parent)| format!("c.{} = p.{}", ident(own), ident(parent)))
        .collect();
    let given: Vec<String> = own
        .iter()
        .map(|own| format!("c.{} IS NOT NULL", ident(own)))
        .collect();
    let sql = format!(
        "SELECT 1 FROM {} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {} p WHERE {}) LIMIT 1",
        ident(&step.to.name),
        given.join(" AND "),
        ident(&key.parent),
        joined.join(" AND ")
    );
    let broken = db
        .rows_on(&step.to.name, sql)
        .await
        .map_err(|error| stop(step.to.id, error))?;
    if broken.is_empty() {
        return Ok(());
    }
    let reason = format!("a row refers to one that is not in table `{}`", key.parent);
    Err(Stop::Refused(step.to.id, reason))
}
