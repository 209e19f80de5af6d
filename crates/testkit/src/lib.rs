//! What Branchline's tests stand on: real servers, an in-memory database, and the suite that every database passes.
//!
//! Only tests use this crate. Nothing here returns an error that a caller could handle: what goes wrong fails the
//! test with a sentence.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod cable;
pub mod conformance;
pub mod memory;
pub mod servers;
pub mod sim;
