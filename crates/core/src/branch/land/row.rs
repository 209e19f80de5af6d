//! What becomes of a row: the log's, unless it has local changes, is held, or does not fit.

use super::Landing;
use crate::books::Note;
use crate::change::{Effect, Key};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, LogPosition};
use crate::message::{Outcome, Settlement, Verdict};
use crate::port::Database;
use crate::schema::Table;

impl Landing<'_> {
    /// The head accepted this branch's change as it was.
    pub(super) fn confirmed(&mut self, table: &Table, key: Key, effect: &Effect) {
        self.answered_rows.push(key.digest(table));
        if let Some(shown) = self.hot.get_mut(&(table.id, key.clone()))
            && let Effect::Put(row) = effect
        {
            *shown = (row.clone(), self.book.answered);
        }
        self.clear_note(table, key);
    }

    fn clear_note(&mut self, table: &Table, key: Key) {
        if let Some(note) = self.notes.get_mut(&(table.id, key)) {
            *note = None;
        }
    }

    pub(super) fn verdict(&mut self, verdict: &Verdict, batch: BatchNumber, position: LogPosition) {
        self.records.extend(verdict.record.clone());
        let Some(table) = self.branch.schema.table(verdict.table) else {
            return;
        };
        self.answered_rows.push(verdict.key.digest(table));
        match &verdict.outcome {
            // The change itself stands among the entry's changes.
            Outcome::Accepted => {}
            Outcome::Overridden(row) => {
                let effect = row
                    .clone()
                    .map_or_else(|| Effect::Delete(verdict.key.clone()), Effect::Put);
                self.candidate(table, verdict.key.clone(), effect, position, true);
            }
            Outcome::Held => {
                let place = (table.id, verdict.key.clone());
                let noted = self.notes.get(&place).and_then(Option::as_ref);
                let first = noted.map_or(position, Note::first_unseen);
                self.notes.insert(place, Some(Note::Held(batch, first)));
            }
        }
    }

    /// The head says what the row is to be; a hold of it ends.
    pub(super) fn settle(&mut self, settlement: &Settlement, position: LogPosition) {
        let Some(table) = self.branch.schema.table(settlement.table) else {
            return;
        };
        self.records.extend(settlement.record.clone());
        self.settled.extend(settlement.settled.clone());
        let key = settlement.key.clone();
        let place = (table.id, key.clone());
        if let Some(batch) = settlement.held {
            let claimed = self.branch.claims.contains_key(&key.digest(table));
            let noted = self.notes.get(&place).is_some_and(Option::is_some);
            // A later change of the row is on its way; its verdict will tell.
            if !claimed && !noted && !self.aside.busy.contains(&place) {
                self.notes.insert(place, Some(Note::Held(batch, position)));
            }
            return;
        }
        if let Some(Some(Note::Held(_, first))) = self.notes.get(&place) {
            let first = *first;
            self.notes.insert(place, Some(Note::Deferred(first)));
        }
        let row = settlement.row.clone();
        let effect = row.map_or_else(|| Effect::Delete(key.clone()), Effect::Put);
        self.candidate(table, key, effect, position, true);
    }

    /// The row is to become this, unless it has local changes or is held.
    /// Where it is not `here` it is passed over.
    pub(super) fn candidate(
        &mut self,
        table: &Table,
        key: Key,
        effect: Effect,
        position: LogPosition,
        here: bool,
    ) {
        let place = (table.id, key.clone());
        let noted = self.notes.get(&place).and_then(Option::as_ref);
        match noted {
            Some(Note::Held(..)) => return,
            Some(Note::Unreadable(..)) => {
                self.deferred += 1;
                return;
            }
            _ => {}
        }
        let claims = &self.branch.claims;
        let claimed = !claims.is_empty()
            && claims
                .get(&key.digest(table))
                .is_some_and(|batch| *batch > self.book.answered);
        if claimed || self.aside.busy.contains(&place) {
            self.deferred += 1;
            let passing = noted.is_none_or(|note| matches!(note, Note::Deferred(_)));
            if noted.is_none() {
                self.notes
                    .insert(place.clone(), Some(Note::Deferred(position)));
            }
            let counts = !table.counters.is_empty() && !self.aside.counters;
            match effect {
                Effect::Put(row) if claimed && passing && counts && !self.joins() => {
                    if !self.aside.busy.contains(&place) {
                        self.hot.insert(place, (row, self.book.answered));
                    }
                }
                _ => drop(self.hot.remove(&place)),
            }
            return;
        }
        self.hot.remove(&place);
        if !here {
            return;
        }
        if self.aside.unfit.contains(&place) {
            self.deferred += 1;
            let first = noted.map_or(position, Note::first_unseen);
            self.notes.insert(place, Some(Note::Unfit(first, effect)));
            return;
        }
        if noted.is_some() {
            self.notes.insert(place, None);
        }
        self.pile.put(table.id, key, effect);
    }

    fn joins(&self) -> bool {
        self.book.joining.is_some()
    }

    /// Counters whose rows are left alone show what the log says of them, and this branch's later steps on it.
    pub(super) async fn show_counters<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let hot = std::mem::take(&mut self.hot);
        for table in &self.branch.schema.tables {
            let here = hot.iter().filter(|((id, _), _)| *id == table.id);
            let keys: Vec<Key> = here.map(|((_, key), _)| key.clone()).collect();
            if keys.is_empty() {
                continue;
            }
            for (key, local) in db.read(table, &keys).await? {
                let Some((log, answered)) = hot.get(&(table.id, key.clone())) else {
                    continue;
                };
                let shown = self.branch.steps.shown(table, &local, log, *answered);
                if let Some(row) = shown {
                    self.pile.put(table.id, key, Effect::Put(row));
                }
            }
        }
        Ok(())
    }
}
