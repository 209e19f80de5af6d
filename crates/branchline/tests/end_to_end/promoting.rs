//! The head and all its backups are gone: a branch takes its place, and another one that one's.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);
const TABLES: &str = "CREATE TABLE item (id integer PRIMARY KEY, name varchar(40)); \
     CREATE TABLE stock (id integer PRIMARY KEY, amount integer NOT NULL); \
     INSERT INTO item VALUES (1, 'one'), (2, 'two'); INSERT INTO stock VALUES (1, 100)";

fn names(office: &Office) -> Vec<Vec<String>> {
    Db::open(&office.database).rows("SELECT id, name FROM item ORDER BY id")
}

fn amount(office: &Office) -> String {
    Db::open(&office.database).one("SELECT amount FROM stock WHERE id = 1")
}

fn write(office: &Office, statement: &str) {
    Db::open(&office.database).run(statement);
}

fn listen() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A branch's configuration has another name than that of the head that it became.
fn as_head(branch: &Office, folder: &TempDir) -> Office {
    let mut head = Office::new(folder.path(), "HO again", &branch.database);
    head.config = branch.config.clone();
    head
}

fn join_again(head: &Office, branch: &mut Office) {
    let code = head.invite(&branch.name.clone(), &[]);
    let document = branch.join(&code);
    assert_eq!(document["succeeded"], true, "{document}");
    assert_eq!(document["rows"], 0, "no copy of the tables: {document}");
    branch.run();
}

