//! How conflicts and holds end: by a person at the head or at a branch, or by themselves; and the rules that put two
//! changes together.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use serde_json::Value;
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);

/// A head on PostgreSQL and branches on SQLite over direct links.
struct Shop {
    head: Office,
    branches: Vec<Office>,
    at_head: Db,
    _folder: TempDir,
}

impl Shop {
    /// Tables at the head, rules of the plan besides the defaults, and so many branches, which do not run.
    fn open(tables: &str, rules: &str, branches: usize) -> Self {
        Self::open_with(tables, rules, branches, "")
    }

    /// The same, with tables that the branches had before.
    fn open_with(tables: &str, rules: &str, branches: usize, at_branches: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let url = postgres().fresh_database();
        let mut at_head = Db::open(&url);
        at_head.run(tables);
        let mut head = Office::new(folder.path(), "HO", &url);
        head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
        let text = std::fs::read_to_string(&head.config).unwrap();
        std::fs::write(&head.config, format!("{text}\n{rules}")).unwrap();
        let names: Vec<String> = (1..=branches).map(|n| format!("b{n}")).collect();
        let codes: Vec<String> = names.iter().map(|name| head.invite(name, &[])).collect();
        head.run();
        let joined = names.iter().zip(&codes).map(|(name, code)| {
            let branch = Office::sqlite(folder.path(), name);
            Db::open(&branch.database).run(at_branches);
            branch.join(code);
            branch
        });
        Self {
            branches: joined.collect(),
            head,
            at_head,
            _folder: folder,
        }
    }

    fn at_branch(&self, at: usize) -> Db {
        Db::open(&self.branches[at].database)
    }

    fn run(&mut self) {
        self.branches.iter_mut().for_each(Office::run);
    }

    #[track_caller]
    fn settle(&self) {
        settle(&self.head, &self.branches.iter().collect::<Vec<_>>(), SOON);
    }

    fn stop(&mut self) {
        self.branches.iter_mut().for_each(Office::stop);
        self.head.stop();
    }
}

/// Times of two changes are told apart.
fn later() {
    std::thread::sleep(Duration::from_millis(20));
}

#[track_caller]
fn wait_for(db: &mut Db, query: &str, expected: &[&str]) {
    wait_until(query, SOON, || {
        let rows = db.rows(query).concat();
        if rows == expected {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    });
}

/// The one listed entry about this row.
#[track_caller]
fn listed(office: &Office, list: &str, key: &Value) -> Value {
    let entries = office.json(&[list]);
    let found: Vec<&Value> = entries
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["key"] == *key)
        .collect();
    assert_eq!(found.len(), 1, "{list} of {}: {entries}", office.name);
    found[0].clone()
}

#[track_caller]
fn id_of(entry: &Value) -> String {
    text(&entry["id"])
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), String::from)
}

