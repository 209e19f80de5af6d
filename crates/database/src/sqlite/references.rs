//! Foreign keys as the database has them: which deletes would touch other rows, and which row broke a commit.

use branchline_core::change::{Key, Row};
use branchline_core::port::DbResult;
use branchline_core::schema::{Schema, Table, TableId};
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::apply::Touched;
use super::catalog;
use super::connection::Session;
use super::error::failure;
use super::local::Local;
use super::sql::{all, columns, quoted};
use super::stored::{Stored, bound, key_at};

/// A foreign key.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) child: String,
    child_columns: Vec<String>,
    pub(super) parent: String,
    parent_columns: Vec<String>,
    /// Changing the columns referred to changes the children.
    acts_on_update: bool,
}

/// All foreign keys, read again when the schema has changed.
#[derive(Debug, Default)]
pub(super) struct References {
    schema_version: Option<i64>,
    all: Vec<Reference>,
}

impl References {
    /// The foreign keys at this moment.
    pub(super) fn load(&mut self, connection: &Connection) -> DbResult<&[Reference]> {
        let present = catalog::version(connection)?;
        if self.schema_version != Some(present) {
            self.all = read(connection).map_err(failure)?;
            self.schema_version = Some(present);
        }
        Ok(&self.all)
    }
}

fn read(connection: &Connection) -> rusqlite::Result<Vec<Reference>> {
    let mut select = connection.prepare(
        "SELECT m.name, f.seq, f.\"table\", f.\"from\", f.\"to\", f.on_delete, f.on_update
         FROM sqlite_master AS m JOIN pragma_foreign_key_list(m.name) AS f
         WHERE m.type = 'table' ORDER BY m.name, f.id DESC, f.seq",
    )?;
    let mut rows = select.query([])?;
    let mut found: Vec<Reference> = Vec::new();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? == 0 {
            let acts = |action: &str| matches!(action, "CASCADE" | "SET NULL" | "SET DEFAULT");
            found.push(Reference {
                child: row.get(0)?,
                child_columns: Vec::new(),
                parent: row.get(2)?,
                parent_columns: Vec::new(),
                acts_on_update: acts(&row.get::<_, String>(6)?),
            });
        }
        if let Some(reference) = found.last_mut() {
            reference.child_columns.push(row.get(3)?);
            reference
                .parent_columns
                .extend(row.get::<_, Option<String>>(4)?);
        }
    }
    for reference in &mut found {
        if reference.parent_columns.is_empty() {
            reference.parent_columns = primary_key(connection, &reference.parent)?;
        }
    }
    // A reference to a table that is not there fails by itself when it is written.
    found.retain(|reference| reference.parent_columns.len() == reference.child_columns.len());
    Ok(found)
}

