//! Writing the log: entries get their place, their chain and their envelope in the transaction that makes them true.

use std::sync::Arc;

use super::recent::{Newest, ROWS_REMEMBERED, Recent, names_of, rows_of};
use crate::books::{self, HeadBook, LOG, LOG_KEYS};
use crate::envelope;
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition};
use crate::message::{LogBody, LogEntry, Message};
use crate::office::Identity;
use crate::port::{Database, Entry};
use crate::schema::Schema;

/// The name of the head's own record.
pub(super) const HEAD: &str = "head";

/// An entry that was just written.
#[derive(Debug)]
pub(super) struct Fresh {
    pub position: LogPosition,
    /// Its envelope, where the memory of the log's end would keep it.
    pub bytes: Option<Arc<Vec<u8>>>,
    /// Its rows, where the memory of recent changes would keep them.
    pub rows: Option<Vec<(Digest, Newest)>>,
}

/// Appends entries in one transaction; the head adopts them after the commit.
pub(super) struct LogWriter<'a> {
    identity: &'a Identity,
    schema: &'a Schema,
    pub book: HeadBook,
    unwritten: (Vec<Entry>, Vec<Entry>),
    pub fresh: Vec<Fresh>,
    kept: Kept,
}

/// What the entries just written keep in memory, and from which of them on: a unit may be larger than memory.
#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    bytes_from: usize,
    rows: usize,
    rows_from: usize,
}

impl<'a> LogWriter<'a> {
    pub fn new(identity: &'a Identity, schema: &'a Schema, book: HeadBook) -> Self {
        Self {
            identity,
            schema,
            book,
            unwritten: Default::default(),
            fresh: Vec::new(),
            kept: Kept::default(),
        }
    }

    /// Where the next entry will stand.
    pub fn next(&self) -> LogPosition {
        self.book.last.next()
    }

    /// Adds an entry.
    pub async fn append<D: Database>(&mut self, db: &mut D, body: LogBody) -> OfficeResult<()> {
        self.append_rows(db, body, None).await
    }

    /// Adds an entry of which it is known already which versions it makes.
    pub async fn append_rows<D: Database>(
        &mut self,
        db: &mut D,
        body: LogBody,
        rows: Option<Vec<(Digest, Newest)>>,
    ) -> OfficeResult<()> {
        let position = self.next();
        let entry = LogEntry {
            head: self.book.incarnation,
            position,
            previous: self.book.chain,
            schema: self.schema.version,
            body,
        };
        let made = || rows_of(&entry, self.schema, &self.identity.shared_name);
        debug_assert!(rows.as_ref().is_none_or(|rows| *rows == made()));
        let rows = rows.unwrap_or_else(made);
        let bytes = envelope::seal(
            &self.identity.name,
            &self.identity.key,
            &Message::Log(entry),
        )?;
        self.book.chain = envelope::chain(&bytes);
        self.book.last = position;
        let (log, names) = &mut self.unwritten;
        names.push(Entry {
            number: position.0,
            bytes: names_of(&rows),
        });
        log.push(Entry {
            number: position.0,
            bytes: bytes.clone(),
        });
        self.keep(position, bytes, rows);
        if self.unwritten.0.len() >= 16 {
            self.flush(db).await?;
        }
        Ok(())
    }

    /// Remembers an entry, and forgets of the oldest what would be forgotten on adoption anyway.
    fn keep(&mut self, position: LogPosition, bytes: Vec<u8>, rows: Vec<(Digest, Newest)>) {
        self.kept.bytes += bytes.len();
        self.kept.rows += rows.len();
        self.fresh.push(Fresh {
            position,
            bytes: Some(Arc::new(bytes)),
            rows: Some(rows),
        });
        while self.kept.bytes > TAIL_BYTES {
            let oldest = self.fresh.get_mut(self.kept.bytes_from);
            let Some(bytes) = oldest.and_then(|entry| entry.bytes.take()) else {
                break;
            };
            self.kept.bytes -= bytes.len();
            self.kept.bytes_from += 1;
        }
        while self.kept.rows > ROWS_REMEMBERED {
            let oldest = self.fresh.get_mut(self.kept.rows_from);
            let Some(rows) = oldest.and_then(|entry| entry.rows.take()) else {
                break;
            };
            self.kept.rows -= rows.len();
            self.kept.rows_from += 1;
        }
    }

    async fn flush<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let (log, names) = std::mem::take(&mut self.unwritten);
        if !log.is_empty() {
            db.append(LOG, &log).await?;
            db.append(LOG_KEYS, &names).await?;
        }
        Ok(())
    }

    /// Writes what is left and the head's record; the caller commits.
    pub async fn finish<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        self.flush(db).await?;
        books::store(db, HEAD, &self.book).await
    }
}

/// The end of the log in memory, so that what was just written need not be read again.
#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: std::collections::VecDeque<(LogPosition, Arc<Vec<u8>>)>,
    bytes: usize,
}

const TAIL_BYTES: usize = 2 * 1024 * 1024;

impl Tail {
    pub fn adopt(&mut self, fresh: Vec<Fresh>, recent: &mut Recent) {
        for entry in fresh {
            match entry.rows {
                Some(rows) => recent.add(entry.position, rows),
                None => recent.forget_through(entry.position),
            }
            let Some(bytes) = entry.bytes else {
                *self = Self::default();
                continue;
            };
            self.bytes += bytes.len();
            self.entries.push_back((entry.position, bytes));
            while self.bytes > TAIL_BYTES {
                let Some((_, oldest)) = self.entries.pop_front() else {
                    break;
                };
                self.bytes -= oldest.len();
            }
        }
    }

    pub fn get(&self, position: LogPosition) -> Option<&Arc<Vec<u8>>> {
        let (first, _) = self.entries.front()?;
        let at = usize::try_from(position.0.checked_sub(first.0)?).ok()?;
        self.entries.get(at).map(|(_, bytes)| bytes)
    }
}
