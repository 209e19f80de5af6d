//! A head that was restored from a backup takes back from its branches what it lost (SETTLED 10).
//!
//! A branch keeps the log entries that it followed, as the head signed them. Where the restored head has written nothing
//! since, they are appended to its log just as they were, and every base, cursor and verdict in them is true again.
//! Where the head has gone on, its own continuation stands; the lost entries are logged anew behind it, held against
//! what was changed meanwhile, and the branches that followed them go back to the last place that both share.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;

use super::recent::{Recent, names_of, own_entry, rows_of};
use super::writer::{HEAD, LogWriter, Tail};
use super::{Head, Seat, holds};
use crate::books::{
    self, CONFLICTS, HeadBook, HeldAtHead, Hold, LOG, LOG_KEYS, RowNames, SeatBook, TakenBack,
    seat_name,
};
use crate::change::{Base, Effect, Key, Row};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::message::{
    Answer, Batch, Hello, LogBody, LogEntry, Logged, LoggedChanges, Message, Outcome, Position,
    Recall, Recalled, Refusal, Settlement, Source, Verdict,
};
use crate::office::conclude;
use crate::output::{Notice, Output, Token};
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Table, TableId};
use crate::succession::sealed_by;
use crate::unfit::{self, is_unfit};

/// The name of the record that lists where the log ended at the last starts: a restored log goes on from one of them.
pub(super) const STARTS: &str = "starts";
/// The record that says that the log came back with rows that the application had written again: that one of them came and
/// went since the backup must be logged, since the log has it.
pub(super) const LEFT: &str = "left";
/// How many starts are remembered.
const STARTS_KEPT: usize = 32;
/// Bytes read of a stream at a time.
const READ_BYTES: usize = 1024 * 1024;
/// How often a piece is begun anew because the head's application was writing the same rows.
const ATTEMPTS: usize = 20;

/// How a greeting branch stands to the log.
pub(super) enum Standing {
    /// What it followed is the log's own past.
    Agrees,
    /// It followed something that this log does not have.
    Ahead,
    /// The same, and what it has was taken back already: it is to follow from here.
    GoBack(LogPosition, Digest),
    /// The log no longer goes back so far.
    BeyondHorizon,
}

/// What a branch is asked for.
#[derive(Debug)]
pub(super) struct Asking {
    points: Vec<(LogPosition, Digest)>,
    /// Where lost entries are being logged anew: the last place that both share, and the end of the log at the first.
    anew: Option<((LogPosition, Digest), LogPosition)>,
}

impl Head {
    /// Remembers where the log ends at this start.
    pub(super) async fn note_start<D: Database>(&self, db: &mut D) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let mut starts: Vec<LogPosition> = books::load(db, STARTS).await?.unwrap_or_default();
            if starts.last() != Some(&self.book.last) {
                starts.push(self.book.last);
                let surplus = starts.len().saturating_sub(STARTS_KEPT);
                starts.drain(..surplus);
                books::store(db, STARTS, &starts).await?;
            }
            Ok(())
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// The hash of the entry at a place, if the log tells it.
    async fn chain_at<D: Database>(
        &self,
        db: &mut D,
        place: LogPosition,
    ) -> OfficeResult<Option<Digest>> {
        if place >= self.book.last {
            return Ok((place == self.book.last).then_some(self.book.chain));
        }
        let next = place.next().0;
        let entries = db.entries(LOG, next, 1).await?;
        let entry = entries.first().filter(|entry| entry.number == next);
        entry
            .map(|entry| Ok(own_entry(&entry.bytes)?.previous))
            .transpose()
    }

