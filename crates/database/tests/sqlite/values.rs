//! Values as they are stored.

use branchline_core::change::{Effect, Row};
use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_core::schema::Schema;
use branchline_core::value::{Type, Value};
use branchline_database::sqlite::SqliteDatabase;
use tempfile::TempDir;

use super::office::{Office, column, plain, text};

fn extremes() -> Vec<(&'static str, Type, Vec<Value>)> {
    let planes: String = [
        0x1, 0x7f, 0x80, 0x7ff, 0xffff, 0x10000, 0x1f600, 0x2_0000, 0x3_0000, 0xe_0001, 0x10_ffff,
    ]
    .into_iter()
    .filter_map(char::from_u32)
    .collect();
    let ints = |values: &[i64]| values.iter().copied().map(Value::Int).collect();
    let floats = |values: &[f64]| values.iter().copied().map(Value::Float).collect();
    let texts = |values: &[&str]| values.iter().copied().map(text).collect();
    vec![
        (
            "truth",
            Type::Bool,
            vec![Value::Bool(true), Value::Bool(false)],
        ),
        (
            "small",
            Type::Int16,
            ints(&[i16::MIN.into(), i16::MAX.into()]),
        ),
        (
            "medium",
            Type::Int32,
            ints(&[i32::MIN.into(), i32::MAX.into()]),
        ),
        ("large", Type::Int64, ints(&[i64::MIN, i64::MAX, 0])),
        (
            "single",
            Type::Float32,
            floats(&[f64::from(f32::MAX), f64::NAN, f64::INFINITY]),
        ),
        (
            "double",
            Type::Float64,
            floats(&[
                f64::MIN,
                f64::MAX,
                5e-324,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                2.0,
            ]),
        ),
        (
            "exact",
            Type::Decimal { limits: None },
            texts(&[
                "1234567890123456789012345678901234567890",
                "-0.0000000000000000000000000000000000000001",
                "1.50",
                "NaN",
            ]),
        ),
        (
            "limited",
            Type::Decimal {
                limits: Some((40, 2)),
            },
            texts(&["99999999999999999999999999999999999999.99", "7.00"]),
        ),
        (
            "words",
            Type::Text { max: None },
            vec![
                text(&planes),
                text(""),
                text("007"),
                text("1e5"),
                text("a\0b"),
                text("'\""),
            ],
        ),
        ("short", Type::Text { max: Some(3) }, texts(&["€€€", " 1 "])),
        ("fixed", Type::Char { length: 4 }, texts(&["ab", "0012"])),
        (
            "raw",
            Type::Bytes,
            vec![Value::Bytes((0..=255).collect()), Value::Bytes(vec![])],
        ),
        (
            "day",
            Type::Date,
            texts(&["infinity", "-infinity", "0044-03-15 BC", "99999-12-31"]),
        ),
        ("time", Type::Time, texts(&["24:00:00", "00:00:00.000001"])),
        ("timetz", Type::TimeTz, texts(&["23:59:59.999999+15:59"])),
        (
            "moment",
            Type::Timestamp,
            texts(&["infinity", "2024-01-02 03:04:05.123456"]),
        ),
        (
            "instant",
            Type::TimestampTz,
            texts(&["2024-01-02 03:04:05.1+00"]),
        ),
        (
            "span",
            Type::Interval,
            texts(&["1 year 2 mons -3 days +04:05:06.7"]),
        ),
        (
            "unique id",
            Type::Uuid,
            texts(&["00000000-0000-0000-0000-0000000000e5"]),
        ),
        ("json", Type::Json, texts(&["1.50", "123", "{\"a\" : 1}"])),
        ("jsonb", Type::Jsonb, texts(&["1e2", "null"])),
        (
            "colour \"of\" it",
            Type::Enum {
                name: "colour".into(),
                labels: vec!["red".into(), "it's".into(), "5".into()],
            },
            texts(&["red", "it's", "5"]),
        ),
        (
            "many",
            Type::Array(Box::new(Type::Int32)),
            texts(&["{1,2}", "{}"]),
        ),
    ]
}

