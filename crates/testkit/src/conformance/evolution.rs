//! Following schema versions.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{Database, Evolution, First, Purpose};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::{Type, Value, canonical, convert};

use super::sample::{
    CUSTOMERS, LINES, ODD, ORDERS, STAFF, STOCK, WIDE, column, customer, gone, id, item, line,
    member, nullable, order, put, reference, sku, table, text,
};
use super::{Application, Office, Op, Ready, gist, ready_with, sample, take_all};

/// The suite's schema, with numbers.
pub(super) fn schema() -> Schema {
    let mut schema = sample::schema();
    schema.number();
    schema
}

/// The next version of a schema.
pub(super) fn next(from: &Schema, change: impl FnOnce(&mut Schema)) -> Schema {
    let mut to = from.clone();
    to.version += 1;
    change(&mut to);
    to.number();
    to
}

pub(super) fn at(schema: &mut Schema, id: TableId) -> &mut Table {
    schema
        .tables
        .iter_mut()
        .find(|table| table.id == id)
        .unwrap()
}

pub(super) fn int(number: i64) -> Value {
    Value::Int(number)
}

pub(super) async fn evolve<D: Database>(
    db: &mut D,
    from: &Schema,
    to: &Schema,
    dropped: &[TableId],
) -> Evolution {
    db.begin(Purpose::Load).await.unwrap();
    let done = db.evolve(from, to, dropped).await.unwrap();
    db.commit().await.unwrap();
    done
}

impl<O: Office> Ready<O> {
    /// Follows a version, twice, and looks whether the tables are what it says and are captured.
    pub(super) async fn follow(
        &mut self,
        office: &O,
        to: &Schema,
        dropped: &[TableId],
    ) -> Evolution {
        let from = std::mem::replace(&mut self.schema, to.clone());
        let done = evolve(&mut self.db, &from, to, dropped).await;
        assert_eq!(done.refused, []);
        looks_like(office, &mut self.db, to).await;
        let mut before = Vec::new();
        for table in &to.tables {
            before.push(self.rows(table.id).await);
        }
        assert_eq!(evolve(&mut self.db, &from, to, dropped).await.refused, []);
        looks_like(office, &mut self.db, to).await;
        for (table, before) in to.tables.iter().zip(before) {
            assert_eq!(
                self.rows(table.id).await,
                before,
                "a second time changes nothing"
            );
        }
        self.app = office.application().await;
        done
    }
}

/// The database's tables are those of the schema, and captured.
pub(super) async fn looks_like<O: Office>(office: &O, db: &mut O::Db, schema: &Schema) {
    assert_eq!(
        db.missing_capture(schema).await.unwrap(),
        Vec::<TableId>::new()
    );
    let found = db.inspect().await.unwrap();
    for table in &schema.tables {
        let seen = found.tables.iter().find(|seen| seen.name == table.name);
        let seen = seen.unwrap_or_else(|| panic!("no `{}`: {:?}", table.name, found.findings));
        let shown = format!("`{}` is {seen:#?}", table.name);
        let names = |columns: &[Column]| -> Vec<String> {
            let mut names: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&seen.columns), names(&table.columns), "{shown}");
        for column in &table.columns {
            let here = seen
                .columns
                .iter()
                .find(|here| here.name == column.name)
                .unwrap();
            assert!(
                office.serves(&column.kind, &here.kind),
                "`{}` of {shown}",
                column.name
            );
            let key = table.key_columns().any(|key| key.name == column.name);
            assert_eq!(
                here.nullable,
                column.nullable && !key,
                "`{}` of {shown}",
                column.name
            );
            let default = |column: &Column| {
                let value = column.default.as_ref();
                value.map(|value| canonical(&column.kind, value).into_owned())
            };
            assert_eq!(
                default(here),
                default(column),
                "`{}` of {shown}",
                column.name
            );
        }
        let sets = |table: &Table, sets: &[Vec<u16>]| -> Vec<Vec<String>> {
            let set = |set: &Vec<u16>| {
                set.iter()
                    .map(|&at| table.columns[usize::from(at)].name.clone())
                    .collect()
            };
            let mut sets: Vec<Vec<String>> = sets.iter().map(set).collect();
            sets.sort();
            sets
        };
        assert_eq!(
            sets(seen, std::slice::from_ref(&seen.key)),
            sets(table, std::slice::from_ref(&table.key)),
            "{shown}"
        );
        assert_eq!(
            sets(seen, &seen.unique),
            sets(table, &table.unique),
            "{shown}"
        );
        assert_eq!(
            sets(seen, &seen.indexes),
            sets(table, &table.indexes),
            "{shown}"
        );
        let references = |table: &Table| {
            let mut told: Vec<_> = table
                .foreign_keys
                .iter()
                .map(|key| {
                    let own = sets(table, std::slice::from_ref(&key.columns));
                    (
                        own,
                        key.parent.clone(),
                        key.parent_columns.clone(),
                        key.on_delete.clone(),
                        key.on_update.clone(),
                    )
                })
                .collect();
            told.sort();
            told
        };
        assert_eq!(references(seen), references(table), "{shown}");
    }
}

