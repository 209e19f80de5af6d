//! The next schema version: what is shared now, by what the head's database has and by the plan.

use std::collections::{BTreeMap, BTreeSet};

use super::matching::{match_columns, match_tables};
use super::{Known, Plan, Renamed};
use crate::check::{Check, Checks, WORDS};
use crate::port::{Inspection, Origin};
use crate::schema::{Column, ColumnId, Direction, Rules, Schema, Table, TableId};
use crate::value::widens;

/// The next schema version, and what its making left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// The version; its number is the present one's where nothing that branches must know has changed.
    pub schema: Schema,
    /// Tables that are gone from the head's database.
    pub dropped: Vec<TableId>,
    /// Columns added to tables that were shared before.
    pub added: Vec<(TableId, ColumnId)>,
    /// Tables whose values may have been changed by the `ALTER` itself, or about which the engine leaves a doubt.
    pub doubtful: BTreeSet<TableId>,
    /// Shared tables that cannot be followed, with the reason: they stay as they were.
    pub stuck: Vec<(TableId, String)>,
    /// What changed in the tables that were shared, in sentences.
    pub told: Vec<String>,
    /// What the plan itself adds and takes out, in sentences: nobody need be asked about that again.
    pub planned: Vec<String>,
    /// Checks are gone or new, which branches must know.
    rechecked: bool,
}

impl Next {
    /// All that changed, in sentences.
    pub fn sentences(&self) -> Vec<String> {
        [self.told.as_slice(), self.planned.as_slice()].concat()
    }
}

impl Next {
    /// A shared table was not found.
    pub(super) fn gone(&mut self, table: &Table, found: &Inspection) {
        let problem = found
            .findings
            .iter()
            .find(|finding| finding.fatal && finding.table.as_deref() == Some(&table.name));
        if let Some(finding) = problem {
            self.stuck.push((table.id, finding.problem.clone()));
            self.schema.tables.push(table.clone());
        } else {
            self.told.push(format!("table `{}` is gone", table.name));
            self.dropped.push(table.id);
        }
    }

    pub(super) fn add(&mut self, mut table: Table, plan: &Plan) {
        if let Some(rules) = (plan.rules)(&table) {
            table.set_rules(rules);
            self.schema.tables.push(table);
        } else {
            self.planned
                .push(format!("table `{}` is no longer shared", table.name));
        }
    }

    /// Which of a table's rules are others than they were, of those that branches must know.
    fn tell_rules(&mut self, was: &Table) {
        let Some(is) = self.schema.tables.last().filter(|is| is.id == was.id) else {
            return;
        };
        let name = &is.name;
        if is.direction != was.direction {
            self.planned.push(match is.direction {
                Direction::Both => format!("table `{name}` goes both ways"),
                Direction::Up => format!("table `{name}` goes up only"),
                Direction::Down => format!("table `{name}` goes down only"),
            });
        }
        if is.keeps_before() != was.keeps_before() {
            let told = if is.keeps_before() {
                format!("branches keep the rows of table `{name}` as they were before a change")
            } else {
                format!("branches keep the keys of table `{name}` only")
            };
            self.planned.push(told);
        }
    }

    /// Checks that are gone, and those that came or say something else now. `read`: all that this program can read of the table as
    /// it was is known.
    fn tell_checks(&mut self, was: &Table, read: bool) {
        let Some(is) = self.schema.tables.last().filter(|is| is.id == was.id) else {
            return;
        };
        let stand = |check: &&Check| was.condition_in(is, &check.condition).is_some();
        if was.checks_gone_in(is).any(|check| stand(&check)) {
            // What the head takes now must not be held at a branch that has the check.
            self.told
                .push(format!("a check of table `{}` is gone", is.name));
            self.rechecked = true;
        }
        if read && is.checks_new_since(was).next().is_some() {
            self.told
                .push(format!("a check of table `{}` is new", is.name));
            self.rechecked = true;
        }
    }

