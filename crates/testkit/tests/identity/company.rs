//! A head and branches, joined, with nothing between them that fails unless told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use branchline_core::books::{self, BranchBook, CONFLICTS, IdentityBook, Joining, Note, SeatBook};
use branchline_core::branch::{Branch, Enrolment, Promotion, Renewal};
use branchline_core::change::{Key, Row};
use branchline_core::conflict::{ConflictRecord, Reason};
use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::envelope;
use branchline_core::evolution::Plan as Sharing;
use branchline_core::failure::OfficeResult;
use branchline_core::head::{Head, Wiring, holds, seats};
use branchline_core::identity::{Digest, Incarnation, LogPosition, Micros, OfficeName};
use branchline_core::message::{Keep, Message, Settled};
use branchline_core::output::{Notice, Output, To};
use branchline_core::port::{Database, Extent, Purpose};
use branchline_core::retention::Retention;
use branchline_core::schema::{Column, Counter, Direction, Schema, Table, TableId};
use branchline_core::succession::Offer;
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::faults::{Faulty, Plan};
use branchline_testkit::sim::model::Journal;
use branchline_testkit::sim::office::{Disk, Image, Place, Store, run};
use branchline_testkit::sim::workload::{Business, Desk};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

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

/// Rows with a name; conflicts go to the later one.
pub const NAMES: TableId = 1;
/// Rows with an amount that adds up.
pub const STOCK: TableId = 2;

fn schema() -> Schema {
    let column = |name: &str, kind| Column {
        name: name.into(),
        kind,
        nullable: false,
        default: None,
        generated_key: false,
        id: 0,
    };
    let table = |id: TableId, name: &str, last: Column| Table {
        id,
        name: name.into(),
        columns: vec![column("id", Type::Int64), last],
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
    };
    let names = table(NAMES, "names", column("name", Type::Text { max: None }));
    let mut stock = table(STOCK, "stock", column("amount", Type::Int64));
    stock.counters.push(Counter {
        column: 1,
        floor: None,
    });
    Schema {
        version: 1,
        tables_ever: 0,
        tables: vec![names, stock],
    }
}

pub fn row(id: i64, name: &str) -> Row {
    Row(vec![Value::Int(id), Value::Text(name.into())])
}

pub fn amount(id: i64, amount: i64) -> Row {
    Row(vec![Value::Int(id), Value::Int(amount)])
}

pub fn key(id: i64) -> Key {
    Key(vec![Value::Int(id)])
}

/// A name of 200 kB, another for each number, that does not get much smaller on its way.
pub fn long_name(number: i64) -> String {
    let mut state = number.unsigned_abs() + 1;
    let letter = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'0' + u8::try_from(state >> 58).unwrap())
    };
    (0..200_000).map(letter).collect()
}

/// The application creates a row with a name.
pub fn insert(id: i64, name: &str) -> Op {
    Op::Insert(NAMES, row(id, name))
}

/// The application changes a name.
pub fn update(id: i64, name: &str) -> Op {
    Op::Update(NAMES, key(id), row(id, name))
}

/// The application deletes a row with a name.
pub fn delete(id: i64) -> Op {
    Op::Delete(NAMES, key(id))
}

/// A branch's database and process.
pub struct Office {
    pub name: OfficeName,
    pub disk: Disk,
    pub branch: Branch,
    /// Whether its link works.
    pub up: bool,
    /// Envelopes to the head that are lost.
    pub lose: fn(&Message) -> bool,
    /// Whether what the head sends to it is lost.
    pub deaf: bool,
    pub notices: Vec<Notice>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Head,
    Branch(usize),
}

pub struct Company {
    place: Place<'static>,
    pub schema: Schema,
    pub head: Head,
    pub at_head: Disk,
    pub branches: Vec<Office>,
    pub now: Micros,
    pub notices: Vec<Notice>,
    /// Everything that the branches sent, as it arrived at the head.
    pub heard: Vec<(Micros, Arc<Vec<u8>>)>,
    wire: VecDeque<(End, Arc<Vec<u8>>)>,
    sessions: u8,
    retention: Retention,
    /// What the head's key is made of.
    head_secret: u8,
}

