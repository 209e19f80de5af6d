//! Counters that changed on both sides of a fork of the log: both sides' steps count.
//!
//! A lost entry tells what a row became; its step is the difference to what the lost part said of the row before, or to
//! the row at the last place that both sides share. Where that is not known, the row is decided like any other.

use std::collections::BTreeMap;

use super::super::Head;
use super::super::history::version_at;
use super::super::recent::{Newest, search, short};
use crate::change::{Effect, Key, Row};
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition};
use crate::message::LoggedChanges;
use crate::port::Database;
use crate::schema::{Schema, SchemaVersion, Table};

/// Of how many rows is remembered what the lost part said of them.
const ROWS: usize = 20_000;

/// What the lost part said last of rows with counters, by the rows' names.
#[derive(Clone, Debug, Default)]
pub(super) struct Lineage {
    /// The version that the rows stand in.
    version: SchemaVersion,
    rows: BTreeMap<Digest, Option<Row>>,
    /// There were too many rows, or the tables changed: of rows that are not here nothing is known.
    incomplete: bool,
}

impl Lineage {
    /// Goes on in this version.
    pub fn enter(&mut self, version: SchemaVersion) {
        if self.version != version {
            self.incomplete |= !self.rows.is_empty();
            self.rows.clear();
            self.version = version;
        }
    }

    /// Remembers what the lost part makes of a row.
    pub fn note(&mut self, table: &Table, key: &Key, effect: &Effect) {
        if table.counters.is_empty() {
            return;
        }
        let name = key.digest(table);
        if self.rows.len() >= ROWS && !self.rows.contains_key(&name) {
            self.incomplete = true;
            return;
        }
        self.rows.insert(name, effect.row().cloned());
    }

    /// Remembers what an entry makes of its rows.
    pub fn follow(&mut self, body: &LoggedChanges, schema: &Schema) {
        for logged in &body.changes {
            if let Some(table) = schema.table(logged.table) {
                self.note(table, &logged.effect.key(table), &logged.effect);
            }
        }
    }

    fn knows(&self, name: &Digest) -> bool {
        self.incomplete || self.rows.contains_key(name)
    }

    /// The row as the lost part had it before the change in work; nothing where that is not known, or it was not there.
    /// `shared` has it as it was at the last place that both sides share.
    pub fn before<'r>(
        &'r self,
        name: &Digest,
        shared: &'r BTreeMap<Digest, Row>,
    ) -> Option<&'r Row> {
        match self.rows.get(name) {
            Some(row) => row.as_ref(),
            None if self.incomplete => None,
            None => shared.get(name),
        }
    }
}

impl Head {
    /// Rows with counters as they were at the last place that both sides share, as far as that is known.
    pub(super) async fn shared_rows<D: Database>(
        &self,
        db: &mut D,
        rows: BTreeMap<Digest, (&Table, Key, Option<Row>)>,
        lineage: &Lineage,
        newest: &BTreeMap<Digest, Newest>,
        agreed: LogPosition,
    ) -> OfficeResult<BTreeMap<Digest, Row>> {
        let mut shared = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        for (name, (.., present)) in &rows {
            if lineage.knows(name) {
                continue;
            }
            if newest.contains_key(name) {
                wanted.insert(short(name), *name);
            } else if let Some(present) = present {
                // Nobody has changed it since.
                shared.insert(*name, present.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(shared);
        }
        for (position, names) in search(db, &wanted, LogPosition::NONE, agreed).await? {
            for name in names {
                let Some((table, key, _)) = rows.get(&name) else {
                    continue;
                };
                let version = version_at(db, &self.versions, table, key, position).await?;
                let row = version.and_then(|version| version.logged.effect.row().cloned());
                shared.extend(row.map(|row| (name, row)));
            }
        }
        Ok(shared)
    }
}
