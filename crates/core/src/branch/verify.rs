//! Answering a comparison: sums and lists of rows as they are where the cursor has just passed a barrier.
//!
//! The sums of the last cut stay in memory for a while, so that narrower questions are answered without reading the
//! tables again. Absent on purpose: any decision about a row that differs; the head tells it by a settlement.

use std::collections::{BTreeMap, BTreeSet};

use super::Branch;
use crate::change::Key;
use crate::failure::OfficeResult;
use crate::identity::{Digest, Micros};
use crate::message::{
    Barrier, Children, Cut, Digests, Findings, Message, Narrow, PresentRow, PresentRows,
    RowsRequest, TableChildren, TableSum,
};
use crate::office::{BATCH_BYTES, conclude, weight_of};
use crate::port::{Database, Purpose};
use crate::schema::{Schema, Table, TableId};
use crate::verify::{Sums, list};

/// How long the sums of a cut are kept after the last question about them, in milliseconds.
const KEPT_MS: i64 = 300_000;
/// How many rows are looked up for one question at the most.
const ROWS_AT_A_TIME: usize = 1_000;

/// What was seen at the last barrier.
#[derive(Debug)]
pub(super) struct Seen {
    cut: Cut,
    sums: Sums,
    answer: Findings,
    /// Since when nobody has asked about it.
    since: Option<Micros>,
}

