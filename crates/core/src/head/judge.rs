//! Judging a branch's batches: facts for all of them, decisions in pure code, then one transaction that holds the
//! rows, the log entries with the verdicts, and the branch's cursor (P2, P4).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::recent::Newest;
use super::writer::{Fresh, LogWriter};
use super::{Head, Seat};
use crate::books::{
    self, CONFLICTS, HeadBook, HeldAtHead, Hold, RowNames, SeatBook, seat_name, staged_of,
};
use crate::change::{Base, Change, Effect, Key, Row};
use crate::conflict::{ConflictRecord, Decision, Facts, Reason, Resolution, decide, rfc3339};
use crate::envelope;
use crate::evolution::{Lift, Versions, fill};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, LogPosition, Micros, OfficeName};
use crate::message::{
    Answer, Batch, Keep, LogBody, Logged, LoggedChanges, Message, Outcome, Settled, Settlement,
    Source, Verdict,
};
use crate::output::{Notice, Output};
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Schema, Table, TableId};
use crate::unfit::{self, is_unfit};

/// How often a judgement is begun anew because the head's own application was writing the same rows.
const ATTEMPTS: usize = 20;
/// How many bytes of staged parts are read at a time.
const STAGED_BYTES: usize = 1024 * 1024;

/// What one transaction did.
struct Judged {
    book: HeadBook,
    seat: SeatBook,
    fresh: Vec<Fresh>,
    /// Envelopes of the inbox that it used up.
    used: usize,
    changes: u64,
    notices: Vec<Notice>,
    /// A change was held.
    held: bool,
}

/// How a judgement ended.
enum Judgement {
    Done(Box<Judged>),
    /// The head's application changed one of the rows meanwhile: take that first.
    Clash,
}

/// One judgement in the making.
struct Bench<'a> {
    head: &'a Head,
    branch: &'a OfficeName,
    seat: SeatBook,
    writer: LogWriter<'a>,
    pile: Pile,
    /// Versions that this judgement itself made.
    overlay: BTreeMap<Digest, Newest>,
    records: Vec<ConflictRecord>,
    /// Holds that this judgement makes, and those that it ends.
    held: BTreeMap<(TableId, Key), Option<Hold>>,
    settled: Vec<Settled>,
    changes: u64,
    now: Micros,
    /// Rows that the head's tables do not take.
    unfit: &'a RowNames,
    /// Where accepted effects are noted, when the ones that do not fit are looked for.
    tried: Option<&'a mut Vec<(TableId, Effect)>>,
}

