//! Rows of the log that the tables here do not take: set aside with a note, tried again now and then (P6).

use std::collections::BTreeMap;

use super::Branch;
use super::land::Aside;
use crate::books::{self, BranchBook, Note, Pages, RowNames, STAGED};
use crate::change::{Effect, Key, Row};
use crate::failure::{OfficeError, OfficeResult};
use crate::head::own_entry;
use crate::identity::{LogPosition, Micros};
use crate::message::{LogBody, LogEntry, Outcome};
use crate::office::conclude;
use crate::port::{Database, Purpose};
use crate::schema::TableId;
use crate::unfit::{self, is_unfit};

/// How often rows that did not fit are tried again, in milliseconds.
const RETRY_MS: i64 = 5_000;
/// How often foreign keys are tried again, in milliseconds: each time the database looks through their tables.
const BIND_AGAIN_MS: i64 = 3_600_000;
/// How many rows of a table are tried in one round.
const RETRIED: usize = 100;

/// A row that did not fit, and what it is to become.
type Unfit = (TableId, Key, Effect);

impl Branch {
    /// The rows of the first waiting entries that do not fit.
    pub(super) async fn find_unfit<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<RowNames> {
        let mut effects: Vec<(TableId, Effect)> = Vec::new();
        if self.staged {
            db.begin(Purpose::Read).await?;
            let outcome = self.staged_effects(db, &mut effects).await;
            conclude(db, outcome).await?;
        }
        for slot in self.inbox.slots().take(run) {
            self.effects_of(&slot.message, &mut effects);
        }
        // Rows that are claimed are tried too: this landing may itself bring the answer that frees them.
        effects.retain(|(id, effect)| {
            self.schema.table(*id).is_some_and(|table| {
                let place = (*id, effect.key(table));
                !aside.busy.contains(&place) && !aside.unfit.contains(&place)
            })
        });
        unfit::find(db, &self.schema, self.purpose(), effects).await
    }

    /// What the parts of a large unit would write.
    async fn staged_effects<D: Database>(
        &self,
        db: &mut D,
        effects: &mut Vec<(TableId, Effect)>,
    ) -> OfficeResult<()> {
        let mut pages = Pages::from(STAGED, self.book.cursor.next().0);
        while let Some(parts) = pages.next(db).await? {
            for part in &parts {
                self.effects_of(&own_entry(&part.bytes)?, effects);
            }
        }
        Ok(())
    }

    /// What an entry would write here.
    fn effects_of(&self, entry: &LogEntry, effects: &mut Vec<(TableId, Effect)>) {
        let LogBody::Changes(body) = &entry.body else {
            return;
        };
        let row_or_gone = |key: &Key, row: &Option<Row>| {
            let gone = || Effect::Delete(key.clone());
            row.clone().map_or_else(gone, Effect::Put)
        };
        let changes = body.changes.iter();
        effects.extend(changes.map(|logged| (logged.table, logged.effect.clone())));
        effects.extend(body.verdicts.iter().filter_map(|verdict| {
            let Outcome::Overridden(row) = &verdict.outcome else {
                return None;
            };
            Some((verdict.table, row_or_gone(&verdict.key, row)))
        }));
        let mine = body.settlements.iter();
        let mine = mine.filter(|settlement| {
            settlement.held.is_none() && settlement.branch == self.identity.name
        });
        effects.extend(mine.map(|settlement| {
            let effect = row_or_gone(&settlement.key, &settlement.row);
            (settlement.table, effect)
        }));
    }

