//! The head: keeps the log, judges what branches send, and sees that every branch can follow.
//!
//! How a branch's change travels through this room: [`Head::arrived`] checks the envelope and puts the batch into the
//! branch's inbox; [`Head::work`] judges whole units in one transaction (`judge`), which appends to the log
//! (`writer`); what was appended goes out by the lanes (`lanes`). The head's own application's writes enter the log
//! by [`Head::take`]. Absent on purpose: any state of a transport, and any memory that grows with rows or backlog.

use std::collections::{BTreeMap, VecDeque};

use crate::books::{self, HeadBook, SeatBook};
use crate::envelope::{self};
use crate::evolution::{Plan, Versions};
use crate::failure::{OfficeError, OfficeResult, unchanged};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::inbox::Inbox;
use crate::message::{
    Barrier, Batch, ChunkRequest, LogBody, LoggedChanges, Message, Position, Recalled,
};
use crate::office::{Identity, conclude};
use crate::output::{Notice, Output, To};
use crate::port::{Database, Purpose};
use crate::retention::Retention;
use crate::schema::Schema;
use crate::succession::{self, Predecessor};
use ed25519_dalek::VerifyingKey;

mod chunks;
mod clones;
mod hearing;
mod history;
pub mod holds;
mod judge;
mod keep;
mod lanes;
mod parents;
pub(crate) mod promote;
mod recall;
mod recent;
mod repair;
mod reshape;
pub mod seats;
mod take;
mod verify;
mod writer;

use clones::Sessions;
use hearing::Question;
pub use lanes::Wiring;
pub use promote::log_of;
use recall::Standing;
use recent::Recent;
pub use recent::own_entry;
use reshape::Catalogue;
use writer::{HEAD, Tail};

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
/// How long it waits, while branches give back what the log lost, for the next piece, in milliseconds.
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
    /// When captured writes that wait were marked off.
    marked: Micros,
    /// When the head was started, until it adds to its log.
    started: Option<Micros>,
    /// What branches send is judged: not while the head waits for a lost part of its log, or for a person.
    judging: bool,
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
    /// The branch's key as it stands in the book, and made ready: that takes a quarter of a signature's check.
    key: Option<([u8; 32], VerifyingKey)>,
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
    /// It follows this log: its greeting said so to this process.
    agrees: bool,
    /// The last place of this log of which its greeting or a batch said that it followed it.
    agreed: Option<(LogPosition, Digest)>,
    sessions: Sessions,
    /// While it lacks entries: an entry that it lacks, and since when that is there.
    lacks: Option<(LogPosition, Micros)>,
}

impl Seat {
    /// What the branch signs with; nothing before it has joined.
    fn key(&mut self) -> Option<VerifyingKey> {
        let bytes = self.book.public_key.as_ref()?.0;
        if self.key.is_none_or(|(known, _)| known != bytes) {
            let key = VerifyingKey::from_bytes(&bytes).ok()?;
            self.key = Some((bytes, key));
        }
        self.key.map(|(_, key)| key)
    }

    fn new(book: SeatBook) -> Self {
        Self {
            inbox: Inbox::new(book.cursor.0),
            key: None,
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
            lacks: None,
            book,
        }
    }

    /// Notes since when the branch lacks entries of a log with this end. While it follows, the entry that is looked at
    /// moves on, so that a branch that keeps up under load is not taken for one that stands still.
    fn note_lag(&mut self, now: Micros, last: LogPosition) {
        if self
            .lacks
            .is_none_or(|(lacked, _)| lacked <= self.book.applied)
        {
            self.lacks = (self.is_enrolled() && self.book.applied < last).then_some((last, now));
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
    /// Since when the log holds an entry that is not known to be in its database.
    pub behind_since: Option<Micros>,
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
            marked: Micros(0),
            started: Some(now),
            judging: false,
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
        let asked = |seat: &Seat| {
            let asking = seat.asking.as_ref();
            asking.is_some_and(|asking| asking.is_awaited(now))
        };
        let mut seats = self.seats.values();
        let waits = !now.has_passed(SETTLE_IN_MS, since) && self.seats.values().any(silent);
        if self.book.last > LogPosition::NONE && (waits || seats.any(asked)) {
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

    /// Whether arrivals can be taken in. A branch whose changes cannot be applied does not keep the others out, and none
    /// that is there to send it again does while nothing is judged: what more it sends is dropped, and asked for later.
    /// What waits in a broker stays there: its branch may be away.
    pub fn has_room(&self) -> bool {
        let free = |seat: &Seat| seat.inbox.has_room() || seat.resting_since.is_some();
        let drops = !self.judging && !self.lanes.is_fanout();
        drops || self.seats.values().all(free)
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
        let outcome = self.work_on(db, now).await;
        self.unless_tables_changed(db, outcome, true).await
    }

    /// What went wrong only since the tables are no longer what the present version says is no failure: they are looked at
    /// next.
    async fn unless_tables_changed<D: Database, T>(
        &mut self,
        db: &mut D,
        outcome: OfficeResult<T>,
        changed: T,
    ) -> OfficeResult<T> {
        match outcome {
            Err(error) if crate::unfit::is_unfit(&error) => match self.tables_changed(db).await? {
                true => Ok(changed),
                false => Err(error),
            },
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
        let reconciled = match self.moving && !self.settling_in(now) {
            true => unchanged(self.reconcile(db, now).await)?,
            false => false,
        };
        self.judging = reconciled;
        if reconciled {
            let waiting: Vec<OfficeName> = self
                .seats
                .iter()
                .filter(|(_, seat)| !seat.inbox.is_empty())
                .map(|(name, _)| name.clone())
                .collect();
            for name in waiting {
                more |= unchanged(self.hear_branch(db, now, &name).await)?;
            }
            if self.captured {
                more |= unchanged(self.take(db, now).await)?;
            }
            unchanged(self.start_verification(db, now).await)?;
            unchanged(self.advance_verification(db, now).await)?;
            while let Some((branch, question)) = self.questions.pop_front() {
                self.answer_question(db, now, &branch, question).await?;
            }
        } else if self.captured && !self.moving {
            self.mark(db, now).await?;
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
                staged: None,
                chain: Some(self.book.chain),
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
            seat.note_lag(now, self.book.last);
        }
        let compared = unchanged(self.advance_verification(db, now).await);
        self.unless_tables_changed(db, compared, ()).await?;
        let retried = unchanged(self.retry_holds(db, now).await);
        self.unless_tables_changed(db, retried, ()).await?;
        unchanged(self.keep_log(db, now).await)?;
        unchanged(self.save_seen(db).await)
    }

    /// Whether every enrolled branch is online, or was heard of since then, and all that it said it has frozen is here.
    pub fn has_heard_all(&self, since: Micros) -> bool {
        let heard = |seat: &Seat| {
            (seat.online || seat.book.seen >= since)
                && seat.produced.is_some_and(|last| last <= seat.book.cursor)
        };
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
