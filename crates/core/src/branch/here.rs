//! Tables that here are not what the plan says: a migration that ran at this office first, or a step of the schema that
//! this table could not take. What they have in common with the plan goes on; the rest waits.
//!
//! [`Here`] stands between the branch and its database and turns rows of the one shape into rows of the other, so that
//! nobody else needs to know. What has no form here is a row that does not fit, and is noted as such.

use std::collections::{BTreeMap, BTreeSet};

use super::look::narrowed;
use crate::change::{Effect, Key, Row};
use crate::evolution::Lift;
use crate::identity::Digest;
use crate::port::{
    Backlog, Database, DatabaseError, DbResult, Entry, Evolution, Extent, Inspection, Portion,
    Purpose, Taken, Unreadable,
};
use crate::schema::{ColumnId, Schema, Table, TableId};

/// How tables differ from the plan's. None: there is no such table.
pub(super) type Differing = BTreeMap<TableId, Option<Table>>;

/// A database seen through the plan's tables.
pub(super) struct Here<'d, D> {
    pub db: &'d mut D,
    pub differing: Differing,
    /// Those of them that could not take a step of the schema; it is tried again.
    pub refused: BTreeSet<TableId>,
}

impl<D> Here<'_, D> {
    /// What the tables are called here.
    pub fn names(&self, schema: &Schema) -> Vec<String> {
        let tables = self.local(schema).tables;
        tables.into_iter().map(|table| table.name).collect()
    }

    /// The tables as they are here.
    fn local(&self, schema: &Schema) -> Schema {
        let tables = schema
            .tables
            .iter()
            .filter_map(|table| match self.differing.get(&table.id) {
                None => Some(table.clone()),
                Some(local) => local.clone(),
            });
        let mut local = Schema {
            tables: tables.collect(),
            ..schema.clone()
        };
        let mut renamed = BTreeMap::new();
        for table in &local.tables {
            let planned = schema.table(table.id).map(|planned| planned.name.clone());
            renamed.extend(planned.map(|name| (name, table.name.clone())));
        }
        rename_parents(&mut local, &renamed);
        local
    }

    /// The table as it is here; where there is none, nothing.
    fn table<'t>(&'t self, table: &'t Table) -> Option<&'t Table> {
        match self.differing.get(&table.id) {
            None => Some(table),
            Some(local) => local.as_ref(),
        }
    }
}

fn misfit(table: &Table, message: String) -> DatabaseError {
    DatabaseError::Mismatch {
        table: table.name.clone(),
        message,
    }
}

fn lifted_keys(lift: Lift<'_>, keys: Option<&[Key]>) -> Option<Vec<Key>> {
    keys.map(|keys| keys.iter().filter_map(|key| lift.key(key).ok()).collect())
}

impl<D> Here<'_, D> {
    /// What the application here has renamed, retyped or taken away, and the step leaves as it was, is not made again:
    /// takes it out of the goal. Returns how tables differ after the step.
    fn leave(&self, from: &Schema, goal: &mut Schema) -> Differing {
        let mut left = Differing::new();
        let mut renamed = BTreeMap::new();
        for (id, local) in &self.differing {
            let place = goal.tables.iter().position(|table| table.id == *id);
            let (Some(was), Some(place)) = (from.table(*id), place) else {
                continue;
            };
            let Some(becomes) = goal.tables.get_mut(place) else {
                continue;
            };
            // What could not follow before is tried again.
            if self.refused.contains(id) {
                continue;
            }
            let Some(local) = local else {
                if was.name == becomes.name {
                    goal.tables.remove(place);
                    left.insert(*id, None);
                }
                continue;
            };
            if let Some(stays) = left_as(was, becomes, local) {
                renamed.insert(becomes.name.clone(), stays.name.clone());
                *becomes = stays.clone();
                left.insert(*id, Some(stays));
            }
        }
        rename_parents(goal, &renamed);
        left
    }
}

