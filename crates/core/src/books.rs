//! What an office remembers in its database, besides rows: small records under fixed names, and numbered streams.

use minicbor::{Decode, Encode};

use crate::check::Checks;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::port::{Database, Entry};
use crate::schema::{ColumnId, Schema, TableId};
use crate::succession::Succession;

/// Frozen batches of this branch.
pub const OUTBOX: &str = "outbox";
/// The head's log.
pub const LOG: &str = "log";
/// For each log entry, the names of the rows that it changes.
pub const LOG_KEYS: &str = "log-keys";
/// Schema versions.
pub const SCHEMAS: &str = "schema";
/// Decisions to list.
pub const CONFLICTS: &str = "conflict";
/// Parts of a large unit that has not arrived whole (at a branch).
pub const STAGED: &str = "staged";

/// Parts of a large unit of one branch that has not arrived whole (at the head).
pub fn staged_of(branch: &OfficeName) -> String {
    format!("staged:{branch}")
}

/// Who this office is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IdentityBook {
    /// Its name.
    #[n(0)]
    pub name: OfficeName,
    /// Whether it is the head.
    #[n(1)]
    pub head: bool,
    /// The secret key that signs its envelopes.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub secret_key: [u8; 32],
}

/// Where the head's log ends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeadBook {
    /// The head's incarnation.
    #[n(0)]
    pub incarnation: Incarnation,
    /// The last entry.
    #[n(1)]
    pub last: LogPosition,
    /// The hash of its envelope.
    #[n(2)]
    pub chain: Digest,
    /// The last conflict's number.
    #[n(3)]
    pub conflicts: u64,
}

/// What the head knows of one branch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SeatBook {
    /// The secret of its join code, and until when the code may be used first.
    #[n(0)]
    pub secret: SecretBytes,
    /// Until when the join code may be used for the first time.
    #[n(1)]
    pub expires: Micros,
    /// The key that signs its envelopes, once it has joined.
    #[n(2)]
    pub public_key: Option<PublicKey>,
    /// The incarnation that `cursor` counts.
    #[n(3)]
    pub incarnation: Incarnation,
    /// Its last batch in this database.
    #[n(4)]
    pub cursor: BatchNumber,
    /// The hash of that batch's envelope.
    #[n(5)]
    pub chain: Digest,
    /// The last log entry known to be in its database.
    #[n(6)]
    pub applied: LogPosition,
    /// When it was last heard of.
    #[n(7)]
    pub seen: Micros,
    /// Whether it was taken out.
    #[n(8)]
    pub removed: bool,
    /// Changes of this branch that are held.
    #[n(9)]
    pub holds: u64,
    /// Incarnations that it had before: what still comes from them must not pass for new.
    #[n(10)]
    pub former: Vec<Incarnation>,
    /// A continuation of the log that the head lost and took back from this branch as changes: its end there, the hash
    /// of the entry at that end, and the place from which the branch is to follow the head's own continuation.
    #[n(11)]
    pub taken_back: Option<TakenBack>,
    /// What was taken back from this branch before that, as long as the log has the places to which it went back.
    #[n(12)]
    pub taken_before: Option<Vec<TakenBack>>,
}

/// A lost continuation of the log that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TakenBack {
    /// Where it ended, with the hash of the entry there.
    #[n(0)]
    pub end: (LogPosition, Digest),
    /// The last place that both continuations share, with the hash of the entry there.
    #[n(1)]
    pub agreed: (LogPosition, Digest),
    /// The incarnation in which the branch came with it, and the last batch that it had frozen by then: it issues again
    /// what it has no answer to.
    #[n(2)]
    pub came: Option<(Incarnation, BatchNumber)>,
    /// Nothing that the branch keeps of the log is in this one: it begins again from the head's tables.
    #[n(3)]
    pub apart: Option<bool>,
}

/// Secret bytes that do not show in debug output.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct SecretBytes(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// An Ed25519 public key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct PublicKey(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

