//! Deleting rows without the foreign keys' actions.

use std::collections::BTreeSet;

use branchline_core::change::Key;
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::Table;

use super::connection::MysqlDatabase;
use super::ddl::ident;
use super::layout::{Child, Layout};
use super::read::{folded, lock, matching};

/// Keys named in one statement.
const PAGE: usize = 500;

pub(super) async fn delete(db: &mut MysqlDatabase, table: &Table, keys: &[Key]) -> DbResult<()> {
    let layout = db.layout(&table.name).await?;
    // Locked first: no child can come between the look and the delete.
    let wanted: BTreeSet<Key> = keys.iter().map(|key| folded(table, key)).collect();
    let there = lock(db, table, &layout, keys).await?;
    let keys: Vec<Key> = there
        .into_iter()
        .filter(|key| wanted.contains(key))
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    db.heed_foreign_keys(true).await?;
    let layout = db.layout(&table.name).await?;
    for child in layout.children.iter().filter(|child| child.follows_delete) {
        refuse_orphans(db, table, &layout, child, &keys).await?;
    }
    if !layout.to_itself.is_empty() && !let_go_of_own(db, table, &layout, &keys).await? {
        return one_by_one(db, table, &layout, keys).await;
    }
    for keys in keys.chunks(PAGE) {
        delete_these(db, table, &layout, keys).await?;
    }
    Ok(())
}

async fn delete_these(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    keys: &[Key],
) -> DbResult<()> {
    let Some(which) = matching(table, layout, "r", keys)? else {
        return Ok(());
    };
    let head = format!(
        "DELETE r FROM {} AS r FORCE INDEX (PRIMARY) WHERE ",
        layout.relation
    );
    let sql = [head.as_bytes(), &which].concat();
    db.execute_on(&table.name, sql).await
}

/// Makes rows that are about to be deleted refer to no row of their own table, so that their order does not matter.
/// `false` where their columns must not be NULL.
async fn let_go_of_own(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    keys: &[Key],
) -> DbResult<bool> {
    let own: BTreeSet<&str> = layout
        .to_itself
        .iter()
        .flatten()
        .map(|(column, _)| column.as_str())
        .collect();
    let key: BTreeSet<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
    let nullable = |name: &&str| {
        !key.contains(name)
            && layout
                .columns
                .iter()
                .any(|here| here.name == *name && here.nullable)
    };
    if !own.iter().all(nullable) {
        return Ok(false);
    }
    let sets: Vec<String> = own
        .iter()
        .map(|name| format!("r.{} = NULL", ident(name)))
        .collect();
    for keys in keys.chunks(PAGE) {
        if let Some(which) = matching(table, layout, "r", keys)? {
            let head = format!(
                "UPDATE {} r SET {} WHERE ",
                layout.relation,
                sets.join(", ")
            );
            let sql = [head.as_bytes(), &which].concat();
            db.execute_on(&table.name, sql).await?;
        }
    }
    Ok(true)
}

/// Deletes rows that refer to each other, those that nothing refers to first.
async fn one_by_one(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    mut keys: Vec<Key>,
) -> DbResult<()> {
    loop {
        let (before, mut left, mut refused) = (keys.len(), Vec::new(), None);
        for key in keys {
            db.savepoint("branchline_one").await?;
            match delete_these(db, table, layout, std::slice::from_ref(&key)).await {
                Ok(()) => {}
                Err(
                    error @ DatabaseError::Constraint {
                        foreign_key: true, ..
                    },
                ) => {
                    db.back_to("branchline_one").await?;
                    refused = Some(error);
                    left.push(key);
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            None => return Ok(()),
            Some(error) if left.len() == before => return Err(error),
            Some(_) => keys = left,
        }
    }
}

/// Fails where the foreign key's action on delete would change a row that is not itself deleted here.
async fn refuse_orphans(
    db: &mut MysqlDatabase,
    table: &Table,
    layout: &Layout,
    child: &Child,
    keys: &[Key],
) -> DbResult<()> {
    let refers: Vec<String> = child
        .columns
        .iter()
        .map(|(column, parent)| format!("c.{} = r.{}", ident(column), ident(parent)))
        .collect();
    let itself = child.relation == format!("{}.{}", ident(db.database()), layout.relation);
    for page in keys.chunks(PAGE) {
        let Some(which) = matching(table, layout, "r", page)? else {
            continue;
        };
        let head = format!(
            "SELECT 1 FROM {} r FORCE INDEX (PRIMARY) JOIN {} c ON {} WHERE ",
            layout.relation,
            child.relation,
            refers.join(" AND ")
        );
        let mut sql = [head.as_bytes(), &which].concat();
        if itself && let Some(deleted) = matching(table, layout, "c", keys)? {
            sql.extend_from_slice(b" AND NOT (");
            sql.extend_from_slice(&deleted);
            sql.push(b')');
        }
        sql.extend_from_slice(b" LIMIT 1");
        if !db.rows_on(&table.name, sql).await?.is_empty() {
            return Err(DatabaseError::Constraint {
                table: table.name.clone(),
                message: format!(
                    "rows of {} refer to a row that is to be deleted, and would change with it",
                    child.relation
                ),
                foreign_key: true,
            });
        }
    }
    Ok(())
}
