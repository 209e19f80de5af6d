//! Logging lost entries anew, behind what the restored head has written since.

use super::super::Head;
use super::super::writer::{Fresh, LogWriter};
use super::ATTEMPTS;
use super::lost::{Anew, LostEntry};
use super::relogging::{Facts, Relogging};
use super::sums::Lineage;
use super::taken::{Known, TakenBefore, note_taken};
use crate::books::{self, HeadBook, RowNames, SeatBook, seat_name};
use crate::change::{Effect, Key};
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition, Micros, OfficeName};
use crate::message::LogEntry;
use crate::office::conclude;
use crate::output::Output;
use crate::pile::Pile;
use crate::port::{Database, Purpose};
use crate::schema::{Table, TableId};
use crate::unfit::{self, is_unfit};
use std::collections::{BTreeMap, BTreeSet};

/// What one transaction logged.
struct Relogged {
    book: HeadBook,
    fresh: Vec<Fresh>,
    seats: BTreeMap<OfficeName, SeatBook>,
    lineage: Lineage,
    numbers: BTreeMap<u64, u64>,
    noted: TakenBefore,
}

impl Head {
    /// Logs lost entries anew, behind what the head has written since it was restored. Returns whether it was done: not
    /// where the application wrote the same rows without pause.
    pub(super) async fn log_anew<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
        anew: &mut Anew,
    ) -> OfficeResult<bool> {
        let mut unfit = RowNames::new();
        for _ in 0..ATTEMPTS {
            let mut tried = Vec::new();
            db.begin(Purpose::Apply).await?;
            let outcome = match anew.known.read_on(db, anew.agreed).await {
                Ok(()) => self.try_anew(db, now, lost, anew, &unfit, &mut tried).await,
                Err(error) => Err(error),
            };
            let outcome = match outcome {
                Ok(Some(done)) => conclude(db, Ok(Some(done))).await,
                other => other,
            };
            match outcome {
                Ok(Some(mut done)) => {
                    anew.known.note(std::mem::take(&mut done.noted));
                    anew.lineage.clone_from(&done.lineage);
                    anew.numbers.clone_from(&done.numbers);
                    self.adopt_relogged(now, done);
                    return Ok(true);
                }
                Ok(None) => {
                    db.rollback().await?;
                    while self.take(db, now).await? {}
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let found = unfit::find(db, &self.schema, Purpose::Apply, tried).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    unfit.extend(found);
                }
                Err(error) => {
                    db.rollback().await?;
                    return Err(error);
                }
            }
        }
        Ok(false)
    }

    fn adopt_relogged(&mut self, now: Micros, done: Relogged) {
        self.book = done.book;
        self.appended = now;
        self.any_held = true;
        self.tail.adopt(done.fresh, &mut self.recent);
        for (name, book) in done.seats {
            if let Some(seat) = self.seats.get_mut(&name) {
                if seat.book.cursor != book.cursor || seat.book.incarnation != book.incarnation {
                    let dropped = seat.inbox.restart(book.cursor.0);
                    self.outputs.extend(dropped.into_iter().map(Output::Settle));
                    seat.staged = false;
                }
                seat.book = book;
            }
        }
    }

    async fn try_anew<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
        anew: &Anew,
        unfit: &RowNames,
        tried: &mut Vec<(TableId, Effect)>,
    ) -> OfficeResult<Option<Relogged>> {
        let (agreed, _) = anew.agreed;
        let Known { judged, taken, .. } = &anew.known;
        let mut entries = Vec::with_capacity(lost.len());
        for (entry, bytes) in lost {
            entries.extend(self.read_by_present(&anew.part, entry, bytes)?);
        }
        let mut lineage = anew.lineage.clone();
        lineage.enter(self.schema.version);
        let facts = self.facts(db, &entries, agreed, &lineage).await?;
        let mut piece = Relogging {
            head: self,
            now,
            unfit,
            facts,
            agreed: anew.agreed,
            relogged: &anew.known.relogged,
            writer: LogWriter::new(&self.identity, &self.schema, self.book.clone()),
            seats: BTreeMap::new(),
            pile: Pile::default(),
            lineage,
            numbers: anew.numbers.clone(),
            tried,
        };
        let mut noted = TakenBefore::new();
        for entry in entries {
            let place = piece.writer.next();
            let chain = entry.chain;
            if taken.contains_key(&chain) {
                // Another branch gave it back before.
                piece.lineage.follow(&entry.body, &self.schema);
                continue;
            }
            if piece.hear(db, entry, judged).await? {
                noted.insert(chain, place);
            }
        }
        note_taken(db, anew.agreed, &noted).await?;
        if !piece.pile.write(db, &self.schema).await?.is_empty() {
            return Ok(None);
        }
        for (name, seat) in &piece.seats {
            books::store(db, &seat_name(name), seat).await?;
        }
        piece.writer.finish(db).await?;
        Ok(Some(Relogged {
            book: piece.writer.book,
            fresh: piece.writer.fresh,
            seats: piece.seats,
            lineage: piece.lineage,
            numbers: piece.numbers,
            noted,
        }))
    }

    /// Reads, table by table, what is known of the rows of lost entries.
    async fn facts<D: Database>(
        &self,
        db: &mut D,
        entries: &[LostEntry],
        agreed: LogPosition,
        lineage: &Lineage,
    ) -> OfficeResult<Facts> {
        let mut counting = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut present = BTreeMap::new();
        for table in &self.schema.tables {
            let mut keys = BTreeSet::new();
            for LostEntry { body, .. } in entries {
                let here = |id: &TableId| *id == table.id;
                let changes = body.changes.iter().filter(|one| here(&one.table));
                let changed: BTreeSet<Key> = changes.map(|one| one.effect.key(table)).collect();
                names.extend(changed.iter().map(|key| key.digest(table)));
                if !table.counters.is_empty() {
                    let keys = changed.iter();
                    counting.extend(keys.map(|key| (key.digest(table), (table, key.clone()))));
                }
                keys.extend(changed);
                let verdicts = body.verdicts.iter().filter(|one| here(&one.table));
                keys.extend(verdicts.map(|one| one.key.clone()));
                let settlements = body.settlements.iter().filter(|one| here(&one.table));
                keys.extend(settlements.map(|one| one.key.clone()));
            }
            for LostEntry { unplaced, .. } in entries {
                let here = unplaced.iter().filter(|one| one.table() == table.id);
                keys.extend(here.filter_map(|one| one.key.clone()));
            }
            if keys.is_empty() {
                continue;
            }
            let keys: Vec<Key> = keys.into_iter().collect();
            let rows = db.read(table, &keys).await?.into_iter();
            present.extend(rows.map(|(key, row)| ((table.id, key), row)));
        }
        let (versions, name) = (&self.versions, &self.identity.shared_name);
        let newest = self.recent.newest(db, versions, name, &names, agreed);
        let newest = newest.await?;
        let with_row = |(name, (table, key)): (Digest, (_, Key))| {
            let table: &Table = table;
            let row = present.get(&(table.id, key.clone())).cloned();
            (name, (table, key, row))
        };
        let counting = counting.into_iter().map(with_row).collect();
        let shared = self.shared_rows(db, counting, lineage, &newest, agreed);
        Ok(Facts {
            shared: shared.await?,
            newest,
            present,
        })
    }
}