/// Where a branch stands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BranchBook {
    /// Its incarnation.
    #[n(0)]
    pub incarnation: Incarnation,
    /// The last batch that it froze.
    #[n(1)]
    pub frozen: BatchNumber,
    /// The hash of that batch's envelope.
    #[n(2)]
    pub chain: Digest,
    /// The last batch that the head answered.
    #[n(3)]
    pub answered: BatchNumber,
    /// The last log entry in this database.
    #[n(4)]
    pub cursor: LogPosition,
    /// The incarnation of the head whose log this is.
    #[n(5)]
    pub head: Option<Incarnation>,
    /// The head's name.
    #[n(6)]
    pub head_name: OfficeName,
    /// The key that signs the head's envelopes.
    #[n(7)]
    pub head_key: PublicKey,
    /// The join code's secret, until the first welcome.
    #[n(8)]
    pub secret: Option<SecretBytes>,
    /// How far the first copy of the tables is; none when complete.
    #[n(9)]
    pub joining: Option<Joining>,
    /// The hash of the last log entry in this database.
    #[n(10)]
    pub log_chain: Digest,
    /// Which stream keeps the log entries followed: a branch that went back to an earlier place begins a new one.
    #[n(11)]
    pub lineage: u64,
    /// The head's clock minus this office's in microseconds, as last measured.
    #[n(12)]
    pub clock_offset: Option<i64>,
    /// Rows may differ from the head's without a change on the way: a comparison that repairs them is wanted.
    #[n(13)]
    pub compare: Option<bool>,
    /// Tables that could not take a step of the schema, as they are here.
    #[n(14)]
    pub refused: Vec<crate::schema::Table>,
    /// How far this branch was answered when it was told of a head that took the former one's place, until that head's
    /// first welcome.
    #[n(15)]
    pub succession: Option<Succession>,
    /// Columns of the plan that tables here lacked, whose values are still to come from the head.
    #[n(16)]
    pub lacked: Option<Vec<(TableId, ColumnId)>>,
    /// Foreign keys may be missing: of a table that could be made only later, or that rows or the database refused at the
    /// end of a copy.
    #[n(17)]
    pub unbound: Option<bool>,
    /// Earlier streams of entries followed, in their order, with the place from which the branch went back in each: up to
    /// there its entries are the log's.
    #[n(18)]
    pub lineages: Option<Vec<(u64, LogPosition)>>,
    /// Tables that were left out of the last comparison that was wanted, since they were not what the plan says.
    #[n(19)]
    pub left_out: Option<Vec<TableId>>,
    /// The tables were copied anew, so that rows here may be ones that the head deleted while this branch did not follow
    /// the log: until a comparison has ended (true), and then until what was captured before that is frozen (false).
    #[n(20)]
    pub uncompared: Option<bool>,
    /// Checks of the present version that rows here break: they are made once no row does.
    #[n(21)]
    pub unmade: Option<Vec<(TableId, Checks)>>,
}

impl BranchBook {
    /// The stream of the log entries that this branch followed, for a head that is restored (SETTLED 10).
    pub fn followed(&self) -> String {
        followed_in(self.lineage)
    }

    /// The stream that keeps the entry at this place, with the last place that counts in it.
    pub fn followed_at(&self, place: LogPosition) -> (String, LogPosition) {
        let mut earlier = self.lineages.iter().flatten();
        match earlier.find(|(_, through)| *through >= place) {
            Some((lineage, through)) => (followed_in(*lineage), *through),
            None => (self.followed(), self.cursor),
        }
    }
}

/// The stream of log entries followed in a lineage.
pub fn followed_in(lineage: u64) -> String {
    format!("followed:{lineage}")
}

/// How far a joining branch's first copy of the tables is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Joining {
    /// Tables loaded whole.
    #[n(0)]
    pub loaded: Vec<TableId>,
    /// The last key loaded of the table in work.
    #[n(1)]
    pub after: Option<crate::change::Key>,
    /// Rows loaded so far.
    #[n(2)]
    pub rows: u64,
    /// The branch's own earlier rows have been put into the capture and capture is installed.
    #[n(3)]
    pub prepared: bool,
    /// The cursor must pass this place before the copy is complete: chunks show what the log brings only there.
    #[n(4)]
    pub settled: LogPosition,
    /// What the office had before it joined has been frozen: from here on its rows follow the log.
    #[n(5)]
    pub frozen: bool,
    /// The tables are copied anew, since the log no longer held what this branch missed from this place on: what it
    /// has was made on nothing newer.
    #[n(6)]
    pub again_from: Option<LogPosition>,
}

