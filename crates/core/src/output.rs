//! What an office's machine asks its driver to do. The drain law: after every call of a machine's method, the driver
//! takes all outputs, in order, before it calls again.

use crate::identity::{BatchNumber, LogPosition, Micros, OfficeName};

/// Where an envelope goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// From the head to all branches.
    Everyone,
    /// From the head to one branch.
    Branch(OfficeName),
    /// From a branch to the head.
    Head,
}

/// A delivery's number, given by the driver, who knows what to acknowledge by it.
pub type Token = u64;

/// Something for the driver to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes. A failure needs no report: the receiver will miss them and ask.
    Send(To, std::sync::Arc<Vec<u8>>),
    /// The delivery is durable here, or of no use: acknowledge it.
    Settle(Token),
    /// The connection on which this delivery came belongs to this branch.
    Name(Token, OfficeName),
    /// Close the connection on which this delivery came, after what was sent to it.
    Close(Token),
    /// Something happened that people may want to know.
    Notice(Notice),
}

/// Something that happened. Log lines, metrics and pages are views of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A branch joined or came back.
    BranchGreeted(OfficeName),
    /// An office was not let in.
    Refused(OfficeName, String),
    /// An envelope was dropped.
    Dropped(String),
    /// Captured changes were frozen into batches or log entries.
    Taken {
        /// Changes.
        changes: u64,
    },
    /// Changes of another office are in this database.
    Landed {
        /// Changes written.
        changes: u64,
        /// Changes left alone since the row has local ones.
        deferred: u64,
    },
    /// Something was missing and was asked for again.
    Gap {
        /// From which number on.
        from: u64,
    },
    /// A conflict was decided.
    Conflict {
        /// Its number.
        id: u64,
        /// The table.
        table: String,
        /// The reason's code.
        reason: &'static str,
    },
    /// A conflict was settled afterwards, or a hold ended.
    Settled {
        /// Its number.
        id: u64,
    },
    /// The head took back a part of its log that it had lost, up to here, from this branch.
    TakenBack(OfficeName, LogPosition),
    /// The head goes on from another past than this branch followed: the branch went back to this place.
    Rewound(LogPosition),
    /// The head's log no longer holds what this branch misses after this place: the tables are copied anew.
    CopiedAnew(LogPosition),
    /// The head has a warning for the people at this branch.
    Warned(String),
    /// The branch took a fresh incarnation.
    Reincarnated,
    /// The first copy of a table goes on.
    Loading {
        /// The table.
        table: String,
        /// Rows loaded so far, of all tables.
        rows: u64,
    },
    /// The branch is complete.
    Joined {
        /// Rows loaded.
        rows: u64,
    },
    /// The head let this branch in, up to here.
    Welcomed {
        /// The end of the head's log.
        last: LogPosition,
        /// This branch's last batch at the head.
        cursor: BatchNumber,
        /// The head's clock minus this office's, in milliseconds.
        clock_offset_ms: i64,
    },
    /// The head refused this branch; a person must act.
    RefusedByHead(String),
    /// Something that a person should see to.
    Trouble(String),
    /// The shared tables changed.
    SchemaChanged {
        /// The new version.
        version: crate::schema::SchemaVersion,
        /// What changed, in sentences.
        what: String,
    },
    /// A comparison ended.
    Verified(crate::verify::Verification),
    /// The outcome of a comparison that a branch had asked for, as JSON.
    VerifyResult(String),
    /// The head's answer to a question of this branch, as JSON, or why there is none.
    Reply(u64, Result<String, String>),
    /// A clock differs much from the head's.
    ClockOff(OfficeName, i64),
}

/// The difference of two clocks in milliseconds.
pub fn offset_ms(theirs: Micros, ours: Micros) -> i64 {
    theirs.0.saturating_sub(ours.0) / 1000
}
