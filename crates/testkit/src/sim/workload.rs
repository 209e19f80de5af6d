//! What the applications do: small random transactions over a few tables, with keys that collide and keys of their own.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Key, Row};
use branchline_core::identity::Micros;
use branchline_core::schema::{
    Column, ConflictRule, Counter, Direction, ForeignKey, InsertRule, Schema, Table, TableId,
};
use branchline_core::value::{Type, Value};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::migrations::{Migrations, lasting};
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
/// Parents and children that any office writes.
pub const PARENTS: TableId = 9;
/// Their children.
pub const CHILDREN: TableId = 10;
/// Rows that refer to rows of their own table.
pub const TREE: TableId = 11;
/// Rows with a unique value of which there are few.
pub const MAILS: TableId = 12;
/// The same under keys that mean something, where the head is preferred.
pub const CODES: TableId = 13;
/// Where a person decides.
pub const ASKS: TableId = 14;
/// What only branches write.
pub const SALES: TableId = 15;
/// Rows so large that a unit of them does not fit into an inbox.
pub const BULK: TableId = 16;
/// Counters, of which every office sells.
pub const STOCK: TableId = 17;
/// Rows whose columns are merged.
pub const CARDS: TableId = 18;
/// What a counter begins with.
pub const STOCK_AT_FIRST: i64 = 1000;
/// How many counters there are.
const STOCKS: i64 = 3;
/// How many rows such a unit has, and how many bytes each.
const BULKY: (i64, usize) = (22, 600 * 1024);
/// What the two accounts hold together.
pub const SUM: i64 = 1000;

fn column(name: &str, kind: Type, nullable: bool) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable,
        default: None,
        generated_key: false,
        id: 0,
    }
}

pub fn table(id: TableId, name: &str, conflict: ConflictRule, insert: InsertRule) -> Table {
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
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    }
}

/// A foreign key from `extra` to a table's `id`.
fn refers_to(mut table: Table, parent: &str) -> Table {
    table.foreign_keys.push(ForeignKey {
        columns: vec![2],
        parent: parent.into(),
        parent_columns: vec!["id".into()],
        on_delete: "NO ACTION".into(),
        on_update: "NO ACTION".into(),
    });
    table
}

fn unique(mut table: Table) -> Table {
    table.unique.push(vec![2]);
    table
}

fn counting(mut table: Table) -> Table {
    table.counters.push(Counter {
        column: 2,
        floor: None,
    });
    table
}

/// The counters as the head begins with them.
pub fn first_stock() -> Vec<Op> {
    let row = |key| {
        Row(vec![
            Value::Int(key),
            Value::Text("w0".into()),
            Value::Int(STOCK_AT_FIRST),
        ])
    };
    (0..STOCKS).map(|key| Op::Insert(STOCK, row(key))).collect()
}

fn one_way(mut table: Table, direction: Direction) -> Table {
    table.direction = direction;
    table
}

