//! Foreign keys whose actions must not reach rows that are not among the effects (SETTLED 8).

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::{Type, Value};

use super::sample::{column, gone, id, member, nullable, put, reference, table, text};
use super::{Office, Op, Ready, ready_with};

const AREAS: TableId = 1;
/// The area that a child falls back to under `SET DEFAULT`.
const NOWHERE: i64 = 0;

/// The actions that this office knows, each with the number of the first table that uses it.
fn actions<O: Office>(office: &O) -> Vec<(&'static str, TableId)> {
    [
        "NO ACTION",
        "RESTRICT",
        "CASCADE",
        "SET NULL",
        "SET DEFAULT",
    ]
    .into_iter()
    .zip([10, 20, 30, 40, 50])
    .filter(|(action, _)| office.knows_action(action))
    .collect()
}

/// `shops(id, name, area_id -> areas)`
fn shops(first: TableId) -> TableId {
    first
}

/// `people(id, name, boss_id -> people)`
fn people(first: TableId) -> TableId {
    first + 1
}

/// `eggs(id, name, hen_id -> hens)`
fn eggs(first: TableId) -> TableId {
    first + 2
}

/// `hens(id, name, egg_id -> eggs)`
fn hens(first: TableId) -> TableId {
    first + 3
}

fn child(id: TableId, name: &str, parent: &str, action: &str) -> Table {
    let mut columns = vec![
        column("id", Type::Int64),
        column("name", Type::Text { max: None }),
        nullable("of_id", Type::Int64),
    ];
    if action == "SET DEFAULT" {
        columns[2].default = Some(Value::Int(NOWHERE));
    }
    Table {
        foreign_keys: vec![reference(2, parent, action)],
        ..table(id, name, columns)
    }
}

async fn office_with_references<O: Office>(office: &O) -> Ready<O> {
    let columns = vec![
        column("id", Type::Int64),
        column("name", Type::Text { max: None }),
    ];
    let mut tables = vec![table(AREAS, "areas", columns)];
    for (action, first) in actions(office) {
        let named = |name: &str| format!("{name}_{first}");
        tables.extend([
            child(shops(first), &named("shops"), "areas", action),
            child(people(first), &named("people"), &named("people"), action),
            child(eggs(first), &named("eggs"), &named("hens"), action),
            child(hens(first), &named("hens"), &named("eggs"), action),
        ]);
    }
    let mut office_now = ready_with(
        office,
        Schema {
            version: 1,
            tables_ever: 0,
            tables,
        },
    )
    .await;
    let areas = [area(NOWHERE), area(1), area(2)].map(|row| put(AREAS, row));
    office_now.apply(&areas).await;
    office_now
}

fn area(id: i64) -> Row {
    Row(vec![Value::Int(id), text("area")])
}

/// That these effects are refused for a foreign key, and change nothing in these tables.
async fn refused<O: Office>(
    office_now: &mut Ready<O>,
    action: &str,
    effects: &[(TableId, Effect)],
    tables: &[TableId],
) {
    let mut before = Vec::new();
    for table in tables {
        before.push(office_now.rows(*table).await);
    }
    match office_now.try_apply(effects).await {
        Err(DatabaseError::Constraint {
            foreign_key: true, ..
        }) => {}
        other => panic!("{action}: a foreign key speaks against {effects:?}, but: {other:?}"),
    }
    for (table, before) in tables.iter().zip(before) {
        assert_eq!(office_now.rows(*table).await, before, "{action}");
    }
}

/// A parent whose child the deleter did not know.
pub async fn a_delete_never_reaches_a_child_that_is_not_mentioned<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    for (action, first) in actions(office) {
        let shops = shops(first);
        office_now
            .apply(&[
                put(AREAS, area(7)),
                put(shops, member(1, "one", Some(7))),
                put(shops, member(2, "two", Some(7))),
            ])
            .await;
        let tables = [AREAS, shops];
        refused(&mut office_now, action, &[gone(AREAS, id(7))], &tables).await;
        let one_of_two = [gone(AREAS, id(7)), gone(shops, id(1))];
        refused(&mut office_now, action, &one_of_two, &tables).await;
        let rename = [
            put(shops, member(2, "renamed", Some(7))),
            gone(AREAS, id(7)),
        ];
        refused(&mut office_now, action, &rename, &tables).await;
        office_now
            .apply(&[gone(shops, id(1)), gone(shops, id(2))])
            .await;
        office_now.apply(&[gone(AREAS, id(7))]).await;
    }
}

