//! Following a schema version. Each statement of DDL commits by itself here: so a table changes in one `ALTER TABLE`,
//! which is done wholly or not at all, after its values have been tried out in a temporary table, and a run that was cut
//! off is taken up by the next, which looks at what is there. Names that swap show in nothing: what a table was like
//! before is noted before it changes.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::port::{DatabaseError, DbResult, Evolution, Purpose};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::Type;

use super::binding::{Late, add_late, addition, captured_before, drop_key, unless_refused};
use super::bonds::{Bonds, fasten_again, keys, loosen, references};
use super::books;
use super::capture::{self, patiently};
use super::catalog::{self, Here};
use super::checks;
use super::column::changed;
use super::connection::MysqlDatabase;
use super::ddl::{self, Dialect, ident, indexed};
use super::layout::Declared;
use super::literal::text_literal;
use super::retype::{check, lengths};
use super::types::serves;
use super::{binding, rekey, shape, still};
use crate::checks::Made;
use crate::lineage::{self, Columns, Known, Stop, Tried, filling, in_order, names_of, stop};

/// A shared table on its way.
pub(super) struct Step<'s> {
    /// What it was made last: the version before, or the new one where that is done.
    pub(super) former: Option<&'s Table>,
    /// As the version before has it.
    pub(super) before: Option<&'s Table>,
    pub(super) to: &'s Table,
    /// As it is now, under its present names.
    pub(super) live: Table,
    declared: Vec<Declared>,
    pub(super) columns: Columns,
    /// What is remembered once it is done.
    marked: Vec<u8>,
    /// That is remembered already.
    known: bool,
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
    let (steps, mut evolution) = done?;
    db.open(Purpose::Load).await?;
    evolution.untaken = still::told(db).await?;
    for step in steps.iter().filter(|step| step.differs()) {
        let Some(former) = step.former else { continue };
        rekey::follow(db, former, step.to).await?;
        let notes = books::notes(db, former, None).await?;
        let (gone, set): (Vec<_>, Vec<_>) = lineage::moved_notes(former, step.to, notes)
            .into_iter()
            .partition(|(_, note)| note.is_none());
        books::set_notes(db, former, &gone).await?;
        books::set_notes(db, step.to, &set).await?;
    }
    for step in steps.iter().filter(|step| !step.known) {
        books::set_meta(db, &lineage::mark(step.to.id), Some(&step.marked)).await?;
    }
    let over: Vec<String> = steps.iter().map(|step| begun(step.to.id)).collect();
    books::clear_metas(db, &over).await?;
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
    capture::prepare(db).await?;
    let here = catalog::look(db).await?;
    let marks = books::metas(db, &["evolved.", "evolving."]).await?;
    let captured = capture::captured_tables(db).await?;
    let there: BTreeSet<String> = here.declared.keys().cloned().collect();
    let places = lineage::tables(from, to, &there, &captured);
    let mut steps = Vec::new();
    for table in &to.tables {
        let Some(name) = places.get(&table.id) else {
            continue;
        };
        let made = step(db, from, table, name, &here, &marks).await;
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
    drop_tables(db, (from, to), dropped, &places, &mut refused).await?;
    let renamed = rename_tables(db, &places, &mut steps, &mut refused).await?;
    let mut goal = to.clone();
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    create_tables(db, from, &goal, &mut refused).await?;
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    loosen(db, &steps).await?;
    let (mut left, mut late) = (Vec::new(), Vec::new());
    let mut bonds = Bonds::look(db).await?;
    let mut now = under_way(from, &steps);
    for step in steps {
        let done = alter(db, &bonds, (from, &goal), &step, &now).await;
        if !matches!(done, Ok((false, _))) {
            bonds = Bonds::look(db).await?;
        }
        match done {
            Ok((changed, keys)) => {
                put(&mut now, step.to.clone());
                if changed {
                    binding::captured(db, &now, &bonds.references, Some(step.to)).await?;
                }
                late.extend(keys);
                left.push(step);
            }
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Refused(id, reason)) => {
                // It gets its former name back.
                if let Some(was) = renamed.get(&id) {
                    let sql = format!("RENAME TABLE {} TO {}", ident(&step.to.name), ident(was));
                    let back = patiently(db, was, &sql).await;
                    unless_refused(back, was, "a table could not get its former name back")?;
                    if let Some(former) = from.table(id) {
                        put(&mut now, former.clone());
                    }
                }
                refused.insert(id, reason);
            }
        }
    }
    let mut made = Made::default();
    for step in &left {
        match checks::make(db, step).await {
            Ok(done) => made.extend(done),
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Refused(id, reason)) => drop(refused.insert(id, reason)),
        }
    }
    let mut unbound = add_late(db, &goal, |id| refused.contains_key(&id), &late).await?;
    unbound.extend(made.never);
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    let here = catalog::look(db).await?;
    for (id, error) in here.misfits(&goal) {
        refused.insert(id, error.to_string());
    }
    goal.tables.retain(|table| !refused.contains_key(&table.id));
    left.retain(|step| !refused.contains_key(&step.to.id));
    // A table that is left out keeps its capture.
    let mut rest = goal.clone();
    let kept = from
        .tables
        .iter()
        .filter(|table| refused.contains_key(&table.id));
    rest.tables.extend(kept.cloned());
    let misfits = here.misfits(&rest).into_iter();
    let misfits: BTreeSet<TableId> = misfits.map(|(id, _)| id).collect();
    rest.tables.retain(|table| !misfits.contains(&table.id));
    fasten_again(db, from, &refused).await?;
    capture::install_on_fitting(db, &rest).await?;
    let found = left.iter().flat_map(|step| {
        step.columns
            .found
            .iter()
            .map(|&column| (step.to.id, column))
    });
    let found = found.collect();
    let refused = refused.into_iter().collect();
    let told = Evolution {
        refused,
        found,
        unbound,
        untaken: Vec::new(),
        unmade: made.unmade,
    };
    Ok((left, told))
}

