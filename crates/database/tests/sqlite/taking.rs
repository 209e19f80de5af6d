//! Capture, and what is taken of it.

use branchline_core::change::{Effect, Key};
use branchline_core::port::{Database, First, Purpose};
use branchline_core::value::Value;

use super::office::{Office, SHOP, customer, key, summary, text};

#[tokio::test]
async fn inserts_updates_and_deletes_are_taken_net() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', 'b@x'), (3, 'Cid', 'c@x');
         UPDATE customer SET name = 'Anna' WHERE id = 1;
         DELETE FROM customer WHERE id = 3;",
    );
    assert_eq!(office.ours.backlog().await.unwrap().writes, 5);
    let before = office.ours.backlog().await.unwrap().oldest.unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64;
    assert!(
        (now - before.0).abs() < 60_000_000,
        "{before:?} against {now}"
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Inserted),
            (key(2), true, First::Inserted),
            (key(3), false, First::Inserted)
        ]
    );
    assert_eq!(taken[0].effect, Effect::Put(customer(1, "Anna", "a@x")));
    assert_eq!(office.ours.backlog().await.unwrap().writes, 0);
    office.does("UPDATE customer SET name = 'Bo' WHERE id = 2; DELETE FROM customer WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(2), true, First::Existing)
        ]
    );
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn a_rolled_back_write_is_not_captured() {
    let mut office = Office::new(SHOP).await;
    office.does("BEGIN; INSERT INTO customer VALUES (1, 'Ann', NULL); ROLLBACK");
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn keys_that_swap_are_two_existing_rows() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL), (2, 'Bob', NULL)");
    office.take().await;
    office.does(
        "BEGIN; UPDATE customer SET id = 0 WHERE id = 1; UPDATE customer SET id = 1 WHERE id = 2;
         UPDATE customer SET id = 2 WHERE id = 0; COMMIT",
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(0), false, First::Inserted),
            (key(1), true, First::Existing),
            (key(2), true, First::Existing)
        ]
    );
}

#[tokio::test]
async fn rows_that_or_replace_removes_are_captured() {
    let mut office = Office::new(SHOP).await;
    office
        .does("INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', 'b@x'), (3, 'Cid', 'c@x'), (4, 'Dan', 'd@x')");
    office.take().await;
    office.does("INSERT OR REPLACE INTO customer VALUES (1, 'Eve', 'b@x')");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Existing),
            (key(2), false, First::Existing)
        ]
    );
    office.does("UPDATE OR REPLACE customer SET id = 4, email = 'c@x' WHERE id = 1");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(3), false, First::Existing),
            (key(4), true, First::Existing)
        ]
    );
}

#[tokio::test]
async fn conflict_clauses_do_not_disturb_the_capture() {
    let mut office = Office::new(SHOP).await;
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', 'a@x');
         INSERT OR IGNORE INTO customer VALUES (1, 'Bad', 'z@x');
         INSERT OR IGNORE INTO customer VALUES (2, 'Bob', 'b@x');
         INSERT INTO customer VALUES (1, 'Anna', 'a@x') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
         UPDATE OR IGNORE customer SET email = 'a@x' WHERE id = 2;",
    );
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Inserted),
            (key(2), true, First::Inserted)
        ]
    );
    assert_eq!(
        office.texts("SELECT name FROM customer ORDER BY id"),
        ["Anna", "Bob"]
    );
}

#[tokio::test]
async fn cascades_of_the_application_are_captured() {
    let mut office = Office::new(SHOP).await;
    office.does("INSERT INTO customer VALUES (1, 'Ann', NULL); INSERT INTO invoice VALUES ('b1', 7, 1, 5.1)");
    office.take().await;
    office.does("DELETE FROM customer WHERE id = 1");
    let taken = office.take().await;
    let invoice = Key(vec![text("b1"), Value::Int(7)]);
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (invoice, false, First::Existing)
        ]
    );
}

#[tokio::test]
async fn taking_pages_by_limit_and_gives_back_what_was_not_fetched() {
    let mut office = Office::new(SHOP).await;
    for id in 1..=25 {
        office.does(&format!("INSERT INTO customer VALUES ({id}, 'c', NULL)"));
    }
    office.does("UPDATE customer SET name = 'd'");
    office.ours.begin(Purpose::Take).await.unwrap();
    let portion = office.ours.take(&office.schema, 10).await.unwrap();
    assert!(portion.open && portion.changes.len() == 10);
    let left = office
        .ours
        .captured(&office.table("customer"), None)
        .await
        .unwrap();
    assert_eq!(left.len(), 15);
    office.ours.rollback().await.unwrap();
    assert_eq!(
        office.ours.backlog().await.unwrap().writes,
        50,
        "rolled back, nothing is taken"
    );
    office.ours.begin(Purpose::Take).await.unwrap();
    assert_eq!(
        office
            .ours
            .take(&office.schema, 10)
            .await
            .unwrap()
            .changes
            .len(),
        10
    );
    office.ours.commit().await.unwrap();
    let portions = office.take_by(6).await;
    let sizes: Vec<_> = portions.iter().map(Vec::len).collect();
    assert_eq!(sizes, [6, 6, 3]);
    let keys: Vec<_> = portions
        .concat()
        .iter()
        .map(|taken| taken.effect.key(&office.table("customer")))
        .collect();
    assert_eq!(keys, (11..=25).map(key).collect::<Vec<_>>(), "oldest first");
    assert!(
        portions
            .concat()
            .iter()
            .all(|taken| taken.first == First::Inserted)
    );
}

#[tokio::test]
async fn recapture_offers_every_row_or_the_given_ones() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    office
        .apply(&[
            (id, Effect::Put(customer(1, "A", "a"))),
            (id, Effect::Put(customer(2, "B", "b"))),
        ])
        .await
        .unwrap();
    let table = office.table("customer");
    office.ours.recapture(&table, None).await.unwrap();
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), true, First::Unknown),
            (key(2), true, First::Unknown)
        ]
    );
    office
        .ours
        .recapture(&table, Some(&[key(2), key(9)]))
        .await
        .unwrap();
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(2), true, First::Existing),
            (key(9), false, First::Existing)
        ]
    );
}