#[test]
fn a_person_at_either_office_lets_the_other_row_stand() {
    let mut shop = Shop::open(
        "CREATE TABLE item (id integer PRIMARY KEY, name text); \
         INSERT INTO item SELECT n, 'start' FROM generate_series(1, 3) n",
        "",
        2,
    );
    let mut at_first = shop.at_branch(0);
    let mut at_second = shop.at_branch(1);
    for row in 1..=3 {
        at_first.run(format!("UPDATE item SET name = 'branch' WHERE id = {row}"));
    }
    later();
    shop.at_head.run("UPDATE item SET name = 'head'");
    shop.run();
    wait_for(
        &mut at_first,
        "SELECT name FROM item WHERE id = 3",
        &["head"],
    );
    shop.settle();
    let names = "SELECT name FROM item ORDER BY id";

    // At the head, beside `run`.
    let entry = listed(&shop.head, "conflicts", &1.into());
    assert_eq!(entry["settled"], Value::Null);
    let told = shop
        .head
        .cmd(&["conflicts", "show", &id_of(&entry)])
        .expect(0)
        .out;
    for words in [
        "b1 wrote this row",
        "written by HO",
        "the head's row stands",
        "--keep remote",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let ran = shop
        .head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "remote"])
        .expect(0);
    assert!(ran.out.contains("the branch's row stands"), "{}", ran.out);
    shop.settle();
    // At the branch, beside `run`: it is done when the command says so.
    let entry = listed(&shop.branches[0], "conflicts", &2.into());
    let document = shop.branches[0]
        .cmd(&[
            "conflicts",
            "resolve",
            &id_of(&entry),
            "--keep",
            "local",
            "--json",
        ])
        .expect(0)
        .document();
    assert_eq!(document["settled"]["keep"], "branch", "{document}");
    assert_eq!(document["settled"]["by"], "b1", "{document}");
    assert_eq!(at_first.one("SELECT name FROM item WHERE id = 2"), "branch");
    // At the branch, while none runs there.
    shop.branches[0].stop();
    let entry = listed(&shop.branches[0], "conflicts", &3.into());
    shop.branches[0]
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "local"])
        .expect(0);
    assert_eq!(at_first.one("SELECT name FROM item WHERE id = 3"), "branch");
    shop.branches[0].run();
    shop.settle();
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        assert_eq!(db.rows(names).concat(), ["branch"; 3]);
    }
    for office in [&shop.head, &shop.branches[0]] {
        for key in 1..=3 {
            let entry = listed(office, "conflicts", &key.into());
            assert_eq!(
                entry["settled"]["keep"], "branch",
                "at {}: {entry}",
                office.name
            );
            assert_eq!(entry["settled"]["row"]["name"], "branch");
        }
    }
    // It is reversed like any other decision.
    shop.head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "local"])
        .expect(0);
    shop.settle();
    assert_eq!(at_second.rows(names).concat(), ["branch", "branch", "head"]);

    // What cannot be done is told.
    shop.head
        .cmd(&["conflicts", "resolve", "999", "--keep", "local"])
        .expect(1)
        .says(&["999"]);
    shop.branches[1]
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "remote"])
        .expect(1)
        .says(&["b1", "head"]);
    shop.head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "base"])
        .expect(1)
        .says(&["before = true"]);
    shop.head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "mine"])
        .expect(2);
    shop.head.stop();
    let command = [
        "conflicts",
        "resolve",
        &id_of(&entry),
        "--keep",
        "local",
        "--timeout",
        "2",
    ];
    shop.branches[0].cmd(&command).expect(3).says(&["the head"]);
    shop.branches[0].stop();
    shop.branches[0].cmd(&command).expect(3).says(&["the head"]);
    // The head needs nobody.
    shop.head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "remote"])
        .expect(0);
    assert_eq!(shop.at_head.rows(names).concat(), ["branch"; 3]);
    shop.head.run();
    shop.branches[0].run();
    shop.settle();
    assert_eq!(at_first.rows(names).concat(), ["branch"; 3]);
    shop.stop();
}

#[test]
fn a_rows_history_is_told_at_the_head_and_at_a_branch() {
    let mut shop = Shop::open(
        "CREATE TABLE item (shop text, id integer, name text, PRIMARY KEY (shop, id))",
        "",
        1,
    );
    shop.run();
    let mut at_branch = shop.at_branch(0);
    at_branch.run("INSERT INTO item VALUES ('north', -7, 'made')");
    shop.settle();
    shop.at_head.run("UPDATE item SET name = 'mended'");
    shop.settle();
    at_branch.run("DELETE FROM item");
    shop.settle();
    let document = shop.head.json(&["history", "item", "north", "-7"]);
    for key in ["table", "key", "row", "versions", "decisions"] {
        assert!(document.get(key).is_some(), "{key}: {document}");
    }
    let versions = document["versions"].as_array().unwrap();
    let origins: Vec<&Value> = versions.iter().map(|version| &version["origin"]).collect();
    assert_eq!(origins, ["b1", "HO", "b1"], "{document}");
    assert_eq!(versions[2]["what"], "deleted");
    assert_eq!(
        shop.branches[0].json(&["history", "item", "north", "-7"]),
        document
    );
    let told = shop.branches[0]
        .cmd(&["history", "item", "north", "-7"])
        .expect(0)
        .out;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[1].contains("b1 wrote"), "{told}");
    assert!(
        lines[2].contains("HO changed name: made -> mended"),
        "{told}"
    );
    assert!(lines[3].contains("b1 deleted"), "{told}");

    shop.head.cmd(&["history", "item", "south", "1"]).expect(1);
    shop.head
        .cmd(&["history", "item", "north"])
        .expect(2)
        .says(&["shop, id"]);
    shop.head
        .cmd(&["history", "item", "north", "x"])
        .expect(2)
        .says(&["`x`"]);
    shop.branches[0]
        .cmd(&["history", "till", "1"])
        .expect(2)
        .says(&["till", "item"]);
    shop.head.stop();
    let command = ["history", "item", "north", "-7", "--timeout", "2"];
    shop.branches[0].cmd(&command).expect(3).says(&["the head"]);
    shop.branches[0].stop();
}

