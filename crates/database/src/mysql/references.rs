//! Foreign keys that stand in the way of rows that go, or change, together; and those whose actions must not run.

use branchline_core::change::{Key, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{ForeignKey, Schema, Table};

use super::connection::MysqlDatabase;
use super::ddl::ident;
use super::layout::{Child, Layout};
use super::literal::push_value;
use super::read::{lock, matching};

/// Rows named in one statement.
const PAGE: usize = 500;

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
pub(super) async fn let_go(db: &mut MysqlDatabase, held: &[(&Table, &[Key])]) -> DbResult<()> {
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
        let head = format!(
            "UPDATE {} c SET {} WHERE ",
            layout.relation,
            nulls(table, &columns)
        );
        for keys in keys.chunks(PAGE) {
            if let Some(which) = matching(table, &layout, "c", keys)? {
                db.execute_on(&table.name, [head.as_bytes(), &which].concat())
                    .await?;
            }
        }
    }
    Ok(())
}

fn nulls(table: &Table, columns: &[usize]) -> String {
    let columns = columns.iter().filter_map(|&at| table.columns.get(at));
    let sets: Vec<String> = columns
        .map(|column| format!("c.{} = NULL", ident(&column.name)))
        .collect();
    sets.join(", ")
}

/// The condition that names those of these rows, as `r`, in which one of these columns differs from its new value;
/// `None` where none can.
pub(super) fn changing(
    table: &Table,
    layout: &Layout,
    rows: &[&Row],
    names: &[&String],
) -> DbResult<Option<Vec<u8>>> {
    let mut sql = Vec::new();
    for row in rows {
        let mut differs = Vec::new();
        for (at, column) in table.columns.iter().enumerate() {
            let Some(value) = row.0.get(at) else {
                continue;
            };
            if table.is_key(at) || !names.contains(&&column.name) {
                continue;
            }
            let here = layout.column(table, column)?;
            let name = format!("r.{}", ident(&column.name));
            // Another spelling is a change too.
            let exact = match here.collation {
                Some(_) => format!("CONVERT({name} USING utf8mb4) COLLATE utf8mb4_bin"),
                None => name,
            };
            let and = if differs.is_empty() { "" } else { " OR " };
            differs.extend_from_slice(format!("{and}NOT ({exact} <=> ").as_bytes());
            push_value(&mut differs, table, column, here, value)?;
            differs.push(b')');
        }
        let Some(which) = matching(table, layout, "r", &[table.key_of(row)])? else {
            continue;
        };
        if !differs.is_empty() {
            sql.extend_from_slice(if sql.is_empty() { b"((" } else { b" OR (" });
            sql.extend_from_slice(&which);
            sql.extend_from_slice(b" AND (");
            sql.extend_from_slice(&differs);
            sql.extend_from_slice(b"))");
        }
    }
    if sql.is_empty() {
        return Ok(None);
    }
    sql.push(b')');
    Ok(Some(sql))
}

/// Before rows are put that change what children refer to: locks them, fails where an action would reach a child that
/// is not among the `mentioned`, and makes those that are mentioned, which get their final content later, refer to
/// nothing.
pub(super) async fn free_followers(
    db: &mut MysqlDatabase,
    schema: &Schema,
    table: &Table,
    rows: &[&Row],
    mentioned: impl Fn(&Table) -> Vec<Key>,
) -> DbResult<()> {
    if rows.is_empty() {
        return Ok(());
    }
    db.heed_foreign_keys(false).await?;
    let layout = db.layout(&table.name).await?;
    for child in &layout.children {
        let names: Vec<&String> = child.columns.iter().map(|(_, parent)| parent).collect();
        for rows in rows.chunks(PAGE) {
            let Some(changed) = changing(table, &layout, rows, &names)? else {
                continue;
            };
            let follow = Changing {
                table,
                layout: &layout,
                child,
                changed,
            };
            if !follow.lock(db).await? {
                continue;
            }
            let name = |here: &&Table| {
                format!("{}.{}", ident(db.database()), ident(&here.name)) == child.relation
            };
            let shared = schema.tables.iter().find(name);
            let shared = shared.map(|here| (here, mentioned(here)));
            match shared.filter(|(_, keys)| !keys.is_empty()) {
                Some((here, keys)) => follow.free(db, here, &keys).await?,
                None => follow.refuse(db, None).await?,
            }
        }
    }
    Ok(())
}

