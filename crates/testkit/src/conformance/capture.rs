//! What is captured of the application's writes, and what is not.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Backlog, Database, First, Purpose};
use branchline_core::schema::TableId;

use super::sample::{
    CUSTOMERS, LINES, ODD, ORDERS, STAFF, STOCK, customer, gone, id, item, line, line_key, member,
    order, put, sku, text,
};
use super::{Application, Office, Op, Ready, gist, ready};

fn existing((table, effect): (TableId, Effect)) -> (TableId, Effect, First) {
    (table, effect, First::Existing)
}

fn inserted((table, effect): (TableId, Effect)) -> (TableId, Effect, First) {
    (table, effect, First::Inserted)
}

fn unknown((table, effect): (TableId, Effect)) -> (TableId, Effect, First) {
    (table, effect, First::Unknown)
}

/// An office where these rows exist, and nothing waits in the capture.
async fn with_rows<O: Office>(office: &O, rows: &[(TableId, Row)]) -> Ready<O> {
    let mut office_now = ready(office).await;
    let effects: Vec<_> = rows
        .iter()
        .map(|(table, row)| put(*table, row.clone()))
        .collect();
    office_now.apply(&effects).await;
    office_now
}

/// Several writes to a row are one change, which says how the row is and whether it was there before.
pub async fn what_the_application_writes_is_taken_as_its_net_effect<O: Office>(office: &O) {
    let rows = [
        (STOCK, item("bolt", 1)),
        (STOCK, item("nut", 1)),
        (STOCK, item("still", 1)),
    ];
    let mut office_now = with_rows(office, &rows).await;
    let before = office.now();
    office_now
        .local(&[
            Op::Insert(STOCK, item("nail", 1)),
            Op::Update(STOCK, sku("bolt"), item("bolt", 2)),
        ])
        .await;
    office_now
        .local(&[
            Op::Update(STOCK, sku("nail"), item("nail", 2)),
            Op::Delete(STOCK, sku("nut")),
        ])
        .await;
    office_now
        .local(&[Op::Update(STOCK, sku("bolt"), item("bolt", 3))])
        .await;
    let after = office.now();
    let taken = office_now.take_all().await;
    let expected = [
        existing(put(STOCK, item("bolt", 3))),
        inserted(put(STOCK, item("nail", 2))),
        existing(gone(STOCK, sku("nut"))),
    ];
    assert_eq!(gist(&taken), expected);
    for change in &taken {
        // Engines may cut the time to milliseconds.
        assert!(
            (before.0 - 1000..=after.0 + 1000).contains(&change.at.0),
            "{change:?} in {before:?}..{after:?}"
        );
    }
}

/// An insert deleted again before it was taken.
pub async fn an_insert_that_is_deleted_again_leaves_a_delete_of_an_inserted_row<O: Office>(
    office: &O,
) {
    let mut office_now = ready(office).await;
    office_now
        .local(&[Op::Insert(STOCK, item("nail", 1))])
        .await;
    office_now.local(&[Op::Delete(STOCK, sku("nail"))]).await;
    assert_eq!(
        gist(&office_now.take_all().await),
        [inserted(gone(STOCK, sku("nail")))]
    );
}

/// A delete, then an insert of the same key.
pub async fn a_row_deleted_and_inserted_again_was_there_before<O: Office>(office: &O) {
    let mut office_now = with_rows(office, &[(STOCK, item("nail", 1))]).await;
    office_now
        .local(&[
            Op::Delete(STOCK, sku("nail")),
            Op::Insert(STOCK, item("nail", 7)),
        ])
        .await;
    assert_eq!(
        gist(&office_now.take_all().await),
        [existing(put(STOCK, item("nail", 7)))]
    );
}

