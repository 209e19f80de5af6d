//! The row before a change, and rows that cannot be read.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, First, Portion, Purpose, Taken};
use branchline_core::schema::{ConflictRule, Counter};
use branchline_core::value::Value;

use super::office::{Shop, client, int, row, shop};

const NAMED: &str = "CREATE TABLE t (id bigint PRIMARY KEY, name text)";

/// A shop whose tables are merged.
async fn merged(sql: &str) -> Shop {
    let mut shop = shop(sql).await;
    for table in &mut shop.schema.tables {
        table.conflict = ConflictRule::Merge;
    }
    shop.db.install(&shop.schema).await.unwrap();
    shop
}

fn gist(taken: &[Taken]) -> Vec<(Effect, First, Option<Row>)> {
    let one = |t: &Taken| (t.effect.clone(), t.first, t.before.clone());
    taken.iter().map(one).collect()
}

/// The first row of a table, as every other reader gets it.
async fn read_first(shop: &mut Shop, table: &str) -> Row {
    let table = shop.table(table);
    shop.db.begin(Purpose::Read).await.unwrap();
    let rows = shop.db.chunk(&table, None, 1).await.unwrap();
    shop.db.rollback().await.unwrap();
    rows[0].clone()
}

#[tokio::test]
async fn a_merged_row_comes_with_what_it_was_at_its_first_write() {
    let mut shop = merged(NAMED).await;
    shop.sql("INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, 'c')")
        .await;
    assert!(shop.taken().await.iter().all(|t| t.before.is_none()));
    shop.sql("UPDATE t SET name = 'b'; INSERT INTO t VALUES (4, 'new')")
        .await;
    shop.sql("UPDATE t SET name = 'again' WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET name = 'e' WHERE id = 4")
        .await;
    let expected = [
        (
            Effect::Put(row(1, "again")),
            First::Existing,
            Some(row(1, "a")),
        ),
        (
            Effect::Delete(int(2)),
            First::Existing,
            Some(Row(vec![Value::Int(2), Value::Null])),
        ),
        (Effect::Put(row(3, "b")), First::Existing, Some(row(3, "c"))),
        (Effect::Put(row(4, "e")), First::Inserted, None),
    ];
    assert_eq!(gist(&shop.taken().await), expected);
}

#[tokio::test]
async fn a_changed_key_leaves_the_old_row_behind_and_begins_a_new_one() {
    for sql in [
        NAMED,
        "CREATE TABLE t (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (5);
         CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (5) TO (100)",
    ] {
        let mut shop = merged(sql).await;
        shop.sql("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
        shop.taken().await;
        shop.sql("UPDATE t SET id = 10, name = 'moved' WHERE id = 1")
            .await;
        shop.sql("UPDATE t SET name = 'later' WHERE id = 10; UPDATE t SET id = 3 WHERE id = 2")
            .await;
        let expected = [
            (Effect::Delete(int(1)), First::Existing, Some(row(1, "a"))),
            (Effect::Put(row(10, "later")), First::Inserted, None),
            (Effect::Delete(int(2)), First::Existing, Some(row(2, "b"))),
            (Effect::Put(row(3, "b")), First::Inserted, None),
        ];
        assert_eq!(gist(&shop.taken().await), expected, "{sql}");
        shop.sql("TRUNCATE t").await;
        let taken = gist(&shop.taken().await);
        assert!(
            taken.contains(&(
                Effect::Delete(int(10)),
                First::Existing,
                Some(row(10, "later"))
            )),
            "{sql}: {taken:?}"
        );
    }
}

#[tokio::test]
async fn rows_that_swap_their_keys_are_both_known_as_they_were() {
    let mut shop = merged(NAMED).await;
    shop.sql("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    shop.taken().await;
    shop.sql(
        "BEGIN; UPDATE t SET id = 9 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2;
         UPDATE t SET id = 2 WHERE id = 9; COMMIT",
    )
    .await;
    let expected = [
        (Effect::Put(row(1, "b")), First::Existing, Some(row(1, "a"))),
        (Effect::Delete(int(9)), First::Inserted, None),
        (Effect::Put(row(2, "a")), First::Existing, Some(row(2, "b"))),
    ];
    assert_eq!(gist(&shop.taken().await), expected);
}

#[tokio::test]
async fn the_row_before_comes_with_every_way_of_taking() {
    let mut shop = merged(NAMED).await;
    shop.sql("INSERT INTO t SELECT n, 'old ' || n FROM generate_series(1, 600) n")
        .await;
    shop.taken().await;
    for id in 1..=30 {
        shop.sql(&format!("UPDATE t SET name = 'new' WHERE id = {id}"))
            .await;
    }
    shop.sql("UPDATE t SET name = 'new' WHERE id > 30").await;
    shop.sql("UPDATE t SET name = 'newer' WHERE id > 300").await;
    let units = shop.units(10).await;
    let sizes: Vec<usize> = units.iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 10, 570], "walked, then staged");
    for taken in units.iter().flatten() {
        let Effect::Put(now) = &taken.effect else {
            panic!("{taken:?}")
        };
        let Value::Int(id) = now.0[0] else { panic!() };
        assert_eq!(taken.before, Some(row(id, &format!("old {id}"))));
    }
}

