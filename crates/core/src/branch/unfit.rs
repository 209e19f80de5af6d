//! Rows of the log that the tables here do not take: set aside with a note, tried again now and then (P6).

use super::Branch;
use super::land::Aside;
use crate::books::{self, Note, RowNames};
use crate::change::{Effect, Key};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::Micros;
use crate::message::{LogBody, Outcome};
use crate::port::{Database, Purpose};
use crate::schema::{Table, TableId};
use crate::unfit::{self, is_unfit};

/// How often rows that did not fit are tried again, in milliseconds.
const RETRY_MS: i64 = 5_000;
/// How many rows of a table are tried in one round.
const RETRIED: usize = 100;

impl Branch {
    /// The rows of the first waiting entries that do not fit.
    pub(super) async fn find_unfit<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<RowNames> {
        let mut effects: Vec<(TableId, Effect)> = Vec::new();
        for slot in self.inbox.slots().take(run) {
            let LogBody::Changes(body) = &slot.message.body else {
                continue;
            };
            effects.extend(
                body.changes
                    .iter()
                    .map(|logged| (logged.table, logged.effect.clone())),
            );
            effects.extend(
                body.verdicts
                    .iter()
                    .filter_map(|verdict| match &verdict.outcome {
                        Outcome::Overridden(Some(row)) => {
                            Some((verdict.table, Effect::Put(row.clone())))
                        }
                        Outcome::Overridden(None) => {
                            Some((verdict.table, Effect::Delete(verdict.key.clone())))
                        }
                        _ => None,
                    }),
            );
        }
        effects.extend(self.inbox.slots().take(run).flat_map(|slot| {
            let LogBody::Changes(body) = &slot.message.body else {
                return Vec::new();
            };
            let mine = body.settlements.iter();
            let mine = mine.filter(|settlement| settlement.branch == self.identity.name);
            mine.map(|settlement| {
                let gone = || Effect::Delete(settlement.key.clone());
                let row = settlement.row.clone();
                (settlement.table, row.map_or_else(gone, Effect::Put))
            })
            .collect()
        }));
        // Rows that are claimed are tried too: this landing may itself bring the answer that frees them.
        effects.retain(|(id, effect)| {
            self.schema.table(*id).is_some_and(|table| {
                let place = (*id, effect.key(table));
                !aside.busy.contains(&place) && !aside.unfit.contains(&place)
            })
        });
        unfit::find(db, &self.schema, self.purpose(), effects).await
    }

    /// Tries the rows again that did not fit.
    pub(super) async fn retry_unfit<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if !self.any_notes || !now.has_passed(RETRY_MS, self.unfit_tried) {
            return Ok(());
        }
        self.unfit_tried = now;
        for table in &self.schema.tables {
            db.begin(Purpose::Read).await?;
            let notes = db.notes(table, None).await.map_err(OfficeError::from);
            let notes = crate::office::conclude(db, notes).await?;
            let mut tried = 0;
            for (key, note) in notes {
                let Note::Unfit(_, effect) = books::decode(&note)? else {
                    continue;
                };
                tried += 1;
                if tried > RETRIED {
                    break;
                }
                self.retry_row(db, table, key, effect).await?;
            }
        }
        Ok(())
    }

    async fn retry_row<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        key: Key,
        effect: Effect,
    ) -> OfficeResult<()> {
        if self.claims.contains_key(&key.digest(table)) {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            db.write(&self.schema, &[(table.id, effect)]).await?;
            let keys = std::slice::from_ref(&key);
            let free = db.captured(table, Some(keys)).await?.is_empty();
            db.set_notes(table, &[(key, None)]).await?;
            Ok(free)
        };
        let outcome: OfficeResult<bool> = outcome.await;
        let outcome = match outcome {
            Ok(true) => db.commit().await.map_err(OfficeError::from),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        // After a commit there is nothing left to undo.
        db.rollback().await?;
        match outcome {
            Err(error) if !is_unfit(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