fn identity(name: &str, head: bool, secret: u8) -> IdentityBook {
    IdentityBook {
        name: OfficeName::new(name).unwrap(),
        head,
        secret_key: [secret; 32],
    }
}

impl Company {
    pub fn new(branches: u8) -> Self {
        Self::new_on(Place::Memory, branches)
    }

    /// With databases of this engine.
    pub fn new_on(place: Place<'static>, branches: u8) -> Self {
        let mut schema = schema();
        schema.number();
        let now = Micros(1_800_000_000_000_000);
        let mut at_head = Disk::new(place, "head");
        let head = on!(at_head, db => async {
            db.create_tables(&schema).await.unwrap();
            db.prepare().await.unwrap();
            db.install(&schema).await.unwrap();
            let me = identity("ho", true, 1);
            Head::found(db, &me, Incarnation([1; 16]), &schema).await.unwrap();
            Head::load(db, Wiring::Direct, now).await.unwrap()
        });
        let mut company = Self {
            place,
            schema,
            head,
            at_head,
            branches: Vec::new(),
            now,
            notices: Vec::new(),
            heard: Vec::new(),
            wire: VecDeque::new(),
            sessions: 0,
            retention: Retention::default(),
            head_secret: 1,
        };
        for number in 1..=branches {
            company.join(number);
        }
        company
    }

    pub fn join(&mut self, number: u8) {
        let at = self.begin_to_join(number);
        self.settle();
        let state = self.branches[at].branch.state();
        assert!(state.joining.is_none(), "the branch has joined");
    }

    /// A branch that is let in, and whose first copy is not complete.
    pub fn join_in_part(&mut self, number: u8) {
        let at = self.begin_to_join(number);
        for _ in 0..100 {
            self.step();
            if self.branches[at].branch.state().joining.is_some()
                && !self.branches[at].branch.schema().tables.is_empty()
            {
                return;
            }
        }
        panic!("it never began");
    }

    fn begin_to_join(&mut self, number: u8) -> usize {
        let name = OfficeName::new(format!("b{number}")).unwrap();
        let secret = [100 + number; 32];
        on!(self.at_head, db => seats::invite(db, &name, secret, Micros(i64::MAX)))
            .unwrap()
            .unwrap();
        let enrolment = Enrolment {
            identity: identity(name.as_str(), false, 1 + number),
            incarnation: Incarnation([1 + number; 16]),
            head_name: OfficeName::new("ho").unwrap(),
            head_key: self.head_key(),
            secret,
        };
        let mut disk = Disk::new(self.place, name.as_str());
        let session = self.session();
        let branch = on!(disk, db => async {
            db.prepare().await.unwrap();
            Branch::found(db, &enrolment).await.unwrap();
            Branch::load(db, session).await.unwrap()
        });
        self.seat(name, disk, branch)
    }

    fn head_key(&self) -> [u8; 32] {
        let key = SigningKey::from_bytes(&[self.head_secret; 32]);
        key.verifying_key().to_bytes()
    }

    /// The head and its database are gone for good; this branch is to be the head. Returns why not, if not.
    pub fn try_promoting(&mut self, at: usize) -> Result<Promotion, String> {
        self.cut(at);
        let now = self.now;
        let head = identity("ho", true, self.head_secret + 100);
        let session = self.session();
        let promotion = on!(self.branches[at].disk, db => async {
            let branch = Branch::load(db, session).await.unwrap();
            branch.promote(db, now, &head).await.unwrap()
        })?;
        let mut office = self.branches.remove(at);
        self.head_secret += 100;
        self.wire.clear();
        std::mem::swap(&mut self.at_head, &mut office.disk);
        for office in &mut self.branches {
            office.up = false;
            office.branch.link_down();
        }
        self.start_head();
        Ok(promotion)
    }

    pub fn promote(&mut self, at: usize) -> Promotion {
        self.try_promoting(at).unwrap()
    }

