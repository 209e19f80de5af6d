//! How the log goes out: once for all by a fanout, and branch by branch where a branch missed something or where
//! the transport has no fanout.

use std::sync::Arc;

use super::Head;
use crate::books::LOG;
use crate::failure::OfficeResult;
use crate::identity::{LogPosition, OfficeName};
use crate::output::{Output, To};
use crate::port::Database;

/// The name of the record that says how far the fanout was published.
pub(super) const PUBLISHED: &str = "published";
/// Log entries on their way to one branch at the most, after those that it keeps.
const WINDOW: u64 = 40;
/// Log entries handed to the fanout in one piece of work.
const PIECE: usize = 32;
/// Bytes read from the log at a time.
const READ_BYTES: usize = 512 * 1024;

/// What kind of transport the head has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// The transport copies to all branches and stores for those away (RabbitMQ).
    Fanout,
    /// One connection for each branch.
    Direct,
}

/// The way out to all.
#[derive(Debug)]
pub(super) struct Lanes {
    wiring: Wiring,
    up: bool,
    sent: LogPosition,
    saved: LogPosition,
}

/// The way out to one branch.
#[derive(Debug, Default)]
pub(super) struct Lane {
    open: bool,
    sent: LogPosition,
    /// What the branch keeps, applied or staged.
    kept: LogPosition,
    /// Where it ends; `None`: it goes on with the log.
    until: Option<LogPosition>,
}

impl Lanes {
    pub fn new(wiring: Wiring, published: LogPosition) -> Self {
        Self {
            wiring,
            up: false,
            sent: published,
            saved: published,
        }
    }

    pub fn is_fanout(&self) -> bool {
        self.wiring == Wiring::Fanout
    }

    pub fn to_save(&self) -> Option<LogPosition> {
        (self.is_fanout() && self.sent != self.saved).then_some(self.sent)
    }

    pub fn saved(&mut self) {
        self.saved = self.sent;
    }
}

impl Lane {
    /// The branch greeted and has the log up to `applied`.
    pub fn greet(&mut self, applied: LogPosition, last: LogPosition, fanout: bool) {
        *self = Self {
            open: !fanout || applied < last,
            sent: applied,
            kept: applied,
            until: fanout.then_some(last),
        };
    }

    /// The branch misses entries from this one on.
    pub fn rewind(&mut self, from: LogPosition, last: LogPosition) {
        if from > last {
            return;
        }
        if self.until.is_some() || !self.open {
            self.until = Some(last);
        }
        self.open = true;
        self.keeps(from.previous());
        self.sent = self.sent.min(from.previous());
        if self.sent >= from {
            self.sent = from.previous();
        }
    }

    /// The branch keeps the log up to here, be it in parts of a unit that has not ended.
    pub fn keeps(&mut self, position: LogPosition) {
        self.kept = self.kept.max(position);
    }

    fn close(&mut self) {
        self.open = false;
    }
}

impl Head {
    /// The link is up: the broker's, or one branch's.
    pub fn link_up(&mut self, peer: Option<&OfficeName>) {
        if peer.is_none() {
            self.lanes.up = true;
        }
    }

    /// The link is down: the broker's, or one branch's.
    pub fn link_down(&mut self, peer: Option<&OfficeName>) {
        match peer {
            None => self.lanes.up = false,
            Some(name) => {
                if let Some(seat) = self.seats.get_mut(name) {
                    seat.online = false;
                    seat.lane.close();
                    seat.request = None;
                }
            }
        }
    }

    /// Whether everything written was handed to the transport for this branch, so that a chunk may follow.
    pub(super) fn is_at_tip(&self, branch: &OfficeName) -> bool {
        let Some(seat) = self.seats.get(branch) else {
            return false;
        };
        let own = !seat.lane.open || seat.lane.sent >= seat.lane.until.unwrap_or(self.book.last);
        let common = !self.lanes.is_fanout() || self.lanes.sent == self.book.last;
        let connected = self.lanes.is_fanout() || seat.lane.open;
        own && common && connected
    }

    /// Hands log entries to the transport, as far as the windows allow. Returns whether there is more to hand out.
    pub(super) async fn pump<D: Database>(&mut self, db: &mut D) -> OfficeResult<bool> {
        let mut more = false;
        if self.lanes.is_fanout()
            && self.lanes.up
            && self.moving
            && self.lanes.sent < self.book.last
        {
            let entries = self
                .read_log(db, self.lanes.sent, self.book.last, PIECE)
                .await?;
            for (position, bytes) in entries {
                self.lanes.sent = position;
                self.outputs.push_back(Output::Send(To::Everyone, bytes));
            }
            more |= self.lanes.sent < self.book.last;
        }
        let open: Vec<OfficeName> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.lane.open)
            .map(|(name, _)| name.clone())
            .collect();
        for name in open {
            more |= self.pump_branch(db, &name).await?;
        }
        Ok(more)
    }

    async fn pump_branch<D: Database>(
        &mut self,
        db: &mut D,
        name: &OfficeName,
    ) -> OfficeResult<bool> {
        let Some(seat) = self.seats.get_mut(name) else {
            return Ok(false);
        };
        let end = seat
            .lane
            .until
            .unwrap_or(self.book.last)
            .min(self.book.last);
        let kept = seat.book.applied.max(seat.lane.kept);
        let window_end = LogPosition(kept.0 + WINDOW).min(end);
        if !self.moving || seat.lane.sent >= window_end {
            if seat.lane.until.is_some_and(|until| seat.lane.sent >= until) {
                seat.lane.close();
            }
            return Ok(false);
        }
        let sent = seat.lane.sent;
        let room = usize::try_from(window_end.0 - sent.0)
            .unwrap_or(PIECE)
            .min(PIECE);
        let entries = self.read_log(db, sent, window_end, room).await?;
        for (position, bytes) in entries {
            if let Some(seat) = self.seats.get_mut(name) {
                seat.lane.sent = position;
            }
            self.outputs
                .push_back(Output::Send(To::Branch(name.clone()), bytes));
        }
        Ok(true)
    }

    /// Up to `count` entries after `sent`, from memory where they are.
    async fn read_log<D: Database>(
        &self,
        db: &mut D,
        sent: LogPosition,
        end: LogPosition,
        count: usize,
    ) -> OfficeResult<Vec<(LogPosition, Arc<Vec<u8>>)>> {
        let mut found = Vec::new();
        let mut position = sent.next();
        while position <= end && found.len() < count {
            let Some(bytes) = self.tail.get(position) else {
                break;
            };
            found.push((position, Arc::clone(bytes)));
            position = position.next();
        }
        if found.is_empty() {
            let entries = db.entries(LOG, sent.next().0, READ_BYTES).await?;
            let wanted = entries
                .into_iter()
                .filter(|entry| entry.number <= end.0)
                .take(count);
            found.extend(wanted.map(|entry| (LogPosition(entry.number), Arc::new(entry.bytes))));
        }
        Ok(found)
    }
}