impl Head {
    /// Lands the whole units that wait from one branch. Returns whether anything was done.
    pub(super) async fn judge_branch<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
    ) -> OfficeResult<bool> {
        let Some(seat) = self.seats.get(branch) else {
            return Ok(false);
        };
        let Some(mut run) = seat.whole_units(db.changes_at_a_time()) else {
            return self.stage_parts(db, branch).await;
        };
        let mut unfit = RowNames::new();
        let mut tried = None;
        for _ in 0..ATTEMPTS {
            if let Some(tried) = &mut tried {
                Vec::clear(tried);
            }
            match self
                .judge_once(db, now, branch, run, &unfit, tried.as_mut())
                .await
            {
                Ok(Judgement::Done(judged)) => {
                    self.adopt(branch, *judged);
                    return Ok(true);
                }
                Ok(Judgement::Clash) => while self.take(db, now).await? {},
                Err(error) if is_unfit(&error) => {
                    if self.tables_changed(db).await? {
                        return Ok(true);
                    }
                    // One unit alone, without the rows that do not fit. What is tried is what would be accepted.
                    let Some(seat) = self.seats.get(branch) else {
                        return Err(error);
                    };
                    run = seat.whole_units(0).unwrap_or(run);
                    if let Some(effects) = tried.replace(Vec::new()) {
                        let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
                        if found.is_empty() {
                            return Err(error);
                        }
                        unfit.extend(found);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn judge_once<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        run: usize,
        unfit: &RowNames,
        tried: Option<&mut Vec<(TableId, Effect)>>,
    ) -> OfficeResult<Judgement> {
        db.begin(Purpose::Apply).await?;
        let outcome = match self.judge(db, now, branch, run, unfit, tried).await {
            Ok(Judgement::Done(judged)) => match db.commit().await {
                Ok(()) => return Ok(Judgement::Done(judged)),
                Err(error) => Err(error.into()),
            },
            other => other,
        };
        db.rollback().await?;
        outcome
    }

    fn adopt(&mut self, branch: &OfficeName, judged: Judged) {
        self.book = judged.book;
        self.any_held |= judged.held;
        self.tail.adopt(judged.fresh, &mut self.recent);
        if let Some(seat) = self.seats.get_mut(branch) {
            seat.book = judged.seat;
            seat.staged = false;
            self.outputs.extend(
                seat.inbox
                    .leave(judged.used)
                    .into_iter()
                    .map(Output::Settle),
            );
        }
        self.outputs.push_back(Output::Notice(Notice::Landed {
            changes: judged.changes,
            deferred: 0,
        }));
        self.outputs
            .extend(judged.notices.into_iter().map(Output::Notice));
    }

    async fn judge<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        run: usize,
        unfit: &RowNames,
        tried: Option<&mut Vec<(TableId, Effect)>>,
    ) -> OfficeResult<Judgement> {
        let Some(seat) = self.seats.get(branch) else {
            return Err(OfficeError::Books(format!("no record of branch {branch}")));
        };
        let mut bench = Bench {
            head: self,
            branch,
            seat: seat.book.clone(),
            writer: LogWriter::new(&self.identity, &self.schema, self.book.clone()),
            pile: Pile::default(),
            overlay: BTreeMap::new(),
            records: Vec::new(),
            held: BTreeMap::new(),
            settled: Vec::new(),
            changes: 0,
            now,
            unfit,
            tried,
        };
        if seat.staged {
            let stream = staged_of(branch);
            let mut from = seat.book.cursor.next().0;
            loop {
                let parts = db.entries(&stream, from, STAGED_BYTES).await?;
                let Some(last) = parts.last().map(|part| part.number) else {
                    break;
                };
                for part in &parts {
                    let batch = own_batch(&part.bytes)?;
                    if bench.hear(db, &batch, &part.bytes).await? {
                        return Ok(Judgement::Clash);
                    }
                }
                from = last + 1;
            }
            db.trim(&stream, u64::MAX >> 1).await?;
        }
        for slot in seat.inbox.slots().take(run) {
            if bench.hear(db, &slot.message, &slot.bytes).await? {
                return Ok(Judgement::Clash);
            }
        }
        if bench.flush(db).await? {
            return Ok(Judgement::Clash);
        }
        bench
            .finish(db, run)
            .await
            .map(|judged| Judgement::Done(Box::new(judged)))
    }

    /// Makes the parts of a unit that is too large for the inbox durable, so that the rest can come (SETTLED 2).
    async fn stage_parts<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
    ) -> OfficeResult<bool> {
        let Some(seat) = self.seats.get_mut(branch) else {
            return Ok(false);
        };
        if seat.inbox.has_room() && seat.inbox.len() < 16 {
            return Ok(false);
        }
        let parts: Vec<Entry> = seat
            .inbox
            .slots()
            .map(|slot| Entry {
                number: slot.number,
                bytes: slot.bytes.clone(),
            })
            .collect();
        db.begin(Purpose::Apply).await?;
        let stream = staged_of(branch);
        let outcome = async {
            if !seat.staged {
                db.trim(&stream, u64::MAX >> 1).await?;
            }
            Ok(db.append(&stream, &parts).await?)
        };
        let outcome = outcome.await;
        crate::office::conclude(db, outcome).await?;
        seat.staged = true;
        self.outputs.extend(
            seat.inbox
                .leave(parts.len())
                .into_iter()
                .map(Output::Settle),
        );
        Ok(true)
    }
}

impl Seat {
    /// How many waiting envelopes make whole units, as many as one transaction should judge.
    fn whole_units(&self, enough: usize) -> Option<usize> {
        let mut whole = None;
        let mut changes = 0;
        for (index, slot) in self.inbox.slots().enumerate() {
            changes += slot.message.changes.len();
            if !slot.message.open {
                whole = Some(index + 1);
                if changes >= enough {
                    break;
                }
            }
        }
        whole
    }
}

/// Reads a batch that was staged here.
fn own_batch(bytes: &[u8]) -> OfficeResult<Batch> {
    match envelope::open(bytes)?.read_own()? {
        Message::Batch(batch) => Ok(batch),
        _ => Err(OfficeError::Books("a staged part is not a batch".into())),
    }
}

/// A batch as the present schema version has it.
struct LiftedBatch<'b> {
    changes: Vec<Cow<'b, Change>>,
    unplaced: Vec<Unplaced<'b>>,
}

