//! What people ask of a running office, and how they are answered.

use std::time::Instant;

use branchline_core::identity::OfficeName;
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
    /// An answer that has come.
    pub answer: Option<Answer>,
    /// When it was asked.
    pub since: Instant,
}