#[test]
fn two_branches_with_one_invoice_number_are_settled_by_a_person() {
    let mut shop = Shop::open(
        "CREATE TABLE invoice (id integer PRIMARY KEY, what text)",
        "",
        2,
    );
    let (mut at_first, mut at_second) = (shop.at_branch(0), shop.at_branch(1));
    for id in 413..=415 {
        at_first.run(format!("INSERT INTO invoice VALUES ({id}, 'first')"));
        at_second.run(format!("INSERT INTO invoice VALUES ({id}, 'second')"));
    }
    shop.branches[0].cmd(&["sync"]).expect(0);
    shop.run();
    wait_until("they are held", SOON, || {
        let holds = shop.head.status()["holds"].clone();
        if holds == 3 {
            Ok(())
        } else {
            Err(holds.to_string())
        }
    });
    shop.settle();
    for office in [&shop.head, &shop.branches[1]] {
        assert_eq!(office.status()["holds"], 3, "{}", office.name);
        let entry = listed(office, "holds", &413.into());
        assert_eq!(entry["reason"], "inserted-twice");
        assert_eq!(
            (&entry["ours"]["what"], &entry["theirs"]["what"]),
            (&"first".into(), &"second".into())
        );
        office.cmd(&["holds", "--strict"]).expect(1);
        let told = office.cmd(&["holds", "show", &id_of(&entry)]).expect(0).out;
        assert!(
            told.contains("b2 created a row") && told.contains("holds drop"),
            "{told}"
        );
    }
    assert_eq!(shop.branches[0].status()["holds"], 0);
    let number = |key: i64| id_of(&listed(&shop.head, "holds", &key.into()));
    let (first, second, third) = (number(413), number(414), number(415));
    // It does not fit yet, and says why.
    shop.head
        .cmd(&["holds", "retry", &first])
        .expect(1)
        .says(&["taken"]);
    shop.branches[1]
        .cmd(&["holds", "retry", &first])
        .expect(1)
        .says(&["taken"]);
    shop.head.cmd(&["holds", "drop", &first]).expect(0);
    shop.head
        .cmd(&["conflicts", "resolve", &second, "--keep", "remote"])
        .expect(0);
    shop.branches[1].cmd(&["holds", "drop", &third]).expect(0);
    shop.settle();
    let rows = "SELECT what FROM invoice ORDER BY id";
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        assert_eq!(db.rows(rows).concat(), ["first", "second", "first"]);
    }
    for office in [&shop.head, &shop.branches[1]] {
        assert_eq!(office.status()["holds"], 0, "{}", office.name);
        assert_eq!(office.json(&["holds"]), serde_json::json!([]));
        office.cmd(&["holds", "--strict"]).expect(0);
        office
            .cmd(&["holds", "drop", &first])
            .expect(1)
            .says(&[&first]);
        let entry = listed(office, "conflicts", &414.into());
        assert_eq!(entry["settled"]["keep"], "branch", "{entry}");
    }
    // What was settled can be settled otherwise.
    shop.head
        .cmd(&["conflicts", "resolve", &third, "--keep", "remote"])
        .expect(0);
    wait_for(
        &mut at_first,
        "SELECT what FROM invoice WHERE id = 415",
        &["second"],
    );
    shop.settle();
    assert_eq!(shop.head.status()["branches"][1]["holds"], 0);
    // The branch is free again for the rows.
    at_second.run("UPDATE invoice SET what = 'mended' WHERE id = 413");
    wait_for(
        &mut at_first,
        "SELECT what FROM invoice WHERE id = 413",
        &["mended"],
    );
    shop.stop();
}

