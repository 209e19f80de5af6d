//! The application's own changes of its tables.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, First};
use branchline_core::value::{Type, Value};

use super::evolution::{at, define, int, next, schema};
use super::sample::{
    CUSTOMERS, LINES, ORDERS, STAFF, STOCK, WIDE, column, customer, id, item, kinds, line, member,
    order, put, sku, text,
};
use super::sql::Dialect;
use super::{Application, Office, Op, gist, ready_with, sample};

/// An `ALTER` that writes every row is no change of a row.
pub async fn an_alter_by_the_application_captures_nothing<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[put(STOCK, item("nail", 1)), put(STOCK, item("nut", 2))])
        .await;
    let from = now.table(STOCK);
    let mut to = from.clone();
    let mut price = column("price", Type::Int32);
    price.default = Some(int(3));
    price.id = 9;
    to.columns.push(price);
    define(
        &mut now,
        &from,
        &to,
        &["ALTER TABLE \"stock\" ADD COLUMN \"price\" INTEGER DEFAULT 3 NOT NULL"],
    )
    .await;
    let sql =
        "ALTER TABLE \"stock\" ALTER COLUMN \"price\" TYPE numeric(9,2) USING \"price\" + 0.5";
    let narrow =
        "ALTER TABLE \"stock\" MODIFY COLUMN \"price\" DECIMAL(9,2) NOT NULL DEFAULT 3, FORCE";
    let statements = [
        (Some(Dialect::Postgres), sql.to_owned()),
        (Some(Dialect::Mysql), narrow.to_owned()),
    ];
    now.app.define(&to, &to, &statements).await;
    assert_eq!(now.take_all().await, vec![]);
}

/// The application renames a key and other columns, also of a table whose rows before are kept, and writes on, before
/// anybody noticed. What it wrote is taken once the version follows.
pub async fn the_application_renames_columns_and_goes_on_writing<O: Office>(office: &O) {
    let mut keeping = sample::keeping(&[CUSTOMERS]);
    keeping.number();
    let mut now = ready_with(office, keeping).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(CUSTOMERS, customer(2, "Bob", None)),
        put(STOCK, item("nail", 1)),
        put(STOCK, item("nut", 1)),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        let customers = at(schema, CUSTOMERS);
        customers.columns[0].name = "number".into();
        customers.columns[1].name = "full_name".into();
        at(schema, ORDERS).foreign_keys[0].parent_columns = vec!["number".into()];
        at(schema, STOCK).columns[0].name = "code".into();
    });
    let renames = [
        (
            CUSTOMERS,
            vec![
                "ALTER TABLE \"customers\" RENAME COLUMN \"id\" TO \"number\"",
                "ALTER TABLE \"customers\" RENAME COLUMN \"name\" TO \"full_name\"",
            ],
        ),
        (
            STOCK,
            vec!["ALTER TABLE \"stock\" RENAME COLUMN \"sku\" TO \"code\""],
        ),
    ];
    for (id, sql) in renames {
        let (from, becomes) = (now.table(id), to.table(id).unwrap().clone());
        define(&mut now, &from, &becomes, &sql).await;
    }
    let ops = [
        Op::Insert(CUSTOMERS, customer(3, "Cy", None)),
        Op::Update(CUSTOMERS, id(1), customer(1, "Eve", None)),
        Op::Delete(CUSTOMERS, id(2)),
        Op::Insert(STOCK, item("screw", 1)),
        Op::Update(STOCK, sku("nail"), item("nail", 2)),
        Op::Delete(STOCK, sku("nut")),
    ];
    super::transaction(&mut now.app, &to, &ops)
        .await
        .expect("the application is not hurt");
    let missing = now.db.missing_capture(&to).await.unwrap();
    now.follow(office, &to, &[]).await;
    let taken = gist(&now.take_all().await);
    let expected = [
        (
            CUSTOMERS,
            Effect::Put(customer(1, "Eve", None)),
            First::Existing,
        ),
        (CUSTOMERS, Effect::Delete(id(2)), First::Existing),
        (
            CUSTOMERS,
            Effect::Put(customer(3, "Cy", None)),
            First::Inserted,
        ),
        (STOCK, Effect::Put(item("nail", 2)), First::Existing),
        (STOCK, Effect::Delete(sku("nut")), First::Existing),
        (STOCK, Effect::Put(item("screw", 1)), First::Inserted),
    ];
    if taken != expected {
        assert_eq!(
            missing,
            [CUSTOMERS, STOCK],
            "what was not captured is named: {taken:?}"
        );
    }
}

