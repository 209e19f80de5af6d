//! Each kind of change by itself, at every engine: with a branch that is up to date, one that is up to three versions behind
//! with unsent changes, and one that made the same change first.

use super::{Company, Engine, Mariadb, Postgres, SOON, Sqlite, alter};
use crate::office::{Office, settle, wait_until};
use crate::sql::Db;

/// A change of the tables, and what an application writes from then on.
struct Case {
    told: &'static str,
    /// The statements at an engine; none where it has no such change.
    change: fn(Engine) -> Option<String>,
    /// What a person says where the engine cannot tell a rename.
    said: &'static [(&'static str, &'static str)],
    /// A row in the new shape.
    write: fn(u64) -> String,
}

fn tables(engine: Engine) -> String {
    let whole = engine.whole();
    // A key of a SQLite table is a 64-bit integer whatever it is called.
    format!(
        "CREATE TABLE item (id {whole} PRIMARY KEY, name varchar(40) NOT NULL, price {whole}, note varchar(20)); \
         CREATE TABLE part (id {whole} PRIMARY KEY, item {whole}, label varchar(20)); \
         CREATE TABLE old (id integer PRIMARY KEY, v varchar(20)); \
         INSERT INTO item VALUES (1, 'one', 11, 'first'), (2, 'two', 22, NULL); \
         INSERT INTO part VALUES (1, 1, 'of one'); \
         INSERT INTO old VALUES (1, 'a')"
    )
}

impl Engine {
    fn whole(self) -> &'static str {
        match self {
            Sqlite => "integer",
            _ => "bigint",
        }
    }

    /// The statement of this engine; a SQLite table is made anew, as frameworks do.
    fn by(self, postgres: &str, mariadb: &str, sqlite: (&str, &str, &str)) -> Option<String> {
        let (table, columns, kept) = sqlite;
        Some(match self {
            Postgres => postgres.into(),
            Mariadb => mariadb.into(),
            Sqlite => format!(
                "CREATE TABLE new__{table} ({columns}); INSERT INTO new__{table} ({kept}) SELECT {kept} FROM {table}; \
                 DROP TABLE {table}; ALTER TABLE new__{table} RENAME TO {table}"
            ),
        })
    }
}