/// The tables as the capture names them in the midst of a step: renamed already, and else as they were.
fn under_way(from: &Schema, steps: &[Step<'_>]) -> Schema {
    let mut now = from.clone();
    for step in steps {
        let former = step.former.map(|former| Table {
            name: step.to.name.clone(),
            ..former.clone()
        });
        if let Some(former) = former {
            put(&mut now, former);
        }
    }
    now
}

fn put(schema: &mut Schema, table: Table) {
    schema.tables.retain(|other| other.id != table.id);
    schema.tables.push(table);
}

async fn step<'s>(
    db: &mut MysqlDatabase,
    from: &'s Schema,
    to: &'s Table,
    name: &str,
    here: &Here,
    marks: &BTreeMap<String, Vec<u8>>,
) -> Tried<Step<'s>> {
    let Some(live) = here.found.tables.iter().find(|table| table.name == name) else {
        let why = here
            .found
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
    let known = marks.get(&lineage::mark(to.id)) == Some(&marked);
    // Begun, and not what it was then: its one statement has been run.
    let begun = marks.get(&begun(to.id)).and_then(|noted| {
        let (version, before) = noted.split_at_checked(marked.len())?;
        (version == marked).then(|| before.to_vec())
    });
    let changed = match begun {
        Some(before) => shape::written(db, name).await?.as_bytes() != before,
        None => false,
    };
    let former = if changed || known {
        Some(to)
    } else {
        from.table(to.id)
    };
    let declared = here.declared.get(name).cloned().unwrap_or_default();
    let same = |planned: &Type, here: &Type| planned == here || enums(planned, here);
    Ok(Step {
        former,
        before: from.table(to.id),
        to,
        live: live.clone(),
        declared,
        columns: Columns::of(former, to, live, &Known::new(), same),
        marked,
        known,
    })
}

fn enums(a: &Type, b: &Type) -> bool {
    matches!((a, b), (Type::Enum { labels: a, .. }, Type::Enum { labels: b, .. }) if a == b)
}

