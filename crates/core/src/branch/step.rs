//! Taking a step of the schema: the tables here change where the head's changed, in the log's own place (P10).

use std::collections::BTreeSet;

use super::unanswered::Unanswered;
use super::untaken::{Untaken, Written};
use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Joining, Note};
use crate::change::Key;
use crate::envelope;
use crate::evolution::{Lift, Versions, recapture_filled};
use crate::failure::OfficeResult;
use crate::identity::Micros;
use crate::message::{LogBody, SchemaStep};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Entry, Evolution, Purpose};
use crate::schema::{Schema, SchemaVersion, Table, TableId};

/// The record of the versions that a branch leaves that goes back to where the head's log went on otherwise, with the one
/// that it goes back to, until its batches say for themselves what they stand in.
pub(super) const LOST_VERSIONS: &str = "lost-versions";

/// How often a step is begun anew since the application has written to what goes with it. One that never pauses must not
/// keep the step out for ever: what it wrote last is listed then.
const TRIES: u32 = 20;

/// What became of a try to change the tables.
enum Tried {
    /// They are changed.
    Done,
    /// The application has written to what goes with the change.
    Written,
    /// The tables are not what they were when they were last looked at.
    Unknown,
}

/// Notes on rows of tables whose shape changes, in both shapes.
type Moved = Vec<(TableId, Vec<(Key, Option<(Key, Note)>)>)>;

impl Branch {
    /// The step that is the next entry to land, if it is one.
    pub(super) fn next_step(&self) -> Option<SchemaStep> {
        match self.inbox.slots().next().map(|slot| &slot.message.body) {
            Some(LogBody::Schema(step)) if !self.staged => Some(step.clone()),
            _ => None,
        }
    }

    /// Changes the tables as the next log entry says. Returns whether that is done.
    pub(super) async fn take_step<D: Database>(
        &mut self,
        db: &mut D,
        step: SchemaStep,
    ) -> OfficeResult<bool> {
        if !self.follow(db, &step.schema, Some(&step)).await? {
            return Ok(false);
        }
        self.outputs
            .extend(self.inbox.leave(1).into_iter().map(Output::Settle));
        if step.compare && self.link.welcomed && self.book.joining.is_none() {
            self.verify(true)?;
        }
        Ok(true)
    }

