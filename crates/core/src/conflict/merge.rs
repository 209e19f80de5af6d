//! Putting two sides' changes of one row together: counters add up, and under the rule `merge` the other columns are
//! decided one by one against the row that both sides changed (a three-way merge).

use bigdecimal::BigDecimal;

use super::{Decision, Facts, Reason, by_rule, is_later};
use crate::change::Row;
use crate::schema::{ConflictRule, Counter, Table};
use crate::value::{Type, Value, canonical};

/// The longest decimal that is added up, in bytes of its text.
const MOST_DIGITS: usize = 4096;

/// The decision where both sides' changes can be put together; none where the plan's rule is to choose between whole rows.
pub(super) fn together(facts: &Facts<'_>) -> Option<Decision> {
    let (ours, theirs, before) = (facts.ours?, facts.theirs?, facts.before?);
    if !facts.table.keeps_before() {
        return None;
    }
    let (mut row, reason) = match plain_columns(facts, ours, theirs, before) {
        Plain::Row(row, reason) => (row, reason),
        Plain::Hold(reason) => return Some(Decision::Hold(reason)),
    };
    let mut below = false;
    for counter in &facts.table.counters {
        let at = usize::from(counter.column);
        let values = (ours.0.get(at), theirs.0.get(at), before.0.get(at));
        let sum = match values {
            (Some(ours), Some(theirs), Some(before)) => {
                add_up(facts.table, counter, ours, theirs, before)
            }
            _ => None,
        };
        let Some(sum) = sum else {
            return Some(Decision::Hold(Reason::AskedFor));
        };
        below |= is_below(&sum, counter.floor);
        *row.0.get_mut(at)? = sum;
    }
    let reason = if below {
        Some(Reason::BelowFloor)
    } else {
        reason
    };
    Some(Decision::Merge(row, reason))
}

enum Plain {
    Row(Row, Option<Reason>),
    Hold(Reason),
}

/// What becomes of the columns that are no counters.
fn plain_columns(facts: &Facts<'_>, ours: &Row, theirs: &Row, before: &Row) -> Plain {
    let table = facts.table;
    let plain = |column: usize| {
        let is_counter = |counter: &Counter| usize::from(counter.column) == column;
        !table.counters.iter().any(is_counter)
    };
    let differs = |one: &Row, other: &Row, column: usize| {
        let kind = table.columns.get(column).map(|column| &column.kind);
        !same(kind, one.0.get(column), other.0.get(column))
    };
    let changed_by = |side: &Row| -> Vec<usize> {
        let columns = (0..table.columns.len()).filter(|&at| plain(at));
        columns.filter(|&at| differs(side, before, at)).collect()
    };
    let (by_ours, by_theirs) = (changed_by(ours), changed_by(theirs));
    let take = |columns: &[usize]| {
        let mut row = ours.clone();
        for &at in columns {
            if let (Some(place), Some(value)) = (row.0.get_mut(at), theirs.0.get(at)) {
                place.clone_from(value);
            }
        }
        row
    };
    if table.conflict == ConflictRule::Merge {
        let contested = by_theirs
            .iter()
            .any(|at| by_ours.contains(at) && differs(ours, theirs, *at));
        let columns: Vec<usize> = by_theirs
            .into_iter()
            .filter(|at| !by_ours.contains(at) || is_later(facts))
            .collect();
        return Plain::Row(take(&columns), contested.then_some(Reason::Merged));
    }
    let all: Vec<usize> = (0..table.columns.len()).filter(|&at| plain(at)).collect();
    if by_theirs.is_empty() {
        return Plain::Row(ours.clone(), None);
    }
    if by_ours.is_empty() {
        return Plain::Row(take(&all), None);
    }
    match by_rule(facts) {
        Decision::Win(reason) => Plain::Row(take(&all), Some(reason)),
        Decision::Hold(reason) => Plain::Hold(reason),
        Decision::Lose(reason) => Plain::Row(ours.clone(), Some(reason)),
        _ => Plain::Row(ours.clone(), None),
    }
}

fn same(kind: Option<&Type>, one: Option<&Value>, other: Option<&Value>) -> bool {
    match (kind, one, other) {
        (Some(kind), Some(one), Some(other)) => canonical(kind, one) == canonical(kind, other),
        _ => one == other,
    }
}

/// `ours + (theirs - before)`; none where it cannot be told: a NULL on one side, or a sum that the column cannot hold.
pub(crate) fn add_up(
    table: &Table,
    counter: &Counter,
    ours: &Value,
    theirs: &Value,
    before: &Value,
) -> Option<Value> {
    let kind = &table.columns.get(usize::from(counter.column))?.kind;
    let sum = match (ours, theirs, before) {
        (Value::Int(ours), Value::Int(theirs), Value::Int(before)) => {
            Value::Int(ours.checked_add(theirs.checked_sub(*before)?)?)
        }
        (Value::Text(ours), Value::Text(theirs), Value::Text(before)) => {
            let sum = number(ours)? + (number(theirs)? - number(before)?);
            Value::Text(sum.to_plain_string())
        }
        // A side that both leave as it was needs no sum.
        (ours, theirs, before) if same(Some(kind), Some(theirs), Some(before)) => ours.clone(),
        (ours, theirs, before) if same(Some(kind), Some(ours), Some(before)) => theirs.clone(),
        _ => return None,
    };
    kind.holds(&sum).then(|| canonical(kind, &sum).into_owned())
}

/// A decimal in plain notation. An exponent could ask for any amount of memory, and no engine writes one.
fn number(text: &str) -> Option<BigDecimal> {
    let plain = text.len() <= MOST_DIGITS && !text.contains(['e', 'E']);
    plain.then(|| text.parse().ok()).flatten()
}

fn is_below(value: &Value, floor: Option<i64>) -> bool {
    let Some(floor) = floor else { return false };
    match value {
        Value::Int(value) => *value < floor,
        Value::Text(text) => number(text).is_some_and(|value| value < floor),
        _ => false,
    }
}
