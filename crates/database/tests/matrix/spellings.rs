//! Whatever PostgreSQL writes is a value to the core, and in its one spelling it is the same value to PostgreSQL.

use branchline_core::value::{Type, Value, canonical, is_spelled};

use super::place::{Engine, Place};

/// Types with an expression whose every evaluation is another value.
fn random() -> Vec<(Type, &'static str, &'static str)> {
    let decimal = || Type::Decimal { limits: None };
    let text = || Type::Text { max: None };
    let array = |of| Type::Array(Box::new(of));
    vec![
        (
            Type::Date,
            "date",
            "date '4714-11-24 BC' + (random() * 2e6)::int",
        ),
        (
            Type::Date,
            "date",
            "date '2000-01-01' + (random() * 2145031948)::int",
        ),
        (
            Type::Time,
            "time",
            "time '00:00' + random() * interval '1 day'",
        ),
        (
            Type::TimeTz,
            "timetz",
            "(time '00:00' + random() * interval '1 day')::text::timetz AT TIME ZONE (((random() * 50000)::int - 25000) * interval '1 second')",
        ),
        (
            Type::Timestamp,
            "timestamp",
            "timestamp '4713-01-01 BC' + random() * interval '3000000 days'",
        ),
        (
            Type::TimestampTz,
            "timestamptz",
            "timestamptz '0044-01-01 BC' + random() * interval '30000000 days'",
        ),
        (
            Type::Interval,
            "interval",
            "make_interval(months => (random() * 60 - 30)::int, days => (random() * 10 - 5)::int, secs => (random() * 200000 - 100000)::numeric(20,3)::float8)",
        ),
        (
            Type::Interval,
            "interval",
            "make_interval(years => (random() * 3 - 1)::int, days => (random() * 4 - 2)::int, hours => (random() * 4 - 2)::int)",
        ),
        (
            decimal(),
            "numeric",
            "(random() - 0.5)::numeric * 10::numeric ^ (random() * 60 - 30)::int",
        ),
        (
            decimal(),
            "numeric",
            "((random() - 0.5) * 1e9)::numeric(20, 4)",
        ),
        (Type::Uuid, "uuid", "md5(random()::text)::uuid"),
        (
            Type::Inet,
            "inet",
            "('10.' || (random() * 255)::int || '.0.1/' || (8 + random() * 24)::int)::inet",
        ),
        (
            Type::Inet,
            "inet",
            "('2001:db8:' || to_hex((random() * 65535)::int) || '::' || to_hex((random() * 65535)::int))::inet",
        ),
        (
            Type::Jsonb,
            "jsonb",
            "jsonb_build_object('b', random(), chr((random() * 500)::int + 1), array[(random() * 1e20)::numeric, null], 'a', md5(random()::text))",
        ),
        (
            array(text()),
            "text[]",
            "array[chr((random() * 200)::int + 1), null, md5(random()::text), chr((random() * 60)::int + 32) || '\"', '']",
        ),
        (
            array(Type::Float64),
            "float8[]",
            "array[random() * 10::float8 ^ (random() * 80 - 40)::int, random()]",
        ),
        (
            array(Type::Float32),
            "float4[]",
            "array[(random() * 10::float8 ^ (random() * 40 - 20)::int)::float4]",
        ),
        (
            array(decimal()),
            "numeric[]",
            "array[array[random()::numeric, null], array[1.50, (random() * 1e6)::numeric]]",
        ),
        (
            array(Type::Timestamp),
            "timestamp[]",
            "array[timestamp '0001-01-01' + random() * interval '900000 days', 'infinity']",
        ),
        (array(Type::Bool), "bool[]", "array[random() < 0.5, null]"),
        (
            array(Type::Bytes),
            "bytea[]",
            "array[decode(md5(random()::text), 'hex')]",
        ),
        (
            array(Type::Jsonb),
            "jsonb[]",
            "array[jsonb_build_object('x', random())]",
        ),
        (
            array(Type::Interval),
            "interval[]",
            "array[make_interval(days => (random() * 10 - 5)::int, mins => (random() * 3000 - 1500)::int)]",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_writes_has_one_spelling_that_it_reads_as_the_same() {
    let office = Place::new(Engine::Postgres).await;
    for (kind, declared, expression) in random() {
        let texts = format!(
            "SET timezone = 'UTC'; CREATE TABLE t (a {declared}, b {declared}); INSERT INTO t SELECT v, v FROM (SELECT {expression} AS v FROM generate_series(1, 500)) AS s"
        );
        office.sql(&texts).await;
        let found = office.see("SELECT a::text FROM t").await;
        let mut changed = String::new();
        for text in found.into_iter().flatten() {
            assert!(is_spelled(&kind, &text), "{kind}: {text}");
            let value = Value::Text(text.clone());
            let one = canonical(&kind, &value).into_owned();
            assert_eq!(*canonical(&kind, &one), one, "{kind}: {text}");
            let Value::Text(one) = one else {
                panic!("{kind}: {text} has a text")
            };
            let [text, one] = [text, one].map(|text| text.replace('\'', "''"));
            changed.push_str(&format!(
                "UPDATE t SET b = E'{}' WHERE a = E'{}';",
                one.replace('\\', "\\\\"),
                text.replace('\\', "\\\\")
            ));
        }
        office
            .sql(&format!("SET timezone = 'UTC'; {changed}"))
            .await;
        let other = office.see("SELECT a::text || ' became ' || b::text FROM t WHERE a <> b OR (a IS NULL) <> (b IS NULL)").await;
        assert!(
            other.is_empty(),
            "{kind}: {:?}",
            &other[..other.len().min(5)]
        );
        office.sql("DROP TABLE t").await;
    }
}
