//! What is known of the rows that a batch changes, gathered for all of its changes at once.

use super::super::parents;
use super::super::recent::Newest;
use super::Bench;
use crate::books::{self, HeldAtHead, Hold};
use crate::change::{Base, Change, Key, Row};
use crate::conflict::rfc3339;
use crate::evolution::fill;
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition};
use crate::port::Database;
use crate::schema::TableId;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A change with what is known of its row.
pub(super) struct Case<'c> {
    pub(super) change: Cow<'c, Change>,
    pub(super) key: Key,
    pub(super) name: Digest,
    pub(super) newest: Option<Newest>,
    pub(super) on_present_version: bool,
    /// The base is so old that the log no longer tells whether the row changed since.
    pub(super) beyond: bool,
    /// The branch may have made it on a row that the head deleted, unknown to both by now: the row must be here.
    pub(super) doubtful: bool,
    /// An earlier change of this branch to the row is held.
    pub(super) held: Option<Hold>,
    /// The rows to which the changed row refers, where one of them may be held.
    pub(super) parents: Vec<(TableId, Key)>,
}

impl Case<'_> {
    /// Who made the head's version, where it is another than the one that the change was made on.
    pub(super) fn who_wrote_ours(&self, exists: bool) -> Option<String> {
        let newest = self.newest.as_ref().filter(|_| !self.on_present_version)?;
        let done = if exists { "written" } else { "deleted" };
        Some(format!(
            "the head's row was {done} by {} at {}",
            newest.origin,
            rfc3339(newest.at)
        ))
    }
}

