//! Taking lost entries back just as they were, where the restored head has written nothing since.

use super::super::promote::reason_to_hold;
use super::super::recent::{Recent, names_of, rows_of};
use super::super::writer::{HEAD, Tail};
use super::super::{Head, holds};
use super::{ATTEMPTS, LEFT, effects_of, list};
use crate::books::{
    self, HeadBook, HeldAtHead, Hold, LOG, LOG_KEYS, RowNames, SeatBook, seat_name,
};
use crate::change::{Base, Key, Row};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::envelope;
use crate::failure::OfficeResult;
use crate::identity::{Micros, OfficeName};
use crate::message::{Answer, LogBody, LogEntry, Logged, Outcome, Settlement, Verdict};
use crate::office::conclude;
use crate::output::Output;
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Table, TableId};
use crate::unfit::{self, is_unfit};
use std::collections::BTreeMap;

impl Head {
    /// Appends lost entries just as they were; a step of the schema in its own transaction.
    pub(super) async fn adopt_all<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
    ) -> OfficeResult<()> {
        let is_step = |(entry, _): &(LogEntry, Vec<u8>)| matches!(entry.body, LogBody::Schema(_));
        for run in lost.chunk_by(|one, next| !is_step(one) && !is_step(next)) {
            if let [(entry, bytes)] = run
                && let LogBody::Schema(step) = &entry.body
            {
                self.take_step_back(db, entry.position, bytes, step).await?;
            } else {
                self.adopt_lost(db, now, run).await?;
            }
        }
        Ok(())
    }

    /// Appends lost entries just as they were.
    async fn adopt_lost<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
    ) -> OfficeResult<()> {
        let mut aside = RowNames::new();
        for _ in 0..ATTEMPTS {
            db.begin(Purpose::Apply).await?;
            let outcome = match self.try_adopting(db, now, lost, &aside).await {
                Ok(Ok(done)) => conclude(db, Ok(Ok(done))).await,
                other => other,
            };
            match outcome {
                Ok(Ok((book, seats, held))) => {
                    self.left |= !aside.is_empty();
                    self.recent = Recent::new(book.last);
                    self.tail = Tail::default();
                    self.book = book;
                    self.any_held |= held;
                    self.captured = true;
                    for (name, book) in seats {
                        if let Some(seat) = self.seats.get_mut(&name) {
                            let dropped = seat.inbox.restart(book.cursor.0);
                            self.outputs.extend(dropped.into_iter().map(Output::Settle));
                            seat.book = book;
                        }
                    }
                    return Ok(());
                }
                Ok(Err(clashes)) => {
                    db.rollback().await?;
                    aside.extend(clashes);
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let effects = effects_of(lost.iter().map(|(entry, _)| entry), &aside, self);
                    let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    aside.extend(found);
                }
                Err(error) => {
                    db.rollback().await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    async fn try_adopting<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
        aside: &RowNames,
    ) -> OfficeResult<Result<(HeadBook, BTreeMap<OfficeName, SeatBook>, bool), Vec<(TableId, Key)>>>
    {
        let mut book = self.book.clone();
        let mut seats: BTreeMap<OfficeName, SeatBook> = BTreeMap::new();
        let mut pile = Pile::default();
        let mut left: BTreeMap<(TableId, Key), (Option<OfficeName>, Logged)> = BTreeMap::new();
        let mut held = false;
        for (entry, bytes) in lost {
            let rows = rows_of(entry, self.versions.of(entry)?, &self.identity.shared_name);
            let number = entry.position.0;
            let log = Entry {
                number,
                bytes: bytes.clone(),
            };
            let names = Entry {
                number,
                bytes: names_of(&rows),
            };
            db.append(LOG, &[log]).await?;
            db.append(LOG_KEYS, &[names]).await?;
            book.last = entry.position;
            book.chain = envelope::chain(bytes);
            let LogBody::Changes(body) = &entry.body else {
                continue;
            };
            for logged in &body.changes {
                let Some(table) = self.schema.table(logged.table) else {
                    continue;
                };
                let key = logged.effect.key(table);
                if aside.contains(&(table.id, key.clone())) {
                    let origin = body.answers.as_ref().map(|answer| answer.branch.clone());
                    left.insert((table.id, key), (origin, logged.clone()));
                } else {
                    pile.put(table.id, key, logged.effect.clone());
                }
            }
            if let Some(answer) = &body.answers {
                self.answered(&mut seats, answer);
                held |= self
                    .take_verdicts(db, &mut book, &mut seats, answer, &body.verdicts)
                    .await?;
            }
            self.take_settlements(db, &mut book, &mut seats, &body.settlements)
                .await?;
            for record in body.listed.iter().flatten() {
                list(db, &mut book, record).await?;
            }
        }
        let clashes = pile.write(db, &self.schema).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes));
        }
        let mut numbers = Vec::new();
        for ((id, key), (origin, logged)) in &left {
            if let Some(table) = self.schema.table(*id) {
                let number = self.leave(db, now, &mut book, table, key, origin.as_ref(), logged);
                numbers.push(number.await?);
            }
        }
        if !numbers.is_empty() {
            let mut before: Vec<u64> = books::load(db, LEFT).await?.unwrap_or_default();
            before.extend(numbers);
            books::store(db, LEFT, &before).await?;
        }
        for (name, seat) in &seats {
            books::store(db, &seat_name(name), seat).await?;
        }
        books::store(db, HEAD, &book).await?;
        Ok(Ok((book, seats, held)))
    }

    /// A branch's batch was answered in the part that was lost.
    pub(super) fn answered(&self, seats: &mut BTreeMap<OfficeName, SeatBook>, answer: &Answer) {
        let known = self.seats.get(&answer.branch).map(|seat| seat.book.clone());
        let Some(known) = seats.get(&answer.branch).cloned().or(known) else {
            return;
        };
        let mut seat = known;
        if seat.incarnation != answer.incarnation {
            if seat.former.contains(&answer.incarnation) {
                return;
            }
            seat.former.push(seat.incarnation);
            seat.incarnation = answer.incarnation;
        } else if answer.batch <= seat.cursor {
            return;
        }
        seat.cursor = answer.batch;
        seat.chain = answer.chain;
        seats.insert(answer.branch.clone(), seat);
    }

    /// A branch's record, to be changed in this transaction.
    fn seat_of<'s>(
        &self,
        seats: &'s mut BTreeMap<OfficeName, SeatBook>,
        branch: &OfficeName,
    ) -> Option<&'s mut SeatBook> {
        if !seats.contains_key(branch) {
            let known = self.seats.get(branch)?.book.clone();
            seats.insert(branch.clone(), known);
        }
        seats.get_mut(branch)
    }

    /// Lists decisions that were lost. Returns whether any of them is a hold.
    pub(super) async fn take_verdicts<D: Database>(
        &self,
        db: &mut D,
        book: &mut HeadBook,
        seats: &mut BTreeMap<OfficeName, SeatBook>,
        answer: &Answer,
        verdicts: &[Verdict],
    ) -> OfficeResult<bool> {
        let mut held = false;
        for verdict in verdicts {
            let Some(record) = &verdict.record else {
                continue;
            };
            let listed = list(db, book, record).await?;
            if let (Outcome::Held, Some(table)) =
                (&verdict.outcome, self.schema.table(verdict.table))
            {
                held = true;
                let before = hold_of(db, table, &verdict.key, &answer.branch).await?;
                if before.is_none()
                    && let Some(seat) = self.seat_of(seats, &answer.branch)
                {
                    seat.holds += 1;
                }
                let hold = Hold {
                    branch: answer.branch.clone(),
                    conflict: listed,
                    reason: reason_to_hold(record, before.as_ref()),
                    batch: (answer.incarnation, answer.batch),
                };
                holds::set(db, table, &verdict.key, &answer.branch, Some(hold)).await?;
            }
        }
        Ok(held)
    }

    /// Holds that ended in the part that was lost end again. That a branch was told of a hold ends none.
    pub(super) async fn take_settlements<D: Database>(
        &self,
        db: &mut D,
        book: &mut HeadBook,
        seats: &mut BTreeMap<OfficeName, SeatBook>,
        settlements: &[Settlement],
    ) -> OfficeResult<()> {
        for settlement in settlements.iter().filter(|one| one.held.is_none()) {
            if let Some(record) = &settlement.record {
                list(db, book, record).await?;
            }
            if let Some(settled) = &settlement.settled {
                let name = books::settled_name(settled.conflict);
                books::store(db, &name, settled).await?;
            }
            if let Some(table) = self.schema.table(settlement.table) {
                let held = hold_of(db, table, &settlement.key, &settlement.branch).await?;
                if held.is_some()
                    && let Some(seat) = self.seat_of(seats, &settlement.branch)
                {
                    seat.holds = seat.holds.saturating_sub(1);
                }
                holds::set(db, table, &settlement.key, &settlement.branch, None).await?;
            }
        }
        Ok(())
    }

    /// A row that the head's application wrote again since the restore, or that does not fit beside what it wrote: the
    /// head's present row stands and enters the log; what was lost is listed. Returns under which number.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn leave<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        book: &mut HeadBook,
        table: &Table,
        key: &Key,
        origin: Option<&OfficeName>,
        logged: &Logged,
    ) -> OfficeResult<u64> {
        let keys = std::slice::from_ref(key);
        let ours = db.read(table, keys).await?.remove(key);
        let record = self.restored(now, table, key, origin, logged, ours, Resolution::Ours);
        let record = ConflictRecord {
            id: book.conflicts + 1,
            ..record
        };
        db.recapture(table, Some(keys)).await?;
        list(db, book, &record).await
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn restored(
        &self,
        now: Micros,
        table: &Table,
        key: &Key,
        origin: Option<&OfficeName>,
        logged: &Logged,
        ours: Option<Row>,
        result: Resolution,
    ) -> ConflictRecord {
        ConflictRecord {
            id: 0,
            table: table.name.clone(),
            columns: table.columns.iter().map(|c| c.name.clone()).collect(),
            key: key.clone(),
            reason: Reason::Restored,
            at: logged.at,
            origin: origin.unwrap_or(&self.identity.name).clone(),
            base: Base::Unknown,
            ours,
            theirs: logged.effect.row().cloned(),
            result,
            decided: now,
            before: None,
            merged: None,
            detail: None,
            shape: (self.schema.version, table.id),
        }
    }
}

/// What is held of a branch under a key.
pub(super) async fn hold_of<D: Database>(
    db: &mut D,
    table: &Table,
    key: &Key,
    branch: &OfficeName,
) -> OfficeResult<Option<Hold>> {
    let notes = db.notes(table, Some(std::slice::from_ref(key))).await?;
    let note = notes.get(key).map(|note| books::decode::<HeldAtHead>(note));
    Ok(note.transpose()?.and_then(|note| note.of(branch).cloned()))
}
