//! RabbitMQ servers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::Guarded;
use super::{folder, log_end, ports, run};

/// Names, in the environment, a running broker's administrator URL, to be shared by all tests of a run.
pub const AMQP_URL: &str = "BRANCHLINE_TEST_AMQP";
/// Names, in the environment, a program that does what `rabbitmqctl` does for the broker of [`AMQP_URL`].
pub const AMQP_CTL: &str = "BRANCHLINE_TEST_AMQP_CTL";

const START: Duration = Duration::from_secs(90);
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";

/// A RabbitMQ server. Its administrator is `guest`, password `guest`.
#[derive(Debug)]
pub struct RabbitMq {
    /// The URL up to the virtual host's name.
    server_url: String,
    ctl: Option<PathBuf>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    folder: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
    running: Option<Guarded>,
    // The port mapper of Erlang's own; without one the first node would leave a daemon behind.
    _mapper: Guarded,
}

/// The server that all tests share; each takes a virtual host of its own ([`RabbitMq::fresh_vhost`]).
pub fn rabbitmq() -> &'static RabbitMq {
    static SHARED: OnceLock<RabbitMq> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var(AMQP_URL) {
        Ok(url) => {
            let authority = url.find("://").map_or(0, |at| at + 3);
            let end = url[authority..]
                .find(['/', '?'])
                .map_or(url.len(), |at| authority + at);
            let ctl = std::env::var_os(AMQP_CTL).map(PathBuf::from);
            RabbitMq {
                server_url: url[..end].to_owned(),
                ctl,
                own: None,
            }
        }
        Err(_) => RabbitMq::start(),
    })
}

impl RabbitMq {
    /// Starts a server of one's own.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server of one's own with these lines in its configuration.
    pub fn start_with(settings: &[String]) -> Self {
        let folder = folder("rabbitmq", None);
        let port = ports::free();
        let environment = environment(&folder, port);
        write_files(&folder, &environment, settings);
        let mapper_port = value(&environment, "ERL_EPMD_PORT");
        let mapper = [
            "epmd".into(),
            "-port".into(),
            mapper_port.into(),
            "-address".into(),
            "127.0.0.1".into(),
        ];
        let mapper = Guarded::start(&mapper, &[], &folder.join("epmd.log"), None);
        let ctl = Some(folder.join("ctl"));
        let own = Own {
            folder,
            port,
            environment,
            running: None,
            _mapper: mapper,
        };
        let mut server = Self {
            server_url: format!("amqp://guest:guest@127.0.0.1:{port}"),
            ctl,
            own: Some(own),
        };
        server.start_again();
        server
    }

    /// The administrator's URL of the default virtual host.
    pub fn admin_url(&self) -> String {
        format!("{}/%2f", self.server_url)
    }

    /// The administrator's URL of a virtual host.
    pub fn admin_url_of(&self, vhost: &str) -> String {
        format!("{}/{}", self.server_url, escaped(vhost))
    }

    /// A user's URL of a virtual host.
    pub fn url(&self, user: &str, password: &str, vhost: &str) -> String {
        let authority = self.server_url.find("://").map_or(0, |at| at + 3);
        let host = self.server_url.rfind('@').map_or(authority, |at| at + 1);
        let (scheme, host) = (&self.server_url[..authority], &self.server_url[host..]);
        format!(
            "{scheme}{}:{}@{host}/{}",
            escaped(user),
            escaped(password),
            escaped(vhost)
        )
    }

    /// The name of a new virtual host on which the administrator may do everything; see [`RabbitMq::admin_url_of`].
    pub fn fresh_vhost(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("the clock is past 1970")
            .as_micros();
        let name = format!(
            "test-{}-{}-{now}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let administrator = self
            .server_url
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split(':').next())
            .unwrap_or("guest");
        // One evaluation instead of two commands, each of which starts a virtual machine.
        self.ctl(&[
            "eval",
            &format!(
                "rabbit_vhost:add(<<\"{name}\">>, <<\"test\">>), rabbit_auth_backend_internal:set_permissions(\
                 <<\"{administrator}\">>, <<\"{name}\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)."
            ),
        ]);
        name
    }

    /// Makes a user with these rights (regular expressions) on a virtual host.
    pub fn add_user(
        &self,
        user: &str,
        password: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) {
        self.ctl(&["add_user", user, password]);
        self.ctl(&["set_permissions", "-p", vhost, user, configure, write, read]);
    }

