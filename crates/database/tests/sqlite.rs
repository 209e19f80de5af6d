//! SQLite's own behaviour; what every engine must do is in the conformance suite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "sqlite/before.rs"]
mod before;
#[path = "sqlite/beside.rs"]
mod beside;
#[path = "sqlite/catalogue.rs"]
mod catalogue;
#[path = "sqlite/office.rs"]
mod office;
#[path = "sqlite/parting.rs"]
mod parting;
#[path = "sqlite/taking.rs"]
mod taking;
#[path = "sqlite/unreadable.rs"]
mod unreadable;
#[path = "sqlite/values.rs"]
mod values;
#[path = "sqlite/watching.rs"]
mod watching;
#[path = "sqlite/writing.rs"]
mod writing;
