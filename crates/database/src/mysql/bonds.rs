//! Keys, unique constraints, indexes and foreign keys on their way to another schema version.

use std::collections::BTreeMap;

use branchline_core::port::DbResult;
use branchline_core::schema::{Column, ForeignKey, Schema, Table, TableId};

use super::binding::{add, drop_key, unless_refused};
use super::catalog::{self, Index, Reference};
use super::connection::{Flavour, MysqlDatabase};
use super::ddl::{self, ident, indexed};
use super::evolve::Step;
use super::layout::declared;
use super::literal::text_literal;
use crate::lineage::{self, Stop, Tried, links, names_of, stop};

/// Drops the foreign keys one of whose ends changes its type: it could not, not even where both do. They come back with
/// their tables. In MySQL also those whose parent's key goes.
pub(super) async fn loosen(db: &mut MysqlDatabase, steps: &[Step<'_>]) -> DbResult<()> {
    let retyped = |table: &String, names: &[String]| {
        let step = steps.iter().find(|step| step.to.name == *table)?;
        let mut columns = step.to.columns.iter().enumerate();
        Some(columns.any(|(at, column)| {
            step.source(at).is_some_and(|(live, here)| {
                let was = step.was(column, live, here, indexed(step.to).contains(&at));
                names.contains(&live.name) && !step.stays(at, column, here, &was)
            })
        }))
    };
    let unkeyed = |key: &Reference| {
        let step = steps.iter().find(|step| step.to.name == key.parent)?;
        let named = key.parent_columns.iter().map(|name| becomes(step, name));
        let named: Option<Vec<&str>> = named.map(|column| Some(column?.name.as_str())).collect();
        let mut sets = std::iter::once(&step.to.key).chain(&step.to.unique);
        Some(
            !sets.any(|set| {
                Some(names_of(step.to, set).iter().map(String::as_str).collect()) == named
            }),
        )
    };
    for key in catalog::foreign_keys(db).await? {
        let within = steps.iter().any(|step| step.to.name == key.child);
        if db.flavour == Flavour::MySql && within && unkeyed(&key) == Some(true) {
            drop_key(db, &key).await?;
            continue;
        }
        let child = retyped(&key.child, &key.columns);
        let parent = retyped(&key.parent, &key.parent_columns);
        if let (Some(child), Some(parent)) = (child, parent)
            && (child || parent)
        {
            drop_key(db, &key).await?;
        }
    }
    Ok(())
}

/// The indexes and foreign keys of all tables; each look reads the catalogue from end to end.
pub(super) struct Bonds {
    pub(super) indexes: BTreeMap<String, Vec<Index>>,
    pub(super) references: Vec<Reference>,
}

impl Bonds {
    pub(super) async fn look(db: &mut MysqlDatabase) -> DbResult<Self> {
        Ok(Self {
            indexes: catalog::indexes(db).await?,
            references: catalog::foreign_keys(db).await?,
        })
    }
}

/// Gives the foreign keys that [`loosen`] dropped back to tables that stay as they were.
pub(super) async fn fasten_again(
    db: &mut MysqlDatabase,
    from: &Schema,
    refused: &BTreeMap<TableId, String>,
) -> DbResult<()> {
    if refused.is_empty() {
        return Ok(());
    }
    let (there, tables) = (catalog::foreign_keys(db).await?, ddl::tables(db).await?);
    let stays = |table: &&Table| refused.contains_key(&table.id) && tables.contains(&table.name);
    for table in from.tables.iter().filter(stays) {
        for key in &table.foreign_keys {
            let stands = there
                .iter()
                .any(|one| one.child == table.name && one.columns == names_of(table, &key.columns));
            if !stands && tables.contains(&key.parent) {
                let done = add(db, table, key).await;
                unless_refused(done, &table.name, "a foreign key could not be made again")?;
            }
        }
    }
    Ok(())
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
pub(super) fn keys(bonds: &Bonds, step: &Step<'_>, parts: &mut Vec<String>) {
    let to = step.to;
    let present: Vec<&Index> = bonds
        .indexes
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
    let rekeyed = primary.and_then(|index| renamed(index)).as_ref() != Some(&key);
    if rekeyed {
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
    // The primary key may have served a foreign key that stays.
    let standing = |columns: &&Vec<String>| {
        let mut own = bonds.references.iter().filter(|one| one.child == to.name);
        own.any(|one| {
            let present = one.columns.iter().map(|name| becomes(step, name));
            present.eq(columns
                .iter()
                .map(|name| step.to.columns.iter().find(|c| c.name == *name)))
        })
    };
    let served = |columns: &Vec<String>| {
        let sets = to.unique.iter().map(|unique| names_of(to, unique));
        key.starts_with(columns)
            || kept.iter().any(|(named, _)| named.starts_with(columns))
            || sets.into_iter().any(|named| named.starts_with(columns))
    };
    for columns in bound.iter().filter(standing) {
        if rekeyed && !served(columns) {
            let named: Vec<String> = columns.iter().map(|name| ident(name)).collect();
            parts.push(format!("ADD INDEX ({})", named.join(", ")));
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
}

/// Foreign keys that go, as parts of an `ALTER`, and those that come.
pub(super) async fn references<'s>(
    db: &mut MysqlDatabase,
    bonds: &Bonds,
    (from, goal): (&Schema, &Schema),
    step: &Step<'s>,
    parts: &mut Vec<String>,
) -> Tried<Vec<&'s ForeignKey>> {
    let to = step.to;
    let mut present = Vec::new();
    present.extend(bonds.references.iter().filter(|key| key.child == to.name));
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
        let wanted = to.foreign_keys.iter().position(|one| {
            let own: Vec<u32> = lineage::numbers_of(to, &one.columns);
            Some(own) == columns
                && one.parent == key.parent
                && action(&one.on_delete) == action(&key.on_delete)
                && action(&one.on_update) == action(&key.on_update)
        });
        if wanted.is_some() {
            standing.extend(wanted);
        } else if known
            .iter()
            .any(|link| Some(&link.columns) == columns.as_ref())
        {
            parts.push(format!("DROP FOREIGN KEY {}", ident(&key.name)));
        }
    }
    let comes = |(at, key): &(usize, &ForeignKey)| {
        !standing.contains(at) && goal.table_named(&key.parent).is_some()
    };
    let keys = to.foreign_keys.iter().enumerate().filter(comes);
    let coming: Vec<&ForeignKey> = keys.map(|(_, key)| key).collect();
    if coming.is_empty() {
        return Ok(coming);
    }
    let waits = db
        .rows(format!(
            "SELECT 1 FROM branchline_created WHERE name = {}",
            text_literal(&to.name)
        ))
        .await?;
    if !waits.is_empty() {
        return Ok(Vec::new());
    }
    for key in &coming {
        obeyed(db, step, key).await?;
    }
    Ok(coming)
}

/// Whether the rows obey a foreign key that comes. Columns that come too hold nothing real yet.
async fn obeyed(db: &mut MysqlDatabase, step: &Step<'_>, key: &ForeignKey) -> Tried<()> {
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
    let looked = db.rows_on(&step.to.name, sql).await;
    let broken = match looked.map_err(|error| stop(step.to.id, error)) {
        Ok(broken) => broken,
        // What cannot be compared (two collations) cannot be bound either, and the server will say so.
        Err(Stop::Refused(..)) => return Ok(()),
        Err(failed) => return Err(failed),
    };
    if broken.is_empty() {
        return Ok(());
    }
    let reason = format!("a row refers to one that is not in table `{}`", key.parent);
    Err(Stop::Refused(step.to.id, reason))
}
