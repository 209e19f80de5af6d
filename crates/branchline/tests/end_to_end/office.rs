//! Offices as processes: a folder, a configuration, a log, and the commands of the public interface.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_branchline");
/// No command of these tests takes longer.
const COMMAND_SECONDS: &str = "120";

/// Waits until the state is reached; fails with what is seen instead.
#[track_caller]
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(
                Instant::now() < deadline,
                "{what}: not within {patience:?}; seen: {seen}"
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Says what this machine does not allow to be tested: in the file that `test.sh` lists at its end, and in the test's output.
pub fn skipped(what: &str) {
    println!("SKIPPED: {what}");
    if let Some(list) = std::env::var_os("BRANCHLINE_TEST_SKIPPED") {
        let mut list = File::options()
            .create(true)
            .append(true)
            .open(list)
            .unwrap();
        writeln!(list, "{what}").unwrap();
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Insists on this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code; stdout: {}\nstderr: {}",
            self.out, self.err
        );
        self
    }

    /// Insists that the message names all these.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.err.to_lowercase().contains(&word.to_lowercase()),
                "the message should say `{word}`; it says: {}",
                self.err
            );
        }
        self
    }

    /// The one document on stdout.
    #[track_caller]
    pub fn document(&self) -> Value {
        serde_json::from_str(self.out.trim()).unwrap_or_else(|error| {
            panic!(
                "stdout is not one JSON document ({error}): {}\nstderr: {}",
                self.out, self.err
            )
        })
    }
}

/// One office.
pub struct Office {
    pub name: String,
    pub config: PathBuf,
    pub database: String,
    log: PathBuf,
    /// The network namespace that its processes live in, where it is not ours.
    pub namespace: Option<String>,
    running: Option<Child>,
    secrets: Mutex<Vec<String>>,
}

impl Office {
    /// An office that is nothing yet but a folder and a name.
    pub fn new(folder: &Path, name: &str, database: &str) -> Self {
        Self {
            name: name.into(),
            config: folder.join(format!("{name}.toml")),
            database: database.into(),
            log: folder.join(format!("{name}.log")),
            namespace: None,
            running: None,
            secrets: Mutex::default(),
        }
    }

    /// An office on a new SQLite file.
    pub fn sqlite(folder: &Path, name: &str) -> Self {
        Self::new(
            folder,
            name,
            &format!("sqlite:{}", folder.join(format!("{name}.db")).display()),
        )
    }

    /// From now on no output of this office may hold this text.
    pub fn hides(&self, secret: &str) {
        self.secrets.lock().unwrap().push(secret.into());
    }

    fn program(&self) -> Vec<&str> {
        match &self.namespace {
            Some(namespace) => vec!["ip", "netns", "exec", namespace, BINARY],
            None => vec![BINARY],
        }
    }

    /// Runs a command.
    #[track_caller]
    pub fn cmd(&self, arguments: &[&str]) -> Ran {
        self.feed("", arguments)
    }

    /// Runs a command with this on its standard input.
    #[track_caller]
    pub fn feed(&self, input: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", COMMAND_SECONDS])
            .args(self.program())
            .arg("--config")
            .arg(&self.config)
            .args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that fails early does not read.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        let ran = Ran {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        self.check_secrets(&ran.out);
        self.check_secrets(&ran.err);
        ran
    }

    #[track_caller]
    fn check_secrets(&self, text: &str) {
        for secret in self.secrets.lock().unwrap().iter() {
            assert!(
                !text.contains(secret.as_str()),
                "a secret stands in the output of {}: {text}",
                self.name
            );
        }
    }

    /// The document of a command that must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let with_flag: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        self.cmd(&with_flag).expect(0).document()
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Makes this office the head.
    #[track_caller]
    pub fn init(&self, tables: &str, transport: &[&str]) -> Value {
        let mut arguments = vec![
            "init",
            "--role",
            "head",
            "--name",
            &self.name,
            "--database",
            &self.database,
            "--tables",
            tables,
        ];
        arguments.extend(transport);
        self.json(&arguments)
    }

    /// A join code for a branch, as a person gets it: one line on stdout.
    #[track_caller]
    pub fn invite(&self, branch: &str, more: &[&str]) -> String {
        let ran = self.cmd(&[&["invite", branch], more].concat()).expect(0);
        assert_eq!(ran.out.lines().count(), 1, "one line: {}", ran.out);
        ran.out.trim().into()
    }

    /// Joins with a code on standard input.
    #[track_caller]
    pub fn join(&self, code: &str) -> Value {
        self.feed(
            code,
            &[
                "join",
                "-",
                "--database",
                &self.database,
                "--timeout",
                "100",
                "--json",
            ],
        )
        .expect(0)
        .document()
    }

    /// Starts `run` without waiting for anything.
    pub fn spawn(&mut self) {
        self.spawn_with(&["run"], "");
    }

    /// Starts a command that is to be killed, or to last.
    pub fn spawn_with(&mut self, arguments: &[&str], input: &str) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        // It ends with the thread of its test, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(self.program())
            .arg("--config")
            .arg(&self.config)
            .args(arguments);
        command
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut child = command.spawn().unwrap();
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        self.running = Some(child);
    }

