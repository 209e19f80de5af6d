//! How the definitions of tables change: by the application, and by a schema version that is followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use branchline_core::change::Row;
use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Evolution};
use branchline_core::schema::{ConflictRule, Direction, InsertRule, Schema, Table, TableId};
use branchline_core::value::{Value, convert};

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
        let told = |(name, stored): (&String, &Arc<Stored>)| {
            let shared = schema.table_named(name).is_some();
            (name.clone(), shared.then(|| unset(&stored.table)))
        };
        let tables: Vec<_> = self.tables.iter().map(told).collect();
        Digest::of(format!("{tables:?}").as_bytes())
    }

    pub(super) fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        let mut done = Evolution::default();
        for table in from
            .tables
            .iter()
            .filter(|table| dropped.contains(&table.id))
        {
            self.tables.remove(&table.name);
        }
        for table in &to.tables {
            let former = from.table(table.id);
            if let Some(former) = former.filter(|former| former.name != table.name) {
                if let Some(stored) = self.tables.remove(&former.name) {
                    self.tables.insert(table.name.clone(), stored);
                    self.rename_captured(&former.name, &table.name);
                }
            }
            match self.reshape(former, table) {
                Ok(found) => {
                    let found = found.into_iter().map(|column| (table.id, column));
                    done.found.extend(found);
                }
                Err(problem) => done.refused.push((table.id, problem)),
            }
        }
        self.create_tables(to);
        self.installed = to.tables.iter().map(|table| table.name.clone()).collect();
        Ok(done)
    }

    fn rename_captured(&mut self, former: &str, name: &str) {
        for write in Arc::make_mut(&mut self.capture).values_mut() {
            if write.table == former {
                name.clone_into(&mut write.table);
            }
        }
    }

    /// The application's own `ALTER TABLE`: the table gets this definition, its columns matched by their numbers in
    /// `from`.
    pub(super) fn alter(&mut self, from: &Table, to: &Table) -> DbResult<()> {
        let Some(stored) = self.tables.remove(&from.name) else {
            return Err(DatabaseError::Other(format!(
                "there is no table `{}`",
                from.name
            )));
        };
        self.tables.insert(to.name.clone(), stored);
        self.reshape(Some(from), to).map_err(DatabaseError::Other)?;
        if self.installed.remove(&from.name) {
            self.installed.insert(to.name.clone());
        }
        self.rename_captured(&from.name, &to.name);
        Ok(())
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
        for (column, source) in self.to.columns.iter().zip(&self.sources) {
            let value = match source {
                Some(at) => {
                    let was = &self.from.columns[*at].kind;
                    convert(was, &column.kind, &row.0[*at]).ok_or_else(|| {
                        format!(
                            "column `{}`: {:?} is no {}",
                            column.name, row.0[*at], column.kind
                        )
                    })?
                }
                None => column.default.clone().unwrap_or(Value::Null),
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
    fn reshape(&mut self, former: Option<&Table>, to: &Table) -> Result<Vec<u32>, String> {
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
            let new = here(&column.name).filter(|_| !taken || old.is_none());
            if before.is_none() && new.is_some() && former.is_some() {
                found.push(column.id);
            }
            sources.push(new.or(old));
        }
        let reshape = Reshape {
            from: &stored.table,
            to,
            sources,
        };
        let mut rows = BTreeMap::new();
        for row in stored.rows.values() {
            let row = reshape.row(row)?;
            rows.insert(to.key_of(&row), row);
        }
        if rows.len() < stored.rows.len() {
            return Err("two rows would have one key".into());
        }
        let evolved = Stored {
            table: to.clone(),
            rows,
            bound: stored.bound,
        };
        evolved.check_unique().map_err(|error| error.to_string())?;
        for write in Arc::make_mut(&mut self.capture).values_mut() {
            if write.table == to.name {
                let before = write.before.take();
                write.before = before.and_then(|row| reshape.row(&row).ok());
            }
        }
        self.tables.insert(to.name.clone(), Arc::new(evolved));
        Ok(found)
    }
}
