//! Keeping the application away from a table while something of it goes: nothing may be captured by then that is not taken.
//!
//! `ALTER` and `DROP` commit by themselves, and wait for the application's transactions: so what was looked at before says
//! nothing. `LOCK TABLES ... WRITE` waits for them too, leaves other captured tables to the application (MariaDB 10.11), and
//! lets the capture be read that the table's triggers write to. What can be done meanwhile is little: no other table of ours
//! is at hand, none can be created or renamed.

use std::collections::BTreeSet;

use branchline_core::books as records;
use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Schema, Table, TableId};

use super::capture::patiently;
use super::connection::{Flavour, MysqlDatabase};
use super::ddl::ident;
use super::encoding::decoded_key;
use super::{books, read};
use crate::lineage::{Tried, stop};

/// How often a step gives way to what was written meanwhile, so that it can be taken. Then it is told as it is.
const GIVES_WAY: u32 = 3;
/// Rows told at a time.
const ROWS: usize = 1000;
/// No such table among the locked ones: it has no triggers that write to the capture.
const NOT_LOCKED: u16 = 1100;

/// The tables that the open transaction's step takes something from.
#[derive(Default)]
pub(super) struct Still {
    tables: BTreeSet<TableId>,
    given_way: u32,
}

impl Still {
    pub(super) fn add(&mut self, table: TableId) {
        self.tables.insert(table);
    }

    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }
}

/// Under which name is noted what is captured of a table, and not taken, before it changes.
fn noted(id: TableId) -> String {
    format!("untaken.{id}")
}

/// Keeps the application out of a table of which something goes. Whether it is kept out.
pub(super) async fn hold(
    db: &mut MysqlDatabase,
    from: &Schema,
    id: TableId,
    name: &str,
) -> Tried<bool> {
    let Some(table) = from.table(id) else {
        return Ok(false);
    };
    let table = Table {
        name: name.to_owned(),
        ..table.clone()
    };
    lock(db, &table).await
}

/// Lets the application in again, to a table that has changed, or `stayed` as it was.
pub(super) async fn let_go(
    db: &mut MysqlDatabase,
    held: bool,
    id: TableId,
    stayed: bool,
) -> DbResult<()> {
    if !held {
        return Ok(());
    }
    unlock(db).await?;
    if stayed {
        forget(db, id).await?;
    }
    Ok(())
}

/// Locks a table, as it is now, of which something goes, until [`let_go`].
async fn lock(db: &mut MysqlDatabase, table: &Table) -> Tried<bool> {
    if !db.still.tables.contains(&table.id) {
        return Ok(false);
    }
    db.forget_layouts();
    let tried = async {
        // Rows are read under the name `r`, and each name is locked for itself.
        let mut sql = format!(
            "LOCK TABLES {0} WRITE, {0} AS r READ, branchline_meta WRITE",
            ident(&table.name)
        );
        if db.flavour == Flavour::MySql {
            // The other end of a foreign key that comes must be named.
            let parents = table.foreign_keys.iter().map(|key| &key.parent);
            let parents: BTreeSet<&String> = parents.filter(|name| **name != table.name).collect();
            for parent in parents {
                sql.push_str(&format!(", {} WRITE", ident(parent)));
            }
        }
        patiently(db, &table.name, &sql).await?;
        let noted = note_untaken(db, table).await;
        if noted.is_err() {
            unlock(db).await?;
        }
        noted
    };
    tried.await.map_err(|error| stop(table.id, error))?;
    Ok(true)
}

async fn unlock(db: &mut MysqlDatabase) -> DbResult<()> {
    db.execute("UNLOCK TABLES").await
}

/// The table is as it was: what is captured is still to be taken.
async fn forget(db: &mut MysqlDatabase, id: TableId) -> DbResult<()> {
    books::set_meta(db, &noted(id), None).await
}

/// Notes what is captured of the locked table, or gives way to it.
async fn note_untaken(db: &mut MysqlDatabase, table: &Table) -> DbResult<()> {
    let keys = captured(db, table).await?;
    if keys.is_empty() {
        db.still.given_way = 0;
        return Ok(());
    }
    if db.still.given_way < GIVES_WAY || keys.len() > ROWS {
        db.still.given_way += 1;
        return Err(DatabaseError::Busy(format!(
            "the application wrote to table `{}` while it was to change",
            table.name
        )));
    }
    let found = read::find(db, table, &keys).await?.into_values();
    let rows: Vec<Row> = found.filter_map(Result::ok).collect();
    let bytes = records::encode(&(table.clone(), rows));
    let bytes = bytes.map_err(|error| DatabaseError::Other(error.to_string()))?;
    books::set_meta(db, &noted(table.id), Some(&bytes)).await?;
    db.still.given_way = 0;
    Ok(())
}

async fn captured(db: &mut MysqlDatabase, table: &Table) -> DbResult<Vec<Key>> {
    let sql = format!(
        "SELECT DISTINCT `key` FROM branchline_capture WHERE tbl = {} LIMIT {}",
        table.id,
        ROWS + 1
    );
    match db.try_rows(sql).await {
        Ok(rows) => {
            let key = |bytes| decoded_key(table, bytes).unwrap_or_else(|(key, _)| key);
            Ok(rows
                .iter()
                .filter_map(|row| row.bytes(0))
                .map(key)
                .collect())
        }
        Err(failure) if failure.code == Some(NOT_LOCKED) => Ok(Vec::new()),
        Err(failure) => Err(failure.error),
    }
}

/// What was noted, and is told now.
pub(super) async fn told(db: &mut MysqlDatabase) -> DbResult<Vec<(Table, Vec<Row>)>> {
    let noted = books::metas(db, &["untaken."]).await?;
    let mut told = Vec::new();
    for bytes in noted.values() {
        let rows = records::decode(bytes);
        told.push(rows.map_err(|error| DatabaseError::Other(error.to_string()))?);
    }
    let names: Vec<String> = noted.into_keys().collect();
    books::clear_metas(db, &names).await?;
    Ok(told)
}
