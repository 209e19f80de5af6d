//! Repairing what a comparison found: the branch's row is fetched and kept in a record, and an entry of the log tells
//! the branch to take the head's row.
//!
//! Nothing is decided anew here: the head's row stands (P4). What the branch had can be listed and gone back to like
//! any decision (P9). A row that moved since it was compared is left to the next look.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Head;
use super::verify::{ByTable, Stage};
use super::writer::{Fresh, LogWriter};
use crate::books::{self, CONFLICTS, HeadBook, HeldAtHead};
use crate::change::{Base, Key, Row};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::failure::OfficeResult;
use crate::identity::{LogPosition, Micros, OfficeName};
use crate::message::{
    LogBody, LoggedChanges, Message, PresentRow, PresentRows, RowsRequest, Settlement, TableKeys,
};
use crate::office::{BATCH_BYTES, conclude, weight_of};
use crate::output::{Notice, Output};
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Table, TableId};

/// How many rows of a branch are fetched and repaired at a time.
const ROWS_AT_A_TIME: usize = 500;
/// How many of them are read at a time: rows may be large.
const ROWS_READ: usize = 25;
/// How many bytes of rows one transaction repairs, about.
const BYTES_AT_A_TIME: usize = 8 * BATCH_BYTES;

/// What one transaction repaired, to be adopted after the commit.
struct Written {
    book: HeadBook,
    fresh: Vec<Fresh>,
    /// Number and table of each record.
    records: Vec<(u64, TableId, String)>,
    /// How many of the branch's rows were looked at.
    done: usize,
    /// How many bytes of envelopes it took.
    bytes: u64,
}

/// How many bytes of envelopes entries are.
pub(super) fn bytes_of(fresh: &[Fresh]) -> u64 {
    let bytes = fresh.iter().filter_map(|entry| entry.bytes.as_ref());
    bytes.map(|bytes| bytes.len() as u64).sum()
}

impl Head {
    /// Asks a branch for the next rows that are to be repaired.
    pub(super) fn ask_rows(&mut self, branch: &OfficeName) -> OfficeResult<()> {
        let Some(running) = &self.verifications.running else {
            return Ok(());
        };
        let Some(compared) = running.branches.get(branch) else {
            return Ok(());
        };
        let mut tables: Vec<TableKeys> = Vec::new();
        for (table, key) in compared.to_fetch.iter().take(ROWS_AT_A_TIME) {
            match tables.last_mut().filter(|last| last.table == *table) {
                Some(last) => last.keys.push(key.clone()),
                None => tables.push(TableKeys {
                    table: *table,
                    keys: vec![key.clone()],
                }),
            }
        }
        let cut = running.cut;
        let request = Message::RowsRequest(RowsRequest { cut, tables });
        self.ask_compared(branch, &request)
    }

    /// A branch said what rows are there now.
    pub(super) fn rows_arrived(&mut self, origin: &OfficeName, rows: PresentRows, bytes: usize) {
        if let Some(running) = &mut self.verifications.running
            && let Some(compared) = running.branches.get_mut(origin)
        {
            running.bytes += bytes as u64;
            let asked = running.stage == Stage::Fetching && compared.awaited;
            if asked && rows.cut == running.cut && compared.fetched.is_none() {
                compared.fetched = Some(rows);
            }
        }
    }

