//! A branch: freezes what its application writes, follows the head's log, and takes the head's verdicts.
//!
//! How a log entry travels through this room: [`Branch::arrived`] checks it and puts it into the inbox;
//! [`Branch::work`] lands whole units in one transaction with the cursor (`land`). How a local write travels: `take`
//! freezes it into the outbox, from where it is sent until the log answers it. A joining branch asks for the first
//! copy of the tables chunk by chunk (`join`). Absent on purpose: deciding anything about a conflict.

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;

use crate::books::{
    self, BranchBook, IdentityBook, Joining, Note, OUTBOX, PublicKey, STAGED, SecretBytes,
};
use crate::by_name::ByName;
use crate::change::Key;
use crate::envelope;
use crate::evolution::{Lift, Versions};
use crate::failure::{OfficeError, OfficeResult, unchanged};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::inbox::Inbox;
use crate::message::{
    Barrier, Batch, Chunk, HistoryRequest, Keep, LogEntry, Message, Position, SettleRequest,
    VerifyRequest,
};
use crate::office::{IDENTITY, Identity, conclude};
use crate::output::{Notice, Output, To, Token};
use crate::port::{Database, Purpose};
use crate::retention::Retention;
use crate::schema::{Schema, Table, TableId};
use crate::succession::{self, Predecessor};

mod anew;
mod greeting;
mod hearing;
mod here;
mod hot;
mod join;
mod land;
mod look;
mod promote;
mod recall;
mod step;
mod succeed;
mod take;
mod unfit;
mod verify;

use here::{Differing, Here};
pub(crate) use land::{MOVED_RECORDS, append_record};
pub(crate) use look::{UNCAPTURED, remember_uncaptured};
pub use promote::Promotion;
pub use succeed::Renewal;

/// The name of the branch's own record.
const BRANCH: &str = "branch";
/// Batches on their way to another incarnation, within one transaction.
const REISSUED: &str = "reissued";
/// How often positions are announced while nothing else is said, in milliseconds.
const ANNOUNCE_MS: i64 = 5_000;
/// How soon positions are announced again while batches are unanswered, in milliseconds.
const ANNOUNCE_UNANSWERED_MS: i64 = 2_000;
/// How soon the greeting is repeated while the head does not answer, in milliseconds.
const GREET_AGAIN_MS: i64 = 5_000;
/// How long the outcome of a wanted comparison is waited for before it is asked for again, in milliseconds.
const COMPARE_AGAIN_MS: i64 = 5 * 60 * 1000;
/// The longest round trip by which clocks are compared, in microseconds.
const LONGEST_ROUND_TRIP: i64 = 5_000_000;
/// What a clock may seem to have moved without being noted, in microseconds.
const CLOCK_NOISE: i64 = 500_000;
/// Bytes read from the outbox at a time.
const READ_BYTES: usize = 512 * 1024;
/// Batches handed to the transport in one piece of work.
const PIECE: usize = 32;

/// A branch's machine.
#[derive(Debug)]
pub struct Branch {
    identity: Identity,
    session: [u8; 16],
    schema: Schema,
    /// The versions in which what this branch sent may stand.
    versions: Versions,
    /// The fingerprint of the tables when they were last looked at.
    shape: Option<Digest>,
    /// How tables here differ from the plan's.
    differing: Differing,
    /// The schema changed in this piece of work.
    stepped: bool,
    book: BranchBook,
    head_key: VerifyingKey,
    /// Who wrote the head's log before.
    predecessors: Vec<Predecessor>,
    inbox: Inbox<LogEntry>,
    /// Parts of an open unit lie in the database.
    staged: bool,
    /// Rows sent and not yet answered, with the last batch that holds them.
    claims: ByName<BatchNumber>,
    /// The hashes of the batches that are not answered yet.
    chains: BTreeMap<BatchNumber, Digest>,
    /// Batches just frozen, so that they need not be read again to be sent.
    fresh: take::Fresh,
    /// What those batches did to counters.
    steps: hot::Steps,
    any_notes: bool,
    captured: bool,
    /// When all captured writes were taken.
    emptied: Micros,
    moving: bool,
    /// The log answers batches of this incarnation that this database does not have: it was restored.
    reused: bool,
    unfit_tried: Micros,
    bound_tried: Micros,
    /// The last row of each table that the last round of trying again came to, where it left some out.
    unfit_after: BTreeMap<TableId, Key>,
    store_and_forward: bool,
    retention: Retention,
    upkept: Option<Micros>,
    link: LinkState,
    chunk: Option<(Chunk, Token)>,
    chunk_asked: Option<Micros>,
    /// What was seen at the last barrier, for narrower questions.
    seen: Option<verify::Seen>,
    /// The barrier that the cursor has just passed, until it is answered.
    passed: Option<(LogPosition, Barrier)>,
    outputs: VecDeque<Output>,
}

