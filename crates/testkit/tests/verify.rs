//! Comparing and repairing two offices on the production core: what is found, what it costs, what is mended and kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::VecDeque;
use std::sync::Arc;

use branchline_core::books::{self, CONFLICTS, IdentityBook};
use branchline_core::branch::{Branch, Enrolment};
use branchline_core::change::{Effect, Key, Row};
use branchline_core::conflict::{ConflictRecord, Reason};
use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::envelope;
use branchline_core::head::{Head, Wiring, seats};
use branchline_core::identity::{Incarnation, Micros, OfficeName};
use branchline_core::message::{Keep, Message};
use branchline_core::output::{Notice, Output};
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::{Column, Direction, ForeignKey, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use branchline_core::verify::{TableVerification, Verification};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::{Disk, Place, Store, run};

/// Runs a step on a database of either engine.
macro_rules! on {
    ($disk:expr, $db:ident => $step:expr) => {
        match &mut $disk.store {
            Store::Memory($db) => run($step),
            Store::Sqlite(file) => {
                let $db = &mut file.database;
                run($step)
            }
        }
    };
}

fn schema(tables: u32) -> Schema {
    let column = |name: &str, kind| Column {
        name: name.into(),
        kind,
        nullable: false,
        default: None,
        generated_key: false,
        id: 0,
    };
    let table = |id: TableId| Table {
        id,
        name: format!("t{id}"),
        columns: vec![
            column("id", Type::Int64),
            column("name", Type::Text { max: None }),
        ],
        key: vec![0],
        unique: Vec::new(),
        foreign_keys: Vec::new(),
        direction: Direction::Both,
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    };
    Schema {
        version: 1,
        tables_ever: 0,
        tables: (1..=tables).map(table).collect(),
    }
}

fn row(id: i64, name: &str) -> Row {
    Row(vec![Value::Int(id), Value::Text(name.into())])
}

fn key(id: i64) -> Key {
    Key(vec![Value::Int(id)])
}

fn put(id: i64, name: &str) -> (TableId, Effect) {
    (1, Effect::Put(row(id, name)))
}

/// A head and a branch, joined, with nothing between them that fails unless told to.
struct Pair {
    schema: Schema,
    head: Head,
    branch: Branch,
    at_head: Disk,
    at_branch: Disk,
    wire: VecDeque<(bool, Arc<Vec<u8>>)>,
    now: Micros,
    /// What is lost on the wire.
    lose: fn(&Message) -> bool,
    lost: u32,
    verified: Option<Verification>,
    result: Option<String>,
    sent: usize,
    _folder: Option<tempfile::TempDir>,
}

impl Pair {
    fn new(tables: u32, sqlite: bool) -> Self {
        Self::sharing(schema(tables), sqlite)
    }

    fn sharing(schema: Schema, sqlite: bool) -> Self {
        let folder = sqlite.then(|| tempfile::tempdir().unwrap());
        let place = match &folder {
            Some(folder) => Place::SqliteFile(folder.path()),
            None => Place::Memory,
        };
        let (mut at_head, mut at_branch) = (Disk::new(place, "head"), Disk::new(place, "branch"));
        let identity = |name: &str, head, secret| IdentityBook {
            name: OfficeName::new(name).unwrap(),
            head,
            secret_key: [secret; 32],
        };
        let now = Micros(1_800_000_000_000_000);
        let name = OfficeName::new("b1").unwrap();
        let enrolment = Enrolment {
            identity: identity("b1", false, 2),
            incarnation: Incarnation([2; 16]),
            head_name: OfficeName::new("ho").unwrap(),
            head_key: SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes(),
            secret: [3; 32],
        };
        let head = on!(at_head, db => async {
            db.create_tables(&schema).await.unwrap();
            db.prepare().await.unwrap();
            db.install(&schema).await.unwrap();
            let me = identity("ho", true, 1);
            Head::found(db, &me, Incarnation([1; 16]), &schema).await.unwrap();
            seats::invite(db, &name, [3; 32], Micros(i64::MAX)).await.unwrap().unwrap();
            Head::load(db, Wiring::Direct, now).await.unwrap()
        });
        let branch = on!(at_branch, db => async {
            db.prepare().await.unwrap();
            Branch::found(db, &enrolment).await.unwrap();
            Branch::load(db, [9; 16]).await.unwrap()
        });
        let mut pair = Self {
            schema,
            head,
            branch,
            at_head,
            at_branch,
            wire: VecDeque::new(),
            now,
            lose: |_| false,
            lost: 0,
            verified: None,
            result: None,
            sent: 0,
            _folder: folder,
        };
        pair.branch.link_up(now).unwrap();
        pair.settle();
        assert!(
            pair.branch.state().joining.is_none(),
            "the branch has joined"
        );
        pair
    }

    /// Writes rows into a database without anybody noticing.
    fn behind(disk: &mut Disk, schema: &Schema, effects: &[(TableId, Effect)]) {
        for piece in effects.chunks(4_000) {
            on!(*disk, db => async {
                db.begin(Purpose::Load).await.unwrap();
                db.write(schema, piece).await.unwrap();
                db.commit().await.unwrap();
            });
        }
    }

    fn behind_both(&mut self, effects: &[(TableId, Effect)]) {
        Self::behind(&mut self.at_head, &self.schema, effects);
        Self::behind(&mut self.at_branch, &self.schema, effects);
    }

    fn behind_branch(&mut self, effects: &[(TableId, Effect)]) {
        Self::behind(&mut self.at_branch, &self.schema, effects);
    }

    fn write(&mut self, head: bool, op: Op) {
        let disk = if head {
            &mut self.at_head
        } else {
            &mut self.at_branch
        };
        disk.write_now(&self.schema, &[op], self.now).unwrap();
        self.head.wake();
        self.branch.wake();
    }

    fn flush(&mut self) {
        while let Some(output) = self.head.output() {
            self.heed(true, output);
        }
        while let Some(output) = self.branch.output() {
            self.heed(false, output);
        }
    }

    fn heed(&mut self, from_head: bool, output: Output) {
        match output {
            Output::Send(_, bytes) => {
                let message = envelope::open(&bytes).unwrap().read_own().unwrap();
                if (self.lose)(&message) {
                    self.lost += 1;
                } else {
                    self.sent += bytes.len();
                    self.wire.push_back((from_head, bytes));
                }
            }
            Output::Name(_, name) => self.head.link_up(Some(&name)),
            Output::Notice(Notice::Verified(verification)) => self.verified = Some(verification),
            Output::Notice(Notice::VerifyResult(result)) => self.result = Some(result),
            _ => {}
        }
    }

    /// One step of both, and everything on the wire delivered. Returns whether anything moved.
    fn step(&mut self) -> bool {
        let now = self.now;
        let mut moved = on!(self.at_head, db => self.head.work(db, now)).unwrap();
        moved |= on!(self.at_branch, db => self.branch.work(db, now)).unwrap();
        self.flush();
        while let Some((from_head, bytes)) = self.wire.pop_front() {
            moved = true;
            if from_head {
                on!(self.at_branch, db => self.branch.arrived(db, now, &bytes, 1)).unwrap();
            } else {
                on!(self.at_head, db => self.head.arrived(db, now, &bytes, 1)).unwrap();
            }
            self.flush();
        }
        moved
    }

    fn tick(&mut self) {
        self.now = self.now.plus_millis(250);
        on!(self.at_head, db => self.head.tick(db, self.now)).unwrap();
        self.branch.tick(self.now).unwrap();
        self.flush();
    }

    /// Until nothing moves, for a few seconds of their time.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.tick();
            while self.step() {}
        }
    }

    fn finish(&mut self) -> Verification {
        for _ in 0..1_000 {
            while self.step() {}
            if let Some(verification) = self.verified.take() {
                return verification;
            }
            self.tick();
        }
        panic!("the comparison does not end");
    }

    fn verify(&mut self, repair: bool) -> Verification {
        self.head.verify(repair);
        self.finish()
    }

    /// The comparison, and the bytes on the wire that it took.
    fn measured(&mut self) -> (Verification, u64) {
        self.settle();
        self.sent = 0;
        let verification = self.verify(false);
        let sent = u64::try_from(self.sent).unwrap();
        assert!(
            verification.bytes <= sent && sent < verification.bytes + 1_500,
            "{} told, {sent} sent",
            verification.bytes
        );
        (verification, sent)
    }

    fn rows(&mut self) -> (Vec<Row>, Vec<Row>) {
        let table = self.schema.tables[0].clone();
        (self.at_head.rows(&table), self.at_branch.rows(&table))
    }

    fn records(&mut self, head: bool) -> Vec<ConflictRecord> {
        let disk = if head {
            &mut self.at_head
        } else {
            &mut self.at_branch
        };
        on!(*disk, db => async {
            db.begin(Purpose::Read).await.unwrap();
            let entries = db.entries(CONFLICTS, 1, usize::MAX).await.unwrap();
            db.rollback().await.unwrap();
            entries.iter().map(|entry| books::decode(&entry.bytes).unwrap()).collect()
        })
    }
}

