//! Check constraints: what means the same everywhere is made where the table is created, whatever engine it comes from.

use branchline_core::check::{Check, Comparison, Condition};
use branchline_core::port::{Database, Evolution, Purpose};
use branchline_core::schema::{Counter, Schema, Table};
use branchline_database::checks::told;
use branchline_testkit::servers;

use super::place::{ENGINES, Engine, Place, schema};

/// What the application declares, in each engine's own words. Texts are told apart byte by byte in all three.
fn goods(engine: Engine) -> String {
    let (text, int) = match engine {
        Engine::Postgres => ("varchar(20)", "int"),
        Engine::MariaDb if servers::mariadb().is_mysql() => {
            ("VARCHAR(20) COLLATE utf8mb4_0900_bin", "INT")
        }
        Engine::MariaDb => ("VARCHAR(20) COLLATE utf8mb4_nopad_bin", "INT"),
        Engine::Sqlite => ("VARCHAR(20)", "INTEGER"),
    };
    let price = match engine {
        Engine::Sqlite => "DECIMAL(12,2)",
        _ => "numeric(12,2)",
    };
    format!(
        "CREATE TABLE goods (id {int} PRIMARY KEY, qty {int}, low bigint, high bigint, status {text},
             price {price} CHECK (price >= 0),
             CONSTRAINT qty_is_positive CHECK (qty > 0), CHECK (low <= high),
             CONSTRAINT known CHECK (status IN ('open', 'it''s')),
             CHECK (qty BETWEEN 1 AND 100 OR status IS NULL AND NOT qty IN (500, 600)),
             CHECK (-5 < low), CHECK (length(status) > 1))"
    )
}

const CARRIED: [&str; 5] = [
    "-5 < low",
    "known",
    "low <= high",
    "qty BETWEEN",
    "qty_is_positive",
];

const TAKEN: [&str; 5] = [
    "1, 5, 1, 2, 'open', 1",
    "2, NULL, NULL, NULL, NULL, NULL",
    "3, 100, -4, -4, 'it''s', 1",
    "4, 101, 7, NULL, NULL, 1",
    // Decimals are not compared alike everywhere: this one stays with the office that has it.
    "5, 1, NULL, NULL, 'open', -1",
];

const REFUSED: [&str; 9] = [
    "9, 0, 1, 2, 'open', 1",
    "9, -1, 1, 2, NULL, 1",
    "9, 5, 3, 2, 'open', 1",
    "9, 5, -5, 2, 'open', 1",
    "9, 5, 1, 2, 'OPEN', 1",
    "9, 5, 1, 2, 'open ', 1",
    "9, 5, 1, 2, '', 1",
    "9, 101, 1, 2, 'open', 1",
    "9, 500, 1, 2, NULL, 1",
];

/// Shares the table as the plan of a head with this engine.
async fn plan(engine: Engine) -> Schema {
    let mut head = Place::with(engine, &goods(engine)).await;
    let found = head.look().await;
    assert_eq!(found.tables.len(), 1, "{engine}: {:?}", found.findings);
    let table = &found.tables[0];
    let names: Vec<Option<&str>> = (table.checks.0.iter())
        .map(|check| check.name.as_deref())
        .collect();
    assert_eq!(names.len(), CARRIED.len(), "{engine}: {:?}", table.checks);
    for name in ["qty_is_positive", "known"] {
        assert!(names.contains(&Some(name)), "{engine}: {names:?}");
    }
    let left: Vec<String> = (found.left_out.iter())
        .map(|one| format!("{} {}: {}", one.table, one.what, one.why))
        .collect();
    assert_eq!(left.len(), 2, "{engine}: {left:?}");
    let told = |words: &[&str]| {
        let all = |one: &&String| words.iter().all(|word| one.contains(word));
        assert!(left.iter().any(|one| all(&one)), "{engine}: {left:?}");
    };
    told(&["goods check", "price", "decimal"]);
    told(&["goods check", "length(...)"]);
    // The office's own definition of it is not touched, and keeps all.
    let mut plan = schema(found.tables);
    for (id, column) in (1..).zip(&mut plan.tables[0].columns) {
        column.id = id;
    }
    plan.tables[0].columns_ever = 6;
    plan
}

async fn insert(office: &Place, row: &str) -> Result<(), String> {
    let sql = format!("INSERT INTO goods VALUES ({row})");
    office.try_sql(&sql).await
}