const CASES: &[Case] = &[
    Case {
        told: "a default",
        change: |engine| {
            let sql = "ALTER TABLE item ALTER COLUMN price SET DEFAULT 5";
            let columns = "id integer PRIMARY KEY, name varchar(40) NOT NULL, price integer DEFAULT 5, note varchar(20)";
            engine.by(sql, sql, ("item", columns, "id, name, price, note"))
        },
        said: &[],
        write: |id| format!("INSERT INTO item (id, name) VALUES ({id}, 'by default')"),
    },
    Case {
        told: "a column that must not be null",
        change: |engine| {
            engine.by(
                "ALTER TABLE item ALTER COLUMN price SET NOT NULL",
                "ALTER TABLE item MODIFY price bigint NOT NULL DEFAULT 5",
                (
                    "item",
                    "id integer PRIMARY KEY, name varchar(40) NOT NULL, price integer NOT NULL DEFAULT 5, note varchar(20)",
                    "id, name, price, note",
                ),
            )
        },
        said: &[],
        write: |id| format!("INSERT INTO item (id, name) VALUES ({id}, 'not null')"),
    },
    Case {
        told: "a column that may be null",
        change: |engine| {
            engine.by(
                "ALTER TABLE item ALTER COLUMN name DROP NOT NULL",
                "ALTER TABLE item MODIFY name varchar(40)",
                (
                    "item",
                    "id integer PRIMARY KEY, name varchar(40), price integer NOT NULL DEFAULT 5, note varchar(20)",
                    "id, name, price, note",
                ),
            )
        },
        said: &[],
        write: |id| format!("INSERT INTO item (id) VALUES ({id})"),
    },
    Case {
        told: "a unique index",
        change: |_| Some("CREATE UNIQUE INDEX item_note ON item (note)".into()),
        said: &[],
        write: |id| format!("INSERT INTO item (id, note) VALUES ({id}, 'n{id}')"),
    },
    Case {
        told: "a foreign key",
        change: |engine| {
            let sql =
                "ALTER TABLE part ADD CONSTRAINT part_item FOREIGN KEY (item) REFERENCES item (id)";
            let columns =
                "id integer PRIMARY KEY, item integer REFERENCES item (id), label varchar(20)";
            engine.by(sql, sql, ("part", columns, "id, item, label"))
        },
        said: &[],
        write: |id| format!("INSERT INTO part VALUES ({id}, 1, 'of one too')"),
    },
    Case {
        told: "a wider key",
        change: |engine| match engine {
            Postgres => Some("ALTER TABLE old ALTER COLUMN id TYPE bigint".into()),
            Mariadb => Some("ALTER TABLE old MODIFY id bigint NOT NULL".into()),
            Sqlite => None,
        },
        said: &[],
        write: |id| format!("INSERT INTO old VALUES ({id} + 5000000000, 'wide')"),
    },
    Case {
        told: "no unique index any more",
        change: |engine| {
            Some(match engine {
                Mariadb => "DROP INDEX item_note ON item".into(),
                _ => "DROP INDEX item_note".into(),
            })
        },
        said: &[],
        write: |id| format!("INSERT INTO item (id, note) VALUES ({id}, 'first')"),
    },
    Case {
        told: "no foreign key any more",
        change: |engine| {
            engine.by(
                "ALTER TABLE part DROP CONSTRAINT part_item",
                "ALTER TABLE part DROP FOREIGN KEY part_item",
                (
                    "part",
                    "id integer PRIMARY KEY, item integer, label varchar(20)",
                    "id, item, label",
                ),
            )
        },
        said: &[],
        write: |id| format!("INSERT INTO part VALUES ({id}, 1000000 + {id}, 'of none')"),
    },
    Case {
        told: "another type",
        change: |engine| {
            engine.by(
                "ALTER TABLE item ALTER COLUMN price TYPE numeric(12,2)",
                "ALTER TABLE item MODIFY price decimal(12,2) NOT NULL DEFAULT 5",
                (
                    "item",
                    "id integer PRIMARY KEY, name varchar(40), price decimal(12,2) NOT NULL DEFAULT 5, note varchar(20)",
                    "id, name, price, note",
                ),
            )
        },
        said: &[],
        write: |id| format!("INSERT INTO item (id, price) VALUES ({id}, 12.25)"),
    },
    Case {
        told: "a column of another name",
        change: |_| Some("ALTER TABLE item RENAME COLUMN note TO remark".into()),
        said: &[("item.note", "remark")],
        write: |id| format!("INSERT INTO item (id, remark) VALUES ({id}, 'renamed')"),
    },
    Case {
        told: "a table of another name",
        change: |_| Some("ALTER TABLE old RENAME TO archive".into()),
        said: &[("old", "archive")],
        write: |id| format!("INSERT INTO archive VALUES ({id}, 'renamed')"),
    },
    Case {
        told: "a column gone",
        change: |_| Some("ALTER TABLE item DROP COLUMN remark".into()),
        said: &[],
        write: |id| format!("INSERT INTO item (id, name) VALUES ({id}, 'short')"),
    },
    Case {
        told: "a table gone",
        change: |_| Some("DROP TABLE archive".into()),
        said: &[],
        write: |id| format!("INSERT INTO item (id, name) VALUES ({id}, 'after all')"),
    },
    Case {
        told: "many changes at once",
        change: |_| {
            Some(
                "ALTER TABLE item ADD COLUMN colour varchar(10) DEFAULT 'red'; \
                 CREATE TABLE tag (id integer PRIMARY KEY, label varchar(20)); \
                 ALTER TABLE part RENAME COLUMN label TO title; \
                 ALTER TABLE part ADD COLUMN weight integer; \
                 CREATE INDEX part_title ON part (title)"
                    .into(),
            )
        },
        said: &[("part.label", "title")],
        write: |id| format!("INSERT INTO part (id, title, weight) VALUES ({id}, 'many', 3)"),
    },
];

/// What every office must answer alike, by what its tables are called there now.
fn contents(office: &Office) -> Vec<Vec<Vec<String>>> {
    let mut db = Db::open(&office.database);
    let columns = |db: &mut Db, wanted: &[&'static str], table: &str| -> Vec<Vec<String>> {
        let there = |column: &&&str| {
            db.try_rows(&format!("SELECT {column} FROM {table}"))
                .is_ok()
        };
        let found: Vec<&str> = wanted.iter().filter(there).copied().collect();
        if found.is_empty() {
            return vec![vec![format!("no {table}")]];
        }
        let found = found.join(", ");
        let rows = db.rows(&format!("SELECT {found} FROM {table} ORDER BY id"));
        // 5 and 5.00 are one number.
        let plain = |cell: String| {
            cell.parse::<f64>()
                .map_or(cell, |number| number.to_string())
        };
        let rows = rows
            .into_iter()
            .map(|row| row.into_iter().map(plain).collect());
        std::iter::once(vec![found]).chain(rows).collect()
    };
    [
        (
            &["id", "name", "price", "note", "remark", "colour"][..],
            "item",
        ),
        (&["id", "item", "label", "title", "weight"][..], "part"),
        (&["id", "v"][..], "old"),
        (&["id", "v"][..], "archive"),
        (&["id", "label"][..], "tag"),
    ]
    .into_iter()
    .map(|(wanted, table)| columns(&mut db, wanted, table))
    .collect()
}