fn only(verification: &Verification) -> &TableVerification {
    assert_eq!(verification.branches.len(), 1);
    assert!(verification.branches[0].answered);
    &verification.branches[0].tables[0]
}

fn found(verification: &Verification) -> (u64, u64, u64, u64) {
    let table = only(verification);
    assert!(!table.more);
    (
        table.different,
        table.only_head,
        table.only_branch,
        table.pending,
    )
}

#[test]
fn bytes_are_proportional_to_the_differences() {
    let mut pair = Pair::new(20, false);
    let mut rows: Vec<(TableId, Effect)> = (0..100_000).map(|id| put(id, "the same")).collect();
    for table in 2..=20 {
        rows.extend((0..500).map(|id| (table, Effect::Put(row(id, "the same")))));
    }
    pair.behind_both(&rows);
    let (verification, bytes) = pair.measured();
    assert!(verification.is_equal());
    assert_eq!(only(&verification).rows, 100_000);
    println!("20 tables, 109,500 rows, equal: {bytes} bytes");
    assert!(bytes < 2_000, "{bytes}");

    pair.behind_branch(&[put(70_000, "another")]);
    let (verification, bytes) = pair.measured();
    assert_eq!(found(&verification), (1, 0, 0, 0));
    assert_eq!(only(&verification).keys, [key(70_000)]);
    println!("1 row of 100,000 different: {bytes} bytes");
    assert!(bytes < 5_000, "{bytes}");

    let others: Vec<_> = (0..99).map(|id| put(id * 1_000, "another")).collect();
    pair.behind_branch(&others);
    let (verification, bytes) = pair.measured();
    assert_eq!(found(&verification), (99, 0, 0, 0), "70,000 is among them");
    println!("99 rows of 100,000 different: {bytes} bytes");
    assert!(bytes < 60_000, "{bytes}");
}