/// The application retypes a key and writes on.
pub async fn the_application_retypes_columns_and_goes_on_writing<O: Office>(office: &O) {
    let mut keeping = sample::keeping(&[STOCK]);
    keeping.number();
    let mut now = ready_with(office, keeping).await;
    now.apply(&[
        put(STAFF, member(1, "Eve", None)),
        put(STOCK, item("12", 1)),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, STOCK).columns[0].kind = Type::Int32;
        at(schema, STOCK).columns[1].kind = Type::Decimal {
            limits: Some((30, 2)),
        };
        at(schema, STOCK).counters.clear();
        at(schema, STOCK).before = true;
    });
    let (from, becomes) = (now.table(STOCK), to.table(STOCK).unwrap().clone());
    let statements = [
        (
            Some(Dialect::Postgres),
            "ALTER TABLE stock ALTER sku TYPE integer USING sku::integer, ALTER amount TYPE numeric(30,2)".to_owned(),
        ),
        (Some(Dialect::Mysql), "ALTER TABLE stock MODIFY sku INT NOT NULL, MODIFY amount DECIMAL(30,2) NOT NULL".to_owned()),
        (
            Some(Dialect::Sqlite),
            "CREATE TABLE new__stock (sku INTEGER PRIMARY KEY, amount DECIMAL_TEXT(30,2) NOT NULL);
             INSERT INTO new__stock SELECT * FROM stock; DROP TABLE stock; ALTER TABLE new__stock RENAME TO stock"
                .to_owned(),
        ),
    ];
    now.app.define(&from, &becomes, &statements).await;
    let row = |sku, amount: &str| Row(vec![int(sku), text(amount)]);
    let ops = [
        Op::Insert(STOCK, row(13, "1.5")),
        Op::Update(STOCK, id(12), row(12, "2.5")),
    ];
    super::transaction(&mut now.app, &to, &ops)
        .await
        .expect("the application is not hurt");
    let missing = now.db.missing_capture(&to).await.unwrap();
    now.follow(office, &to, &[]).await;
    let taken = gist(&now.take_all().await);
    let expected = [
        (STOCK, Effect::Put(row(12, "2.5")), First::Existing),
        (STOCK, Effect::Put(row(13, "1.5")), First::Inserted),
    ];
    if taken != expected {
        assert!(
            missing.contains(&STOCK),
            "what was not captured is named: {taken:?}"
        );
    }
}