#[tokio::test]
async fn what_is_captured_again_is_not_known_as_it_was() {
    let mut shop = merged(NAMED).await;
    shop.sql("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        .await;
    shop.taken().await;
    shop.sql("UPDATE t SET name = 'x' WHERE id = 3").await;
    let table = shop.table("t");
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.recapture(&table, None).await.unwrap();
    shop.db.commit().await.unwrap();
    shop.sql("UPDATE t SET name = 'y'").await;
    let befores: Vec<_> = shop
        .taken()
        .await
        .iter()
        .map(|t| (t.effect.key(&table), t.first, t.before.clone()))
        .collect();
    let expected = [
        (int(3), First::Existing, Some(row(3, "c"))),
        (int(1), First::Unknown, None),
        (int(2), First::Unknown, None),
    ];
    assert_eq!(befores, expected);
}

#[tokio::test]
async fn every_value_was_exactly_what_a_reader_would_have_read() {
    let mut shop = merged(
        "CREATE TYPE mood AS ENUM ('so so', 'fine');
         CREATE DOMAIN cents AS numeric(12,2);
         CREATE TABLE v (id bigint PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric,
             c cents, t text, vc varchar(9), ch char(5), by bytea, d date, tm time, tz timetz, ts timestamp,
             tsz timestamptz, iv interval, u uuid, j json, jb jsonb, m mood, ia int[], ta text[], tsa timestamptz[],
             \"we\"\"ird $capture$ %s\" text, found text, o text, missing text, tg_op text)",
    )
    .await;
    shop.sql(
        r#"INSERT INTO v VALUES (1, true, -32768, 2147483647, -9223372036854775808, 1e-45, 0.1, 1.500, 2.5, 'it''s \ "x"', 'é',
             'ab', '\x00ff5c', '0044-03-15 BC', '23:59:59.999999', '12:00:00.5+05:30', 'infinity',
             '2024-01-02 03:04:05.5+09', '1 mon -2 days 03:04:05.6', '6F9619FF-8B86-D011-B42D-00CF4FC964FF',
             '{"a" : 1,  "b":null}', 'null', 'so so', '[0:1]={1,NULL}', '{"a,b","\"",NULL,""}',
             '{"2024-01-02 03:04:05+09"}', '$capture$ %s', 'f', 'o', 'm', ''),
           (2, NULL, NULL, NULL, NULL, 'NaN', '-Infinity', 'NaN', NULL, NULL, NULL, NULL, NULL, 'infinity', NULL, NULL,
             NULL, NULL, NULL, NULL, 'null', NULL, NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
           (3, false, 0, 0, 0, '-0', 16777216, 1e20, 0, '', '', '', '', '2024-02-29', '24:00', '00:00+00', '0001-01-01 BC',
             '-infinity', '0', NULL, '[]', '{}', 'fine', '{{1,2},{3,4}}', '{}', '{}', '', '', '', '', 'x')"#,
    )
    .await;
    shop.taken().await;
    let odd = client(&shop.url).await;
    odd.batch_execute(
        "SET datestyle TO 'German'; SET timezone TO 'Asia/Kolkata'; SET extra_float_digits TO -5;
         SET bytea_output TO 'escape'; SET intervalstyle TO 'sql_standard'; SET search_path TO pg_temp",
    )
    .await
    .unwrap();
    for id in 1..=3 {
        let was = read_first(&mut shop, "v").await;
        odd.batch_execute(&format!("DELETE FROM public.v WHERE id = {id}"))
            .await
            .unwrap();
        let taken = shop.taken().await;
        assert_eq!(taken[0].before, Some(was));
    }
    shop.sql("INSERT INTO v (id, f4) VALUES (4, 0.1)").await;
    shop.taken().await;
    let was = read_first(&mut shop, "v").await;
    odd.batch_execute("TRUNCATE public.v").await.unwrap();
    assert_eq!(shop.taken().await[0].before, Some(was));
}

#[tokio::test]
async fn other_tables_keep_no_old_rows_and_a_new_rule_changes_that_both_ways() {
    let mut shop = shop(NAMED).await;
    let kept = "SELECT count(*) FILTER (WHERE old IS NOT NULL), count(*) FROM branchline.capture";
    let counts = |row: tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, i64>(1));
    shop.sql("INSERT INTO t VALUES (1, 'a'); UPDATE t SET name = 'b'")
        .await;
    assert_eq!(counts(shop.app.query_one(kept, &[]).await.unwrap()), (0, 2));
    shop.schema.tables[0].counters = vec![Counter {
        column: 0,
        floor: None,
    }];
    let id = shop.schema.tables[0].id;
    let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
    assert_eq!(missing, [id]);
    shop.db.install(&shop.schema).await.unwrap();
    shop.sql("UPDATE t SET name = 'c'").await;
    assert_eq!(counts(shop.app.query_one(kept, &[]).await.unwrap()), (1, 3));
    // Its first write is an insert; and that of a row written before the rule came has no image.
    assert_eq!(shop.taken().await[0].before, None);
    shop.schema.tables[0].counters.clear();
    shop.db.install(&shop.schema).await.unwrap();
    shop.sql("UPDATE t SET name = 'd'").await;
    assert_eq!(counts(shop.app.query_one(kept, &[]).await.unwrap()), (0, 1));
    assert_eq!(shop.taken().await[0].before, None);
}

#[tokio::test]
async fn columns_that_come_and_go_stop_no_write() {
    for sql in [
        "CREATE TABLE t (id bigint PRIMARY KEY, name text, n int)",
        "CREATE TABLE t (id bigint PRIMARY KEY, name text, n int) PARTITION BY RANGE (id);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)",
    ] {
        let mut shop = merged(sql).await;
        shop.sql("INSERT INTO t VALUES (1, 'a', 7), (2, 'b', 7)")
            .await;
        shop.taken().await;
        shop.sql("UPDATE t SET name = 'x' WHERE id = 1; ALTER TABLE t DROP COLUMN name; ALTER TABLE t ADD COLUMN extra int")
            .await;
        // The same session, whose plans are older than the table.
        shop.sql("UPDATE t SET n = 8; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, 9, 10)")
            .await;
        shop.sql("TRUNCATE t; INSERT INTO t VALUES (1, 8, 10)")
            .await;
        shop.sql("ALTER TABLE t ALTER COLUMN n TYPE text; UPDATE t SET n = 'y'")
            .await;
        // The plan follows: the column that came later was NULL in the rows written before.
        let found = shop.db.inspect().await.unwrap().tables.remove(0);
        let table = &mut shop.schema.tables[0];
        table.columns = found.columns;
        shop.db.install(&shop.schema).await.unwrap();
        let taken = shop.taken().await;
        let text = |t: &str| Value::Text(t.into());
        assert_eq!(
            taken[0].before,
            Some(Row(vec![Value::Int(1), text("7"), Value::Null])),
            "{sql}"
        );
    }
}

async fn portion(shop: &mut Shop) -> Portion {
    shop.db.begin(Purpose::Take).await.unwrap();
    let portion = shop.db.take(&shop.schema, 100).await;
    match portion {
        Ok(portion) => {
            shop.db.commit().await.unwrap();
            portion
        }
        // The first read after a column was retyped finds out.
        Err(_) => {
            shop.db.begin(Purpose::Take).await.unwrap();
            let portion = shop.db.take(&shop.schema, 100).await.unwrap();
            shop.db.commit().await.unwrap();
            portion
        }
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_does_not_stop_the_others() {
    for retyped in ["text", "bigint", "numeric"] {
        let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, n int, f real, b bool)").await;
        shop.sql("INSERT INTO t VALUES (1, 1, 1, true)").await;
        shop.taken().await;
        let bad = if retyped == "text" {
            "'seven'"
        } else {
            "5000000000"
        };
        shop.sql(&format!(
            "ALTER TABLE t ALTER COLUMN n TYPE {retyped}; ALTER TABLE t ALTER COLUMN f TYPE float8;
             ALTER TABLE t ALTER COLUMN b TYPE text;
             INSERT INTO t VALUES (2, {bad}, 2, 'true'), (3, 3, 0.1, 'f'), (4, 4, 4, 'maybe'), (5, NULL, NULL, NULL);
             UPDATE t SET f = 1.5 WHERE id = 1"
        ))
        .await;
        let portion = portion(&mut shop).await;
        let mut good: Vec<_> = portion
            .changes
            .iter()
            .map(|t| t.effect.row().unwrap().0.clone())
            .collect();
        good.sort();
        let expected = [
            vec![
                Value::Int(1),
                Value::Int(1),
                Value::Float(1.5),
                Value::Bool(true),
            ],
            vec![
                Value::Int(3),
                Value::Int(3),
                Value::Float(0.1),
                Value::Bool(false),
            ],
            vec![Value::Int(5), Value::Null, Value::Null, Value::Null],
        ];
        assert_eq!(good, expected, "{retyped}: {portion:?}");
        let bad: Vec<_> = portion.unreadable.iter().map(|u| &u.key).collect();
        assert_eq!(bad, [&int(2), &int(4)], "{portion:?}");
        assert!(
            portion.unreadable[0].problem.contains("column `n` holds"),
            "{portion:?}"
        );
        assert_eq!(shop.taken().await, []);
        shop.sql("UPDATE t SET n = 2::text::int WHERE id = 2").await;
        assert_eq!(shop.taken().await.len(), 1, "mended, it is captured anew");
    }
}

#[tokio::test]
async fn a_broken_captured_key_does_not_stop_the_others() {
    let mut shop = shop(NAMED).await;
    shop.sql(
        "INSERT INTO t VALUES (1, 'a');
         INSERT INTO branchline.capture (tbl, op, at, tx, key)
         SELECT tbl, op, at, tx, ARRAY['x'] FROM branchline.capture",
    )
    .await;
    let portion = portion(&mut shop).await;
    assert_eq!(portion.changes.len(), 1);
    assert_eq!(portion.unreadable.len(), 1);
    assert_eq!(shop.taken().await, []);
}
