//! What the applications do: small random transactions over a few tables, with keys that collide and keys of their own.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Key, Row};
use branchline_core::identity::Micros;
use branchline_core::schema::{
    Column, ConflictRule, Direction, ForeignKey, InsertRule, Schema, Table, TableId,
};
use branchline_core::value::{Type, Value};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::model::{Journal, RowName, Write, WriteId};
use super::office::Disk;
use crate::conformance::Op;

/// Two accounts of each office, between which money moves.
pub const ACCOUNTS: TableId = 5;
/// Orders, which only their office writes.
pub const ORDERS: TableId = 6;
/// Lines of orders.
pub const LINES: TableId = 7;
/// What only the head may write.
pub const RATES: TableId = 8;
/// What the two accounts hold together.
pub const SUM: i64 = 1000;

fn column(name: &str, kind: Type, nullable: bool) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable,
        default: None,
        generated_key: false,
    }
}

fn table(id: TableId, name: &str, conflict: ConflictRule, insert: InsertRule) -> Table {
    Table {
        id,
        name: name.into(),
        columns: vec![
            column("id", Type::Int64, false),
            column("payload", Type::Text { max: None }, false),
            column("extra", Type::Int64, true),
        ],
        key: vec![0],
        unique: Vec::new(),
        foreign_keys: Vec::new(),
        direction: Direction::Both,
        conflict,
        insert,
        counters: Vec::new(),
        before: false,
    }
}

/// The plan of the simulated company.
pub fn schema() -> Schema {
    let mut lines = table(LINES, "lines", ConflictRule::Newest, InsertRule::Hold);
    lines.foreign_keys.push(ForeignKey {
        columns: vec![2],
        parent: "orders".into(),
        parent_columns: vec!["id".into()],
        on_delete: "NO ACTION".into(),
        on_update: "NO ACTION".into(),
    });
    let mut rates = table(RATES, "rates", ConflictRule::Newest, InsertRule::Newest);
    rates.direction = Direction::Down;
    Schema {
        version: 1,
        tables: vec![
            table(1, "items", ConflictRule::Newest, InsertRule::Hold),
            table(2, "prices", ConflictRule::Newest, InsertRule::Newest),
            table(3, "terms", ConflictRule::Head, InsertRule::Newest),
            table(4, "offers", ConflictRule::Branch, InsertRule::Newest),
            table(ACCOUNTS, "accounts", ConflictRule::Newest, InsertRule::Hold),
            table(ORDERS, "orders", ConflictRule::Newest, InsertRule::Hold),
            lines,
            rates,
        ],
    }
}

/// How many keys the offices share in each table.
const SHARED_KEYS: i64 = 6;

/// The keys of an office's two accounts.
pub fn accounts_of(office: usize) -> [Key; 2] {
    let first = office as i64 * 2;
    [
        Key(vec![Value::Int(first)]),
        Key(vec![Value::Int(first + 1)]),
    ]
}

/// The write that made a row what it is.
pub fn maker(row: &Row) -> Option<WriteId> {
    match row.0.get(1) {
        Some(Value::Text(text)) => text.strip_prefix('w')?.parse().ok(),
        _ => None,
    }
}

/// What an application needs to run a transaction.
pub struct Desk<'w> {
    pub rng: &'w mut Xoshiro256PlusPlus,
    pub journal: &'w mut Journal,
    pub schema: &'w Schema,
    pub office: usize,
    pub is_head: bool,
    /// The office's clock.
    pub now: Micros,
    /// When each row was last written here, by the office's clock.
    pub times: &'w mut BTreeMap<RowName, Micros>,
    /// Rows that a transaction in progress has locked.
    pub locked: BTreeSet<RowName>,
    pub down_too: bool,
}

/// A transaction in the making.
#[derive(Default)]
struct Draft {
    ops: Vec<Op>,
    rows: BTreeMap<RowName, Option<Row>>,
    writes: Vec<(RowName, WriteId, Write)>,
}

