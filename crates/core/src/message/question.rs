//! What people at a branch ask of the head, and decide.

use minicbor::{Decode, Encode};

use crate::change::Key;

/// Asks for a comparison of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VerifyRequest {
    /// Make the branch's differing rows what they are at the head.
    #[n(0)]
    pub repair: bool,
}

/// What a person wants to stand after a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Keep {
    /// The head's row.
    #[n(0)]
    Head,
    /// The branch's row.
    #[n(1)]
    Branch,
    /// The row that both sides changed.
    #[n(2)]
    Base,
    /// The branch's row, if it fits by now: a held change is tried again.
    #[n(3)]
    Retry,
}

/// A person's decision of a conflict, sent from a branch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SettleRequest {
    /// The question's number, for the reply.
    #[n(0)]
    pub question: u64,
    /// The conflict.
    #[n(1)]
    pub conflict: u64,
    /// What shall stand.
    #[n(2)]
    pub keep: Keep,
}

/// Asks for a row's history.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HistoryRequest {
    /// The question's number, for the reply.
    #[n(0)]
    pub question: u64,
    /// The table's name.
    #[n(1)]
    pub table: String,
    /// The row's key.
    #[n(2)]
    pub key: Key,
}

/// The answer to a branch's question.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reply {
    /// The question's number.
    #[n(0)]
    pub question: u64,
    /// The answer as JSON, or why there is none, for a person.
    #[n(1)]
    pub answer: Result<String, String>,
}
