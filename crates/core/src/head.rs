//! The head: keeps the log, judges what branches send, and sees that every branch can follow.
//!
//! How a branch's change travels through this room: [`Head::arrived`] checks the envelope and puts the batch into the
//! branch's inbox; [`Head::work`] judges whole units in one transaction (`judge`), which appends to the log
//! (`writer`); what was appended goes out by the lanes (`lanes`). The head's own application's writes enter the log
//! by [`Head::take`]. Absent on purpose: any state of a transport, and any memory that grows with rows or backlog.

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;

use crate::books::{self, HeadBook, SeatBook, seat_name};
use crate::change::Effect;
use crate::conflict::rfc3339;
use crate::envelope::{self, EnvelopeError};
use crate::evolution::{Plan, Versions};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::inbox::{Admission, Inbox, Slot};
use crate::message::{
    Barrier, Batch, ChunkRequest, Hello, HistoryRequest, LogBody, Logged, LoggedChanges, Message,
    Position, Recalled, Refusal, Reply, SettleRequest, Source, Welcome,
};
use crate::office::{
    BATCH_CHANGES, Identity, PORTIONS_PER_TAKE, conclude, cut_by_weight, part_with_giants,
};
use crate::output::{Notice, Output, To, Token, offset_ms};
use crate::port::{Database, First, Purpose};
use crate::retention::Retention;
use crate::schema::{Direction, Schema, SchemaVersion};
use crate::succession::{self, Predecessor};

mod chunks;
mod clones;
mod history;
pub mod holds;
mod judge;
mod keep;
mod lanes;
pub(crate) mod promote;
mod recall;
mod recent;
mod repair;
mod reshape;
pub mod seats;
mod verify;
mod writer;

use clones::Sessions;
pub use lanes::Wiring;
pub use promote::log_of;
use recall::Standing;
use recent::Recent;
pub use recent::own_entry;
use reshape::Catalogue;
use writer::{HEAD, LogWriter, Tail};

/// How often positions are announced while nothing else is said, in milliseconds.
const ANNOUNCE_MS: i64 = 5_000;
/// How soon after the last entry its position is announced, in milliseconds.
const ANNOUNCE_AFTER_MS: i64 = 400;
/// How long a branch whose changes cannot be applied rests, in milliseconds.
const REST_MS: i64 = 5_000;
/// From which difference on a clock is reported, in milliseconds.
const CLOCK_OFF_MS: i64 = 5_000;

/// How long after its start the head waits for its branches before it adds to the log, in milliseconds.
const SETTLE_IN_MS: i64 = 2_000;
/// The same, while a branch gives back what the log lost.
const RECALL_MS: i64 = 60_000;
/// How many questions of branches wait at the most.
const QUESTIONS: usize = 64;

/// The head's machine.
#[derive(Debug)]
pub struct Head {
    identity: Identity,
    schema: Schema,
    /// All schema versions in which rows of the log and of branches still stand.
    versions: Versions,
    plan: Plan,
    catalogue: Catalogue,
    book: HeadBook,
    /// Who wrote the log before this head took their place.
    predecessors: Vec<Predecessor>,
    seats: BTreeMap<OfficeName, Seat>,
    recent: Recent,
    tail: Tail,
    lanes: lanes::Lanes,
    any_held: bool,
    retries: holds::Retries,
    /// What branches asked and was not answered yet.
    questions: VecDeque<(OfficeName, Question)>,
    captured: bool,
    /// Rows that came and went since the last take are logged, since the log may have them.
    left: bool,
    /// Whether data moves: always in live mode, while asked in manual mode.
    moving: bool,
    announced: (LogPosition, Micros),
    appended: Micros,
    /// When the head was started, until it adds to its log.
    started: Option<Micros>,
    retention: Retention,
    upkept: Option<Micros>,
    /// The oldest entry that the log still has.
    log_first: LogPosition,
    verifications: verify::Verifications,
    outputs: VecDeque<Output>,
}

