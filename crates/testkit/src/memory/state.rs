//! What the database holds, and the constraints that its rows obey.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::{Digest, Micros};
use branchline_core::port::{DatabaseError, DbResult, First};
use branchline_core::schema::{Column, ForeignKey, Schema, Table, TableId};
use branchline_core::value::Value;

use super::evolve::unset;
use super::kept::Kept;

/// Everything. A clone shares what neither side changes.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) tables: Kept<BTreeMap<String, Arc<Stored>>>,
    /// The tables as a schema version made them, by number.
    pub(super) evolved: Kept<BTreeMap<TableId, Table>>,
    pub(super) prepared: bool,
    /// The names of the captured tables.
    pub(super) installed: Kept<BTreeSet<String>>,
    /// Captured writes by number.
    pub(super) capture: Arc<BTreeMap<u64, Write>>,
    pub(super) meta: Arc<BTreeMap<String, Vec<u8>>>,
    pub(super) streams: Kept<BTreeMap<String, Arc<Stream>>>,
    pub(super) notes: Kept<BTreeMap<TableId, Arc<Notes>>>,
    pub(super) numbers: u64,
    pub(super) transactions: u64,
}

/// What is noted of a table's rows.
pub(super) type Notes = BTreeMap<Key, Vec<u8>>;

/// Entries by number.
pub(super) type Stream = BTreeMap<u64, Arc<[u8]>>;

/// A table with its rows.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) table: Arc<Table>,
    /// The digest of what an inspection tells of the table.
    pub(super) shape: Digest,
    pub(super) rows: BTreeMap<Arc<Key>, Arc<Row>>,
    /// Whether its foreign keys are in force.
    pub(super) bound: bool,
}

/// The rows that a statement wrote or removed.
pub(super) type Touched = BTreeSet<(String, Key)>;

/// A captured write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) table: String,
    pub(super) key: Key,
    pub(super) first: First,
    pub(super) at: Micros,
    pub(super) transaction: u64,
    /// The row as the write found it.
    pub(super) before: Option<Row>,
}

fn constraint(table: &Table, message: impl Into<String>, foreign_key: bool) -> DatabaseError {
    DatabaseError::Constraint {
        table: table.name.clone(),
        message: message.into(),
        foreign_key,
    }
}

fn cells<'a>(row: &'a Row, columns: &[u16]) -> Vec<&'a Value> {
    columns.iter().map(|&at| &row.0[usize::from(at)]).collect()
}

impl State {
    pub(super) fn objects(&self) -> Vec<String> {
        let own = self.prepared.then(|| "Branchline's own".to_owned());
        let capture = self
            .installed
            .iter()
            .map(|name| format!("capture of {name}"));
        self.tables
            .keys()
            .cloned()
            .chain(capture)
            .chain(own)
            .collect()
    }

    pub(super) fn table(&self, name: &str) -> DbResult<&Stored> {
        let missing = || DatabaseError::Mismatch {
            table: name.into(),
            message: "there is no such table".into(),
        };
        self.tables.get(name).map(Arc::as_ref).ok_or_else(missing)
    }

    pub(super) fn rows_mut(&mut self, name: &str) -> DbResult<&mut BTreeMap<Arc<Key>, Arc<Row>>> {
        let missing = || DatabaseError::Mismatch {
            table: name.into(),
            message: "there is no such table".into(),
        };
        self.tables
            .get_mut(name)
            .map(|stored| &mut Arc::make_mut(stored).rows)
            .ok_or_else(missing)
    }

    pub(super) fn create_tables(&mut self, schema: &Schema) -> Vec<String> {
        let mut created = Vec::new();
        for table in &schema.tables {
            if !self.tables.contains_key(&table.name) {
                let stored = Stored::new(table, BTreeMap::new(), false);
                self.tables.insert(table.name.clone(), Arc::new(stored));
                created.push(table.name.clone());
            }
        }
        created
    }

