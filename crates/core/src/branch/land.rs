//! Landing: log entries enter this database in whole units, in one transaction with the cursor (P2, P5).
//!
//! A row with local changes that the head has not answered is left alone until the verdict arrives; a note remembers
//! from which entry on, since that is the base of those changes (SETTLED 3 and 4).

use std::collections::BTreeMap;

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, CONFLICTS, Note, OUTBOX, Pages, RowNames, STAGED};
use crate::change::{Effect, Key, Row};
use crate::conflict::ConflictRecord;
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::head::own_entry;
use crate::identity::{BatchNumber, Digest, LogPosition};
use crate::message::{
    Answer, Barrier, LogBody, LogEntry, LoggedChanges, Outcome, Settled, Settlement, Source,
    Verdict,
};
use crate::output::{Notice, Output};
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Direction, Table, TableId};
use crate::staged::stage;
use crate::unfit::is_unfit;

/// How often a landing is begun anew because the application was writing the same rows.
const ATTEMPTS: usize = 50;
/// How many entries followed are written at a time.
const FOLLOWED_PIECE: usize = 16;

/// Rows that a landing leaves alone.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Rows found to have local changes meanwhile.
    pub busy: RowNames,
    /// Rows that the tables here do not take.
    pub unfit: RowNames,
    /// Counters with local changes, since one of them may not fit.
    pub counters: bool,
}

/// Where the numbers begin under which decisions are listed whose own number was given twice.
pub(crate) const MOVED_RECORDS: u64 = 1 << 40;

/// One landing in the making.
struct Landing<'a> {
    branch: &'a Branch,
    book: BranchBook,
    pile: Pile,
    /// Counters with unanswered changes: what the log says of the row, and the last batch that this includes.
    hot: BTreeMap<(TableId, Key), (Row, BatchNumber)>,
    aside: &'a Aside,
    notes: BTreeMap<(TableId, Key), Option<Note>>,
    records: Vec<ConflictRecord>,
    settled: Vec<Settled>,
    /// Entries not yet written to the stream of those followed.
    followed: Vec<Entry>,
    answered_rows: Vec<Digest>,
    changes: u64,
    deferred: u64,
    reused: bool,
}

/// What a landing leaves to adopt after the commit.
struct Landed {
    book: BranchBook,
    answered_rows: Vec<Digest>,
    any_notes: bool,
    changes: u64,
    deferred: u64,
    records: Vec<ConflictRecord>,
    reused: bool,
}

enum LandingEnd {
    Done(Box<Landed>),
    /// These rows have local changes that appeared meanwhile.
    Clash(Vec<(TableId, Key)>),
}

impl Branch {
    pub(super) fn purpose(&self) -> Purpose {
        if self.book.joining.is_some() {
            Purpose::Load
        } else {
            Purpose::Apply
        }
    }