    /// The shared table with what was found: columns keep their numbers and their order, new ones come last.
    fn merge(
        &mut self,
        was: &Table,
        now: &Table,
        origins: (Option<&Origin>, Option<&Origin>),
        renamed: &[Renamed],
    ) -> Table {
        if was.name != now.name {
            self.told
                .push(format!("table `{}` is now `{}`", was.name, now.name));
        }
        let (pairs, guessed) = match_columns(was, now, origins, renamed);
        if guessed {
            self.doubtful.insert(was.id);
        }
        let mut columns = Vec::new();
        let mut places = vec![0; now.columns.len()];
        for (at, column) in was.columns.iter().enumerate() {
            let Some(&place) = pairs.get(&at) else {
                self.told
                    .push(format!("column `{}.{}` is gone", was.name, column.name));
                continue;
            };
            let Some(found) = now.columns.get(place) else {
                continue;
            };
            if column.name != found.name {
                let told = format!(
                    "column `{}.{}` is now `{}`",
                    was.name, column.name, found.name
                );
                self.told.push(told);
            }
            if column.kind != found.kind {
                let told = format!("column `{}.{}` is now {}", was.name, found.name, found.kind);
                self.told.push(told);
                if !widens(&column.kind, &found.kind) {
                    self.doubtful.insert(was.id);
                }
            }
            if column.nullable && !found.nullable {
                // A migration fills what was empty as it forbids it.
                self.doubtful.insert(was.id);
            }
            set_place(&mut places, place, columns.len());
            columns.push(Column {
                id: column.id,
                ..found.clone()
            });
        }
        let mut columns_ever = was.columns_ever;
        for (place, found) in now.columns.iter().enumerate() {
            if pairs.values().any(|taken| *taken == place) {
                continue;
            }
            columns_ever += 1;
            self.told
                .push(format!("column `{}.{}` is new", now.name, found.name));
            self.added.push((was.id, columns_ever));
            set_place(&mut places, place, columns.len());
            columns.push(Column {
                id: columns_ever,
                ..found.clone()
            });
        }
        let moved = |list: &[u16]| -> Vec<u16> {
            let one = |at: &u16| places.get(usize::from(*at)).copied();
            list.iter().filter_map(one).collect()
        };
        let mut merged = Table {
            id: was.id,
            name: now.name.clone(),
            key: moved(&now.key),
            unique: now.unique.iter().map(|list| moved(list)).collect(),
            indexes: now.indexes.iter().map(|list| moved(list)).collect(),
            foreign_keys: now.foreign_keys.clone(),
            columns,
            columns_ever,
            ..was.clone()
        };
        for reference in &mut merged.foreign_keys {
            reference.columns = moved(&reference.columns);
        }
        let place = |at: u16| places.get(usize::from(at)).copied();
        merged.checks.0 = now
            .fitting_checks()
            .filter_map(|check| {
                Some(Check {
                    name: check.name.clone(),
                    condition: check.condition.moved(&place)?,
                })
            })
            .collect();
        // Counters are named by place; the plan names them anew, what it does not know follows the column.
        let place_of = |at: u16| {
            let id = was.columns.get(usize::from(at))?.id;
            let place = merged.columns.iter().position(|column| column.id == id)?;
            u16::try_from(place).ok()
        };
        merged.counters = was
            .counters
            .iter()
            .filter_map(|counter| {
                let column = place_of(counter.column)?;
                Some(crate::schema::Counter {
                    column,
                    ..counter.clone()
                })
            })
            .collect();
        merged
    }
}

/// Compares the present version with what the head's database has now.
pub fn follow(present: &Schema, known: &Known, found: &Inspection, plan: &Plan) -> Next {
    let (origins, renamed) = (&known.origins, known.renamed.as_slice());
    let mut next = Next {
        schema: Schema {
            version: present.version,
            tables: Vec::new(),
            tables_ever: present.tables_ever,
        },
        ..Next::default()
    };
    let names = match_tables(present, origins, found, renamed);
    for table in &present.tables {
        let Some(now) = names.get(&table.id) else {
            next.gone(table, found);
            continue;
        };
        let origins = (origins.get(&table.name), found.origins.get(&now.name));
        let merged = next.merge(table, now, origins, renamed);
        next.add(merged, plan);
        next.tell_rules(table);
        next.tell_checks(table, known.words == Some(WORDS));
    }
    let old: BTreeSet<&str> = names.values().map(|table| table.name.as_str()).collect();
    for table in &found.tables {
        if !old.contains(table.name.as_str()) && (plan.rules)(table).is_some() {
            next.planned.push(format!("table `{}` is new", table.name));
            next.add(table.clone(), plan);
        }
    }
    let shared: BTreeSet<String> = next.schema.tables.iter().map(|t| t.name.clone()).collect();
    for table in &mut next.schema.tables {
        table
            .foreign_keys
            .retain(|reference| shared.contains(&reference.parent));
    }
    next.schema.number();
    next.schema.sort_parents_first();
    if next.rechecked || !same_for_branches(present, &next.schema) {
        next.schema.version = present.version + 1;
    }
    next
}

/// Whether two versions differ in nothing that a branch must know.
pub(super) fn same_for_branches(one: &Schema, other: &Schema) -> bool {
    let plain = |table: &Table| {
        let mut plain = table.clone();
        plain.set_rules(Rules {
            direction: table.direction,
            before: table.keeps_before(),
            ..Rules::default()
        });
        for column in &mut plain.columns {
            // Who draws a key's numbers is each office's own affair.
            column.generated_key = false;
        }
        // A program that knew fewer of them has sent fewer.
        plain.checks = Checks::default();
        plain.unique.sort();
        plain.indexes.sort();
        plain.foreign_keys.sort_by(|a, b| a.columns.cmp(&b.columns));
        (table.id, plain)
    };
    let all = |schema: &Schema| schema.tables.iter().map(plain).collect::<BTreeMap<_, _>>();
    all(one) == all(other)
}

fn set_place(places: &mut [u16], at: usize, to: usize) {
    if let (Some(place), Ok(to)) = (places.get_mut(at), u16::try_from(to)) {
        *place = to;
    }
}

#[cfg(test)]
mod tests;
