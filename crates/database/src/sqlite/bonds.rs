//! Foreign keys of a table on its way to another schema version.

use branchline_core::schema::{ForeignKey, Schema};
use rusqlite::Connection;

use super::error::failure;
use super::evolve::Step;
use super::rebuild::numbers;
use crate::lineage::{Link, Stop, Tried, names_of};

/// Whether the rows obey the foreign keys that came. Those of columns that came too hold nothing real yet.
pub(super) fn obeyed(connection: &Connection, step: &Step<'_>, bound: &[ForeignKey]) -> Tried<()> {
    let (to, id) = (step.to, step.to.id);
    let old = |key: &&ForeignKey| {
        let new = |at: &u16| {
            step.columns
                .sources
                .get(usize::from(*at))
                .is_none_or(Option::is_none)
        };
        !key.columns.iter().any(new)
    };
    let bound: Vec<&ForeignKey> = bound.iter().filter(old).collect();
    if bound.is_empty() {
        return Ok(());
    }
    let broken: Vec<String> = connection
        .prepare("SELECT DISTINCT parent FROM pragma_foreign_key_check(?1)")
        .and_then(|mut all| all.query_map([&to.name], |row| row.get(0))?.collect())
        .map_err(failure)?;
    match broken.iter().find(|parent| {
        bound
            .iter()
            .any(|key| key.parent.eq_ignore_ascii_case(parent))
    }) {
        Some(parent) => Err(Stop::Refused(
            id,
            format!("a row refers to one that is not in table `{parent}`"),
        )),
        None => Ok(()),
    }
}

/// A foreign key as it stands, by numbers. A parent that is gone is known by its former name.
pub(super) fn link(
    goal: &Schema,
    from: &Schema,
    step: &Step<'_>,
    key: &ForeignKey,
) -> Option<Link> {
    let named = |schema: &'_ Schema| {
        let parent = schema
            .tables
            .iter()
            .find(|table| table.name.eq_ignore_ascii_case(&key.parent))?;
        let number = |name: &String| {
            parent
                .columns
                .iter()
                .find(|one| one.name.eq_ignore_ascii_case(name))
                .map(|one| one.id)
        };
        Some((
            parent.id,
            key.parent_columns
                .iter()
                .map(number)
                .collect::<Option<Vec<_>>>()?,
        ))
    };
    let (parent, parent_columns) = named(goal).or_else(|| named(from))?;
    Some(Link {
        columns: numbers(step, &names_of(&step.live, &key.columns))?,
        parent,
        parent_columns,
        on_delete: key.on_delete.clone(),
        on_update: key.on_update.clone(),
    })
}