fn conditions(table: &Table) -> Vec<String> {
    let mut all: Vec<String> = (table.checks.0.iter())
        .map(|check| told(table, check).rsplit("`: ").next().unwrap().to_owned())
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_in_force_where_the_table_is_created() {
    for head in ENGINES {
        let plan = plan(head).await;
        for engine in ENGINES {
            let mut branch = Place::new(engine).await;
            branch.share(&plan).await.unwrap();
            assert!(branch.db.left_out(&plan.tables[0]).is_empty());
            for row in TAKEN {
                let done = insert(&branch, row).await;
                assert_eq!(done, Ok(()), "{head} at {engine}: {row}");
            }
            for row in REFUSED {
                let done = insert(&branch, row).await;
                assert!(done.is_err(), "{head} at {engine}: {row}");
            }
            // What it made says what it was told to make.
            let found = branch.look().await;
            assert_eq!(
                conditions(&found.tables[0]),
                conditions(&plan.tables[0]),
                "{head} at {engine}"
            );
        }
    }
}

async fn evolve(office: &mut Place, from: &Schema, to: &Schema) -> Evolution {
    office.db.begin(Purpose::Load).await.unwrap();
    let done = office.db.evolve(from, to, &[]).await.unwrap();
    assert_eq!(done.refused, [], "{}", office.engine);
    office.db.commit().await.unwrap();
    done
}

async fn follow(office: &mut Place, from: &Schema, to: &Schema) {
    let done = evolve(office, from, to).await;
    assert_eq!(done.unmade, [], "{}", office.engine);
}

/// The version before, in which the table has none of these checks.
fn without(plan: &Schema, names: &[&str]) -> Schema {
    let mut before = plan.clone();
    before.version -= 1;
    let goes = |name: &Option<String>| name.as_deref().is_some_and(|name| names.contains(&name));
    let checks = &mut before.tables[0].checks.0;
    checks.retain(|check| !goes(&check.name));
    before
}

/// A row that the head takes now would be held at a branch that kept the check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_goes_at_the_head_goes_at_the_branches() {
    let plan = plan(Engine::Postgres).await;
    let mut freed = plan.clone();
    freed.version += 1;
    let known = |name: &Option<String>| name.as_deref() == Some("known");
    freed.tables[0].checks.0.retain(|check| !known(&check.name));
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        insert(&branch, TAKEN[0]).await.unwrap();
        follow(&mut branch, &plan, &freed).await;
        let done = insert(&branch, "2, 5, 1, 2, 'paid', 1").await;
        assert_eq!(done, Ok(()), "{engine}");
        for row in REFUSED
            .iter()
            .filter(|row| !row.to_lowercase().contains("'open"))
        {
            if row.contains("''") {
                continue;
            }
            let done = insert(&branch, row).await;
            assert!(done.is_err(), "{engine}: {row}");
        }
        let found = branch.look().await;
        assert_eq!(conditions(&found.tables[0]), conditions(&freed.tables[0]));
        // Once more, as after a crash.
        follow(&mut branch, &plan, &freed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_follow_columns_that_are_renamed_and_go_with_those_that_are_dropped() {
    let plan = plan(Engine::Sqlite).await;
    let mut next = plan.clone();
    next.version += 1;
    let table = &mut next.tables[0];
    table.columns[1].name = "amount".into();
    table.columns.remove(3);
    let place = |at: u16| match at {
        0..=2 => Some(at),
        3 => None,
        _ => Some(at - 1),
    };
    table.checks.0.retain_mut(|check| {
        let moved = check.condition.moved(&place);
        moved.map(|moved| check.condition = moved).is_some()
    });
    assert_eq!(table.checks.0.len(), 4);
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        insert(&branch, TAKEN[0]).await.unwrap();
        follow(&mut branch, &plan, &next).await;
        for (row, fine) in [
            ("2, 7, 9, 'open', 1", true),
            ("3, NULL, NULL, NULL, 1", true),
            ("4, 0, 9, 'open', 1", false),
            ("4, 7, -5, 'open', 1", false),
            ("4, 7, 9, 'OPEN', 1", false),
        ] {
            let done = insert(&branch, row).await;
            assert_eq!(done.is_ok(), fine, "{engine}: {row}: {done:?}");
        }
        let found = branch.look().await;
        assert_eq!(
            conditions(&found.tables[0]),
            conditions(&next.tables[0]),
            "{engine}"
        );
    }
}

/// A head may be anyone: names and texts stay names and texts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_texts_of_a_check_cannot_break_out() {
    let mut plan = plan(Engine::Sqlite).await;
    let strange = "x\"`'); DROP --";
    let texts = vec!["open".into(), strange.into(), "größer 😀".into()];
    let check = |name: &str, condition| Check {
        name: Some(name.into()),
        condition,
    };
    plan.tables[0].checks.0 = vec![
        check(strange, Condition::Texts(4, true, texts)),
        check(
            &strange.to_uppercase(),
            Condition::Number(1, Comparison::Greater, 0),
        ),
        check("", Condition::Number(1, Comparison::Less, i64::MAX)),
        check("n\0l", Condition::Number(1, Comparison::Greater, i64::MIN)),
        check("twice", Condition::Null(0, false)),
        check("TWICE", Condition::Null(0, false)),
        check("gone", Condition::Null(70, false)),
        check("decimal", Condition::Number(5, Comparison::Less, 0)),
    ];
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        let quoted = strange.replace('\'', "''");
        insert(&branch, &format!("1, 5, 1, 2, '{quoted}', 1"))
            .await
            .unwrap();
        insert(&branch, "2, 5, 1, 2, 'größer 😀', 1").await.unwrap();
        for row in ["3, 0, 1, 2, 'open', 1", "3, 5, 1, 2, 'größer', 1"] {
            assert!(insert(&branch, row).await.is_err(), "{engine}: {row}");
        }
    }
}

