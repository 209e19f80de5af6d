//! How the definitions of tables change: by the application, and by a schema version that is followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use branchline_core::change::{Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Evolution};
use branchline_core::schema::{
    Column, ConflictRule, Direction, InsertRule, Schema, Table, TableId,
};
use branchline_core::value::{Type, Value, convert};

use super::state::{State, Stored};

/// The table as an inspection tells it: without what the plan says.
pub(super) fn unset(table: &Table) -> Table {
    let mut plain = Table {
        id: 0,
        direction: Direction::default(),
        conflict: ConflictRule::default(),
        insert: InsertRule::default(),
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        ..table.clone()
    };
    for column in &mut plain.columns {
        column.id = 0;
    }
    plain
}

impl State {
    pub(super) fn shape(&self, schema: &Schema) -> Digest {
        let mut told = Vec::new();
        for (name, stored) in self.tables.iter() {
            told.extend_from_slice(name.as_bytes());
            told.push(0);
            if schema.table_named(name).is_some() {
                told.extend_from_slice(&stored.shape.0);
            }
        }
        Digest::of(&told)
    }

    pub(super) fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        let mut done = Evolution::default();
        let gone = from
            .tables
            .iter()
            .filter(|table| dropped.contains(&table.id) && to.table(table.id).is_none());
        for table in gone {
            self.tables.remove(&table.name);
        }
        // What has been made so already is not made twice.
        let marked = |state: &Self, table: &Table| state.evolved.get(&table.id) == Some(table);
        let former = |state: &Self, table: &Table| {
            if marked(state, table) {
                Some(table.clone())
            } else {
                from.table(table.id).cloned()
            }
        };
        // All names change at once: they may go round in a circle.
        let mut aside = BTreeMap::new();
        for table in &to.tables {
            let former = former(self, table).filter(|former| former.name != table.name);
            if let Some(former) = former
                && let Some(stored) = self.tables.remove(&former.name)
            {
                aside.insert(table.id, (former.name, stored));
            }
        }
        let mut names = BTreeMap::new();
        for table in &to.tables {
            let former = former(self, table);
            let moved = aside.remove(&table.id);
            let was = moved.as_ref().map_or(&table.name, |(name, _)| name).clone();
            let stored = moved.map(|(_, stored)| stored);
            let Some(stored) = stored.or_else(|| self.tables.get(&table.name).cloned()) else {
                continue;
            };
            self.tables.insert(table.name.clone(), Arc::clone(&stored));
            match self.reshape(&was, former.as_ref(), table) {
                Ok(found) => {
                    let found = found.into_iter().map(|column| (table.id, column));
                    done.found.extend(found);
                }
                Err(problem) => {
                    self.tables.remove(&table.name);
                    self.tables.insert(was, stored);
                    done.refused.push((table.id, problem));
                    continue;
                }
            }
            names.insert(was, table.name.clone());
            self.evolved.insert(table.id, table.clone());
        }
        self.rename_captured(&names);
        let mut goal = to.clone();
        goal.tables
            .retain(|table| done.refused.iter().all(|(id, _)| *id != table.id));
        self.create_tables(&goal);
        // A table that is left out keeps its capture.
        let refused = done.refused.iter().filter_map(|(id, _)| from.table(*id));
        let kept: Vec<String> = refused.map(|table| table.name.clone()).collect();
        let kept = kept
            .into_iter()
            .filter(|name| self.installed.contains(name));
        let installed = goal.tables.iter().map(|table| table.name.clone());
        self.installed = installed.chain(kept).collect();
        let tables = &self.tables;
        Arc::make_mut(&mut self.capture).retain(|_, write| tables.contains_key(&write.table));
        Ok(done)
    }

    fn rename_captured(&mut self, names: &BTreeMap<String, String>) {
        for write in Arc::make_mut(&mut self.capture).values_mut() {
            if let Some(name) = names.get(&write.table) {
                name.clone_into(&mut write.table);
            }
        }
    }

    /// Gives captured writes and notes the keys that their rows have now.
    fn rekey(&mut self, name: &str, former: &Table, to: &Table) {
        let rows = self.tables.get(&to.name).map(Arc::clone);
        let becomes = |key: &Key, before: Option<&Row>| {
            let held = |column: &Column| {
                let mut was = former.key_columns().zip(&key.0);
                let (was, value) = was.find(|(was, _)| was.id == column.id)?;
                convert(&was.kind, &column.kind, value)
            };
            let same = |row: &&Row| {
                let mut columns = to.columns.iter().zip(&row.0);
                columns.all(|(column, value)| held(column).is_none_or(|held| held == *value))
            };
            let mut rows = rows
                .iter()
                .flat_map(|stored| stored.rows.values().map(Arc::as_ref));
            let all_held = to.key_columns().all(|column| held(column).is_some());
            let row = if all_held {
                None
            } else {
                rows.find(same).or(before)
            };
            let part = |(at, column): (usize, &Column)| {
                let row = row.and_then(|row| to.key_of(row).0.get(at).cloned());
                held(column)
                    .or(row)
                    .unwrap_or_else(|| filling(column, true))
            };
            Key(to.key_columns().enumerate().map(part).collect())
        };
        let kinds = |table: &Table| -> Vec<(u32, Type)> {
            let kind = |column: &Column| (column.id, column.kind.clone());
            table.key_columns().map(kind).collect()
        };
        if kinds(former) == kinds(to) {
            return;
        }
        for write in Arc::make_mut(&mut self.capture).values_mut() {
            if write.table == name {
                write.key = becomes(&write.key, write.before.as_ref());
            }
        }
        if let Some(notes) = self.notes.get_mut(&to.id) {
            let notes = Arc::make_mut(notes);
            let all = std::mem::take(notes);
            let moved = all
                .into_iter()
                .map(|(key, note)| (becomes(&key, None), note));
            notes.extend(moved);
        }
    }

    /// The application's own `ALTER TABLE`: the table gets this definition, its columns matched by their numbers in
    /// `from`.
    pub(super) fn alter(&mut self, from: &Table, to: &Table) -> DbResult<()> {
        let Some(stored) = self.tables.remove(&from.name) else {
            let problem = format!("there is no table `{}`", from.name);
            return Err(DatabaseError::Other(problem));
        };
        self.tables.insert(to.name.clone(), stored);
        self.reshape(&from.name, Some(from), to)
            .map_err(DatabaseError::Other)?;
        if self.installed.remove(&from.name) {
            self.installed.insert(to.name.clone());
        }
        let renamed = BTreeMap::from([(from.name.clone(), to.name.clone())]);
        self.rename_captured(&renamed);
        Ok(())
    }
}

