//! A branch's last act as a branch: it becomes the head of a company whose head is gone (decision 12).
//!
//! What the application wrote is frozen, the entries that the branch followed become the log, and every row for which
//! an entry had waited becomes what the log says. Then the head's books take the place of the branch's, in one
//! transaction. Until then nothing has happened that the branch would notice.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::here::Here;
use super::succeed::answered_chain;
use super::{BRANCH, Branch};
use crate::books::{
    self, CONFLICTS, Hold, IdentityBook, LOG, LOG_KEYS, Note, OUTBOX, RowNames, STAGED,
};
use crate::change::{Base, Effect, Key};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::envelope;
use crate::evolution::{Lift, fill_row};
use crate::failure::{OfficeError, OfficeResult};
use crate::head::own_entry;
use crate::head::promote::{Estate, found, names_beside, reason_to_hold, recapture};
use crate::identity::{BatchNumber, LogPosition, Micros, OfficeName};
use crate::message::{LogBody, LogEntry, Message, Outcome};
use crate::office::conclude;
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Direction, TableId};
use crate::succession::Predecessor;
use crate::unfit::{self, is_unfit};

/// Bytes read of a stream at a time.
const READ_BYTES: usize = 1024 * 1024;
/// How often the last transaction is begun anew because the application was writing the same rows.
const ATTEMPTS: usize = 50;
/// How many takes freeze what the application wrote; what it writes after that is the head's own.
const TAKES: usize = 10_000;
/// How many rows a refusal names.
const NAMED: usize = 5;

/// What a promotion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The branch that is the head now.
    pub branch: OfficeName,
    /// Where the former head's log ends here.
    pub log: LogPosition,
    /// Its own batches that the former head had not answered, or that no answer came of.
    pub batches: u64,
    /// The other branches that the log tells of; each needs a new join code.
    pub branches: Vec<OfficeName>,
    /// Rows for which an entry of the log had waited and that do not take it; they are listed as conflicts.
    pub left: usize,
    /// The branch had been waiting for a comparison: some rows may differ from what the former head had.
    pub unsure: bool,
}

/// What the log says of a row, for which an entry had waited here.
#[derive(Clone, Debug)]
struct Stand {
    effect: Effect,
    /// Columns of which the log says nothing, since the entry is of an earlier schema version.
    absent: Vec<u16>,
    at: Micros,
    origin: Option<OfficeName>,
}

/// What is to be put in order before the branch can be a head.
#[derive(Default)]
struct Gathered {
    stands: BTreeMap<(TableId, Key), Stand>,
    /// Rows that are logged as they are.
    own: RowNames,
    /// Rows that did not fit here.
    unfit: RowNames,
    holds: Vec<(TableId, Key, Hold)>,
}

impl Branch {
    /// Makes this database the head's. Returns what was done, or why this branch cannot be the head; then it stays the
    /// branch that it was. No office may run on the database; [`crate::head::Head::load`] goes on from here.
    pub async fn promote<D: Database>(
        mut self,
        db: &mut D,
        now: Micros,
        head: &IdentityBook,
    ) -> OfficeResult<Result<Promotion, String>> {
        if let Some(why) = self.hindrance(db).await? {
            return Ok(Err(why));
        }
        self.freeze_all(db, now).await?;
        self.copy_log(db, &head.name).await?;
        db.begin(Purpose::Read).await?;
        let outcome = self.gather(db).await;
        let gathered = conclude(db, outcome).await?;
        let mut aside = RowNames::new();
        for _ in 0..ATTEMPTS {
            let mut barred = aside.intersection(&gathered.unfit);
            if barred.next().is_some() {
                let rows: Vec<String> = aside
                    .intersection(&gathered.unfit)
                    .take(NAMED)
                    .filter_map(|(id, key)| {
                        let table = self.schema.table(*id)?;
                        Some(format!("{} {}", table.name, key.to_json()))
                    })
                    .collect();
                return Ok(Err(format!(
                    "the log holds rows that do not fit into this branch's tables ({}); mend what is in their way, or promote another branch",
                    rows.join(", ")
                )));
            }
            db.begin(Purpose::Apply).await?;
            let outcome = match self.try_promoting(db, now, head, &gathered, &aside).await {
                Ok(Ok(done)) => conclude(db, Ok(Ok(done))).await,
                other => other,
            };
            match outcome {
                Ok(Ok(branches)) => {
                    return Ok(Ok(Promotion {
                        branch: self.identity.name.clone(),
                        log: self.book.cursor,
                        batches: self.book.frozen.0 - self.book.answered.0,
                        branches,
                        left: aside.len(),
                        unsure: self.book.compare == Some(true),
                    }));
                }
                Ok(Err(clashes)) => {
                    db.rollback().await?;
                    aside.extend(clashes);
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    let effects = gathered.stands.iter();
                    let effects = effects
                        .filter(|(row, _)| !aside.contains(*row))
                        .map(|((table, _), stand)| (*table, stand.effect.clone()));
                    let effects = effects.collect();
                    let found = unfit::find(db, &self.schema, Purpose::Apply, effects).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    aside.extend(found);
                }
                Err(error) => {
                    db.rollback().await?;
                    return Err(error);
                }
            }
        }
        Ok(Err(
            "the application writes without pause; stop it for a moment, and try again".into(),
        ))
    }

