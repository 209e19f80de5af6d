//! The MariaDB adapter against a real server: what only MariaDB has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "mysql/binding.rs"]
mod binding;
#[path = "mysql/capturing.rs"]
mod capturing;
#[path = "mysql/cascades.rs"]
mod cascades;
#[path = "mysql/catalogue.rs"]
mod catalogue;
#[path = "mysql/columns.rs"]
mod columns;
#[path = "mysql/connecting.rs"]
mod connecting;
#[path = "mysql/shop.rs"]
mod shop;
#[path = "mysql/stepping.rs"]
mod stepping;
#[path = "mysql/taking.rs"]
mod taking;
#[path = "mysql/types.rs"]
mod types;
#[path = "mysql/writing.rs"]
mod writing;
