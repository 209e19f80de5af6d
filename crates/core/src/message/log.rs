//! The head's log: accepted changes, what became of a branch's batch, and what single branches must do besides.

use minicbor::{Decode, Encode};

use super::comparison::Barrier;
use super::question::Keep;
use crate::change::{Effect, Key, Row, sized};
use crate::conflict::ConflictRecord;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::schema::{Schema, SchemaVersion, TableId};

/// An entry of the head's log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LogEntry {
    /// The head's incarnation.
    #[n(0)]
    pub head: Incarnation,
    /// Its place.
    #[n(1)]
    pub position: LogPosition,
    /// The hash of the entry before.
    #[n(2)]
    pub previous: Digest,
    /// The schema version that its rows stand in.
    #[n(3)]
    pub schema: SchemaVersion,
    /// What it says.
    #[n(4)]
    pub body: LogBody,
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LogBody {
    /// Rows changed.
    #[n(0)]
    Changes(#[n(0)] LoggedChanges),
    /// All offices digest their tables here.
    #[n(1)]
    Barrier(#[n(0)] Barrier),
    /// The shared tables changed: entries after this one stand in another version.
    #[n(2)]
    Schema(#[n(0)] SchemaStep),
}

impl LogBody {
    /// How many rows it speaks of, some more than once.
    pub fn changes(&self) -> usize {
        match self {
            Self::Changes(body) => {
                let listed = body.listed.as_ref().map_or(0, Vec::len);
                body.changes.len() + body.verdicts.len() + body.settlements.len() + listed
            }
            Self::Barrier(_) | Self::Schema(_) => 0,
        }
    }
}

/// A new schema version, in its place between the data before and the data after (P10).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SchemaStep {
    /// The version.
    #[n(0)]
    pub schema: Schema,
    /// Tables that were dropped at the head, not only taken out of the plan.
    #[n(1)]
    pub dropped: Vec<TableId>,
    /// Rows may differ between offices without a change on the way: branches have themselves compared and repaired.
    #[n(2)]
    pub compare: bool,
}

/// Accepted changes and, where they answer a branch's batch, its verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoggedChanges {
    /// The batch that this entry answers; none for the head's own changes.
    #[n(0)]
    pub answers: Option<Answer>,
    /// The accepted changes.
    #[cbor(n(1), decode_with = "sized")]
    pub changes: Vec<Logged>,
    /// What was decided otherwise than the branch sent it; for that branch only.
    #[n(2)]
    pub verdicts: Vec<Verdict>,
    /// The unit of visibility goes on in the next entry.
    #[n(3)]
    pub open: bool,
    /// What single branches must do besides, outside of any answer to a batch.
    #[n(4)]
    pub settlements: Vec<Settlement>,
    /// Decisions that no verdict and no settlement carries: about what came back to a head that was restored. Each is listed
    /// by the office whose change it is about, and by every head that has this entry in its log.
    #[n(5)]
    pub listed: Option<Vec<ConflictRecord>>,
}

impl LoggedChanges {
    /// Of the head's own accord, with nothing in it yet.
    pub fn of_the_head() -> Self {
        Self {
            answers: None,
            changes: Vec::new(),
            verdicts: Vec::new(),
            open: false,
            settlements: Vec::new(),
            listed: None,
        }
    }
}

/// Which batch an entry answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// Whose batch.
    #[n(0)]
    pub branch: OfficeName,
    /// Of which incarnation.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its number.
    #[n(2)]
    pub batch: BatchNumber,
    /// The hash of its envelope: a branch that was restored may have another batch under this number, or none.
    #[n(3)]
    pub chain: Digest,
}

/// An accepted change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Logged {
    /// The row's table.
    #[n(0)]
    pub table: TableId,
    /// What became of the row.
    #[n(1)]
    pub effect: Effect,
    /// The time part of its version.
    #[n(2)]
    pub at: Micros,
    /// Whose content it is.
    #[n(3)]
    pub source: Source,
}

/// Whose content an accepted change is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Source {
    /// The office's whose batch the entry answers, just as it sent it; the head's where it answers none.
    #[n(0)]
    Sender,
    /// It was made of both sides' changes: the branch takes it like any other.
    #[n(1)]
    Merged,
    /// It was held before: the branch sent it in this batch of this incarnation.
    #[n(2)]
    Held(#[n(0)] OfficeName, #[n(1)] Incarnation, #[n(2)] BatchNumber),
    /// As `Sender`, but written under an earlier schema version: columns that it says nothing of were filled in, so that
    /// the sender takes it like any other change.
    #[n(3)]
    Lifted,
}

/// A verdict that is not plain acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Verdict {
    /// The row's table.
    #[n(0)]
    pub table: TableId,
    /// The row's key.
    #[n(1)]
    pub key: Key,
    /// What the branch must do.
    #[n(2)]
    pub outcome: Outcome,
    /// The decision to list, kept whole.
    #[n(3)]
    pub record: Option<ConflictRecord>,
}

/// What a verdict asks of the branch that sent the change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Nothing: the change was accepted; there was a conflict to list.
    #[n(0)]
    Accepted,
    /// Take this row (or its absence) instead.
    #[n(1)]
    Overridden(#[n(0)] Option<Row>),
    /// Keep the row as it is; it is set aside.
    #[n(2)]
    Held,
}

/// Tells one branch to take the head's row: a person decided a conflict, a held change was released or dropped, or a
/// comparison found that the row differed. Or, after a comparison, that its row is held.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settlement {
    /// The branch.
    #[n(0)]
    pub branch: OfficeName,
    /// The row's table.
    #[n(1)]
    pub table: TableId,
    /// The row's key.
    #[n(2)]
    pub key: Key,
    /// The row as it stands at the head; nothing where it does not exist. A hold of the row at that branch ends.
    #[n(3)]
    pub row: Option<Row>,
    /// A decision to list, kept whole.
    #[n(4)]
    pub record: Option<ConflictRecord>,
    /// The conflict that is settled, and how.
    #[n(5)]
    pub settled: Option<Settled>,
    /// The branch's own change of this batch is held at the head, which the branch never heard: its row stays as it is.
    #[n(6)]
    pub held: Option<BatchNumber>,
}

/// How a listed conflict was settled afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settled {
    /// The conflict.
    #[n(0)]
    pub conflict: u64,
    /// What stands since.
    #[n(1)]
    pub keep: Keep,
    /// When the head did it.
    #[n(2)]
    pub at: Micros,
    /// The office whose person decided; none where the hold's cause went away by itself.
    #[n(3)]
    pub by: Option<OfficeName>,
    /// The row that stands since.
    #[n(4)]
    pub row: Option<Row>,
}