impl Bench<'_> {
    /// Finds, for all changes at once, the newest version of each row.
    pub(super) async fn gather<'c, D: Database>(
        &self,
        db: &mut D,
        changes: &'c [Cow<'c, Change>],
    ) -> OfficeResult<Vec<Case<'c>>> {
        let schema = &self.head.schema;
        let mut oldest = self.writer.book.last;
        let mut cases = Vec::with_capacity(changes.len());
        let mut names = BTreeSet::new();
        for change in changes {
            let Some(table) = schema.table(change.table) else {
                continue;
            };
            let key = change.effect.key(table);
            let name = key.digest(table);
            match change.base {
                Base::Log(position) | Base::Own(_, position) => oldest = oldest.min(position),
                // Nothing tells how old such a row is: the whole log may hold something newer.
                Base::Unknown => oldest = LogPosition::NONE,
            }
            names.insert(name);
            cases.push(Case {
                change: Cow::Borrowed(change),
                key,
                name,
                newest: None,
                on_present_version: true,
                beyond: false,
                doubtful: false,
                held: None,
                parents: Vec::new(),
            });
        }
        let found = self
            .head
            .recent
            .newest(
                db,
                &self.head.versions,
                &self.head.identity.shared_name,
                &names,
                oldest,
            )
            .await?;
        for case in &mut cases {
            let newest = self
                .overlay
                .get(&case.name)
                .or_else(|| found.get(&case.name));
            case.newest = newest.cloned();
            let beyond = match case.change.base {
                Base::Log(place) | Base::Own(_, place) => self.head.is_beyond(place),
                Base::Unknown => false,
            };
            case.beyond = beyond && newest.is_none();
            case.on_present_version = case.change.base != Base::Unknown
                && !case.beyond
                && newest.is_none_or(|newest| {
                    newest.is_seen_by(case.change.base, self.branch, self.seat.incarnation)
                });
        }
        if self.head.any_held || !self.held.is_empty() {
            self.mark_held(db, &mut cases).await?;
        }
        for case in cases.iter_mut().filter(|_| self.uncompared) {
            let updates = !case.change.inserted && case.change.effect.row().is_some();
            let batch = case.newest.as_ref().and_then(|newest| newest.batch);
            let own = batch.is_some_and(|(incarnation, _)| incarnation == self.seat.incarnation);
            case.doubtful = updates && !own && case.held.is_none();
        }
        Ok(cases)
    }

    /// Finds out which rows wait for others that are held: those are decided first.
    pub(super) async fn mark_waiting<D: Database>(
        &mut self,
        db: &mut D,
        cases: &mut [Case<'_>],
    ) -> OfficeResult<()> {
        self.waited_for.clear();
        let schema = &self.head.schema;
        let contested = cases.iter().filter(|case| !case.on_present_version);
        let contested: BTreeSet<(TableId, Key)> = contested
            .map(|case| (case.change.table, case.key.clone()))
            .collect();
        if !self.head.any_held && self.held.is_empty() && contested.is_empty() {
            return Ok(());
        }
        let mut all = BTreeSet::new();
        for case in cases.iter_mut() {
            let table = schema.table(case.change.table);
            if let (Some(table), Some(row)) = (table, case.change.effect.row()) {
                case.parents = parents::parents(schema, table, row);
                all.extend(case.parents.iter().cloned());
            }
        }
        self.waited_for = self.head.waited_for(db, self.branch, all).await?;
        for case in cases.iter_mut() {
            case.parents.retain(|parent| {
                contested.contains(parent)
                    || self.held.contains_key(parent)
                    || self.waited_for.contains_key(parent)
            });
        }
        let place = |id: TableId| schema.tables.iter().position(|table| table.id == id);
        cases.sort_by_key(|case| place(case.change.table));
        Ok(())
    }

    /// The number of the hold for which a row waits, with what is held.
    pub(super) fn waits_for<'c>(&self, case: &'c Case<'_>) -> Option<(&'c (TableId, Key), u64)> {
        case.parents.iter().find_map(|parent| {
            let conflict = match self.held.get(parent) {
                Some(hold) => {
                    let hold = hold.as_ref().filter(|hold| parents::keeps_waiting(hold));
                    hold.map(|hold| hold.conflict)
                }
                None => self.waited_for.get(parent).copied(),
            };
            Some((parent, conflict?))
        })
    }

    async fn mark_held<D: Database>(&self, db: &mut D, cases: &mut [Case<'_>]) -> OfficeResult<()> {
        for table in &self.head.schema.tables {
            let keys: Vec<Key> = cases
                .iter()
                .filter(|case| case.change.table == table.id)
                .map(|case| case.key.clone())
                .collect();
            if keys.is_empty() {
                continue;
            }
            let notes = db.notes(table, Some(&keys)).await?;
            for case in cases
                .iter_mut()
                .filter(|case| case.change.table == table.id)
            {
                let here = self.held.get(&(table.id, case.key.clone()));
                case.held = match (here, notes.get(&case.key)) {
                    (Some(hold), _) => hold.clone(),
                    (None, Some(note)) => {
                        let note: HeldAtHead = books::decode(note)?;
                        note.of(self.branch).cloned()
                    }
                    (None, None) => None,
                };
            }
        }
        Ok(())
    }

    /// Reads the head's rows for the changes that need them to be decided. Nothing where the application wrote one of them
    /// and the log does not have that yet: what a branch is told to take is told to all, in the log's order.
    pub(super) async fn present_rows<D: Database>(
        &self,
        db: &mut D,
        cases: &mut [Case<'_>],
    ) -> OfficeResult<Option<BTreeMap<(TableId, Key), Row>>> {
        let mut present = BTreeMap::new();
        for table in &self.head.schema.tables {
            let down = table.direction == crate::schema::Direction::Down;
            let keys: Vec<Key> = cases
                .iter()
                .filter(|case| {
                    case.change.table == table.id
                        && (down
                            || !case.on_present_version
                            || case.doubtful
                            || case.held.is_some()
                            || !case.parents.is_empty()
                            || !case.change.absent.is_empty()
                            || self.unfit.contains_key(&(table.id, case.key.clone())))
                })
                .map(|case| case.key.clone())
                .collect();
            if keys.is_empty() {
                continue;
            }
            let mut rows = db.read(table, &keys).await?;
            if !db.captured(table, Some(&keys)).await?.is_empty() {
                return Ok(None);
            }
            for key in keys {
                let row = match self.pile.get(table.id, &key) {
                    Some(piled) => piled.cloned(),
                    None => rows.remove(&key),
                };
                if let Some(row) = row {
                    present.insert((table.id, key), row);
                }
            }
        }
        for case in cases
            .iter_mut()
            .filter(|case| !case.change.absent.is_empty())
        {
            let ours = present.get(&(case.change.table, case.key.clone()));
            fill(case.change.to_mut(), ours);
        }
        for case in cases
            .iter_mut()
            .filter(|case| case.change.base == Base::Unknown)
        {
            let free = !present.contains_key(&(case.change.table, case.key.clone()));
            case.on_present_version = free && case.newest.is_none();
        }
        for case in cases.iter_mut().filter(|case| case.doubtful) {
            case.on_present_version &= present.contains_key(&(case.change.table, case.key.clone()));
        }
        for case in cases.iter_mut().filter(|case| case.beyond) {
            let Some(table) = self.head.schema.table(case.change.table) else {
                continue;
            };
            let ours = present.get(&(case.change.table, case.key.clone()));
            let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
            // Only a row that was never there, or is just as the branch found it, is surely the version that it changed.
            case.on_present_version = match &case.change.before {
                _ if case.change.inserted => ours.is_none(),
                Some(before) => digest(ours) == digest(Some(before)),
                None => false,
            };
        }
        Ok(Some(present))
    }
}
