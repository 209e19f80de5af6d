//! How long an office keeps what it may be asked for again: the head's log for branches that are away, and at every
//! office what was sent and followed, for peers that are restored from a backup (SETTLED 10).
//!
//! Numbers are told from times by marks: now and then an office notes how far it was when.

use minicbor::{Decode, Encode};

use crate::books;
use crate::failure::OfficeResult;
use crate::identity::Micros;
use crate::port::Database;

/// The name of the record of marks.
const MARKS: &str = "marks";
/// How often a mark is made and old entries are removed, in milliseconds.
pub const UPKEEP_MS: i64 = 15 * 60 * 1000;
/// How many marks are kept; where there are more, every other one goes.
const MARKS_KEPT: usize = 2_000;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long the head's log waits for a branch that is away, in milliseconds. A branch that comes back later copies
    /// the tables anew.
    pub absent_ms: i64,
    /// How long everything is kept at the least, in milliseconds, for an office that is restored from a backup.
    pub recovery_ms: i64,
    /// How many bytes the head's log may take, and a branch's copy of what it followed. The oldest go first.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: i64 = 24 * 60 * 60 * 1000;
        Self {
            absent_ms: 90 * DAY,
            recovery_ms: 14 * DAY,
            bytes: 10 * 1024 * 1024 * 1024,
        }
    }
}

/// The longest time between two marks that counts, in milliseconds. An office that was off, or whose clock jumped, keeps
/// things longer than it was told rather than forget what others still need.
const LONGEST_STEP_MS: i64 = 2 * 60 * 60 * 1000;

/// How far an office was at a time: its own numbers, and the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mark {
    /// When, by the office's clock.
    #[n(0)]
    pub at: Micros,
    /// The end of the head's log, or of what the branch followed.
    #[n(1)]
    pub log: u64,
    /// The last batch that was answered (at a branch).
    #[n(2)]
    pub batch: u64,
    /// The last conflict listed (at the head).
    #[n(3)]
    pub conflicts: u64,
    /// For how long the office had been running then, in milliseconds.
    #[n(4)]
    pub age_ms: i64,
}

/// Adds a mark in the open transaction, and returns all of them, oldest first.
pub async fn mark<D: Database>(db: &mut D, mut mark: Mark) -> OfficeResult<Vec<Mark>> {
    let mut marks: Vec<Mark> = books::load(db, MARKS).await?.unwrap_or_default();
    if let Some(last) = marks.last() {
        let passed = mark.at.0.saturating_sub(last.at.0) / 1000;
        mark.age_ms = last.age_ms + passed.clamp(0, LONGEST_STEP_MS);
    }
    // A database that was restored, or a branch that went back, was further once.
    marks.retain(|former| former.log <= mark.log);
    marks.push(mark);
    if marks.len() > MARKS_KEPT {
        let mut every_other = false;
        marks.retain(|_| {
            every_other = !every_other;
            every_other
        });
    }
    books::store(db, MARKS, &marks).await?;
    Ok(marks)
}

/// The newest mark that is at least so old; none where all are younger.
pub fn older_than(marks: &[Mark], millis: i64) -> Option<Mark> {
    let now = marks.last()?.age_ms;
    let old = marks.iter().filter(|mark| now - mark.age_ms >= millis);
    old.copied().last()
}

/// Up to which number a stream must be cut so that about `bytes` are left, by the average size of its entries.
pub async fn beyond_bytes<D: Database>(db: &mut D, stream: &str, bytes: u64) -> OfficeResult<u64> {
    let extent = db.extent(stream).await?;
    if extent.bytes <= bytes || extent.entries == 0 {
        return Ok(0);
    }
    let average = (extent.bytes / extent.entries).max(1);
    let surplus = (extent.bytes - bytes) / average;
    Ok(extent.first.saturating_add(surplus))
}
