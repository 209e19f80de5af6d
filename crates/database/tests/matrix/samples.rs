//! The types that each engine's applications declare, with values at their edges as SQL.

use std::sync::OnceLock;

use branchline_core::value::{Type, Value};

use super::place::Engine;
use branchline_testkit::servers;

/// A declared type with values of it.
pub struct Sample {
    pub declared: &'static str,
    /// What this declaration needs to exist.
    pub before: &'static str,
    pub values: Vec<String>,
    /// What the engine stores in such a column, and no other engine has: it is listed, and stays.
    pub unreadable: Vec<String>,
}

fn sample(declared: &'static str, values: &[&str]) -> Sample {
    Sample {
        declared,
        before: "",
        values: values.iter().map(|value| (*value).to_owned()).collect(),
        unreadable: Vec::new(),
    }
}

impl Sample {
    fn made_by(mut self, before: &'static str) -> Self {
        self.before = before;
        self
    }

    fn and(mut self, values: Vec<String>) -> Self {
        self.values.extend(values);
        self
    }

    fn unreadable(mut self, values: &[&str]) -> Self {
        self.unreadable
            .extend(values.iter().map(|value| (*value).to_owned()));
        self
    }
}

/// Characters of every plane that has any, the edges of every length in UTF-8, and what looks like something else.
const CHARACTERS: &str = "\u{1}\u{7f}\u{80}\u{7ff}\u{800}\u{fffd}\u{feff}\u{ffff}\u{10000}\u{1f980}\u{2f800}\u{31350}\u{e0001}\u{f0000}\u{10fffd}";

fn texts() -> Vec<String> {
    [
        "",
        " ",
        "a ",
        "  a  ",
        "a",
        "A",
        "ss",
        "ß",
        "e\u{301}",
        "é",
        "NULL",
        "null",
        "007",
        "1e5",
        "-0",
        "\r\n\t",
        "\u{202e}x",
        CHARACTERS,
        "it''s",
        "--",
        "/*",
        "%s",
        "${x}",
        "\"",
        "`",
    ]
    .iter()
    .map(|text| format!("'{text}'"))
    .collect()
}

pub fn samples(engine: Engine) -> Vec<Sample> {
    match engine {
        Engine::Postgres => postgres(),
        Engine::MariaDb => mariadb(),
        Engine::Sqlite => sqlite(),
    }
}

