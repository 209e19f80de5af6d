//! A branch behind a poor line: in a network namespace of its own, slow, lossy, and silently dead for seconds at a
//! time. Skipped, with a word, where no namespace can be made.

use std::time::{Duration, Instant};

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::company::seed;
use crate::line::{Line, Quality};
use crate::office::{Office, settle, skipped, wait_until};
use crate::sql::Db;
use crate::torture::ledger::{self, Keeper, Ledger};

const SOON: Duration = Duration::from_secs(90);
/// Packets are late, out of order, lost and doubled.
const POOR: Quality = Quality {
    delay: Duration::from_millis(80),
    jitter: Duration::from_millis(30),
    loss: 0.03,
    doubled: 0.01,
    bytes_per_second: 250_000,
};

#[test]
fn a_branch_behind_a_poor_line_gets_and_gives_everything() {
    let seed = seed();
    let line = match Line::lay(POOR, seed) {
        Ok(line) => line,
        Err(why) => {
            skipped(&format!("no line can be laid here: {why}"));
            return;
        }
    };
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
    println!("{} packets lost", line.lost());
    assert!(line.lost() > 0);
    let ledgers: Vec<Ledger> = keepers.into_iter().map(Keeper::stop).collect();
    settle(&head, &[&branch], SOON);
    for office in [&head, &branch] {
        ledger::check(&office.name, &mut Db::open(&office.database), &ledgers);
    }
    branch.stop();
    head.stop();
}
