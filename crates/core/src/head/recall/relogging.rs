//! One lost entry after the other: what of it still counts beside what the head has written since.

use super::super::recent::Newest;
use super::super::writer::LogWriter;
use super::super::{Head, holds};
use super::adopt::hold_of;
use super::list;
use super::lost::{LostEntry, Unplaced};
use super::sums::Lineage;
use super::taken::Judged;
use crate::books::{RowNames, SeatBook};
use crate::change::{Effect, Key, Row};
use crate::conflict::{self, ConflictRecord, Decision, Reason, Resolution};
use crate::evolution::fill_row;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, LogPosition, Micros, OfficeName};
use crate::message::{
    Answer, LogBody, Logged, LoggedChanges, Outcome, Settled, Settlement, Source, Verdict,
};
use crate::pile::Pile;
use crate::port::Database;
use crate::schema::TableId;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of the rows of a piece, gathered for all of it at once.
pub(super) struct Facts {
    /// The newest version of each row since the two continuations parted.
    pub newest: BTreeMap<Digest, Newest>,
    pub present: BTreeMap<(TableId, Key), Row>,
    /// Rows with counters as they were before the two continuations parted.
    pub shared: BTreeMap<Digest, Row>,
}

/// One piece in the making.
pub(super) struct Relogging<'a> {
    pub head: &'a Head,
    pub now: Micros,
    pub unfit: &'a RowNames,
    pub facts: Facts,
    /// The last place that both continuations share.
    pub agreed: (LogPosition, Digest),
    /// Entries of this log that were logged anew before.
    pub relogged: &'a BTreeSet<LogPosition>,
    pub writer: LogWriter<'a>,
    pub seats: BTreeMap<OfficeName, SeatBook>,
    pub pile: Pile,
    pub lineage: Lineage,
    /// Under which numbers lost decisions are listed here, by the numbers that they had.
    pub numbers: BTreeMap<u64, u64>,
    /// What is written, for finding what of it does not fit.
    pub tried: &'a mut Vec<(TableId, Effect)>,
}

