//! How applications change their tables: at the head at any moment, or at a branch first (P10).
//!
//! A name tells what it names: `extra~2` is the column `extra` under its second name. So every office's application
//! knows its tables by looking at them, whichever schema version Branchline has brought them to.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::workload::{CARDS, CHILDREN, LINES, MAILS, ORDERS, table};

/// Separates a name from the number of its renaming.
const RENAMED: char = '~';
/// The columns that every table begins with.
const FIRST: [&str; 3] = ["id", "payload", "extra"];

/// A name without its renamings.
pub fn lasting(name: &str) -> &str {
    name.split(RENAMED).next().unwrap_or(name)
}

/// One change of the definitions.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    AddColumn(Column),
    /// Columns are named by what lasts of their names.
    DropColumn(String),
    RenameColumn(String, String),
    /// The next wider type.
    Widen(String),
    RenameTable(String),
    CreateTable,
    DropTable,
}

/// A change of one table.
#[derive(Clone, Debug)]
pub struct Migration {
    /// What lasts of the table's name.
    pub table: String,
    pub id: TableId,
    pub change: Change,
}

/// What the company knows of its migrations.
#[derive(Debug, Default)]
pub struct Migrations {
    /// The numbers of all tables that ever were, by what lasts of their names.
    pub ids: BTreeMap<String, TableId>,
    /// All schema versions that the head has had.
    pub versions: BTreeMap<u32, Schema>,
    /// What is under way: some branches may have it already, the head has not.
    pub planned: Option<Migration>,
    /// What some branch has already and comes after that.
    pub later: Option<Migration>,
    /// What the head made last: one that is restored makes it again, unless it comes back.
    pub made: Option<Migration>,
    /// Some branch has it.
    pub begun: bool,
    /// The head's tables have changed, its process has not followed since this version.
    pub unfollowed: Option<u32>,
    /// Columns that some branch changed first: what was written to them meanwhile may have come late.
    pub early: BTreeSet<(TableId, String)>,
    /// Tables that were dropped.
    pub dropped: BTreeSet<TableId>,
    counted: u32,
}

/// Whether nothing else knows this table's columns.
fn is_plain(table: TableId) -> bool {
    matches!(table, 1..=4 | ORDERS)
}

fn wider(kind: &Type) -> Option<Type> {
    match kind {
        Type::Int16 => Some(Type::Int32),
        Type::Int32 => Some(Type::Int64),
        Type::Text { max: Some(_) } => Some(Type::Text { max: None }),
        _ => None,
    }
}

/// The column of a table with this lasting name.
pub fn column_of(table: &Table, name: &str) -> Option<usize> {
    table
        .columns
        .iter()
        .position(|column| lasting(&column.name) == name)
}

impl Migrations {
    pub fn new(schema: &Schema) -> Self {
        let ids = schema.tables.iter().map(|t| (t.name.clone(), t.id));
        Self {
            ids: ids.collect(),
            versions: BTreeMap::from([(schema.version, schema.clone())]),
            ..Self::default()
        }
    }