/// Rows of a table that are about to change what one foreign key refers to.
struct Changing<'c> {
    table: &'c Table,
    layout: &'c Layout,
    child: &'c Child,
    changed: Vec<u8>,
}

impl Changing<'_> {
    /// Locks the rows, so that no child can come between the look and the put; whether there are any. Children look
    /// their parent up in the index that the foreign key uses, so it must be locked there.
    async fn lock(&self, db: &mut MysqlDatabase) -> DbResult<bool> {
        let same = self.child.columns.iter().map(|(_, parent)| {
            let parent = ident(parent);
            format!("p.{parent} = r.{parent}")
        });
        let index = match &self.child.index {
            Some(index) => format!("FORCE INDEX ({})", ident(index)),
            None => String::new(),
        };
        let head = format!(
            "SELECT 1 FROM {0} r FORCE INDEX (PRIMARY) LEFT JOIN {0} p {index} ON {1} WHERE ",
            self.layout.relation,
            same.collect::<Vec<_>>().join(" AND ")
        );
        let sql = [head.as_bytes(), &self.changed, b" FOR UPDATE NOWAIT"].concat();
        Ok(!db.locked_rows(&self.table.name, sql).await?.is_empty())
    }

    /// Fails where other children would follow; makes the mentioned ones refer to nothing.
    async fn free(&self, db: &mut MysqlDatabase, here: &Table, keys: &[Key]) -> DbResult<()> {
        let places: Vec<usize> = (0..here.columns.len())
            .filter(|&at| {
                let name = here.columns.get(at).map(|column| &column.name);
                let own = &self.child.columns;
                own.iter().any(|(column, _)| Some(column) == name)
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
        lock(db, here, &layout, keys).await?;
        let among = matching(here, &layout, "c", keys)?;
        // An action that reaches a mentioned child is overwritten by its put; not so where it changes the child's key,
        // or runs after that put.
        let excused = !free.is_empty()
            || (here.id != self.table.id && !places.iter().any(|&at| here.is_key(at)));
        let others = among.as_deref().filter(|_| excused);
        self.refuse(db, others).await?;
        let Some(among) = among.filter(|_| !free.is_empty()) else {
            return Ok(());
        };
        let head = format!(
            "UPDATE {} r JOIN {} c ON {} SET {} WHERE ",
            self.layout.relation,
            self.child.relation,
            self.refers(),
            nulls(here, &free),
        );
        let sql = [head.as_bytes(), &self.changed, b" AND (", &among, b")"].concat();
        db.execute_on(&here.name, sql).await
    }

    /// Fails where the action would change children, save those excused.
    async fn refuse(&self, db: &mut MysqlDatabase, excused: Option<&[u8]>) -> DbResult<()> {
        if !self.child.follows_update {
            return Ok(());
        }
        let head = format!(
            "SELECT 1 FROM {} r FORCE INDEX (PRIMARY) JOIN {} c ON {} WHERE ",
            self.layout.relation,
            self.child.relation,
            self.refers(),
        );
        let mut sql = [head.as_bytes(), &self.changed].concat();
        if let Some(excused) = excused {
            sql.extend_from_slice(b" AND NOT (");
            sql.extend_from_slice(excused);
            sql.push(b')');
        }
        sql.extend_from_slice(b" LIMIT 1");
        if db.rows_on(&self.table.name, sql).await?.is_empty() {
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
        let pairs = self.child.columns.iter();
        let pairs = pairs.map(|(own, parent)| format!("c.{} = r.{}", ident(own), ident(parent)));
        pairs.collect::<Vec<_>>().join(" AND ")
    }
}
