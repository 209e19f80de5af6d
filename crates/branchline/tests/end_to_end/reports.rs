//! What scripts read: the documented keys, and a healthy office's `doctor`.

use std::time::Duration;

use branchline_testkit::servers::{postgres, rabbitmq};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::items::head_and_branch;
use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);

/// Holds a document to its description: for each key (`a.b` is `b` in `a`) its kind, `?` after it where it may be null.
#[track_caller]
fn is_as_told(document: &Value, keys: &[(&str, &str)]) {
    for (path, kind) in keys {
        let found = path.split('.').try_fold(document, |at, key| at.get(key));
        let found = found.unwrap_or_else(|| panic!("{path} is missing in {document}"));
        let is = |kind: &str| match kind {
            "text" => found.as_str().is_some_and(|text| !text.is_empty()),
            "number" => found.is_u64(),
            "signed" => found.is_i64(),
            "flag" => found.is_boolean(),
            "list" => found.is_array(),
            "numbers" => found
                .as_object()
                .is_some_and(|all| all.values().all(Value::is_u64)),
            "time" => found.as_str().is_some_and(is_time),
            other => panic!("{other} is no kind"),
        };
        let fits = match kind.strip_suffix('?') {
            Some(kind) => found.is_null() || is(kind),
            None => is(kind),
        };
        assert!(fits, "{path} should be a {kind}: {document}");
    }
}

/// As in `2026-11-23T12:00:00.123456Z`, and not of an unset clock.
fn is_time(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|letter| if letter.is_ascii_digit() { '0' } else { letter })
        .collect();
    shape.starts_with("0000-00-00T00:00:00") && shape.ends_with('Z') && text > "2020"
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
    // A password in an argument would be everybody's to see.
    let address = broker.admin_url_of(&vhost);
    let ran = head
        .feed(&address, &["invite", "b1", "--amqp", "-"])
        .expect(0);
    let code = ran.out.trim().to_owned();
    head.feed("nonsense", &["invite", "b2", "--amqp", "-"])
        .expect(2)
        .says(&["--amqp", "amqps://"]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);

    for office in [&head, &branch] {
        let status = office.status();
        is_as_told(
            &status,
            &[
                ("office", "text"),
                ("role", "text"),
                ("database.engine", "text"),
                ("database.version", "text"),
                ("database.reachable", "flag"),
                ("transport.kind", "text"),
                ("transport.connected", "flag"),
                ("transport.since", "time"),
                ("in_sync", "flag"),
                ("pending_changes", "number"),
                ("outbox.batches", "number"),
                ("outbox.changes", "number"),
                ("outbox.bytes", "number"),
                ("outbox.oldest_seconds", "number?"),
                ("applied", "numbers"),
                ("conflicts", "number"),
                ("holds", "number"),
                ("schema_version", "number"),
                ("mode", "text"),
                ("at", "time"),
            ],
        );
        assert_eq!(status["office"], office.name);
        assert_eq!(status["transport"]["kind"], "amqp");
        assert_eq!(status["transport"]["connected"], true);
        assert_eq!(status["mode"], "live");
        assert_eq!(status["in_sync"], true);
        let role = if office.name == "HO" {
            "head"
        } else {
            "branch"
        };
        assert_eq!(status["role"], role);
        assert_eq!(status["database"]["reachable"], true);
        let nothing = json!([0, 0, 0]);
        let waits = json!([
            status["pending_changes"],
            status["conflicts"],
            status["holds"]
        ]);
        assert_eq!(waits, nothing, "{status}");
        let document = office.cmd(&["doctor", "--json"]).expect(0).document();
        assert_eq!(document["healthy"], true, "{document}");
        let comparison = office.cmd(&["verify", "--json"]).expect(0).document();
        is_as_told(
            &comparison,
            &[
                ("equal", "flag"),
                ("cut", "number"),
                ("bytes_exchanged", "number"),
                ("branches", "list"),
            ],
        );
        assert_eq!(comparison["equal"], true, "{comparison}");
        assert!(
            comparison["bytes_exchanged"].as_u64() > Some(0),
            "{comparison}"
        );
        assert_eq!(
            comparison["branches"].as_array().map(Vec::len),
            Some(1),
            "{comparison}"
        );
        is_as_told(
            &comparison["branches"][0],
            &[("name", "text"), ("equal", "flag"), ("tables", "list")],
        );
        let table = &comparison["branches"][0]["tables"][0];
        is_as_told(
            table,
            &[
                ("name", "text"),
                ("rows", "number"),
                ("different", "number"),
                ("only_head", "number"),
                ("only_branch", "number"),
                ("pending", "number"),
            ],
        );
        for none in ["different", "only_head", "only_branch", "pending"] {
            assert_eq!(table[none], 0, "{none}: {comparison}");
        }
        assert_eq!(
            (&table["name"], &table["rows"]),
            (&Value::from("item"), &Value::from(2))
        );
        // The same for a person, and nothing of it as JSON.
        let told = office.cmd(&["status"]).expect(0).out;
        assert!(told.contains("in sync") && !told.starts_with('{'), "{told}");
    }
    let seen = &head.status()["branches"][0];
    is_as_told(
        seen,
        &[
            ("name", "text"),
            ("online", "flag"),
            ("last_seen", "time"),
            ("lag_changes", "number"),
            ("lag_seconds", "number"),
            ("holds", "number"),
            ("clock_offset_ms", "signed"),
            ("schema_version", "number"),
        ],
    );
    // One machine, one clock.
    assert!(
        seen["clock_offset_ms"].as_i64().unwrap().abs() < 5_000,
        "{seen}"
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
    let (mut head, mut branch) = head_and_branch(&folder);
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