/// The columns of a table's primary key in order.
pub(super) fn primary_key(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare("SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 ORDER BY pk")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

impl Reference {
    /// `p."id" = c."parent_id"`: the parent's affinity and collation count.
    fn joined(&self) -> String {
        let pairs = self.parent_columns.iter().zip(&self.child_columns);
        all(pairs.map(|(parent, child)| format!("p.{} = c.{}", quoted(parent), quoted(child))))
    }

    /// The child's table, where it is shared.
    pub(super) fn child_table<'s>(&self, schema: &'s Schema) -> Option<&'s Table> {
        let same = |table: &&Table| table.name.eq_ignore_ascii_case(&self.child);
        schema.tables.iter().find(same)
    }

    /// Whether another row refers to the row of the parent table with this key.
    pub(super) fn has_child(
        &self,
        connection: &Connection,
        key_columns: &[String],
        key: &Key,
    ) -> DbResult<bool> {
        let select = format!("SELECT 1 {} LIMIT 1", self.children_of_key(key_columns));
        exists(connection, &select, key)
    }

    /// The other rows that refer to the row of the parent table with this key.
    pub(super) fn children(
        &self,
        connection: &Session,
        child: &Table,
        key_columns: &[String],
        key: &Key,
    ) -> DbResult<Vec<Key>> {
        let select = format!(
            "SELECT {} {}",
            columns("c", child.key_columns()),
            self.children_of_key(key_columns)
        );
        let mut select = connection.prepare_cached(&select).map_err(failure)?;
        let mut rows = select
            .query(params_from_iter(bound(key)))
            .map_err(failure)?;
        let local = Local::of(connection, child)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(failure)? {
            found.push(key_at(&local, child, row, 0)?.unwrap_or_else(|unreadable| unreadable.key));
        }
        Ok(found)
    }

    /// The children `c` of the row `p` with a key, but not `p` itself.
    fn children_of_key(&self, key_columns: &[String]) -> String {
        let itself = if self.child.eq_ignore_ascii_case(&self.parent) {
            let same = all(key_columns
                .iter()
                .map(|name| format!("c.{0} IS p.{0}", quoted(name))));
            format!(" AND NOT ({same})")
        } else {
            String::new()
        };
        format!(
            "FROM {} AS p JOIN {} AS c ON {} WHERE {}{itself}",
            quoted(&self.parent),
            quoted(&self.child),
            self.joined(),
            key_is("p", key_columns),
        )
    }

    /// Whether a put, which keeps the key, can make the children follow.
    pub(super) fn follows(&self, key_columns: &[String]) -> bool {
        let in_key = |column: &String| {
            key_columns
                .iter()
                .any(|key| key.eq_ignore_ascii_case(column))
        };
        self.acts_on_update && !self.parent_columns.iter().all(in_key)
    }

    /// The children that would follow if the row of the parent table with the same key became this row. None stands for
    /// one in a table that is not shared.
    pub(super) fn followers(
        &self,
        connection: &Session,
        schema: &Schema,
        parent: &Table,
        row: &Row,
    ) -> DbResult<Vec<Option<(TableId, Key)>>> {
        let child = self.child_table(schema);
        let found = child.map_or_else(
            || "NULL".to_owned(),
            |child| columns("c", child.key_columns()),
        );
        let changed = parent.columns.iter().enumerate().filter(|(_, column)| {
            let same = |name: &String| name.eq_ignore_ascii_case(&column.name);
            self.parent_columns.iter().any(same)
        });
        let changed: Vec<String> = changed
            .map(|(at, column)| format!("p.{} IS NOT ?{}", quoted(&column.name), at + 1))
            .collect();
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let key = parent.key.iter().zip(parent.key_columns());
        // With the last column in it, the statement takes whole rows, whatever columns it names.
        let select = format!(
            "SELECT {found}, ?{} FROM {} AS p JOIN {} AS c ON {} WHERE {} AND ({})",
            parent.columns.len(),
            quoted(&self.parent),
            quoted(&self.child),
            self.joined(),
            all(key.map(|(at, column)| format!("p.{} = ?{}", quoted(&column.name), at + 1))),
            changed.join(" OR "),
        );
        let mut select = connection.prepare_cached(&select).map_err(failure)?;
        let mut rows = select
            .query(params_from_iter(row.0.iter().map(Stored)))
            .map_err(failure)?;
        let local = child
            .map(|child| Local::of(connection, child))
            .transpose()?;
        let mut followers = Vec::new();
        while let Some(row) = rows.next().map_err(failure)? {
            followers.push(match child.zip(local.as_ref()) {
                Some((child, local)) => {
                    let key = key_at(local, child, row, 0)?;
                    Some((child.id, key.unwrap_or_else(|unreadable| unreadable.key)))
                }
                None => None,
            });
        }
        Ok(followers)
    }

    /// Whether the row of the child table with this key refers to a row that is not there.
    fn is_broken_for(&self, connection: &Connection, row: &Touched) -> DbResult<bool> {
        let set = all(self
            .child_columns
            .iter()
            .map(|name| format!("c.{} IS NOT NULL", quoted(name))));
        let select = format!(
            "SELECT 1 FROM {} AS c WHERE {} AND {set} AND NOT EXISTS (SELECT 1 FROM {} AS p WHERE {})",
            quoted(&self.child),
            key_is("c", &row.key_columns),
            quoted(&self.parent),
            self.joined(),
        );
        exists(connection, &select, &row.key)
    }

    /// Whether children are left of the deleted row of the parent table with this key.
    fn is_left_of(&self, connection: &Connection, row: &Touched) -> DbResult<bool> {
        let place = |parent: &String| {
            row.key_columns
                .iter()
                .position(|name| name.eq_ignore_ascii_case(parent))
        };
        let Some(places) = self
            .parent_columns
            .iter()
            .map(place)
            .collect::<Option<Vec<_>>>()
        else {
            return Ok(false);
        };
        let children = self.child_columns.iter().zip(places);
        let select = format!(
            "SELECT ?{} FROM {} AS c WHERE {} AND NOT EXISTS (SELECT 1 FROM {} AS p WHERE {})",
            row.key_columns.len(),
            quoted(&self.child),
            all(children.map(|(child, at)| format!("c.{} = ?{}", quoted(child), at + 1))),
            quoted(&self.parent),
            self.joined(),
        );
        exists(connection, &select, &row.key)
    }
}

/// The first reference that these rows broke: the table that refers and the table referred to.
pub(super) fn broken(
    connection: &Connection,
    references: &[Reference],
    touched: &[Touched],
) -> DbResult<Option<(String, String)>> {
    for row in touched {
        for reference in references {
            let broken = (reference.child.eq_ignore_ascii_case(&row.table)
                && reference.is_broken_for(connection, row)?)
                || (reference.parent.eq_ignore_ascii_case(&row.table)
                    && reference.is_left_of(connection, row)?);
            if broken {
                return Ok(Some((reference.child.clone(), reference.parent.clone())));
            }
        }
    }
    Ok(None)
}

fn key_is(alias: &str, columns: &[String]) -> String {
    all(columns
        .iter()
        .enumerate()
        .map(|(at, name)| format!("{alias}.{} = ?{}", quoted(name), at + 1)))
}

fn exists(connection: &Connection, select: &str, key: &Key) -> DbResult<bool> {
    connection
        .prepare_cached(select)
        .and_then(|mut select| {
            select
                .query_row(params_from_iter(bound(key)), |_| Ok(()))
                .optional()
        })
        .map(|found| found.is_some())
        .map_err(failure)
}