/// What a table becomes in a step that has nothing to do with how the application here has changed it; nothing where the
/// step brings it all.
fn left_as(was: &Table, becomes: &Table, local: &Table) -> Option<Table> {
    let of = |table: &Table, id: ColumnId| {
        let mut columns = table.columns.iter();
        columns.find(|column| column.id == id).cloned()
    };
    let kept = becomes.columns.iter().filter(|column| {
        let before = of(was, column.id);
        of(local, column.id).is_some() || before.is_none_or(|before| before.name != column.name)
    });
    let kept: BTreeSet<ColumnId> = kept.map(|column| column.id).collect();
    let mut stays = narrowed(becomes, &kept)?;
    if was.name == becomes.name {
        stays.name.clone_from(&local.name);
    }
    for column in &mut stays.columns {
        if let (Some(before), Some(here)) = (of(was, column.id), of(local, column.id))
            && before.kind == column.kind
            && here.kind != before.kind
        {
            column.kind = here.kind;
            column.default = here.default;
        }
    }
    (stays != *becomes).then_some(stays)
}

fn rename_parents(schema: &mut Schema, renamed: &BTreeMap<String, String>) {
    for table in &mut schema.tables {
        for reference in &mut table.foreign_keys {
            if let Some(name) = renamed.get(&reference.parent) {
                reference.parent.clone_from(name);
            }
        }
    }
}

