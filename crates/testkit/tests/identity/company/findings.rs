//! What is found afterwards: rows, decisions, books and streams, and whether all offices are even.

use std::collections::BTreeMap;

use branchline_core::books::{self, CONFLICTS, SeatBook};
use branchline_core::change::{Key, Row};
use branchline_core::conflict::{ConflictRecord, Reason};
use branchline_core::envelope;
use branchline_core::head::holds;
use branchline_core::identity::{Digest, LogPosition};
use branchline_core::message::Settled;
use branchline_core::output::Notice;
use branchline_core::port::{Database, Entry, Extent, Purpose};
use branchline_core::schema::{Schema, TableId};
use branchline_core::value::Value;
use branchline_testkit::sim::office::Disk;

use super::{Company, key};

impl Company {
    fn contents(disk: &mut Disk, schema: &Schema) -> BTreeMap<TableId, Vec<Row>> {
        let tables = schema.tables.iter();
        tables.map(|table| (table.id, disk.rows(table))).collect()
    }

    /// How a listed conflict was settled, at the head.
    pub fn settled(&mut self, conflict: u64) -> Option<Settled> {
        on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let settled = holds::settled(db, conflict).await.unwrap();
            db.rollback().await.unwrap();
            settled
        })
    }

    /// All offices hold the same rows, and nothing is on the way.
    pub fn assert_even(&mut self) {
        self.assert_even_since(1);
    }

    /// The same, where the head's log begins with this entry.
    pub fn assert_even_since(&mut self, first: u64) {
        let last = self.head.last();
        let at_head = Self::contents(&mut self.at_head, &self.schema);
        for office in &mut self.branches {
            let state = office.branch.state();
            let name = &office.name;
            assert_eq!(
                Self::contents(&mut office.disk, &self.schema),
                at_head,
                "rows of {name} (left) and of the head"
            );
            assert_eq!(state.cursor, last, "{name} has the whole log");
            assert_eq!(state.answered, state.frozen, "{name} has all answers");
            assert!(state.joining.is_none(), "{name} is complete");
            assert!(state.refused.is_none(), "{name}: {:?}", state.refused);
            assert!(on!(office.disk, db => office.branch.is_even(db)).unwrap());
        }
        assert!(on!(self.at_head, db => self.head.is_even(db)).unwrap());
        assert_eq!(self.log().first, first);
        self.assert_log_is_whole();
    }

    fn assert_log_is_whole(&mut self) {
        let last = self.head.last();
        let entries = on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let entries = db.entries(books::LOG, 1, usize::MAX).await.unwrap();
            let names = db.extent(books::LOG_KEYS).await.unwrap();
            db.rollback().await.unwrap();
            assert_eq!(names.entries, entries.len() as u64);
            entries
        });
        let mut before = None;
        let mut answered = BTreeMap::new();
        for stored in &entries {
            let entry = branchline_core::head::own_entry(&stored.bytes).unwrap();
            assert_eq!(entry.position.0, stored.number);
            if let Some((number, chain)) = before {
                assert_eq!((stored.number, entry.previous), (number + 1, chain));
            }
            before = Some((stored.number, envelope::chain(&stored.bytes)));
            if let branchline_core::message::LogBody::Changes(body) = entry.body
                && let Some(answer) = body.answers
            {
                let place = (answer.branch, answer.incarnation);
                let former = answered.insert(place, answer.batch);
                assert!(
                    former.is_none_or(|former| former.next() == answer.batch),
                    "a batch is answered once"
                );
            }
        }
        assert_eq!(before.map(|(number, _)| LogPosition(number)), Some(last));
    }

    pub fn head_names(&mut self) -> BTreeMap<i64, String> {
        names(&self.at_head.rows(&self.schema.tables[0].clone()))
    }

    pub fn names_at(&mut self, at: usize) -> BTreeMap<i64, String> {
        let table = self.schema.tables[0].clone();
        names(&self.branches[at].disk.rows(&table))
    }

    pub fn head_amount(&mut self, id: i64) -> Value {
        let table = self.schema.tables[1].clone();
        self.at_head.row(&table, &key(id)).unwrap().0[1].clone()
    }

    pub fn amount_at(&mut self, at: usize, id: i64) -> Value {
        let table = self.schema.tables[1].clone();
        let row = self.branches[at].disk.row(&table, &key(id));
        row.unwrap().0[1].clone()
    }

    pub fn conflicts(&mut self) -> Vec<ConflictRecord> {
        conflicts_in(&mut self.at_head)
    }

    pub fn conflicts_at(&mut self, at: usize) -> Vec<ConflictRecord> {
        conflicts_in(&mut self.branches[at].disk)
    }

    /// The losing values listed at the head for this reason, with their keys.
    pub fn listed(&mut self, reason: Reason) -> Vec<(Key, Option<Row>, Option<Row>)> {
        let records = self.conflicts().into_iter();
        let records = records.filter(|record| record.reason == reason);
        records
            .map(|record| (record.key, record.ours, record.theirs))
            .collect()
    }

    pub fn seat_book(&mut self, at: usize) -> SeatBook {
        let name = books::seat_name(&self.branches[at].name);
        on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let seat = books::load(db, &name).await.unwrap().unwrap();
            db.rollback().await.unwrap();
            seat
        })
    }

    pub fn log(&mut self) -> Extent {
        self.stream(books::LOG)
    }

    /// A stream at the head.
    pub fn stream(&mut self, name: &str) -> Extent {
        on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let extent = db.extent(name).await.unwrap();
            db.rollback().await.unwrap();
            extent
        })
    }

    /// What the head's log has after a place.
    pub fn entries_after(&mut self, place: LogPosition) -> Vec<Entry> {
        on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let entries = db.entries(books::LOG, place.next().0, usize::MAX / 2).await.unwrap();
            db.rollback().await.unwrap();
            entries
        })
    }

    /// The streams that tell which lost entries were logged anew.
    pub fn lost_streams(&mut self) -> Vec<String> {
        let known: Option<Vec<(LogPosition, Digest)>> = on!(self.at_head, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let known = books::load(db, "lost-streams").await.unwrap();
            db.rollback().await.unwrap();
            known
        });
        let hex = |digest: Digest| digest.0.map(|byte| format!("{byte:02x}")).concat();
        let known = known.unwrap_or_default().into_iter();
        known
            .map(|(_, chain)| format!("lost:{}", hex(chain)))
            .collect()
    }

    pub fn was_noticed(&self, at: usize, wanted: impl Fn(&Notice) -> bool) -> bool {
        self.branches[at].notices.iter().any(wanted)
    }
}

fn conflicts_in(disk: &mut Disk) -> Vec<ConflictRecord> {
    let entries = on!(*disk, db => async {
        db.begin(Purpose::Read).await.unwrap();
        let entries = db.entries(CONFLICTS, 1, usize::MAX).await.unwrap();
        db.rollback().await.unwrap();
        entries
    });
    let records = entries.iter().map(|entry| {
        let record: ConflictRecord = books::decode(&entry.bytes).unwrap();
        assert_eq!(record.id, entry.number);
        record
    });
    records.collect()
}

pub(super) fn names(rows: &[Row]) -> BTreeMap<i64, String> {
    let name = |row: &Row| match row.0.as_slice() {
        [Value::Int(id), Value::Text(name), ..] => (*id, name.clone()),
        other => panic!("{other:?}"),
    };
    rows.iter().map(name).collect()
}
