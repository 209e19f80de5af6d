//! When to try again: a thousand branches that lost the same broker must not come back in the same second.

use std::time::Duration;

use crate::LinkError;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3);
/// A link that held this long starts over with short delays.
pub(crate) const STEADY: Duration = Duration::from_secs(20);

/// Jittered delays that double from 100 ms to 3 s.
#[derive(Debug)]
pub(crate) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST }
    }

    pub(crate) fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// The next delay. What only a person can mend is tried at the slowest pace.
    pub(crate) fn after(&mut self, error: &LinkError) -> Duration {
        if error.needs_a_person() {
            self.ceiling = LONGEST;
        }
        let ceiling = self.ceiling;
        self.ceiling = LONGEST.min(ceiling * 2);
        ceiling.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_ten_seconds_and_start_over() {
        let mut backoff = Backoff::new();
        let down = LinkError::Down(String::new());
        let delays: Vec<_> = (0..12).map(|_| backoff.after(&down)).collect();
        assert!(delays[0] <= FIRST && delays[0] >= FIRST / 2);
        assert!(delays[11] <= LONGEST && delays[11] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.after(&down) <= FIRST);
        assert!(backoff.after(&LinkError::Refused(String::new())) >= LONGEST / 2);
    }
}
