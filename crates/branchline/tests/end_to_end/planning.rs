//! What is shared: shown, added to and taken from, in the configuration and while all runs.

use std::time::Duration;

use branchline_testkit::servers::{free_port, mariadb, postgres};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(40);

const TABLES: &str = "CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'first'); \
     CREATE TABLE stock (id integer PRIMARY KEY, quantity integer NOT NULL); INSERT INTO stock VALUES (1, 10); \
     CREATE TABLE audit_log (id integer PRIMARY KEY, what text)";

/// A head and a branch, joined and running.
fn pair(folder: &TempDir, head_url: &str, tables: &str) -> (Office, Office) {
    Db::open(head_url).run(TABLES);
    let mut head = Office::new(folder.path(), "HO", head_url);
    head.init(tables, &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);
    (head, branch)
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let all = document[list].as_array().unwrap().iter();
    all.map(|one| one.as_str().or(one["name"].as_str()).unwrap().to_owned())
        .collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[track_caller]
fn wait_for(db: &mut Db, query: &str, expected: &str) {
    wait_until(query, SOON, || match db.try_rows(query) {
        Ok(rows) if rows == [[expected]] => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn the_plan_is_written_shown_and_changed_in_the_configuration() {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite:{}", folder.path().join("HO.db").display());
    let mut db = Db::open(&url);
    db.run(TABLES);
    let head = Office::new(folder.path(), "HO", &url);
    head.init(
        "*,!audit_*",
        &["--listen", &format!("127.0.0.1:{}", free_port())],
    );
    head.edit("[plan]", "# mine\n[plan]");

    let shown = head.json(&["plan", "show"]);
    assert_eq!(sorted(names(&shown, "tables")), ["item", "stock"]);
    assert_eq!(shown["list"], "*,!audit_*");
    assert_eq!(shown["policy"], "follow");
    assert_eq!(shown["schema_version"], 1);
    let item = &shown["tables"].as_array().unwrap()[0];
    assert_eq!(item["direction"], "both");
    assert_eq!(item["columns"][0]["key"], true, "{item}");

    db.run(
        "CREATE TABLE price (id integer PRIMARY KEY, amount integer, CHECK (amount > 0), CONSTRAINT even CHECK (amount % 2 = 0));
         CREATE TABLE loose (what text)",
    );
    let shown = head.json(&["plan", "show"]);
    let left_out = &shown["not_carried"][0];
    assert_eq!(left_out["table"], "price", "{shown}");
    assert_eq!(left_out["what"], "check `even` (amount % 2 = 0)");
    assert!(left_out["why"].as_str().unwrap().contains('%'));
    let told = head.cmd(&["plan", "show"]).expect(0).out;
    assert!(told.contains("where table `price` is created"), "{told}");
    assert_eq!(names(&shown, "would_add"), ["price"]);
    assert_eq!(shown["cannot"][0]["table"], "loose", "{shown}");
    assert!(shown["cannot"][0]["advice"].as_str().unwrap().len() > 10);

    let removed = head.json(&["plan", "remove", "stock"]);
    assert_eq!(removed["list"], "*,!audit_*,!stock");
    assert_eq!(removed["applied"], false);
    let shown = head.json(&["plan", "show"]);
    assert_eq!(names(&shown, "would_remove"), ["stock"]);
    let added = head.json(&["plan", "add", "stock"]);
    assert_eq!(added["list"], "*,!audit_*,stock");
    let text = std::fs::read_to_string(&head.config).unwrap();
    assert!(text.contains("# mine\n[plan]"), "{text}");
    assert!(
        text.contains("schema = \"follow\"               # follow"),
        "{text}"
    );

    head.cmd(&["plan", "add", "audit_log"])
        .expect(2)
        .says(&["audit_log", "excludes", "by hand"]);
    head.cmd(&["plan", "add", "nowhere"]).expect(2).says(&[
        "nowhere",
        "no such table",
        "nothing was changed",
    ]);
    head.cmd(&["plan", "remove", "nowhere"])
        .expect(2)
        .says(&["nowhere", "not shared"]);
    let told = head.cmd(&["plan", "add", "price"]).expect(0).out;
    assert!(told.contains("where table `price` is created"), "{told}");
    head.json(&["plan", "remove", "price"]);
    head.cmd(&["plan", "add", "!price"]).expect(2);
    // What stands there by name and cannot be shared is told, and does not keep the rest out.
    let ran = head
        .cmd(&["plan", "add", "price,loose", "--json"])
        .expect(1);
    let document = ran.document();
    assert_eq!(document["list"], "*,!audit_*,stock,price,loose");
    assert_eq!(document["cannot"][0]["table"], "loose");
    assert_eq!(document["not_carried"], shown["not_carried"], "{document}");

    let unchanged = head.json(&["schema", "show"]);
    assert_eq!(unchanged["changed"], json!([]), "{unchanged}");
    head.cmd(&["schema", "rename", "item.colour", "color"])
        .expect(2)
        .says(&["item", "colour"]);
    head.cmd(&["schema", "accept"])
        .expect(1)
        .says(&["nothing waits"]);
    head.edit("schema = \"follow\"", "schema = \"sometimes\"");
    head.cmd(&["plan", "show"]).expect(2).says(&["sometimes"]);
}

#[test]
fn an_old_configuration_shares_what_is_shared() {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite:{}", folder.path().join("HO.db").display());
    let mut db = Db::open(&url);
    db.run(TABLES);
    let head = Office::new(folder.path(), "HO", &url);
    head.init(
        "item,stock",
        &["--listen", &format!("127.0.0.1:{}", free_port())],
    );
    head.edit("[plan]\ntables = \"item,stock\"\nschema = \"follow\"", "");
    db.run("CREATE TABLE price (id integer PRIMARY KEY, amount integer)");
    let shown = head.json(&["plan", "show"]);
    assert_eq!(shown["list"], Value::Null);
    assert_eq!(shown["would_add"], json!([]));
    assert_eq!(shown["would_remove"], json!([]));
    let added = head.json(&["plan", "add", "price"]);
    let list = added["list"].as_str().unwrap();
    assert_eq!(
        sorted(list.split(',').map(String::from).collect()),
        ["item", "price", "stock"]
    );
    assert_eq!(names(&head.json(&["plan", "show"]), "would_add"), ["price"]);
}

#[test]
fn rules_of_a_table_that_went_while_the_head_was_down_lock_nobody_out() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let (mut head, mut branch) = pair(&folder, &url, "item,stock");
    let mut at_head = Db::open(&url);
    head.stop();
    head.edit(
        "schema = \"follow\"",
        "schema = \"follow\"\n[tables.stock]\ncounters = [\"quantity\"]\n#",
    );
    at_head.run("ALTER TABLE stock RENAME COLUMN quantity TO amount");
    head.run();
    wait_until("the head follows", SOON, || {
        let status = head.status();
        (status["schema_version"].as_u64() >= Some(2))
            .then_some(())
            .ok_or(status.to_string())
    });
    let shown = head.json(&["plan", "show"]);
    let stock = shown["tables"].as_array().unwrap().iter();
    let stock = stock
        .clone()
        .find(|table| table["name"] == "stock")
        .unwrap();
    assert_eq!(stock["counters"][0]["column"], "amount", "{stock}");
    settle(&head, &[&branch], SOON);
    // The list names it as it was called: it stays shared, and keeps its rules.
    at_head.run("ALTER TABLE stock RENAME TO inventory");
    at_head.run("UPDATE inventory SET amount = 4 WHERE id = 1");
    let mut at_branch = Db::open(&branch.database);
    wait_for(
        &mut at_branch,
        "SELECT amount FROM inventory WHERE id = 1",
        "4",
    );
    head.stop();
    head.run();
    at_branch.run("UPDATE inventory SET amount = 5 WHERE id = 1");
    wait_for(
        &mut at_head,
        "SELECT amount FROM inventory WHERE id = 1",
        "5",
    );
    let shown = head.json(&["plan", "show"]);
    assert_eq!(sorted(names(&shown, "tables")), ["inventory", "item"]);
    assert_eq!(shown["would_remove"], json!([]), "{shown}");
    let tables = shown["tables"].as_array().unwrap();
    let inventory = tables.iter().find(|table| table["name"] == "inventory");
    assert_eq!(inventory.unwrap()["counters"][0]["column"], "amount");
    head.stop();
    at_head.run("DROP TABLE inventory");
    for _ in 0..2 {
        head.run();
        wait_until("the table is gone", SOON, || {
            let shown = head.json(&["plan", "show"]);
            (names(&shown, "tables") == ["item"])
                .then_some(())
                .ok_or(shown.to_string())
        });
        head.stop();
    }
    head.run();
    settle(&head, &[&branch], SOON);
    assert!(head.log().contains("stock"));
    branch.stop();
    head.stop();
}

#[test]
fn tables_are_added_and_taken_out_while_all_runs() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let (mut head, mut branch) = pair(&folder, &url, "item");
    let (mut at_head, mut at_branch) = (Db::open(&url), Db::open(&branch.database));

    let added = head.json(&["plan", "add", "stock"]);
    assert_eq!(added["applied"], true, "{added}");
    assert_eq!(added["schema_version"], 2, "{added}");
    assert!(added["changed"][0].as_str().unwrap().contains("stock"));
    wait_for(
        &mut at_branch,
        "SELECT quantity FROM stock WHERE id = 1",
        "10",
    );
    at_branch.run("UPDATE stock SET quantity = 7 WHERE id = 1");
    wait_for(&mut at_head, "SELECT quantity FROM stock WHERE id = 1", "7");
    settle(&head, &[&branch], SOON);
    let status = head.status();
    assert_eq!(status["branches"][0]["schema_version"], 2, "{status}");
    assert_eq!(branch.status()["schema_version"], 2);

    let removed = head.json(&["plan", "remove", "stock"]);
    assert_eq!(removed["schema_version"], 3, "{removed}");
    wait_until("the branch follows", SOON, || {
        let status = head.status();
        (status["branches"][0]["schema_version"] == 3)
            .then_some(())
            .ok_or(status.to_string())
    });
    // The table stays, at both; what is written there stays where it is.
    at_head.run("UPDATE stock SET quantity = 1 WHERE id = 1");
    at_branch.run("UPDATE stock SET quantity = 2 WHERE id = 1");
    at_head.run("INSERT INTO item VALUES (2, 'after')");
    wait_for(
        &mut at_branch,
        "SELECT name FROM item WHERE id = 2",
        "after",
    );
    settle(&head, &[&branch], SOON);
    assert_eq!(at_head.one("SELECT quantity FROM stock"), "1");
    assert_eq!(at_branch.one("SELECT quantity FROM stock"), "2");

    // A new table by a pattern comes by itself; the plan's own change can also be made by hand.
    head.edit("tables = \"item\"", "tables = \"item,price*\"");
    let applied = head.json(&["plan", "apply"]);
    assert_eq!(applied["changed"], json!([]), "{applied}");
    at_head.run(
        "CREATE TABLE prices (id integer PRIMARY KEY, amount numeric(10,2) CHECK (amount > 0), pieces integer CONSTRAINT has_pieces CHECK (pieces > 0)); \
         INSERT INTO prices VALUES (1, 2.50, 3)",
    );
    at_head.run("INSERT INTO item VALUES (3, 'wakes')");
    wait_for(&mut at_branch, "SELECT count(*) FROM prices", "1");
    settle(&head, &[&branch], SOON);

    // A check that means the same at both came with it, and goes where it goes at the head.
    let shown = head.json(&["plan", "show"]);
    let prices = shown["tables"].as_array().unwrap().iter();
    let prices = prices.clone().find(|table| table["name"] == "prices");
    assert_eq!(
        prices.unwrap()["checks"],
        json!(["`has_pieces`: pieces > 0"])
    );
    assert_eq!(shown["not_carried"][0]["table"], "prices", "{shown}");
    let none = "INSERT INTO prices VALUES (2, -1, 0) RETURNING id";
    let refused = at_branch.try_rows(none).unwrap_err();
    assert!(refused.contains("has_pieces"), "{refused}");
    at_head.run("ALTER TABLE prices DROP CONSTRAINT has_pieces");
    at_head.run("INSERT INTO prices VALUES (3, 1, 0)");
    wait_for(
        &mut at_branch,
        "SELECT pieces FROM prices WHERE id = 3",
        "0",
    );
    settle(&head, &[&branch], SOON);
    assert_eq!(branch.json(&["holds"]), json!([]));
    branch.stop();
    head.stop();
}

#[test]
fn by_the_policy_ask_a_person_lets_a_change_pass() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    let (mut head, mut branch) = pair(&folder, &url, "*,!audit_*");
    let (mut at_head, mut at_branch) = (Db::open(&url), Db::open(&branch.database));
    head.edit("schema = \"follow\"", "schema = \"ask\"");
    head.json(&["plan", "apply"]);
    // A new table of the pattern waits for a person, and nothing else does.
    at_head.run("CREATE TABLE price (id integer PRIMARY KEY)");
    at_head.run("INSERT INTO item VALUES (2, 'goes on')");
    wait_for(
        &mut at_branch,
        "SELECT name FROM item WHERE id = 2",
        "goes on",
    );
    assert_eq!(head.status()["schema_version"], 1);
    assert_eq!(names(&head.json(&["plan", "show"]), "would_add"), ["price"]);
    head.cmd(&["schema", "accept"])
        .expect(1)
        .says(&["no change"]);

    at_head.run("ALTER TABLE item ADD COLUMN colour text");
    at_head.run("INSERT INTO item VALUES (3, 'waits', 'red')");
    wait_until("the change waits", SOON, || {
        let status = head.status();
        (status["schema_waiting"][0].as_str() == Some("column `item.colour` is new"))
            .then_some(())
            .ok_or(status.to_string())
    });
    assert_eq!(head.json(&["schema", "show"])["waits"], true);
    let accepted = head.json(&["schema", "accept"]);
    assert_eq!(accepted["schema_version"], 2, "{accepted}");
    assert_eq!(accepted["waiting"], json!([]));
    wait_for(
        &mut at_branch,
        "SELECT colour FROM item WHERE id = 3",
        "red",
    );
    let applied = head.json(&["plan", "apply"]);
    assert_eq!(applied["schema_version"], 3, "{applied}");
    wait_for(&mut at_branch, "SELECT count(*) FROM price", "0");
    settle(&head, &[&branch], SOON);
    branch.stop();
    head.stop();
}

/// What is not made elsewhere is said where a person decides about it: at `init` what the head cannot say, and at `join` what the
/// branch's server does not take.
#[test]
fn what_is_not_carried_over_is_told_from_the_start() {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite:{}", folder.path().join("HO.db").display());
    Db::open(&url).run(
        "CREATE TABLE price (id integer PRIMARY KEY CHECK (id < 5000000000), amount integer, CONSTRAINT even CHECK (amount % 2 = 0)); \
         CREATE TABLE mine (id integer PRIMARY KEY CHECK (id <> 7))",
    );
    let mut head = Office::new(folder.path(), "HO", &url);
    let listen = format!("127.0.0.1:{}", free_port());
    let document = head.init("*", &["--listen", &listen]);
    let not_carried = document["not_carried"].as_array().unwrap();
    assert_eq!(not_carried.len(), 1, "{document}");
    assert_eq!(not_carried[0]["what"], "check `even` (amount % 2 = 0)");
    let code = head.invite("b1", &[]);
    head.run();
    let at_branch = mariadb().fresh_database();
    // The application's own table is as it is.
    Db::open(&at_branch).run("CREATE TABLE mine (id bigint AUTO_INCREMENT PRIMARY KEY)");
    let branch = Office::new(folder.path(), "b1", &at_branch);
    let document = branch.join(&code);
    let not_carried = document["not_carried"].as_array().unwrap();
    assert_eq!(not_carried.len(), 1, "{document}");
    assert_eq!(not_carried[0]["table"], "price");
    assert_eq!(not_carried[0]["what"], "check id < 5000000000");
    assert!(not_carried[0]["why"].as_str().unwrap().contains("numbers"));
    head.stop();
}
