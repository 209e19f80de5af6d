//! Lost entries read by the present tables, and the steps of the schema among them (decision 16).

use super::super::Head;
use super::super::recent::own_entry;
use super::ATTEMPTS;
use super::sums::Lineage;
use super::taken::{Known, relogged, taken_stream};
use crate::books::{self, LOG, Pages, SeatBook, TakenBack, seat_name};
use crate::change::Key;
use crate::conflict::{ConflictRecord, LOST, Reason, Resolution};
use crate::envelope;
use crate::evolution::{Lift, LostPart, Shapes};
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition, Micros, OfficeName};
use crate::message::{
    LogBody, LogEntry, Logged, LoggedChanges, SchemaStep, Settled, Settlement, Verdict,
};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Purpose};
use crate::schema::{Schema, SchemaVersion, Table, TableId};
use crate::unfit::is_unfit;
use std::collections::BTreeMap;

/// Of how many returns of a branch is remembered how far it had come.
const RETURNS_KEPT: usize = 16;

/// Lost entries that are logged anew, behind what the head has written since it was restored.
#[derive(Clone, Debug)]
pub(super) struct Anew {
    /// The last place that both continuations share, with the hash of the entry there.
    pub agreed: (LogPosition, Digest),
    /// Which version the lost entries stand in.
    pub part: LostPart,
    /// What it said of counters so far.
    pub lineage: Lineage,
    /// Under which numbers its decisions are listed here, by the numbers that they had.
    pub numbers: BTreeMap<u64, u64>,
    /// What this log says of batches and lost entries, as far as it was read.
    pub known: Known,
}

impl Anew {
    pub fn new(agreed: (LogPosition, Digest), schema: SchemaVersion) -> Self {
        Self {
            agreed,
            part: LostPart::new(schema),
            lineage: Lineage::default(),
            numbers: BTreeMap::new(),
            known: Known::default(),
        }
    }
}

/// A lost entry with its rows as the present tables have them.
pub(super) struct LostEntry {
    pub position: LogPosition,
    pub chain: Digest,
    /// What has no place in the present tables names a table that is not there.
    pub body: LoggedChanges,
    /// For each change the columns that it says nothing of.
    pub absent: Vec<Vec<u16>>,
    pub unplaced: Vec<Unplaced>,
}

/// A lost change of which something has no place in the present tables.
pub(super) struct Unplaced {
    /// As the entry has it.
    logged: Logged,
    /// The table as the entry has it.
    table: Table,
    shape: (u32, TableId),
    why: String,
    /// The row's key in the present table, where there is one.
    pub key: Option<Key>,
    /// What has a place is among the entry's changes.
    pub kept: bool,
}

impl Unplaced {
    pub fn table(&self) -> TableId {
        self.table.id
    }

    /// The record that keeps the whole row.
    pub fn record(&self, id: u64, origin: &OfficeName, now: Micros, kept: bool) -> ConflictRecord {
        ConflictRecord {
            id,
            table: self.table.name.clone(),
            columns: self.table.columns.iter().map(|c| c.name.clone()).collect(),
            key: self.logged.effect.key(&self.table),
            reason: Reason::SchemaChanged,
            at: self.logged.at,
            origin: origin.clone(),
            base: crate::change::Base::Unknown,
            ours: None,
            theirs: self.logged.effect.row().cloned(),
            result: if kept {
                Resolution::Theirs
            } else {
                Resolution::Ours
            },
            decided: now,
            before: None,
            merged: None,
            detail: Some(self.why.clone()),
            shape: self.shape,
        }
    }
}

/// Reads the parts of one entry.
struct Reader<'a> {
    part: &'a LostPart,
    present: &'a Schema,
    shapes: Shapes<'a>,
    entry: &'a LogEntry,
}

