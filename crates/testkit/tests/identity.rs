//! Databases restored from backups, copied machines and branches that were away for longer than the log goes back, on
//! the production core: a head and its branches as values, time passed in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod identity {
    mod apart;
    mod between_steps;
    mod clones;
    pub mod company;
    mod dependents;
    mod forks;
    mod horizon;
    mod hot_counters;
    mod promoted;
    mod promoted_across_steps;
    mod reports;
    mod restored_branch;
    mod restored_head;
    mod restored_holds;
    mod schema_forks;
    mod schema_steps;
    mod settling;
    mod unanswered_steps;
    mod uncompared;
}

use identity::company;