impl Step<'_> {
    /// Whether the version says something else of the table than the one before.
    fn differs(&self) -> bool {
        self.former != Some(self.to)
    }

    /// The present column that a column of the version is made of.
    pub(super) fn source(&self, at: usize) -> Option<(&Column, &Declared)> {
        let name = self.columns.sources.get(at)?.as_ref()?;
        let column = self.live.columns.iter().find(|one| one.name == *name)?;
        Some((column, self.declared.iter().find(|one| one.name == *name)?))
    }

    pub(super) fn former(&self, column: &Column) -> Option<&Column> {
        self.former?.columns.iter().find(|one| one.id == column.id)
    }

    /// What a column's values are now.
    pub(super) fn was(
        &self,
        column: &Column,
        live: &Column,
        here: &Declared,
        indexed: bool,
    ) -> Type {
        let former = self.former(column).map(|former| &former.kind);
        former
            .filter(|kind| serves(kind, here, indexed))
            .unwrap_or(&live.kind)
            .clone()
    }

    /// The columns that get other names, with these.
    pub(super) fn renamed(&self) -> Vec<(&str, &str)> {
        let names = self.columns.sources.iter().zip(&self.to.columns);
        let names = names.filter_map(|(source, column)| Some((source.as_deref()?, column)));
        names
            .filter(|(source, column)| *source != column.name)
            .map(|(source, column)| (source, column.name.as_str()))
            .collect()
    }

    /// Whether a column's declaration stays as it is.
    pub(super) fn stays(&self, at: usize, column: &Column, here: &Declared, was: &Type) -> bool {
        let indexed = indexed(self.to).contains(&at);
        let same = *was == column.kind || enums(was, &column.kind);
        same && serves(&column.kind, here, indexed)
    }
}