/// What a branch knows of its link.
#[derive(Debug, Default)]
struct LinkState {
    up: bool,
    welcomed: bool,
    greeted: Micros,
    announced: Micros,
    /// The last batch handed to the transport.
    sent: BatchNumber,
    /// The end of the head's log, as last heard.
    known_last: LogPosition,
    told_applied: LogPosition,
    /// How far the head was told what is staged.
    told_staged: LogPosition,
    question: u64,
    /// Questions up to this one were another process's, or never asked: answers to them are none of ours.
    earlier_questions: u64,
    /// The last question answered, and whether head and branch were even then.
    answer: (u64, bool),
    clock_offset_ms: i64,
    heard: Micros,
    /// When a comparison that is still wanted was last asked for, about.
    compare_asked: Option<Micros>,
    refused: Option<String>,
    /// This process runs on a copy of another's database; it keeps silent until it is started again.
    copied: bool,
}

/// What a join code gives a branch to begin with.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Who the branch is to be.
    pub identity: IdentityBook,
    /// Its first incarnation.
    pub incarnation: Incarnation,
    /// The head's name.
    pub head_name: OfficeName,
    /// The head's public key.
    pub head_key: [u8; 32],
    /// The code's secret.
    pub secret: [u8; 32],
}

/// What is to be remembered of the batches that are not answered.
#[derive(Default)]
struct Unanswered {
    claims: ByName<BatchNumber>,
    chains: BTreeMap<BatchNumber, Digest>,
    steps: hot::Steps,
}

