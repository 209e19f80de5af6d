//! What the head sends: its log, its answers and its questions.

use super::Branch;
use super::here::Here;
use crate::envelope;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, LogPosition, Micros};
use crate::inbox::{Admission, Slot};
use crate::message::{LogEntry, Message, Position};
use crate::output::{Notice, Output, Token};
use crate::port::Database;

impl Branch {
    /// Takes an envelope in.
    pub async fn arrived<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        if self.differing.is_empty() {
            return self.arrived_at(db, now, bytes, token).await;
        }
        let mut here = Here {
            db,
            differing: self.differing.clone(),
            refused: self.refused_tables(),
        };
        self.arrived_at(&mut here, now, bytes, token).await
    }

    async fn arrived_at<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        let message = envelope::open(bytes).and_then(|opened| self.verified(&opened));
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                self.notice(Notice::Dropped(error.to_string()));
                self.outputs.push_back(Output::Settle(token));
                return Ok(());
            }
        };
        self.link.heard = now;
        match message {
            Message::Log(entry) => return self.entry_arrived(now, entry, bytes, token),
            Message::Chunk(chunk) => {
                self.chunk_arrived(chunk, token);
                return Ok(());
            }
            Message::Welcome(welcome) => self.welcomed(db, now, welcome).await?,
            Message::Resend(from) => {
                self.link.sent = self.link.sent.min(BatchNumber(from).previous());
            }
            Message::Position(position) => self.position_told(now, position)?,
            Message::Refusal(refusal) if refusal.reincarnate || refusal.session == self.session => {
                if refusal.reincarnate {
                    let here = refusal.incarnation == self.book.incarnation;
                    if here && refusal.cursor > self.book.frozen {
                        self.reincarnate(db, now).await?;
                    }
                } else {
                    self.link.copied |= refusal.copied;
                    self.link.refused = Some(refusal.reason.clone());
                    self.notice(Notice::RefusedByHead(refusal.reason));
                }
            }
            Message::Probe(probe) if probe.session == self.session && !self.link.copied => {
                self.tell(&Message::Alive(probe))?;
            }
            Message::Warning(warning) => self.notice(Notice::Warned(warning)),
            Message::Recall(recall) => self.recall(db, &recall).await?,
            Message::Reply(reply) => self.notice(Notice::Reply(reply.question, reply.answer)),
            Message::VerifyResult(result) => self.compared(db, result).await?,
            Message::Narrow(question) => self.narrow(&question)?,
            Message::RowsRequest(request) => self.tell_rows(db, request).await?,
            _ => {}
        }
        self.outputs.push_back(Output::Settle(token));
        Ok(())
    }

    fn entry_arrived(
        &mut self,
        now: Micros,
        entry: LogEntry,
        bytes: &[u8],
        token: Token,
    ) -> OfficeResult<()> {
        let known = self.book.head.is_some_and(|head| head == entry.head);
        if !known {
            // Not yet let in, or another head's log: the greeting will sort it out.
            self.outputs.push_back(Output::Settle(token));
            return Ok(());
        }
        let number = entry.position.0;
        if number == self.inbox.expected() {
            let before = match self.inbox.slots().last() {
                Some(slot) => Some(envelope::chain(&slot.bytes)),
                None => (!self.staged).then_some(self.book.log_chain),
            };
            if before.is_some_and(|chain| chain != entry.previous) {
                // The head goes on from another past than this branch's: it was restored. The greeting tells it so.
                self.outputs.push_back(Output::Settle(token));
                return self.greet_again(now);
            }
        }
        self.link.known_last = self.link.known_last.max(entry.position);
        match self.inbox.admit(
            Slot {
                number,
                bytes: bytes.to_vec(),
                changes: entry.body.changes(),
                message: entry,
                token,
            },
            now,
        ) {
            Admission::Kept => return Ok(()),
            Admission::Gap(Some(from)) => self.ask_again(from)?,
            Admission::Gap(None) | Admission::Duplicate | Admission::Full => {}
        }
        self.outputs.push_back(Output::Settle(token));
        Ok(())
    }

    fn ask_again(&mut self, from: u64) -> OfficeResult<()> {
        self.notice(Notice::Gap { from });
        self.tell(&Message::Resend(from))
    }

    fn position_told(&mut self, now: Micros, position: Position) -> OfficeResult<()> {
        if self.book.head.is_none() {
            return Ok(());
        }
        let last = LogPosition(position.produced);
        let elsewhere = last == self.book.cursor
            && !self.staged
            && position
                .chain
                .is_some_and(|chain| chain != self.book.log_chain);
        if last < self.book.cursor || elsewhere {
            // An old announcement, or a head that was restored: a broker may have brought what it lost after the greeting.
            self.greet_again(now)?;
        }
        // What it had told before is no measure: it may have been restored since.
        self.link.known_last = last.max(self.book.cursor);
        if position.produced >= self.inbox.expected()
            && let Some(from) = self.inbox.ask(now)
        {
            self.ask_again(from)?;
        }
        let asked = self.link.earlier_questions + 1..=self.link.question;
        if asked.contains(&position.question) {
            let even = position.applied == Some(self.book.frozen.0)
                && last <= self.book.cursor
                && !elsewhere;
            self.link.answer = (position.question, even);
        }
        Ok(())
    }
}
