//! A branch: freezes what its application writes, follows the head's log, and takes the head's verdicts.
//!
//! How a log entry travels through this room: [`Branch::arrived`] checks it and puts it into the inbox;
//! [`Branch::work`] lands whole units in one transaction with the cursor (`land`). How a local write travels: `take`
//! freezes it into the outbox, from where it is sent until the log answers it. A joining branch asks for the first
//! copy of the tables chunk by chunk (`join`). Absent on purpose: deciding anything about a conflict.

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;

use crate::books::{self, BranchBook, OUTBOX};
use crate::by_name::ByName;
use crate::change::Key;
use crate::envelope;
use crate::evolution::Versions;
use crate::failure::{OfficeResult, unchanged};
use crate::identity::{BatchNumber, Digest, LogPosition, Micros, OfficeName};
use crate::inbox::Inbox;
use crate::message::{Barrier, Chunk, LogEntry, Message, Position};
use crate::office::{Fleeting, Identity, conclude};
use crate::output::{Notice, Output, To, Token};
use crate::port::{Database, Purpose};
use crate::retention::Retention;
use crate::schema::{Schema, TableId};
use crate::succession::Predecessor;

mod anew;
mod asking;
mod founding;
mod greeting;
mod hearing;
mod here;
mod hot;
mod join;
mod land;
mod look;
mod promote;
mod recall;
mod state;
mod step;
mod succeed;
mod take;
mod unanswered;
mod unfit;
mod unmade;
mod untaken;
mod verify;

pub use founding::Enrolment;
use here::{Differing, Here};
pub(crate) use land::{MOVED_RECORDS, append_record};
pub(crate) use look::{UNCAPTURED, remember_uncaptured};
pub use promote::Promotion;
pub use state::{BranchState, held_rows};
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
    /// Tables that are gone since the last look: nothing is taken or lands until it is known whether they come back.
    gone: Fleeting,
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
    /// When captured writes that wait were marked off.
    marked: Micros,
    moving: bool,
    /// The log answers batches of this incarnation that this database does not have: it was restored.
    reused: bool,
    unfit_tried: Micros,
    bound_tried: Micros,
    unmade_tried: Micros,
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

impl Branch {
    /// Makes this the branch's record, in a transaction of its own.
    async fn keep_book<D: Database>(&mut self, db: &mut D, book: BranchBook) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, BRANCH, &book).await;
        conclude(db, outcome).await?;
        self.book = book;
        Ok(())
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
            chain: None,
        };
        self.tell(&Message::Position(position))
    }

    /// Does one bounded piece of work. Returns whether there may be more.
    pub async fn work<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<bool> {
        // Before anything is taken or lands it is known what of the tables here serves.
        let unknown = self.shape.is_none() && self.book.head.is_some() && self.is_prepared();
        if unknown && !unchanged(self.look(db, Some(now)).await)? {
            return Ok(false);
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
            } else if self.captured && !(self.moving && self.may_freeze()) {
                self.mark(db, now).await?;
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
}