fn tampered_rows_are_found_and_mended(sqlite: bool) {
    let mut pair = Pair::new(2, sqlite);
    let rows: Vec<_> = (0..1_000).map(|id| put(id, "the same")).collect();
    pair.behind_both(&rows);
    let mut tampered: Vec<_> = (10..15).map(|id| put(id, "tampered")).collect();
    tampered.extend((20..23).map(|id| (1, Effect::Delete(key(id)))));
    tampered.extend((2_000..2_002).map(|id| put(id, "added")));
    pair.behind_branch(&tampered);
    // One of them is then written by the branch's application, and the batch does not arrive.
    pair.lose = |message| matches!(message, Message::Batch(_));
    pair.write(false, Op::Update(1, key(14), row(14, "the branch's own")));
    pair.settle();
    assert!(pair.lost > 0);
    let verification = pair.verify(false);
    assert!(!verification.is_equal());
    assert_eq!(found(&verification), (4, 3, 2, 1));
    let mut keys = only(&verification).keys.clone();
    keys.sort();
    let expected = [10, 11, 12, 13, 20, 21, 22, 2_000, 2_001];
    assert_eq!(keys, expected.map(key));

    let verification = pair.verify(true);
    assert!(verification.is_equal(), "{verification:?}");
    assert_eq!(found(&verification), (0, 0, 0, 1));
    assert_eq!(only(&verification).repaired, 9);
    let (at_head, mut at_branch) = pair.rows();
    at_branch[14] = row(14, "the same");
    assert_eq!(at_head, at_branch);
    assert_eq!(at_head.len(), 1_000);
    let records = pair.records(true);
    assert_eq!(records, pair.records(false), "listed at both");
    assert_eq!(records.len(), 9);
    let of = |id| records.iter().find(|record| record.key == key(id)).unwrap();
    assert!(
        records
            .iter()
            .all(|record| record.reason == Reason::Repaired)
    );
    assert_eq!(of(10).ours, Some(row(10, "the same")));
    assert_eq!(of(10).theirs, Some(row(10, "tampered")));
    assert_eq!(
        (&of(20).ours, &of(20).theirs),
        (&Some(row(20, "the same")), &None)
    );
    assert_eq!(
        (&of(2_000).ours, &of(2_000).theirs),
        (&None, &Some(row(2_000, "added")))
    );

    // The change that was on the way arrives, and a person goes back to what the branch had.
    pair.lose = |_| false;
    let back = [of(10).id, of(2_001).id];
    for id in back {
        let now = pair.now;
        on!(pair.at_head, db => pair.head.settle(db, now, id, Keep::Branch, None))
            .unwrap()
            .unwrap();
    }
    pair.settle();
    let (at_head, at_branch) = pair.rows();
    assert_eq!(at_head, at_branch);
    assert_eq!(at_head[10], row(10, "tampered"));
    assert_eq!(at_head[14], row(14, "the branch's own"));
    assert_eq!(at_head.last(), Some(&row(2_001, "added")));
    assert!(pair.verify(false).is_equal());
}

