//! The one shape of every transport: events out, parcels in.

use std::sync::Arc;

use branchline_core::identity::OfficeName;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::amqp::Settled;
use crate::direct::Registry;
use crate::outlet::Port;
use crate::{EVENT_BYTES, EVENTS, LinkError};

/// Where an envelope goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Head to all branches. A branch that cannot take it now goes without.
    Everyone,
    /// Head to one branch.
    Branch(OfficeName),
    /// Branch to head.
    Head,
}

/// An envelope and where it goes.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Where it goes.
    pub to: Destination,
    /// The envelope.
    pub bytes: Bytes,
}

/// Settles one delivery, once. Without meaning for another connection than its own: there it is ignored.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unsettled delivery comes again after a reconnect, and narrows the prefetch window until then"]
pub struct Receipt {
    pub(crate) session: u64,
    pub(crate) tag: u64,
}

impl Receipt {
    /// For transports that settle nothing.
    pub(crate) const NONE: Self = Self { session: 0, tag: 0 };
}

/// What happens on a link.
#[derive(Debug)]
pub enum Event {
    /// The link can be used: the broker is reached, the head is reached (`peer` is `None`), or, at a head that serves
    /// directly, this branch has come.
    Up {
        /// The branch, at a head that serves directly.
        peer: Option<OfficeName>,
    },
    /// The link cannot be used. Also told when the first attempt fails, and again when the reason changes its sort.
    Down {
        /// The branch, at a head that serves directly.
        peer: Option<OfficeName>,
        /// Why, and whether a person must act.
        reason: LinkError,
    },
    /// An envelope came.
    Arrived {
        /// The envelope, at most [`MAX_ENVELOPE_BYTES`](crate::MAX_ENVELOPE_BYTES).
        bytes: Bytes,
        /// The branch whose connection it is, once named (direct, at the head).
        sender: Option<OfficeName>,
        /// The broker's user that sent it, checked by RabbitMQ.
        user: Option<String>,
        /// Which connection brought it (direct, at the head: for `name_peer` and `refuse`).
        connection: u64,
        /// To be settled after the database commit.
        receipt: Receipt,
    },
    /// The broker has no queue for what was sent there: the branch, or the head, is not set up. Told once until a
    /// parcel gets through again.
    Unroutable {
        /// Where it should have gone.
        to: Destination,
    },
}

/// A running transport. The three parts may be taken apart; when the guard is dropped, everything stops.
#[derive(Debug)]
pub struct Link {
    /// What happens. Bounded, by number and by bytes of envelopes that are not dropped yet: while nobody reads it, the
    /// link does not read either.
    pub events: mpsc::Receiver<Event>,
    /// The sending side; may be cloned.
    pub sender: LinkSender,
    /// Stops the link when dropped.
    pub guard: LinkGuard,
}

impl Link {
    /// Stops the link and waits until its connections are closed.
    pub async fn close(self) {
        drop(self.events);
        self.guard.close().await;
    }
}

/// Keeps a link's tasks alive.
#[derive(Debug)]
pub struct LinkGuard {
    pub(crate) stop: DropGuard,
    pub(crate) tasks: TaskTracker,
}

impl LinkGuard {
    /// Stops the link and waits until its connections are closed. Whoever still reads events sees their end.
    pub async fn close(self) {
        drop(self.stop);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What every transport needs to run its tasks.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    pub(crate) events: mpsc::Sender<Event>,
    /// For the bytes of envelopes that came and are not dropped yet.
    room: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Workshop {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Event>) {
        let (events, received) = mpsc::channel(EVENTS);
        (
            Self {
                events,
                room: Arc::new(Semaphore::new(EVENT_BYTES)),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            },
            received,
        )
    }

    pub(crate) fn link(&self, events: mpsc::Receiver<Event>, sender: LinkSender) -> Link {
        let guard = LinkGuard {
            stop: self.stop.clone().drop_guard(),
            tasks: self.tasks.clone(),
        };
        Link {
            events,
            sender,
            guard,
        }
    }

    /// Tells the owner; `false` when there is none any more.
    pub(crate) async fn tell(&self, event: Event) -> bool {
        let telling = async {
            let event = self.weighed(event).await?;
            self.events.send(event).await.ok()
        };
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = self.events.closed() => false,
            told = telling => told.is_some(),
        }
    }

