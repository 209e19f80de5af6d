//! The protocol of Branchline as a value.
pub mod change;
pub mod identity;
pub mod port;
pub mod schema;
pub mod value;