fn postgres() -> Vec<Sample> {
    let long = "repeat('漢x', 100000)".to_owned();
    vec![
        sample("smallint", &["-32768", "32767", "0"]),
        sample("integer", &["-2147483648", "2147483647"]),
        sample(
            "bigint",
            &[
                "-9223372036854775808",
                "9223372036854775807",
                "9007199254740993",
            ],
        ),
        sample("boolean", &["true", "false"]),
        sample(
            "real",
            &[
                "3.4028235e38",
                "1.4e-45",
                "1.17549435e-38",
                "'-0'",
                "0.1",
                "16777217",
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
            ],
        ),
        sample(
            "double precision",
            &[
                "1.7976931348623157e308",
                "5e-324",
                "2.2250738585072014e-308",
                "'-0'",
                "0.1",
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
            ],
        ),
        sample(
            "numeric",
            &[
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "0",
                "0.00",
                "-0.0",
                "1.10",
                "1e-40",
                "123456789012345678901234567890.123456789012345678901234567890",
                "9007199254740993",
            ],
        )
        .and(vec!["1e1000".into(), "-1e-1000".into()]),
        sample(
            "numeric(12,2)",
            &["9999999999.99", "-9999999999.99", "0.10", "100", "'NaN'"],
        ),
        sample(
            "numeric(65,30)",
            &[
                "99999999999999999999999999999999999.999999999999999999999999999999",
                "-0.000000000000000000000000000001",
            ],
        ),
        sample(
            "numeric(100,50)",
            &[
                "0.00000000000000000000000000000000000000000000000001",
                "-99999999999999999999999999999999999999999999999999.5",
            ],
        ),
        sample("numeric(5,-2)", &["1234500", "-100", "0"]),
        sample("numeric(2,5)", &["0.00012", "-0.00099"]),
        sample("text", &[]).and(texts()).and(vec![long]),
        sample("varchar", &[]).and(texts()),
        sample(
            "varchar(5)",
            &["''", "'漢漢漢漢漢'", "'ab   '", "'🦀🦀🦀🦀🦀'"],
        ),
        sample("varchar(3000)", &["repeat('漢', 3000)", "'x  '"]),
        sample("char(4)", &["''", "'ab'", "'漢漢漢漢'", "' a'"]),
        sample("char(300)", &["'ab'", "repeat('漢', 300)"]),
        sample("bytea", &["''", "'\\x00'", "'\\x00ff5c27'", "'\\xc3'"])
            .and(vec!["decode(repeat('00ff', 100000), 'hex')".into()]),
        sample(
            "date",
            &[
                "'4713-01-01 BC'",
                "'0001-01-01'",
                "'0044-03-15 BC'",
                "'1582-10-10'",
                "'9999-12-31'",
                "'10000-01-01'",
                "'5874897-12-31'",
                "'infinity'",
                "'-infinity'",
            ],
        ),
        sample(
            "time",
            &[
                "'00:00'",
                "'24:00:00'",
                "'23:59:59.999999'",
                "'12:30:00.100000'",
            ],
        ),
        sample("time(0)", &["'24:00:00'", "'12:30:01'"]),
        sample(
            "timetz",
            &[
                "'00:00:00+15:59:59'",
                "'24:00:00-15:59:59'",
                "'12:00:00.5-03:30'",
                "'12:00Z'",
            ],
        ),
        sample(
            "timestamp",
            &[
                "'4713-01-01 00:00:00 BC'",
                "'0001-01-01 00:00:00'",
                "'294276-12-31 23:59:59.999999'",
                "'infinity'",
                "'-infinity'",
                "'2024-02-29 23:59:59.100000'",
                "'9999-12-31 23:59:59.999999'",
            ],
        ),
        sample(
            "timestamp(3)",
            &["'2024-02-29 23:59:59.999'", "'2024-02-29 23:59:59'"],
        ),
        sample(
            "timestamptz",
            &[
                "'4713-01-01 00:00:00+00 BC'",
                "'0001-01-01 00:00:00+00'",
                "'294276-12-31 23:59:59.999999+00'",
                "'infinity'",
                "'1969-12-31 23:59:59+00'",
                "'1970-01-01 00:00:01+00'",
                "'2024-06-15 12:00:00.1+05:45'",
                "'2037-12-31 00:00:00+00'",
                "'2038-01-19 03:14:08+00'",
            ],
        ),
        sample(
            "interval",
            &[
                "'178000000 years'",
                "'1 mon -1 day 25:00:00'",
                "'-00:00:00.000001'",
                "'24:00:00'",
                "'1 day'",
                "'0'",
                "'-1 year +2 days'",
                "'-2562047788:00:54.775807'",
                "'2562047788:00:54.775807'",
            ],
        ),
        sample(
            "uuid",
            &[
                "'00000000-0000-0000-0000-000000000000'",
                "'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF'",
                "'{a0eebc999c0b4ef8bb6d6bb9bd380a11}'",
            ],
        ),
        sample(
            "json",
            &[
                "'{\"b\": 1, \"a\":2}'",
                "'{\"a\":1,\"a\":2}'",
                "'1e2'",
                "'-0'",
                "'1.50'",
                "'123456789012345678901234567890.5'",
                "'\"\\u0000\"'",
                "'\"\\ud800\"'",
                "'null'",
                "' [1 ,2 ] '",
                "'1e400'",
                "(repeat('[', 31) || repeat(']', 31))::json",
                "(repeat('[', 40) || repeat(']', 40))::json",
            ],
        ),
        sample(
            "jsonb",
            &[
                "'{\"b\": 1, \"aa\":2}'",
                "'{\"a\":1,\"a\":2}'",
                "'1e2'",
                "'-0'",
                "'1.50'",
                "'123456789012345678901234567890.5'",
                "'\"\\u00e9\\n\"'",
                "'null'",
                "'{\"deep\": [[[[[[1]]]]]]}'",
                "'1e400'",
                "'1e-40'",
            ],
        ),
        sample("mood", &["'sad'", "'it''s ok'", "'größer'", "''", "'SAD'"])
            .made_by("CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'größer', '', 'SAD')"),
        sample(
            "integer[]",
            &["'{}'", "'{1,2,NULL}'", "'{{1,2},{3,4}}'", "'[2:3]={1,2}'"],
        ),
        sample(
            "text[]",
            &["'{}'", "'{\"\",\"a,b\",\"c\\\\d\",NULL,\"NULL\",\"{}\"}'"],
        ),
        sample("numeric(10,2)[]", &["'{1.50,NaN}'"]),
        sample(
            "timestamptz[]",
            &["'{\"2024-06-15 12:00:00.1+05:45\",infinity}'"],
        ),
        sample("bytea[]", &["array['\\x00ff'::bytea]"]),
        sample("real[]", &["'{0.1,-0,NaN,3.4028235e38}'"]),
        sample("mood[]", &["'{sad,\"it''s ok\"}'"]),
        sample("price", &["0.001", "99999.999"])
            .made_by("CREATE DOMAIN price AS numeric(8,3) CHECK (VALUE >= 0)"),
        sample("named", &["'x'"]).made_by(
            "CREATE DOMAIN short AS varchar(5); CREATE DOMAIN named AS short NOT NULL DEFAULT 'd'",
        ),
        sample(
            "inet",
            &[
                "'10.0.0.1'",
                "'::1'",
                "'192.168.0.0/16'",
                "'::ffff:1.2.3.4'",
                "'2001:DB8::1'",
            ],
        ),
    ]
}

