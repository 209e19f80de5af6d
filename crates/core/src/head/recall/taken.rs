//! Which lost entries were logged anew: kept as long as a branch may still give them back.

use crate::books::{self, Pages};
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition};
use crate::port::{Database, Entry};
use std::collections::{BTreeMap, BTreeSet};

/// The streams of entries that were logged anew, by the place after which they were lost.
const LOST_STREAMS: &str = "lost-streams";

/// The stream that tells which entries were logged anew of those that were lost after this place.
pub(super) fn taken_stream(agreed: &Digest) -> String {
    let after: String = agreed.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lost:{after}")
}

/// Entries logged anew: their former place, with their hash and their present place.
pub(super) type TakenBefore = BTreeMap<LogPosition, (Digest, LogPosition)>;

pub(super) async fn taken_before<D: Database>(
    db: &mut D,
    stream: &str,
) -> OfficeResult<TakenBefore> {
    let mut taken = TakenBefore::new();
    let mut pages = Pages::from(stream, 0);
    while let Some(entries) = pages.next(db).await? {
        for entry in entries {
            let known = books::decode(&entry.bytes)?;
            taken.insert(LogPosition(entry.number), known);
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
    Ok(taken.into_values().map(|(_, place)| place).collect())
}

pub(super) async fn note_taken<D: Database>(
    db: &mut D,
    agreed: (LogPosition, Digest),
    taken: &TakenBefore,
    noted: Vec<(LogPosition, Digest, LogPosition)>,
) -> OfficeResult<()> {
    // Where the head was restored to one place twice, the first loss keeps its notes.
    let fresh = noted
        .into_iter()
        .filter(|(former, ..)| !taken.contains_key(former));
    let entries: OfficeResult<Vec<Entry>> = fresh
        .map(|(former, chain, place)| {
            Ok(Entry {
                number: former.0,
                bytes: books::encode(&(chain, place))?,
            })
        })
        .collect();
    let entries = entries?;
    if entries.is_empty() {
        return Ok(());
    }
    let mut streams = lost_streams(db).await?;
    if !streams.contains(&agreed) {
        streams.push(agreed);
        books::store(db, LOST_STREAMS, &streams).await?;
    }
    Ok(db.append(&taken_stream(&agreed.1), &entries).await?)
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
