//! Envelopes that arrived in order and wait to be landed; what comes out of order is dropped and asked for again.

use std::collections::VecDeque;

use crate::identity::Micros;
use crate::output::Token;

/// How many envelopes may wait.
pub const INBOX_ENVELOPES: usize = 20;
/// How many bytes of envelopes may wait.
pub const INBOX_BYTES: usize = 8 * 1024 * 1024;
/// How many changes may wait: about as many as one transaction lands. Decoded they take twenty times their bytes.
pub const INBOX_CHANGES: usize = 8_000;
/// How long to wait before asking again for what is missing.
const ASK_AGAIN_MS: i64 = 1000;

/// An envelope that waits.
#[derive(Clone, Debug)]
pub struct Slot<T> {
    /// Its number.
    pub number: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its message.
    pub message: T,
    /// How many changes and verdicts it holds.
    pub changes: usize,
    /// What to acknowledge once it is durable.
    pub token: Token,
}

/// What to do with an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It waits in the inbox.
    Kept,
    /// It was here before.
    Duplicate,
    /// Something before it is missing: drop it, and ask from this number on where `Some`.
    Gap(Option<u64>),
    /// No room: drop it; it will be asked for.
    Full,
}

/// Envelopes of one sender, numbered without gaps from just after the cursor.
#[derive(Clone, Debug)]
pub struct Inbox<T> {
    slots: VecDeque<Slot<T>>,
    bytes: usize,
    changes: usize,
    /// The last number that is durable here (landed, or staged).
    received: u64,
    asked: Option<(u64, Micros)>,
}

impl<T> Inbox<T> {
    /// An empty inbox behind a cursor.
    pub fn new(received: u64) -> Self {
        Self {
            slots: VecDeque::new(),
            bytes: 0,
            changes: 0,
            received,
            asked: None,
        }
    }

    /// The number that would be admitted next.
    pub fn expected(&self) -> u64 {
        self.received + self.slots.len() as u64 + 1
    }

    /// The last number that has left it for the database.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether more may come.
    pub fn has_room(&self) -> bool {
        self.slots.len() < INBOX_ENVELOPES
            && self.bytes < INBOX_BYTES
            && self.changes < INBOX_CHANGES
    }

    /// Takes an arrival in, or says why not.
    pub fn admit(&mut self, slot: Slot<T>, now: Micros) -> Admission {
        let expected = self.expected();
        if slot.number < expected {
            return Admission::Duplicate;
        }
        if slot.number > expected {
            return Admission::Gap(self.ask(now));
        }
        if !self.has_room() {
            return Admission::Full;
        }
        self.asked = None;
        self.bytes += slot.bytes.len();
        self.changes += slot.changes;
        self.slots.push_back(slot);
        Admission::Kept
    }

    /// The number to ask from, unless that was asked a moment ago, or what comes has no room.
    pub fn ask(&mut self, now: Micros) -> Option<u64> {
        if !self.has_room() {
            return None;
        }
        let expected = self.expected();
        let recently = self
            .asked
            .is_some_and(|(from, at)| from == expected && !now.has_passed(ASK_AGAIN_MS, at));
        if recently {
            return None;
        }
        self.asked = Some((expected, now));
        Some(expected)
    }

    /// What waits, in order.
    pub fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The first `count` became durable: they leave, and their tokens are returned.
    pub fn leave(&mut self, count: usize) -> Vec<Token> {
        let gone: Vec<Slot<T>> = self.slots.drain(..count.min(self.slots.len())).collect();
        self.bytes -= gone.iter().map(|slot| slot.bytes.len()).sum::<usize>();
        self.changes -= gone.iter().map(|slot| slot.changes).sum::<usize>();
        self.received += gone.len() as u64;
        gone.into_iter().map(|slot| slot.token).collect()
    }

    /// Empties it and sets the cursor anew; returns the tokens of what was dropped.
    pub fn restart(&mut self, received: u64) -> Vec<Token> {
        let dropped = self.slots.drain(..).map(|slot| slot.token).collect();
        *self = Self::new(received);
        dropped
    }
}