/// What an office shows of a counter is the head's value and its own later sums, which may be below what the check says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_a_counter_is_not_made() {
    let mut plan = plan(Engine::Postgres).await;
    plan.tables[0].counters = vec![Counter {
        column: 1,
        floor: Some(0),
    }];
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        assert_eq!(branch.db.left_out(&plan.tables[0]).len(), 2);
        insert(&branch, REFUSED[0]).await.unwrap();
        assert!(insert(&branch, REFUSED[2]).await.is_err(), "{engine}");
    }
}

/// Rows that were there before a check may break it, and so may all rows where it is not in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_does_not_hold_at_the_head_is_not_carried() {
    let sql = match servers::mariadb().is_mysql() {
        true => {
            "CREATE TABLE t (id INT PRIMARY KEY, a INT, CONSTRAINT c CHECK (a > 0) NOT ENFORCED)"
        }
        false => {
            "CREATE TABLE t (id INT PRIMARY KEY, a TEXT COLLATE utf8mb4_general_ci, CONSTRAINT c CHECK (a IN ('x')))"
        }
    };
    for (engine, sql) in [
        (
            Engine::Postgres,
            "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, -1);
             ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID",
        ),
        (Engine::MariaDb, sql),
        (
            Engine::Sqlite,
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE, CONSTRAINT c CHECK (a IN ('x')))",
        ),
    ] {
        let mut head = Place::with(engine, sql).await;
        let found = head.look().await;
        assert_eq!(found.tables[0].checks.0, [], "{engine}");
        let left = &found.left_out;
        assert!(
            matches!(left.as_slice(), [one] if one.what.contains("`c`")),
            "{engine}: {left:?}"
        );
    }
}

/// MariaDB and MySQL take no check of a column that they number, and none of one that a foreign key's action changes. The table is
/// made without it, and it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_does_not_take_does_not_keep_the_table_out() {
    let sql = "CREATE TABLE kind (id INTEGER PRIMARY KEY CHECK (id > 0), CHECK (id < 5000000000));
         CREATE TABLE goods (id INTEGER PRIMARY KEY, n INTEGER CHECK (n > 0),
             kind INTEGER REFERENCES kind (id) ON DELETE SET NULL ON UPDATE CASCADE, CHECK (kind <> 13))";
    let mut head = Place::with(Engine::Sqlite, sql).await;
    let mut plan = schema(head.look().await.tables);
    plan.number();
    assert!(plan.tables[0].columns[0].generated_key);
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        let left: Vec<_> = plan
            .tables
            .iter()
            .map(|table| branch.db.left_out(table))
            .collect();
        let left: Vec<usize> = left.iter().map(Vec::len).collect();
        let expected = match engine {
            Engine::MariaDb => [2, 1],
            _ => [0, 0],
        };
        assert_eq!(left, expected, "{engine}");
        let refused = branch
            .try_sql("INSERT INTO goods (id, n) VALUES (1, 0)")
            .await;
        assert!(refused.is_err(), "{engine}");
        let kept = branch.try_sql("INSERT INTO kind (id) VALUES (-1)").await;
        assert_eq!(kept.is_ok(), expected[0] > 0, "{engine}: {kept:?}");
        // A foreign key that comes later is not kept out by the check.
        let mut without = plan.clone();
        let goods = &mut without.tables[1];
        goods.foreign_keys.clear();
        let mut branch = Place::new(engine).await;
        branch.share(&without).await.unwrap();
        let broken = "INSERT INTO goods (id, kind) VALUES (1, 13)";
        assert!(branch.try_sql(broken).await.is_err(), "{engine}");
        let mut bound = plan.clone();
        bound.version += 1;
        follow(&mut branch, &without, &bound).await;
        let found = branch.look().await;
        let goods = found.tables.iter().find(|table| table.name == "goods");
        assert_eq!(goods.unwrap().foreign_keys.len(), 1, "{engine}");
    }
}

