//! Logging lost entries anew, behind what the restored head has written since.

use super::super::Head;
use super::super::recent::{Newest, own_entry};
use super::super::writer::{Fresh, LogWriter};
use super::lost::{Anew, LostEntry, Unplaced};
use super::sums::Lineage;
use super::{ATTEMPTS, list};
use crate::books::{self, HeadBook, LOG, Pages, RowNames, SeatBook, seat_name};
use crate::change::{Effect, Key, Row};
use crate::conflict::{self, ConflictRecord, Decision, Reason, Resolution};
use crate::evolution::fill_row;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::message::{
    Answer, LogBody, LogEntry, Logged, LoggedChanges, Outcome, Settlement, Source, Verdict,
};
use crate::office::conclude;
use crate::output::Output;
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Table, TableId};
use crate::unfit::{self, is_unfit};
use std::collections::{BTreeMap, BTreeSet};

/// The streams of entries that were logged anew, by the place after which they were lost.
const LOST_STREAMS: &str = "lost-streams";

/// What is known of the rows of a piece, gathered for all of it at once.
struct Facts {
    /// Entries of this log that were logged anew before.
    relogged: BTreeSet<LogPosition>,
    /// The newest version of each row since the two continuations parted.
    newest: BTreeMap<Digest, Newest>,
    present: BTreeMap<(TableId, Key), Row>,
    /// Rows with counters as they were before the two continuations parted.
    shared: BTreeMap<Digest, Row>,
}

/// One piece in the making.
struct Relogging<'a> {
    head: &'a Head,
    now: Micros,
    unfit: &'a RowNames,
    facts: Facts,
    /// The last place that both continuations share.
    agreed: (LogPosition, Digest),
    writer: LogWriter<'a>,
    seats: BTreeMap<OfficeName, SeatBook>,
    pile: Pile,
    lineage: Lineage,
    /// What is written, for finding what of it does not fit.
    tried: &'a mut Vec<(TableId, Effect)>,
}

/// What one transaction logged.
struct Relogged {
    book: HeadBook,
    fresh: Vec<Fresh>,
    seats: BTreeMap<OfficeName, SeatBook>,
    lineage: Lineage,
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
            let outcome = match self.try_anew(db, now, lost, anew, &unfit, &mut tried).await {
                Ok(Some(done)) => conclude(db, Ok(Some(done))).await,
                other => other,
            };
            match outcome {
                Ok(Some(done)) => {
                    anew.lineage.clone_from(&done.lineage);
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

    /// The batches that this log answers after a place, with the hashes of their envelopes.
    async fn judged_since<D: Database>(
        &self,
        db: &mut D,
        agreed: LogPosition,
    ) -> OfficeResult<BTreeMap<(OfficeName, Incarnation, BatchNumber), Digest>> {
        let mut judged = BTreeMap::new();
        let mut pages = Pages::from(LOG, agreed.next().0);
        while let Some(entries) = pages.next(db).await? {
            for entry in &entries {
                if let LogBody::Changes(body) = own_entry(&entry.bytes)?.body
                    && let Some(answer) = body.answers
                {
                    let place = (answer.branch, answer.incarnation, answer.batch);
                    judged.insert(place, answer.chain);
                }
            }
        }
        Ok(judged)
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
        let (agreed, chain) = anew.agreed;
        let stream = taken_stream(&chain);
        let taken = taken_before(db, &stream).await?;
        let judged = self.judged_since(db, agreed).await?;
        let mut entries = Vec::with_capacity(lost.len());
        for (entry, bytes) in lost {
            entries.extend(self.read_by_present(&anew.part, entry, bytes)?);
        }
        let relogged = taken.values().map(|(_, place)| *place).collect();
        let mut lineage = anew.lineage.clone();
        lineage.enter(self.schema.version);
        let facts = self.facts(db, &entries, agreed, relogged, &lineage).await?;
        let mut piece = Relogging {
            head: self,
            now,
            unfit,
            facts,
            agreed: anew.agreed,
            writer: LogWriter::new(&self.identity, &self.schema, self.book.clone()),
            seats: BTreeMap::new(),
            pile: Pile::default(),
            lineage,
            tried,
        };
        let mut noted = Vec::new();
        for entry in entries {
            let place = piece.writer.next();
            let (position, chain) = (entry.position, entry.chain);
            if taken
                .get(&position)
                .is_some_and(|(known, _)| *known == chain)
            {
                // Another branch gave it back before.
                piece.lineage.follow(&entry.body, &self.schema);
                continue;
            }
            if piece.hear(db, entry, &judged).await? {
                noted.push((position, chain, place));
            }
        }
        note_taken(db, anew.agreed, &taken, noted).await?;
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
        }))
    }

    /// Reads, table by table, what is known of the rows of lost entries.
    async fn facts<D: Database>(
        &self,
        db: &mut D,
        entries: &[LostEntry],
        agreed: LogPosition,
        relogged: BTreeSet<LogPosition>,
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
            relogged,
            newest,
            present,
        })
    }
}

