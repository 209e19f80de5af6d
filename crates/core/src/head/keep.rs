//! How much of the log the head keeps, and what a base means that is older than that.

use super::Head;
use super::promote::is_awaited;
use crate::books::{self, CONFLICTS, LOG, LOG_KEYS};
use crate::conflict::{ConflictRecord, Resolution};
use crate::failure::OfficeResult;
use crate::identity::{LogPosition, Micros};
use crate::office::conclude;
use crate::port::Database;
use crate::port::Purpose;
use crate::retention::{Mark, UPKEEP_MS, beyond_bytes, mark, older_than};

/// How many listed conflicts are looked at in one upkeep.
const CONFLICT_BYTES: usize = 1024 * 1024;

impl Head {
    /// The oldest entry that the log still has.
    pub fn log_first(&self) -> LogPosition {
        self.log_first
    }

    /// Whether the log no longer tells what became of rows since this place.
    pub(super) fn is_beyond(&self, place: LogPosition) -> bool {
        place.next() < self.log_first
    }

    /// Removes what nobody can ask for any more: entries that all branches have and no restored office can miss, and
    /// whatever is older than the log waits for anybody.
    pub(super) async fn keep_log<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if self
            .upkept
            .is_some_and(|last| !now.has_passed(UPKEEP_MS, last))
        {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = self.trim_log(db, now).await;
        self.log_first = conclude(db, outcome).await?;
        self.upkept = Some(now);
        Ok(())
    }

    async fn trim_log<D: Database>(&self, db: &mut D, now: Micros) -> OfficeResult<LogPosition> {
        let here = Mark {
            at: now,
            log: self.book.last.0,
            batch: 0,
            conflicts: self.book.conflicts,
            age_ms: 0,
        };
        let marks = mark(db, here).await?;
        let at = |millis| older_than(&marks, millis).map_or(0, |mark| mark.log);
        let passed = self
            .seats
            .values()
            .filter(|seat| seat.is_enrolled() || is_awaited(&seat.book))
            .map(|seat| seat.book.applied.0)
            .min()
            .unwrap_or(self.book.last.0);
        let needed_by_none = passed.min(at(self.retention.recovery_ms));
        let too_old = at(self.retention.absent_ms);
        let too_many = beyond_bytes(db, LOG, self.retention.bytes).await?;
        let through = needed_by_none
            .max(too_old)
            .max(too_many)
            .min(self.book.last.0.saturating_sub(1));
        if LogPosition(through) >= self.log_first && through > 0 {
            db.trim(LOG, through).await?;
            db.trim(LOG_KEYS, through).await?;
        }
        let old = older_than(&marks, self.retention.absent_ms);
        let old = old.map_or(0, |mark| mark.conflicts);
        self.trim_conflicts(db, old).await?;
        let first = LogPosition(db.extent(LOG).await?.first);
        super::recall::trim_lost(db, first).await?;
        Ok(first)
    }

    /// The list of decisions goes as far back as the log waits for branches; what is still held stays.
    async fn trim_conflicts<D: Database>(&self, db: &mut D, old: u64) -> OfficeResult<()> {
        let first = db.extent(CONFLICTS).await?.first;
        let mut through = 0;
        for entry in db.entries(CONFLICTS, first, CONFLICT_BYTES).await? {
            let record: ConflictRecord = books::decode(&entry.bytes)?;
            let name = books::settled_name(record.id);
            let settled = db.meta(&name).await?.is_some();
            let held = record.result == Resolution::Held && !settled;
            if entry.number > old || held {
                break;
            }
            if settled {
                db.set_meta(&name, None).await?;
            }
            through = entry.number;
        }
        if through > 0 {
            db.trim(CONFLICTS, through).await?;
        }
        Ok(())
    }
}
