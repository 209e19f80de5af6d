//! Offices that changed the same row while they were apart.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use serde_json::Value;
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);
const KEYS: [&str; 10] = [
    "id", "table", "key", "reason", "at", "origin", "base", "ours", "theirs", "result",
];

#[test]
fn the_newest_wins_everywhere_and_the_loser_is_kept() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run(
        "CREATE TABLE item (id integer PRIMARY KEY, name text); \
         INSERT INTO item VALUES (1, 'start'), (2, 'start'), (3, 'start'), (4, 'start')",
    );
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let codes = [head.invite("b1", &[]), head.invite("b2", &[])];
    head.run();
    let (mut first, mut second) = (
        Office::sqlite(folder.path(), "b1"),
        Office::sqlite(folder.path(), "b2"),
    );
    first.join(&codes[0]);
    second.join(&codes[1]);
    second.run();
    let mut at_branch = Db::open(&first.database);

    // Apart: the first branch does not run. Times are told apart to the millisecond.
    let later = || std::thread::sleep(Duration::from_millis(20));
    at_branch.run("UPDATE item SET name = 'branch, older' WHERE id = 1");
    later();
    at_head.run("UPDATE item SET name = 'head, newer' WHERE id = 1");
    at_head.run("UPDATE item SET name = 'head, older' WHERE id = 2");
    later();
    at_branch.run("UPDATE item SET name = 'branch, newer' WHERE id = 2");
    at_head.run("INSERT INTO item VALUES (7, 'head''s seven')");
    at_branch.run("INSERT INTO item VALUES (7, 'branch''s seven')");
    at_branch.run("DELETE FROM item WHERE id = 3");
    later();
    at_head.run("UPDATE item SET name = 'head, newer' WHERE id = 3");
    at_head.run("UPDATE item SET name = 'head, older' WHERE id = 4");
    later();
    at_branch.run("DELETE FROM item WHERE id = 4");
    first.run();

    wait_until("the branch is heard", SOON, || {
        let name = at_head.one("SELECT name FROM item WHERE id = 2");
        if name == "branch, newer" {
            Ok(())
        } else {
            Err(name)
        }
    });
    settle(&head, &[&first, &second], SOON);
    let expected = [
        ["1", "head, newer"],
        ["2", "branch, newer"],
        ["3", "head, newer"],
        ["7", "head's seven"],
    ];
    for office in [&head, &second] {
        assert_eq!(
            Db::open(&office.database).rows("SELECT id, name FROM item ORDER BY id"),
            expected,
            "{}",
            office.name
        );
    }
    // The held row stays as its office wrote it, until a person decides.
    let kept = at_branch.rows("SELECT id, name FROM item ORDER BY id");
    assert_eq!(kept[..3], expected[..3]);
    assert_eq!(kept[3], ["7", "branch's seven"]);

    for office in [&head, &first] {
        let list = office.json(&["conflicts"]);
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 5, "at {}: {list:?}", office.name);
        let of = |key: i64| -> &Value {
            let found = list
                .iter()
                .find(|entry| entry["key"].to_string().contains(&key.to_string()));
            found.unwrap_or_else(|| panic!("row {key} at {}: {list:?}", office.name))
        };
        for entry in list {
            for key in KEYS {
                assert!(entry.get(key).is_some(), "{key} of {entry}");
            }
            assert_eq!(entry["table"], "item");
            assert_eq!(entry["origin"], "b1");
        }
        assert_eq!(of(1)["theirs"]["name"], "branch, older");
        assert_eq!(of(1)["result"]["row"]["name"], "head, newer");
        assert_eq!(of(2)["ours"]["name"], "head, older");
        assert_eq!(of(2)["result"]["row"]["name"], "branch, newer");
        assert_eq!(of(3)["theirs"], Value::Null);
        assert_eq!(of(4)["result"]["row"], Value::Null);
        let shown = office.json(&["conflicts", "show", &of(1)["id"].to_string()]);
        assert_eq!(&shown, of(1));
        let holds = office.json(&["holds"]);
        assert_eq!(
            holds.as_array().map(Vec::len),
            Some(1),
            "at {}: {holds}",
            office.name
        );
        assert_eq!(holds[0]["theirs"]["name"], "branch's seven");
        office.cmd(&["holds", "--strict"]).expect(1);
        assert_eq!(office.status()["conflicts"], 5);
        assert_eq!(office.status()["holds"], 1);
    }
    head.cmd(&["conflicts", "show", "999"])
        .expect(1)
        .says(&["999"]);
    first.stop();
    second.stop();
    head.stop();
}

#[test]
fn a_unique_value_taken_twice_holds_one_row_and_stops_nothing_else() {
    let folder = TempDir::new().unwrap();
    let (head_url, branch_url) = (postgres().fresh_database(), postgres().fresh_database());
    let mut at_head = Db::open(&head_url);
    at_head.run(
        "CREATE TABLE customer (id integer PRIMARY KEY, email text UNIQUE); \
         CREATE TABLE invoice (id text PRIMARY KEY, customer integer NOT NULL REFERENCES customer(id)); \
         INSERT INTO customer VALUES (1, 'one@example.org')",
    );
    let mut head = Office::new(folder.path(), "HO", &head_url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let codes = [head.invite("b1", &[]), head.invite("b2", &[])];
    head.run();
    let mut first = Office::sqlite(folder.path(), "b1");
    let mut second = Office::new(folder.path(), "b2", &branch_url);
    first.join(&codes[0]);
    second.join(&codes[1]);
    let (mut at_first, mut at_second) = (Db::open(&first.database), Db::open(&branch_url));

    at_first.run("INSERT INTO customer VALUES (101, 'same@example.org')");
    at_first.run("INSERT INTO invoice VALUES ('b1-1', 101)");
    at_second.run("INSERT INTO customer VALUES (201, 'same@example.org')");
    at_second.run("INSERT INTO invoice VALUES ('b2-1', 201)");
    at_second.run("INSERT INTO customer VALUES (202, 'other@example.org')");
    first.cmd(&["sync"]).expect(0);
    second.run();
    first.run();
    settle(&head, &[&first, &second], SOON);

    let customers = "SELECT id FROM customer ORDER BY id";
    let invoices = "SELECT id FROM invoice ORDER BY id";
    for db in [&mut at_head, &mut at_first] {
        assert_eq!(db.rows(customers), [["1"], ["101"], ["202"]]);
        assert_eq!(db.rows(invoices), [["b1-1"]]);
    }
    assert_eq!(at_second.rows(customers), [["1"], ["201"], ["202"]]);
    assert_eq!(at_second.rows(invoices), [["b2-1"]]);
    // Two rows of the branch are held by the head; two of the log do not fit at the branch. All are listed there.
    let held = second.json(&["holds"]);
    let reasons: Vec<&Value> = held
        .as_array()
        .unwrap()
        .iter()
        .map(|hold| &hold["reason"])
        .collect();
    assert_eq!(reasons, ["does-not-fit"; 4], "{held}");
    assert_eq!(second.status()["holds"], 4);
    assert_eq!(head.status()["holds"], 2);
    // The head tells what its database said.
    let held = head.json(&["holds"]);
    assert!(held[0]["detail"].to_string().contains("email"), "{held}");

    // The cause goes: what did not fit at the second branch lands by itself.
    at_second.run("UPDATE customer SET email = 'mine@example.org' WHERE id = 201");
    wait_until("the first branch's customer", SOON, || {
        let rows = at_second.rows(invoices);
        if rows == [["b1-1"], ["b2-1"]] {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    });
    for office in [&mut first, &mut second, &mut head] {
        office.stop();
    }
}
