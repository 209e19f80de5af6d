//! Log lines: views of notices.

use std::io::IsTerminal;

use branchline_core::output::Notice;
use tracing_subscriber::EnvFilter;

/// Sends log lines to stderr; only errors where a command shows what happens itself. `-v` shows more; `BRANCHLINE_LOG` overrides both.
pub fn start(verbosity: u8, quiet: bool) {
    let level = match verbosity {
        // What the broker's client says comes again in our own words.
        0 if quiet => "lapin=off,error",
        0 => "branchline=info,lapin=off,warn",
        1 => "branchline=debug,branchline_transport=debug,branchline_database=debug,info",
        _ => "branchline=trace,branchline_transport=trace,branchline_database=trace,debug",
    };
    let filter = std::env::var("BRANCHLINE_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would tell on the same stderr that the line could not be written, and panic: a full disk must not end an office.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start (tests, the demo) keeps the first.
    drop(subscriber.try_init());
}

/// Writes a notice as a log line.
pub fn log(notice: &Notice) {
    match notice {
        Notice::BranchGreeted(name) => tracing::info!("branch {name} is here"),
        Notice::Refused(name, reason) => tracing::warn!("{name} was refused: {reason}"),
        Notice::Dropped(why) => tracing::warn!("an envelope was dropped: {why}"),
        Notice::Taken { changes } => tracing::debug!("took {changes} local changes"),
        Notice::Landed { changes, deferred } => {
            tracing::debug!("landed {changes} changes, {deferred} deferred")
        }
        Notice::Gap { from } => tracing::debug!("number {from} is missing; asked for it"),
        Notice::Conflict { id, table, reason } => {
            tracing::info!("conflict {id} in table {table}: {reason}")
        }
        Notice::Settled { id } => tracing::info!("conflict {id} was settled"),
        Notice::Reply(..) | Notice::Inspected(_) => {}
        Notice::Trouble(what) => tracing::warn!("{what}"),
        Notice::SchemaChanged { version, what } => {
            tracing::info!("the shared tables are at schema version {version} now: {what}");
        }
        Notice::CopiedAnew(place) => tracing::warn!(
            "the head's log does not have what this branch followed (up to {place}): the tables are copied anew; what was not sent yet is kept"
        ),
        Notice::Warned(warning) => tracing::warn!("the head warns: {warning}"),
        Notice::TakenBack(from, last) => tracing::warn!(
            "this head's database was restored from a backup; {from} gave back what its log had lost, up to {last}"
        ),
        Notice::Rewound(place) => tracing::warn!(
            "the head was restored from a backup and went on from there; this branch follows it again from place {place}"
        ),
        Notice::Reincarnated => tracing::warn!(
            "this database was restored or copied: the branch took a fresh incarnation"
        ),
        Notice::Loading { table, rows } => tracing::debug!("loading {table}: {rows} rows so far"),
        Notice::Joined { rows } => tracing::info!("joined: {rows} rows loaded"),
        Notice::Welcomed {
            last,
            cursor,
            clock_offset_ms,
        } => {
            tracing::info!(
                "the head let us in: log at {last}, our batches up to {cursor}, clock offset {clock_offset_ms} ms"
            );
        }
        Notice::RefusedByHead(reason) => tracing::warn!("the head refused this branch: {reason}"),
        Notice::Verified(v) => tracing::info!(
            "verification {}: {}",
            v.id,
            match (
                v.is_equal(),
                v.branches.iter().all(|branch| branch.answered)
            ) {
                (true, _) => "equal",
                (false, true) => "different",
                (false, false) => "not all branches answered",
            }
        ),
        Notice::VerifyResult(_) => {}
        Notice::ClockOff(name, ms) => {
            tracing::warn!("the clock of {name} is {ms} ms off the head's")
        }
    }
}
