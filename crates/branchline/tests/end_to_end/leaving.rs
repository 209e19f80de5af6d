//! Leaving: what was there before is there, and nothing else.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::{Db, tool};

const SOON: Duration = Duration::from_secs(60);
const TABLES: &str = "CREATE TABLE client (id integer PRIMARY KEY, name varchar(40) NOT NULL); \
     CREATE TABLE visit (id integer PRIMARY KEY, client_id integer NOT NULL REFERENCES client (id)); \
     INSERT INTO client VALUES (1, 'one')";

fn postgres_schema(url: &str) -> String {
    let dump = tool(&postgres().bin("pg_dump"), &["-s", "-d", url]);
    // A newer pg_dump guards its script with a random word.
    dump.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn sqlite_schema(url: &str) -> Vec<Vec<String>> {
    Db::open(url).rows("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
}

#[test]
fn after_leave_every_schema_is_as_it_was() {
    let folder = TempDir::new().unwrap();
    let (head_url, branch_url) = (postgres().fresh_database(), postgres().fresh_database());
    Db::open(&head_url).run(TABLES);
    Db::open(&branch_url).run(TABLES);
    let mut head = Office::new(folder.path(), "HO", &head_url);
    let mut first = Office::new(folder.path(), "b1", &branch_url);
    let mut second = Office::sqlite(folder.path(), "b2");
    std::fs::write(folder.path().join("b2.db"), "").unwrap();
    Db::open(&second.database).run(TABLES);
    let before = (
        postgres_schema(&head_url),
        postgres_schema(&branch_url),
        sqlite_schema(&second.database),
    );

    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let codes = [head.invite("b1", &[]), head.invite("b2", &[])];
    head.run();
    first.join(&codes[0]);
    second.join(&codes[1]);
    first.run();
    second.run();
    settle(&head, &[&first, &second], SOON);
    assert_ne!(postgres_schema(&head_url), before.0, "capture is installed");

    // One leaves while it runs, one stopped.
    first.cmd(&["leave"]).expect(0);
    wait_until("the office that left has ended", SOON, || {
        first.ended().ok_or_else(String::new)
    });
    assert!(!first.config.exists());
    second.stop();
    second.cmd(&["leave"]).expect(0);
    head.cmd(&["remove", "b2"]).expect(0);
    wait_until("the head has forgotten its branches", SOON, || {
        drop(head.cmd(&["remove", "b1"]));
        let status = head.status();
        if status["branches"].as_array().unwrap().is_empty() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    head.cmd(&["remove", "nobody"]).expect(2).says(&["nobody"]);
    head.stop();
    head.cmd(&["leave"]).expect(0);
    assert_eq!(postgres_schema(&head_url), before.0);
    assert_eq!(postgres_schema(&branch_url), before.1);
    assert_eq!(sqlite_schema(&second.database), before.2);
    for url in [&head_url, &branch_url, &second.database] {
        let mut db = Db::open(url);
        assert_eq!(db.one("SELECT name FROM client"), "one");
        db.run("INSERT INTO client VALUES (2, 'two')");
    }
}