impl Reader<'_> {
    /// The row's table and key in the present tables; a table that is not there where it has none.
    fn place(&self, table: TableId, key: &Key) -> (TableId, Key) {
        let from = self.shapes.table(table);
        let to = from.and_then(|from| self.present.table(from.id));
        let lifted = from.zip(to).and_then(|(from, to)| {
            let key = Lift { from, to }.key(key).ok()?;
            Some((to.id, key))
        });
        lifted.unwrap_or_else(|| (TableId::MAX, key.clone()))
    }

    fn record(&self, record: &ConflictRecord) -> ConflictRecord {
        let (version, table) = record.shape;
        if self.part.is_shared(version) {
            return record.clone();
        }
        let from = self.shapes.table(table);
        let from = from.filter(|_| version == self.entry.schema);
        let to = from.and_then(|from| self.present.table(from.id));
        let lifted = from.zip(to).and_then(|(from, to)| {
            let lift = Lift { from, to };
            lift.record(record.clone(), self.present.version).ok()
        });
        lifted.unwrap_or_else(|| ConflictRecord {
            shape: (LOST, table),
            ..record.clone()
        })
    }

    fn change(&self, logged: &Logged, read: &mut LostEntry) {
        let Some(from) = self.shapes.table(logged.table) else {
            return;
        };
        let to = self.present.table(from.id);
        let lift = to.map(|to| Lift { from, to });
        let outcome = match lift {
            Some(lift) => lift.effect(&logged.effect),
            None => Err(format!("table `{}` is not shared any more", from.name)),
        };
        let kept = outcome.is_ok();
        let why = match outcome {
            Ok((effect, absent, lost)) => {
                read.body.changes.push(Logged {
                    table: from.id,
                    effect,
                    ..logged.clone()
                });
                read.absent.push(absent);
                if lost.is_empty() {
                    return;
                }
                format!("the head does not have: {}", lost.join(", "))
            }
            Err(why) => why,
        };
        let version = self.entry.schema;
        read.unplaced.push(Unplaced {
            logged: logged.clone(),
            table: from.clone(),
            shape: if self.part.is_shared(version) {
                (version, from.id)
            } else {
                (LOST, from.id)
            },
            why,
            key: lift.and_then(|lift| lift.key(&logged.effect.key(from)).ok()),
            kept,
        });
    }

    fn verdict(&self, verdict: &Verdict) -> Verdict {
        let (table, key) = self.place(verdict.table, &verdict.key);
        Verdict {
            table,
            key,
            outcome: verdict.outcome.clone(),
            record: verdict.record.as_ref().map(|record| self.record(record)),
        }
    }

    fn settlement(&self, settlement: &Settlement) -> Settlement {
        let (table, key) = self.place(settlement.table, &settlement.key);
        let settled = settlement.settled.clone().map(|settled| Settled {
            row: self.row(settlement.table, settled.row.as_ref()),
            ..settled
        });
        Settlement {
            branch: settlement.branch.clone(),
            table,
            key,
            row: None,
            record: settlement.record.as_ref().map(|record| self.record(record)),
            settled,
            held: settlement.held,
        }
    }

    fn row(&self, table: TableId, row: Option<&crate::change::Row>) -> Option<crate::change::Row> {
        let from = self.shapes.table(table)?;
        let to = self.present.table(from.id)?;
        Some(Lift { from, to }.row(row?).ok()?.row)
    }
}

impl Head {
    /// A lost entry as the present tables have it; nothing where it changes no rows.
    pub(super) fn read_by_present(
        &self,
        part: &LostPart,
        entry: &LogEntry,
        bytes: &[u8],
    ) -> OfficeResult<Option<LostEntry>> {
        let LogBody::Changes(body) = &entry.body else {
            return Ok(None);
        };
        let shapes = part.shapes_of(entry, &self.versions, &self.schema);
        let Some(shapes) = shapes else {
            self.versions.of(entry)?;
            return Ok(None);
        };
        let reader = Reader {
            part,
            present: &self.schema,
            shapes,
            entry,
        };
        let verdicts = body.verdicts.iter();
        let settlements = body.settlements.iter();
        let mut read = LostEntry {
            position: entry.position,
            chain: envelope::chain(bytes),
            body: LoggedChanges {
                answers: body.answers.clone(),
                changes: Vec::with_capacity(body.changes.len()),
                verdicts: verdicts.map(|verdict| reader.verdict(verdict)).collect(),
                open: body.open,
                settlements: settlements.map(|one| reader.settlement(one)).collect(),
                listed: body.listed.as_ref().map(|listed| {
                    let read = listed.iter().map(|record| reader.record(record));
                    read.collect()
                }),
            },
            absent: Vec::with_capacity(body.changes.len()),
            unplaced: Vec::new(),
        };
        for logged in &body.changes {
            reader.change(logged, &mut read);
        }
        Ok(Some(read))
    }

