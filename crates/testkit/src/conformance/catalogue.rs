//! Installing, inspecting and leaving.

use branchline_core::port::{Database, Purpose};
use branchline_core::schema::{Schema, TableId};

use super::sample::{
    CUSTOMERS, LINES, ORDERS, STAFF, STOCK, customer, gone, id, item, line, member, order, put,
};
use super::{Office, Op, Ready, ready, sample};

/// Preparing, installing and uninstalling twice does no more than once.
pub async fn every_step_of_the_installation_can_be_repeated<O: Office>(office: &O) {
    let Ready { schema, mut db, .. } = ready(office).await;
    db.prepare().await.unwrap();
    db.install(&schema).await.unwrap();
    let installed = office.objects().await;
    db.prepare().await.unwrap();
    db.install(&schema).await.unwrap();
    assert_eq!(office.objects().await, installed);
    db.uninstall().await.unwrap();
    db.uninstall().await.unwrap();
    db.prepare().await.unwrap();
    db.install(&schema).await.unwrap();
    assert_eq!(office.objects().await, installed);
    assert_eq!(
        db.missing_capture(&schema).await.unwrap(),
        Vec::<TableId>::new()
    );
}

/// After uninstalling, the database holds what it held before, and the application works.
pub async fn uninstalling_removes_everything_and_nothing_else<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now.db.uninstall().await.unwrap();
    let before = office.objects().await;
    let own = before
        .iter()
        .filter(|name| name.to_lowercase().contains("branchline"));
    assert_eq!(own.collect::<Vec<_>>(), Vec::<&String>::new());

    office_now.db.prepare().await.unwrap();
    office_now.db.install(&office_now.schema).await.unwrap();
    assert_ne!(office.objects().await, before);
    office_now
        .local(&[Op::Insert(CUSTOMERS, customer(1, "Ada", None))])
        .await;
    office_now.db.uninstall().await.unwrap();
    assert_eq!(office.objects().await, before);
    office_now
        .local(&[Op::Insert(CUSTOMERS, customer(2, "Bob", None))])
        .await;
    office_now.db.prepare().await.unwrap();
    assert_eq!(
        office_now.rows(CUSTOMERS).await,
        [customer(1, "Ada", None), customer(2, "Bob", None)]
    );
}

/// The first copy comes in chunks, table by table or not, while nothing refers to anything yet.
pub async fn a_first_copy_is_loaded_in_any_order_and_bound_at_its_end<O: Office>(office: &O) {
    let (schema, mut db) = (sample::schema(), office.open().await);
    db.prepare().await.unwrap();
    db.create_tables(&schema).await.unwrap();
    db.install(&schema).await.unwrap();
    let chunks = [
        put(LINES, line(10, 1, "nail")),
        put(STAFF, member(2, "Bob", Some(1))),
        put(ORDERS, order(10, 1, "")),
        put(STAFF, member(1, "Ada", None)),
        put(CUSTOMERS, customer(1, "Ada", None)),
    ];
    for chunk in chunks {
        db.begin(Purpose::Load).await.unwrap();
        db.write(&schema, &[chunk]).await.unwrap();
        db.commit().await.unwrap();
    }
    db.add_foreign_keys(&schema).await.unwrap();
    db.add_foreign_keys(&schema).await.unwrap();
    let mut office_now = Ready::<O> {
        schema,
        db,
        app: office.application().await,
    };
    assert_eq!(office_now.take_all().await, vec![]);
    assert_eq!(office_now.rows(LINES).await, [line(10, 1, "nail")]);
    assert!(
        office_now
            .try_apply(&[put(ORDERS, order(11, 99, ""))])
            .await
            .is_err()
    );
    assert!(
        office_now
            .try_apply(&[gone(CUSTOMERS, id(1))])
            .await
            .is_err()
    );
    assert!(
        office_now
            .try_apply(&[put(STAFF, member(3, "Cy", Some(99)))])
            .await
            .is_err()
    );
}

/// Only missing tables are created; rows stay.
pub async fn creating_tables_leaves_existing_ones_alone<O: Office>(office: &O) {
    let schema = sample::schema();
    let mut db = office.open().await;
    db.prepare().await.unwrap();
    let few = Schema {
        version: 1,
        tables_ever: 0,
        tables: schema.tables[..2].to_vec(),
    };
    assert_eq!(
        db.create_tables(&few).await.unwrap(),
        ["customers", "orders"]
    );
    let mut app = office.application().await;
    super::transaction(
        &mut app,
        &schema,
        &[Op::Insert(CUSTOMERS, customer(1, "Ada", None))],
    )
    .await
    .unwrap();
    let created = db.create_tables(&schema).await.unwrap();
    assert_eq!(created.len(), schema.tables.len() - 2, "{created:?}");
    assert_eq!(
        db.create_tables(&schema).await.unwrap(),
        Vec::<String>::new()
    );
    let mut office_now = Ready::<O> { schema, db, app };
    assert_eq!(office_now.rows(CUSTOMERS).await, [customer(1, "Ada", None)]);
}

