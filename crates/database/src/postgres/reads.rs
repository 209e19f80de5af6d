//! The rows of a portion, as they are in the transaction's snapshot and as they were before.

use std::collections::BTreeMap;
use std::sync::Arc;

use branchline_core::change::{Effect, Key, Row as CoreRow};
use branchline_core::port::{DbResult, First, Portion, Taken, Unreadable};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::{Type, Value};
use futures_util::future::join_all;
use tokio_postgres::types::Type as Wire;
use tokio_postgres::{Client, Row, Statement};

use super::books::get;
use super::capture::parse_key;
use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::error::on_table;
use super::layout::given;
use super::net::{Image, Net, Place};
use super::types::{self, Array};

/// How much of an unreadable value is quoted.
const QUOTED: usize = 40;

/// Fetches the rows as they were before, for those of which they are kept and not at hand yet.
pub(super) async fn befores(
    db: &mut PostgresDatabase,
    schema: &Schema,
    nets: &mut [Net],
) -> DbResult<()> {
    let kept = |net: &&Net| {
        net.first == First::Existing
            && net.old.is_none()
            && schema.table(net.table).is_some_and(Table::keeps_before)
    };
    let places: Vec<Place> = nets.iter().filter(kept).map(|net| net.place).collect();
    if places.is_empty() {
        return Ok(());
    }
    let sql = "SELECT ctid, old FROM branchline.capture WHERE ctid = ANY ($1) AND old IS NOT NULL";
    let mut found = BTreeMap::new();
    for row in db.query(sql, &[Wire::TID_ARRAY], &[&places]).await? {
        found.insert(get::<Place>(&row, 0)?, Image(get(&row, 1)?));
    }
    for net in nets {
        if let Some(image) = found.remove(&net.place) {
            net.old = Some(image);
        }
    }
    Ok(())
}

/// Reads the rows as they are in the snapshot.
pub(super) async fn changes(
    db: &mut PostgresDatabase,
    schema: &Schema,
    nets: Vec<Net>,
) -> DbResult<Portion> {
    let reads = Reads::prepare(db, schema, nets).await?;
    reads.run(db.shared_client()?).await
}

/// The reads of a portion: one statement for each table, sent together.
pub(super) struct Reads {
    tables: Vec<TableRead>,
    count: usize,
    unreadable: Vec<Unreadable>,
}

struct TableRead {
    table: Arc<Table>,
    statement: Statement,
    /// Columns whose type here is not the plan's: they come as texts.
    texts: Vec<bool>,
    /// Place in the portion, and what was captured, beside each key.
    nets: Vec<(usize, Net)>,
    keys: Vec<Key>,
}

impl Reads {
    pub(super) async fn prepare(
        db: &mut PostgresDatabase,
        schema: &Schema,
        nets: Vec<Net>,
    ) -> DbResult<Self> {
        let count = nets.len();
        let mut by_table: BTreeMap<TableId, Vec<(usize, Net)>> = BTreeMap::new();
        for (place, net) in nets.into_iter().enumerate() {
            by_table.entry(net.table).or_default().push((place, net));
        }
        let (mut tables, mut unreadable) = (Vec::new(), Vec::new());
        for (id, nets) in by_table {
            // A table that has left the plan: its last writes concern nobody.
            let Some(table) = schema.table(id) else {
                continue;
            };
            let mut read = TableRead::prepare(db, table).await?;
            for (place, net) in nets {
                let texts: Vec<&str> = net.key.iter().map(String::as_str).collect();
                match parse_key(table, &texts) {
                    Ok(key) => {
                        read.keys.push(key);
                        read.nets.push((place, net));
                    }
                    Err(error) => unreadable.push(Unreadable {
                        table: id,
                        key: Key(net.key.into_iter().map(Value::Text).collect()),
                        problem: error.to_string(),
                    }),
                }
            }
            tables.push(read);
        }
        Ok(Self {
            tables,
            count,
            unreadable,
        })
    }

