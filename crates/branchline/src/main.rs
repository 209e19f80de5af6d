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
mod say;
mod telemetry;

use std::panic::{AssertUnwindSafe, catch_unwind};
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
            say::say(format_args!("branchline: cannot start: {error}"));
            return ExitCode::from(exit::BUG);
        }
    };
    // The panic has told of itself; what is left is the exit code that says so.
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(cli::run(arguments))));
    // What is still at work is cut off now; the broker's client calls that a panic.
    std::panic::set_hook(Box::new(|_| {}));
    match ended {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(failure)) => {
            say::say(format_args!("branchline: {failure}"));
            ExitCode::from(failure.code)
        }
        Err(_) => ExitCode::from(exit::BUG),
    }
}
