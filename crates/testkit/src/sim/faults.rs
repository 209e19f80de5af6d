//! Faults between any two steps of a database: the process dies, a commit's answer is lost, another transaction is in
//! the way, the application commits in between. And sabotage: wrong code that the simulation must notice.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::books;
use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{
    Backlog, Database, DatabaseError, DbResult, Entry, Evolution, Extent, Inspection, Portion,
    Purpose, Taken,
};
use branchline_core::schema::{Schema, Table, TableId};

use super::office::{Disk, Store};
use super::workload::Desk;
use crate::conformance::Op;

/// One line of wrong code somewhere below the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The head's cursor of a branch is not saved with the rows.
    HeadCursorNotSaved,
    /// The branch's own record is not saved.
    BranchBookNotSaved,
    /// Nobody ever looks whether the application was in the way.
    CapturedAlwaysEmpty,
    /// Half of a write is committed before the other half.
    WriteNotAtomic,
    /// Some commits are answered and not made.
    CommitLies,
    /// Notes on rows are forgotten.
    NotesForgotten,
    /// Conflict records are not written.
    RecordsForgotten,
    /// The names of changed rows are not kept beside the log.
    LogKeysForgotten,
    /// A take forgets one of its rows.
    TakeForgets,
    /// What was frozen is not kept.
    OutboxForgotten,
    /// Requests to send again are lost.
    ResendIgnored,
    /// A take follows a watermark: what commits late, with a lower number, is never seen.
    LateCommitsSkipped,
    /// A unit is taken in two halves.
    UnitsSplit,
    /// Rows from before the join are not captured.
    RecaptureForgotten,
    /// A chunk of the first copy lacks a row.
    ChunksShort,
    /// Rows are not found when they are read.
    ReadsNothing,
    /// A branch does not change its tables.
    StepsForgotten,
    /// Columns that a table was given later are read by their places, and the places are wrong.
    ColumnsMixed,
    /// A machine that is to be read anew goes on taking in what arrives.
    StaleListens,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::HeadCursorNotSaved,
        Self::BranchBookNotSaved,
        Self::CapturedAlwaysEmpty,
        Self::WriteNotAtomic,
        Self::CommitLies,
        Self::NotesForgotten,
        Self::RecordsForgotten,
        Self::LogKeysForgotten,
        Self::TakeForgets,
        Self::OutboxForgotten,
        Self::ResendIgnored,
        Self::LateCommitsSkipped,
        Self::UnitsSplit,
        Self::RecaptureForgotten,
        Self::ChunksShort,
        Self::ReadsNothing,
        Self::StepsForgotten,
        Self::ColumnsMixed,
        Self::StaleListens,
    ];
}

/// What waits to go wrong at an office, counted in database steps.
#[derive(Debug, Default)]
pub struct Plan {
    /// The process dies at this step; with `true`, after it took effect.
    pub crash: Option<(u32, bool)>,
    /// After so many more transactions that write, one is committed and its answer lost; the process lives.
    pub lost: Option<u32>,
    /// An answer was lost during this call.
    pub cut_off: bool,
    /// This step finds another transaction in the way.
    pub busy: Option<u32>,
    /// The application commits a transaction just before this step.
    pub race: Option<u32>,
    /// The application does this before each transaction that loads.
    pub restless: Vec<Op>,
    /// The disk is full: nothing can be written.
    pub full: bool,
    /// The process is dead.
    pub dead: bool,
    /// A step failed on purpose during this call.
    pub hindered: bool,
    /// What the application did in between, in words.
    pub raced: Option<String>,
    pub sabotage: Option<Sabotage>,
    /// Counts for sabotage that strikes now and then.
    pub strikes: u64,
}

/// A step of the open transaction that must be done again when the application commits in between.
enum Redo {
    Write(Vec<(TableId, Effect)>, Schema),
    SetMeta(String, Option<Vec<u8>>),
    Append(String, Vec<Entry>),
    Trim(String, u64),
    SetNotes(Table, Vec<(Key, Option<Vec<u8>>)>),
    Recapture(Table, Option<Vec<Key>>),
}

