//! Putting rows: those that exist are locked and updated by key, the others inserted.
//!
//! `INSERT ... ON DUPLICATE KEY UPDATE` is no upsert by key: a row with another key that holds one of the unique values
//! would be overwritten. `REPLACE` would delete it.

use std::collections::BTreeSet;

use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::Table;
use branchline_core::value::Value;

use super::connection::{Failure, MysqlDatabase};
use super::ddl::ident;
use super::error::DUPLICATE;
use super::layout::Layout;
use super::literal::push_value;
use super::park::park;
use super::read::{folded, lock, matching};

/// Bytes sent in one statement, besides those of its last row; well below any server's `max_allowed_packet`.
const STATEMENT: usize = 1 << 20;
/// Rows in one statement.
const ROWS: usize = 500;

/// Puts rows, leaving some columns NULL for now.
pub(super) async fn put(
    db: &mut MysqlDatabase,
    table: &Table,
    rows: &[&Row],
    left_null: &BTreeSet<usize>,
) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    let keys: Vec<Key> = rows.iter().map(|row| table.key_of(row)).collect();
    let there: BTreeSet<Key> = lock(db, table, &layout, &keys).await?.into_iter().collect();
    let loose = layout.loose_key(table);
    let wanted: BTreeSet<Key> = keys.iter().map(|key| folded(table, key)).collect();
    if loose && let Some(other) = there.iter().find(|key| !wanted.contains(key)) {
        return Err(DatabaseError::Constraint {
            table: table.name.clone(),
            message: format!(
                "the row {} is another one, whose key this database takes for the same",
                other.to_json()
            ),
            foreign_key: false,
        });
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (row, key) in rows.iter().zip(&keys) {
        if there.contains(&folded(table, key)) {
            old.push((*row, key));
        } else {
            new.push(*row);
        }
    }
    // Rows of one set may exchange unique values; only tables that have such pay for the savepoint.
    let exchange = layout.unique && rows.len() > 1;
    if exchange {
        db.savepoint("branchline_put").await?;
    }
    match all(db, table, &layout, &old, &new, left_null).await {
        Err(failure) if exchange && failure.code == Some(DUPLICATE) => {
            db.back_to("branchline_put").await?;
            let old_rows: Vec<&Row> = old.iter().map(|(row, _)| *row).collect();
            park(db, table, &layout, &old_rows).await?;
            let second = all(db, table, &layout, &old, &new, left_null).await;
            second.map_err(|failure| told(failure, loose))
        }
        other => other.map_err(|failure| told(failure, loose)),
    }
}

/// A row of this very key that came between the look and the insert was in the way, and will be seen next time.
fn told(failure: Failure, loose: bool) -> DatabaseError {
    match failure.error {
        DatabaseError::Constraint { message, .. }
            if failure.code == Some(DUPLICATE) && !loose && message.ends_with("PRIMARY'") =>
        {
            DatabaseError::Busy(message)
        }
        other => other,
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self { code: None, error }
    }
}

async fn all(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    old: &[(&Row, &Key)],
    new: &[&Row],
    left_null: &BTreeSet<usize>,
) -> Result<(), Failure> {
    let writer = Writer {
        table,
        layout,
        left_null,
    };
    let (mut sql, mut count) = (Vec::new(), 0);
    for (row, key) in old {
        writer.update(&mut sql, row, key)?;
        count += 1;
        if sql.len() > STATEMENT || count == ROWS {
            count = 0;
            db.try_execute_on(&table.name, std::mem::take(&mut sql))
                .await?;
        }
    }
    if !sql.is_empty() {
        db.try_execute_on(&table.name, std::mem::take(&mut sql))
            .await?;
    }
    count = 0;
    for row in new {
        writer.insert(&mut sql, row)?;
        count += 1;
        if sql.len() > STATEMENT || count == ROWS {
            count = 0;
            db.try_execute_on(&table.name, std::mem::take(&mut sql))
                .await?;
        }
    }
    if !sql.is_empty() {
        db.try_execute_on(&table.name, sql).await?;
    }
    Ok(())
}

struct Writer<'w> {
    table: &'w Table,
    layout: &'w Layout,
    left_null: &'w BTreeSet<usize>,
}

impl Writer<'_> {
    /// Appends the update of one row, as a statement of its own.
    fn update(&self, sql: &mut Vec<u8>, row: &Row, key: &Key) -> DbResult<()> {
        let Self { table, layout, .. } = self;
        let Some(which) = matching(table, layout, "r", std::slice::from_ref(key))? else {
            return Ok(());
        };
        let mut first = true;
        for (at, column) in table.columns.iter().enumerate() {
            if table.is_key(at) {
                continue;
            }
            let before = if first {
                if !sql.is_empty() {
                    sql.push(b';');
                }
                format!("UPDATE {} r SET ", layout.relation)
            } else {
                ", ".to_owned()
            };
            first = false;
            sql.extend_from_slice(format!("{before}r.{} = ", ident(&column.name)).as_bytes());
            self.value(sql, row, at)?;
        }
        if !first {
            sql.extend_from_slice(b" WHERE ");
            sql.extend_from_slice(&which);
        }
        Ok(())
    }

    /// Appends a row to an insert.
    fn insert(&self, sql: &mut Vec<u8>, row: &Row) -> DbResult<()> {
        let Self { table, layout, .. } = self;
        if sql.is_empty() {
            let names: Vec<String> = table
                .columns
                .iter()
                .map(|column| ident(&column.name))
                .collect();
            let head = format!(
                "INSERT INTO {} ({}) VALUES ",
                layout.relation,
                names.join(", ")
            );
            sql.extend_from_slice(head.as_bytes());
        } else {
            sql.push(b',');
        }
        for at in 0..table.columns.len() {
            sql.push(if at == 0 { b'(' } else { b',' });
            self.value(sql, row, at)?;
        }
        sql.push(b')');
        Ok(())
    }

    fn value(&self, sql: &mut Vec<u8>, row: &Row, at: usize) -> DbResult<()> {
        let Some(column) = self.table.columns.get(at) else {
            return Ok(());
        };
        let value = match row.0.get(at) {
            Some(value) if !self.left_null.contains(&at) => value,
            _ => &Value::Null,
        };
        let here = self.layout.column(self.table, column)?;
        push_value(sql, self.table, column, here, value)
    }
}