fn mariadb() -> Vec<Sample> {
    let texts_and = |more: &[&str]| {
        let mut all = texts();
        all.extend(more.iter().map(|value| (*value).to_owned()));
        all
    };
    vec![
        sample("TINYINT", &["-128", "127"]),
        sample("TINYINT(1)", &["0", "1"]).unreadable(&["2", "-1"]),
        sample("TINYINT UNSIGNED", &["0", "255"]),
        sample("SMALLINT", &["-32768", "32767"]),
        sample("SMALLINT UNSIGNED", &["65535"]),
        sample("MEDIUMINT", &["-8388608", "8388607"]),
        sample("MEDIUMINT UNSIGNED", &["16777215"]),
        sample("INT", &["-2147483648", "2147483647"]),
        sample("INT UNSIGNED", &["4294967295"]),
        sample("INT(8) UNSIGNED ZEROFILL", &["42", "4294967295"]),
        sample("BIGINT", &["-9223372036854775808", "9223372036854775807"]),
        sample("BIGINT UNSIGNED", &["18446744073709551615", "0"]),
        sample("BIT(1)", &["0", "1"]),
        sample("BIT(12)", &["0", "4095"]),
        sample("BIT(63)", &["9223372036854775807"]),
        sample("YEAR", &["1901", "2155", "0"]),
        sample("FLOAT", &["3.4028234e38", "1.4e-45", "-0e0", "0.1"]),
        sample(
            "DOUBLE",
            &["1.7976931348623157e308", "5e-324", "-0e0", "0.1"],
        ),
        sample(
            "DECIMAL(65,30)",
            &[
                "99999999999999999999999999999999999.999999999999999999999999999999",
                "-0.000000000000000000000000000001",
            ],
        ),
        sample(
            "DECIMAL(65,0)",
            &["99999999999999999999999999999999999999999999999999999999999999999"],
        ),
        sample("DECIMAL(10,2) UNSIGNED", &["99999999.99", "0.10"]),
        sample("VARCHAR(40)", &[]).and(texts_and(&["'a\\0b'"])),
        sample("VARCHAR(5)", &["'漢漢漢漢漢'", "'ab   '"]),
        sample("CHAR(5)", &["''", "'ab'", "'漢漢漢漢漢'", "' a'"]),
        sample("TEXT", &[]).and(texts_and(&["'a\\0b'", "REPEAT('漢', 20000)"])),
        sample("LONGTEXT", &["REPEAT('🦀', 100000)"]),
        sample("VARCHAR(9) CHARACTER SET latin1", &["'Bär '", "'ß'"]),
        sample("BINARY(3)", &["x'010000'", "x'ffffff'"]),
        sample("VARBINARY(9)", &["x''", "x'00'", "x'2020'", "x'c3'"]),
        sample("BLOB", &["x''", "x'0000'", "x'275c00ff'"]),
        sample("LONGBLOB", &["REPEAT(x'00ff', 100000)"]),
        sample("DATE", &["'0001-01-01'", "'9999-12-31'", "'1582-10-10'"]).unreadable(&[
            "'0000-00-00'",
            "'2024-00-10'",
            "'2024-01-00'",
        ]),
        sample(
            "TIME(6)",
            &["'00:00:00'", "'24:00:00'", "'23:59:59.999999'"],
        )
        .unreadable(&["'-00:00:01'", "'838:59:59'", "'24:00:00.000001'"]),
        sample("TIME", &["'23:59:59'"]).unreadable(&["'25:00:00'"]),
        sample(
            "DATETIME(6)",
            &[
                "'0001-01-01 00:00:00'",
                "'9999-12-31 23:59:59.999999'",
                "'2024-02-29 00:00:00.1'",
            ],
        )
        .unreadable(&["'0000-00-00 00:00:00'"]),
        sample("DATETIME", &["'2024-02-29 23:59:59'"]),
        sample(
            "TIMESTAMP(6)",
            &[
                "'1970-01-02 00:00:00.000001'",
                "'2038-01-18 03:14:07.999999'",
            ],
        )
        .unreadable(&["0"]),
        sample(
            "ENUM('a','A','it''s','größer','')",
            &["'a'", "'A'", "'it''s'", "'größer'", "''"],
        ),
        sample(
            "JSON",
            &[
                "'{\"b\": 1, \"a\":2}'",
                "'{\"a\":1,\"a\":2}'",
                "'1e2'",
                "'-0'",
                "'1.50'",
                "'123456789012345678901234567890.5'",
                "' [1 ,2 ] '",
                "'null'",
            ],
        ),
        sample(
            if servers::mariadb().is_mysql() {
                "CHAR(36)"
            } else {
                "UUID"
            },
            &[
                "'00000000-0000-0000-0000-000000000000'",
                "'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF'",
            ],
        ),
    ]
}

