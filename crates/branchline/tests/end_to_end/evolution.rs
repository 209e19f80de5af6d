//! Tables change at the head while branches are up to date, away with changes that nobody has heard of, or ahead.

use std::time::Duration;

use branchline_testkit::servers::{free_port, mariadb, postgres};
use tempfile::TempDir;

use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

mod cases;
mod checks;

const SOON: Duration = Duration::from_secs(60);

/// How the engines spell what they do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Postgres,
    Mariadb,
    Sqlite,
}

use Engine::{Mariadb, Postgres, Sqlite};

impl Engine {
    fn database(self, folder: &TempDir, name: &str) -> String {
        match self {
            Postgres => postgres().fresh_database(),
            Mariadb => mariadb().fresh_database(),
            Sqlite => format!("sqlite:{}", folder.path().join(name).display()),
        }
    }

    fn tables(self) -> String {
        let mood = match self {
            Postgres => "mood",
            Mariadb => "enum('calm','busy')",
            Sqlite => "text",
        };
        let own = match self {
            Postgres => "CREATE TYPE mood AS ENUM ('calm', 'busy'); ",
            _ => "",
        };
        format!(
            "{own}CREATE TABLE customer (id integer PRIMARY KEY, name varchar(40) NOT NULL, phone varchar(20), grade smallint, mood {mood}); \
             CREATE TABLE sale (id integer PRIMARY KEY, customer integer NOT NULL REFERENCES customer (id), amount integer NOT NULL); \
             CREATE TABLE memo (id integer PRIMARY KEY, body varchar(40)); \
             INSERT INTO customer VALUES (1, 'Ann', '11', 1, 'calm'), (2, 'Bea', '22', 2, 'busy'), (3, 'Cho', NULL, NULL, NULL); \
             INSERT INTO memo VALUES (1, 'short')"
        )
    }

    fn widen_grade(self) -> &'static str {
        match self {
            Postgres => "ALTER TABLE customer ALTER COLUMN grade TYPE bigint",
            Mariadb => "ALTER TABLE customer MODIFY grade bigint",
            // As Django rebuilds a table. The city is named already, the phone is gone.
            Sqlite => {
                "CREATE TABLE new__customer (id integer PRIMARY KEY, full_name varchar(40) NOT NULL, grade bigint, mood text, city varchar(40) DEFAULT 'Porto'); \
                 INSERT INTO new__customer (id, full_name, grade, mood, city) SELECT id, full_name, grade, mood, city FROM customer; \
                 DROP TABLE customer; ALTER TABLE new__customer RENAME TO customer"
            }
        }
    }

    fn more_moods(self) -> Option<&'static str> {
        match self {
            Postgres => Some("ALTER TYPE mood ADD VALUE 'glad'"),
            Mariadb => Some("ALTER TABLE customer MODIFY mood enum('calm','busy','glad')"),
            Sqlite => None,
        }
    }
}

const ADD: &str = "ALTER TABLE customer ADD COLUMN city varchar(40) DEFAULT 'Porto'";
const DROP: &str = "ALTER TABLE customer DROP COLUMN phone";
const RENAME: &str = "ALTER TABLE customer RENAME COLUMN name TO full_name";

/// Some statements of a migration.
#[track_caller]
fn alter(database: &str, statements: &str) {
    let mut db = Db::open(database);
    if let Db::Sqlite(connection) = &db {
        // As migrations do, or a table that others refer to could not be rebuilt.
        connection
            .execute_batch("PRAGMA foreign_keys = OFF")
            .unwrap();
    }
    db.run(statements);
}

/// A company whose offices all have the same tables, joined and running.
struct Company {
    head: Office,
    branches: Vec<Office>,
    engine: Engine,
    /// The sales that an office's application wrote: every office must have them in the end.
    sales: Vec<(u64, u64)>,
    _folder: TempDir,
}

