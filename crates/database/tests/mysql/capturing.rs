//! What the triggers note, whatever the statement and the session are.

use branchline_core::change::Key;
use branchline_core::port::{Database, Purpose};
use branchline_core::value::Value;
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;

use crate::shop::{put, shop, text};

const ITEMS: &str =
    "CREATE TABLE items (id INT PRIMARY KEY, name VARCHAR(20) NOT NULL, UNIQUE (name))";

#[tokio::test]
async fn every_kind_of_statement_is_captured() {
    let mut shop = shop(ITEMS).await;
    let before = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
        .map(|(id, name)| put(1, vec![Value::Int(id), text(name)]));
    shop.apply(&before).await.unwrap();
    let cases = [
        (
            "INSERT INTO items VALUES (1, 'A!'), (9, 'i') ON DUPLICATE KEY UPDATE name = VALUES(name)",
            "+items 1 Existing, +items 9 Inserted",
        ),
        // The row in the way by another unique value goes, without a word.
        (
            "REPLACE INTO items VALUES (10, 'b')",
            "+items 10 Inserted, -items 2 Existing",
        ),
        ("REPLACE INTO items VALUES (3, 'C!')", "+items 3 Existing"),
        (
            "INSERT IGNORE INTO items VALUES (3, 'x'), (11, 'k')",
            "+items 11 Inserted",
        ),
        (
            "UPDATE items SET id = id + 100 WHERE id IN (3, 4) ORDER BY id",
            "+items 103 Inserted, +items 104 Inserted, -items 3 Existing, -items 4 Existing",
        ),
        // The server runs the triggers, and then thinks better of it: noted, and taken as they are.
        (
            "UPDATE IGNORE items SET id = 1 WHERE id = 9",
            "+items 1 Inserted, +items 9 Existing",
        ),
        (
            "INSERT INTO items SELECT id + 1000, CONCAT(name, '+') FROM items WHERE id = 1",
            "+items 1001 Inserted",
        ),
        (
            "DELETE FROM items WHERE id > 50",
            "-items 1001 Existing, -items 103 Existing, -items 104 Existing",
        ),
    ];
    for (statement, expected) in cases {
        // MySQL takes back what the triggers wrote of a row that it ignores.
        let ignored = servers::mariadb().is_mysql() && statement.starts_with("UPDATE IGNORE");
        let expected = if ignored { "" } else { expected };
        shop.app(statement).await;
        assert_eq!(shop.taken_names().await.join(", "), expected, "{statement}");
    }
}

/// `LAST_INSERT_ID()`, and the number that the server reports with its answer, are the application's.
#[tokio::test]
async fn the_applications_last_insert_id_is_left_alone() {
    let mut shop = shop(
        "CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(20)); CREATE TABLE tags (name VARCHAR(20) PRIMARY KEY)",
    )
    .await;
    // The capture's own numbers are ahead of the orders'.
    shop.app("INSERT INTO tags VALUES ('a'), ('b'), ('c')")
        .await;
    shop.app("INSERT INTO orders (note) VALUES ('first')").await;
    assert_eq!(shop.app.last_insert_id(), Some(1));
    shop.app("INSERT INTO tags VALUES ('d')").await;
    assert_eq!(shop.app.last_insert_id(), None);
    assert_eq!(
        shop.see("SELECT LAST_INSERT_ID()").await,
        [Some("1".into())]
    );
    assert_eq!(shop.app.affected_rows(), 0);
    shop.app("UPDATE tags SET name = CONCAT(name, '!')").await;
    assert_eq!(shop.app.affected_rows(), 4);
}

const KEYS: &str = "CREATE TABLE k (
    i INT UNSIGNED ZEROFILL, d DECIMAL(12,4), t VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci,
    c CHAR(5), b BINARY(4), v VARBINARY(10), day DATE, at DATETIME(3), ts TIMESTAMP(6) NOT NULL DEFAULT '1970-01-02',
    whole TIMESTAMP NOT NULL DEFAULT '1970-01-02', clock TIME(6), u UUID, e ENUM('low', 'it''s'), y YEAR, bits BIT(5), big BIGINT UNSIGNED,
    note TEXT, PRIMARY KEY (i, d, t, c, b, v, day, at, ts, whole, clock, u, e, y, bits, big))";

