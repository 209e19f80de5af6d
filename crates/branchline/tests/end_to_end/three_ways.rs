//! The three ways to keep in sync: live, by itself after an outage, and when asked.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use branchline_testkit::servers::{free_port, postgres, rabbitmq};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(20);

/// A head on PostgreSQL and one branch on SQLite, on the direct transport, joined and stopped.
fn pair(folder: &TempDir) -> (Office, Office) {
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'first')");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    head.stop();
    (head, branch)
}

#[track_caller]
fn wait_for_item(db: &mut Db, id: u64, patience: Duration) -> Duration {
    let started = Instant::now();
    wait_until(&format!("item {id}"), patience, || {
        if db.one(&format!("SELECT count(*) FROM item WHERE id = {id}")) == "1" {
            Ok(())
        } else {
            Err("absent".into())
        }
    });
    started.elapsed()
}

#[test]
fn live_changes_arrive_at_once_and_by_themselves_after_an_outage() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = pair(&folder);
    head.run();
    branch.run();
    let (mut at_head, mut at_branch) = (Db::open(&head.database), Db::open(&branch.database));
    branch.wait_in_sync(SOON);
    for id in 10..15 {
        at_head.run(format!("INSERT INTO item VALUES ({id}, 'head')"));
        let down = wait_for_item(&mut at_branch, id, SOON);
        at_branch.run(format!("INSERT INTO item VALUES ({}, 'branch')", id + 100));
        let up = wait_for_item(&mut at_head, id + 100, SOON);
        println!("down {down:?}, up {up:?}");
    }
    head.kill();
    at_head.run("INSERT INTO item VALUES (20, 'head, alone')");
    at_branch.run("INSERT INTO item VALUES (120, 'branch, alone')");
    wait_until("the branch knows that the head is gone", SOON, || {
        let status = branch.status();
        if status["transport"]["connected"] == false && status["in_sync"] == false {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    head.run();
    wait_for_item(&mut at_branch, 20, SOON);
    wait_for_item(&mut at_head, 120, SOON);
    settle(&head, &[&branch], SOON);
    branch.stop();
    head.stop();
}

#[test]
fn in_manual_mode_data_moves_only_when_asked() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = pair(&folder);
    branch.edit("mode = \"live\"", "mode = \"manual\"");
    head.run();
    branch.run();
    let (mut at_head, mut at_branch) = (Db::open(&head.database), Db::open(&branch.database));
    at_head.run("INSERT INTO item VALUES (2, 'head')");
    at_branch.run("INSERT INTO item VALUES (102, 'branch')");
    wait_until("the write is captured", SOON, || {
        let status = branch.status();
        assert_eq!(status["mode"], "manual");
        let waits = status["pending_changes"].as_u64() > Some(0)
            || status["outbox"]["batches"].as_u64() > Some(0);
        if waits && status["in_sync"] == false {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert_stays_apart(&mut at_head, &mut at_branch, 2);

    branch.cmd(&["sync"]).expect(0);
    assert_eq!(at_head.one("SELECT count(*) FROM item WHERE id = 102"), "1");
    assert_eq!(at_branch.one("SELECT count(*) FROM item WHERE id = 2"), "1");

    at_head.run("INSERT INTO item VALUES (3, 'head')");
    at_branch.run("INSERT INTO item VALUES (103, 'branch')");
    assert_stays_apart(&mut at_head, &mut at_branch, 3);
    let answer = post(&branch.api(), "/api/sync");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(at_head.one("SELECT count(*) FROM item WHERE id = 103"), "1");
    assert_eq!(at_branch.one("SELECT count(*) FROM item WHERE id = 3"), "1");

    branch.stop();
    at_head.run("INSERT INTO item VALUES (4, 'head')");
    at_branch.run("INSERT INTO item VALUES (104, 'branch')");
    let document = branch.json(&["sync"]);
    assert_eq!(document["in_sync"], true, "{document}");
    assert_eq!(at_head.one("SELECT count(*) FROM item WHERE id = 104"), "1");
    assert_eq!(at_branch.one("SELECT count(*) FROM item WHERE id = 4"), "1");
    head.stop();

    // The head away: the exit code and what waits.
    at_branch.run("INSERT INTO item VALUES (105, 'branch')");
    let ran = branch
        .cmd(&["sync", "--timeout", "3"])
        .expect(3)
        .says(&["nothing is lost", "waiting here"]);
    println!("{}", ran.err);

    // The head's own `sync` serves until all branches are even.
    branch.edit("mode = \"manual\"", "mode = \"live\"");
    branch.run();
    head.cmd(&["sync", "--timeout", "30"]).expect(0);
    assert_eq!(at_head.one("SELECT count(*) FROM item WHERE id = 105"), "1");
    branch.stop();
    head.cmd(&["sync", "--timeout", "2"])
        .expect(3)
        .says(&["b1"]);
}

#[test]
fn a_round_ends_with_whoever_asked_for_it() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = pair(&folder);
    branch.edit("mode = \"live\"", "mode = \"manual\"");
    branch.run();
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "--max-time", "1", "-X", "POST"]);
    curl.arg(format!("http://{}/api/sync?timeout=600", branch.api()));
    let asked = curl.status().unwrap();
    assert!(!asked.success(), "the head is away: there is no answer yet");
    // Answered after the office has seen that the other connection is closed.
    for _ in 0..3 {
        branch.status();
    }
    let (mut at_head, mut at_branch) = (Db::open(&head.database), Db::open(&branch.database));
    at_head.run("INSERT INTO item VALUES (2, 'head')");
    at_branch.run("INSERT INTO item VALUES (102, 'branch')");
    head.run();
    branch.wait_in_contact(SOON);
    assert_stays_apart(&mut at_head, &mut at_branch, 2);
    branch.stop();
    head.stop();
}

#[test]
fn commands_that_ask_a_killed_office_do_not_keep_it_down() {
    let folder = TempDir::new().unwrap();
    let (mut head, mut branch) = pair(&folder);
    head.run();
    for _ in 0..3 {
        branch.run();
        branch.wait_in_sync(SOON);
        branch.kill();
        let asked = Arc::new(Barrier::new(2));
        std::thread::scope(|scope| {
            let config = branch.config.clone();
            let (barrier, name, database) = (
                Arc::clone(&asked),
                branch.name.clone(),
                branch.database.clone(),
            );
            let monitor = scope.spawn(move || {
                let same = Office::new(config.parent().unwrap(), &name, &database);
                barrier.wait();
                (0..5)
                    .map(|_| same.cmd(&["status", "--json"]))
                    .collect::<Vec<_>>()
            });
            asked.wait();
            branch.run();
            for ran in monitor.join().unwrap() {
                ran.expect(0);
            }
        });
        branch.stop();
    }
    head.stop();
}

/// Nothing can be waited for here: it is given a second to move, and must not.
#[track_caller]
fn assert_stays_apart(at_head: &mut Db, at_branch: &mut Db, id: u64) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(
            at_branch.one(&format!("SELECT count(*) FROM item WHERE id = {id}")),
            "0"
        );
        assert_eq!(
            at_head.one(&format!(
                "SELECT count(*) FROM item WHERE id = {}",
                id + 100
            )),
            "0"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn post(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(70)))
        .unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A branch and its head need not be up at the same time: the broker stands between them.
#[test]
fn a_broker_keeps_what_an_office_sent_while_the_other_was_away() {
    let folder = TempDir::new().unwrap();
    let broker = rabbitmq();
    let vhost = broker.fresh_vhost();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY, name text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--amqp", &broker.admin_url_of(&vhost)]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    head.stop();
    let (mut at_head, mut at_branch) = (Db::open(&head.database), Db::open(&branch.database));

    branch.run();
    at_branch.run("INSERT INTO item VALUES (1, 'sent upwards')");
    wait_until("the batch is sent", SOON, || {
        let status = branch.status();
        let sent = status["outbox"]["batches"] == 1 && status["pending_changes"] == 0;
        if sent {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    branch.stop();
    head.run();
    wait_for_item(&mut at_head, 1, SOON);

    at_head.run("INSERT INTO item VALUES (2, 'sent downwards')");
    wait_until("the entry is published", SOON, || {
        let status = head.status();
        let taken = status["pending_changes"] == 0 && status["log"].as_u64() >= Some(2);
        if taken {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    head.stop();
    branch.run();
    wait_for_item(&mut at_branch, 2, SOON);
    branch.stop();
}
