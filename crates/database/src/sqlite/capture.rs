//! Taking what the triggers captured, and asking about it.
//!
//! A `take` groups the next unit ([`super::plan`]) by row into the temporary `branchline_taking` and removes it from the
//! capture; where it is large, later calls page through it. Nobody else can write meanwhile, so the present rows read on
//! the way are one snapshot, and memory is bounded by `limit`. What was not fetched by the commit goes back. The image of
//! a row's first write goes with it, the other images are dropped.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Micros;
use branchline_core::port::{Backlog, DatabaseError, DbResult, First, Portion, Taken, Unreadable};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::canonical;
use rusqlite::params_from_iter;

use super::SqliteDatabase;
use super::connection::run;
use super::error::{failure, on};
use super::image;
use super::local::Local;
use super::plan::Plan;
use super::sql::{NOW, key_slots, list, places, quoted, select_row};
use super::stored::{Copied, bound, key_at, row_at};
use super::triggers;

pub(super) const SLOTS: &str = "k0, k1, k2, k3, k4, k5, k6, k7";

/// Where the key starts in a row of `branchline_taking` as [`SqliteDatabase::take_portion`] reads it.
pub(super) const KEY_AT: usize = 4;

/// What a page of `branchline_taking` holds.
#[derive(Default)]
struct Page {
    changes: Vec<Taken>,
    unreadable: Vec<Unreadable>,
    /// The number of the last write in it.
    through: i64,
}

