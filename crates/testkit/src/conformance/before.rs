//! The row before a change, of tables whose rules need it.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, Purpose, Taken};
use branchline_core::schema::TableId;

use super::sample::{
    CUSTOMERS, LINES, ORDERS, STAFF, STOCK, WIDE, customer, gone, id, item, keeping, line,
    line_key, member, order, put, schema, sku,
};
use super::taking::take_units;
use super::values::extreme_rows;
use super::{Office, Op, Ready, ready, ready_with, take_as_it_comes};

/// An office that keeps the rows before changes of these tables, where these rows exist and nothing is captured.
async fn office_that_keeps<O: Office>(
    office: &O,
    tables: &[TableId],
    rows: &[(TableId, Row)],
) -> Ready<O> {
    let mut office_now = ready_with(office, keeping(tables)).await;
    fill(&mut office_now, rows).await;
    office_now
}

async fn fill<O: Office>(office_now: &mut Ready<O>, rows: &[(TableId, Row)]) {
    let effects: Vec<_> = rows
        .iter()
        .map(|(table, row)| put(*table, row.clone()))
        .collect();
    office_now.apply(&effects).await;
}

/// What became of each row, and what it was.
fn stories(taken: &[Taken]) -> Vec<((TableId, Effect), Option<Row>)> {
    taken
        .iter()
        .map(|change| ((change.table, change.effect.clone()), change.before.clone()))
        .collect()
}

async fn story<O: Office>(office_now: &mut Ready<O>) -> Vec<((TableId, Effect), Option<Row>)> {
    stories(&office_now.take_all().await)
}

fn new_amount(name: &str, amount: i64) -> Op {
    Op::Update(STOCK, sku(name), item(name, amount))
}

