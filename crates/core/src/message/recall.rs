//! What a head that was restored from a backup gets back of its log.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode};

use crate::envelope::MIN_ENVELOPE_BYTES;
use crate::identity::{Digest, LogPosition};

/// A head that was restored from a backup asks a branch for the part of its log that it lost.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Recall {
    /// Places of the head's log with the hash of the entry there, from the end backwards.
    #[n(0)]
    pub points: Vec<(LogPosition, Digest)>,
    /// How far the entries are known already that follow the place on which both agree.
    #[n(1)]
    pub after: LogPosition,
}

/// Log entries that a branch kept, just as the head sealed them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Recalled {
    /// The last of the points on which both agree; none where the branch keeps nothing so old.
    #[n(0)]
    pub agreed: Option<LogPosition>,
    /// The next entries.
    #[cbor(n(1), decode_with = "whole_entries")]
    pub entries: Vec<ByteVec>,
    /// The branch's cursor, and the hash of the entry there.
    #[n(2)]
    pub end: (LogPosition, Digest),
}

/// Reads the entries that a branch gave back. None is shorter than an envelope: a byte on the wire would otherwise take 24
/// in memory.
fn whole_entries<C>(
    decoder: &mut Decoder<'_>,
    context: &mut C,
) -> Result<Vec<ByteVec>, minicbor::decode::Error> {
    let entries = decoder.array_iter_with::<C, ByteVec>(context)?;
    let whole = |entry: Result<ByteVec, _>| match entry {
        Ok(entry) if entry.len() < MIN_ENVELOPE_BYTES => Err(minicbor::decode::Error::message(
            "a log entry that was given back is no envelope",
        )),
        entry => entry,
    };
    entries.map(whole).collect()
}