    /// Puts the foreign keys of the schema's tables in force. Those that rows do not obey are left out, and the first of them
    /// is told.
    pub(super) fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        let mut outcome = Ok(());
        for table in &schema.tables {
            let Some(stored) = self.tables.get_mut(&table.name) else {
                continue;
            };
            if stored.bound {
                continue;
            }
            Arc::make_mut(stored).bound = true;
            let keys = stored.rows.keys();
            let rows = keys.map(|key| (table.name.clone(), Key::clone(key)));
            let rows = rows.collect();
            if let Err(error) = self.check(&rows) {
                if let Some(stored) = self.tables.get_mut(&table.name) {
                    Arc::make_mut(stored).bound = false;
                }
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    pub(super) fn install(&mut self, schema: &Schema) -> DbResult<()> {
        for table in &schema.tables {
            self.table(&table.name)?;
        }
        self.installed = schema
            .tables
            .iter()
            .map(|table| table.name.clone())
            .collect();
        let installed = &self.installed;
        Arc::make_mut(&mut self.capture).retain(|_, write| installed.contains(&write.table));
        Ok(())
    }

    pub(super) fn next_transaction(&mut self) -> u64 {
        self.transactions += 1;
        self.transactions
    }

    pub(super) fn capture(&mut self, write: Write) {
        self.numbers += 1;
        Arc::make_mut(&mut self.capture).insert(self.numbers, write);
    }

    /// Deletes, then puts, then looks whether all constraints hold. No foreign key's action is run: a child left behind
    /// breaks its constraint.
    pub(super) fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        let named = |id: TableId| {
            let unknown = || DatabaseError::Other(format!("table {id} is not in the schema"));
            schema.table(id).ok_or_else(unknown)
        };
        let mut touched = Touched::new();
        for (id, effect) in effects {
            let table = named(*id)?;
            if !effect.fits(table) {
                let message = format!("{effect:?} has not its columns");
                return Err(DatabaseError::Mismatch {
                    table: table.name.clone(),
                    message,
                });
            }
            if let Effect::Delete(key) = effect {
                self.rows_mut(&table.name)?.remove(key);
                touched.insert((table.name.clone(), Key::clone(key)));
            }
        }
        for (id, effect) in effects {
            let table = named(*id)?;
            if let Effect::Put(row) = effect {
                let key = table.key_of(row);
                let row = self.table(&table.name)?.unproject(table, row)?;
                self.rows_mut(&table.name)?
                    .insert(Arc::new(key.clone()), Arc::new(row));
                touched.insert((table.name.clone(), key));
            }
        }
        self.check(&touched)
    }

    /// Deletes a row and what its foreign keys' actions reach; tells of every row removed or changed.
    pub(super) fn delete(
        &mut self,
        name: &str,
        key: &Key,
        told: &mut impl FnMut(&str, &Key),
    ) -> DbResult<bool> {
        let Some(row) = self.rows_mut(name)?.remove(key) else {
            return Ok(false);
        };
        told(name, key);
        let parent = self.table(name)?.table.clone();
        // References without an action are looked at when the statement is checked.
        let acts = |reference: &&ForeignKey| {
            reference.parent == name
                && matches!(reference.on_delete.as_str(), "CASCADE" | "SET NULL")
        };
        let followed = |child: &&Arc<Stored>| {
            child.bound && child.table.foreign_keys.iter().any(|one| acts(&one))
        };
        let children: Vec<Arc<Stored>> = self.tables.values().filter(followed).cloned().collect();
        for child in &children {
            for reference in child.table.foreign_keys.iter().filter(acts) {
                let Some(gone) = referred(&parent, &row, reference) else {
                    continue;
                };
                let followers = child
                    .rows
                    .iter()
                    .filter(|(_, row)| cells(row, &reference.columns) == gone);
                for (follower, row) in followers {
                    if reference.on_delete == "CASCADE" {
                        self.delete(&child.table.name, follower, told)?;
                    } else {
                        let mut row = Row::clone(row);
                        reference
                            .columns
                            .iter()
                            .for_each(|&at| row.0[usize::from(at)] = Value::Null);
                        self.rows_mut(&child.table.name)?
                            .insert(Arc::clone(follower), Arc::new(row));
                        told(&child.table.name, follower);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether the rows touched, and those that refer to them, obey the constraints.
    pub(super) fn check(&self, touched: &Touched) -> DbResult<()> {
        for (name, key) in touched {
            let stored = self.table(name)?;
            if let Some(row) = stored.rows.get(key) {
                stored.check_empty(row)?;
                self.check_parents(stored, row)?;
            }
        }
        let tables: BTreeSet<&String> = touched.iter().map(|(name, _)| name).collect();
        for stored in self.tables.values() {
            if tables.contains(&stored.table.name) {
                stored.check_unique()?;
            }
            let refers = stored
                .table
                .foreign_keys
                .iter()
                .any(|reference| tables.contains(&reference.parent));
            if stored.bound && refers {
                stored
                    .rows
                    .values()
                    .try_for_each(|row| self.check_parents(stored, row))?;
            }
        }
        Ok(())
    }

    fn check_parents(&self, child: &Stored, row: &Row) -> DbResult<()> {
        for reference in child.table.foreign_keys.iter().filter(|_| child.bound) {
            let Ok(parent) = self.table(&reference.parent) else {
                continue;
            };
            let wanted = cells(row, &reference.columns);
            if !wanted.iter().any(|value| value.is_null()) && !parent.has(reference, &wanted) {
                let message = format!("{wanted:?} is not in `{}`", reference.parent);
                return Err(constraint(&child.table, message, true));
            }
        }
        Ok(())
    }
}

/// The cells of a parent's row that a foreign key refers to.
fn referred<'a>(parent: &Table, row: &'a Row, reference: &ForeignKey) -> Option<Vec<&'a Value>> {
    let at = |name: &String| {
        parent
            .columns
            .iter()
            .position(|column| column.name == *name)
    };
    reference
        .parent_columns
        .iter()
        .map(|name| row.0.get(at(name)?))
        .collect()
}

impl Stored {
    pub(super) fn new(table: &Table, rows: BTreeMap<Arc<Key>, Arc<Row>>, bound: bool) -> Self {
        Self {
            shape: Digest::of(format!("{:?}", unset(table)).as_bytes()),
            table: Arc::new(table.clone()),
            rows,
            bound,
        }
    }

    /// A row's columns as this table knows them, by name.
    pub(super) fn project(&self, table: &Table, row: &Row) -> DbResult<Row> {
        let here = self.table.columns.iter().map(|column| &column.name);
        if here.eq(table.columns.iter().map(|column| &column.name)) {
            return Ok(row.clone());
        }
        let value = |name: &String| {
            let at = self
                .table
                .columns
                .iter()
                .position(|column| column.name == *name);
            at.and_then(|at| row.0.get(at).cloned())
                .ok_or_else(|| DatabaseError::Mismatch {
                    table: table.name.clone(),
                    message: format!("there is no column `{name}`"),
                })
        };
        let values = table.columns.iter().map(|column| value(&column.name));
        values.collect::<DbResult<_>>().map(Row)
    }

    /// The row to keep when a row of this table's columns is put: columns that it lacks stay what they are.
    pub(super) fn unproject(&self, table: &Table, row: &Row) -> DbResult<Row> {
        let here = self.table.columns.iter().map(|column| &column.name);
        if here.eq(table.columns.iter().map(|column| &column.name)) {
            return Ok(row.clone());
        }
        let there = self.rows.get(&table.key_of(row));
        if let Some(column) = table
            .columns
            .iter()
            .find(|column| !self.table.columns.iter().any(|one| one.name == column.name))
        {
            return Err(DatabaseError::Mismatch {
                table: table.name.clone(),
                message: format!("there is no column `{}`", column.name),
            });
        }
        let value = |(at, column): (usize, &Column)| {
            let given = table.columns.iter().position(|one| one.name == column.name);
            match given {
                Some(given) => row.0[given].clone(),
                None => there.map_or_else(
                    || column.default.clone().unwrap_or(Value::Null),
                    |there| there.0[at].clone(),
                ),
            }
        };
        Ok(Row(self
            .table
            .columns
            .iter()
            .enumerate()
            .map(value)
            .collect()))
    }

    fn has(&self, reference: &ForeignKey, wanted: &[&Value]) -> bool {
        let key = self.table.key_columns().map(|column| &column.name);
        if key.eq(&reference.parent_columns) {
            return self
                .rows
                .contains_key(&Key(wanted.iter().map(|&value| value.clone()).collect()));
        }
        self.rows
            .values()
            .any(|row| referred(&self.table, row, reference).is_some_and(|cells| cells == wanted))
    }

    fn check_empty(&self, row: &Row) -> DbResult<()> {
        let mut columns = self.table.columns.iter().zip(&row.0);
        match columns.find(|(column, value)| !column.nullable && value.is_null()) {
            Some((column, _)) => Err(constraint(
                &self.table,
                format!("`{}` must not be NULL", column.name),
                false,
            )),
            None => Ok(()),
        }
    }

    pub(super) fn check_unique(&self) -> DbResult<()> {
        for unique in &self.table.unique {
            let mut seen = BTreeSet::new();
            for row in self.rows.values() {
                let cells = cells(row, unique);
                if !cells.iter().any(|value| value.is_null()) && !seen.insert(cells.clone()) {
                    return Err(constraint(
                        &self.table,
                        format!("{cells:?} is there already"),
                        false,
                    ));
                }
            }
        }
        Ok(())
    }
}