    /// A branch takes a code of the head that is new to it.
    pub fn join_again(&mut self, at: usize) -> Renewal {
        let name = self.branches[at].name.clone();
        let secret = [self.sessions; 32];
        let (head, now) = (&mut self.head, self.now);
        let log = on!(self.at_head, db => async {
            seats::invite(db, &name, secret, now.plus_millis(60_000)).await.unwrap().unwrap();
            head.load_seat(db, &name).await.unwrap();
            head.log_incarnation()
        });
        let offer = Offer {
            head_name: OfficeName::new("ho").unwrap(),
            head_key: self.head_key(),
            secret,
            log: Some(log),
        };
        let renewal = on!(self.branches[at].disk, db => Branch::renew(db, &offer)).unwrap();
        self.branches[at].up = true;
        self.restart_branch(at);
        renewal
    }

    /// What lets a branch in, as the head has it.
    pub fn join_secret_of(&mut self, at: usize) -> SeatBook {
        self.seat_book(at)
    }

    /// The head, restored to before it knew the branch's key, is given that again.
    pub fn let_in(&mut self, at: usize, known: SeatBook) {
        let name = self.branches[at].name.clone();
        let head = &mut self.head;
        on!(self.at_head, db => async {
            db.begin(Purpose::Apply).await.unwrap();
            let record = books::seat_name(&name);
            let seat = books::load::<SeatBook, _>(db, &record).await.unwrap();
            if let Some(mut seat) = seat {
                seat.public_key = known.public_key;
                books::store(db, &record, &seat).await.unwrap();
            }
            db.commit().await.unwrap();
            head.load_seat(db, &name).await.unwrap();
        });
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

    fn session(&mut self) -> [u8; 16] {
        self.sessions += 1;
        [self.sessions; 16]
    }

    fn seat(&mut self, name: OfficeName, disk: Disk, branch: Branch) -> usize {
        self.branches.push(Office {
            name,
            disk,
            branch,
            up: false,
            lose: |_| false,
            deaf: false,
            notices: Vec::new(),
        });
        let at = self.branches.len() - 1;
        self.connect(at);
        at
    }

    /// A second machine starts from this image of a branch's database.
    pub fn start_copy(&mut self, of: usize, image: &Image) -> usize {
        let name = self.branches[of].name.clone();
        let mut disk = Disk::new(Place::Memory, "copy");
        disk.restore(image);
        let session = self.session();
        let mut branch = on!(disk, db => Branch::load(db, session)).unwrap();
        branch.set_retention(self.retention);
        self.seat(name, disk, branch)
    }

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

    pub fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
        self.head.set_retention(retention);
        for office in &mut self.branches {
            office.branch.set_retention(retention);
        }
    }

    /// The head's application changes a table.
    pub fn alter_head(&mut self, id: TableId, change: impl FnOnce(&mut Table)) {
        let from = self.schema.table(id).unwrap().clone();
        let mut to = from.clone();
        change(&mut to);
        match &mut self.at_head.store {
            Store::Memory(database) => database.application().alter_now(&from, &to).unwrap(),
            Store::Sqlite(_) => self.at_head.execute(&altering(&from, &to)),
        }
        for table in &mut self.schema.tables {
            if table.id == id {
                *table = to.clone();
            }
        }
        self.schema.number();
        self.head.wake();
    }

    /// The head's application drops a table.
    pub fn drop_at_head(&mut self, id: TableId) {
        let name = self.schema.table(id).unwrap().name.clone();
        let Store::Memory(database) = &mut self.at_head.store else {
            panic!("only in memory");
        };
        database.application().drop_now(&name).unwrap();
        self.schema.tables.retain(|table| table.id != id);
        self.head.wake();
    }

    /// The head's application creates a table with rows, before anyone can capture them. Returns the number that the
    /// head will give it.
    pub fn create_at_head(&mut self, table: Table, rows: &[Row]) -> TableId {
        self.schema.tables.push(table);
        self.schema.number();
        let table = self.schema.tables.last().unwrap().clone();
        match &mut self.at_head.store {
            Store::Memory(database) => database.application().create_now(&table).unwrap(),
            Store::Sqlite(_) => self.at_head.execute(&creating(&table)),
        }
        let ops: Vec<Op> = rows
            .iter()
            .map(|row| Op::Insert(table.id, row.clone()))
            .collect();
        self.write_head(&ops);
        table.id
    }

