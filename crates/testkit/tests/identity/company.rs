//! A head and branches, joined, with nothing between them that fails unless told to.

use std::collections::VecDeque;
use std::sync::Arc;

use branchline_core::branch::Branch;
use branchline_core::change::{Key, Row};
use branchline_core::evolution::Plan as Sharing;
use branchline_core::head::{Head, Wiring};
use branchline_core::identity::{Incarnation, Micros, OfficeName};
use branchline_core::message::{Keep, Message};
use branchline_core::output::Notice;
use branchline_core::port::Database;
use branchline_core::retention::Retention;
use branchline_core::schema::{Column, Counter, Direction, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::{Disk, Place};

use membership::identity;

/// Runs a step on a database of either engine.
macro_rules! on {
    ($disk:expr, $db:ident => $step:expr) => {{
        use branchline_testkit::sim::office::{Store, run};
        match &mut $disk.store {
            Store::Memory($db) => run($step),
            Store::Sqlite(file) => {
                let $db = &mut file.database;
                run($step)
            }
        }
    }};
}

mod applications;
mod findings;
mod membership;
mod mishaps;
mod time;

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
        checks: Default::default(),
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

    pub fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
        self.head.set_retention(retention);
        for office in &mut self.branches {
            office.branch.set_retention(retention);
        }
    }

    pub fn set_plan(&mut self, plan: Sharing) {
        self.head.set_plan(plan);
    }

    pub fn accept_changes(&mut self) {
        on!(self.at_head, db => self.head.accept_changes(db)).unwrap();
    }

    /// A person decides a conflict at the head.
    pub fn settle_conflict(&mut self, conflict: u64, keep: Keep) -> Result<(), String> {
        let now = self.now;
        on!(self.at_head, db => self.head.settle(db, now, conflict, keep, None))
            .unwrap()
            .map(drop)
    }
}
