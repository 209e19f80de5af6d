//! Following schema versions.

use branchline_core::change::{Effect, Row};
use branchline_core::identity::Digest;
use branchline_core::port::{Database, Evolution, First, Purpose};
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::{Type, Value, canonical};

use super::sample::{
    CUSTOMERS, LINES, ODD, ORDERS, STAFF, STOCK, column, customer, gone, id, item, line, member,
    nullable, order, put, table, text,
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