    /// The head's application creates a table again that it had dropped.
    pub fn bring_back(&mut self, table: Table, ops: &[Op]) {
        let Store::Memory(database) = &mut self.at_head.store else {
            panic!("only in memory");
        };
        database.application().create_now(&table).unwrap();
        self.schema.tables.insert(0, table);
        self.write_head(ops);
    }

    pub fn set_plan(&mut self, plan: Sharing) {
        self.head.set_plan(plan);
    }

    pub fn accept_changes(&mut self) {
        on!(self.at_head, db => self.head.accept_changes(db)).unwrap();
    }

    /// A branch's application changes a table there.
    pub fn alter(&mut self, at: usize, id: TableId, change: impl FnOnce(&mut Table)) {
        let office = &mut self.branches[at];
        let from = office.branch.schema().table(id).unwrap().clone();
        let mut to = from.clone();
        change(&mut to);
        let Store::Memory(database) = &mut office.disk.store else {
            panic!("only in memory");
        };
        database.application().alter_now(&from, &to).unwrap();
        office.branch.wake();
    }

    /// The application writes rows of tables as they are by now.
    pub fn write_as(&mut self, at: usize, schema: &Schema, ops: &[Op]) {
        self.now = self.now.plus_millis(10);
        let office = &mut self.branches[at];
        office.disk.write_now(schema, ops, self.now).unwrap();
        office.branch.wake();
    }

    /// Time passes between two writes. SQLite stamps them by the machine's clock, in milliseconds.
    fn pass(&mut self) {
        self.now = self.now.plus_millis(10);
        if matches!(self.at_head.store, Store::Sqlite(_)) {
            let millis = || UNIX_EPOCH.elapsed().unwrap().as_millis();
            let before = millis();
            while millis() <= before {
                std::thread::yield_now();
            }
        }
    }

    pub fn write_head(&mut self, ops: &[Op]) {
        self.pass();
        self.at_head.write_now(&self.schema, ops, self.now).unwrap();
        self.head.wake();
    }

    pub fn write(&mut self, at: usize, ops: &[Op]) {
        self.pass();
        let office = &mut self.branches[at];
        let schema = office.branch.schema().clone();
        office.disk.write_now(&schema, ops, self.now).unwrap();
        office.branch.wake();
    }

    pub fn flush(&mut self) {
        while let Some(output) = self.head.output() {
            match output {
                Output::Send(To::Branch(name), bytes) => {
                    for (at, office) in self.branches.iter().enumerate() {
                        if office.up && !office.deaf && office.name == name {
                            self.wire.push_back((End::Branch(at), Arc::clone(&bytes)));
                        }
                    }
                }
                Output::Send(_, bytes) => {
                    for (at, office) in self.branches.iter().enumerate() {
                        if office.up && !office.deaf {
                            self.wire.push_back((End::Branch(at), Arc::clone(&bytes)));
                        }
                    }
                }
                Output::Name(_, name) => self.head.link_up(Some(&name)),
                Output::Notice(notice) => self.notices.push(notice),
                _ => {}
            }
        }
        for office in &mut self.branches {
            while let Some(output) = office.branch.output() {
                match output {
                    Output::Send(_, bytes) => {
                        let message = envelope::open(&bytes).unwrap().read_own().unwrap();
                        if office.up && !(office.lose)(&message) {
                            self.wire.push_back((End::Head, bytes));
                        }
                    }
                    Output::Notice(notice) => office.notices.push(notice),
                    _ => {}
                }
            }
        }
    }

    /// One step of all, and everything on the wire delivered. Returns whether anything moved.
    pub fn step(&mut self) -> bool {
        self.step_with(false)
    }

    /// The same, where only one envelope is delivered.
    pub fn step_one_by_one(&mut self) -> bool {
        self.step_with(true)
    }