#[test]
fn tampered_rows_are_found_and_mended_in_memory() {
    tampered_rows_are_found_and_mended(false);
}

#[test]
fn tampered_rows_are_found_and_mended_on_sqlite() {
    tampered_rows_are_found_and_mended(true);
}

#[test]
fn a_branch_that_asks_is_told_what_was_repaired() {
    let mut pair = Pair::new(1, false);
    pair.behind_both(&[put(1, "a"), put(2, "b")]);
    pair.behind_branch(&[put(2, "tampered")]);
    pair.branch.verify(true).unwrap();
    pair.settle();
    let result: serde_json::Value = serde_json::from_str(&pair.result.take().unwrap()).unwrap();
    assert_eq!(result["equal"], true, "{result}");
    assert_eq!(result["repair"], true);
    assert_eq!(result["branches"][0]["repaired"], 1);
    assert_eq!(result["branches"][0]["tables"][0]["repaired"], 1);
    let (at_head, at_branch) = pair.rows();
    assert_eq!(at_head, at_branch);
}

/// Children go before their parents and come after them, also where they are more than one message holds.
fn families_are_mended(sqlite: bool) {
    let mut schema = schema(2);
    schema.tables[1].foreign_keys.push(ForeignKey {
        columns: vec![0],
        parent: "t1".into(),
        parent_columns: vec!["id".into()],
        on_delete: "NO ACTION".into(),
        on_update: "NO ACTION".into(),
    });
    let mut pair = Pair::sharing(schema, sqlite);
    let family = |id| [put(id, "parent"), (2, Effect::Put(row(id, "child")))];
    let at_head: Vec<_> = (0..600).flat_map(family).collect();
    let at_branch: Vec<_> = (1_000..1_600).flat_map(family).collect();
    Pair::behind(&mut pair.at_head, &pair.schema, &at_head);
    pair.behind_branch(&at_branch);
    let verification = pair.verify(true);
    assert!(verification.is_equal(), "{verification:?}");
    let tables = &verification.branches[0].tables;
    assert!(
        tables
            .iter()
            .all(|table| table.repaired == 1_200 && table.pending == 0)
    );
    for table in pair.schema.tables.clone() {
        assert_eq!(pair.at_head.rows(&table), pair.at_branch.rows(&table));
        assert_eq!(pair.at_head.rows(&table).len(), 600);
    }
}

#[test]
fn families_are_mended_in_memory() {
    families_are_mended(false);
}

#[test]
fn families_are_mended_on_sqlite() {
    families_are_mended(true);
}

/// More than one message and one round hold.
#[test]
fn a_table_that_was_emptied_is_mended_in_rounds() {
    let mut pair = Pair::new(1, false);
    let rows: Vec<_> = (0..22_000).map(|id| put(id, "the same")).collect();
    Pair::behind(&mut pair.at_head, &pair.schema, &rows);
    pair.behind_branch(&[put(60_000, "only here")]);
    let verification = pair.verify(false);
    assert_eq!(found(&verification), (0, 22_000, 1, 0));
    let verification = pair.verify(true);
    assert!(verification.is_equal(), "{verification:?}");
    assert_eq!(only(&verification).repaired, 22_001);
    let (at_head, at_branch) = pair.rows();
    assert_eq!(at_head, at_branch);
}