/// The head's view of one branch.
#[derive(Debug)]
struct Seat {
    book: SeatBook,
    inbox: Inbox<Batch>,
    /// Parts of an open unit lie in the database.
    staged: bool,
    online: bool,
    lane: lanes::Lane,
    request: Option<ChunkRequest>,
    clock_offset_ms: i64,
    seen_saved: Micros,
    /// The record changed and must be saved soon.
    unsaved: bool,
    /// The last batch that the branch says it froze; unknown until it was heard of.
    produced: Option<BatchNumber>,
    /// Its changes could not be applied; not tried again before.
    resting_since: Option<Micros>,
    /// What it was asked to give back of the log, and its answer.
    asking: Option<recall::Asking>,
    recalled: Option<Recalled>,
    /// It follows this log: its greeting said so to this process. Otherwise the last place of which a batch said so.
    agrees: bool,
    agreed: Option<(LogPosition, Digest)>,
    sessions: Sessions,
}

impl Seat {
    fn new(book: SeatBook) -> Self {
        Self {
            inbox: Inbox::new(book.cursor.0),
            staged: false,
            online: false,
            lane: lanes::Lane::default(),
            request: None,
            clock_offset_ms: 0,
            seen_saved: book.seen,
            unsaved: false,
            produced: None,
            resting_since: None,
            asking: None,
            recalled: None,
            agrees: false,
            agreed: None,
            sessions: Sessions::default(),
            book,
        }
    }

    fn is_enrolled(&self) -> bool {
        self.book.public_key.is_some() && !self.book.removed
    }
}

/// What the head says of a branch in `status`.
#[derive(Clone, Debug)]
pub struct BranchReport {
    /// Its name.
    pub name: OfficeName,
    /// Whether it has joined.
    pub joined: bool,
    /// Whether it was heard of lately.
    pub online: bool,
    /// When it was last heard of.
    pub seen: Micros,
    /// The last log entry known to be in its database.
    pub applied: LogPosition,
    /// Its last batch in the head's database.
    pub cursor: BatchNumber,
    /// Its changes that are held.
    pub holds: u64,
    /// Its clock minus the head's.
    pub clock_offset_ms: i64,
}