    /// Starts `run`, and waits until it hears commands.
    #[track_caller]
    pub fn run(&mut self) {
        let before = self.api_record();
        self.spawn();
        let (name, log) = (self.name.clone(), self.log.clone());
        wait_until(&format!("{name} runs"), Duration::from_secs(30), || {
            if let Some(status) = self.running.as_mut().unwrap().try_wait().unwrap() {
                panic!("{name} ended by itself ({status}): {}", tail(&log));
            }
            let record = self.api_record();
            if record.is_some() && record != before {
                Ok(())
            } else {
                Err(format!("api record {record:?}"))
            }
        });
    }

    fn api_record(&self) -> Option<(String, std::time::SystemTime)> {
        let path = self.beside("api");
        Some((
            std::fs::read_to_string(&path).ok()?,
            std::fs::metadata(&path).ok()?.modified().ok()?,
        ))
    }

    /// The address where the running office hears scripts.
    pub fn api(&self) -> String {
        std::fs::read_to_string(self.beside("api"))
            .expect("the office records its address")
            .trim()
            .into()
    }

    pub fn beside(&self, extension: &str) -> PathBuf {
        PathBuf::from(format!("{}.{extension}", self.config.display()))
    }

    /// The most memory that the running process ever held, in MiB.
    #[track_caller]
    pub fn peak_memory(&self) -> u64 {
        let child = self.running.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|text| text.trim().strip_suffix(" kB"));
        kilobytes
            .expect("the system tells")
            .trim()
            .parse::<u64>()
            .unwrap()
            / 1024
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.running.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the clean end.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.running.take().expect("it runs");
        assert!(
            Command::new("kill")
                .arg(child.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        let log = self.log.clone();
        let status = wait_until(
            &format!("{} stops", self.name),
            Duration::from_secs(15),
            || child.try_wait().unwrap().ok_or_else(|| tail(&log)),
        );
        assert!(
            status.success(),
            "{} stopped with {status}: {}",
            self.name,
            tail(&log)
        );
    }

    /// Whether a started command has ended, and how.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.running.as_mut()?.try_wait().unwrap()?;
        self.running = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits until this office says that it is in sync, in contact with its peers.
    #[track_caller]
    pub fn wait_in_sync(&self, patience: Duration) -> Value {
        wait_until(&format!("{} in sync", self.name), patience, || {
            let ran = self.cmd(&["status", "--json"]);
            if ran.code != 0 {
                return Err(format!("{ran:?}"));
            }
            let status = ran.document();
            if status["in_sync"] == true && status["transport"]["connected"] == true {
                Ok(status)
            } else {
                Err(status.to_string())
            }
        })
    }

    /// Waits until this office's link is up.
    #[track_caller]
    pub fn wait_in_contact(&self, patience: Duration) {
        wait_until(&format!("{} in contact", self.name), patience, || {
            let status = self.status();
            let connected = status["transport"]["connected"] == true;
            connected.then_some(()).ok_or_else(|| status.to_string())
        });
    }

    /// Replaces text of the configuration.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        assert!(
            text.contains(from),
            "the configuration has no {from}: {text}"
        );
        std::fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

impl Drop for Office {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}\n----", self.name, tail(&self.log));
        } else {
            self.check_secrets(&self.log());
        }
    }
}

/// All offices are in sync at the same time, and the head's comparison says that all are equal.
#[track_caller]
pub fn settle(head: &Office, branches: &[&Office], patience: Duration) {
    for _ in 0..2 {
        for office in std::iter::once(&head).chain(branches) {
            office.wait_in_sync(patience);
        }
    }
    let ran = head.cmd(&["verify", "--json"]).expect(0);
    let document = ran.document();
    assert_eq!(document["equal"], true, "{document}");
    assert_eq!(
        document["branches"].as_array().unwrap().len(),
        branches.len(),
        "{document}"
    );
}
