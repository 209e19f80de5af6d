//! A whole company on the production core, simulated: virtual clock, one seed, every fault that the promises speak of.
//!
//! The machines are the real [`branchline_core`] ones; the databases are the in-memory fake or real SQLite files. What
//! is simulated is everything around them: the applications ([`workload`]), the network ([`network`]), the faults
//! between any two database steps ([`faults`]) and the passing of time ([`world`]). A plain model of what was written
//! ([`model`]) lets the [`oracle`] say at every step, and at rest, whether a promise was broken. A seed decides
//! everything: the same seed is the same run.
#![allow(missing_docs)]

pub mod faults;
pub mod migrations;
pub mod model;
pub mod network;
pub mod office;
pub mod oracle;
pub mod report;
pub mod workload;
pub mod world;

pub use faults::Sabotage;
use world::World;

/// What the offices' databases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// All in memory.
    Memory,
    /// All SQLite files.
    Sqlite,
    /// Some of each.
    Mixed,
    /// As the seed says: mostly SQLite.
    Any,
}

impl Engine {
    /// What this seed's offices run on.
    pub fn of(self, seed: u64) -> Self {
        match (self, seed % 10) {
            (Self::Any, 0..=5) => Self::Sqlite,
            (Self::Any, 6) => Self::Mixed,
            (Self::Any, _) => Self::Memory,
            (chosen, _) => chosen,
        }
    }
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub engine: Engine,
    /// Wrong code, to see that it is noticed.
    pub sabotage: Option<Sabotage>,
    /// Print every action as it happens.
    pub loud: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Which promise was broken, if any.
    pub failure: Option<String>,
    /// The last actions in plain words.
    pub story: Vec<String>,
    /// Equal for equal runs.
    pub fingerprint: (u64, u64),
    pub conflicts: u64,
    pub reincarnations: u64,
    pub crashes: u64,
}

/// Runs a company through its storms.
pub fn simulate(options: &Options) -> Outcome {
    let mut world = World::new(&Options {
        engine: options.engine.of(options.seed),
        ..*options
    });
    world.run();
    Outcome {
        seed: options.seed,
        failure: world.failure.clone(),
        story: world.story.lines(),
        fingerprint: world.story.fingerprint(),
        conflicts: world.conflicts,
        reincarnations: world.reincarnations,
        crashes: world.crashes,
    }
}

impl Outcome {
    /// The failure with its story and how to see it again.
    pub fn report(&self, engine: Engine) -> String {
        let engine = format!("{:?}", engine.of(self.seed)).to_lowercase();
        format!(
            "{}\n\nseed {}: {}\nrerun: cargo run --release --bin sim -- --first {} --seeds 1 --engine {engine} -v",
            self.story.join("\n"),
            self.seed,
            self.failure.as_deref().unwrap_or("no promise was broken"),
            self.seed,
        )
    }
}