/// A key change concerns two rows.
pub async fn a_changed_key_is_a_delete_and_an_insert<O: Office>(office: &O) {
    let mut office_now = with_rows(office, &[(STOCK, item("nail", 1))]).await;
    office_now
        .local(&[Op::Update(STOCK, sku("nail"), item("zinc nail", 1))])
        .await;
    let expected = [
        existing(gone(STOCK, sku("nail"))),
        inserted(put(STOCK, item("zinc nail", 1))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
}

/// Two rows exchange their keys by way of a third key.
pub async fn rows_that_swap_their_keys_stay_two_rows<O: Office>(office: &O) {
    let mut office_now = with_rows(
        office,
        &[
            (STAFF, member(1, "Ada", None)),
            (STAFF, member(2, "Bob", None)),
        ],
    )
    .await;
    office_now
        .local(&[
            Op::Update(STAFF, id(1), member(9, "Ada", None)),
            Op::Update(STAFF, id(2), member(1, "Bob", None)),
            Op::Update(STAFF, id(9), member(2, "Ada", None)),
        ])
        .await;
    let expected = [
        existing(put(STAFF, member(1, "Bob", None))),
        existing(put(STAFF, member(2, "Ada", None))),
        inserted(gone(STAFF, id(9))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
}

/// Rows that a foreign key's action removed.
pub async fn what_a_cascade_deletes_is_taken_too<O: Office>(office: &O) {
    let mut office_now = with_rows(
        office,
        &[
            (CUSTOMERS, customer(1, "Ada", None)),
            (ORDERS, order(10, 1, "")),
            (LINES, line(10, 1, "nail")),
            (LINES, line(10, 2, "bolt")),
        ],
    )
    .await;
    office_now.local(&[Op::Delete(ORDERS, id(10))]).await;
    let expected = [
        existing(gone(ORDERS, id(10))),
        existing(gone(LINES, line_key(10, 1))),
        existing(gone(LINES, line_key(10, 2))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
}

/// Capture sees the application's writes, not ours, before and after ours.
pub async fn what_is_applied_is_not_captured<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .apply(&[
            put(STOCK, item("bolt", 1)),
            put(STOCK, item("nail", 1)),
            put(STOCK, item("nut", 1)),
        ])
        .await;
    office_now
        .apply(&[put(STOCK, item("bolt", 2)), gone(STOCK, sku("nail"))])
        .await;
    assert_eq!(office_now.backlog().await, Backlog::default());
    assert_eq!(office_now.take_all().await, []);
    // The marker that silences capture has not outlived its transaction.
    office_now
        .local(&[Op::Update(STOCK, sku("nut"), item("nut", 5))])
        .await;
    assert_eq!(
        gist(&office_now.take_all().await),
        [existing(put(STOCK, item("nut", 5)))]
    );
}

/// Capture is part of the application's transaction.
pub async fn what_the_application_rolled_back_is_not_taken<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now.app.begin().await;
    office_now
        .app
        .run(&office_now.schema, &[Op::Insert(STOCK, item("nail", 1))])
        .await
        .unwrap();
    office_now.app.roll_back().await;
    assert_eq!(office_now.take_all().await, []);
    office_now
        .local(&[Op::Insert(STOCK, item("nail", 2))])
        .await;
    assert_eq!(
        gist(&office_now.take_all().await),
        [inserted(put(STOCK, item("nail", 2)))]
    );
}

/// The backlog counts writes and knows the oldest; a take empties it.
pub async fn the_backlog_tells_how_much_waits_and_since_when<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    assert_eq!(office_now.backlog().await, Backlog::default());
    let before = office.now();
    office_now
        .local(&[
            Op::Insert(STOCK, item("nail", 1)),
            Op::Insert(STOCK, item("bolt", 1)),
        ])
        .await;
    let between = office.now();
    office_now.local(&[Op::Insert(STOCK, item("nut", 1))]).await;
    let backlog = office_now.backlog().await;
    assert_eq!(backlog.writes, 3);
    let oldest = backlog.oldest.expect("something waits").0;
    assert!(
        (before.0 - 1000..=between.0 + 1000).contains(&oldest),
        "{oldest} in {before:?}..{between:?}"
    );
    office_now.take_all().await;
    assert_eq!(office_now.backlog().await, Backlog::default());
}

async fn captured<O: Office>(
    office_now: &mut Ready<O>,
    table: TableId,
    keys: Option<&[Key]>,
) -> BTreeSet<Key> {
    let table = office_now.table(table);
    office_now.db.begin(Purpose::Apply).await.unwrap();
    let captured = office_now.db.captured(&table, keys).await.unwrap();
    office_now.db.rollback().await.unwrap();
    captured
}

/// Asked by key or for the whole table, with every kind of write, until taken.
pub async fn captured_sees_local_writes_not_yet_taken<O: Office>(office: &O) {
    let names = ["bolt", "nail", "nut", "still"];
    let rows: Vec<_> = names.iter().map(|name| (STOCK, item(name, 1))).collect();
    let mut office_now = with_rows(office, &rows).await;
    assert!(captured(&mut office_now, STOCK, None).await.is_empty());
    office_now
        .local(&[
            Op::Update(STOCK, sku("bolt"), item("bolt", 2)),
            Op::Delete(STOCK, sku("nail")),
            Op::Update(STOCK, sku("nut"), item("wing nut", 1)),
        ])
        .await;
    let touched = BTreeSet::from(["bolt", "nail", "nut", "wing nut"].map(sku));
    assert_eq!(captured(&mut office_now, STOCK, None).await, touched);
    let asked = ["bolt", "still", "wing nut", "unheard of"].map(sku);
    assert_eq!(
        captured(&mut office_now, STOCK, Some(&asked)).await,
        BTreeSet::from(["bolt", "wing nut"].map(sku))
    );
    assert!(captured(&mut office_now, STOCK, Some(&[])).await.is_empty());
    assert!(captured(&mut office_now, STAFF, None).await.is_empty());
    office_now.take_all().await;
    assert!(captured(&mut office_now, STOCK, None).await.is_empty());
}

/// No local write slips between the question what is captured and the commit of the apply (trap 3).
pub async fn a_local_write_waits_for_an_apply_of_the_same_row<O: Office>(office: &O) {
    let mut office_now = with_rows(office, &[(STOCK, item("nail", 1))]).await;
    let (stock, schema) = (office_now.table(STOCK), office_now.schema.clone());
    let keys = [sku("nail"), sku("bolt")];
    let Ready { db, app, .. } = &mut office_now;
    db.begin(Purpose::Apply).await.unwrap();
    db.write(
        &schema,
        &[put(STOCK, item("nail", 5)), put(STOCK, item("bolt", 5))],
    )
    .await
    .unwrap();
    let ops = [Op::Update(STOCK, sku("nail"), item("nail", 7))];
    {
        let mut local = pin!(super::transaction(app, &schema, &ops));
        assert!(
            tokio::time::timeout(Duration::from_millis(300), &mut local)
                .await
                .is_err(),
            "the application's write waits"
        );
        assert!(db.captured(&stock, Some(&keys)).await.unwrap().is_empty());
        db.commit().await.unwrap();
        local.await.unwrap();
    }
    assert_eq!(
        captured(&mut office_now, STOCK, Some(&keys)).await,
        BTreeSet::from([sku("nail")])
    );
    assert_eq!(
        gist(&office_now.take_all().await),
        [existing(put(STOCK, item("nail", 7)))]
    );
}

/// A whole table is put into the capture; what waits there already keeps what it knows.
pub async fn all_rows_of_a_table_can_be_captured_again<O: Office>(office: &O) {
    let rows = [
        (STOCK, item("bolt", 1)),
        (STOCK, item("nail", 1)),
        (STAFF, member(1, "Ada", None)),
    ];
    let mut office_now = with_rows(office, &rows).await;
    let stock = office_now.table(STOCK);
    office_now.db.begin(Purpose::Apply).await.unwrap();
    office_now.db.recapture(&stock, None).await.unwrap();
    office_now.db.commit().await.unwrap();
    assert_eq!(office_now.backlog().await.writes, 2);
    let expected = [
        unknown(put(STOCK, item("bolt", 1))),
        unknown(put(STOCK, item("nail", 1))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
}

/// Rows found to differ become ordinary changes, deletes among them.
pub async fn named_rows_can_be_captured_again_even_when_gone<O: Office>(office: &O) {
    let mut office_now = with_rows(
        office,
        &[(STOCK, item("bolt", 1)), (STOCK, item("nail", 1))],
    )
    .await;
    let stock = office_now.table(STOCK);
    office_now.db.begin(Purpose::Apply).await.unwrap();
    office_now
        .db
        .recapture(&stock, Some(&[sku("nail"), sku("lost")]))
        .await
        .unwrap();
    office_now.db.commit().await.unwrap();
    let expected = [
        existing(gone(STOCK, sku("lost"))),
        existing(put(STOCK, item("nail", 1))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
}

/// Reserved words, capitals, quotes, and letters beyond ASCII.
pub async fn tables_and_columns_may_have_any_name<O: Office>(office: &O) {
    let row = |number: i64, size: &str| Row(vec![super::Value::Int(number), text(size)]);
    let mut office_now = with_rows(office, &[(ODD, row(1, "12"))]).await;
    office_now
        .local(&[
            Op::Insert(ODD, row(2, "it's 3\"")),
            Op::Update(ODD, id(1), row(1, "13")),
        ])
        .await;
    let expected = [
        existing(put(ODD, row(1, "13"))),
        inserted(put(ODD, row(2, "it's 3\""))),
    ];
    assert_eq!(gist(&office_now.take_all().await), expected);
    office_now
        .apply(&[put(ODD, row(2, "4")), gone(ODD, id(1))])
        .await;
    assert_eq!(office_now.rows(ODD).await, [row(2, "4")]);
}