    /// Takes what the application wrote so far, then changes the tables to another version, as a step of the log says or
    /// without following the log there. Nothing is done, and false returned, where the tables turn out to be others than
    /// they were known to be, so that they must be looked at first, and where the application wrote too much meanwhile.
    pub(super) async fn follow<D: Database>(
        &mut self,
        db: &mut D,
        to: &Schema,
        step: Option<&SchemaStep>,
    ) -> OfficeResult<bool> {
        for tried in 0..=TRIES {
            if !self.take_all(db, tried > 0).await? {
                return Ok(false);
            }
            match self.try_following(db, to, step, tried == TRIES).await? {
                Tried::Done => return Ok(true),
                Tried::Written => {}
                Tried::Unknown => {
                    self.shape = None;
                    self.stepped = true;
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Changes the tables, unless they changed since they were looked at, or something of what goes was written since all
    /// was taken.
    async fn try_following<D: Database>(
        &mut self,
        db: &mut D,
        to: &Schema,
        step: Option<&SchemaStep>,
        anyhow: bool,
    ) -> OfficeResult<Tried> {
        let mut book = self.book.clone();
        let mut followed = None;
        if let Some(step) = step {
            let Some(slot) = self.inbox.slots().next() else {
                return Ok(Tried::Done);
            };
            book.cursor = slot.message.position;
            book.log_chain = envelope::chain(&slot.bytes);
            if step.compare {
                book.compare = Some(true);
            }
            let entry = Entry {
                number: slot.number,
                bytes: slot.bytes.clone(),
            };
            followed = Some((self.book.followed(), entry));
        }
        db.begin(Purpose::Load).await?;
        let found = if self.is_prepared() {
            self.untaken_as_known(db, to, anyhow).await
        } else {
            Ok(Ok(Untaken::new()))
        };
        let untaken = match found {
            Ok(Ok(untaken)) => untaken,
            Ok(Err(hindered)) => {
                db.rollback().await?;
                return Ok(hindered);
            }
            Err(error) => {
                db.rollback().await?;
                return Err(error);
            }
        };
        let dropped = step.map_or(&[][..], |step| &step.dropped);
        self.evolve_on(db, to, dropped, book, followed, untaken)
            .await?;
        Ok(Tried::Done)
    }

    /// What is to be listed when the tables change now, or why they cannot.
    async fn untaken_as_known<D: Database>(
        &self,
        db: &mut D,
        to: &Schema,
        anyhow: bool,
    ) -> OfficeResult<Result<Untaken, Tried>> {
        // What its application has renamed would be made again, empty.
        if !self.is_as_known(db).await? {
            return Ok(Err(Tried::Unknown));
        }
        Ok(match self.untaken(db, to, anyhow).await? {
            Written::Rows(rows) => Ok(rows),
            Written::Something => Err(Tried::Written),
        })
    }

    /// Changes the tables to another version without following the log there, as [`Self::follow`] does. Where it does not
    /// come to that, the branch greets again.
    pub(super) async fn jump<D: Database>(
        &mut self,
        db: &mut D,
        schema: &Schema,
    ) -> OfficeResult<bool> {
        if !self.is_prepared() {
            return Ok(true);
        }
        self.follow(db, schema, None).await
    }

    /// What the application wrote so far is sent as it wrote it: a column that goes takes its values with it. Where they are
    /// `needed` for that, more batches than else are unanswered. Returns whether the tables are still as they were known.
    pub(super) async fn take_all<D: Database>(
        &mut self,
        db: &mut D,
        needed: bool,
    ) -> OfficeResult<bool> {
        // What was written a moment ago may not have been told yet.
        self.captured = true;
        while self.captured && self.is_prepared() && (needed || self.may_freeze()) {
            self.take(db, Micros(0)).await?;
            if self.stepped {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Changes the tables in the transaction that is open, and ends it.
    async fn evolve_on<D: Database>(
        &mut self,
        db: &mut D,
        to: &Schema,
        dropped: &[TableId],
        mut book: BranchBook,
        followed: Option<(String, Entry)>,
        mut untaken: Untaken,
    ) -> OfficeResult<()> {
        let fresh: Vec<TableId> = to.tables.iter().map(|table| table.id).collect();
        let fresh: Vec<TableId> = fresh
            .into_iter()
            .filter(|id| self.schema.table(*id).is_none())
            .collect();
        let prepared = self.is_prepared();
        if let Some(joining) = &mut book.joining {
            joining.loaded.retain(|id| to.table(*id).is_some());
        } else if !fresh.is_empty() {
            // New tables are copied as at a join; the others go on.
            book.joining = Some(Joining {
                loaded: to
                    .tables
                    .iter()
                    .map(|t| t.id)
                    .filter(|id| !fresh.contains(id))
                    .collect(),
                prepared: true,
                frozen: true,
                ..Joining::default()
            });
        }
        let mut versions = self.versions.clone();
        versions.forget_after(to.version);
        versions.add(to.clone());
        let made = self.as_made();
        let mut refused = Vec::new();
        let mut differing = self.differing.clone();
        let mut listed = Vec::new();
        let outcome = async {
            let moved = self.moved_notes(db, to).await?;
            let mut done = if prepared {
                db.evolve(&made, to, dropped).await?
            } else {
                Evolution::default()
            };
            untaken.append(&mut done.untaken);
            listed = self.list_untaken(db, to, &untaken).await?;
            let before = book.refused.len();
            book.refused
                .retain(|table| done.refused.iter().any(|(id, _)| *id == table.id));
            if prepared && book.refused.len() < before {
                // One that could be made only now has no foreign keys yet.
                book.unbound = Some(true);
            }
            for (id, problem) in &done.refused {
                let known = book.refused.iter().any(|table| table.id == *id);
                // A new one, which could not be made, has no other shape than this.
                let table = made.table(*id).or_else(|| to.table(*id));
                if let Some(table) = table.filter(|_| !known) {
                    book.refused.push(table.clone());
                    refused.push(format!(
                        "table `{}` could not follow the head's: {problem}; it is tried again by itself, other tables go on",
                        table.name
                    ));
                }
            }
            if to.version != self.schema.version {
                refused.extend(done.unbound.iter().cloned());
            }
            refused.extend(self.note_unmade(&mut book, to, &done));
            if prepared {
                // What arrives before the next look must not be written to what is not there.
                let as_it_was = |id: &TableId| match self.differing.get(id) {
                    Some(local) => local.clone(),
                    None => made.table(*id).cloned(),
                };
                let ids = done.refused.iter().map(|(id, _)| id);
                differing = ids.map(|id| (*id, as_it_was(id))).collect();
            }
            set_moved(db, &self.schema, to, moved).await?;
            for (id, column) in &done.found {
                if let Some(table) = to.table(*id) {
                    recapture_filled(db, table, *column).await?;
                }
            }
            let made = |table: &&Table| {
                let refused = || done.refused.iter().any(|(id, _)| *id == table.id);
                fresh.contains(&table.id) && !refused()
            };
            for table in to.tables.iter().filter(made) {
                if prepared {
                    db.recapture(table, None).await?;
                }
            }
            if to.version != self.schema.version {
                Versions::store(db, to).await?;
            }
            if to.version < self.schema.version {
                let known =
                    books::load::<(SchemaVersion, Vec<Schema>), D>(db, LOST_VERSIONS).await?;
                let (since, mut lost) = known.unwrap_or((to.version, Vec::new()));
                lost.retain(|schema| self.versions.get(schema.version).is_none());
                lost.extend(self.versions.after(to.version));
                books::store(db, LOST_VERSIONS, &(since.min(to.version), lost)).await?;
            }
            if let Some((stream, entry)) = followed {
                db.append(&stream, &[entry]).await?;
            }
            books::store(db, BRANCH, &book).await?;
            // After the commit nothing may fail: the step would be taken a second time.
            Unanswered::read(db, &book, &versions, to).await
        };
        let outcome: OfficeResult<Unanswered> = outcome.await;
        let unanswered = conclude(db, outcome).await?;
        let known =
            book.refused.len() == self.book.refused.len() && book.unmade == self.book.unmade;
        if book.refused.len() < self.book.refused.len() {
            self.bound_tried = Micros(0);
        }
        self.book = book;
        self.differing = differing;
        for what in refused {
            self.notice(Notice::Trouble(what));
        }
        for listed in listed {
            self.notice(listed);
        }
        self.stepped = true;
        self.shape = None;
        let again = to.version == self.schema.version;
        self.schema = to.clone();
        self.versions = versions;
        self.captured = true;
        self.seen = None;
        self.remember(unanswered);
        if !again || !known {
            self.notice(Notice::SchemaChanged {
                version: to.version,
                what: "the tables here follow the head's".into(),
            });
        }
        Ok(())
    }

    /// Tries again what tables here could not follow.
    pub(super) async fn retry_refused<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        if self.book.refused.is_empty() {
            return Ok(());
        }
        self.evolve_again(db).await
    }

    /// Makes the tables what the present version says, as far as they are not.
    pub(super) async fn evolve_again<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let (to, book) = (self.schema.clone(), self.book.clone());
        db.begin(Purpose::Load).await?;
        self.evolve_on(db, &to, &[], book, None, Untaken::new())
            .await
    }

    /// Notes whose key or row stands otherwise in the new version.
    async fn moved_notes<D: Database>(&self, db: &mut D, to: &Schema) -> OfficeResult<Moved> {
        let mut moved = Moved::new();
        if !self.any_notes {
            return Ok(moved);
        }
        for from in &self.schema.tables {
            let lift = to.table(from.id).map(|to| Lift { from, to });
            if lift.is_some_and(|lift| lift.is_identity()) {
                continue;
            }
            let mut notes = Vec::new();
            for (key, note) in db.notes(from, None).await? {
                let note: Note = books::decode(&note)?;
                let lifted = lift.and_then(|lift| {
                    let note = match note {
                        Note::Unfit(first, effect) => {
                            Note::Unfit(first, lift.effect(&effect).ok()?.0)
                        }
                        note => note,
                    };
                    Some((lift.key(&key).ok()?, note))
                });
                notes.push((key, lifted));
            }
            if !notes.is_empty() {
                moved.push((from.id, notes));
            }
        }
        Ok(moved)
    }
}

async fn set_moved<D: Database>(
    db: &mut D,
    from: &Schema,
    to: &Schema,
    moved: Moved,
) -> OfficeResult<()> {
    for (id, notes) in moved {
        let (Some(was), Some(now)) = (from.table(id), to.table(id)) else {
            continue;
        };
        let kept: BTreeSet<&Key> = notes
            .iter()
            .filter_map(|(_, lifted)| lifted.as_ref().map(|(key, _)| key))
            .collect();
        let gone: Vec<_> = notes
            .iter()
            .filter(|(key, _)| !kept.contains(key))
            .map(|(key, _)| (key.clone(), None))
            .collect();
        let mut set = Vec::new();
        for (key, note) in notes.iter().filter_map(|(_, lifted)| lifted.as_ref()) {
            set.push((key.clone(), Some(books::encode(note)?)));
        }
        if !gone.is_empty() {
            let was = Table {
                name: now.name.clone(),
                ..was.clone()
            };
            db.set_notes(&was, &gone).await?;
        }
        if !set.is_empty() {
            db.set_notes(now, &set).await?;
        }
    }
    Ok(())
}
