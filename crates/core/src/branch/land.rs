//! Landing: log entries enter this database in whole units, in one transaction with the cursor (P2, P5).
//!
//! A row with local changes that the head has not answered is left alone until the verdict arrives; a note remembers
//! from which entry on, since that is the base of those changes (SETTLED 3 and 4). `entry` takes one entry, `row` says what
//! becomes of each of its rows, `record` keeps the list of decisions.

use std::collections::BTreeMap;

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Note, Pages, RowNames, STAGED};
use crate::change::{Key, Row};
use crate::conflict::ConflictRecord;
use crate::failure::OfficeResult;
use crate::head::own_entry;
use crate::identity::{BatchNumber, Digest};
use crate::message::{Barrier, LogBody, Settled};
use crate::output::{Notice, Output};
use crate::pile::Pile;
use crate::port::{Database, Entry, Purpose};
use crate::schema::TableId;
use crate::staged::stage;
use crate::unfit::is_unfit;

mod entry;
mod record;
mod row;

pub(crate) use record::{MOVED_RECORDS, append_record};

/// How often a landing is begun anew because the application was writing the same rows.
const ATTEMPTS: usize = 50;

/// Rows that a landing leaves alone.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Rows found to have local changes meanwhile.
    pub busy: RowNames,
    /// Rows that the tables here do not take.
    pub unfit: RowNames,
    /// Counters with local changes, since one of them may not fit.
    pub counters: bool,
}

/// One landing in the making.
struct Landing<'a> {
    branch: &'a Branch,
    book: BranchBook,
    pile: Pile,
    /// Counters with unanswered changes: what the log says of the row, and the last batch that this includes.
    hot: BTreeMap<(TableId, Key), (Row, BatchNumber)>,
    aside: &'a Aside,
    notes: BTreeMap<(TableId, Key), Option<Note>>,
    records: Vec<ConflictRecord>,
    settled: Vec<Settled>,
    /// Entries not yet written to the stream of those followed.
    followed: Vec<Entry>,
    answered_rows: Vec<Digest>,
    changes: u64,
    deferred: u64,
    reused: bool,
}

/// What a landing leaves to adopt after the commit.
struct Landed {
    book: BranchBook,
    answered_rows: Vec<Digest>,
    any_notes: bool,
    changes: u64,
    deferred: u64,
    records: Vec<ConflictRecord>,
    reused: bool,
}

enum LandingEnd {
    Done(Box<Landed>),
    /// These rows have local changes that appeared meanwhile.
    Clash(Vec<(TableId, Key)>),
}

impl Branch {
    pub(super) fn purpose(&self) -> Purpose {
        if self.book.joining.is_some() {
            Purpose::Load
        } else {
            Purpose::Apply
        }
    }

