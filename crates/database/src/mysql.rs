//! MariaDB 10.6 and later, and MySQL 8.
//!
//! Everything of ours is a few tables named `branchline_...` in the application's own database. Its tables only get
//! triggers, which write the keys of changed rows, never their values, into `branchline_capture`. Taking reads the rows as
//! they are in the snapshot that shows the keys, and deletes exactly those: late commits, net effects and exactly-once
//! follow from that.
//!
//! How a write travels: [`capture`] notes its key in the application's own transaction, and [`cascade`] those of rows
//! that foreign keys change with it; [`watch`] wakes the process; [`take`] removes the keys in whole units and reads the
//! rows; at another office [`apply`] puts them; [`books`] keeps streams, notes and remembered values in the same
//! transactions.
//!
//! Deliberately absent: `INSERT ... ON DUPLICATE KEY UPDATE` and `REPLACE` on shared tables (they change or delete rows of
//! other keys), `foreign_key_checks = 0`, deletes by range (they reach what the snapshot does not show), the binary log.

mod apply;
mod binding;
mod bonds;
mod books;
mod capture;
mod cascade;
mod catalog;
mod checks;
mod column;
mod connection;
mod ddl;
mod delete;
mod encoding;
mod error;
mod evolve;
mod layout;
mod literal;
mod misfits;
mod park;
mod put;
mod read;
mod references;
mod rekey;
mod retype;
mod session;
mod shape;
mod still;
mod take;
mod tls;
mod types;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DbResult, Entry, Evolution, Extent, Inspection, Portion, Purpose,
};
use branchline_core::schema::{Schema, Table, TableId};

pub use connection::MysqlDatabase;
pub use watch::{Watcher, watch};

impl Database for MysqlDatabase {
    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.still.forget_tables();
        self.open(purpose).await
    }
    async fn commit(&mut self) -> DbResult<()> {
        self.close(true).await
    }
    async fn rollback(&mut self) -> DbResult<()> {
        self.close(false).await
    }
    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        take::take(self, schema, limit).await
    }
    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        capture::captured(self, table, keys).await
    }
    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        capture::recapture(self, table, keys).await
    }
    async fn mark(&mut self) -> DbResult<()> {
        let marked = take::mark(self).await;
        self.close(marked.is_ok()).await.and(marked)
    }
    async fn backlog(&mut self) -> DbResult<Backlog> {
        capture::backlog(self).await
    }
    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        apply::write(self, schema, effects).await
    }
    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        read::read(self, table, keys).await
    }
    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        read::chunk(self, table, after, limit).await
    }
    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        books::meta(self, name).await
    }
    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        books::set_meta(self, name, value).await
    }
    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        books::append(self, stream, entries).await
    }
    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        books::entries(self, stream, from, max_bytes).await
    }
    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        books::trim(self, stream, through).await
    }
    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        books::extent(self, stream).await
    }
    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        books::notes(self, table, keys).await
    }
    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        books::set_notes(self, table, notes).await
    }
    async fn inspect(&mut self) -> DbResult<Inspection> {
        let mut found = catalog::inspect(self).await?;
        self.learn_layouts().await?;
        for table in &found.tables {
            found
                .findings
                .extend(misfits::look_for_misfits(self, table).await?);
        }
        Ok(found)
    }
    async fn definitions(&mut self) -> DbResult<Inspection> {
        catalog::inspect(self).await
    }
    async fn prepare(&mut self) -> DbResult<()> {
        capture::prepare(self).await
    }
    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        capture::install(self, schema).await
    }
    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        shape::shape(self, schema).await
    }
    async fn hold_still(&mut self, table: &Table) -> DbResult<()> {
        self.still.add(table.id);
        Ok(())
    }
    async fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        evolve::evolve(self, from, to, dropped).await
    }
    async fn missing_capture(&mut self, schema: &Schema) -> DbResult<Vec<TableId>> {
        capture::missing(self, schema).await
    }
    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        ddl::create_tables(self, schema).await
    }
    async fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        binding::add_foreign_keys(self, schema).await
    }
    async fn uninstall(&mut self) -> DbResult<()> {
        capture::uninstall(self).await
    }
}