/// A change of which something has no place in the present tables.
struct Unplaced<'b> {
    change: &'b Change,
    /// The table as the change has it.
    table: &'b Table,
    why: String,
    /// The row's key in the present table, where there is one.
    key: Option<Key>,
}

fn lift_batch<'b>(batch: &'b Batch, versions: &'b Versions, present: &Schema) -> LiftedBatch<'b> {
    let mut lifted = LiftedBatch {
        changes: Vec::with_capacity(batch.changes.len()),
        unplaced: Vec::new(),
    };
    for change in &batch.changes {
        if batch.schema == present.version {
            lifted.changes.push(Cow::Borrowed(change));
            continue;
        }
        let from = versions
            .get(batch.schema)
            .and_then(|schema| schema.table(change.table));
        // What names no table of its own version was refused on arrival.
        let Some(table) = from else {
            continue;
        };
        let mut unplaced = |why: String, key: Option<Key>| {
            lifted.unplaced.push(Unplaced {
                change,
                table,
                why,
                key,
            });
        };
        let Some(to) = present.table(change.table) else {
            unplaced(
                format!("table `{}` is not shared any more", table.name),
                None,
            );
            continue;
        };
        let lift = Lift { from: table, to };
        if lift.is_identity() && change.absent.is_empty() {
            lifted.changes.push(Cow::Borrowed(change));
            continue;
        }
        let key = lift.key(&change.effect.key(table)).ok();
        match lift.change(change) {
            Ok((change, lost)) => {
                if !lost.is_empty() {
                    let told = format!("the head has no longer: {}", lost.join(", "));
                    unplaced(told, key);
                }
                lifted.changes.push(Cow::Owned(change));
            }
            Err(why) => unplaced(why, key),
        }
    }
    lifted
}

/// A change with what is known of its row.
struct Case<'c> {
    change: Cow<'c, Change>,
    key: Key,
    name: Digest,
    newest: Option<Newest>,
    on_present_version: bool,
    /// The base is so old that the log no longer tells whether the row changed since.
    beyond: bool,
    /// An earlier change of this branch to the row is held.
    held: Option<Hold>,
}

impl Case<'_> {
    /// Who made the head's version, where it is another than the one that the change was made on.
    fn who_wrote_ours(&self, exists: bool) -> Option<String> {
        let newest = self.newest.as_ref().filter(|_| !self.on_present_version)?;
        let done = if exists { "written" } else { "deleted" };
        Some(format!(
            "the head's row was {done} by {} at {}",
            newest.origin,
            rfc3339(newest.at)
        ))
    }
}

