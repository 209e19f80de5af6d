//! The shared tables as the plan sees them. Batches name a schema version; rows stand in its column order.

use minicbor::{Decode, Encode};

use crate::change::{Key, Row};
use crate::check::{Check, Checks, Condition};
use crate::value::Type;

/// The number of a schema version, given by the head, counted from 1.
pub type SchemaVersion = u32;

/// The number of a table, given by the head, never used again for another table.
pub type TableId = u32;

/// The number of a column within its table, given by the head and counted from 1, never used again for another column.
/// It stays when the column is renamed or retyped, so that rows of one schema version can be read under another (trap 18).
pub type ColumnId = u32;

/// All shared tables at one schema version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Schema {
    /// The version's number.
    #[n(0)]
    pub version: SchemaVersion,
    /// The tables, parents before children where their foreign keys allow it.
    #[n(1)]
    pub tables: Vec<Table>,
    /// The highest number ever given to a table.
    #[n(2)]
    pub tables_ever: TableId,
}

/// Which way a table's changes go.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Between the head and the branches.
    #[default]
    #[n(0)]
    Both,
    /// From the branches to the head (and on to the other branches).
    #[n(1)]
    Up,
    /// From the head to the branches.
    #[n(2)]
    Down,
}

/// How the head decides when a change was not made on its present version of the row.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ConflictRule {
    /// The later change wins, by its capture time; a tie goes to the smaller office name.
    #[default]
    #[n(0)]
    Newest,
    /// The head's row stands.
    #[n(1)]
    Head,
    /// The branch's change stands.
    #[n(2)]
    Branch,
    /// Column by column against the common base; where both sides changed one column, the later change wins it.
    #[n(3)]
    Merge,
    /// A person decides; until then the branch's row is held.
    #[n(4)]
    Hold,
}

/// What two inserts of one key mean when they share no base (SETTLED 7).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum InsertRule {
    /// Two different business rows: the later one at the head is held.
    #[default]
    #[n(0)]
    Hold,
    /// The key is natural: decided like any other conflict.
    #[n(1)]
    Newest,
}

/// A shared table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Table {
    /// Its number.
    #[n(0)]
    pub id: TableId,
    /// Its name; a PostgreSQL table outside `public` is `schema.table`.
    #[n(1)]
    pub name: String,
    /// The columns that travel (generated ones do not), in row order.
    #[n(2)]
    pub columns: Vec<Column>,
    /// The primary key, as indexes into `columns`, in key order.
    #[n(3)]
    pub key: Vec<u16>,
    /// Unique constraints besides the key, as indexes into `columns`.
    #[n(4)]
    pub unique: Vec<Vec<u16>>,
    /// Foreign keys whose two ends are both shared.
    #[n(5)]
    pub foreign_keys: Vec<ForeignKey>,
    /// Which way its changes go.
    #[n(6)]
    pub direction: Direction,
    /// How its conflicts are decided.
    #[n(7)]
    pub conflict: ConflictRule,
    /// What two inserts of one key mean.
    #[n(8)]
    pub insert: InsertRule,
    /// Columns whose concurrent changes add up.
    #[n(9)]
    pub counters: Vec<Counter>,
    /// Keep the row that a change was made on also where no rule needs it, so that a person can go back to it.
    #[n(10)]
    pub before: bool,
    /// The highest number ever given to a column.
    #[n(11)]
    pub columns_ever: ColumnId,
    /// Indexes besides the key and the unique constraints, as indexes into `columns`. Only those over plain columns.
    #[n(12)]
    pub indexes: Vec<Vec<u16>>,
    /// Check constraints that mean the same everywhere. They come and go with the head's.
    #[n(13)]
    pub checks: Checks,
}

/// How a table's changes travel and are decided; the plan sets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Which way its changes go.
    pub direction: Direction,
    /// How its conflicts are decided.
    pub conflict: ConflictRule,
    /// What two inserts of one key mean.
    pub insert: InsertRule,
    /// Columns whose concurrent changes add up.
    pub counters: Vec<Counter>,
    /// Keep the row that a change was made on.
    pub before: bool,
}

/// A numeric column whose concurrent changes add up instead of overwriting each other.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Counter {
    /// The column, as an index into the table's columns.
    #[n(0)]
    pub column: u16,
    /// A sum below this is reported (overselling); it stands nevertheless, since it is what happened.
    #[n(1)]
    pub floor: Option<i64>,
}

/// A column that travels.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Column {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// Its logical type.
    #[n(1)]
    pub kind: Type,
    /// Whether NULL is allowed.
    #[n(2)]
    pub nullable: bool,
    /// Its default, where it is a plain literal in canonical form that every engine can state.
    #[n(3)]
    pub default: Option<crate::value::Value>,
    /// Whether the database generates values for it (identity, serial, AUTOINCREMENT).
    #[n(4)]
    pub generated_key: bool,
    /// Its number; 0 until the head gives one.
    #[n(5)]
    pub id: ColumnId,
}

/// A foreign key between two shared tables.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ForeignKey {
    /// The referring columns, as indexes into this table's columns.
    #[n(0)]
    pub columns: Vec<u16>,
    /// The name of the table referred to.
    #[n(1)]
    pub parent: String,
    /// The columns referred to, by name.
    #[n(2)]
    pub parent_columns: Vec<String>,
    /// The referential action on delete, as SQL text (`NO ACTION`, `CASCADE`, `SET NULL`, ...).
    #[n(3)]
    pub on_delete: String,
    /// The referential action on update, as SQL text.
    #[n(4)]
    pub on_update: String,
}

