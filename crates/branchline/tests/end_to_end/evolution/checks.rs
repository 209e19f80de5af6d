//! A check that comes to a table at the head, and one that becomes another: every branch has it, whatever its engine, as soon as its
//! rows obey it.

use super::{Company, Engine, SOON, alter};
use crate::evolution::Engine::{Mariadb, Postgres, Sqlite};
use crate::office::{settle, wait_until};
use crate::sql::Db;

/// A migration after which `kind` is one of these, where it was one of those before.
fn only(engine: Engine, kinds: &str, first: bool) -> String {
    match engine {
        Sqlite => format!(
            "CREATE TABLE new__item (id integer PRIMARY KEY, kind integer NOT NULL, CONSTRAINT kinds CHECK (kind IN ({kinds}))); \
             INSERT INTO new__item SELECT id, CASE kind WHEN 2 THEN 4 WHEN 3 THEN 2 ELSE kind END FROM item; \
             DROP TABLE item; ALTER TABLE new__item RENAME TO item"
        ),
        _ => {
            let drop = match first {
                true => "",
                false => "ALTER TABLE item DROP CONSTRAINT kinds; ",
            };
            format!(
                "{drop}UPDATE item SET kind = CASE kind WHEN 2 THEN 4 WHEN 3 THEN 2 ELSE kind END; \
                 ALTER TABLE item ADD CONSTRAINT kinds CHECK (kind IN ({kinds}))"
            )
        }
    }
}

/// Whether the check lets an office's application write a row of this kind. The row's key is taken, which is looked at later.
fn takes(database: &str, kind: u32) -> bool {
    let row = format!("INSERT INTO item VALUES (1, {kind}) RETURNING id");
    let refused = Db::open(database).try_rows(&row).unwrap_err();
    !refused.contains("kinds")
}

#[track_caller]
fn wait_for(database: &str, kinds: [bool; 4]) {
    wait_until(&format!("{database} takes {kinds:?}"), SOON, || {
        let taken = [1, 2, 3, 4].map(|kind| takes(database, kind));
        if taken == kinds {
            Ok(())
        } else {
            Err(format!("{taken:?}"))
        }
    });
}

fn a_check_comes(head: Engine, branches: &[(&str, Engine)]) {
    let mut company = Company::open(
        head,
        branches,
        "CREATE TABLE item (id integer PRIMARY KEY, kind integer NOT NULL); \
         CREATE TABLE other (id integer PRIMARY KEY); INSERT INTO item VALUES (1, 1), (2, 3)",
    );
    company.branch("away").stop();
    let away = company.branch("away").database.clone();
    Db::open(&away).run("INSERT INTO item VALUES (100, 3)");
    alter(&company.head.database, &only(head, "1, 2", true));
    let up: Vec<String> = company.branches[1..]
        .iter()
        .map(|branch| branch.database.clone())
        .collect();
    for database in &up {
        wait_for(database, [true, true, false, false]);
    }

    // A row of before the check: it is held at the head, and its own office does without the check meanwhile.
    company.branch("away").run();
    let hold = wait_until("the head holds it", SOON, || {
        let holds = company.head.json(&["holds"]);
        match holds[0]["id"].as_u64() {
            Some(id) => Ok(id.to_string()),
            None => Err(holds.to_string()),
        }
    });
    company
        .at_head()
        .run("INSERT INTO other VALUES (1); INSERT INTO item VALUES (3, 2)");
    wait_until("all else goes on there", SOON, || {
        let mut there = Db::open(&away);
        let rows = there.rows(
            "SELECT kind, (SELECT count(*) FROM other) FROM item WHERE id IN (2, 3) ORDER BY id",
        );
        if rows == [["2", "1"], ["2", "1"]] {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    });
    assert!(takes(&away, 3));
    let log = company.branch("away").log();
    for part in [
        "table `item` does without the head's check `kinds`: kind IN (1, 2), which the row with the key ",
        "change or delete such rows",
        "tried again by itself",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    company.head.cmd(&["holds", "drop", &hold]).expect(0);
    wait_for(&away, [true, true, false, false]);

    // Its rows change with it.
    alter(&company.head.database, &only(head, "1, 4", false));
    for database in up.iter().chain([&away]) {
        wait_for(database, [true, false, false, true]);
    }
    let all: Vec<_> = company.branches.iter().collect();
    settle(&company.head, &all, SOON);
    for office in company.branches.iter().chain([&company.head]) {
        let rows = Db::open(&office.database).rows("SELECT id, kind FROM item ORDER BY id");
        assert_eq!(
            rows,
            [["1", "1"], ["2", "4"], ["3", "4"]],
            "{}",
            office.name
        );
        assert_eq!(office.json(&["holds"]), serde_json::json!([]));
    }
}

#[test]
fn a_check_comes_at_a_head_on_postgresql() {
    let branches = [("away", Mariadb), ("b-m", Mariadb), ("b-s", Sqlite)];
    a_check_comes(Postgres, &branches);
}

#[test]
fn a_check_comes_at_a_head_on_mariadb() {
    let branches = [("away", Sqlite), ("b-p", Postgres), ("b-m", Mariadb)];
    a_check_comes(Mariadb, &branches);
}

#[test]
fn a_check_comes_at_a_head_on_sqlite() {
    let branches = [("away", Postgres), ("b-p", Postgres), ("b-s", Sqlite)];
    a_check_comes(Sqlite, &branches);
}
