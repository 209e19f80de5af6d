//! Branchline beside PostgreSQL's own logical replication, and MariaDB's: the same rows, the same two servers, the same run.
//!
//! `machine` holds the servers and what `/proc` says of processes; `company` is a head and a branch; `native` is a
//! publication and a subscription; each cell of the table has a file. Runs of the two contenders alternate, and medians
//! are reported, since the machine may be doing other work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use clap::{Parser, ValueEnum};

mod adapter;
mod broker;
mod capture;
mod catch_up;
mod company;
mod crowd;
mod latency;
mod machine;
mod maria;
mod native;
mod sales;
mod table;

use machine::Machine;
use table::Figures;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cell {
    /// Time from the link's return until every row is there.
    CatchUp,
    /// From commit until visible at the other side.
    Latency,
    /// What capture costs the source.
    Capture,
    /// As `catch-up`, between MariaDB servers, beside MariaDB's own replication.
    MariaDb,
    /// What happens when many branches come back at once.
    Crowd,
    /// What happens when one branch comes back with a million rows.
    Storm,
    /// What the PostgreSQL adapter does by itself.
    Adapter,
    /// What a link over RabbitMQ carries by itself.
    Broker,
}

/// Measures Branchline beside PostgreSQL's logical replication.
#[derive(Debug, Parser)]
struct Arguments {
    /// The program to measure.
    #[arg(long, default_value = "target/release/branchline")]
    branchline: std::path::PathBuf,
    /// Rows of a backlog.
    #[arg(long, default_value_t = 200_000)]
    rows: u32,
    /// How often each run is repeated.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Seconds of each run of `capture`, and of `latency` times five.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// How many branches `crowd` has.
    #[arg(long, default_value_t = 100)]
    branches: u32,
    /// What to measure; everything where none is named.
    #[arg(value_enum)]
    cells: Vec<Cell>,
    /// Only runs whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() {
    let arguments = Arguments::parse();
    let wanted = |cell| arguments.cells.is_empty() || arguments.cells.contains(&cell);
    let machine = Machine::start(&arguments.branchline);
    let mut figures = Figures::default();
    if wanted(Cell::CatchUp) {
        catch_up::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Latency) {
        latency::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Capture) {
        capture::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::MariaDb) {
        maria::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Crowd) {
        crowd::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Storm) {
        crowd::measure_storm(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Adapter) {
        adapter::measure(&machine, &arguments, &mut figures);
    }
    if wanted(Cell::Broker) {
        broker::measure(&machine, &arguments, &mut figures);
    }
    println!("{}", figures.text());
}
