//! A fingerprint of how the shared tables are defined: the text that SQLite keeps of them.

use branchline_core::identity::Digest;
use branchline_core::port::DbResult;
use branchline_core::schema::Schema;
use rusqlite::Connection;

use super::SqliteDatabase;
use super::catalog;
use super::error::failure;

/// The last answer, and what it was an answer to.
#[derive(Debug)]
pub(super) struct Known {
    /// SQLite's own count of changes to the catalogue.
    version: i64,
    tables: Vec<String>,
    shape: Digest,
}

impl SqliteDatabase {
    pub(super) fn shape_of(&mut self, schema: &Schema) -> DbResult<Digest> {
        let version = catalog::version(&self.connection)?;
        let named = |known: &Known| {
            let names = schema.tables.iter().map(|table| &table.name);
            known.version == version && names.eq(known.tables.iter())
        };
        if let Some(known) = self.shape.as_ref().filter(|known| named(known)) {
            return Ok(known.shape);
        }
        let shape = shape(&self.connection, schema).map_err(failure)?;
        self.shape = Some(Known {
            version,
            tables: schema.tables.iter().map(|t| t.name.clone()).collect(),
            shape,
        });
        Ok(shape)
    }
}

fn shape(connection: &Connection, schema: &Schema) -> rusqlite::Result<Digest> {
    let mut all = connection.prepare(
        "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master
         WHERE type IN ('table', 'view', 'index') AND name NOT LIKE 'branchline\\_%' ESCAPE '\\'
             AND tbl_name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type, name",
    )?;
    let mut rows = all.query([])?;
    let mut told = Vec::new();
    while let Some(row) = rows.next()? {
        let (kind, name, table, sql): (String, String, String, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let shared = schema
            .tables
            .iter()
            .any(|one| one.name.eq_ignore_ascii_case(&table));
        match (kind.as_str(), shared) {
            (_, true) => told.push((kind, name, sql)),
            ("table", false) => told.push((kind, name, String::new())),
            _ => {}
        }
    }
    Ok(Digest::of(format!("{told:?}").as_bytes()))
}
