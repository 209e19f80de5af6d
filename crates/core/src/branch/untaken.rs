//! What the application wrote to something that goes with a step of the schema. It is frozen before; where the application
//! gives no room for that, it is listed (P9).

use std::collections::BTreeMap;

use super::Branch;
use super::land::{MOVED_RECORDS, append_record};
use crate::books::{self, CONFLICTS};
use crate::change::{Base, Key, Row};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::evolution::Lift;
use crate::failure::OfficeResult;
use crate::identity::Micros;
use crate::office::BATCH_CHANGES;
use crate::output::Notice;
use crate::port::{Database, Entry};
use crate::schema::{Column, Schema, Table, TableId};

/// Rows, with their tables as they are before the step.
pub(super) type Untaken = Vec<(Table, Vec<Row>)>;

/// What a look at the capture found.
pub(super) enum Written {
    /// The rows that were written, or nothing.
    Rows(Untaken),
    /// Something, which is to be taken.
    Something,
}

impl Branch {
    /// What the application wrote, and is not taken yet, to tables that this version takes something from. Nothing more is
    /// written to these tables until the transaction ends, where the engine can see to that. Rows are told only where the
    /// step is to be taken `anyhow`, and where they are not too many.
    pub(super) async fn untaken<D: Database>(
        &self,
        db: &mut D,
        to: &Schema,
        anyhow: bool,
    ) -> OfficeResult<Written> {
        let loses = |from: &&Table| {
            let stays = |column: &Column| {
                let mut columns = to.table(from.id).into_iter().flat_map(|to| &to.columns);
                columns.any(|one| one.id == column.id && one.kind == column.kind)
            };
            !from.columns.iter().all(stays)
        };
        let (mut untaken, mut count) = (Untaken::new(), 0);
        for table in self.schema.tables.iter().filter(loses) {
            db.hold_still(table).await?;
            let keys = db.captured(table, None).await?;
            if keys.is_empty() {
                continue;
            }
            count += keys.len();
            if !anyhow || count > BATCH_CHANGES {
                return Ok(Written::Something);
            }
            let keys: Vec<Key> = keys.into_iter().collect();
            let rows = db.read(table, &keys).await?.into_values();
            untaken.push((table.clone(), rows.collect()));
        }
        Ok(Written::Rows(untaken))
    }

    /// Lists rows of which this version takes something, as they were before.
    pub(super) async fn list_untaken<D: Database>(
        &self,
        db: &mut D,
        to: &Schema,
        untaken: &Untaken,
    ) -> OfficeResult<Vec<Notice>> {
        let mut notices = Vec::new();
        let mut rows: BTreeMap<(TableId, Key), (&Table, &Row)> = BTreeMap::new();
        for (table, found) in untaken {
            let loses = |row: &&Row| {
                let lift = to.table(table.id).map(|to| Lift { from: table, to });
                let lifted = lift.map(|lift| lift.row(row));
                !matches!(lifted, Some(Ok(lifted)) if lifted.lost.is_empty())
            };
            let found = found.iter().filter(loses);
            rows.extend(found.map(|row| ((table.id, table.key_of(row)), (table, row))));
        }
        if rows.is_empty() {
            return Ok(notices);
        }
        let at = db.backlog().await?.oldest.unwrap_or_default();
        let last = db.extent(CONFLICTS).await?.last;
        // The head does not know of them.
        let numbers = last.saturating_add(1).max(MOVED_RECORDS)..;
        for (id, ((_, key), (table, row))) in numbers.zip(rows) {
            let record = self.untaken_record(id, table, key, row, at);
            notices.push(Notice::Conflict {
                id,
                table: record.table.clone(),
                reason: record.reason.code(),
            });
            let bytes = books::encode(&record)?;
            append_record(db, Entry { number: id, bytes }).await?;
        }
        Ok(notices)
    }

    fn untaken_record(
        &self,
        id: u64,
        table: &Table,
        key: Key,
        row: &Row,
        at: Micros,
    ) -> ConflictRecord {
        let columns = table.columns.iter().map(|column| column.name.clone());
        ConflictRecord {
            id,
            table: table.name.clone(),
            columns: columns.collect(),
            key,
            reason: Reason::SchemaChanged,
            at,
            origin: self.identity.name.clone(),
            base: Base::Unknown,
            ours: None,
            theirs: Some(row.clone()),
            result: Resolution::Ours,
            decided: at,
            before: None,
            merged: None,
            detail: Some(
                "the application wrote it while this office's tables followed the head's".into(),
            ),
            shape: (self.schema.version, table.id),
        }
    }
}
