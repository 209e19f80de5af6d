//! Joining: with rows of one's own, in two goes, and all the ways in which the head says no.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);

/// A head with these tables, not running.
fn head(folder: &TempDir, tables: &str) -> Office {
    let url = postgres().fresh_database();
    Db::open(&url).run(tables);
    let head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    head
}

const CLIENTS: &str = "CREATE TABLE client (id integer PRIMARY KEY, name varchar(40) NOT NULL); \
     CREATE TABLE visit (id integer PRIMARY KEY, client_id integer NOT NULL REFERENCES client (id)); \
     INSERT INTO client VALUES (1, 'of the head'), (2, 'of both'); INSERT INTO visit VALUES (1, 1)";

#[test]
fn rows_that_a_branch_already_had_go_up_and_missing_tables_are_made() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder, CLIENTS);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let mut at_branch = {
        std::fs::write(folder.path().join("b1.db"), "").unwrap();
        Db::open(&branch.database)
    };
    at_branch.run(
        "CREATE TABLE client (id integer PRIMARY KEY, name varchar(40) NOT NULL); \
         INSERT INTO client VALUES (2, 'of both'), (50, 'of the branch')",
    );
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);
    let expected = [
        ["1", "of the head"],
        ["2", "of both"],
        ["50", "of the branch"],
    ];
    for office in [&head, &branch] {
        let mut db = Db::open(&office.database);
        assert_eq!(
            db.rows("SELECT id, name FROM client ORDER BY id"),
            expected,
            "at {}",
            office.name
        );
        assert_eq!(
            db.one("SELECT count(*) FROM visit"),
            "1",
            "at {}",
            office.name
        );
    }
    branch.stop();
    head.stop();
}

#[test]
fn a_join_that_was_killed_goes_on_where_it_stopped() {
    let folder = TempDir::new().unwrap();
    let rows = 60_000;
    let mut head = head(
        &folder,
        &format!(
            "CREATE TABLE big (id integer PRIMARY KEY, text text); \
             INSERT INTO big SELECT n, repeat('row ' || n || ' ', 20) FROM generate_series(1, {rows}) n"
        ),
    );
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.spawn_with(
        &["join", "-", "--database", &branch.database.clone()],
        &code,
    );
    let loaded = wait_until("some of the rows are there", SOON, || {
        assert_eq!(
            branch.ended(),
            None,
            "the join was to be killed mid-way: {}",
            branch.log()
        );
        if !folder.path().join("b1.db").exists() {
            return Err("no file".into());
        }
        let count = Db::open(&branch.database).try_rows("SELECT count(*) FROM big");
        match count.as_deref() {
            Ok([row]) if row[0] != "0" => Ok(row[0].parse::<u64>().unwrap()),
            other => Err(format!("{other:?}")),
        }
    });
    branch.kill();
    println!("killed after {loaded} rows");
    assert!(loaded < rows, "mid-way");
    // The code is bound to this office now; the same command goes on.
    let document = branch.join(&code);
    println!("{}", document["rows"]);
    assert_eq!(
        Db::open(&branch.database).one("SELECT count(*) FROM big"),
        rows.to_string()
    );
    branch.run();
    settle(&head, &[&branch], SOON);
    branch.stop();
    head.stop();
}

/// To a snapshot from before, a table that was rewritten is empty: no branch may take that for its content.
#[test]
fn a_table_that_is_rewritten_while_a_branch_joins_is_copied_whole() {
    let folder = TempDir::new().unwrap();
    let mut head = head(
        &folder,
        "CREATE TABLE item (id integer PRIMARY KEY, n integer); CREATE TABLE note (id integer PRIMARY KEY); \
         INSERT INTO item SELECT n, n FROM generate_series(1, 100) n",
    );
    let mut other = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    other.join(&code);
    other.run();
    settle(&head, &[&other], SOON);
    let mut migration = Db::open(&head.database);
    migration.run("BEGIN; ALTER TABLE item ALTER n TYPE bigint");
    let mut branch = Office::sqlite(folder.path(), "b2");
    let code = head.invite("b2", &[]);
    branch.spawn_with(
        &["join", "-", "--database", &branch.database.clone()],
        &code,
    );
    let mut at_head = Db::open(&head.database);
    wait_until("a chunk is asked for", SOON, || {
        let waits = "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%item%' \
                     AND query NOT LIKE 'SET LOCAL%'";
        match at_head.rows(waits).len() {
            0 => Err(head.log()),
            _ => Ok(()),
        }
    });
    // Nobody else waits for the migration.
    Db::open(&other.database).run("INSERT INTO note VALUES (1)");
    wait_until("the head hears the other branch", SOON, || {
        match at_head.one("SELECT count(*) FROM note").as_str() {
            "1" => Ok(()),
            _ => Err(head.log()),
        }
    });
    migration.run("COMMIT");
    wait_until("the branch has joined", SOON, || match branch.ended() {
        Some(0) => Ok(()),
        Some(code) => panic!("exit code {code}: {}", branch.log()),
        None => Err(branch.log()),
    });
    let mut at_branch = Db::open(&branch.database);
    assert_eq!(at_branch.one("SELECT count(*) FROM item"), "100");
    branch.run();
    settle(&head, &[&other, &branch], SOON);
    branch.stop();
    other.stop();
    head.stop();
}

