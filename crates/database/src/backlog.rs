//! Where a backlog of captured writes can be cut into units of visibility (SETTLED 2).
//!
//! Every transaction and every row spans an interval, from its first captured write to its last. A cut between two
//! writes is clean when no interval spans it. The writes are gone through in their order with the end of each one's
//! intervals (its *reach*); the cut before a write is clean when all reaches so far lie before it.
//!
//! Of a large backlog only the oldest writes are planned; the others are merely looked through, whether they belong to a
//! transaction or row of the plan. Its end is not a clean cut, so its last writes begin the next one.
//!
//! A plan may outlive the transaction that made it, as looking through a backlog costs as much as taking from it: the
//! next one adds what has become visible since.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Portions in a plan.
pub(crate) const PORTIONS: usize = 128;
/// A unit of more than so many portions is not held whole.
const LARGE: usize = 4;

/// A captured write in a plan: when or where it was captured, and its place among those of one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned<T, P> {
    pub(crate) at: T,
    /// The last write of its transaction or row.
    reach: T,
    tx: u64,
    /// Its table and a hash of its key. Rows that share one are taken for one row, so that a unit may be larger than it must
    /// be, never smaller. It has 64 bits, since of 32 two in a hundred thousand rows are the same.
    row: (i32, i64),
    pub(crate) place: P,
}

impl<T: Copy + Ord, P: Copy + Ord> Planned<T, P> {
    pub(crate) fn new(at: T, place: P, tx: u64, row: (i32, i64)) -> Self {
        Self {
            at,
            reach: at,
            tx,
            row,
            place,
        }
    }

    /// By which they are taken.
    fn turn(&self) -> (T, P) {
        (self.at, self.place)
    }
}

/// Where the next unit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End<T> {
    /// After so many planned writes: whole units, about as many as were asked for.
    After(usize),
    /// After so many planned writes, too many to be held; and the last.
    Large(usize, T),
    /// Beyond the plan.
    Beyond,
}

/// The oldest captured writes.
#[derive(Debug)]
pub(crate) struct Plan<T, P> {
    writes: VecDeque<Planned<T, P>>,
    /// Its last write when it was made, where others are captured behind it: those are planned later.
    until: Option<T>,
    /// How many were asked for.
    size: usize,
}

impl<T: Copy + Ord, P: Copy + Ord> Plan<T, P> {
    /// Plans the oldest writes, in their order: of more than `size` only so many. What is captured behind
    /// [`Self::until`] is to be noted in [`Last`], which then is given to [`Self::settle`].
    pub(crate) fn of(writes: Vec<Planned<T, P>>, size: usize) -> (Self, Last<T>) {
        let whole = writes.len() <= size;
        let mut plan = Self {
            writes: writes.into(),
            until: None,
            size,
        };
        plan.writes.truncate(size);
        if !whole {
            plan.until = plan.writes.back().map(|write| write.at);
        }
        let mut last = Last::default();
        plan.writes.iter().for_each(|write| last.note(write));
        (plan, last)
    }

    /// Behind which others are captured that are not planned.
    pub(crate) fn until(&self) -> Option<T> {
        self.until
    }

    /// Lets every write reach as far as its transaction and its row.
    pub(crate) fn settle(&mut self, last: &Last<T>) {
        self.writes.iter_mut().for_each(|write| last.extend(write));
    }

