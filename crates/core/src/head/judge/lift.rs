//! A batch of an earlier schema version, as the present one has it.

use crate::change::{Change, Key};
use crate::evolution::{Lift, Shapes};
use crate::message::Batch;
use crate::schema::{Schema, Table};
use std::borrow::Cow;

/// A batch as the present schema version has it.
pub(super) struct LiftedBatch<'b> {
    pub(super) changes: Vec<Cow<'b, Change>>,
    pub(super) unplaced: Vec<Unplaced<'b>>,
}

/// A change of which something has no place in the present tables.
pub(super) struct Unplaced<'b> {
    pub(super) change: &'b Change,
    /// The table as the change has it.
    pub(super) table: &'b Table,
    pub(super) why: String,
    /// The row's key in the present table, where there is one.
    pub(super) key: Option<Key>,
}

pub(super) fn lift_batch<'b>(
    batch: &'b Batch,
    shapes: Option<&'b Shapes<'b>>,
    present: &Schema,
) -> LiftedBatch<'b> {
    let mut lifted = LiftedBatch {
        changes: Vec::with_capacity(batch.changes.len()),
        unplaced: Vec::new(),
    };
    for change in &batch.changes {
        if batch.schema == present.version && batch.lost.is_none() {
            lifted.changes.push(Cow::Borrowed(change));
            continue;
        }
        let from = shapes.and_then(|shapes| shapes.table(change.table));
        // What names no table of its own version was refused on arrival.
        let Some(table) = from else {
            continue;
        };
        let mut unplaced = |why: String, key: Option<Key>| {
            lifted.unplaced.push(Unplaced {
                change,
                table,
                why,
                key,
            });
        };
        let Some(to) = present.table(table.id) else {
            unplaced(
                format!("table `{}` is not shared any more", table.name),
                None,
            );
            continue;
        };
        let lift = Lift { from: table, to };
        if lift.is_identity() && change.absent.is_empty() && change.table == to.id {
            lifted.changes.push(Cow::Borrowed(change));
            continue;
        }
        let key = lift.key(&change.effect.key(table)).ok();
        match lift.change(change) {
            Ok((change, lost)) => {
                if !lost.is_empty() {
                    let told = format!("the head has no longer: {}", lost.join(", "));
                    unplaced(told, key);
                }
                lifted.changes.push(Cow::Owned(change));
            }
            Err(why) => unplaced(why, key),
        }
    }
    lifted
}