/// The plan of the simulated company.
pub fn schema() -> Schema {
    use ConflictRule as C;
    use InsertRule as I;
    Schema {
        version: 1,
        tables_ever: 0,
        tables: vec![
            table(1, "items", C::Newest, I::Hold),
            table(2, "prices", C::Newest, I::Newest),
            table(3, "terms", C::Head, I::Newest),
            table(4, "offers", C::Branch, I::Newest),
            table(ACCOUNTS, "accounts", C::Newest, I::Hold),
            table(ORDERS, "orders", C::Newest, I::Hold),
            refers_to(table(LINES, "lines", C::Newest, I::Hold), "orders"),
            one_way(table(RATES, "rates", C::Newest, I::Newest), Direction::Down),
            table(PARENTS, "parents", C::Newest, I::Newest),
            refers_to(table(CHILDREN, "children", C::Newest, I::Newest), "parents"),
            refers_to(table(TREE, "tree", C::Newest, I::Newest), "tree"),
            unique(table(MAILS, "mails", C::Newest, I::Hold)),
            unique(table(CODES, "codes", C::Head, I::Newest)),
            table(ASKS, "asks", C::Hold, I::Newest),
            one_way(table(SALES, "sales", C::Newest, I::Hold), Direction::Up),
            table(BULK, "bulk", C::Newest, I::Hold),
            counting(table(STOCK, "stock", C::Newest, I::Newest)),
            table(CARDS, "cards", C::Merge, I::Newest),
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
        Some(Value::Text(text)) => text.strip_prefix('w')?.split(' ').next()?.parse().ok(),
        _ => None,
    }
}

/// What an application needs to run a transaction.
pub struct Desk<'w> {
    pub rng: &'w mut Xoshiro256PlusPlus,
    pub journal: &'w mut Journal,
    /// The tables of the company.
    pub schema: &'w Schema,
    /// The numbers of all tables, where they change.
    pub migrations: Option<&'w Migrations>,
    /// The tables as they are here, where they change.
    pub here: Option<Schema>,
    pub office: usize,
    /// Who writes: a copy of an office uses its keys.
    pub writer: usize,
    pub is_head: bool,
    /// The office's clock.
    pub now: Micros,
    /// When each row was last written here, by the office's clock.
    pub times: &'w mut BTreeMap<RowName, Micros>,
    /// Rows that a transaction in progress has locked.
    pub locked: BTreeSet<RowName>,
    pub down_too: bool,
    /// What else the company does.
    pub business: Business,
}

/// Which kinds of transactions a company has, besides the plain ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Business {
    /// Foreign keys between rows of different offices.
    pub families: bool,
    /// Unique values that are taken twice.
    pub unique: bool,
    /// Conflicts that a person decides.
    pub asks: bool,
    /// Units too large for an inbox.
    pub bulk: bool,
}

impl Business {
    /// The tables that this company does not write.
    pub fn unused(self) -> Vec<TableId> {
        let mut unused = Vec::new();
        for (used, tables) in [
            (self.families, &[PARENTS, CHILDREN, TREE][..]),
            (self.unique, &[MAILS, CODES]),
            (self.asks, &[ASKS]),
            (self.bulk, &[BULK]),
        ] {
            if !used {
                unused.extend_from_slice(tables);
            }
        }
        unused
    }
}

/// A transaction in the making.
#[derive(Default)]
struct Draft {
    ops: Vec<Op>,
    rows: BTreeMap<RowName, Option<Row>>,
    writes: Vec<(RowName, WriteId, Write)>,
    sold: Vec<(Key, i64)>,
}