/// All come together and answer alike.
#[track_caller]
fn compare(company: &Company, told: &str) {
    let all: Vec<&Office> = company.branches.iter().collect();
    settle(&company.head, &all, SOON);
    // What fits only since the head's own change is tried again after some seconds.
    wait_until(&format!("all hold the same after {told}"), SOON, || {
        let expected = contents(&company.head);
        for office in std::iter::once(&company.head).chain(&company.branches) {
            let holds = office.json(&["holds"]);
            let found = contents(office);
            if holds != serde_json::json!([]) || found != expected {
                return Err(format!(
                    "{} has {found:?}, holds {holds}, the head {expected:?}",
                    office.name
                ));
            }
        }
        Ok(())
    });
    settle(&company.head, &all, SOON);
    // What a branch ahead wrote may have been held until the head's tables took it; nothing else was decided.
    let conflicts = company.head.json(&["conflicts"]);
    for conflict in conflicts.as_array().unwrap() {
        assert_eq!(
            conflict["settled"]["keep"], "branch",
            "after {told}: {conflict}"
        );
    }
}

/// Goes through all changes with a head and three branches of these engines.
fn each_change(head: Engine, up: Engine, ahead: Engine, away: Engine) {
    let branches = [("up", up), ("ahead", ahead), ("away", away)];
    let mut company = Company::open(head, &branches, &tables(head));
    let mut id = 1_000;
    let mut write = |company: &mut Company, office: &str, case: &Case| {
        id += 1;
        let database = match office {
            "HO" => company.head.database.clone(),
            name => company.branch(name).database.clone(),
        };
        Db::open(&database).run((case.write)(id));
    };
    company.branch("away").stop();
    for (number, case) in CASES.iter().enumerate() {
        let Some(change) = (case.change)(head) else {
            continue;
        };
        if let Some(change) = (case.change)(ahead) {
            let database = company.branch("ahead").database.clone();
            alter(&database, &change);
            write(&mut company, "ahead", case);
        }
        if head != Postgres {
            for (what, to) in case.said {
                company.says(what, to);
            }
        }
        company.migrate(&change, &["up", "ahead"]);
        for office in ["HO", "up", "ahead"] {
            write(&mut company, office, case);
        }
        if number % 3 == 2 || number + 1 == CASES.len() {
            company.branch("away").run();
            compare(&company, case.told);
            company.branch("away").stop();
            // What it cannot send before the next three changes.
            write(&mut company, "away", case);
        }
    }
    company.branch("away").run();
    // A column that a branch has no more, and then again, holds what the head has.
    let database = company.branch("ahead").database.clone();
    alter(&database, "ALTER TABLE item DROP COLUMN colour");
    company
        .at_head()
        .run("UPDATE item SET colour = 'green', price = 7 WHERE id = 2");
    let mut there = Db::open(&database);
    wait_until("the branch has what it can have", SOON, || {
        let price: f64 = there
            .one("SELECT price FROM item WHERE id = 2")
            .parse()
            .unwrap();
        if (price - 7.0).abs() < 0.001 {
            Ok(())
        } else {
            Err(price.to_string())
        }
    });
    alter(
        &database,
        "ALTER TABLE item ADD COLUMN colour varchar(10) DEFAULT 'red'",
    );
    Db::open(&database).run("UPDATE item SET name = 'deux' WHERE id = 2");
    wait_until("the branch has the head's value again", SOON, || {
        let colour = there.rows("SELECT name, colour FROM item WHERE id = 2");
        if colour == [["deux", "green"]] {
            Ok(())
        } else {
            Err(format!("{colour:?}"))
        }
    });
    let all: Vec<&Office> = company.branches.iter().collect();
    settle(&company.head, &all, SOON);
    let expected = contents(&company.head);
    for branch in &company.branches {
        assert_eq!(contents(branch), expected, "{}", branch.name);
    }
}

#[test]
fn each_change_at_a_head_on_postgresql() {
    each_change(Postgres, Mariadb, Sqlite, Postgres);
}

#[test]
fn each_change_at_a_head_on_mariadb() {
    each_change(Mariadb, Sqlite, Postgres, Mariadb);
}

#[test]
fn each_change_at_a_head_on_sqlite() {
    each_change(Sqlite, Postgres, Mariadb, Sqlite);
}
