//! PostgreSQL servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::Guarded;
use super::{Account, command, folder, log_end, ports, run, running_as};

/// Names, in the environment, a running server's super-user URL, to be shared by all tests of a run.
pub const POSTGRES_URL: &str = "BRANCHLINE_TEST_POSTGRES";

const PASSWORD: &str = "branchline";
const START: Duration = Duration::from_secs(60);

/// Settings of the shared server, whose data nobody needs after a crash.
const FAST: [(&str, &str); 3] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
];

/// A PostgreSQL server. Its super-user is `postgres`; connections over TCP need a password (SCRAM).
#[derive(Debug)]
pub struct Postgres {
    /// The URL of the database `postgres`.
    admin_url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    folder: PathBuf,
    port: u16,
    account: Option<Account>,
    settings: Vec<(String, String)>,
    running: Option<Guarded>,
}

/// The server that all tests share. It forgets its data in a crash: tests that crash a server start their own.
pub fn postgres() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var(POSTGRES_URL) {
        Ok(admin_url) => Postgres {
            admin_url,
            own: None,
        },
        Err(_) => Postgres::start_with(&FAST),
    })
}

impl Postgres {
    /// Starts a server of one's own, as durable as any.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server of one's own that does not care for its data, as the shared one.
    pub fn start_fast() -> Self {
        Self::start_with(&FAST)
    }

    /// Starts a server of one's own with these settings besides the defaults.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let account = Account::needed(&["postgres", "nobody"]);
        let folder = folder("postgres", account);
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD).expect("the folder is ours");
        run(command(account, &program("initdb"))
            .args([
                "--no-sync",
                "--no-locale",
                "--encoding=UTF8",
                "--username=postgres",
                "--auth=scram-sha-256",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg(folder.join("data"))
            .current_dir(&folder));
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let port = ports::free();
        let admin_url = format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres");
        let mut server = Self {
            admin_url,
            own: Some(Own {
                folder,
                port,
                account,
                settings,
                running: None,
            }),
        };
        server.start_again();
        server
    }

    /// The URL of a database, as the super-user.
    pub fn url(&self, database: &str) -> String {
        let (before, options) = match self.admin_url.split_once('?') {
            Some((before, options)) => (before, format!("?{options}")),
            None => (self.admin_url.as_str(), String::new()),
        };
        let authority = before.find("://").map_or(0, |at| at + 3);
        let server = before[authority..]
            .find('/')
            .map_or(before, |at| &before[..authority + at]);
        format!("{server}/{database}{options}")
    }

    /// The URL of a new, empty database.
    pub fn fresh_database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "test_{}_{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        // The shared server may outlive many processes, and numbers of processes come again.
        self.sql(
            "postgres",
            &[
                &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
                &format!("CREATE DATABASE {name}"),
            ],
        );
        self.url(&name)
    }

    /// Runs statements in a database as the super-user, each by itself, and returns what they print, bare.
    pub fn sql(&self, database: &str, statements: &[&str]) -> String {
        let mut psql = Command::new(self.bin("psql"));
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.url(database),
        ]);
        psql.env("PGOPTIONS", "--client-min-messages=warning");
        for statement in statements {
            psql.args(["-c", statement]);
        }
        String::from_utf8_lossy(&run(&mut psql).stdout)
            .trim_end()
            .to_owned()
    }

    /// A program of the server's distribution, such as `pg_dump`.
    pub fn bin(&self, name: &str) -> PathBuf {
        program(name)
    }

    /// The port that it listens on. Only for a server of one's own.
    pub fn port(&self) -> u16 {
        self.own().port
    }

    /// The data directory. Only for a server of one's own.
    pub fn data(&self) -> PathBuf {
        self.own().folder.join("data")
    }

    /// Shuts the server down in order, ending its connections.
    pub fn stop(&mut self) {
        if let Some(running) = self.own_mut().running.take() {
            running.end("INT");
        }
    }

    /// Kills the server and all its processes at once.
    pub fn kill(&mut self) {
        if let Some(running) = self.own_mut().running.take() {
            running.end("KILL");
        }
    }

    /// Starts it after [`Postgres::stop`] or [`Postgres::kill`], on the same port, and waits until it answers.
    pub fn start_again(&mut self) {
        let own = self.own_mut();
        assert!(own.running.is_none(), "the server runs already");
        let log = own.folder.join("log");
        own.running = Some(Guarded::start(
            &own.command_line(),
            &[],
            &log,
            Some(&own.folder),
        ));
        let deadline = Instant::now() + START;
        while !own.answers() {
            assert!(
                Instant::now() < deadline,
                "PostgreSQL did not start:\n{}",
                log_end(&log)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .expect("this server belongs to all tests; start one of your own")
    }

    fn own_mut(&mut self) -> &mut Own {
        self.own
            .as_mut()
            .expect("this server belongs to all tests; start one of your own")
    }
}

impl Own {
    fn command_line(&self) -> Vec<String> {
        let mut words = running_as(self.account);
        words.push(program("postgres").display().to_string());
        words.extend(["-D".into(), self.folder.join("data").display().to_string()]);
        let port = self.port.to_string();
        let basic = [
            ("port", port.as_str()),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("max_connections", "200"),
        ];
        let set = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in basic.into_iter().chain(set) {
            words.extend(["-c".into(), format!("{name}={value}")]);
        }
        words
    }

    fn answers(&self) -> bool {
        let port = self.port.to_string();
        let asked = Command::new(program("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &port])
            .status();
        asked.is_ok_and(|status| status.success())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A program of the newest PostgreSQL on this machine.
fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // Debian keeps the server's programs off the search path, by version.
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let number = |path: &Path| {
            path.file_name()
                .and_then(|name| name.to_str()?.parse::<u32>().ok())
        };
        let newest = versions
            .filter_map(|entry| Some(entry.ok()?.path()))
            .max_by_key(|path| number(path))?;
        Some(newest.join("bin"))
    });
    match folder {
        Some(folder) if folder.join(name).exists() => folder.join(name),
        _ => PathBuf::from(name),
    }
}
