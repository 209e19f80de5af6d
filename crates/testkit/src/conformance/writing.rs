//! Applying: the order of statements, and rows that do not fit.

use std::collections::BTreeSet;

use branchline_core::port::{Database, DatabaseError, DbResult, Entry, Purpose};
use branchline_core::schema::TableId;

use super::sample::{
    CUSTOMERS, LINES, ORDERS, STAFF, STOCK, customer, gone, id, item, line, line_key, member,
    order, put, sku,
};
use super::{Office, Op, Ready, ready};

/// Two customers, an order of the first, with two lines.
async fn with_an_order<O: Office>(office: &O) -> Ready<O> {
    let mut office_now = ready(office).await;
    let rows = [
        put(CUSTOMERS, customer(1, "Ada", Some("ada@example.org"))),
        put(CUSTOMERS, customer(2, "Bob", Some("bob@example.org"))),
        put(ORDERS, order(10, 1, "first")),
        put(LINES, line(10, 1, "nail")),
        put(LINES, line(10, 2, "bolt")),
    ];
    office_now.apply(&rows).await;
    office_now
}

fn refused(result: &DbResult<()>) -> (&str, bool) {
    match result {
        Err(DatabaseError::Constraint {
            table, foreign_key, ..
        }) => (table, *foreign_key),
        other => panic!("a constraint speaks against it, but: {other:?}"),
    }
}

/// Children come first in the list.
pub async fn parents_are_written_before_children_whatever_the_order_given<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let rows = [
        put(LINES, line(10, 1, "nail")),
        put(ORDERS, order(10, 1, "")),
        put(LINES, line(10, 2, "bolt")),
        put(CUSTOMERS, customer(1, "Ada", None)),
    ];
    office_now.apply(&rows).await;
    assert_eq!(
        office_now.rows(LINES).await,
        [line(10, 1, "nail"), line(10, 2, "bolt")]
    );
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 1, "")]);
}

/// Parents come first in the list.
pub async fn children_are_deleted_before_parents_whatever_the_order_given<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let effects = [
        gone(CUSTOMERS, id(1)),
        gone(ORDERS, id(10)),
        gone(LINES, line_key(10, 2)),
        gone(LINES, line_key(10, 1)),
        put(CUSTOMERS, customer(3, "Cy", None)),
    ];
    office_now.apply(&effects).await;
    assert_eq!(office_now.rows(ORDERS).await, []);
    assert_eq!(office_now.rows(LINES).await, []);
    let left = [
        customer(2, "Bob", Some("bob@example.org")),
        customer(3, "Cy", None),
    ];
    assert_eq!(office_now.rows(CUSTOMERS).await, left);
    assert_eq!(office_now.take_all().await, []);
}

/// A self-reference, in the wrong order, growing and shrinking.
pub async fn rows_may_refer_to_rows_of_their_own_table<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let (ada, bob, cy) = (
        member(1, "Ada", None),
        member(2, "Bob", Some(1)),
        member(3, "Cy", Some(2)),
    );
    office_now
        .apply(&[put(STAFF, cy), put(STAFF, bob), put(STAFF, ada.clone())])
        .await;
    // Two that lead each other.
    let round = [member(4, "Di", Some(5)), member(5, "Ed", Some(4))];
    office_now
        .apply(&round.clone().map(|row| put(STAFF, row)))
        .await;
    office_now
        .apply(&[gone(STAFF, id(2)), gone(STAFF, id(3))])
        .await;
    assert_eq!(office_now.rows(STAFF).await, [&[ada][..], &round].concat());
    office_now
        .apply(&[gone(STAFF, id(1)), gone(STAFF, id(4)), gone(STAFF, id(5))])
        .await;
    assert_eq!(office_now.rows(STAFF).await, []);
}

/// Two customers are merged: their orders move, and the old customer goes, in one transaction.
pub async fn a_child_moves_while_its_old_parent_is_deleted<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    office_now
        .apply(&[gone(CUSTOMERS, id(1)), put(ORDERS, order(10, 2, "first"))])
        .await;
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 2, "first")]);
    assert_eq!(
        office_now.rows(CUSTOMERS).await,
        [customer(2, "Bob", Some("bob@example.org"))]
    );
}

