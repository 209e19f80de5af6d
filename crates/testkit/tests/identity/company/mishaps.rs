//! What goes wrong: links that break, databases restored from backups, processes that die, and heads that are no more.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::books::{self, BranchBook, Joining, Note};
use branchline_core::branch::Branch;
use branchline_core::change::Key;
use branchline_core::failure::OfficeResult;
use branchline_core::head::{Head, Wiring};
use branchline_core::output::{Notice, Output};
use branchline_core::port::{Database, Entry, Purpose};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::faults::{Faulty, Plan};
use branchline_testkit::sim::model::Journal;
use branchline_testkit::sim::office::{Disk, Image, Place, run};
use branchline_testkit::sim::workload::{Business, Desk};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::{Company, End, NAMES};

impl Company {
    pub fn connect(&mut self, at: usize) {
        self.branches[at].up = true;
        self.branches[at].branch.link_up(self.now).unwrap();
        self.flush();
    }

    pub fn cut(&mut self, at: usize) {
        self.branches[at].up = false;
        self.branches[at].branch.link_down();
        let name = self.branches[at].name.clone();
        self.head.link_down(Some(&name));
        self.wire
            .retain(|(from, _)| *from == End::Head || *from != End::Branch(at));
    }

    pub fn head_image(&self) -> Image {
        self.at_head.image()
    }

    /// The head's process ends, its database becomes what it was, and it starts again. All links break.
    pub fn restore_head(&mut self, image: &Image) {
        self.wire.clear();
        self.at_head.restore(image);
        self.start_head();
    }

    pub fn start_head(&mut self) {
        self.head = on!(self.at_head, db => Head::load(db, Wiring::Direct, self.now)).unwrap();
        self.head.set_retention(self.retention);
        for at in 0..self.branches.len() {
            if self.branches[at].up {
                self.cut(at);
                self.connect(at);
            }
        }
    }

    pub fn restore_branch(&mut self, at: usize, image: &Image) {
        self.branches[at].disk.restore(image);
        self.restart_branch(at);
    }

    pub fn restart_branch(&mut self, at: usize) {
        let up = self.branches[at].up;
        self.cut(at);
        let session = self.session();
        let branch = on!(self.branches[at].disk, db => Branch::load(db, session)).unwrap();
        self.branches[at].branch = branch;
        self.branches[at].branch.set_retention(self.retention);
        if up {
            self.connect(at);
        }
    }

    /// A head that is no more this company's starts from this image: its application writes, it hears what a branch said
    /// lately, and all branches hear it. Returns what it noticed.
    pub fn old_head_speaks(&mut self, image: &Image, ops: &[Op]) -> Vec<Notice> {
        let mut disk = Disk::new(Place::Memory, "old head");
        disk.restore(image);
        let mut now = self.now;
        disk.write_now(&self.schema, ops, now).unwrap();
        let mut head = on!(disk, db => Head::load(db, Wiring::Fanout, now)).unwrap();
        head.link_up(None);
        for (_, bytes) in &self.heard {
            on!(disk, db => head.arrived(db, now, bytes, 1)).unwrap();
        }
        for _ in 0..5 {
            now = now.plus_millis(6_000);
            on!(disk, db => async {
                head.tick(db, now).await.unwrap();
                while head.work(db, now).await.unwrap() {}
            });
        }
        let mut notices = Vec::new();
        while let Some(output) = head.output() {
            match output {
                Output::Notice(notice) => notices.push(notice),
                Output::Send(_, bytes) => {
                    for office in &mut self.branches {
                        on!(office.disk, db => office.branch.arrived(db, now, &bytes, 1)).unwrap();
                    }
                }
                _ => {}
            }
        }
        self.flush();
        notices
    }

    /// A branch's records become those of one that still joins, with rows of its own captured and not sent. It has passed an
    /// entry about one of them.
    pub fn join_still(&mut self, at: usize, passed: &Key) {
        let names = self.schema.table(NAMES).unwrap();
        on!(self.branches[at].disk, db => async {
            db.begin(Purpose::Apply).await.unwrap();
            let book: Option<BranchBook> = books::load(db, "branch").await.unwrap();
            let mut book = book.unwrap();
            let note = books::encode(&Note::Deferred(book.cursor)).unwrap();
            db.set_notes(names, &[(passed.clone(), Some(note))]).await.unwrap();
            book.joining = Some(Joining { prepared: true, ..Joining::default() });
            books::store(db, "branch", &book).await.unwrap();
            db.commit().await.unwrap();
        });
    }

    /// One piece of work of a branch, with these faults. A process that died is not started again.
    pub fn work_under(&mut self, at: usize, plan: &mut Plan) -> OfficeResult<bool> {
        let office = &mut self.branches[at];
        let schema = office.branch.schema().clone();
        let desk = Desk {
            rng: &mut Xoshiro256PlusPlus::seed_from_u64(1),
            journal: &mut Journal::default(),
            schema: &schema,
            migrations: None,
            here: None,
            office: 1 + at,
            writer: 1 + at,
            is_head: false,
            now: self.now,
            times: &mut BTreeMap::new(),
            locked: BTreeSet::new(),
            down_too: false,
            business: Business::default(),
        };
        let mut database = Faulty::new(&mut office.disk, plan, desk);
        let outcome = run(office.branch.work(&mut database, self.now));
        if plan.dead {
            office.disk.reopen();
        }
        outcome
    }

    /// One piece of the head's work.
    pub fn try_head(&mut self) -> OfficeResult<bool> {
        on!(self.at_head, db => self.head.work(db, self.now))
    }

    /// Capture is installed at the head, and no more.
    pub fn install_at_head(&mut self) {
        on!(self.at_head, db => db.install(&self.schema)).unwrap();
    }

    /// Entries that lay in a branch's queue arrive there, and it follows them.
    pub fn hear_late(&mut self, at: usize, entries: &[Entry]) {
        let (now, office) = (self.now, &mut self.branches[at]);
        for entry in entries {
            on!(office.disk, db => office.branch.arrived(db, now, &entry.bytes, 1)).unwrap();
        }
        while on!(office.disk, db => office.branch.work(db, now)).unwrap() {}
        self.flush();
    }

    /// Bytes that were on their way for long arrive at the head.
    pub fn deliver_late(&mut self, bytes: &[u8]) {
        let now = self.now;
        on!(self.at_head, db => self.head.arrived(db, now, bytes, 1)).unwrap();
        self.flush();
    }
}
