//! A hundred branches on SQLite files come back in the same moment, each with a backlog, to a head on PostgreSQL. Another
//! branch, whose line was never cut, writes before and meanwhile: what does it notice? The same with one branch that
//! comes back with a million rows (`storm`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use branchline_testkit::cable::Cable;
use branchline_testkit::servers::free_port;
use rusqlite::Connection;
use tokio_postgres::Client;

use crate::Arguments;
use crate::machine::{Machine, fresh_database, output, usage};
use crate::table::Figures;

/// What each branch writes while the line is cut: transactions of so many rows.
const AT_BRANCH: (i64, i64) = (20, 5);
const AT_HEAD: (i64, i64) = (200, 10);
/// What the one branch of `storm` writes.
const STORM: (i64, i64) = (50_000, 20);
const RANGE: i64 = 10_000_000;
/// How long the witness writes before the others come back.
const QUIET: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(600);

/// An office's process. It is killed when it is dropped.
struct Office<'m> {
    machine: &'m Machine,
    config: PathBuf,
    database: String,
    running: Option<Child>,
}

impl<'m> Office<'m> {
    fn new(machine: &'m Machine, folder: &Path, name: &str, database: String) -> Self {
        Self {
            machine,
            config: folder.join(format!("{name}.toml")),
            database,
            running: None,
        }
    }

    fn branch(machine: &'m Machine, folder: &Path, name: &str) -> Self {
        let file = folder.join(format!("{name}.db"));
        let database = format!("sqlite:{}", file.display());
        Self::new(machine, folder, name, database)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.machine.branchline);
        command.arg("--config").arg(&self.config).args(arguments);
        output(command.stdin(Stdio::null()))
    }

    fn start(&mut self) {
        let mut command = Command::new(&self.machine.branchline);
        command.arg("--config").arg(&self.config).arg("run");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running = Some(command.spawn().expect("the program starts"));
    }

    /// Ends its process.
    fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn joins(&mut self, head: &Self, name: &str, detour: Option<(u16, u16)>) {
        let code = head.run(&["invite", name]);
        self.run(&["join", &code, "--database", &self.database]);
        if let Some((from, to)) = detour {
            let text = std::fs::read_to_string(&self.config).expect("join wrote it");
            let text = text.replace(&format!(":{from}"), &format!(":{to}"));
            std::fs::write(&self.config, text).expect("the folder is ours");
        }
        self.start();
    }

    fn peak(&self) -> f64 {
        self.running
            .as_ref()
            .map_or(0.0, |child| usage(child.id()).peak)
    }

    fn open(&self) -> Connection {
        let file = self.database.trim_start_matches("sqlite:");
        let connection = Connection::open(file).expect("the branch's file");
        connection
            .busy_timeout(Duration::from_secs(10))
            .expect("a time-out can be set");
        connection
    }
}

impl Drop for Office<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Who comes back, and with what.
struct Return {
    name: String,
    branches: u32,
    engine: Engine,
    /// The branches' processes are stopped meanwhile; else only their line is cut.
    stopped: bool,
    at_branch: (i64, i64),
}

/// What a branch runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

/// Measures a hundred branches that come back.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let crowd = Return {
        name: format!("{} branches come back", arguments.branches),
        branches: arguments.branches,
        engine: Engine::Sqlite,
        stopped: false,
        at_branch: AT_BRANCH,
    };
    come_back(machine, &crowd, figures);
}

/// Measures one branch that comes back with a million rows.
pub fn measure_storm(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    for (engine, of, stopped) in [
        (Engine::Sqlite, "SQLite", false),
        (Engine::Sqlite, "SQLite", true),
        (Engine::Postgres, "PostgreSQL", false),
        (Engine::Postgres, "PostgreSQL", true),
    ] {
        let away = if stopped { "stopped" } else { "cut off" };
        let name = format!("storm: {of}, {away}");
        if !name.contains(&arguments.only) {
            continue;
        }
        let storm = Return {
            name,
            branches: 1,
            engine,
            stopped,
            at_branch: STORM,
        };
        come_back(machine, &storm, figures);
    }
}

