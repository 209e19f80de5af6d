//! What is captured and kept follows its rows into the new shape.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, First, Purpose};
use branchline_core::value::Type;

use super::evolution::{at, int, next, schema};
use super::sample::{
    CUSTOMERS, ORDERS, STAFF, STOCK, column, customer, id, item, member, put, sku, text,
};
use super::{Office, Op, gist, ready_with, sample};

/// What was written before is taken after, as rows of the new version.
pub async fn captured_writes_are_taken_in_the_new_shape<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(STOCK, item("nail", 1)),
    ])
    .await;
    now.local(&[
        Op::Update(CUSTOMERS, id(1), customer(1, "Eve", None)),
        Op::Insert(CUSTOMERS, customer(2, "Bob", None)),
        Op::Delete(STOCK, sku("nail")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        let customers = at(schema, CUSTOMERS);
        customers.columns[0].name = "number".into();
        customers.columns.remove(2);
        customers.unique.clear();
        customers.columns.push(column("level", Type::Int32));
        at(schema, ORDERS).foreign_keys[0].parent_columns = vec!["number".into()];
        at(schema, STOCK).columns[0].name = "code".into();
    });
    now.follow(office, &to, &[]).await;
    let row = |id, name| Row(vec![int(id), text(name), int(0)]);
    assert_eq!(
        gist(&now.take_all().await),
        [
            (CUSTOMERS, Effect::Put(row(1, "Eve")), First::Existing),
            (CUSTOMERS, Effect::Put(row(2, "Bob")), First::Inserted),
            (STOCK, Effect::Delete(sku("nail")), First::Existing),
        ]
    );
}

/// Captured keys become what their columns become.
pub async fn captured_keys_follow_their_columns<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(STOCK, item("12", 1)),
        put(STAFF, member(5, "Eve", None)),
    ])
    .await;
    now.local(&[
        Op::Delete(STOCK, sku("12")),
        Op::Insert(STOCK, item("13", 1)),
        Op::Update(STAFF, id(5), member(5, "Cy", None)),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, STOCK).columns[0].kind = Type::Int32;
        at(schema, STAFF).foreign_keys.clear();
        at(schema, STAFF).columns[0].kind = Type::Int32;
    });
    now.follow(office, &to, &[]).await;
    assert_eq!(
        gist(&now.take_all().await),
        [
            (STAFF, Effect::Put(member(5, "Cy", None)), First::Existing),
            (STOCK, Effect::Delete(id(12)), First::Existing),
            (
                STOCK,
                Effect::Put(Row(vec![int(13), int(1)])),
                First::Inserted
            ),
        ]
    );
}

/// The rows before, that merging needs, are known by the new names.
pub async fn rows_before_follow_their_columns<O: Office>(office: &O) {
    let mut keeping = sample::keeping(&[CUSTOMERS, STOCK]);
    keeping.number();
    let mut now = ready_with(office, keeping).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", Some("a"))),
        put(STOCK, item("nail", 1)),
    ])
    .await;
    now.local(&[
        Op::Update(CUSTOMERS, id(1), customer(1, "Eve", Some("b"))),
        Op::Delete(STOCK, sku("nail")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, CUSTOMERS).columns[1].name = "full_name".into();
        at(schema, STOCK).name = "store".into();
    });
    now.follow(office, &to, &[]).await;
    let taken = now.take_all().await;
    let before: Vec<Option<Row>> = taken.iter().map(|taken| taken.before.clone()).collect();
    assert_eq!(
        before,
        [Some(customer(1, "Ada", Some("a"))), Some(item("nail", 1))]
    );
}

/// Notes stay with their rows, whatever these are called now.
pub async fn notes_follow_their_rows<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    let stock = now.table(STOCK);
    now.db.begin(Purpose::Apply).await.unwrap();
    now.db
        .set_notes(&stock, &[(sku("12"), Some(b"held".to_vec()))])
        .await
        .unwrap();
    now.db.commit().await.unwrap();
    let to = next(&now.schema, |schema| {
        at(schema, STOCK).columns[0].kind = Type::Int64;
        at(schema, STOCK).name = "store".into();
    });
    now.follow(office, &to, &[]).await;
    let stock = now.table(STOCK);
    now.db.begin(Purpose::Read).await.unwrap();
    let notes = now.db.notes(&stock, None).await.unwrap();
    assert_eq!(
        notes.into_iter().collect::<Vec<_>>(),
        [(id(12), b"held".to_vec())]
    );
    let named = now.db.notes(&stock, Some(&[id(12)])).await.unwrap();
    assert_eq!(named.len(), 1);
    now.db.rollback().await.unwrap();
}
