//! Taking one entry of the log: what it answers of this branch's, and which of its rows are meant for here.

use super::Landing;
use crate::books::{self, OUTBOX, RowNames};
use crate::change::Key;
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::LogPosition;
use crate::message::{Answer, LogBody, LogEntry, LoggedChanges, Source};
use crate::port::{Database, Entry};
use crate::schema::{Direction, TableId};

/// How many entries followed are written at a time.
const FOLLOWED_PIECE: usize = 16;

impl Landing<'_> {
    /// Takes one entry. Returns rows in whose way the application is.
    pub(super) async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        entry: &LogEntry,
        bytes: &[u8],
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        if entry.position != self.book.cursor.next() {
            return Err(OfficeError::Books(format!(
                "log entry {} does not follow {}",
                entry.position, self.book.cursor
            )));
        }
        if entry.schema != self.branch.schema.version {
            return Err(OfficeError::Books(format!(
                "log entry {} stands in schema version {}, this office is at {}",
                entry.position, entry.schema, self.branch.schema.version
            )));
        }
        self.book.cursor = entry.position;
        self.book.log_chain = envelope::chain(bytes);
        self.follow(db, entry.position, bytes).await?;
        let LogBody::Changes(body) = &entry.body else {
            return Ok(Vec::new());
        };
        self.gather_notes(db, body).await?;
        let passed_over = self.passed_over(db, body).await?;
        let mine = self.mine(db, body).await?;
        if let Some(answer) = mine {
            // A head that was restored may answer again.
            self.book.answered = self.book.answered.max(answer.batch);
        }
        // Also what an earlier life of this database sent, and this one lost.
        let own = body
            .answers
            .as_ref()
            .is_some_and(|answer| answer.branch == self.branch.identity.name);
        for logged in &body.changes {
            let Some(table) = self.branch.schema.table(logged.table) else {
                continue;
            };
            let key = logged.effect.key(table);
            if mine.is_some() && logged.source == Source::Sender {
                self.confirmed(table, key, &logged.effect);
            } else if mine.is_some() {
                self.answered_rows.push(key.digest(table));
                self.candidate(table, key, logged.effect.clone(), entry.position, true);
            } else if own || table.direction != Direction::Up {
                let here = !passed_over.contains(&(table.id, key.clone()));
                self.candidate(table, key, logged.effect.clone(), entry.position, here);
            }
        }
        if let Some(answer) = mine {
            for verdict in &body.verdicts {
                self.verdict(verdict, answer.batch, entry.position);
            }
        }
        for settlement in &body.settlements {
            if settlement.branch == self.branch.identity.name {
                self.settle(settlement, entry.position);
            }
        }
        let listed = body.listed.iter().flatten();
        let listed = listed.filter(|record| record.origin == self.branch.identity.name);
        self.records.extend(listed.cloned());
        self.changes += body.changes.len() as u64;
        self.pile.write_if_full(db, &self.branch.schema).await
    }

    /// Keeps the entry for a head that may be restored one day (SETTLED 10).
    async fn follow<D: Database>(
        &mut self,
        db: &mut D,
        position: LogPosition,
        bytes: &[u8],
    ) -> OfficeResult<()> {
        self.followed.push(Entry {
            number: position.0,
            bytes: bytes.to_vec(),
        });
        if self.followed.len() >= FOLLOWED_PIECE {
            let piece = std::mem::take(&mut self.followed);
            db.append(&self.book.followed(), &piece).await?;
        }
        Ok(())
    }

    /// Rows of tables whose first copy has not begun, which are not here in any form: their chunks come later.
    ///
    /// A row that the branch had before, or is writing, is followed from the start: a chunk tells nothing of deletes,
    /// and the base of its changes is what it was given.
    async fn passed_over<D: Database>(
        &self,
        db: &mut D,
        body: &LoggedChanges,
    ) -> OfficeResult<RowNames> {
        let mut passed = RowNames::new();
        if self.branch.book.joining.is_none() {
            return Ok(passed);
        }
        for table in &self.branch.schema.tables {
            if self.branch.is_loading_or_loaded(table) {
                continue;
            }
            let changed = body.changes.iter().filter(|c| c.table == table.id);
            let keys: Vec<Key> = changed.map(|c| c.effect.key(table)).collect();
            if keys.is_empty() {
                continue;
            }
            let present = db.read(table, &keys).await?;
            let captured = db.captured(table, Some(&keys)).await?;
            passed.extend(
                keys.into_iter()
                    .filter(|key| {
                        let noted = self.notes.get(&(table.id, key.clone()));
                        !present.contains_key(key)
                            && !captured.contains(key)
                            && !noted.is_some_and(Option::is_some)
                            && self.pile.get(table.id, key).is_none()
                    })
                    .map(|key| (table.id, key)),
            );
        }
        Ok(passed)
    }

    /// What the entry answers of this branch's. Batches that a restored database does not know come back as any other
    /// office's changes.
    async fn mine<'e, D: Database>(
        &mut self,
        db: &mut D,
        body: &'e LoggedChanges,
    ) -> OfficeResult<Option<&'e Answer>> {
        let Some(answer) = body.answers.as_ref().filter(|answer| {
            answer.branch == self.branch.identity.name
                && answer.incarnation == self.book.incarnation
        }) else {
            return Ok(None);
        };
        if answer.batch > self.book.frozen {
            self.reused = true;
            return Ok(None);
        }
        let same = match self.branch.chains.get(&answer.batch) {
            Some(chain) => *chain == answer.chain,
            None => {
                let sent = db.entries(OUTBOX, answer.batch.0, 1).await?;
                let sent = sent.first().filter(|sent| sent.number == answer.batch.0);
                sent.is_some_and(|sent| envelope::chain(&sent.bytes) == answer.chain)
            }
        };
        // Batches of an earlier life may still have been on their way when the head greeted this one.
        self.reused |= !same && answer.batch > self.book.answered;
        Ok(same.then_some(answer))
    }

    async fn gather_notes<D: Database>(
        &mut self,
        db: &mut D,
        body: &LoggedChanges,
    ) -> OfficeResult<()> {
        if !self.branch.any_notes {
            return Ok(());
        }
        for table in &self.branch.schema.tables {
            let changed = body
                .changes
                .iter()
                .filter(|c| c.table == table.id)
                .map(|c| c.effect.key(table));
            let judged = body
                .verdicts
                .iter()
                .filter(|v| v.table == table.id)
                .map(|v| v.key.clone());
            let settled = body
                .settlements
                .iter()
                .filter(|s| s.table == table.id && s.branch == self.branch.identity.name)
                .map(|s| s.key.clone());
            let keys: Vec<Key> = changed
                .chain(judged)
                .chain(settled)
                .filter(|key| !self.notes.contains_key(&(table.id, key.clone())))
                .collect();
            if keys.is_empty() {
                continue;
            }
            for (key, note) in db.notes(table, Some(&keys)).await? {
                self.notes
                    .insert((table.id, key), Some(books::decode(&note)?));
            }
        }
        Ok(())
    }
}
