//! Which rows changed lately, and how: what a branch's base is held against.
//!
//! No version is kept beside any row. A base names a place in the log; a change is on the head's present version when
//! the log holds nothing newer for that row. The newest part of the log is remembered here; for older bases the names
//! kept beside each entry are read from the database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::books::{LOG, LOG_KEYS};
use crate::by_name::ByName;
use crate::change::{Base, Key};
use crate::envelope;
use crate::evolution::Versions;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::message::{LogBody, LogEntry, Message, Source};
use crate::port::Database;
use crate::schema::Schema;

mod older;

use older::Older;

/// How many rows are remembered in memory, at the most; at the least half of them. A half fills its table: it holds 7/8 of a
/// power of two.
pub(super) const ROWS_REMEMBERED: usize = 7 << 13;
/// How many bytes of row names are read at a time.
const READ_BYTES: usize = 1024 * 1024;
/// How many bytes of a row's name are kept beside a log entry.
pub(super) const NAME_BYTES: usize = 8;

/// The newest version of a row in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Where in the log.
    pub position: LogPosition,
    /// The office that made it.
    pub origin: Arc<OfficeName>,
    /// The batch that brought it, just as the branch sent it, and the incarnation that numbered it; none where the
    /// head made it.
    pub batch: Option<(Incarnation, BatchNumber)>,
    /// The time part of the version.
    pub at: Micros,
}

impl Newest {
    /// Whether a change by `branch` in this incarnation, with this base, was made on this version or on a later one.
    pub fn is_seen_by(&self, base: Base, branch: &OfficeName, incarnation: Incarnation) -> bool {
        match base {
            Base::Unknown => false,
            Base::Log(position) => self.position <= position,
            Base::Own(batch, position) => {
                self.position <= position
                    || (*self.origin == *branch && self.batch == Some((incarnation, batch)))
            }
        }
    }
}

/// The newest versions of rows that changed lately: in two halves, of which the older one is forgotten as a whole.
#[derive(Debug)]
pub struct Recent {
    /// All entries after this one are remembered.
    floor: LogPosition,
    /// Which rows changed in entries up to the floor.
    older: Older,
    halves: [Half; 2],
}

/// The rows of a stretch of the log.
#[derive(Debug, Default)]
struct Half {
    rows: ByName<Version>,
    /// What the rows of one entry have in common.
    makings: Vec<Making>,
    /// Its last entry.
    through: LogPosition,
}

/// A row's version, as small as it may be.
#[derive(Clone, Copy, Debug)]
struct Version {
    making: u32,
    at: Micros,
}

/// Where versions stand, and who made them.
#[derive(Debug, PartialEq)]
struct Making {
    position: LogPosition,
    origin: Arc<OfficeName>,
    batch: Option<(Incarnation, BatchNumber)>,
}

impl Half {
    fn add(&mut self, position: LogPosition, rows: Vec<(Digest, Newest)>) {
        for (name, newest) in rows {
            let making = Making {
                position: newest.position,
                origin: newest.origin,
                batch: newest.batch,
            };
            if self.makings.last() != Some(&making) {
                self.makings.push(making);
            }
            let version = Version {
                making: u32::try_from(self.makings.len() - 1).unwrap_or(u32::MAX),
                at: newest.at,
            };
            self.rows.insert(name, version);
        }
        self.through = position;
    }

    fn get(&self, name: &Digest) -> Option<Newest> {
        let version = self.rows.get(name)?;
        let making = self.makings.get(version.making as usize)?;
        Some(Newest {
            position: making.position,
            origin: Arc::clone(&making.origin),
            batch: making.batch,
            at: version.at,
        })
    }
}

impl Recent {
    /// Remembers nothing up to the end of the log.
    pub fn new(last: LogPosition) -> Self {
        Self {
            floor: last,
            older: Older::new(last),
            halves: [Half::default(), Half::default()],
        }
    }

    /// Takes in an entry just committed.
    pub fn add(&mut self, position: LogPosition, rows: Vec<(Digest, Newest)>) {
        let [newer, older] = &mut self.halves;
        if !newer.rows.is_empty() && newer.rows.len() + rows.len() > ROWS_REMEMBERED / 2 {
            if !older.rows.is_empty() {
                self.older.add(older.through, older.rows.names());
                self.floor = older.through;
            }
            *older = std::mem::take(newer);
        }
        newer.add(position, rows);
    }

    /// Forgets all entries up to this one, which is the newest.
    pub fn forget_through(&mut self, position: LogPosition) {
        *self = Self::new(position);
    }

    fn get(&self, name: &Digest) -> Option<Newest> {
        self.halves.iter().find_map(|half| half.get(name))
    }

    /// The newest versions of these rows, as far as they are newer than `after`.
    pub async fn newest<D: Database>(
        &self,
        db: &mut D,
        versions: &Versions,
        head: &Arc<OfficeName>,
        names: &BTreeSet<Digest>,
        after: LogPosition,
    ) -> OfficeResult<BTreeMap<Digest, Newest>> {
        let mut found: BTreeMap<Digest, Newest> = names
            .iter()
            .filter_map(|name| Some((*name, self.get(name)?)))
            .collect();
        if after >= self.floor {
            return Ok(found);
        }
        let known = after >= self.older.from();
        let wanted: BTreeMap<[u8; NAME_BYTES], Digest> = names
            .iter()
            .filter(|name| !found.contains_key(name))
            .filter(|name| !known || self.older.may_have(name))
            .map(|name| (short(name), *name))
            .collect();
        if wanted.is_empty() {
            return Ok(found);
        }
        for (position, names) in search(db, &wanted, after, self.floor).await? {
            for (name, newest) in read_entry(db, versions, head, position).await? {
                if names.contains(&name) {
                    found.insert(name, newest);
                }
            }
        }
        Ok(found)
    }
}

