//! A branch that was away for longer than the head's log goes back copies the tables anew, with its own unsent changes
//! kept (trap 16), and one that has nothing in common with the head's log begins again; and how much a branch keeps of what it sent and followed.

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Joining, Note, OUTBOX, STAGED, followed_in};
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition, Micros};
use crate::message::Welcome;
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Purpose};
use crate::retention::{Mark, UPKEEP_MS, beyond_bytes, mark, older_than};

impl Branch {
    /// Begins to copy the tables anew. What the head has answered in the part of the log that is gone is settled by the
    /// copy; what it has not answered, and what was never sent, was made on nothing newer than the old cursor. Rows that
    /// the head deleted meanwhile are found by a comparison when the copy is complete.
    pub(super) async fn copy_anew<D: Database>(
        &mut self,
        db: &mut D,
        welcome: &Welcome,
    ) -> OfficeResult<()> {
        let answered = self.book.answered.max(welcome.cursor);
        let known = self.book.joining.as_ref();
        let again_from = known
            .and_then(|joining| joining.again_from)
            .unwrap_or(self.book.cursor);
        let book = BranchBook {
            cursor: welcome.last,
            log_chain: welcome.log_chain,
            answered,
            lineage: self.book.lineage + 1,
            lineages: None,
            uncompared: Some(true),
            joining: Some(Joining {
                prepared: true,
                frozen: true,
                again_from: Some(again_from),
                ..Joining::default()
            }),
            ..self.book.clone()
        };
        self.claims.retain(|_, batch| *batch > answered);
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            for table in &self.schema.tables {
                let mut gone = Vec::new();
                for (key, note) in db.notes(table, None).await? {
                    let answered = !self.claims.contains_key(&key.digest(table));
                    let passing = matches!(
                        books::decode(&note)?,
                        Note::Deferred(_) | Note::Unfit(..) | Note::Unseen(_)
                    );
                    if answered && passing {
                        gone.push((key, None));
                    }
                }
                if !gone.is_empty() {
                    db.set_notes(table, &gone).await?;
                }
            }
            self.forget_followed(db).await?;
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.staged = false;
        self.drop_chunk();
        let dropped = self.inbox.restart(book.cursor.0);
        self.outputs.extend(dropped.into_iter().map(Output::Settle));
        self.book = book;
        self.notice(Notice::CopiedAnew(again_from));
        Ok(())
    }

    /// Begins again from the head's tables: the head's log has nothing of what this branch keeps of it, so that the places
    /// that it names mean something else there. What is not answered yet is issued again as made on nothing, and the rows
    /// are uploaded as at a join.
    pub(super) async fn begin_again<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        welcome: Welcome,
    ) -> OfficeResult<()> {
        let ready = match &welcome.schema {
            Some(schema) => self.follow(db, schema, None).await?,
            None => self.take_all(db, false).await?,
        };
        if !ready {
            // It greets again.
            return Ok(());
        }
        let former = self.book.cursor;
        let incarnation = self.fresh_incarnation(now);
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let nothing = (LogPosition::NONE, Digest::default());
            let known = welcome.cursor;
            let book = self.reissue(db, incarnation, Some(nothing), known).await?;
            for table in &self.schema.tables {
                let notes = db.notes(table, None).await?.into_keys();
                let gone: Vec<_> = notes.map(|key| (key, None)).collect();
                if !gone.is_empty() {
                    db.set_notes(table, &gone).await?;
                }
            }
            self.forget_followed(db).await?;
            let book = BranchBook {
                cursor: welcome.last,
                log_chain: welcome.log_chain,
                lineage: book.lineage + 1,
                lineages: None,
                compare: Some(true),
                uncompared: None,
                joining: Some(Joining::default()),
                ..book
            };
            books::store(db, BRANCH, &book).await?;
            Ok(book)
        };
        let outcome = outcome.await;
        self.book = conclude(db, outcome).await?;
        self.staged = false;
        self.drop_chunk();
        self.link.known_last = self.book.cursor;
        let dropped = self.inbox.restart(self.book.cursor.0);
        self.outputs.extend(dropped.into_iter().map(Output::Settle));
        self.notice(Notice::CopiedAnew(former));
        self.begin_anew(db, now).await
    }

    /// Nothing that was followed so far can be given back any more.
    async fn forget_followed<D: Database>(&self, db: &mut D) -> OfficeResult<()> {
        for (lineage, _) in self.book.lineages.iter().flatten() {
            db.trim(&followed_in(*lineage), u64::MAX >> 1).await?;
        }
        db.trim(&self.book.followed(), u64::MAX >> 1).await?;
        Ok(db.trim(STAGED, u64::MAX >> 1).await?)
    }

    /// Removes what no restored head can ask for any more.
    pub(super) async fn keep_sent<D: Database>(
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
        self.upkept = Some(now);
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let here = Mark {
                at: now,
                log: self.book.cursor.0,
                batch: self.book.answered.0,
                conflicts: 0,
                age_ms: 0,
            };
            let marks = mark(db, here).await?;
            let old = older_than(&marks, self.retention.recovery_ms);
            let (followed, sent) = old.map_or((0, 0), |mark| (mark.log, mark.batch));
            let stream = self.book.followed();
            let surplus = beyond_bytes(db, &stream, self.retention.bytes).await?;
            let followed = followed
                .max(surplus)
                .min(self.book.cursor.0.saturating_sub(1));
            if followed > 0 {
                db.trim(&stream, followed).await?;
            }
            let mut kept = Vec::new();
            for (lineage, through) in self.book.lineages.iter().flatten() {
                let past = surplus > 0 || through.0 <= followed;
                let end = if past { u64::MAX >> 1 } else { followed };
                db.trim(&followed_in(*lineage), end).await?;
                if !past {
                    kept.push((*lineage, *through));
                }
            }
            let book = BranchBook {
                lineages: (!kept.is_empty()).then_some(kept),
                ..self.book.clone()
            };
            if book != self.book {
                books::store(db, BRANCH, &book).await?;
            }
            let surplus = beyond_bytes(db, OUTBOX, self.retention.bytes).await?;
            let sent = sent
                .max(surplus)
                .min(self.book.answered.0.saturating_sub(1));
            if sent > 0 {
                db.trim(OUTBOX, sent).await?;
            }
            Ok(book)
        };
        let outcome = outcome.await;
        self.book = conclude(db, outcome).await?;
        Ok(())
    }
}