    /// Lands whole units that wait. Returns whether anything was done.
    pub(super) async fn land<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        self.answer_passed(db).await?;
        if let Some(step) = self.next_step() {
            return self.take_step(db, step).await;
        }
        let Some((mut run, mut barrier)) = self.whole_units(db.changes_at_a_time()) else {
            return self.stage_parts(db).await;
        };
        let mut aside = Aside::default();
        for _ in 0..ATTEMPTS {
            match self.land_once(db, run, &aside).await {
                Ok(LandingEnd::Done(landed)) => {
                    self.adopt_landing(*landed, run);
                    self.passed = barrier.map(|barrier| (self.book.cursor, barrier));
                    self.answer_passed(db).await?;
                    return Ok(true);
                }
                Ok(LandingEnd::Clash(rows)) => aside.busy.extend(rows),
                Err(error) if is_unfit(&error) && !aside.counters => aside.counters = true,
                Err(error) if is_unfit(&error) => {
                    // One unit alone, which may fit; then without the rows that do not.
                    let several = run;
                    (run, barrier) = self.whole_units(0).unwrap_or((run, barrier));
                    if run < several {
                        continue;
                    }
                    let found = self.find_unfit(db, run, &aside).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    aside.unfit.extend(found);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn land_once<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<LandingEnd> {
        db.begin(self.purpose()).await?;
        let outcome = match self.try_landing(db, run, aside).await {
            Ok(LandingEnd::Done(landed)) => match db.commit().await {
                Ok(()) => return Ok(LandingEnd::Done(landed)),
                Err(error) => Err(error.into()),
            },
            other => other,
        };
        db.rollback().await?;
        outcome
    }

    /// How many waiting entries one transaction should land, and the barrier that ends them.
    fn whole_units(&self, enough: usize) -> Option<(usize, Option<Barrier>)> {
        let mut whole = None;
        let mut changes = 0;
        for (index, slot) in self.inbox.slots().enumerate() {
            match &slot.message.body {
                LogBody::Schema(_) => return whole,
                LogBody::Barrier(barrier) => return Some((index + 1, Some(barrier.clone()))),
                LogBody::Changes(body) => {
                    changes += slot.changes;
                    if !body.open {
                        whole = Some((index + 1, None));
                        if changes >= enough {
                            break;
                        }
                    }
                }
            }
        }
        whole
    }

    async fn try_landing<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<LandingEnd> {
        let mut landing = Landing {
            branch: self,
            book: self.book.clone(),
            pile: Pile::default(),
            hot: BTreeMap::new(),
            aside,
            notes: BTreeMap::new(),
            records: Vec::new(),
            settled: Vec::new(),
            followed: Vec::new(),
            answered_rows: Vec::new(),
            changes: 0,
            deferred: 0,
            reused: false,
        };
        if self.staged {
            let mut pages = Pages::from(STAGED, self.book.cursor.next().0);
            while let Some(parts) = pages.next(db).await? {
                for part in &parts {
                    let clashes = landing
                        .hear(db, &own_entry(&part.bytes)?, &part.bytes)
                        .await?;
                    if !clashes.is_empty() {
                        return Ok(LandingEnd::Clash(clashes));
                    }
                }
            }
            db.trim(STAGED, u64::MAX >> 1).await?;
        }
        for slot in self.inbox.slots().take(run) {
            let clashes = landing.hear(db, &slot.message, &slot.bytes).await?;
            if !clashes.is_empty() {
                return Ok(LandingEnd::Clash(clashes));
            }
        }
        landing.show_counters(db).await?;
        let clashes = landing.pile.write(db, &self.schema).await?;
        if !clashes.is_empty() {
            return Ok(LandingEnd::Clash(clashes));
        }
        landing
            .finish(db)
            .await
            .map(|landed| LandingEnd::Done(Box::new(landed)))
    }

    fn adopt_landing(&mut self, landed: Landed, run: usize) {
        for name in landed.answered_rows {
            self.steps.forget(&name, landed.book.answered);
            if self
                .claims
                .get(&name)
                .is_some_and(|batch| *batch <= landed.book.answered)
            {
                self.claims.remove(&name);
            }
        }
        self.chains = self.chains.split_off(&landed.book.answered.next());
        // Room in the window again: what could not be frozen is looked for.
        self.captured |= landed.book.answered != self.book.answered;
        self.book = landed.book;
        self.staged = false;
        self.any_notes |= landed.any_notes;
        self.reused |= landed.reused;
        self.outputs
            .extend(self.inbox.leave(run).into_iter().map(Output::Settle));
        self.notice(Notice::Landed {
            changes: landed.changes,
            deferred: landed.deferred,
        });
        for record in landed.records {
            self.notice(Notice::Conflict {
                id: record.id,
                table: record.table,
                reason: record.reason.code(),
            });
        }
    }

    /// Makes the parts of a unit that is too large for the inbox durable, so that the rest can come (SETTLED 2).
    async fn stage_parts<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        let parts = stage(db, STAGED, &self.inbox, self.staged).await?;
        let Some(parts) = parts else {
            return Ok(false);
        };
        self.staged = true;
        self.outputs
            .extend(self.inbox.leave(parts).into_iter().map(Output::Settle));
        Ok(true)
    }
}

impl Landing<'_> {
    /// Takes one entry. Returns rows in whose way the application is.
    async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        entry: &LogEntry,
        bytes: &[u8],
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        if entry.position != self.book.cursor.next() {
            return Err(OfficeError::Books(format!(
                "log entry {} does not follow {}",
                entry.position, self.book.cursor
            )));
        }
        if entry.schema != self.branch.schema.version {
            return Err(OfficeError::Books(format!(
                "log entry {} stands in schema version {}, this office is at {}",
                entry.position, entry.schema, self.branch.schema.version
            )));
        }
        self.book.cursor = entry.position;
        self.book.log_chain = envelope::chain(bytes);
        self.follow(db, entry.position, bytes).await?;
        let LogBody::Changes(body) = &entry.body else {
            return Ok(Vec::new());
        };
        self.gather_notes(db, body).await?;
        let passed_over = self.passed_over(db, body).await?;
        let mine = self.mine(db, body).await?;
        if let Some(answer) = mine {
            // A head that was restored may answer again.
            self.book.answered = self.book.answered.max(answer.batch);
        }
        // Also what an earlier life of this database sent, and this one lost.
        let own = body
            .answers
            .as_ref()
            .is_some_and(|answer| answer.branch == self.branch.identity.name);
        for logged in &body.changes {
            let Some(table) = self.branch.schema.table(logged.table) else {
                continue;
            };
            let key = logged.effect.key(table);
            if mine.is_some() && logged.source == Source::Sender {
                self.confirmed(table, key, &logged.effect);
            } else if mine.is_some() {
                self.answered_rows.push(key.digest(table));
                self.candidate(table, key, logged.effect.clone(), entry.position, true);
            } else if own || table.direction != Direction::Up {
                let here = !passed_over.contains(&(table.id, key.clone()));
                self.candidate(table, key, logged.effect.clone(), entry.position, here);
            }
        }
        if let Some(answer) = mine {
            for verdict in &body.verdicts {
                self.verdict(verdict, answer.batch, entry.position);
            }
        }
        for settlement in &body.settlements {
            if settlement.branch == self.branch.identity.name {
                self.settle(settlement, entry.position);
            }
        }
        self.changes += body.changes.len() as u64;
        if self.pile.is_full() {
            self.pile.write(db, &self.branch.schema).await
        } else {
            Ok(Vec::new())
        }
    }