/// What remembers that a table was made what a version says knows nothing of checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_goes_in_a_step_of_its_own_after_another_step() {
    let plan = plan(Engine::Postgres).await;
    let mut wider = plan.clone();
    wider.version += 1;
    wider.tables[0].indexes.push(vec![1]);
    let mut freed = wider.clone();
    freed.version += 1;
    let known = |name: &Option<String>| name.as_deref() == Some("known");
    freed.tables[0].checks.0.retain(|check| !known(&check.name));
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        follow(&mut branch, &plan, &wider).await;
        follow(&mut branch, &wider, &freed).await;
        let done = insert(&branch, "2, 5, 1, 2, 'paid', 1").await;
        assert_eq!(done, Ok(()), "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_comes_at_the_head_is_made_where_the_table_is() {
    let plan = plan(Engine::Postgres).await;
    let mut before = without(&plan, &[]);
    before.tables[0].checks.0.clear();
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&before).await.unwrap();
        for row in TAKEN {
            insert(&branch, row).await.unwrap();
        }
        // Its own name is taken by another one that the application made here.
        if engine != Engine::Sqlite {
            branch
                .sql("ALTER TABLE goods ADD CONSTRAINT known CHECK (low < 1000)")
                .await;
        }
        follow(&mut branch, &before, &plan).await;
        for row in REFUSED {
            let done = insert(&branch, row).await;
            assert!(done.is_err(), "{engine}: {row}");
        }
        let count = |conditions: Vec<String>| {
            let own = |one: &&String| one.as_str() != "low < 1000";
            conditions.iter().filter(own).cloned().collect::<Vec<_>>()
        };
        let found = branch.look().await;
        let expected = conditions(&plan.tables[0]);
        assert_eq!(count(conditions(&found.tables[0])), expected, "{engine}");
        // Once more, as after a crash.
        follow(&mut branch, &before, &plan).await;
        let found = branch.look().await;
        assert_eq!(count(conditions(&found.tables[0])), expected, "{engine}");
        let taken = branch.take(&plan).await;
        assert_eq!(
            taken.0.len(),
            TAKEN.len(),
            "{engine}: what was captured stays"
        );
    }
}

/// The other checks are made, and so is this one as soon as no row breaks it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_rows_break_waits_for_them_and_keeps_nothing_else_out() {
    let plan = plan(Engine::Sqlite).await;
    let mut before = without(&plan, &["known", "qty_is_positive"]);
    before.tables[0].columns.remove(5);
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&before).await.unwrap();
        insert(&branch, "1, 5, 1, 2, 'paid'").await.unwrap();
        insert(&branch, "2, 5, 1, 2, 'open'").await.unwrap();
        let done = evolve(&mut branch, &before, &plan).await;
        let [(1, check, why)] = done.unmade.as_slice() else {
            panic!("{engine}: {done:?}");
        };
        assert_eq!(check.name.as_deref(), Some("known"), "{engine}");
        for part in ["`known`: status IN", "with the key 1 ", "change or delete"] {
            assert!(why.contains(part), "{engine}: {why}");
        }
        insert(&branch, "3, 5, 1, 2, 'paid', 1.5").await.unwrap();
        let zero = insert(&branch, "4, 0, 1, 2, 'open', 1.5").await;
        assert!(zero.is_err(), "{engine}");
        let waits = without(&plan, &["known"]);
        let done = evolve(&mut branch, &waits, &plan).await;
        assert_eq!(done.unmade.len(), 1, "{engine}");
        branch.sql("UPDATE goods SET status = 'open'").await;
        follow(&mut branch, &waits, &plan).await;
        let found = branch.look().await;
        assert_eq!(
            conditions(&found.tables[0]),
            conditions(&plan.tables[0]),
            "{engine}"
        );
    }
}