    /// Draws a change that the head's application could make to its tables.
    pub fn draw(&mut self, rng: &mut Xoshiro256PlusPlus, schema: &Schema, widens: bool) {
        self.counted += 1;
        self.begun = false;
        let number = self.counted;
        let changes = |table: &&Table| {
            is_plain(table.id)
                || table.name.starts_with("added")
                || matches!(table.id, CARDS | CHILDREN | LINES | MAILS)
        };
        let tables: Vec<&Table> = schema.tables.iter().filter(changes).collect();
        if tables.is_empty() || rng.random_ratio(1, 9) {
            self.planned = Some(Migration {
                table: format!("added{number}"),
                id: schema.tables_ever + 1,
                change: Change::CreateTable,
            });
            return;
        }
        let table = tables[rng.random_range(0..tables.len())];
        let droppable = |column: &&Column| {
            let name = lasting(&column.name);
            !FIRST.contains(&name) || (name == "extra" && is_plain(table.id))
        };
        let columns: Vec<&Column> = table.columns.iter().filter(droppable).collect();
        let any = |rng: &mut Xoshiro256PlusPlus, of: &[&Column]| {
            (!of.is_empty()).then(|| lasting(&of[rng.random_range(0..of.len())].name).to_owned())
        };
        let change = match rng.random_range(0..10) {
            0..=2 => None,
            3 | 4 => any(rng, &columns).map(Change::DropColumn),
            5 | 6 => {
                let all: Vec<&Column> = table.columns.iter().skip(1).collect();
                any(rng, &all).map(|name| {
                    let new = format!("{name}{RENAMED}{number}");
                    Change::RenameColumn(name, new)
                })
            }
            // The memory fake's foreign keys do not follow a parent's new name.
            7 if table.id != ORDERS => Some(Change::RenameTable(format!(
                "{}{RENAMED}{number}",
                lasting(&table.name)
            ))),
            8 if widens => {
                let narrow: Vec<&Column> = columns
                    .into_iter()
                    .filter(|column| wider(&column.kind).is_some())
                    .collect();
                any(rng, &narrow).map(Change::Widen)
            }
            _ if table.name.starts_with("added") || matches!(table.id, 1 | 2) => {
                rng.random_ratio(1, 2).then_some(Change::DropTable)
            }
            _ => None,
        };
        let change = change.unwrap_or_else(|| {
            let kinds = [
                (Type::Int16, Value::Int(7)),
                (Type::Int32, Value::Int(7)),
                (Type::Text { max: Some(20) }, Value::Text("seven".into())),
                (Type::Text { max: None }, Value::Text("seven".into())),
            ];
            let (kind, value) = kinds[rng.random_range(0..kinds.len())].clone();
            Change::AddColumn(Column {
                name: format!("c{number}"),
                kind,
                nullable: true,
                default: rng.random_bool(0.5).then_some(value),
                generated_key: false,
                id: 0,
            })
        });
        self.planned = Some(Migration {
            table: lasting(&table.name).to_owned(),
            id: table.id,
            change,
        });
    }

    /// The head's process has made a version of what its tables are.
    pub fn followed(&mut self, schema: &Schema) {
        self.unfollowed = None;
        let kept: BTreeSet<TableId> = schema.tables.iter().map(|table| table.id).collect();
        self.dropped = self
            .ids
            .values()
            .copied()
            .filter(|id| !kept.contains(id))
            .collect();
        self.versions.insert(schema.version, schema.clone());
    }
}

impl Migration {
    /// The columns that it touches, by what lasts of their names.
    pub fn column(&self) -> Option<&str> {
        match &self.change {
            Change::AddColumn(column) => Some(lasting(&column.name)),
            Change::DropColumn(name) | Change::RenameColumn(name, _) | Change::Widen(name) => {
                Some(name)
            }
            Change::RenameTable(_) | Change::CreateTable | Change::DropTable => None,
        }
    }

    /// What a new table looks like.
    pub fn new_table(&self) -> Table {
        let mut table = table(0, &self.table, Default::default(), Default::default());
        table.id = self.id;
        table
    }

    /// The table as it is to be; nothing where it lacks what is to be changed, or has it already. Columns are numbered
    /// in both as they stand.
    pub fn altered(&self, from: &Table) -> Option<(Table, Table)> {
        let mut from = from.clone();
        for (number, column) in (1..).zip(&mut from.columns) {
            column.id = number;
        }
        let mut to = from.clone();
        match &self.change {
            Change::AddColumn(column) => {
                if column_of(&from, &column.name).is_some() {
                    return None;
                }
                to.columns.push(column.clone());
            }
            Change::DropColumn(name) => drop(to.columns.remove(column_of(&from, name)?)),
            Change::RenameColumn(name, new) => {
                let at = column_of(&from, name)?;
                if from.columns[at].name == *new {
                    return None;
                }
                to.columns[at].name.clone_from(new);
            }
            Change::Widen(name) => {
                let column = &mut to.columns[column_of(&from, name)?];
                column.kind = wider(&column.kind)?;
            }
            Change::RenameTable(new) if from.name != *new => to.name.clone_from(new),
            _ => return None,
        }
        Some((from, to))
    }
}