    /// Freezes what the application wrote.
    async fn freeze_all<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<()> {
        for _ in 0..TAKES {
            if self.shape.is_none() {
                self.look(db, None).await?;
            }
            if !self.captured {
                break;
            }
            let differing = self.differing.clone();
            if differing.is_empty() {
                self.take(db, now).await?;
            } else {
                let refused = self.refused_tables();
                let mut here = Here {
                    db,
                    differing,
                    refused,
                };
                self.take(&mut here, now).await?;
            }
        }
        Ok(())
    }

    /// Why this branch cannot be the head.
    async fn hindrance<D: Database>(&self, db: &mut D) -> OfficeResult<Option<String>> {
        if self.book.head.is_none() {
            return Ok(Some("no head has let this branch in yet".into()));
        }
        if self.book.joining.is_some() {
            return Ok(Some(
                "its first copy of the tables is not complete; promote another branch".into(),
            ));
        }
        let named = |tables: Vec<&str>| tables.join(", ");
        let upward = self.schema.tables.iter();
        let upward = upward.filter(|table| table.direction == Direction::Up);
        let upward: Vec<&str> = upward.map(|table| table.name.as_str()).collect();
        if !upward.is_empty() {
            return Ok(Some(format!(
                "it has only its own rows of the tables that go up ({}); the other branches' rows were at the head",
                named(upward)
            )));
        }
        let present = db.definitions().await?.tables;
        let missing = self
            .schema
            .tables
            .iter()
            .filter(|table| !present.iter().any(|here| here.name == table.name));
        let missing: Vec<&str> = missing.map(|table| table.name.as_str()).collect();
        if !missing.is_empty() {
            return Ok(Some(format!(
                "its database lacks tables, or has them in a shape that cannot be shared: {}",
                named(missing)
            )));
        }
        let mut unseen = 0;
        db.begin(Purpose::Read).await?;
        let outcome = async {
            for table in &self.schema.tables {
                for note in db.notes(table, None).await?.values() {
                    let note: Note = books::decode(note)?;
                    unseen += usize::from(matches!(note, Note::Unseen(_)));
                }
            }
            Ok(())
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        Ok((unseen > 0).then(|| {
            format!(
                "{unseen} of its rows from before it joined still wait for the head's answer, so that it does not know the head's; promote another branch"
            )
        }))
    }

    /// Makes the entries that this branch followed the log. Begins anew where it was cut short.
    async fn copy_log<D: Database>(&self, db: &mut D, head: &OfficeName) -> OfficeResult<()> {
        let head = Arc::new(head.clone());
        let stream = self.book.followed();
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            db.trim(LOG, u64::MAX >> 1).await?;
            Ok(db.trim(LOG_KEYS, u64::MAX >> 1).await?)
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        let mut from = 0;
        while from <= self.book.cursor.0 {
            db.begin(Purpose::Apply).await?;
            let outcome = self.copy_piece(db, &stream, from, &head).await;
            match conclude(db, outcome).await? {
                Some(last) => from = last + 1,
                None => break,
            }
        }
        Ok(())
    }

    async fn copy_piece<D: Database>(
        &self,
        db: &mut D,
        stream: &str,
        from: u64,
        head: &Arc<OfficeName>,
    ) -> OfficeResult<Option<u64>> {
        let mut entries = db.entries(stream, from, READ_BYTES).await?;
        entries.retain(|entry| entry.number <= self.book.cursor.0);
        let Some(last) = entries.last().map(|entry| entry.number) else {
            return Ok(None);
        };
        let names: OfficeResult<Vec<Entry>> = entries
            .iter()
            .map(|entry| {
                Ok(Entry {
                    number: entry.number,
                    bytes: names_beside(&entry.bytes, &self.versions, head)?,
                })
            })
            .collect();
        db.append(LOG_KEYS, &names?).await?;
        db.append(LOG, &entries).await?;
        Ok(Some(last))
    }

    async fn gather<D: Database>(&self, db: &mut D) -> OfficeResult<Gathered> {
        let mut gathered = Gathered::default();
        let mut notes = BTreeMap::new();
        for table in &self.schema.tables {
            for (key, note) in db.notes(table, None).await? {
                let note: Note = books::decode(&note)?;
                notes.insert((table.id, key), note);
            }
        }
        self.hear_log(db, &notes, &mut gathered).await?;
        let held = self.held_records(db, &notes).await?;
        for (row, note) in notes {
            match note {
                // Of a large row the record does not tell what the head had.
                Note::Held(batch, _) => match held.get(&row).filter(|one| !one.lacks_rows()) {
                    Some(record) => self.part_with(&mut gathered, row, batch, record),
                    None => drop(gathered.own.insert(row)),
                },
                Note::Unfit(_, effect) => {
                    gathered.unfit.insert(row.clone());
                    let stand = Stand {
                        effect,
                        absent: Vec::new(),
                        at: Micros(0),
                        origin: None,
                    };
                    gathered.stands.entry(row).or_insert(stand);
                }
                Note::Unreadable(..) => {
                    gathered.stands.remove(&row);
                    gathered.own.insert(row);
                }
                Note::Deferred(_) | Note::Unseen(_) if !gathered.stands.contains_key(&row) => {
                    gathered.own.insert(row);
                }
                Note::Deferred(_) | Note::Unseen(_) => {}
            }
        }
        self.hear_outbox(db, &mut gathered).await?;
        Ok(gathered)
    }

    /// A held row becomes what the head had, and stays listed as it was.
    fn part_with(
        &self,
        gathered: &mut Gathered,
        row: (TableId, Key),
        batch: BatchNumber,
        record: &ConflictRecord,
    ) {
        let gone = || Effect::Delete(row.1.clone());
        let stand = Stand {
            effect: record.ours.clone().map_or_else(gone, Effect::Put),
            absent: Vec::new(),
            at: record.decided,
            origin: None,
        };
        gathered.stands.entry(row.clone()).or_insert(stand);
        let hold = Hold {
            branch: self.identity.name.clone(),
            conflict: record.id,
            reason: reason_to_hold(record, None),
            batch: (self.book.incarnation, batch),
        };
        gathered.holds.push((row.0, row.1, hold));
    }

    /// What the log says last of the rows for which its entries had waited.
    async fn hear_log<D: Database>(
        &self,
        db: &mut D,
        notes: &BTreeMap<(TableId, Key), Note>,
        gathered: &mut Gathered,
    ) -> OfficeResult<()> {
        let mut from = 0;
        loop {
            let entries = db.entries(LOG, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                return Ok(());
            };
            for entry in &entries {
                self.hear_entry(own_entry(&entry.bytes)?, notes, gathered)?;
            }
            from = last + 1;
        }
    }

    fn hear_entry(
        &self,
        entry: LogEntry,
        notes: &BTreeMap<(TableId, Key), Note>,
        gathered: &mut Gathered,
    ) -> OfficeResult<()> {
        let was = self.versions.of(&entry)?;
        let LogBody::Changes(body) = entry.body else {
            return Ok(());
        };
        let lift = |id| {
            let (from, to) = was.table(id).zip(self.schema.table(id))?;
            Some(Lift { from, to })
        };
        let waited = |row: &(TableId, Key)| {
            notes
                .get(row)
                .is_some_and(|note| note.first_unseen() <= entry.position)
        };
        let origin = body.answers.as_ref().map(|answer| answer.branch.clone());
        let own = origin.as_ref() == Some(&self.identity.name);
        let settled = body.settlements.into_iter();
        let settled = settled.filter(|settlement| {
            settlement.held.is_none() && settlement.branch == self.identity.name
        });
        let told = settled.map(|settlement| (settlement.table, settlement.key, settlement.row));
        let overridden = body.verdicts.into_iter().filter(|_| own);
        let overridden = overridden.filter_map(|verdict| match verdict.outcome {
            Outcome::Overridden(row) => Some((verdict.table, verdict.key, row)),
            Outcome::Accepted | Outcome::Held => None,
        });
        let told = overridden.chain(told).map(|(table, key, row)| {
            let effect = row.map_or_else(|| Effect::Delete(key), Effect::Put);
            (table, effect, Micros(0), None)
        });
        let changed = body.changes.into_iter();
        let changed =
            changed.map(|logged| (logged.table, logged.effect, logged.at, origin.clone()));
        for (table, effect, at, origin) in told.chain(changed) {
            let Some(lift) = lift(table) else {
                continue;
            };
            let Ok(key) = lift.key(&effect.key(lift.from)) else {
                continue;
            };
            let row = (table, key);
            if !waited(&row) {
                continue;
            }
            // A row of which the present tables cannot tell everything stays as it is here, and is logged so.
            match lift.effect(&effect) {
                Ok((effect, absent, _)) => {
                    let stand = Stand {
                        effect,
                        absent,
                        at,
                        origin,
                    };
                    gathered.stands.insert(row, stand);
                }
                Err(_) => drop(gathered.stands.remove(&row)),
            }
        }
        Ok(())
    }

    /// The decisions by which this branch's rows are held: the last for each row.
    async fn held_records<D: Database>(
        &self,
        db: &mut D,
        notes: &BTreeMap<(TableId, Key), Note>,
    ) -> OfficeResult<BTreeMap<(TableId, Key), ConflictRecord>> {
        let mut found = BTreeMap::new();
        let mut from = 0;
        loop {
            let entries = db.entries(CONFLICTS, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                return Ok(found);
            };
            for entry in &entries {
                let record: ConflictRecord = books::decode(&entry.bytes)?;
                let Ok(record) = self.versions.lift_record(record, &self.schema) else {
                    continue;
                };
                let row = (record.shape.1, record.key.clone());
                let mine = record.origin == self.identity.name;
                if mine && record.result == Resolution::Held && notes.contains_key(&row) {
                    found.insert(row, record);
                }
            }
            from = last + 1;
        }
    }

    /// Rows of unanswered batches of which the log that is kept cannot tell whether anybody changed them since: they are
    /// logged as they are, too.
    async fn hear_outbox<D: Database>(
        &self,
        db: &mut D,
        gathered: &mut Gathered,
    ) -> OfficeResult<()> {
        let log = db.extent(LOG).await?;
        let first = if log.entries == 0 {
            self.book.cursor.next()
        } else {
            LogPosition(log.first)
        };
        let mut from = self.book.answered.next().0;
        while from <= self.book.frozen.0 {
            let entries = db.entries(OUTBOX, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            for entry in &entries {
                let Message::Batch(batch) = envelope::open(&entry.bytes)?.read_own()? else {
                    continue;
                };
                let Some(was) = self.versions.shapes_of(&batch, &self.schema) else {
                    continue;
                };
                for change in &batch.changes {
                    let from = was.table(change.table);
                    let to = from.and_then(|from| self.schema.table(from.id));
                    let Some((from, table)) = from.zip(to) else {
                        continue;
                    };
                    let lift = Lift { from, to: table };
                    let Ok(key) = lift.key(&change.effect.key(from)) else {
                        continue;
                    };
                    let told = match change.base {
                        Base::Log(place) | Base::Own(_, place) => place.next() >= first,
                        Base::Unknown => false,
                    };
                    let row = (table.id, key);
                    let down = table.direction == Direction::Down;
                    if (!told || down) && !gathered.stands.contains_key(&row) {
                        gathered.own.insert(row);
                    }
                }
            }
            from = last + 1;
        }
        Ok(())
    }

    async fn try_promoting<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        head: &IdentityBook,
        gathered: &Gathered,
        aside: &RowNames,
    ) -> OfficeResult<Result<Vec<OfficeName>, Vec<(TableId, Key)>>> {
        let mut pile = Pile::default();
        let mut own = gathered.own.clone();
        let mut records = Vec::new();
        for ((id, key), stand) in &gathered.stands {
            let Some(table) = self.schema.table(*id) else {
                continue;
            };
            let keys = std::slice::from_ref(key);
            if !aside.contains(&(*id, key.clone())) {
                let mut effect = stand.effect.clone();
                if let Effect::Put(row) = &mut effect
                    && !stand.absent.is_empty()
                {
                    let here = db.read(table, keys).await?;
                    fill_row(row, &stand.absent, here.get(key));
                }
                pile.put(*id, key.clone(), effect);
                continue;
            }
            records.push(ConflictRecord {
                id: 0,
                table: table.name.clone(),
                columns: table.columns.iter().map(|c| c.name.clone()).collect(),
                key: key.clone(),
                reason: Reason::Restored,
                at: stand.at,
                origin: stand.origin.as_ref().unwrap_or(&head.name).clone(),
                base: Base::Unknown,
                ours: db.read(table, keys).await?.remove(key),
                theirs: stand.effect.row().cloned(),
                result: Resolution::Ours,
                decided: now,
                before: None,
                merged: None,
                detail: None,
                shape: (self.schema.version, table.id),
            });
            own.insert((*id, key.clone()));
        }
        let clashes = pile.write(db, &self.schema).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes));
        }
        recapture(db, &self.schema, &own).await?;
        let mut predecessors = self.predecessors.clone();
        predecessors.push(Predecessor {
            name: self.book.head_name.clone(),
            key: self.book.head_key.clone(),
            through: self.book.cursor,
            chain: self.book.log_chain,
        });
        let estate = Estate {
            head,
            schema: &self.schema,
            versions: &self.versions,
            branch: &self.identity,
            book: &self.book,
            answered_chain: answered_chain(db, &self.book).await?,
            predecessors: &predecessors,
            holds: &gathered.holds,
            records,
        };
        let branches = found(db, now, estate).await?;
        db.trim(STAGED, u64::MAX >> 1).await?;
        db.set_meta(BRANCH, None).await.map_err(OfficeError::from)?;
        Ok(Ok(branches))
    }
}
