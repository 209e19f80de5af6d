//! Runs simulated companies: `sim [--seeds N] [--first S] [--engine memory|sqlite|mixed] [--keep-going] [-v]`.

use std::process::ExitCode;
use std::time::Instant;

use branchline_testkit::sim::{Engine, Options, simulate};

fn main() -> ExitCode {
    let (mut seeds, mut first, mut engine, mut loud, mut keep_going) =
        (100, 0, Engine::Memory, false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seeds" => seeds = number().unwrap_or(seeds),
            "--first" => first = number().unwrap_or(first),
            "--keep-going" => keep_going = true,
            "-v" => loud = true,
            "--engine" => match arguments.next().as_deref() {
                Some("sqlite") => engine = Engine::Sqlite,
                Some("mixed") => engine = Engine::Mixed,
                Some("memory") => engine = Engine::Memory,
                other => {
                    eprintln!("--engine is memory, sqlite or mixed, not {other:?}");
                    return ExitCode::from(2);
                }
            },
            other => {
                eprintln!("unknown argument {other}; see the head of this file");
                return ExitCode::from(2);
            }
        }
    }
    let begun = Instant::now();
    let (mut failed, mut conflicts, mut crashes, mut reincarnations) = (0_u64, 0, 0, 0);
    for seed in first..first + seeds {
        let outcome = simulate(&Options {
            seed,
            engine,
            sabotage: None,
            loud,
        });
        conflicts += outcome.conflicts;
        crashes += outcome.crashes;
        reincarnations += outcome.reincarnations;
        if let Some(failure) = &outcome.failure {
            failed += 1;
            if keep_going {
                println!("seed {seed}: {failure}");
            } else {
                println!(
                    "{}",
                    if loud {
                        format!("seed {seed}: {failure}")
                    } else {
                        outcome.report(engine)
                    }
                );
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds from {first}, {failed} failed; {crashes} crashes, {conflicts} conflicts, {reincarnations} new incarnations; {:.1} seeds/s",
        seeds as f64 / seconds
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