/// The last entry after `after` and up to `through` that names each of the wanted rows, grouped by entry.
pub(super) async fn search<D: Database>(
    db: &mut D,
    wanted: &BTreeMap<[u8; NAME_BYTES], Digest>,
    after: LogPosition,
    through: LogPosition,
) -> OfficeResult<BTreeMap<LogPosition, BTreeSet<Digest>>> {
    let mut last: BTreeMap<Digest, LogPosition> = BTreeMap::new();
    let mut from = after.next();
    while from <= through {
        let entries = db.entries(LOG_KEYS, from.0, READ_BYTES).await?;
        let Some(end) = entries.last().map(|entry| entry.number) else {
            break;
        };
        for entry in entries.iter().filter(|entry| entry.number <= through.0) {
            for name in entry.bytes.as_chunks::<NAME_BYTES>().0 {
                if let Some(full) = wanted.get(name) {
                    last.insert(*full, LogPosition(entry.number));
                }
            }
        }
        from = LogPosition(end).next();
    }
    let mut by_entry: BTreeMap<LogPosition, BTreeSet<Digest>> = BTreeMap::new();
    for (name, position) in last {
        by_entry.entry(position).or_default().insert(name);
    }
    Ok(by_entry)
}

/// The names of an entry's rows as they are kept beside it.
pub fn names_of(rows: &[(Digest, Newest)]) -> Vec<u8> {
    rows.iter().flat_map(|(name, _)| short(name)).collect()
}

pub(super) fn short(name: &Digest) -> [u8; NAME_BYTES] {
    let mut short = [0; NAME_BYTES];
    short.copy_from_slice(&name.0[..NAME_BYTES]);
    short
}

async fn read_entry<D: Database>(
    db: &mut D,
    versions: &Versions,
    head: &Arc<OfficeName>,
    position: LogPosition,
) -> OfficeResult<Vec<(Digest, Newest)>> {
    let entries = db.entries(LOG, position.0, 1).await?;
    let Some(entry) = entries.first().filter(|entry| entry.number == position.0) else {
        return Err(OfficeError::Books(format!(
            "log entry {position} is missing"
        )));
    };
    let entry = own_entry(&entry.bytes)?;
    Ok(rows_of(&entry, versions.of(&entry)?, head))
}

/// Reads an entry of this office's own log.
pub fn own_entry(bytes: &[u8]) -> OfficeResult<LogEntry> {
    match envelope::open(bytes)?.read_own()? {
        Message::Log(entry) => Ok(entry),
        _ => Err(OfficeError::Books(
            "the log holds something that is not a log entry".into(),
        )),
    }
}

/// The versions that an entry makes.
pub fn rows_of(entry: &LogEntry, schema: &Schema, head: &Arc<OfficeName>) -> Vec<(Digest, Newest)> {
    let LogBody::Changes(body) = &entry.body else {
        return Vec::new();
    };
    let origin = body.answers.as_ref().map_or_else(
        || Arc::clone(head),
        |answer| Arc::new(answer.branch.clone()),
    );
    let batch = body
        .answers
        .as_ref()
        .map(|answer| (answer.incarnation, answer.batch));
    let named = |table: u32, key: Key| schema.table(table).map(|table| key.digest(table));
    let versions = body.changes.iter().filter_map(|logged| {
        let table = schema.table(logged.table)?;
        let name = named(logged.table, logged.effect.key(table))?;
        let (origin, batch) = match &logged.source {
            Source::Sender | Source::Lifted => (Arc::clone(&origin), batch),
            Source::Merged => (Arc::clone(&origin), None),
            Source::Held(branch, incarnation, batch) => {
                (Arc::new(branch.clone()), Some((*incarnation, *batch)))
            }
        };
        Some((
            name,
            Newest {
                position: entry.position,
                origin,
                batch,
                at: logged.at,
            },
        ))
    });
    versions.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rows(entry: u64) -> Vec<(Digest, Newest)> {
        let newest = |number: u64| Newest {
            position: LogPosition(entry),
            origin: Arc::new(OfficeName::new(format!("b{}", number % 2)).unwrap()),
            batch: Some((Incarnation([7; 16]), BatchNumber(entry))),
            at: Micros(number as i64),
        };
        // Each entry writes half of the rows of the one before once more.
        let numbers = entry * 500..entry * 500 + 1000;
        numbers
            .map(|number| (Digest::of(&number.to_be_bytes()), newest(number)))
            .collect()
    }

    #[test]
    fn a_row_is_remembered_as_it_was_last_or_known_to_have_changed_before() {
        let mut recent = Recent::new(LogPosition(0));
        for entry in 1..=400 {
            recent.add(LogPosition(entry), rows(entry));
        }
        assert!((250..=360).contains(&recent.floor.0), "{}", recent.floor);
        let remembered: usize = recent.halves.iter().map(|half| half.rows.len()).sum();
        assert!((ROWS_REMEMBERED / 3..=ROWS_REMEMBERED).contains(&remembered));
        for entry in 1..400 {
            for (name, newest) in rows(entry).into_iter().take(500) {
                match recent.get(&name) {
                    // The entry before wrote it too.
                    Some(found) => assert_eq!(found, newest),
                    None => assert!(entry <= recent.floor.0 && recent.older.may_have(&name)),
                }
            }
        }
    }
}
