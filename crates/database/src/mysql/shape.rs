//! A fingerprint of how the shared tables are defined.
//!
//! A transaction that has touched a table keeps its definition as it is: an `ALTER` waits. So one that takes touches all
//! of them before it has a snapshot, which its first real read gives it.

use branchline_core::identity::Digest;
use branchline_core::port::{DatabaseError, DbResult, Purpose};
use branchline_core::schema::Schema;

use super::capture::ours;
use super::connection::MysqlDatabase;
use super::ddl::ident;

pub(super) async fn shape(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<Digest> {
    // Its own transaction would end with the look at a table that is gone.
    let mut there = tables(db).await?;
    if db.purpose() == Some(Purpose::Take) {
        let shared = |name: &&String| schema.table_named(name).is_some();
        let touched: Vec<&String> = there.iter().filter(shared).collect();
        db.touch(&touched).await?;
        there = tables(db).await?;
    }
    let mut told = Vec::new();
    for name in there {
        let written = if schema.table_named(&name).is_some() {
            written(db, &name).await?
        } else {
            String::new()
        };
        told.push((name, written));
    }
    let shape = Digest::of(format!("{told:?}").as_bytes());
    db.seen(shape);
    Ok(shape)
}

/// The application's tables.
async fn tables(db: &mut MysqlDatabase) -> DbResult<Vec<String>> {
    let rows = db
        .rows("SHOW FULL TABLES WHERE Table_type <> 'VIEW'")
        .await?;
    let names = rows.iter().map(|row| row.text(0));
    let mut names: Vec<String> = names.filter(|name| !ours(name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// A table's definition in the server's words, without the next number, which every insert moves on.
pub(super) async fn written(db: &mut MysqlDatabase, table: &str) -> DbResult<String> {
    let rows = db
        .rows_on(table, format!("SHOW CREATE TABLE {}", ident(table)))
        .await;
    let rows = rows.map_err(|error| match error {
        DatabaseError::Mismatch { message, .. } => DatabaseError::Busy(message),
        other => other,
    })?;
    let text = rows.first().map(|row| row.text(1)).unwrap_or_default();
    let Some((columns, options)) = text.rsplit_once("\n)") else {
        return Ok(text);
    };
    let options: Vec<&str> = options
        .split(' ')
        .filter(|word| !word.starts_with("AUTO_INCREMENT="))
        .collect();
    Ok(format!("{columns}\n){}", options.join(" ")))
}
