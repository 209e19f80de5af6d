//! Telling a copied office from a restarted one (trap 21).
//!
//! Each start of a branch draws a session, said in greetings and positions. A restarted process never speaks under its
//! former session again, but what it said may still be on the way, for weeks, and clocks jump. So where a session speaks
//! that is not the newest, the head asks it, and the newest too, whether they live. Only a process can answer that: where
//! two have, the one that came second is refused.

use super::Head;
use crate::failure::OfficeResult;
use crate::identity::OfficeName;
use crate::message::{Message, Probe, Refusal};
use crate::output::{Notice, Output};

/// How many sessions are remembered.
const REMEMBERED: usize = 8;

/// The sessions under which a branch spoke.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The one that greeted last; zeroes before any.
    pub present: [u8; 16],
    /// All, in the order of their first greetings.
    known: Vec<[u8; 16]>,
    /// A session spoke that is not the newest.
    suspect: bool,
    /// Those that have answered since the newest greeted first.
    proven: Vec<[u8; 16]>,
    /// The number of the present question; answers to earlier ones do not count.
    number: u64,
    refused: Option<[u8; 16]>,
}

/// What follows from what a session said.
#[derive(Debug, PartialEq, Eq)]
enum Sign {
    Nothing,
    Ask(Probe),
    /// This one is a copy.
    Refuse([u8; 16]),
}

impl Sessions {
    /// A session greeted. `number` is one that was not used before, such as the time.
    pub fn greeted(&mut self, session: [u8; 16], number: u64) {
        if !self.known.contains(&session) {
            self.known.push(session);
            let surplus = self.known.len().saturating_sub(REMEMBERED);
            self.known.drain(..surplus);
            self.suspect = false;
            self.proven.clear();
            self.number = number;
        }
        self.present = session;
    }

    /// Whether this session was refused as a copy.
    pub fn is_refused(&self, session: [u8; 16]) -> bool {
        self.refused == Some(session)
    }

    /// Whether a copy was refused.
    pub fn has_copy(&self) -> bool {
        self.refused.is_some()
    }

    fn spoke(&mut self, session: [u8; 16]) -> Sign {
        if self.is_refused(session) {
            return Sign::Refuse(session);
        }
        if !self.known.contains(&session) {
            return Sign::Nothing;
        }
        self.suspect |= self.known.last() != Some(&session);
        if !self.suspect || self.proven.contains(&session) {
            return Sign::Nothing;
        }
        Sign::Ask(Probe {
            session,
            number: self.number,
        })
    }

    /// A session answered. Returns the one to refuse, where two of them live: the one that came second.
    fn answered(&mut self, probe: Probe) -> Option<[u8; 16]> {
        let place = |wanted: &[u8; 16]| self.known.iter().position(|known| known == wanted);
        place(&probe.session)?;
        if probe.number != self.number || self.is_refused(probe.session) {
            return None;
        }
        if !self.proven.contains(&probe.session) {
            self.proven.push(probe.session);
        }
        let others = self.proven.iter().filter(|one| **one != probe.session);
        let other = *others.copied().collect::<Vec<_>>().first()?;
        let (first, second) = if place(&probe.session) < place(&other) {
            (probe.session, other)
        } else {
            (other, probe.session)
        };
        self.proven.retain(|one| *one != second);
        self.refused = Some(second);
        self.present = first;
        Some(second)
    }
}

impl Head {
    /// Asks a session that speaks whether it lives, where another one may too.
    pub(super) fn listen_for_clones(
        &mut self,
        origin: &OfficeName,
        session: [u8; 16],
    ) -> OfficeResult<()> {
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(());
        };
        match seat.sessions.spoke(session) {
            Sign::Nothing => Ok(()),
            Sign::Ask(probe) => self.tell(origin, &Message::Probe(probe)),
            Sign::Refuse(copy) => self.refuse_copy(origin, copy),
        }
    }

    /// A session lives.
    pub(super) fn alive(&mut self, origin: &OfficeName, probe: Probe) -> OfficeResult<()> {
        let seat = self.seats.get_mut(origin);
        match seat.and_then(|seat| seat.sessions.answered(probe)) {
            Some(copy) => self.refuse_copy(origin, copy),
            None => Ok(()),
        }
    }

    fn refuse_copy(&mut self, origin: &OfficeName, copy: [u8; 16]) -> OfficeResult<()> {
        let Some(seat) = self.seats.get(origin) else {
            return Ok(());
        };
        let refusal = Self::copy_refused(origin, copy, seat.book.incarnation, seat.book.cursor);
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
        let seat = self.seats.get(origin);
        if seat.is_some_and(|seat| seat.sessions.has_copy()) {
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
    #![allow(clippy::panic)]
    use super::*;

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const C: [u8; 16] = [3; 16];

    fn ask(sessions: &mut Sessions, session: [u8; 16]) -> Probe {
        match sessions.spoke(session) {
            Sign::Ask(probe) => probe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_restart_is_no_clone_however_late_its_last_words_come() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, 1);
        assert_eq!(sessions.spoke(A), Sign::Nothing);
        sessions.greeted(B, 2);
        assert_eq!(sessions.spoke(B), Sign::Nothing);
        for _ in 0..5 {
            // Nobody is there to answer.
            assert_eq!(ask(&mut sessions, A).session, A);
            sessions.greeted(A, 3);
        }
        let probe = ask(&mut sessions, B);
        assert_eq!(sessions.answered(probe), None);
        assert_eq!(sessions.spoke(B), Sign::Nothing, "it has answered");
    }

    #[test]
    fn an_answer_from_before_the_newest_greeted_proves_nothing() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, 1);
        sessions.greeted(B, 2);
        let early = ask(&mut sessions, A);
        sessions.greeted(C, 3);
        assert_eq!(sessions.answered(early), None);
        let (late, newest) = (ask(&mut sessions, B), ask(&mut sessions, C));
        assert_eq!(sessions.answered(newest), None);
        assert_eq!(sessions.answered(late), Some(C));
    }

    #[test]
    fn the_second_of_two_that_live_is_refused() {
        for first_heard in [A, B] {
            let other = if first_heard == A { B } else { A };
            let mut sessions = Sessions::default();
            sessions.greeted(A, 1);
            sessions.greeted(B, 2);
            sessions.spoke(A);
            let (one, two) = (ask(&mut sessions, first_heard), ask(&mut sessions, other));
            assert_eq!(sessions.answered(one), None);
            assert_eq!(sessions.answered(two), Some(B));
            assert_eq!(sessions.spoke(B), Sign::Refuse(B));
            assert_eq!(sessions.spoke(A), Sign::Nothing);
            assert_eq!(sessions.present, A);
        }
    }

    #[test]
    fn after_a_person_stopped_the_original_the_copy_may_go_on() {
        let mut sessions = Sessions::default();
        sessions.greeted(A, 1);
        sessions.greeted(B, 2);
        let (one, two) = (ask(&mut sessions, A), ask(&mut sessions, B));
        sessions.answered(one);
        assert_eq!(sessions.answered(two), Some(B));
        sessions.greeted(C, 3);
        assert!(!sessions.is_refused(C));
        assert_eq!(sessions.spoke(C), Sign::Nothing);
    }
}
