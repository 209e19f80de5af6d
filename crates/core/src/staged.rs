//! Parts of a unit of visibility that is too large for the inbox wait in the database (SETTLED 2).

use crate::failure::OfficeResult;
use crate::inbox::Inbox;
use crate::office::conclude;
use crate::port::{Database, Entry, Purpose};

/// How many envelopes wait at the least before they are made durable, while there is room for more.
const ENVELOPES: usize = 16;

/// Makes the parts that wait durable, so that the rest can come; `goes_on` where earlier ones are durable already.
/// Returns how many envelopes that were; nothing where the inbox has room.
pub(crate) async fn stage<D: Database, T>(
    db: &mut D,
    stream: &str,
    inbox: &Inbox<T>,
    goes_on: bool,
) -> OfficeResult<Option<usize>> {
    if inbox.has_room() && inbox.len() < ENVELOPES {
        return Ok(None);
    }
    let parts: Vec<Entry> = inbox
        .slots()
        .map(|slot| Entry {
            number: slot.number,
            bytes: slot.bytes.clone(),
        })
        .collect();
    db.begin(Purpose::Apply).await?;
    let outcome = async {
        if !goes_on {
            db.trim(stream, u64::MAX >> 1).await?;
        }
        Ok(db.append(stream, &parts).await?)
    };
    let outcome = outcome.await;
    conclude(db, outcome).await?;
    Ok(Some(parts.len()))
}