/// In any order.
pub async fn a_parent_goes_together_with_all_its_children<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    for (action, first) in actions(office) {
        let shops = shops(first);
        let there = [
            put(AREAS, area(7)),
            put(shops, member(1, "one", Some(7))),
            put(shops, member(2, "two", Some(7))),
            put(shops, member(3, "three", Some(1))),
        ];
        let mut effects = [gone(AREAS, id(7)), gone(shops, id(1)), gone(shops, id(2))];
        for _ in 0..2 {
            office_now.apply(&there).await;
            office_now.apply(&effects).await;
            assert_eq!(
                office_now.rows(shops).await,
                [member(3, "three", Some(1))],
                "{action}"
            );
            assert_eq!(
                office_now.rows(AREAS).await,
                [area(NOWHERE), area(1), area(2)],
                "{action}"
            );
            effects.reverse();
        }
    }
    assert_eq!(office_now.take_all().await, []);
}

/// To another parent, or to none.
pub async fn a_parent_goes_while_its_children_move<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    for (action, first) in actions(office) {
        let shops = shops(first);
        office_now
            .apply(&[
                put(AREAS, area(7)),
                put(shops, member(1, "one", Some(7))),
                put(shops, member(2, "two", Some(7))),
            ])
            .await;
        let moved = [member(1, "one, moved", Some(2)), member(2, "two", None)];
        office_now
            .apply(&[
                gone(AREAS, id(7)),
                put(shops, moved[0].clone()),
                put(shops, moved[1].clone()),
            ])
            .await;
        assert_eq!(office_now.rows(shops).await, moved, "{action}");
        assert_eq!(
            office_now.rows(AREAS).await,
            [area(NOWHERE), area(1), area(2)],
            "{action}"
        );
    }
    assert_eq!(office_now.take_all().await, []);
}

/// A line of command, a circle of two, one that leads itself; and one that was not mentioned.
pub async fn rows_of_one_table_go_together_or_not_at_all<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    for (action, first) in actions(office) {
        let people = people(first);
        // The one that `SET DEFAULT` falls back to.
        let nobody = member(NOWHERE, "nobody", None);
        let there = [
            nobody.clone(),
            member(1, "Ada", None),
            member(2, "Bob", Some(1)),
            member(3, "Cy", Some(2)),
            member(4, "Di", Some(5)),
            member(5, "Ed", Some(4)),
            member(6, "Flo", Some(6)),
        ];
        let mut effects: Vec<_> = (1..=6).map(|number| gone(people, id(number))).collect();
        for _ in 0..2 {
            office_now
                .apply(&there.clone().map(|row| put(people, row)))
                .await;
            office_now.apply(&effects).await;
            assert_eq!(
                office_now.rows(people).await,
                std::slice::from_ref(&nobody),
                "{action} {effects:?}"
            );
            effects.reverse();
        }
        let fly = member(7, "Guy", Some(4));
        office_now.apply(&there.map(|row| put(people, row))).await;
        office_now.apply(&[put(people, fly)]).await;
        for keys in [&[1, 2][..], &[2], &[4, 5]] {
            let effects: Vec<_> = keys.iter().map(|&key| gone(people, id(key))).collect();
            refused(&mut office_now, action, &effects, &[people]).await;
        }
    }
    assert_eq!(office_now.take_all().await, []);
}

/// Neither table comes first.
pub async fn rows_of_tables_in_a_circle_go_together_or_not_at_all<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    for (action, first) in actions(office) {
        let (eggs, hens) = (eggs(first), hens(first));
        // Those that `SET DEFAULT` falls back to.
        let nothing = member(NOWHERE, "nothing", None);
        office_now
            .apply(&[put(eggs, nothing.clone()), put(hens, nothing.clone())])
            .await;
        office_now.apply(&[put(eggs, member(1, "egg", None))]).await;
        office_now
            .apply(&[put(hens, member(1, "hen", Some(1)))])
            .await;
        office_now
            .apply(&[put(eggs, member(1, "egg", Some(1)))])
            .await;
        refused(&mut office_now, action, &[gone(eggs, id(1))], &[eggs, hens]).await;
        refused(&mut office_now, action, &[gone(hens, id(1))], &[eggs, hens]).await;
        office_now
            .apply(&[gone(eggs, id(1)), gone(hens, id(1))])
            .await;
        assert_eq!(
            office_now.rows(eggs).await,
            std::slice::from_ref(&nothing),
            "{action}"
        );
        assert_eq!(office_now.rows(hens).await, [nothing], "{action}");
    }
    assert_eq!(office_now.take_all().await, []);
}

