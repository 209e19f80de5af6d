//! Portions, units of visibility, and what a take that fails leaves behind.

use std::collections::BTreeMap;

use branchline_core::change::{Effect, Key};
use branchline_core::port::{Database, First, Portion, Purpose, Taken};
use branchline_core::schema::Schema;

use super::sample::{STAFF, STOCK, id, item, member, put, sku};
use super::{Application, Office, Op, gist, ready, sorted};

/// Takes with a limit, a transaction for each unit, until nothing more is promised.
pub(super) async fn take_units<D: Database>(
    db: &mut D,
    schema: &Schema,
    limit: usize,
) -> Vec<Vec<Taken>> {
    let mut units = Vec::new();
    loop {
        db.begin(Purpose::Take).await.unwrap();
        let mut unit = Vec::new();
        let more = loop {
            let Portion {
                changes,
                unreadable,
                open,
                more,
            } = db.take(schema, limit).await.unwrap();
            assert_eq!(unreadable, []);
            assert!(
                changes.len() <= 2 * limit,
                "{} changes with a limit of {limit}",
                changes.len()
            );
            assert!(!changes.is_empty() || !open, "an open unit goes on");
            unit.extend(changes);
            if !open {
                break more;
            }
        };
        db.commit().await.unwrap();
        assert!(!unit.is_empty() || !more, "more was promised");
        if !unit.is_empty() {
            units.push(unit);
        }
        if !more {
            return units;
        }
        assert!(units.len() < 10_000, "taking comes to an end");
    }
}

/// Where each row was taken: the number of its unit.
fn places(schema: &Schema, units: &[Vec<Taken>]) -> BTreeMap<Key, usize> {
    let mut places = BTreeMap::new();
    for (number, unit) in units.iter().enumerate() {
        for change in unit {
            let key = change.effect.key(schema.table(change.table).unwrap());
            assert_eq!(
                places.insert(key, number),
                None,
                "{change:?} was taken twice"
            );
        }
    }
    places
}

/// A rolled-back take left everything in place.
pub async fn a_take_that_is_rolled_back_takes_nothing<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .local(&[
            Op::Insert(STOCK, item("nail", 1)),
            Op::Insert(STOCK, item("bolt", 1)),
        ])
        .await;
    office_now.db.begin(Purpose::Take).await.unwrap();
    let first = office_now
        .db
        .take(&office_now.schema, 100)
        .await
        .unwrap()
        .changes;
    office_now.db.rollback().await.unwrap();
    assert_eq!(office_now.backlog().await.writes, 2);
    assert_eq!(
        sorted(&office_now.schema, first),
        office_now.take_all().await
    );
}

/// So did one whose process died.
pub async fn a_take_whose_handle_is_dropped_takes_nothing<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .local(&[Op::Insert(STOCK, item("nail", 1))])
        .await;
    office_now.db.begin(Purpose::Take).await.unwrap();
    assert_eq!(
        office_now
            .db
            .take(&office_now.schema, 100)
            .await
            .unwrap()
            .changes
            .len(),
        1
    );
    let next = office.open().await;
    drop(std::mem::replace(&mut office_now.db, next));
    assert_eq!(
        gist(&office_now.take_all().await),
        [(STOCK, Effect::Put(item("nail", 1)), First::Inserted)]
    );
}

/// What was taken is gone; a later write of the same row is a change of its own.
pub async fn nothing_is_taken_twice<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .local(&[Op::Insert(STOCK, item("nail", 1))])
        .await;
    assert_eq!(office_now.take_all().await.len(), 1);
    assert_eq!(office_now.take_all().await, []);
    office_now
        .local(&[Op::Update(STOCK, sku("nail"), item("nail", 2))])
        .await;
    assert_eq!(
        gist(&office_now.take_all().await),
        [(STOCK, Effect::Put(item("nail", 2)), First::Existing)]
    );
}

