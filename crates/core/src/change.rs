//! Rows, keys, and what an office says of them.

use minicbor::{Decode, Decoder, Encode};

use crate::identity::{BatchNumber, Digest, LogPosition, Micros};
use crate::schema::{Table, TableId};
use crate::value::{Value, feed};

/// A whole row, in the column order of its schema version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Row(#[cbor(n(0), decode_with = "sized")] pub Vec<Value>);

/// A primary key, in key order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Key(#[cbor(n(0), decode_with = "sized")] pub Vec<Value>);

impl Key {
    /// The name of a row within the whole company, equal at every office and engine.
    pub fn digest(&self, table: &Table) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&table.id.to_be_bytes());
        for (column, value) in table.key_columns().zip(&self.0) {
            feed(&mut hasher, &column.kind, value);
        }
        cut(&hasher)
    }

    /// The key for a person: its values separated by commas.
    pub fn to_json(&self) -> serde_json::Value {
        match self.0.as_slice() {
            [only] => only.to_json(),
            many => many.iter().map(Value::to_json).collect(),
        }
    }
}

impl Row {
    /// The digest of the row's canonical values, equal at every office and engine.
    pub fn digest(&self, table: &Table) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for (column, value) in table.columns.iter().zip(&self.0) {
            feed(&mut hasher, &column.kind, value);
        }
        cut(&hasher)
    }

    /// The row for a person: a JSON object by column name.
    pub fn to_json(&self, table: &Table) -> serde_json::Value {
        let fields = table.columns.iter().zip(&self.0);
        serde_json::Value::Object(
            fields
                .map(|(column, value)| (column.name.clone(), value.to_json()))
                .collect(),
        )
    }
}

fn cut(hasher: &blake3::Hasher) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Digest(digest)
}

/// How many elements a list gets room for on its word alone.
const TOLD: u64 = 1024;

/// Reads a list into the room that it says it needs, instead of growing it by and by.
pub(crate) fn sized<'b, C, T: Decode<'b, C>>(
    decoder: &mut Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let told = decoder.probe().array()?.unwrap_or_default().min(TOLD);
    let mut list = Vec::with_capacity(usize::try_from(told).unwrap_or_default());
    for element in decoder.array_iter_with::<C, T>(context)? {
        list.push(element?);
    }
    Ok(list)
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Effect {
    /// The row is now this.
    #[n(0)]
    Put(#[n(0)] Row),
    /// The row with this key is gone.
    #[n(1)]
    Delete(#[n(0)] Key),
}

impl Effect {
    /// The key of the row concerned.
    pub fn key(&self, table: &Table) -> Key {
        match self {
            Self::Put(row) => table.key_of(row),
            Self::Delete(key) => key.clone(),
        }
    }

    /// The row that is there afterwards.
    pub fn row(&self) -> Option<&Row> {
        match self {
            Self::Put(row) => Some(row),
            Self::Delete(_) => None,
        }
    }

    /// Whether it has the shape of this table's rows.
    pub fn fits(&self, table: &Table) -> bool {
        match self {
            Self::Put(row) => table.fits(row) && table.has_key(row),
            Self::Delete(key) => table.fits_key(key),
        }
    }
}

/// The version that a change was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Base {
    /// The row as it stood at this place in the head's log.
    #[n(0)]
    Log(#[n(0)] LogPosition),
    /// What this office itself sent in an earlier batch, on top of the row at this place in the log.
    #[n(1)]
    Own(#[n(0)] BatchNumber, #[n(1)] LogPosition),
    /// The office had this row before it joined.
    #[n(2)]
    Unknown,
}

/// A branch's net change to one row.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// The row's table.
    #[n(0)]
    pub table: TableId,
    /// What became of the row.
    #[n(1)]
    pub effect: Effect,
    /// The version it was made on.
    #[n(2)]
    pub base: Base,
    /// Whether the row did not exist in that version.
    #[n(3)]
    pub inserted: bool,
    /// When the office's application last wrote it, by that office's clock.
    #[n(4)]
    pub at: Micros,
    /// The row as the office's application found it, where the table's rule needs it.
    #[n(5)]
    pub before: Option<Row>,
    /// Columns of which the office says nothing, since its table lacks them: what stands there in the row is no value.
    #[n(6)]
    pub absent: Vec<u16>,
}
