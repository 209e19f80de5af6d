//! A branch's changes.

use minicbor::{Decode, Encode};

use crate::change::{Change, sized};
use crate::evolution::LostVersion;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition};
use crate::schema::SchemaVersion;

/// A branch's changes: whole transactions, frozen before they are first sent (SETTLED 1).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Batch {
    /// The incarnation that numbered it.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Its number.
    #[n(1)]
    pub number: BatchNumber,
    /// The hash of its predecessor's envelope.
    #[n(2)]
    pub previous: Digest,
    /// The schema version that its rows stand in.
    #[n(3)]
    pub schema: SchemaVersion,
    /// The unit of visibility goes on in the next batch.
    #[n(4)]
    pub open: bool,
    /// The changes.
    #[cbor(n(5), decode_with = "sized")]
    pub changes: Vec<Change>,
    /// The last log entry in the branch's database when it was frozen, with its hash: the log that its bases speak of. A
    /// head that was restored may have gone on otherwise.
    #[n(6)]
    pub log: Option<(LogPosition, Digest)>,
    /// The tables, where the head lost the version that the rows stand in, and may have given its number to another one.
    #[n(7)]
    pub lost: Option<LostVersion>,
    /// The branch may show rows that the head deleted while it did not follow the log: it copied the tables anew and has
    /// not compared them yet.
    #[n(8)]
    pub uncompared: Option<bool>,
}