impl Company {
    fn open(engine: Engine, branches: &[(&str, Engine)], tables: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let url = engine.database(&folder, "HO.db");
        Db::open(&url).run(tables);
        let mut head = Office::new(folder.path(), "HO", &url);
        head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
        let codes: Vec<String> = branches
            .iter()
            .map(|(name, _)| head.invite(name, &[]))
            .collect();
        head.run();
        let mut offices = Vec::new();
        for ((name, engine), code) in branches.iter().zip(codes) {
            let url = engine.database(&folder, &format!("{name}.db"));
            let mut office = Office::new(folder.path(), name, &url);
            office.join(&code);
            office.run();
            offices.push(office);
        }
        let all: Vec<&Office> = offices.iter().collect();
        settle(&head, &all, SOON);
        Self {
            head,
            branches: offices,
            engine,
            sales: Vec::new(),
            _folder: folder,
        }
    }

    fn branch(&mut self, name: &str) -> &mut Office {
        let mut branches = self.branches.iter_mut();
        branches.find(|branch| branch.name == name).unwrap()
    }

    fn at_head(&self) -> Db {
        Db::open(&self.head.database)
    }

    /// Some statements of the head's own migration, and waits until the running branches named have followed.
    #[track_caller]
    fn migrate(&self, statements: &str, up: &[&str]) {
        let before = self.head.status()["schema_version"].as_u64();
        alter(&self.head.database, statements);
        let version = wait_until(&format!("the head follows {statements}"), SOON, || {
            let status = self.head.status();
            let version = status["schema_version"].as_u64();
            if version > before {
                Ok(version)
            } else {
                Err(status.to_string())
            }
        });
        for name in up {
            wait_until(&format!("{name} follows {statements}"), SOON, || {
                let status = self.head.status();
                let mut branches = status["branches"].as_array().unwrap().iter();
                let branch = branches.find(|branch| branch["name"] == *name).unwrap();
                if branch["schema_version"].as_u64() >= version {
                    Ok(())
                } else {
                    Err(status.to_string())
                }
            });
        }
    }

    /// An office's application sells something.
    #[track_caller]
    fn sell(&mut self, name: &str) {
        let database = match name {
            "HO" => self.head.database.clone(),
            name => self.branch(name).database.clone(),
        };
        let number = self.branches.iter().position(|branch| branch.name == name);
        let range = number.map_or(0, |number| 1 + number as u64) * 1_000;
        let id = range + self.sales.len() as u64;
        let amount = 10 + id % 7;
        Db::open(&database).run(format!("INSERT INTO sale VALUES ({id}, 1, {amount})"));
        self.sales.push((id, amount));
    }

    /// Says what the engine cannot tell.
    fn says(&self, what: &str, to: &str) {
        self.head.json(&["schema", "rename", what, to]);
    }

    /// All come together, hold all sales, and answer the query alike; returns what they answer.
    #[track_caller]
    fn close(mut self, query: &str) -> Vec<Vec<String>> {
        let all: Vec<&Office> = self.branches.iter().collect();
        settle(&self.head, &all, SOON);
        for office in std::iter::once(&self.head).chain(&self.branches) {
            // What fits only since the last step is tried again after some seconds.
            wait_until("nothing is held", SOON, || {
                let holds = office.json(&["holds"]);
                if holds == serde_json::json!([]) {
                    Ok(())
                } else {
                    Err(format!("{}: {holds}", office.name))
                }
            });
        }
        settle(&self.head, &all, SOON);
        self.sales.sort_unstable();
        let sales: Vec<Vec<String>> = self
            .sales
            .iter()
            .map(|(id, amount)| vec![id.to_string(), amount.to_string()])
            .collect();
        let expected = self.at_head().rows(query);
        for office in std::iter::once(&self.head).chain(&self.branches) {
            let mut db = Db::open(&office.database);
            let found = db.rows("SELECT id, amount FROM sale ORDER BY id");
            assert_eq!(found, sales, "the journals at {}", office.name);
            assert_eq!(db.rows(query), expected, "at {}", office.name);
        }
        for office in self.branches.iter_mut().chain([&mut self.head]) {
            office.stop();
        }
        expected
    }
}