/// The application drops columns, also of a table whose rows before are kept, and writes on.
pub async fn the_application_drops_columns_and_goes_on_writing<O: Office>(office: &O) {
    let mut keeping = sample::keeping(&[ORDERS, LINES]);
    keeping.number();
    let mut now = ready_with(office, keeping).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(ORDERS, order(10, 1, "x")),
        put(
            WIDE,
            Row([vec![int(1)], vec![Value::Null; kinds().len()]].concat()),
        ),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, ORDERS).columns.pop();
        at(schema, WIDE).columns.truncate(2);
    });
    let drops: Vec<String> = (1..kinds().len())
        .map(|at| format!("ALTER TABLE \"wide\" DROP COLUMN \"c{at}\""))
        .collect();
    let (from, becomes) = (now.table(WIDE), to.table(WIDE).unwrap().clone());
    define(
        &mut now,
        &from,
        &becomes,
        &drops.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let (from, becomes) = (now.table(ORDERS), to.table(ORDERS).unwrap().clone());
    let drop = "ALTER TABLE \"orders\" DROP COLUMN \"note\"".to_owned();
    // SQLite refuses it while a trigger names the column; a rebuild is what frameworks do there anyway.
    let rebuild = "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON;
        CREATE TABLE new__orders (id INTEGER PRIMARY KEY, customer_id BIGINT NOT NULL REFERENCES customers (id));
        INSERT INTO new__orders SELECT id, customer_id FROM orders; DROP TABLE orders; ALTER TABLE new__orders RENAME TO orders;
        PRAGMA legacy_alter_table = OFF; PRAGMA foreign_keys = ON";
    let statements = [
        (Some(Dialect::Postgres), drop.clone()),
        (Some(Dialect::Mysql), drop),
        (Some(Dialect::Sqlite), rebuild.to_owned()),
    ];
    now.app.define(&from, &becomes, &statements).await;
    let wide = Row(vec![int(1), Value::Bool(true)]);
    let orders = Row(vec![int(11), int(1)]);
    let ops = [
        Op::Update(WIDE, id(1), wide.clone()),
        Op::Insert(ORDERS, orders.clone()),
        Op::Delete(ORDERS, id(10)),
    ];
    super::transaction(&mut now.app, &to, &ops)
        .await
        .expect("the application is not hurt");
    let missing = now.db.missing_capture(&to).await.unwrap();
    now.follow(office, &to, &[]).await;
    let mut taken = gist(&now.take_all().await);
    let mut expected = vec![
        (ORDERS, Effect::Delete(id(10)), First::Existing),
        (ORDERS, Effect::Put(orders), First::Inserted),
        (WIDE, Effect::Put(wide), First::Existing),
    ];
    if taken.len() < expected.len() {
        assert!(
            missing.contains(&ORDERS),
            "what was not captured is named: {taken:?}"
        );
        taken.retain(|(table, _, _)| *table == WIDE);
        expected.retain(|(table, _, _)| *table == WIDE);
    }
    assert_eq!(taken, expected);
}

/// The application renames a table and writes on.
pub async fn the_application_renames_a_table_and_goes_on_writing<O: Office>(office: &O) {
    let mut keeping = sample::keeping(&[CUSTOMERS]);
    keeping.number();
    let mut now = ready_with(office, keeping).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(ORDERS, order(10, 1, "x")),
        put(LINES, line(10, 1, "nail")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, CUSTOMERS).name = "clients".into();
        at(schema, ORDERS).name = "bills".into();
        at(schema, ORDERS).foreign_keys[0].parent = "clients".into();
        at(schema, LINES).foreign_keys[0].parent = "bills".into();
    });
    for (table, sql) in [
        (CUSTOMERS, "ALTER TABLE \"customers\" RENAME TO \"clients\""),
        (ORDERS, "ALTER TABLE \"orders\" RENAME TO \"bills\""),
    ] {
        let (from, becomes) = (now.table(table), to.table(table).unwrap().clone());
        define(&mut now, &from, &becomes, &[sql]).await;
    }
    let (from, becomes) = (now.table(LINES), to.table(LINES).unwrap().clone());
    define(&mut now, &from, &becomes, &[]).await;
    let ops = [
        Op::Update(CUSTOMERS, id(1), customer(1, "Eve", None)),
        Op::Insert(ORDERS, order(11, 1, "y")),
        Op::Delete(LINES, sample::line_key(10, 1)),
        Op::Delete(ORDERS, id(10)),
    ];
    super::transaction(&mut now.app, &to, &ops)
        .await
        .expect("the application is not hurt");
    now.follow(office, &to, &[]).await;
    assert_eq!(
        gist(&now.take_all().await),
        [
            (
                CUSTOMERS,
                Effect::Put(customer(1, "Eve", None)),
                First::Existing
            ),
            (ORDERS, Effect::Delete(id(10)), First::Existing),
            (ORDERS, Effect::Put(order(11, 1, "y")), First::Inserted),
            (
                LINES,
                Effect::Delete(sample::line_key(10, 1)),
                First::Existing
            ),
        ]
    );
}
