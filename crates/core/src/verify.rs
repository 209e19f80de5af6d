//! Comparing offices: digests of all rows at one place of the log, exchanged instead of the rows.
//!
//! Each row's canonical digest is added into one of [`BUCKETS`] sums, chosen by the row's name; sums do not depend on
//! the order in which an engine returns rows. Only where sums differ are rows listed one by one, at a second cut.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::Key;
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition, OfficeName};
use crate::message::{RowDigest, TableDigest};
use crate::port::Database;
use crate::schema::{Schema, Table, TableId};

/// Into how many sums a table's rows are spread.
pub const BUCKETS: u16 = 512;
/// How many rows are read at a time.
const CHUNK_ROWS: usize = 2_000;
/// How many rows are listed one by one at the most, for each table.
const DETAIL_ROWS: usize = 20_000;
/// How many differing keys are named for each table.
pub const KEYS_NAMED: usize = 20;

/// A comparison of the head with its branches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Its number.
    pub id: u64,
    /// The branch that asked for it.
    pub wanted_by: Option<OfficeName>,
    /// The place in the log.
    pub cut: LogPosition,
    /// Bytes of envelopes that it took.
    pub bytes: u64,
    /// The branches.
    pub branches: Vec<BranchVerification>,
}

/// The comparison with one branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BranchVerification {
    /// Its name.
    pub name: String,
    /// Whether it answered in time.
    pub answered: bool,
    /// The tables.
    pub tables: Vec<TableVerification>,
}

/// The comparison of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableVerification {
    /// Its name.
    pub name: String,
    /// Rows at the head.
    pub rows: u64,
    /// Rows with different content.
    pub different: u64,
    /// Rows at the head only.
    pub only_head: u64,
    /// Rows at the branch only.
    pub only_branch: u64,
    /// Rows not yet exchanged, or held; not counted as different.
    pub pending: u64,
    /// Some of the differing rows' keys.
    pub keys: Vec<Key>,
}

impl BranchVerification {
    /// Whether no row differs.
    pub fn is_equal(&self) -> bool {
        self.answered
            && self
                .tables
                .iter()
                .all(|t| t.different + t.only_head + t.only_branch == 0)
    }
}

impl Verification {
    /// Whether no row differs anywhere.
    pub fn is_equal(&self) -> bool {
        self.branches.iter().all(BranchVerification::is_equal)
    }

    /// The comparison under the public interface's keys.
    pub fn to_json(&self) -> serde_json::Value {
        let table = |t: &TableVerification| {
            serde_json::json!({
                "name": t.name, "rows": t.rows, "different": t.different, "only_head": t.only_head,
                "only_branch": t.only_branch, "pending": t.pending,
                "keys": t.keys.iter().map(Key::to_json).collect::<Vec<_>>(),
            })
        };
        let branch = |b: &BranchVerification| {
            serde_json::json!({
                "name": b.name, "equal": b.is_equal(), "answered": b.answered,
                "tables": b.tables.iter().map(table).collect::<Vec<_>>(),
            })
        };
        serde_json::json!({
            "equal": self.is_equal(), "cut": self.cut, "bytes_exchanged": self.bytes,
            "branches": self.branches.iter().map(branch).collect::<Vec<_>>(),
        })
    }
}

/// The bucket of a row.
fn bucket_of(name: &Digest) -> u16 {
    u16::from_be_bytes([name.0[0], name.0[1]]) % BUCKETS
}

/// Digests the tables in the open read transaction: all of them, or the given buckets row by row.
pub async fn digest<D: Database>(
    db: &mut D,
    schema: &Schema,
    detail: &[(TableId, Vec<u16>)],
    pending: &BTreeMap<TableId, BTreeSet<Digest>>,
) -> OfficeResult<Vec<TableDigest>> {
    let mut digests = Vec::new();
    for table in &schema.tables {
        let asked = detail
            .iter()
            .find(|(id, _)| *id == table.id)
            .map(|(_, buckets)| buckets);
        if !detail.is_empty() && asked.is_none() {
            continue;
        }
        let mut digest = digest_table(db, table, asked).await?;
        digest.pending = pending
            .get(&table.id)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        for key in db.captured(table, None).await? {
            digest.pending.push(key.digest(table));
        }
        digests.push(digest);
    }
    Ok(digests)
}

async fn digest_table<D: Database>(
    db: &mut D,
    table: &Table,
    asked: Option<&Vec<u16>>,
) -> OfficeResult<TableDigest> {
    let mut digest = TableDigest {
        table: table.id,
        ..TableDigest::default()
    };
    let mut sums: BTreeMap<u16, u128> = BTreeMap::new();
    let mut after = None;
    loop {
        let rows = db.chunk(table, after.as_ref(), CHUNK_ROWS).await?;
        for row in &rows {
            let key = table.key_of(row);
            let name = key.digest(table);
            let bucket = bucket_of(&name);
            let content = row.digest(table);
            digest.rows += 1;
            match asked {
                Some(buckets) if buckets.contains(&bucket) && digest.detail.len() < DETAIL_ROWS => {
                    digest.detail.push(RowDigest { key, content });
                }
                Some(buckets) => digest.cut |= buckets.contains(&bucket),
                None => {
                    let sum = sums.entry(bucket).or_default();
                    let mut both = name.0.to_vec();
                    both.extend(content.0);
                    *sum = sum.wrapping_add(u128::from_be_bytes(Digest::of(&both).0));
                }
            }
        }
        match rows.last() {
            Some(last) if rows.len() >= CHUNK_ROWS => after = Some(table.key_of(last)),
            _ => break,
        }
    }
    digest.buckets = sums
        .into_iter()
        .map(|(bucket, sum)| (bucket, Digest(sum.to_be_bytes())))
        .collect();
    Ok(digest)
}

/// The buckets in which two offices' sums differ.
pub fn differing_buckets(ours: &TableDigest, theirs: &TableDigest) -> Vec<u16> {
    let ours: BTreeMap<_, _> = ours.buckets.iter().copied().collect();
    let theirs: BTreeMap<_, _> = theirs.buckets.iter().copied().collect();
    let all: BTreeSet<u16> = ours.keys().chain(theirs.keys()).copied().collect();
    all.into_iter()
        .filter(|bucket| ours.get(bucket) != theirs.get(bucket))
        .collect()
}

/// Compares two offices' lists of rows.
pub fn compare_rows(table: &Table, ours: &TableDigest, theirs: &TableDigest) -> TableVerification {
    let pending: BTreeSet<Digest> = ours
        .pending
        .iter()
        .chain(&theirs.pending)
        .copied()
        .collect();
    let list = |digest: &TableDigest| -> BTreeMap<Key, Digest> {
        digest
            .detail
            .iter()
            .map(|row| (row.key.clone(), row.content))
            .collect()
    };
    let (ours_rows, theirs_rows) = (list(ours), list(theirs));
    let mut result = TableVerification {
        name: table.name.clone(),
        rows: ours.rows,
        pending: pending.len() as u64,
        ..TableVerification::default()
    };
    let all: BTreeSet<&Key> = ours_rows.keys().chain(theirs_rows.keys()).collect();
    for key in all {
        let counter = match (ours_rows.get(key), theirs_rows.get(key)) {
            (Some(a), Some(b)) if a == b => continue,
            _ if pending.contains(&key.digest(table)) => continue,
            (Some(_), Some(_)) => &mut result.different,
            (Some(_), None) => &mut result.only_head,
            _ => &mut result.only_branch,
        };
        *counter += 1;
        if result.keys.len() < KEYS_NAMED {
            result.keys.push(key.clone());
        }
    }
    result
}
