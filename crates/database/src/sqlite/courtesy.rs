//! Leaves the write lock to the application now and then.
//!
//! SQLite's lock has no queue. Who waits sleeps and looks again, less and less often, and an office that takes the lock
//! again a moment after it let go is hardly ever caught without it: the application runs into its busy time-out. Nothing
//! tells that somebody waits. So an office that has much to write lets go, from time to time, for as long as the
//! sleep of a waiter may last by then.

use std::time::{Duration, Instant};

/// How long the lock may be held, all in all, between two gaps. A waiter looks every 25 ms at least until it has waited
/// for 128 ms (SQLite's own busy handler): this, one more transaction of 50 ms, and it looks into the gap.
const SPELL: Duration = Duration::from_millis(75);
/// Longer than a waiter's sleep after so much waiting.
const GAPS: [(Duration, Duration); 3] = [
    (Duration::from_millis(128), Duration::from_millis(27)),
    (Duration::from_millis(228), Duration::from_millis(53)),
    (Duration::MAX, LONGEST),
];
/// Longer than a waiter ever sleeps.
const LONGEST: Duration = Duration::from_millis(104);
/// Every so many gaps one is the longest, for waiters that were late, or lost to another one.
const ROUND: u32 = 8;

/// How long the write lock was held lately.
#[derive(Debug)]
pub(super) struct Courtesy {
    held: Duration,
    since: Option<Instant>,
    released: Instant,
    gaps: u32,
}

impl Courtesy {
    pub(super) fn new() -> Self {
        Self {
            held: Duration::ZERO,
            since: None,
            released: Instant::now(),
            gaps: 0,
        }
    }

    /// Before the lock is taken: sleeps through what is missing of a gap that is due.
    pub(super) fn leave_gap(&mut self) {
        if self.held < SPELL {
            return;
        }
        self.gaps = self.gaps.wrapping_add(1);
        let gap = if self.gaps.is_multiple_of(ROUND) {
            LONGEST
        } else {
            self.gap()
        };
        let rest = gap.saturating_sub(self.released.elapsed());
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
        self.held = Duration::ZERO;
    }

    fn gap(&self) -> Duration {
        let fitting = GAPS.iter().find(|(spell, _)| self.held <= *spell);
        fitting.map_or(LONGEST, |(_, gap)| *gap)
    }

    /// The lock is taken.
    pub(super) fn taken(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.released) >= self.gap() {
            self.held = Duration::ZERO;
        }
        self.since = Some(now);
    }

    /// The lock is free again, if it was taken.
    pub(super) fn released(&mut self) {
        if let Some(since) = self.since.take() {
            self.held += since.elapsed();
            self.released = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(courtesy: &mut Courtesy, long: Duration) {
        courtesy.taken();
        courtesy.since = Some(Instant::now() - long);
        courtesy.released();
    }

    #[test]
    fn a_gap_is_left_only_after_a_long_spell_and_grows_with_it() {
        let mut courtesy = Courtesy::new();
        for (held, gap) in [(30, 0), (80, 27), (200, 53), (900, 104)] {
            hold(&mut courtesy, Duration::from_millis(held));
            let began = Instant::now();
            courtesy.leave_gap();
            let left = began.elapsed() + Duration::from_millis(2);
            assert!(left >= Duration::from_millis(gap), "{held} ms: {left:?}");
            assert!(
                (gap == 0) == (left < Duration::from_millis(20)),
                "{held} ms: {left:?}"
            );
        }
    }

    #[test]
    fn an_idle_office_owes_nothing() {
        let mut courtesy = Courtesy::new();
        hold(&mut courtesy, Duration::from_millis(74));
        courtesy.released = Instant::now() - Duration::from_millis(28);
        hold(&mut courtesy, Duration::from_millis(2));
        assert!(courtesy.held < SPELL / 2);
    }
}