/// The application has tables that the plan does not know, and their rows refer to shared ones.
pub async fn a_child_outside_the_plan_is_not_reached<O: Office>(office: &O) {
    let mut office_now = office_with_references(office).await;
    let whole = office_now.schema.clone();
    let planned = Schema {
        tables: vec![office_now.table(AREAS)],
        ..whole.clone()
    };
    office_now.db.install(&planned).await.unwrap();
    for (action, first) in actions(office) {
        let shops = shops(first);
        office_now
            .local(&[
                Op::Insert(AREAS, area(7)),
                Op::Insert(shops, member(1, "one", Some(7))),
            ])
            .await;
        office_now.schema = planned.clone();
        office_now.take_all().await;
        let result = office_now.try_apply(&[gone(AREAS, id(7))]).await;
        office_now.schema = whole.clone();
        assert!(
            matches!(
                result,
                Err(DatabaseError::Constraint {
                    foreign_key: true,
                    ..
                })
            ),
            "{action}: {result:?}"
        );
        assert_eq!(
            office_now.rows(shops).await,
            [member(1, "one", Some(7))],
            "{action}"
        );
        assert_eq!(office_now.rows(AREAS).await.len(), 4, "{action}");
        office_now.local(&[Op::Delete(shops, id(1))]).await;
        office_now.schema = planned.clone();
        office_now.apply(&[gone(AREAS, id(7))]).await;
        office_now.schema = whole.clone();
    }
}

/// An area's code is unique, and shops refer to it.
async fn office_with_codes<O: Office>(office: &O) -> Ready<O> {
    let mut areas = table(
        AREAS,
        "areas",
        vec![
            column("id", Type::Int64),
            column("code", Type::Int64),
            column("sign", Type::Int64),
        ],
    );
    areas.unique = vec![vec![1], vec![2]];
    let mut tables = vec![areas];
    for (action, first) in actions(office) {
        let mut shops = child(first, &format!("shops_{first}"), "areas", "NO ACTION");
        shops.foreign_keys[0].parent_columns = vec!["code".into()];
        shops.foreign_keys[0].on_update = action.into();
        if action == "SET DEFAULT" {
            shops.columns[2].default = Some(Value::Int(NOWHERE));
        }
        tables.push(shops);
    }
    let mut office_now = ready_with(
        office,
        Schema {
            version: 1,
            tables,
            tables_ever: 0,
        },
    )
    .await;
    office_now.apply(&[put(AREAS, coded(9, NOWHERE, 9))]).await;
    office_now
}

fn coded(id: i64, code: i64, sign: i64) -> Row {
    Row([id, code, sign].map(Value::Int).into())
}

/// A put that changes what children refer to is no licence to change the children.
pub async fn an_update_never_reaches_a_child_that_is_not_mentioned<O: Office>(office: &O) {
    let mut office_now = office_with_codes(office).await;
    for (action, first) in actions(office) {
        let shops = shops(first);
        office_now
            .apply(&[put(AREAS, coded(1, 100, 1)), put(AREAS, coded(2, 200, 2))])
            .await;
        office_now
            .apply(&[
                put(shops, member(1, "one", Some(100))),
                put(shops, member(2, "two", Some(200))),
            ])
            .await;
        let new_code = put(AREAS, coded(1, 300, 1));
        refused(
            &mut office_now,
            action,
            std::slice::from_ref(&new_code),
            &[AREAS, shops],
        )
        .await;
        // Signs are exchanged; nobody refers to them.
        office_now
            .apply(&[put(AREAS, coded(1, 100, 2)), put(AREAS, coded(2, 200, 1))])
            .await;
        let still = [member(1, "one", Some(100)), member(2, "two", Some(200))];
        assert_eq!(office_now.rows(shops).await, still, "{action}");
        let moved = member(1, "one", Some(200));
        office_now
            .apply(&[put(AREAS, coded(1, 300, 2)), put(shops, moved.clone())])
            .await;
        let now = [moved, member(2, "two", Some(200))];
        assert_eq!(office_now.rows(shops).await, now, "{action}");
        office_now
            .apply(&[gone(shops, id(1)), gone(shops, id(2))])
            .await;
    }
    assert_eq!(office_now.take_all().await, []);
}