/// One write to each of two rows.
pub async fn an_update_and_a_delete_keep_the_row_that_they_found<O: Office>(office: &O) {
    let rows = [
        (STOCK, item("bolt", 1)),
        (STOCK, item("nail", 2)),
        (STOCK, item("still", 3)),
    ];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[new_amount("bolt", 5), Op::Delete(STOCK, sku("nail"))])
        .await;
    let expected = [
        (put(STOCK, item("bolt", 5)), Some(item("bolt", 1))),
        (gone(STOCK, sku("nail")), Some(item("nail", 2))),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Several writes to one row, in one transaction and in several, the last one a delete or not.
pub async fn the_first_of_several_rows_before_counts<O: Office>(office: &O) {
    let rows = [
        (STOCK, item("bolt", 1)),
        (STOCK, item("nail", 2)),
        (STOCK, item("nut", 3)),
    ];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[new_amount("bolt", 10), new_amount("bolt", 11)])
        .await;
    office_now
        .local(&[new_amount("nail", 20), new_amount("nut", 30)])
        .await;
    office_now
        .local(&[new_amount("bolt", 12), Op::Delete(STOCK, sku("nut"))])
        .await;
    office_now.local(&[new_amount("nail", 2)]).await;
    let expected = [
        (put(STOCK, item("bolt", 12)), Some(item("bolt", 1))),
        (put(STOCK, item("nail", 2)), Some(item("nail", 2))),
        (gone(STOCK, sku("nut")), Some(item("nut", 3))),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Inserted, whatever is written to it afterwards.
pub async fn what_was_inserted_has_no_row_before<O: Office>(office: &O) {
    let mut office_now = office_that_keeps(office, &[STOCK], &[]).await;
    office_now
        .local(&[
            Op::Insert(STOCK, item("bolt", 1)),
            Op::Insert(STOCK, item("nail", 1)),
            new_amount("nail", 2),
        ])
        .await;
    office_now
        .local(&[
            Op::Insert(STOCK, item("nut", 1)),
            Op::Insert(STOCK, item("pin", 1)),
        ])
        .await;
    office_now
        .local(&[
            new_amount("nut", 2),
            Op::Delete(STOCK, sku("pin")),
            Op::Insert(STOCK, item("pin", 3)),
        ])
        .await;
    let expected = [("bolt", 1), ("nail", 2), ("nut", 2), ("pin", 3)]
        .map(|(name, amount)| (put(STOCK, item(name, amount)), None));
    assert_eq!(story(&mut office_now).await, expected);
}

/// The row that was there first, not the one inserted in its place.
pub async fn a_row_deleted_and_inserted_again_keeps_the_deleted_row<O: Office>(office: &O) {
    let rows = [(STOCK, item("nail", 1))];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[
            Op::Delete(STOCK, sku("nail")),
            Op::Insert(STOCK, item("nail", 7)),
        ])
        .await;
    office_now.local(&[new_amount("nail", 8)]).await;
    let expected = [(put(STOCK, item("nail", 8)), Some(item("nail", 1)))];
    assert_eq!(story(&mut office_now).await, expected);
}

/// A delete with the row as it was, and an insert.
pub async fn a_changed_key_keeps_the_row_under_its_old_key<O: Office>(office: &O) {
    let rows = [(STOCK, item("nail", 1))];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[Op::Update(STOCK, sku("nail"), item("zinc nail", 2))])
        .await;
    let expected = [
        (gone(STOCK, sku("nail")), Some(item("nail", 1))),
        (put(STOCK, item("zinc nail", 2)), None),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Two rows exchange their keys by way of a third key.
pub async fn rows_that_swap_their_keys_keep_both_rows<O: Office>(office: &O) {
    let rows = [
        (STAFF, member(1, "Ada", None)),
        (STAFF, member(2, "Bob", None)),
    ];
    let mut office_now = office_that_keeps(office, &[STAFF], &rows).await;
    office_now
        .local(&[
            Op::Update(STAFF, id(1), member(9, "Ada", None)),
            Op::Update(STAFF, id(2), member(1, "Bob", None)),
            Op::Update(STAFF, id(9), member(2, "Ada", None)),
        ])
        .await;
    let expected = [
        (
            put(STAFF, member(1, "Bob", None)),
            Some(member(1, "Ada", None)),
        ),
        (
            put(STAFF, member(2, "Ada", None)),
            Some(member(2, "Bob", None)),
        ),
        (gone(STAFF, id(9)), None),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Rows that a foreign key's action removed.
pub async fn what_a_cascade_deletes_keeps_its_row<O: Office>(office: &O) {
    let rows = [
        (CUSTOMERS, customer(1, "Ada", None)),
        (ORDERS, order(10, 1, "")),
        (LINES, line(10, 1, "nail")),
    ];
    let mut office_now = office_that_keeps(office, &[LINES], &rows).await;
    office_now.local(&[Op::Delete(ORDERS, id(10))]).await;
    let nail = super::folded(&office_now.table(LINES), &line(10, 1, "nail"));
    let expected = [
        (gone(ORDERS, id(10)), None),
        (gone(LINES, line_key(10, 1)), Some(nail)),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Beside a table that keeps them.
pub async fn tables_that_need_no_row_before_keep_none<O: Office>(office: &O) {
    let rows = [
        (STAFF, member(1, "Ada", None)),
        (STAFF, member(2, "Bob", None)),
        (STOCK, item("nail", 1)),
    ];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[
            Op::Update(STAFF, id(1), member(1, "Ada L.", None)),
            new_amount("nail", 2),
            Op::Delete(STAFF, id(2)),
        ])
        .await;
    let expected = [
        (put(STAFF, member(1, "Ada L.", None)), None),
        (gone(STAFF, id(2)), None),
        (put(STOCK, item("nail", 2)), Some(item("nail", 1))),
    ];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Nobody saw what it was.
pub async fn a_row_captured_again_has_no_known_row_before<O: Office>(office: &O) {
    let rows = [(STOCK, item("bolt", 1)), (STOCK, item("nail", 1))];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    let stock = office_now.table(STOCK);
    for keys in [None, Some([sku("bolt"), sku("nail")])] {
        let keys: Option<&[Key]> = keys.as_ref().map(|keys| keys.as_slice());
        office_now.db.begin(Purpose::Apply).await.unwrap();
        office_now.db.recapture(&stock, keys).await.unwrap();
        office_now.db.commit().await.unwrap();
        let expected = ["bolt", "nail"].map(|name| (put(STOCK, item(name, 1)), None));
        assert_eq!(story(&mut office_now).await, expected);
    }
}

/// Neither one that was taken already, nor one from before an apply.
pub async fn the_row_before_is_the_one_since_the_last_take<O: Office>(office: &O) {
    let rows = [(STOCK, item("nail", 1))];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    for (amount, next) in [(1, 2), (2, 3), (3, 4)] {
        office_now.local(&[new_amount("nail", next)]).await;
        let expected = [(put(STOCK, item("nail", next)), Some(item("nail", amount)))];
        assert_eq!(story(&mut office_now).await, expected);
    }
    office_now.apply(&[put(STOCK, item("nail", 50))]).await;
    office_now.local(&[new_amount("nail", 51)]).await;
    let expected = [(put(STOCK, item("nail", 51)), Some(item("nail", 50)))];
    assert_eq!(story(&mut office_now).await, expected);
}

/// What was not taken is taken with all that belongs to it.
pub async fn a_take_that_is_rolled_back_leaves_the_row_before<O: Office>(office: &O) {
    let rows = [(STOCK, item("bolt", 1)), (STOCK, item("nail", 1))];
    let mut office_now = office_that_keeps(office, &[STOCK], &rows).await;
    office_now
        .local(&[new_amount("bolt", 2), new_amount("nail", 2)])
        .await;
    office_now.db.begin(Purpose::Take).await.unwrap();
    let portion = office_now.db.take(&office_now.schema, 100).await.unwrap();
    assert!(portion.changes.iter().all(|change| change.before.is_some()));
    office_now.db.rollback().await.unwrap();
    office_now.local(&[new_amount("nail", 3)]).await;
    let expected = [("bolt", 2), ("nail", 3)]
        .map(|(name, amount)| (put(STOCK, item(name, amount)), Some(item(name, 1))));
    assert_eq!(story(&mut office_now).await, expected);
}

/// In several portions, each row's own.
pub async fn a_large_transaction_keeps_every_row_before<O: Office>(office: &O) {
    let rows: Vec<_> = (0..50)
        .map(|number| (STAFF, member(number, &format!("old {number}"), None)))
        .collect();
    let mut office_now = office_that_keeps(office, &[STAFF], &rows).await;
    let ops: Vec<Op> = (0..50)
        .map(|number| Op::Update(STAFF, id(number), member(number, "new", None)))
        .collect();
    office_now.local(&ops).await;
    let units = take_units(&mut office_now.db, &office_now.schema, 10).await;
    let mut found: Vec<Row> = units
        .concat()
        .into_iter()
        .filter_map(|change| change.before)
        .collect();
    found.sort();
    let expected: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    assert_eq!(found, expected);
}

/// Where the rules change, and what was written before they did keeps no row that it did not find.
pub async fn rows_before_are_kept_from_the_next_installation_on<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    fill(
        &mut office_now,
        &[(STOCK, item("bolt", 1)), (STOCK, item("nail", 1))],
    )
    .await;
    office_now.local(&[new_amount("bolt", 2)]).await;
    office_now.schema = keeping(&[STOCK]);
    office_now.db.install(&office_now.schema).await.unwrap();
    office_now.db.install(&office_now.schema).await.unwrap();
    office_now
        .local(&[new_amount("bolt", 3), new_amount("nail", 2)])
        .await;
    let taken = story(&mut office_now).await;
    let [(bolt, bolt_before), nail] = &taken[..] else {
        panic!("{taken:?}")
    };
    assert_eq!(*nail, (put(STOCK, item("nail", 2)), Some(item("nail", 1))));
    assert_eq!(*bolt, put(STOCK, item("bolt", 3)));
    assert!(
        bolt_before.is_none() || *bolt_before == Some(item("bolt", 1)),
        "{bolt_before:?}"
    );
    office_now.local(&[new_amount("bolt", 4)]).await;
    let expected = [(put(STOCK, item("bolt", 4)), Some(item("bolt", 3)))];
    assert_eq!(story(&mut office_now).await, expected);
    office_now.schema = schema();
    office_now.db.install(&office_now.schema).await.unwrap();
    office_now.local(&[new_amount("bolt", 5)]).await;
    let expected = [(put(STOCK, item("bolt", 5)), None)];
    assert_eq!(story(&mut office_now).await, expected);
}

/// Every type at its extremes, updated and deleted: exactly what `read` gave.
pub async fn every_value_before_is_as_it_was_read<O: Office>(office: &O) {
    let mut office_now = ready_with(office, keeping(&[WIDE])).await;
    let wide = office_now.table(WIDE);
    let rows = extreme_rows(office);
    let blank = rows.last().unwrap().clone();
    let keys: Vec<Key> = rows.iter().map(|row| wide.key_of(row)).collect();
    let blanks: Vec<Op> = keys
        .iter()
        .map(|key| {
            let mut row = blank.clone();
            row.0[0] = key.0[0].clone();
            Op::Update(WIDE, key.clone(), row)
        })
        .collect();
    let deletes: Vec<Op> = keys
        .iter()
        .map(|key| Op::Delete(WIDE, key.clone()))
        .collect();
    for ops in [blanks, deletes] {
        office_now
            .apply(
                &rows
                    .iter()
                    .map(|row| put(WIDE, row.clone()))
                    .collect::<Vec<_>>(),
            )
            .await;
        office_now.db.begin(Purpose::Read).await.unwrap();
        let read = office_now.db.read(&wide, &keys).await.unwrap();
        office_now.db.commit().await.unwrap();
        assert_eq!(read.len(), rows.len());
        office_now.local(&ops).await;
        let taken = take_as_it_comes(&mut office_now.db, &office_now.schema).await;
        assert_eq!(taken.len(), rows.len());
        for change in taken {
            let key = change.effect.key(&wide);
            let before = change.before.expect("each row was there");
            for ((column, before), read) in wide.columns.iter().zip(&before.0).zip(&read[&key].0) {
                assert_eq!(before, read, "a {} in `{}`", column.kind, column.name);
            }
        }
    }
}
