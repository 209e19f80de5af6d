//! MariaDB servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::Guarded;
use super::{Account, command, folder, log_end, ports, run, running_as};

/// Names, in the environment, a running server's super-user URL, to be shared by all tests of a run.
pub const MYSQL_URL: &str = "BRANCHLINE_TEST_MYSQL";

const PASSWORD: &str = "branchline";
const START: Duration = Duration::from_secs(60);

/// Settings of the shared server, whose data nobody needs after a crash.
const FAST: [&str; 3] = [
    "innodb-flush-log-at-trx-commit=0",
    "innodb-doublewrite=0",
    "innodb-flush-method=nosync",
];

/// A MariaDB server. Its super-user is `root`, with a password, over TCP only.
#[derive(Debug)]
pub struct MariaDb {
    /// The URL of the database `mysql`.
    admin_url: String,
    mysql: OnceLock<bool>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    folder: PathBuf,
    port: u16,
    account: Option<Account>,
    settings: Vec<String>,
    running: Option<Guarded>,
}

/// The server that all tests share. It forgets its data in a crash: tests that crash a server start their own.
pub fn mariadb() -> &'static MariaDb {
    static SHARED: OnceLock<MariaDb> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var(MYSQL_URL) {
        Ok(admin_url) => MariaDb {
            admin_url,
            mysql: OnceLock::new(),
            own: None,
        },
        Err(_) => MariaDb::start_with(&FAST),
    })
}

impl MariaDb {
    /// Starts a server of one's own, as durable as any.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server of one's own with these options besides the defaults, each `name=value`.
    pub fn start_with(settings: &[&str]) -> Self {
        let account = Account::needed(&["mysql", "nobody"]);
        let folder = folder("mariadb", account);
        let data = folder.join("data");
        run(command(account, Path::new("mariadb-install-db"))
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
            .current_dir(&folder));
        let first = folder.join("first.sql");
        std::fs::write(
            &first,
            // One statement a line: such is the form of an init file.
            format!(
                "ALTER USER root@localhost IDENTIFIED BY '{PASSWORD}';\n\
                 CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
            ),
        )
        .expect("the folder is ours");
        let port = ports::free();
        let mut server = Self {
            admin_url: format!("mysql://root:{PASSWORD}@127.0.0.1:{port}/mysql"),
            mysql: OnceLock::new(),
            own: Some(Own {
                folder,
                port,
                account,
                settings: settings.iter().map(ToString::to_string).collect(),
                running: None,
            }),
        };
        server.start_again();
        server
    }

    /// Whether it is MySQL, which a run may name in place of MariaDB ([`MYSQL_URL`]).
    pub fn is_mysql(&self) -> bool {
        *self
            .mysql
            .get_or_init(|| !self.sql("mysql", "SELECT VERSION()").contains("MariaDB"))
    }

    /// The URL of a database, as the super-user.
    pub fn url(&self, database: &str) -> String {
        let (before, options) = match self.admin_url.split_once('?') {
            Some((before, options)) => (before, format!("?{options}")),
            None => (self.admin_url.as_str(), String::new()),
        };
        let server = before.rsplit_once('/').map_or(before, |(server, _)| server);
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
            "mysql",
            &format!("DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name}"),
        );
        self.url(&name)
    }

    /// Runs statements in a database as the super-user and returns what they print: fields by tabs, no headings.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let mut client = Command::new("mariadb");
        client.args(self.client_arguments(database));
        client.args(["--batch", "--raw", "--skip-column-names", "-e", statements]);
        String::from_utf8_lossy(&run(&mut client).stdout)
            .trim_end()
            .to_owned()
    }

    /// What a client program needs to reach a database as the super-user.
    pub fn client_arguments(&self, database: &str) -> Vec<String> {
        let server = self
            .admin_url
            .split_once("://")
            .map_or("", |(_, rest)| rest);
        let server = server.split_once('/').map_or(server, |(server, _)| server);
        let (account, place) = server.rsplit_once('@').unwrap_or(("root", server));
        let (user, password) = account.split_once(':').unwrap_or((account, ""));
        let (host, port) = place.rsplit_once(':').unwrap_or((place, "3306"));
        vec![
            "--no-defaults".into(),
            "--protocol=tcp".into(),
            "--default-character-set=utf8mb4".into(),
            format!("--host={host}"),
            format!("--port={port}"),
            format!("--user={user}"),
            format!("--password={password}"),
            database.to_owned(),
        ]
    }

    /// The port that it listens on. Only for a server of one's own.
    pub fn port(&self) -> u16 {
        self.own().port
    }

    /// Shuts the server down in order, ending its connections.
    pub fn stop(&mut self) {
        if let Some(running) = self.own_mut().running.take() {
            running.end("TERM");
        }
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        if let Some(running) = self.own_mut().running.take() {
            running.end("KILL");
        }
    }

    /// Starts it after [`MariaDb::stop`] or [`MariaDb::kill`], on the same port, and waits until it answers.
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
        while !self.answers() {
            assert!(
                Instant::now() < deadline,
                "MariaDB did not start:\n{}",
                log_end(&log)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answers(&self) -> bool {
        let mut asked = Command::new("mariadb");
        asked
            .args(self.client_arguments("mysql"))
            .args(["-e", "DO 1"]);
        asked.output().is_ok_and(|output| output.status.success())
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
        words.push(program());
        let at = |name: &str| self.folder.join(name).display().to_string();
        words.extend([
            "--no-defaults".into(),
            format!("--datadir={}", at("data")),
            format!("--socket={}", at("socket")),
            format!("--pid-file={}", at("pid")),
            format!("--init-file={}", at("first.sql")),
            format!("--port={}", self.port),
            // A server that starts sweeps its folder for temporary files, also of others.
            format!("--tmpdir={}", self.folder.display()),
            "--bind-address=127.0.0.1".into(),
            "--max-connections=300".into(),
            "--skip-name-resolve".into(),
        ]);
        words.extend(self.settings.iter().map(|setting| format!("--{setting}")));
        words
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The server's program; Debian keeps it off a plain user's search path.
fn program() -> String {
    let debian = Path::new("/usr/sbin/mariadbd");
    if debian.exists() {
        debian.display().to_string()
    } else {
        "mariadbd".to_owned()
    }
}
