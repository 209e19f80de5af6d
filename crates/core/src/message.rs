//! What offices say to each other. An [`crate::envelope`] carries one message.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode};

use crate::books::PublicKey;
use crate::change::{Change, Effect, Key, Row, sized};
use crate::conflict::ConflictRecord;
use crate::envelope::MIN_ENVELOPE_BYTES;
use crate::evolution::LostVersion;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::schema::{Schema, SchemaVersion, TableId};
use crate::succession::{Predecessor, Succession};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// Branch to head: I am here, and this far.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Head to branch: the answer to a hello.
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    /// Branch to head: changes.
    #[n(2)]
    Batch(#[n(0)] Batch),
    /// Head to branches: an entry of the log.
    #[n(3)]
    Log(#[n(0)] LogEntry),
    /// Branch to head: all log entries up to this one are in my database.
    #[n(4)]
    Applied(#[n(0)] LogPosition),
    /// Send again, from this number on.
    #[n(5)]
    Resend(#[n(0)] u64),
    /// How far the sender is, said from time to time so that a lost last message shows.
    #[n(6)]
    Position(#[n(0)] Position),
    /// Branch to head: the next rows of the snapshot, please.
    #[n(7)]
    ChunkRequest(#[n(0)] ChunkRequest),
    /// Head to branch: rows of the snapshot.
    #[n(8)]
    Chunk(#[n(0)] Chunk),
    /// Head to branch: you are not let in, and why.
    #[n(9)]
    Refusal(#[n(0)] Refusal),
    /// Branch to head: what my tables were at a barrier.
    #[n(10)]
    Digests(#[n(0)] Digests),
    /// Branch to head: compare me with you.
    #[n(11)]
    VerifyRequest(#[n(0)] VerifyRequest),
    /// Head to branch: the outcome of a comparison, as JSON of the public interface.
    #[n(12)]
    VerifyResult(#[n(0)] String),
    /// Branch to head: I leave for good.
    #[n(13)]
    Leave,
    /// Branch to head: a person here decided a conflict.
    #[n(14)]
    Settle(#[n(0)] SettleRequest),
    /// Branch to head: how did this row come to be what it is?
    #[n(15)]
    HistoryRequest(#[n(0)] HistoryRequest),
    /// Head to branch: the answer to a question, as JSON of the public interface.
    #[n(16)]
    Reply(#[n(0)] Reply),
    /// Head to branch: you have log entries that I lost; which, and what do they say?
    #[n(17)]
    Recall(#[n(0)] Recall),
    /// Branch to head: the log entries that this branch kept.
    #[n(18)]
    Recalled(#[n(0)] Recalled),
    /// Head to branch: something that a person there should know.
    #[n(19)]
    Warning(#[n(0)] String),
    /// Head to branch: does this session live? It says so at once, with the same number.
    #[n(23)]
    Probe(#[n(0)] Probe),
    /// Branch to head: this session lives.
    #[n(24)]
    Alive(#[n(0)] Probe),
    /// Head to branch: say more of what your tables were at a barrier.
    #[n(20)]
    Narrow(#[n(0)] Narrow),
    /// Head to branch: these rows, please, as they are now.
    #[n(21)]
    RowsRequest(#[n(0)] RowsRequest),
    /// Branch to head: rows as they are now.
    #[n(22)]
    Rows(#[n(0)] PresentRows),
}

/// Asks whether a session lives; what was said before says nothing of that, since it may have been on the way for weeks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Probe {
    /// The session.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// A number that the head has not used before.
    #[n(1)]
    pub number: u64,
}

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

/// Asks for a comparison of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VerifyRequest {
    /// Make the branch's differing rows what they are at the head.
    #[n(0)]
    pub repair: bool,
}

/// What a person wants to stand after a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Keep {
    /// The head's row.
    #[n(0)]
    Head,
    /// The branch's row.
    #[n(1)]
    Branch,
    /// The row that both sides changed.
    #[n(2)]
    Base,
    /// The branch's row, if it fits by now: a held change is tried again.
    #[n(3)]
    Retry,
}

/// A person's decision of a conflict, sent from a branch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SettleRequest {
    /// The question's number, for the reply.
    #[n(0)]
    pub question: u64,
    /// The conflict.
    #[n(1)]
    pub conflict: u64,
    /// What shall stand.
    #[n(2)]
    pub keep: Keep,
}

/// Asks for a row's history.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HistoryRequest {
    /// The question's number, for the reply.
    #[n(0)]
    pub question: u64,
    /// The table's name.
    #[n(1)]
    pub table: String,
    /// The row's key.
    #[n(2)]
    pub key: Key,
}

/// The answer to a branch's question.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reply {
    /// The question's number.
    #[n(0)]
    pub question: u64,
    /// The answer as JSON, or why there is none, for a person.
    #[n(1)]
    pub answer: Result<String, String>,
}

/// A branch's greeting after its link came up.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The branch's present incarnation.
    #[n(0)]
    pub incarnation: Incarnation,
    /// A number drawn anew at each start of the process; tells a clone from a restart.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The public key that signs this branch's envelopes.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub public_key: [u8; 32],
    /// Until the first welcome: proof that the branch holds the join code's secret.
    #[n(3)]
    pub proof: Option<Digest>,
    /// The last batch that it froze.
    #[n(4)]
    pub frozen: BatchNumber,
    /// The last log entry in its database.
    #[n(5)]
    pub applied: LogPosition,
    /// The incarnation of the head whose log it follows, once it knows.
    #[n(6)]
    pub head: Option<Incarnation>,
    /// Its schema version.
    #[n(7)]
    pub schema: SchemaVersion,
    /// Its clock.
    #[n(8)]
    pub clock: Micros,
    /// The hash of the last log entry in its database.
    #[n(9)]
    pub chain: Digest,
    /// The key by which it knows the head.
    #[n(10)]
    pub head_key: Option<PublicKey>,
    /// What it says to a head that took the place of the one that it followed.
    #[n(11)]
    pub succession: Option<Succession>,
}

/// The head's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The head's incarnation.
    #[n(0)]
    pub head: Incarnation,
    /// The session that is answered.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The incarnation of the branch that `cursor` counts.
    #[n(2)]
    pub incarnation: Incarnation,
    /// The branch's last batch in the head's database.
    #[n(3)]
    pub cursor: BatchNumber,
    /// The hash of that batch's envelope: a branch that has another one there was restored.
    #[n(4)]
    pub chain: Digest,
    /// The end of the log.
    #[n(5)]
    pub last: LogPosition,
    /// The shared tables, when the branch's version is behind.
    #[n(6)]
    pub schema: Option<Schema>,
    /// The head's clock.
    #[n(7)]
    pub clock: Micros,
    /// The hash of the log's last entry.
    #[n(8)]
    pub log_chain: Digest,
    /// The branch follows another continuation of the log than the head does since it was restored: it goes back to
    /// this place, whose entry has this hash.
    #[n(9)]
    pub rewind: Option<(LogPosition, Digest)>,
    /// The log no longer holds what the branch misses: it copies the tables anew.
    #[n(10)]
    pub beyond_horizon: bool,
    /// The heads that wrote this log before, where there were others.
    #[n(11)]
    pub predecessors: Option<Vec<Predecessor>>,
}

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

/// An entry of the head's log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LogEntry {
    /// The head's incarnation.
    #[n(0)]
    pub head: Incarnation,
    /// Its place.
    #[n(1)]
    pub position: LogPosition,
    /// The hash of the entry before.
    #[n(2)]
    pub previous: Digest,
    /// The schema version that its rows stand in.
    #[n(3)]
    pub schema: SchemaVersion,
    /// What it says.
    #[n(4)]
    pub body: LogBody,
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LogBody {
    /// Rows changed.
    #[n(0)]
    Changes(#[n(0)] LoggedChanges),
    /// All offices digest their tables here.
    #[n(1)]
    Barrier(#[n(0)] Barrier),
    /// The shared tables changed: entries after this one stand in another version.
    #[n(2)]
    Schema(#[n(0)] SchemaStep),
}

impl LogBody {
    /// How many rows it speaks of, some more than once.
    pub fn changes(&self) -> usize {
        match self {
            Self::Changes(body) => {
                body.changes.len() + body.verdicts.len() + body.settlements.len()
            }
            Self::Barrier(_) | Self::Schema(_) => 0,
        }
    }
}

/// A new schema version, in its place between the data before and the data after (P10).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SchemaStep {
    /// The version.
    #[n(0)]
    pub schema: Schema,
    /// Tables that were dropped at the head, not only taken out of the plan.
    #[n(1)]
    pub dropped: Vec<TableId>,
    /// Rows may differ between offices without a change on the way: branches have themselves compared and repaired.
    #[n(2)]
    pub compare: bool,
}

/// Accepted changes and, where they answer a branch's batch, its verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoggedChanges {
    /// The batch that this entry answers; none for the head's own changes.
    #[n(0)]
    pub answers: Option<Answer>,
    /// The accepted changes.
    #[cbor(n(1), decode_with = "sized")]
    pub changes: Vec<Logged>,
    /// What was decided otherwise than the branch sent it; for that branch only.
    #[n(2)]
    pub verdicts: Vec<Verdict>,
    /// The unit of visibility goes on in the next entry.
    #[n(3)]
    pub open: bool,
    /// What single branches must do besides, outside of any answer to a batch.
    #[n(4)]
    pub settlements: Vec<Settlement>,
}

/// Tells one branch to take the head's row: a person decided a conflict, a held change was released or dropped, or a
/// comparison found that the row differed. Or, after a comparison, that its row is held.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settlement {
    /// The branch.
    #[n(0)]
    pub branch: OfficeName,
    /// The row's table.
    #[n(1)]
    pub table: TableId,
    /// The row's key.
    #[n(2)]
    pub key: Key,
    /// The row as it stands at the head; nothing where it does not exist. A hold of the row at that branch ends.
    #[n(3)]
    pub row: Option<Row>,
    /// A decision to list, kept whole.
    #[n(4)]
    pub record: Option<ConflictRecord>,
    /// The conflict that is settled, and how.
    #[n(5)]
    pub settled: Option<Settled>,
    /// The branch's own change of this batch is held at the head, which the branch never heard: its row stays as it is.
    #[n(6)]
    pub held: Option<BatchNumber>,
}

/// How a listed conflict was settled afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settled {
    /// The conflict.
    #[n(0)]
    pub conflict: u64,
    /// What stands since.
    #[n(1)]
    pub keep: Keep,
    /// When the head did it.
    #[n(2)]
    pub at: Micros,
    /// The office whose person decided; none where the hold's cause went away by itself.
    #[n(3)]
    pub by: Option<OfficeName>,
    /// The row that stands since.
    #[n(4)]
    pub row: Option<Row>,
}

/// Which batch an entry answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// Whose batch.
    #[n(0)]
    pub branch: OfficeName,
    /// Of which incarnation.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its number.
    #[n(2)]
    pub batch: BatchNumber,
    /// The hash of its envelope: a branch that was restored may have another batch under this number, or none.
    #[n(3)]
    pub chain: Digest,
}

/// An accepted change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Logged {
    /// The row's table.
    #[n(0)]
    pub table: TableId,
    /// What became of the row.
    #[n(1)]
    pub effect: Effect,
    /// The time part of its version.
    #[n(2)]
    pub at: Micros,
    /// Whose content it is.
    #[n(3)]
    pub source: Source,
}

/// Whose content an accepted change is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Source {
    /// The office's whose batch the entry answers, just as it sent it; the head's where it answers none.
    #[n(0)]
    Sender,
    /// It was made of both sides' changes: the branch takes it like any other.
    #[n(1)]
    Merged,
    /// It was held before: the branch sent it in this batch of this incarnation.
    #[n(2)]
    Held(#[n(0)] OfficeName, #[n(1)] Incarnation, #[n(2)] BatchNumber),
    /// As `Sender`, but written under an earlier schema version: columns that it says nothing of were filled in, so that
    /// the sender takes it like any other change.
    #[n(3)]
    Lifted,
}

/// A verdict that is not plain acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Verdict {
    /// The row's table.
    #[n(0)]
    pub table: TableId,
    /// The row's key.
    #[n(1)]
    pub key: Key,
    /// What the branch must do.
    #[n(2)]
    pub outcome: Outcome,
    /// The decision to list, kept whole.
    #[n(3)]
    pub record: Option<ConflictRecord>,
}

/// What a verdict asks of the branch that sent the change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Nothing: the change was accepted; there was a conflict to list.
    #[n(0)]
    Accepted,
    /// Take this row (or its absence) instead.
    #[n(1)]
    Overridden(#[n(0)] Option<Row>),
    /// Keep the row as it is; it is set aside.
    #[n(2)]
    Held,
}

/// A place in the log at which offices look at their tables.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Barrier {
    /// The comparison's number.
    #[n(0)]
    pub verification: u64,
    /// Who is asked, and for what.
    #[n(1)]
    pub asked: Vec<Asked>,
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

/// How far an office is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    /// The last thing that the sender produced: log entry (head) or batch (branch).
    #[n(0)]
    pub produced: u64,
    /// The last thing of the receiver's in the sender's database; from the head only to one branch.
    #[n(1)]
    pub applied: Option<u64>,
    /// The branch's question that this answers, or the question's number.
    #[n(2)]
    pub question: u64,
    /// The sender's clock.
    #[n(3)]
    pub clock: Micros,
    /// The branch's session; zero from the head. Tells a clone that runs beside its original.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The head's clock minus the branch's in microseconds, as the branch measured it over a round trip.
    #[n(5)]
    pub offset: Option<i64>,
    /// The last thing of the receiver's that the sender keeps, applied or staged: the window moves on while a unit that
    /// is larger than it comes.
    #[n(6)]
    pub staged: Option<u64>,
}

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

/// Why the head does not let a branch in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refusal {
    /// The session that is answered.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub session: [u8; 16],
    /// The reason and what to do, for a person.
    #[n(1)]
    pub reason: String,
    /// The branch must take a new incarnation and greet again; otherwise a person must act.
    #[n(2)]
    pub reincarnate: bool,
    /// The incarnation that is refused: a refusal may come twice, or late.
    #[n(3)]
    pub incarnation: Incarnation,
    /// The branch's last batch at the head: a branch that has frozen it knows that its greeting was merely old.
    #[n(4)]
    pub cursor: BatchNumber,
    /// The branch runs on a copy of another's database.
    #[n(5)]
    pub copied: bool,
}

/// Asks for narrower sums of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Narrow {
    /// The barrier's place.
    #[n(0)]
    pub position: LogPosition,
    /// The nodes whose children's sums are wanted; where empty, what was answered at the barrier is wanted again.
    #[n(1)]
    pub tables: Vec<TableNodes>,
}

/// What a branch's tables were at a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Digests {
    /// The barrier's place.
    #[n(0)]
    pub position: LogPosition,
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
    /// Their keys.
    #[n(0)]
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
    /// The last log entry in the branch's database.
    #[n(0)]
    pub position: LogPosition,
    /// The rows.
    #[n(1)]
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
