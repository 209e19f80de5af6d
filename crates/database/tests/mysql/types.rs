//! Types that only MariaDB has, and values at their edges.

use branchline_core::port::DatabaseError;
use branchline_core::value::{Type, Value, canonical};

use crate::shop::{put, shop, text, unshared};
use branchline_core::port::Database;
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;

#[tokio::test]
async fn declared_types_are_recognised_or_refused_with_a_reason() {
    let mysql = servers::mariadb().is_mysql();
    let mut cases = vec![
        ("TINYINT(1)", Some(Type::Bool)),
        ("BIT(1)", Some(Type::Bool)),
        ("TINYINT", Some(Type::Int16)),
        ("TINYINT UNSIGNED", Some(Type::Int16)),
        ("SMALLINT UNSIGNED", Some(Type::Int32)),
        ("MEDIUMINT UNSIGNED", Some(Type::Int32)),
        ("INT UNSIGNED", Some(Type::Int64)),
        (
            "BIGINT UNSIGNED",
            Some(Type::Decimal {
                limits: Some((20, 0)),
            }),
        ),
        ("YEAR", Some(Type::Int16)),
        ("BIT(12)", Some(Type::Int64)),
        (
            "DECIMAL(65,30)",
            Some(Type::Decimal {
                limits: Some((65, 30)),
            }),
        ),
        ("FLOAT", Some(Type::Float32)),
        ("TINYTEXT", Some(Type::Text { max: None })),
        ("JSON", Some(if mysql { Type::Jsonb } else { Type::Json })),
        ("BINARY(16)", Some(Type::Bytes)),
        ("TIMESTAMP(6) NULL", Some(Type::TimestampTz)),
        (
            "ENUM('a','b,''c')",
            Some(Type::Enum {
                name: String::new(),
                labels: vec!["a".into(), "b,'c".into()],
            }),
        ),
        ("FLOAT(7,2)", None),
        ("BIT(64)", None),
        ("SET('a','b')", None),
        ("POINT", None),
        ("GEOMETRY", None),
    ];
    if mysql {
        cases.push(("VECTOR(3)", None));
    } else {
        cases.extend([("UUID", Some(Type::Uuid)), ("INET6", None)]);
    }
    let tables: Vec<String> = cases
        .iter()
        .enumerate()
        .map(|(at, (declared, _))| format!("CREATE TABLE t{at} (id INT PRIMARY KEY, c {declared})"))
        .collect();
    let mut shop = unshared(&tables.join(";")).await;
    let found = shop.db.inspect().await.unwrap();
    for (at, (declared, kind)) in cases.iter().enumerate() {
        let name = format!("t{at}");
        let table = found.tables.iter().find(|table| table.name == name);
        assert_eq!(
            table.map(|table| &table.columns[1].kind),
            kind.as_ref(),
            "{declared}"
        );
        let fatal = found
            .findings
            .iter()
            .find(|f| f.fatal && f.table.as_ref() == Some(&name));
        assert_eq!(fatal.is_some(), kind.is_none(), "{declared}");
        assert!(fatal.is_none_or(|f| f.problem.contains("`c`") && !f.advice.is_empty()));
    }
}

#[tokio::test]
async fn values_at_the_edges_come_back_or_are_refused() {
    let tables = "CREATE TABLE t (id INT PRIMARY KEY, big BIGINT UNSIGNED, small TINYINT UNSIGNED, n DECIMAL(65,30), bits BIT(12),
        y YEAR, bin BINARY(3), short VARCHAR(3), latin VARCHAR(9) CHARACTER SET latin1, at DATETIME(2), tiny TINYTEXT)";
    let mut shop = shop(tables).await;
    let columns: Vec<String> = shop.schema.tables[0]
        .columns
        .iter()
        .map(|c| c.name.clone())
        .collect();
    let fits = [
        ("big", text("18446744073709551615")),
        ("small", Value::Int(255)),
        (
            "n",
            text("99999999999999999999999999999999999.999999999999999999999999999999"),
        ),
        ("n", text("-0.000000000000000000000000000001")),
        ("bits", Value::Int(4095)),
        ("y", Value::Int(2155)),
        ("bin", Value::Bytes(vec![1, 0, 0])),
        ("short", text("漢 ")),
        ("latin", text("Bär")),
        ("at", text("9999-12-31 23:59:59.99")),
        ("tiny", text(&"x".repeat(255))),
    ];
    let row = |id: i64, name: &str, value: &Value| {
        let mut row = vec![Value::Null; columns.len()];
        row[0] = Value::Int(id);
        row[columns.iter().position(|c| c == name).unwrap()] = value.clone();
        row
    };
    let rows: Vec<Vec<Value>> = (1..)
        .zip(&fits)
        .map(|(id, (name, value))| row(id, name, value))
        .collect();
    let effects: Vec<_> = rows.iter().map(|row| put(1, row.clone())).collect();
    shop.apply(&effects).await.unwrap();
    let found: Vec<Vec<Value>> = shop.rows("t").await.into_iter().map(|row| row.0).collect();
    assert_eq!(found, rows);
    let refused = [
        ("big", text("18446744073709551616")),
        ("big", text("-1")),
        ("big", text("1.5")),
        ("small", Value::Int(256)),
        ("small", Value::Int(-1)),
        ("n", text("0.0000000000000000000000000000001")),
        ("bits", Value::Int(4096)),
        ("y", Value::Int(1800)),
        ("bin", Value::Bytes(vec![1])),
        ("short", text("abc ")),
        ("latin", text("漢")),
        ("at", text("2024-01-02 03:04:05.123")),
        ("at", text("2024-02-30 00:00:00")),
        ("tiny", text(&"x".repeat(256))),
    ];
    for (name, value) in &refused {
        let result = shop.apply(&[put(1, row(99, name, value))]).await;
        assert!(
            matches!(result, Err(DatabaseError::Mismatch { .. })),
            "{name} {value:?}: {result:?}"
        );
        let result = shop.apply(&[put(1, row(1, name, value))]).await;
        assert!(
            matches!(result, Err(DatabaseError::Mismatch { .. })),
            "{name} {value:?}: {result:?}"
        );
    }
    assert_eq!(shop.rows("t").await.len(), rows.len());
}

