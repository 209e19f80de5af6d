use super::*;
use Dialect::{Mysql, Postgres, Sqlite};

fn column(name: &str, kind: Type) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    }
}

fn columns() -> Vec<Column> {
    vec![
        column("id", Type::Int64),
        column("qty", Type::Int32),
        column("small", Type::Int16),
        column("status", Type::Text { max: Some(20) }),
        column("note", Type::Text { max: None }),
        column("loose", Type::Text { max: None }),
        column(
            "price",
            Type::Decimal {
                limits: Some((12, 2)),
            },
        ),
        column("code", Type::Char { length: 4 }),
        column("active", Type::Bool),
        column("weight", Type::Float64),
        column("born", Type::Date),
        column("order", Type::Int64),
        column("Größe \"x\"", Type::Int64),
    ]
}

fn table() -> Table {
    Table {
        id: 1,
        name: "t".into(),
        columns: columns(),
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: vec![],
        before: false,
        columns_ever: 0,
        indexes: vec![],
        checks: Default::default(),
    }
}

fn reading(dialect: Dialect, text: &str) -> Result<Condition, String> {
    read(dialect, &columns(), &|column| column.name == "loose", text)
}

const PLAIN: Words = Words {
    name: |name| name.to_owned(),
    text: |text| format!("'{}'", text.replace('\'', "''")),
};

/// What each engine's words say, in one spelling.
#[test]
fn what_the_engines_keep_is_read() {
    let cases = [
        // PostgreSQL, as pg_get_expr gives it.
        (Postgres, "(qty > 0)", "qty > 0"),
        (
            Postgres,
            "((qty >= 0) AND (qty <= 10))",
            "qty >= 0 AND qty <= 10",
        ),
        (Postgres, "(qty >= '-5'::integer)", "qty >= -5"),
        (Postgres, "(id < '3000000000'::bigint)", "id < 3000000000"),
        (Postgres, "(qty = ANY (ARRAY[1, 2, 3]))", "qty IN (1, 2, 3)"),
        (
            Postgres,
            "(qty <> ALL (ARRAY[1, '-2'::integer]))",
            "qty NOT IN (1, -2)",
        ),
        (
            Postgres,
            "(id = ANY (ARRAY[(1)::bigint, (2)::bigint]))",
            "id IN (1, 2)",
        ),
        (Postgres, "(small = ANY (ARRAY[7]))", "small = 7"),
        (
            Postgres,
            "((status)::text = ANY ((ARRAY['open'::character varying, 'it''s'::character varying])::text[]))",
            "status IN ('open', 'it''s')",
        ),
        (
            Postgres,
            "(note = ANY (ARRAY['a'::text, 'b'::text]))",
            "note IN ('a', 'b')",
        ),
        (
            Postgres,
            "((status)::text <> ''::text)",
            "status NOT IN ('')",
        ),
        (
            Postgres,
            "((price IS NULL) OR (qty IS NOT NULL))",
            "price IS NULL OR qty IS NOT NULL",
        ),
        (
            Postgres,
            "(NOT ((qty > 1) AND (small < 2)))",
            "qty <= 1 OR small >= 2",
        ),
        (
            Postgres,
            "(\"order\" <= \"Größe \"\"x\"\"\")",
            "order <= Größe \"x\"",
        ),
        (Postgres, "(note = 'a\\b'::text)", "note IN ('a\\b')"),
        // MariaDB and MySQL.
        (Mysql, "`qty` > 0", "qty > 0"),
        (
            Mysql,
            "`qty` between 1 and 5 and `id` <> 3",
            "qty >= 1 AND qty <= 5 AND id <> 3",
        ),
        (Mysql, "`qty` not between -1 and 5", "qty < -1 OR qty > 5"),
        (
            Mysql,
            "`QTY` in (1,2) or `price` is null",
            "qty IN (1, 2) OR price IS NULL",
        ),
        (Mysql, "`note` in ('a','it''s')", "note IN ('a', 'it''s')"),
        (
            Mysql,
            "((`qty` > 0) and (`note` in (_utf8mb4'a',_utf8mb4'b')))",
            "qty > 0 AND note IN ('a', 'b')",
        ),
        (
            Mysql,
            "`note` = 'it\\'s' or `note` in ('','\\'')",
            "note IN ('it''s') OR note IN ('', '''')",
        ),
        (Mysql, "(`qty` > -(5))", "qty > -5"),
        (Mysql, "!`qty`", ""),
        // SQLite: as a person wrote it.
        (Sqlite, "qty>0", "qty > 0"),
        (
            Sqlite,
            "\"qty\" >= [small] and not `id` = 5",
            "qty >= small AND id <> 5",
        ),
        (
            Sqlite,
            "0 < QTY AND qty != +7 OR id == 1",
            "qty > 0 AND qty <> 7 OR id = 1",
        ),
        (
            Sqlite,
            "(qty > 0 AND (id > 0 AND small > 0))",
            "qty > 0 AND id > 0 AND small > 0",
        ),
        (
            Sqlite,
            "qty IN (1) AND (note IN ('a') OR note IS NULL)",
            "qty = 1 AND (note IN ('a') OR note IS NULL)",
        ),
        (
            Sqlite,
            "note NOT IN ('a', 'b\\c')",
            "note NOT IN ('a', 'b\\c')",
        ),
        (
            Sqlite,
            "id > -9223372036854775808",
            "id > -9223372036854775808",
        ),
        (Sqlite, "not not not qty is null", "qty IS NOT NULL"),
    ];
    for (dialect, text, wanted) in cases {
        let read = reading(dialect, text);
        if wanted.is_empty() {
            assert!(read.is_err(), "{text}");
            continue;
        }
        let said = said(
            &PLAIN,
            &table(),
            &read.unwrap_or_else(|why| panic!("{text}: {why}")),
        );
        // AND binds before OR: a list in a list stands in parentheses.
        let said = said.unwrap();
        let plain = |text: &str| text.replace(['(', ')'], "");
        assert_eq!(plain(&said), plain(wanted), "{text}");
    }
}