    fn step_with(&mut self, one_by_one: bool) -> bool {
        let now = self.now;
        let mut moved = on!(self.at_head, db => self.head.work(db, now)).unwrap();
        for office in &mut self.branches {
            moved |= on!(office.disk, db => office.branch.work(db, now)).unwrap();
        }
        self.flush();
        while let Some((to, bytes)) = self.wire.pop_front() {
            moved = true;
            match to {
                End::Head => {
                    on!(self.at_head, db => self.head.arrived(db, now, &bytes, 1)).unwrap();
                    self.heard.push((now, bytes));
                }
                End::Branch(at) => {
                    let office = &mut self.branches[at];
                    on!(office.disk, db => office.branch.arrived(db, now, &bytes, 1)).unwrap();
                }
            }
            self.flush();
            if one_by_one {
                break;
            }
        }
        moved
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

    /// Bytes that were on their way for long arrive at the head.
    pub fn deliver_late(&mut self, bytes: &[u8]) {
        let now = self.now;
        on!(self.at_head, db => self.head.arrived(db, now, bytes, 1)).unwrap();
        self.flush();
    }

    pub fn tick(&mut self, millis: i64) {
        self.now = self.now.plus_millis(millis);
        on!(self.at_head, db => self.head.tick(db, self.now)).unwrap();
        for office in &mut self.branches {
            office.branch.tick(self.now).unwrap();
        }
        self.flush();
    }

    /// Until nothing moves, for some seconds of their time.
    pub fn settle(&mut self) {
        for _ in 0..80 {
            self.tick(250);
            for round in 0.. {
                if !self.step() {
                    break;
                }
                assert!(round < 2_000, "it goes round in circles");
            }
        }
    }

    /// Time passes while the machines run.
    pub fn let_pass(&mut self, minutes: u32) {
        for _ in 0..minutes {
            self.tick(60_000);
            for _ in 0..100 {
                if !self.step() {
                    break;
                }
            }
        }
    }

    pub fn head_image(&self) -> Image {
        self.at_head.image()
    }

    fn contents(disk: &mut Disk, schema: &Schema) -> BTreeMap<TableId, Vec<Row>> {
        let tables = schema.tables.iter();
        tables.map(|table| (table.id, disk.rows(table))).collect()
    }

    /// A person decides a conflict at the head.
    pub fn settle_conflict(&mut self, conflict: u64, keep: Keep) -> Result<(), String> {
        let now = self.now;
        on!(self.at_head, db => self.head.settle(db, now, conflict, keep, None))
            .unwrap()
            .map(drop)
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

    pub fn remove(&mut self, at: usize) {
        let name = self.branches[at].name.clone();
        on!(self.at_head, db => async {
            seats::remove(db, &name).await.unwrap().unwrap();
            self.head.load_seat(db, &name).await.unwrap();
        });
    }

    pub fn was_noticed(&self, at: usize, wanted: impl Fn(&Notice) -> bool) -> bool {
        self.branches[at].notices.iter().any(wanted)
    }
}

fn defined(column: &Column) -> String {
    let kind = match column.kind {
        Type::Int64 => "BIGINT",
        Type::Text { .. } => "TEXT",
        _ => panic!("{column:?}"),
    };
    let null = if column.nullable { "" } else { " NOT NULL" };
    format!("{} {kind}{null}", column.name)
}

/// The statements by which an application adds and drops columns.
fn altering(from: &Table, to: &Table) -> String {
    let has = |table: &Table, column: &Column| table.columns.iter().any(|c| c.name == column.name);
    let new = to.columns.iter().filter(|column| !has(from, column));
    let gone = from.columns.iter().filter(|column| !has(to, column));
    let new = new.map(|column| format!("ALTER TABLE {} ADD COLUMN {};", to.name, defined(column)));
    let gone = gone.map(|column| format!("ALTER TABLE {} DROP COLUMN {};", to.name, column.name));
    new.chain(gone).collect()
}

fn creating(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(defined).collect();
    let key: Vec<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
    let (columns, key) = (columns.join(", "), key.join(", "));
    format!(
        "CREATE TABLE {} ({columns}, PRIMARY KEY ({key}))",
        table.name
    )
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

fn names(rows: &[Row]) -> BTreeMap<i64, String> {
    let name = |row: &Row| match row.0.as_slice() {
        [Value::Int(id), Value::Text(name), ..] => (*id, name.clone()),
        other => panic!("{other:?}"),
    };
    rows.iter().map(name).collect()
}