impl Desk<'_> {
    /// Runs a random transaction. Returns what it did in words, or nothing where the database was busy.
    pub fn transact(&mut self, disk: &mut Disk) -> Option<String> {
        self.here = self.migrations.map(|known| disk.tables(&known.ids));
        let mut draft = Draft::default();
        match self.rng.random_range(0..15) {
            0..=2 => self.transfer(disk, &mut draft),
            3 => self.order(disk, &mut draft),
            4 | 5 if self.business.families => {
                for _ in 0..self.rng.random_range(1..=3) {
                    self.family(disk, &mut draft);
                }
            }
            6 if self.business.families => self.grow(disk, &mut draft),
            7 if self.business.unique => self.register(disk, &mut draft),
            8 if self.business.asks => self.ask(disk, &mut draft),
            9 if !self.is_head => self.sell(disk, &mut draft),
            11 => self.trade(disk, &mut draft),
            12 => self.fill_in(disk, &mut draft),
            10 if self.business.bulk && self.rng.random_ratio(1, 40) => {
                self.heap(disk, &mut draft);
            }
            _ => {
                for _ in 0..self.rng.random_range(1..=6) {
                    self.scribble(disk, &mut draft);
                }
            }
        }
        self.run(disk, draft)
    }

    fn tables(&self) -> &Schema {
        self.here.as_ref().unwrap_or(self.schema)
    }

    fn run(&mut self, disk: &mut Disk, draft: Draft) -> Option<String> {
        if draft.ops.is_empty() || draft.rows.keys().any(|row| self.locked.contains(row)) {
            return None;
        }
        disk.write_now(
            self.here.as_ref().unwrap_or(self.schema),
            &draft.ops,
            self.now,
        )
        .ok()?;
        let words = draft.writes.iter().map(|((table, key), id, write)| {
            let name = self
                .tables()
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
        self.journal.count(draft.sold);
        Some(words)
    }

    fn present(&self, disk: &mut Disk, draft: &Draft, row: &RowName) -> Option<Row> {
        match draft.rows.get(row) {
            Some(drafted) => drafted.clone(),
            None => disk.row(self.tables().table(row.0)?, &row.1),
        }
    }

    fn put(&mut self, disk: &mut Disk, draft: &mut Draft, row: RowName, extra: Value) {
        self.put_with(disk, draft, row, extra, "");
    }

    fn put_with(
        &mut self,
        disk: &mut Disk,
        draft: &mut Draft,
        row: RowName,
        extra: Value,
        ballast: &str,
    ) {
        let present = self.present(disk, draft, &row);
        let id = self.journal.draw();
        let mut new = Row(vec![
            row.1.0[0].clone(),
            Value::Text(format!("w{id}{ballast}")),
            extra,
        ]);
        let mut values = BTreeMap::new();
        if let Some(here) = &self.here {
            let Some(table) = here.table(row.0) else {
                return;
            };
            let columns = table.columns.iter().enumerate().skip(2);
            let columns = columns.map(|(at, column)| {
                let value = match (lasting(&column.name), &present) {
                    ("extra", _) => new.0[2].clone(),
                    (_, Some(present)) if self.rng.random_bool(0.5) => present.0[at].clone(),
                    _ if self.rng.random_ratio(1, 6) => Value::Null,
                    _ if matches!(column.kind, Type::Text { .. }) => Value::Text(format!("v{id}")),
                    _ => Value::Int(i64::try_from(id % 30_000).unwrap_or_default()),
                };
                values.insert(lasting(&column.name).to_owned(), value.clone());
                value
            });
            let columns: Vec<Value> = columns.collect();
            new.0.truncate(2);
            new.0.extend(columns);
        }
        draft.ops.push(match &present {
            Some(_) => Op::Update(row.0, row.1.clone(), new.clone()),
            None => Op::Insert(row.0, new.clone()),
        });
        let write = Write {
            office: self.writer,
            delete: false,
            on: present.as_ref().and_then(maker),
            undone: false,
            values,
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
                office: self.writer,
                delete: true,
                on: maker(&present),
                undone: false,
                values: BTreeMap::new(),
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
        let table = self.an_added_one().unwrap_or(table);
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

    /// One of the tables that are here and were not at first.
    fn an_added_one(&mut self) -> Option<TableId> {
        let added = self.here.as_ref()?.tables.iter();
        let added: Vec<TableId> = added
            .map(|table| table.id)
            .filter(|id| *id > CARDS)
            .collect();
        let chosen = (!added.is_empty()).then(|| self.rng.random_range(0..added.len() * 3))?;
        added.get(chosen).copied()
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

    /// A key that the offices share, or one of this office's own.
    fn any_key(&mut self, shared: i64) -> i64 {
        if self.rng.random_ratio(1, 3) {
            1000 * (self.office as i64 + 1) + self.rng.random_range(0..2)
        } else {
            self.rng.random_range(0..shared)
        }
    }

    /// Parents come and go while other offices give them children.
    fn family(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let parent = row_of(PARENTS, self.any_key(3));
        let there = self.present(disk, draft, &parent).is_some();
        match self.rng.random_range(0..4) {
            0 => self.put(disk, draft, parent, Value::Null),
            1 if there => {
                let number = parent.1.0[0].clone();
                let own = 1000 * (self.office as i64 + 1);
                for key in (0..4).chain(own..own + 2) {
                    let child = row_of(CHILDREN, key);
                    let present = self.present(disk, draft, &child);
                    if present.is_some_and(|row| row.0[2] == number) {
                        self.delete(disk, draft, child);
                    }
                }
                self.delete(disk, draft, parent);
            }
            _ => {
                let number = parent.1.0[0].clone();
                if !there {
                    self.put(disk, draft, parent, Value::Null);
                }
                let child = row_of(CHILDREN, self.any_key(4));
                self.put(disk, draft, child, number);
            }
        }
    }

    /// A row that refers to a smaller one of its own table, or to itself; or one goes.
    fn grow(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let key = self.any_key(5);
        let row = row_of(TREE, key);
        if self.rng.random_ratio(1, 3) {
            self.delete(disk, draft, row);
            return;
        }
        let below = row_of(TREE, self.rng.random_range(0..5).min(key));
        let extra = match self.present(disk, draft, &below) {
            Some(_) if self.rng.random_ratio(3, 4) => below.1.0[0].clone(),
            _ if self.rng.random_ratio(1, 6) => Value::Int(key),
            _ => Value::Null,
        };
        self.put(disk, draft, row, extra);
    }

    /// A unique value of which there are few is taken, or given back.
    fn register(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let table = if self.rng.random_bool(0.5) {
            MAILS
        } else {
            CODES
        };
        let row = row_of(table, self.any_key(3));
        if self.rng.random_ratio(1, 4) {
            self.delete(disk, draft, row);
        } else {
            let value = Value::Int(self.rng.random_range(0..6));
            self.put(disk, draft, row, value);
        }
    }

    fn ask(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let row = row_of(ASKS, self.any_key(4));
        if self.rng.random_ratio(1, 5) {
            self.delete(disk, draft, row);
        } else {
            self.put(disk, draft, row, Value::Null);
        }
    }

    fn sell(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let number = 1000 * (self.office as i64 + 1) + self.rng.random_range(0..6);
        self.put(disk, draft, row_of(SALES, number), Value::Int(number));
    }

    /// Adds to a counter that is here already, or takes from it.
    fn trade(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let row = row_of(STOCK, self.rng.random_range(0..STOCKS));
        let Some(Value::Int(count)) = self
            .present(disk, draft, &row)
            .and_then(|row| row.0.into_iter().nth(2))
        else {
            return;
        };
        let delta = self.rng.random_range(-9..=9);
        draft.sold.push((row.1.clone(), delta));
        self.put(disk, draft, row, Value::Int(count + delta));
    }

    /// Writes a card, or only one of its columns.
    fn fill_in(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let row = row_of(CARDS, self.any_key(3));
        let extra = Value::Int(self.rng.random_range(0..1000));
        match self.present(disk, draft, &row) {
            Some(mut card) if self.rng.random_bool(0.5) => {
                card.0[2] = extra;
                draft
                    .ops
                    .push(Op::Update(CARDS, row.1.clone(), card.clone()));
                draft.rows.insert(row, Some(card));
            }
            _ => self.put(disk, draft, row, extra),
        }
    }

    /// More than an inbox holds, in one transaction with the two halves of a transfer.
    fn heap(&mut self, disk: &mut Disk, draft: &mut Draft) {
        let amount = self.rng.random_range(0..=SUM);
        let [one, two] = accounts_of(self.office);
        self.put(disk, draft, (ACCOUNTS, one), Value::Int(amount));
        let ballast = format!(" {}", "x".repeat(BULKY.1));
        for number in 0..BULKY.0 {
            let row = row_of(BULK, 1000 * (self.office as i64 + 1) + number);
            self.put_with(disk, draft, row, Value::Int(amount), &ballast);
        }
        self.put(disk, draft, (ACCOUNTS, two), Value::Int(SUM - amount));
    }
}

fn row_of(table: TableId, key: i64) -> RowName {
    (table, Key(vec![Value::Int(key)]))
}