    /// Runs `rabbitmqctl`; a failure fails the test.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        run(&mut self.ctl_command(arguments))
    }

    /// A `rabbitmqctl` to run in one's own way.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let program = self.ctl.as_ref();
        let program =
            program.unwrap_or_else(|| panic!("{AMQP_URL} is set; set {AMQP_CTL} too, or neither"));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// The program that does what `rabbitmqctl` does for this server.
    pub fn ctl_program(&self) -> Option<&Path> {
        self.ctl.as_deref()
    }

    /// The port that it listens on. Only for a server of one's own.
    pub fn port(&self) -> u16 {
        self.own().port
    }

    /// Stops the broker inside its node; connections are closed in order.
    pub fn stop_app(&self) {
        self.ctl(&["stop_app"]);
    }

    /// Starts the broker inside its node again, and waits until it takes connections.
    pub fn start_app(&self) {
        self.ctl(&["start_app"]);
        self.ctl(&["await_startup"]);
    }

    /// Shuts the server down in order.
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

    /// Deletes what the stopped server had stored: queues, messages, users, virtual hosts.
    pub fn forget_everything(&mut self) {
        let own = self.own_mut();
        assert!(own.running.is_none(), "stop the server first");
        std::fs::remove_dir_all(own.folder.join("mnesia"))
            .expect("the stopped server's data can be removed");
    }

    /// Starts it after [`RabbitMq::stop`] or [`RabbitMq::kill`], on the same port, and waits until it takes connections.
    pub fn start_again(&mut self) {
        let own = self.own_mut();
        assert!(own.running.is_none(), "the server runs already");
        let log = own.folder.join("log.txt");
        let said_before = std::fs::metadata(&log).map_or(0, |log| log.len());
        let server = [format!("{PROGRAMS}/rabbitmq-server")];
        own.running = Some(Guarded::start(
            &server,
            &own.environment,
            &log,
            Some(&own.folder),
        ));
        let deadline = Instant::now() + START;
        while !started(&log, said_before) {
            assert!(
                Instant::now() < deadline,
                "RabbitMQ did not start:\n{}",
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

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether the server reported since then that it is up. (Asking with `rabbitmqctl` takes a second each time.)
fn started(log: &Path, since: u64) -> bool {
    let Ok(said) = std::fs::read(log) else {
        return false;
    };
    let new = said
        .get(usize::try_from(since).unwrap_or(usize::MAX)..)
        .unwrap_or_default();
    String::from_utf8_lossy(new).contains("Server startup complete")
}

fn environment(folder: &Path, port: u16) -> Vec<(String, String)> {
    let inside = |name: &str| folder.join(name).display().to_string();
    let pairs = [
        ("HOME", inside("home")),
        ("RABBITMQ_HOME", inside("home")),
        ("RABBITMQ_NODENAME", format!("branchline-{port}@localhost")),
        ("RABBITMQ_MNESIA_BASE", inside("mnesia")),
        ("RABBITMQ_LOG_BASE", inside("log")),
        ("RABBITMQ_LOGS", "-".into()),
        ("RABBITMQ_PID_FILE", inside("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins")),
        ("RABBITMQ_CONF_ENV_FILE", inside("none.conf")),
        ("RABBITMQ_CONFIG_FILE", inside("rabbitmq")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", inside("advanced.config")),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", port.to_string()),
        ("RABBITMQ_DIST_PORT", ports::free().to_string()),
        ("ERL_EPMD_PORT", ports::free().to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        // Schedulers that spin while idle starve the tests on a small machine.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none".into(),
        ),
        ("LC_ALL", "C.UTF-8".into()),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn write_files(folder: &Path, environment: &[(String, String)], settings: &[String]) {
    for name in ["home", "mnesia", "log"] {
        std::fs::create_dir(folder.join(name)).expect("the folder is ours");
    }
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("the folder is ours");
    };
    let common = "disk_free_limit.absolute = 10MB\nloopback_users = none\n";
    write(
        "rabbitmq.conf",
        &format!("{common}{}\n", settings.join("\n")),
    );
    write("enabled_plugins", "[].\n");
    let mut ctl = String::from("#!/bin/sh\n");
    for (name, value) in environment {
        ctl.push_str(&format!("export {name}='{value}'\n"));
    }
    ctl.push_str(&format!("exec {PROGRAMS}/rabbitmqctl \"$@\"\n"));
    write("ctl", &ctl);
    let executable = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(folder.join("ctl"), executable).expect("the folder is ours");
}

fn value<'a>(environment: &'a [(String, String)], name: &str) -> &'a str {
    environment
        .iter()
        .find(|(known, _)| known == name)
        .map_or("", |(_, value)| value)
}

/// A name as part of a URL.
fn escaped(name: &str) -> String {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let escape = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02x}")
        }
    };
    name.bytes().map(escape).collect()
}
