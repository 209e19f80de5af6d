//! SQLite 3: an office whose database is one file, shared with an application that knows nothing of Branchline.
//!
//! **How a write travels.** Triggers on each shared table append the row's key to `branchline_capture` within the
//! application's own transaction (`triggers`), and the row that it found where the table's rule needs it (`image`).
//! Taking groups those keys, reads the present rows and removes what was
//! captured, in one transaction (`capture`). SQLite shows triggers no transaction number, so units end where the office
//! knows that everything captured is whole transactions (`plan`). Applying writes a row into the marker table
//! `branchline_applying` first, which silences the capture triggers, and removes it before the commit (`apply`).
//!
//! **One writer.** SQLite has one write lock. `Take` and `Apply` hold it from `begin` to `commit`, so nothing can
//! change between the look at the capture and the commit; they must be short, and leave gaps (`courtesy`).
//!
//! **Deliberately absent.** The journal mode is the application's and is never changed. No function or extension
//! needs loading by the application; its library may be as old as SQLite 3.24. No `OR REPLACE`, which deletes rows.
//! No referential actions on rows that are not to be written: the write is refused (`actions`). The application's own triggers fire on what is applied unless
//! [`SqliteDatabase::silence_triggers`] says otherwise; `inspect` reports them.

mod actions;
mod apply;
mod bonds;
mod books;
mod capture;
mod catalog;
mod checks;
mod connection;
mod copy;
mod courtesy;
mod ddl;
mod declared;
mod definition;
mod error;
mod evolve;
mod image;
mod inspect;
mod local;
mod misfits;
mod plan;
mod put;
mod rebuild;
mod references;
mod rekey;
mod shape;
mod sql;
mod stored;
mod triggers;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DbResult, Entry, Evolution, Extent, Inspection, Portion, Purpose,
};
use branchline_core::schema::{Schema, Table, TableId};

pub use connection::{Description, SqliteDatabase};
pub use declared::compatible;
pub use watch::{Watcher, watch};

/// Every step runs to its end when first polled: SQLite has nothing to wait for but a lock. Run an office's database
/// on a thread that may block.
impl Database for SqliteDatabase {
    fn changes_at_a_time(&self) -> usize {
        self.courtesy.changes_at_a_time()
    }

    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.begin_transaction(purpose)
    }

    async fn commit(&mut self) -> DbResult<()> {
        self.commit_transaction()
    }

    async fn rollback(&mut self) -> DbResult<()> {
        self.roll_back()
    }

    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        self.take_portion(schema, limit)
    }

    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        self.captured_keys(table, keys)
    }

    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        self.capture_again(table, keys)
    }

    async fn mark(&mut self) -> DbResult<()> {
        self.mark_captured()
    }

    async fn backlog(&mut self) -> DbResult<Backlog> {
        self.waiting()
    }

    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        self.write_effects(schema, effects)
    }

    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        self.read_rows(table, keys)
    }

    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        self.read_chunk(table, after, limit)
    }

    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        books::meta(&self.connection, name)
    }

    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        books::set_meta(&self.connection, name, value)
    }

    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        books::append(&self.connection, stream, entries)
    }

    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        books::entries(&self.connection, stream, from, max_bytes)
    }

    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        books::trim(&self.connection, stream, through)
    }

    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        books::extent(&self.connection, stream)
    }

    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        books::notes(&self.connection, table.id, keys)
    }

    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        books::set_notes(&self.connection, table.id, notes)
    }

    async fn inspect(&mut self) -> DbResult<Inspection> {
        let mut found = self.catalogue_read(inspect::inspect)?;
        for table in &found.tables {
            found.findings.extend(self.look_for_misfits(table)?);
        }
        Ok(found)
    }

    async fn definitions(&mut self) -> DbResult<Inspection> {
        self.catalogue_read(inspect::inspect)
    }

    async fn prepare(&mut self) -> DbResult<()> {
        self.catalogue_write(ddl::prepare)
    }

    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        self.catalogue_write(|connection| triggers::install(connection, schema))
    }

    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        self.shape_of(schema)
    }
    async fn hold_still(&mut self, _table: &Table) -> DbResult<()> {
        // One writer at a time.
        Ok(())
    }
    async fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        self.follow(from, to, dropped)
    }
    async fn missing_capture(&mut self, schema: &Schema) -> DbResult<Vec<TableId>> {
        self.catalogue_read(|connection| triggers::missing(connection, schema))
    }

    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        self.catalogue_write(|connection| ddl::create_tables(connection, schema))
    }

    /// Nothing to do: SQLite's tables are created with their foreign keys, which [`Purpose::Load`] does not enforce.
    async fn add_foreign_keys(&mut self, _schema: &Schema) -> DbResult<()> {
        Ok(())
    }

    async fn uninstall(&mut self) -> DbResult<()> {
        self.catalogue_write(ddl::uninstall)?;
        // One that cannot be removed does no harm.
        drop(std::fs::remove_file(self.lock_path()));
        Ok(())
    }
}
