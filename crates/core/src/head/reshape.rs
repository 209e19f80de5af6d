//! When the head's own tables change (P10): the catalogue is compared in the snapshot of each take, and what changed becomes
//! a schema version in the log, between the data before and the data after.

use std::collections::{BTreeMap, BTreeSet};

use super::recent::{Recent, names_of};
use super::writer::{HEAD, LogWriter, Tail};
use super::{Head, Standing};
use crate::books::{self, HeadBook, HeldAtHead};
use crate::branch::{UNCAPTURED, remember_uncaptured};
use crate::check::Checks;
use crate::conflict::Reason;
use crate::envelope;
use crate::evolution::{Follow, Known, Next, RENAMED, Renamed, Versions, follow, recapture_filled};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{Digest, LogPosition, Micros};
use crate::message::{Hello, LogBody, SchemaStep};
use crate::office::{Fleeting, conclude};
use crate::output::{Notice, Output};
use crate::port::{Database, DatabaseError, Entry, Evolution, Origin, Purpose};
use crate::schema::{Schema, SchemaVersion, TableId};
use crate::unfit::is_unfit;

/// Whether a person lets the waiting change of the tables pass.
const ACCEPTED: &str = "accepted";
/// How soon the tables are looked at again while a change of them is not followed, in milliseconds.
const LOOK_AGAIN_MS: i64 = 2_000;

/// What the head knows of its own tables.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    /// The fingerprint of the tables that the present version describes.
    known: Option<Digest>,
    /// What changed and is not followed, since the plan forbids it or a person is to be asked; and when that was told.
    waiting: Option<(Vec<String>, Micros)>,
    fleeting: Fleeting,
    /// Why the last try to follow them failed, and when.
    failed: Option<(String, Micros)>,
}

impl Catalogue {
    pub fn forget(&mut self) {
        self.known = None;
    }

    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }
}

/// What one look at the tables led to.
struct Step {
    next: Next,
    position: HeadBook,
    fresh: Vec<super::writer::Fresh>,
    shape: Digest,
}

impl Head {
    /// Whether the tables are still what the present version says, asked first in a taking transaction.
    pub(super) async fn is_as_known<D: Database>(&self, db: &mut D) -> OfficeResult<bool> {
        let shape = db.shape(&self.schema).await?;
        Ok(self.catalogue.known == Some(shape))
    }

    /// Whether the present version is what the tables and the plan say, as far as is known, or a change waits for a person.
    pub fn has_followed(&self) -> bool {
        self.catalogue.known.is_some() || self.catalogue.waiting.is_some()
    }

