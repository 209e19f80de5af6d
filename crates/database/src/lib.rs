//! The database adapters: one folder for each engine, with the same file names in each.
//!
//! They know SQL and the port ([`branchline_core::port::Database`]), never the protocol's state or a transport.

mod any;
mod backlog;
pub mod checks;
mod lineage;
pub mod mysql;
pub mod postgres;
pub mod sqlite;

pub use any::{AnyDatabase, AnyWatcher, watch};