/// Many small transactions, taken in several units.
pub async fn portions_return_everything_once<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    for number in 0..45 {
        office_now
            .local(&[Op::Insert(STAFF, member(number, "x", None))])
            .await;
    }
    let units = take_units(&mut office_now.db, &office_now.schema, 10).await;
    let expected = if O::TELLS_TRANSACTIONS_APART {
        3..=45
    } else {
        1..=1
    };
    assert!(expected.contains(&units.len()), "{} units", units.len());
    assert_eq!(places(&office_now.schema, &units).len(), 45);
    let oldest = units[0][0].effect.key(&office_now.table(STAFF));
    assert!(oldest.0[0] < super::Value::Int(10), "the oldest come first");
    assert_eq!(office_now.take_all().await, []);
}

/// A transaction larger than the limit.
pub async fn a_large_transaction_is_one_unit_in_several_portions<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let ops: Vec<Op> = (0..50)
        .map(|number| Op::Insert(STAFF, member(number, "x", None)))
        .collect();
    office_now.local(&ops).await;
    office_now
        .local(&[Op::Insert(STAFF, member(99, "x", None))])
        .await;
    office_now.db.begin(Purpose::Take).await.unwrap();
    let portion = office_now.db.take(&office_now.schema, 10).await.unwrap();
    assert!(
        portion.open && portion.changes.len() <= 20,
        "{} changes",
        portion.changes.len()
    );
    office_now.db.rollback().await.unwrap();
    let units = take_units(&mut office_now.db, &office_now.schema, 10).await;
    let places = places(&office_now.schema, &units);
    assert_eq!(places.len(), 51);
    assert!(
        (0..50).all(|number| places[&id(number)] == places[&id(0)]),
        "{places:?}"
    );
}

/// T1 = {0, 1}, T2 = {1, 2}, ...: with net changes, none can be shown without the others.
pub async fn transactions_that_share_rows_are_one_unit<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let rows: Vec<_> = (0..=20)
        .map(|number| put(STAFF, member(number, "old", None)))
        .collect();
    office_now.apply(&rows).await;
    for number in 0..20 {
        let write = |number| Op::Update(STAFF, id(number), member(number, "new", None));
        office_now.local(&[write(number), write(number + 1)]).await;
    }
    let units = take_units(&mut office_now.db, &office_now.schema, 4).await;
    let places = places(&office_now.schema, &units);
    assert_eq!(places.len(), 21);
    assert!(places.values().all(|&unit| unit == 0), "{places:?}");
}

/// Pairs, some of which meet again much later.
pub async fn a_unit_never_holds_half_a_transaction<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    for pair in 0..30 {
        let write = |number| Op::Insert(STAFF, member(number, "new", None));
        office_now
            .local(&[write(2 * pair), write(2 * pair + 1)])
            .await;
    }
    // Binds the first pair to the last.
    let again = |number| Op::Update(STAFF, id(number), member(number, "again", None));
    office_now.local(&[again(1), again(59)]).await;
    let units = take_units(&mut office_now.db, &office_now.schema, 7).await;
    let places = places(&office_now.schema, &units);
    assert_eq!(places.len(), 60);
    for pair in 0..30 {
        assert_eq!(
            places[&id(2 * pair)],
            places[&id(2 * pair + 1)],
            "pair {pair}: {places:?}"
        );
    }
    assert_eq!(places[&id(1)], places[&id(59)], "{places:?}");
}

/// A transaction that wrote first and commits last is not lost, whatever its place in any sequence.
pub async fn what_commits_late_is_taken_late<O: Office>(office: &O) {
    if !O::CONCURRENT_WRITERS {
        return;
    }
    let mut office_now = ready(office).await;
    let (mut late, mut early) = (office.application().await, office.application().await);
    late.begin().await;
    late.run(&office_now.schema, &[Op::Insert(STOCK, item("late", 1))])
        .await
        .unwrap();
    super::transaction(
        &mut early,
        &office_now.schema,
        &[Op::Insert(STOCK, item("early", 1))],
    )
    .await
    .unwrap();
    assert_eq!(
        gist(&office_now.take_all().await),
        [(STOCK, Effect::Put(item("early", 1)), First::Inserted)]
    );
    late.commit().await.unwrap();
    assert_eq!(
        gist(&office_now.take_all().await),
        [(STOCK, Effect::Put(item("late", 1)), First::Inserted)]
    );
}
