//! Units of visibility: transactions that share rows, directly or through others, are taken together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use branchline_core::change::{Effect, Key};
use branchline_core::port::{DbResult, Portion, Taken, Unreadable};
use branchline_core::schema::Schema;

use super::state::{State, Write};

pub(super) fn take(
    state: &mut State,
    unit: &mut VecDeque<Taken>,
    schema: &Schema,
    limit: usize,
) -> DbResult<Portion> {
    let limit = limit.max(1);
    // As on PostgreSQL and MariaDB: the last writes to a table that has left the plan concern nobody.
    let shared = |write: &Write| schema.table_named(&write.table).is_some();
    if !state.capture.values().all(shared) {
        Arc::make_mut(&mut state.capture).retain(|_, write| shared(write));
    }
    let mut changes = Vec::new();
    if unit.is_empty() {
        for next in units(state) {
            if !changes.is_empty() && changes.len() + rows_of(state, &next) > limit {
                break;
            }
            let net = net(state, schema, &next)?;
            let capture = Arc::make_mut(&mut state.capture);
            next.iter().for_each(|number| drop(capture.remove(number)));
            if net.len() > limit {
                unit.extend(net);
                break;
            }
            changes.extend(net);
        }
    }
    let fits = unit.len().min(limit);
    changes.extend(unit.drain(..fits));
    let open = !unit.is_empty();
    let more = open || !state.capture.is_empty();
    let mut unreadable = Vec::new();
    changes.retain(|taken| {
        let Some(table) = schema
            .table(taken.table)
            .filter(|table| !taken.effect.fits(table))
        else {
            return true;
        };
        unreadable.push(Unreadable {
            table: table.id,
            key: taken.effect.key(table),
            problem: "a value is none of its column's type".into(),
        });
        false
    });
    Ok(Portion {
        changes,
        unreadable,
        open,
        more,
    })
}

/// The numbers of the writes of each unit, the unit with the oldest write first.
fn units(state: &State) -> Vec<Vec<u64>> {
    let writes: Vec<(u64, &Write)> = state
        .capture
        .iter()
        .map(|(&number, write)| (number, write))
        .collect();
    // Writes are nodes; each points towards an older one of its unit.
    let mut older: Vec<usize> = (0..writes.len()).collect();
    let (mut by_row, mut by_transaction) = (BTreeMap::new(), BTreeMap::new());
    for (at, (_, write)) in writes.iter().enumerate() {
        let row = *by_row.entry((&write.table, &write.key)).or_insert(at);
        let transaction = *by_transaction.entry(write.transaction).or_insert(at);
        for other in [row, transaction] {
            let (one, other) = (root(&mut older, at), root(&mut older, other));
            older[one.max(other)] = one.min(other);
        }
    }
    let mut units: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (at, (number, _)) in writes.iter().enumerate() {
        units.entry(root(&mut older, at)).or_default().push(*number);
    }
    units.into_values().collect()
}

fn root(older: &mut [usize], mut at: usize) -> usize {
    while older[at] != at {
        older[at] = older[older[at]];
        at = older[at];
    }
    at
}

fn rows_of(state: &State, unit: &[u64]) -> usize {
    let rows: BTreeSet<(&String, &Key)> = unit
        .iter()
        .filter_map(|number| state.capture.get(number))
        .map(|write| (&write.table, &write.key))
        .collect();
    rows.len()
}

/// The net effect of a unit, each row at the place of its first write.
fn net(state: &State, schema: &Schema, unit: &[u64]) -> DbResult<Vec<Taken>> {
    let mut places: BTreeMap<(&String, &Key), usize> = BTreeMap::new();
    let mut net: Vec<Taken> = Vec::new();
    for write in unit.iter().filter_map(|number| state.capture.get(number)) {
        let Some(table) = schema.table_named(&write.table) else {
            continue;
        };
        if let Some(&place) = places.get(&(&write.table, &write.key)) {
            net[place].at = write.at;
            continue;
        }
        let row = match state.table(&write.table) {
            Ok(stored) => {
                let row = stored.rows.get(&write.key);
                row.map(|row| stored.project(table, row)).transpose()?
            }
            Err(_) => None,
        };
        let effect = row.map_or_else(|| Effect::Delete(write.key.clone()), Effect::Put);
        places.insert((&write.table, &write.key), net.len());
        net.push(Taken {
            table: table.id,
            effect,
            first: write.first,
            at: write.at,
            before: write.before.clone().filter(|_| table.keeps_before()),
        });
    }
    Ok(net)
}