/// The head's migration changes rows and then the check; these rows come after the step. So the old check goes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_becomes_another_goes_at_once() {
    let plan = plan(Engine::MariaDb).await;
    let mut next = plan.clone();
    next.version += 1;
    for check in &mut next.tables[0].checks.0 {
        if let Condition::Texts(_, _, list) = &mut check.condition {
            *list = vec!["paid".into(), "it's".into()];
        }
    }
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&plan).await.unwrap();
        insert(&branch, TAKEN[0]).await.unwrap();
        let done = evolve(&mut branch, &plan, &next).await;
        assert_eq!(done.unmade.len(), 1, "{engine}: {done:?}");
        branch.sql("UPDATE goods SET status = 'paid'").await;
        let waits = without(&next, &["known"]);
        follow(&mut branch, &waits, &next).await;
        let open = insert(&branch, "2, 5, 1, 2, 'open', 1").await;
        assert!(open.is_err(), "{engine}");
        let found = branch.look().await;
        assert_eq!(
            conditions(&found.tables[0]),
            conditions(&next.tables[0]),
            "{engine}"
        );
    }
}

/// Rows that are there hold the default of a column that comes, or what is next to nothing, until the head's values come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_a_column_that_comes_waits_for_its_values() {
    let sql = "CREATE TABLE goods (id INTEGER PRIMARY KEY, kind VARCHAR(9) NOT NULL, size INTEGER NOT NULL DEFAULT 1,
                   CONSTRAINT kinds CHECK (kind IN ('a', 'b')), CONSTRAINT sizes CHECK (size > 0))";
    let mut head = Place::with(Engine::Sqlite, sql).await;
    let mut plan = schema(head.look().await.tables);
    plan.version = 2;
    plan.number();
    let mut before = without(&plan, &["kinds", "sizes"]);
    before.tables[0].columns.truncate(1);
    for engine in ENGINES {
        let mut branch = Place::new(engine).await;
        branch.share(&before).await.unwrap();
        branch.sql("INSERT INTO goods VALUES (1)").await;
        let done = evolve(&mut branch, &before, &plan).await;
        let [(_, check, _)] = done.unmade.as_slice() else {
            panic!("{engine}: {done:?}");
        };
        assert_eq!(check.name.as_deref(), Some("kinds"), "{engine}");
        branch.sql("UPDATE goods SET kind = 'b'").await;
        let waits = without(&plan, &["kinds"]);
        follow(&mut branch, &waits, &plan).await;
        for row in ["2, 'c', 1", "2, 'a', 0"] {
            assert!(insert(&branch, row).await.is_err(), "{engine}: {row}");
        }
    }
}

/// A table that the application made here may take different texts for one: there the check would say something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_would_mean_something_else_here_is_not_made() {
    let plan = plan(Engine::Postgres).await;
    let before = without(&plan, &["known"]);
    for (engine, sql) in [
        (
            Engine::MariaDb,
            "CREATE TABLE goods (id INT PRIMARY KEY, qty INT, low BIGINT, high BIGINT,
                 status VARCHAR(20) COLLATE utf8mb4_general_ci, price DECIMAL(12,2))",
        ),
        (
            Engine::Sqlite,
            "CREATE TABLE goods (id INTEGER NOT NULL PRIMARY KEY, qty INTEGER, low BIGINT, high BIGINT,
                 status VARCHAR(20) COLLATE NOCASE, price DECIMAL(12,2))",
        ),
    ] {
        let mut branch = Place::with(engine, sql).await;
        branch.share(&before).await.unwrap();
        let done = evolve(&mut branch, &before, &plan).await;
        assert_eq!(done.unmade, [], "{engine}");
        assert_eq!(done.unbound.len(), 1, "{engine}: {done:?}");
        let told = &done.unbound[0];
        assert!(told.contains("`known`"), "{engine}: {told}");
        insert(&branch, "1, 5, 1, 2, 'OPEN', 1").await.unwrap();
    }
}