impl Unanswered {
    async fn read<D: Database>(
        db: &mut D,
        book: &BranchBook,
        versions: &Versions,
        schema: &Schema,
    ) -> OfficeResult<Self> {
        let mut read = Self::default();
        let mut from = book.answered.next();
        while from <= book.frozen {
            let entries = db.entries(OUTBOX, from.0, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            for entry in &entries {
                let chain = envelope::chain(&entry.bytes);
                read.chains.insert(BatchNumber(entry.number), chain);
                if let Message::Batch(batch) = envelope::open(&entry.bytes)?.read_own()? {
                    read.claim(&batch, versions, schema);
                }
            }
            from = BatchNumber(last).next();
        }
        Ok(read)
    }

    /// Notes the rows of a batch, by their keys in the present tables.
    fn claim(&mut self, batch: &Batch, versions: &Versions, schema: &Schema) {
        let Some(was) = versions.shapes_of(batch, schema) else {
            return;
        };
        for change in &batch.changes {
            let from = was.table(change.table);
            let to = from.and_then(|from| schema.table(from.id));
            let Some((from, to)) = from.zip(to) else {
                continue;
            };
            let lift = Lift { from, to };
            if let Ok(key) = lift.key(&change.effect.key(from)) {
                self.claims.insert(key.digest(to), batch.number);
            }
            if let Ok((change, _)) = lift.change(change) {
                self.steps.note(to, &change, batch.number);
            }
        }
    }
}

/// What a branch says of itself in `status`.
#[derive(Clone, Debug)]
pub struct BranchState {
    /// Whether the head let it in over the present link.
    pub connected: bool,
    /// When the head was last heard of.
    pub heard: Micros,
    /// The last log entry in this database.
    pub cursor: LogPosition,
    /// The end of the head's log, as last heard.
    pub known_last: LogPosition,
    /// The last batch frozen.
    pub frozen: BatchNumber,
    /// The last batch answered.
    pub answered: BatchNumber,
    /// How far the first copy is; none when complete.
    pub joining: Option<Joining>,
    /// The head's clock minus this office's, in milliseconds.
    pub clock_offset_ms: i64,
    /// Why the head refused this branch, if it did.
    pub refused: Option<String>,
}

impl Branch {
    /// Makes this database a branch that is about to join.
    pub async fn found<D: Database>(db: &mut D, enrolment: &Enrolment) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let book = BranchBook {
                incarnation: enrolment.incarnation,
                frozen: BatchNumber::NONE,
                chain: Digest::default(),
                answered: BatchNumber::NONE,
                cursor: LogPosition::NONE,
                head: None,
                head_name: enrolment.head_name.clone(),
                head_key: PublicKey(enrolment.head_key),
                secret: Some(SecretBytes(enrolment.secret)),
                joining: Some(Joining::default()),
                log_chain: Digest::default(),
                lineage: 0,
                compare: None,
                clock_offset: None,
                refused: Vec::new(),
                succession: None,
                lacked: None,
                unbound: None,
                lineages: None,
                left_out: None,
                uncompared: None,
            };
            books::store(db, IDENTITY, &enrolment.identity).await?;
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// Reads the branch from its database. `session` is drawn anew at each start.
    pub async fn load<D: Database>(db: &mut D, session: [u8; 16]) -> OfficeResult<Self> {
        db.begin(Purpose::Read).await?;
        let outcome = Self::read(db, session).await;
        conclude(db, outcome).await
    }

    async fn read<D: Database>(db: &mut D, session: [u8; 16]) -> OfficeResult<Self> {
        let (identity, _) = Identity::load(db).await?;
        let book: BranchBook = books::load(db, BRANCH).await?.ok_or_else(|| {
            OfficeError::NotSetUp("this database belongs to a head, not to a branch".into())
        })?;
        let schema = books::newest_schema(db).await?.unwrap_or_default();
        let head_key = VerifyingKey::from_bytes(&book.head_key.0)
            .map_err(|_| OfficeError::Books("the head's public key".into()))?;
        let staged = db.extent(STAGED).await?;
        let mut any_notes = false;
        for table in &schema.tables {
            any_notes |= !db.notes(table, None).await?.is_empty();
        }
        let mut inbox = Inbox::new(book.cursor.0);
        let staged = staged.entries > 0 && staged.first == book.cursor.next().0 && {
            inbox.restart(staged.last);
            true
        };
        let link = LinkState {
            sent: book.answered,
            known_last: book.cursor,
            ..LinkState::default()
        };
        let mut branch = Self {
            identity,
            session,
            schema,
            versions: Versions::load(db).await?,
            shape: None,
            differing: Differing::new(),
            stepped: false,
            head_key,
            predecessors: succession::predecessors(db).await?,
            inbox,
            staged,
            claims: ByName::default(),
            chains: BTreeMap::new(),
            fresh: take::Fresh::default(),
            steps: hot::Steps::default(),
            any_notes,
            captured: true,
            emptied: Micros(0),
            moving: true,
            reused: false,
            unfit_after: BTreeMap::new(),
            unfit_tried: Micros(0),
            bound_tried: Micros(0),
            store_and_forward: false,
            retention: Retention::default(),
            upkept: None,
            link,
            chunk: None,
            chunk_asked: None,
            seen: None,
            passed: None,
            outputs: VecDeque::new(),
            book,
        };
        branch.read_claims(db).await?;
        Ok(branch)
    }