    /// Lands whole units that wait. Returns whether anything was done.
    pub(super) async fn land<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        self.answer_passed(db).await?;
        if let Some(step) = self.next_step() {
            return self.take_step(db, step).await;
        }
        let Some((mut run, mut barrier)) = self.whole_units(db.changes_at_a_time()) else {
            return self.stage_parts(db).await;
        };
        let mut aside = Aside::default();
        for _ in 0..ATTEMPTS {
            match self.land_once(db, run, &aside).await {
                Ok(LandingEnd::Done(landed)) => {
                    self.adopt_landing(*landed, run);
                    self.passed = barrier.map(|barrier| (self.book.cursor, barrier));
                    self.answer_passed(db).await?;
                    return Ok(true);
                }
                Ok(LandingEnd::Clash(rows)) => aside.busy.extend(rows),
                Err(error) if is_unfit(&error) && !aside.counters => aside.counters = true,
                Err(error) if is_unfit(&error) => {
                    // One unit alone, which may fit; then without the rows that do not.
                    let several = run;
                    (run, barrier) = self.whole_units(0).unwrap_or((run, barrier));
                    if run < several {
                        continue;
                    }
                    let found = self.find_unfit(db, run, &aside).await?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    aside.unfit.extend(found);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn land_once<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<LandingEnd> {
        db.begin(self.purpose()).await?;
        let outcome = match self.try_landing(db, run, aside).await {
            Ok(LandingEnd::Done(landed)) => match db.commit().await {
                Ok(()) => return Ok(LandingEnd::Done(landed)),
                Err(error) => Err(error.into()),
            },
            other => other,
        };
        db.rollback().await?;
        outcome
    }

    /// How many waiting entries one transaction should land, and the barrier that ends them.
    fn whole_units(&self, enough: usize) -> Option<(usize, Option<Barrier>)> {
        let mut whole = None;
        let mut changes = 0;
        for (index, slot) in self.inbox.slots().enumerate() {
            match &slot.message.body {
                LogBody::Schema(_) => return whole,
                LogBody::Barrier(barrier) => return Some((index + 1, Some(barrier.clone()))),
                LogBody::Changes(body) => {
                    changes += slot.changes;
                    if !body.open {
                        whole = Some((index + 1, None));
                        if changes >= enough {
                            break;
                        }
                    }
                }
            }
        }
        whole
    }

    async fn try_landing<D: Database>(
        &self,
        db: &mut D,
        run: usize,
        aside: &Aside,
    ) -> OfficeResult<LandingEnd> {
        let mut landing = Landing {
            branch: self,
            book: self.book.clone(),
            pile: Pile::default(),
            hot: BTreeMap::new(),
            aside,
            notes: BTreeMap::new(),
            records: Vec::new(),
            settled: Vec::new(),
            followed: Vec::new(),
            answered_rows: Vec::new(),
            changes: 0,
            deferred: 0,
            reused: false,
        };
        let clashes = match landing.hear_all(db, run).await {
            // What was handed over may tell late that it does not fit.
            Err(error) => landing.pile.excuse(db, &self.schema, error).await?,
            Ok(clashes) => clashes,
        };
        if !clashes.is_empty() {
            return Ok(LandingEnd::Clash(clashes));
        }
        landing
            .finish(db)
            .await
            .map(|landed| LandingEnd::Done(Box::new(landed)))
    }

    fn adopt_landing(&mut self, landed: Landed, run: usize) {
        for name in landed.answered_rows {
            self.steps.forget(&name, landed.book.answered);
            if self
                .claims
                .get(&name)
                .is_some_and(|batch| *batch <= landed.book.answered)
            {
                self.claims.remove(&name);
            }
        }
        self.chains = self.chains.split_off(&landed.book.answered.next());
        // Room in the window again: what could not be frozen is looked for.
        self.captured |= landed.book.answered != self.book.answered;
        self.book = landed.book;
        self.staged = false;
        self.any_notes |= landed.any_notes;
        self.reused |= landed.reused;
        self.outputs
            .extend(self.inbox.leave(run).into_iter().map(Output::Settle));
        self.notice(Notice::Landed {
            changes: landed.changes,
            deferred: landed.deferred,
        });
        for record in landed.records {
            self.notice(Notice::Conflict {
                id: record.id,
                table: record.table,
                reason: record.reason.code(),
            });
        }
    }

    /// Makes the parts of a unit that is too large for the inbox durable, so that the rest can come (SETTLED 2).
    async fn stage_parts<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        let parts = stage(db, STAGED, &self.inbox, self.staged).await?;
        let Some(parts) = parts else {
            return Ok(false);
        };
        self.staged = true;
        self.outputs
            .extend(self.inbox.leave(parts).into_iter().map(Output::Settle));
        Ok(true)
    }
}

impl Landing<'_> {
    /// Takes the next entries, as many as it is told. Returns rows in whose way the application is.
    async fn hear_all<D: Database>(
        &mut self,
        db: &mut D,
        run: usize,
    ) -> OfficeResult<Vec<(TableId, Key)>> {
        let branch = self.branch;
        if branch.staged {
            let mut pages = Pages::from(STAGED, branch.book.cursor.next().0);
            while let Some(parts) = pages.next(db).await? {
                for part in &parts {
                    let clashes = self.hear(db, &own_entry(&part.bytes)?, &part.bytes).await?;
                    if !clashes.is_empty() {
                        return Ok(clashes);
                    }
                }
            }
            db.trim(STAGED, u64::MAX >> 1).await?;
        }
        for slot in branch.inbox.slots().take(run) {
            let clashes = self.hear(db, &slot.message, &slot.bytes).await?;
            if !clashes.is_empty() {
                return Ok(clashes);
            }
        }
        self.show_counters(db).await?;
        self.pile.write(db, &branch.schema).await
    }

    /// Writes the books of this landing; the caller commits.
    async fn finish<D: Database>(self, db: &mut D) -> OfficeResult<Landed> {
        let mut any_notes = false;
        for table in &self.branch.schema.tables {
            let here = self.notes.iter().filter(|((id, _), _)| *id == table.id);
            let mut notes = Vec::new();
            for ((_, key), note) in here {
                any_notes |= note.is_some();
                notes.push((key.clone(), note.as_ref().map(books::encode).transpose()?));
            }
            if !notes.is_empty() {
                db.set_notes(table, &notes).await?;
            }
        }
        let records: OfficeResult<Vec<Entry>> = self
            .records
            .iter()
            .map(|record| {
                Ok(Entry {
                    number: record.id,
                    bytes: books::encode(record)?,
                })
            })
            .collect();
        for record in records? {
            append_record(db, record).await?;
        }
        if !self.followed.is_empty() {
            db.append(&self.book.followed(), &self.followed).await?;
        }
        for settled in &self.settled {
            let name = books::settled_name(settled.conflict);
            books::store(db, &name, settled).await?;
        }
        books::store(db, BRANCH, &self.book).await?;
        Ok(Landed {
            book: self.book,
            answered_rows: self.answered_rows,
            any_notes,
            changes: self.changes,
            deferred: self.deferred,
            records: self.records,
            reused: self.reused,
        })
    }
}
