//! Moves envelopes, opaque bytes, between the head and its branches.
//!
//! There are two transports behind one shape, the [`Link`]: RabbitMQ ([`amqp`]) and a direct WebSocket ([`direct`]);
//! [`in_process`] is the same shape for tests. A parcel given to [`LinkSender::send`] goes through a bounded window to
//! the other side and comes out there as [`Event::Arrived`].
//!
//! A link promises little, on purpose: a parcel may be lost, repeated or, over a reconnect, reordered; the ends
//! recover by the numbers inside the envelopes. What it does promise: order while it stays up, memory bounded by its
//! windows, no call that hangs on a dead link, and that it mends itself. Nothing here reads an envelope.

pub mod amqp;
mod backoff;
pub mod direct;
mod error;
mod guarded;
pub mod in_process;
mod link;
mod outlet;

pub use error::LinkError;
pub use link::{Destination, Event, Link, LinkGuard, LinkSender, Parcel, Receipt};

/// The largest envelope that a link carries. Senders cut theirs far smaller (about 1 MiB).
pub const MAX_ENVELOPE_BYTES: usize = 15 * 1024 * 1024;

/// How many events wait for a slow receiver before the link stops reading.
const EVENTS: usize = 64;
/// And how many bytes of envelopes.
const EVENT_BYTES: usize = 2 * MAX_ENVELOPE_BYTES;
