//! Free ports on the loopback interface.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which systems take the ports of outgoing connections, so that none is lost to one in between.
const LOWEST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A port that nothing listens on, not given out before by this process.
pub fn free() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that look at the same time start at different places.
    let start = std::process::id().wrapping_mul(97);
    (0..COUNT)
        .map(|_| LOWEST + start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .expect("a free port")
}
