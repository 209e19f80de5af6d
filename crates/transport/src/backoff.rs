//! When to try again: a thousand branches that lost the same broker must not come back in the same second.

use std::time::Duration;

use crate::LinkError;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3);
/// The longest to a peer that answered before and is away: it is waited for with work at hand, and most outages end by
/// themselves.
const LONGEST_TO_KNOWN: Duration = Duration::from_secs(1);
/// A link that held this long starts over with short delays.
pub(crate) const STEADY: Duration = Duration::from_secs(20);

/// Jittered delays that double from 100 ms to 3 s, or to 1 s where the peer answered before.
#[derive(Debug)]
pub(crate) struct Backoff {
    ceiling: Duration,
    known: bool,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self {
            ceiling: FIRST,
            known: false,
        }
    }

    /// The peer answered: it is where it is looked for.
    pub(crate) fn know(&mut self) {
        self.known = true;
    }

    pub(crate) fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// The next delay. What only a person can mend is tried at the slowest pace.
    pub(crate) fn after(&mut self, error: &LinkError) -> Duration {
        let longest = if error.needs_a_person() {
            self.ceiling = LONGEST;
            LONGEST
        } else if self.known {
            LONGEST_TO_KNOWN
        } else {
            LONGEST
        };
        let ceiling = self.ceiling.min(longest);
        self.ceiling = longest.min(ceiling * 2);
        ceiling.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_three_seconds_and_start_over() {
        let mut backoff = Backoff::new();
        let down = LinkError::Down(String::new());
        let delays: Vec<_> = (0..12).map(|_| backoff.after(&down)).collect();
        assert!(delays[0] <= FIRST && delays[0] >= FIRST / 2);
        assert!(delays[11] <= LONGEST && delays[11] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.after(&down) <= FIRST);
        assert!(backoff.after(&LinkError::Refused(String::new())) >= LONGEST / 2);
    }

    #[test]
    fn who_answered_before_is_waited_for_with_shorter_delays() {
        let mut backoff = Backoff::new();
        let down = LinkError::Down(String::new());
        backoff.know();
        let delays: Vec<_> = (0..12).map(|_| backoff.after(&down)).collect();
        assert!(delays[0] <= FIRST);
        assert!(delays[11] <= LONGEST_TO_KNOWN && delays[11] >= LONGEST_TO_KNOWN / 2);
        assert!(backoff.after(&LinkError::Refused(String::new())) >= LONGEST / 2);
        assert!(backoff.after(&down) <= LONGEST_TO_KNOWN);
    }
}