/// Replacing a parent is no delete: nothing cascades.
pub async fn a_put_replaces_the_row_and_leaves_its_children<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    office_now
        .apply(&[put(ORDERS, order(10, 2, "changed"))])
        .await;
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 2, "changed")]);
    assert_eq!(
        office_now.rows(LINES).await,
        [line(10, 1, "nail"), line(10, 2, "bolt")]
    );
}

/// Writing what is so already.
pub async fn a_put_of_the_same_row_and_a_delete_of_a_missing_one_are_harmless<O: Office>(
    office: &O,
) {
    let mut office_now = with_an_order(office).await;
    office_now
        .apply(&[
            put(ORDERS, order(10, 1, "first")),
            gone(STOCK, sku("never was")),
        ])
        .await;
    office_now.apply(&[]).await;
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 1, "first")]);
}

/// The delete that frees a unique value comes before the put that needs it.
pub async fn a_unique_value_passes_from_a_deleted_row_to_a_new_one<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let heir = customer(3, "Bob's heir", Some("bob@example.org"));
    office_now
        .apply(&[put(CUSTOMERS, heir.clone()), gone(CUSTOMERS, id(2))])
        .await;
    assert_eq!(
        office_now.rows(CUSTOMERS).await,
        [customer(1, "Ada", Some("ada@example.org")), heir]
    );
}

/// Both rows stay; their unique values change places (trap 6).
pub async fn two_rows_swap_a_unique_value<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let swapped = [
        customer(1, "Ada", Some("bob@example.org")),
        customer(2, "Bob", Some("ada@example.org")),
    ];
    office_now
        .apply(&swapped.clone().map(|row| put(CUSTOMERS, row)))
        .await;
    assert_eq!(office_now.rows(CUSTOMERS).await, swapped);
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 1, "first")]);
    assert_eq!(office_now.take_all().await, []);
}

/// Two rows want one e-mail address: an error, and no row gives way (trap 13).
pub async fn a_unique_conflict_is_an_error_and_removes_no_row<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let before = office_now.rows(CUSTOMERS).await;
    let put_new = [
        put(CUSTOMERS, customer(3, "Cy", Some("bob@example.org"))),
        put(STOCK, item("nail", 1)),
    ];
    assert_eq!(
        refused(&office_now.try_apply(&put_new).await),
        ("customers", false)
    );
    let put_old = [put(CUSTOMERS, customer(1, "Ada", Some("bob@example.org")))];
    assert_eq!(
        refused(&office_now.try_apply(&put_old).await),
        ("customers", false)
    );
    assert_eq!(office_now.rows(CUSTOMERS).await, before);
    assert_eq!(office_now.rows(STOCK).await, []);
}

/// A child without its parent: told apart, because the parent may still come.
pub async fn a_missing_parent_is_an_error_of_a_foreign_key<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let result = office_now
        .try_apply(&[put(ORDERS, order(11, 99, ""))])
        .await;
    assert_eq!(refused(&result), ("orders", true));
    assert_eq!(office_now.rows(ORDERS).await, [order(10, 1, "first")]);
}

/// A parent whose child stays.
pub async fn a_parent_with_children_left_cannot_be_deleted<O: Office>(office: &O) {
    let mut office_now = with_an_order(office).await;
    let (_, foreign_key) = {
        let result = office_now.try_apply(&[gone(CUSTOMERS, id(1))]).await;
        let (table, foreign_key) = refused(&result);
        (table.to_owned(), foreign_key)
    };
    assert!(foreign_key);
    assert_eq!(office_now.rows(CUSTOMERS).await.len(), 2);
    // At the write already: a commit could not tell which row it was.
    let schema = office_now.schema.clone();
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    let written = db.write(&schema, &[gone(CUSTOMERS, id(1))]).await;
    assert!(written.is_err(), "the delete was taken");
    db.rollback().await.unwrap();
}

