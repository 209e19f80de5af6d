//! Questions that the head alone can answer: settling a conflict, a row's history. A branch asks it over the link.

use std::time::{Duration, Instant};

use branchline_core::conflict::rfc3339;
use branchline_core::failure::OfficeError;
use branchline_core::message::Keep;
use serde_json::Value;

use super::{Driver, Machine, now};
use crate::exit::{BUG, Failure, NO, UNREACHED};
use crate::keys;
use crate::listing;
use crate::request::{Answer, Ask, Waiting};

/// After how long without a reply the head is asked once more: a message may have been lost with its link.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Driver {
    /// Settles a conflict here, at the head.
    pub(super) async fn settle(&mut self, conflict: u64, keep: Keep) -> Answer {
        if let Err(error) = self.renew().await {
            return Err(self.failed(error));
        }
        let Machine::Head(head) = &mut self.machine else {
            return Err(Failure::new(BUG, "a branch settles by its head"));
        };
        let by = head.name().clone();
        let db = &mut self.parts.db;
        let outcome = head.settle(db, now(), conflict, keep, Some(&by)).await;
        self.flush().await;
        match outcome {
            Ok(Ok(_)) => self.settled(conflict).await,
            Ok(Err(why)) => Err(Failure::new(NO, why)),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// A row's history, at the head.
    pub(super) async fn history(&mut self, table: &str, key: &[String]) -> Answer {
        let Machine::Head(head) = &self.machine else {
            return Err(Failure::new(BUG, "a branch asks its head"));
        };
        let key = keys::parse(head.schema(), table, key)?;
        match head.history(&mut self.parts.db, table, &key).await {
            Ok(Ok(document)) => Ok(with_code(document)),
            Ok(Err(why)) => Err(Failure::new(NO, why)),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, error: OfficeError) -> Failure {
        self.fail(error.clone());
        error.into()
    }

    /// The settled conflict as it is listed here.
    async fn settled(&mut self, conflict: u64) -> Answer {
        let decision = listing::decision(&mut self.parts.db, conflict).await?;
        let document =
            decision.map(|decision| decision.record.to_json_with(decision.settled.as_ref()));
        Ok((
            0,
            document.unwrap_or_else(|| serde_json::json!({ "id": conflict })),
        ))
    }

    /// Remembers a reply of the head for whoever asked.
    pub(super) fn note_reply(&mut self, question: u64, answer: &Result<String, String>) {
        let asked = |waiting: &&mut Waiting| waiting.asked.contains(&question);
        if let Some(waiting) = self.waiting.iter_mut().find(asked) {
            waiting.replied = Some(match answer {
                Ok(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
                Err(why) => Err(why.clone()),
            });
        }
    }

    /// Asks the head, at a branch, and looks for its reply.
    pub(super) async fn ask_head(&mut self, waiting: &mut Waiting) -> Option<Answer> {
        if let Some(reply) = waiting.replied.clone() {
            return self.replied(waiting, reply).await;
        }
        let Machine::Branch(branch) = &mut self.machine else {
            return None;
        };
        let recently = |at: Instant| at.elapsed() < ASK_AGAIN;
        if !branch.state().connected || waiting.asked_at.is_some_and(recently) {
            return None;
        }
        let question = match &waiting.ask {
            Ask::Settle { conflict, keep, .. } => branch.settle(*conflict, *keep),
            Ask::History { table, key, .. } => match keys::parse(branch.schema(), table, key) {
                Ok(key) => branch.history(table, key),
                Err(failure) => return Some(Err(failure)),
            },
            _ => return None,
        };
        match question {
            Ok(question) => waiting.asked.push(question),
            Err(error) => return Some(Err(error.into())),
        }
        waiting.asked_at = Some(Instant::now());
        self.flush().await;
        None
    }

    async fn replied(&mut self, waiting: &Waiting, reply: Result<Value, String>) -> Option<Answer> {
        let Ask::Settle { conflict, keep, .. } = waiting.ask else {
            return Some(reply.map(with_code).map_err(|why| Failure::new(NO, why)));
        };
        let decision = match listing::decision(&mut self.parts.db, conflict).await {
            Ok(decision) => decision,
            Err(error) => return Some(Err(error.into())),
        };
        let here = decision.and_then(|decision| decision.settled);
        let Machine::Branch(branch) = &self.machine else {
            return None;
        };
        match (reply, here) {
            // It is done for the person here when it has landed here.
            (Ok(reply), here) => {
                let landed = here.is_some_and(|settled| reply["at"] == rfc3339(settled.at));
                if landed {
                    Some(self.settled(conflict).await)
                } else {
                    None
                }
            }
            // The reply to the first question was lost, and the head did already what it was asked once more.
            (Err(_), Some(settled))
                if waiting.asked.len() > 1
                    && settled.by.as_ref() == Some(branch.name())
                    && (settled.keep == keep || keep == Keep::Retry) =>
            {
                Some(self.settled(conflict).await)
            }
            (Err(why), _) => Some(Err(Failure::new(NO, why))),
        }
    }

    /// Why there is no answer of the head in time.
    pub(super) fn unasked(&self, waiting: &Waiting) -> Failure {
        let seconds = waiting.since.elapsed().as_secs();
        let link = self.link.problem.as_ref().map(ToString::to_string);
        let place = match (&self.trouble.problem, &waiting.replied) {
            (Some(problem), _) => problem.to_string(),
            (None, Some(_)) => {
                "the head has done it, and its word has not reached this office's tables yet; it will by itself".into()
            }
            (None, None) if waiting.asked.is_empty() => match link {
                Some(link) => format!("the head could not be asked: {link}"),
                None => "the head could not be asked; is `branchline run` up there?".into(),
            },
            (None, None) => {
                "the head was asked and did not answer; it may still do what it was asked".into()
            }
        };
        Failure::new(UNREACHED, format!("gave up after {seconds} s: {place}"))
    }
}

/// A history of nothing is the answer no.
fn with_code(history: Value) -> (u8, Value) {
    let none = |key: &str| history[key].as_array().is_none_or(Vec::is_empty);
    let unknown = history["row"].is_null() && none("versions") && none("decisions");
    (if unknown { NO } else { 0 }, history)
}
