//! What a branch says of itself.

use super::Branch;
use crate::books::{self, Joining, Note};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, LogPosition, Micros};
use crate::port::Database;
use crate::schema::Table;

/// What a branch says of itself in `status`.
#[derive(Clone, Debug)]
pub struct BranchState {
    /// Whether the head let it in over the present link.
    pub connected: bool,
    /// When the head was last heard of.
    pub heard: Micros,
    /// The last log entry in this database.
    pub cursor: LogPosition,
    /// The end of the head's log, as last heard.
    pub known_last: LogPosition,
    /// The last batch frozen.
    pub frozen: BatchNumber,
    /// The last batch answered.
    pub answered: BatchNumber,
    /// How far the first copy is; none when complete.
    pub joining: Option<Joining>,
    /// The head's clock minus this office's, in milliseconds.
    pub clock_offset_ms: i64,
    /// Why the head refused this branch, if it did.
    pub refused: Option<String>,
}

impl Branch {
    /// The stream of the log entries that this branch keeps for a head that may be restored.
    pub fn followed(&self) -> String {
        self.book.followed()
    }

    /// Where this branch stands.
    pub fn state(&self) -> BranchState {
        BranchState {
            connected: self.link.up && self.link.welcomed,
            heard: self.link.heard,
            cursor: self.book.cursor,
            known_last: self.link.known_last,
            frozen: self.book.frozen,
            answered: self.book.answered,
            joining: self.book.joining.clone(),
            clock_offset_ms: self.link.clock_offset_ms,
            refused: self.link.refused.clone(),
        }
    }

    /// Whether this branch has nothing to send, nothing unanswered, and all that it knows of.
    pub async fn is_even<D: Database>(&self, db: &mut D) -> OfficeResult<bool> {
        let settled = self.book.answered == self.book.frozen
            && self.book.cursor >= self.link.known_last
            && self.book.joining.is_none();
        Ok(settled && db.backlog().await?.writes == 0)
    }
}

/// How many rows of a table are held at this branch, or do not fit here.
pub async fn held_rows<D: Database>(db: &mut D, table: &Table) -> OfficeResult<u64> {
    let mut held = 0;
    for note in db.notes(table, None).await?.values() {
        held += u64::from(matches!(
            books::decode::<Note>(note)?,
            Note::Held(..) | Note::Unfit(..) | Note::Unreadable(..)
        ));
    }
    Ok(held)
}
