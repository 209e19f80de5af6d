//! The port's steps, each on the transaction's own copy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DbResult, Entry, Evolution, Extent, First, Inspection, Portion, Purpose,
};
use branchline_core::schema::{Schema, Table, TableId};

use super::evolve::unset;
use super::state::{State, Write};
use super::{LostCommit, MemoryDatabase, Open, capture, gone, misuse};

impl Database for MemoryDatabase {
    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.open = None;
        let writer = match purpose {
            Purpose::Read => None,
            Purpose::Take | Purpose::Apply | Purpose::Load => {
                let writer = Arc::clone(&self.shared.writer).acquire_owned().await;
                Some(writer.map_err(|_| misuse("the database is closed"))?)
            }
        };
        let inner = self.shared.inner();
        if !inner.reachable {
            return Err(gone());
        }
        let (work, life) = (inner.state.clone(), inner.life);
        drop(inner);
        self.open = Some(Open {
            purpose,
            work,
            life,
            failed: false,
            unit: VecDeque::new(),
            _writer: writer,
        });
        Ok(())
    }

    async fn commit(&mut self) -> DbResult<()> {
        let open = self
            .open
            .take()
            .ok_or_else(|| misuse("no transaction is open"))?;
        let mut inner = self.shared.inner();
        if !inner.reachable || open.life != inner.life {
            return Err(gone());
        }
        if open.failed {
            return Err(misuse("the transaction has failed; roll it back"));
        }
        let lost = inner.lost_commit.take();
        if open.purpose != Purpose::Read && lost != Some(LostCommit::Undone) {
            inner.state = open.work;
        }
        if lost.is_some() { Err(gone()) } else { Ok(()) }
    }

    async fn rollback(&mut self) -> DbResult<()> {
        self.open = None;
        Ok(())
    }

    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        self.step(|open, _| {
            if open.purpose != Purpose::Take {
                return Err(misuse("only a transaction for taking takes"));
            }
            capture::take(&mut open.work, &mut open.unit, schema, limit)
        })
    }

    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        self.step(|open, _| {
            let of_table = open
                .work
                .capture
                .values()
                .filter(|write| write.table == table.name);
            let all: BTreeSet<Key> = of_table.map(|write| write.key.clone()).collect();
            Ok(match keys {
                None => all,
                Some(keys) => keys
                    .iter()
                    .filter(|key| all.contains(key))
                    .cloned()
                    .collect(),
            })
        })
    }

    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        self.change(|open, now| {
            let (keys, first) = match keys {
                None => (
                    {
                        let rows = &open.work.table(&table.name)?.rows;
                        rows.keys().map(|key| Key::clone(key)).collect()
                    },
                    First::Unknown,
                ),
                Some(keys) => (keys.to_vec(), First::Existing),
            };
            for key in keys {
                // Each row for itself: a first copy of a large table goes in small units.
                let transaction = open.work.next_transaction();
                open.work.capture(Write {
                    table: table.name.clone(),
                    key,
                    first,
                    at: now,
                    transaction,
                    before: None,
                });
            }
            Ok(())
        })
    }

    async fn mark(&mut self) -> DbResult<()> {
        // Every write names its transaction.
        Ok(())
    }

    async fn backlog(&mut self) -> DbResult<Backlog> {
        self.step(|open, _| {
            let writes = open.work.capture.len() as u64;
            Ok(Backlog {
                writes,
                oldest: open.work.capture.values().map(|write| write.at).min(),
            })
        })
    }

    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        self.step(|open, _| match open.purpose {
            Purpose::Apply | Purpose::Load => open.work.write(schema, effects),
            Purpose::Take | Purpose::Read => {
                Err(misuse("only a transaction for applying writes rows"))
            }
        })
    }

    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        self.step(|open, _| {
            let stored = open.work.table(&table.name)?;
            let found = keys
                .iter()
                .filter_map(|key| Some((key, stored.rows.get(key)?)));
            found
                .map(|(key, row)| Ok((key.clone(), stored.project(table, row)?)))
                .collect()
        })
    }

    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.step(|open, _| {
            let stored = open.work.table(&table.name)?;
            let from = after.map_or(Unbounded, Excluded);
            let rows = stored.rows.range::<Key, _>((from, Unbounded)).take(limit);
            rows.map(|(_, row)| stored.project(table, row)).collect()
        })
    }

    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        self.step(|open, _| Ok(open.work.meta.get(name).cloned()))
    }

    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        self.change(|open, _| {
            let meta = Arc::make_mut(&mut open.work.meta);
            match value {
                Some(value) => meta.insert(name.into(), value.to_vec()),
                None => meta.remove(name),
            };
            Ok(())
        })
    }

    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        self.change(|open, _| {
            let kept = Arc::make_mut(open.work.streams.entry(stream.into()).or_default());
            for entry in entries {
                if kept
                    .insert(entry.number, entry.bytes.as_slice().into())
                    .is_some()
                {
                    return Err(misuse(&format!(
                        "stream `{stream}` has an entry {} already",
                        entry.number
                    )));
                }
            }
            Ok(())
        })
    }

    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        self.step(|open, _| {
            let (mut entries, mut bytes) = (Vec::new(), 0_usize);
            for (&number, kept) in open
                .work
                .streams
                .get(stream)
                .into_iter()
                .flat_map(|kept| kept.range(from..))
            {
                bytes = bytes.saturating_add(kept.len());
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(Entry {
                    number,
                    bytes: kept.to_vec(),
                });
            }
            Ok(entries)
        })
    }

    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        self.change(|open, _| {
            if let Some(kept) = open.work.streams.get_mut(stream) {
                Arc::make_mut(kept).retain(|&number, _| number > through);
            }
            Ok(())
        })
    }

    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        self.step(|open, _| {
            let Some(kept) = open.work.streams.get(stream) else {
                return Ok(Extent::default());
            };
            Ok(Extent {
                first: kept.keys().next().copied().unwrap_or(0),
                last: kept.keys().next_back().copied().unwrap_or(0),
                entries: kept.len() as u64,
                bytes: kept.values().map(|bytes| bytes.len() as u64).sum(),
            })
        })
    }

    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        self.step(|open, _| {
            let Some(notes) = open.work.notes.get(&table.id) else {
                return Ok(BTreeMap::new());
            };
            Ok(match keys {
                None => notes.as_ref().clone(),
                Some(keys) => keys
                    .iter()
                    .filter_map(|key| Some((key.clone(), notes.get(key)?.clone())))
                    .collect(),
            })
        })
    }

    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        self.change(|open, _| {
            let kept = Arc::make_mut(open.work.notes.entry(table.id).or_default());
            for (key, note) in notes {
                match note {
                    Some(note) => kept.insert(key.clone(), note.clone()),
                    None => kept.remove(key),
                };
            }
            Ok(())
        })
    }

    async fn inspect(&mut self) -> DbResult<Inspection> {
        self.alone(|state| {
            let tables = state
                .tables
                .values()
                .map(|stored| unset(&stored.table))
                .collect();
            let named = state.installed.iter();
            let captured = named.filter_map(|name| {
                let stored = state.tables.get(name)?;
                (stored.table.id != 0).then(|| (stored.table.id, name.clone()))
            });
            Ok(Inspection {
                tables,
                captured: captured.collect(),
                ..Inspection::default()
            })
        })
        .await
    }

    async fn prepare(&mut self) -> DbResult<()> {
        self.alone(|state| {
            state.prepared = true;
            Ok(())
        })
        .await
    }

    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        self.alone(|state| state.install(schema)).await
    }

    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        self.step(|open, _| Ok(open.work.shape(schema)))
    }

    async fn hold_still(&mut self, _table: &Table) -> DbResult<()> {
        Ok(())
    }

    async fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        self.change(|open, _| open.work.evolve(from, to, dropped))
    }

    async fn missing_capture(&mut self, schema: &Schema) -> DbResult<Vec<TableId>> {
        self.alone(|state| {
            let missing = schema
                .tables
                .iter()
                .filter(|table| !state.installed.contains(&table.name));
            Ok(missing.map(|table| table.id).collect())
        })
        .await
    }

    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        self.alone(|state| Ok(state.create_tables(schema))).await
    }

    async fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        self.alone(|state| Ok(state.add_foreign_keys(schema)))
            .await?
    }

    async fn uninstall(&mut self) -> DbResult<()> {
        self.alone(|state| {
            *state = State {
                tables: std::mem::take(&mut state.tables),
                ..State::default()
            };
            Ok(())
        })
        .await
    }
}