    /// Tries the rows again that did not fit.
    pub(super) async fn retry_unfit<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if !now.has_passed(RETRY_MS, self.unfit_tried) {
            return Ok(());
        }
        self.unfit_tried = now;
        self.retry_refused(db).await?;
        if !self.stepped {
            self.make_again(db, now).await?;
        }
        if self.stepped {
            return Ok(());
        }
        self.bind_again(db, now).await?;
        if !self.any_notes {
            return Ok(());
        }
        let mut left = std::mem::take(&mut self.unfit_after);
        // What came in one transaction shows in one, where all of it fits by now (P5).
        let mut units: BTreeMap<LogPosition, Vec<Unfit>> = BTreeMap::new();
        for table in &self.schema.tables {
            db.begin(Purpose::Read).await?;
            let notes = db.notes(table, None).await.map_err(OfficeError::from);
            let notes = conclude(db, notes).await?;
            // Each round goes on where the former one ended: rows that never fit must not keep the others waiting.
            let after = left.remove(&table.id);
            let later = |key: &Key| after.as_ref().is_none_or(|after| key > after);
            let mut tried = 0;
            for (key, note) in notes.into_iter().filter(|(key, _)| later(key)) {
                let Note::Unfit(first, effect) = books::decode(&note)? else {
                    continue;
                };
                if !self.claims.contains_key(&key.digest(table)) {
                    let row = (table.id, key.clone(), effect);
                    units.entry(first).or_default().push(row);
                }
                tried += 1;
                if tried == RETRIED {
                    self.unfit_after.insert(table.id, key);
                    break;
                }
            }
        }
        for unit in units.into_values() {
            self.retry_unit(db, unit).await?;
        }
        Ok(())
    }

    /// Adds foreign keys that their tables could not get so far, once the rows are here.
    async fn bind_again<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<()> {
        let waits = self.book.joining.is_some() || self.book.compare == Some(true);
        if self.book.unbound.is_none() || waits || !now.has_passed(BIND_AGAIN_MS, self.bound_tried)
        {
            return Ok(());
        }
        self.bound_tried = now;
        let done = db.add_foreign_keys(&self.schema).await;
        match done.map_err(OfficeError::from) {
            Err(error) if is_unfit(&error) => return Ok(()),
            outcome => outcome?,
        }
        let book = BranchBook {
            unbound: None,
            ..self.book.clone()
        };
        self.keep_book(db, book).await
    }

    /// Writes those of the rows that fit by now in one transaction.
    async fn retry_unit<D: Database>(&self, db: &mut D, mut rows: Vec<Unfit>) -> OfficeResult<()> {
        while let Some(left) = self.retry_rows(db, &rows).await? {
            if left.len() == rows.len() && rows.len() > 1 {
                // It is not known which of them is to blame.
                for row in rows {
                    self.retry_rows(db, &[row]).await?;
                }
                return Ok(());
            }
            let tried = rows.len();
            rows.retain(|(id, key, _)| !left.contains(&(*id, key.clone())));
            if rows.is_empty() || rows.len() == tried {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes rows in one transaction, and forgets that they did not fit. Where that cannot be, returns those that do not
    /// fit, or that the application has changed meanwhile.
    async fn retry_rows<D: Database>(
        &self,
        db: &mut D,
        rows: &[Unfit],
    ) -> OfficeResult<Option<RowNames>> {
        let effects = rows.iter().map(|(id, _, effect)| (*id, effect.clone()));
        let effects: Vec<(TableId, Effect)> = effects.collect();
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            db.write(&self.schema, &effects).await?;
            let mut changed = RowNames::new();
            for of_table in rows.chunk_by(|a, b| a.0 == b.0) {
                let table = of_table.first().and_then(|row| self.schema.table(row.0));
                let Some(table) = table else { continue };
                let keys: Vec<Key> = of_table.iter().map(|(_, key, _)| key.clone()).collect();
                let captured = db.captured(table, Some(&keys)).await?;
                changed.extend(captured.into_iter().map(|key| (table.id, key)));
                let gone: Vec<_> = keys.into_iter().map(|key| (key, None)).collect();
                db.set_notes(table, &gone).await?;
            }
            Ok(changed)
        };
        let outcome: OfficeResult<RowNames> = outcome.await;
        let outcome = match outcome {
            Ok(changed) if changed.is_empty() => match db.commit().await {
                Ok(()) => Ok(changed),
                Err(error) => Err(error.into()),
            },
            other => other,
        };
        // After a commit there is nothing left to undo.
        db.rollback().await?;
        match outcome {
            Ok(changed) => Ok((!changed.is_empty()).then_some(changed)),
            Err(error) if is_unfit(&error) => {
                let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
                Ok(Some(found))
            }
            Err(error) => Err(error),
        }
    }
}
