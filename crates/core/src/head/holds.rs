//! What is held, and how it ends: a person settles a conflict, a hold is tried again, a hold's cause goes away.
//!
//! Settling is an ordinary entry of the log: the row's new content for all, and for the branch concerned a settlement
//! that ends its hold and closes the listed conflict.

use super::parents::parents;
use super::writer::LogWriter;
use super::{Head, LogBody, LoggedChanges};
use crate::books::{self, CONFLICTS, HeldAtHead, Hold, seat_name, settled_name};
use crate::change::{Base, Effect, Key, Row};
use crate::conflict::{ConflictRecord, Reason, Resolution};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Micros, OfficeName};
use crate::message::{Keep, Logged, Settled, Settlement, Source};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, DatabaseError, Entry, Portion, Purpose};
use crate::schema::{Direction, Table};
use crate::unfit::is_unfit;
use std::collections::BTreeMap;

/// How often held changes are tried again, in milliseconds.
const RETRY_MS: i64 = 5_000;
/// How many held changes are tried in one round.
const RETRIED: usize = 50;
/// How often settling is begun anew because the head's application was writing the same row.
const ATTEMPTS: usize = 20;

/// The holds that are tried again by themselves.
#[derive(Debug, Default)]
pub(super) struct Retries {
    tried: Micros,
    /// The last conflict tried; the next round goes on after it.
    last: u64,
}

/// The outcome of a person's request: done, or why not.
pub type Answer<T> = Result<T, String>;

/// Puts a branch's hold on a row, or ends it, in the open transaction.
pub(super) async fn set<D: Database>(
    db: &mut D,
    table: &Table,
    key: &Key,
    branch: &OfficeName,
    hold: Option<Hold>,
) -> OfficeResult<()> {
    let mut notes = db.notes(table, Some(std::slice::from_ref(key))).await?;
    let note = match notes.remove(key) {
        Some(note) => books::decode::<HeldAtHead>(&note)?,
        None => HeldAtHead::default(),
    };
    let note = note.with(branch, hold);
    let note = note.as_ref().map(books::encode).transpose()?;
    Ok(db.set_notes(table, &[(key.clone(), note)]).await?)
}

/// A listed conflict.
pub(super) async fn record<D: Database>(
    db: &mut D,
    conflict: u64,
) -> OfficeResult<Option<ConflictRecord>> {
    let entries = db.entries(CONFLICTS, conflict, 1).await?;
    let entry = entries.first().filter(|entry| entry.number == conflict);
    entry.map(|entry| books::decode(&entry.bytes)).transpose()
}

/// What a person wants, or a retry.
#[derive(Clone, Copy)]
struct Wish<'a> {
    now: Micros,
    keep: Keep,
    by: Option<&'a OfficeName>,
}

/// How a conflict stands before it is settled.
struct Stand<'a> {
    /// The hold that it is about.
    held: Option<&'a Hold>,
    /// Whose row stands, by the decision or by what settled it last.
    standing: Option<Keep>,
}

/// What settling is to do.
struct Order {
    settled: Settled,
    /// The row's new content; nothing where the head's row stands as it is.
    effect: Option<Effect>,
    /// Whose content it is, and when it was made.
    source: Source,
    at: Micros,
}

