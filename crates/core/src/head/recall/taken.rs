//! Which lost entries were logged anew: kept as long as a branch may still give them back.

use super::super::recent::own_entry;
use crate::books::{self, LOG, Pages};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, OfficeName};
use crate::message::LogBody;
use crate::port::{Database, Entry};
use std::collections::{BTreeMap, BTreeSet};

/// The streams of entries that were logged anew, by the place after which they were lost.
const LOST_STREAMS: &str = "lost-streams";

/// The stream that tells which entries were logged anew of those that were lost after this place.
pub(super) fn taken_stream(agreed: &Digest) -> String {
    let after: String = agreed.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lost:{after}")
}

/// Entries logged anew: the hashes that they had, with their present places. The head may have lost several continuations
/// after one place.
pub(super) type TakenBefore = BTreeMap<Digest, LogPosition>;

/// The batches that a log answers, with the hashes of their envelopes.
pub(super) type Judged = BTreeMap<(OfficeName, Incarnation, BatchNumber), Digest>;

/// What was read of this log's own continuation: read once for all pieces of a lost part.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The batches that it answers.
    pub judged: Judged,
    through: LogPosition,
    /// The lost entries that it logged anew.
    pub taken: TakenBefore,
    /// Where it logged them.
    pub relogged: BTreeSet<LogPosition>,
}

impl Known {
    /// Reads on, in the open transaction.
    pub async fn read_on<D: Database>(
        &mut self,
        db: &mut D,
        (agreed, chain): (LogPosition, Digest),
    ) -> OfficeResult<()> {
        let stream = taken_stream(&chain);
        if db.extent(&stream).await?.entries != self.taken.len() as u64 {
            // Another branch gave something back.
            self.taken = taken_before(db, &stream).await?;
            self.relogged = self.taken.values().copied().collect();
        }
        let mut pages = Pages::from(LOG, self.through.max(agreed).next().0);
        while let Some(entries) = pages.next(db).await? {
            for entry in &entries {
                self.through = LogPosition(entry.number);
                if let LogBody::Changes(body) = own_entry(&entry.bytes)?.body
                    && let Some(answer) = body.answers
                {
                    let place = (answer.branch, answer.incarnation, answer.batch);
                    self.judged.insert(place, answer.chain);
                }
            }
        }
        Ok(())
    }

    /// These lost entries were logged anew.
    pub fn note(&mut self, noted: TakenBefore) {
        self.relogged.extend(noted.values());
        self.taken.extend(noted);
    }
}

async fn taken_before<D: Database>(db: &mut D, stream: &str) -> OfficeResult<TakenBefore> {
    let mut taken = TakenBefore::new();
    let mut pages = Pages::from(stream, 0);
    while let Some(entries) = pages.next(db).await? {
        for entry in entries {
            let (chain, place) = books::decode(&entry.bytes)?;
            taken.insert(chain, place);
        }
    }
    Ok(taken)
}

/// The places of entries that were logged anew.
pub(super) async fn relogged<D: Database>(
    db: &mut D,
    stream: &str,
) -> OfficeResult<BTreeSet<LogPosition>> {
    let taken = taken_before(db, stream).await?;
    Ok(taken.into_values().collect())
}

pub(super) async fn note_taken<D: Database>(
    db: &mut D,
    agreed: (LogPosition, Digest),
    noted: &TakenBefore,
) -> OfficeResult<()> {
    let stream = taken_stream(&agreed.1);
    let mut number = db.extent(&stream).await?.last;
    let mut entries = Vec::with_capacity(noted.len());
    for (chain, place) in noted {
        number += 1;
        entries.push(Entry {
            number,
            bytes: books::encode(&(*chain, *place))?,
        });
    }
    if entries.is_empty() {
        return Ok(());
    }
    let mut streams = lost_streams(db).await?;
    if !streams.contains(&agreed) {
        streams.push(agreed);
        books::store(db, LOST_STREAMS, &streams).await?;
    }
    Ok(db.append(&stream, &entries).await?)
}

async fn lost_streams<D: Database>(db: &mut D) -> OfficeResult<Vec<(LogPosition, Digest)>> {
    Ok(books::load(db, LOST_STREAMS).await?.unwrap_or_default())
}

/// Removes the notes on entries that were lost after places which the log no longer tells: a branch that followed such an
/// entry cannot give it back any more.
pub(in super::super) async fn trim_lost<D: Database>(
    db: &mut D,
    log_first: LogPosition,
) -> OfficeResult<()> {
    let mut streams = lost_streams(db).await?;
    let known = streams.len();
    let mut old = Vec::new();
    streams.retain(|(place, chain)| {
        let kept = place.next() >= log_first;
        if !kept {
            old.push(taken_stream(chain));
        }
        kept
    });
    if streams.len() == known {
        return Ok(());
    }
    for stream in old {
        db.trim(&stream, u64::MAX >> 1).await?;
    }
    books::store(db, LOST_STREAMS, &streams).await
}
