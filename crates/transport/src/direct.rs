//! Envelopes over a WebSocket straight from branch to head, without a broker.
//!
//! The head listens ([`serve`]), a branch dials and dials again ([`dial`]). One binary message is one envelope. Both
//! ends of a connection are the same loop (`talk`); the head keeps its connections in a `Registry`. Whose a connection
//! is, is not decided here: the protocol reads the first envelope and names or refuses the connection.

mod dial;
mod door;
mod registry;
mod serve;
mod talk;
mod tls;

use std::net::IpAddr;
use std::time::Duration;

pub use dial::{DialSettings, Trust, dial};
pub(crate) use registry::Registry;
pub use serve::{ServeSettings, serve};
pub use tls::{Certificate, NotAPin, Pin, make_certificate, pin_of};

/// The one address of the WebSocket.
pub const PATH: &str = "/branchline";

/// For the TCP connection, TLS and the upgrade together.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection's window.
const WINDOW_PARCELS: usize = 64;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// Plain `ws://` is for tests and demos on one machine.
fn loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
