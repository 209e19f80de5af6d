//! All adapters keep the port's contract, on the real engines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use branchline_core::identity::Micros;

#[path = "conformance/mysql.rs"]
mod mysql;
#[path = "conformance/postgres.rs"]
mod postgres;
#[path = "conformance/sqlite.rs"]
mod sqlite;

/// The clock of this machine, which all engines use.
fn now() -> Micros {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Micros(i64::try_from(since.as_micros()).unwrap())
}