/// Every kind of change at the head. `up` runs all the time; `away` is stopped before it and has unsent changes.
fn changes_of_every_kind(engine: Engine, up: &[(&str, Engine)], away: &[(&str, Engine)]) {
    let mut company = Company::open(engine, &[up, away].concat(), &engine.tables());
    let up: Vec<&str> = up.iter().map(|(name, _)| *name).collect();
    let away: Vec<&str> = away.iter().map(|(name, _)| *name).collect();
    for name in &away {
        let branch = company.branch(name);
        branch.stop();
        let mut db = Db::open(&branch.database);
        let id = 50 + name.len() + usize::from(name.as_bytes()[name.len() - 1]);
        db.run(format!(
            "INSERT INTO customer (id, name, phone, grade) VALUES ({id}, 'of {name}', '99', 7)"
        ));
        db.run("UPDATE customer SET name = 'Beatrix' WHERE id = 2");
        company.sell(name);
    }
    let everyone_sells = |company: &mut Company| {
        for name in ["HO"].iter().chain(&up) {
            company.sell(name);
        }
    };
    everyone_sells(&mut company);
    company.migrate(ADD, &up);
    company
        .at_head()
        .run("UPDATE customer SET city = 'Faro' WHERE id = 3");
    everyone_sells(&mut company);
    company.migrate(DROP, &up);
    everyone_sells(&mut company);
    if company.engine != Postgres {
        company.says("customer.name", "full_name");
    }
    company.migrate(RENAME, &up);
    everyone_sells(&mut company);
    company.migrate(company.engine.widen_grade(), &up);
    company
        .at_head()
        .run("UPDATE customer SET grade = 5000000000 WHERE id = 1");
    everyone_sells(&mut company);
    company.migrate("CREATE TABLE tag (id integer PRIMARY KEY, label varchar(20)); INSERT INTO tag VALUES (1, 'new')", &up);
    for name in &up {
        let database = company.branch(name).database.clone();
        let mut db = Db::open(&database);
        wait_until(
            &format!("{name} has the new table's row"),
            SOON,
            || match db.try_rows("SELECT label FROM tag") {
                Ok(rows) if rows == [["new"]] => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
    }
    company.migrate("DROP TABLE memo", &up);
    if company.engine != Postgres {
        company.says("tag", "mark");
    }
    company.migrate("ALTER TABLE tag RENAME TO mark", &up);
    company.migrate("CREATE INDEX sale_amount ON sale (amount)", &up);
    if let Some(statement) = company.engine.more_moods() {
        company.migrate(statement, &up);
        company
            .at_head()
            .run("UPDATE customer SET mood = 'glad' WHERE id = 1");
    }
    everyone_sells(&mut company);
    for name in &up {
        let database = company.branch(name).database.clone();
        let mut db = Db::open(&database);
        db.run("INSERT INTO mark VALUES (LENGTH, 'of a branch')".replace(
            "LENGTH",
            &(10 + name.as_bytes()[name.len() - 1]).to_string(),
        ));
    }
    for name in &away {
        company.branch(name).run();
    }
    let marks = up.len() + 1;
    let customers = 3 + away.len();
    let found = company.close(
        "SELECT id, full_name, city, grade, (SELECT count(*) FROM mark) FROM customer ORDER BY id",
    );
    assert_eq!(found.len(), customers, "{found:?}");
    let row = |id: &str| found.iter().find(|row| row[0] == id).unwrap();
    let marks = marks.to_string();
    assert_eq!(*row("1"), ["1", "Ann", "Porto", "5000000000", &marks]);
    assert_eq!(*row("2"), ["2", "Beatrix", "Porto", "2", &marks]);
    assert_eq!(*row("3"), ["3", "Cho", "Faro", "NULL", &marks]);
    assert!(
        found
            .iter()
            .filter(|row| row[1].starts_with("of "))
            .all(|row| row[2] == "Porto" && row[3] == "7")
    );
}

#[test]
fn a_head_on_postgresql_changes_and_branches_on_postgresql_and_sqlite_follow() {
    changes_of_every_kind(
        Postgres,
        &[("up-p", Postgres), ("up-s", Sqlite)],
        &[("away-p", Postgres), ("away-s", Sqlite)],
    );
}

#[test]
fn a_head_on_postgresql_changes_and_branches_on_mariadb_follow() {
    changes_of_every_kind(Postgres, &[("up-m", Mariadb)], &[("away-m", Mariadb)]);
}

#[test]
fn a_head_on_mariadb_changes_and_branches_follow() {
    changes_of_every_kind(
        Mariadb,
        &[("up-p", Postgres), ("up-m", Mariadb)],
        &[("away-s", Sqlite)],
    );
}

#[test]
fn a_head_on_sqlite_changes_and_branches_follow() {
    changes_of_every_kind(Sqlite, &[("up-s", Sqlite)], &[("away-p", Postgres)]);
}

/// The same migration runs at the branches first, as with one application that is updated office by office.
fn a_branch_ahead(engine: Engine, branches: &[(&str, Engine)]) {
    let mut company = Company::open(engine, branches, &engine.tables());
    let names: Vec<&str> = branches.iter().map(|(name, _)| *name).collect();
    for (name, _) in branches {
        let database = company.branch(name).database.clone();
        let mut db = Db::open(&database);
        db.run(ADD);
        db.run("CREATE TABLE tag (id integer PRIMARY KEY, label varchar(20))");
        db.run(format!(
            "UPDATE customer SET city = 'of {name}' WHERE id = {}",
            1 + name.len() % 3
        ));
        let id = 60 + usize::from(name.as_bytes()[name.len() - 1]);
        db.run(format!(
            "INSERT INTO customer (id, name, city) VALUES ({id}, 'new at {name}', 'Beja')"
        ));
        db.run(format!("INSERT INTO tag VALUES ({id}, 'of {name}')"));
        company.sell(name);
    }
    company.sell("HO");
    // What all know goes on meanwhile.
    let last = company.sales.len().to_string();
    let mut at_head = company.at_head();
    wait_until("the sales of branches ahead arrive", SOON, || {
        let rows = at_head.rows("SELECT count(*) FROM sale");
        if rows == [[last.clone()]] {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    });
    company.migrate(
        &format!("{ADD}; CREATE TABLE tag (id integer PRIMARY KEY, label varchar(20))"),
        &names,
    );
    company.sell("HO");
    let cities = names.len();
    let found = company
        .close("SELECT id, name, city, (SELECT count(*) FROM tag) FROM customer ORDER BY id");
    let made: Vec<_> = found
        .iter()
        .filter(|row| row[1].starts_with("new at "))
        .collect();
    assert_eq!(made.len(), cities, "{found:?}");
    assert!(made.iter().all(|row| row[2] == "Beja"), "{found:?}");
    assert!(
        found.iter().all(|row| row[3] == cities.to_string()),
        "{found:?}"
    );
    assert!(
        found.iter().any(|row| row[2].starts_with("of ")),
        "{found:?}"
    );
}

#[test]
fn branches_on_postgresql_and_sqlite_are_ahead_of_a_head_on_postgresql() {
    a_branch_ahead(Postgres, &[("b-p", Postgres), ("b-s", Sqlite)]);
}

#[test]
fn a_branch_on_mariadb_is_ahead_of_a_head_on_sqlite() {
    a_branch_ahead(Sqlite, &[("b-m", Mariadb)]);
}

#[test]
fn branches_are_ahead_of_a_head_on_mariadb() {
    a_branch_ahead(Mariadb, &[("b-p", Postgres), ("b-s", Sqlite)]);
}

/// What a branch's server refuses of a step is left out there by name, never the branch: a table whose row it finds too
/// large, and a foreign key to one whose key has another collation there. The rest goes on, and the table comes once the
/// head's is smaller.
#[test]
fn a_branch_on_mariadb_goes_on_without_what_its_server_refuses() {
    let mut company = Company::open(Sqlite, &[("b-m", Mariadb)], &Sqlite.tables());
    company.migrate(
        "CREATE TABLE page (id integer PRIMARY KEY, current integer REFERENCES revision (id)); \
         CREATE TABLE revision (id integer PRIMARY KEY, page integer NOT NULL REFERENCES page (id), \
           previous integer REFERENCES revision (id)); \
         CREATE TABLE place (code varchar(20) PRIMARY KEY)",
        &["b-m"],
    );
    company.sell("b-m");
    let at_branch = company.branch("b-m").database.clone();
    let mut at_branch = Db::open(&at_branch);
    wait_until("the new tables are bound", SOON, || {
        let found = at_branch.rows(
            "SELECT COUNT(*) FROM information_schema.REFERENTIAL_CONSTRAINTS
             WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME IN ('page', 'revision')",
        );
        if found == [["3"]] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    at_branch.run("ALTER TABLE place MODIFY code varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL");
    let wide: Vec<String> = (0..12).map(|at| format!("c{at} varchar(2000)")).collect();
    company.migrate(
        &format!(
            "CREATE TABLE wide (id integer PRIMARY KEY, {}); \
             INSERT INTO wide (id, c0) VALUES (1, 'here'); \
             ALTER TABLE page ADD COLUMN place varchar(20) REFERENCES place (code); \
             ALTER TABLE revision ADD COLUMN merged integer REFERENCES revision (id)",
            wide.join(", ")
        ),
        &["b-m"],
    );
    company.sell("HO");
    company.sell("b-m");
    let log = company.branch("b-m").log();
    for part in [
        "`wide` could not follow",
        "`page` does without its foreign key to `place`",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let narrow: Vec<String> = (0..12).map(|at| format!("c{at} varchar(100)")).collect();
    company.migrate(
        &format!(
            "CREATE TABLE new__wide (id integer PRIMARY KEY, {}, page integer REFERENCES page (id)); \
             INSERT INTO new__wide SELECT *, NULL FROM wide; \
             DROP TABLE wide; ALTER TABLE new__wide RENAME TO wide",
            narrow.join(", ")
        ),
        &["b-m"],
    );
    company.sell("b-m");
    wait_until("the late table is bound", SOON, || {
        let found = at_branch.rows(
            "SELECT REFERENCED_TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS
             WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME = 'wide'",
        );
        if found == [["page"]] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    let found = company.close("SELECT id, c0 FROM wide");
    assert_eq!(found, [["1", "here"]]);
}

/// A step that takes a column away waits for a transaction that writes to it: what that wrote is sent before it goes.
#[test]
fn what_is_written_while_a_step_waits_for_it_is_listed() {
    let mut company = Company::open(
        Postgres,
        &[("b-p", Postgres)],
        "CREATE TABLE item (id integer PRIMARY KEY, name varchar(20), note varchar(20)); \
         INSERT INTO item VALUES (1, 'one', 'first')",
    );
    let database = company.branch("b-p").database.clone();
    let (mut app, mut watcher) = (Db::open(&database), Db::open(&database));
    app.run("BEGIN");
    app.run("UPDATE item SET note = 'late' WHERE id = 1");
    company.migrate("ALTER TABLE item DROP COLUMN note", &[]);
    wait_until("the step waits", SOON, || {
        let waiting = watcher.rows(
            "SELECT count(*) FROM pg_locks JOIN pg_class c ON c.oid = relation
             WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relname = 'item'",
        );
        match waiting == [["0"]] {
            false => Ok(()),
            true => Err("nobody waits".into()),
        }
    });
    app.run("COMMIT");
    wait_until("the head lists what has no place any more", SOON, || {
        let conflicts = company.head.json(&["conflicts"]);
        let listed = conflicts.as_array().unwrap().iter();
        let late = |one: &serde_json::Value| one["theirs"]["note"] == "late";
        match listed.clone().any(late) {
            true => Ok(()),
            false => Err(conflicts.to_string()),
        }
    });
    settle(&company.head, &[&company.branches[0]], SOON);
}