    /// Repairs the rows that have come, and asks for the next.
    pub(super) async fn repair_fetched<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        let Some(running) = &mut self.verifications.running else {
            return Ok(());
        };
        let mut arrived = Vec::new();
        for (name, compared) in &mut running.branches {
            if let Some(rows) = compared.fetched.take() {
                // What was not asked for, or was answered before, is none of this.
                let asked: BTreeSet<_> = compared.to_fetch.iter().take(ROWS_AT_A_TIME).collect();
                let wanted = |row: &PresentRow| asked.contains(&(row.table, row.key.clone()));
                let rows = PresentRows {
                    rows: rows.rows.into_iter().filter(wanted).collect(),
                    ..rows
                };
                arrived.push((name.clone(), rows));
            }
        }
        for (name, rows) in arrived {
            if rows.rows.is_empty() {
                continue;
            }
            let (repaired, done, bytes) = self.repair(db, now, &name, &rows).await?;
            let Some(running) = &mut self.verifications.running else {
                return Ok(());
            };
            running.since = now;
            running.asked = now;
            running.again = true;
            running.bytes += bytes;
            let Some(compared) = running.branches.get_mut(&name) else {
                continue;
            };
            for (table, count) in repaired {
                *compared.repaired.entry(table).or_default() += count;
            }
            let done = rows.rows.iter().take(done);
            let done: BTreeSet<(TableId, &Key)> = done.map(|row| (row.table, &row.key)).collect();
            compared
                .to_fetch
                .retain(|(table, key)| !done.contains(&(*table, key)));
            compared.awaited = !compared.to_fetch.is_empty();
            if compared.awaited {
                self.ask_rows(&name)?;
            }
        }
        Ok(())
    }

    /// Tells a branch to take the head's rows in place of these. Returns how many in each table, how many were looked at,
    /// and the bytes that it took.
    async fn repair<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        rows: &PresentRows,
    ) -> OfficeResult<(ByTable<u64>, usize, u64)> {
        while self.take(db, now).await? {}
        db.begin(Purpose::Apply).await?;
        let outcome = self.try_repair(db, now, branch, rows).await;
        let written = conclude(db, outcome).await?;
        self.book = written.book;
        if !written.fresh.is_empty() {
            self.appended = now;
        }
        self.tail.adopt(written.fresh, &mut self.recent);
        let mut repaired: ByTable<u64> = BTreeMap::new();
        for (id, table, name) in written.records {
            *repaired.entry(table).or_default() += 1;
            self.outputs.push_back(Output::Notice(Notice::Conflict {
                id,
                table: name,
                reason: Reason::Repaired.code(),
            }));
        }
        Ok((repaired, written.done, written.bytes))
    }

    async fn try_repair<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        rows: &PresentRows,
    ) -> OfficeResult<Written> {
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let (mut records, mut entries) = (Vec::new(), Vec::new());
        let mut pieces: VecDeque<Settlement> = VecDeque::new();
        let (mut bytes, mut all_bytes, mut done) = (0, 0, 0);
        // Runs of rows of one table, in the order in which they can be written.
        let runs = rows.rows.chunk_by(|a, b| a.table == b.table);
        for run in runs.flat_map(|run| run.chunks(ROWS_READ)) {
            if all_bytes > BYTES_AT_A_TIME {
                break;
            }
            done += run.len();
            let Some(table) = run.first().and_then(|row| self.schema.table(row.table)) else {
                continue;
            };
            let present = self.still_differing(db, branch, table, rows.position, run);
            let present = present.await?;
            for (row, ours) in present {
                writer.book.conflicts += 1;
                let record = ConflictRecord {
                    id: writer.book.conflicts,
                    table: table.name.clone(),
                    columns: table.columns.iter().map(|c| c.name.clone()).collect(),
                    key: row.key.clone(),
                    reason: Reason::Repaired,
                    at: now,
                    origin: branch.clone(),
                    base: Base::Log(rows.position),
                    ours: ours.clone(),
                    theirs: row.row.clone(),
                    result: Resolution::Ours,
                    decided: now,
                    before: None,
                    merged: None,
                    detail: None,
                    shape: (self.schema.version, table.id),
                };
                entries.push(Entry {
                    number: record.id,
                    bytes: books::encode(&record)?,
                });
                records.push((record.id, table.id, table.name.clone()));
                let weight = ours.as_ref().map_or(16, |row| weight_of(&row.0));
                all_bytes += weight;
                if bytes + weight > BATCH_BYTES && !pieces.is_empty() {
                    append(db, &mut writer, std::mem::take(&mut pieces)).await?;
                    bytes = 0;
                }
                bytes += weight;
                pieces.push_back(Settlement {
                    branch: branch.clone(),
                    table: table.id,
                    key: row.key.clone(),
                    row: ours,
                    record: Some(record.fit_to_travel()),
                    settled: None,
                    held: None,
                });
            }
            pieces.extend(self.unknown_holds(db, branch, table, run).await?);
        }
        if !pieces.is_empty() {
            append(db, &mut writer, pieces).await?;
        }
        if !entries.is_empty() {
            db.append(CONFLICTS, &entries).await?;
        }
        writer.finish(db).await?;
        Ok(Written {
            book: writer.book,
            bytes: bytes_of(&writer.fresh),
            fresh: writer.fresh,
            records,
            done,
        })
    }

    /// Those of the branch's rows that are not the head's, with the head's. Left out is what has changes on the way on
    /// either side, or was changed in the log since the branch looked: the next comparison sees it.
    async fn still_differing<'r, D: Database>(
        &self,
        db: &mut D,
        branch: &OfficeName,
        table: &Table,
        position: LogPosition,
        rows: &'r [PresentRow],
    ) -> OfficeResult<Vec<(&'r PresentRow, Option<Row>)>> {
        let quiet = |row: &&PresentRow| {
            let fits = row
                .row
                .as_ref()
                .is_none_or(|present| table.fits(present) && table.key_of(present) == row.key);
            !row.pending && fits && table.fits_key(&row.key)
        };
        let rows: Vec<&PresentRow> = rows.iter().filter(quiet).collect();
        let keys: Vec<Key> = rows.iter().map(|row| row.key.clone()).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names = keys.iter().map(|key| key.digest(table)).collect();
        let head = &self.identity.shared_name;
        let newest = self
            .recent
            .newest(db, &self.versions, head, &names, position);
        let newest = newest.await?;
        let mut held = BTreeSet::new();
        if self.any_held {
            for (key, note) in db.notes(table, Some(&keys)).await? {
                // What is held of other branches is theirs alone.
                let note: HeldAtHead = books::decode(&note)?;
                if note.of(branch).or(note.of(&self.identity.name)).is_some() {
                    held.insert(key);
                }
            }
        }
        let mut present = db.read(table, &keys).await?;
        // After reading: what the application wrote before that is seen here, what it writes later follows in the log.
        let captured = db.captured(table, Some(&keys)).await?;
        let differing = rows.into_iter().filter_map(|row| {
            let ours = present.remove(&row.key);
            let moved = newest
                .get(&row.key.digest(table))
                .is_some_and(|newest| newest.position > position);
            let digest = |row: &Option<Row>| row.as_ref().map(|row| row.digest(table));
            let same = digest(&ours) == digest(&row.row);
            let busy = moved || captured.contains(&row.key) || held.contains(&row.key);
            (!same && !busy).then_some((row, ours))
        });
        Ok(differing.collect())
    }
}

