//! The PostgreSQL adapter against a real server: the conformance suite, and what only PostgreSQL has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "postgres/before.rs"]
mod before;
#[path = "postgres/catalogue.rs"]
mod catalogue;
#[path = "postgres/connecting.rs"]
mod connecting;
#[path = "postgres/office.rs"]
mod office;
#[path = "postgres/reading.rs"]
mod reading;
#[path = "postgres/taking.rs"]
mod taking;
#[path = "postgres/triggers.rs"]
mod triggers;
#[path = "postgres/watching.rs"]
mod watching;
#[path = "postgres/writing.rs"]
mod writing;

branchline_testkit::conformance_tests!(office::office);
