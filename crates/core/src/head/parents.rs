//! Rows that refer to another row which is held: what an office wrote about its own patient 100 must not go to the patient
//! 100 of another office (P6).
//!
//! Under a key that two offices gave away, the head has one row and the branch another. What the branch's rows say of that
//! key is about the branch's, so it waits with it.

use std::collections::{BTreeMap, BTreeSet};

use super::Head;
use crate::books::{self, HeldAtHead, Hold};
use crate::change::{Key, Row};
use crate::conflict::Reason;
use crate::failure::OfficeResult;
use crate::identity::OfficeName;
use crate::port::Database;
use crate::schema::{ForeignKey, Schema, Table, TableId};
use crate::value::Value;

/// Whether what refers to a row waits for this hold of it.
pub(super) fn keeps_waiting(hold: &Hold) -> bool {
    hold.reason == Reason::InsertedTwice
}

/// The rows to which a row refers by their primary keys.
pub(super) fn parents(schema: &Schema, table: &Table, row: &Row) -> Vec<(TableId, Key)> {
    let keys = table.foreign_keys.iter();
    keys.filter_map(|key| parent(schema, key, row)).collect()
}

fn parent(schema: &Schema, key: &ForeignKey, row: &Row) -> Option<(TableId, Key)> {
    let parent = schema.table_named(&key.parent)?;
    let referred = |name: &String| -> Option<Value> {
        let at = key.parent_columns.iter().position(|one| one == name)?;
        let value = row.0.get(usize::from(*key.columns.get(at)?))?;
        (!value.is_null()).then(|| value.clone())
    };
    let mut columns = parent.key_columns();
    let named: Option<Vec<Value>> = columns
        .by_ref()
        .map(|column| referred(&column.name))
        .collect();
    Some((parent.id, Key(named?)))
}

impl Head {
    /// Those of these rows of which a change of this branch is held so that what refers to them waits, with the conflicts'
    /// numbers.
    pub(super) async fn waited_for<D: Database>(
        &self,
        db: &mut D,
        branch: &OfficeName,
        rows: BTreeSet<(TableId, Key)>,
    ) -> OfficeResult<BTreeMap<(TableId, Key), u64>> {
        let mut found = BTreeMap::new();
        if !self.any_held {
            return Ok(found);
        }
        for table in &self.schema.tables {
            let here = rows.iter().filter(|(id, _)| *id == table.id);
            let keys: Vec<Key> = here.map(|(_, key)| key.clone()).collect();
            if keys.is_empty() {
                continue;
            }
            for (key, note) in db.notes(table, Some(&keys)).await? {
                let note: HeldAtHead = books::decode(&note)?;
                if let Some(hold) = note.of(branch).filter(|hold| keeps_waiting(hold)) {
                    found.insert((table.id, key), hold.conflict);
                }
            }
        }
        Ok(found)
    }

    /// Why a row waits for another one that is held.
    pub(super) fn why_it_waits(&self, parent: &(TableId, Key), conflict: u64) -> String {
        let name = self.schema.table(parent.0).map(|table| &*table.name);
        format!(
            "it refers to the branch's own row of `{}`, which is held as conflict {conflict}: under that key the head has another row",
            name.unwrap_or_default()
        )
    }
}