    /// Keeps the entry for a head that may be restored one day (SETTLED 10).
    async fn follow<D: Database>(
        &mut self,
        db: &mut D,
        position: LogPosition,
        bytes: &[u8],
    ) -> OfficeResult<()> {
        self.followed.push(Entry {
            number: position.0,
            bytes: bytes.to_vec(),
        });
        if self.followed.len() >= FOLLOWED_PIECE {
            let piece = std::mem::take(&mut self.followed);
            db.append(&self.book.followed(), &piece).await?;
        }
        Ok(())
    }

    /// Rows of tables whose first copy has not begun, which are not here in any form: their chunks come later.
    ///
    /// A row that the branch had before, or is writing, is followed from the start: a chunk tells nothing of deletes,
    /// and the base of its changes is what it was given.
    async fn passed_over<D: Database>(
        &self,
        db: &mut D,
        body: &LoggedChanges,
    ) -> OfficeResult<RowNames> {
        let mut passed = RowNames::new();
        if self.branch.book.joining.is_none() {
            return Ok(passed);
        }
        for table in &self.branch.schema.tables {
            if self.branch.is_loading_or_loaded(table) {
                continue;
            }
            let changed = body.changes.iter().filter(|c| c.table == table.id);
            let keys: Vec<Key> = changed.map(|c| c.effect.key(table)).collect();
            if keys.is_empty() {
                continue;
            }
            let present = db.read(table, &keys).await?;
            let captured = db.captured(table, Some(&keys)).await?;
            passed.extend(
                keys.into_iter()
                    .filter(|key| {
                        !present.contains_key(key)
                            && !captured.contains(key)
                            && self.pile.get(table.id, key).is_none()
                    })
                    .map(|key| (table.id, key)),
            );
        }
        Ok(passed)
    }