impl Head {
    /// Makes this database a head: writes its identity and an empty log. The schema's version must be 1; columns without
    /// a number get one.
    pub async fn found<D: Database>(
        db: &mut D,
        identity: &books::IdentityBook,
        incarnation: Incarnation,
        schema: &Schema,
    ) -> OfficeResult<()> {
        let mut schema = schema.clone();
        schema.number();
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let book = HeadBook {
                incarnation,
                last: LogPosition::NONE,
                chain: Digest::default(),
                conflicts: 0,
            };
            books::store(db, crate::office::IDENTITY, identity).await?;
            books::store(db, HEAD, &book).await?;
            Versions::store(db, &schema).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// Reads the head from its database.
    pub async fn load<D: Database>(db: &mut D, wiring: Wiring, now: Micros) -> OfficeResult<Self> {
        db.begin(Purpose::Read).await?;
        let outcome = Self::read(db, wiring, now).await;
        let mut head = conclude(db, outcome).await?;
        head.note_start(db).await?;
        head.end_promotion(db, now).await?;
        Ok(head)
    }

    async fn read<D: Database>(db: &mut D, wiring: Wiring, now: Micros) -> OfficeResult<Self> {
        let (identity, _) = Identity::load(db).await?;
        let book: HeadBook = books::load(db, HEAD).await?.ok_or_else(|| {
            OfficeError::NotSetUp("this database belongs to a branch, not to a head".into())
        })?;
        let schema = books::newest_schema(db).await?.unwrap_or_default();
        let mut any_held = false;
        for table in &schema.tables {
            any_held |= !db.notes(table, None).await?.is_empty();
        }
        let log_first = LogPosition(db.extent(books::LOG).await?.first);
        let published = books::load(db, lanes::PUBLISHED)
            .await?
            .unwrap_or(LogPosition::NONE);
        let mut head = Self {
            identity,
            schema,
            versions: Versions::load(db).await?,
            plan: Plan::default(),
            catalogue: Catalogue::default(),
            recent: Recent::new(book.last),
            tail: Tail::default(),
            lanes: lanes::Lanes::new(wiring, published),
            any_held,
            retries: holds::Retries::default(),
            questions: VecDeque::new(),
            captured: true,
            left: db.meta(recall::LEFT).await?.is_some(),
            moving: true,
            announced: (LogPosition::NONE, Micros(0)),
            appended: now,
            started: Some(now),
            retention: Retention::default(),
            upkept: None,
            log_first,
            verifications: verify::Verifications::default(),
            outputs: VecDeque::new(),
            seats: BTreeMap::new(),
            predecessors: succession::predecessors(db).await?,
            book,
        };
        for name in seats::names(db).await? {
            head.load_seat(db, &name).await?;
        }
        Ok(head)
    }

    /// Whether this start is so recent that a branch may still tell that the log lost its end (a restored database):
    /// until then nothing is added to the log, so that what was lost fits just where it was.
    fn settling_in(&mut self, now: Micros) -> bool {
        let Some(since) = self.started else {
            return false;
        };
        let silent = |seat: &Seat| seat.is_enrolled() && seat.sessions.present == [0; 16];
        let asked = self.seats.values().any(|seat| seat.asking.is_some());
        let patience = if asked { RECALL_MS } else { SETTLE_IN_MS };
        let waits = asked || self.seats.values().any(silent);
        if self.book.last > LogPosition::NONE && waits && !now.has_passed(patience, since) {
            return true;
        }
        self.started = None;
        false
    }

    /// Takes the next output.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The shared tables.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// This office's name.
    pub fn name(&self) -> &OfficeName {
        &self.identity.name
    }

    /// This office's public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.identity.public_key()
    }

    /// The identity of the log, which a head that takes another's place goes on with.
    pub fn log_incarnation(&self) -> Incarnation {
        self.book.incarnation
    }

    /// The end of the log.
    pub fn last(&self) -> LogPosition {
        self.book.last
    }

    /// Sets which tables are shared and by which rules, and what a changed table means. It takes effect with the next
    /// piece of work that may add to the log: what branches need to know of it becomes a schema version there.
    pub fn set_plan(&mut self, plan: Plan) {
        self.plan = plan;
        self.catalogue = Catalogue::default();
    }

    /// The application may have written something.
    pub fn wake(&mut self) {
        self.captured = true;
    }