impl Head {
    /// Settles a listed conflict as a person wants, everywhere. `by` is the office where the person sits; none where a
    /// hold is tried again by itself. A branch settles only conflicts about its own changes, and writes
    /// nothing into a table that only the head writes (P12).
    pub async fn settle<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        conflict: u64,
        keep: Keep,
        by: Option<&OfficeName>,
    ) -> OfficeResult<Answer<Settled>> {
        let wish = Wish { now, keep, by };
        for _ in 0..ATTEMPTS {
            db.begin(Purpose::Apply).await?;
            let outcome = match self.try_settling(db, conflict, wish).await {
                // Some foreign keys are looked at only here.
                Ok(Ok(Some(done))) => conclude(db, Ok(Ok(Some(done)))).await,
                other => other,
            };
            match outcome {
                Ok(Ok(Some((settled, written)))) => {
                    self.adopt_settling(written, now);
                    return Ok(Ok(settled));
                }
                Ok(Err(why)) => {
                    db.rollback().await?;
                    return Ok(Err(why));
                }
                Ok(Ok(None)) => {
                    db.rollback().await?;
                    while self.take(db, now).await? {}
                }
                Err(error) if is_unfit(&error) => {
                    db.rollback().await?;
                    return Ok(Err(format!("the row does not fit yet: {error}")));
                }
                Err(error) => {
                    let _already_failing: Result<(), DatabaseError> = db.rollback().await;
                    return Err(error);
                }
            }
        }
        Ok(Err(
            "the application at the head writes this row without pause; try again".into(),
        ))
    }

    fn adopt_settling(&mut self, written: Written, now: Micros) {
        self.book = written.book;
        self.appended = now;
        self.tail.adopt(written.fresh, &mut self.recent);
        if let Some(seat) = self.seats.get_mut(&written.branch) {
            seat.book.holds = written.holds;
        }
        self.outputs.push_back(Output::Notice(Notice::Settled {
            id: written.conflict,
        }));
    }

    async fn try_settling<D: Database>(
        &self,
        db: &mut D,
        conflict: u64,
        wish: Wish<'_>,
    ) -> OfficeResult<Answer<Option<(Settled, Written)>>> {
        let Some(record) = record(db, conflict).await? else {
            return Ok(Err(format!("there is no conflict number {conflict}")));
        };
        let record = match self.versions.lift_record(record, &self.schema) {
            Ok(record) => record,
            Err(why) => return Ok(Err(why)),
        };
        if wish
            .by
            .is_some_and(|by| *by != record.origin && *by != self.identity.name)
        {
            return Ok(Err(format!(
                "conflict {conflict} is about a change of {}; it can be settled there or at the head",
                record.origin
            )));
        }
        let Some(table) = self.schema.table_named(&record.table) else {
            return Ok(Err(format!(
                "table `{}` is not shared any more",
                record.table
            )));
        };
        let mut notes = db
            .notes(table, Some(std::slice::from_ref(&record.key)))
            .await?;
        let note = match notes.remove(&record.key) {
            Some(note) => books::decode::<HeldAtHead>(&note)?,
            None => HeldAtHead::default(),
        };
        let held = note.of(&record.origin);
        if let Some(other) = held.filter(|hold| hold.conflict != conflict) {
            return Ok(Err(format!(
                "a change of the row is held as conflict {}; settle that one",
                other.conflict
            )));
        }
        let former = books::load::<Settled, D>(db, &settled_name(conflict)).await?;
        if record.result == Resolution::Held && held.is_none() && former.is_none() {
            return Ok(Err(format!(
                "a later change of the row took the place of conflict {conflict}; settle that one"
            )));
        }
        if record.reason == Reason::Unreadable {
            return Ok(Err(
                "mend the row in the office's database; it is sent as soon as it can be read"
                    .into(),
            ));
        }
        let standing = match (held, former, record.result) {
            (Some(_), ..) | (None, None, Resolution::Ours) => Some(Keep::Head),
            (None, Some(former), _) => Some(former.keep),
            (None, None, Resolution::Theirs) => Some(Keep::Branch),
            (None, None, Resolution::Held | Resolution::Merged) => None,
        };
        let by_branch = wish.by.is_some_and(|by| *by != self.identity.name);
        let as_it_is = wish.keep == Keep::Head && standing == Some(Keep::Head);
        if by_branch && table.direction == Direction::Down && !as_it_is {
            return Ok(Err(format!(
                "only the head writes table `{}`: a branch can keep the head's row, and nothing else; let a person at the head decide conflict {conflict}",
                table.name
            )));
        }
        let stand = Stand { held, standing };
        let order = match self.order(db, table, &record, &stand, wish).await? {
            Ok(order) => order,
            Err(why) => return Ok(Err(why)),
        };
        let ended = held.is_some();
        self.carry_out(db, table, &record, order, ended)
            .await
            .map(Ok)
    }

    /// What is to be written, or why it cannot be.
    async fn order<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        record: &ConflictRecord,
        stand: &Stand<'_>,
        wish: Wish<'_>,
    ) -> OfficeResult<Answer<Order>> {
        let Wish { now, keep, by } = wish;
        let held = stand.held;
        let keys = std::slice::from_ref(&record.key);
        let present = db.read(table, keys).await?.remove(&record.key);
        let same = |one: &Option<Row>, other: &Option<Row>| {
            let digest = |row: &Option<Row>| row.as_ref().map(|row| row.digest(table));
            digest(one) == digest(other)
        };
        let equal = same(&present, &record.theirs);
        let wanted = match keep {
            Keep::Retry if held.is_none() => {
                return Ok(Err(format!("conflict {} is not held", record.id)));
            }
            keep if record.lacks_rows() && stand.standing != Some(keep) => {
                return Ok(Err(format!(
                    "the rows of conflict {} are too large to travel, and this head does not have them since it was restored or promoted; write the row at {} again, or keep the head's",
                    record.id, record.origin
                )));
            }
            // Another way led to the same row.
            Keep::Retry if equal => present.clone(),
            Keep::Retry if same(&present, &record.ours) || present.is_none() => {
                record.theirs.clone()
            }
            Keep::Retry => {
                return Ok(Err(
                    "the head's row has changed since; a person must choose between the two".into(),
                ));
            }
            // Whatever the row has become since stands with it.
            keep if stand.standing == Some(keep) => present.clone(),
            Keep::Head => record.ours.clone(),
            Keep::Branch => record.theirs.clone(),
            Keep::Base => match self.base_row(db, table, record).await? {
                Ok(row) => row,
                Err(why) => return Ok(Err(why)),
            },
        };
        let key_was_taken = held.is_some_and(|hold| hold.reason == Reason::InsertedTwice);
        if keep == Keep::Retry && key_was_taken && present.is_some() && !equal {
            return Ok(Err("the key is still taken at the head".into()));
        }
        if let Some(row) = wanted.as_ref().filter(|_| keep == Keep::Retry) {
            let parents = parents(&self.schema, table, row).into_iter().collect();
            let waited_for = self.waited_for(db, &record.origin, parents).await?;
            if let Some((parent, conflict)) = waited_for.first_key_value() {
                return Ok(Err(self.why_it_waits(parent, *conflict)));
            }
        }
        if wanted.as_ref().is_some_and(|row| !table.fits(row)) {
            return Ok(Err(format!(
                "the row was kept under another shape of table `{}`",
                table.name
            )));
        }
        let effect = (!same(&wanted, &present)).then(|| {
            let gone = || Effect::Delete(record.key.clone());
            wanted.clone().map_or_else(gone, Effect::Put)
        });
        let settled = Settled {
            conflict: record.id,
            keep: if keep == Keep::Retry {
                Keep::Branch
            } else {
                keep
            },
            at: now,
            by: by.cloned(),
            row: wanted,
        };
        let theirs = matches!(keep, Keep::Branch | Keep::Retry);
        let source = match held.filter(|_| theirs) {
            Some(hold) => Source::Held(record.origin.clone(), hold.batch.0, hold.batch.1),
            None => Source::Sender,
        };
        Ok(Ok(Order {
            settled,
            effect,
            source,
            // What is tried again by itself is as old as it is; what a person decides is new.
            at: if keep == Keep::Retry { record.at } else { now },
        }))
    }

    /// The row that both sides changed: as the branch found it, or as the log has it.
    async fn base_row<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        record: &ConflictRecord,
    ) -> OfficeResult<Answer<Option<Row>>> {
        if record.before.is_some() {
            return Ok(Ok(record.before.clone()));
        }
        if let Base::Log(position) | Base::Own(_, position) = record.base
            && let Some(logged) =
                super::history::last_before(db, &self.versions, table, &record.key, position)
                    .await?
        {
            return Ok(Ok(logged.effect.row().cloned()));
        }
        Ok(Err(format!(
            "the row that both sides changed was not kept; `before = true` under [tables.{}] keeps it from now on",
            table.name
        )))
    }

    async fn carry_out<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        record: &ConflictRecord,
        order: Order,
        ended: bool,
    ) -> OfficeResult<Option<(Settled, Written)>> {
        let Order {
            settled,
            effect,
            source,
            at,
        } = order;
        if let Some(effect) = &effect {
            db.write(&self.schema, &[(table.id, effect.clone())])
                .await?;
            let keys = std::slice::from_ref(&record.key);
            if !db.captured(table, Some(keys)).await?.is_empty() {
                return Ok(None);
            }
        }
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let body = LoggedChanges {
            changes: effect
                .map(|effect| Logged {
                    table: table.id,
                    effect,
                    at,
                    source,
                })
                .into_iter()
                .collect(),
            settlements: vec![Settlement {
                branch: record.origin.clone(),
                table: table.id,
                key: record.key.clone(),
                row: settled.row.clone(),
                record: None,
                settled: Some(settled.clone()),
                held: None,
            }],
            ..LoggedChanges::of_the_head()
        };
        writer.append(db, LogBody::Changes(body)).await?;
        writer.finish(db).await?;
        books::store(db, &settled_name(record.id), &settled).await?;
        let mut holds = 0;
        if let Some(seat) = self.seats.get(&record.origin) {
            holds = seat.book.holds;
            if ended {
                holds = holds.saturating_sub(1);
                set(db, table, &record.key, &record.origin, None).await?;
                let book = books::SeatBook {
                    holds,
                    ..seat.book.clone()
                };
                books::store(db, &seat_name(&record.origin), &book).await?;
            }
        }
        let written = Written {
            book: writer.book,
            fresh: writer.fresh,
            branch: record.origin.clone(),
            holds,
            conflict: record.id,
        };
        Ok(Some((settled, written)))
    }

    /// Tries held changes again whose cause may have gone: rows that did not fit, keys that were taken.
    pub(super) async fn retry_holds<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if !self.any_held || !self.moving || !now.has_passed(RETRY_MS, self.retries.tried) {
            return Ok(());
        }
        if self.settling_in(now) || !self.has_followed() {
            return Ok(());
        }
        self.retries.tried = now;
        db.begin(Purpose::Read).await?;
        let outcome = self.held(db).await;
        let held = conclude(db, outcome).await?;
        self.any_held = !held.is_empty();
        let mut waiting: Vec<u64> = held
            .into_iter()
            .filter(|hold| !matches!(hold.reason, Reason::AskedFor | Reason::Unreadable))
            .map(|hold| hold.conflict)
            .collect();
        waiting.sort_unstable();
        let place = waiting.partition_point(|conflict| *conflict <= self.retries.last);
        waiting.rotate_left(place);
        waiting.truncate(RETRIED);
        for conflict in waiting {
            self.retries.last = conflict;
            // What still does not fit stays as it is.
            let _why = self.settle(db, now, conflict, Keep::Retry, None).await?;
        }
        Ok(())
    }

    /// Lists rows that cannot be sent, in the taking transaction, and ends the holds of those that can be by now (P6).
    pub(super) async fn set_aside<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        book: &mut books::HeadBook,
        portion: &Portion,
    ) -> OfficeResult<()> {
        let me = &self.identity.name;
        if self.any_held {
            for table in &self.schema.tables {
                self.mended(db, now, table, portion).await?;
            }
        }
        for unreadable in &portion.unreadable {
            let Some(table) = self.schema.table(unreadable.table) else {
                continue;
            };
            let keys = std::slice::from_ref(&unreadable.key);
            if let Some(note) = db.notes(table, Some(keys)).await?.get(&unreadable.key)
                && let Some(hold) = books::decode::<HeldAtHead>(note)?.of(me)
                && hold.reason == Reason::Unreadable
            {
                // Listed already.
                continue;
            }
            book.conflicts += 1;
            let record = ConflictRecord {
                id: book.conflicts,
                table: table.name.clone(),
                columns: table.columns.iter().map(|c| c.name.clone()).collect(),
                key: unreadable.key.clone(),
                reason: Reason::Unreadable,
                at: now,
                origin: me.clone(),
                base: Base::Log(self.book.last),
                ours: None,
                theirs: None,
                result: Resolution::Held,
                decided: now,
                before: None,
                merged: None,
                detail: Some(unreadable.problem.clone()),
                shape: (self.schema.version, table.id),
            };
            let entry = Entry {
                number: record.id,
                bytes: books::encode(&record)?,
            };
            db.append(CONFLICTS, &[entry]).await?;
            let hold = Hold {
                branch: me.clone(),
                conflict: record.id,
                reason: Reason::Unreadable,
                batch: (self.book.incarnation, BatchNumber::NONE),
            };
            set(db, table, &unreadable.key, me, Some(hold)).await?;
        }
        Ok(())
    }

    /// Rows of a table that could not be sent and can be by now.
    async fn mended<D: Database>(
        &self,
        db: &mut D,
        now: Micros,
        table: &Table,
        portion: &Portion,
    ) -> OfficeResult<()> {
        let me = &self.identity.name;
        let here = portion.changes.iter().filter(|one| one.table == table.id);
        let rows: BTreeMap<Key, &Effect> = here
            .map(|taken| (taken.effect.key(table), &taken.effect))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = rows.keys().cloned().collect();
        let mut ended = Vec::new();
        for (key, note) in db.notes(table, Some(&keys)).await? {
            let held: HeldAtHead = books::decode(&note)?;
            let Some(conflict) = held.of(me).map(|hold| hold.conflict) else {
                continue;
            };
            let settled = Settled {
                conflict,
                keep: Keep::Head,
                at: now,
                by: None,
                row: rows.get(&key).and_then(|effect| effect.row().cloned()),
            };
            books::store(db, &settled_name(conflict), &settled).await?;
            let left = held.with(me, None);
            ended.push((key, left.as_ref().map(books::encode).transpose()?));
        }
        if !ended.is_empty() {
            db.set_notes(table, &ended).await?;
        }
        Ok(())
    }

    /// All holds of all branches.
    async fn held<D: Database>(&self, db: &mut D) -> OfficeResult<Vec<Hold>> {
        let mut held = Vec::new();
        for table in &self.schema.tables {
            for note in db.notes(table, None).await?.values() {
                held.extend(books::decode::<HeldAtHead>(note)?.holds);
            }
        }
        Ok(held)
    }
}

/// What settling wrote, to be adopted after the commit.
struct Written {
    book: books::HeadBook,
    fresh: Vec<super::writer::Fresh>,
    branch: OfficeName,
    holds: u64,
    conflict: u64,
}

/// How a conflict was settled afterwards, if it was.
pub async fn settled<D: Database>(
    db: &mut D,
    conflict: u64,
) -> Result<Option<Settled>, OfficeError> {
    books::load(db, &settled_name(conflict)).await
}
