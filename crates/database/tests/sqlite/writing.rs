//! What is applied.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, DatabaseError, Entry, First, Purpose};
use branchline_core::value::Value;

use super::office::{Office, SHOP, customer, key, summary, text};

#[tokio::test]
async fn what_is_applied_is_not_captured_and_local_writes_before_it_are_seen() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    office
        .apply(&[(id, Effect::Put(customer(1, "Ann", "a@x")))])
        .await
        .unwrap();
    office
        .apply(&[
            (id, Effect::Put(customer(1, "Anna", "a@x"))),
            (id, Effect::Put(customer(2, "Bob", "b@x"))),
        ])
        .await
        .unwrap();
    office.apply(&[(id, Effect::Delete(key(2)))]).await.unwrap();
    assert_eq!(office.texts("SELECT name FROM customer"), ["Anna"]);
    assert!(office.take().await.is_empty());
    office.does("UPDATE customer SET name = 'Eve'");
    let table = office.table("customer");
    office.ours.begin(Purpose::Apply).await.unwrap();
    let captured = office
        .ours
        .captured(&table, Some(&[key(1), key(2)]))
        .await
        .unwrap();
    assert_eq!(captured.into_iter().collect::<Vec<_>>(), [key(1)]);
    office.ours.rollback().await.unwrap();
    assert_eq!(office.take().await.len(), 1, "the marker is gone");
}

#[tokio::test]
async fn triggers_of_the_application_fire_on_what_is_applied_unless_silenced() {
    let mut office = Office::new(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY); CREATE TABLE tally (id INTEGER PRIMARY KEY, sold TEXT);
         INSERT INTO tally VALUES (1, '');
         CREATE TRIGGER count AFTER INSERT ON sale BEGIN UPDATE tally SET sold = sold || '.'; END;",
    )
    .await;
    let sale = |id| (1, Effect::Put(Row(vec![Value::Int(id)])));
    office.apply(&[sale(1)]).await.unwrap();
    assert_eq!(office.texts("SELECT sold FROM tally"), ["."]);
    office.ours.silence_triggers(true).unwrap();
    office.apply(&[sale(2)]).await.unwrap();
    assert_eq!(office.texts("SELECT sold FROM tally"), ["."]);
    assert!(office.take().await.is_empty());
    office.does("INSERT INTO sale VALUES (3)");
    assert_eq!(
        office.take().await.len(),
        2,
        "the application's connection is not concerned"
    );
    assert_eq!(office.texts("SELECT sold FROM tally"), [".."]);
}

#[tokio::test]
async fn unique_values_swap_within_one_write_and_strangers_are_never_touched() {
    let mut office = Office::new(SHOP).await;
    let id = office.id("customer");
    let put = |n, name: &str, email: &str| (id, Effect::Put(customer(n, name, email)));
    office
        .apply(&[put(1, "A", "a"), put(2, "B", "b"), put(3, "C", "c")])
        .await
        .unwrap();
    office
        .apply(&[put(1, "A", "b"), put(2, "B", "a")])
        .await
        .unwrap();
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["b", "a", "c"]
    );
    office
        .apply(&[put(1, "A", "a"), put(2, "B", "z")])
        .await
        .unwrap();
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["a", "z", "c"]
    );
    let refused = office.apply(&[put(4, "D", "c")]).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: false, .. } if table == "customer"),
        "{refused:?}"
    );
    assert_eq!(
        office.texts("SELECT email FROM customer ORDER BY id"),
        ["a", "z", "c"]
    );
    assert!(office.take().await.is_empty());
}

#[tokio::test]
async fn a_table_that_replaces_by_definition_does_not_when_we_write() {
    let mut office = Office::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE ON CONFLICT REPLACE)",
    )
    .await;
    office.does("INSERT INTO t VALUES (1, 'x')");
    let refused = office
        .apply(&[(1, Effect::Put(Row(vec![Value::Int(2), text("x")])))])
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            DatabaseError::Constraint {
                foreign_key: false,
                ..
            }
        ),
        "{refused:?}"
    );
    office.take().await;
    office.does("INSERT INTO t VALUES (3, 'x')");
    let taken = office.take().await;
    assert_eq!(
        summary(&office, &taken),
        [
            (key(1), false, First::Existing),
            (key(3), true, First::Inserted)
        ]
    );
}