impl Relogging<'_> {
    /// The head's row, as this piece has made it.
    fn ours(&self, table: TableId, key: &Key) -> Option<Row> {
        match self.pile.get(table, key) {
            Some(piled) => piled.cloned(),
            None => self.facts.present.get(&(table, key.clone())).cloned(),
        }
    }

    fn put(&mut self, table: TableId, key: Key, effect: Effect) {
        self.tried.push((table, effect.clone()));
        self.pile.put(table, key, effect);
    }

    /// Lists a decision under the next number. Returns it as it travels.
    async fn list<D: Database>(
        &mut self,
        db: &mut D,
        record: ConflictRecord,
    ) -> OfficeResult<ConflictRecord> {
        let id = self.writer.book.conflicts + 1;
        let record = ConflictRecord { id, ..record };
        list(db, &mut self.writer.book, &record).await?;
        Ok(record.fit_to_travel())
    }

    /// Whether the branch whose batch an entry answers does not know that answer, and issues the batch again: it went
    /// back from an earlier place of the lost part.
    fn comes_again(&self, answer: &Answer, position: LogPosition) -> bool {
        let seat = self.head.seats.get(&answer.branch);
        let back = seat.and_then(|seat| seat.book.taken_back.as_ref());
        let back = back.filter(|back| back.agreed == self.agreed && back.end.0 < position);
        back.and_then(|back| back.came)
            .is_some_and(|(incarnation, frozen)| {
                incarnation == answer.incarnation && frozen >= answer.batch
            })
    }

    /// Logs one entry anew. Returns whether there was anything to log.
    async fn hear<D: Database>(
        &mut self,
        db: &mut D,
        entry: LostEntry,
        judged: &BTreeMap<(OfficeName, Incarnation, BatchNumber), Digest>,
    ) -> OfficeResult<bool> {
        let LostEntry {
            position,
            body,
            absent,
            unplaced,
            ..
        } = entry;
        let mut answers = body.answers.clone();
        if let Some(answer) = &body.answers {
            let seat = self.seats.get(&answer.branch);
            let seat = seat.or(self.head.seats.get(&answer.branch).map(|seat| &seat.book));
            let again = seat.is_some_and(|seat| {
                seat.incarnation == answer.incarnation && seat.cursor >= answer.batch
            });
            let place = (answer.branch.clone(), answer.incarnation, answer.batch);
            if judged.get(&place) == Some(&answer.chain) {
                // The branch sent it again since the restore, and it was judged.
                self.lineage.follow(&body, &self.head.schema);
                return Ok(false);
            }
            if self.comes_again(answer, position) {
                self.lineage.follow(&body, &self.head.schema);
                return Ok(false);
            }
            if again {
                // The branch was restored too, and sent another batch under this number.
                answers = None;
            }
            self.head.answered(&mut self.seats, answer);
        }
        let mut anew = LoggedChanges {
            answers,
            changes: Vec::new(),
            verdicts: Vec::new(),
            open: false,
            settlements: Vec::new(),
        };
        let origin = body.answers.as_ref().map(|answer| &answer.branch);
        for (logged, absent) in body.changes.iter().zip(&absent) {
            self.change(db, logged, absent, origin, &mut anew).await?;
        }
        for unplaced in &unplaced {
            self.list_unplaced(db, unplaced, origin, &mut anew).await?;
        }
        self.verdicts(db, &body, &mut anew).await?;
        let head = self.head;
        head.take_settlements(db, &mut self.writer.book, &mut self.seats, &body)
            .await?;
        for settlement in &body.settlements {
            if head.schema.table(settlement.table).is_some() {
                anew.settlements.push(Settlement {
                    row: self.ours(settlement.table, &settlement.key),
                    ..settlement.clone()
                });
            }
        }
        let says = !anew.changes.is_empty() || !anew.settlements.is_empty();
        if anew.answers.is_none() && !says {
            return Ok(false);
        }
        self.writer.append(db, LogBody::Changes(anew)).await?;
        Ok(true)
    }

    async fn change<D: Database>(
        &mut self,
        db: &mut D,
        logged: &Logged,
        absent: &[u16],
        origin: Option<&OfficeName>,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let Some(table) = self.head.schema.table(logged.table) else {
            return Ok(());
        };
        let key = logged.effect.key(table);
        let newest = self.facts.newest.get(&key.digest(table)).cloned();
        let piled = self.pile.get(table.id, &key).is_some();
        let ours = self.ours(table.id, &key);
        let mut logged = logged.clone();
        if let Effect::Put(row) = &mut logged.effect {
            fill_row(row, absent, ours.as_ref());
        }
        let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
        let same = digest(ours.as_ref()) == digest(logged.effect.row());
        // What a lost entry follows that won is no rival of it.
        // Nor does it matter when the head took what its application had written: also after this had begun.
        let relogged = &self.facts.relogged;
        let rival = newest
            .as_ref()
            .is_some_and(|newest| !relogged.contains(&newest.position));
        let contested = rival && !piled;
        let later = newest.as_ref().is_none_or(|newest| logged.at > newest.at);
        let fits = !self.unfit.contains(&(table.id, key.clone()));
        let sum = self.sum(&logged, absent, ours.as_ref(), newest.as_ref(), origin);
        self.lineage.note(table, &key, &logged.effect);
        if let Some((row, reason)) = sum.filter(|_| fits) {
            let at = newest.map_or(logged.at, |newest| newest.at.max(logged.at));
            if let Some(reason) = reason {
                let (now, head) = (self.now, self.head);
                let result = Resolution::Merged;
                let record = head.restored(now, table, &key, origin, &logged, ours.clone(), result);
                let record = ConflictRecord {
                    reason,
                    merged: Some(row.clone()),
                    ..record
                };
                self.list(db, record).await?;
            }
            let effect = Effect::Put(row);
            self.put(table.id, key, effect.clone());
            anew.changes.push(Logged {
                effect,
                at,
                source: Source::Merged,
                ..logged
            });
            return Ok(());
        }
        let wins = fits && (later || !contested);
        if !same && (contested || !fits) {
            let result = if wins {
                Resolution::Theirs
            } else {
                Resolution::Ours
            };
            let (now, head) = (self.now, self.head);
            let record = head.restored(now, table, &key, origin, &logged, ours.clone(), result);
            self.list(db, record).await?;
        }
        if wins && !same {
            self.put(table.id, key, logged.effect.clone());
            anew.changes.push(Logged {
                source: Source::Merged,
                ..logged
            });
        } else if !fits && !same {
            // Branches that followed the lost entry have its row.
            let row = ours.map_or_else(|| Effect::Delete(key.clone()), Effect::Put);
            self.put(table.id, key, row.clone());
            anew.changes.push(Logged {
                table: table.id,
                effect: row,
                at: newest.map_or(logged.at, |newest| newest.at),
                source: Source::Merged,
            });
        } else if anew.answers.is_some() {
            anew.verdicts.push(Verdict {
                table: table.id,
                key,
                outcome: Outcome::Overridden(ours),
                record: None,
            });
        }
        Ok(())
    }

    /// The row in which a counter's steps on both sides count, where there were any on both; with the reason to list it.
    fn sum(
        &self,
        logged: &Logged,
        absent: &[u16],
        ours: Option<&Row>,
        newest: Option<&Newest>,
        origin: Option<&OfficeName>,
    ) -> Option<(Row, Option<Reason>)> {
        let table = self.head.schema.table(logged.table)?;
        if table.counters.is_empty() {
            return None;
        }
        let name = logged.effect.key(table).digest(table);
        let mut before = self.lineage.before(&name, &self.facts.shared)?.clone();
        fill_row(&mut before, absent, ours);
        let (ours, theirs) = (ours?, logged.effect.row()?);
        if ours.digest(table) == before.digest(table) {
            return None;
        }
        let facts = conflict::Facts {
            table,
            origin: origin.unwrap_or(&self.head.identity.name),
            on_present_version: false,
            inserted: false,
            before: Some(&before),
            theirs: Some(theirs),
            at: logged.at,
            ours: Some(ours),
            present: newest.map(|newest| (newest.at, &*newest.origin)),
        };
        match conflict::decide(&facts) {
            Decision::Merge(row, reason) => {
                let reason = reason.map(|reason| match reason {
                    Reason::BelowFloor => reason,
                    _ => Reason::Restored,
                });
                Some((row, reason))
            }
            _ => None,
        }
    }

    /// Keeps what a lost entry says and the present tables have no place for.
    async fn list_unplaced<D: Database>(
        &mut self,
        db: &mut D,
        unplaced: &Unplaced,
        origin: Option<&OfficeName>,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let table = self.head.schema.table(unplaced.table());
        let place = table.zip(unplaced.key.as_ref());
        let kept = unplaced.kept
            && place.is_some_and(|(table, key)| {
                let mut changes = anew.changes.iter();
                changes.any(|one| one.table == table.id && one.effect.key(table) == *key)
            });
        let office = origin.unwrap_or(&self.head.identity.name);
        let record = unplaced.record(0, office, self.now, kept);
        let record = Some(self.list(db, record).await?);
        let (Some((table, key)), Some(_)) = (place, &anew.answers) else {
            return Ok(());
        };
        let outcome = if kept {
            Outcome::Accepted
        } else {
            Outcome::Overridden(self.ours(table.id, key))
        };
        let listed = anew.verdicts.iter_mut();
        let mut listed = listed.filter(|one| one.table == table.id && one.key == *key);
        match listed.next() {
            Some(verdict) => verdict.record = record,
            None => anew.verdicts.push(Verdict {
                table: table.id,
                key: key.clone(),
                outcome,
                record,
            }),
        }
        Ok(())
    }

    async fn verdicts<D: Database>(
        &mut self,
        db: &mut D,
        body: &LoggedChanges,
        anew: &mut LoggedChanges,
    ) -> OfficeResult<()> {
        let head = self.head;
        for verdict in &body.verdicts {
            let table = head.schema.table(verdict.table);
            let decided = table.is_none_or(|table| {
                let mut changes = body.changes.iter();
                changes.any(|one| one.table == table.id && one.effect.key(table) == verdict.key)
            });
            if decided {
                // What became of the row is decided already; whom it had won against stays listed.
                if let Some(record) = &verdict.record {
                    self.list(db, record.clone()).await?;
                }
                continue;
            }
            let ours = self.ours(verdict.table, &verdict.key);
            let outcome = match verdict.outcome {
                Outcome::Held => Outcome::Held,
                _ => Outcome::Overridden(ours),
            };
            let mut record = verdict.record.clone();
            if let Some(record) = &mut record {
                record.id = self.writer.book.conflicts + 1;
            }
            let verdict = Verdict {
                outcome,
                record,
                ..verdict.clone()
            };
            if let Some(answer) = &body.answers {
                let listed = std::slice::from_ref(&verdict);
                let (book, seats) = (&mut self.writer.book, &mut self.seats);
                head.take_verdicts(db, book, seats, answer, listed).await?;
            }
            anew.verdicts.push(verdict);
        }
        Ok(())
    }
}

