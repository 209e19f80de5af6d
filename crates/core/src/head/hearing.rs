//! What branches send: their greetings, their batches, their places and their questions.

use super::recall::Standing;
use super::{CLOCK_OFF_MS, Head, QUESTIONS, Seat};
use crate::books::{self, seat_name};
use crate::change::Effect;
use crate::conflict::rfc3339;
use crate::envelope::{self, EnvelopeError};
use crate::evolution::Versions;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, LogPosition, Micros, OfficeName};
use crate::inbox::{Admission, Slot};
use crate::message::{
    Batch, Hello, HistoryRequest, Message, Position, Refusal, Reply, SettleRequest, Welcome,
};
use crate::office::conclude;
use crate::output::{Notice, Output, Token, offset_ms};
use crate::port::{Database, Purpose};
use crate::schema::Schema;

/// Something that a branch asked.
#[derive(Debug)]
pub(super) enum Question {
    Settle(SettleRequest),
    History(HistoryRequest),
}

impl Head {
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
        let known = self.seats.get_mut(&origin).and_then(Seat::key);
        let message = match known {
            Some(key) => match opened.verified_by(&key) {
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
    pub(super) fn heard(
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
            // What it misses is no longer there; its greeting tells it what to do instead.
            Message::Resend(from) if LogPosition(from) < self.log_first => {
                self.ask_for_greeting(now, origin)?;
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
            Message::Leave if seat.sessions.has_copy() => {
                let told = format!(
                    "{origin} leaves, but a copy of it was refused, and which of the two this is cannot be told: `branchline remove {origin}` takes it out"
                );
                self.outputs
                    .push_back(Output::Notice(Notice::Trouble(told)));
            }
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

    pub(super) async fn greeted<D: Database>(
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
            let known = hello.head.is_some() && matches!(standing, Standing::Agrees);
            seat.agreed = known.then_some((hello.applied, hello.chain));
        }
        let rewind = match standing {
            Standing::Ahead => {
                // What this head lost comes back before anything else is said.
                if self
                    .seats
                    .get(origin)
                    .is_some_and(|seat| seat.recalled.is_none())
                {
                    let ended = (hello.applied, hello.chain);
                    self.recall(db, now, origin, ended).await?;
                }
                self.outputs.push_back(Output::Settle(token));
                return Ok(());
            }
            Standing::GoBack(place, chain) => Some((place, chain)),
            Standing::Apart => Some((LogPosition::NONE, Digest::default())),
            Standing::Agrees | Standing::BeyondHorizon => None,
        };
        let beyond_horizon = matches!(standing, Standing::BeyondHorizon | Standing::Apart);
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
            .map_or_else(|| offset_ms(position.clock, now), |offset| -(offset / 1000));
        self.listen_for_clones(origin, position.session)?;
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        let greets = !seat.agrees && seat.is_enrolled();
        seat.produced = Some(BatchNumber(position.produced));
        if let Some(applied) = position.applied {
            seat.book.applied = seat
                .book
                .applied
                .max(LogPosition(applied).min(self.book.last));
        }
        if let Some(staged) = position.staged {
            seat.lane.keeps(LogPosition(staged).min(self.book.last));
        }
        if position.produced >= seat.inbox.expected()
            && let Some(from) = seat.inbox.ask(now)
        {
            self.ask_again(origin, from)?;
        }
        if position.question != 0 {
            self.answer_position(now, origin, position.question)?;
        }
        if greets {
            // One that was asked to may have greeted a moment before, and not have heeded it.
            self.ask_for_greeting(now, origin)?;
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
            staged: None,
            chain: Some(self.book.chain),
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
        if let Some(problem) = misfit(&batch, &self.versions, &self.schema) {
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
                changes: batch.changes.len(),
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

    /// Keeps a branch's question until the next piece of work; more than a few at a time are dropped, and asked again.
    pub(super) fn question(&mut self, branch: &OfficeName, question: Question) {
        if self.questions.len() < QUESTIONS {
            self.questions.push_back((branch.clone(), question));
        }
    }

    pub(super) async fn answer_question<D: Database>(
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
}

/// What in a batch does not fit the shared tables, if anything (P12).
fn misfit(batch: &Batch, versions: &Versions, present: &Schema) -> Option<String> {
    let written = batch.schema;
    let shapes = versions.shapes_of(batch, present);
    let known = batch.lost.is_some() || written <= present.version;
    let Some(shapes) = shapes.filter(|_| known) else {
        return Some(format!(
            "it was written under schema version {written}, the head is at {}",
            present.version
        ));
    };
    batch.changes.iter().find_map(|change| {
        let Some(table) = shapes.table(change.table) else {
            return Some(format!("table number {} is not shared", change.table));
        };
        let fits = match &change.effect {
            // A column that the office lacks holds no value: it is filled in before the row is looked at.
            Effect::Put(row) if !change.absent.is_empty() => row.0.len() == table.columns.len(),
            effect => effect.fits(table),
        };
        (!fits).then(|| format!("a row does not have the shape of table `{}`", table.name))
    })
}