    async fn read_claims<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let unanswered = Unanswered::read(db, &self.book, &self.versions, &self.schema).await?;
        self.remember(unanswered);
        Ok(())
    }

    /// Takes what is not answered from what was read of it, not from what was remembered.
    fn remember(&mut self, unanswered: Unanswered) {
        self.fresh.clear();
        self.claims = unanswered.claims;
        self.chains = unanswered.chains;
        self.steps = unanswered.steps;
    }

    /// Takes the next output.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The shared tables; empty until the first welcome.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// This office's name.
    pub fn name(&self) -> &OfficeName {
        &self.identity.name
    }

    /// The name of the head that it follows.
    pub fn head_name(&self) -> &OfficeName {
        &self.book.head_name
    }

    /// The application may have written something.
    pub fn wake(&mut self) {
        self.captured = true;
    }

    /// Sets how long what was sent and followed is kept.
    pub fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
    }

    /// Lets data move, or stops it (manual mode).
    pub fn set_moving(&mut self, moving: bool) {
        self.moving = moving;
        self.captured |= moving;
    }

    /// Whether the transport keeps what is sent while the head is away. Batches are then handed to it without waiting
    /// for the head's welcome.
    pub fn set_store_and_forward(&mut self, keeps: bool) {
        self.store_and_forward = keeps;
    }

    /// Whether arrivals can be taken in.
    pub fn has_room(&self) -> bool {
        self.inbox.has_room()
    }

    /// The link is up: greets the head.
    pub fn link_up(&mut self, now: Micros) -> OfficeResult<()> {
        self.link.up = true;
        self.greet(now)
    }

    /// The link is down.
    pub fn link_down(&mut self) {
        self.link.up = false;
        self.link.welcomed = false;
        self.chunk_asked = None;
    }

    fn tell(&mut self, message: &Message) -> OfficeResult<()> {
        let bytes = envelope::seal(&self.identity.name, &self.identity.key, message)?;
        self.outputs.push_back(Output::Send(To::Head, bytes.into()));
        Ok(())
    }

    fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    /// Tells the head that this branch leaves for good.
    pub fn leave(&mut self) -> OfficeResult<()> {
        self.tell(&Message::Leave)
    }

    /// Asks the head to compare this branch with itself, and where wanted to make differing rows here what they are at
    /// the head; the outcome comes as a notice.
    pub fn verify(&mut self, repair: bool) -> OfficeResult<()> {
        self.tell(&Message::VerifyRequest(VerifyRequest { repair }))
    }

    /// Numbers this branch's questions after this number, so that an answer to an earlier process, which a broker may
    /// have kept, is not taken for one to this. To be called once, before the first question, with a number drawn at random.
    pub fn number_questions_after(&mut self, last: u64) {
        self.link.question = last;
        self.link.earlier_questions = last;
    }

    /// Asks the head to settle a conflict about this branch's changes. The answer comes as [`Notice::Reply`] under the
    /// number returned.
    pub fn settle(&mut self, conflict: u64, keep: Keep) -> OfficeResult<u64> {
        self.link.question += 1;
        let question = self.link.question;
        self.tell(&Message::Settle(SettleRequest {
            question,
            conflict,
            keep,
        }))?;
        Ok(question)
    }

    /// Asks the head for a row's history. The answer comes as [`Notice::Reply`] under the number returned.
    pub fn history(&mut self, table: &str, key: Key) -> OfficeResult<u64> {
        self.link.question += 1;
        let question = self.link.question;
        self.tell(&Message::HistoryRequest(HistoryRequest {
            question,
            table: table.into(),
            key,
        }))?;
        Ok(question)
    }

    /// Asks the head how far it is; see [`Branch::answered_evenly`].
    pub fn ask(&mut self, now: Micros) -> OfficeResult<u64> {
        self.link.question += 1;
        self.announce(now, self.link.question)?;
        Ok(self.link.question)
    }

    /// Whether the head, answering this or a later question, was even with this branch.
    pub fn answered_evenly(&self, question: u64) -> bool {
        self.link.answer.0 >= question && self.link.answer.1
    }

    /// Whether the head has answered this or a later question.
    pub fn was_answered(&self, question: u64) -> bool {
        self.link.answer.0 >= question
    }

    fn announce(&mut self, now: Micros, question: u64) -> OfficeResult<()> {
        self.link.announced = now;
        let position = Position {
            produced: self.book.frozen.0,
            applied: Some(self.book.cursor.0),
            question,
            clock: now,
            session: self.session,
            offset: self.book.clock_offset,
            staged: Some(self.inbox.received()),
        };
        self.tell(&Message::Position(position))
    }

    /// Does one bounded piece of work. Returns whether there may be more.
    pub async fn work<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        // Before anything is taken or lands it is known what of the tables here serves.
        if self.shape.is_none() && self.book.head.is_some() && self.is_prepared() {
            unchanged(self.look(db).await)?;
        }
        if self.differing.is_empty() {
            return self.work_on(db, now).await;
        }
        let differing = self.differing.clone();
        let refused = self.refused_tables();
        let mut here = Here {
            db,
            differing,
            refused,
        };
        self.work_on(&mut here, now).await
    }

    async fn work_on<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        if self.book.head.is_none() || self.link.refused.is_some() {
            return Ok(false);
        }
        self.keep_sent(db, now).await?;
        let mut more = self.prepare_join(db).await?;
        if self.is_prepared() {
            if self.captured && self.moving && self.may_freeze() && !self.gathers(now) {
                more |= unchanged(self.take(db, now).await)?;
                if std::mem::take(&mut self.stepped) {
                    return Ok(true);
                }
            }
            if self.moving {
                self.retry_unfit(db, now).await?;
                more |= unchanged(self.land(db).await)?;
                if std::mem::take(&mut self.stepped) {
                    return Ok(true);
                }
                if self.reused {
                    self.reincarnate(db, now).await?;
                }
                more |= self.land_chunk(db, now).await?;
                more |= self.pump(db).await?;
            }
        }
        self.tell_applied()?;
        self.tell_staged(now)?;
        Ok(more)
    }

    fn is_prepared(&self) -> bool {
        self.book
            .joining
            .as_ref()
            .is_none_or(|joining| joining.prepared)
    }

    /// While a unit comes that is larger than the head's window, the window follows what is staged of it.
    fn tell_staged(&mut self, now: Micros) -> OfficeResult<()> {
        let staged = LogPosition(self.inbox.received());
        if self.staged && self.link.welcomed && self.link.told_staged < staged {
            self.link.told_staged = staged;
            self.announce(now, 0)?;
        }
        Ok(())
    }

    fn tell_applied(&mut self) -> OfficeResult<()> {
        if self.link.up && self.link.told_applied < self.book.cursor {
            self.link.told_applied = self.book.cursor;
            self.tell(&Message::Applied(self.book.cursor))?;
        }
        Ok(())
    }

    /// Hands batches to the transport. Returns whether there are more.
    async fn pump<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        // A broker takes batches also while the head is away. Whether the head's last batch is one that this database
        // knows shows in the chain: a restored branch's batches are refused, never taken for others.
        let may_send = self.link.welcomed || (self.link.up && self.store_and_forward);
        // What is answered is not sent again, even where it was asked for: there would be no end to it.
        self.link.sent = self.link.sent.max(self.book.answered);
        if !may_send || self.link.sent >= self.book.frozen {
            return Ok(false);
        }
        let mut batches = self.fresh.take_from(self.link.sent.next(), PIECE);
        if batches.is_empty() {
            let from = self.link.sent.next();
            let entries = db.entries(OUTBOX, from.0, READ_BYTES).await?;
            let entries = entries.into_iter().take(PIECE);
            batches = entries
                .map(|entry| (BatchNumber(entry.number), entry.bytes))
                .collect();
        }
        for (number, bytes) in batches {
            self.link.sent = number;
            self.outputs.push_back(Output::Send(To::Head, bytes.into()));
        }
        Ok(self.link.sent < self.book.frozen)
    }

    /// Time has passed. To be called a few times a second.
    pub fn tick(&mut self, now: Micros) -> OfficeResult<()> {
        self.forget_seen(now);
        if !self.link.up || self.link.copied {
            return Ok(());
        }
        if !self.link.welcomed && now.has_passed(GREET_AGAIN_MS, self.link.greeted) {
            self.greet(now)?;
        }
        let unanswered = self.book.answered < self.book.frozen;
        let pause = if unanswered {
            ANNOUNCE_UNANSWERED_MS
        } else {
            ANNOUNCE_MS
        };
        if self.book.head.is_some() && now.has_passed(pause, self.link.announced) {
            self.announce(now, 0)?;
        }
        self.ask_to_compare_again(now)
    }

    /// Whether rows here wait for a comparison with the head's, which repairs what differs.
    pub fn awaits_comparison(&self) -> bool {
        self.book.compare == Some(true)
    }

    /// The question or its outcome may be lost, or the comparison ended before this branch could answer.
    fn ask_to_compare_again(&mut self, now: Micros) -> OfficeResult<()> {
        if !self.awaits_comparison() || !self.link.welcomed || self.book.joining.is_some() {
            self.link.compare_asked = None;
            return Ok(());
        }
        let asked = *self.link.compare_asked.get_or_insert(now);
        if now.has_passed(COMPARE_AGAIN_MS, asked) {
            self.link.compare_asked = Some(now);
            self.verify(true)?;
        }
        Ok(())
    }

    /// The stream of the log entries that this branch keeps for a head that may be restored.
    pub fn followed(&self) -> String {
        self.book.followed()
    }

    /// Rows sent and not yet answered.
    pub fn unanswered_rows(&self) -> usize {
        self.claims.len()
    }

    /// When the oldest change was written that is sent, or to be sent, and not yet answered.
    pub async fn oldest_unanswered<D: Database>(&self, db: &mut D) -> OfficeResult<Option<Micros>> {
        let first = self.book.answered.next();
        if first > self.book.frozen {
            return Ok(None);
        }
        let entries = db.entries(OUTBOX, first.0, 1).await?;
        let Some(entry) = entries.first().filter(|entry| entry.number == first.0) else {
            return Ok(None);
        };
        let Message::Batch(batch) = envelope::open(&entry.bytes)?.read_own()? else {
            return Ok(None);
        };
        Ok(batch.changes.iter().map(|change| change.at).min())
    }

    /// Where this branch stands.
    pub fn state(&self) -> BranchState {
        BranchState {
            connected: self.link.up && self.link.welcomed,
            heard: self.link.heard,
            cursor: self.book.cursor,
            known_last: self.link.known_last,
            frozen: self.book.frozen,
            answered: self.book.answered,
            joining: self.book.joining.clone(),
            clock_offset_ms: self.link.clock_offset_ms,
            refused: self.link.refused.clone(),
        }
    }

    /// Whether this branch has nothing to send, nothing unanswered, and all that it knows of.
    pub async fn is_even<D: Database>(&self, db: &mut D) -> OfficeResult<bool> {
        let settled = self.book.answered == self.book.frozen
            && self.book.cursor >= self.link.known_last
            && self.book.joining.is_none();
        Ok(settled && db.backlog().await?.writes == 0)
    }
}

/// How many rows of a table are held at this branch, or do not fit here.
pub async fn held_rows<D: Database>(db: &mut D, table: &Table) -> OfficeResult<u64> {
    let mut held = 0;
    for note in db.notes(table, None).await?.values() {
        held += u64::from(matches!(
            books::decode::<Note>(note)?,
            Note::Held(..) | Note::Unfit(..) | Note::Unreadable(..)
        ));
    }
    Ok(held)
}
