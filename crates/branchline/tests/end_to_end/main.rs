//! The shipped binary against real servers, as its users run it: processes, commands, exit codes, JSON.
//!
//! Nothing here looks inside: offices are started, killed and asked through the public interface, and written to as
//! an application does. Each test waits on states, within a deadline; a failure prints every office's log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bad_input;
mod beside;
mod company;
mod conflicts;
mod crowd;
mod evolution;
mod items;
mod joining;
mod journal;
mod large;
mod leaving;
mod line;
mod manners;
mod mariadb;
mod office;
mod planning;
mod process;
mod promoting;
mod repairing;
mod reports;
mod settling;
mod shaped;
mod sql;
mod three_ways;
mod torture;
