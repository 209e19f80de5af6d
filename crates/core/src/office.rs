//! What the head and a branch have in common.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use crate::books::{self, IdentityBook};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{Micros, OfficeName};
use crate::port::{Database, DatabaseError, Portion, Taken, Unreadable};
use crate::schema::{Schema, TableId};
use crate::value::Value;

/// How often at most, in milliseconds, an office that takes nothing asks its database to note where captured writes can be
/// parted ([`Database::mark`]).
pub const MARK_MS: i64 = 200;

/// The name of the record that says who this office is.
pub const IDENTITY: &str = "identity";
/// How many changes a batch or log entry holds, about.
pub const BATCH_CHANGES: usize = 1000;
/// How many bytes of values a batch or log entry holds, about.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// How large a row may be, in bytes of values: an entry of the log may hold it twice.
pub const MAX_ROW_BYTES: usize = 6 * 1024 * 1024;
/// Up to how many bytes of rows a listed decision travels whole; a larger one is kept whole at the head only.
pub const RECORD_BYTES: usize = 256 * 1024;
/// How many portions one transaction takes, unless a unit is larger. Looking for clean cuts costs each transaction a
/// look at the whole backlog, so that few large transactions catch up faster than many small ones.
pub const PORTIONS_PER_TAKE: usize = 24;

/// How long a table must be gone before it counts as dropped, in milliseconds.
const SETTLED_MS: i64 = 2_000;

/// Tables that seem to be gone, and since when. Where DDL is no transaction, that is how a rebuild looks from outside.
#[derive(Debug, Default)]
pub(crate) struct Fleeting(Option<(Vec<TableId>, Micros)>);

impl Fleeting {
    /// Whether just these tables seem gone since a moment only.
    pub fn is_seen(&mut self, gone: Vec<TableId>, now: Micros) -> bool {
        if gone.is_empty() {
            self.0 = None;
            return false;
        }
        match &self.0 {
            Some((known, since)) if *known == gone => !now.has_passed(SETTLED_MS, *since),
            _ => {
                self.0 = Some((gone, now));
                true
            }
        }
    }
}

/// Who this office is, ready to sign.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: OfficeName,
    /// The same, for sharing.
    pub shared_name: Arc<OfficeName>,
    /// Signs its envelopes.
    pub key: SigningKey,
}

impl Identity {
    /// From the record in the database.
    pub fn from_book(book: &IdentityBook) -> Self {
        Self {
            name: book.name.clone(),
            shared_name: Arc::new(book.name.clone()),
            key: SigningKey::from_bytes(&book.secret_key),
        }
    }

    /// Its public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Reads it from the database.
    pub async fn load<D: Database>(db: &mut D) -> OfficeResult<(Self, bool)> {
        let book: IdentityBook = books::load(db, IDENTITY).await?.ok_or_else(|| {
            OfficeError::NotSetUp(
                "this database belongs to no office yet: run `branchline init` (head) or `branchline join` (branch)".into(),
            )
        })?;
        Ok((Self::from_book(&book), book.head))
    }
}

/// Takes out the rows that are too large to travel, with what to tell of them.
pub fn part_with_giants(portion: &mut Portion, schema: &Schema) {
    let heavy = |taken: &Taken| {
        let before = taken.before.as_ref().map_or(0, |row| weight_of(&row.0));
        weight(taken).max(before) > MAX_ROW_BYTES
    };
    if !portion.changes.iter().any(heavy) {
        return;
    }
    let (giants, rest) = std::mem::take(&mut portion.changes)
        .into_iter()
        .partition(heavy);
    portion.changes = rest;
    for taken in giants {
        let Some(table) = schema.table(taken.table) else {
            continue;
        };
        let problem = format!(
            "the row holds {} bytes; at most {MAX_ROW_BYTES} can be sent",
            weight(&taken)
        );
        portion.unreadable.push(Unreadable {
            table: taken.table,
            key: taken.effect.key(table),
            problem,
        });
    }
}

/// About how many bytes a change's values take.
pub fn weight(taken: &Taken) -> usize {
    let values = match &taken.effect {
        crate::change::Effect::Put(row) => &row.0,
        crate::change::Effect::Delete(key) => &key.0,
    };
    16 + weight_of(values)
}

/// About how many bytes values take.
pub fn weight_of(values: &[Value]) -> usize {
    let bytes = values.iter().map(|value| match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 8,
    });
    bytes.sum()
}

/// Cuts changes into runs that fit into a message each.
pub fn cut_by_weight(changes: Vec<Taken>) -> Vec<Vec<Taken>> {
    let mut runs = Vec::new();
    let mut run = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let heavy = weight(&change);
        if !run.is_empty() && bytes + heavy > BATCH_BYTES {
            runs.push(std::mem::take(&mut run));
            bytes = 0;
        }
        bytes += heavy;
        run.push(change);
    }
    if !run.is_empty() || runs.is_empty() {
        runs.push(run);
    }
    runs
}

/// Ends a transaction by the outcome of its work.
pub async fn conclude<D: Database, T>(db: &mut D, outcome: OfficeResult<T>) -> OfficeResult<T> {
    let ended = match outcome {
        Ok(value) => db.commit().await.map(|()| value).map_err(OfficeError::from),
        Err(error) => Err(error),
    };
    match ended {
        Ok(value) => Ok(value),
        // Also after a commit that failed: what stays open keeps the application waiting (P8).
        Err(error) => {
            let _already_failing: Result<(), DatabaseError> = db.rollback().await;
            Err(error)
        }
    }
}