impl SqliteDatabase {
    pub(super) fn take_portion(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        let limit = limit.max(1);
        if !self.taking()?.taking {
            if !self.has_captured(schema)? {
                return Ok(Portion::default());
            }
            self.gather(&shared(schema), limit)?;
            self.taking()?.taking = true;
        }
        let page = self.fetch(schema, limit)?;
        let left = self
            .connection
            .prepare_cached("DELETE FROM temp.branchline_taking WHERE first <= ?1")
            .and_then(|mut done| done.execute([page.through]))
            .and_then(|_| {
                let mut left = self
                    .connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM temp.branchline_taking)")?;
                left.query_row([], |row| row.get(0))
            })
            .map_err(failure)?;
        self.taking()?.taking = left;
        Ok(Portion {
            changes: page.changes,
            unreadable: page.unreadable,
            open: left,
            more: left || self.plan.as_ref().is_some_and(Plan::more),
        })
    }

    fn has_captured(&self, schema: &Schema) -> DbResult<bool> {
        let some = format!(
            "SELECT EXISTS (SELECT 1 FROM branchline_capture WHERE tbl IN ({}))",
            shared(schema)
        );
        self.connection
            .prepare_cached(&some)
            .and_then(|mut some| some.query_row([], |row| row.get(0)))
            .map_err(failure)
    }

    /// Moves the next unit into `branchline_taking`.
    fn gather(&mut self, tables: &str, limit: usize) -> DbResult<()> {
        let planned = std::mem::replace(&mut self.taking()?.planned, true);
        if !planned {
            self.write_marks()?;
        }
        let mut known = self.plan.take().filter(|plan| !plan.is_empty());
        if let Some(plan) = &mut known
            && !planned
            && !plan.renew(&self.connection, tables)?
        {
            known = None;
        }
        // A unit that goes on beyond what is left of a plan may end in the next one, or in one that looks further.
        let ends = |plan: &Plan| plan.next(limit).is_some() || !plan.more();
        let mut plan = known.filter(ends);
        for looks in [1, 2, 4] {
            if plan.as_ref().is_none_or(|plan| !ends(plan)) {
                plan = Some(Plan::make(&self.connection, tables, looks * limit)?);
            }
        }
        let through = match plan.and_then(|plan| plan.next(limit).map(|unit| (unit, plan))) {
            Some((unit, mut plan)) => {
                plan.take(unit);
                self.plan = Some(plan).filter(Plan::more);
                unit.through
            }
            None => i64::MAX,
        };
        self.move_unit(tables, through)
    }

    /// Moves what is captured of these tables up to this number into `branchline_taking`: for each key its first write,
    /// with the rows of that write's image behind it.
    fn move_unit(&self, tables: &str, through: i64) -> DbResult<()> {
        let empty = "DELETE FROM temp.branchline_taking";
        run(&self.connection, empty)?;
        let moves = [
            format!(
                "INSERT INTO temp.branchline_taking(first, tbl, op, at, {SLOTS})
                 SELECT g.first, c.tbl, c.op, g.at, {SLOTS}
                 FROM (SELECT min(number) AS first, max(at) AS at FROM branchline_capture
                       WHERE number <= ?1 AND tbl IN ({tables}) AND op <> 'B' GROUP BY tbl, {SLOTS}) AS g
                 JOIN branchline_capture AS c ON c.number = g.first"
            ),
            format!(
                "INSERT INTO temp.branchline_taking(first, tbl, op, at, {SLOTS})
                 SELECT c.number, c.tbl, c.op, c.at, {SLOTS} FROM branchline_capture AS c
                 WHERE c.number <= ?1 AND c.tbl IN ({tables}) AND c.op = 'B'
                     AND c.number - 1 - c.at IN (SELECT first FROM temp.branchline_taking)"
            ),
            format!("DELETE FROM branchline_capture WHERE number <= ?1 AND tbl IN ({tables})"),
            "DELETE FROM branchline_part WHERE number <= ?1".to_owned(),
        ];
        moves.iter().try_for_each(|sql| {
            let mut one = self.connection.prepare_cached(sql).map_err(failure)?;
            one.execute([through]).map(drop).map_err(failure)
        })
    }

    /// The next keys of `branchline_taking` with their present rows.
    fn fetch(&self, schema: &Schema, limit: usize) -> DbResult<Page> {
        let all = format!(
            "SELECT first, tbl, op, at, {SLOTS} FROM temp.branchline_taking ORDER BY first"
        );
        let mut all = self.connection.prepare_cached(&all).map_err(failure)?;
        let mut rows = all.query([]).map_err(failure)?;
        let mut selects: BTreeMap<TableId, (&Table, Arc<Local>, String)> = BTreeMap::new();
        let (mut page, mut fetched) = (Page::default(), 0);
        while let Some(row) = rows.next().map_err(failure)? {
            if !image::is_image(row)? {
                if fetched == limit {
                    break;
                }
                fetched += 1;
                let id: TableId = row.get(1).map_err(failure)?;
                let (table, local, select) = match selects.entry(id) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let table = schema.table(id).ok_or_else(|| outside(id))?;
                        let local = Local::of(&self.connection, table)?;
                        new.insert((table, local, select_row(table)))
                    }
                };
                match self.taken(local, table, select, row)? {
                    Some(Ok(taken)) => page.changes.push(taken),
                    Some(Err(unreadable)) => page.unreadable.push(unreadable),
                    None => {}
                }
            }
            page.through = row.get(0).map_err(failure)?;
        }
        Ok(page)
    }

    /// The net change behind a row of `branchline_taking`. None where a row came and went under a key that cannot be
    /// read: no other office ever heard of it.
    fn taken(
        &self,
        local: &Local,
        table: &Table,
        select: &str,
        captured: &rusqlite::Row<'_>,
    ) -> DbResult<Option<Result<Taken, Unreadable>>> {
        let key = key_at(local, table, captured, KEY_AT)?;
        let effect = match (self.present(local, table, select, captured)?, key) {
            (Some(Err(unreadable)), _) => return Ok(Some(Err(unreadable))),
            (Some(Ok(row)), _) => Effect::Put(row),
            (None, Ok(key)) => Effect::Delete(key),
            (None, Err(_)) => return Ok(None),
        };
        let first = match captured.get_ref(2).map_err(failure)?.as_str() {
            Ok("I") => First::Inserted,
            Ok("X") => First::Unknown,
            _ => First::Existing,
        };
        let at: Option<i64> = captured.get(3).map_err(failure)?;
        let before = if table.keeps_before() && first == First::Existing {
            let write = captured.get(0).map_err(failure)?;
            image::read(&self.connection, table, &effect.key(table), write)?
        } else {
            None
        };
        Ok(Some(Ok(Taken {
            table: table.id,
            effect,
            first,
            at: Micros(at.unwrap_or_default()),
            before,
        })))
    }

    /// The row whose key stands in a row of `branchline_taking`, looked up by what is stored there, not by its
    /// canonical form.
    fn present(
        &self,
        local: &Local,
        table: &Table,
        select: &str,
        captured: &rusqlite::Row<'_>,
    ) -> DbResult<Option<Result<Row, Unreadable>>> {
        let stored: Vec<Copied<'_>> = (KEY_AT..KEY_AT + table.key.len())
            .map(|at| captured.get_ref(at).map(Copied))
            .collect::<Result<_, _>>()
            .map_err(failure)?;
        let mut select = self
            .connection
            .prepare_cached(select)
            .map_err(on(&table.name))?;
        let mut rows = select
            .query(params_from_iter(stored))
            .map_err(on(&table.name))?;
        match rows.next().map_err(on(&table.name))? {
            Some(row) => row_at(local, table, row, 0).map(Some),
            None => Ok(None),
        }
    }

    /// Gives back to the capture what was gathered and not fetched.
    pub(super) fn put_back_untaken(&mut self) -> DbResult<()> {
        self.plan = None;
        let back = format!(
            "INSERT INTO branchline_capture(tbl, op, at, {SLOTS})
             SELECT tbl, op, at, {SLOTS} FROM temp.branchline_taking ORDER BY first"
        );
        run(&self.connection, &back)?;
        run(&self.connection, "DELETE FROM temp.branchline_taking")
    }

    /// The captured writes as a table expression, including those gathered and not yet returned.
    fn source(&self) -> String {
        let writes = |table: &str| format!("SELECT tbl, at, {SLOTS} FROM {table} WHERE op <> 'B'");
        let captured = writes("branchline_capture");
        if self.transaction.as_ref().is_some_and(|open| open.taking) {
            format!(
                "({captured} UNION ALL {})",
                writes("temp.branchline_taking")
            )
        } else {
            format!("({captured})")
        }
    }

    pub(super) fn captured_keys(
        &self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeSet<Key>> {
        // A key may come in another spelling than stands here.
        let wanted: Option<BTreeMap<Key, &Key>> =
            keys.map(|keys| keys.iter().map(|key| (folded(table, key), key)).collect());
        if wanted.as_ref().is_some_and(BTreeMap::is_empty) {
            return Ok(BTreeSet::new());
        }
        let select = format!(
            "SELECT {} FROM {} WHERE tbl = ?1",
            key_slots(table.key.len()),
            self.source()
        );
        let mut select = self.connection.prepare_cached(&select).map_err(failure)?;
        let mut rows = select.query([table.id]).map_err(failure)?;
        let local = Local::of(&self.connection, table)?;
        let mut found = BTreeSet::new();
        while let Some(row) = rows.next().map_err(failure)? {
            // One that cannot be read has the name under which it will be reported.
            let key = key_at(&local, table, row, 0)?.unwrap_or_else(|unreadable| unreadable.key);
            match &wanted {
                None => drop(found.insert(key)),
                Some(wanted) => {
                    found.extend(wanted.get(&folded(table, &key)).map(|it| (*it).clone()))
                }
            }
        }
        Ok(found)
    }

    pub(super) fn capture_again(&self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        let into = triggers::into(table);
        let Some(keys) = keys else {
            let every = triggers::captured(table, "X", "t");
            let every = format!("{into} SELECT {every} FROM {} AS t", quoted(&table.name));
            return self
                .connection
                .execute(&every, [])
                .map(drop)
                .map_err(on(&table.name));
        };
        let one = format!(
            "{into} SELECT {}, 'U', {NOW}, {}",
            table.id,
            places(table.key.len())
        );
        let mut one = self.connection.prepare_cached(&one).map_err(failure)?;
        let local = Local::of(&self.connection, table)?;
        for key in keys {
            let stored = local.key(table, key)?;
            one.execute(params_from_iter(bound(&stored)))
                .map_err(failure)?;
        }
        Ok(())
    }

    pub(super) fn waiting(&self) -> DbResult<Backlog> {
        let count = format!("SELECT count(*), min(at) FROM {}", self.source());
        self.connection
            .prepare_cached(&count)
            .and_then(|mut count| {
                count.query_row([], |row| {
                    let oldest: Option<i64> = row.get(1)?;
                    Ok(Backlog {
                        writes: row.get::<_, i64>(0)?.unsigned_abs(),
                        oldest: oldest.map(Micros),
                    })
                })
            })
            .map_err(failure)
    }
}

/// The key in the one spelling that comparisons use.
fn folded(table: &Table, key: &Key) -> Key {
    let values = table.key_columns().zip(&key.0);
    Key(values
        .map(|(column, value)| canonical(&column.kind, value).into_owned())
        .collect())
}

/// The numbers of the schema's tables, for `IN`.
fn shared(schema: &Schema) -> String {
    list(schema.tables.iter().map(|table| table.id.to_string()))
}

fn outside(id: TableId) -> DatabaseError {
    DatabaseError::Other(format!(
        "table number {id} is captured and not in the schema"
    ))
}
