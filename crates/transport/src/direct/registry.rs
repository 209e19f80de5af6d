//! The head's connections: which there are, and whose.

use std::collections::HashMap;
use std::sync::Mutex;

use branchline_core::identity::OfficeName;
use tokio::sync::{mpsc, watch};

use super::{WINDOW_BYTES, WINDOW_PARCELS};
use crate::guarded::lock;
use crate::link::Event;
use crate::outlet::{Outlet, Queued};
use crate::{Destination, LinkError, Parcel};

/// Whether a connection may go on, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Unnamed,
    Named(OfficeName),
    /// Refused, or replaced by a newer connection of the same name.
    Ended,
}

/// All open connections of a serving head.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    last: u64,
    open: HashMap<u64, Entry>,
    names: HashMap<OfficeName, u64>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    outlet: Outlet,
    standing: watch::Sender<Standing>,
}

/// A connection's own end of its entry.
pub(crate) struct Seat {
    pub(crate) connection: u64,
    pub(crate) parcels: mpsc::Receiver<Queued>,
    pub(crate) standing: watch::Receiver<Standing>,
}

impl Registry {
    /// Enters a new connection, unnamed.
    pub(crate) fn enter(&self) -> Seat {
        let (outlet, parcels) = Outlet::new(WINDOW_PARCELS, WINDOW_BYTES);
        let (standing, watched) = watch::channel(Standing::Unnamed);
        let mut book = lock(&self.0);
        book.last += 1;
        let connection = book.last;
        book.open.insert(connection, Entry { outlet, standing });
        Seat {
            connection,
            parcels,
            standing: watched,
        }
    }

    /// Gives a connection to a branch. Its older connection ends.
    pub(crate) fn name(&self, connection: u64, name: OfficeName) {
        let mut book = lock(&self.0);
        let Some(entry) = book.open.get(&connection) else {
            return;
        };
        if *entry.standing.borrow() == Standing::Ended {
            return;
        }
        entry.standing.send_replace(Standing::Named(name.clone()));
        book.names.retain(|_, named| *named != connection);
        if let Some(older) = book
            .names
            .insert(name, connection)
            .and_then(|older| book.open.get(&older))
        {
            end(older);
        }
    }

    pub(crate) fn refuse(&self, connection: u64) {
        if let Some(entry) = lock(&self.0).open.get(&connection) {
            end(entry);
        }
    }

    /// Tells that a branch has come, if the connection is still its present one. Under the lock, so that the owner
    /// hears of comings and goings in the order in which they happened.
    pub(crate) fn tell_up(
        &self,
        connection: u64,
        name: &OfficeName,
        room: mpsc::Permit<'_, Event>,
    ) {
        let book = lock(&self.0);
        if book.names.get(name) == Some(&connection) {
            room.send(Event::Up {
                peer: Some(name.clone()),
            });
        }
    }

    /// Takes a connection out; tells so if it was a branch's present one.
    pub(crate) fn leave(
        &self,
        connection: u64,
        reason: LinkError,
        room: Option<mpsc::Permit<'_, Event>>,
    ) {
        let mut book = lock(&self.0);
        if let Some(entry) = book.open.remove(&connection) {
            end(&entry);
        }
        let whose = book
            .names
            .iter()
            .find(|(_, named)| **named == connection)
            .map(|(name, _)| name.clone());
        if let Some(name) = whose {
            book.names.remove(&name);
            if let Some(room) = room {
                room.send(Event::Down {
                    peer: Some(name),
                    reason,
                });
            }
        }
    }

    /// The link was stopped: nothing can be sent any more.
    pub(crate) fn close(&self) {
        let mut book = lock(&self.0);
        book.closed = true;
        book.open.values().for_each(end);
        book.names.clear();
    }

    /// Hands a parcel for everyone to all who have room, now; a branch that is too slow goes without and asks for it
    /// later. For one branch, answers its outlet.
    pub(crate) fn route(&self, parcel: &Parcel) -> Result<Option<Outlet>, LinkError> {
        let book = lock(&self.0);
        if book.closed {
            return Err(LinkError::Closed);
        }
        if let Destination::Branch(name) = &parcel.to {
            let entry = book
                .names
                .get(name)
                .and_then(|connection| book.open.get(connection));
            let entry = entry
                .ok_or_else(|| LinkError::Down(format!("the branch `{name}` is not connected")))?;
            return Ok(Some(entry.outlet.clone()));
        }
        for (name, connection) in &book.names {
            match book
                .open
                .get(connection)
                .map(|entry| entry.outlet.try_push(parcel.clone()))
            {
                Some(Err(error @ LinkError::TooLarge { .. })) => return Err(error),
                Some(Err(error)) => {
                    tracing::debug!(%name, %error, "a branch goes without an envelope for everyone");
                }
                Some(Ok(())) | None => {}
            }
        }
        Ok(None)
    }
}

fn end(entry: &Entry) {
    entry.outlet.shut();
    entry.standing.send_replace(Standing::Ended);
}
