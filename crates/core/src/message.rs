//! What offices say to each other. An [`crate::envelope`] carries one message.

use minicbor::{Decode, Encode};

use crate::identity::LogPosition;

mod batch;
mod comparison;
mod copy;
mod greeting;
mod log;
mod question;
mod recall;

pub use batch::Batch;
pub use comparison::{
    Asked, Barrier, Children, Cut, Digests, Findings, Narrow, PresentRow, PresentRows, RowDigest,
    RowsRequest, TableChildren, TableKeys, TableNodes, TableRows, TableSum,
};
pub use copy::{Chunk, ChunkRequest};
pub use greeting::{Hello, Position, Probe, Refusal, Welcome};
pub use log::{
    Answer, LogBody, LogEntry, Logged, LoggedChanges, Outcome, SchemaStep, Settled, Settlement,
    Source, Verdict,
};
pub use question::{HistoryRequest, Keep, Reply, SettleRequest, VerifyRequest};
pub use recall::{Recall, Recalled};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// Branch to head: I am here, and this far.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Head to branch: the answer to a hello.
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    /// Branch to head: changes.
    #[n(2)]
    Batch(#[n(0)] Batch),
    /// Head to branches: an entry of the log.
    #[n(3)]
    Log(#[n(0)] LogEntry),
    /// Branch to head: all log entries up to this one are in my database.
    #[n(4)]
    Applied(#[n(0)] LogPosition),
    /// Send again, from this number on.
    #[n(5)]
    Resend(#[n(0)] u64),
    /// How far the sender is, said from time to time so that a lost last message shows.
    #[n(6)]
    Position(#[n(0)] Position),
    /// Branch to head: the next rows of the snapshot, please.
    #[n(7)]
    ChunkRequest(#[n(0)] ChunkRequest),
    /// Head to branch: rows of the snapshot.
    #[n(8)]
    Chunk(#[n(0)] Chunk),
    /// Head to branch: you are not let in, and why.
    #[n(9)]
    Refusal(#[n(0)] Refusal),
    /// Branch to head: what my tables were at a barrier.
    #[n(10)]
    Digests(#[n(0)] Digests),
    /// Branch to head: compare me with you.
    #[n(11)]
    VerifyRequest(#[n(0)] VerifyRequest),
    /// Head to branch: the outcome of a comparison, as JSON of the public interface.
    #[n(12)]
    VerifyResult(#[n(0)] String),
    /// Branch to head: I leave for good.
    #[n(13)]
    Leave,
    /// Branch to head: a person here decided a conflict.
    #[n(14)]
    Settle(#[n(0)] SettleRequest),
    /// Branch to head: how did this row come to be what it is?
    #[n(15)]
    HistoryRequest(#[n(0)] HistoryRequest),
    /// Head to branch: the answer to a question, as JSON of the public interface.
    #[n(16)]
    Reply(#[n(0)] Reply),
    /// Head to branch: you have log entries that I lost; which, and what do they say?
    #[n(17)]
    Recall(#[n(0)] Recall),
    /// Branch to head: the log entries that this branch kept.
    #[n(18)]
    Recalled(#[n(0)] Recalled),
    /// Head to branch: something that a person there should know.
    #[n(19)]
    Warning(#[n(0)] String),
    /// Head to branch: does this session live? It says so at once, with the same number.
    #[n(23)]
    Probe(#[n(0)] Probe),
    /// Branch to head: this session lives.
    #[n(24)]
    Alive(#[n(0)] Probe),
    /// Head to branch: say more of what your tables were at a barrier.
    #[n(20)]
    Narrow(#[n(0)] Narrow),
    /// Head to branch: these rows, please, as they are now.
    #[n(21)]
    RowsRequest(#[n(0)] RowsRequest),
    /// Branch to head: rows as they are now.
    #[n(22)]
    Rows(#[n(0)] PresentRows),
}
