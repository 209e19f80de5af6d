//! The list of decisions, as a branch keeps it.

use crate::books::{self, CONFLICTS};
use crate::conflict::ConflictRecord;
use crate::failure::OfficeResult;
use crate::port::{Database, Entry};

/// Where the numbers begin under which decisions are listed whose own number was given twice.
pub(crate) const MOVED_RECORDS: u64 = 1 << 40;

/// Adds a decision to the list. A head that was restored may have given its number to another one before.
pub(crate) async fn append_record<D: Database>(db: &mut D, record: Entry) -> OfficeResult<()> {
    let listed = db.entries(CONFLICTS, record.number, 1).await?;
    let listed = listed
        .first()
        .filter(|listed| listed.number == record.number);
    if listed.is_some_and(|listed| listed.bytes == record.bytes) {
        return Ok(());
    }
    if listed.is_some() {
        // Under a number that means nothing at the head: it is settled there.
        let mut moved: ConflictRecord = books::decode(&record.bytes)?;
        let last = db.extent(CONFLICTS).await?.last;
        moved.id = last.saturating_add(1).max(MOVED_RECORDS);
        let moved = Entry {
            number: moved.id,
            bytes: books::encode(&moved)?,
        };
        return Ok(db.append(CONFLICTS, &[moved]).await?);
    }
    Ok(db.append(CONFLICTS, &[record]).await?)
}
