//! Many branches that come back in the same moment, each with a backlog.
//!
//! `BRANCHLINE_CROWD` sets how many; `bench crowd` measures a hundred.

use std::time::{Duration, Instant};

use branchline_testkit::cable::Cable;
use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, wait_until};
use crate::sql::Db;

const DEFAULT_BRANCHES: u64 = 40;
/// What is written while the line is cut: transactions of so many rows.
const AT_HEAD: [u64; 2] = [100, 20];
const AT_BRANCH: [u64; 2] = [5, 4];
const RANGE: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(300);
/// By so much the head's memory may grow, whatever the number of branches, in MiB.
const GROWTH: u64 = 64;

fn crowd() -> u64 {
    std::env::var("BRANCHLINE_CROWD")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_BRANCHES)
}

fn write(db: &mut Db, office: u64, [transactions, rows]: [u64; 2]) {
    for transaction in 0..transactions {
        let rows: Vec<String> = (0..rows)
            .map(|row| {
                let id = office * RANGE + transaction * rows + row;
                format!("INSERT INTO item VALUES ({id}, {office}, 'of transaction {transaction}')")
            })
            .collect();
        db.transaction(&rows).unwrap();
    }
}

/// A branch that is joined and runs, connected through a cable where there is one.
fn branch(head: &Office, folder: &TempDir, name: &str, port: u16, cable: Option<&Cable>) -> Office {
    let code = head.invite(name, &[]);
    let mut office = Office::sqlite(folder.path(), name);
    office.join(&code);
    if let Some(cable) = cable {
        office.edit(&format!(":{port}"), &format!(":{}", cable.port));
    }
    office.spawn();
    office
}

#[test]
fn many_branches_come_back_at_once_with_a_backlog() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run("CREATE TABLE item (id bigint PRIMARY KEY, office bigint NOT NULL, note text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    let port = free_port();
    head.init("*", &["--listen", &format!("127.0.0.1:{port}")]);
    head.run();
    let began = Instant::now();
    let tell = |what: &str| println!("{:6.1} s: {what}", began.elapsed().as_secs_f64());
    let witness = branch(&head, &folder, "witness", port, None);
    let cable = Cable::lay(port);
    let branches: Vec<Office> = (1..=crowd())
        .map(|number| branch(&head, &folder, &format!("b{number}"), port, Some(&cable)))
        .collect();
    head.wait_in_sync(PATIENCE);
    tell(&format!("{} branches have joined", branches.len()));

    cable.cut();
    write(&mut at_head, 0, AT_HEAD);
    for (number, office) in (1..).zip(&branches) {
        write(&mut Db::open(&office.database), number, AT_BRANCH);
    }
    let mut expected = AT_HEAD[0] * AT_HEAD[1] + crowd() * AT_BRANCH[0] * AT_BRANCH[1];
    let before = head.peak_memory();
    tell("the backlog is written; the line is healed");
    cable.heal();

    // Meanwhile another branch goes on.
    let mut at_witness = Db::open(&witness.database);
    let healed = Instant::now();
    let mut waits = Vec::new();
    let mut number = 0;
    while at_head.one("SELECT count(*) FROM item") != expected.to_string() {
        let id = (crowd() + 1) * RANGE + number;
        at_witness.run(format!("INSERT INTO item VALUES ({id}, 0, 'meanwhile')"));
        number += 1;
        expected += 1;
        let written = Instant::now();
        let seen = format!("SELECT count(*) FROM item WHERE id = {id}");
        wait_until("the witness is heard", PATIENCE, || {
            match at_head.one(&seen).as_str() {
                "1" => Ok(()),
                _ => Err("not yet".into()),
            }
        });
        waits.push(written.elapsed());
        assert!(healed.elapsed() < PATIENCE, "the branches' backlogs arrive");
    }
    tell("the head has everything");
    head.wait_in_sync(PATIENCE);
    tell("all have everything");
    let after = head.peak_memory();
    waits.sort();
    println!(
        "{} branches: even {:?} after the return; the witness meanwhile: median {:?}, longest {:?} of {}; \
         the head's memory {before} MiB before, {after} MiB at the most",
        branches.len(),
        healed.elapsed(),
        waits.get(waits.len() / 2),
        waits.last(),
        waits.len(),
    );
    for office in branches.iter().chain([&witness]) {
        let count = Db::open(&office.database).one("SELECT count(*) FROM item");
        assert_eq!(count, expected.to_string(), "at {}", office.name);
    }
    let document = head.json(&["verify"]);
    assert_eq!(document["equal"], true, "{document}");
    assert!(
        after <= before + GROWTH,
        "the head's memory grew from {before} to {after} MiB"
    );
}