#[test]
fn a_hold_ends_by_itself_when_the_taken_value_is_free() {
    let mut shop = Shop::open(
        "CREATE TABLE customer (id integer PRIMARY KEY, email text UNIQUE); \
         CREATE TABLE visit (id integer PRIMARY KEY, customer integer NOT NULL REFERENCES customer(id))",
        "",
        2,
    );
    let (mut at_first, mut at_second) = (shop.at_branch(0), shop.at_branch(1));
    shop.at_head
        .run("INSERT INTO customer VALUES (1, 'same@example.org')");
    at_first.run("INSERT INTO customer VALUES (101, 'same@example.org')");
    at_first.run("INSERT INTO visit VALUES (1001, 101)");
    at_first.run("INSERT INTO customer VALUES (102, 'other@example.org')");
    shop.run();
    wait_for(
        &mut at_second,
        "SELECT id FROM customer ORDER BY id",
        &["1", "102"],
    );
    wait_until("the branch's rows are held", SOON, || {
        let status = shop.head.status();
        if status["holds"] == 2 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    // The head's row does not fit at the branch either: it is listed there under a name of its own.
    wait_until("the head's row is set aside at the branch", SOON, || {
        let holds = shop.branches[0].json(&["holds"]);
        if holds.as_array().map(Vec::len) == Some(3) {
            Ok(())
        } else {
            Err(holds.to_string())
        }
    });
    assert_eq!(shop.branches[0].status()["holds"], 3);
    let entry = listed(&shop.branches[0], "holds", &1.into());
    let id = id_of(&entry);
    assert!(id.starts_with("row-") && id.len() == 12, "{id}");
    assert_eq!(
        (&entry["reason"], &entry["ours"]["email"]),
        (&"does-not-fit".into(), &"same@example.org".into())
    );
    assert!(entry["detail"].to_string().contains("customer"), "{entry}");
    let told = shop.branches[0].cmd(&["holds", "show", &id]).expect(0).out;
    assert!(told.contains("It ends by itself"), "{told}");
    shop.branches[0]
        .cmd(&["holds", "drop", &id])
        .expect(1)
        .says(&["by itself"]);

    shop.at_head
        .run("UPDATE customer SET email = 'mine@example.org' WHERE id = 1");
    wait_for(&mut at_second, "SELECT id FROM visit", &["1001"]);
    shop.settle();
    let emails = "SELECT email FROM customer ORDER BY id";
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        assert_eq!(
            db.rows(emails).concat(),
            ["mine@example.org", "same@example.org", "other@example.org"]
        );
    }
    for office in [&shop.head, &shop.branches[0]] {
        assert_eq!(
            office.json(&["holds"]),
            serde_json::json!([]),
            "{}",
            office.name
        );
        assert_eq!(office.status()["holds"], 0);
        let entry = listed(office, "conflicts", &101.into());
        assert_eq!(
            (&entry["settled"]["keep"], &entry["settled"]["by"]),
            (&"branch".into(), &Value::Null)
        );
    }
    shop.stop();
}

#[test]
fn keep_base_goes_back_to_the_row_before_both_changes() {
    let mut shop = Shop::open(
        "CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'start'), (2, 'start')",
        "[tables.item]\nbefore = true\n",
        1,
    );
    let mut at_branch = shop.at_branch(0);
    at_branch.run("UPDATE item SET name = 'branch'");
    later();
    shop.at_head.run("UPDATE item SET name = 'head'");
    shop.run();
    wait_for(&mut at_branch, "SELECT name FROM item", &["head", "head"]);
    shop.settle();
    let entry = listed(&shop.head, "conflicts", &1.into());
    assert_eq!(entry["before"]["name"], "start", "{entry}");
    shop.head
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "base"])
        .expect(0);
    let entry = listed(&shop.branches[0], "conflicts", &2.into());
    shop.branches[0]
        .cmd(&["conflicts", "resolve", &id_of(&entry), "--keep", "base"])
        .expect(0);
    shop.settle();
    for db in [&mut shop.at_head, &mut at_branch] {
        assert_eq!(
            db.rows("SELECT name FROM item").concat(),
            ["start", "start"]
        );
    }
    assert_eq!(
        listed(&shop.branches[0], "conflicts", &1.into())["settled"]["keep"],
        "base"
    );
    shop.stop();
}

#[test]
fn two_offices_sell_from_one_stock_and_the_sum_is_exact() {
    let mut shop = Shop::open(
        "CREATE TABLE stock (id integer PRIMARY KEY, name text, quantity integer NOT NULL, worth numeric(12,2)); \
         INSERT INTO stock VALUES (1, 'bolts', 100, 50.00), (2, 'nuts', 5, 1.25)",
        "[tables.stock]\ncounters = [\"quantity\", \"worth\"]\nfloor = { quantity = 0 }\n",
        2,
    );
    let (mut at_first, mut at_second) = (shop.at_branch(0), shop.at_branch(1));
    for _ in 0..3 {
        at_first.run("UPDATE stock SET quantity = quantity - 7, worth = worth - 3.5 WHERE id = 1");
        at_second.run("UPDATE stock SET quantity = quantity - 10, worth = worth - 5 WHERE id = 1");
        shop.at_head
            .run("UPDATE stock SET quantity = quantity + 1, worth = worth + 0.5 WHERE id = 1");
    }
    // The same change twice counts twice, and more is sold than there is.
    at_first.run("UPDATE stock SET quantity = quantity - 4 WHERE id = 2");
    at_second.run("UPDATE stock SET quantity = quantity - 4 WHERE id = 2");
    shop.run();
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        wait_for(db, "SELECT quantity FROM stock ORDER BY id", &["52", "-3"]);
    }
    shop.settle();
    let worth = "SELECT count(*) FROM stock WHERE id = 1 AND abs(worth - 26) < 0.001";
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        assert_eq!(db.one(worth), "1");
    }
    let entries = shop.head.json(&["conflicts"]);
    let reasons: Vec<&Value> = entries
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["reason"])
        .collect();
    assert_eq!(
        reasons,
        ["below-floor"],
        "only the oversold stock is listed: {entries}"
    );
    assert_eq!(entries[0]["key"], 2);
    assert_eq!(entries[0]["result"]["row"]["quantity"], -3);
    shop.stop();
}

