//! Joining: the first copy of the tables, chunk by chunk, between live entries of the log.
//!
//! Tables come parents first. Until a table's turn, log entries for it are passed over, since its chunks will be read
//! later than they were written; but a row that is here already follows the log from the start. A chunk lands just when the cursor stands at its place in the log. Each chunk commits
//! with the progress that it makes, so a join that was cut at any point goes on there.

use std::collections::BTreeSet;

use super::land::Aside;
use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Joining, Note, RowNames};
use crate::change::{Effect, Key};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{LogPosition, Micros};
use crate::message::{Chunk, ChunkRequest, Message};
use crate::office::conclude;
use crate::output::{Notice, Output, Token};
use crate::pile::Pile;
use crate::port::{Database, Purpose};
use crate::schema::{Table, TableId};
use crate::unfit::{self, is_unfit};

/// How soon a chunk that does not come is asked for again, in milliseconds.
const ASK_AGAIN_MS: i64 = 5_000;
/// How many rows are captured at a time.
const RECAPTURED: usize = 500;

impl Branch {
    /// Whether log entries for this table are landed already.
    pub(super) fn is_loading_or_loaded(&self, table: &Table) -> bool {
        let loading = self.loading().is_some_and(|loading| loading.id == table.id);
        loading || self.is_loaded(table)
    }

    /// The table whose turn it is.
    fn loading(&self) -> Option<&Table> {
        self.book.joining.as_ref()?;
        self.schema
            .tables
            .iter()
            .find(|table| !self.is_loaded(table))
    }