#[test]
fn what_differs_between_engines_is_not_carried_and_told() {
    let cases = [
        (Postgres, "(price > 0)", "`price` is decimal"),
        (Postgres, "(price > (0)::numeric)", "decimals"),
        (Postgres, "((qty)::numeric > 0.5)", "no whole number"),
        (Postgres, "(qty > 0.5)", "no whole number"),
        (
            Postgres,
            "(weight > (0)::double precision)",
            "`::double precision`",
        ),
        (Postgres, "(note > 'a'::text)", "same order"),
        (Postgres, "(loose = 'a'::text)", "different texts for equal"),
        (Postgres, "(code = 'ab'::bpchar)", "`::bpchar`"),
        (
            Postgres,
            "(note = 'abc'::character varying(2))",
            "`::character varying`",
        ),
        (Postgres, "(length(note) < 5)", "`length(...)`"),
        (Postgres, "(note ~ '^a'::text)", "`~`"),
        (Postgres, "(note ~~ 'a%'::text)", "`~`"),
        (Postgres, "((qty + small) > 5)", "`+`"),
        (Postgres, "((qty % 2) = 0)", "`%`"),
        (Postgres, "(note = 'a'::text COLLATE \"C\")", "COLLATE`"),
        (Postgres, "active", "stands alone"),
        (Postgres, "(active = true)", "`true`"),
        (Postgres, "(born > '2000-01-01'::date)", "`::date`"),
        (Postgres, "(qty IS DISTINCT FROM 5)", "`DISTINCT`"),
        (Postgres, "(qty = ANY ('{1,2}'::integer[]))", "`::integer`"),
        (Postgres, "(qty > ANY (ARRAY[1, 2]))", "`ANY`"),
        (Postgres, "(qty <> ANY (ARRAY[1, 2]))", "`ANY`"),
        (Postgres, "(\"Qty\" > 0)", "no column"),
        (Postgres, "(note = E'a\\nb')", "no column"),
        (Mysql, "`qty` > '5'", "not compared with texts"),
        (Mysql, "`qty` <=> 5", "`>`"),
        (Mysql, "`note` = \"a\"", "`\"`"),
        (Mysql, "`note` = 'a\\b'", "backslash"),
        (Mysql, "json_valid(`note`)", "`json_valid(...)`"),
        (Mysql, "`qty` & 1", "`&`"),
        (Mysql, "`qty` > 0 xor `id` > 0", "`xor`"),
        (Mysql, "`qty` > 0 || `id` > 0", "`|`"),
        (Mysql, "`active` in (0,1)", "`active` is boolean"),
        (Mysql, "`qty` in (1,NULL)", "`NULL`"),
        (Mysql, "`qty` == 1", "`==`"),
        (Sqlite, "qty > 1e3", "no whole number"),
        (Sqlite, "qty > 1.5", "no whole number"),
        (Sqlite, "qty > 0x10", "no whole number"),
        (Sqlite, "qty > 99999999999999999999", "64 bits"),
        (Sqlite, "typeof(qty) = 'integer'", "`typeof(...)`"),
        (Sqlite, "note = \"open\"", "no column"),
        (Sqlite, "a.qty > 1", "no column"),
        (Sqlite, "qty IN (SELECT 1)", "no column"),
        (Sqlite, "qty IN ()", "`)`"),
        (Sqlite, "qty = id = 1", "`=`"),
        (Sqlite, "qty > 1 IS NULL", "`IS`"),
        (Sqlite, "qty IS 5", "`5`"),
        (Sqlite, "1 = 1", "no column"),
        (Sqlite, "qty", "stands alone"),
        (Sqlite, "1", "no column"),
        (Sqlite, "'open'", "no column"),
        (Sqlite, "note = 'open", "does not end"),
        (Sqlite, "note || 'a' = 'b'", "`|`"),
        (Sqlite, "qty BETWEEN 1", "too early"),
        (Sqlite, "qty >", "too early"),
        (Sqlite, "", "too early"),
        (Sqlite, "(qty > 1", "too early"),
        (Sqlite, "qty > 1)", "`)`"),
        (Sqlite, "qty > 1; DROP TABLE t", "`;`"),
        (Sqlite, "qty > --1", "`-`"),
        (Sqlite, "qty IN (1, 'a')", "something else"),
        (Sqlite, "[qty", "does not end"),
    ];
    let wrong = cases.into_iter().filter_map(|(dialect, text, wanted)| {
        let told = reading(dialect, text).map_or_else(|why| why, |read| format!("{read:?}"));
        (!told.contains(wanted)).then(|| format!("{text}: {told}, not {wanted}"))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn what_is_too_deep_or_too_long_is_refused_without_a_panic() {
    let deep = format!("{}qty > 1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(reading(Sqlite, &deep).is_err());
    let deep = format!("{}qty > 1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert!(reading(Sqlite, &deep).is_err());
    let deep = format!("qty > {}1{}", "-(".repeat(5_000), ")".repeat(5_000));
    assert!(reading(Sqlite, &deep).is_err());
    let deep = format!("{} qty > 1", "NOT ".repeat(4_000));
    assert!(reading(Sqlite, &deep).is_err());
    let long: Vec<String> = (0..900).map(|number| number.to_string()).collect();
    assert!(reading(Sqlite, &format!("qty IN ({})", long.join(","))).is_err());
    let mut mixed = "qty = 1".to_owned();
    for _ in 0..20 {
        mixed = format!("id > 0 OR (small > 0 AND ({mixed}))");
    }
    assert!(reading(Sqlite, &mixed).is_err());
}

#[test]
fn no_text_makes_the_reader_panic() {
    let words = [
        "(",
        ")",
        "qty",
        "note",
        "'a'",
        "\"",
        "'",
        "::",
        "text",
        "ARRAY[",
        "]",
        "= ANY (",
        "<> ALL (",
        "NOT",
        "IN",
        "BETWEEN",
        "AND",
        "OR",
        "IS",
        "NULL",
        "-",
        "1",
        "99999999999999999999",
        ",",
        "`",
        "[",
        "ü",
        "\u{0}",
        "character varying",
    ];
    let mut seed = 7_u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(seed >> 33).unwrap_or_default() % words.len();
            text.push_str(words[at]);
            text.push(' ');
        }
        for dialect in [Postgres, Mysql, Sqlite] {
            let _ = reading(dialect, &text);
        }
    }
}

/// What is written is read as what it was, in the words of each engine.
#[test]
fn what_is_said_is_read_again() {
    let texts = [
        "qty > 0 AND (note IN ('a', 'it''s') OR price IS NULL) AND small NOT IN (1, 2)",
        "qty < id OR \"order\" >= -5 AND id <> 3",
        "note NOT IN ('') OR note IS NOT NULL",
    ];
    let quoted = |mark: char| move |name: &str| format!("{mark}{name}{mark}");
    for text in texts {
        let condition = reading(Sqlite, text).unwrap();
        for (dialect, mark) in [(Postgres, '"'), (Mysql, '`'), (Sqlite, '"')] {
            let quote = quoted(mark);
            let written = said(&PLAIN, &table(), &condition).unwrap();
            let written = columns().iter().fold(written, |text, column| {
                text.replace(
                    &format!("{} ", column.name),
                    &format!("{} ", quote(&column.name)),
                )
            });
            assert_eq!(
                reading(dialect, &written).as_ref(),
                Ok(&condition),
                "{written}"
            );
        }
    }
}

#[test]
fn names_are_quoted_once_each_and_strange_checks_left_out() {
    let words = Words {
        name: |name| format!("\"{}\"", name.replace('"', "\"\"")),
        text: PLAIN.text,
    };
    let check = |name: Option<&str>, condition| Check {
        name: name.map(Into::into),
        condition,
    };
    let positive = Condition::Number(1, Comparison::Greater, 0);
    let mut table = table();
    table.checks.0 = vec![
        check(Some("a\"b"), positive.clone()),
        check(
            Some("A\"B"),
            Condition::Texts(4, true, vec!["'); DROP TABLE t; --".into()]),
        ),
        check(Some(&"x".repeat(64)), Condition::Null(12, false)),
        check(Some("line\nbreak"), positive.clone()),
        check(Some("not there"), Condition::Null(99, false)),
        check(None, Condition::Number(6, Comparison::Greater, 0)),
    ];
    assert_eq!(
        clauses(&words, &table, |_| true, true),
        [
            "CONSTRAINT \"a\"\"b\" CHECK (\"qty\" > 0)",
            "CHECK (\"note\" IN ('''); DROP TABLE t; --'))",
            "CHECK (\"Größe \"\"x\"\"\" IS NOT NULL)",
            "CHECK (\"qty\" > 0)",
        ]
    );
    let nameless = clauses(&words, &table, |check| check.condition == positive, false);
    assert_eq!(nameless, ["CHECK (\"qty\" > 0)", "CHECK (\"qty\" > 0)"]);
}
