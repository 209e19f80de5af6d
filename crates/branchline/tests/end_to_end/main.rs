//! The shipped binary against real servers, as its users run it: processes, commands, exit codes, JSON.
//!
//! Nothing here looks inside: offices are started, killed and asked through the public interface, and written to as
//! an application does. Each test waits on states, within a deadline; a failure prints every office's log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bad_input;
mod company;
mod conflicts;
mod crowd;
mod joining;
mod journal;
mod leaving;
mod mariadb;
mod office;
mod repairing;
mod reports;
mod settling;
mod sql;
mod three_ways;
mod torture;