#[tokio::test]
async fn values_at_the_extremes_come_back_as_they_went_in() {
    let extremes = extremes();
    let mut columns = vec![column("id", Type::Int64, false)];
    columns.extend(
        extremes
            .iter()
            .map(|(name, kind, _)| column(name, kind.clone(), true)),
    );
    let table = plain(1, "every \"type\"", columns);
    let schema = Schema {
        version: 1,
        tables_ever: 0,
        tables: vec![table.clone()],
    };
    let directory = TempDir::new().unwrap();
    let address = format!("sqlite:{}", directory.path().join("new.db").display());
    assert!(matches!(
        SqliteDatabase::open(&address, false),
        Err(DatabaseError::Unreachable(_))
    ));
    let mut ours = SqliteDatabase::open(&address, true).unwrap();
    ours.prepare().await.unwrap();
    assert_eq!(
        ours.create_tables(&schema).await.unwrap(),
        ["every \"type\""]
    );
    assert!(ours.create_tables(&schema).await.unwrap().is_empty());
    ours.install(&schema).await.unwrap();
    let most = extremes
        .iter()
        .map(|(_, _, values)| values.len())
        .max()
        .unwrap();
    let mut rows = vec![];
    for at in 0..=most {
        let value = |values: &Vec<Value>| values.get(at).cloned().unwrap_or(Value::Null);
        let id = if at == 0 { i64::MIN } else { at as i64 };
        rows.push(Row(std::iter::once(Value::Int(id))
            .chain(extremes.iter().map(|(_, _, v)| value(v)))
            .collect()));
    }
    let effects: Vec<_> = rows
        .iter()
        .map(|row| (1, Effect::Put(row.clone())))
        .collect();
    ours.begin(Purpose::Apply).await.unwrap();
    ours.write(&schema, &effects).await.unwrap();
    ours.commit().await.unwrap();
    let same = |found: &Row, wanted: &Row| {
        for ((found, wanted), column) in found.0.iter().zip(&wanted.0).zip(&table.columns) {
            let nan = |value: &Value| matches!(value, Value::Float(f) if f.is_nan());
            assert!(
                found == wanted || (nan(found) && nan(wanted)),
                "{}: {found:?} {wanted:?}",
                column.name
            );
        }
    };
    let found = ours.chunk(&table, None, 100).await.unwrap();
    assert_eq!(found.len(), rows.len());
    found
        .iter()
        .zip(&rows)
        .for_each(|(found, wanted)| same(found, wanted));
    let after = table.key_of(&rows[1]);
    assert_eq!(ours.chunk(&table, Some(&after), 2).await.unwrap().len(), 2);
    let keys: Vec<_> = rows.iter().map(|row| table.key_of(row)).collect();
    let read = ours.read(&table, &keys).await.unwrap();
    rows.iter()
        .for_each(|row| same(&read[&table.key_of(row)], row));

    let inspected = ours.inspect().await.unwrap();
    assert!(
        inspected.findings.iter().all(|finding| !finding.fatal),
        "{:?}",
        inspected.findings
    );
    let again = &inspected.tables[0];
    assert!(again.columns[0].generated_key);
    for (found, planned) in again.columns.iter().zip(&table.columns) {
        assert!(
            branchline_database::sqlite::compatible(&planned.kind, &found.kind),
            "{}",
            planned.name
        );
        assert_eq!(found.name, planned.name);
    }
}

/// A column declared `JSON` has NUMERIC affinity: what is nothing but a number becomes one, and a long one is rounded.
#[tokio::test]
async fn a_number_alone_is_not_rounded_in_a_json_column() {
    let mut office =
        Office::new("CREATE TABLE d (id INTEGER PRIMARY KEY, a JSON, b JSONB, c JSON_TEXT)").await;
    let id = office.id("d");
    let row = |a: &str, b: &str, c: &str| {
        Effect::Put(Row(vec![Value::Int(1), text(a), text(b), text(c)]))
    };
    for number in [
        "12345678901234567890",
        " 12345678901234567890 ",
        "-0.1234567890123456",
        "1e400",
        "1e-400",
        "123456789012345e-330",
    ] {
        for effect in [row(number, "1", "1"), row("1", number, "1")] {
            let refused = office.apply(&[(id, effect)]).await;
            assert!(
                matches!(&refused, Err(DatabaseError::Mismatch { message, .. }) if message.contains("15 digits")),
                "{number}: {refused:?}"
            );
        }
    }
    let long = "12345678901234567890";
    let nested = format!("[{long}]");
    for kept in [
        "9223372036854775807",
        "-9223372036854775808",
        "1.50",
        "1e300",
        "0",
        "-0.0",
        "1e20",
        "-0.00123456789012345",
        "null",
        "\"1\"",
        &nested,
    ] {
        let effect = row(kept, kept, long);
        office.apply(&[(id, effect.clone())]).await.unwrap();
        let table = office.table("d");
        let found = office.ours.chunk(&table, None, 10).await.unwrap();
        let Effect::Put(sent) = effect else { continue };
        for ((found, sent), column) in found[0].0.iter().zip(&sent.0).zip(&table.columns) {
            let canonical = |value| branchline_core::value::canonical(&column.kind, value);
            assert_eq!(canonical(found), canonical(sent), "{kept}");
        }
    }
}
