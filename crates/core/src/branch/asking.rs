//! What a branch asks of the head for its people, and whether the answer has come.

use super::Branch;
use crate::change::Key;
use crate::failure::OfficeResult;
use crate::identity::Micros;
use crate::message::{HistoryRequest, Keep, Message, SettleRequest, VerifyRequest};

impl Branch {
    /// Tells the head that this branch leaves for good. A copy of a branch goes without a word.
    pub fn leave(&mut self) -> OfficeResult<()> {
        if self.link.copied {
            return Ok(());
        }
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

    /// Asks the head to settle a conflict about this branch's changes. The answer comes as
    /// [`crate::output::Notice::Reply`] under the number returned.
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

    /// Asks the head for a row's history. The answer comes as [`crate::output::Notice::Reply`] under the number returned.
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
}