impl Schema {
    /// The table with this number.
    pub fn table(&self, id: TableId) -> Option<&Table> {
        self.tables.iter().find(|table| table.id == id)
    }

    /// The table with this name.
    pub fn table_named(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// Gives numbers to tables and columns that have none.
    pub fn number(&mut self) {
        let highest = self.tables.iter().map(|table| table.id).max();
        self.tables_ever = self.tables_ever.max(highest.unwrap_or(0));
        for table in &mut self.tables {
            if table.id == 0 {
                self.tables_ever += 1;
                table.id = self.tables_ever;
            }
            let highest = table.columns.iter().map(|column| column.id).max();
            table.columns_ever = table.columns_ever.max(highest.unwrap_or(0));
            for column in &mut table.columns {
                if column.id == 0 {
                    table.columns_ever += 1;
                    column.id = table.columns_ever;
                }
            }
        }
    }

    /// Puts parents before children. Tables in a cycle keep their relative order.
    pub fn sort_parents_first(&mut self) {
        let mut left = std::mem::take(&mut self.tables);
        while !left.is_empty() {
            let free = left.iter().position(|table| {
                table.foreign_keys.iter().all(|reference| {
                    reference.parent == table.name
                        || !left.iter().any(|other| other.name == reference.parent)
                })
            });
            self.tables.push(left.remove(free.unwrap_or(0)));
        }
    }
}

impl Table {
    /// The key of a row of this table.
    pub fn key_of(&self, row: &Row) -> Key {
        Key(self
            .key
            .iter()
            .filter_map(|&at| row.0.get(usize::from(at)).cloned())
            .collect())
    }

    /// Its checks, but for those that do not fit it.
    pub fn fitting_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.0.iter().filter(|check| check.fits(self))
    }

    /// Its checks that are made at other offices. One of a counter is not: the sum of all that happened stands, whatever it is, and
    /// what an office shows of it meanwhile may be below what the head's row says.
    pub fn made_checks(&self) -> impl Iterator<Item = &Check> {
        self.fitting_checks().filter(|check| !self.counts(check))
    }

    /// Whether a check speaks of a counter.
    pub fn counts(&self, check: &Check) -> bool {
        let mut counters = self.counters.iter().map(|one| usize::from(one.column));
        counters.any(|column| check.condition.names(column))
    }

    /// What a condition on this table's rows is of another version of it, told by the columns' numbers; nothing where a
    /// column is gone.
    pub fn condition_in(&self, other: &Self, condition: &Condition) -> Option<Condition> {
        condition.moved(&|at| {
            let id = self.columns.get(usize::from(at))?.id;
            let place = other.columns.iter().position(|column| column.id == id)?;
            u16::try_from(place).ok()
        })
    }

    /// The checks that another version of this table does not have any more.
    pub fn checks_gone_in(&self, other: &Self) -> impl Iterator<Item = &Check> {
        self.fitting_checks().filter(|check| {
            let there = self.condition_in(other, &check.condition);
            !there.is_some_and(|condition| other.checks.say(&condition))
        })
    }

    /// The checks to be made that another version of this table does not have.
    pub fn checks_new_since(&self, other: &Self) -> impl Iterator<Item = &Check> {
        let new = self.checks_gone_in(other);
        new.filter(|check| !self.counts(check))
    }

    /// The table's rules.
    pub fn rules(&self) -> Rules {
        Rules {
            direction: self.direction,
            conflict: self.conflict,
            insert: self.insert,
            counters: self.counters.clone(),
            before: self.before,
        }
    }

    /// Gives the table other rules.
    pub fn set_rules(&mut self, rules: Rules) {
        self.direction = rules.direction;
        self.conflict = rules.conflict;
        self.insert = rules.insert;
        self.counters = rules.counters;
        self.before = rules.before;
    }

    /// Whether deciding needs a row as it was before a branch changed it, so that capture must keep it.
    pub fn keeps_before(&self) -> bool {
        self.before || self.conflict == ConflictRule::Merge || !self.counters.is_empty()
    }

    /// Whether a column belongs to the key.
    pub fn is_key(&self, column: usize) -> bool {
        self.key.iter().any(|&at| usize::from(at) == column)
    }

    /// The columns of the key, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key
            .iter()
            .filter_map(|&at| self.columns.get(usize::from(at)))
    }

    /// Whether the row has the right number of columns, each holding its type.
    pub fn fits(&self, row: &Row) -> bool {
        row.0.len() == self.columns.len()
            && self
                .columns
                .iter()
                .zip(&row.0)
                .all(|(column, value)| column.kind.holds(value))
    }

    /// Whether a row that fits has a whole key.
    pub fn has_key(&self, row: &Row) -> bool {
        self.key.iter().all(|&at| {
            row.0
                .get(usize::from(at))
                .is_some_and(|value| !value.is_null())
        })
    }

    /// Whether the key has the right number of values, each holding its type and none NULL.
    pub fn fits_key(&self, key: &Key) -> bool {
        key.0.len() == self.key.len()
            && self
                .key_columns()
                .zip(&key.0)
                .all(|(column, value)| !value.is_null() && column.kind.holds(value))
    }
}