/// More rows, and more keys to read, than an engine takes parameters in one statement.
pub async fn many_rows_are_written_at_once<O: Office>(office: &O) {
    const MANY: i64 = 12_000;
    let mut office_now = ready(office).await;
    let all: Vec<(TableId, _)> = (0..MANY)
        .map(|number| put(STAFF, member(number, "x", None)))
        .collect();
    office_now.apply(&all).await;
    let staff = office_now.table(STAFF);
    let keys: Vec<_> = (0..MANY).map(id).collect();
    office_now.db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(
        office_now.db.read(&staff, &keys).await.unwrap().len(),
        keys.len()
    );
    assert!(
        office_now
            .db
            .captured(&staff, Some(&keys))
            .await
            .unwrap()
            .is_empty()
    );
    office_now.db.rollback().await.unwrap();
    let deletes: Vec<_> = keys
        .iter()
        .skip(1)
        .map(|key| gone(STAFF, key.clone()))
        .collect();
    office_now.apply(&deletes).await;
    assert_eq!(office_now.rows(STAFF).await, [member(0, "x", None)]);
}

/// Enough for whatever an engine does with many rows.
const HANDED: i64 = 300;

/// What is asked next finds the rows there, whether or not they were new.
pub async fn rows_handed_over_are_there_for_whatever_is_asked_next<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let schema = office_now.schema.clone();
    let customers = office_now.table(CUSTOMERS);
    let named = |from: i64, through: i64, name: &str| -> Vec<_> {
        let rows = (from..=through).map(|number| customer(number, name, None));
        rows.map(|row| put(CUSTOMERS, row)).collect()
    };
    office_now
        .local(&[Op::Insert(CUSTOMERS, customer(5, "here", None))])
        .await;
    let keys: Vec<_> = (1..=HANDED).map(id).collect();
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    db.begin_write(&schema, named(1001, 1000 + HANDED, "new"))
        .await
        .unwrap();
    let entry = Entry {
        number: 1,
        bytes: b"kept".to_vec(),
    };
    db.append("handed", std::slice::from_ref(&entry))
        .await
        .unwrap();
    // One of them is there already, and the application has just written it.
    db.begin_write(&schema, named(1, HANDED, "first"))
        .await
        .unwrap();
    let captured = db.captured(&customers, Some(&keys)).await.unwrap();
    assert_eq!(captured, BTreeSet::from([id(5)]));
    db.begin_write(&schema, named(1, HANDED, "second"))
        .await
        .unwrap();
    let read = db.read(&customers, &keys).await.unwrap();
    assert_eq!(read.get(&id(7)), Some(&customer(7, "second", None)));
    db.begin_write(&schema, named(2001, 2000 + HANDED, "last"))
        .await
        .unwrap();
    db.commit().await.unwrap();
    let (rows, many) = (office_now.rows(CUSTOMERS).await, HANDED as usize);
    assert_eq!(rows.len(), 3 * many);
    assert_eq!(rows[6], customer(7, "second", None));
    assert_eq!(rows[3 * many - 1], customer(2000 + HANDED, "last", None));
    office_now.db.begin(Purpose::Read).await.unwrap();
    let kept = office_now.db.entries("handed", 1, 100).await.unwrap();
    office_now.db.rollback().await.unwrap();
    assert_eq!(kept, [entry]);
}

/// An order that is not there.
pub async fn what_does_not_fit_of_rows_handed_over_is_told_by_what_is_asked_next<O: Office>(
    office: &O,
) {
    let mut office_now = with_an_order(office).await;
    let schema = office_now.schema.clone();
    let lines = || -> Vec<_> {
        let rows = (1..=HANDED).map(|place| put(LINES, line(99, place, "x")));
        rows.collect()
    };
    for asks in [false, true] {
        let db = &mut office_now.db;
        db.begin(Purpose::Apply).await.unwrap();
        let outcome = async {
            db.begin_write(&schema, lines()).await?;
            if asks {
                db.set_meta("handed", Some(b"x")).await?;
            }
            db.commit().await
        };
        let outcome = outcome.await;
        assert_eq!(refused(&outcome), ("lines", true));
        db.rollback().await.unwrap();
        db.begin(Purpose::Read).await.unwrap();
        assert_eq!(db.meta("handed").await.unwrap(), None);
        db.rollback().await.unwrap();
        assert_eq!(office_now.rows(LINES).await.len(), 2);
    }
}