    /// How a greeting branch stands to the log.
    pub(super) async fn standing<D: Database>(
        &self,
        db: &mut D,
        origin: &OfficeName,
        hello: &Hello,
    ) -> OfficeResult<Standing> {
        if hello.head.is_none() {
            return Ok(Standing::Agrees);
        }
        db.begin(Purpose::Read).await?;
        let outcome = async {
            let chain = self.chain_at(db, hello.applied).await?;
            let first = db.extent(LOG).await?.first;
            Ok((chain, first))
        };
        let outcome = outcome.await;
        let (chain, first) = conclude(db, outcome).await?;
        let ended = (hello.applied, hello.chain);
        Ok(match chain {
            Some(chain) if chain == hello.chain => Standing::Agrees,
            None if hello.applied.next().0 < first => Standing::BeyondHorizon,
            _ => {
                let taken = self.seats.get(origin);
                let taken = taken.and_then(|seat| seat.book.taken_back.as_ref());
                match taken.filter(|taken| taken.end == ended) {
                    Some(taken) => Standing::GoBack(taken.agreed.0, taken.agreed.1),
                    None => Standing::Ahead,
                }
            }
        })
    }

    /// Whether a batch's bases speak of another log than this one: its branch followed what this head has lost, or has not
    /// yet followed how it went on. A broker may bring such a batch before the branch's greeting.
    pub(super) async fn is_of_another_past<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
        batch: &Batch,
    ) -> OfficeResult<bool> {
        let seat = self.seats.get(branch).filter(|seat| !seat.agrees);
        let (Some(seat), Some(ended)) = (seat, batch.log) else {
            return Ok(false);
        };
        if seat.agreed == Some(ended) || ended.0.next() < self.log_first {
            return Ok(false);
        }
        db.begin(Purpose::Read).await?;
        let outcome = self.chain_at(db, ended.0).await;
        let same = conclude(db, outcome).await? == Some(ended.1);
        if let Some(seat) = self.seats.get_mut(branch).filter(|_| same) {
            seat.agreed = Some(ended);
        }
        Ok(!same)
    }

    /// Leaves a batch to its branch, which sends it again when it has greeted; it is made to greet.
    pub(super) fn put_off(
        &mut self,
        now: Micros,
        branch: &OfficeName,
        batch: &Batch,
        token: Token,
    ) -> OfficeResult<()> {
        let why = format!(
            "batch {} of {branch} was made on entries that this log does not have; {branch} is to greet first",
            batch.number
        );
        self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
        self.outputs.push_back(Output::Settle(token));
        // A place before its own tells the branch that the head may have been restored.
        let position = Position {
            produced: 0,
            applied: None,
            question: 0,
            clock: now,
            session: [0; 16],
            offset: None,
        };
        self.tell(branch, &Message::Position(position))
    }

    /// Asks a branch for what this log lost.
    pub(super) async fn recall<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
        applied: LogPosition,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let outcome = self.points(db, applied).await;
        let points = conclude(db, outcome).await?;
        if let Some(seat) = self.seats.get_mut(branch) {
            seat.asking = Some(Asking {
                points: points.clone(),
                anew: None,
            });
        }
        let after = LogPosition::NONE;
        self.tell(branch, &Message::Recall(Recall { points, after }))
    }

    /// Places to compare: where the log ended at the last starts, and from its end backwards in growing steps.
    async fn points<D: Database>(
        &self,
        db: &mut D,
        applied: LogPosition,
    ) -> OfficeResult<Vec<(LogPosition, Digest)>> {
        let mut places: Vec<LogPosition> = books::load(db, STARTS).await?.unwrap_or_default();
        let end = applied.min(self.book.last);
        places.push(end);
        places.extend(self.predecessors.iter().map(|former| former.through));
        let mut step = 1;
        while step < end.0 {
            places.push(LogPosition(end.0 - step));
            step *= 2;
        }
        places.sort_unstable();
        places.dedup();
        let mut points = Vec::new();
        for place in places.into_iter().filter(|place| *place <= end) {
            if let Some(chain) = self.chain_at(db, place).await? {
                points.push((place, chain));
            }
        }
        Ok(points)
    }

    /// Takes a piece of the lost log in. Returns whether anything was done.
    pub(super) async fn take_back<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        recalled: Recalled,
    ) -> OfficeResult<bool> {
        let Some(asking) = self
            .seats
            .get_mut(branch)
            .and_then(|seat| seat.asking.take())
        else {
            return Ok(false);
        };
        let agreed = recalled
            .agreed
            .and_then(|agreed| asking.points.iter().find(|(place, _)| *place == agreed));
        let Some(agreed) = agreed.copied() else {
            let refusal = Refusal {
                session: self.seats.get(branch).map_or([0; 16], |seat| seat.sessions.present),
                reason: "the head was restored from a backup, and this branch keeps nothing so old as that backup; run `branchline leave` here, and join again with a new code: what was not sent yet is uploaded then".into(),
                reincarnate: false,
                incarnation: books_incarnation(self.seats.get(branch)),
                cursor: BatchNumber::NONE,
 copied: false,
};
            self.tell(branch, &Message::Refusal(refusal))?;
            return Ok(true);
        };
        let mut lost = self.read_lost(branch, &recalled)?;
        let Some(last) = lost.last().map(|(entry, _)| entry.position) else {
            return Ok(true);
        };
        self.seat_strangers(db, &lost).await?;
        let mut agreed = asking.anew.map_or(agreed, |(agreed, _)| agreed);
        db.begin(Purpose::Read).await?;
        let outcome = self.skip_known(db, &mut agreed, &mut lost).await;
        conclude(db, outcome).await?;
        let follows = lost.first().is_some_and(|(entry, _)| {
            entry.position == self.book.last.next() && entry.previous == self.book.chain
        });
        let anew = if lost.is_empty() {
            asking.anew
        } else if follows && asking.anew.is_none() {
            self.adopt_all(db, now, &lost).await?;
            None
        } else {
            let (_, from) = asking.anew.unwrap_or((agreed, self.book.last));
            let end = (last == recalled.end.0).then_some(recalled.end);
            self.log_anew(db, now, branch, &lost, (agreed, from), end)
                .await?;
            Some((agreed, from))
        };
        if last < recalled.end.0 {
            let points = if anew.is_some() || lost.is_empty() {
                asking.points
            } else {
                vec![(self.book.last, self.book.chain)]
            };
            if let Some(seat) = self.seats.get_mut(branch) {
                seat.asking = Some(Asking {
                    points: points.clone(),
                    anew,
                });
            }
            let after = last;
            self.tell(branch, &Message::Recall(Recall { points, after }))?;
        } else {
            let notice = Notice::TakenBack(branch.clone(), last);
            self.outputs.push_back(Output::Notice(notice));
        }
        Ok(true)
    }

    /// Leaves out what this log has by now, since another branch gave it back.
    async fn skip_known<D: Database>(
        &self,
        db: &mut D,
        agreed: &mut (LogPosition, Digest),
        lost: &mut Vec<(LogEntry, Vec<u8>)>,
    ) -> OfficeResult<()> {
        let mut known = 0;
        for (entry, bytes) in lost.iter() {
            let chain = envelope::chain(bytes);
            if self.chain_at(db, entry.position).await? != Some(chain) {
                break;
            }
            *agreed = (entry.position, chain);
            known += 1;
        }
        lost.drain(..known);
        Ok(())
    }

    /// The whole units among the entries given back. Only what this head signed counts.
    fn read_lost(
        &mut self,
        branch: &OfficeName,
        recalled: &Recalled,
    ) -> OfficeResult<Vec<(LogEntry, Vec<u8>)>> {
        let own = VerifyingKey::from_bytes(&self.identity.public_key())
            .map_err(|_| OfficeError::Books("the head's public key".into()))?;
        let mut lost: Vec<(LogEntry, Vec<u8>)> = Vec::new();
        for bytes in &recalled.entries {
            let message = envelope::open(bytes).and_then(|opened| {
                let former = || sealed_by(&opened, &self.predecessors);
                let verified = opened.verified_by(&own);
                verified.or_else(|error| former().map(|(_, message)| message).ok_or(error))
            });
            let Ok(Message::Log(entry)) = message else {
                let why = format!("{branch} gave back something that this head never wrote");
                self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
                break;
            };
            if let Some((before, sealed)) = lost.last()
                && (entry.position != before.position.next()
                    || entry.previous != envelope::chain(sealed))
            {
                break;
            }
            lost.push((entry, bytes.to_vec()));
        }
        let open = |entry: &LogEntry| matches!(&entry.body, LogBody::Changes(body) if body.open);
        let whole = lost.iter().rposition(|(entry, _)| !open(entry));
        if let Some(whole) = whole {
            lost.truncate(whole + 1);
        }
        Ok(lost)
    }

    /// Appends lost entries just as they were; a step of the schema in its own transaction.
    async fn adopt_all<D: Database>(
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
            self.take_settlements(db, &mut book, &mut seats, body)
                .await?;
        }
        let clashes = pile.write(db, &self.schema).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes));
        }
        if !left.is_empty() {
            books::store(db, LEFT, &true).await?;
        }
        for ((id, key), (origin, logged)) in &left {
            if let Some(table) = self.schema.table(*id) {
                self.leave(db, now, &mut book, table, key, origin.as_ref(), logged)
                    .await?;
            }
        }
        for (name, seat) in &seats {
            books::store(db, &seat_name(name), seat).await?;
        }
        books::store(db, HEAD, &book).await?;
        Ok(Ok((book, seats, held)))
    }

    /// A branch's batch was answered in the part that was lost.
    fn answered(&self, seats: &mut BTreeMap<OfficeName, SeatBook>, answer: &Answer) {
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
    async fn take_verdicts<D: Database>(
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
                if !is_held(db, table, &verdict.key, &answer.branch).await?
                    && let Some(seat) = self.seat_of(seats, &answer.branch)
                {
                    seat.holds += 1;
                }
                let hold = Hold {
                    branch: answer.branch.clone(),
                    conflict: listed,
                    reason: record.reason,
                    batch: (answer.incarnation, answer.batch),
                };
                holds::set(db, table, &verdict.key, &answer.branch, Some(hold)).await?;
            }
        }
        Ok(held)
    }

    async fn take_settlements<D: Database>(
        &self,
        db: &mut D,
        book: &mut HeadBook,
        seats: &mut BTreeMap<OfficeName, SeatBook>,
        body: &LoggedChanges,
    ) -> OfficeResult<()> {
        for settlement in &body.settlements {
            if let Some(record) = &settlement.record {
                list(db, book, record).await?;
            }
            if let Some(settled) = &settlement.settled {
                let name = books::settled_name(settled.conflict);
                books::store(db, &name, settled).await?;
            }
            if let Some(table) = self.schema.table(settlement.table) {
                if is_held(db, table, &settlement.key, &settlement.branch).await?
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
    /// head's present row stands and enters the log; what was lost is listed.
    #[allow(clippy::too_many_arguments)]
    async fn leave<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        book: &mut HeadBook,
        table: &Table,
        key: &Key,
        origin: Option<&OfficeName>,
        logged: &Logged,
    ) -> OfficeResult<()> {
        let keys = std::slice::from_ref(key);
        let ours = db.read(table, keys).await?.remove(key);
        let record = self.restored(now, table, key, origin, logged, ours, Resolution::Ours);
        list(
            db,
            book,
            &ConflictRecord {
                id: book.conflicts + 1,
                ..record
            },
        )
        .await?;
        Ok(db.recapture(table, Some(keys)).await?)
    }

    #[allow(clippy::too_many_arguments)]
    fn restored(
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

    /// Logs lost entries anew, behind what the head has written since it was restored.
    async fn log_anew<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        lost: &[(LogEntry, Vec<u8>)],
        place: ((LogPosition, Digest), LogPosition),
        end: Option<(LogPosition, Digest)>,
    ) -> OfficeResult<()> {
        let mut unfit = RowNames::new();
        for _ in 0..ATTEMPTS {
            db.begin(Purpose::Apply).await?;
            let outcome = match self
                .try_anew(db, now, branch, lost, place, end, &unfit)
                .await
            {
                Ok(Some(done)) => conclude(db, Ok(Some(done))).await,
                other => other,
            };
            match outcome {
                Ok(Some((writer, seats))) => {
                    self.book = writer.0;
                    self.appended = now;
                    self.any_held = true;
                    self.tail.adopt(writer.1, &mut self.recent);
                    for (name, book) in seats {
                        if let Some(seat) = self.seats.get_mut(&name) {
                            if seat.book.cursor != book.cursor
                                || seat.book.incarnation != book.incarnation
                            {
                                let dropped = seat.inbox.restart(book.cursor.0);
                                self.outputs.extend(dropped.into_iter().map(Output::Settle));
                                seat.staged = false;
                            }
                            seat.book = book;
                        }
                    }
                    return Ok(());
                }
                Ok(None) => {
                    db.rollback().await?;
                    while self.take(db, now).await? {}
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let effects = effects_of(lost.iter().map(|(entry, _)| entry), &unfit, self);
                    let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    unfit.extend(found);
                }
                Err(error) => {
                    db.rollback().await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The batches that this log answers after a place, with the hashes of their envelopes.
    async fn judged_since<D: Database>(
        &self,
        db: &mut D,
        agreed: LogPosition,
    ) -> OfficeResult<BTreeMap<(OfficeName, Incarnation, BatchNumber), Digest>> {
        let mut judged = BTreeMap::new();
        let mut from = agreed.next().0;
        loop {
            let entries = db.entries(LOG, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                return Ok(judged);
            };
            for entry in &entries {
                if let LogBody::Changes(body) = own_entry(&entry.bytes)?.body
                    && let Some(answer) = body.answers
                {
                    let place = (answer.branch, answer.incarnation, answer.batch);
                    judged.insert(place, answer.chain);
                }
            }
            from = last + 1;
        }
    }

    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    async fn try_anew<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        lost: &[(LogEntry, Vec<u8>)],
        place: ((LogPosition, Digest), LogPosition),
        end: Option<(LogPosition, Digest)>,
        unfit: &RowNames,
    ) -> OfficeResult<
        Option<(
            (HeadBook, Vec<super::writer::Fresh>),
            BTreeMap<OfficeName, SeatBook>,
        )>,
    > {
        let (agreed, _) = place;
        let mut seats: BTreeMap<OfficeName, SeatBook> = BTreeMap::new();
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let mut pile = Pile::default();
        let stream = taken_stream(&agreed.1);
        let taken = taken_before(db, &stream).await?;
        let relogged: BTreeSet<LogPosition> = taken.values().map(|(_, place)| *place).collect();
        let judged = self.judged_since(db, agreed.0).await?;
        let mut noted = Vec::new();
        for (entry, bytes) in lost {
            let chain = envelope::chain(bytes);
            if taken
                .get(&entry.position)
                .is_some_and(|(known, _)| *known == chain)
            {
                // Another branch gave it back before.
                continue;
            }
            let LogBody::Changes(body) = &entry.body else {
                continue;
            };
            let mut answers = body.answers.clone();
            if let Some(answer) = &body.answers {
                let seat = seats.get(&answer.branch);
                let seat = seat.or(self.seats.get(&answer.branch).map(|seat| &seat.book));
                let again = seat.is_some_and(|seat| {
                    seat.incarnation == answer.incarnation && seat.cursor >= answer.batch
                });
                let place = (answer.branch.clone(), answer.incarnation, answer.batch);
                if judged.get(&place) == Some(&answer.chain) {
                    // The branch sent it again since the restore, and it was judged.
                    continue;
                }
                if again {
                    // The branch was restored too, and sent another batch under this number.
                    answers = None;
                }
                self.answered(&mut seats, answer);
            }
            let mut anew = LoggedChanges {
                answers,
                changes: Vec::new(),
                verdicts: Vec::new(),
                open: false,
                settlements: Vec::new(),
            };
            let origin = body.answers.as_ref().map(|answer| &answer.branch);
            for logged in &body.changes {
                let Some(table) = self.schema.table(logged.table) else {
                    continue;
                };
                let key = logged.effect.key(table);
                let name = key.digest(table);
                let newest = self
                    .recent
                    .newest(
                        db,
                        &self.versions,
                        &self.identity.shared_name,
                        &BTreeSet::from([name]),
                        agreed.0,
                    )
                    .await?
                    .remove(&name);
                let piled = pile.get(table.id, &key).is_some();
                let ours = match pile.get(table.id, &key) {
                    Some(piled) => piled.cloned(),
                    None => db
                        .read(table, std::slice::from_ref(&key))
                        .await?
                        .remove(&key),
                };
                let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
                let same = digest(ours.as_ref()) == digest(logged.effect.row());
                // What a lost entry follows that won is no rival of it.
                // Nor does it matter when the head took what its application had written: also after this had begun.
                let contested = newest.is_some()
                    && !newest
                        .as_ref()
                        .is_some_and(|newest| relogged.contains(&newest.position))
                    && !piled;
                let later = newest.as_ref().is_none_or(|newest| logged.at > newest.at);
                let fits = !unfit.contains(&(table.id, key.clone()));
                let wins = fits && (later || !contested);
                if !same && (contested || !fits) {
                    let result = if wins {
                        Resolution::Theirs
                    } else {
                        Resolution::Ours
                    };
                    let record =
                        self.restored(now, table, &key, origin, logged, ours.clone(), result);
                    let record = ConflictRecord {
                        id: writer.book.conflicts + 1,
                        ..record
                    };
                    list(db, &mut writer.book, &record).await?;
                }
                if wins && !same {
                    pile.put(table.id, key, logged.effect.clone());
                    anew.changes.push(Logged {
                        source: Source::Merged,
                        ..logged.clone()
                    });
                } else if !fits && !same {
                    // Branches that followed the lost entry have its row.
                    let row = ours.map_or_else(|| Effect::Delete(key.clone()), Effect::Put);
                    pile.put(table.id, key, row.clone());
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
            }
            for verdict in &body.verdicts {
                let Some(table) = self.schema.table(verdict.table) else {
                    continue;
                };
                if body.changes.iter().any(|logged| {
                    logged.table == verdict.table && logged.effect.key(table) == verdict.key
                }) {
                    // What became of the row is decided above; whom it had won against stays listed.
                    if let Some(record) = &verdict.record {
                        let id = writer.book.conflicts + 1;
                        let record = ConflictRecord {
                            id,
                            ..record.clone()
                        };
                        list(db, &mut writer.book, &record).await?;
                    }
                    continue;
                }
                let keys = std::slice::from_ref(&verdict.key);
                let ours = match pile.get(table.id, &verdict.key) {
                    Some(piled) => piled.cloned(),
                    None => db.read(table, keys).await?.remove(&verdict.key),
                };
                let outcome = match verdict.outcome {
                    Outcome::Held => Outcome::Held,
                    _ => Outcome::Overridden(ours),
                };
                let mut record = verdict.record.clone();
                if let Some(record) = &mut record {
                    record.id = writer.book.conflicts + 1;
                }
                anew.verdicts.push(Verdict {
                    table: table.id,
                    key: verdict.key.clone(),
                    outcome,
                    record,
                });
                if let Some(answer) = &body.answers {
                    let listed = anew.verdicts.last().map(std::slice::from_ref);
                    let listed = listed.unwrap_or_default();
                    self.take_verdicts(db, &mut writer.book, &mut seats, answer, listed)
                        .await?;
                }
            }
            self.take_settlements(db, &mut writer.book, &mut seats, body)
                .await?;
            for settlement in &body.settlements {
                let Some(table) = self.schema.table(settlement.table) else {
                    continue;
                };
                let row = match pile.get(table.id, &settlement.key) {
                    Some(piled) => piled.cloned(),
                    None => {
                        let keys = std::slice::from_ref(&settlement.key);
                        db.read(table, keys).await?.remove(&settlement.key)
                    }
                };
                anew.settlements.push(Settlement {
                    row,
                    ..settlement.clone()
                });
            }
            let says = !anew.changes.is_empty() || !anew.settlements.is_empty();
            if anew.answers.is_some() || says {
                noted.push((entry.position, chain, writer.next()));
                writer.append(db, LogBody::Changes(anew)).await?;
            }
        }
        note_taken(db, &stream, &taken, noted).await?;
        if !pile.write(db, &self.schema).await?.is_empty() {
            return Ok(None);
        }
        if let Some(end) = end {
            let seat = seats.remove(branch);
            let known = self.seats.get(branch).map(|seat| seat.book.clone());
            if let Some(mut seat) = seat.or(known) {
                seat.taken_back = Some(TakenBack { end, agreed });
                seats.insert(branch.clone(), seat);
            }
        }
        for (name, seat) in &seats {
            books::store(db, &seat_name(name), seat).await?;
        }
        writer.finish(db).await?;
        Ok(Some(((writer.book, writer.fresh), seats)))
    }
}

fn books_incarnation(seat: Option<&Seat>) -> Incarnation {
    seat.map_or(Incarnation([0; 16]), |seat| seat.book.incarnation)
}

/// Lists a decision under its number, or under the next one where that is taken. Returns the number.
async fn list<D: Database>(
    db: &mut D,
    book: &mut HeadBook,
    record: &ConflictRecord,
) -> OfficeResult<u64> {
    let mut record = record.clone();
    if record.id <= book.conflicts {
        if holds::record(db, record.id).await?.as_ref() == Some(&record) {
            return Ok(record.id);
        }
        record.id = book.conflicts + 1;
    }
    book.conflicts = record.id;
    let entry = Entry {
        number: record.id,
        bytes: books::encode(&record)?,
    };
    db.append(CONFLICTS, &[entry]).await?;
    Ok(record.id)
}

async fn is_held<D: Database>(
    db: &mut D,
    table: &Table,
    key: &Key,
    branch: &OfficeName,
) -> OfficeResult<bool> {
    let notes = db.notes(table, Some(std::slice::from_ref(key))).await?;
    let note = notes.get(key).map(|note| books::decode::<HeldAtHead>(note));
    Ok(note
        .transpose()?
        .is_some_and(|note| note.of(branch).is_some()))
}

/// The stream that tells which entries were logged anew of those that were lost after this place.
fn taken_stream(agreed: &Digest) -> String {
    let after: String = agreed.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lost:{after}")
}

/// Entries logged anew: their former place, with their hash and their present place.
type TakenBefore = BTreeMap<LogPosition, (Digest, LogPosition)>;

async fn taken_before<D: Database>(db: &mut D, stream: &str) -> OfficeResult<TakenBefore> {
    let mut taken = TakenBefore::new();
    let mut from = 0;
    loop {
        let entries = db.entries(stream, from, READ_BYTES).await?;
        let Some(last) = entries.last().map(|entry| entry.number) else {
            return Ok(taken);
        };
        for entry in entries {
            let known = books::decode(&entry.bytes)?;
            taken.insert(LogPosition(entry.number), known);
        }
        from = last + 1;
    }
}

async fn note_taken<D: Database>(
    db: &mut D,
    stream: &str,
    taken: &TakenBefore,
    noted: Vec<(LogPosition, Digest, LogPosition)>,
) -> OfficeResult<()> {
    // Where the head was restored to one place twice, the first loss keeps its notes.
    let fresh = noted
        .into_iter()
        .filter(|(former, ..)| !taken.contains_key(former));
    let entries: OfficeResult<Vec<Entry>> = fresh
        .map(|(former, chain, place)| {
            Ok(Entry {
                number: former.0,
                bytes: books::encode(&(chain, place))?,
            })
        })
        .collect();
    let entries = entries?;
    if !entries.is_empty() {
        db.append(stream, &entries).await?;
    }
    Ok(())
}

fn effects_of<'e>(
    entries: impl Iterator<Item = &'e LogEntry>,
    aside: &RowNames,
    head: &Head,
) -> Vec<(TableId, Effect)> {
    let changes = entries.filter_map(|entry| match &entry.body {
        LogBody::Changes(body) => Some(&body.changes),
        LogBody::Barrier(_) | LogBody::Schema(_) => None,
    });
    changes
        .flatten()
        .filter(|logged| {
            head.schema
                .table(logged.table)
                .is_some_and(|table| !aside.contains(&(table.id, logged.effect.key(table))))
        })
        .map(|logged| (logged.table, logged.effect.clone()))
        .collect()
}
