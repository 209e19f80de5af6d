//! What foreign keys' actions do to children, which fires no trigger here (trap 5): triggers on the parents note it.
//!
//! Before a parent is deleted, the keys of all rows that its deletion will reach are noted, down every path of cascades
//! to a shared table. Where a parent's referenced value changes, its children are noted before (as they were) and, where
//! their own key changes with it, after. The children are read under lock: none comes or goes in between.
//!
//! They are noted one by one: `INSERT ... SELECT` would keep the capture's counter, and with it every other writer,
//! waiting to the end of the application's statement.

use std::collections::BTreeSet;

use branchline_core::port::DbResult;
use branchline_core::schema::{Schema, Table, TableId};

use super::capture::{INTO, Trigger, or_missed, stamp};
use super::catalog::{Reference, foreign_keys};
use super::connection::MysqlDatabase;
use super::ddl::ident;
use super::encoding::{KEY_BYTES, key_expression, row_expression};

/// A trigger on a parent, and the shared tables whose rows it notes.
pub(super) struct Cascade {
    pub(super) trigger: Trigger,
    pub(super) reaches: BTreeSet<TableId>,
}

/// The longest path that is followed; the server itself ends at 15.
const DEPTH: usize = 15;

/// The triggers that a schema's tables need on their parents, shared or not.
pub(super) async fn triggers(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<Vec<Cascade>> {
    let keys = foreign_keys(db).await?;
    triggers_of(db, schema, &keys).await
}

/// As [`triggers`], for these foreign keys.
pub(super) async fn triggers_of(
    db: &mut MysqlDatabase,
    schema: &Schema,
    keys: &[Reference],
) -> DbResult<Vec<Cascade>> {
    let parents: BTreeSet<&str> = keys.iter().map(|key| key.parent.as_str()).collect();
    let mut all = Vec::new();
    for parent in parents {
        let mut deletes = Work::default();
        for path in paths(keys, parent) {
            if let Some((table, last)) = shared_end(schema, &path) {
                let rows = rows_on(&path, "OLD");
                deletes.add(db, table, &last, "'U'", &rows, true).await?;
            }
        }
        all.extend(deletes.trigger(parent, "BEFORE DELETE", "bd", None));
        let (mut before, mut after) = (Work::default(), Work::default());
        let mut changed = BTreeSet::new();
        let mut acting: Vec<&Reference> = keys
            .iter()
            .filter(|key| key.parent == parent && acts(&key.on_update))
            .collect();
        acting.sort_by_key(|key| (&key.child, &key.columns));
        for key in acting {
            let path = [key];
            let Some((table, last)) = shared_end(schema, &path) else {
                continue;
            };
            changed.extend(key.parent_columns.iter().map(|name| {
                let name = ident(name);
                format!("NOT (OLD.{name} <=> NEW.{name})")
            }));
            before
                .add(db, table, &last, "'U'", &rows_on(&path, "OLD"), true)
                .await?;
            if key.on_update == "CASCADE" && in_key(table, key) {
                after
                    .add(db, table, &last, "'I'", &rows_on(&path, "NEW"), false)
                    .await?;
            }
        }
        let when = changed.into_iter().collect::<Vec<_>>().join(" OR ");
        all.extend(before.trigger(parent, "BEFORE UPDATE", "bu", Some(&when)));
        all.extend(after.trigger(parent, "AFTER UPDATE", "au", Some(&when)));
    }
    Ok(all)
}

/// Whether some action reaches rows of this table in a way that the triggers do not follow.
pub(super) fn escapes(keys: &[Reference], table: &str) -> bool {
    let of_child = |key: &&Reference| key.child == table;
    let mut own = keys.iter().filter(of_child);
    own.any(|key| {
        let circle = key.on_delete == "CASCADE" && descends(keys, table, table, DEPTH);
        let chained = acts(&key.on_update)
            && keys.iter().any(|above| {
                let moved = above.on_update == "CASCADE" && above.child == key.parent;
                moved
                    && above
                        .columns
                        .iter()
                        .any(|name| key.parent_columns.contains(name))
            });
        circle || chained
    })
}

pub(super) fn acts(action: &str) -> bool {
    matches!(action, "CASCADE" | "SET NULL")
}

/// Whether deletes cascade from one table to another.
fn descends(keys: &[Reference], from: &str, to: &str, depth: usize) -> bool {
    depth > 0
        && keys
            .iter()
            .filter(|key| key.parent == from && key.on_delete == "CASCADE")
            .any(|key| key.child == to || descends(keys, &key.child, to, depth - 1))
}

/// The paths that a delete takes from a table, each reaching no table twice.
fn paths<'k>(keys: &'k [Reference], from: &str) -> Vec<Vec<&'k Reference>> {
    let (mut done, mut open) = (Vec::new(), vec![Vec::<&Reference>::new()]);
    while let Some(path) = open.pop() {
        let (at, goes_on) = match path.last() {
            Some(last) => (last.child.as_str(), last.on_delete == "CASCADE"),
            None => (from, true),
        };
        if goes_on && path.len() < DEPTH {
            for key in keys
                .iter()
                .filter(|key| key.parent == at && acts(&key.on_delete))
            {
                let seen = path.iter().any(|before| before.child == key.child);
                if !seen {
                    open.push(path.iter().copied().chain([key]).collect());
                }
            }
        }
        if !path.is_empty() {
            done.push(path);
        }
    }
    // In an order that does not change from one look to the next.
    done.sort_by_key(|path| {
        path.iter()
            .map(|key| (key.child.clone(), key.columns.clone()))
            .collect::<Vec<_>>()
    });
    done
}