impl Desk<'_> {
    /// Runs a random transaction. Returns what it did in words, or nothing where the database was busy.
    pub fn transact(&mut self, disk: &mut Disk) -> Option<String> {
        let mut draft = Draft::default();
        match self.rng.random_range(0..10) {
            0..=2 => self.transfer(disk, &mut draft),
            3 => self.order(disk, &mut draft),
            _ => {
                for _ in 0..self.rng.random_range(1..=6) {
                    self.scribble(disk, &mut draft);
                }
            }
        }
        self.run(disk, draft)
    }

    fn run(&mut self, disk: &mut Disk, draft: Draft) -> Option<String> {
        if draft.ops.is_empty() || draft.rows.keys().any(|row| self.locked.contains(row)) {
            return None;
        }
        disk.write_now(self.schema, &draft.ops, self.now).ok()?;
        let words = draft.writes.iter().map(|((table, key), id, write)| {
            let name = self
                .schema
                .table(*table)
                .map_or("?", |table| table.name.as_str());
            let on = write
                .on
                .map_or_else(|| "nothing".into(), |on| format!("w{on}"));
            let what = if write.delete { "deletes" } else { "puts" };
            format!("w{id} {what} {name} {} on {on}", key.to_json())
        });
        let words = words.collect::<Vec<_>>().join(", ");
        self.times
            .extend(draft.rows.into_keys().map(|row| (row, self.now)));
        self.journal.commit(draft.writes);
        Some(words)
    }

    fn present(&self, disk: &mut Disk, draft: &Draft, row: &RowName) -> Option<Row> {
        match draft.rows.get(row) {
            Some(drafted) => drafted.clone(),
            None => disk.row(self.schema.table(row.0)?, &row.1),
        }
    }

    fn put(&mut self, disk: &mut Disk, draft: &mut Draft, row: RowName, extra: Value) {
        let present = self.present(disk, draft, &row);
        let id = self.journal.draw();
        let new = Row(vec![
            row.1.0[0].clone(),
            Value::Text(format!("w{id}")),
            extra,
        ]);
        draft.ops.push(match &present {
            Some(_) => Op::Update(row.0, row.1.clone(), new.clone()),
            None => Op::Insert(row.0, new.clone()),
        });
        let write = Write {
            office: self.office,
            delete: false,
            on: present.as_ref().and_then(maker),
            undone: false,
        };
        draft.writes.push((row.clone(), id, write));
        draft.rows.insert(row, Some(new));
    }

    fn delete(&mut self, disk: &mut Disk, draft: &mut Draft, row: RowName) {
        let Some(present) = self.present(disk, draft, &row) else {
            return;
        };
        let id = self.journal.draw();
        draft.ops.push(Op::Delete(row.0, row.1.clone()));
        draft.writes.push((
            row.clone(),
            id,
            Write {
                office: self.office,
                delete: true,
                on: maker(&present),
                undone: false,
            },
        ));
        draft.rows.insert(row, None);
    }

    /// One statement on a row of any of the plain tables.
    fn scribble(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let table = if (self.is_head || self.down_too) && self.rng.random_ratio(1, 8) {
            RATES
        } else {
            self.rng.random_range(1..=4)
        };
        let key = if self.rng.random_ratio(1, 3) {
            1000 * (self.office as i64 + 1) + self.rng.random_range(0..5)
        } else {
            self.rng.random_range(0..SHARED_KEYS)
        };
        let row = (table, Key(vec![Value::Int(key)]));
        if self.rng.random_ratio(1, 4) {
            self.delete(disk, draft, row);
        } else {
            let extra = if self.rng.random_ratio(1, 4) {
                Value::Null
            } else {
                Value::Int(key * 3)
            };
            self.put(disk, draft, row, extra);
        }
    }

    /// Moves money between the office's own two accounts; their sum stays.
    fn transfer(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let amount = self.rng.random_range(0..=SUM);
        let [one, two] = accounts_of(self.office);
        self.put(disk, draft, (ACCOUNTS, one), Value::Int(amount));
        self.put(disk, draft, (ACCOUNTS, two), Value::Int(SUM - amount));
    }

    /// Writes an order with its lines, or takes it away, children first.
    fn order(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let number = 1000 * (self.office as i64 + 1) + self.rng.random_range(0..4);
        let order = (ORDERS, Key(vec![Value::Int(number)]));
        let lines = (0..2).map(|line| (LINES, Key(vec![Value::Int(number * 10 + line)])));
        if self.present(disk, draft, &order).is_some() && self.rng.random_ratio(1, 3) {
            for line in lines {
                self.delete(disk, draft, line);
            }
            self.delete(disk, draft, order);
        } else {
            self.put(disk, draft, order, Value::Null);
            for line in lines {
                if self.rng.random_ratio(2, 3) {
                    self.put(disk, draft, line, Value::Int(number));
                }
            }
        }
    }
}
