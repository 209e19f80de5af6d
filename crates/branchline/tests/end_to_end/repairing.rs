//! `verify --repair`: rows that changed behind capture's back become what they are at the head, while writers go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(60);
/// The offices' writers use keys from here on.
const WRITTEN: u64 = 10_000;

fn all(db: &mut Db) -> Vec<Vec<String>> {
    db.rows("SELECT id, name FROM item ORDER BY id")
}

/// Inserts and updates rows until told to stop. Returns how many.
fn write_until(stop: &AtomicBool, url: &str, first: u64) -> u64 {
    let mut db = Db::open(url);
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = first + written;
        db.run(format!("INSERT INTO item VALUES ({id}, 'new')"));
        db.run(format!(
            "UPDATE item SET name = 'updated at {first}' WHERE id = {id}"
        ));
        written += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    written
}

/// What somebody does to the branch's table while its triggers are gone.
fn tamper(branch: &Office) {
    let mut behind = Db::open(&branch.database);
    let triggers = behind
        .rows("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'item'");
    assert!(!triggers.is_empty());
    let dropped = triggers
        .iter()
        .map(|t| format!("DROP TRIGGER \"{}\"", t[0]));
    let unseen = [
        "UPDATE item SET name = 'unseen' WHERE id IN (3, 4, 5)",
        "DELETE FROM item WHERE id IN (7, 8)",
        "INSERT INTO item VALUES (5001, 'unseen')",
    ];
    let again = triggers.iter().map(|t| t[1].clone());
    let statements: Vec<String> = dropped
        .chain(unseen.map(str::to_owned))
        .chain(again)
        .collect();
    behind.transaction(&statements).unwrap();
}

#[test]
fn rows_changed_behind_the_back_of_capture_are_repaired_while_writers_go_on() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run(
        "CREATE TABLE item (id integer PRIMARY KEY, name text);
         INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 2000) n",
    );
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    settle(&head, &[&branch], SOON);
    let (mut at_head, mut at_branch) = (Db::open(&head.database), Db::open(&branch.database));
    let before = all(&mut at_head);

    tamper(&branch);
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writers = [
            scope.spawn(|| write_until(&stop, &head.database, WRITTEN)),
            scope.spawn(|| write_until(&stop, &branch.database, 2 * WRITTEN)),
        ];
        let document = head.cmd(&["verify", "--json"]).expect(1).document();
        let table = &document["branches"][0]["tables"][0];
        let found = ["different", "only_head", "only_branch"].map(|key| table[key].as_u64());
        assert_eq!(found, [Some(3), Some(2), Some(1)], "{document}");
        assert!(table.get("repaired").is_none(), "{document}");
        println!("{document}");

        let ran = head.cmd(&["verify", "--repair", "--json"]).expect(0);
        let document = ran.document();
        assert_eq!(document["equal"], true, "{document}");
        assert_eq!(document["branches"][0]["repaired"], 6, "{document}");
        assert_eq!(document["branches"][0]["tables"][0]["repaired"], 6);
        println!("{document}");

        // Once more, asked at the branch.
        tamper(&branch);
        let ran = branch.cmd(&["verify", "--repair", "--json"]).expect(0);
        let document = ran.document();
        assert_eq!(document["branches"][0]["name"], "b1", "{document}");
        assert_eq!(document["branches"][0]["repaired"], 6, "{document}");
        stop.store(true, Ordering::Relaxed);
        writers.map(|writer| writer.join().unwrap())
    });
    settle(&head, &[&branch], SOON);
    println!("{written:?} rows written meanwhile");
    assert!(written.iter().all(|written| *written > 10));
    let rows = all(&mut at_head);
    assert_eq!(rows, all(&mut at_branch));
    assert_eq!(rows[..2_000], before, "the head's rows stand");
    let count = u64::try_from(rows.len()).unwrap();
    assert_eq!(count, 2_000 + written[0] + written[1]);
    let told = head.cmd(&["verify", "--repair"]).expect(0).out;
    assert!(
        told.contains("repaired") && told.contains("equal"),
        "{told}"
    );

    // What the branch had is kept, at both offices.
    for office in [&head, &branch] {
        let list = office.json(&["conflicts"]);
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 12, "{list:?}");
        let had = |id: i64| list.iter().find(|c| c["key"] == id).unwrap();
        assert_eq!(had(3)["reason"], "repaired");
        assert_eq!(had(3)["theirs"]["name"], "unseen");
        assert_eq!(had(3)["ours"]["name"], "item 3");
        assert!(had(7)["theirs"].is_null() && had(5_001)["ours"].is_null());
    }
    branch.stop();

    // An office that does not run is started for the question.
    tamper(&branch);
    let document = branch.cmd(&["verify", "--json"]).expect(1).document();
    let table = &document["branches"][0]["tables"][0];
    assert_eq!(table["different"], 3, "{document}");
    let ran = branch.cmd(&["verify", "--repair", "--json"]).expect(0);
    assert_eq!(ran.document()["branches"][0]["repaired"], 6);
    head.stop();
}
