//! Writing and reading the shared tables' rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{DatabaseError, DbResult, Purpose, Unreadable};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::Value;
use rusqlite::params_from_iter;

use super::SqliteDatabase;
use super::actions::{check_updates, delete_free, delete_held, key_columns};
use super::connection::run;
use super::error::{failure, is_for_foreign_key, mismatch, on};
use super::local::Local;
use super::put::put_rows;
use super::sql::{columns, places, quoted, select_row};
use super::stored::{Stored, bound, row_at};

/// Rows remembered for the message of a foreign key that fails at the commit.
const TOUCHED: usize = 4096;

/// A row that this transaction wrote.
#[derive(Clone, Debug)]
pub(super) struct Touched {
    pub(super) table: String,
    pub(super) key_columns: Arc<[String]>,
    pub(super) key: Key,
}

/// The effects on one table.
#[derive(Default)]
struct Batch<'a> {
    deletes: Vec<&'a Key>,
    puts: Vec<&'a Row>,
}

impl SqliteDatabase {
    /// Deletes first, children before parents, then puts, parents before children, then the deletes that had to wait.
    pub(super) fn write_effects(
        &mut self,
        schema: &Schema,
        effects: &[(TableId, Effect)],
    ) -> DbResult<()> {
        self.mark()?;
        self.courtesy.writes(effects.len());
        let batches = sort(schema, effects)?;
        for (table, batch) in schema.tables.iter().zip(&batches).rev() {
            if !batch.deletes.is_empty() {
                self.touch(table, batch.deletes.iter().map(|key| (*key).clone()))?;
            }
        }
        for (table, batch) in schema.tables.iter().zip(&batches) {
            if !batch.puts.is_empty() {
                self.touch(table, batch.puts.iter().map(|row| table.key_of(row)))?;
            }
        }
        if !self.applying()?.concerned || self.applying()?.deferred {
            return self.write_batches(schema, effects, &batches);
        }
        // Rows mostly come in an order in which no foreign key is broken, even for a moment.
        run(&self.connection, "SAVEPOINT branchline_ordered")?;
        let mut done = self.write_batches(schema, effects, &batches);
        if done.as_ref().is_err_and(is_for_foreign_key) {
            run(&self.connection, "ROLLBACK TO branchline_ordered")?;
            // It throws away all prepared statements.
            self.connection
                .execute_batch("PRAGMA defer_foreign_keys = ON")
                .map_err(failure)?;
            self.applying()?.deferred = true;
            done = self.write_batches(schema, effects, &batches);
        }
        done?;
        run(&self.connection, "RELEASE branchline_ordered")
    }

