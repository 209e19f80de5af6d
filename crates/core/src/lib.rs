//! The protocol of Branchline as a value: no I/O, no clock, no randomness, no runtime.
//!
//! The life of a change, in a dozen steps:
//!
//! 1. The application at a branch commits; a trigger noted the key ([`port`]: capture).
//! 2. [`branch::Branch::work`] takes whole transactions, reads the rows in the same snapshot and nets them.
//! 3. It freezes them into a numbered [`message::Batch`] with the base of each change, in that same transaction.
//! 4. The driver sends the sealed [`envelope`] over whatever transport there is.
//! 5. [`head::Head::arrived`] checks signature, number and shape, and puts the batch into an [`inbox`].
//! 6. [`head::Head::work`] holds each base against the log and lets [`conflict::decide`] speak.
//! 7. Rows, log entry, verdicts and the branch's cursor commit in one transaction of the head's database.
//! 8. The log entry goes out to all branches, sealed once.
//! 9. Every branch lands it in one transaction with its cursor, leaving alone rows that have local changes.
//! 10. At the branch that sent the change the entry is the answer: it clears the outbox's claim on the rows, and
//!     where the verdict differs the row is taken from it.
//! 11. The branch says how far it has applied; what is missing anywhere is asked for again.
//! 12. At rest every row equals its last log entry, at every office, by construction.

pub mod books;
pub mod branch;
mod by_name;
pub mod change;
pub mod check;
pub mod conflict;
pub mod envelope;
pub mod evolution;
pub mod failure;
pub mod head;
pub mod identity;
pub mod inbox;
pub mod message;
pub mod office;
pub mod output;
pub mod pile;
pub mod port;
pub mod retention;
pub mod schema;
mod staged;
pub mod succession;
mod unfit;
pub mod value;
pub mod verify;

pub use ed25519_dalek;