/// A note on a row at a branch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Note {
    /// Log entries from this one on were not applied to the row, since it has local changes.
    #[n(0)]
    Deferred(#[n(0)] LogPosition),
    /// The row is held: its local content differs from the log on purpose. Log entries from this one on were not
    /// applied to it, since the change that is held was made without having seen them.
    #[n(1)]
    Held(#[n(0)] BatchNumber, #[n(1)] LogPosition),
    /// This office's tables do not take what the log says from this entry on; it is tried again now and then.
    #[n(2)]
    Unfit(#[n(0)] LogPosition, #[n(1)] crate::change::Effect),
    /// A chunk of the first copy had this row and was not applied to it, since it has local changes. Where they
    /// inserted it, they were made without ever having seen the head's row.
    /// Log entries from this one on were not applied to the row either.
    #[n(3)]
    Unseen(#[n(0)] LogPosition),
    /// The row's content cannot be sent, and why: it is no value of its column, or too large. It is sent when it is
    /// written again. Log entries from this one on were not applied to the row.
    #[n(4)]
    Unreadable(#[n(0)] LogPosition, #[n(1)] String),
}

/// A note on a row at the head: branches' changes to it are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HeldAtHead {
    /// One for each branch that holds a row of its own under this key.
    #[n(0)]
    pub holds: Vec<Hold>,
}

/// A branch's held change of a row: its last one, since each stands for those before it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hold {
    /// The branch.
    #[n(0)]
    pub branch: OfficeName,
    /// The record that keeps the change.
    #[n(1)]
    pub conflict: u64,
    /// Why the first of the changes was held.
    #[n(2)]
    pub reason: crate::conflict::Reason,
    /// The batch that brought the change, and the incarnation that numbered it.
    #[n(3)]
    pub batch: (Incarnation, BatchNumber),
}

impl Note {
    /// The first log entry that was not applied to the row.
    pub fn first_unseen(&self) -> LogPosition {
        match self {
            Self::Deferred(first)
            | Self::Held(_, first)
            | Self::Unfit(first, _)
            | Self::Unseen(first)
            | Self::Unreadable(first, _) => *first,
        }
    }
}

impl Note {
    /// The same note, with another first entry that was not applied.
    #[must_use]
    pub fn with_first_unseen(self, first: LogPosition) -> Self {
        match self {
            Self::Deferred(_) => Self::Deferred(first),
            Self::Held(batch, _) => Self::Held(batch, first),
            Self::Unfit(_, effect) => Self::Unfit(first, effect),
            Self::Unseen(_) => Self::Unseen(first),
            Self::Unreadable(_, problem) => Self::Unreadable(first, problem),
        }
    }
}

impl HeldAtHead {
    /// What is held of this branch.
    pub fn of(&self, branch: &OfficeName) -> Option<&Hold> {
        self.holds.iter().find(|hold| hold.branch == *branch)
    }

    /// Puts a branch's hold in, or takes it out. Returns the note to write, or none where nothing is held any more.
    pub fn with(mut self, branch: &OfficeName, hold: Option<Hold>) -> Option<Self> {
        self.holds.retain(|held| held.branch != *branch);
        self.holds.extend(hold);
        (!self.holds.is_empty()).then_some(self)
    }
}

/// The name of the record that says how a conflict was settled afterwards.
pub fn settled_name(conflict: u64) -> String {
    format!("settled:{conflict}")
}

/// The name of a record about one branch.
pub fn seat_name(branch: &OfficeName) -> String {
    format!("seat:{branch}")
}

/// Reads a record.
pub async fn load<T, D>(db: &mut D, name: &str) -> OfficeResult<Option<T>>
where
    T: for<'b> Decode<'b, ()>,
    D: Database,
{
    match db.meta(name).await? {
        Some(bytes) => decode(&bytes).map(Some),
        None => Ok(None),
    }
}

/// Writes a record in the open transaction.
pub async fn store<T, D>(db: &mut D, name: &str, record: &T) -> OfficeResult<()>
where
    T: Encode<()> + Sync,
    D: Database,
{
    let bytes = encode(record)?;
    Ok(db.set_meta(name, Some(&bytes)).await?)
}

/// Reads CBOR.
pub fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> OfficeResult<T> {
    minicbor::decode(bytes).map_err(|error| OfficeError::Books(error.to_string()))
}

/// Writes CBOR.
pub fn encode<T: Encode<()>>(record: &T) -> OfficeResult<Vec<u8>> {
    minicbor::to_vec(record).map_err(|error| OfficeError::Books(error.to_string()))
}

/// A stream read from a number on, a page at a time.
#[derive(Clone, Debug)]
pub struct Pages<'s> {
    stream: &'s str,
    from: u64,
}

impl<'s> Pages<'s> {
    /// Bytes of a page, about: it holds at least one entry.
    pub const BYTES: usize = 1024 * 1024;

    /// The entries numbered `from` and up.
    pub fn from(stream: &'s str, from: u64) -> Self {
        Self { stream, from }
    }

    /// The next page; nothing after the last.
    pub async fn next<D: Database>(&mut self, db: &mut D) -> OfficeResult<Option<Vec<Entry>>> {
        let entries = db.entries(self.stream, self.from, Self::BYTES).await?;
        let Some(last) = entries.last() else {
            return Ok(None);
        };
        self.from = last.number.saturating_add(1);
        Ok(Some(entries))
    }
}

/// The newest schema version in the database.
pub async fn newest_schema<D: Database>(db: &mut D) -> OfficeResult<Option<Schema>> {
    let last = db.extent(SCHEMAS).await?.last;
    if last == 0 {
        return Ok(None);
    }
    let entries = db.entries(SCHEMAS, last, usize::MAX / 2).await?;
    entries
        .first()
        .map(|entry| decode(&entry.bytes))
        .transpose()
}

/// Rows, named by table and key, in an order that does not change from run to run.
pub type RowNames = std::collections::BTreeSet<(TableId, crate::change::Key)>;