/// A database with the faults of its office's [`Plan`].
pub struct Faulty<'w> {
    pub disk: &'w mut Disk,
    pub plan: &'w mut Plan,
    pub desk: Desk<'w>,
    open: Option<Purpose>,
    done: Vec<Redo>,
    /// A transaction of the application has drawn these numbers and commits after the open take.
    late: Option<u64>,
    /// The other half of a unit, for [`Sabotage::UnitsSplit`].
    rest: Option<Vec<Taken>>,
}

/// How many numbers a transaction draws that commits late.
const LATE_NUMBERS: u64 = 200;
/// How near the race must be for the application's transaction to be open already when a take begins.
const SOON: u32 = 8;

fn killed() -> DatabaseError {
    DatabaseError::Unreachable("the process was killed".into())
}

fn answer_lost() -> DatabaseError {
    DatabaseError::Unreachable("the answer was lost".into())
}

macro_rules! inner {
    ($self:ident, $db:ident => $call:expr) => {
        match &mut $self.disk.store {
            Store::Memory($db) => $call.await,
            Store::Sqlite(file) => {
                let $db = &mut file.database;
                $call.await
            }
        }
    };
}

macro_rules! step {
    ($self:ident, $db:ident => $call:expr) => {{
        let late = $self.before().await?;
        let result = inner!($self, $db => $call);
        $self.after(late, result)
    }};
}

