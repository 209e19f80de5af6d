//! What is remembered of the batches that the head has not answered.

use std::collections::BTreeMap;

use super::hot::Steps;
use super::{Branch, READ_BYTES};
use crate::books::{BranchBook, OUTBOX};
use crate::by_name::ByName;
use crate::envelope;
use crate::evolution::{Lift, Versions};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Micros};
use crate::message::{Batch, Message};
use crate::port::Database;
use crate::schema::Schema;

/// What is to be remembered of the batches that are not answered.
#[derive(Default)]
pub(super) struct Unanswered {
    claims: ByName<BatchNumber>,
    chains: BTreeMap<BatchNumber, Digest>,
    steps: Steps,
}

impl Unanswered {
    pub(super) async fn read<D: Database>(
        db: &mut D,
        book: &BranchBook,
        versions: &Versions,
        schema: &Schema,
    ) -> OfficeResult<Self> {
        let mut read = Self::default();
        let mut from = book.answered.next();
        while from <= book.frozen {
            let entries = db.entries(OUTBOX, from.0, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            for entry in &entries {
                let chain = envelope::chain(&entry.bytes);
                read.chains.insert(BatchNumber(entry.number), chain);
                if let Message::Batch(batch) = envelope::open(&entry.bytes)?.read_own()? {
                    read.claim(&batch, versions, schema);
                }
            }
            from = BatchNumber(last).next();
        }
        Ok(read)
    }

    /// Notes the rows of a batch, by their keys in the present tables.
    fn claim(&mut self, batch: &Batch, versions: &Versions, schema: &Schema) {
        let Some(was) = versions.shapes_of(batch, schema) else {
            return;
        };
        for change in &batch.changes {
            let from = was.table(change.table);
            let to = from.and_then(|from| schema.table(from.id));
            let Some((from, to)) = from.zip(to) else {
                continue;
            };
            let lift = Lift { from, to };
            if let Ok(key) = lift.key(&change.effect.key(from)) {
                self.claims.insert(key.digest(to), batch.number);
            }
            if let Ok((change, _)) = lift.change(change) {
                self.steps.note(to, &change, batch.number);
            }
        }
    }
}

impl Branch {
    pub(super) async fn read_claims<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let unanswered = Unanswered::read(db, &self.book, &self.versions, &self.schema).await?;
        self.remember(unanswered);
        Ok(())
    }

    /// Takes what is not answered from what was read of it, not from what was remembered.
    pub(super) fn remember(&mut self, unanswered: Unanswered) {
        self.fresh.clear();
        self.claims = unanswered.claims;
        self.chains = unanswered.chains;
        self.steps = unanswered.steps;
    }

    /// Rows sent and not yet answered.
    pub fn unanswered_rows(&self) -> usize {
        self.claims.len()
    }

    /// When the oldest change was written that is sent, or to be sent, and not yet answered.
    pub async fn oldest_unanswered<D: Database>(&self, db: &mut D) -> OfficeResult<Option<Micros>> {
        let first = self.book.answered.next();
        if first > self.book.frozen {
            return Ok(None);
        }
        let entries = db.entries(OUTBOX, first.0, 1).await?;
        let Some(entry) = entries.first().filter(|entry| entry.number == first.0) else {
            return Ok(None);
        };
        let Message::Batch(batch) = envelope::open(&entry.bytes)?.read_own()? else {
            return Ok(None);
        };
        Ok(batch.changes.iter().map(|change| change.at).min())
    }
}
