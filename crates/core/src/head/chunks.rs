//! Serving the first copy of the tables to joining branches, chunk by chunk between live entries.
//!
//! A chunk is read when everything in the log has been handed out, and carries the log's end at that moment: the
//! branch lands it when its cursor stands just there, so that nothing newer is overwritten and nothing is missed
//! (the log position takes the place of the watermarks of Andreakis and Papapanagiotou, "DBLog", 2019).
//!
//! Rows that the application wrote and the head has not taken yet are left out: the log brings them, or nothing does where
//! they are gone again by then.

use super::Head;
use crate::change::Key;
use crate::failure::{OfficeError, OfficeResult, unchanged};
use crate::identity::{Micros, OfficeName};
use crate::message::{Chunk, ChunkRequest, Message};
use crate::office::{BATCH_BYTES, conclude, weight_of};
use crate::output::{Notice, Output};
use crate::port::{Database, Purpose};

/// Rows in a chunk at the most.
const CHUNK_ROWS: usize = 2_000;

impl Head {
    pub(super) async fn serve_chunks<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<bool> {
        if self.settling_in(now) {
            return Ok(false);
        }
        let asking: Vec<OfficeName> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.request.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        let mut served = false;
        for name in asking {
            // Tables that are not what the present version says would come as something else.
            if !self.is_at_tip(&name) || (self.moving && !self.has_followed()) {
                continue;
            }
            let Some(seat) = self.seats.get_mut(&name) else {
                continue;
            };
            let Some(request) = seat.request.take() else {
                continue;
            };
            let outcome = unchanged(self.serve_chunk(db, now, &name, &request).await);
            let in_the_way = matches!(outcome, Err(OfficeError::InTheWay(_)));
            if (in_the_way || matches!(outcome, Ok(false)))
                && let Some(seat) = self.seats.get_mut(&name)
            {
                seat.request = seat.request.take().or(Some(request));
            }
            outcome?;
            served = true;
        }
        Ok(served)
    }

    /// Answers a branch's request; false where it is to be read again: the tables changed, or all rows were yet to be taken.
    async fn serve_chunk<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        name: &OfficeName,
        request: &ChunkRequest,
    ) -> OfficeResult<bool> {
        db.begin(Purpose::Read).await?;
        let outcome = async {
            if self.catalogue.is_known() && !self.is_as_known(db).await? {
                return Ok(Read::Changed);
            }
            self.read_chunk(db, request).await
        };
        let outcome = outcome.await;
        match conclude(db, outcome).await? {
            Read::Chunk(mut chunk) => {
                while self.take(db, now).await? {}
                chunk.settled = self.book.last;
                self.tell(name, &Message::Chunk(chunk))?;
                Ok(true)
            }
            Read::Untaken => {
                while self.take(db, now).await? {}
                Ok(false)
            }
            Read::Nothing => {
                let why = format!("{name} asked for a table that is not shared");
                self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
                Ok(true)
            }
            Read::Changed => {
                self.catalogue.forget();
                Ok(false)
            }
        }
    }

    async fn read_chunk<D: Database>(
        &self,
        db: &mut D,
        request: &ChunkRequest,
    ) -> OfficeResult<Read> {
        let Some(table) = self.schema.table(request.table) else {
            return Ok(Read::Nothing);
        };
        if request
            .after
            .as_ref()
            .is_some_and(|key| !table.fits_key(key))
        {
            return Ok(Read::Nothing);
        }
        let mut rows = db.chunk(table, request.after.as_ref(), CHUNK_ROWS).await?;
        let mut last = rows.len() < CHUNK_ROWS;
        let mut bytes = 0;
        let fits = rows.iter().take_while(|row| {
            bytes += weight_of(&row.0);
            bytes <= BATCH_BYTES
        });
        let fits = fits.count().max(1);
        if fits < rows.len() {
            rows.truncate(fits);
            last = false;
        }
        let keys: Vec<Key> = rows.iter().map(|row| table.key_of(row)).collect();
        let untaken = db.captured(table, Some(&keys)).await?;
        rows.retain(|row| !untaken.contains(&table.key_of(row)));
        if rows.is_empty() && !last {
            return Ok(Read::Untaken);
        }
        Ok(Read::Chunk(Chunk {
            request: request.clone(),
            position: self.book.last,
            schema: self.schema.version,
            rows,
            last,
            settled: self.book.last,
        }))
    }
}

/// What reading for a branch's request led to.
enum Read {
    Chunk(Chunk),
    /// All rows are yet to be taken.
    Untaken,
    /// There is no such table or key.
    Nothing,
    /// The tables are not what the present version says any more.
    Changed,
}
