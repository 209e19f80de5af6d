//! Bookkeeping: remembered values, streams, notes, and that they commit with the rows.

use branchline_core::port::{Database, Entry, Extent, Purpose};

use super::sample::{LINES, STAFF, STOCK, id, item, line_key, put, sku};
use super::{Office, Ready, ready};

fn entry(number: u64, bytes: usize) -> Entry {
    Entry {
        number,
        bytes: vec![u8::try_from(number % 251).unwrap(); bytes],
    }
}

fn numbers(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.number).collect()
}

async fn appended<O: Office>(office_now: &mut Ready<O>, stream: &str, entries: &[Entry]) {
    office_now.db.begin(Purpose::Apply).await.unwrap();
    office_now.db.append(stream, entries).await.unwrap();
    office_now.db.commit().await.unwrap();
}

/// Values by name, of any bytes, none and empty told apart, seen by the next handle.
pub async fn values_are_remembered_and_forgotten<O: Office>(office: &O) {
    let Ready { mut db, .. } = ready(office).await;
    db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(db.meta("cursor").await.unwrap(), None);
    db.set_meta("cursor", Some(&[0, 255, 7])).await.unwrap();
    db.set_meta("empty", Some(&[])).await.unwrap();
    db.set_meta("it's \"odd\"", Some(&[1])).await.unwrap();
    assert_eq!(db.meta("cursor").await.unwrap(), Some(vec![0, 255, 7]));
    db.set_meta("cursor", Some(&[8])).await.unwrap();
    db.commit().await.unwrap();
    let mut next = office.open().await;
    next.begin(Purpose::Apply).await.unwrap();
    assert_eq!(next.meta("cursor").await.unwrap(), Some(vec![8]));
    assert_eq!(next.meta("empty").await.unwrap(), Some(vec![]));
    assert_eq!(next.meta("it's \"odd\"").await.unwrap(), Some(vec![1]));
    next.set_meta("cursor", None).await.unwrap();
    next.set_meta("never was", None).await.unwrap();
    next.commit().await.unwrap();
    db.begin(Purpose::Read).await.unwrap();
    assert_eq!(db.meta("cursor").await.unwrap(), None);
    db.commit().await.unwrap();
}

/// Streams do not mix, keep bytes as they are, and know their extent.
pub async fn streams_keep_their_entries_in_order<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    appended(&mut office_now, "outbox", &[entry(1, 10), entry(2, 0)]).await;
    appended(&mut office_now, "log", &[entry(7, 3)]).await;
    appended(&mut office_now, "outbox", &[entry(3, 5)]).await;
    let large = u64::try_from(i64::MAX).unwrap();
    appended(&mut office_now, "log", &[entry(large, 1)]).await;
    let db = &mut office_now.db;
    db.begin(Purpose::Read).await.unwrap();
    assert_eq!(
        db.entries("outbox", 1, 1000).await.unwrap(),
        [entry(1, 10), entry(2, 0), entry(3, 5)]
    );
    assert_eq!(
        db.entries("outbox", 2, 1000).await.unwrap(),
        [entry(2, 0), entry(3, 5)]
    );
    assert_eq!(db.entries("outbox", 4, 1000).await.unwrap(), []);
    assert_eq!(
        db.entries("log", 0, 1000).await.unwrap(),
        [entry(7, 3), entry(large, 1)]
    );
    assert_eq!(db.entries("nothing", 0, 1000).await.unwrap(), []);
    assert_eq!(
        db.extent("outbox").await.unwrap(),
        Extent {
            first: 1,
            last: 3,
            entries: 3,
            bytes: 15
        }
    );
    assert_eq!(
        db.extent("log").await.unwrap(),
        Extent {
            first: 7,
            last: large,
            entries: 2,
            bytes: 4
        }
    );
    assert_eq!(db.extent("nothing").await.unwrap(), Extent::default());
    db.commit().await.unwrap();
}

/// A number that is there already is an error, and changes nothing.
pub async fn a_number_is_appended_once<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    appended(&mut office_now, "outbox", &[entry(1, 10)]).await;
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    // It may be told later, and never too late.
    let appended = db.append("outbox", &[entry(2, 1), entry(1, 4)]).await;
    assert!(appended.is_err() || db.commit().await.is_err());
    db.rollback().await.unwrap();
    db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(db.entries("outbox", 1, 1000).await.unwrap(), [entry(1, 10)]);
    db.append("outbox", &[entry(2, 1)]).await.unwrap();
    db.commit().await.unwrap();
}

/// Memory is bounded, and reading always moves on.
pub async fn entries_come_up_to_a_size<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let entries: Vec<Entry> = (1..=20).map(|number| entry(number, 100)).collect();
    appended(&mut office_now, "outbox", &entries).await;
    let db = &mut office_now.db;
    db.begin(Purpose::Read).await.unwrap();
    for (max_bytes, at_least, at_most) in [
        (0, 1, 1),
        (1, 1, 1),
        (250, 2, 3),
        (2000, 20, 20),
        (usize::MAX, 20, 20),
    ] {
        let read = db.entries("outbox", 1, max_bytes).await.unwrap();
        assert!(
            (at_least..=at_most).contains(&read.len()),
            "{} entries for {max_bytes} bytes",
            read.len()
        );
        assert_eq!(read, entries[..read.len()]);
    }
    assert_eq!(numbers(&db.entries("outbox", 20, 1).await.unwrap()), [20]);
    db.commit().await.unwrap();
}

