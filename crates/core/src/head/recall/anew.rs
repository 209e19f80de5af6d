//! Logging lost entries anew, behind what the restored head has written since.

use super::super::Head;
use super::super::recent::own_entry;
use super::super::writer::{Fresh, LogWriter};
use super::{ATTEMPTS, READ_BYTES, effects_of, list};
use crate::books::{self, HeadBook, LOG, RowNames, SeatBook, TakenBack, seat_name};
use crate::change::{Effect, Row};
use crate::conflict::{ConflictRecord, Resolution};
use crate::envelope;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::message::{
    LogBody, LogEntry, Logged, LoggedChanges, Outcome, Settlement, Source, Verdict,
};
use crate::office::conclude;
use crate::output::Output;
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::unfit::{self, is_unfit};
use std::collections::{BTreeMap, BTreeSet};

impl Head {
    /// Logs lost entries anew, behind what the head has written since it was restored.
    pub(super) async fn log_anew<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        lost: &[(LogEntry, Vec<u8>)],
        place: ((LogPosition, Digest), LogPosition),
        end: Option<(LogPosition, Digest)>,
    ) -> OfficeResult<()> {
        let mut unfit = RowNames::new();
        for _ in 0..ATTEMPTS {
            db.begin(Purpose::Apply).await?;
            let outcome = match self
                .try_anew(db, now, branch, lost, place, end, &unfit)
                .await
            {
                Ok(Some(done)) => conclude(db, Ok(Some(done))).await,
                other => other,
            };
            match outcome {
                Ok(Some((writer, seats))) => {
                    self.book = writer.0;
                    self.appended = now;
                    self.any_held = true;
                    self.tail.adopt(writer.1, &mut self.recent);
                    for (name, book) in seats {
                        if let Some(seat) = self.seats.get_mut(&name) {
                            if seat.book.cursor != book.cursor
                                || seat.book.incarnation != book.incarnation
                            {
                                let dropped = seat.inbox.restart(book.cursor.0);
                                self.outputs.extend(dropped.into_iter().map(Output::Settle));
                                seat.staged = false;
                            }
                            seat.book = book;
                        }
                    }
                    return Ok(());
                }
                Ok(None) => {
                    db.rollback().await?;
                    while self.take(db, now).await? {}
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let effects = effects_of(lost.iter().map(|(entry, _)| entry), &unfit, self);
                    let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
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
        Ok(())
    }

    /// The batches that this log answers after a place, with the hashes of their envelopes.
    async fn judged_since<D: Database>(
        &self,
        db: &mut D,
        agreed: LogPosition,
    ) -> OfficeResult<BTreeMap<(OfficeName, Incarnation, BatchNumber), Digest>> {
        let mut judged = BTreeMap::new();
        let mut from = agreed.next().0;
        loop {
            let entries = db.entries(LOG, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                return Ok(judged);
            };
            for entry in &entries {
                if let LogBody::Changes(body) = own_entry(&entry.bytes)?.body
                    && let Some(answer) = body.answers
                {
                    let place = (answer.branch, answer.incarnation, answer.batch);
                    judged.insert(place, answer.chain);
                }
            }
            from = last + 1;
        }
    }

    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    async fn try_anew<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        lost: &[(LogEntry, Vec<u8>)],
        place: ((LogPosition, Digest), LogPosition),
        end: Option<(LogPosition, Digest)>,
        unfit: &RowNames,
    ) -> OfficeResult<Option<((HeadBook, Vec<Fresh>), BTreeMap<OfficeName, SeatBook>)>> {
        let (agreed, _) = place;
        let mut seats: BTreeMap<OfficeName, SeatBook> = BTreeMap::new();
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let mut pile = Pile::default();
        let stream = taken_stream(&agreed.1);
        let taken = taken_before(db, &stream).await?;
        let relogged: BTreeSet<LogPosition> = taken.values().map(|(_, place)| *place).collect();
        let judged = self.judged_since(db, agreed.0).await?;
        let mut noted = Vec::new();
        for (entry, bytes) in lost {
            let chain = envelope::chain(bytes);
            if taken
                .get(&entry.position)
                .is_some_and(|(known, _)| *known == chain)
            {
                // Another branch gave it back before.
                continue;
            }
            let LogBody::Changes(body) = &entry.body else {
                continue;
            };
            let mut answers = body.answers.clone();
            if let Some(answer) = &body.answers {
                let seat = seats.get(&answer.branch);
                let seat = seat.or(self.seats.get(&answer.branch).map(|seat| &seat.book));
                let again = seat.is_some_and(|seat| {
                    seat.incarnation == answer.incarnation && seat.cursor >= answer.batch
                });
                let place = (answer.branch.clone(), answer.incarnation, answer.batch);
                if judged.get(&place) == Some(&answer.chain) {
                    // The branch sent it again since the restore, and it was judged.
                    continue;
                }
                if again {
                    // The branch was restored too, and sent another batch under this number.
                    answers = None;
                }
                self.answered(&mut seats, answer);
            }
            let mut anew = LoggedChanges {
                answers,
                changes: Vec::new(),
                verdicts: Vec::new(),
                open: false,
                settlements: Vec::new(),
            };
            let origin = body.answers.as_ref().map(|answer| &answer.branch);
            for logged in &body.changes {
                let Some(table) = self.schema.table(logged.table) else {
                    continue;
                };
                let key = logged.effect.key(table);
                let name = key.digest(table);
                let newest = self
                    .recent
                    .newest(
                        db,
                        &self.versions,
                        &self.identity.shared_name,
                        &BTreeSet::from([name]),
                        agreed.0,
                    )
                    .await?
                    .remove(&name);
                let piled = pile.get(table.id, &key).is_some();
                let ours = match pile.get(table.id, &key) {
                    Some(piled) => piled.cloned(),
                    None => db
                        .read(table, std::slice::from_ref(&key))
                        .await?
                        .remove(&key),
                };
                let digest = |row: Option<&Row>| row.map(|row| row.digest(table));
                let same = digest(ours.as_ref()) == digest(logged.effect.row());
                // What a lost entry follows that won is no rival of it.
                // Nor does it matter when the head took what its application had written: also after this had begun.
                let contested = newest.is_some()
                    && !newest
                        .as_ref()
                        .is_some_and(|newest| relogged.contains(&newest.position))
                    && !piled;
                let later = newest.as_ref().is_none_or(|newest| logged.at > newest.at);
                let fits = !unfit.contains(&(table.id, key.clone()));
                let wins = fits && (later || !contested);
                if !same && (contested || !fits) {
                    let result = if wins {
                        Resolution::Theirs
                    } else {
                        Resolution::Ours
                    };
                    let record =
                        self.restored(now, table, &key, origin, logged, ours.clone(), result);
                    let record = ConflictRecord {
                        id: writer.book.conflicts + 1,
                        ..record
                    };
                    list(db, &mut writer.book, &record).await?;
                }
                if wins && !same {
                    pile.put(table.id, key, logged.effect.clone());
                    anew.changes.push(Logged {
                        source: Source::Merged,
                        ..logged.clone()
                    });
                } else if !fits && !same {
                    // Branches that followed the lost entry have its row.
                    let row = ours.map_or_else(|| Effect::Delete(key.clone()), Effect::Put);
                    pile.put(table.id, key, row.clone());
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
            }
            for verdict in &body.verdicts {
                let Some(table) = self.schema.table(verdict.table) else {
                    continue;
                };
                if body.changes.iter().any(|logged| {
                    logged.table == verdict.table && logged.effect.key(table) == verdict.key
                }) {
                    // What became of the row is decided above; whom it had won against stays listed.
                    if let Some(record) = &verdict.record {
                        let id = writer.book.conflicts + 1;
                        let record = ConflictRecord {
                            id,
                            ..record.clone()
                        };
                        list(db, &mut writer.book, &record).await?;
                    }
                    continue;
                }
                let keys = std::slice::from_ref(&verdict.key);
                let ours = match pile.get(table.id, &verdict.key) {
                    Some(piled) => piled.cloned(),
                    None => db.read(table, keys).await?.remove(&verdict.key),
                };
                let outcome = match verdict.outcome {
                    Outcome::Held => Outcome::Held,
                    _ => Outcome::Overridden(ours),
                };
                let mut record = verdict.record.clone();
                if let Some(record) = &mut record {
                    record.id = writer.book.conflicts + 1;
                }
                anew.verdicts.push(Verdict {
                    table: table.id,
                    key: verdict.key.clone(),
                    outcome,
                    record,
                });
                if let Some(answer) = &body.answers {
                    let listed = anew.verdicts.last().map(std::slice::from_ref);
                    let listed = listed.unwrap_or_default();
                    self.take_verdicts(db, &mut writer.book, &mut seats, answer, listed)
                        .await?;
                }
            }
            self.take_settlements(db, &mut writer.book, &mut seats, body)
                .await?;
            for settlement in &body.settlements {
                let Some(table) = self.schema.table(settlement.table) else {
                    continue;
                };
                let row = match pile.get(table.id, &settlement.key) {
                    Some(piled) => piled.cloned(),
                    None => {
                        let keys = std::slice::from_ref(&settlement.key);
                        db.read(table, keys).await?.remove(&settlement.key)
                    }
                };
                anew.settlements.push(Settlement {
                    row,
                    ..settlement.clone()
                });
            }
            let says = !anew.changes.is_empty() || !anew.settlements.is_empty();
            if anew.answers.is_some() || says {
                noted.push((entry.position, chain, writer.next()));
                writer.append(db, LogBody::Changes(anew)).await?;
            }
        }
        note_taken(db, &stream, &taken, noted).await?;
        if !pile.write(db, &self.schema).await?.is_empty() {
            return Ok(None);
        }
        if let Some(end) = end {
            let seat = seats.remove(branch);
            let known = self.seats.get(branch).map(|seat| seat.book.clone());
            if let Some(mut seat) = seat.or(known) {
                seat.taken_back = Some(TakenBack { end, agreed });
                seats.insert(branch.clone(), seat);
            }
        }
        for (name, seat) in &seats {
            books::store(db, &seat_name(name), seat).await?;
        }
        writer.finish(db).await?;
        Ok(Some(((writer.book, writer.fresh), seats)))
    }
}

/// The stream that tells which entries were logged anew of those that were lost after this place.
fn taken_stream(agreed: &Digest) -> String {
    let after: String = agreed.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lost:{after}")
}

/// Entries logged anew: their former place, with their hash and their present place.
type TakenBefore = BTreeMap<LogPosition, (Digest, LogPosition)>;

async fn taken_before<D: Database>(db: &mut D, stream: &str) -> OfficeResult<TakenBefore> {
    let mut taken = TakenBefore::new();
    let mut from = 0;
    loop {
        let entries = db.entries(stream, from, READ_BYTES).await?;
        let Some(last) = entries.last().map(|entry| entry.number) else {
            return Ok(taken);
        };
        for entry in entries {
            let known = books::decode(&entry.bytes)?;
            taken.insert(LogPosition(entry.number), known);
        }
        from = last + 1;
    }
}

async fn note_taken<D: Database>(
    db: &mut D,
    stream: &str,
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
    if !entries.is_empty() {
        db.append(stream, &entries).await?;
    }
    Ok(())
}
