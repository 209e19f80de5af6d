//! Rows whose content is none of the plan's.

use branchline_core::change::{Effect, Key};
use branchline_core::port::{Database, Finding, Portion, Purpose};
use branchline_core::schema::Table;
use branchline_core::value::{Type, Value};

use super::office::{Office, SHOP, customer, key, text};

/// All that is captured, in one transaction, two rows at a time.
async fn take(office: &mut Office) -> Portion {
    let mut all = Portion::default();
    office.ours.begin(Purpose::Take).await.unwrap();
    loop {
        let portion = office.ours.take(&office.schema, 2).await.unwrap();
        assert!(portion.changes.len() + portion.unreadable.len() <= 2);
        all.changes.extend(portion.changes);
        all.unreadable.extend(portion.unreadable);
        if !portion.open {
            break;
        }
    }
    office.ours.commit().await.unwrap();
    all
}

/// (key, problem) as reported.
fn problems(portion: &Portion) -> Vec<(Key, &str)> {
    portion
        .unreadable
        .iter()
        .map(|row| (row.key.clone(), row.problem.as_str()))
        .collect()
}

const STRICTLESS: &str =
    "CREATE TABLE t (id INTEGER PRIMARY KEY, number INTEGER, words TEXT, ratio REAL, day DATE,
    raw BLOB, truth BOOLEAN, small SMALLINT, price DECIMAL(10,2))";

#[tokio::test]
async fn each_is_reported_with_what_stands_there_and_what_was_expected() {
    let mut office = Office::new(STRICTLESS).await;
    office.schema.tables[0].columns[7].kind = Type::Int16;
    office.ours.install(&office.schema).await.unwrap();
    office.does(&format!(
        "INSERT INTO t(id, number) VALUES (1, 'twelve');
         INSERT INTO t(id, number) VALUES (2, 1.5);
         INSERT INTO t(id, words) VALUES (3, CAST(X'61ff' AS TEXT));
         INSERT INTO t(id, words) VALUES (4, X'00ff');
         INSERT INTO t(id, ratio) VALUES (5, 'much');
         INSERT INTO t(id, day) VALUES (6, 2024);
         INSERT INTO t(id, raw) VALUES (7, 1);
         INSERT INTO t(id, truth) VALUES (8, 2);
         INSERT INTO t(id, small) VALUES (9, 70000);
         INSERT INTO t(id, price) VALUES (10, '{}');
         INSERT INTO t(id, number) VALUES (11, 12);
         INSERT INTO t(id, number) VALUES (12, 9e18);",
        "x".repeat(100)
    ));
    let taken = take(&mut office).await;
    let long = format!(
        "column `price` holds the text \"{}\" where the plan says decimal(10,2)",
        "x".repeat(40)
    );
    assert_eq!(
        problems(&taken),
        [
            (
                key(1),
                "column `number` holds the text \"twelve\" where the plan says 64-bit integer"
            ),
            (
                key(2),
                "column `number` holds the float 1.5 where the plan says 64-bit integer"
            ),
            (
                key(3),
                "column `words` holds text that is not UTF-8 where the plan says text"
            ),
            (
                key(4),
                "column `words` holds a blob of 2 bytes where the plan says text"
            ),
            (
                key(5),
                "column `ratio` holds the text \"much\" where the plan says 64-bit float"
            ),
            (
                key(6),
                "column `day` holds the integer 2024 where the plan says date"
            ),
            (
                key(7),
                "column `raw` holds the integer 1 where the plan says bytes"
            ),
            (
                key(8),
                "column `truth` holds the integer 2 where the plan says boolean"
            ),
            (
                key(9),
                "column `small` holds the integer 70000 where the plan says 16-bit integer"
            ),
            (key(10), long.as_str()),
        ]
    );
    let table = office.table("t");
    let keys: Vec<Key> = taken
        .changes
        .iter()
        .map(|change| change.effect.key(&table))
        .collect();
    assert_eq!(keys, [key(11), key(12)], "the others flow");
    assert_eq!(office.ours.backlog().await.unwrap().writes, 0);
    assert_eq!(take(&mut office).await, Portion::default());
}

#[tokio::test]
async fn one_that_is_mended_or_deleted_is_a_change() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, X'01', 'a'), (2, X'02', 'b'), (3, X'03', 'c')");
    assert_eq!(take(&mut office).await.unreadable.len(), 3);
    office.does(
        "UPDATE customer SET name = 'Ann' WHERE id = 1; DELETE FROM customer WHERE id = 2;
         UPDATE customer SET email = 'd' WHERE id = 3",
    );
    let taken = take(&mut office).await;
    let effects: Vec<_> = taken.changes.iter().map(|taken| &taken.effect).collect();
    assert_eq!(
        effects,
        [
            &Effect::Put(customer(1, "Ann", "a")),
            &Effect::Delete(key(2))
        ]
    );
    assert_eq!(taken.unreadable.len(), 1, "written again, reported again");
}