#[tokio::test]
async fn a_missing_parent_is_named_at_the_commit_and_order_within_a_write_is_free() {
    let mut office = Office::new(SHOP).await;
    let (parent, child) = (office.id("customer"), office.id("invoice"));
    let invoice = |to: i64| {
        Effect::Put(Row(vec![
            text("b1"),
            Value::Int(7),
            Value::Int(to),
            text("5.10"),
        ]))
    };
    let refused = office.apply(&[(child, invoice(9))]).await.unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: true, message } if table == "invoice" && message.contains("customer")),
        "{refused:?}"
    );
    office
        .apply(&[
            (child, invoice(1)),
            (parent, Effect::Put(customer(1, "A", "a"))),
        ])
        .await
        .unwrap();
    let invoice_key = Effect::Delete(Key(vec![text("b1"), Value::Int(7)]));
    office
        .apply(&[(parent, Effect::Delete(key(1))), (child, invoice_key)])
        .await
        .unwrap();
    assert!(office.texts("SELECT name FROM customer").is_empty());
}

#[tokio::test]
async fn a_delete_never_cascades_to_rows_that_the_deleter_had_not_seen() {
    let mut office = Office::new(SHOP).await;
    let (parent, child) = (office.id("customer"), office.id("invoice"));
    office.does(
        "INSERT INTO customer VALUES (1, 'Ann', NULL), (2, 'Bob', NULL); INSERT INTO invoice VALUES ('b1', 7, 1, 5.1);
         INSERT INTO line VALUES (1, 'b1', 7)",
    );
    let refused = office
        .apply(&[(parent, Effect::Delete(key(1)))])
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, DatabaseError::Constraint { table, foreign_key: true, .. } if table == "invoice"),
        "{refused:?}"
    );
    let moved = Effect::Put(Row(vec![
        text("b1"),
        Value::Int(7),
        Value::Int(2),
        text("5.10"),
    ]));
    office
        .apply(&[(parent, Effect::Delete(key(1))), (child, moved)])
        .await
        .unwrap();
    assert_eq!(office.texts("SELECT branch FROM invoice"), ["b1"]);
    assert_eq!(
        office.texts("SELECT branch FROM line"),
        ["b1"],
        "not cascaded to on the way"
    );
}

#[tokio::test]
async fn loading_does_not_enforce_foreign_keys_and_applying_afterwards_does() {
    let mut office = Office::new(SHOP).await;
    let child = office.id("invoice");
    let orphan = |number| {
        (
            child,
            Effect::Put(Row(vec![
                text("b1"),
                Value::Int(number),
                Value::Int(9),
                text("1.00"),
            ])),
        )
    };
    office.ours.begin(Purpose::Load).await.unwrap();
    office
        .ours
        .write(&office.schema, &[orphan(1)])
        .await
        .unwrap();
    office.ours.commit().await.unwrap();
    assert!(office.take().await.is_empty());
    let refused = office.apply(&[orphan(2)]).await.unwrap_err();
    assert!(
        matches!(
            refused,
            DatabaseError::Constraint {
                foreign_key: true,
                ..
            }
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn books_are_kept_in_the_transaction() {
    let mut office = Office::new(SHOP).await;
    let table = office.table("customer");
    let entry = |number| Entry {
        number,
        bytes: vec![7; 10],
    };
    let ours = &mut office.ours;
    ours.begin(Purpose::Apply).await.unwrap();
    ours.set_meta("name", Some(b"x")).await.unwrap();
    ours.append("out", &[entry(1), entry(2), entry(3)])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(1), Some(vec![1])), (key(2), Some(vec![2]))])
        .await
        .unwrap();
    ours.rollback().await.unwrap();
    assert_eq!(ours.meta("name").await.unwrap(), None);
    assert_eq!(ours.extent("out").await.unwrap().entries, 0);
    ours.begin(Purpose::Apply).await.unwrap();
    ours.append("out", &[entry(1), entry(2), entry(3)])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(1), Some(vec![1])), (key(2), Some(vec![2]))])
        .await
        .unwrap();
    ours.set_notes(&table, &[(key(2), None)]).await.unwrap();
    ours.commit().await.unwrap();
    assert_eq!(ours.entries("out", 1, 20).await.unwrap().len(), 2);
    assert_eq!(ours.entries("out", 2, 1).await.unwrap(), [entry(2)]);
    assert!(ours.append("out", &[entry(3)]).await.is_err());
    ours.trim("out", 1).await.unwrap();
    let extent = ours.extent("out").await.unwrap();
    assert_eq!(
        (extent.first, extent.last, extent.entries, extent.bytes),
        (2, 3, 2, 20)
    );
    assert_eq!(ours.notes(&table, None).await.unwrap().len(), 1);
    assert_eq!(
        ours.notes(&table, Some(&[key(1), key(2)])).await.unwrap()[&key(1)],
        [1]
    );
}
