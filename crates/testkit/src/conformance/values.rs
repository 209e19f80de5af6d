//! Values of every type, there and back (P7).

use branchline_core::change::Row;
use branchline_core::port::DatabaseError;
use branchline_core::value::{Type, Value};

use super::sample::{WIDE, kinds, put, text};
use super::{Office, Op, Ready, folded, ready};

fn texts(texts: &[&str]) -> Vec<Value> {
    texts.iter().map(|one| text(*one)).collect()
}

/// Values that every office can hold.
fn ordinary(kind: &Type) -> Vec<Value> {
    match kind {
        Type::Bool => vec![Value::Bool(true), Value::Bool(false)],
        Type::Int16 | Type::Int32 | Type::Int64 => {
            [0, 1, -1, 32_767, -32_768].map(Value::Int).into()
        }
        Type::Float32 | Type::Float64 => [0.0, 1.5, -0.25, 1024.0].map(Value::Float).into(),
        Type::Decimal { .. } => texts(&["0", "1", "-1.5", "100", "0.01", "123456789.12"]),
        Type::Text { .. } => texts(&["a", "", " b ", "it's", "é漢🦀"]),
        Type::Char { .. } => texts(&["ab", "abcd", "漢"]),
        Type::Bytes => vec![Value::Bytes(vec![]), Value::Bytes((0..=255).collect())],
        Type::Date => texts(&["2024-02-29", "1970-01-01"]),
        Type::Time => texts(&["00:00:00", "23:59:59.999999", "12:30:00.5"]),
        Type::TimeTz => texts(&["12:34:56+00", "12:34:56.789+05:30"]),
        Type::Timestamp => texts(&["2024-01-02 03:04:05", "2024-01-02 03:04:05.678901"]),
        Type::TimestampTz => texts(&["2024-01-02 03:04:05+00", "2024-07-02 03:04:05.678901+00"]),
        Type::Interval => texts(&["1 year 2 mons 3 days 04:05:06.789", "-1 days", "00:00:00"]),
        Type::Uuid => texts(&["018f3b2e-7c5a-7def-8123-456789abcdef"]),
        Type::Json | Type::Jsonb => texts(&[
            r#"{"b": 1, "a": [1.50, null, "é"]}"#,
            "null",
            "[]",
            r#""x""#,
        ]),
        Type::Inet => texts(&["10.0.0.1", "2001:db8::1"]),
        Type::Enum { labels, .. } => labels.iter().map(text).collect(),
        Type::Array(of) if **of == Type::Int32 => texts(&["{}", "{1,2,NULL}", "{{1,2},{3,4}}"]),
        Type::Array(_) => texts(&["{}", r#"{"a,b","c\"d",NULL,"NULL"}"#]),
    }
}

/// Values at the edges.
fn extreme(kind: &Type) -> Vec<Value> {
    match kind {
        Type::Int16 => [i16::MIN, i16::MAX]
            .map(|edge| Value::Int(edge.into()))
            .into(),
        Type::Int32 => [i32::MIN, i32::MAX]
            .map(|edge| Value::Int(edge.into()))
            .into(),
        Type::Int64 => [i64::MIN, i64::MAX, (1 << 53) + 1].map(Value::Int).into(),
        // Shortest decimals are their canonical form, not what a wider float makes of them.
        Type::Float32 => [
            f32::MAX,
            f32::MIN_POSITIVE,
            0.1,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ]
        .map(|edge| Value::Float(edge.to_string().parse().unwrap()))
        .into(),
        Type::Float64 => [
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
            0.1,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ]
        .map(Value::Float)
        .into(),
        Type::Decimal { limits: None } => texts(&[
            "123456789012345678901234567890123456789012.123456789012345678901234567890123456789012",
            "0.0000000000000000000000000000000001",
            "9007199254740993",
            "NaN",
        ]),
        Type::Decimal { limits: Some(_) } => texts(&["9999999999.99", "-9999999999.99"]),
        Type::Text { max: None } => {
            vec![
                text("x".repeat(200_000)),
                text("a\0b"),
                text("\\"),
                text("\r\n\t"),
                text("\u{202e}e\u{301}"),
                text("NULL"),
            ]
        }
        Type::Text { max: Some(_) } => texts(&["漢漢漢漢漢"]),
        Type::Char { .. } => texts(&["", "漢漢漢漢"]),
        Type::Bytes => vec![Value::Bytes(vec![0; 200_000])],
        Type::Date => texts(&[
            "0001-01-01",
            "9999-12-31",
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "12345-01-01",
        ]),
        Type::Time => texts(&["24:00:00"]),
        Type::TimeTz => texts(&["00:00:00+15:59:59", "24:00:00-15:59"]),
        Type::Timestamp => texts(&[
            "0001-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "infinity",
            "0044-03-15 12:00:00.1 BC",
        ]),
        Type::TimestampTz => texts(&[
            "0001-01-01 00:00:00+00",
            "294276-12-31 23:59:59.999999+00",
            "-infinity",
            "0044-03-15 12:00:00.1+00 BC",
            "1900-01-01 00:00:00+00",
        ]),
        Type::Interval => texts(&["178000000 years", "-1 mons +2 days -03:04:05.000006"]),
        Type::Uuid => texts(&[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ]),
        Type::Json | Type::Jsonb => texts(&[
            "123456789012345678901234567890.5",
            r#"{"deep": [[[[[[1]]]]]]}"#,
            r#""\u00e9""#,
        ]),
        Type::Inet => texts(&["0.0.0.0/0", "192.168.0.0/16", "::", "::ffff:1.2.3.4/100"]),
        Type::Bool | Type::Enum { .. } | Type::Array(_) => vec![],
    }
}

/// Rows that hold all these values, as many as the longest list; shorter columns are NULL below.
fn rows(values: impl Fn(&Type) -> Vec<Value>) -> Vec<Row> {
    let columns: Vec<Vec<Value>> = kinds().iter().map(values).collect();
    let longest = columns.iter().map(Vec::len).max().unwrap_or(0);
    let row = |at: usize| {
        let number = Value::Int(i64::try_from(at).unwrap());
        let cells = columns
            .iter()
            .map(|column| column.get(at).cloned().unwrap_or(Value::Null));
        Row(std::iter::once(number).chain(cells).collect())
    };
    // One more, which is all NULL.
    (0..=longest).map(row).collect()
}

/// Rows of `wide` that hold all values at the edges but those that the office refuses. The last is all NULL.
pub(super) fn extreme_rows<O: Office>(office: &O) -> Vec<Row> {
    rows(|kind| {
        extreme(kind)
            .into_iter()
            .filter(|value| !office.refuses(kind, value))
            .collect()
    })
}

async fn written_and_read<O: Office>(office_now: &mut Ready<O>, wanted: &[Row]) {
    let wide = office_now.table(WIDE);
    office_now
        .apply(
            &wanted
                .iter()
                .map(|row| put(WIDE, row.clone()))
                .collect::<Vec<_>>(),
        )
        .await;
    let found = office_now.rows(WIDE).await;
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        let wanted_folded = folded(&wide, wanted);
        for ((column, found), wanted) in wide.columns.iter().zip(&found.0).zip(&wanted_folded.0) {
            // By their order, in which NaN equals itself.
            assert!(
                found.cmp(wanted).is_eq(),
                "{found:?}, not {wanted:?}: a {} in `{}`",
                column.kind,
                column.name
            );
        }
        assert_eq!(found.digest(&wide), wanted.digest(&wide));
    }
}

/// Everyday values.
pub async fn ordinary_values_of_every_type_come_back_as_they_were<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    written_and_read(&mut office_now, &rows(ordinary)).await;
}

