//! Freezing: captured writes become numbered batches in the transaction that takes them (SETTLED 1).

use std::collections::BTreeMap;

use super::hot::Steps;
use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Note, OUTBOX};
use crate::by_name::ByName;
use crate::change::{Base, Change, Effect, Key};
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, LogPosition, Micros};
use crate::message::{Batch, Message};
use crate::office::{
    BATCH_CHANGES, MARK_MS, PORTIONS_PER_TAKE, conclude, cut_by_weight, part_with_giants,
};
use crate::output::Notice;
use crate::port::{Database, Entry, First, Portion, Purpose, Taken};
use crate::schema::{Table, TableId};

/// Batches that may be unanswered at a time. While more wait, further writes to one row still travel once.
const UNANSWERED_BATCHES: u64 = 256;
/// Rows that may be unanswered at a time, unless one unit has more: what is remembered of them is in memory.
const UNANSWERED_ROWS: usize = 200_000;

/// While so many batches are unanswered, writes are gathered for a while: what the head has not heard yet can wait for
/// more of its kind, and a line that is down is survived with fewer and larger batches.
const GATHER_FROM: u64 = 16;
/// For how long, in milliseconds.
const GATHER_MS: i64 = 200;

/// Bytes of batches just frozen that wait in memory to be sent; others are read from the outbox.
const FRESH_BYTES: usize = 1024 * 1024;

/// From which difference on times are told by the head's clock, in microseconds.
const CLOCK_OFF: i64 = 2_000_000;

/// Batches just frozen, up to a size.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    batches: BTreeMap<BatchNumber, Vec<u8>>,
    bytes: usize,
}

impl Fresh {
    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, number: BatchNumber, bytes: Vec<u8>) {
        if self.bytes + bytes.len() <= FRESH_BYTES {
            self.bytes += bytes.len();
            self.batches.insert(number, bytes);
        }
    }

    /// Takes out up to `count` batches that follow each other, from this one on.
    pub fn take_from(
        &mut self,
        mut number: BatchNumber,
        count: usize,
    ) -> Vec<(BatchNumber, Vec<u8>)> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(bytes) = self.batches.remove(&number)
        {
            self.bytes -= bytes.len();
            taken.push((number, bytes));
            number = number.next();
        }
        taken
    }
}

struct Frozen {
    book: BranchBook,
    chains: BTreeMap<BatchNumber, Digest>,
    fresh: Fresh,
    /// Claims that this transaction makes: a later portion of it may hold a row of an earlier one.
    claims: ByName<BatchNumber>,
    steps: Steps,
    /// The last batch goes on in the next one.
    open: bool,
    more: bool,
    changes: u64,
    /// Rows were set aside with notes.
    noted: bool,
}

impl Branch {
    pub(super) fn may_freeze(&self) -> bool {
        self.book.frozen.0 - self.book.answered.0 < UNANSWERED_BATCHES
            && self.claims.len() < UNANSWERED_ROWS
    }

    /// Whether captured writes wait for others to come, so that they are frozen together.
    pub(super) fn gathers(&self, now: Micros) -> bool {
        let unanswered = self.book.frozen.0 - self.book.answered.0;
        unanswered >= GATHER_FROM && !now.has_passed(GATHER_MS, self.emptied)
    }

    /// While what the application writes cannot be frozen: what is captured by now can be parted later from what comes.
    pub(super) async fn mark<D: Database>(&mut self, db: &mut D, now: Micros) -> OfficeResult<()> {
        if now.has_passed(MARK_MS, self.marked) {
            self.marked = now;
            db.mark().await?;
        }
        Ok(())
    }

