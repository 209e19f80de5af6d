//! What scripts read: the documented keys, and a healthy office's `doctor`.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres, rabbitmq};
use serde_json::Value;
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);

#[track_caller]
fn has(document: &Value, keys: &[&str]) {
    for path in keys {
        let found = path.split('.').try_fold(document, |at, key| at.get(key));
        assert!(found.is_some(), "{path} is missing in {document}");
    }
}

#[test]
fn status_verify_and_doctor_say_what_is_documented() {
    let folder = TempDir::new().unwrap();
    let broker = rabbitmq();
    let vhost = broker.fresh_vhost();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'a'), (2, 'b')");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--amqp", &broker.admin_url_of(&vhost)]);
    let code = head.invite("b1", &[]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);

    for office in [&head, &branch] {
        let status = office.status();
        has(
            &status,
            &[
                "office",
                "role",
                "database.engine",
                "database.version",
                "database.reachable",
                "transport.kind",
                "transport.connected",
                "transport.since",
                "in_sync",
                "pending_changes",
                "outbox.batches",
                "outbox.changes",
                "outbox.bytes",
                "outbox.oldest_seconds",
                "applied",
                "conflicts",
                "holds",
                "schema_version",
                "mode",
            ],
        );
        assert_eq!(status["office"], office.name);
        assert_eq!(status["transport"]["kind"], "amqp");
        assert_eq!(status["transport"]["connected"], true);
        assert_eq!(status["mode"], "live");
        let document = office.cmd(&["doctor", "--json"]).expect(0).document();
        assert_eq!(document["healthy"], true, "{document}");
        let comparison = office.cmd(&["verify", "--json"]).expect(0).document();
        has(
            &comparison,
            &["equal", "cut", "bytes_exchanged", "branches"],
        );
        assert_eq!(
            comparison["branches"].as_array().map(Vec::len),
            Some(1),
            "{comparison}"
        );
        has(&comparison["branches"][0], &["name", "equal", "tables"]);
        let table = &comparison["branches"][0]["tables"][0];
        has(
            table,
            &[
                "name",
                "rows",
                "different",
                "only_head",
                "only_branch",
                "pending",
            ],
        );
        assert_eq!(
            (&table["name"], &table["rows"]),
            (&Value::from("item"), &Value::from(2))
        );
        // The same for a person, and nothing of it as JSON.
        let told = office.cmd(&["status"]).expect(0).out;
        assert!(told.contains("in sync") && !told.starts_with('{'), "{told}");
    }
    let seen = &head.status()["branches"][0];
    has(
        seen,
        &[
            "name",
            "online",
            "last_seen",
            "lag_changes",
            "lag_seconds",
            "holds",
            "clock_offset_ms",
            "schema_version",
        ],
    );
    assert_eq!(
        (&seen["name"], &seen["online"], &seen["lag_changes"]),
        (&"b1".into(), &true.into(), &0.into())
    );

    // A difference that capture could not see is found, and told by the exit code.
    branch.stop();
    let mut behind = Db::open(&branch.database);
    let triggers = behind
        .rows("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'item'");
    assert!(!triggers.is_empty());
    for trigger in &triggers {
        behind.run(format!("DROP TRIGGER \"{}\"", trigger[0]));
    }
    behind.run("UPDATE item SET name = 'unseen' WHERE id = 2");
    let document = branch.cmd(&["doctor", "--json"]).expect(1).document();
    assert!(
        document.to_string().contains("capture is missing"),
        "{document}"
    );
    for trigger in &triggers {
        behind.run(trigger[1].clone());
    }
    branch.run();
    branch.wait_in_sync(SOON);
    let document = head.cmd(&["verify", "--json"]).expect(1).document();
    assert_eq!(document["equal"], false, "{document}");
    assert_eq!(
        document["branches"][0]["tables"][0]["different"], 1,
        "{document}"
    );
    branch.stop();
    head.stop();
}

#[test]
fn a_branch_without_its_head_says_what_waits_and_since_when() {
    let folder = TempDir::new().unwrap();
    let mut head = Office::sqlite(folder.path(), "HO");
    Db::open(&head.database).run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)");
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let code = head.invite("b1", &[]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    let mut at_branch = Db::open(&branch.database);
    at_branch.run("INSERT INTO item VALUES (1, 'a')");
    settle(&head, &[&branch], SOON);
    let applied = &branch.status()["applied"];
    assert!(applied["HO"].as_u64() > Some(0), "{applied}");

    // Nothing to send, nothing unanswered, all applied that it knows of: the head's absence changes nothing in that.
    head.kill();
    let apart = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        wait_until(what, SOON, || {
            let status = branch.status();
            (wanted(&status)).then_some(()).ok_or(status.to_string())
        });
    };
    apart("the branch knows that the head is gone", &|status| {
        status["transport"]["connected"] == false
    });
    assert_eq!(branch.status()["in_sync"], true);

    at_branch.run("INSERT INTO item VALUES (2, 'b')");
    apart(
        "the write waits in the outbox, and grows old there",
        &|status| {
            status["pending_changes"] == 0
                && status["outbox"]["batches"] == 1
                && status["outbox"]["oldest_seconds"].as_u64() >= Some(2)
        },
    );
    assert_eq!(branch.status()["in_sync"], false);
    head.run();
    settle(&head, &[&branch], SOON);
    assert_eq!(branch.status()["outbox"]["oldest_seconds"], 0);
    branch.stop();
    head.stop();
}