/// Trimming cuts at the low end, of one stream only.
pub async fn trimming_removes_the_oldest<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let entries: Vec<Entry> = (5..=9).map(|number| entry(number, 10)).collect();
    appended(&mut office_now, "outbox", &entries).await;
    appended(&mut office_now, "log", &entries).await;
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    db.trim("outbox", 6).await.unwrap();
    db.trim("outbox", 2).await.unwrap();
    assert_eq!(
        db.extent("outbox").await.unwrap(),
        Extent {
            first: 7,
            last: 9,
            entries: 3,
            bytes: 30
        }
    );
    assert_eq!(
        numbers(&db.entries("outbox", 1, 1000).await.unwrap()),
        [7, 8, 9]
    );
    db.trim("outbox", u64::try_from(i64::MAX).unwrap())
        .await
        .unwrap();
    assert_eq!(db.extent("outbox").await.unwrap(), Extent::default());
    assert_eq!(db.extent("log").await.unwrap().entries, 5);
    db.commit().await.unwrap();
}

/// Notes are kept by table and key, and need no row.
pub async fn notes_belong_to_rows<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let (staff, stock, lines) = (
        office_now.table(STAFF),
        office_now.table(STOCK),
        office_now.table(LINES),
    );
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    db.set_notes(&staff, &[(id(1), Some(vec![1])), (id(2), Some(vec![]))])
        .await
        .unwrap();
    db.set_notes(
        &lines,
        &[
            (line_key(1, 2), Some(vec![3])),
            (line_key(12, 0), Some(vec![4])),
        ],
    )
    .await
    .unwrap();
    db.set_notes(&stock, &[(sku("1"), Some(vec![5]))])
        .await
        .unwrap();
    db.set_notes(
        &staff,
        &[
            (id(1), Some(vec![9])),
            (id(3), Some(vec![7])),
            (id(4), None),
        ],
    )
    .await
    .unwrap();
    db.commit().await.unwrap();
    db.begin(Purpose::Apply).await.unwrap();
    let all = db.notes(&staff, None).await.unwrap();
    assert_eq!(
        all.into_iter().collect::<Vec<_>>(),
        [(id(1), vec![9]), (id(2), vec![]), (id(3), vec![7])]
    );
    let some = db
        .notes(&lines, Some(&[line_key(1, 2), line_key(1, 20)]))
        .await
        .unwrap();
    assert_eq!(
        some.into_iter().collect::<Vec<_>>(),
        [(line_key(1, 2), vec![3])]
    );
    assert_eq!(
        db.notes(&stock, None)
            .await
            .unwrap()
            .into_keys()
            .collect::<Vec<_>>(),
        [sku("1")]
    );
    db.set_notes(&staff, &[(id(1), None), (id(3), None)])
        .await
        .unwrap();
    assert_eq!(
        db.notes(&staff, None)
            .await
            .unwrap()
            .into_keys()
            .collect::<Vec<_>>(),
        [id(2)]
    );
    assert!(db.notes(&staff, Some(&[])).await.unwrap().is_empty());
    db.commit().await.unwrap();
}

/// Does one thing of every kind in the open transaction.
async fn all_kinds<O: Office>(office_now: &mut Ready<O>) {
    let (schema, stock) = (office_now.schema.clone(), office_now.table(STOCK));
    let db = &mut office_now.db;
    db.write(&schema, &[put(STOCK, item("nail", 1))])
        .await
        .unwrap();
    db.set_meta("cursor", Some(&[1])).await.unwrap();
    db.append("outbox", &[entry(1, 1)]).await.unwrap();
    db.set_notes(&stock, &[(sku("nail"), Some(vec![1]))])
        .await
        .unwrap();
    db.recapture(&stock, Some(&[sku("nail")])).await.unwrap();
}

/// How many of the five kinds are there.
async fn kinds_there<O: Office>(office_now: &mut Ready<O>) -> usize {
    let stock = office_now.table(STOCK);
    let db = &mut office_now.db;
    db.begin(Purpose::Apply).await.unwrap();
    let there = [
        !db.chunk(&stock, None, 1).await.unwrap().is_empty(),
        db.meta("cursor").await.unwrap().is_some(),
        db.extent("outbox").await.unwrap().entries > 0,
        !db.notes(&stock, None).await.unwrap().is_empty(),
        !db.captured(&stock, None).await.unwrap().is_empty(),
    ];
    db.rollback().await.unwrap();
    there.into_iter().filter(|there| *there).count()
}

/// One commit moves rows, books and capture together (P2); a rollback moves none.
pub async fn rows_and_books_commit_together<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now.db.begin(Purpose::Apply).await.unwrap();
    all_kinds(&mut office_now).await;
    office_now.db.rollback().await.unwrap();
    office_now.db.rollback().await.unwrap();
    assert_eq!(kinds_there(&mut office_now).await, 0);
    office_now.db.begin(Purpose::Apply).await.unwrap();
    all_kinds(&mut office_now).await;
    office_now.db.commit().await.unwrap();
    office_now.db = office.open().await;
    assert_eq!(kinds_there(&mut office_now).await, 5);
}

/// A process that dies before its commit leaves nothing.
pub async fn a_dropped_handle_undoes_all<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now.db.begin(Purpose::Apply).await.unwrap();
    all_kinds(&mut office_now).await;
    let next = office.open().await;
    drop(std::mem::replace(&mut office_now.db, next));
    assert_eq!(kinds_there(&mut office_now).await, 0);
}

/// A transaction whose future was dropped midway is undone by the next.
pub async fn a_new_transaction_undoes_one_left_open<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    office_now.db.begin(Purpose::Apply).await.unwrap();
    all_kinds(&mut office_now).await;
    assert_eq!(kinds_there(&mut office_now).await, 0);
}
