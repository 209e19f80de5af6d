//! Branchline: keeps the databases of a head office and its branch offices the same, two ways, over links that fail.
//!
//! This crate wires the rooms together: configuration, commands, the driver that gives the core's machines a database,
//! a link and a clock, and the exit codes. It holds no rule of the protocol.

mod api;
mod cli;
mod code;
mod config;
mod driver;
mod exit;
mod keys;
mod listing;
mod office;
mod plan;
mod request;
mod rewrite;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    telemetry::start(arguments.verbose, arguments.shows_for_itself());
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("branchline: cannot start: {error}");
            return ExitCode::from(exit::BUG);
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("branchline: {failure}");
            ExitCode::from(failure.code)
        }
    }
}