/// Keys of every type, written in a session that is anything but ours, are found again by what we apply.
#[tokio::test]
async fn keys_of_every_type_are_one_whoever_writes_them() {
    let keys = match servers::mariadb().is_mysql() {
        true => KEYS.replace("u UUID", "u CHAR(36)"),
        false => KEYS.to_owned(),
    };
    let mut shop = shop(&keys).await;
    shop.app("SET SESSION sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES', time_zone = '-09:30'")
        .await;
    shop.app(
        "INSERT INTO k VALUES (7, 1.5, 'Bär \\\\', 'ab', x'00FF2700', x'5C00', '2024-02-29', '2024-01-02 03:04:05.5', '2024-07-01 14:30:00.25',
            '2024-07-01 14:30:00', '12:00:00', '018f3b2e-7c5a-7def-8123-456789ABCDEF', 'it''s', 2024, b'10101', 18446744073709551615, NULL),
         (8, 0, '', '', x'00000000', '', '2024-02-29', '2024-01-02', '1970-01-01 00:00:00', '2000-01-01 00:00:00', '00:00:00.000001',
            UUID(), 'low', 1901, 0, 0, 'x')",
    )
    .await;
    let taken = shop.take().await;
    let rows: Vec<_> = taken
        .iter()
        .map(|change| change.effect.row().unwrap().clone())
        .collect();
    assert_eq!(rows.len(), 2);
    let first = &rows[0].0;
    assert_eq!(first[1], text("1.5000"));
    assert_eq!(first[8], text("2024-07-02 00:00:00.25+00"));
    assert_eq!(first[15], text("18446744073709551615"));
    // Applied as they are, they are the same rows, and not captured.
    let effects: Vec<_> = rows.iter().map(|row| put(1, row.0.clone())).collect();
    shop.apply(&effects).await.unwrap();
    assert_eq!(shop.rows("k").await.len(), 2);
    assert_eq!(shop.take().await, []);
    // The capture and we spell a key alike.
    shop.app("UPDATE k SET note = 'changed'").await;
    let table = shop.table("k").clone();
    let keys: Vec<_> = rows.iter().map(|row| table.key_of(row)).collect();
    shop.db.begin(Purpose::Apply).await.unwrap();
    let captured = shop.db.captured(&table, Some(&keys)).await.unwrap();
    assert_eq!(captured.len(), 2, "{captured:?}");
    assert_eq!(shop.db.captured(&table, None).await.unwrap().len(), 2);
    assert_eq!(shop.db.read(&table, &keys).await.unwrap().len(), 2);
    shop.db.rollback().await.unwrap();
    let found: Vec<bool> = shop
        .take()
        .await
        .iter()
        .map(|c| c.effect.row().is_some())
        .collect();
    assert_eq!(found, [true, true]);
    let gone: Vec<_> = keys
        .into_iter()
        .map(|key| crate::shop::gone(1, key.0))
        .collect();
    shop.apply(&gone).await.unwrap();
    assert_eq!(shop.rows("k").await, []);
}

/// In a column that ignores letter case a changed spelling is another row to the others.
#[tokio::test]
async fn a_key_that_changes_its_case_is_another_key() {
    let mut shop = shop("CREATE TABLE stock (sku VARCHAR(20) PRIMARY KEY, amount INT)").await;
    shop.app("INSERT INTO stock VALUES ('nail', 1)").await;
    shop.take().await;
    shop.app("UPDATE stock SET sku = 'Nail'").await;
    assert_eq!(
        shop.taken_names().await,
        ["+stock \"Nail\" Inserted", "-stock \"nail\" Existing"]
    );
}

/// The row as it was before the first write, where a rule needs it, in any session.
#[tokio::test]
async fn the_row_before_the_first_change_is_kept_where_a_rule_needs_it() {
    let tables = "CREATE TABLE t (id INT PRIMARY KEY, a TEXT, f FLOAT, d DOUBLE, ts TIMESTAMP(6) NULL, b BLOB, n DECIMAL(10,2))";
    let mut shop = shop(tables).await;
    shop.schema.tables[0].conflict = branchline_core::schema::ConflictRule::Merge;
    assert_eq!(shop.db.missing_capture(&shop.schema).await.unwrap(), [1]);
    shop.install().await;
    let row = vec![
        Value::Int(1),
        text("it's\n"),
        Value::Float(0.1),
        Value::Float(1.0 / 3.0),
        text("2024-07-02 00:00:00.25+00"),
        Value::Bytes(vec![0, 255, b':', b'-']),
        Value::Null,
    ];
    shop.apply(&[put(1, row.clone())]).await.unwrap();
    shop.app("SET time_zone = '+03:00'; UPDATE t SET a = 'x', ts = NOW(6); UPDATE t SET f = 2; INSERT INTO t (id) VALUES (2)")
        .await;
    let taken = shop.take().await;
    assert_eq!(taken.len(), 2);
    assert_eq!(taken[0].before.as_ref().map(|row| &row.0), Some(&row));
    assert_eq!(taken[1].before, None);
    shop.app("DELETE FROM t WHERE id = 2").await;
    let taken = shop.take().await;
    let image = taken[0].before.as_ref().unwrap();
    assert_eq!((&image.0[0], &image.0[1]), (&Value::Int(2), &Value::Null));
}