    /// Sets how long the log is kept.
    pub fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
    }

    /// Lets data move, or stops it (manual mode).
    pub fn set_moving(&mut self, moving: bool) {
        self.moving = moving;
        self.captured |= moving;
    }

    /// Whether arrivals can be taken in. A branch whose changes cannot be applied does not keep the others out: what
    /// more it sends is dropped, and asked for again later.
    pub fn has_room(&self) -> bool {
        let free = |seat: &Seat| seat.inbox.has_room() || seat.resting_since.is_some();
        self.seats.values().all(free)
    }

    /// Takes an envelope in.
    pub async fn arrived<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        let opened = match envelope::open(bytes) {
            Ok(opened) => opened,
            Err(error) => {
                self.drop_envelope(token, error.to_string());
                return Ok(());
            }
        };
        let origin = opened.origin.clone();
        if !self.seats.contains_key(&origin) {
            self.load_seat(db, &origin).await?;
        }
        let known = self
            .seats
            .get(&origin)
            .and_then(|seat| seat.book.public_key.clone());
        let message = match known.map(|key| VerifyingKey::from_bytes(&key.0)) {
            Some(Ok(key)) => match opened.verified_by(&key) {
                Err(EnvelopeError::Forged(_)) => {
                    opened.read_introduction().map(|message| (message, false))
                }
                other => other.map(|message| (message, true)),
            },
            _ => opened.read_introduction().map(|message| (message, false)),
        };
        match message {
            Ok((Message::Hello(hello), trusted)) => {
                self.greeted(db, now, &origin, *Box::new(hello), trusted, token)
                    .await
            }
            Ok((message, true)) => {
                if let Message::Batch(batch) = &message
                    && self.is_of_another_past(db, &origin, batch).await?
                {
                    return self.put_off(now, &origin, batch, token);
                }
                self.heard(now, &origin, message, bytes, token)
            }
            Ok((_, false)) => {
                self.drop_envelope(token, EnvelopeError::Forged(origin.to_string()).to_string());
                Ok(())
            }
            Err(error) => {
                self.drop_envelope(token, error.to_string());
                Ok(())
            }
        }
    }

    fn drop_envelope(&mut self, token: Token, why: String) {
        self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
        self.outputs.push_back(Output::Settle(token));
    }

    /// A trusted message of an enrolled branch.
    fn heard(
        &mut self,
        now: Micros,
        origin: &OfficeName,
        message: Message,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        if seat.book.removed {
            self.outputs.push_back(Output::Settle(token));
            return Ok(());
        }
        seat.online = true;
        seat.book.seen = now;
        if let Message::Batch(batch) = message {
            return self.batch_arrived(now, origin, batch, bytes, token);
        }
        self.outputs.push_back(Output::Settle(token));
        match message {
            Message::Applied(position) => {
                seat.book.applied = seat.book.applied.max(position.min(self.book.last));
            }
            Message::Resend(from) => seat.lane.rewind(LogPosition(from), self.book.last),
            Message::Position(position) => self.position_told(now, origin, position)?,
            Message::ChunkRequest(request) => seat.request = Some(request),
            Message::Digests(digests) => self.digests_arrived(origin, digests, bytes.len())?,
            Message::Rows(rows) => self.rows_arrived(origin, rows, bytes.len()),
            Message::VerifyRequest(request) => {
                self.verifications
                    .want(Some(origin.clone()), request.repair);
            }
            Message::Alive(probe) => self.alive(origin, probe)?,
            Message::Recalled(recalled) => seat.recalled = Some(recalled),
            Message::Settle(request) => self.question(origin, Question::Settle(request)),
            Message::HistoryRequest(request) => self.question(origin, Question::History(request)),
            Message::Leave => {
                seat.book.removed = true;
                seat.unsaved = true;
            }
            _ => self
                .outputs
                .push_back(Output::Notice(Notice::Dropped(format!(
                    "{origin} sent what only a head sends"
                )))),
        }
        Ok(())
    }

    fn position_told(
        &mut self,
        now: Micros,
        origin: &OfficeName,
        position: Position,
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        seat.clock_offset_ms = position
            .offset
            .map_or_else(|| offset_ms(position.clock, now), |offset| -offset / 1000);
        self.listen_for_clones(origin, position.session)?;
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        seat.produced = Some(BatchNumber(position.produced));
        if let Some(applied) = position.applied {
            seat.book.applied = seat
                .book
                .applied
                .max(LogPosition(applied).min(self.book.last));
        }
        if position.produced >= seat.inbox.expected()
            && let Some(from) = seat.inbox.ask(now)
        {
            self.ask_again(origin, from)?;
        }
        if position.question != 0 {
            self.answer_position(now, origin, position.question)?;
        }
        Ok(())
    }

    fn answer_position(&mut self, now: Micros, to: &OfficeName, question: u64) -> OfficeResult<()> {
        let Some(seat) = self.seats.get(to) else {
            return Ok(());
        };
        let position = Position {
            produced: self.book.last.0,
            applied: Some(seat.book.cursor.0),
            question,
            clock: now,
            session: [0; 16],
            offset: None,
        };
        self.tell(to, &Message::Position(position))
    }

    fn ask_again(&mut self, branch: &OfficeName, from: u64) -> OfficeResult<()> {
        self.outputs.push_back(Output::Notice(Notice::Gap { from }));
        self.tell(branch, &Message::Resend(from))
    }

    fn batch_arrived(
        &mut self,
        now: Micros,
        origin: &OfficeName,
        batch: Batch,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        if batch.incarnation != seat.book.incarnation {
            self.drop_envelope(
                token,
                format!("a batch of an earlier incarnation of {origin}"),
            );
            return Ok(());
        }
        if let Some(problem) = misfit(&batch, &self.versions, self.schema.version) {
            self.drop_envelope(
                token,
                format!("batch {} of {origin} was refused: {problem}", batch.number),
            );
            return Ok(());
        }
        let number = batch.number.0;
        let waiting = seat.inbox.slots().last();
        let before = match waiting {
            Some(slot) => Some(envelope::chain(&slot.bytes)),
            None => (!seat.staged).then_some(seat.book.chain),
        };
        if number == seat.inbox.expected() && before.is_some_and(|chain| chain != batch.previous) {
            // What came before under these numbers was another life's: the branch was restored.
            let refusal = Refusal {
                session: [0; 16],
                reason: "the branch's database was restored from a backup".into(),
                reincarnate: true,
                incarnation: batch.incarnation,
                cursor: BatchNumber(u64::MAX),
                copied: false,
            };
            self.drop_envelope(
                token,
                format!("batch {number} of {origin} breaks its chain"),
            );
            return self.tell(origin, &Message::Refusal(refusal));
        }
        match seat.inbox.admit(
            Slot {
                number,
                bytes: bytes.to_vec(),
                message: batch,
                token,
            },
            now,
        ) {
            Admission::Kept => return Ok(()),
            Admission::Gap(Some(from)) => self.ask_again(origin, from)?,
            Admission::Gap(None) | Admission::Duplicate | Admission::Full => {}
        }
        self.outputs.push_back(Output::Settle(token));
        Ok(())
    }

    async fn greeted<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        origin: &OfficeName,
        hello: Hello,
        trusted: bool,
        token: Token,
    ) -> OfficeResult<()> {
        if let Err(refusal) = self.admit(now, origin, &hello, trusted) {
            self.outputs.push_back(Output::Notice(Notice::Refused(
                origin.clone(),
                refusal.reason.clone(),
            )));
            // Whoever greets without being let in must not take the place of the branch whose name it uses.
            let stranger = OfficeName::new(format!("refused.{token}"))
                .ok()
                .filter(|_| !trusted && !self.lanes.is_fanout());
            let addressee = stranger.unwrap_or_else(|| origin.clone());
            self.outputs
                .push_back(Output::Name(token, addressee.clone()));
            self.tell(&addressee, &Message::Refusal(refusal))?;
            self.outputs.push_back(Output::Close(token));
            self.outputs.push_back(Output::Settle(token));
            return Ok(());
        }
        self.outputs.push_back(Output::Name(token, origin.clone()));
        let standing = self.standing(db, origin, &hello).await?;
        if self.is_told_too_little(origin, &hello, &standing)? {
            self.outputs.push_back(Output::Settle(token));
            return Ok(());
        }
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        let number = u64::from_be_bytes(now.0.to_be_bytes());
        seat.sessions.greeted(hello.session, number);
        seat.online = true;
        seat.book.seen = now;
        seat.produced = Some(hello.frozen);
        seat.book.applied = hello.applied.min(self.book.last);
        seat.clock_offset_ms = offset_ms(hello.clock, now);
        if seat.clock_offset_ms.abs() > CLOCK_OFF_MS {
            let notice = Notice::ClockOff(origin.clone(), seat.clock_offset_ms);
            self.outputs.push_back(Output::Notice(notice));
        }
        let (book, joining) = (seat.book.clone(), hello.head.is_none());
        let staged = seat.staged;
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            if !staged {
                // Parts of an earlier incarnation must not pass for parts of this one after a restart.
                db.trim(&books::staged_of(origin), u64::MAX >> 1).await?;
            }
            books::store(db, &seat_name(origin), &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        if let Some(seat) = self.seats.get_mut(origin) {
            seat.agrees = matches!(standing, Standing::Agrees | Standing::BeyondHorizon);
            seat.agreed = None;
        }
        let rewind = match standing {
            Standing::Ahead => {
                // What this head lost comes back before anything else is said.
                if self
                    .seats
                    .get(origin)
                    .is_some_and(|seat| seat.recalled.is_none())
                {
                    self.recall(db, origin, hello.applied).await?;
                }
                self.outputs.push_back(Output::Settle(token));
                return Ok(());
            }
            Standing::GoBack(place, chain) => Some((place, chain)),
            Standing::Agrees | Standing::BeyondHorizon => None,
        };
        let beyond_horizon = matches!(standing, Standing::BeyondHorizon);
        let from = if joining || beyond_horizon {
            self.book.last
        } else {
            hello.applied
        };
        let last = self.book.last;
        if let Some(seat) = self.seats.get_mut(origin) {
            seat.lane.greet(from, last, self.lanes.is_fanout());
        }
        let welcome = Welcome {
            head: self.book.incarnation,
            session: hello.session,
            incarnation: book.incarnation,
            cursor: book.cursor,
            chain: book.chain,
            last: self.book.last,
            schema: self.schema_for(db, &hello, &standing).await?,
            clock: now,
            log_chain: self.book.chain,
            rewind,
            beyond_horizon,
            predecessors: (!self.predecessors.is_empty()).then(|| self.predecessors.clone()),
        };
        self.tell(origin, &Message::Welcome(welcome))?;
        self.listen_for_clones(origin, hello.session)?;
        self.warn_if_copied(origin)?;
        self.outputs
            .push_back(Output::Notice(Notice::BranchGreeted(origin.clone())));
        self.outputs.push_back(Output::Settle(token));
        Ok(())
    }

    /// Sends a message to one branch.
    fn tell(&mut self, to: &OfficeName, message: &Message) -> OfficeResult<()> {
        let bytes = envelope::seal(&self.identity.name, &self.identity.key, message)?;
        self.outputs
            .push_back(Output::Send(To::Branch(to.clone()), bytes.into()));
        Ok(())
    }

    /// Does one bounded piece of work. Returns whether there may be more.
    pub async fn work<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        match self.work_on(db, now).await {
            Err(error) if crate::unfit::is_unfit(&error) => {
                if self.tables_changed(db).await? {
                    return Ok(true);
                }
                Err(error)
            }
            outcome => outcome,
        }
    }

    async fn work_on<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        let mut more = false;
        let given_back: Vec<(OfficeName, Recalled)> = self
            .seats
            .iter_mut()
            .filter_map(|(name, seat)| Some((name.clone(), seat.recalled.take()?)))
            .collect();
        for (name, recalled) in given_back {
            more |= self.take_back(db, now, &name, recalled).await?;
        }
        if self.moving && !self.settling_in(now) && self.reconcile(db, now).await? {
            let waiting: Vec<OfficeName> = self
                .seats
                .iter()
                .filter(|(_, seat)| !seat.inbox.is_empty())
                .map(|(name, _)| name.clone())
                .collect();
            for name in waiting {
                more |= self.hear_branch(db, now, &name).await?;
            }
            if self.captured {
                more |= self.take(db, now).await?;
            }
            self.start_verification(db, now).await?;
            self.advance_verification(db, now).await?;
            while let Some((branch, question)) = self.questions.pop_front() {
                self.answer_question(db, now, &branch, question).await?;
            }
        }
        more |= self.pump(db).await?;
        more |= self.serve_chunks(db, now).await?;
        Ok(more)
    }

    /// Judges what waits from one branch. Trouble with it is that branch's alone: the others go on.
    async fn hear_branch<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        name: &OfficeName,
    ) -> OfficeResult<bool> {
        if self
            .seats
            .get(name)
            .and_then(|seat| seat.resting_since)
            .is_some_and(|since| !now.has_passed(REST_MS, since))
        {
            return Ok(false);
        }
        match self.judge_branch(db, now, name).await {
            Err(error) if crate::unfit::is_unfit(&error) => {
                if let Some(seat) = self.seats.get_mut(name) {
                    seat.resting_since = Some(now);
                }
                let why = format!("the changes of {name} cannot be applied: {error}; they wait");
                self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
                Ok(false)
            }
            outcome => {
                if let Some(seat) = self.seats.get_mut(name) {
                    seat.resting_since = None;
                }
                outcome
            }
        }
    }

    /// Takes what the head's own application wrote into the log. Returns whether more waits.
    async fn take<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        db.begin(Purpose::Take).await?;
        let outcome = match self.is_as_known(db).await {
            Ok(true) => self.take_portions(db, now).await.map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(taken) = conclude(db, outcome).await? else {
            // The tables changed: what it means comes first.
            self.catalogue.forget();
            return self.reconcile(db, now).await;
        };
        self.captured = taken.more;
        self.left &= taken.more;
        if !taken.fresh.is_empty() {
            self.appended = now;
        }
        self.any_held |= taken.held;
        self.book = taken.book;
        self.tail.adopt(taken.fresh, &mut self.recent);
        if taken.changes > 0 {
            let changes = taken.changes;
            self.outputs
                .push_back(Output::Notice(Notice::Taken { changes }));
        }
        Ok(taken.more)
    }

    async fn take_portions<D: Database>(&self, db: &mut D, now: Micros) -> OfficeResult<TakenIn> {
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let mut changes = 0;
        let mut held = false;
        for count in 1.. {
            let mut portion = db.take(&self.schema, BATCH_CHANGES).await?;
            part_with_giants(&mut portion, &self.schema);
            self.set_aside(db, now, &mut writer.book, &portion).await?;
            held |= !portion.unreadable.is_empty();
            let kept = portion.changes.into_iter().filter(|taken| {
                let gone = taken.first == First::Inserted && taken.effect.row().is_none();
                let nothing = gone && !self.left;
                let upward = self
                    .schema
                    .table(taken.table)
                    .is_none_or(|table| table.direction == Direction::Up);
                !nothing && !upward
            });
            let kept: Vec<_> = kept.collect();
            changes += kept.len() as u64;
            let mut runs = cut_by_weight(kept).into_iter().peekable();
            while let Some(run) = runs.next() {
                if run.is_empty() && !portion.open {
                    continue;
                }
                let logged = |taken: crate::port::Taken| Logged {
                    table: taken.table,
                    effect: taken.effect,
                    at: Micros(taken.at.0.min(now.0)),
                    source: Source::Sender,
                };
                let body = LoggedChanges {
                    answers: None,
                    changes: run.into_iter().map(logged).collect(),
                    verdicts: Vec::new(),
                    open: portion.open || runs.peek().is_some(),
                    settlements: Vec::new(),
                };
                writer.append(db, LogBody::Changes(body)).await?;
            }
            if !portion.open && (count >= PORTIONS_PER_TAKE || !portion.more) {
                if self.left && !portion.more {
                    db.set_meta(recall::LEFT, None).await?;
                }
                writer.finish(db).await?;
                return Ok(TakenIn {
                    book: writer.book,
                    fresh: writer.fresh,
                    more: portion.more,
                    changes,
                    held,
                });
            }
        }
        Err(OfficeError::Books("a take did not end".into()))
    }

    /// Time has passed. To be called a few times a second.
    pub async fn tick<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<()> {
        let idle_since = self.announced.1;
        let news =
            self.announced.0 != self.book.last && now.has_passed(ANNOUNCE_AFTER_MS, self.appended);
        if news || now.has_passed(ANNOUNCE_MS, idle_since) {
            self.announced = (self.book.last, now);
            let position = Position {
                produced: self.book.last.0,
                applied: None,
                question: 0,
                clock: now,
                session: [0; 16],
                offset: None,
            };
            let bytes = envelope::seal(
                &self.identity.name,
                &self.identity.key,
                &Message::Position(position),
            )?;
            self.outputs
                .push_back(Output::Send(To::Everyone, bytes.into()));
        }
        for seat in self.seats.values_mut() {
            seat.online &= now < seat.book.seen.plus_millis(4 * ANNOUNCE_MS);
        }
        self.advance_verification(db, now).await?;
        self.retry_holds(db, now).await?;
        self.keep_log(db, now).await?;
        self.save_seen(db).await
    }

    /// Keeps a branch's question until the next piece of work; more than a few at a time are dropped, and asked again.
    fn question(&mut self, branch: &OfficeName, question: Question) {
        if self.questions.len() < QUESTIONS {
            self.questions.push_back((branch.clone(), question));
        }
    }

    async fn answer_question<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        question: Question,
    ) -> OfficeResult<()> {
        let (question, answer) = match question {
            Question::Settle(request) => {
                let (conflict, keep) = (request.conflict, request.keep);
                let settled = self.settle(db, now, conflict, keep, Some(branch)).await?;
                let answer = settled.map(
                    |settled| serde_json::json!({ "settled": conflict, "at": rfc3339(settled.at) }),
                );
                (request.question, answer)
            }
            Question::History(request) => {
                let history = self.history(db, &request.table, &request.key).await?;
                (request.question, history)
            }
        };
        let answer = answer.map(|answer| answer.to_string());
        self.tell(branch, &Message::Reply(Reply { question, answer }))
    }

    /// Whether every enrolled branch was heard of since this start, and all that it has frozen is here.
    pub fn has_heard_all(&self) -> bool {
        let heard =
            |seat: &Seat| seat.online && seat.produced.is_some_and(|last| last <= seat.book.cursor);
        self.seats
            .values()
            .all(|seat| !seat.is_enrolled() || heard(seat))
    }

    /// Whether head and branches are even: nothing captured, and every enrolled branch has applied the whole log.
    pub async fn is_even<D: Database>(&self, db: &mut D) -> OfficeResult<bool> {
        let waiting = db.backlog().await?.writes > 0;
        let behind = |seat: &Seat| {
            seat.is_enrolled() && (seat.book.applied < self.book.last || !seat.inbox.is_empty())
        };
        Ok(!waiting && !self.seats.values().any(behind))
    }
}