impl<D: Database> Database for Here<'_, D> {
    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.db.begin(purpose).await
    }

    async fn commit(&mut self) -> DbResult<()> {
        self.db.commit().await
    }

    async fn rollback(&mut self) -> DbResult<()> {
        self.db.rollback().await
    }

    fn changes_at_a_time(&self) -> usize {
        self.db.changes_at_a_time()
    }

    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        let local = self.local(schema);
        let mut portion = self.db.take(&local, limit).await?;
        let mut changes = Vec::with_capacity(portion.changes.len());
        let mut unreadable = Vec::new();
        for taken in std::mem::take(&mut portion.changes) {
            let (from, to) = (local.table(taken.table), schema.table(taken.table));
            let lift = from.zip(to).map(|(from, to)| Lift { from, to });
            let Some(lift) = lift.filter(|lift| !lift.is_identity()) else {
                changes.push(taken);
                continue;
            };
            match lift.effect(&taken.effect) {
                Ok((effect, ..)) => {
                    let before = taken.before.as_ref().and_then(|row| lift.row(row).ok());
                    changes.push(Taken {
                        effect,
                        before: before.map(|lifted| lifted.row),
                        ..taken
                    });
                }
                Err(problem) => unreadable.push(Unreadable {
                    table: taken.table,
                    key: taken.effect.key(lift.from),
                    problem,
                }),
            }
        }
        portion.changes = changes;
        portion.unreadable.extend(unreadable);
        for unreadable in &mut portion.unreadable {
            if let (Some(from), Some(to)) = (
                local.table(unreadable.table),
                schema.table(unreadable.table),
            ) && let Ok(key) = (Lift { from, to }).key(&unreadable.key)
            {
                unreadable.key = key;
            }
        }
        Ok(portion)
    }

    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        let Some(local) = self.table(table).cloned() else {
            return Ok(BTreeSet::new());
        };
        let there = lifted_keys(
            Lift {
                from: table,
                to: &local,
            },
            keys,
        );
        let captured = self.db.captured(&local, there.as_deref()).await?;
        let back = Lift {
            from: &local,
            to: table,
        };
        Ok(captured
            .iter()
            .filter_map(|key| back.key(key).ok())
            .collect())
    }

    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        let Some(local) = self.table(table).cloned() else {
            return Ok(());
        };
        let there = lifted_keys(
            Lift {
                from: table,
                to: &local,
            },
            keys,
        );
        self.db.recapture(&local, there.as_deref()).await
    }

    async fn mark(&mut self) -> DbResult<()> {
        self.db.mark().await
    }

    async fn backlog(&mut self) -> DbResult<Backlog> {
        self.db.backlog().await
    }

    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        let local = self.local(schema);
        let mut there = Vec::with_capacity(effects.len());
        for (id, effect) in effects {
            let Some(from) = schema.table(*id) else {
                continue;
            };
            let Some(to) = local.table(*id) else {
                return Err(misfit(from, "there is no such table here".into()));
            };
            let lift = Lift { from, to };
            if lift.is_identity() {
                there.push((*id, effect.clone()));
            } else {
                let (effect, ..) = lift.effect(effect).map_err(|why| misfit(from, why))?;
                there.push((*id, effect));
            }
        }
        self.db.write(&local, &there).await
    }

    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        let Some(local) = self.table(table).cloned() else {
            return Ok(BTreeMap::new());
        };
        let there = lifted_keys(
            Lift {
                from: table,
                to: &local,
            },
            Some(keys),
        );
        let rows = self.db.read(&local, &there.unwrap_or_default()).await?;
        let back = Lift {
            from: &local,
            to: table,
        };
        let rows = rows
            .into_iter()
            .filter_map(|(key, row)| Some((back.key(&key).ok()?, back.row(&row).ok()?.row)));
        Ok(rows.collect())
    }

    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        let Some(local) = self.table(table).cloned() else {
            return Ok(Vec::new());
        };
        let there = after.and_then(|key| {
            Lift {
                from: table,
                to: &local,
            }
            .key(key)
            .ok()
        });
        let rows = self.db.chunk(&local, there.as_ref(), limit).await?;
        let back = Lift {
            from: &local,
            to: table,
        };
        Ok(rows
            .iter()
            .filter_map(|row| Some(back.row(row).ok()?.row))
            .collect())
    }

    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        self.db.meta(name).await
    }

    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        self.db.set_meta(name, value).await
    }

    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        self.db.append(stream, entries).await
    }

    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        self.db.entries(stream, from, max_bytes).await
    }

    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        self.db.trim(stream, through).await
    }

    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        self.db.extent(stream).await
    }

    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        self.db.notes(table, keys).await
    }

    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        self.db.set_notes(table, notes).await
    }

    async fn inspect(&mut self) -> DbResult<Inspection> {
        self.db.inspect().await
    }

    async fn definitions(&mut self) -> DbResult<Inspection> {
        self.db.definitions().await
    }

    async fn prepare(&mut self) -> DbResult<()> {
        self.db.prepare().await
    }

    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        let local = self.local(schema);
        self.db.install(&local).await
    }

    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        let local = self.local(schema);
        self.db.shape(&local).await
    }

    async fn hold_still(&mut self, table: &Table) -> DbResult<()> {
        match self.table(table).cloned() {
            Some(local) => self.db.hold_still(&local).await,
            None => Ok(()),
        }
    }

    async fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        let local = self.local(from);
        let mut goal = to.clone();
        let left = self.leave(from, &mut goal);
        let mut done = self.db.evolve(&local, &goal, dropped).await?;
        done.unmade.retain_mut(|(id, check, _)| {
            let tables = goal.table(*id).zip(to.table(*id));
            let planned =
                tables.and_then(|(here, table)| here.condition_in(table, &check.condition));
            planned.map(|said| check.condition = said).is_some()
        });
        // What was not refused is what the plan says now, but for what the step says nothing of.
        self.differing = left;
        for (id, _) in &done.refused {
            self.differing.insert(*id, local.table(*id).cloned());
            self.refused.insert(*id);
        }
        Ok(done)
    }

    async fn missing_capture(&mut self, schema: &Schema) -> DbResult<Vec<TableId>> {
        let local = self.local(schema);
        self.db.missing_capture(&local).await
    }

    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        self.db.create_tables(schema).await
    }

    async fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        let local = self.local(schema);
        self.db.add_foreign_keys(&local).await
    }

    async fn uninstall(&mut self) -> DbResult<()> {
        self.db.uninstall().await
    }
}