/// A row that cannot be read is told, and does not keep the others.
#[tokio::test]
async fn rows_that_no_other_engine_can_hold_are_told() {
    let tables = "CREATE TABLE t (id INT PRIMARY KEY, day DATE, at DATETIME, clock TIME, yes TINYINT(1), e ENUM('a'))";
    let mut shop = shop(tables).await;
    shop.app(
        "SET sql_mode = ''; INSERT INTO t (id, day) VALUES (1, '0000-00-00'), (2, '2024-02-00'), (6, '2024-02-01');
         INSERT INTO t (id, at) VALUES (3, '0000-00-00'); INSERT INTO t (id, clock) VALUES (4, '-01:00:00');
         INSERT INTO t (id, yes) VALUES (5, 2); INSERT INTO t (id, e) VALUES (7, 'none')",
    )
    .await;
    let (taken, unreadable) = shop.take_with_unreadable().await;
    assert_eq!(taken.len(), 1);
    let told: Vec<String> = unreadable
        .iter()
        .map(|one| format!("{} {}", one.key.to_json(), one.problem))
        .collect();
    let parts = [
        "1 column `day`",
        "2 column `day`",
        "3 column `at`",
        "4 column `clock`",
        "5 column `yes` holds `2`",
        "7 column `e`",
    ];
    assert_eq!(told.len(), parts.len(), "{told:?}");
    for (told, part) in told.iter().zip(parts) {
        assert!(told.starts_with(part), "{told}");
    }
    assert_eq!(shop.take_with_unreadable().await, (vec![], vec![]));
    let rows = shop.see("SELECT COUNT(*) FROM t").await;
    assert_eq!(rows, [Some("7".into())]);
    // Whoever reads past them sees the others, and an inspection tells.
    let rows: Vec<Value> = (shop.rows("t").await.into_iter())
        .map(|row| row.0[0].clone())
        .collect();
    assert_eq!(rows, [Value::Int(6)]);
    let keys = (1..=7).map(|id| Key(vec![Value::Int(id)]));
    let table = shop.table("t").clone();
    let read = shop.db.read(&table, &keys.collect::<Vec<_>>()).await;
    assert_eq!(read.unwrap().len(), 1);
    let found = shop.db.inspect().await.unwrap();
    assert!(
        found.findings.iter().any(|finding| !finding.fatal
            && finding.problem.contains("stay at this office: 6")
            && finding.problem.contains("key 1")),
        "{:?}",
        found.findings
    );
}

/// The application's rights are its own tables'; the capture is not among them.
#[tokio::test]
async fn an_application_without_rights_is_captured_by_autocommit_and_in_functions() {
    let mut shop =
        shop("CREATE TABLE a (id INT PRIMARY KEY); CREATE TABLE b (id INT PRIMARY KEY)").await;
    // MySQL's binary log is on by default, and then it wants a word besides.
    let trusted = match servers::mariadb().is_mysql() {
        true => "DETERMINISTIC MODIFIES SQL DATA",
        false => "MODIFIES SQL DATA",
    };
    let function = format!(
        "CREATE FUNCTION both_of(n INT) RETURNS INT {trusted}
         BEGIN INSERT INTO a VALUES (n); DO SLEEP(0.01); INSERT INTO b VALUES (n); RETURN n; END"
    );
    shop.app(&function).await;
    shop.app.query_drop("DO both_of(1)").await.unwrap();
    shop.app.query_drop("DO both_of(2)").await.unwrap();
    // One statement, one transaction: one name for it. In MySQL one for the connection.
    let halves = shop
        .see("SELECT COUNT(*) FROM branchline_capture GROUP BY tx")
        .await;
    let wanted: &[&str] = match servers::mariadb().is_mysql() {
        true => &["4"],
        false => &["2", "2"],
    };
    let halves: Vec<&str> = halves.iter().flatten().map(String::as_str).collect();
    assert_eq!(halves, wanted);
    assert_eq!(shop.take().await.len(), 4);
}