fn count_down(counter: &mut Option<u32>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl<'w> Faulty<'w> {
    /// Wraps a database for one call of a machine.
    pub fn new(disk: &'w mut Disk, plan: &'w mut Plan, desk: Desk<'w>) -> Self {
        disk.set_now(desk.now);
        Self {
            disk,
            plan,
            desk,
            open: None,
            done: Vec::new(),
            late: None,
            rest: None,
        }
    }

    /// Whether a transaction was begun and not ended.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What goes wrong before this step. Returns whether the process dies after it.
    async fn before(&mut self) -> DbResult<bool> {
        if self.plan.dead {
            return Err(killed());
        }
        if count_down(&mut self.plan.race) {
            self.race().await?;
        }
        if count_down(&mut self.plan.busy) {
            self.plan.hindered = true;
            return Err(DatabaseError::Busy(
                "another transaction, on purpose".into(),
            ));
        }
        let mut late = false;
        if let Some((left, after)) = &mut self.plan.crash {
            if *left == 0 {
                late = *after;
                self.plan.crash = None;
                if !late {
                    self.plan.dead = true;
                    return Err(killed());
                }
            } else {
                *left -= 1;
            }
        }
        Ok(late)
    }

    /// A step that writes fails while the disk is full.
    fn need_room(&mut self) -> DbResult<()> {
        if !self.plan.full {
            return Ok(());
        }
        self.plan.hindered = true;
        Err(DatabaseError::Unreachable("the disk is full".into()))
    }

    /// The application begins a transaction and draws numbers just before a take; it will commit after it.
    fn begin_late(&mut self, purpose: Purpose) {
        self.late = None;
        let soon = self.plan.race.is_some_and(|left| left < SOON);
        if let Store::Memory(database) = &self.disk.store
            && purpose == Purpose::Take
            && soon
        {
            self.plan.race = None;
            self.late = Some(database.reserve_numbers(LATE_NUMBERS));
        }
    }

    fn commit_late(&mut self) {
        let Some(first) = self.late.take() else {
            return;
        };
        self.disk.late = Some(first);
        self.plan.raced = self.desk.transact(self.disk).or(self.plan.raced.take());
        self.disk.late = None;
        if let Store::Memory(database) = &self.disk.store
            && self.plan.sabotage == Some(Sabotage::LateCommitsSkipped)
        {
            database.forget_captured(first..first + LATE_NUMBERS);
        }
    }

    fn after<T>(&mut self, late: bool, result: DbResult<T>) -> DbResult<T> {
        if late {
            self.plan.dead = true;
            return Err(killed());
        }
        result
    }

    fn remember(&mut self, redo: impl FnOnce() -> Redo) {
        if self.open.is_some() && self.plan.race.is_some() {
            self.done.push(redo());
        }
    }

    fn strikes(&mut self, sabotage: Sabotage, every: u64) -> bool {
        if self.plan.sabotage != Some(sabotage) {
            return false;
        }
        self.plan.strikes += 1;
        self.plan.strikes.is_multiple_of(every)
    }

    /// The application commits. In a transaction that sees what commits meanwhile (PostgreSQL's READ COMMITTED), the
    /// memory fake is made to behave so: undo, let the application in, do again what was done. Rows already written
    /// are locked. A transaction with one snapshot, or an engine with one writer, lets nobody in.
    async fn race(&mut self) -> DbResult<()> {
        let sees_others = matches!(self.open, Some(Purpose::Apply | Purpose::Load));
        let memory = matches!(self.disk.store, Store::Memory(_));
        match self.open {
            None | Some(Purpose::Read) => {
                self.plan.raced = self.desk.transact(self.disk).or(self.plan.raced.take());
                Ok(())
            }
            Some(purpose) if sees_others && memory => {
                for redo in &self.done {
                    if let Redo::Write(effects, schema) = redo {
                        self.desk
                            .locked
                            .extend(effects.iter().filter_map(|(id, effect)| {
                                Some((*id, effect.key(schema.table(*id)?)))
                            }));
                    }
                }
                inner!(self, db => db.rollback())?;
                self.plan.raced = self.desk.transact(self.disk).or(self.plan.raced.take());
                self.desk.locked.clear();
                inner!(self, db => db.begin(purpose))?;
                for redo in std::mem::take(&mut self.done) {
                    match &redo {
                        Redo::Write(effects, schema) => {
                            inner!(self, db => db.write(schema, effects))?
                        }
                        Redo::SetMeta(name, value) => {
                            inner!(self, db => db.set_meta(name, value.as_deref()))?
                        }
                        Redo::Append(stream, entries) => {
                            inner!(self, db => db.append(stream, entries))?
                        }
                        Redo::Trim(stream, through) => {
                            inner!(self, db => db.trim(stream, *through))?
                        }
                        Redo::SetNotes(table, notes) => {
                            inner!(self, db => db.set_notes(table, notes))?
                        }
                        Redo::Recapture(table, keys) => {
                            inner!(self, db => db.recapture(table, keys.as_deref()))?
                        }
                    }
                }
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }
}

impl Database for Faulty<'_> {
    async fn begin(&mut self, purpose: Purpose) -> DbResult<()> {
        self.open = None;
        self.done.clear();
        self.rest = None;
        self.begin_late(purpose);
        if purpose == Purpose::Load && !self.plan.restless.is_empty() {
            let (ops, now) = (self.plan.restless.as_slice(), self.desk.now);
            let done = self.disk.write_now(self.desk.schema, ops, now);
            done.map_err(DatabaseError::Other)?;
        }
        let result = step!(self, db => db.begin(purpose));
        if result.is_ok() {
            self.open = Some(purpose);
        }
        result
    }

    async fn commit(&mut self) -> DbResult<()> {
        let late = self.before().await?;
        let purpose = self.open;
        if purpose != Some(Purpose::Read) {
            self.need_room()?;
        }
        if purpose != Some(Purpose::Read) && self.strikes(Sabotage::CommitLies, 40) {
            self.open = None;
            inner!(self, db => db.rollback())?;
            return Ok(());
        }
        self.disk.changed |= purpose != Some(Purpose::Read);
        let result = inner!(self, db => db.commit());
        if result.is_ok() {
            self.open = None;
            self.commit_late();
            if purpose != Some(Purpose::Read) && count_down(&mut self.plan.lost) {
                (self.plan.hindered, self.plan.cut_off) = (true, true);
                return self.after(late, Err(answer_lost()));
            }
        }
        self.after(late, result)
    }

    async fn rollback(&mut self) -> DbResult<()> {
        self.open = None;
        self.late = None;
        if self.plan.dead {
            return Err(killed());
        }
        inner!(self, db => db.rollback())
    }

    async fn take(&mut self, schema: &Schema, limit: usize) -> DbResult<Portion> {
        if let Some(changes) = self.rest.take() {
            return Ok(Portion {
                changes,
                ..Portion::default()
            });
        }
        let mut portion = step!(self, db => db.take(schema, limit))?;
        for taken in &mut portion.changes {
            let Some(table) = schema.table(taken.table) else {
                continue;
            };
            let row = (taken.table, taken.effect.key(table));
            // An engine that stamps by the machine's clock would make a run differ from its repetition.
            if matches!(self.disk.store, Store::Sqlite(_)) {
                taken.at = self.desk.times.get(&row).copied().unwrap_or(self.desk.now);
            }
        }
        if self.plan.sabotage == Some(Sabotage::ColumnsMixed) {
            for taken in &mut portion.changes {
                // Tables have three columns at first.
                if let Effect::Put(row) = &mut taken.effect
                    && row.0.len() > 3
                {
                    let last = row.0.len() - 1;
                    row.0.swap(last - 1, last);
                }
            }
        }
        if !portion.changes.is_empty() && self.strikes(Sabotage::TakeForgets, 10) {
            portion.changes.pop();
        }
        let splits = self.plan.sabotage == Some(Sabotage::UnitsSplit);
        if splits && !portion.open && portion.changes.len() > 1 {
            self.rest = Some(portion.changes.split_off(portion.changes.len() / 2));
            portion.more = true;
        }
        Ok(portion)
    }

    async fn captured(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<BTreeSet<Key>> {
        if self.plan.sabotage == Some(Sabotage::CapturedAlwaysEmpty) {
            return Ok(BTreeSet::new());
        }
        step!(self, db => db.captured(table, keys))
    }

    async fn recapture(&mut self, table: &Table, keys: Option<&[Key]>) -> DbResult<()> {
        if self.plan.sabotage == Some(Sabotage::RecaptureForgotten) {
            return Ok(());
        }
        step!(self, db => db.recapture(table, keys))?;
        self.remember(|| Redo::Recapture(table.clone(), keys.map(<[Key]>::to_vec)));
        Ok(())
    }

    async fn mark(&mut self) -> DbResult<()> {
        step!(self, db => db.mark())
    }

    async fn backlog(&mut self) -> DbResult<Backlog> {
        step!(self, db => db.backlog())
    }

    async fn write(&mut self, schema: &Schema, effects: &[(TableId, Effect)]) -> DbResult<()> {
        self.need_room()?;
        if effects.len() > 1 && self.plan.sabotage == Some(Sabotage::WriteNotAtomic) {
            let purpose = self.open.unwrap_or(Purpose::Apply);
            let half = effects.len() / 2;
            step!(self, db => db.write(schema, &effects[..half]))?;
            self.disk.changed = true;
            inner!(self, db => db.commit())?;
            inner!(self, db => db.begin(purpose))?;
            return step!(self, db => db.write(schema, &effects[half..]));
        }
        step!(self, db => db.write(schema, effects))?;
        self.remember(|| Redo::Write(effects.to_vec(), schema.clone()));
        Ok(())
    }

    async fn read(&mut self, table: &Table, keys: &[Key]) -> DbResult<BTreeMap<Key, Row>> {
        let rows = step!(self, db => db.read(table, keys))?;
        let blind = self.plan.sabotage == Some(Sabotage::ReadsNothing);
        Ok(if blind { BTreeMap::new() } else { rows })
    }

    async fn chunk(
        &mut self,
        table: &Table,
        after: Option<&Key>,
        limit: usize,
    ) -> DbResult<Vec<Row>> {
        let mut rows = step!(self, db => db.chunk(table, after, limit))?;
        if rows.len() > 1 && self.plan.sabotage == Some(Sabotage::ChunksShort) {
            rows.remove(0);
        }
        Ok(rows)
    }

    async fn meta(&mut self, name: &str) -> DbResult<Option<Vec<u8>>> {
        step!(self, db => db.meta(name))
    }

    async fn set_meta(&mut self, name: &str, value: Option<&[u8]>) -> DbResult<()> {
        let lost = match self.plan.sabotage {
            Some(Sabotage::HeadCursorNotSaved) => name.starts_with("seat:") && self.desk.is_head,
            Some(Sabotage::BranchBookNotSaved) => name == "branch",
            _ => false,
        };
        self.plan.strikes += u64::from(lost);
        if lost && self.plan.strikes > 2 && self.plan.strikes.is_multiple_of(2) {
            return Ok(());
        }
        step!(self, db => db.set_meta(name, value))?;
        self.remember(|| Redo::SetMeta(name.into(), value.map(<[u8]>::to_vec)));
        Ok(())
    }

    async fn append(&mut self, stream: &str, entries: &[Entry]) -> DbResult<()> {
        self.need_room()?;
        let lost = match self.plan.sabotage {
            Some(Sabotage::RecordsForgotten) => stream == books::CONFLICTS,
            Some(Sabotage::LogKeysForgotten) => stream == books::LOG_KEYS,
            Some(Sabotage::OutboxForgotten) => stream == books::OUTBOX,
            _ => false,
        };
        if lost {
            return Ok(());
        }
        step!(self, db => db.append(stream, entries))?;
        self.remember(|| Redo::Append(stream.into(), entries.to_vec()));
        Ok(())
    }

    async fn entries(&mut self, stream: &str, from: u64, max_bytes: usize) -> DbResult<Vec<Entry>> {
        step!(self, db => db.entries(stream, from, max_bytes))
    }

    async fn trim(&mut self, stream: &str, through: u64) -> DbResult<()> {
        step!(self, db => db.trim(stream, through))?;
        self.remember(|| Redo::Trim(stream.into(), through));
        Ok(())
    }

    async fn extent(&mut self, stream: &str) -> DbResult<Extent> {
        step!(self, db => db.extent(stream))
    }

    async fn notes(
        &mut self,
        table: &Table,
        keys: Option<&[Key]>,
    ) -> DbResult<BTreeMap<Key, Vec<u8>>> {
        step!(self, db => db.notes(table, keys))
    }

    async fn set_notes(&mut self, table: &Table, notes: &[(Key, Option<Vec<u8>>)]) -> DbResult<()> {
        if self.plan.sabotage == Some(Sabotage::NotesForgotten) {
            return Ok(());
        }
        step!(self, db => db.set_notes(table, notes))?;
        self.remember(|| Redo::SetNotes(table.clone(), notes.to_vec()));
        Ok(())
    }

    async fn inspect(&mut self) -> DbResult<Inspection> {
        step!(self, db => db.inspect())
    }

    async fn definitions(&mut self) -> DbResult<Inspection> {
        step!(self, db => db.definitions())
    }

    async fn prepare(&mut self) -> DbResult<()> {
        step!(self, db => db.prepare())
    }

    async fn install(&mut self, schema: &Schema) -> DbResult<()> {
        step!(self, db => db.install(schema))
    }

    async fn shape(&mut self, schema: &Schema) -> DbResult<Digest> {
        step!(self, db => db.shape(schema))
    }

    async fn hold_still(&mut self, table: &Table) -> DbResult<()> {
        let result = step!(self, db => db.hold_still(table));
        // The simulator's application writes to several tables at a time.
        self.plan.race = None;
        result
    }

    async fn evolve(
        &mut self,
        from: &Schema,
        to: &Schema,
        dropped: &[TableId],
    ) -> DbResult<Evolution> {
        if self.plan.sabotage == Some(Sabotage::StepsForgotten) && !self.desk.is_head {
            return Ok(Evolution::default());
        }
        let done = step!(self, db => db.evolve(from, to, dropped));
        // Changed tables are locked until the transaction ends.
        self.plan.race = None;
        done
    }

    async fn missing_capture(&mut self, schema: &Schema) -> DbResult<Vec<TableId>> {
        step!(self, db => db.missing_capture(schema))
    }

    async fn create_tables(&mut self, schema: &Schema) -> DbResult<Vec<String>> {
        step!(self, db => db.create_tables(schema))
    }

    async fn add_foreign_keys(&mut self, schema: &Schema) -> DbResult<()> {
        step!(self, db => db.add_foreign_keys(schema))
    }

    async fn uninstall(&mut self) -> DbResult<()> {
        step!(self, db => db.uninstall())
    }
}