/// The list of what waits in the outbox does not travel where it does not matter.
#[test]
fn rows_on_the_way_are_pending_and_cost_only_where_they_differ() {
    let mut pair = Pair::new(1, false);
    let rows: Vec<_> = (0..2_000).map(|id| put(id, "the same")).collect();
    pair.behind_both(&rows);
    pair.lose = |message| matches!(message, Message::Batch(_));
    // Written without being changed: on the way, and nothing to tell.
    for id in 0..300 {
        pair.write(false, Op::Update(1, key(id), row(id, "the same")));
    }
    pair.settle();
    assert_eq!(pair.branch.unanswered_rows(), 300);
    let verification = pair.verify(false);
    assert!(verification.is_equal());
    assert!(verification.bytes < 1_500, "{}", verification.bytes);
    for id in 0..300 {
        pair.write(false, Op::Update(1, key(id), row(id, "changed")));
    }
    pair.settle();
    let verification = pair.verify(true);
    assert!(verification.is_equal(), "{verification:?}");
    assert_eq!(found(&verification), (0, 0, 0, 300));
    assert_eq!(only(&verification).repaired, 0);
    pair.lose = |_| false;
    pair.settle();
    assert_eq!(found(&pair.verify(false)), (0, 0, 0, 0));
    let (at_head, at_branch) = pair.rows();
    assert_eq!(at_head, at_branch);
    assert_eq!(at_head[299], row(299, "changed"));
}

#[test]
fn questions_and_answers_that_are_lost_are_repeated() {
    let mut pair = Pair::new(1, false);
    let rows: Vec<_> = (0..3_000).map(|id| put(id, "the same")).collect();
    pair.behind_both(&rows);
    pair.behind_branch(&[put(5, "tampered")]);
    for lose in [
        (|m| matches!(m, Message::Digests(_))) as fn(&Message) -> bool,
        |m| matches!(m, Message::Narrow(_)),
        |m| matches!(m, Message::RowsRequest(_)),
        |m| matches!(m, Message::Rows(_)),
    ] {
        pair.behind_branch(&[put(5, "tampered")]);
        pair.head.verify(true);
        (pair.lose, pair.lost) = (lose, 0);
        while pair.lost < 2 {
            pair.tick();
            while pair.step() {}
            assert!(pair.verified.is_none());
        }
        pair.lose = |_| false;
        let verification = pair.finish();
        assert!(verification.is_equal(), "{verification:?}");
        assert_eq!(only(&verification).repaired, 1);
    }
}

/// Both applications write all the time, also to rows that are being repaired; nothing that they write is lost.
fn writers_go_on_while_rows_are_repaired(sqlite: bool) {
    let mut pair = Pair::new(1, sqlite);
    let rows: Vec<_> = (0..400).map(|id| put(id, "the same")).collect();
    pair.behind_both(&rows);
    let tampered: Vec<_> = (0..200).map(|id| put(id, "tampered")).collect();
    pair.behind_branch(&tampered);
    pair.head.verify(true);
    let mut written = 0;
    let mut verification = None;
    for round in 0..400_i64 {
        // Each row is written once, by one of the two: tampered ones and others.
        if round < 150 {
            let at_head = round % 2 == 0;
            let id = round * 2;
            let name = format!("written {id}");
            pair.write(at_head, Op::Update(1, key(id), row(id, &name)));
            written += 1;
        }
        pair.step();
        pair.tick();
        if let Some(done) = pair.verified.take() {
            verification = Some(done);
        }
    }
    assert!(verification.is_some(), "the comparison ended");
    pair.settle();
    let verification = pair.verify(true);
    assert!(verification.is_equal(), "{verification:?}");
    let (at_head, at_branch) = pair.rows();
    assert_eq!(at_head, at_branch);
    assert_eq!(written, 150);
    for id in (0..300).step_by(2) {
        let at = usize::try_from(id).unwrap();
        assert_eq!(at_head[at], row(id, &format!("written {id}")));
    }
    for id in (1..200).step_by(2) {
        let at = usize::try_from(id).unwrap();
        assert_eq!(at_head[at], row(id, "the same"));
    }
}

#[test]
fn writers_go_on_while_rows_are_repaired_in_memory() {
    writers_go_on_while_rows_are_repaired(false);
}

#[test]
fn writers_go_on_while_rows_are_repaired_on_sqlite() {
    writers_go_on_while_rows_are_repaired(true);
}
