//! MariaDB beside the other engines, at the head and at a branch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use branchline_testkit::servers::{free_port, mariadb, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);

const TABLES: &str = "CREATE TABLE account (id integer PRIMARY KEY, owner varchar(40) NOT NULL, balance decimal(12,2) NOT NULL); \
     CREATE TABLE transfer (office varchar(10), number integer, source integer NOT NULL, amount decimal(12,2) NOT NULL, \
         made MOMENT NULL, note text, PRIMARY KEY (office, number), FOREIGN KEY (source) REFERENCES account (id)); \
     INSERT INTO account VALUES (1, 'Ada', 1000), (2, 'Büro ''Süd''', 1000), (3, 'c', 1000), (4, 'd', 1000), (5, 'e', 1000), (6, 'f', 1000)";

struct End<'e>(&'e AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every office moves money between two accounts of its own, in transactions of three rows; the sum never moves.
fn company(head_url: &str, branches: &[(&str, &str)], folder: &TempDir) {
    let moment = if head_url.starts_with("mysql:") {
        "datetime(6)"
    } else {
        "timestamp"
    };
    Db::open(head_url).run(TABLES.replace("MOMENT", moment));
    let mut head = Office::new(folder.path(), "HO", head_url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let codes: Vec<String> = branches
        .iter()
        .map(|(name, _)| head.invite(name, &[]))
        .collect();
    head.run();
    let mut offices: Vec<Office> = branches
        .iter()
        .map(|(name, url)| Office::new(folder.path(), name, url))
        .collect();
    for (office, code) in offices.iter_mut().zip(&codes) {
        office.join(code);
        office.run();
    }
    let all: Vec<&Office> = std::iter::once(&head).chain(&offices).collect();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // However this ends, so do the readers.
        let _end = End(&ended);
        for &office in &all {
            let ended = &ended;
            scope.spawn(move || {
                let mut db = Db::open(&office.database);
                while !ended.load(Ordering::Relaxed) {
                    let sum = db.one("SELECT sum(balance) FROM account");
                    assert_eq!(sum.parse::<f64>(), Ok(6000.0), "at {}", office.name);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let writers: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(at, &office)| {
                scope.spawn(move || {
                    let mut db = Db::open(&office.database);
                    let (from, to, name) = (2 * at + 1, 2 * at + 2, &office.name);
                    for number in 0..60 {
                        let transfer = [
                            format!("UPDATE account SET balance = balance - 0.05 WHERE id = {from}"),
                            format!("UPDATE account SET balance = balance + 0.05 WHERE id = {to}"),
                            format!("INSERT INTO transfer VALUES ('{name}', {number}, {from}, 0.05, '2024-02-29 12:00:00', 'it''s {number}')"),
                        ];
                        while db.transaction(&transfer).is_err() {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        let of: Vec<&Office> = offices.iter().collect();
        settle(&head, &of, SOON);
    });
    for office in std::iter::once(&head).chain(&offices) {
        let mut db = Db::open(&office.database);
        let transfers = db.one("SELECT count(*) FROM transfer");
        assert_eq!(
            transfers,
            (60 * (1 + offices.len())).to_string(),
            "at {}",
            office.name
        );
        let last = db.one("SELECT balance FROM account WHERE id = 1");
        assert_eq!(last.parse::<f64>(), Ok(997.0), "at {}", office.name);
        let name = db.one("SELECT owner FROM account WHERE id = 2");
        assert_eq!(name, "Büro 'Süd'");
    }
    for office in offices.iter_mut().chain([&mut head]) {
        office.stop();
    }
}

#[test]
fn a_head_on_mariadb_with_branches_on_postgresql_and_sqlite() {
    let folder = TempDir::new().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("b2.db").display());
    let branches = [("b1", postgres().fresh_database()), ("b2", sqlite)];
    let branches: Vec<(&str, &str)> = branches
        .iter()
        .map(|(name, url)| (*name, url.as_str()))
        .collect();
    company(&mariadb().fresh_database(), &branches, &folder);
}

#[test]
fn a_head_on_postgresql_with_branches_on_mariadb() {
    let folder = TempDir::new().unwrap();
    let branches = [
        ("b1", mariadb().fresh_database()),
        ("b2", mariadb().fresh_database()),
    ];
    let branches: Vec<(&str, &str)> = branches
        .iter()
        .map(|(name, url)| (*name, url.as_str()))
        .collect();
    company(&postgres().fresh_database(), &branches, &folder);
}
