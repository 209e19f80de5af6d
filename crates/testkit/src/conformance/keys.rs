//! Keys, constraints and references that change.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::First;
use branchline_core::value::{Type, Value};

use super::evolution::{at, int, next, schema};
use super::sample::{
    self, CUSTOMERS, LINES, ORDERS, STAFF, STOCK, WIDE, column, customer, gone, id, item, line,
    member, nullable, order, put, reference, sku, text,
};
use super::{Office, Op, gist, ready_with};

/// A key that is referred to becomes text, and what refers to it with it.
pub async fn keys_become_another_type_with_their_references<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(ORDERS, order(10, 1, "first")),
    ])
    .await;
    now.local(&[
        Op::Insert(CUSTOMERS, customer(2, "Bob", None)),
        Op::Insert(CUSTOMERS, customer(3, "Cy", None)),
        Op::Delete(CUSTOMERS, id(3)),
    ])
    .await;
    let short = Type::Text { max: Some(20) };
    let to = next(&now.schema, |schema| {
        at(schema, CUSTOMERS).columns[0].kind = short.clone();
        at(schema, ORDERS).columns[1].kind = short.clone();
    });
    now.follow(office, &to, &[]).await;
    let named = |id: &str, name: &str| Row(vec![text(id), text(name), Value::Null]);
    assert_eq!(
        now.rows(CUSTOMERS).await,
        [named("1", "Ada"), named("2", "Bob")]
    );
    assert_eq!(
        now.rows(ORDERS).await,
        [Row(vec![int(10), text("1"), text("first")])]
    );
    assert!(
        now.try_apply(&[gone(CUSTOMERS, sku("1"))]).await.is_err(),
        "an order refers to it"
    );
    let taken = now.take_all().await;
    assert_eq!(
        gist(&taken),
        [
            (CUSTOMERS, Effect::Put(named("2", "Bob")), First::Inserted),
            (CUSTOMERS, Effect::Delete(sku("3")), First::Inserted),
        ]
    );
}

/// A key's columns change places, and another column joins.
pub async fn keys_change_their_columns<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(ORDERS, order(10, 1, "")),
        put(LINES, line(10, 1, "nail")),
        put(LINES, line(10, 2, "nut")),
        put(STOCK, item("nail", 3)),
    ])
    .await;
    now.local(&[
        Op::Delete(LINES, sample::line_key(10, 2)),
        Op::Update(STOCK, sku("nail"), item("nail", 4)),
        Op::Insert(STOCK, item("nut", 1)),
        Op::Delete(STOCK, sku("nut")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, LINES).key = vec![1, 0];
        let stock = at(schema, STOCK);
        let mut place = column("place", Type::Int32);
        place.default = Some(int(7));
        stock.columns.push(place);
        stock.key = vec![0, 2];
    });
    now.follow(office, &to, &[]).await;
    let taken = now.take_all().await;
    let nail = Row(vec![text("nail"), int(4), int(7)]);
    assert_eq!(
        gist(&taken),
        [
            (
                LINES,
                Effect::Delete(Key(vec![int(2), int(10)])),
                First::Existing
            ),
            (STOCK, Effect::Put(nail.clone()), First::Existing),
            (
                STOCK,
                Effect::Delete(Key(vec![text("nut"), int(7)])),
                First::Inserted
            ),
        ]
    );
    now.local(&[Op::Insert(STOCK, Row(vec![text("nail"), int(1), int(8)]))])
        .await;
    assert_eq!(now.take_all().await.len(), 1);
    assert_eq!(now.rows(LINES).await, [line(10, 1, "nail")]);
}

/// Unique constraints, indexes, references and NULL come and go.
pub async fn constraints_and_indexes_follow<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", Some("a"))),
        put(ORDERS, order(10, 1, "x")),
        put(STAFF, member(1, "Eve", None)),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        let customers = at(schema, CUSTOMERS);
        customers.unique.clear();
        customers.columns[2].nullable = false;
        let orders = at(schema, ORDERS);
        orders.foreign_keys.clear();
        orders.indexes = vec![vec![1], vec![1, 0]];
        let staff = at(schema, STAFF);
        staff.columns[1].kind = Type::Text { max: Some(50) };
        staff.unique = vec![vec![1]];
        staff.columns.push(nullable("customer_id", Type::Int64));
        staff
            .foreign_keys
            .push(reference(3, "customers", "SET NULL"));
        staff.columns[2].default = None;
        at(schema, STOCK).columns[1].nullable = true;
        at(schema, STOCK).columns[1].default = Some(int(1));
        at(schema, WIDE).indexes = vec![vec![1]];
    });
    now.follow(office, &to, &[]).await;
    let again = customer(2, "Bob", Some("a"));
    now.apply(&[
        put(CUSTOMERS, again.clone()),
        put(ORDERS, order(11, 99, "no such customer")),
    ])
    .await;
    assert_eq!(
        now.rows(CUSTOMERS).await,
        [customer(1, "Ada", Some("a")), again]
    );
    let eve = |id| Row(vec![int(id), text("Eve"), Value::Null, Value::Null]);
    assert!(
        now.try_apply(&[put(STAFF, eve(2))]).await.is_err(),
        "names are unique"
    );
    let bound = Row(vec![int(3), text("Cy"), Value::Null, int(99)]);
    assert!(
        now.try_apply(&[put(STAFF, bound)]).await.is_err(),
        "there is no such customer"
    );
    assert_eq!(now.rows(STAFF).await, [eve(1)]);

    // And back.
    let former = now.schema.clone();
    let mut back = schema();
    back.version = former.version + 1;
    at(&mut back, CUSTOMERS).unique.clear();
    at(&mut back, ORDERS).foreign_keys.clear();
    for table in &mut back.tables {
        table.columns_ever = former.table(table.id).unwrap().columns_ever;
    }
    now.follow(office, &back, &[]).await;
    assert_eq!(now.rows(STAFF).await, [member(1, "Eve", None)]);
}