impl Branch {
    /// Answers the barrier that the cursor just passed, before anything else lands. Where that fails it is tried again.
    pub(super) async fn answer_passed<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        if let Some((place, barrier)) = self.passed.clone()
            && place == self.book.cursor
        {
            self.answer_barrier(db, &barrier).await?;
        }
        self.passed = None;
        Ok(())
    }

    /// Looks at the tables at a barrier that the cursor just passed.
    async fn answer_barrier<D: Database>(
        &mut self,
        db: &mut D,
        barrier: &Barrier,
    ) -> OfficeResult<()> {
        let me = &self.identity.name;
        let Some(asked) = barrier.asked.iter().find(|asked| asked.branch == *me) else {
            return Ok(());
        };
        // The former cut's sums are of no more use; memory holds one at a time.
        self.seen = None;
        let (sums, answer) = if self.book.joining.is_some() {
            (Sums::default(), Findings::Joining)
        } else if asked.rows.is_empty() {
            db.begin(Purpose::Read).await?;
            let outcome = Sums::read(db, &self.comparable()).await;
            let sums = conclude(db, outcome).await?;
            let of_tables = sums.tables().map(|(table, of_table)| TableSum {
                table,
                rows: of_table.rows,
                sum: of_table.sum,
            });
            let answer = Findings::Sums(of_tables.collect());
            (sums, answer)
        } else {
            db.begin(Purpose::Read).await?;
            let outcome = async {
                let unsettled = self.unsettled(db).await?;
                list(db, &self.schema, &asked.rows, &unsettled).await
            };
            let outcome = outcome.await;
            let rows = conclude(db, outcome).await?;
            (Sums::default(), Findings::Rows(rows))
        };
        let seen = Seen {
            cut: Cut {
                position: self.book.cursor,
                chain: self.book.log_chain,
            },
            sums,
            answer,
            since: None,
        };
        self.tell_findings(seen.cut, seen.answer.clone())?;
        self.seen = Some(seen);
        Ok(())
    }

    /// The tables that are here what the plan says: rows of others differ for that alone, and no repair would mend them.
    fn comparable(&self) -> Schema {
        let mut schema = self.schema.clone();
        let like = |table: &Table| !self.differing.contains_key(&table.id);
        schema.tables.retain(like);
        schema
    }

    fn tell_findings(&mut self, cut: Cut, findings: Findings) -> OfficeResult<()> {
        self.tell(&Message::Digests(Digests { cut, findings }))
    }

    /// Rows sent and not answered, and rows with notes.
    async fn unsettled<D: Database>(
        &self,
        db: &mut D,
    ) -> OfficeResult<BTreeMap<TableId, BTreeSet<Digest>>> {
        let mut unsettled: BTreeMap<TableId, BTreeSet<Digest>> = BTreeMap::new();
        for table in &self.schema.tables {
            let names = unsettled.entry(table.id).or_default();
            if self.any_notes {
                let notes = db.notes(table, None).await?;
                names.extend(notes.keys().map(|key| key.digest(table)));
            }
            // A claim does not tell its table; a name of another table harms nothing here.
            names.extend(self.claims.names().copied());
        }
        Ok(unsettled)
    }

    /// Answers a narrower question about the last barrier.
    pub(super) fn narrow(&mut self, question: &Narrow) -> OfficeResult<()> {
        let Some(seen) = &mut self.seen else {
            return Ok(());
        };
        if seen.cut != question.cut {
            return Ok(());
        }
        seen.since = None;
        let findings = if question.tables.is_empty() {
            seen.answer.clone()
        } else {
            let mut tables = Vec::new();
            for asked in &question.tables {
                let Some(sums) = seen.sums.of(asked.table) else {
                    continue;
                };
                let children = asked.nodes.iter().filter_map(|node| {
                    let sums = sums.children(*node)?;
                    Some(Children::new(*node, &sums))
                });
                tables.push(TableChildren {
                    table: asked.table,
                    nodes: children.collect(),
                });
            }
            Findings::Narrower(tables)
        };
        self.tell_findings(question.cut, findings)
    }

    /// Drops the sums of the last cut when nobody asks about them any more.
    pub(super) fn forget_seen(&mut self, now: Micros) {
        if let Some(seen) = &mut self.seen {
            let since = *seen.since.get_or_insert(now);
            if now.has_passed(KEPT_MS, since) {
                self.seen = None;
            }
        }
    }

    /// Tells the head what rows are now.
    pub(super) async fn tell_rows<D: Database>(
        &mut self,
        db: &mut D,
        request: RowsRequest,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let outcome = self.present(db, &request).await;
        let rows = conclude(db, outcome).await?;
        self.tell(&Message::Rows(PresentRows {
            cut: request.cut,
            position: self.book.cursor,
            rows,
        }))
    }

    async fn present<D: Database>(
        &self,
        db: &mut D,
        request: &RowsRequest,
    ) -> OfficeResult<Vec<PresentRow>> {
        let mut answered = Vec::new();
        let mut bytes = 0;
        for asked in &request.tables {
            let Some(table) = self.schema.table(asked.table) else {
                continue;
            };
            let room = ROWS_AT_A_TIME.saturating_sub(answered.len());
            let keys: Vec<Key> = asked.keys.iter().take(room).cloned().collect();
            let fit = keys.iter().all(|key| table.fits_key(key));
            if keys.is_empty() || !fit {
                continue;
            }
            let left_alone = self.left_alone(db, table, &keys).await?;
            let mut rows = db.read(table, &keys).await?;
            for key in keys {
                let pending = left_alone.contains(&key);
                let row = rows.remove(&key).filter(|_| !pending);
                bytes += row.as_ref().map_or(16, |row| weight_of(&row.0));
                if bytes > BATCH_BYTES && !answered.is_empty() {
                    return Ok(answered);
                }
                answered.push(PresentRow {
                    table: table.id,
                    key,
                    pending,
                    row,
                });
            }
        }
        Ok(answered)
    }

    /// Which of these rows have changes that are not yet exchanged, or are held.
    async fn left_alone<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        keys: &[Key],
    ) -> OfficeResult<BTreeSet<Key>> {
        let mut left = db.captured(table, Some(keys)).await?;
        if self.any_notes {
            left.extend(db.notes(table, Some(keys)).await?.into_keys());
        }
        let claimed = |key: &&Key| self.claims.contains_key(&key.digest(table));
        left.extend(keys.iter().filter(claimed).cloned());
        Ok(left)
    }
}
