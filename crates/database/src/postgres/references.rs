//! Foreign keys that stand in the way of rows that go, or change, together; and those whose actions must not run.

use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{ForeignKey, Schema, Table};

use super::apply::{on_keys, on_rows};
use super::connection::PostgresDatabase;
use super::ddl::{ident, relation};
use super::layout::{Child, Layout, given, rows_now};

/// The places of a foreign key's columns that can be NULL for a while.
pub(super) fn optional<'t>(
    table: &'t Table,
    key: &'t ForeignKey,
) -> impl Iterator<Item = usize> + 't {
    let columns = key.columns.iter().map(|&at| usize::from(at));
    columns.filter(|&at| {
        table.columns.get(at).is_some_and(|column| column.nullable) && !table.is_key(at)
    })
}

/// Whether these are columns of the table's key, which a put does not change.
pub(super) fn within_key(table: &Table, columns: &[String]) -> bool {
    let in_key = |name: &String| table.key_columns().any(|column| column.name == *name);
    columns.iter().all(in_key)
}

/// Makes rows that are about to be deleted refer to no row of another of these tables, where their columns can be NULL.
pub(super) async fn let_go(db: &mut PostgresDatabase, held: &[(&Table, &[Key])]) -> DbResult<()> {
    for (table, keys) in held {
        let parents = held.iter().filter(|(parent, _)| parent.id != table.id);
        let refers = |key: &&ForeignKey| parents.clone().any(|(p, _)| p.name == key.parent);
        let links = table.foreign_keys.iter().filter(refers);
        let mut columns: Vec<usize> = links.flat_map(|key| optional(table, key)).collect();
        columns.sort_unstable();
        columns.dedup();
        if columns.is_empty() {
            continue;
        }
        let layout = db.layout(&table.name).await?;
        let sql = format!(
            "UPDATE {} r SET {} FROM {} WHERE {}",
            layout.relation,
            nulls(table, &columns),
            given(table, 1, false),
            layout.key_join(table, "r")?
        );
        on_keys(db, table, &sql, keys).await?;
    }
    Ok(())
}

fn nulls(table: &Table, columns: &[usize]) -> String {
    let columns = columns.iter().filter_map(|&at| table.columns.get(at));
    let sets: Vec<String> = columns
        .map(|column| format!("{} = NULL", ident(&column.name)))
        .collect();
    sets.join(", ")
}

/// Before rows are put that change what children refer to: locks them, fails where an action would reach a child that
/// is not among the `mentioned`, and makes those that are mentioned, which get their final content later, refer to
/// nothing.
pub(super) async fn free_followers(
    db: &mut PostgresDatabase,
    schema: &Schema,
    table: &Table,
    rows: &[&Row],
    mentioned: impl Fn(&Table) -> Vec<Key>,
) -> DbResult<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let layout = db.layout(&table.name).await?;
    for child in &layout.children {
        let names: Vec<&String> = child.parent_columns.iter().collect();
        let Some(changed) = layout.changed(table, "r", &names)? else {
            continue;
        };
        // Locked first: no child can come between the look and the put.
        let sql = format!(
            "SELECT FROM {} r JOIN {} ON {} WHERE {changed} FOR UPDATE OF r",
            layout.relation,
            rows_now(table),
            layout.row_join(table, "r")?
        );
        if on_rows(db, table, &sql, rows, None).await?.is_empty() {
            continue;
        }
        let changing = Changing {
            table,
            layout: &layout,
            child,
            changed,
            rows,
        };
        let shared = schema.tables.iter();
        let shared = shared
            .filter(|here| relation(&here.name) == child.relation)
            .find(|here| !mentioned(here).is_empty());
        match shared {
            Some(here) => changing.free(db, here, &mentioned(here)).await?,
            None => changing.refuse(db, None).await?,
        }
    }
    Ok(())
}

/// Rows of a table that are about to change what one foreign key refers to.
struct Changing<'c> {
    table: &'c Table,
    layout: &'c Layout,
    child: &'c Child,
    changed: String,
    rows: &'c [&'c Row],
}

impl Changing<'_> {
    /// Fails where other children would follow; makes the mentioned ones refer to nothing.
    async fn free(&self, db: &mut PostgresDatabase, here: &Table, keys: &[Key]) -> DbResult<()> {
        let places: Vec<usize> = (0..here.columns.len())
            .filter(|&at| {
                let column = here.columns.get(at);
                column.is_some_and(|column| self.child.columns.contains(&column.name))
            })
            .collect();
        let free: Vec<usize> = places
            .iter()
            .copied()
            .filter(|&at| {
                here.columns.get(at).is_some_and(|column| column.nullable) && !here.is_key(at)
            })
            .collect();
        let layout = db.layout(&here.name).await?;
        let among = format!(
            "EXISTS (SELECT FROM {} WHERE {})",
            given(here, self.table.columns.len() + 1, false),
            layout.key_join(here, "c")?
        );
        // An action that reaches a mentioned child is overwritten by its put; not so where it changes the child's key,
        // or runs after that put.
        let excused = !free.is_empty()
            || (here.id != self.table.id && !places.iter().any(|&at| here.is_key(at)));
        let others = excused.then_some((here, keys, among.as_str()));
        self.refuse(db, others).await?;
        if free.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE {} c SET {} FROM {} JOIN {} r ON {} WHERE {} AND {} AND {among}",
            self.child.relation,
            nulls(here, &free),
            rows_now(self.table),
            self.layout.relation,
            self.layout.row_join(self.table, "r")?,
            self.refers(),
            self.changed,
        );
        on_rows(db, self.table, &sql, self.rows, Some((here, keys))).await?;
        Ok(())
    }

    /// Fails where the action would change children, save those excused.
    async fn refuse(
        &self,
        db: &mut PostgresDatabase,
        excused: Option<(&Table, &[Key], &str)>,
    ) -> DbResult<()> {
        if !self.child.follows_update {
            return Ok(());
        }
        let sql = format!(
            "SELECT FROM {} JOIN {} r ON {} JOIN {} c ON {} WHERE {}{} LIMIT 1",
            rows_now(self.table),
            self.layout.relation,
            self.layout.row_join(self.table, "r")?,
            self.child.relation,
            self.refers(),
            self.changed,
            excused.map_or(String::new(), |(_, _, among)| format!(" AND NOT {among}")),
        );
        let excused = excused.map(|(here, keys, _)| (here, keys));
        let found = on_rows(db, self.table, &sql, self.rows, excused).await?;
        if found.is_empty() {
            return Ok(());
        }
        Err(DatabaseError::Constraint {
            table: self.table.name.clone(),
            message: format!(
                "rows of {} refer to a value that is to be changed, and would change with it",
                self.child.relation
            ),
            foreign_key: true,
        })
    }

    fn refers(&self) -> String {
        let pairs = self.child.columns.iter().zip(&self.child.parent_columns);
        let pairs = pairs.map(|(own, parent)| format!("c.{} = r.{}", ident(own), ident(parent)));
        pairs.collect::<Vec<_>>().join(" AND ")
    }
}
