//! The first copy of the tables, chunk by chunk.

use minicbor::{Decode, Encode};

use crate::change::{Key, Row};
use crate::identity::LogPosition;
use crate::schema::{SchemaVersion, TableId};

/// Which rows a joining branch wants next.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkRequest {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// After this key.
    #[n(1)]
    pub after: Option<Key>,
}

/// Rows of a table as they were at one place of the log or a little later.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chunk {
    /// The request.
    #[n(0)]
    pub request: ChunkRequest,
    /// The place: to be landed just when the branch's cursor stands there.
    #[n(1)]
    pub position: LogPosition,
    /// The schema version that the rows stand in.
    #[n(2)]
    pub schema: SchemaVersion,
    /// The rows.
    #[n(3)]
    pub rows: Vec<Row>,
    /// No row of the table comes after these.
    #[n(4)]
    pub last: bool,
    /// By this place the log has everything that the rows show: what the head's application committed and the head
    /// had not yet taken when they were read comes after `position`.
    #[n(5)]
    pub settled: LogPosition,
}
