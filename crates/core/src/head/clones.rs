//! Telling a copied office from a restarted one (trap 21).
//!
//! Each start of a branch draws a session, said in greetings and positions. A restarted process never speaks under its
//! former session again. A copy that runs beside its original does: then both are alive, and the one that came second
//! is refused. A message of the former session that was merely late was sent before the new one's greeting, so only
//! what was sent after it, and more than once, counts.

use super::Head;
use crate::failure::OfficeResult;
use crate::identity::{Micros, OfficeName};
use crate::message::{Message, Refusal};
use crate::output::{Notice, Output};

/// How many sessions are remembered.
const REMEMBERED: usize = 8;
/// How many signs of life of a former session show that it lives.
const SIGNS: usize = 2;
/// How long after the newest greeting a sign must have been sent, in milliseconds.
const AFTER_MS: i64 = 1_000;

/// The sessions under which a branch spoke.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The one that greeted last; zeroes before any.
    pub present: [u8; 16],
    /// All, in the order of their first greetings.
    known: Vec<[u8; 16]>,
    /// When the newest of them greeted first, by its own clock.
    newest: Micros,
    /// Signs of life of sessions that were not the present one.
    signs: Vec<([u8; 16], Micros)>,
    refused: Option<[u8; 16]>,
}

impl Sessions {
    /// A session greeted, at this time by its own clock.
    pub fn greeted(&mut self, session: [u8; 16], clock: Micros) {
        if !self.known.contains(&session) {
            self.known.push(session);
            let surplus = self.known.len().saturating_sub(REMEMBERED);
            self.known.drain(..surplus);
            self.signs.clear();
            self.newest = clock;
        }
        self.present = session;
    }

    /// Whether this session was refused as a copy.
    pub fn is_refused(&self, session: [u8; 16]) -> bool {
        self.refused == Some(session)
    }

    /// A session spoke. Returns the one to refuse, where two of them live: the one that came second.
    fn spoke(&mut self, session: [u8; 16], clock: Micros) -> Option<[u8; 16]> {
        if self.is_refused(session) {
            return Some(session);
        }
        let place = |wanted| self.known.iter().position(|known| *known == wanted);
        if session == self.present || place(session).is_none() {
            return None;
        }
        let after = clock > self.newest.plus_millis(AFTER_MS);
        if after && !self.signs.contains(&(session, clock)) {
            self.signs.push((session, clock));
        }
        let signs = self.signs.iter().filter(|(sign, _)| *sign == session);
        if signs.count() < SIGNS {
            return None;
        }
        let (first, second) = if place(session) < place(self.present) {
            (session, self.present)
        } else {
            (self.present, session)
        };
        self.signs.clear();
        self.refused = Some(second);
        self.present = first;
        Some(second)
    }
}

impl Head {
    /// Refuses the second of two processes that speak as one branch, and warns the first.
    pub(super) fn listen_for_clones(
        &mut self,
        origin: &OfficeName,
        session: [u8; 16],
        clock: Micros,
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        let Some(second) = seat.sessions.spoke(session, clock) else {
            return Ok(());
        };
        let refusal = Self::copy_refused(origin, second, seat.book.incarnation, seat.book.cursor);
        let reason = refusal.reason.clone();
        // Both may read from one queue: what does not reach the one that it is for is said again when that one speaks.
        self.tell(origin, &Message::Refusal(refusal))?;
        self.warn_of_copy(origin)?;
        let notice = Notice::Refused(origin.clone(), reason);
        self.outputs.push_back(Output::Notice(notice));
        Ok(())
    }

    fn warn_of_copy(&mut self, origin: &OfficeName) -> OfficeResult<()> {
        let warning = format!(
            "a second process runs as branch `{origin}`, from a copy of its database; the head refused that one. If this is the copy, stop it and run `branchline leave` there"
        );
        self.tell(origin, &Message::Warning(warning))
    }

    /// Warns a branch that was just welcomed, where a copy of it was refused.
    pub(super) fn warn_if_copied(&mut self, origin: &OfficeName) -> OfficeResult<()> {
        let refused = |seat: &super::Seat| seat.sessions.refused.is_some();
        if self.seats.get(origin).is_some_and(refused) {
            return self.warn_of_copy(origin);
        }
        Ok(())
    }

    /// What a copy is told.
    pub(super) fn copy_refused(
        origin: &OfficeName,
        session: [u8; 16],
        incarnation: crate::identity::Incarnation,
        cursor: crate::identity::BatchNumber,
    ) -> Refusal {
        Refusal {
            session,
            reason: format!(
                "another process is already running as branch `{origin}`: this database is a copy of its; stop this one, or stop the other and start this one again"
            ),
            reincarnate: false,
            incarnation,
            cursor,
            copied: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const C: [u8; 16] = [3; 16];

    fn at(seconds: i64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    #[test]
    fn a_restart_is_no_clone_even_when_its_last_words_come_late() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, at(0));
        sessions.greeted(B, at(10));
        assert_eq!(sessions.spoke(A, at(8)), None);
        assert_eq!(sessions.spoke(A, at(9)), None);
        assert_eq!(sessions.spoke(B, at(15)), None);
        assert_eq!(sessions.present, B);
    }

    #[test]
    fn the_second_of_two_that_live_is_refused() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, at(0));
        sessions.greeted(B, at(10));
        assert_eq!(sessions.spoke(A, at(12)), None, "one sign may be a freak");
        assert_eq!(
            sessions.spoke(A, at(12)),
            None,
            "the same sign delivered twice"
        );
        assert_eq!(sessions.spoke(A, at(17)), Some(B));
        assert!(sessions.is_refused(B));
        assert_eq!(sessions.present, A);
    }

    /// On direct links each greeting drives the other off, who greets anew.
    #[test]
    fn of_two_that_greet_in_turn_the_one_that_came_second_is_refused() {
        for first_heard in [A, B] {
            let mut sessions = Sessions::default();
            sessions.greeted(A, at(0));
            sessions.greeted(B, at(10));
            let other = if first_heard == A { B } else { A };
            let mut refused = None;
            for second in 12..30 {
                let speaker = if second % 2 == 0 { first_heard } else { other };
                refused = refused.or(sessions.spoke(speaker, at(second)));
                if !sessions.is_refused(speaker) {
                    sessions.greeted(speaker, at(second));
                }
            }
            assert_eq!(refused, Some(B));
            assert_eq!(sessions.present, A);
        }
    }

    #[test]
    fn after_a_person_stopped_the_original_the_copy_may_go_on() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, at(0));
        sessions.greeted(B, at(10));
        sessions.spoke(A, at(12));
        sessions.spoke(A, at(17));
        sessions.greeted(C, at(60));
        assert!(!sessions.is_refused(C));
        assert_eq!(sessions.spoke(C, at(70)), None);
    }
}
