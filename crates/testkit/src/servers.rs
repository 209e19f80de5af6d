//! Real servers for tests: each in a folder of its own, on a free port, gone when the test process is gone.
//!
//! [`postgres`], [`mariadb`] and [`rabbitmq`] are shared by all tests of a process, and by all processes of a run where the
//! environment names a server ([`POSTGRES_URL`], [`MYSQL_URL`], [`AMQP_URL`]). They favour speed over durability. Tests that
//! stop or kill a server start one of their own ([`Postgres::start`], ...), which keeps the defaults of a real one.
//!
//! A server's lifetime hangs on a pipe that this process holds (`process.rs`), so that even a killed test leaves none behind.

mod mariadb;
mod ports;
mod postgres;
mod process;
mod rabbitmq;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub use mariadb::{MYSQL_URL, MariaDb, mariadb};
pub use ports::free as free_port;
pub use postgres::{POSTGRES_URL, Postgres, postgres};
pub use rabbitmq::{AMQP_CTL, AMQP_URL, RabbitMq, rabbitmq};

/// The account that servers run as where they refuse the super-user.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The first of these accounts that exists, when we are the super-user; otherwise ours will do.
    fn needed(names: &[&str]) -> Option<Self> {
        if std::fs::metadata("/proc/self").ok()?.uid() != 0 {
            return None;
        }
        let accounts =
            std::fs::read_to_string("/etc/passwd").expect("/etc/passwd lists the accounts");
        let find = |name: &str| {
            let line = accounts
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut numbers = line.split(':').skip(2).map(str::parse);
            Some(Self {
                uid: numbers.next()?.ok()?,
                gid: numbers.next()?.ok()?,
            })
        };
        let found = names.iter().find_map(|name| find(name));
        Some(found.unwrap_or_else(|| {
            panic!("none of the accounts {names:?} exists, and the server refuses to run as root")
        }))
    }
}

/// What a command line starts with to run as this account.
fn running_as(account: Option<Account>) -> Vec<String> {
    account.map_or_else(Vec::new, |Account { uid, gid }| {
        [
            "setpriv".into(),
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            "--clear-groups".into(),
            "--".into(),
        ]
        .into()
    })
}

/// A command that runs as this account.
fn command(account: Option<Account>, program: &Path) -> Command {
    let mut words = running_as(account).into_iter();
    match words.next() {
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// A new folder that this account owns and reaches: below the workspace's `target`, or else the system's own.
fn folder(name: &str, account: Option<Account>) -> PathBuf {
    let near = target().join("servers");
    let candidates = [near, std::env::temp_dir().join("branchline-servers")];
    let found = candidates.iter().find_map(|base| {
        std::fs::create_dir_all(base).ok()?;
        let base = base.canonicalize().ok()?;
        let made = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(base)
            .ok()?;
        if let Some(Account { uid, gid }) = account {
            std::os::unix::fs::chown(made.path(), Some(uid), Some(gid)).ok()?;
        }
        let reached = command(account, Path::new("test"))
            .arg("-w")
            .arg(made.path())
            .status()
            .ok()?;
        reached.success().then(|| made.keep())
    });
    found.unwrap_or_else(|| panic!("no folder for {name}: tried below {candidates:?}"))
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(set) => PathBuf::from(set),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}

/// Runs a command to its end; a failure fails the test with what the command said.
fn run(command: &mut Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} failed ({}): {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

/// The end of a server's log, for a failure message.
fn log_end(log: &Path) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
