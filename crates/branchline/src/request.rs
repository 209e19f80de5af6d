//! What people ask of a running office, and how they are answered.

use std::time::Instant;

use branchline_core::evolution::Renamed;
use branchline_core::identity::OfficeName;
use branchline_core::message::Keep;
use tokio::sync::oneshot;

use crate::exit::Failure;

/// An answer: the exit code that it means, and the document.
pub type Answer = Result<(u8, serde_json::Value), Failure>;

/// A question and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// How things are.
    Status,
    /// Everything out, everything in.
    Sync {
        /// When to give up.
        deadline: Instant,
    },
    /// Until a joining branch is complete and even.
    Joined {
        /// When to give up.
        deadline: Option<Instant>,
    },
    /// Compare with the peers.
    Verify {
        /// When to give up.
        deadline: Instant,
        /// Make differing rows at the branches what they are at the head.
        repair: bool,
    },
    /// Let another row stand after a conflict.
    Settle {
        /// The conflict's number.
        conflict: u64,
        /// What shall stand.
        keep: Keep,
        /// When to give up.
        deadline: Instant,
    },
    /// How a row came to be what it is.
    History {
        /// The table's name.
        table: String,
        /// The key's values, as text.
        key: Vec<String>,
        /// When to give up.
        deadline: Instant,
    },
    /// Read the plan in the configuration again, and share by it from now on.
    ApplyPlan {
        /// When to give up.
        deadline: Instant,
    },
    /// Let the change of the tables pass that waits for a person.
    AcceptSchema {
        /// When to give up.
        deadline: Instant,
    },
    /// A table or a column was renamed, or will be.
    SayRenamed(Renamed),
    /// A branch was invited or removed: read its record again.
    Reload(OfficeName),
    /// Tell the head, remove everything from the database, and stop.
    Leave,
    /// Stop.
    Stop,
}

/// A question that is answered later.
#[derive(Debug)]
pub struct Waiting {
    /// What was asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
    /// The question that must be answered first: a branch's to the head by its number, or 0 for a comparison.
    pub question: Option<u64>,
    /// The questions asked of the head that it answers in words.
    pub asked: Vec<u64>,
    /// When the last of them was asked.
    pub asked_at: Option<Instant>,
    /// What the head replied.
    pub replied: Option<Result<serde_json::Value, String>>,
    /// What changed meanwhile in the shared tables, in sentences.
    pub changed: Vec<String>,
    /// An answer that has come.
    pub answer: Option<Answer>,
    /// When it was asked.
    pub since: Instant,
}

impl Waiting {
    /// A question that was just asked.
    pub fn new(ask: Ask, reply: oneshot::Sender<Answer>) -> Self {
        Self {
            ask,
            reply,
            question: None,
            asked: Vec::new(),
            asked_at: None,
            replied: None,
            changed: Vec::new(),
            answer: None,
            since: Instant::now(),
        }
    }
}