    /// What the entry answers of this branch's. Batches that a restored database does not know come back as any other
    /// office's changes.
    async fn mine<'e, D: Database>(
        &mut self,
        db: &mut D,
        body: &'e LoggedChanges,
    ) -> OfficeResult<Option<&'e Answer>> {
        let Some(answer) = body.answers.as_ref().filter(|answer| {
            answer.branch == self.branch.identity.name
                && answer.incarnation == self.book.incarnation
        }) else {
            return Ok(None);
        };
        if answer.batch > self.book.frozen {
            self.reused = true;
            return Ok(None);
        }
        let same = match self.branch.chains.get(&answer.batch) {
            Some(chain) => *chain == answer.chain,
            None => {
                let sent = db.entries(OUTBOX, answer.batch.0, 1).await?;
                let sent = sent.first().filter(|sent| sent.number == answer.batch.0);
                sent.is_some_and(|sent| envelope::chain(&sent.bytes) == answer.chain)
            }
        };
        // Batches of an earlier life may still have been on their way when the head greeted this one.
        self.reused |= !same && answer.batch > self.book.answered;
        Ok(same.then_some(answer))
    }

    async fn gather_notes<D: Database>(
        &mut self,
        db: &mut D,
        body: &LoggedChanges,
    ) -> OfficeResult<()> {
        if !self.branch.any_notes {
            return Ok(());
        }
        for table in &self.branch.schema.tables {
            let changed = body
                .changes
                .iter()
                .filter(|c| c.table == table.id)
                .map(|c| c.effect.key(table));
            let judged = body
                .verdicts
                .iter()
                .filter(|v| v.table == table.id)
                .map(|v| v.key.clone());
            let settled = body
                .settlements
                .iter()
                .filter(|s| s.table == table.id && s.branch == self.branch.identity.name)
                .map(|s| s.key.clone());
            let keys: Vec<Key> = changed
                .chain(judged)
                .chain(settled)
                .filter(|key| !self.notes.contains_key(&(table.id, key.clone())))
                .collect();
            if keys.is_empty() {
                continue;
            }
            for (key, note) in db.notes(table, Some(&keys)).await? {
                self.notes
                    .insert((table.id, key), Some(books::decode(&note)?));
            }
        }
        Ok(())
    }

    /// The head accepted this branch's change as it was.
    fn confirmed(&mut self, table: &Table, key: Key, effect: &Effect) {
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

    fn verdict(&mut self, verdict: &Verdict, batch: BatchNumber, position: LogPosition) {
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
    fn settle(&mut self, settlement: &Settlement, position: LogPosition) {
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
    fn candidate(
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
    async fn show_counters<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
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

    /// Writes the books of this landing; the caller commits.
    async fn finish<D: Database>(self, db: &mut D) -> OfficeResult<Landed> {
        let mut any_notes = false;
        for table in &self.branch.schema.tables {
            let here = self.notes.iter().filter(|((id, _), _)| *id == table.id);
            let mut notes = Vec::new();
            for ((_, key), note) in here {
                any_notes |= note.is_some();
                notes.push((key.clone(), note.as_ref().map(books::encode).transpose()?));
            }
            if !notes.is_empty() {
                db.set_notes(table, &notes).await?;
            }
        }
        let records: OfficeResult<Vec<Entry>> = self
            .records
            .iter()
            .map(|record| {
                Ok(Entry {
                    number: record.id,
                    bytes: books::encode(record)?,
                })
            })
            .collect();
        for record in records? {
            append_record(db, record).await?;
        }
        if !self.followed.is_empty() {
            db.append(&self.book.followed(), &self.followed).await?;
        }
        for settled in &self.settled {
            let name = books::settled_name(settled.conflict);
            books::store(db, &name, settled).await?;
        }
        books::store(db, BRANCH, &self.book).await?;
        Ok(Landed {
            book: self.book,
            answered_rows: self.answered_rows,
            any_notes,
            changes: self.changes,
            deferred: self.deferred,
            records: self.records,
            reused: self.reused,
        })
    }
}

/// Adds a decision to the list. A head that was restored may have given its number to another one before.
pub(crate) async fn append_record<D: Database>(db: &mut D, record: Entry) -> OfficeResult<()> {
    let listed = db.entries(CONFLICTS, record.number, 1).await?;
    let listed = listed
        .first()
        .filter(|listed| listed.number == record.number);
    if listed.is_some_and(|listed| listed.bytes == record.bytes) {
        return Ok(());
    }
    if listed.is_some() {
        // Under a number that means nothing at the head: it is settled there.
        let mut moved: ConflictRecord = books::decode(&record.bytes)?;
        let last = db.extent(CONFLICTS).await?.last;
        moved.id = last.saturating_add(1).max(MOVED_RECORDS);
        let moved = Entry {
            number: moved.id,
            bytes: books::encode(&moved)?,
        };
        return Ok(db.append(CONFLICTS, &[moved]).await?);
    }
    Ok(db.append(CONFLICTS, &[record]).await?)
}