impl Relogging<'_> {
    /// The head's row, as this piece has made it.
    fn ours(&self, table: TableId, key: &Key) -> Option<Row> {
        match self.pile.get(table, key) {
            Some(piled) => piled.cloned(),
            None => self.facts.present.get(&(table, key.clone())).cloned(),
        }
    }

    fn put(&mut self, table: TableId, key: Key, effect: Effect) {
        self.tried.push((table, effect.clone()));
        self.pile.put(table, key, effect);
    }

    /// Lists a decision under the next number, here and in the log. Returns the number.
    async fn list<D: Database>(
        &mut self,
        db: &mut D,
        record: ConflictRecord,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<u64> {
        let id = self.writer.book.conflicts + 1;
        let record = ConflictRecord { id, ..record };
        list(db, &mut self.writer.book, &record).await?;
        let listed = anew.listed.get_or_insert_with(Vec::new);
        listed.push(record.fit_to_travel());
        Ok(id)
    }

    /// Lists a decision of the lost part again.
    async fn list_again<D: Database>(
        &mut self,
        db: &mut D,
        record: &ConflictRecord,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let number = self.list(db, record.clone(), anew).await?;
        self.numbers.insert(record.id, number);
        Ok(())
    }

    /// Whether the branch whose batch an entry answers does not know that answer, and issues the batch again: it went
    /// back from an earlier place of the lost part.
    fn comes_again(&self, answer: &Answer, position: LogPosition) -> bool {
        let seat = self.head.seats.get(&answer.branch);
        let Some(seat) = seat.map(|seat| &seat.book) else {
            return false;
        };
        let returns = seat.taken_before.iter().flatten().chain(&seat.taken_back);
        let mut here = returns.filter(|back| {
            back.apart != Some(true) && back.agreed == self.agreed && back.end.0 < position
        });
        here.any(|back| {
            back.came.is_some_and(|(incarnation, frozen)| {
                incarnation == answer.incarnation && frozen >= answer.batch
            })
        })
    }

    /// The settlements of an entry that count here, with the numbers that their decisions have here.
    async fn settlements<D: Database>(
        &self,
        db: &mut D,
        body: &LoggedChanges,
    ) -> OfficeResult<Vec<Settlement>> {
        let mut settlements = Vec::new();
        for settlement in body.settlements.iter().filter(|one| one.held.is_none()) {
            let mut settlement = settlement.clone();
            if let Some(settled) = settlement.settled.take() {
                let number = self.number_of(db, &settlement, settled.conflict).await?;
                settlement.settled = number.map(|conflict| Settled {
                    conflict,
                    ..settled
                });
            }
            settlements.push(settlement);
        }
        Ok(settlements)
    }

    /// The number under which a decision that was settled in the lost part is listed here, if it is known.
    async fn number_of<D: Database>(
        &self,
        db: &mut D,
        settlement: &Settlement,
        former: u64,
    ) -> OfficeResult<Option<u64>> {
        if let Some(number) = self.numbers.get(&former) {
            return Ok(Some(*number));
        }
        let Some(table) = self.head.schema.table(settlement.table) else {
            return Ok(None);
        };
        let (key, branch) = (&settlement.key, &settlement.branch);
        if let Some(hold) = hold_of(db, table, key, branch).await? {
            return Ok(Some(hold.conflict));
        }
        let listed = holds::record(db, former).await?;
        let same = listed.is_some_and(|record| {
            record.shape.1 == table.id && record.key == *key && record.origin == *branch
        });
        Ok(same.then_some(former))
    }

    /// Logs one entry anew. Returns whether there was anything to log.
    pub async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        entry: LostEntry,
        judged: &Judged,
    ) -> OfficeResult<bool> {
        let LostEntry {
            position,
            body,
            absent,
            unplaced,
            ..
        } = entry;
        let mut answers = body.answers.clone();
        if let Some(answer) = &body.answers {
            let seat = self.seats.get(&answer.branch);
            let seat = seat.or(self.head.seats.get(&answer.branch).map(|seat| &seat.book));
            let again = seat.is_some_and(|seat| {
                seat.incarnation == answer.incarnation && seat.cursor >= answer.batch
            });
            let place = (answer.branch.clone(), answer.incarnation, answer.batch);
            if judged.get(&place) == Some(&answer.chain) {
                // The branch sent it again since the restore, and it was judged.
                self.lineage.follow(&body, &self.head.schema);
                return Ok(false);
            }
            if self.comes_again(answer, position) {
                self.lineage.follow(&body, &self.head.schema);
                return Ok(false);
            }
            let last = BatchNumber(u64::MAX);
            let place = (answer.branch.clone(), answer.incarnation, answer.batch);
            let later = (answer.branch.clone(), answer.incarnation, last);
            let used = judged.range(place..=later).next().is_some();
            if again || used {
                // The branch was restored too, and sent another batch under this number.
                answers = None;
            }
            self.head.answered(&mut self.seats, answer);
        }
        let mut anew = LoggedChanges {
            answers,
            ..LoggedChanges::of_the_head()
        };
        let origin = body.answers.as_ref().map(|answer| &answer.branch);
        for (logged, absent) in body.changes.iter().zip(&absent) {
            self.change(db, logged, absent, origin, &mut anew).await?;
        }
        for unplaced in &unplaced {
            self.list_unplaced(db, unplaced, origin, &mut anew).await?;
        }
        self.verdicts(db, &body, &mut anew).await?;
        let head = self.head;
        let settlements = self.settlements(db, &body).await?;
        head.take_settlements(db, &mut self.writer.book, &mut self.seats, &settlements)
            .await?;
        for settlement in settlements {
            if head.schema.table(settlement.table).is_some() {
                anew.settlements.push(Settlement {
                    row: self.ours(settlement.table, &settlement.key),
                    ..settlement
                });
            }
        }
        for record in body.listed.iter().flatten() {
            self.list_again(db, record, &mut anew).await?;
        }
        let says = !anew.changes.is_empty() || !anew.settlements.is_empty();
        let says = says || anew.listed.is_some();
        if anew.answers.is_none() && !says {
            return Ok(false);
        }
        self.writer.append(db, LogBody::Changes(anew)).await?;
        Ok(true)
    }

    async fn change<D: Database>(
        &mut self,
        db: &mut D,
        logged: &Logged,
        absent: &[u16],
        origin: Option<&OfficeName>,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let Some(table) = self.head.schema.table(logged.table) else {
            return Ok(());
        };
        let key = logged.effect.key(table);
        let newest = self.facts.newest.get(&key.digest(table)).cloned();
        let piled = self.pile.get(table.id, &key).is_some();
        let ours = self.ours(table.id, &key);
        let mut logged = logged.clone();
        if let Effect::Put(row) = &mut logged.effect {
            fill_row(row, absent, ours.as_ref());
        }
        let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
        let same = digest(ours.as_ref()) == digest(logged.effect.row());
        // What a lost entry follows that won is no rival of it.
        // Nor does it matter when the head took what its application had written: also after this had begun.
        let relogged = self.relogged;
        let rival = newest
            .as_ref()
            .is_some_and(|newest| !relogged.contains(&newest.position));
        let contested = rival && !piled;
        let later = newest.as_ref().is_none_or(|newest| logged.at > newest.at);
        let fits = !self.unfit.contains(&(table.id, key.clone()));
        let sum = self.sum(&logged, absent, ours.as_ref(), newest.as_ref(), origin);
        self.lineage.note(table, &key, &logged.effect);
        if let Some((row, reason)) = sum.filter(|_| fits) {
            let at = newest.map_or(logged.at, |newest| newest.at.max(logged.at));
            if let Some(reason) = reason {
                let (now, head) = (self.now, self.head);
                let result = Resolution::Merged;
                let record = head.restored(now, table, &key, origin, &logged, ours.clone(), result);
                let record = ConflictRecord {
                    reason,
                    merged: Some(row.clone()),
                    ..record
                };
                self.list(db, record, anew).await?;
            }
            let effect = Effect::Put(row);
            self.put(table.id, key, effect.clone());
            anew.changes.push(Logged {
                effect,
                at,
                source: Source::Merged,
                ..logged
            });
            return Ok(());
        }
        let wins = fits && (later || !contested);
        if !same && (contested || !fits) {
            let result = if wins {
                Resolution::Theirs
            } else {
                Resolution::Ours
            };
            let (now, head) = (self.now, self.head);
            let record = head.restored(now, table, &key, origin, &logged, ours.clone(), result);
            self.list(db, record, anew).await?;
        }
        if wins && !same {
            self.put(table.id, key, logged.effect.clone());
            anew.changes.push(Logged {
                source: Source::Merged,
                ..logged
            });
        } else if !fits && !same {
            // Branches that followed the lost entry have its row.
            let row = ours.map_or_else(|| Effect::Delete(key.clone()), Effect::Put);
            self.put(table.id, key, row.clone());
            anew.changes.push(Logged {
                table: table.id,
                effect: row,
                at: newest.map_or(logged.at, |newest| newest.at),
                source: Source::Merged,
            });
        } else if anew.answers.is_some() {
            anew.verdicts.push(Verdict {
                table: table.id,
                key,
                outcome: Outcome::Overridden(ours),
                record: None,
            });
        }
        Ok(())
    }

    /// The row in which a counter's steps on both sides count, where there were any on both; with the reason to list it.
    fn sum(
        &self,
        logged: &Logged,
        absent: &[u16],
        ours: Option<&Row>,
        newest: Option<&Newest>,
        origin: Option<&OfficeName>,
    ) -> Option<(Row, Option<Reason>)> {
        let table = self.head.schema.table(logged.table)?;
        if table.counters.is_empty() {
            return None;
        }
        let name = logged.effect.key(table).digest(table);
        let mut before = self.lineage.before(&name, &self.facts.shared)?.clone();
        fill_row(&mut before, absent, ours);
        let (ours, theirs) = (ours?, logged.effect.row()?);
        if ours.digest(table) == before.digest(table) {
            return None;
        }
        let facts = conflict::Facts {
            table,
            origin: origin.unwrap_or(&self.head.identity.name),
            on_present_version: false,
            inserted: false,
            before: Some(&before),
            theirs: Some(theirs),
            at: logged.at,
            ours: Some(ours),
            present: newest.map(|newest| (newest.at, &*newest.origin)),
        };
        match conflict::decide(&facts) {
            Decision::Merge(row, reason) => {
                let reason = reason.map(|reason| match reason {
                    Reason::BelowFloor => reason,
                    _ => Reason::Restored,
                });
                Some((row, reason))
            }
            _ => None,
        }
    }

    /// Keeps what a lost entry says and the present tables have no place for.
    async fn list_unplaced<D: Database>(
        &mut self,
        db: &mut D,
        unplaced: &Unplaced,
        origin: Option<&OfficeName>,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let table = self.head.schema.table(unplaced.table());
        let place = table.zip(unplaced.key.as_ref());
        let kept = unplaced.kept
            && place.is_some_and(|(table, key)| {
                let mut changes = anew.changes.iter();
                changes.any(|one| one.table == table.id && one.effect.key(table) == *key)
            });
        let office = origin.unwrap_or(&self.head.identity.name);
        let record = unplaced.record(0, office, self.now, kept);
        self.list(db, record, anew).await?;
        let (Some((table, key)), Some(_)) = (place, &anew.answers) else {
            return Ok(());
        };
        let mut told = anew.verdicts.iter();
        if !kept && !told.any(|one| one.table == table.id && one.key == *key) {
            anew.verdicts.push(Verdict {
                table: table.id,
                key: key.clone(),
                outcome: Outcome::Overridden(self.ours(table.id, key)),
                record: None,
            });
        }
        Ok(())
    }

    async fn verdicts<D: Database>(
        &mut self,
        db: &mut D,
        body: &LoggedChanges,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let head = self.head;
        for verdict in &body.verdicts {
            let table = head.schema.table(verdict.table);
            let decided = table.is_none_or(|table| {
                let mut changes = body.changes.iter();
                changes.any(|one| one.table == table.id && one.effect.key(table) == verdict.key)
            });
            if decided {
                // What became of the row is decided already; whom it had won against stays listed.
                if let Some(record) = &verdict.record {
                    self.list_again(db, record, anew).await?;
                }
                continue;
            }
            let ours = self.ours(verdict.table, &verdict.key);
            let outcome = match verdict.outcome {
                Outcome::Held => Outcome::Held,
                _ => Outcome::Overridden(ours),
            };
            let mut record = verdict.record.clone();
            if let Some(record) = &mut record {
                let number = self.writer.book.conflicts + 1;
                self.numbers.insert(record.id, number);
                record.id = number;
            }
            let verdict = Verdict {
                outcome,
                record,
                ..verdict.clone()
            };
            if let Some(answer) = &body.answers {
                let listed = std::slice::from_ref(&verdict);
                let (book, seats) = (&mut self.writer.book, &mut self.seats);
                head.take_verdicts(db, book, seats, answer, listed).await?;
            }
            anew.verdicts.push(verdict);
        }
        Ok(())
    }
}