/// What one transaction took of the head's own application's writes.
struct TakenIn {
    book: HeadBook,
    fresh: Vec<writer::Fresh>,
    more: bool,
    changes: u64,
    /// Rows that cannot be sent were listed.
    held: bool,
}

/// Something that a branch asked.
#[derive(Debug)]
enum Question {
    Settle(SettleRequest),
    History(HistoryRequest),
}

/// What in a batch does not fit the shared tables, if anything (P12).
fn misfit(batch: &Batch, versions: &Versions, present: SchemaVersion) -> Option<String> {
    let written = batch.schema;
    let Some(schema) = versions.get(written).filter(|_| written <= present) else {
        return Some(format!(
            "it was written under schema version {written}, the head is at {present}"
        ));
    };
    batch.changes.iter().find_map(|change| {
        let Some(table) = schema.table(change.table) else {
            return Some(format!("table number {} is not shared", change.table));
        };
        // A column that the office lacks holds no value: it is filled in before the row is looked at.
        let known = change.absent.is_empty() || table.columns.len() == row_width(&change.effect);
        (!known || (change.absent.is_empty() && !change.effect.fits(table)))
            .then(|| format!("a row does not have the shape of table `{}`", table.name))
    })
}

fn row_width(effect: &Effect) -> usize {
    effect.row().map_or(0, |row| row.0.len())
}