fn sqlite() -> Vec<Sample> {
    vec![
        sample(
            "INTEGER",
            &["-9223372036854775808", "9223372036854775807", "5.0", "'12'"],
        )
        .unreadable(&["'twelve'", "5.5", "x'00'", "9.3e18", "''"]),
        sample("BIGINT UNSIGNED", &["9223372036854775807"]),
        sample("TINYINT(1)", &["1"]),
        sample("BOOLEAN", &["0", "1", "'true'", "'f'"]).unreadable(&["2", "'yes'", "1.5"]),
        sample(
            "REAL",
            &[
                "1.7976931348623157e308",
                "5e-324",
                "-0.0",
                "0.1",
                "9e999",
                "-9e999",
                "3",
                "'NaN'",
            ],
        )
        .unreadable(&["'abc'", "''", "'0x10'"]),
        sample("FLOAT4", &["0.5", "0.1"]),
        sample("TEXT", &["'a' || char(0) || 'b'", "5"])
            .and(texts())
            .unreadable(&["x'00'"]),
        sample("VARCHAR(40)", &["'ab   '"]).and(texts()),
        sample("CHAR(4)", &["'ab'", "''"]),
        sample("CLOB", &["'x'"]),
        sample("BLOB", &["x''", "x'00ff'", "zeroblob(100000)", "'text'"]).unreadable(&["5", "1.5"]),
        sample(
            "DATE",
            &[
                "'2024-02-29'",
                "'0001-01-01'",
                "'9999-12-31'",
                "'0044-03-15 BC'",
                "'infinity'",
            ],
        )
        .unreadable(&[
            "'yesterday'",
            "'today'",
            "'epoch'",
            "'now'",
            "'2024-02-30'",
            "'01/02/2024'",
            "''",
            "20240229",
            "'2024-02-29 00:00:00'",
            "'2024-2-9'",
            "2460000.5",
        ]),
        sample(
            "TIME",
            &[
                "'24:00:00'",
                "'23:59:59.999999'",
                "'12:30'",
                "'12:30:00.500'",
            ],
        )
        .unreadable(&[
            "'allballs'",
            "'now'",
            "'25:00'",
            "'12:60:00'",
            "'12:30:00.1234567'",
            "'noon'",
            "'12:30 PM'",
        ]),
        sample(
            "DATETIME",
            &[
                "'2024-02-29 23:59:59.123456'",
                "'2024-02-29T23:59:59Z'",
                "'2024-02-29 23:59'",
                "'9999-12-31 23:59:59.999999'",
                "'infinity'",
            ],
        )
        .unreadable(&[
            "'now'",
            "'tomorrow'",
            "'2024-02-29'",
            "'2024-02-30 00:00:00'",
            "'2024-02-29 24:00:01'",
            "'2024-02-29 23:59:59+02'",
            "1709251199",
        ]),
        sample(
            "TIMESTAMPTZ",
            &[
                "'2024-02-29 23:59:59.123456+00'",
                "'2024-02-29T23:59:59Z'",
                "'2024-02-29 23:59:59+00:00'",
            ],
        )
        .unreadable(&[
            "'2024-02-29 23:59:59 Europe/Berlin'",
            "'2024-02-29 23:59:59+99'",
            "'now'",
        ]),
        sample(
            "SPAN_TEXT",
            &[
                "'1 year 2 mons 3 days 04:05:06.789'",
                "'-1 days'",
                "'00:00:00'",
                "'1 mon -1 days +25:00:00'",
            ],
        )
        .unreadable(&["'90 minutes'", "'P1D'", "'soon'", "''"]),
        sample(
            "DECIMAL(10,2)",
            &["99999999.99", "-0.01", "'12.50'", "7", "0.1 + 0.2"],
        )
        .unreadable(&["'twelve'", "9e999"]),
        sample("NUMERIC(15,5)", &["9999999999.99999", "0.00001"]),
        sample(
            "DECIMAL_TEXT(40,10)",
            &[
                "'123456789012345678901234567890.1234567890'",
                "'-0.0000000001'",
            ],
        )
        .unreadable(&["'1e'", "'0x10'", "' 5'", "''"]),
        sample(
            "DECIMAL_TEXT",
            &[
                "'1e2'",
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "'.5'",
                "'5.'",
            ],
        )
        .unreadable(&["'infinite'", "'1_000'", "'+-1'"]),
        sample(
            "UUID",
            &[
                "'00000000-0000-0000-0000-00000000000a'",
                "'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF'",
                "'a0eebc999c0b4ef8bb6d6bb9bd380a11'",
            ],
        )
        .unreadable(&[
            "'not one'",
            "''",
            "'a0eebc99-9c0b4ef8-bb6d6bb9bd380a1'",
            "x'00'",
        ]),
        sample(
            "JSON",
            &[
                "'{\"b\": 1, \"a\":2}'",
                "'{\"a\":1,\"a\":2}'",
                "'1e2'",
                "1.5",
                "7",
                "'null'",
            ],
        )
        .unreadable(&["'{a:1}'", "''", "'[1,]'"]),
        sample(
            "JSONB_TEXT",
            &["'{\"b\": 1, \"a\":2}'", "'1e2'", "'1E-2'", "'[1.50, -0]'"],
        )
        .unreadable(&["'{'", "'NaN'"]),
        sample(
            "ARRAY_TEXT",
            &["'{}'", "'{\"a,b\",NULL,x}'", "'{{a,b},{c,d}}'"],
        )
        .unreadable(&["'a,b'", "'{'", "'[1,2]'", "'{{a},b}'"]),
    ]
}