/// What rows that are there hold in a new column.
fn filling(column: &Column, key: bool) -> Value {
    match &column.default {
        Some(value) => value.clone(),
        None if column.nullable && !key => Value::Null,
        None => match &column.kind {
            Type::Bool => Value::Bool(false),
            Type::Int16 | Type::Int32 | Type::Int64 => Value::Int(0),
            Type::Float32 | Type::Float64 => Value::Float(0.0),
            Type::Bytes => Value::Bytes(Vec::new()),
            Type::Decimal { .. } => Value::Text("0".into()),
            Type::Date => Value::Text("2000-01-01".into()),
            Type::Timestamp => Value::Text("2000-01-01 00:00:00".into()),
            Type::TimestampTz => Value::Text("2000-01-01 00:00:00+00".into()),
            Type::Enum { labels, .. } => Value::Text(labels.first().cloned().unwrap_or_default()),
            _ => Value::Text(String::new()),
        },
    }
}

/// Where each column of a new definition has its values from.
struct Reshape<'a> {
    from: &'a Table,
    to: &'a Table,
    sources: Vec<Option<usize>>,
}

impl Reshape<'_> {
    fn row(&self, row: &Row) -> Result<Row, String> {
        let mut values = Vec::new();
        for (at, (column, source)) in self.to.columns.iter().zip(&self.sources).enumerate() {
            let value = match source {
                Some(from) => {
                    let was = &self.from.columns[*from].kind;
                    convert(was, &column.kind, &row.0[*from]).ok_or_else(|| {
                        format!(
                            "column `{}`: {:?} is no {}",
                            column.name, row.0[*from], column.kind
                        )
                    })?
                }
                None => filling(column, self.to.is_key(at)),
            };
            if value.is_null() && !column.nullable {
                return Err(format!("column `{}` would be NULL", column.name));
            }
            values.push(value);
        }
        Ok(Row(values))
    }
}

impl State {
    /// Gives a stored table another definition, and tells of new columns that were there already.
    fn reshape(
        &mut self,
        was: &str,
        former: Option<&Table>,
        to: &Table,
    ) -> Result<Vec<u32>, String> {
        let Some(stored) = self.tables.get(&to.name).cloned() else {
            return Ok(Vec::new());
        };
        let here = |name: &str| {
            stored
                .table
                .columns
                .iter()
                .position(|column| column.name == name)
        };
        let mut found = Vec::new();
        let mut sources = Vec::new();
        for column in &to.columns {
            let before =
                former.and_then(|former| former.columns.iter().find(|one| one.id == column.id));
            let taken = former.is_some_and(|former| {
                former
                    .columns
                    .iter()
                    .any(|one| one.name == column.name && one.id != column.id)
            });
            let old = before.and_then(|before| here(&before.name));
            // The column that had the name and goes; only its type can tell that it is not the new one.
            let goes = before.is_none()
                && former.is_some_and(|former| {
                    let mut columns = former.columns.iter();
                    columns.any(|one| {
                        let stands = here(&one.name).map(|at| &stored.table.columns[at].kind);
                        one.name == column.name && stands == Some(&one.kind)
                    })
                });
            let new = here(&column.name).filter(|_| (!taken || old.is_none()) && !goes);
            if before.is_none() && new.is_some() && former.is_some() {
                found.push(column.id);
            }
            sources.push(new.or(old));
        }
        // What neither version knows is the application's own, and stays.
        let mut goal = to.clone();
        for (at, column) in stored.table.columns.iter().enumerate() {
            let mut versions = former.into_iter().chain([to]);
            let known = versions.any(|one| one.columns.iter().any(|c| c.name == column.name));
            if former.is_some() && !known && !sources.contains(&Some(at)) {
                goal.columns.push(column.clone());
                sources.push(Some(at));
            }
        }
        let reshape = Reshape {
            from: &stored.table,
            to: &goal,
            sources,
        };
        let mut rows = BTreeMap::new();
        for row in stored.rows.values() {
            let row = reshape.row(row)?;
            rows.insert(Arc::new(to.key_of(&row)), Arc::new(row));
        }
        if rows.len() < stored.rows.len() {
            return Err("two rows would have one key".into());
        }
        let evolved = Stored::new(&goal, rows, stored.bound);
        evolved.check_unique().map_err(|error| error.to_string())?;
        for write in Arc::make_mut(&mut self.capture).values_mut() {
            if write.table == was {
                let before = write.before.take();
                write.before = before.and_then(|row| reshape.row(&row).ok());
            }
        }
        self.tables.insert(to.name.clone(), Arc::new(evolved));
        if let Some(former) = former {
            self.rekey(was, former, to);
        }
        Ok(found)
    }
}