#[test]
fn changes_of_different_columns_are_put_together() {
    let mut shop = Shop::open(
        "CREATE TABLE customer (id integer PRIMARY KEY, name text, phone text, city text); \
         INSERT INTO customer VALUES (1, 'Ann', '1', 'Ulm'), (2, 'Bob', '2', 'Ulm')",
        "[tables.customer]\nconflict = \"merge\"\n",
        2,
    );
    let (mut at_first, mut at_second) = (shop.at_branch(0), shop.at_branch(1));
    at_first.run("UPDATE customer SET phone = '11' WHERE id = 1");
    at_second.run("UPDATE customer SET city = 'Bonn' WHERE id = 1");
    shop.at_head
        .run("UPDATE customer SET name = 'Anna' WHERE id = 1");
    // One column changed twice goes to the later change, and is listed.
    shop.at_head
        .run("UPDATE customer SET city = 'Trier', name = 'Bo' WHERE id = 2");
    later();
    at_first.run("UPDATE customer SET city = 'Mainz', phone = '22' WHERE id = 2");
    shop.run();
    let rows = "SELECT name, phone, city FROM customer ORDER BY id";
    for db in [&mut shop.at_head, &mut at_first, &mut at_second] {
        wait_for(db, rows, &["Anna", "11", "Bonn", "Bo", "22", "Mainz"]);
    }
    shop.settle();
    let entries = shop.head.json(&["conflicts"]);
    assert_eq!(entries.as_array().map(Vec::len), Some(1), "{entries}");
    assert_eq!(
        (&entries[0]["reason"], &entries[0]["key"]),
        (&"merged".into(), &2.into())
    );
    assert_eq!(entries[0]["result"]["stands"], "merged");
    shop.stop();
}

#[test]
fn a_value_that_cannot_be_read_is_listed_and_stops_nothing_else() {
    let tables = "CREATE TABLE item (id integer PRIMARY KEY, amount integer)";
    // SQLite keeps any text in a column that its application declared a number.
    let mut shop = Shop::open_with(tables, "", 1, tables);
    let mut at_branch = shop.at_branch(0);
    at_branch.run("INSERT INTO item VALUES (1, 10)");
    at_branch.run("INSERT INTO item VALUES (2, 'twenty')");
    at_branch.run("INSERT INTO item VALUES (3, 30)");
    shop.run();
    wait_for(
        &mut shop.at_head,
        "SELECT id FROM item ORDER BY id",
        &["1", "3"],
    );
    let entry = listed(&shop.branches[0], "holds", &2.into());
    assert_eq!(entry["reason"], "unreadable", "{entry}");
    for word in ["amount", "twenty"] {
        assert!(
            entry["detail"].to_string().contains(word),
            "{word}: {entry}"
        );
    }
    assert!(id_of(&entry).starts_with("row-"), "{entry}");
    assert_eq!(shop.branches[0].status()["holds"], 1);
    let told = shop.branches[0]
        .cmd(&["holds", "show", &id_of(&entry)])
        .expect(0)
        .out;
    assert!(told.contains("mend the row"), "{told}");
    at_branch.run("UPDATE item SET amount = 20 WHERE id = 2");
    wait_for(
        &mut shop.at_head,
        "SELECT amount FROM item ORDER BY id",
        &["10", "20", "30"],
    );
    shop.settle();
    assert_eq!(shop.branches[0].json(&["holds"]), serde_json::json!([]));
    assert_eq!(shop.branches[0].status()["holds"], 0);
    shop.stop();
}