/// Values at the edges; what the office [refuses](Office::refuses), it names as a mismatch and stores nothing of.
pub async fn extreme_values_come_back_as_they_were_or_are_refused<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let wanted = extreme_rows(office);
    written_and_read(&mut office_now, &wanted).await;
    let blank = wanted.last().unwrap();
    for (at, kind) in kinds().iter().enumerate() {
        for value in extreme(kind)
            .into_iter()
            .filter(|value| office.refuses(kind, value))
        {
            let mut row = blank.clone();
            row.0[0] = Value::Int(1000);
            row.0[at + 1] = value.clone();
            match office_now.try_apply(&[put(WIDE, row)]).await {
                Err(DatabaseError::Mismatch { table, .. }) => assert_eq!(table, "wide"),
                other => panic!("{value:?} as {kind} is a mismatch, but: {other:?}"),
            }
        }
    }
    assert_eq!(office_now.rows(WIDE).await.len(), wanted.len());
    assert_eq!(office_now.backlog().await.writes, 0);
}

/// What the application wrote in its own way is taken in the same form as what was applied.
pub async fn what_the_application_wrote_is_taken_in_canonical_form<O: Office>(office: &O) {
    let mut office_now = ready(office).await;
    let wide = office_now.table(WIDE);
    let wanted = rows(ordinary);
    let ops: Vec<Op> = wanted
        .iter()
        .map(|row| Op::Insert(WIDE, row.clone()))
        .collect();
    office_now.local(&ops).await;
    let taken = office_now.take_all().await;
    assert_eq!(taken.len(), wanted.len());
    for (taken, wanted) in taken.iter().zip(&wanted) {
        assert_eq!(taken.effect.row(), Some(&folded(&wide, wanted)));
    }
}
