//! Which table and which column is the one of before: by its lasting name, its name, what a person said, or a guess.

use std::collections::BTreeMap;

use super::Renamed;
use crate::port::{Inspection, Origin};
use crate::schema::{Schema, Table, TableId};

/// Which found table each shared table is now, by the shared table's number.
pub(super) fn match_tables<'f>(
    present: &Schema,
    origins: &BTreeMap<String, Origin>,
    found: &'f Inspection,
    renamed: &[Renamed],
) -> BTreeMap<TableId, &'f Table> {
    let named = |name: &str| found.tables.iter().find(|table| table.name == name);
    let mut matched: BTreeMap<TableId, &Table> = BTreeMap::new();
    for table in &present.tables {
        if let Some(now) = named(&table.name) {
            matched.insert(table.id, now);
        }
    }
    let lost: Vec<&Table> = present
        .tables
        .iter()
        .filter(|table| !matched.contains_key(&table.id))
        .collect();
    for table in &lost {
        let free = |now: &&Table| !matched.values().any(|taken| taken.name == now.name);
        let said = renamed
            .iter()
            .find(|said| said.table == table.name && said.column.is_none());
        let same_origin = |now: &&Table| {
            let (was, is) = (origins.get(&table.name), found.origins.get(&now.name));
            was.zip(is).is_some_and(|(was, is)| was.table == is.table)
        };
        let alike = |now: &&Table| {
            let columns = |table: &Table| {
                let columns = table.columns.iter();
                columns
                    .map(|column| (column.name.clone(), column.kind.clone()))
                    .collect::<Vec<_>>()
            };
            columns(now) == columns(table)
        };
        // The capture goes with a table that is renamed; only a rebuild leaves nothing but the columns to go by.
        let captured = found.captured.get(&table.id);
        let captured = captured.filter(|name| {
            found
                .tables
                .iter()
                .filter(free)
                .any(|now| now.name == **name)
        });
        let guessed = |now: &&Table| {
            found.origins.is_empty() && captured.is_none() && lost.len() == 1 && alike(now)
        };
        let mut candidates = found.tables.iter().filter(free).filter(|now| {
            said.map_or_else(
                || same_origin(now) || captured == Some(&now.name) || guessed(now),
                |said| said.to == now.name,
            )
        });
        if let (Some(now), None) = (candidates.next(), candidates.next()) {
            matched.insert(table.id, now);
        }
    }
    matched
}

/// Which found column each column is now, and whether that is a guess.
pub(super) fn match_columns(
    was: &Table,
    now: &Table,
    origins: (Option<&Origin>, Option<&Origin>),
    renamed: &[Renamed],
) -> (BTreeMap<usize, usize>, bool) {
    let mut pairs = BTreeMap::new();
    let unchanged = was.columns.len() == now.columns.len()
        && was
            .columns
            .iter()
            .all(|column| now.columns.iter().any(|one| one.name == column.name));
    // A column that was made anew under the name of one that was dropped takes its place; two that swapped their names did
    // not.
    let same = |before: &Origin, after: &Origin| {
        let mut columns = after.columns.iter();
        columns.all(|origin| before.columns.contains(origin))
    };
    if let (Some(before), Some(after)) = origins
        && before.table == after.table
        && before.columns.len() == was.columns.len()
        && (!unchanged || same(before, after))
    {
        for (at, origin) in before.columns.iter().enumerate() {
            if let Some(place) = after.columns.iter().position(|one| one == origin) {
                pairs.insert(at, place);
            }
        }
        return (pairs, false);
    }
    for (at, column) in was.columns.iter().enumerate() {
        let said = renamed.iter().find(|said| {
            said.table == was.name && said.column.as_deref() == Some(column.name.as_str())
        });
        let name = said.map_or(&column.name, |said| &said.to);
        if let Some(place) = now.columns.iter().position(|one| one.name == *name) {
            pairs.insert(at, place);
        }
    }
    // One column of the same kind with another name in the same place: renamed, as far as can be told.
    let gone: Vec<usize> = (0..was.columns.len())
        .filter(|at| !pairs.contains_key(at))
        .collect();
    let fresh: Vec<usize> = (0..now.columns.len())
        .filter(|place| !pairs.values().any(|taken| taken == place))
        .collect();
    let mut guessed = false;
    if let ([at], [place]) = (gone.as_slice(), fresh.as_slice())
        && let (Some(old), Some(new)) = (was.columns.get(*at), now.columns.get(*place))
        && (&old.kind, old.nullable) == (&new.kind, new.nullable)
        && at == place
    {
        pairs.insert(*at, *place);
        guessed = true;
    }
    (pairs, guessed)
}