    /// The event with its share of the room: its bytes hold it until they are dropped.
    async fn weighed(&self, event: Event) -> Option<Event> {
        let Event::Arrived {
            bytes,
            sender,
            user,
            connection,
            receipt,
        } = event
        else {
            return Some(event);
        };
        let weight = u32::try_from(bytes.len().clamp(1, EVENT_BYTES)).ok()?;
        let room = Arc::clone(&self.room).acquire_many_owned(weight).await;
        let bytes = Bytes::from_owner(Weighed {
            bytes,
            _room: room.ok()?,
        });
        Some(Event::Arrived {
            bytes,
            sender,
            user,
            connection,
            receipt,
        })
    }

    /// Waits, unless the link is stopped first (`false`).
    pub(crate) async fn pause(&self, delay: std::time::Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = self.events.closed() => false,
            () = tokio::time::sleep(delay) => true,
        }
    }
}

/// Bytes that came, with their share of the room.
struct Weighed {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The sending side of a link.
#[derive(Clone, Debug)]
pub struct LinkSender(pub(crate) Way);

/// Which connections a sender speaks to.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// One connection at a time: to the broker, or from a branch to its head.
    One {
        port: Arc<Port>,
        end: End,
        settled: Option<Arc<Settled>>,
    },
    /// The head's direct connections, one for each branch.
    Many(Arc<Registry>),
}

/// Which end of the company this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Head,
    Branch,
}

impl End {
    fn check(self, to: &Destination) -> Result<(), LinkError> {
        match (self, to) {
            (Self::Head, Destination::Everyone | Destination::Branch(_))
            | (Self::Branch, Destination::Head) => Ok(()),
            _ => Err(LinkError::WrongDestination),
        }
    }
}

impl LinkSender {
    /// Takes a parcel into the window; `Ok` does not mean that it arrived. Waits while the window is full, but only a
    /// few seconds: then, and at once when there is no connection, it is [`LinkError::Down`] and the protocol resends.
    pub async fn send(&self, parcel: Parcel) -> Result<(), LinkError> {
        match &self.0 {
            Way::One { port, end, .. } => {
                end.check(&parcel.to)?;
                port.outlet()?.push(parcel).await
            }
            Way::Many(registry) => {
                End::Head.check(&parcel.to)?;
                match registry.route(&parcel)? {
                    Some(outlet) => outlet.push(parcel).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// As [`send`](Self::send), but [`LinkError::Full`] instead of waiting.
    pub fn try_send(&self, parcel: Parcel) -> Result<(), LinkError> {
        match &self.0 {
            Way::One { port, end, .. } => {
                end.check(&parcel.to)?;
                port.outlet()?.try_push(parcel)
            }
            Way::Many(registry) => {
                End::Head.check(&parcel.to)?;
                registry
                    .route(&parcel)?
                    .map_or(Ok(()), |outlet| outlet.try_push(parcel))
            }
        }
    }

    /// Acknowledges a delivery, after the database commit. Never waits; a receipt of an older connection is ignored.
    #[allow(clippy::needless_pass_by_value)] // once only
    pub fn settle(&self, receipt: Receipt) {
        if let Way::One {
            settled: Some(settled),
            ..
        } = &self.0
        {
            settled.settle(&receipt);
        }
    }

    /// From now on this connection is this branch's; an older connection of the same name is closed. Only at a head
    /// that serves directly; elsewhere nothing happens.
    pub fn name_peer(&self, connection: u64, name: OfficeName) {
        if let Way::Many(registry) = &self.0 {
            registry.name(connection, name);
        }
    }

    /// Closes a connection. Only at a head that serves directly; elsewhere nothing happens.
    pub fn refuse(&self, connection: u64) {
        if let Way::Many(registry) = &self.0 {
            registry.refuse(connection);
        }
    }
}