#[test]
fn a_branch_takes_the_place_of_a_lost_head_and_another_branch_its_place() {
    let folder = TempDir::new().unwrap();
    let mut head = Office::new(folder.path(), "HO", &postgres().fresh_database());
    Db::open(&head.database).run(TABLES);
    head.init("*", &["--listen", &listen()]);
    head.edit(
        "[tables.\"*\"]",
        "[tables.stock]\ncounters = [\"amount\"]\n\n[tables.\"*\"]",
    );
    let mut first = Office::new(folder.path(), "b1", &postgres().fresh_database());
    let mut second = Office::sqlite(folder.path(), "b2");
    let mut third = Office::sqlite(folder.path(), "b3");
    let codes = ["b1", "b2", "b3"].map(|name| head.invite(name, &[]));
    head.run();
    for (office, code) in [&mut first, &mut second, &mut third]
        .into_iter()
        .zip(&codes)
    {
        office.join(code);
        office.run();
    }
    write(&second, "UPDATE stock SET amount = amount - 1");
    settle(&head, &[&first, &second, &third], SOON);

    // The head is lost while everybody goes on writing.
    let backup = std::fs::read(&head.config).unwrap();
    third.stop();
    write(&second, "INSERT INTO item VALUES (20, 'before the loss')");
    wait_until("the first has it", SOON, || {
        let seen = names(&first);
        if seen.len() == 3 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    head.kill();
    write(
        &first,
        "INSERT INTO item VALUES (10, 'at b1'); UPDATE stock SET amount = amount - 10; UPDATE item SET name = 'b1 said' WHERE id = 2",
    );
    write(
        &second,
        "INSERT INTO item VALUES (21, 'at b2'); UPDATE stock SET amount = amount - 20",
    );
    write(
        &third,
        "INSERT INTO item VALUES (30, 'at b3'); UPDATE stock SET amount = amount - 30; UPDATE item SET name = 'b3 said' WHERE id = 2",
    );

    // A running office is not promoted, nor is the head, and nothing is done without a way to reach it.
    first
        .cmd(&["promote", "--listen", &listen()])
        .expect(2)
        .says(&["running", "stop it"]);
    head.cmd(&["promote", "--listen", &listen()])
        .expect(2)
        .says(&["is the head already"]);
    first.stop();
    first.cmd(&["promote"]).expect(2).says(&["--listen"]);
    first
        .cmd(&["promote", "--listen", &listen(), "--name", "b2"])
        .expect(2)
        .says(&["name of a branch"]);
    let document = first.json(&["promote", "--listen", &listen()]);
    assert_eq!(document["office"], "HO", "{document}");
    assert_eq!(document["was"], "b1");
    assert_eq!(document["branches"], serde_json::json!(["b2"]));
    assert_ne!(document["batches"], 0, "{document}");
    let text = std::fs::read_to_string(&first.config).unwrap();
    assert!(text.contains("counters = [\"amount\"]"), "{text}");
    first
        .cmd(&["promote", "--listen", &listen()])
        .expect(2)
        .says(&["is the head already"]);

    let mut promoted = as_head(&first, &folder);
    promoted.run();
    second.stop();
    join_again(&promoted, &mut second);
    join_again(&promoted, &mut third);
    settle(&promoted, &[&second, &third], SOON);
    for office in [&promoted, &second, &third] {
        let expected = [
            ["1", "one"],
            ["2", "b3 said"],
            ["10", "at b1"],
            ["20", "before the loss"],
            ["21", "at b2"],
            ["30", "at b3"],
        ];
        assert_eq!(names(office), expected, "{}", office.name);
        assert_eq!(amount(office), "39", "{}", office.name);
    }

    // The old head comes back, under its own address: nobody speaks to it any more, and it changes nothing.
    std::fs::write(&head.config, backup).unwrap();
    write(&head, "UPDATE item SET name = 'the old head' WHERE id = 1");
    head.run();
    let status = head.status();
    assert_eq!(status["role"], "head", "{status}");
    settle(&promoted, &[&second, &third], SOON);
    assert_eq!(names(&second)[0][1], "one");
    head.stop();

    // The new head is lost, too, and a SQLite branch takes its place.
    write(
        &promoted,
        "INSERT INTO item VALUES (11, 'at the second head')",
    );
    settle(&promoted, &[&second, &third], SOON);
    promoted.kill();
    second.stop();
    write(&second, "UPDATE stock SET amount = amount - 1");
    let document = second.json(&["promote", "--name", "CENTRAL", "--listen", &listen()]);
    assert_eq!(document["office"], "CENTRAL", "{document}");
    let mut central = as_head(&second, &folder);
    central.run();
    third.stop();
    write(&third, "UPDATE stock SET amount = amount - 2");
    join_again(&central, &mut third);
    settle(&central, &[&third], SOON);
    for office in [&central, &third] {
        assert_eq!(amount(office), "36", "{}", office.name);
        assert_eq!(names(office).len(), 7);
    }
    // A new branch joins as ever.
    let mut fourth = Office::sqlite(folder.path(), "b4");
    let code = central.invite("b4", &[]);
    fourth.join(&code);
    fourth.run();
    settle(&central, &[&third, &fourth], SOON);
    assert_eq!(amount(&fourth), "36");
    for office in [&mut third, &mut fourth, &mut central] {
        office.stop();
    }
}

#[test]
fn a_branch_that_has_only_its_own_rows_of_a_table_is_not_promoted() {
    let folder = TempDir::new().unwrap();
    let mut head = Office::sqlite(folder.path(), "HO");
    std::fs::write(folder.path().join("HO.db"), "").unwrap();
    Db::open(&head.database).run(TABLES);
    head.init("*", &["--listen", &listen()]);
    head.edit(
        "[tables.\"*\"]",
        "[tables.stock]\ndirection = \"up\"\n\n[tables.\"*\"]",
    );
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    head.kill();
    branch
        .cmd(&["promote", "--listen", &listen()])
        .expect(2)
        .says(&["stock", "go up"]);
    // It is the branch that it was.
    head.run();
    branch.run();
    write(&branch, "INSERT INTO item VALUES (3, 'three')");
    settle(&head, &[&branch], SOON);
    assert_eq!(names(&head).len(), 3);
    branch.stop();
    head.stop();
}