/// Whether this run's server is a MariaDB from 11.5 on, whose `TIMESTAMP` ends later.
pub fn far_timestamps() -> bool {
    static FAR: OnceLock<bool> = OnceLock::new();
    *FAR.get_or_init(|| {
        let server = servers::mariadb();
        let year = server.sql("mysql", "SELECT YEAR(FROM_UNIXTIME(2147483648 + 86400))");
        !server.is_mysql() && year == "2038"
    })
}

/// Whether an engine's column, created for this type, can hold the value. What it cannot, it must say.
pub fn holds(engine: Engine, kind: &Type, value: &Value) -> bool {
    match (engine, kind, value) {
        (_, _, Value::Null) | (Engine::Sqlite, _, _) => true,
        (Engine::Postgres, _, Value::Text(text)) => !text.contains('\0'),
        (Engine::MariaDb, Type::Float32 | Type::Float64, Value::Float(number)) => {
            number.is_finite()
        }
        (
            Engine::MariaDb,
            Type::Decimal {
                limits: Some((1..=65, 0..=30)),
            },
            Value::Text(text),
        ) => text != "NaN",
        (Engine::MariaDb, Type::Date | Type::Timestamp | Type::TimestampTz, Value::Text(text)) => {
            let beyond = text.ends_with("BC") || text.ends_with("infinity");
            let year = text.split('-').next().unwrap_or_default();
            let end = match far_timestamps() {
                true => "2106-02-07 06:28:16",
                false => "2038-01-19 03:14:08",
            };
            let seconds =
                *kind != Type::TimestampTz || ("1970-01-01 00:00:01"..end).contains(&text.as_str());
            !beyond && year.len() == 4 && seconds
        }
        // Half of a character, and more than 31 levels.
        (Engine::MariaDb, Type::Json, Value::Text(text)) if !servers::mariadb().is_mysql() => {
            !text.contains("ud800") && !text.starts_with(&"[".repeat(32))
        }
        _ => true,
    }
}