    /// Whether something went wrong only since the tables are no longer what the present version says; then they are
    /// looked at next.
    pub(super) async fn tables_changed<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        db.begin(Purpose::Read).await?;
        let known = self.is_as_known(db).await;
        let changed = !conclude(db, known).await?;
        if changed {
            self.catalogue.forget();
        }
        Ok(changed)
    }

    /// What changed in the tables and waits for a person, in sentences.
    pub fn waiting_changes(&self) -> &[String] {
        self.catalogue
            .waiting
            .as_ref()
            .map_or(&[], |(told, _)| told.as_slice())
    }

    /// Why the head's changed tables cannot be followed, where they cannot: nothing is judged or sent until they can.
    pub fn cannot_follow(&self) -> Option<String> {
        let (why, _) = self.catalogue.failed.as_ref()?;
        Some(format!(
            "the head's changed tables cannot be followed: {why}"
        ))
    }

    /// A person says that a table or a column was renamed, where the engine cannot tell a rename from a drop and an add.
    /// To be said before the tables are changed, or while the change waits.
    pub async fn say_renamed<D: Database>(
        &mut self,
        db: &mut D,
        said: &Renamed,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let known =
                books::load::<Vec<(String, Option<String>, String)>, D>(db, RENAMED).await?;
            let mut known = known.unwrap_or_default();
            known.retain(|(table, column, _)| (table, column) != (&said.table, &said.column));
            known.push((said.table.clone(), said.column.clone(), said.to.clone()));
            books::store(db, RENAMED, &known).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.catalogue = Catalogue::default();
        Ok(())
    }

    /// A person lets the waiting change of the tables pass (the plan says `ask`).
    pub async fn accept_changes<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, ACCEPTED, &true).await;
        conclude(db, outcome).await?;
        self.catalogue = Catalogue::default();
        self.captured = true;
        Ok(())
    }

    /// Brings the present version in line with the tables. Returns whether data may move: not while a change of the
    /// tables waits for a person.
    pub(super) async fn reconcile<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<bool> {
        if self.catalogue.known.is_some() {
            return Ok(true);
        }
        if let Some((_, looked)) = &self.catalogue.waiting
            && !now.has_passed(LOOK_AGAIN_MS, *looked)
        {
            return Ok(false);
        }
        if let Some((_, tried)) = &self.catalogue.failed
            && !now.has_passed(LOOK_AGAIN_MS, *tried)
        {
            return Ok(false);
        }
        let missing = db.missing_capture(&self.schema).await?;
        db.begin(Purpose::Read).await?;
        let outcome = async {
            let shape = db.shape(&self.schema).await?;
            let known = Known::load(db).await?;
            let accepted = books::load::<bool, D>(db, ACCEPTED).await?;
            let uncaptured: Option<BTreeSet<TableId>> = books::load(db, UNCAPTURED).await?;
            let uncaptured = uncaptured.unwrap_or_default();
            Ok((shape, known, accepted == Some(true), uncaptured))
        };
        let outcome: OfficeResult<_> = outcome.await;
        let (before, known, accepted, mut uncaptured) = conclude(db, outcome).await?;
        let found = db.definitions().await?;
        let findings = found.findings.clone();
        self.outputs
            .push_back(Output::Notice(Notice::Inspected(findings)));
        let mut next = follow(&self.schema, &known, &found, &self.plan);
        let stuck = next.stuck.iter().map(|(id, _)| *id);
        let lost = next.dropped.iter().copied().chain(stuck).collect();
        if self.catalogue.fleeting.is_seen(lost, now) {
            return Ok(false);
        }
        for (id, problem) in &next.stuck {
            let table = self.schema.table(*id).map(|table| table.name.clone());
            let why = format!(
                "table `{}` cannot be followed: {problem}",
                table.unwrap_or_default()
            );
            self.outputs.push_back(Output::Notice(Notice::Trouble(why)));
        }
        if self.must_wait(&next, accepted, now) {
            return Ok(false);
        }
        remember_uncaptured(db, &missing, &mut uncaptured).await?;
        if !uncaptured.is_empty() && next.schema.version == self.schema.version {
            // Writes may have gone unseen: what differs is found by comparing with the branches.
            next.schema.version += 1;
        }
        next.doubtful.extend(uncaptured);
        db.begin(Purpose::Load).await?;
        let outcome = self.reshape(db, before, next, &found.origins).await;
        let step = match conclude(db, outcome).await {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(false),
            Err(error) if is_unfit(&error) => {
                self.tell_failed(now, &error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.catalogue.failed = None;
        self.adopt_reshaped(step, now);
        Ok(true)
    }

    /// The change could not be followed; nothing is sent until it can, and it is tried again now and then.
    fn tell_failed(&mut self, now: Micros, error: &OfficeError) {
        let why = error.to_string();
        let known = self.catalogue.failed.as_ref();
        if known.is_none_or(|(known, _)| *known != why) {
            let told =
                format!("the head's changed tables cannot be followed: {why}; it is tried again");
            self.outputs
                .push_back(Output::Notice(Notice::Trouble(told)));
        }
        self.catalogue.failed = Some((why, now));
    }

    /// Whether the change is not to be followed yet, by the plan.
    fn must_wait(&mut self, next: &Next, accepted: bool, now: Micros) -> bool {
        let free = match self.plan.follow {
            Follow::Follow => true,
            Follow::Ask => accepted,
            Follow::Refuse => false,
        };
        if next.told.is_empty() || free {
            self.catalogue.waiting = None;
            return false;
        }
        if self.waiting_changes() != next.told {
            let what = next.told.join("; ");
            let way = match self.plan.follow {
                Follow::Refuse => {
                    "the plan refuses changed tables: change them back, or set `schema = \"follow\"`"
                }
                _ => "nothing is sent until `branchline schema accept`",
            };
            let why = format!("the head's tables changed: {what}; {way}");
            self.outputs.push_back(Output::Notice(Notice::Trouble(why)));
        }
        self.catalogue.waiting = Some((next.told.clone(), now));
        true
    }

    /// Writes the version into the log and installs capture for it. Nothing where the tables changed meanwhile.
    async fn reshape<D: Database>(
        &self,
        db: &mut D,
        before: Digest,
        next: Next,
        origins: &BTreeMap<String, Origin>,
    ) -> OfficeResult<Option<Step>> {
        if db.shape(&self.schema).await? != before {
            return Ok(None);
        }
        let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
        let told = next.schema.version != self.schema.version;
        if told {
            // The tables are what the version says already: this moves the capture along.
            let done = db.evolve(&self.schema, &next.schema, &[]).await?;
            refused(&done, &next.schema)?;
        }
        if told {
            let step = SchemaStep {
                schema: next.schema.clone(),
                dropped: next.dropped.clone(),
                compare: !next.doubtful.is_empty(),
            };
            writer.append(db, LogBody::Schema(step)).await?;
            Versions::store(db, &next.schema).await?;
            db.set_meta(RENAMED, None).await?;
            db.set_meta(ACCEPTED, None).await?;
            db.set_meta(UNCAPTURED, None).await?;
            for (id, column) in &next.added {
                if let Some(table) = next.schema.table(*id) {
                    recapture_filled(db, table, *column).await?;
                }
            }
        }
        let checks = |schema: &Schema| -> Vec<Checks> {
            let tables = schema.tables.iter();
            tables.map(|table| table.checks.clone()).collect()
        };
        if !told && checks(&next.schema) != checks(&self.schema) {
            // For branches that join from now on; and what goes later is known to have been there.
            Versions::store(db, &next.schema).await?;
        }
        if told && self.any_held {
            // What could not be sent may have a place now.
            for table in &next.schema.tables {
                let mut keys = Vec::new();
                for (key, note) in db.notes(table, None).await? {
                    let held = books::decode::<HeldAtHead>(&note)?;
                    let own = held.of(&self.identity.name);
                    if own.is_some_and(|hold| hold.reason == Reason::Unreadable) {
                        keys.push(key);
                    }
                }
                if !keys.is_empty() {
                    db.recapture(table, Some(&keys)).await?;
                }
            }
        }
        Known::store(db, origins).await?;
        writer.finish(db).await?;
        let shape = db.shape(&next.schema).await?;
        Ok(Some(Step {
            next,
            position: writer.book,
            fresh: writer.fresh,
            shape,
        }))
    }

    fn adopt_reshaped(&mut self, step: Step, now: Micros) {
        if !step.fresh.is_empty() {
            self.appended = now;
            let version = step.next.schema.version;
            let told = step.next.sentences();
            let what = if !told.is_empty() {
                told.join("; ")
            } else if step.next.doubtful.is_empty() {
                "nothing that an application sees".to_owned()
            } else {
                "capture was put back, and the branches' rows are compared".to_owned()
            };
            let notice = Notice::SchemaChanged { version, what };
            self.outputs.push_back(Output::Notice(notice));
        }
        self.versions.add(step.next.schema.clone());
        self.book = step.position;
        self.tail.adopt(step.fresh, &mut self.recent);
        self.schema = step.next.schema;
        self.catalogue.known = Some(step.shape);
        self.captured = true;
    }

    /// The schema version in which an office stands that has applied the log up to this place.
    pub async fn version_at<D: Database>(
        &self,
        db: &mut D,
        place: LogPosition,
    ) -> OfficeResult<SchemaVersion> {
        if place >= self.book.last {
            return Ok(self.schema.version);
        }
        db.begin(Purpose::Read).await?;
        let next = db.entries(books::LOG, place.0.saturating_add(1), 1).await;
        let next = conclude(db, next.map_err(OfficeError::from)).await?;
        match next.first() {
            // An entry names the version before it.
            Some(entry) => Ok(super::own_entry(&entry.bytes)?.schema),
            None => Ok(self.schema.version),
        }
    }

    /// A restored head takes a step of the schema back that it had lost: its tables become what the step says, unless
    /// they are that already.
    pub(super) async fn take_step_back<D: Database>(
        &mut self,
        db: &mut D,
        position: LogPosition,
        bytes: &[u8],
        step: &SchemaStep,
    ) -> OfficeResult<()> {
        let book = HeadBook {
            last: position,
            chain: envelope::chain(bytes),
            ..self.book.clone()
        };
        db.begin(Purpose::Load).await?;
        let outcome = async {
            let done = db.evolve(&self.schema, &step.schema, &step.dropped).await?;
            refused(&done, &step.schema)?;
            let number = position.0;
            let entry = |bytes: Vec<u8>| [Entry { number, bytes }];
            db.append(books::LOG, &entry(bytes.to_vec())).await?;
            db.append(books::LOG_KEYS, &entry(names_of(&[]))).await?;
            Versions::store(db, &step.schema).await?;
            books::store(db, HEAD, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.recent = Recent::new(book.last);
        self.tail = Tail::default();
        self.book = book;
        self.schema = step.schema.clone();
        self.versions.add(step.schema.clone());
        self.catalogue.forget();
        self.captured = true;
        Ok(())
    }

    /// A restored head that went on makes a step of the schema again that it had lost, at the end of its log.
    pub(super) async fn make_step_again<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        step: &SchemaStep,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Load).await?;
        let outcome = async {
            let done = db.evolve(&self.schema, &step.schema, &step.dropped).await?;
            refused(&done, &step.schema)?;
            let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
            writer.append(db, LogBody::Schema(step.clone())).await?;
            Versions::store(db, &step.schema).await?;
            for (id, column) in &done.found {
                if let Some(table) = step.schema.table(*id) {
                    recapture_filled(db, table, *column).await?;
                }
            }
            writer.finish(db).await?;
            Ok((writer.book, writer.fresh))
        };
        let outcome = outcome.await;
        let (book, fresh) = conclude(db, outcome).await?;
        self.book = book;
        self.appended = now;
        self.tail.adopt(fresh, &mut self.recent);
        self.schema = step.schema.clone();
        self.versions.add(step.schema.clone());
        self.catalogue.forget();
        self.captured = true;
        let version = self.schema.version;
        let what = "the tables are again what they were before the head was restored".into();
        let notice = Notice::SchemaChanged { version, what };
        self.outputs.push_back(Output::Notice(notice));
        Ok(())
    }

    /// The version that a branch is to have where it will stand after the greeting; nothing where the log brings it.
    pub(super) async fn schema_for<D: Database>(
        &self,
        db: &mut D,
        hello: &Hello,
        standing: &Standing,
    ) -> OfficeResult<Option<Schema>> {
        let wanted = match standing {
            Standing::GoBack(place, _) => self.version_at(db, *place).await?,
            Standing::BeyondHorizon | Standing::Apart => self.schema.version,
            _ if hello.schema == 0 => self.schema.version,
            _ => return Ok(None),
        };
        let version = self.versions.get(wanted).unwrap_or(&self.schema);
        Ok((hello.schema != wanted).then(|| version.clone()))
    }
}

/// The head's tables must be what the version says.
fn refused(done: &Evolution, schema: &Schema) -> OfficeResult<()> {
    let Some((id, problem)) = done.refused.first() else {
        return Ok(());
    };
    let table = schema.table(*id).map(|table| table.name.clone());
    Err(OfficeError::Database(DatabaseError::Mismatch {
        table: table.unwrap_or_default(),
        message: problem.clone(),
    }))
}
