//! A branch behind a poor line: in a network namespace of its own, slow, lossy where the system can do that, and
//! silently dead for seconds at a time. Skipped, with a word, where no namespace can be made.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::company::seed;
use crate::office::{Office, settle, skipped, wait_until};
use crate::sql::Db;
use crate::torture::ledger::{self, Keeper, Ledger};

const SOON: Duration = Duration::from_secs(90);
/// Packets are late, out of order, lost and doubled.
const POOR: &str = "netem delay 80ms 30ms loss 3% duplicate 1% rate 2mbit";
/// Where the system has no netem: a modem whose short queue overflows.
const SLOW: &str = "tbf rate 400kbit burst 4kb latency 60ms";

/// A namespace with one line to ours.
struct Line {
    namespace: String,
    ours: String,
    address: String,
}

fn ip(arguments: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    match command.args(arguments.split(' ')).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Line {
    fn lay() -> Result<Self, String> {
        let number = std::process::id() % 10_000;
        let (namespace, ours, theirs) = (
            format!("bl-{number}"),
            format!("bl-{number}-a"),
            format!("bl-{number}-b"),
        );
        let net = format!("10.231.{}", number % 250);
        ip(&format!("netns add {namespace}"))?;
        let line = Self {
            address: format!("{net}.1"),
            namespace,
            ours,
        };
        let (namespace, ours) = (&line.namespace, &line.ours);
        ip(&format!("link add {ours} type veth peer name {theirs}"))?;
        ip(&format!("link set {theirs} netns {namespace}"))?;
        ip(&format!("addr add {net}.1/30 dev {ours}"))?;
        ip(&format!("link set {ours} up"))?;
        ip(&format!("-n {namespace} addr add {net}.2/30 dev {theirs}"))?;
        ip(&format!("-n {namespace} link set {theirs} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        let shape = |how: &str| {
            let mut tc = Command::new("tc");
            tc.args(["qdisc", "add", "dev", ours, "root"]);
            let here = tc.args(how.split(' ')).stderr(Stdio::null()).status();
            let mut tc = Command::new("tc");
            tc.args(["-n", namespace, "qdisc", "add", "dev", &theirs, "root"]);
            let there = tc.args(how.split(' ')).stderr(Stdio::null()).status();
            here.is_ok_and(|status| status.success()) && there.is_ok_and(|status| status.success())
        };
        if shape(POOR) {
            println!("the line: {POOR}");
        } else if shape(SLOW) {
            skipped(&format!(
                "loss and delay, since there is no netem here; the line: {SLOW}"
            ));
        } else {
            return Err("tc can shape nothing".into());
        }
        Ok(line)
    }

    /// What the head sends vanishes; nobody is told.
    fn silence(&self) {
        ip(&format!("route add blackhole {}", self.far())).unwrap();
    }

    fn speak(&self) {
        ip(&format!("route del blackhole {}", self.far())).unwrap();
    }

    fn far(&self) -> String {
        format!("{}2/32", self.address.strip_suffix('1').unwrap())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(ip(&format!("route del blackhole {}", self.far())));
        drop(ip(&format!("link del {}", self.ours)));
        drop(ip(&format!("netns del {}", self.namespace)));
    }
}

#[test]
fn a_branch_behind_a_poor_line_gets_and_gives_everything() {
    let line = match Line::lay() {
        Ok(line) => line,
        Err(why) => {
            skipped(&format!("no line can be shaped here: {why}"));
            return;
        }
    };
    let seed = seed();
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).transaction(&ledger::schema(2)).unwrap();
    let mut head = Office::new(folder.path(), "HO", &url);
    let listen = format!("{}:{}", line.address, free_port());
    head.init("*", &["--listen", &listen]);
    let mut plan = std::fs::read_to_string(&head.config).unwrap();
    plan.push_str("\n[tables.counter]\ncounters = [\"value\"]\n");
    std::fs::write(&head.config, plan).unwrap();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.namespace = Some(line.namespace.clone());
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    let keepers = [&head, &branch].map(|office| {
        let number = u64::from(office.name != "HO");
        Keeper::start(&office.database, number, seed + number)
    });
    for seconds in [3, 8] {
        branch.wait_in_contact(SOON);
        line.silence();
        std::thread::sleep(Duration::from_secs(seconds));
        line.speak();
        let healed = Instant::now();
        // What the branch commits from now on reaches the head.
        let told = "SELECT n FROM tally WHERE office = 1";
        let now: u64 = Db::open(&branch.database).one(told).parse().unwrap();
        let mut at_head = Db::open(&head.database);
        wait_until("the head hears of it", SOON, || {
            let heard: u64 = at_head.one(told).parse().unwrap();
            (heard >= now)
                .then_some(())
                .ok_or(format!("{heard} of {now}"))
        });
        println!(
            "after {seconds} s of silence: caught up in {:?}",
            healed.elapsed()
        );
    }
    let ledgers: Vec<Ledger> = keepers.into_iter().map(Keeper::stop).collect();
    settle(&head, &[&branch], SOON);
    for office in [&head, &branch] {
        ledger::check(&office.name, &mut Db::open(&office.database), &ledgers);
    }
    branch.stop();
    head.stop();
}