    /// A portion that is closed and the last, for the caller to say otherwise.
    pub(super) async fn run(self, client: Arc<Client>) -> DbResult<Portion> {
        let rows = join_all(self.tables.iter().map(|read| read.rows(&client))).await;
        let mut changes: Vec<Option<Taken>> = (0..self.count).map(|_| None).collect();
        let mut unreadable = self.unreadable;
        for (read, rows) in self.tables.into_iter().zip(rows) {
            let table = &*read.table;
            for (((place, net), key), row) in read.nets.into_iter().zip(read.keys).zip(rows?) {
                let effect = match row {
                    None => Effect::Delete(key),
                    Some(Ok(row)) => Effect::Put(row),
                    Some(Err(problem)) => {
                        unreadable.push(Unreadable {
                            table: table.id,
                            key,
                            problem,
                        });
                        continue;
                    }
                };
                let before = net.old.filter(|_| table.keeps_before());
                if let Some(slot) = changes.get_mut(place) {
                    *slot = Some(Taken {
                        table: table.id,
                        effect,
                        first: net.first,
                        at: net.at.micros(),
                        before: before.and_then(|image| image.row(table)),
                    });
                }
            }
        }
        Ok(Portion {
            changes: changes.into_iter().flatten().collect(),
            unreadable,
            open: false,
            more: false,
        })
    }
}

impl TableRead {
    async fn prepare(db: &mut PostgresDatabase, table: &Table) -> DbResult<Self> {
        let layout = db.layout(&table.name).await?;
        let (mut texts, mut selected) = (Vec::new(), Vec::new());
        for column in &table.columns {
            let as_text = !types::casts_always(&column.kind, layout.cast(table, column)?);
            let name = format!("r.{}", ident(&column.name));
            let kind = if as_text {
                &Type::Text { max: None }
            } else {
                &column.kind
            };
            selected.push(types::selected(kind, &name));
            texts.push(as_text);
        }
        let sql = format!(
            "SELECT given.place, {} FROM {} JOIN {} r ON {}",
            selected.join(", "),
            given(table, 1, true),
            layout.relation,
            layout.key_join(table, "r")?
        );
        let statement = db
            .statement_on(&table.name, &sql, &types::key_types(table))
            .await?;
        Ok(Self {
            table: Arc::new(table.clone()),
            statement,
            texts,
            nets: Vec::new(),
            keys: Vec::new(),
        })
    }

    /// The row of each key, where it exists, or what is wrong with it.
    async fn rows(&self, client: &Client) -> DbResult<Vec<Option<Result<CoreRow, String>>>> {
        let arrays: Vec<Array<'_>> = types::key_arrays(&self.table, &self.keys)?;
        let found = client
            .query(&self.statement, &types::parameters(&arrays))
            .await;
        let found = found.map_err(|e| on_table(&self.table.name, &e))?;
        let mut rows: Vec<Option<_>> = self.keys.iter().map(|_| None).collect();
        for row in &found {
            let place = usize::try_from(get::<i64>(row, 0)? - 1).unwrap_or(usize::MAX);
            if let Some(slot) = rows.get_mut(place) {
                *slot = Some(self.row(row));
            }
        }
        Ok(rows)
    }

    fn row(&self, row: &Row) -> Result<CoreRow, String> {
        let columns = self.table.columns.iter().zip(&self.texts).enumerate();
        let values = columns.map(|(at, (column, as_text))| {
            let value = if *as_text {
                let text = types::read_value(&Type::Text { max: None }, row, at + 1);
                text.map_err(|error| unreadable(column, &error.to_string()))
                    .and_then(|value| match value {
                        Value::Text(text) => types::parsed_exactly(&column.kind, &text)
                            .ok_or_else(|| unreadable(column, &quoted(&text))),
                        other => Ok(other),
                    })
            } else {
                types::read_value(&column.kind, row, at + 1)
                    .map_err(|error| unreadable(column, &error.to_string()))
            }?;
            if column.kind.holds(&value) {
                Ok(value)
            } else {
                Err(unreadable(column, &quoted(&value.to_json().to_string())))
            }
        });
        values.collect::<Result<_, _>>().map(CoreRow)
    }
}

fn unreadable(column: &Column, what: &str) -> String {
    format!(
        "column `{}` holds {what}, which is no {}",
        column.name, column.kind
    )
}

fn quoted(text: &str) -> String {
    let start: String = text.chars().take(QUOTED).collect();
    let more = if start.len() < text.len() { "..." } else { "" };
    format!("`{start}{more}`")
}