    fn write_batches(
        &mut self,
        schema: &Schema,
        effects: &[(TableId, Effect)],
        batches: &[Batch<'_>],
    ) -> DbResult<()> {
        let enforced = self.applying()?.purpose == Purpose::Apply;
        let references = self.references.load(&self.connection)?;
        let references = if enforced { references } else { &[] };
        check_updates(&self.connection, references, schema, effects)?;
        let mut held = Vec::new();
        for (table, batch) in schema.tables.iter().zip(batches).rev() {
            held.extend(delete_free(
                &self.connection,
                references,
                table,
                &batch.deletes,
            )?);
        }
        for (table, batch) in schema.tables.iter().zip(batches) {
            put_rows(&self.connection, table, &batch.puts)?;
        }
        delete_held(&self.connection, references, schema, held)
    }

    /// Silences the capture triggers.
    fn mark(&mut self) -> DbResult<()> {
        if self.applying()?.marked {
            return Ok(());
        }
        self.connection
            .prepare_cached("INSERT INTO branchline_applying(x) VALUES (1)")
            .and_then(|mut marker| marker.execute([]))
            .map_err(failure)?;
        self.applying()?.marked = true;
        Ok(())
    }

    /// Remembers rows of tables that foreign keys refer from or to.
    fn touch(&mut self, table: &Table, keys: impl Iterator<Item = Key>) -> DbResult<()> {
        let concerned = self
            .references
            .load(&self.connection)?
            .iter()
            .any(|reference| {
                reference.child.eq_ignore_ascii_case(&table.name)
                    || reference.parent.eq_ignore_ascii_case(&table.name)
            });
        if concerned {
            self.applying()?.concerned = true;
            let local = Local::of(&self.connection, table)?;
            let key_columns: Arc<[String]> = key_columns(table).into();
            let touched = &mut self.applying()?.touched;
            let room = TOUCHED.saturating_sub(touched.len());
            for key in keys.take(room) {
                touched.push(Touched {
                    table: table.name.clone(),
                    key_columns: Arc::clone(&key_columns),
                    key: local.key(table, &key)?,
                });
            }
        }
        Ok(())
    }

    pub(super) fn read_rows(&self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        let mut select = self
            .connection
            .prepare_cached(&select_row(table))
            .map_err(on(&table.name))?;
        let local = Local::of(&self.connection, table)?;
        let mut found = BTreeMap::new();
        for key in keys {
            // What the column cannot hold, it does not hold.
            let Ok(stored) = local.key(table, key) else {
                continue;
            };
            let mut rows = select
                .query(params_from_iter(bound(&stored)))
                .map_err(on(&table.name))?;
            if let Some(row) = rows.next().map_err(on(&table.name))?
                && let Ok(row) = row_at(&local, table, row, 0)?
            {
                found.insert(key.clone(), row);
            }
        }
        Ok(found)
    }

    pub(super) fn read_chunk(
        &self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        let (mut found, mut passed) = (Vec::new(), 0);
        loop {
            let wanted = limit - found.len();
            let page = self.read_page(table, after, wanted, passed)?;
            let last = page.len() < wanted;
            passed += page.len();
            found.extend(page.into_iter().flatten());
            if last || found.len() == limit {
                return Ok(found);
            }
        }
    }

    /// Up to `limit` rows in key order, the first `passed` after the row with key `after` left out.
    pub(super) fn read_page(
        &self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
        passed: usize,
    ) -> DbResult<Vec<Result<Row, Unreadable>>> {
        let local = Local::of(&self.connection, table)?;
        let after = after.map(|key| local.key(table, key)).transpose()?;
        let key = columns("t", table.key_columns());
        let beyond = match after {
            Some(_) => format!("WHERE ({key}) > ({}) ", places(table.key.len())),
            None => String::new(),
        };
        let select = format!(
            "SELECT {} FROM {} AS t {beyond}ORDER BY {key} LIMIT ? OFFSET ?",
            columns("t", table.columns.iter()),
            quoted(&table.name),
        );
        let mut select = self
            .connection
            .prepare_cached(&select)
            .map_err(on(&table.name))?;
        let place = [limit, passed].map(|count| Value::Int(count.try_into().unwrap_or(i64::MAX)));
        let after = after.iter().flat_map(bound);
        let mut rows = select
            .query(params_from_iter(after.chain(place.iter().map(Stored))))
            .map_err(on(&table.name))?;
        let mut page = Vec::new();
        while let Some(row) = rows.next().map_err(on(&table.name))? {
            page.push(row_at(&local, table, row, 0)?);
        }
        Ok(page)
    }
}

/// The effects by table, in the schema's order; each must have the shape of its table's rows.
fn sort<'a>(schema: &Schema, effects: &'a [(TableId, Effect)]) -> DbResult<Vec<Batch<'a>>> {
    let places: BTreeMap<TableId, usize> = schema
        .tables
        .iter()
        .enumerate()
        .map(|(at, table)| (table.id, at))
        .collect();
    let mut batches: Vec<Batch<'a>> = schema.tables.iter().map(|_| Batch::default()).collect();
    for (id, effect) in effects {
        let Some((&at, table)) = places.get(id).zip(schema.table(*id)) else {
            return Err(DatabaseError::Other(format!(
                "table number {id} is not in the schema"
            )));
        };
        if !effect.fits(table) {
            return Err(mismatch(
                &table.name,
                "a row to write does not have the columns and types of the plan",
            ));
        }
        match effect {
            Effect::Put(row) => batches[at].puts.push(row),
            Effect::Delete(key) => batches[at].deletes.push(key),
        }
    }
    Ok(batches)
}
