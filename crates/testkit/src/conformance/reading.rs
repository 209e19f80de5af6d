//! Reading rows: by key, in chunks, in a snapshot.

use branchline_core::change::{Key, Row};
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::TableId;

use super::sample::{
    CUSTOMERS, LINES, ORDERS, STOCK, customer, gone, id, item, line, line_key, order, put, sku,
};
use super::{Office, Op, Ready, folded, ready};

async fn with_lines<O: Office>(office: &O) -> (Ready<O>, Vec<Row>) {
    let mut office_now = ready(office).await;
    let orders = [1, 2, 9, 10].map(|number| put(ORDERS, order(number, 1, "")));
    let lines: Vec<Row> = [1, 2, 9, 10]
        .into_iter()
        .flat_map(|number| [1, 2, 3, 10].map(|at| line(number, at, "nail")))
        .collect();
    office_now
        .apply(&[put(CUSTOMERS, customer(1, "Ada", None))])
        .await;
    office_now.apply(&orders).await;
    office_now
        .apply(
            &lines
                .iter()
                .map(|row| put(LINES, row.clone()))
                .collect::<Vec<_>>(),
        )
        .await;
    (office_now, lines)
}

/// The whole table, `limit` rows at a time.
async fn walk<O: Office>(office_now: &mut Ready<O>, table: TableId, limit: usize) -> Vec<Row> {
    let table = office_now.table(table);
    office_now.db.begin(Purpose::Read).await.unwrap();
    let (mut rows, mut after): (Vec<Row>, Option<Key>) = (Vec::new(), None);
    loop {
        let chunk = office_now
            .db
            .chunk(&table, after.as_ref(), limit)
            .await
            .unwrap();
        assert!(chunk.len() <= limit);
        let Some(last) = chunk.last() else { break };
        assert!(rows.len() < 1000, "the walk comes to an end");
        after = Some(table.key_of(last));
        rows.extend(chunk.iter().map(|row| folded(&table, row)));
    }
    office_now.db.commit().await.unwrap();
    rows
}

/// Asked for some that exist and some that do not.
pub async fn existing_rows_are_read_by_key<O: Office>(office: &O) {
    let (mut office_now, _) = with_lines(office).await;
    let lines = office_now.table(LINES);
    office_now.db.begin(Purpose::Read).await.unwrap();
    let keys = [line_key(9, 3), line_key(3, 9), line_key(10, 1)];
    let found = office_now.db.read(&lines, &keys).await.unwrap();
    let found: Vec<(Key, Row)> = found
        .iter()
        .map(|(key, row)| (key.clone(), folded(&lines, row)))
        .collect();
    assert_eq!(
        found,
        [
            (line_key(9, 3), line(9, 3, "nail")),
            (line_key(10, 1), line(10, 1, "nail"))
        ]
    );
    assert!(office_now.db.read(&lines, &[]).await.unwrap().is_empty());
    office_now.db.commit().await.unwrap();
}

/// Chunks of every size give the same rows in the same order.
pub async fn chunks_walk_a_composite_key_without_gap_or_repetition<O: Office>(office: &O) {
    let (mut office_now, lines) = with_lines(office).await;
    for limit in [1, 3, 4, 16, 100] {
        assert_eq!(
            walk(&mut office_now, LINES, limit).await,
            lines,
            "in chunks of {limit}"
        );
    }
}

/// The row after which a chunk was to start was deleted in between.
pub async fn chunks_go_on_after_a_key_that_is_gone<O: Office>(office: &O) {
    let (mut office_now, _) = with_lines(office).await;
    office_now.apply(&[gone(LINES, line_key(2, 3))]).await;
    let table = office_now.table(LINES);
    office_now.db.begin(Purpose::Read).await.unwrap();
    let chunk = office_now
        .db
        .chunk(&table, Some(&line_key(2, 3)), 2)
        .await
        .unwrap();
    assert_eq!(
        chunk
            .iter()
            .map(|row| table.key_of(row))
            .collect::<Vec<_>>(),
        [line_key(2, 10), line_key(9, 1)]
    );
    office_now.db.commit().await.unwrap();
}

/// Text sorts by the database's own rules, and the walk follows them.
pub async fn chunks_walk_text_keys_without_gap_or_repetition<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let names = [
        "", " ", "a", "A", "aa", "a b", "ä", "Z", "z", "10", "9", "ß", "ss", "\u{e9}", "e\u{301}",
        "漢", "🦀", "_", "-a",
    ];
    office_now
        .apply(&names.map(|name| put(STOCK, item(name, 1))))
        .await;
    let whole = walk(&mut office_now, STOCK, 100).await;
    assert_eq!(whole.len(), names.len());
    for limit in [1, 2, 5] {
        assert_eq!(
            walk(&mut office_now, STOCK, limit).await,
            whole,
            "in chunks of {limit}"
        );
    }
}

/// Its own writes, before the commit.
pub async fn a_transaction_reads_what_it_wrote<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .apply(&[put(STOCK, item("nail", 1)), put(STOCK, item("nut", 1))])
        .await;
    let stock = office_now.table(STOCK);
    office_now.db.begin(Purpose::Apply).await.unwrap();
    let effects = [
        put(STOCK, item("nail", 2)),
        put(STOCK, item("bolt", 1)),
        gone(STOCK, sku("nut")),
    ];
    office_now
        .db
        .write(&office_now.schema, &effects)
        .await
        .unwrap();
    let found = office_now
        .db
        .read(&stock, &["bolt", "nail", "nut"].map(sku))
        .await
        .unwrap();
    assert_eq!(
        found.into_values().collect::<Vec<_>>(),
        [item("bolt", 1), item("nail", 2)]
    );
    assert_eq!(
        office_now.db.chunk(&stock, None, 10).await.unwrap().len(),
        2
    );
    office_now.db.rollback().await.unwrap();
    assert_eq!(
        office_now.rows(STOCK).await,
        [item("nail", 1), item("nut", 1)]
    );
}

/// A snapshot that is being read neither moves nor stops the application.
pub async fn a_snapshot_stands_still_while_the_application_writes<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now
        .apply(&[
            put(CUSTOMERS, customer(1, "Ada", None)),
            put(CUSTOMERS, customer(2, "Bob", None)),
        ])
        .await;
    let customers = office_now.table(CUSTOMERS);
    office_now.db.begin(Purpose::Read).await.unwrap();
    let first = office_now.db.chunk(&customers, None, 1).await.unwrap();
    assert_eq!(first, [customer(1, "Ada", None)]);
    office_now
        .local(&[
            Op::Update(CUSTOMERS, id(2), customer(2, "Bob B.", None)),
            Op::Delete(CUSTOMERS, id(1)),
        ])
        .await;
    let rest = office_now
        .db
        .chunk(&customers, Some(&id(1)), 10)
        .await
        .unwrap();
    assert_eq!(rest, [customer(2, "Bob", None)]);
    assert_eq!(
        office_now
            .db
            .read(&customers, &[id(1)])
            .await
            .unwrap()
            .len(),
        1
    );
    office_now.db.commit().await.unwrap();
    assert_eq!(
        office_now.rows(CUSTOMERS).await,
        [customer(2, "Bob B.", None)]
    );
}