/// An inspection finds what was created, and nothing of Branchline's own.
pub async fn an_inspection_finds_the_tables_with_their_keys_and_references<O: Office>(office: &O) {
    let Ready { schema, mut db, .. } = ready(office).await;
    let found = db.inspect().await.unwrap();
    let mut names: Vec<&str> = found
        .tables
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "Group",
            "customers",
            "lines",
            "orders",
            "staff",
            "stock",
            "wide"
        ],
        "{:?}",
        found.findings
    );
    for table in &schema.tables {
        let seen = found
            .tables
            .iter()
            .find(|seen| seen.name == table.name)
            .unwrap();
        let columns = |table: &branchline_core::schema::Table| -> Vec<(String, bool)> {
            table
                .columns
                .iter()
                .map(|column| (column.name.clone(), column.nullable))
                .collect()
        };
        assert_eq!(columns(seen), columns(table), "columns of `{}`", table.name);
        assert_eq!(
            (&seen.key, &seen.unique),
            (&table.key, &table.unique),
            "keys of `{}`",
            table.name
        );
        assert_eq!(
            seen.foreign_keys, table.foreign_keys,
            "references of `{}`",
            table.name
        );
        for (planned, found) in table.columns.iter().zip(&seen.columns) {
            let serves = office.serves(&planned.kind, &found.kind);
            assert!(
                serves,
                "`{}.{}`: {} found as {}",
                table.name, planned.name, planned.kind, found.kind
            );
        }
    }
    let fatal: Vec<_> = found
        .findings
        .iter()
        .filter(|finding| finding.fatal)
        .collect();
    assert!(fatal.is_empty(), "{fatal:?}");
}

/// Installing a schema without a table removes that table's capture.
pub async fn a_table_that_leaves_the_schema_is_no_longer_captured<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let mut smaller = office_now.schema.clone();
    smaller.tables.retain(|table| table.id != STOCK);
    smaller.version = 2;
    office_now.db.install(&smaller).await.unwrap();
    office_now
        .local(&[Op::Insert(STOCK, item("nail", 1))])
        .await;
    assert_eq!(super::take_all(&mut office_now.db, &smaller).await, vec![]);
    assert_eq!(
        office_now.db.missing_capture(&smaller).await.unwrap(),
        Vec::<TableId>::new()
    );
    office_now
        .local(&[Op::Insert(CUSTOMERS, customer(1, "Ada", None))])
        .await;
    assert_eq!(super::take_all(&mut office_now.db, &smaller).await.len(), 1);
}

/// A table whose capture the application destroyed is named, and installing mends it.
pub async fn capture_that_the_application_broke_is_missed_and_mended<O: Office>(office: &O) {
    let schema = sample::schema();
    let mut db = office.open().await;
    db.prepare().await.unwrap();
    db.create_tables(&schema).await.unwrap();
    let all: Vec<TableId> = schema.tables.iter().map(|table| table.id).collect();
    assert_eq!(sorted(db.missing_capture(&schema).await.unwrap()), all);
    db.install(&schema).await.unwrap();
    assert_eq!(
        db.missing_capture(&schema).await.unwrap(),
        Vec::<TableId>::new()
    );

    let mut app = office.application().await;
    app_breaks(&mut app, &schema, LINES).await;
    app_breaks(&mut app, &schema, CUSTOMERS).await;
    assert_eq!(
        sorted(db.missing_capture(&schema).await.unwrap()),
        [CUSTOMERS, LINES]
    );
    db.install(&schema).await.unwrap();
    assert_eq!(
        db.missing_capture(&schema).await.unwrap(),
        Vec::<TableId>::new()
    );
    let mut office_now = Ready::<O> { schema, db, app };
    office_now
        .local(&[Op::Insert(CUSTOMERS, customer(1, "Ada", None))])
        .await;
    let taken = office_now.take_all().await;
    assert_eq!(taken[0].effect.key(&office_now.table(CUSTOMERS)), id(1));
}

async fn app_breaks<A: super::Application>(app: &mut A, schema: &Schema, table: TableId) {
    app.break_capture(schema.table(table).unwrap()).await;
}

fn sorted(mut tables: Vec<TableId>) -> Vec<TableId> {
    tables.sort_unstable();
    tables
}