impl Bench<'_> {
    /// Judges one batch. Returns whether the application was in the way.
    async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        batch: &Batch,
        bytes: &[u8],
    ) -> OfficeResult<bool> {
        let LiftedBatch { changes, unplaced } =
            lift_batch(batch, &self.head.versions, &self.head.schema);
        let mut cases = self.gather(db, &changes).await?;
        let present = self.present_rows(db, &mut cases).await?;
        let position = self.writer.next();
        let mut body = LoggedChanges {
            answers: Some(Answer {
                branch: self.branch.clone(),
                incarnation: self.seat.incarnation,
                batch: batch.number,
                chain: envelope::chain(bytes),
            }),
            changes: Vec::with_capacity(cases.len()),
            verdicts: Vec::new(),
            open: batch.open,
            settlements: Vec::new(),
        };
        for case in cases {
            self.rule(&case, &present, position, batch.number, &mut body);
        }
        for unplaced in unplaced {
            self.list_unplaced(db, unplaced, batch, &mut body).await?;
        }
        self.changes += batch.changes.len() as u64;
        self.seat.cursor = batch.number;
        self.seat.chain = envelope::chain(bytes);
        self.writer.append(db, LogBody::Changes(body)).await?;
        if self.pile.is_full() {
            self.flush(db).await
        } else {
            Ok(false)
        }
    }

    /// Finds, for all changes at once, the newest version of each row.
    async fn gather<'c, D: Database>(
        &self,
        db: &mut D,
        changes: &'c [Cow<'c, Change>],
    ) -> OfficeResult<Vec<Case<'c>>> {
        let schema = &self.head.schema;
        let mut oldest = self.writer.book.last;
        let mut cases = Vec::with_capacity(changes.len());
        let mut names = BTreeSet::new();
        for change in changes {
            let Some(table) = schema.table(change.table) else {
                continue;
            };
            let key = change.effect.key(table);
            let name = key.digest(table);
            match change.base {
                Base::Log(position) | Base::Own(_, position) => oldest = oldest.min(position),
                // Nothing tells how old such a row is: the whole log may hold something newer.
                Base::Unknown => oldest = LogPosition::NONE,
            }
            names.insert(name);
            cases.push(Case {
                change: Cow::Borrowed(change),
                key,
                name,
                newest: None,
                on_present_version: true,
                beyond: false,
                held: None,
            });
        }
        let found = self
            .head
            .recent
            .newest(
                db,
                &self.head.versions,
                &self.head.identity.shared_name,
                &names,
                oldest,
            )
            .await?;
        for case in &mut cases {
            let newest = self
                .overlay
                .get(&case.name)
                .or_else(|| found.get(&case.name));
            case.newest = newest.cloned();
            let beyond = match case.change.base {
                Base::Log(place) | Base::Own(_, place) => self.head.is_beyond(place),
                Base::Unknown => false,
            };
            case.beyond = beyond && newest.is_none();
            case.on_present_version = case.change.base != Base::Unknown
                && !case.beyond
                && newest.is_none_or(|newest| {
                    newest.is_seen_by(case.change.base, self.branch, self.seat.incarnation)
                });
        }
        if self.head.any_held || !self.held.is_empty() {
            self.mark_held(db, &mut cases).await?;
        }
        Ok(cases)
    }

    async fn mark_held<D: Database>(&self, db: &mut D, cases: &mut [Case<'_>]) -> OfficeResult<()> {
        for table in &self.head.schema.tables {
            let keys: Vec<Key> = cases
                .iter()
                .filter(|case| case.change.table == table.id)
                .map(|case| case.key.clone())
                .collect();
            if keys.is_empty() {
                continue;
            }
            let notes = db.notes(table, Some(&keys)).await?;
            for case in cases
                .iter_mut()
                .filter(|case| case.change.table == table.id)
            {
                let here = self.held.get(&(table.id, case.key.clone()));
                case.held = match (here, notes.get(&case.key)) {
                    (Some(hold), _) => hold.clone(),
                    (None, Some(note)) => {
                        let note: HeldAtHead = books::decode(note)?;
                        note.of(self.branch).cloned()
                    }
                    (None, None) => None,
                };
            }
        }
        Ok(())
    }

    /// Reads the head's rows for the changes that need them to be decided.
    async fn present_rows<D: Database>(
        &self,
        db: &mut D,
        cases: &mut [Case<'_>],
    ) -> OfficeResult<BTreeMap<(TableId, Key), Row>> {
        let mut present = BTreeMap::new();
        for table in &self.head.schema.tables {
            let down = table.direction == crate::schema::Direction::Down;
            let keys: Vec<Key> = cases
                .iter()
                .filter(|case| {
                    case.change.table == table.id
                        && (down
                            || !case.on_present_version
                            || case.held.is_some()
                            || !case.change.absent.is_empty()
                            || self.unfit.contains(&(table.id, case.key.clone())))
                })
                .map(|case| case.key.clone())
                .collect();
            if keys.is_empty() {
                continue;
            }
            let mut rows = db.read(table, &keys).await?;
            for key in keys {
                let row = match self.pile.get(table.id, &key) {
                    Some(piled) => piled.cloned(),
                    None => rows.remove(&key),
                };
                if let Some(row) = row {
                    present.insert((table.id, key), row);
                }
            }
        }
        for case in cases
            .iter_mut()
            .filter(|case| !case.change.absent.is_empty())
        {
            let ours = present.get(&(case.change.table, case.key.clone()));
            fill(case.change.to_mut(), ours);
        }
        for case in cases
            .iter_mut()
            .filter(|case| case.change.base == Base::Unknown)
        {
            let free = !present.contains_key(&(case.change.table, case.key.clone()));
            case.on_present_version = free && case.newest.is_none();
        }
        for case in cases.iter_mut().filter(|case| case.beyond) {
            let Some(table) = self.head.schema.table(case.change.table) else {
                continue;
            };
            let ours = present.get(&(case.change.table, case.key.clone()));
            let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
            // Only a row that was never there, or is just as the branch found it, is surely the version that it changed.
            case.on_present_version = match &case.change.before {
                _ if case.change.inserted => ours.is_none(),
                Some(before) => digest(ours) == digest(Some(before)),
                None => false,
            };
        }
        Ok(present)
    }

    /// Decides one change and notes what follows from it.
    fn rule(
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
        let place = (table.id, case.key.clone());
        let ours = present.get(&place);
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
                if self.unfit.contains(&place) =>
            {
                Decision::Hold(Reason::DoesNotFit)
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
            self.held.insert(place, Some(hold));
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
        });
    }

    /// The effect becomes the row's version. It is the branch's own where `batch` says which one brought it; otherwise
    /// it was made of both sides' changes.
    fn accept(
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
        let origin = Arc::new(self.branch.clone());
        self.overlay.insert(
            case.name,
            Newest {
                position,
                origin,
                batch: batch.map(|batch| (self.seat.incarnation, batch)),
                at,
            },
        );
        body.changes.push(Logged {
            table: case.change.table,
            effect,
            at,
            source: match batch {
                Some(_) if case.change.absent.is_empty() => Source::Sender,
                Some(_) => Source::Lifted,
                None => Source::Merged,
            },
        });
    }

    /// Keeps what a batch of an earlier schema version says and the present tables have no place for: the head's row
    /// stands, and the branch's is listed whole.
    async fn list_unplaced<D: Database>(
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
            shape: (batch.schema, table.id),
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

    fn record(
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
            detail: case.who_wrote_ours(ours.is_some()),
            shape: (self.head.schema.version, case.change.table),
        };
        self.records.push(record.clone());
        record.fit_to_travel()
    }

    async fn flush<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        Ok(!self.pile.write(db, &self.head.schema).await?.is_empty())
    }

    /// Writes the books of this judgement; the caller commits.
    async fn finish<D: Database>(mut self, db: &mut D, used: usize) -> OfficeResult<Judged> {
        let mut notices = Vec::new();
        let mut conflicts = Vec::with_capacity(self.records.len());
        for record in &self.records {
            conflicts.push(Entry {
                number: record.id,
                bytes: books::encode(record)?,
            });
            notices.push(Notice::Conflict {
                id: record.id,
                table: record.table.clone(),
                reason: record.reason.code(),
            });
        }
        if !conflicts.is_empty() {
            db.append(CONFLICTS, &conflicts).await?;
        }
        for settled in &self.settled {
            let name = books::settled_name(settled.conflict);
            books::store(db, &name, settled).await?;
        }
        let held = !self.held.is_empty();
        for ((id, key), hold) in std::mem::take(&mut self.held) {
            let Some(table) = self.head.schema.table(id) else {
                continue;
            };
            super::holds::set(db, table, &key, self.branch, hold).await?;
        }
        self.seat.seen = self.now;
        books::store(db, &seat_name(self.branch), &self.seat).await?;
        self.writer.finish(db).await?;
        let LogWriter { book, fresh, .. } = self.writer;
        Ok(Judged {
            book,
            seat: self.seat,
            fresh,
            used,
            changes: self.changes,
            notices,
            held,
        })
    }
}