/// The stream that tells which entries were logged anew of those that were lost after this place.
pub(super) fn taken_stream(agreed: &Digest) -> String {
    let after: String = agreed.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lost:{after}")
}

/// Entries logged anew: their former place, with their hash and their present place.
type TakenBefore = BTreeMap<LogPosition, (Digest, LogPosition)>;

async fn taken_before<D: Database>(db: &mut D, stream: &str) -> OfficeResult<TakenBefore> {
    let mut taken = TakenBefore::new();
    let mut pages = Pages::from(stream, 0);
    while let Some(entries) = pages.next(db).await? {
        for entry in entries {
            let known = books::decode(&entry.bytes)?;
            taken.insert(LogPosition(entry.number), known);
        }
    }
    Ok(taken)
}

/// The places of entries that were logged anew.
pub(super) async fn relogged<D: Database>(
    db: &mut D,
    stream: &str,
) -> OfficeResult<BTreeSet<LogPosition>> {
    let taken = taken_before(db, stream).await?;
    Ok(taken.into_values().map(|(_, place)| place).collect())
}

async fn note_taken<D: Database>(
    db: &mut D,
    agreed: (LogPosition, Digest),
    taken: &TakenBefore,
    noted: Vec<(LogPosition, Digest, LogPosition)>,
) -> OfficeResult<()> {
    // Where the head was restored to one place twice, the first loss keeps its notes.
    let fresh = noted
        .into_iter()
        .filter(|(former, ..)| !taken.contains_key(former));
    let entries: OfficeResult<Vec<Entry>> = fresh
        .map(|(former, chain, place)| {
            Ok(Entry {
                number: former.0,
                bytes: books::encode(&(chain, place))?,
            })
        })
        .collect();
    let entries = entries?;
    if entries.is_empty() {
        return Ok(());
    }
    let mut streams = lost_streams(db).await?;
    if !streams.contains(&agreed) {
        streams.push(agreed);
        books::store(db, LOST_STREAMS, &streams).await?;
    }
    Ok(db.append(&taken_stream(&agreed.1), &entries).await?)
}

async fn lost_streams<D: Database>(db: &mut D) -> OfficeResult<Vec<(LogPosition, Digest)>> {
    Ok(books::load(db, LOST_STREAMS).await?.unwrap_or_default())
}

/// Removes the notes on entries that were lost after places which the log no longer tells: a branch that followed such an
/// entry cannot give it back any more.
pub(in super::super) async fn trim_lost<D: Database>(
    db: &mut D,
    log_first: LogPosition,
) -> OfficeResult<()> {
    let mut streams = lost_streams(db).await?;
    let known = streams.len();
    let mut old = Vec::new();
    streams.retain(|(place, chain)| {
        let kept = place.next() >= log_first;
        if !kept {
            old.push(taken_stream(chain));
        }
        kept
    });
    if streams.len() == known {
        return Ok(());
    }
    for stream in old {
        db.trim(&stream, u64::MAX >> 1).await?;
    }
    books::store(db, LOST_STREAMS, &streams).await
}