async fn drop_tables(
    db: &mut MysqlDatabase,
    (from, to): (&Schema, &Schema),
    dropped: &[TableId],
    places: &BTreeMap<TableId, String>,
    refused: &mut BTreeMap<TableId, String>,
) -> DbResult<()> {
    let gone = dropped.iter().filter(|id| to.table(**id).is_none());
    for (&id, name) in gone.filter_map(|id| Some((id, places.get(id)?))) {
        for key in catalog::foreign_keys(db).await? {
            let of_plan = places.values().any(|name| *name == key.child);
            if key.parent == *name && key.child != *name && of_plan {
                drop_key(db, &key).await?;
            }
        }
        match drop_table(db, from, id, name).await {
            Ok(()) => {}
            Err(Stop::Refused(id, reason)) => drop(refused.insert(id, reason)),
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Ok(())
}

async fn drop_table(db: &mut MysqlDatabase, from: &Schema, id: TableId, name: &str) -> Tried<()> {
    let held = still::hold(db, from, id, name).await?;
    let sql = format!("DROP TABLE {}", ident(name));
    let done = patiently(db, name, &sql).await;
    still::let_go(db, held, id, done.is_err()).await?;
    done.map_err(|error| stop(id, error))
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
    from: &Schema,
    goal: &Schema,
    refused: &mut BTreeMap<TableId, String>,
) -> DbResult<()> {
    let there = ddl::tables(db).await?;
    let stands = |table: &Table| there.contains(&table.name) && from.table(table.id) == Some(table);
    for table in goal.tables.iter().filter(|table| !stands(table)) {
        let alone = Schema {
            tables: vec![table.clone()],
            ..*goal
        };
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

/// Makes a table what the version says, in one statement. Whether that took a change, and the foreign keys that the
/// server did not take with the rest.
async fn alter<'s>(
    db: &mut MysqlDatabase,
    bonds: &Bonds,
    versions: (&Schema, &Schema),
    step: &Step<'s>,
    now: &Schema,
) -> Tried<(bool, Vec<Late<'s>>)> {
    let (to, id) = (step.to, step.to.id);
    let (mut parts, mut afterwards) = (Vec::new(), Vec::new());
    let coming = references(db, bonds, versions, step, &mut parts).await?;
    keys(bonds, step, &mut parts);
    let unchecked = checks::follow(db, step, &mut parts).await?;
    let definition = match unchecked.is_empty() {
        true => String::new(),
        false => shape::written(db, &to.name).await?,
    };
    for name in &step.columns.drops {
        parts.push(format!("DROP COLUMN {}", ident(name)));
    }
    let dialect = Dialect::of(db);
    let longest_texts = lengths(db, &to.name).await.map_err(Stop::Failed)?;
    for (at, column) in to.columns.iter().enumerate() {
        match step.source(at) {
            Some((live, here)) => {
                let definition = unchecked
                    .contains(&live.name)
                    .then_some(definition.as_str());
                let change = changed(&dialect, step, at, live, here, definition);
                if let Some((check, longest)) =
                    longest_texts.get(&live.name).filter(|_| change.is_some())
                {
                    parts.push(format!("DROP CHECK {}", ident(check)));
                    if change
                        .as_ref()
                        .is_some_and(|change| !change.contains(" CHECK ("))
                    {
                        let name = ident(&column.name);
                        parts.push(format!("ADD CHECK (CHAR_LENGTH({name}) <= {longest})"));
                    }
                }
                parts.extend(change);
            }
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
    if parts.is_empty() && coming.is_empty() {
        return Ok((false, Vec::new()));
    }
    let mut additions = Vec::new();
    for key in &coming {
        additions.push(addition(db, to, key).await?);
    }
    let named = coming.iter().map(|&key| {
        let columns = key.columns.iter().zip(names_of(to, &key.columns));
        let present = columns.map(|(&at, name)| match step.source(usize::from(at)) {
            Some((live, _)) => live.name.clone(),
            None => name,
        });
        (key, present.collect())
    });
    let prepared = captured_before(db, now, &bonds.references, to, named).await;
    prepared.map_err(Stop::Failed)?;
    // What it is like now, for a run that finds it after this one was cut off.
    let mut noted = step.marked.clone();
    noted.extend_from_slice(shape::written(db, &to.name).await?.as_bytes());
    books::set_meta(db, &begun(id), Some(&noted)).await?;
    let held = still::hold(db, versions.0, id, &to.name).await?;
    // Both ends of a reference change one after the other; that rows obey the new ones was looked at before.
    db.execute("SET SESSION foreign_key_checks = 0").await?;
    let change = |parts: &[String]| format!("ALTER TABLE {} {}", ident(&to.name), parts.join(", "));
    let all = change(&[parts.as_slice(), &additions].concat());
    let mut done = patiently(db, &to.name, &all).await;
    let mut late = Vec::new();
    let refused = |error| matches!(stop(id, error), Stop::Refused(..));
    if !coming.is_empty() && done.clone().is_err_and(refused) {
        let keys = coming.into_iter();
        late.extend(keys.map(|key| Late { table: to, key }));
        done = match parts.as_slice() {
            [] => Ok(()),
            parts => patiently(db, &to.name, &change(parts)).await,
        };
    }
    if done.is_ok() && !afterwards.is_empty() {
        let sql = format!("ALTER TABLE {} {}", ident(&to.name), afterwards.join(", "));
        done = patiently(db, &to.name, &sql).await;
    }
    still::let_go(db, held, id, done.is_err()).await?;
    db.execute("SET SESSION foreign_key_checks = 1").await?;
    done.map_err(|error| stop(id, error))?;
    // The server drops the index that a foreign key brought once another one serves.
    let all = catalog::indexes(db).await?;
    let there: Vec<&Vec<String>> = all
        .get(&to.name)
        .into_iter()
        .flatten()
        .map(|index| &index.columns)
        .collect();
    let bound: Vec<Vec<String>> = to
        .foreign_keys
        .iter()
        .map(|key| names_of(to, &key.columns))
        .collect();
    let missing = to.indexes.iter().filter(|index| {
        let named = names_of(to, index);
        !there.contains(&&named) && !bound.contains(&named)
    });
    let missing: Vec<String> = missing
        .map(|index| format!("ADD INDEX ({})", ddl::columns(to, index)))
        .collect();
    if !missing.is_empty() {
        let sql = format!("ALTER TABLE {} {}", ident(&to.name), missing.join(", "));
        let made = patiently(db, &to.name, &sql).await;
        made.map_err(|error| stop(id, error))?;
    }
    Ok((true, late))
}
