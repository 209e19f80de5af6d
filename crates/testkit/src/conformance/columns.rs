//! Columns that come, go, are renamed and become other types.

use branchline_core::change::{Effect, Row};
use branchline_core::port::First;
use branchline_core::schema::Schema;
use branchline_core::value::{Type, Value, convert};

use super::evolution::{at, int, next, schema};
use super::sample::{
    CUSTOMERS, LINES, ORDERS, column, customer, gone, id, nullable, order, put, table, text,
};
use super::{Office, Op, gist, ready_with};

/// Rows keep their values; new columns hold their default, or a neutral value until the real one comes.
pub async fn columns_come_and_go_and_rows_keep_their_values<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", Some("ada@example.org"))),
        put(CUSTOMERS, customer(2, "Bob", None)),
        put(ORDERS, order(10, 1, "first")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        let table = at(schema, CUSTOMERS);
        table.columns.retain(|column| column.name != "email");
        table.unique.clear();
        table.columns[1].name = "full name".into();
        let mut points = column("points", Type::Int32);
        points.default = Some(int(5));
        let mut rank = nullable("rank", Type::Text { max: Some(9) });
        rank.default = Some(text("it's"));
        table.columns.extend([
            nullable("since", Type::Date),
            points,
            column("level", Type::Int16),
            rank,
        ]);
        at(schema, ORDERS).columns[2].name = "remark".into();
    });
    now.follow(office, &to, &[]).await;
    let customer = |id, name| {
        Row(vec![
            int(id),
            text(name),
            Value::Null,
            int(5),
            int(0),
            text("it's"),
        ])
    };
    assert_eq!(
        now.rows(CUSTOMERS).await,
        [customer(1, "Ada"), customer(2, "Bob")]
    );
    assert_eq!(now.rows(ORDERS).await, [order(10, 1, "first")]);
    assert_eq!(now.take_all().await, vec![], "it captures nothing");
    now.local(&[
        Op::Insert(CUSTOMERS, customer(3, "Cy")),
        Op::Update(ORDERS, id(10), order(10, 3, "x")),
    ])
    .await;
    let taken = now.take_all().await;
    assert_eq!(
        gist(&taken),
        [
            (CUSTOMERS, Effect::Put(customer(3, "Cy")), First::Inserted),
            (ORDERS, Effect::Put(order(10, 3, "x")), First::Existing),
        ]
    );
    // References still hold.
    assert!(now.try_apply(&[gone(CUSTOMERS, id(3))]).await.is_err());
}

/// Two columns exchange names, and a name passes on.
pub async fn columns_swap_their_names<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", Some("mail"))),
        put(ORDERS, order(10, 1, "7")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        // The note goes, and another new column has its name.
        let orders = at(schema, ORDERS);
        orders.columns.pop();
        let mut note = nullable("note", Type::Int32);
        note.id = 0;
        orders.columns.push(note);
        let lines = at(schema, LINES);
        (lines.columns[2].name, lines.columns[3].name) = ("amount".into(), "item".into());
    });
    let lines = Row(vec![int(10), int(1), text("nail"), text("9.5")]);
    now.apply(&[put(LINES, lines.clone())]).await;
    now.follow(office, &to, &[]).await;
    assert_eq!(now.rows(LINES).await, [lines]);
    assert_eq!(
        now.rows(ORDERS).await,
        [Row(vec![int(10), int(1), Value::Null])]
    );
}

/// What a retyped column holds is what `convert` makes of it.
pub async fn columns_become_other_types<O: Office>(office: &O) {
    let mut retyped = vec![
        (Type::Bool, Type::Int16, Value::Bool(true)),
        (Type::Int16, Type::Text { max: Some(9) }, int(-7)),
        (Type::Int32, Type::Int64, int(1 << 30)),
        (Type::Int64, Type::Int32, int(41)),
        (Type::Float32, Type::Float64, Value::Float(0.1)),
        (
            Type::Float64,
            Type::Decimal {
                limits: Some((9, 3)),
            },
            Value::Float(1.25),
        ),
        (
            Type::Decimal {
                limits: Some((12, 2)),
            },
            Type::Decimal {
                limits: Some((14, 3)),
            },
            text("1234.5"),
        ),
        (
            Type::Decimal {
                limits: Some((12, 2)),
            },
            Type::Int32,
            text("12"),
        ),
        (Type::Text { max: None }, Type::Int32, text("42")),
        (
            Type::Text { max: None },
            Type::Text { max: Some(30) },
            text("größer"),
        ),
        (
            Type::Text { max: Some(5) },
            Type::Text { max: None },
            text("short"),
        ),
        (Type::Text { max: Some(5) }, Type::Bool, text("true")),
        (
            Type::Char { length: 4 },
            Type::Text { max: Some(4) },
            text("ab"),
        ),
        (Type::Date, Type::Timestamp, text("2024-02-29")),
        (Type::Timestamp, Type::Date, text("2024-02-29 00:00:00")),
        (Type::Int32, Type::Bool, int(1)),
    ];
    retyped.retain(|(from, to, _)| office.casts(from, to));
    let wide = |to: bool| {
        let mut columns = vec![column("id", Type::Int32)];
        columns.extend(retyped.iter().enumerate().map(|(at, (from, becomes, _))| {
            nullable(&format!("c{at}"), if to { becomes } else { from }.clone())
        }));
        table(1, "wide", columns)
    };
    let mut from = Schema {
        version: 1,
        tables_ever: 1,
        tables: vec![wide(false)],
    };
    from.number();
    let to = next(&from, |schema| {
        for (column, (_, becomes, _)) in schema.tables[0].columns[1..].iter_mut().zip(&retyped) {
            column.kind = becomes.clone();
        }
    });
    let mut now = ready_with(office, from).await;
    let row = |values: Vec<Value>| Row([vec![int(1)], values].concat());
    let was = row(retyped.iter().map(|(_, _, value)| value.clone()).collect());
    let empty = Row([vec![int(2)], vec![Value::Null; retyped.len()]].concat());
    now.apply(&[put(1, was), put(1, empty.clone())]).await;
    now.follow(office, &to, &[]).await;
    let becomes = retyped
        .iter()
        .map(|(from, to, value)| convert(from, to, value).unwrap());
    assert_eq!(now.rows(1).await, [row(becomes.collect()), empty]);
    now.local(&[Op::Delete(1, id(2))]).await;
    assert_eq!(
        gist(&now.take_all().await),
        [(1, Effect::Delete(id(2)), First::Existing)]
    );
}