pub(super) async fn shape<D: Database>(db: &mut D, schema: &Schema) -> Digest {
    db.begin(Purpose::Take).await.unwrap();
    let shape = db.shape(schema).await.unwrap();
    db.rollback().await.unwrap();
    shape
}

/// The application's own change of a table, in SQL that all engines understand.
pub(super) async fn define<O: Office>(
    office: &mut Ready<O>,
    from: &Table,
    to: &Table,
    sql: &[&str],
) {
    let statements: Vec<_> = sql.iter().map(|sql| (None, (*sql).to_owned())).collect();
    office.app.define(from, to, &statements).await;
}

/// What a statement does to a table.
type Alteration = fn(&mut Table);

/// A column added, renamed or dropped, a constraint or a table changes the shape; rows, and what is ours, do not.
pub async fn the_shape_changes_with_what_defines_the_tables<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    let mut last = shape(&mut now.db, &now.schema).await;
    now.local(&[Op::Insert(CUSTOMERS, customer(1, "Ada", None))])
        .await;
    now.take_all().await;
    now.db.install(&now.schema.clone()).await.unwrap();
    assert_eq!(shape(&mut now.db, &now.schema).await, last);
    now.db.begin(Purpose::Read).await.unwrap();
    assert_eq!(now.db.shape(&now.schema).await.unwrap(), last);
    now.db.rollback().await.unwrap();

    let steps: [(&str, Alteration); 4] = [
        (
            "ALTER TABLE \"customers\" ADD COLUMN \"since\" DATE",
            |table| {
                table.columns.push(nullable("since", Type::Date));
            },
        ),
        (
            "ALTER TABLE \"customers\" RENAME COLUMN \"since\" TO \"joined\"",
            |table| {
                table.columns[3].name = "joined".into();
            },
        ),
        (
            "ALTER TABLE \"customers\" DROP COLUMN \"joined\"",
            |table| {
                table.columns.pop();
            },
        ),
        ("ALTER TABLE \"customers\" RENAME TO \"clients\"", |table| {
            table.name = "clients".into()
        }),
    ];
    let mut present = now.table(CUSTOMERS);
    let mut seen = vec![last];
    for (sql, change) in steps {
        let from = present.clone();
        change(&mut present);
        define(&mut now, &from, &present, &[sql]).await;
        let shape = shape(&mut now.db, &now.schema).await;
        assert_ne!(shape, last, "{sql}");
        last = shape;
        seen.push(shape);
    }
    // What was dropped is as if it had never been, but for an engine's own lasting names.
    assert_ne!(seen[3], seen[1]);
    let portion = take_all(
        &mut now.db,
        &next(&now.schema, |schema| {
            schema.tables.retain(|table| table.id != CUSTOMERS)
        }),
    )
    .await;
    assert_eq!(portion, vec![]);
}

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

