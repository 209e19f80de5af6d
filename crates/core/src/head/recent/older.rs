//! Which rows changed a while ago, as a filter that never denies one that did.
//!
//! A branch that was away long makes its changes on an old base, mostly to rows that nobody else touched: this spares the
//! search through the names in the database for nearly all of them. Its size is bounded, whatever the log's is.

use crate::identity::{Digest, LogPosition};

/// Rows in one half of the filter.
const ROWS: usize = 1 << 19;
/// Bits in one half: 32 for each row, so that about six of a million strangers pass.
const BITS: u32 = 1 << 24;
/// Bits that stand for a row.
const PROBES: u32 = 8;
const WORD: u32 = u64::BITS;

/// The rows of a stretch of the log. When one half is full, it becomes the older one and the one before is forgotten.
#[derive(Debug)]
pub(super) struct Older {
    /// All entries after this one and up to the newest that was added are known.
    from: LogPosition,
    halves: [Half; 2],
}

#[derive(Debug, Default)]
struct Half {
    words: Vec<u64>,
    rows: usize,
    /// Its last entry.
    through: LogPosition,
}

impl Older {
    /// Knows nothing up to this entry.
    pub fn new(from: LogPosition) -> Self {
        Self {
            from,
            halves: [Half::default(), Half::default()],
        }
    }

    /// All entries after this one are known.
    pub fn from(&self) -> LogPosition {
        self.from
    }

    /// Adds the rows of the entries up to this one. Entries come in order.
    pub fn add<'n>(
        &mut self,
        position: LogPosition,
        names: impl ExactSizeIterator<Item = &'n Digest>,
    ) {
        let [newer, older] = &mut self.halves;
        if newer.rows > 0 && newer.rows + names.len() > ROWS {
            if older.rows > 0 {
                self.from = older.through;
            }
            std::mem::swap(newer, older);
            newer.words.fill(0);
            newer.rows = 0;
        }
        newer.add(names);
        newer.through = position;
    }

    /// False where the row surely has not changed in any entry that is known.
    pub fn may_have(&self, name: &Digest) -> bool {
        self.halves.iter().any(|half| half.may_have(name))
    }
}

impl Half {
    fn add<'n>(&mut self, names: impl ExactSizeIterator<Item = &'n Digest>) {
        if self.words.is_empty() {
            self.words = vec![0; (BITS / WORD) as usize];
        }
        self.rows += names.len();
        for name in names {
            for bit in bits(name) {
                if let Some(word) = self.words.get_mut((bit / WORD) as usize) {
                    *word |= 1 << (bit % WORD);
                }
            }
        }
    }

    fn may_have(&self, name: &Digest) -> bool {
        self.rows > 0
            && bits(name).all(|bit| {
                let word = self.words.get((bit / WORD) as usize);
                word.is_some_and(|word| word & (1 << (bit % WORD)) != 0)
            })
    }
}

/// A digest's bytes are as good as drawn at random.
fn bits(name: &Digest) -> impl Iterator<Item = u32> {
    let [.., a, b, c, d, e, f, g, h] = name.0;
    let (first, step) = (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]) | 1,
    );
    (0..PROBES).map(move |probe| first.wrapping_add(step.wrapping_mul(probe)) % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn names(numbers: std::ops::Range<u64>) -> Vec<Digest> {
        numbers.map(name).collect()
    }

    #[test]
    fn no_row_that_changed_is_denied_and_hardly_a_stranger_passes() {
        let mut older = Older::new(LogPosition(7));
        for entry in 0..400 {
            older.add(
                LogPosition(8 + entry),
                names(entry * 1000..entry * 1000 + 1000).iter(),
            );
        }
        assert_eq!(older.from(), LogPosition(7));
        assert!((0..400_000).all(|number| older.may_have(&name(number))));
        let strangers = (1_000_000..1_100_000).filter(|number| older.may_have(&name(*number)));
        assert!(strangers.count() < 10);
    }

    #[test]
    fn what_it_forgets_it_does_not_claim_to_know() {
        let mut older = Older::new(LogPosition(0));
        let size = ROWS as u64 / 2;
        for entry in 1..=7 {
            older.add(
                LogPosition(entry),
                names(entry * size..(entry + 1) * size).iter(),
            );
            let known = older.from().0 + 1..=entry;
            assert!(known.count() >= 2 || entry < 2);
        }
        assert_eq!(older.from(), LogPosition(4));
        assert!((5 * size..8 * size).all(|number| older.may_have(&name(number))));
        assert!(!older.may_have(&name(size)));
    }
}
