//! Deleting rows without the foreign keys' actions.

use branchline_core::change::Key;
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::Table;

use super::apply::on_keys;
use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::layout::{Child, Layout, children_held, given};

pub(super) async fn delete(db: &mut PostgresDatabase, table: &Table, keys: &[Key]) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    // The foreign key of a table that is not shared may be newer than what was looked up.
    let mut followers = children_held(db, &table.name).await?;
    followers.retain(|child| child.follows_delete);
    if !followers.is_empty() {
        // Locked first: no child can come between the look and the delete.
        let sql = format!(
            "SELECT FROM {} r JOIN {} ON {} FOR UPDATE OF r",
            layout.relation,
            given(table, 1, false),
            layout.key_join(table, "r")?
        );
        on_keys(db, table, &sql, keys).await?;
        for child in &followers {
            refuse_orphans(db, table, &layout, child, keys).await?;
        }
    }
    let sql = format!(
        "DELETE FROM {} r USING {} WHERE {}",
        layout.relation,
        given(table, 1, false),
        layout.key_join(table, "r")?
    );
    on_keys(db, table, &sql, keys).await?;
    Ok(())
}

/// Fails where the foreign key's action on delete would change a row that is not itself deleted here.
async fn refuse_orphans(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    child: &Child,
    keys: &[Key],
) -> DbResult<()> {
    let refers: Vec<String> = child
        .columns
        .iter()
        .zip(&child.parent_columns)
        .map(|(column, parent)| format!("c.{} = r.{}", ident(column), ident(parent)))
        .collect();
    let itself = if child.relation == layout.relation {
        format!(
            " AND NOT EXISTS (SELECT FROM {} WHERE {})",
            given(table, 1, false),
            layout.key_join(table, "c")?
        )
    } else {
        String::new()
    };
    let sql = format!(
        "SELECT FROM {} JOIN {} r ON {} JOIN {} c ON {} WHERE true{itself} LIMIT 1",
        given(table, 1, false),
        layout.relation,
        layout.key_join(table, "r")?,
        child.relation,
        refers.join(" AND "),
    );
    if on_keys(db, table, &sql, keys).await?.is_empty() {
        return Ok(());
    }
    Err(DatabaseError::Constraint {
        table: table.name.clone(),
        message: format!(
            "rows of {} refer to a row that is to be deleted, and would change with it",
            child.relation
        ),
        foreign_key: true,
    })
}
