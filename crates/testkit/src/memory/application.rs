//! The application beside the database in memory.

use std::sync::Arc;

use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, First};
use branchline_core::schema::{Schema, Table};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::state::{State, Write};
use crate::conformance::sql::Dialect;
use crate::conformance::{Application, Op};

/// A connection of the application.
#[derive(Debug)]
pub struct MemoryApplication {
    shared: Arc<Shared>,
    open: Option<(State, u64, OwnedSemaphorePermit)>,
}

impl MemoryApplication {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None }
    }

    /// One whole transaction, without waiting: an error where another transaction writes or a constraint is violated.
    pub fn write_now(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        let permit = Arc::clone(&self.shared.writer).try_acquire_owned();
        self.open_with(permit.map_err(|_| "another transaction is writing".to_owned())?);
        let result = self.run_open(schema, ops).and_then(|()| self.commit_open());
        self.open = None;
        result
    }

    /// As [`Self::write_now`], with numbers of captured writes that were drawn earlier.
    pub fn write_late(&mut self, schema: &Schema, ops: &[Op], first: u64) -> Result<(), String> {
        let permit = Arc::clone(&self.shared.writer).try_acquire_owned();
        self.open_with(permit.map_err(|_| "another transaction is writing".to_owned())?);
        let mut last = 0;
        if let Some((work, _, _)) = &mut self.open {
            last = std::mem::replace(&mut work.numbers, first.saturating_sub(1));
        }
        let result = self.run_open(schema, ops);
        if let Some((work, _, _)) = &mut self.open {
            work.numbers = last;
        }
        let result = result.and_then(|()| self.commit_open());
        self.open = None;
        result
    }

    /// The application's own `ALTER TABLE`, without waiting: columns are matched by their numbers in `from`. Nothing is
    /// captured.
    pub fn alter_now(&mut self, from: &Table, to: &Table) -> Result<(), String> {
        self.define_now(|work| work.alter(from, to).map_err(|error| error.to_string()))
    }

    /// The application's `CREATE TABLE`.
    pub fn create_now(&mut self, table: &Table) -> Result<(), String> {
        self.define_now(|work| {
            let schema = Schema {
                tables: vec![table.clone()],
                ..Schema::default()
            };
            work.create_tables(&schema);
            Ok(())
        })
    }

    /// The application's `DROP TABLE`.
    pub fn drop_now(&mut self, name: &str) -> Result<(), String> {
        self.define_now(|work| {
            work.installed.remove(name);
            work.tables
                .remove(name)
                .map(drop)
                .ok_or_else(|| "no such table".into())
        })
    }

    fn define_now(
        &mut self,
        run: impl FnOnce(&mut State) -> Result<(), String>,
    ) -> Result<(), String> {
        let permit = Arc::clone(&self.shared.writer).try_acquire_owned();
        self.open_with(permit.map_err(|_| "another transaction is writing".to_owned())?);
        let (work, _, _) = self.open.as_mut().ok_or("no transaction is open")?;
        let result = run(work).and_then(|()| self.commit_open());
        self.open = None;
        result
    }

    fn open_with(&mut self, permit: OwnedSemaphorePermit) {
        let inner = self.shared.inner();
        let mut work = inner.state.clone();
        drop(inner);
        let transaction = work.next_transaction();
        self.open = Some((work, transaction, permit));
    }

    fn run_open(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        let now = self.shared.inner().now;
        let (work, transaction, _) = self.open.as_mut().ok_or("no transaction is open")?;
        for op in ops {
            let former = work.clone();
            let touched = run(work, schema, op).map_err(|error| error.to_string())?;
            for (table, key, first) in touched {
                if work.installed.contains(&table) {
                    let before = former.table(&table).ok();
                    let before =
                        before.and_then(|stored| stored.rows.get(&key).map(|row| Row::clone(row)));
                    work.capture(Write {
                        table,
                        key,
                        first,
                        at: now,
                        transaction: *transaction,
                        before,
                    });
                }
            }
        }
        Ok(())
    }

    fn commit_open(&mut self) -> Result<(), String> {
        let (work, _, _permit) = self.open.take().ok_or("no transaction is open")?;
        self.shared.inner().state = work;
        Ok(())
    }
}

/// Runs a statement; returns the rows that it wrote, and how they stood before.
fn run(
    work: &mut State,
    schema: &Schema,
    op: &Op,
) -> Result<Vec<(String, Key, First)>, DatabaseError> {
    let (Op::Insert(id, _) | Op::Update(id, _, _) | Op::Delete(id, _)) = op;
    let table = schema
        .table(*id)
        .ok_or_else(|| DatabaseError::Other(format!("table {id} is unknown")))?;
    let taken = |key: &Key| DatabaseError::Constraint {
        table: table.name.clone(),
        message: format!("{key:?} is there already"),
        foreign_key: false,
    };
    let mut touched = Vec::new();
    match op {
        Op::Insert(_, row) => {
            let key = table.key_of(row);
            if work
                .rows_mut(&table.name)?
                .insert(Arc::new(key.clone()), Arc::new(row.clone()))
                .is_some()
            {
                return Err(taken(&key));
            }
            touched.push((table.name.clone(), key, First::Inserted));
        }
        Op::Update(_, key, row) => {
            let new_key = table.key_of(row);
            let rows = work.rows_mut(&table.name)?;
            if rows.remove(key).is_some() {
                touched.push((table.name.clone(), key.clone(), First::Existing));
                let new = (Arc::new(new_key.clone()), Arc::new(row.clone()));
                if rows.insert(new.0, new.1).is_some() {
                    return Err(taken(&new_key));
                }
                if new_key != *key {
                    touched.push((table.name.clone(), new_key, First::Inserted));
                }
            }
        }
        Op::Delete(_, key) => {
            let mut tell = |table: &str, key: &Key| {
                touched.push((table.to_owned(), key.clone(), First::Existing));
            };
            work.delete(&table.name, key, &mut tell)?;
        }
    }
    let rows = touched
        .iter()
        .map(|(table, key, _)| (table.clone(), key.clone()))
        .collect();
    work.check(&rows)?;
    Ok(touched)
}

impl Application for MemoryApplication {
    async fn begin(&mut self) {
        self.open = None;
        let permit = Arc::clone(&self.shared.writer).acquire_owned().await;
        self.open_with(permit.expect("the database stays open"));
    }

    async fn run(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        self.run_open(schema, ops)
    }

    async fn commit(&mut self) -> Result<(), String> {
        self.commit_open()
    }

    async fn roll_back(&mut self) {
        self.open = None;
    }

    async fn define(&mut self, from: &Table, to: &Table, _: &[(Option<Dialect>, String)]) {
        self.alter_now(from, to).expect("the table can be altered");
    }

    async fn break_capture(&mut self, table: &Table) {
        self.shared.inner().state.installed.remove(&table.name);
    }
}