    /// Logs a piece of the lost part anew, steps of the schema among it. Returns whether all of it was done.
    pub(super) async fn log_all_anew<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        lost: &[(LogEntry, Vec<u8>)],
        anew: &mut Anew,
    ) -> OfficeResult<bool> {
        let is_step = |(entry, _): &(LogEntry, Vec<u8>)| matches!(entry.body, LogBody::Schema(_));
        for run in lost.chunk_by(|one, next| !is_step(one) && !is_step(next)) {
            if let [(entry, _)] = run
                && let LogBody::Schema(step) = &entry.body
            {
                self.come_to_step(db, now, anew, step).await?;
            } else if !self.log_anew(db, now, run, anew).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A lost step of the schema. Where this head has not changed its tables since, it makes the step again; otherwise
    /// its own tables stand, and what follows is read by them.
    async fn come_to_step<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        anew: &mut Anew,
        step: &SchemaStep,
    ) -> OfficeResult<()> {
        if anew.part.comes_to(&step.schema, &self.versions) {
            return Ok(());
        }
        // What the application wrote so far is logged as it wrote it.
        for _ in 0..ATTEMPTS {
            if !self.take(db, now).await? {
                break;
            }
        }
        if anew.part.comes_to(&step.schema, &self.versions) {
            return Ok(());
        }
        let unchanged = anew.part.shared() == Some(self.schema.version);
        if unchanged && !self.takes_away(db, anew, step).await? {
            match self.make_step_again(db, now, step).await {
                Err(error) if is_unfit(&error) => {}
                made => made?,
            }
        }
        if !anew.part.comes_to(&step.schema, &self.versions) {
            anew.part.parts(&step.schema);
            let why = format!(
                "version {} of the tables was lost with the log, and the head's tables are others by now: they stay as they are; what branches have in that version is read by the names of its columns, and what has no place is listed",
                step.schema.version
            );
            self.outputs.push_back(Output::Notice(Notice::Trouble(why)));
        }
        Ok(())
    }

    /// Whether a lost step takes a table or a column away in which something was written since the head was restored.
    async fn takes_away<D: Database>(
        &self,
        db: &mut D,
        anew: &Anew,
        step: &SchemaStep,
    ) -> OfficeResult<bool> {
        let loses = |table: &&Table| match step.schema.table(table.id) {
            None => step.dropped.contains(&table.id),
            Some(to) => {
                let mut columns = table.columns.iter();
                columns.any(|column| !to.columns.iter().any(|one| one.id == column.id))
            }
        };
        let losing: Vec<TableId> = self
            .schema
            .tables
            .iter()
            .filter(loses)
            .map(|t| t.id)
            .collect();
        if losing.is_empty() {
            return Ok(false);
        }
        db.begin(Purpose::Read).await?;
        let outcome = async {
            let relogged = relogged(db, &taken_stream(&anew.agreed.1)).await?;
            let mut pages = Pages::from(LOG, anew.agreed.0.next().0);
            while let Some(entries) = pages.next(db).await? {
                for entry in &entries {
                    let entry = own_entry(&entry.bytes)?;
                    if let LogBody::Changes(body) = entry.body
                        && !relogged.contains(&entry.position)
                        && body.changes.iter().any(|one| losing.contains(&one.table))
                    {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// From here on the branch is to follow this log, from the last place that both share; where there is none, from its
    /// end.
    pub(super) async fn let_go_back<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
        end: (LogPosition, Digest),
        agreed: Option<(LogPosition, Digest)>,
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get(branch) else {
            return Ok(());
        };
        let mut before = seat.book.taken_before.clone().unwrap_or_default();
        before.extend(seat.book.taken_back.clone());
        before.retain(|one| one.apart != Some(true) && one.agreed.0.next() >= self.log_first);
        before.drain(..before.len().saturating_sub(RETURNS_KEPT));
        let taken = TakenBack {
            end,
            agreed: agreed.unwrap_or_default(),
            came: seat.produced.map(|frozen| (seat.book.incarnation, frozen)),
            apart: agreed.is_none().then_some(true),
        };
        let book = SeatBook {
            taken_back: Some(taken),
            taken_before: (!before.is_empty()).then_some(before),
            ..seat.book.clone()
        };
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, &seat_name(branch), &book).await;
        conclude(db, outcome).await?;
        if let Some(seat) = self.seats.get_mut(branch) {
            seat.book = book;
        }
        Ok(())
    }
}
