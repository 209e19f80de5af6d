//! Serving the first copy of the tables to joining branches, chunk by chunk between live entries.
//!
//! A chunk is read when everything in the log has been handed out, and carries the log's end at that moment: the
//! branch lands it when its cursor stands just there, so that nothing newer is overwritten and nothing is missed
//! (the log position takes the place of the watermarks of Andreakis and Papapanagiotou, "DBLog", 2019).

use super::Head;
use crate::failure::OfficeResult;
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
            if !self.is_at_tip(&name) {
                continue;
            }
            let Some(request) = self
                .seats
                .get_mut(&name)
                .and_then(|seat| seat.request.take())
            else {
                continue;
            };
            db.begin(Purpose::Read).await?;
            let outcome = self.read_chunk(db, request).await;
            match conclude(db, outcome).await? {
                Some(mut chunk) => {
                    while self.take(db, now).await? {}
                    chunk.settled = self.book.last;
                    self.tell(&name, &Message::Chunk(chunk))?;
                }
                None => self
                    .outputs
                    .push_back(Output::Notice(Notice::Dropped(format!(
                        "{name} asked for a table that is not shared"
                    )))),
            }
            served = true;
        }
        Ok(served)
    }

    async fn read_chunk<D: Database>(
        &self,
        db: &mut D,
        request: ChunkRequest,
    ) -> OfficeResult<Option<Chunk>> {
        let Some(table) = self.schema.table(request.table) else {
            return Ok(None);
        };
        if request
            .after
            .as_ref()
            .is_some_and(|key| !table.fits_key(key))
        {
            return Ok(None);
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
        Ok(Some(Chunk {
            request,
            position: self.book.last,
            schema: self.schema.version,
            rows,
            last,
            settled: self.book.last,
        }))
    }
}
