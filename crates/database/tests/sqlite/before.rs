//! The row before a change, where only SQLite has the case.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, Purpose, Taken};
use branchline_core::schema::ConflictRule;
use branchline_core::value::Value;

use super::office::{Office, SHOP, customer, key, text};

/// An office whose tables all keep rows before, with these rows in it, and nothing captured.
async fn keeping(sql: &str, rows: &str) -> Office {
    let mut office = Office::new(sql).await;
    for table in &mut office.schema.tables {
        table.conflict = ConflictRule::Merge;
    }
    office.ours.install(&office.schema).await.unwrap();
    office.does(rows);
    office.take().await;
    office
}

/// (key, row before), sorted.
fn before(office: &Office, taken: &[Taken]) -> Vec<(Key, Option<Row>)> {
    let mut found: Vec<_> = taken
        .iter()
        .map(|taken| {
            let table = office.schema.table(taken.table).unwrap();
            (taken.effect.key(table), taken.before.clone())
        })
        .collect();
    found.sort();
    found
}

const FOUR: &str = "INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', 'b@x'), (3, 'Cid', 'c@x'), (4, 'Dan', 'd@x')";

#[tokio::test]
async fn rows_that_or_replace_removes_are_kept() {
    let mut office = keeping(SHOP, FOUR).await;
    office.does("INSERT OR REPLACE INTO customer VALUES (1, 'Eve', 'b@x')");
    let taken = office.take().await;
    assert_eq!(
        before(&office, &taken),
        [
            (key(1), Some(customer(1, "Ann", "a@x"))),
            (key(2), Some(customer(2, "Bob", "b@x")))
        ]
    );
    office.does("UPDATE OR REPLACE customer SET id = 4, email = 'c@x' WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(
        before(&office, &taken),
        [
            (key(1), Some(customer(1, "Eve", "b@x"))),
            (key(3), Some(customer(3, "Cid", "c@x"))),
            (key(4), Some(customer(4, "Dan", "d@x")))
        ]
    );
}

#[tokio::test]
async fn conflict_clauses_do_not_disturb_what_is_kept() {
    let mut office = keeping(SHOP, FOUR).await;
    office.does(
        "INSERT OR IGNORE INTO customer VALUES (1, 'Bad', 'z@x');
         INSERT INTO customer VALUES (2, 'Bo', 'b@x') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
         UPDATE OR IGNORE customer SET email = 'a@x' WHERE id = 3;
         UPDATE OR REPLACE customer SET name = 'Danny' WHERE id = 4;
         UPDATE customer SET name = 'Bobby' WHERE id = 2;
         INSERT OR REPLACE INTO customer VALUES (5, 'Eve', NULL);",
    );
    let taken = office.take().await;
    assert_eq!(
        before(&office, &taken),
        [
            (key(1), Some(customer(1, "Ann", "a@x"))),
            (key(2), Some(customer(2, "Bob", "b@x"))),
            (key(4), Some(customer(4, "Dan", "d@x"))),
            (key(5), None)
        ]
    );
}

#[tokio::test]
async fn what_was_not_fetched_goes_back_with_its_row_before() {
    let mut office = keeping(SHOP, FOUR).await;
    office.does("UPDATE customer SET name = 'x'; UPDATE customer SET name = 'y'");
    assert_eq!(office.ours.backlog().await.unwrap().writes, 8);
    office.ours.begin(Purpose::Take).await.unwrap();
    let portion = office.ours.take(&office.schema, 1).await.unwrap();
    assert_eq!(office.ours.backlog().await.unwrap().writes, 3);
    office.ours.commit().await.unwrap();
    assert_eq!(
        before(&office, &portion.changes),
        [(key(1), Some(customer(1, "Ann", "a@x")))]
    );
    // The application's file may be rewritten meanwhile.
    office.does("VACUUM; UPDATE customer SET name = 'z' WHERE id < 3");
    let taken = office.take_by(2).await.concat();
    assert_eq!(
        before(&office, &taken),
        [
            (key(1), Some(customer(1, "y", "a@x"))),
            (key(2), Some(customer(2, "Bob", "b@x"))),
            (key(3), Some(customer(3, "Cid", "c@x"))),
            (key(4), Some(customer(4, "Dan", "d@x")))
        ]
    );
    assert!(office.take().await.is_empty());
    assert_eq!(office.texts("SELECT op FROM branchline_capture"), [""; 0]);
}

#[tokio::test]
async fn a_row_with_other_columns_is_not_mistaken_for_the_row_before() {
    let mut office = keeping(SHOP, FOUR).await;
    office.does("UPDATE customer SET name = 'x' WHERE id = 1; DELETE FROM customer WHERE id = 2");
    // The plan swaps two columns.
    for table in &mut office.schema.tables {
        if table.name == "customer" {
            table.columns.swap(1, 2);
            table.unique = vec![vec![1]];
        }
    }
    office.ours.install(&office.schema).await.unwrap();
    office.does("UPDATE customer SET name = 'y' WHERE id = 3");
    let taken = office.take().await;
    let swapped = Row(vec![Value::Int(3), text("c@x"), text("Cid")]);
    assert_eq!(
        before(&office, &taken),
        [(key(1), None), (key(2), None), (key(3), Some(swapped))]
    );
}

#[tokio::test]
async fn a_row_before_that_cannot_be_read_is_not_known() {
    let mut office = keeping(SHOP, FOUR).await;
    office.does("UPDATE customer SET name = CAST(X'ff' AS TEXT) WHERE id = 1");
    office.ours.begin(Purpose::Take).await.unwrap();
    let portion = office.ours.take(&office.schema, 10).await.unwrap();
    assert_eq!(portion.unreadable.len(), 1);
    office.ours.commit().await.unwrap();
    office.does("UPDATE customer SET name = 'Anna' WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(before(&office, &taken), [(key(1), None)]);
    assert_eq!(taken[0].effect, Effect::Put(customer(1, "Anna", "a@x")));
}

#[tokio::test]
async fn wide_rows_and_odd_keys_are_kept_whole() {
    let columns: Vec<String> = (0..40).map(|at| format!("\"c '{at}\" TEXT")).collect();
    let create = format!(
        "CREATE TABLE \"wide ones\" (a TEXT NOT NULL, {}, b INTEGER NOT NULL, PRIMARY KEY (b, a)) WITHOUT ROWID",
        columns.join(", ")
    );
    let mut office = keeping(&create, "").await;
    let values: Vec<String> = (0..40).map(|at| format!("'v{at}'")).collect();
    office.does(&format!(
        "INSERT INTO \"wide ones\" VALUES ('x', {}, 7)",
        values.join(", ")
    ));
    office.take().await;
    office.does("DELETE FROM \"wide ones\"");
    let taken = office.take().await;
    let row: Vec<Value> = std::iter::once(text("x"))
        .chain((0..40).map(|at| text(&format!("v{at}"))))
        .chain([Value::Int(7)])
        .collect();
    let expected = Key(vec![Value::Int(7), text("x")]);
    assert_eq!(before(&office, &taken), [(expected, Some(Row(row)))]);
}
