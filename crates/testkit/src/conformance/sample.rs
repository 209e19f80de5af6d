//! The shared tables that the suite works on, and short ways to write their rows.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::schema::{
    Column, ConflictRule, Counter, Direction, ForeignKey, InsertRule, Schema, Table, TableId,
};
use branchline_core::value::{Type, Value};

/// `customers(id, name, email unique)`
pub const CUSTOMERS: TableId = 1;
/// `orders(id, customer_id -> customers, note)`
pub const ORDERS: TableId = 2;
/// `lines(order_id -> orders on delete cascade, position, item, amount)`, with a key of two columns
pub const LINES: TableId = 3;
/// `staff(id, name, boss_id -> staff)`
pub const STAFF: TableId = 4;
/// `stock(sku, amount)`, with a key of text
pub const STOCK: TableId = 5;
/// A table with a reserved name, and columns whose names need care
pub const ODD: TableId = 6;
/// `wide(id, ...)`, with a column of every logical type
pub const WIDE: TableId = 7;

/// The schema of the suite.
pub fn schema() -> Schema {
    Schema {
        version: 1,
        tables_ever: 0,
        tables: vec![
            customers(),
            orders(),
            lines(),
            staff(),
            stock(),
            odd(),
            wide(),
        ],
    }
}

/// The schema of the suite, with rules under which these tables keep the row before a change: `stock` counts, the
/// others merge.
pub fn keeping(tables: &[TableId]) -> Schema {
    let mut schema = schema();
    for table in &mut schema.tables {
        match table.id {
            id if !tables.contains(&id) => {}
            STOCK => {
                table.counters = vec![Counter {
                    column: 1,
                    floor: None,
                }];
            }
            _ => table.conflict = ConflictRule::Merge,
        }
    }
    schema
}

fn customers() -> Table {
    let columns = vec![
        column("id", Type::Int64),
        column("name", Type::Text { max: None }),
        nullable("email", Type::Text { max: Some(200) }),
    ];
    Table {
        unique: vec![vec![2]],
        ..table(CUSTOMERS, "customers", columns)
    }
}

fn orders() -> Table {
    let columns = vec![
        column("id", Type::Int64),
        column("customer_id", Type::Int64),
        nullable("note", Type::Text { max: None }),
    ];
    Table {
        foreign_keys: vec![reference(1, "customers", "NO ACTION")],
        ..table(ORDERS, "orders", columns)
    }
}

fn lines() -> Table {
    let columns = vec![
        column("order_id", Type::Int64),
        column("position", Type::Int32),
        column("item", Type::Text { max: None }),
        nullable(
            "amount",
            Type::Decimal {
                limits: Some((12, 2)),
            },
        ),
    ];
    let lines = table(LINES, "lines", columns);
    Table {
        key: vec![0, 1],
        foreign_keys: vec![reference(0, "orders", "CASCADE")],
        ..lines
    }
}

fn staff() -> Table {
    let columns = vec![
        column("id", Type::Int64),
        column("name", Type::Text { max: None }),
        nullable("boss_id", Type::Int64),
    ];
    Table {
        foreign_keys: vec![reference(2, "staff", "NO ACTION")],
        ..table(STAFF, "staff", columns)
    }
}

fn stock() -> Table {
    table(
        STOCK,
        "stock",
        vec![
            column("sku", Type::Text { max: Some(40) }),
            column("amount", Type::Int64),
        ],
    )
}

fn odd() -> Table {
    table(
        ODD,
        "Group",
        vec![
            column("Select", Type::Int64),
            nullable("Größe \"in\" cm; --", Type::Text { max: None }),
        ],
    )
}

fn wide() -> Table {
    let mut columns = vec![column("id", Type::Int32)];
    columns.extend(
        kinds()
            .into_iter()
            .enumerate()
            .map(|(at, kind)| nullable(&format!("c{at}"), kind)),
    );
    table(WIDE, "wide", columns)
}

/// The types of the table `wide`, in the order of its columns after `id`.
pub fn kinds() -> Vec<Type> {
    let labels = ["low", "it's high", "größer"].map(String::from).into();
    vec![
        Type::Bool,
        Type::Int16,
        Type::Int32,
        Type::Int64,
        Type::Float32,
        Type::Float64,
        Type::Decimal { limits: None },
        Type::Decimal {
            limits: Some((12, 2)),
        },
        Type::Text { max: None },
        Type::Text { max: Some(5) },
        Type::Char { length: 4 },
        Type::Bytes,
        Type::Date,
        Type::Time,
        Type::TimeTz,
        Type::Timestamp,
        Type::TimestampTz,
        Type::Interval,
        Type::Uuid,
        Type::Json,
        Type::Jsonb,
        Type::Enum {
            name: "level".into(),
            labels,
        },
        Type::Array(Box::new(Type::Int32)),
        Type::Array(Box::new(Type::Text { max: None })),
        Type::Inet,
    ]
}

pub(super) fn table(id: TableId, name: &str, columns: Vec<Column>) -> Table {
    Table {
        id,
        name: name.into(),
        columns,
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Direction::Both,
        conflict: ConflictRule::Newest,
        insert: InsertRule::Hold,
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes: Vec::new(),
        checks: Default::default(),
    }
}

pub(super) fn column(name: &str, kind: Type) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable: false,
        default: None,
        generated_key: false,
        id: 0,
    }
}

pub(super) fn nullable(name: &str, kind: Type) -> Column {
    Column {
        nullable: true,
        ..column(name, kind)
    }
}

pub(super) fn reference(column: u16, parent: &str, on_delete: &str) -> ForeignKey {
    ForeignKey {
        columns: vec![column],
        parent: parent.into(),
        parent_columns: vec!["id".into()],
        on_delete: on_delete.into(),
        on_update: "NO ACTION".into(),
    }
}

/// A text.
pub fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into())
}

fn perhaps(value: Option<&str>) -> Value {
    value.map_or(Value::Null, text)
}

/// A row of `customers`.
pub fn customer(id: i64, name: &str, email: Option<&str>) -> Row {
    Row(vec![Value::Int(id), text(name), perhaps(email)])
}

/// A row of `orders`.
pub fn order(id: i64, customer: i64, note: &str) -> Row {
    Row(vec![Value::Int(id), Value::Int(customer), text(note)])
}

/// A row of `lines`.
pub fn line(order: i64, position: i64, item: &str) -> Row {
    Row(vec![
        Value::Int(order),
        Value::Int(position),
        text(item),
        text("9.5"),
    ])
}

/// A row of `staff`.
pub fn member(id: i64, name: &str, boss: Option<i64>) -> Row {
    Row(vec![
        Value::Int(id),
        text(name),
        boss.map_or(Value::Null, Value::Int),
    ])
}

/// A row of `stock`.
pub fn item(sku: &str, amount: i64) -> Row {
    Row(vec![text(sku), Value::Int(amount)])
}

/// A key of one number.
pub fn id(id: i64) -> Key {
    Key(vec![Value::Int(id)])
}

/// A key of `lines`.
pub fn line_key(order: i64, position: i64) -> Key {
    Key(vec![Value::Int(order), Value::Int(position)])
}

/// A key of `stock`.
pub fn sku(sku: &str) -> Key {
    Key(vec![text(sku)])
}

/// That a row is now this.
pub fn put(table: TableId, row: Row) -> (TableId, Effect) {
    (table, Effect::Put(row))
}

/// That a row is gone.
pub fn gone(table: TableId, key: Key) -> (TableId, Effect) {
    (table, Effect::Delete(key))
}
