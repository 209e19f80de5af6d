//! Runs simulated companies:
//! `sim [--seeds N] [--first S] [--engine any|memory|sqlite|mixed] [--threads N] [--keep-going] [-v]`, or
//! `sim --sabotage`: which seed notices each kind of wrong code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use branchline_testkit::sim::{Engine, Options, Sabotage, simulate};

/// What was asked for.
struct Arguments {
    seeds: u64,
    first: u64,
    engine: Engine,
    threads: usize,
    loud: bool,
    keep_going: bool,
    sabotage: bool,
}

/// What all runs together had.
#[derive(Default)]
struct Totals {
    runs: u64,
    failed: u64,
    conflicts: u64,
    crashes: u64,
    reincarnations: u64,
}

fn arguments() -> Result<Arguments, String> {
    let mut asked = Arguments {
        seeds: 100,
        first: 0,
        engine: Engine::Any,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        loud: false,
        keep_going: false,
        sabotage: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{text} is no number"))
        };
        match word.as_str() {
            "--seeds" => asked.seeds = number(value()?)?,
            "--first" => asked.first = number(value()?)?,
            "--threads" => asked.threads = usize::try_from(number(value()?)?).unwrap_or(1).max(1),
            "--keep-going" => asked.keep_going = true,
            "--sabotage" => asked.sabotage = true,
            "-v" => asked.loud = true,
            "--engine" => {
                asked.engine = match value()?.as_str() {
                    "sqlite" => Engine::Sqlite,
                    "mixed" => Engine::Mixed,
                    "memory" => Engine::Memory,
                    "any" => Engine::Any,
                    other => {
                        return Err(format!(
                            "--engine is any, memory, sqlite or mixed, not {other}"
                        ));
                    }
                }
            }
            other => {
                return Err(format!(
                    "unknown argument {other}; see the head of this file"
                ));
            }
        }
    }
    Ok(asked)
}

fn main() -> ExitCode {
    let asked = match arguments() {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    if asked.sabotage {
        return sabotage(&asked);
    }
    let begun = Instant::now();
    let totals = run(&asked);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds from {}, {} failed; {} crashes, {} conflicts, {} new incarnations; {:.1} seeds/s",
        totals.runs,
        asked.first,
        totals.failed,
        totals.crashes,
        totals.conflicts,
        totals.reincarnations,
        totals.runs as f64 / seconds
    );
    if totals.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(asked: &Arguments) -> Totals {
    let next = AtomicU64::new(asked.first);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    // A story told aloud is one story.
    let threads = if asked.loud { 1 } else { asked.threads };
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= asked.first + asked.seeds {
                break;
            }
            let options = Options {
                seed,
                engine: asked.engine,
                sabotage: None,
                loud: asked.loud,
            };
            // A seed that panics has failed; the others go on.
            let outcome = catch_unwind(AssertUnwindSafe(|| simulate(&options)));
            let Ok(mut totals) = totals.lock() else { break };
            totals.runs += 1;
            let Ok(outcome) = outcome else {
                totals.failed += 1;
                println!("seed {seed}: it panicked");
                continue;
            };
            totals.conflicts += outcome.conflicts;
            totals.crashes += outcome.crashes;
            totals.reincarnations += outcome.reincarnations;
            let Some(failure) = &outcome.failure else {
                continue;
            };
            totals.failed += 1;
            if asked.keep_going || asked.loud {
                println!("seed {seed}: {failure}");
            } else if !stop.swap(true, Ordering::Relaxed) {
                println!("{}", outcome.report(asked.engine));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    totals.into_inner().unwrap_or_default()
}

/// Tells for each kind of sabotage which seed notices it.
fn sabotage(asked: &Arguments) -> ExitCode {
    let mut missed = 0;
    for sabotage in Sabotage::ALL {
        let noticed = (asked.first..asked.first + asked.seeds).find_map(|seed| {
            let outcome = simulate(&Options {
                seed,
                engine: asked.engine,
                sabotage: Some(sabotage),
                loud: false,
            });
            outcome.failure.map(|failure| (seed, failure))
        });
        match noticed {
            Some((seed, failure)) => println!("{sabotage:?}: seed {seed}: {failure}"),
            None => {
                missed += 1;
                println!("{sabotage:?}: not noticed");
            }
        }
    }
    ExitCode::from(u8::from(missed > 0))
}