    /// Freezes what the application wrote. Returns whether more waits.
    pub(super) async fn take<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<bool> {
        db.begin(Purpose::Take).await?;
        let outcome = match self.is_as_known(db).await {
            Ok(true) => self.freeze(db).await.map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(frozen) = conclude(db, outcome).await? else {
            // The application changed its tables. Once it is known what that means, the taking goes on.
            self.shape = None;
            self.stepped = true;
            return Ok(true);
        };
        self.captured = frozen.more;
        self.emptied = if frozen.more { Micros(0) } else { now };
        self.book = frozen.book;
        self.claims.extend(frozen.claims);
        self.chains.extend(frozen.chains);
        self.fresh = frozen.fresh;
        self.steps.extend(frozen.steps);
        self.any_notes |= frozen.noted;
        if frozen.changes > 0 {
            self.notice(Notice::Taken {
                changes: frozen.changes,
            });
        }
        Ok(frozen.more && self.may_freeze())
    }

    async fn freeze<D: Database>(&self, db: &mut D) -> OfficeResult<Frozen> {
        let mut frozen = Frozen {
            book: self.book.clone(),
            chains: BTreeMap::new(),
            fresh: Fresh::default(),
            claims: ByName::default(),
            steps: Steps::default(),
            open: false,
            more: false,
            changes: 0,
            noted: false,
        };
        for count in 1.. {
            let mut portion = db.take(&self.schema, BATCH_CHANGES).await?;
            part_with_giants(&mut portion, &self.schema);
            self.set_aside(db, &mut frozen, &portion).await?;
            let notes = self.notes_on(db, &portion.changes, frozen.noted).await?;
            self.mended(db, &notes).await?;
            let mut runs = cut_by_weight(portion.changes).into_iter().peekable();
            while let Some(run) = runs.next() {
                let number = frozen.book.frozen.next();
                let changes: Vec<(Digest, Change)> = run
                    .into_iter()
                    .filter_map(|taken| self.change(taken, &notes, &frozen.claims))
                    .collect();
                let open = portion.open || runs.peek().is_some();
                if changes.is_empty() && !open && !frozen.open {
                    continue;
                }
                for (name, change) in &changes {
                    if let Some(table) = self.schema.table(change.table) {
                        frozen.claims.insert(*name, number);
                        frozen.steps.note(table, change, number);
                    }
                }
                let changes: Vec<Change> = changes.into_iter().map(|(_, change)| change).collect();
                frozen.changes += changes.len() as u64;
                self.seal_batch(db, &mut frozen, changes, open).await?;
            }
            if !portion.open && (count >= PORTIONS_PER_TAKE || !portion.more) {
                frozen.more = portion.more;
                if let Some(joining) = &mut frozen.book.joining {
                    joining.frozen |= !portion.more;
                }
                if !portion.more {
                    // What was written before the comparison ended is on its way.
                    frozen.book.uncompared = frozen.book.uncompared.filter(|waits| *waits);
                }
                books::store(db, BRANCH, &frozen.book).await?;
                return Ok(frozen);
            }
        }
        Err(OfficeError::Books("a take did not end".into()))
    }

    async fn seal_batch<D: Database>(
        &self,
        db: &mut D,
        frozen: &mut Frozen,
        changes: Vec<Change>,
        open: bool,
    ) -> OfficeResult<()> {
        let number = frozen.book.frozen.next();
        let batch = Batch {
            incarnation: frozen.book.incarnation,
            number,
            previous: frozen.book.chain,
            schema: self.schema.version,
            open,
            changes,
            log: Some((frozen.book.cursor, frozen.book.log_chain)),
            lost: None,
            uncompared: frozen.book.uncompared.is_some().then_some(true),
        };
        let message = Message::Batch(batch);
        let bytes = envelope::seal(&self.identity.name, &self.identity.key, &message)?;
        frozen.open = open;
        frozen.book.chain = envelope::chain(&bytes);
        frozen.book.frozen = number;
        frozen.chains.insert(number, frozen.book.chain);
        let number = number.0;
        let entry = [Entry { number, bytes }];
        db.append(OUTBOX, &entry).await?;
        let [entry] = entry;
        frozen.fresh.add(BatchNumber(number), entry.bytes);
        Ok(())
    }

    /// Rows that cannot be sent are noted, so that a person sees them and the others go on (P6).
    async fn set_aside<D: Database>(
        &self,
        db: &mut D,
        frozen: &mut Frozen,
        portion: &Portion,
    ) -> OfficeResult<()> {
        for unreadable in &portion.unreadable {
            let Some(table) = self.schema.table(unreadable.table) else {
                continue;
            };
            let keys = std::slice::from_ref(&unreadable.key);
            let former = match db.notes(table, Some(keys)).await?.remove(&unreadable.key) {
                Some(note) => Some(books::decode::<Note>(&note)?),
                None => None,
            };
            if matches!(former, Some(Note::Held(..))) {
                // A held row is listed already.
                continue;
            }
            let first = former.map_or(self.book.cursor.next(), |note| note.first_unseen());
            let note = books::encode(&Note::Unreadable(first, unreadable.problem.clone()))?;
            db.set_notes(table, &[(unreadable.key.clone(), Some(note))])
                .await?;
            frozen.noted = true;
        }
        Ok(())
    }

    /// Rows that can be sent by now: log entries from the noted one on are still to come to them.
    async fn mended<D: Database>(
        &self,
        db: &mut D,
        notes: &BTreeMap<(TableId, Key), Note>,
    ) -> OfficeResult<()> {
        for ((id, key), note) in notes {
            if let (Note::Unreadable(first, _), Some(table)) = (note, self.schema.table(*id)) {
                let note = books::encode(&Note::Deferred(*first))?;
                db.set_notes(table, &[(key.clone(), Some(note))]).await?;
            }
        }
        Ok(())
    }

    async fn notes_on<D: Database>(
        &self,
        db: &mut D,
        taken: &[Taken],
        noted: bool,
    ) -> OfficeResult<BTreeMap<(TableId, Key), Note>> {
        let mut found = BTreeMap::new();
        if !self.any_notes && !noted {
            return Ok(found);
        }
        for table in &self.schema.tables {
            let here = taken.iter().filter(|taken| taken.table == table.id);
            let keys: Vec<Key> = here.map(|taken| taken.effect.key(table)).collect();
            if keys.is_empty() {
                continue;
            }
            for (key, note) in db.notes(table, Some(&keys)).await? {
                found.insert((table.id, key), books::decode(&note)?);
            }
        }
        Ok(found)
    }

    /// What the head is told of a captured row, and the row's name.
    fn change(
        &self,
        taken: Taken,
        notes: &BTreeMap<(TableId, Key), Note>,
        fresh_claims: &ByName<BatchNumber>,
    ) -> Option<(Digest, Change)> {
        let table = self.schema.table(taken.table)?;
        let key = taken.effect.key(table);
        let name = key.digest(table);
        let note = notes.get(&(table.id, key));
        let gone_again =
            taken.first == First::Inserted && matches!(taken.effect, Effect::Delete(_));
        if gone_again && note.is_none() {
            return None;
        }
        let unseen_from = note.map_or(LogPosition(u64::MAX), Note::first_unseen);
        // A row that was copied anew is as the head has it; others are as they were before.
        let joining = self.book.joining.as_ref();
        let joining = joining.filter(|_| !self.is_loaded(table));
        let again_from = joining.and_then(|joining| joining.again_from);
        let place = unseen_from
            .previous()
            .min(self.book.cursor)
            .min(again_from.unwrap_or(self.book.cursor));
        let own = fresh_claims
            .get(&name)
            .or_else(|| self.claims.get(&name))
            .copied();
        let own = own.or(if let Some(Note::Held(batch, _)) = note {
            Some(*batch)
        } else {
            None
        });
        // Written after capture was installed and before the rows that were here already were captured.
        let untracked = self
            .book
            .joining
            .as_ref()
            .is_some_and(|joining| !joining.frozen);
        // Also where the first copy's row did not fit here, so that nobody saw it.
        let unseen = matches!(
            note,
            Some(Note::Unseen(_) | Note::Unfit(LogPosition::NONE, _))
        );
        // What the log says of a noted row was left aside for this: the answer brings it.
        let nobodys = own.is_none() && note.is_none();
        if untracked && nobodys && matches!(taken.effect, Effect::Delete(_)) {
            return None;
        }
        let was_unreadable = matches!(note, Some(Note::Unreadable(..)));
        let base = match own {
            Some(batch) if unseen => Base::Own(batch, LogPosition::NONE),
            Some(batch) => Base::Own(batch, place),
            None if untracked || (unseen && taken.first == First::Inserted) => Base::Unknown,
            // What could not be sent at first was captured once more; since when it was not sent is known.
            None if taken.first == First::Unknown && !was_unreadable => Base::Unknown,
            None if taken.first == First::Inserted && !self.is_loaded(table) => Base::Unknown,
            None => Base::Log(place),
        };
        let inserted = taken.first != First::Existing
            && own.is_none()
            && !(was_unreadable && taken.first == First::Unknown);
        let absent = self.absent(table, taken.effect.row());
        let change = Change {
            table: table.id,
            effect: taken.effect,
            base,
            inserted,
            at: self.by_the_heads_clock(taken.at),
            before: taken.before,
            absent,
        };
        Some((name, change))
    }

    /// A time of this office's clock by the head's, where the two are known to differ by more than messages take: a
    /// clock that is a year off neither wins nor loses for that (trap 22).
    fn by_the_heads_clock(&self, at: Micros) -> Micros {
        let offset = self.book.clock_offset.unwrap_or_default();
        if offset.abs() < CLOCK_OFF {
            return at;
        }
        Micros(at.0.saturating_add(offset))
    }

    /// Whether the first copy of this table is complete.
    pub(super) fn is_loaded(&self, table: &Table) -> bool {
        let joining = self.book.joining.as_ref();
        joining.is_none_or(|joining| joining.loaded.contains(&table.id))
    }
}