#[test]
fn an_existing_table_with_a_wrong_column_is_named() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder, CLIENTS);
    let branch = Office::sqlite(folder.path(), "b1");
    std::fs::write(folder.path().join("b1.db"), "").unwrap();
    Db::open(&branch.database)
        .run("CREATE TABLE client (id integer PRIMARY KEY, surname varchar(40) NOT NULL)");
    let code = head.invite("b1", &[]);
    head.run();
    let join = |code: &str| {
        branch.feed(
            code,
            &[
                "join",
                "-",
                "--database",
                &branch.database,
                "--timeout",
                "30",
            ],
        )
    };
    join(&code).expect(2).says(&["client", "name"]);
    // Once the table is mended, the same command goes through.
    Db::open(&branch.database).run("DROP TABLE client");
    join(&code).expect(0);
    head.stop();
}

#[test]
fn codes_that_are_used_expired_replaced_or_damaged_are_refused() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder, CLIENTS);
    let first = head.invite("b1", &[]);
    let expired = head.invite("b2", &["--expires-hours", "0"]);
    let replaced = head.invite("b3", &[]);
    let newer = head.invite("b3", &[]);
    head.run();
    let branch = Office::sqlite(folder.path(), "b1");
    branch.join(&first);

    let refused = |name: &str, code: &str, words: &[&str]| {
        let office = Office::sqlite(folder.path(), name);
        let ran = office.feed(
            code,
            &[
                "join",
                "-",
                "--database",
                &office.database,
                "--timeout",
                "20",
            ],
        );
        println!("{name}: {} {}", ran.code, ran.err.trim());
        ran.expect(2).says(words);
    };
    refused("twin", &first, &["b1", "already used"]);
    refused("late", &expired, &["b2", "expired"]);
    refused("old", &replaced, &["b3", "replaced"]);
    refused(
        "cut",
        &newer[..newer.len() - 20],
        &["join code", "whole line"],
    );
    refused("foreign", "hello", &["join code", "whole line"]);
    refused("empty", "", &["join code"]);

    let third = Office::sqlite(folder.path(), "b3");
    third.join(&newer);
    // One that is here can be refused nothing, and joining again changes nothing.
    third.join(&newer);
    head.stop();
}

#[test]
fn a_join_that_waits_for_a_person_at_the_head_says_so() {
    let folder = TempDir::new().unwrap();
    let head_url = postgres().fresh_database();
    let mut at_head = Db::open(&head_url);
    at_head.run("CREATE TABLE item (id integer PRIMARY KEY, name text)");
    let mut head = Office::new(folder.path(), "HO", &head_url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    head.edit("schema = \"follow\"", "schema = \"ask\"");
    let code = head.invite("b1", &[]);
    head.run();
    at_head.run("ALTER TABLE item ADD COLUMN size integer");
    wait_until("the change waits", SOON, || {
        let waits = head.status()["schema_waiting"].clone();
        (waits.as_array().unwrap().len() == 1)
            .then_some(())
            .ok_or(waits.to_string())
    });
    let branch = Office::sqlite(folder.path(), "b1");
    std::fs::write(folder.path().join("b1.db"), "").unwrap();
    let mut db = Db::open(&branch.database);
    db.run(
        "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO item VALUES (1, 'one')",
    );
    let flags = [
        "join",
        "-",
        "--database",
        &branch.database,
        "--timeout",
        "20",
    ];
    branch
        .feed(&code, &flags)
        .expect(3)
        .says(&["nothing came of it", "status"]);
    head.cmd(&["schema", "accept"]).expect(0);
    branch.feed(&code, &flags).expect(0);
    head.stop();
}