/// The shared table at the end of a path, and the alias that it has in [`rows_on`].
fn shared_end<'s>(schema: &'s Schema, path: &[&Reference]) -> Option<(&'s Table, String)> {
    let table = schema.table_named(&path.last()?.child)?;
    Some((table, format!("c{}", path.len() - 1)))
}

/// `FROM` and `WHERE` for the rows at the end of a path that starts at the parent's row `OLD` or `NEW`.
fn rows_on(path: &[&Reference], parent: &str) -> String {
    let (mut tables, mut conditions) = (Vec::new(), Vec::new());
    for (at, key) in path.iter().enumerate() {
        tables.push(format!("{} c{at}", ident(&key.child)));
        let above = match at {
            0 => parent.to_owned(),
            _ => format!("c{}", at - 1),
        };
        for (column, parent_column) in key.columns.iter().zip(&key.parent_columns) {
            conditions.push(format!(
                "c{at}.{} = {above}.{}",
                ident(column),
                ident(parent_column)
            ));
        }
    }
    format!(
        "FROM {} WHERE {}",
        tables.join(" JOIN "),
        conditions.join(" AND ")
    )
}

/// A block of a trigger that does something with `branchline_key` and `branchline_before` of each selected row. It may not
/// ask for more than a shared lock: in a table that the application's own statement names the server refuses that (1442).
fn for_each(selected: &str, work: &str) -> String {
    format!(
        "BEGIN DECLARE branchline_end BOOLEAN DEFAULT FALSE; \
         DECLARE branchline_key VARBINARY({KEY_BYTES}); DECLARE branchline_before LONGBLOB; \
         DECLARE branchline_rows CURSOR FOR SELECT {selected} LOCK IN SHARE MODE; \
         DECLARE CONTINUE HANDLER FOR NOT FOUND SET branchline_end = TRUE; \
         OPEN branchline_rows; branchline_each: LOOP FETCH branchline_rows INTO branchline_key, branchline_before; \
         IF branchline_end THEN LEAVE branchline_each; END IF; {work}; END LOOP; CLOSE branchline_rows; END; "
    )
}

fn in_key(table: &Table, key: &Reference) -> bool {
    table
        .key_columns()
        .any(|column| key.columns.contains(&column.name))
}

/// The statements of one trigger.
#[derive(Default)]
struct Work {
    statements: String,
    reaches: BTreeSet<TableId>,
}

impl Work {
    async fn add(
        &mut self,
        db: &mut MysqlDatabase,
        table: &Table,
        alias: &str,
        op: &str,
        rows: &str,
        before: bool,
    ) -> DbResult<()> {
        let layout = db.layout(&table.name).await?;
        let image = if before && table.keeps_before() {
            row_expression(table, &layout, alias)?
        } else {
            "NULL".to_owned()
        };
        let noted = format!(
            "{INTO} VALUES ({}, {op}, {}, branchline_key, branchline_before)",
            table.id,
            stamp(db.flavour)
        );
        let key = key_expression(table, &layout, alias)?;
        self.statements
            .push_str(&for_each(&format!("{key}, {image} {rows}"), &noted));
        self.reaches.insert(table.id);
        Ok(())
    }

    fn trigger(
        self,
        parent: &str,
        event: &'static str,
        short: &str,
        when: Option<&str>,
    ) -> Option<Cascade> {
        if self.statements.is_empty() {
            return None;
        }
        let when = when.map_or(String::new(), |when| format!(" AND ({when})"));
        Some(Cascade {
            trigger: Trigger {
                name: format!("branchline_{short}_{:016x}", fingerprint(parent)),
                table: parent.to_owned(),
                event,
                body: format!(
                    "BEGIN {} IF @branchline_applying IS NULL{when} THEN {}END IF; END",
                    or_missed(&self.reaches),
                    self.statements
                ),
            },
            reaches: self.reaches,
        })
    }
}

/// A short name for a table's name, which may be as long as a trigger's (FNV-1a).
fn fingerprint(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
