//! Comparing tables: where all look at them, their sums, narrower sums, and rows (see [`crate::verify`]).

use minicbor::{Decode, Encode};

use crate::change::{Key, Row};
use crate::identity::{Digest, LogPosition, OfficeName};
use crate::schema::TableId;

/// A place in the log at which offices look at their tables.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Barrier {
    /// Who is asked, and for what.
    #[n(0)]
    pub asked: Vec<Asked>,
}

/// Names a barrier, in questions and answers about it. The place alone does not: where a head was restored, the log that it
/// lost may have had a barrier there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Cut {
    /// The barrier's place.
    #[n(0)]
    pub position: LogPosition,
    /// The hash of its envelope.
    #[n(1)]
    pub chain: Digest,
}

/// What a barrier asks of one branch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Asked {
    /// The branch.
    #[n(0)]
    pub branch: OfficeName,
    /// The rows of these nodes, one by one; the sums of all tables where empty.
    #[n(1)]
    pub rows: Vec<TableNodes>,
}

/// Nodes of a table's tree of sums (see [`crate::verify`]).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TableNodes {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// The nodes.
    #[n(1)]
    pub nodes: Vec<u32>,
}

/// Asks for narrower sums of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Narrow {
    /// The barrier.
    #[n(0)]
    pub cut: Cut,
    /// The nodes whose children's sums are wanted; where empty, what was answered at the barrier is wanted again.
    #[n(1)]
    pub tables: Vec<TableNodes>,
}

/// What a branch's tables were at a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Digests {
    /// The barrier.
    #[n(0)]
    pub cut: Cut,
    /// What is said of it.
    #[n(1)]
    pub findings: Findings,
}

/// What a branch says of its tables at a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Findings {
    /// Nothing: their first copy is not complete.
    #[n(0)]
    Joining,
    /// The sums of all tables.
    #[n(1)]
    Sums(#[n(0)] Vec<TableSum>),
    /// The sums of the children of the nodes that were asked for. A node whose children's sums are not kept is left out.
    #[n(2)]
    Narrower(#[n(0)] Vec<TableChildren>),
    /// The rows of the nodes that were asked for.
    #[n(3)]
    Rows(#[n(0)] Vec<TableRows>),
}

/// The sum of one table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TableSum {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// How many rows it had.
    #[n(1)]
    pub rows: u64,
    /// Their sum.
    #[n(2)]
    pub sum: u64,
}

/// The sums of children of nodes of one table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TableChildren {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// For each node, its children's sums.
    #[n(1)]
    pub nodes: Vec<Children>,
}

/// The sums of a node's children.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Children {
    /// The node.
    #[n(0)]
    pub node: u32,
    /// The 16 sums, 8 bytes each, big-endian.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sums: Vec<u8>,
}

impl Children {
    /// Puts sums together.
    pub fn new(node: u32, sums: &[u64]) -> Self {
        let sums = sums.iter().flat_map(|sum| sum.to_be_bytes()).collect();
        Self { node, sums }
    }

    /// The sums.
    pub fn sums(&self) -> impl Iterator<Item = u64> {
        let (sums, _) = self.sums.as_chunks::<8>();
        sums.iter().map(|sum| u64::from_be_bytes(*sum))
    }
}

/// Rows of one table, one by one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TableRows {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// The rows of the nodes that were asked for.
    #[n(1)]
    pub rows: Vec<RowDigest>,
    /// The names of rows of these nodes that are not yet exchanged (captured, unanswered or noted here).
    #[n(2)]
    pub pending: Vec<Digest>,
    /// Nodes whose rows did not fit into the message.
    #[n(3)]
    pub left: Vec<u32>,
}

/// What one row was.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RowDigest {
    /// The row's key.
    #[n(0)]
    pub key: Key,
    /// Its content.
    #[n(1)]
    pub content: Digest,
}

/// Asks for rows as they are now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RowsRequest {
    /// The barrier at which they differed.
    #[n(0)]
    pub cut: Cut,
    /// Their keys.
    #[n(1)]
    pub tables: Vec<TableKeys>,
}

/// Keys of one table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TableKeys {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// The keys.
    #[n(1)]
    pub keys: Vec<Key>,
}

/// Rows as they are now: as many of those asked for, from the first on, as one message should hold.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PresentRows {
    /// The barrier that the question named.
    #[n(0)]
    pub cut: Cut,
    /// The last log entry in the branch's database.
    #[n(1)]
    pub position: LogPosition,
    /// The rows.
    #[n(2)]
    pub rows: Vec<PresentRow>,
}

/// A row as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PresentRow {
    /// Its table.
    #[n(0)]
    pub table: TableId,
    /// Its key.
    #[n(1)]
    pub key: Key,
    /// It has changes that are not yet exchanged, or is held: it is left alone.
    #[n(2)]
    pub pending: bool,
    /// The row; nothing where it does not exist, or is left alone.
    #[n(3)]
    pub row: Option<Row>,
}
