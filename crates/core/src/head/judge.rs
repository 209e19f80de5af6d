//! Judging a branch's batches: facts for all of them, decisions in pure code, then one transaction that holds the
//! rows, the log entries with the verdicts, and the branch's cursor (P2, P4).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::recent::Newest;
use super::writer::{Fresh, LogWriter};
use super::{Head, Seat};
use crate::books::{self, CONFLICTS, HeadBook, Hold, Pages, SeatBook, seat_name, staged_of};
use crate::by_name::ByName;
use crate::change::{Effect, Key};
use crate::conflict::ConflictRecord;
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{Digest, Micros, OfficeName};
use crate::message::{Answer, Batch, LogBody, LoggedChanges, Message, Settled};
use crate::output::{Notice, Output};
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::TableId;
use crate::staged::stage;
use crate::unfit::{self, Reasons, is_unfit};

mod facts;
mod lift;
mod ruling;

use lift::{LiftedBatch, lift_batch};

/// How often a judgement is begun anew because the head's own application was writing the same rows.
const ATTEMPTS: usize = 20;

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
    /// Its name, for sharing.
    origin: Arc<OfficeName>,
    seat: SeatBook,
    writer: LogWriter<'a>,
    pile: Pile,
    /// The versions that the batch at hand makes, in the order of its entry's changes.
    made: Vec<(Digest, Newest)>,
    /// Versions that this judgement itself made.
    overlay: ByName<Newest>,
    records: Vec<ConflictRecord>,
    /// Holds that this judgement makes, and those that it ends.
    held: BTreeMap<(TableId, Key), Option<Hold>>,
    settled: Vec<Settled>,
    changes: u64,
    /// The batch in work stands in a version that this head lost: its branch has changed its tables since it wrote the rows.
    of_lost_version: bool,
    /// Its branch may show rows that were deleted here.
    uncompared: bool,
    now: Micros,
    /// Rows that the head's tables do not take.
    unfit: &'a Reasons,
    /// Held rows to which rows of the batch at hand refer, and the numbers of their conflicts.
    waited_for: BTreeMap<(TableId, Key), u64>,
    /// Why rows wait for others.
    waiting: Reasons,
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
        let mut unfit = Reasons::new();
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
                        let found =
                            unfit::reasons(db, &self.schema, Purpose::Apply, effects).await?;
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
        unfit: &Reasons,
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
        unfit: &Reasons,
        tried: Option<&mut Vec<(TableId, Effect)>>,
    ) -> OfficeResult<Judgement> {
        let Some(seat) = self.seats.get(branch) else {
            return Err(OfficeError::Books(format!("no record of branch {branch}")));
        };
        let mut bench = Bench {
            head: self,
            branch,
            origin: Arc::new(branch.clone()),
            seat: seat.book.clone(),
            writer: LogWriter::new(&self.identity, &self.schema, self.book.clone()),
            pile: Pile::default(),
            made: Vec::new(),
            overlay: ByName::default(),
            records: Vec::new(),
            held: BTreeMap::new(),
            settled: Vec::new(),
            changes: 0,
            of_lost_version: false,
            uncompared: false,
            now,
            unfit,
            waited_for: BTreeMap::new(),
            waiting: Reasons::new(),
            tried,
        };
        let clashes = match bench.hear_all(db, seat, run).await {
            // What was handed over may tell late that it does not fit.
            Err(error) => !bench.pile.excuse(db, &self.schema, error).await?.is_empty(),
            Ok(clash) => clash,
        };
        if clashes {
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
        let parts = stage(db, &staged_of(branch), &seat.inbox, seat.staged).await?;
        let Some(parts) = parts else {
            return Ok(false);
        };
        seat.staged = true;
        self.outputs
            .extend(seat.inbox.leave(parts).into_iter().map(Output::Settle));
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

impl Bench<'_> {
    /// Judges the branch's next envelopes, as many as it is told. Returns whether the application was in the way.
    async fn hear_all<D: Database>(
        &mut self,
        db: &mut D,
        seat: &Seat,
        run: usize,
    ) -> OfficeResult<bool> {
        if seat.staged {
            let stream = staged_of(self.branch);
            let mut pages = Pages::from(&stream, seat.book.cursor.next().0);
            while let Some(parts) = pages.next(db).await? {
                for part in &parts {
                    let batch = own_batch(&part.bytes)?;
                    if self.hear(db, &batch, &part.bytes).await? {
                        return Ok(true);
                    }
                }
            }
            db.trim(&stream, u64::MAX >> 1).await?;
        }
        for slot in seat.inbox.slots().take(run) {
            if self.hear(db, &slot.message, &slot.bytes).await? {
                return Ok(true);
            }
        }
        Ok(!self.pile.write(db, &self.head.schema).await?.is_empty())
    }

    /// Judges one batch. Returns whether the application was in the way.
    async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        batch: &Batch,
        bytes: &[u8],
    ) -> OfficeResult<bool> {
        self.of_lost_version = batch.lost.is_some();
        self.uncompared = batch.uncompared == Some(true);
        let head = self.head;
        let shapes = head.versions.shapes_of(batch, &head.schema);
        let LiftedBatch { changes, unplaced } = lift_batch(batch, shapes.as_ref(), &head.schema);
        let mut cases = self.gather(db, &changes).await?;
        self.mark_waiting(db, &mut cases).await?;
        let Some(present) = self.present_rows(db, &mut cases).await? else {
            return Ok(true);
        };
        let position = self.writer.next();
        let mut body = LoggedChanges {
            answers: Some(Answer {
                branch: self.branch.clone(),
                incarnation: self.seat.incarnation,
                batch: batch.number,
                chain: envelope::chain(bytes),
            }),
            changes: Vec::with_capacity(cases.len()),
            open: batch.open,
            ..LoggedChanges::of_the_head()
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
        let made = std::mem::take(&mut self.made);
        self.writer
            .append_rows(db, LogBody::Changes(body), Some(made))
            .await?;
        let clashes = self.pile.write_if_full(db, &self.head.schema).await?;
        Ok(!clashes.is_empty())
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