    /// How many writes a plan has at first.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Adds what has become visible since the plan was made or renewed. False where it must be made anew.
    pub(crate) fn add(&mut self, mut fresh: Vec<Planned<T, P>>) -> bool {
        // Of a write between planned ones it is not known whether its row is written again beyond the plan.
        let between = self
            .until
            .is_some_and(|until| fresh.iter().any(|write| write.at <= until));
        if fresh.len() >= self.size || between {
            return false;
        }
        if fresh.is_empty() {
            return true;
        }
        let mut last = Last::default();
        fresh.iter().for_each(|write| last.note(write));
        for write in &self.writes {
            last.note_again(write);
        }
        self.settle(&last);
        if self.until.is_some() {
            return true;
        }
        fresh.iter_mut().for_each(|write| last.extend(write));
        fresh.sort_unstable_by_key(Planned::turn);
        let after = self.writes.back().map(Planned::turn);
        self.writes.extend(&fresh);
        if after > fresh.first().map(Planned::turn) {
            self.writes
                .make_contiguous()
                .sort_unstable_by_key(Planned::turn);
        }
        if self.writes.len() > self.size.saturating_mul(2) {
            self.writes.truncate(self.size);
            self.until = self.writes.back().map(|write| write.at);
        }
        true
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether anything is captured that was not taken.
    pub(crate) fn more(&self) -> bool {
        !self.writes.is_empty() || self.until.is_some()
    }

    /// Whether nothing was taken of it yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.writes.len() >= self.size
    }

    /// Where, of the writes after the first `after`, which are whole units, the smallest number of whole units ends that
    /// has at least `limit` writes; fewer at the end, or before a large unit.
    pub(crate) fn end(&self, after: usize, limit: usize) -> End<T> {
        let large = limit.saturating_mul(LARGE);
        let (mut reach, mut clean) = (None, 0);
        for (place, write) in self.writes.iter().skip(after).enumerate() {
            if let Some(reached) = reach.filter(|reached| *reached < write.at) {
                clean = place;
                if clean > large {
                    return End::Large(clean, reached);
                }
                if clean >= limit {
                    return End::After(clean);
                }
            }
            if clean > 0 && place > large {
                return End::After(clean);
            }
            reach = reach.max(Some(write.reach));
        }
        let whole = self.until.is_none();
        match (self.writes.len().saturating_sub(after), reach) {
            (all, _) if whole && all <= large => End::After(all),
            _ if clean > 0 => End::After(clean),
            (all, Some(reach)) if whole => End::Large(all, reach),
            _ => End::Beyond,
        }
    }

    /// So many writes after the first `after`.
    pub(crate) fn some(&self, after: usize, count: usize) -> impl Iterator<Item = &Planned<T, P>> {
        self.writes.iter().skip(after).take(count)
    }

    /// Forgets the next so many writes: they are taken.
    pub(crate) fn take(&mut self, count: usize) {
        self.writes.drain(..count.min(self.writes.len()));
    }
}

/// The last write of each transaction and of each row.
#[derive(Debug)]
pub(crate) struct Last<T> {
    of_tx: HashMap<u64, T, BuildHasherDefault<Mixed>>,
    of_row: HashMap<(i32, i64), T, BuildHasherDefault<Mixed>>,
}

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self {
            of_tx: HashMap::default(),
            of_row: HashMap::default(),
        }
    }
}

/// Mixes a few numbers, of which one is a hash already or counts up: a backlog is hashed several times over.
#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 by the golden ratio; the upper bits depend on all, so they are turned to the lower end.
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn write_i32(&mut self, number: i32) {
        self.write_i64(number.into());
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

impl<T: Copy + Ord> Last<T> {
    fn note<P>(&mut self, write: &Planned<T, P>) {
        let of_tx = self.of_tx.entry(write.tx).or_insert(write.at);
        *of_tx = write.at.max(*of_tx);
        let of_row = self.of_row.entry(write.row).or_insert(write.at);
        *of_row = write.at.max(*of_row);
    }

    /// Notes another write where its transaction or row is known.
    pub(crate) fn note_again<P>(&mut self, write: &Planned<T, P>) {
        if let Some(of_tx) = self.of_tx.get_mut(&write.tx) {
            *of_tx = write.at.max(*of_tx);
        }
        if let Some(of_row) = self.of_row.get_mut(&write.row) {
            *of_row = write.at.max(*of_row);
        }
    }

    fn extend<P>(&self, write: &mut Planned<T, P>) {
        let known = [self.of_tx.get(&write.tx), self.of_row.get(&write.row)];
        let last = known.into_iter().flatten().max();
        write.reach = write.reach.max(last.copied().unwrap_or(write.reach));
    }
}
