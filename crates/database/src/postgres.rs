//! PostgreSQL 13 and later.
//!
//! Everything of ours lives in the schema `branchline`; the application's tables only get triggers, which write the
//! keys of changed rows, and the old rows only where the table's rule needs them, into the append-only heap
//! `branchline.capture`. Taking reads the rows as they are in the snapshot that removes the keys: late commits, net
//! effects and exactly-once follow from that.
//!
//! How a write travels: [`triggers`] note its key in the application's own transaction; [`watch`] wakes the process;
//! [`take`] removes the keys in whole units, [`net`] gathers the writes to a row, and [`reads`] reads the rows; at
//! another office [`apply`] puts them; [`books`] keeps streams, notes and remembered values in the same transactions.
//!
//! Deliberately absent: numbers drawn from sequences (they would break the application's `lastval()`), `NOTIFY` in
//! every transaction (it halves the commit rate), `session_replication_role` (it would switch foreign keys off),
//! watermarks over ids.

mod apply;
mod bonds;
mod books;
mod capture;
mod catalog;
mod checks;
mod connection;
mod copy;
mod ddl;
mod delete;
mod error;
mod evolve;
mod install;
mod layout;
mod literal;
mod net;
mod park;
mod plan;
mod reads;
mod references;
mod rekey;
mod retype;
mod shape;
mod take;
mod tls;
mod triggers;
mod types;
mod walk;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DatabaseError, DbResult, Entry, Evolution, Extent, Inspection, Portion,
    Purpose,
};
use branchline_core::schema::{Schema, Table, TableId};

pub use connection::PostgresDatabase;
pub use watch::{Watcher, watch};

impl Database for PostgresDatabase {
    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.open(purpose).await
    }
    async fn commit(&mut self) -> DbResult<()> {
        self.close(true).await
    }
    async fn rollback(&mut self) -> DbResult<()> {
        self.close(false).await
    }
    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        let outcome = take::take(self, schema, limit).await;
        self.told(outcome).await
    }
    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        let mut outcome = capture::captured(self, table, keys).await;
        if !self.copied().await? {
            outcome = capture::captured(self, table, keys).await;
        }
        self.told(outcome).await
    }
    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        self.copied().await?;
        let outcome = capture::recapture(self, table, keys).await;
        self.told(outcome).await
    }
    async fn mark(&mut self) -> DbResult<()> {
        // Every write names its transaction.
        Ok(())
    }
    async fn backlog(&mut self) -> DbResult<Backlog> {
        self.copied().await?;
        let outcome = capture::backlog(self).await;
        self.told(outcome).await
    }
    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        self.copied().await?;
        let outcome = apply::write(self, schema, effects).await;
        self.told(outcome).await
    }
    async fn begin_write(
        &mut self,
        schema: &Schema,
        effects: Vec<(TableId, Effect)>,
    ) -> DbResult<()> {
        self.copied().await?;
        let outcome = apply::begin_write(self, schema, effects).await;
        if let Err(DatabaseError::Mismatch { .. }) = &outcome {
            // The table may have been altered since it was looked up.
            self.forget_layouts();
        }
        self.told(outcome).await
    }
    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        self.copied().await?;
        let outcome = apply::read(self, table, keys).await;
        self.told(outcome).await
    }
    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        self.copied().await?;
        let outcome = apply::chunk(self, table, after, limit).await;
        self.told(outcome).await
    }
    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        self.copied().await?;
        let outcome = books::meta(self, name).await;
        self.told(outcome).await
    }
    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        self.copied().await?;
        let outcome = books::set_meta(self, name, value).await;
        self.told(outcome).await
    }
    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        self.copied().await?;
        let outcome = books::append(self, stream, entries).await;
        self.told(outcome).await
    }
    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        self.copied().await?;
        let outcome = books::entries(self, stream, from, max_bytes).await;
        self.told(outcome).await
    }
    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        self.copied().await?;
        let outcome = books::trim(self, stream, through).await;
        self.told(outcome).await
    }
    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        self.copied().await?;
        let outcome = books::extent(self, stream).await;
        self.told(outcome).await
    }
    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        self.copied().await?;
        let outcome = books::notes(self, table, keys).await;
        self.told(outcome).await
    }
    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        self.copied().await?;
        let outcome = books::set_notes(self, table, notes).await;
        self.told(outcome).await
    }
    async fn inspect(&mut self) -> DbResult<Inspection> {
        let outcome = catalog::inspect(self).await;
        self.told(outcome).await
    }
    async fn prepare(&mut self) -> DbResult<()> {
        let outcome = install::prepare(self).await;
        self.told(outcome).await
    }
    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        install::install(self, schema).await
    }
    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        self.copied().await?;
        let outcome = shape::shape(self, schema).await;
        self.told(outcome).await
    }
    async fn hold_still(&mut self, table: &Table) -> DbResult<()> {
        evolve::hold_still(self, table).await
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
        install::missing(self, schema).await
    }
    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        ddl::create_tables(self, schema).await
    }
    async fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        ddl::add_foreign_keys(self, schema).await
    }
    async fn uninstall(&mut self) -> DbResult<()> {
        install::uninstall(self).await
    }
}
