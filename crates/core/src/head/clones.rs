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

/// How many former sessions are remembered.
const FORMER: usize = 8;
/// How many signs of life of a former session show that it lives.
const SIGNS: usize = 2;
/// How long after the newer greeting a sign must have been sent, in milliseconds.
const AFTER_MS: i64 = 1_000;

/// The sessions under which a branch spoke.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The one that greeted last; zeroes before any.
    pub present: [u8; 16],
    greeted: Micros,
    former: Vec<[u8; 16]>,
    /// Signs of life of a former session since the present one greeted.
    signs: Vec<([u8; 16], Micros)>,
    refused: Option<[u8; 16]>,
}

impl Sessions {
    /// A session greeted, at this time by its own clock.
    pub fn greeted(&mut self, session: [u8; 16], clock: Micros) {
        if session == self.present {
            return;
        }
        if self.present != [0; 16] && !self.former.contains(&self.present) {
            self.former.push(self.present);
            let surplus = self.former.len().saturating_sub(FORMER);
            self.former.drain(..surplus);
        }
        if !self.former.contains(&session) {
            self.signs.clear();
            self.greeted = clock;
        }
        self.present = session;
    }

    /// Whether this session was refused as a copy.
    pub fn is_refused(&self, session: [u8; 16]) -> bool {
        self.refused == Some(session)
    }

    /// A session spoke. Returns the newer session where this shows that both live.
    fn spoke(&mut self, session: [u8; 16], clock: Micros) -> Option<[u8; 16]> {
        let newer = self.present;
        if session == newer || !self.former.contains(&session) || self.refused == Some(session) {
            return None;
        }
        let after = clock > self.greeted.plus_millis(AFTER_MS);
        if after && !self.signs.contains(&(session, clock)) {
            self.signs.push((session, clock));
        }
        let signs = self.signs.iter().filter(|(sign, _)| *sign == session);
        if signs.count() < SIGNS {
            return None;
        }
        self.signs.clear();
        self.former.retain(|former| *former != session);
        self.refused = Some(newer);
        self.present = session;
        Some(newer)
    }
}

impl Head {
    /// Refuses the second of two processes that speak as one branch.
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
        self.tell(origin, &Message::Refusal(refusal))?;
        let warning = format!(
            "a second process runs as branch `{origin}`, from a copy of its database; the head refused that one. If this is the copy, stop it and run `branchline leave` there"
        );
        self.tell(origin, &Message::Warning(warning))?;
        let notice = Notice::Refused(origin.clone(), reason);
        self.outputs.push_back(Output::Notice(notice));
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

    #[test]
    fn two_that_greet_in_turn_show_too() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, at(0));
        sessions.greeted(B, at(10));
        sessions.greeted(A, at(12));
        sessions.greeted(B, at(13));
        assert_eq!(sessions.spoke(A, at(14)), None);
        assert_eq!(sessions.spoke(A, at(19)), Some(B));
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
