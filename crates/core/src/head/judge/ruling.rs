//! What becomes of each change, and what follows from it.

use super::super::recent::Newest;
use super::Bench;
use super::facts::Case;
use super::lift::Unplaced;
use crate::books::Hold;
use crate::change::{Base, Effect, Key, Row};
use crate::conflict::{ConflictRecord, Decision, Facts, LOST, Reason, Resolution, decide};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, LogPosition, Micros};
use crate::message::{
    Batch, Keep, Logged, LoggedChanges, Outcome, Settled, Settlement, Source, Verdict,
};
use crate::port::Database;
use crate::schema::TableId;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Bench<'_> {
    /// Decides one change and notes what follows from it.
    pub(super) fn rule(
        &mut self,
        case: &Case<'_>,
        present: &BTreeMap<(TableId, Key), Row>,
        position: LogPosition,
        batch: BatchNumber,
        body: &mut LoggedChanges,
    ) {
        let head = self.head;
        let Some(table) = head.schema.table(case.change.table) else {
            return;
        };
        // Most changes need none of what is looked up by it.
        let place = || (table.id, case.key.clone());
        let ours = match present.is_empty() {
            true => None,
            false => present.get(&place()),
        };
        let at = Micros(case.change.at.0.min(self.now.0));
        let facts = Facts {
            table,
            origin: self.branch,
            on_present_version: case.on_present_version,
            inserted: case.change.inserted || case.change.base == Base::Unknown,
            before: case.change.before.as_ref(),
            theirs: case.change.effect.row(),
            // A row from before the join is of unknown age: what the head knows of it stands.
            at: if case.change.base == Base::Unknown {
                Micros(i64::MIN)
            } else {
                at
            },
            ours,
            present: case
                .newest
                .as_ref()
                .map(|newest| (newest.at, &*newest.origin)),
        };
        let decision = match case.held.as_ref().map(|hold| hold.reason) {
            // A person decides between the two rows; the branch may take its own back.
            Some(Reason::InsertedTwice) if facts.theirs.is_none() => Decision::Same,
            Some(Reason::InsertedTwice | Reason::AskedFor) => Decision::Hold(Reason::AlreadyHeld),
            // What did not fit may fit by now.
            _ => decide(&facts),
        };
        let decision = match decision {
            Decision::Accept | Decision::Win(_) | Decision::Merge(..)
                if !self.unfit.is_empty() && self.unfit.contains_key(&place()) =>
            {
                Decision::Hold(Reason::DoesNotFit)
            }
            Decision::Accept | Decision::Win(_) | Decision::Merge(..) => {
                match self.waits_for(case) {
                    Some((parent, conflict)) => {
                        let why = head.why_it_waits(parent, conflict);
                        self.waiting.insert(place(), why);
                        Decision::Hold(Reason::DoesNotFit)
                    }
                    None => decision,
                }
            }
            decision => decision,
        };
        let theirs = case.change.effect.clone();
        let listed = |reason, result| Some((reason, result));
        let (outcome, list) = match decision {
            Decision::Accept => {
                self.accept(case, theirs, position, Some(batch), at, body);
                (None, None)
            }
            Decision::Same => (Some(Outcome::Overridden(ours.cloned())), None),
            Decision::Win(reason) => {
                self.accept(case, theirs, position, Some(batch), at, body);
                (Some(Outcome::Accepted), listed(reason, Resolution::Theirs))
            }
            Decision::Lose(reason) => (
                Some(Outcome::Overridden(ours.cloned())),
                listed(reason, Resolution::Ours),
            ),
            Decision::Merge(row, reason) => {
                self.accept(case, Effect::Put(row), position, None, at, body);
                let list = reason.and_then(|reason| listed(reason, Resolution::Merged));
                (list.is_some().then_some(Outcome::Accepted), list)
            }
            Decision::Hold(reason) => (Some(Outcome::Held), listed(reason, Resolution::Held)),
        };
        let record = list.map(|(reason, result)| {
            let merged = match (result, body.changes.last()) {
                (Resolution::Merged, Some(logged)) => logged.effect.row().cloned(),
                _ => None,
            };
            self.record(case, at, ours, reason, result, merged)
        });
        if let (Some(Outcome::Held), Some(record)) = (&outcome, &record) {
            let first = case.held.as_ref().map_or(record.reason, |hold| hold.reason);
            let hold = Hold {
                branch: self.branch.clone(),
                conflict: record.id,
                reason: first,
                batch: (self.seat.incarnation, batch),
            };
            if case.held.is_none() {
                self.seat.holds += 1;
            }
            self.held.insert(place(), Some(hold));
        } else if let Some(hold) = &case.held {
            self.release(case, hold, outcome.as_ref(), body);
        }
        if let Some(outcome) = outcome {
            body.verdicts.push(Verdict {
                table: table.id,
                key: case.key.clone(),
                outcome,
                record,
            });
        }
    }

    /// A later change of the branch to a held row was decided: nothing of it is held any more.
    fn release(
        &mut self,
        case: &Case<'_>,
        hold: &Hold,
        outcome: Option<&Outcome>,
        body: &mut LoggedChanges,
    ) {
        self.seat.holds = self.seat.holds.saturating_sub(1);
        self.held
            .insert((case.change.table, case.key.clone()), None);
        let (keep, row) = match outcome {
            Some(Outcome::Overridden(row)) => (Keep::Head, row.clone()),
            _ => {
                let accepted = body.changes.last();
                let row = accepted.and_then(|logged| logged.effect.row().cloned());
                (Keep::Branch, row)
            }
        };
        let settled = Settled {
            conflict: hold.conflict,
            keep,
            at: self.now,
            by: None,
            row: row.clone(),
        };
        self.settled.push(settled.clone());
        body.settlements.push(Settlement {
            branch: self.branch.clone(),
            table: case.change.table,
            key: case.key.clone(),
            row,
            record: None,
            settled: Some(settled),
            held: None,
        });
    }

    /// The effect becomes the row's version. It is the branch's own where `batch` says which one brought it; otherwise
    /// it was made of both sides' changes.
    pub(super) fn accept(
        &mut self,
        case: &Case<'_>,
        effect: Effect,
        position: LogPosition,
        batch: Option<BatchNumber>,
        at: Micros,
        body: &mut LoggedChanges,
    ) {
        // A change follows the version that it was made on, whatever its clock said (hybrid logical clock).
        let at = case
            .newest
            .as_ref()
            .map_or(at, |newest| at.max(Micros(newest.at.0.saturating_add(1))));
        if let Some(tried) = &mut self.tried {
            tried.push((case.change.table, effect.clone()));
        }
        self.pile
            .put(case.change.table, case.key.clone(), effect.clone());
        let origin = Arc::clone(&self.origin);
        let newest = Newest {
            position,
            origin,
            batch: batch.map(|batch| (self.seat.incarnation, batch)),
            at,
        };
        self.made.push((case.name, newest.clone()));
        self.overlay.insert(case.name, newest);
        body.changes.push(Logged {
            table: case.change.table,
            effect,
            at,
            source: match batch {
                Some(_) if !case.change.absent.is_empty() || self.of_lost_version => Source::Lifted,
                Some(_) => Source::Sender,
                None => Source::Merged,
            },
        });
    }

    /// Keeps what a batch of an earlier schema version says and the present tables have no place for: the head's row
    /// stands, and the branch's is listed whole.
    pub(super) async fn list_unplaced<D: Database>(
        &mut self,
        db: &mut D,
        unplaced: Unplaced<'_>,
        batch: &Batch,
        body: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let Unplaced {
            change,
            table,
            why,
            key,
        } = unplaced;
        self.writer.book.conflicts += 1;
        let ours = match (&key, self.head.schema.table(table.id)) {
            (Some(key), Some(here)) => match self.pile.get(table.id, key) {
                Some(piled) => piled.cloned(),
                None => db.read(here, std::slice::from_ref(key)).await?.remove(key),
            },
            _ => None,
        };
        let kept = body.changes.iter().any(|logged| {
            let here = self.head.schema.table(logged.table);
            logged.table == table.id && here.map(|here| logged.effect.key(here)) == key
        });
        let record = ConflictRecord {
            id: self.writer.book.conflicts,
            table: table.name.clone(),
            columns: table
                .columns
                .iter()
                .map(|column| column.name.clone())
                .collect(),
            key: change.effect.key(table),
            reason: Reason::SchemaChanged,
            at: Micros(change.at.0.min(self.now.0)),
            origin: self.branch.clone(),
            base: change.base,
            ours: None,
            theirs: change.effect.row().cloned(),
            result: if kept {
                Resolution::Theirs
            } else {
                Resolution::Ours
            },
            decided: self.now,
            before: change.before.clone(),
            merged: None,
            detail: Some(why),
            shape: match batch.lost {
                None => (batch.schema, table.id),
                Some(_) => (LOST, table.id),
            },
        };
        self.records.push(record.clone());
        let record = Some(record.fit_to_travel());
        let outcome = if kept {
            Outcome::Accepted
        } else {
            Outcome::Overridden(ours)
        };
        body.verdicts.push(Verdict {
            table: table.id,
            key: key.unwrap_or_else(|| change.effect.key(table)),
            outcome,
            record,
        });
        Ok(())
    }

    pub(super) fn record(
        &mut self,
        case: &Case<'_>,
        at: Micros,
        ours: Option<&Row>,
        reason: Reason,
        result: Resolution,
        merged: Option<Row>,
    ) -> ConflictRecord {
        let table = self.head.schema.table(case.change.table);
        self.writer.book.conflicts += 1;
        let who = case.who_wrote_ours(ours.is_some());
        let place = (case.change.table, case.key.clone());
        let detail = match self.unfit.get(&place).or(self.waiting.get(&place)) {
            Some(why) if reason == Reason::DoesNotFit && !why.is_empty() => {
                let who = who.map(|who| format!("; {who}")).unwrap_or_default();
                Some(format!("{why}{who}"))
            }
            _ => who,
        };
        let record = ConflictRecord {
            id: self.writer.book.conflicts,
            table: table.map(|table| table.name.clone()).unwrap_or_default(),
            columns: table
                .into_iter()
                .flat_map(|table| &table.columns)
                .map(|column| column.name.clone())
                .collect(),
            key: case.key.clone(),
            reason,
            at,
            origin: self.branch.clone(),
            base: case.change.base,
            ours: ours.cloned(),
            theirs: case.change.effect.row().cloned(),
            result,
            decided: self.now,
            before: case.change.before.clone(),
            merged,
            detail,
            shape: (self.head.schema.version, case.change.table),
        };
        self.records.push(record.clone());
        record.fit_to_travel()
    }
}