#[tokio::test]
async fn a_rolled_back_take_reports_it_again() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, X'01', 'a')");
    office.ours.begin(Purpose::Take).await.unwrap();
    let first = office.ours.take(&office.schema, 10).await.unwrap();
    office.ours.rollback().await.unwrap();
    assert_eq!(take(&mut office).await.unreadable, first.unreadable);
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_reported_as_it_stands() {
    let mut office = Office::new(
        "CREATE TABLE code (code TEXT PRIMARY KEY, n INTEGER); CREATE TABLE num (a INT NOT NULL, b TEXT, PRIMARY KEY (a, b))",
    )
    .await;
    office.does(
        "INSERT INTO code VALUES (CAST(X'61ff' AS TEXT), 1), (X'62', 2), (NULL, 3), ('good', 4);
         INSERT INTO num VALUES ('many', 'x'), (1, 'y')",
    );
    let (code, num) = (office.table("code"), office.table("num"));
    let keys = |values: &[Value]| {
        values
            .iter()
            .map(|value| Key(vec![value.clone()]))
            .collect::<Vec<_>>()
    };
    let codes = keys(&[
        Value::Null,
        Value::Bytes(vec![0x61, 0xff]),
        Value::Bytes(vec![0x62]),
        text("good"),
    ]);
    office.ours.begin(Purpose::Apply).await.unwrap();
    let mut captured: Vec<Key> = office
        .ours
        .captured(&code, None)
        .await
        .unwrap()
        .into_iter()
        .collect();
    captured.sort();
    let mut expected = codes.clone();
    expected.sort();
    assert_eq!(captured, expected);
    let taken = take(&mut office).await;
    assert_eq!(
        problems(&taken),
        [
            (
                codes[1].clone(),
                "column `code` holds text that is not UTF-8 where the plan says text"
            ),
            (
                codes[2].clone(),
                "column `code` holds a blob of 1 bytes where the plan says text"
            ),
            (
                codes[0].clone(),
                "column `code` is NULL where the plan says text"
            ),
            (
                Key(vec![text("many"), text("x")]),
                "column `a` holds the text \"many\" where the plan says 64-bit integer"
            ),
        ]
    );
    let others: Vec<Key> = taken
        .changes
        .iter()
        .map(|change| {
            change
                .effect
                .key(if change.table == code.id { &code } else { &num })
        })
        .collect();
    assert_eq!(
        others,
        [codes[3].clone(), Key(vec![Value::Int(1), text("y")])]
    );
    // Gone, or under a key that can be read: nobody else ever heard of the old one.
    office.does("DELETE FROM code WHERE code IS NULL OR code = X'62'; UPDATE code SET code = 'mended' WHERE n = 1");
    let taken = take(&mut office).await;
    assert_eq!(taken.unreadable, []);
    let effects: Vec<_> = taken
        .changes
        .iter()
        .map(|taken| taken.effect.key(&code))
        .collect();
    assert_eq!(effects, keys(&[text("mended")]));
}

#[tokio::test]
async fn reading_leaves_them_out_and_goes_on() {
    let mut office = Office::new(SHOP).await;
    for id in 1..=20 {
        let name = if id % 5 == 0 || (10..16).contains(&id) {
            "X'ff'"
        } else {
            "'Ann'"
        };
        office.does(&format!("INSERT INTO customer VALUES ({id}, {name}, NULL)"));
    }
    let table = office.table("customer");
    let readable: Vec<Key> = [1, 2, 3, 4, 6, 7, 8, 9, 16, 17, 18, 19].map(key).into();
    for limit in [1, 2, 3, 12, 13, 100] {
        office.ours.begin(Purpose::Read).await.unwrap();
        let (mut found, mut after): (Vec<Key>, Option<Key>) = (vec![], None);
        loop {
            let chunk = office
                .ours
                .chunk(&table, after.as_ref(), limit)
                .await
                .unwrap();
            found.extend(chunk.iter().map(|row| table.key_of(row)));
            if chunk.len() < limit {
                break;
            }
            after = found.last().cloned();
        }
        assert_eq!(found, readable, "in chunks of {limit}");
    }
    let keys = [4, 5, 6].map(key);
    let read = office.ours.read(&table, &keys).await.unwrap();
    assert_eq!(read.into_keys().collect::<Vec<_>>(), [key(4), key(6)]);
}

#[tokio::test]
async fn an_inspection_finds_them_in_the_whole_table() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
         INSERT INTO customer SELECT i, 'Ann', NULL FROM n",
    );
    let about = |findings: &[Finding]| -> Vec<String> {
        let of_rows = findings.iter().filter(|one| one.problem.contains("rows"));
        of_rows.map(|one| one.problem.clone()).collect()
    };
    assert_eq!(
        about(&office.ours.inspect().await.unwrap().findings),
        [""; 0]
    );
    office.does("UPDATE customer SET name = X'00' WHERE id BETWEEN 1990 AND 6010 OR id = 9000");
    let found = office.ours.inspect().await.unwrap();
    assert!(found.tables.contains(&Table {
        id: 0,
        ..office.table("customer")
    }));
    assert_eq!(
        about(&found.findings),
        [
            "table `customer`: rows that are not what their columns are declared as stay at this office: 4022, among them \
          the one with key 1990: column `name` holds a blob of 1 bytes where the plan says text"
        ]
    );
}