fn come_back(machine: &Machine, who: &Return, figures: &mut Figures) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let database = machine.here.url(&fresh_database(&machine.here, "crowd"));
    let client = runtime.block_on(async {
        let client = connected(&database).await;
        let table = "CREATE TABLE item (id bigint PRIMARY KEY, office bigint NOT NULL, note text)";
        client.batch_execute(table).await.expect("a new table");
        client
    });
    let count = || runtime.block_on(counted(&client, "true"));
    let name = &who.name;
    let folder = new_folder(machine);
    let port = free_port();
    let mut head = Office::new(machine, &folder, "HO", database.clone());
    let listen = format!("127.0.0.1:{port}");
    head.run(&[
        "init",
        "--tables",
        "*",
        "--database",
        &database,
        "--listen",
        &listen,
    ]);
    head.start();
    let mut witness = Office::branch(machine, &folder, "witness");
    while Command::new(&machine.branchline)
        .arg("--config")
        .arg(&head.config)
        .args(["status", "--json"])
        .output()
        .is_ok_and(|answer| !answer.status.success())
    {
        std::thread::sleep(PAUSE);
    }
    witness.joins(&head, "witness", None);
    let cable = Cable::lay(port);
    let mut branches = Vec::new();
    for number in 1..=who.branches {
        let office = format!("b{number}");
        let mut branch = match who.engine {
            Engine::Sqlite => Office::branch(machine, &folder, &office),
            Engine::Postgres => {
                let name = fresh_database(&machine.there, "crowd");
                Office::new(machine, &folder, &office, machine.there.url(&name))
            }
        };
        branch.joins(&head, &office, Some((port, cable.port)));
        branches.push(branch);
    }
    head.run(&["sync", "--timeout", "600"]);
    eprintln!("{name}: all have joined");

    cable.cut();
    if who.stopped {
        branches.iter_mut().for_each(Office::stop);
    }
    let mut expected = 0;
    for (number, office) in (1..).zip(&branches) {
        match who.engine {
            Engine::Sqlite => write(&mut office.open(), number, who.at_branch),
            Engine::Postgres => {
                runtime.block_on(write_there(&office.database, number, who.at_branch));
            }
        }
        expected += who.at_branch.0 * who.at_branch.1;
    }
    for transaction in 0..AT_HEAD.0 {
        let from = transaction * AT_HEAD.1;
        let rows = format!(
            "INSERT INTO item SELECT n, 0, 'head' FROM generate_series({from}, {}) n",
            from + AT_HEAD.1 - 1
        );
        runtime
            .block_on(client.batch_execute(&rows))
            .expect("the head's rows");
    }
    expected += AT_HEAD.0 * AT_HEAD.1;
    let mut at_witness = Witness {
        connection: witness.open(),
        office: i64::from(who.branches) + 1,
        number: 0,
    };
    let quiet = Instant::now();
    while quiet.elapsed() < QUIET {
        let wait = at_witness.write(|id| runtime.block_on(counted(&client, &id)) == 1);
        figures.add("a branch alone", "to the head, ms", wait);
    }
    let before = head.peak();
    let healed = Instant::now();
    branches
        .iter_mut()
        .filter(|_| who.stopped)
        .for_each(Office::start);
    cable.heal();
    let mut waits = Vec::new();
    let mut looked = Instant::now();
    loop {
        waits.push(at_witness.write(|id| runtime.block_on(counted(&client, &id)) == 1));
        // Counting a million rows is work for the head's server.
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            if count() >= expected + at_witness.number {
                break;
            }
        }
        assert!(
            healed.elapsed() < PATIENCE,
            "{name}: not within {PATIENCE:?}"
        );
    }
    figures.add(name, "head has all, s", healed.elapsed().as_secs_f64());
    head.run(&["sync", "--timeout", "600"]);
    figures.add(name, "all even, s", healed.elapsed().as_secs_f64());
    figures.add(name, "head's memory before, MiB", before);
    figures.add(name, "head at the most, MiB", head.peak());
    let most = branches.iter().map(Office::peak).fold(0.0, f64::max);
    figures.add(name, "a branch at the most, MiB", most);
    for wait in waits {
        figures.add(&format!("meanwhile, {name}"), "to the head, ms", wait);
    }
    head.run(&["verify"]);
    drop((branches, witness, head));
    drop(std::fs::remove_dir_all(&folder));
}

async fn connected(database: &str) -> Client {
    let connected = tokio_postgres::connect(database, tokio_postgres::NoTls).await;
    let (client, connection) = connected.expect("the server answers");
    tokio::spawn(connection);
    client
}

/// The branch that was never away.
struct Witness {
    connection: Connection,
    office: i64,
    number: i64,
}

impl Witness {
    /// Writes a row and waits until it is seen. Returns how long that took, in milliseconds.
    fn write(&mut self, seen: impl Fn(String) -> bool) -> f64 {
        let id = self.office * RANGE + self.number;
        self.number += 1;
        let row = "INSERT INTO item VALUES (?1, 0, 'meanwhile')";
        self.connection.execute(row, [id]).expect("an insert");
        let written = Instant::now();
        while !seen(format!("id = {id}")) {
            assert!(written.elapsed() < PATIENCE, "the witness is heard");
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = written.elapsed();
        std::thread::sleep(PAUSE.saturating_sub(took));
        took.as_secs_f64() * 1000.0
    }
}

async fn counted(client: &Client, which: &str) -> i64 {
    let query = format!("SELECT count(*) FROM item WHERE {which}");
    client
        .query_one(&query, &[])
        .await
        .expect("the head's server answers")
        .get(0)
}

fn write(connection: &mut Connection, office: i64, (transactions, rows): (i64, i64)) {
    let lax = "PRAGMA synchronous = OFF";
    connection.execute_batch(lax).expect("a setting");
    for number in 0..transactions {
        let transaction = connection.transaction().expect("a transaction");
        for row in 0..rows {
            let id = office * RANGE + number * rows + row;
            let insert = "INSERT INTO item VALUES (?1, ?2, 'written alone')";
            transaction
                .execute(insert, [id, office])
                .expect("an insert");
        }
        transaction.commit().expect("a commit");
    }
}

async fn write_there(database: &str, office: i64, (transactions, rows): (i64, i64)) {
    let client = connected(database).await;
    let lax = "SET synchronous_commit = off";
    client.batch_execute(lax).await.expect("a setting");
    for number in 0..transactions {
        let from = office * RANGE + number * rows;
        let insert = format!(
            "INSERT INTO item SELECT n, {office}, 'written alone' FROM generate_series({from}, {}) n",
            from + rows - 1
        );
        client.batch_execute(&insert).await.expect("an insert");
    }
}

fn new_folder(machine: &Machine) -> PathBuf {
    let folder = machine
        .here
        .data()
        .join("..")
        .join(crate::machine::fresh_name("crowd"));
    std::fs::create_dir(&folder).expect("the server's folder can be written");
    folder
}
