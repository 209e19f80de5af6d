//! Counters with unanswered changes: what the log says of them shows at once, with this branch's later steps on top
//! (SETTLED 5, decision 13).

use std::collections::BTreeMap;

use crate::change::{Change, Row};
use crate::conflict::add_up;
use crate::identity::{BatchNumber, Digest};
use crate::schema::Table;
use crate::value::Value;

/// What unanswered batches did to counters.
#[derive(Debug, Default)]
pub(super) struct Steps(BTreeMap<Digest, Vec<Step>>);

/// One batch's change of a row: for each counter of its table, the value before and after.
#[derive(Debug)]
struct Step {
    batch: BatchNumber,
    /// None where the change was no step: the row came or went, or it is not known what it was.
    values: Option<Vec<(Value, Value)>>,
}

impl Steps {
    /// Remembers a frozen change.
    pub fn note(&mut self, table: &Table, change: &Change, batch: BatchNumber) {
        if table.counters.is_empty() {
            return;
        }
        let values = change.before.as_ref().zip(change.effect.row());
        let values = values
            .filter(|_| !change.inserted)
            .and_then(|(before, after)| {
                let value = |row: &Row, at: u16| row.0.get(usize::from(at)).cloned();
                let counters = table.counters.iter();
                let values = counters.map(|counter| {
                    Some((
                        value(before, counter.column)?,
                        value(after, counter.column)?,
                    ))
                });
                values.collect()
            });
        let name = change.effect.key(table).digest(table);
        self.0.entry(name).or_default().push(Step { batch, values });
    }

    /// Takes over what a transaction froze.
    pub fn extend(&mut self, fresh: Self) {
        for (name, steps) in fresh.0 {
            self.0.entry(name).or_default().extend(steps);
        }
    }

    /// Batches up to this one are answered.
    pub fn forget(&mut self, name: &Digest, answered: BatchNumber) {
        if let Some(steps) = self.0.get_mut(name) {
            steps.retain(|step| step.batch > answered);
            if steps.is_empty() {
                self.0.remove(name);
            }
        }
    }

    /// The local row with the log's counters and the steps of the batches after `answered` on them; none where that
    /// cannot be told, or where the row is just so.
    pub fn shown(
        &self,
        table: &Table,
        local: &Row,
        log: &Row,
        answered: BatchNumber,
    ) -> Option<Row> {
        let steps = self.0.get(&table.key_of(local).digest(table))?;
        let mut row = local.clone();
        for (index, counter) in table.counters.iter().enumerate() {
            let at = usize::from(counter.column);
            let mut value = log.0.get(at)?.clone();
            for step in steps.iter().filter(|step| step.batch > answered) {
                let (before, after) = step.values.as_ref()?.get(index)?;
                value = add_up(table, counter, &value, after, before)?;
            }
            *row.0.get_mut(at)? = value;
        }
        (row.digest(table) != local.digest(table)).then_some(row)
    }
}
