//! Taking what the head's own application wrote into the log.

use super::writer::{self, LogWriter};
use super::{Head, recall};
use crate::books::HeadBook;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::Micros;
use crate::message::{LogBody, Logged, LoggedChanges, Source};
use crate::office::{
    BATCH_CHANGES, MARK_MS, PORTIONS_PER_TAKE, conclude, cut_by_weight, part_with_giants,
};
use crate::output::{Notice, Output};
use crate::port::{Database, First, Purpose};
use crate::schema::Direction;

impl Head {
    /// Takes what the head's own application wrote into the log. Returns whether more waits.
    pub(super) async fn take<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<bool> {
        db.begin(Purpose::Take).await?;
        let outcome = match self.is_as_known(db).await {
            Ok(true) => self.take_portions(db, now).await.map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(taken) = conclude(db, outcome).await? else {
            // The tables changed: what it means comes first.
            self.catalogue.forget();
            return self.reconcile(db, now).await;
        };
        self.captured = taken.more;
        self.left &= taken.more;
        if !taken.fresh.is_empty() {
            self.appended = now;
        }
        self.any_held |= taken.held;
        self.book = taken.book;
        self.tail.adopt(taken.fresh, &mut self.recent);
        if taken.changes > 0 {
            let changes = taken.changes;
            self.outputs
                .push_back(Output::Notice(Notice::Taken { changes }));
        }
        Ok(taken.more)
    }

    /// While data moves only when asked: what is captured by now can be parted later from what comes.
    pub(super) async fn mark<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<()> {
        if now.has_passed(MARK_MS, self.marked) {
            self.marked = now;
            db.mark().await?;
        }
        Ok(())
    }

    async fn take_portions<D: Database>(&self, db: &mut D, now: Micros) -> OfficeResult<TakenIn> {
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let mut changes = 0;
        let mut held = false;
        for count in 1.. {
            let mut portion = db.take(&self.schema, BATCH_CHANGES).await?;
            part_with_giants(&mut portion, &self.schema);
            self.set_aside(db, now, &mut writer.book, &portion).await?;
            held |= !portion.unreadable.is_empty();
            let kept = portion.changes.into_iter().filter(|taken| {
                let gone = taken.first == First::Inserted && taken.effect.row().is_none();
                let nothing = gone && !self.left;
                let upward = self
                    .schema
                    .table(taken.table)
                    .is_none_or(|table| table.direction == Direction::Up);
                !nothing && !upward
            });
            let kept: Vec<_> = kept.collect();
            changes += kept.len() as u64;
            let mut runs = cut_by_weight(kept).into_iter().peekable();
            while let Some(run) = runs.next() {
                if run.is_empty() && !portion.open {
                    continue;
                }
                let logged = |taken: crate::port::Taken| Logged {
                    table: taken.table,
                    effect: taken.effect,
                    at: Micros(taken.at.0.min(now.0)),
                    source: Source::Sender,
                };
                let body = LoggedChanges {
                    changes: run.into_iter().map(logged).collect(),
                    open: portion.open || runs.peek().is_some(),
                    ..LoggedChanges::of_the_head()
                };
                writer.append(db, LogBody::Changes(body)).await?;
            }
            if !portion.open && (count >= PORTIONS_PER_TAKE || !portion.more) {
                if self.left && !portion.more {
                    recall::tell_left(db, &mut writer).await?;
                }
                writer.finish(db).await?;
                return Ok(TakenIn {
                    book: writer.book,
                    fresh: writer.fresh,
                    more: portion.more,
                    changes,
                    held,
                });
            }
        }
        Err(OfficeError::Books("a take did not end".into()))
    }
}

/// What one transaction took of the head's own application's writes.
struct TakenIn {
    book: HeadBook,
    fresh: Vec<writer::Fresh>,
    more: bool,
    changes: u64,
    /// Rows that cannot be sent were listed.
    held: bool,
}
