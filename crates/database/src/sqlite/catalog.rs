//! A table as the database has it now, read from SQLite's catalogue.

use branchline_core::port::DbResult;
use rusqlite::Connection;

use super::error::failure;

/// SQLite's own count of changes to the catalogue. A rollback takes it back.
pub(super) fn version(connection: &Connection) -> DbResult<i64> {
    connection
        .prepare_cached("PRAGMA main.schema_version")
        .and_then(|mut version| version.query_row([], |row| row.get(0)))
        .map_err(failure)
}

/// Collations that every SQLite has. An index in another one cannot be written without the application's code.
const BUILT_IN: [&str; 3] = ["BINARY", "NOCASE", "RTRIM"];

/// A table's present shape.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) name: String,
    pub(super) columns: Vec<LiveColumn>,
    pub(super) indexes: Vec<LiveIndex>,
}

#[derive(Debug)]
pub(super) struct LiveColumn {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) not_null: bool,
    pub(super) default: Option<String>,
    /// Its place in the primary key, from 1; 0 outside.
    pub(super) key: i64,
    /// Computed from other columns; it does not travel.
    pub(super) generated: bool,
}

#[derive(Debug)]
pub(super) struct LiveIndex {
    pub(super) name: String,
    pub(super) unique: bool,
    /// It enforces the primary key.
    pub(super) primary: bool,
    pub(super) partial: bool,
    /// Column (None for an expression) and collation.
    pub(super) columns: Vec<(Option<String>, String)>,
}

impl Live {
    /// The table with this name, in its present shape.
    pub(super) fn find(connection: &Connection, name: &str) -> DbResult<Option<Self>> {
        let columns = columns(connection, name).map_err(failure)?;
        if columns.is_empty() {
            return Ok(None);
        }
        let indexes = indexes(connection, name).map_err(failure)?;
        Ok(Some(Self {
            name: name.to_owned(),
            columns,
            indexes,
        }))
    }

    /// Its columns alone, which is less to look up; none where there is no such table.
    pub(super) fn columns_of(connection: &Connection, name: &str) -> DbResult<Vec<LiveColumn>> {
        columns(connection, name).map_err(failure)
    }

    pub(super) fn column(&self, name: &str) -> Option<&LiveColumn> {
        self.columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The primary key's columns in key order.
    pub(super) fn key(&self) -> Vec<&LiveColumn> {
        let mut key: Vec<_> = self
            .columns
            .iter()
            .filter(|column| column.key > 0)
            .collect();
        key.sort_by_key(|column| column.key);
        key
    }

    /// Whether the key is `INTEGER PRIMARY KEY`, for which SQLite hands out numbers.
    pub(super) fn numbers_rows(&self) -> bool {
        let key = self.key();
        key.len() == 1
            && key
                .iter()
                .all(|column| column.declared.eq_ignore_ascii_case("INTEGER"))
            && !self.indexes.iter().any(|index| index.primary)
    }

    /// Unique constraints besides the key over whole columns of all rows: each column with its collation.
    pub(super) fn unique_columns(&self) -> impl Iterator<Item = Vec<(&str, &str)>> {
        self.indexes
            .iter()
            .filter(|index| index.unique && !index.primary && !index.partial)
            .filter_map(|index| {
                index
                    .columns
                    .iter()
                    .map(|(column, collation)| Some((column.as_deref()?, collation.as_str())))
                    .collect()
            })
    }

    /// Other indexes, over whole columns of all rows.
    pub(super) fn plain_indexes(&self) -> impl Iterator<Item = Vec<&str>> {
        self.indexes
            .iter()
            .filter(|index| !index.unique && !index.partial)
            .filter_map(|index| {
                index
                    .columns
                    .iter()
                    .map(|(column, _)| column.as_deref())
                    .collect()
            })
    }

    /// A unique index that capture cannot watch for `OR REPLACE`: partial, or over an expression.
    pub(super) fn unwatched_index(&self) -> Option<&str> {
        let unwatched = |index: &&LiveIndex| {
            index.unique
                && (index.partial || index.columns.iter().any(|(column, _)| column.is_none()))
        };
        self.indexes
            .iter()
            .find(unwatched)
            .map(|index| index.name.as_str())
    }

    /// A collation of the primary key under which different keys are the same.
    pub(super) fn folding_key(&self) -> Option<&str> {
        let key = self.indexes.iter().find(|index| index.primary)?;
        key.columns
            .iter()
            .map(|(_, collation)| collation.as_str())
            .find(|collation| !is(collation, "BINARY"))
    }

    /// A collation that only the application has.
    pub(super) fn foreign_collation(&self) -> Option<&str> {
        let collations = self
            .indexes
            .iter()
            .flat_map(|index| &index.columns)
            .map(|(_, collation)| collation.as_str());
        collations
            .into_iter()
            .find(|collation| !BUILT_IN.iter().any(|known| is(collation, known)))
    }
}

fn is(collation: &str, name: &str) -> bool {
    collation.eq_ignore_ascii_case(name)
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<LiveColumn>> {
    connection
        .prepare_cached("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1, 'main')")?
        .query_map([table], |row| {
            Ok(LiveColumn {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                default: row.get(3)?,
                key: row.get(4)?,
                generated: row.get::<_, i64>(5)? != 0,
            })
        })?
        .collect()
}

fn indexes(connection: &Connection, table: &str) -> rusqlite::Result<Vec<LiveIndex>> {
    let mut list = connection.prepare_cached(
        "SELECT name, \"unique\", origin = 'pk', partial FROM pragma_index_list(?1, 'main') ORDER BY seq DESC",
    )?;
    let mut parts = connection.prepare_cached(
        "SELECT name, coll FROM pragma_index_xinfo(?1, 'main') WHERE key = 1 ORDER BY seqno",
    )?;
    list.query_map([table], |row| {
        let name: String = row.get(0)?;
        let columns = parts
            .query_map([&name], |part| Ok((part.get(0)?, part.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(LiveIndex {
            name,
            unique: row.get(1)?,
            primary: row.get(2)?,
            partial: row.get(3)?,
            columns,
        })
    })?
    .collect()
}
