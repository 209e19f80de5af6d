//! Who is there, and how far: greetings, and what is said from time to time.

use minicbor::{Decode, Encode};

use crate::books::PublicKey;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros};
use crate::schema::{Schema, SchemaVersion};
use crate::succession::{Predecessor, Succession};

/// A branch's greeting after its link came up.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The branch's present incarnation.
    #[n(0)]
    pub incarnation: Incarnation,
    /// A number drawn anew at each start of the process; tells a clone from a restart.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The public key that signs this branch's envelopes.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub public_key: [u8; 32],
    /// Until the first welcome: proof that the branch holds the join code's secret.
    #[n(3)]
    pub proof: Option<Digest>,
    /// The last batch that it froze.
    #[n(4)]
    pub frozen: BatchNumber,
    /// The last log entry in its database.
    #[n(5)]
    pub applied: LogPosition,
    /// The incarnation of the head whose log it follows, once it knows.
    #[n(6)]
    pub head: Option<Incarnation>,
    /// Its schema version.
    #[n(7)]
    pub schema: SchemaVersion,
    /// Its clock.
    #[n(8)]
    pub clock: Micros,
    /// The hash of the last log entry in its database.
    #[n(9)]
    pub chain: Digest,
    /// The key by which it knows the head.
    #[n(10)]
    pub head_key: Option<PublicKey>,
    /// What it says to a head that took the place of the one that it followed.
    #[n(11)]
    pub succession: Option<Succession>,
}

/// The head's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The head's incarnation.
    #[n(0)]
    pub head: Incarnation,
    /// The session that is answered.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The incarnation of the branch that `cursor` counts.
    #[n(2)]
    pub incarnation: Incarnation,
    /// The branch's last batch in the head's database.
    #[n(3)]
    pub cursor: BatchNumber,
    /// The hash of that batch's envelope: a branch that has another one there was restored.
    #[n(4)]
    pub chain: Digest,
    /// The end of the log.
    #[n(5)]
    pub last: LogPosition,
    /// The shared tables, when the branch's version is behind.
    #[n(6)]
    pub schema: Option<Schema>,
    /// The head's clock.
    #[n(7)]
    pub clock: Micros,
    /// The hash of the log's last entry.
    #[n(8)]
    pub log_chain: Digest,
    /// The branch follows another continuation of the log than the head does since it was restored: it goes back to
    /// this place, whose entry has this hash.
    #[n(9)]
    pub rewind: Option<(LogPosition, Digest)>,
    /// The log no longer holds what the branch misses: it copies the tables anew.
    #[n(10)]
    pub beyond_horizon: bool,
    /// The heads that wrote this log before, where there were others.
    #[n(11)]
    pub predecessors: Option<Vec<Predecessor>>,
}

/// Why the head does not let a branch in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refusal {
    /// The session that is answered.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The reason and what to do, for a person.
    #[n(1)]
    pub reason: String,
    /// The branch must take a new incarnation and greet again; otherwise a person must act.
    #[n(2)]
    pub reincarnate: bool,
    /// The incarnation that is refused: a refusal may come twice, or late.
    #[n(3)]
    pub incarnation: Incarnation,
    /// The branch's last batch at the head: a branch that has frozen it knows that its greeting was merely old.
    #[n(4)]
    pub cursor: BatchNumber,
    /// The branch runs on a copy of another's database.
    #[n(5)]
    pub copied: bool,
}

/// Asks whether a session lives; what was said before says nothing of that, since it may have been on the way for weeks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Probe {
    /// The session.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// A number that the head has not used before.
    #[n(1)]
    pub number: u64,
}

/// How far an office is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    /// The last thing that the sender produced: log entry (head) or batch (branch).
    #[n(0)]
    pub produced: u64,
    /// The last thing of the receiver's in the sender's database; from the head only to one branch.
    #[n(1)]
    pub applied: Option<u64>,
    /// The branch's question that this answers, or the question's number.
    #[n(2)]
    pub question: u64,
    /// The sender's clock.
    #[n(3)]
    pub clock: Micros,
    /// The branch's session; zero from the head. Tells a clone that runs beside its original.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The head's clock minus the branch's in microseconds, as the branch measured it over a round trip.
    #[n(5)]
    pub offset: Option<i64>,
    /// The last thing of the receiver's that the sender keeps, applied or staged: the window moves on while a unit that
    /// is larger than it comes.
    #[n(6)]
    pub staged: Option<u64>,
    /// From the head: the hash of its log's last entry. A branch that has another one there follows what the head lost.
    #[n(7)]
    pub chain: Option<Digest>,
}