/// Tables get the names of others, in a chain and in a circle; references and captured writes go with them.
pub async fn tables_are_renamed_in_chains_and_swap_their_names<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(ORDERS, order(10, 1, "first")),
        put(LINES, line(10, 1, "nail")),
        put(STAFF, member(1, "Eve", None)),
        put(STOCK, item("nail", 3)),
    ])
    .await;
    now.local(&[
        Op::Insert(STAFF, member(2, "Cy", Some(1))),
        Op::Update(LINES, sample::line_key(10, 1), line(10, 1, "screw")),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        at(schema, ORDERS).name = "bills".into();
        at(schema, LINES).name = "orders".into();
        at(schema, LINES).foreign_keys[0].parent = "bills".into();
        at(schema, STAFF).name = "stock".into();
        at(schema, STAFF).foreign_keys[0].parent = "stock".into();
        at(schema, STOCK).name = "staff".into();
    });
    now.follow(office, &to, &[]).await;
    assert_eq!(now.rows(ORDERS).await, [order(10, 1, "first")]);
    assert_eq!(now.rows(LINES).await, [line(10, 1, "screw")]);
    assert_eq!(
        now.rows(STAFF).await,
        [member(1, "Eve", None), member(2, "Cy", Some(1))]
    );
    assert_eq!(now.rows(STOCK).await, [item("nail", 3)]);
    now.local(&[Op::Insert(STOCK, item("nut", 1))]).await;
    let taken = now.take_all().await;
    assert_eq!(
        gist(&taken),
        [
            (LINES, Effect::Put(line(10, 1, "screw")), First::Existing),
            (
                STAFF,
                Effect::Put(member(2, "Cy", Some(1))),
                First::Inserted
            ),
            (STOCK, Effect::Put(item("nut", 1)), First::Inserted),
        ]
    );
    assert!(
        now.try_apply(&[gone(ORDERS, id(10))]).await.is_err(),
        "a line refers to it"
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

/// New tables are created; others are dropped where that is said, and otherwise stay without capture.
pub async fn tables_come_go_and_stay_without_capture<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(STOCK, item("nail", 1)),
        put(ODD, Row(vec![int(1), text("x")])),
    ])
    .await;
    now.local(&[Op::Insert(STOCK, item("nut", 1))]).await;
    let from = now.schema.clone();
    let to = next(&from, |schema| {
        schema
            .tables
            .retain(|table| ![STOCK, ODD, LINES, ORDERS].contains(&table.id));
        let mut new = table(
            0,
            "places",
            vec![
                column("id", Type::Int32),
                column("name", Type::Text { max: Some(9) }),
            ],
        );
        new.unique = vec![vec![1]];
        schema.tables.push(new);
    });
    let places = to.tables_ever;
    now.follow(office, &to, &[STOCK, LINES, ORDERS]).await;
    let found = now.db.inspect().await.unwrap();
    let mut names: Vec<&str> = found
        .tables
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["Group", "customers", "places", "staff", "wide"]);
    let ready = Ready::<O> {
        schema: from.clone(),
        db: office.open().await,
        app: office.application().await,
    };
    let mut ready = ready;
    assert_eq!(ready.rows(ODD).await, [Row(vec![int(1), text("x")])]);
    ready
        .local(&[Op::Insert(ODD, Row(vec![int(2), text("y")]))])
        .await;
    let place = Row(vec![int(1), text("Rome")]);
    now.local(&[Op::Insert(places, place.clone())]).await;
    assert_eq!(
        gist(&now.take_all().await),
        [(places, Effect::Put(place), First::Inserted)]
    );
}