    /// Creates missing tables, installs capture, and captures the rows that are here already.
    pub(super) async fn prepare_join<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        if self.is_prepared() {
            return Ok(false);
        }
        db.create_tables(&self.schema).await?;
        db.install(&self.schema).await?;
        let mut book = self.book.clone();
        book.joining = Some(Joining {
            prepared: true,
            ..Joining::default()
        });
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            for table in &self.schema.tables {
                if self.claims.is_empty() {
                    db.recapture(table, None).await?;
                } else {
                    self.recapture_unclaimed(db, table).await?;
                }
            }
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.book = book;
        self.captured = true;
        Ok(true)
    }

    /// Captures the rows of which nothing is on its way: a branch that begins again has issued the others already.
    async fn recapture_unclaimed<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
    ) -> OfficeResult<()> {
        let mut after = None;
        loop {
            let rows = db.chunk(table, after.as_ref(), RECAPTURED).await?;
            after = rows.last().map(|row| table.key_of(row));
            if after.is_none() {
                return Ok(());
            }
            let mut keys: Vec<Key> = rows.iter().map(|row| table.key_of(row)).collect();
            keys.retain(|key| !self.claims.contains_key(&key.digest(table)));
            if !keys.is_empty() {
                db.recapture(table, Some(&keys)).await?;
            }
        }
    }

    pub(super) fn chunk_arrived(&mut self, chunk: Chunk, token: Token) {
        if let Some((_, former)) = self.chunk.replace((chunk, token)) {
            self.outputs.push_back(Output::Settle(former));
        }
    }

    fn wanted(&self) -> Option<ChunkRequest> {
        let joining = self.book.joining.as_ref()?;
        let table = self.loading()?;
        Some(ChunkRequest {
            table: table.id,
            after: joining.after.clone(),
        })
    }

    /// Lands a chunk whose place the cursor has reached, or asks for the next. Returns whether anything was done.
    pub(super) async fn land_chunk<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<bool> {
        if self.book.joining.is_none() {
            return Ok(false);
        }
        let Some(wanted) = self.wanted() else {
            let settled = |joining: &Joining| joining.settled <= self.book.cursor;
            if !self.book.joining.as_ref().is_some_and(settled) {
                return Ok(false);
            }
            return self.complete(db).await;
        };
        if let Some((chunk, token)) = self.chunk.take() {
            let here = chunk.position == self.book.cursor && chunk.schema == self.schema.version;
            if chunk.request == wanted && here {
                self.write_chunk(db, &chunk).await?;
                self.chunk_asked = None;
                self.outputs.push_back(Output::Settle(token));
                return Ok(true);
            }
            if chunk.request == wanted && chunk.position > self.book.cursor {
                self.chunk = Some((chunk, token));
                return Ok(false);
            }
            self.chunk_asked = None;
            self.outputs.push_back(Output::Settle(token));
        }
        let due = self
            .chunk_asked
            .is_none_or(|at| now.has_passed(ASK_AGAIN_MS, at));
        if self.link.up && self.link.welcomed && due {
            self.chunk_asked = Some(now);
            self.tell(&Message::ChunkRequest(wanted))?;
        }
        Ok(false)
    }

    async fn write_chunk<D: Database>(&mut self, db: &mut D, chunk: &Chunk) -> OfficeResult<()> {
        let Some(table) = self.schema.table(chunk.request.table) else {
            return Ok(());
        };
        let mut book = self.book.clone();
        if let Some(joining) = &mut book.joining {
            joining.rows += chunk.rows.len() as u64;
            joining.settled = joining.settled.max(chunk.settled);
            if chunk.last {
                joining.loaded.push(table.id);
                joining.after = None;
            } else {
                joining.after = chunk.rows.last().map(|row| table.key_of(row));
            }
        }
        let mut aside = Aside::default();
        loop {
            db.begin(Purpose::Load).await?;
            let outcome = match self.try_chunk(db, table, chunk, &aside, &book).await {
                // A foreign key may break only now.
                Ok(clashes) if clashes.is_empty() => conclude(db, Ok(clashes)).await,
                other => other,
            };
            match outcome {
                Ok(clashes) if clashes.is_empty() => break,
                Ok(clashes) => aside.busy.extend(clashes),
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let found = self.unfit_in_chunk(db, table, chunk, &aside).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    aside.unfit.extend(found);
                }
                Err(error) => {
                    db.rollback().await?;
                    return Err(error);
                }
            }
            db.rollback().await?;
        }
        self.any_notes = true;
        let rows = book.joining.as_ref().map_or(0, |joining| joining.rows);
        let table = table.name.clone();
        self.book = book;
        self.notice(Notice::Loading { table, rows });
        Ok(())
    }

    async fn try_chunk<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        chunk: &Chunk,
        aside: &Aside,
        book: &BranchBook,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        let mut pile = Pile::default();
        let keys: Vec<Key> = chunk.rows.iter().map(|row| table.key_of(row)).collect();
        let notes = if self.any_notes {
            db.notes(table, Some(&keys)).await?
        } else {
            Default::default()
        };
        let (mut unfit, mut unseen) = (Vec::new(), Vec::new());
        for (row, key) in chunk.rows.iter().zip(keys) {
            let place = (table.id, key.clone());
            // What is noted of the row stands, but that another one did not fit: this one is newer.
            let unfit_before = match notes.get(&key).map(|note| stands(note)).transpose()? {
                Some(true) => continue,
                noted => noted.is_some(),
            };
            if aside.unfit.contains(&place) {
                // When the head made the row what it is, a chunk does not tell.
                let note = Note::Unfit(LogPosition::NONE, Effect::Put(row.clone()));
                unfit.push((key, Some(books::encode(&note)?)));
                continue;
            }
            // A row with local changes waits for the verdict on them; the chunk's row is not their base.
            let claimed = self.claims.contains_key(&key.digest(table));
            if claimed || aside.busy.contains(&place) {
                // Where the tables are copied anew, the change was made on what was here before.
                let joining = self.book.joining.as_ref();
                let again_from = joining.and_then(|joining| joining.again_from);
                let first = again_from.unwrap_or(chunk.position).next();
                // Nor is what the log had told of it and did not fit here.
                let noted = notes.get(&key).map(|note| books::decode::<Note>(note));
                let noted = noted.transpose()?.map(|note| note.first_unseen());
                let note = Note::Unseen(noted.map_or(first, |noted| noted.min(first)));
                unseen.push((key, Some(books::encode(&note)?)));
            } else {
                if unfit_before {
                    unfit.push((key.clone(), None));
                }
                pile.put(table.id, key, Effect::Put(row.clone()));
            }
        }
        let clashes = pile.write(db, &self.schema).await?;
        if clashes.is_empty() {
            unfit.append(&mut unseen);
            if !unfit.is_empty() {
                db.set_notes(table, &unfit).await?;
            }
            books::store(db, BRANCH, book).await?;
        }
        Ok(clashes)
    }

    async fn unfit_in_chunk<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        chunk: &Chunk,
        aside: &Aside,
    ) -> OfficeResult<RowNames> {
        db.begin(Purpose::Read).await?;
        let keys: Vec<Key> = chunk.rows.iter().map(|row| table.key_of(row)).collect();
        let notes = db
            .notes(table, Some(&keys))
            .await
            .map_err(OfficeError::from);
        let mut noted = BTreeSet::new();
        for (key, note) in conclude(db, notes).await? {
            if stands(&note)? {
                noted.insert(key);
            }
        }
        let rows = chunk.rows.iter().filter(|row| {
            let place = (table.id, table.key_of(row));
            let local = self.claims.contains_key(&place.1.digest(table));
            let local = local || noted.contains(&place.1);
            !local && !aside.busy.contains(&place) && !aside.unfit.contains(&place)
        });
        let effects = rows
            .map(|row| (table.id, Effect::Put(row.clone())))
            .collect();
        unfit::find(db, &self.schema, Purpose::Load, effects).await
    }

    async fn complete<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        let mut unbound = None;
        match db
            .add_foreign_keys(&self.schema)
            .await
            .map_err(OfficeError::from)
        {
            // Rows that are held here may lack a parent; the tables serve without the key.
            Err(error) if is_unfit(&error) => {
                let why = format!("a foreign key could not be added: {error}");
                self.notice(Notice::Trouble(why));
                unbound = Some(true);
            }
            outcome => outcome?,
        }
        let mut book = self.book.clone();
        book.unbound = unbound;
        let joining = book.joining.take().unwrap_or_default();
        let rows = joining.rows;
        if joining.again_from.is_some() {
            book.compare = Some(true);
        }
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, BRANCH, &book).await;
        conclude(db, outcome).await?;
        self.book = book;
        self.notice(Notice::Joined { rows });
        if self.book.compare == Some(true) {
            // What the head deleted while nobody told us is here only; a repair finds it.
            self.verify(true)?;
        }
        Ok(true)
    }
}

/// Whether a note on a row keeps a chunk's row away from it.
fn stands(note: &[u8]) -> OfficeResult<bool> {
    Ok(!matches!(books::decode(note)?, Note::Unfit(..)))
}
