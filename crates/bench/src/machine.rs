//! The servers of the run, and what the system says of processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use branchline_testkit::servers::{Postgres, RabbitMq};

/// Both servers replicate, and neither checkpoints in the middle of a run unless the run is long. A subscription that is
/// enabled starts at once: by default it would wait until five seconds after the last start.
const SETTINGS: [(&str, &str); 4] = [
    ("wal_retrieve_retry_interval", "10ms"),
    ("wal_level", "logical"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];

/// Two database servers, a broker, and the program to measure.
pub struct Machine {
    /// The head's server; native: the publisher's.
    pub here: Postgres,
    /// The branch's server; native: the subscriber's.
    pub there: Postgres,
    /// The broker.
    pub broker: RabbitMq,
    /// The program to measure.
    pub branchline: PathBuf,
}

impl Machine {
    /// Starts everything.
    pub fn start(branchline: &Path) -> Self {
        let branchline = branchline
            .canonicalize()
            .unwrap_or_else(|error| panic!("{}: {error}", branchline.display()));
        std::thread::scope(|scope| {
            let broker = scope.spawn(RabbitMq::start);
            let here = Postgres::start_with(&SETTINGS);
            let there = Postgres::start_with(&SETTINGS);
            Self {
                here,
                there,
                broker: broker.join().expect("RabbitMQ starts"),
                branchline,
            }
        })
    }

    /// Puts both servers' dirty pages away, so that no run pays for the one before.
    pub fn settle(&self) {
        self.here.sql("postgres", &["CHECKPOINT"]);
        self.there.sql("postgres", &["CHECKPOINT"]);
    }
}

/// A name that no other database, folder or slot of this run has.
pub fn fresh_name(prefix: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}_{}", MADE.fetch_add(1, Ordering::Relaxed))
}

/// The name of a new database on a server.
pub fn fresh_database(server: &Postgres, prefix: &str) -> String {
    let name = fresh_name(prefix);
    server.sql("postgres", &[&format!("CREATE DATABASE {name}")]);
    name
}

/// Runs a command to its end and returns what it printed.
pub fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a process used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time in seconds.
    pub cpu: f64,
    /// The most memory that it ever held, in MiB.
    pub peak: f64,
}

/// What a process used so far; nothing where it is gone.
pub fn usage(process: u32) -> Usage {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let stat = read("stat");
    // Fields after the command's name in brackets; user and system time in ticks of a hundredth.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let status = read("status");
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<f64>()
            .ok()
    });
    Usage {
        cpu: (ticks(11) + ticks(12)) / 100.0,
        peak: peak.unwrap_or(0.0) / 1024.0,
    }
}

/// The processor time of the server processes that this query names.
pub fn backends_cpu(server: &Postgres, database: &str, query: &str) -> f64 {
    let pids = server.sql(database, &[query]);
    pids.lines()
        .filter_map(|pid| pid.trim().parse().ok())
        .map(|pid| usage(pid).cpu)
        .sum()
}