/// A value that does not fit refuses its table, which stays as it was; the others follow.
pub async fn what_cannot_follow_stays_whole_and_the_others_go_on<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(STAFF, member(1, "Eve", None)),
        put(STOCK, item("nail", 1 << 40)),
    ])
    .await;
    now.local(&[Op::Insert(CUSTOMERS, customer(2, "Bob", None))])
        .await;
    let from = now.schema.clone();
    let to = next(&from, |schema| {
        let customers = at(schema, CUSTOMERS);
        customers.columns[1].name = "number".into();
        customers.columns[1].kind = Type::Int32;
        customers.columns.push(nullable("since", Type::Date));
        at(schema, STOCK).columns[1].kind = Type::Int32;
        at(schema, STAFF).columns[2].name = "chief".into();
    });
    let done = evolve(&mut now.db, &from, &to, &[]).await;
    let refused: Vec<TableId> = done.refused.iter().map(|(id, _)| *id).collect();
    assert_eq!(refused, [CUSTOMERS, STOCK], "{done:?}");
    assert!(done.refused[0].1.contains("number"), "{done:?}");
    let mixed = next(&from, |schema| {
        at(schema, STAFF).columns[2].name = "chief".into()
    });
    looks_like(office, &mut now.db, &mixed).await;
    now.schema = mixed;
    assert_eq!(
        now.rows(CUSTOMERS).await,
        [customer(1, "Ada", None), customer(2, "Bob", None)]
    );
    assert_eq!(now.rows(STOCK).await, [item("nail", 1 << 40)]);
    now.local(&[Op::Insert(CUSTOMERS, customer(3, "Cy", None))])
        .await;
    assert_eq!(now.take_all().await.len(), 2, "it is still captured");
    // Once the cause is gone it follows.
    now.apply(&[put(STOCK, item("nail", 1))]).await;
    let mut names = [1, 2, 3].map(|id| put(CUSTOMERS, customer(id, &id.to_string(), None)));
    names.sort_by_key(|(table, _)| *table);
    now.apply(&names).await;
    now.schema = from;
    now.follow(office, &to, &[]).await;
    assert_eq!(now.rows(STOCK).await, [item("nail", 1)]);
    assert_eq!(
        now.rows(CUSTOMERS).await[2],
        Row(vec![int(3), int(3), Value::Null, Value::Null])
    );
}

/// The application was quicker: its columns and names stand, and what it wrote to a new column is told.
pub async fn what_the_application_did_already_is_not_done_twice<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    now.apply(&[
        put(CUSTOMERS, customer(1, "Ada", None)),
        put(STAFF, member(1, "Eve", None)),
    ])
    .await;
    let to = next(&now.schema, |schema| {
        let customers = at(schema, CUSTOMERS);
        customers.columns[1].name = "full_name".into();
        customers.columns.push(nullable("since", Type::Int32));
        at(schema, STAFF).name = "people".into();
        at(schema, STAFF).foreign_keys[0].parent = "people".into();
        at(schema, STAFF).columns[1].name = "first".into();
    });
    let (from, becomes) = (now.table(CUSTOMERS), to.table(CUSTOMERS).unwrap().clone());
    define(
        &mut now,
        &from,
        &becomes,
        &[
            "ALTER TABLE \"customers\" RENAME COLUMN \"name\" TO \"full_name\"",
            "ALTER TABLE \"customers\" ADD COLUMN \"since\" INTEGER",
        ],
    )
    .await;
    // Of the other table only a part.
    let (from, mut half) = (now.table(STAFF), now.table(STAFF));
    half.name = "people".into();
    half.foreign_keys[0].parent = "people".into();
    define(
        &mut now,
        &from,
        &half,
        &["ALTER TABLE \"staff\" RENAME TO \"people\""],
    )
    .await;
    let since = to.table(CUSTOMERS).unwrap().columns[3].id;
    let written = Row(vec![int(1), text("Ada"), Value::Null, int(1999)]);
    super::transaction(
        &mut now.app,
        &to,
        &[Op::Update(CUSTOMERS, id(1), written.clone())],
    )
    .await
    .unwrap();
    let done = now.follow(office, &to, &[]).await;
    assert_eq!(done.found, [(CUSTOMERS, since)]);
    assert_eq!(now.rows(CUSTOMERS).await, std::slice::from_ref(&written));
    assert_eq!(now.rows(STAFF).await, [member(1, "Eve", None)]);
    assert_eq!(
        gist(&now.take_all().await),
        [(CUSTOMERS, Effect::Put(written), First::Existing)]
    );
}