impl Head {
    /// Rows of which the branch does not know that they are held: it copied the tables anew and never heard the verdict.
    async fn unknown_holds<D: Database>(
        &self,
        db: &mut D,
        branch: &OfficeName,
        table: &Table,
        rows: &[PresentRow],
    ) -> OfficeResult<Vec<Settlement>> {
        let mut told = Vec::new();
        let Some(seat) = self.seats.get(branch).filter(|_| self.any_held) else {
            return Ok(told);
        };
        let quiet = rows.iter().filter(|row| !row.pending);
        let keys: Vec<Key> = quiet.map(|row| row.key.clone()).collect();
        for (key, note) in db.notes(table, Some(&keys)).await? {
            let note: HeldAtHead = books::decode(&note)?;
            let Some(hold) = note.of(branch) else {
                continue;
            };
            if hold.batch.0 != seat.book.incarnation {
                continue;
            }
            let listed = db.entries(CONFLICTS, hold.conflict, 1).await?;
            let listed = listed.iter().find(|entry| entry.number == hold.conflict);
            let record = listed.map(|entry| books::decode::<ConflictRecord>(&entry.bytes));
            told.push(Settlement {
                branch: branch.clone(),
                table: table.id,
                key,
                row: None,
                record: record.transpose()?.map(|record| record.fit_to_travel()),
                settled: None,
                held: Some(hold.batch.1),
            });
        }
        Ok(told)
    }
}

async fn append<D: Database>(
    db: &mut D,
    writer: &mut LogWriter<'_>,
    settlements: VecDeque<Settlement>,
) -> OfficeResult<()> {
    let body = LoggedChanges {
        settlements: settlements.into(),
        ..LoggedChanges::of_the_head()
    };
    writer.append(db, LogBody::Changes(body)).await
}