/// Floats survive the text that they travel in.
#[tokio::test]
async fn floats_come_back_bit_by_bit() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY, d DOUBLE, f FLOAT)").await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let rows: Vec<Vec<Value>> = (0..2000)
        .map(|id| {
            let double = Some(f64::from_bits(random()))
                .filter(|d| d.is_finite())
                .unwrap_or(f64::MAX);
            let single = Some(f32::from_bits(random() as u32))
                .filter(|f| f.is_finite())
                .unwrap_or(f32::MAX);
            let single: f64 = single.to_string().parse().unwrap();
            vec![Value::Int(id), Value::Float(double), Value::Float(single)]
        })
        .collect();
    let effects: Vec<_> = rows.iter().map(|row| put(1, row.clone())).collect();
    shop.apply(&effects).await.unwrap();
    for (found, wanted) in shop.rows("t").await.into_iter().zip(rows) {
        assert_eq!(found.0, wanted);
    }
}

/// MySQL's own JSON makes floats of most numbers; MariaDB's is text.
#[tokio::test]
async fn json_keeps_its_numbers_or_refuses_them() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY, data JSON)").await;
    let kept = "{\"a\": [18446744073709551615, 0.1, -0.0, 1e22, 12345678901234567890.0, \"1e999\"], \"b\": null}";
    shop.apply(&[put(1, vec![Value::Int(1), text(kept)])])
        .await
        .unwrap();
    let kind = shop.table("t").columns[1].kind.clone();
    let rows = shop.rows("t").await;
    assert_eq!(
        canonical(&kind, &rows[0].0[1]),
        canonical(&kind, &text(kept))
    );
    for odd in [
        "123456789012345678901234567890",
        "[0.12345678901234567891]",
        "1e400",
    ] {
        let done = shop.apply(&[put(1, vec![Value::Int(2), text(odd)])]).await;
        match servers::mariadb().is_mysql() {
            true => assert!(
                matches!(done, Err(DatabaseError::Mismatch { .. })),
                "{odd}: {done:?}"
            ),
            false => done.unwrap(),
        }
    }
}

/// The server takes 5 for 2005 and 70 for 1970.
#[tokio::test]
async fn a_year_is_not_guessed() {
    let mut shop = shop("CREATE TABLE cars (id INT PRIMARY KEY, built YEAR)").await;
    for year in [1, 5, 70, 99, 100, 1900, 2156, -1] {
        let refused = shop
            .apply(&[put(1, vec![Value::Int(1), Value::Int(year)])])
            .await;
        assert!(
            matches!(&refused, Err(DatabaseError::Mismatch { message, .. }) if message.contains("1901")),
            "{year}: {refused:?}"
        );
    }
    let kept = [0, 1901, 2155];
    let effects = (1..)
        .zip(kept)
        .map(|(id, year)| put(1, vec![Value::Int(id), Value::Int(year)]));
    shop.apply(&effects.collect::<Vec<_>>()).await.unwrap();
    let rows = shop.rows("cars").await;
    let found: Vec<_> = rows.iter().map(|row| row.0[1].clone()).collect();
    assert_eq!(found, kept.map(Value::Int));
}

#[tokio::test]
async fn a_year_of_two_digits_is_not_shared() {
    if servers::mariadb().is_mysql() {
        let refused = servers::mariadb().fresh_database();
        let refused = crate::shop::connect(&refused)
            .await
            .query_drop("CREATE TABLE cars (id INT PRIMARY KEY, built YEAR(2))")
            .await;
        assert!(refused.is_err(), "it has no such years");
        return;
    }
    let mut shop = unshared("CREATE TABLE cars (id INT PRIMARY KEY, built YEAR(2))").await;
    let found = shop.db.inspect().await.unwrap();
    assert!(
        found
            .findings
            .iter()
            .any(|finding| finding.fatal && finding.problem.contains("two digits")),
        "{:?}",
        found.findings
    );
}
