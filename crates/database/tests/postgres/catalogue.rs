//! The catalogue before and after, and what an inspection finds.

use branchline_core::port::{Database, Finding};
use branchline_core::schema::Schema;
use branchline_core::value::{Type, Value};
use branchline_database::postgres::PostgresDatabase;
use branchline_testkit::servers;

use super::office::{client, office, shop};

fn dump(url: &str) -> String {
    let pg_dump = servers::postgres().bin("pg_dump");
    let done = std::process::Command::new(pg_dump)
        .args(["-s", "-d", url])
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let text = String::from_utf8(done.stdout).unwrap();
    // Newer versions write a random word into these lines.
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test]
async fn the_schema_dump_is_the_same_after_uninstalling() {
    let url = office().await.url;
    let app = client(&url).await;
    app.batch_execute(
        "CREATE SCHEMA sales; CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE sales.\"Order\" (id bigserial PRIMARY KEY, m mood, at timestamptz DEFAULT now());
         CREATE TABLE t (id uuid PRIMARY KEY, o bigint REFERENCES sales.\"Order\" ON DELETE CASCADE);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    .await
    .unwrap();
    let before = dump(&url);
    let mut db = PostgresDatabase::connect(&url).await.unwrap();
    db.prepare().await.unwrap();
    let mut schema = Schema {
        version: 1,
        tables_ever: 0,
        tables: db.inspect().await.unwrap().tables,
    };
    assert_eq!(schema.tables.len(), 3);
    (1..)
        .zip(&mut schema.tables)
        .for_each(|(id, table)| table.id = id);
    db.install(&schema).await.unwrap();
    assert!(db.missing_capture(&schema).await.unwrap().is_empty());
    assert_ne!(dump(&url), before);
    app.batch_execute("INSERT INTO sales.\"Order\" (m) VALUES ('ok'); INSERT INTO p VALUES (1)")
        .await
        .unwrap();
    db.uninstall().await.unwrap();
    assert_eq!(dump(&url), before);
    db.uninstall().await.unwrap();
}

fn problems(findings: &[Finding], table: &str, fatal: bool) -> Vec<String> {
    let of = findings
        .iter()
        .filter(|f| f.table.as_deref() == Some(table) && f.fatal == fatal);
    of.map(|f| f.problem.clone()).collect()
}

#[tokio::test]
async fn an_inspection_names_what_cannot_be_shared() {
    let url = office().await.url;
    let app = client(&url).await;
    app.batch_execute(
        "CREATE TABLE keyless (n int); CREATE TABLE strange (id int PRIMARY KEY, a cidr, m money);
         CREATE TABLE late (id int PRIMARY KEY DEFERRABLE); CREATE TABLE spans (id interval PRIMARY KEY);
         CREATE TABLE above (id int PRIMARY KEY); CREATE TABLE below (PRIMARY KEY (id)) INHERITS (above);
         CREATE DOMAIN code AS varchar(7); CREATE DOMAIN sku AS code NOT NULL;
         CREATE TABLE good (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s sku, n numeric(8,3) DEFAULT 1.5, tags text[],
             t text DEFAULT 'it''s', twice int GENERATED ALWAYS AS (2) STORED, at timestamp(0), c char(3) UNIQUE);
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER touch BEFORE UPDATE ON good FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    .await
    .unwrap();
    let mut db = PostgresDatabase::connect(&url).await.unwrap();
    let found = db.inspect().await.unwrap();
    for table in ["keyless", "strange", "late", "spans", "above", "below"] {
        assert!(
            !problems(&found.findings, table, true).is_empty(),
            "{table}: {:?}",
            found.findings
        );
    }
    let strange = problems(&found.findings, "strange", true).join(" ");
    assert!(
        strange.contains("`a`") && strange.contains("cidr") && strange.contains("money"),
        "{strange}"
    );
    let warnings = problems(&found.findings, "good", false).join(" ");
    assert!(
        warnings.contains("touch")
            && warnings.contains("numbers `id`")
            && warnings.contains("digits"),
        "{warnings}"
    );
    assert_eq!(found.tables.len(), 1);
    let good = &found.tables[0];
    let kinds: Vec<_> = good
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.kind.clone()))
        .collect();
    let text = Type::Text { max: None };
    let expected = [
        ("id", Type::Int32),
        ("s", Type::Text { max: Some(7) }),
        (
            "n",
            Type::Decimal {
                limits: Some((8, 3)),
            },
        ),
        ("tags", Type::Array(Box::new(text.clone()))),
        ("t", text),
        ("at", Type::Timestamp),
        ("c", Type::Char { length: 3 }),
    ];
    assert_eq!(kinds, expected);
    assert!(good.columns[0].generated_key);
    assert_eq!(good.columns[2].default, Some(Value::Text("1.5".into())));
    assert_eq!(good.columns[4].default, Some(Value::Text("it's".into())));
    assert_eq!(good.unique, [vec![6]]);
}

#[tokio::test]
async fn a_role_without_rights_is_told_what_it_lacks() {
    let url = office().await.url;
    let app = client(&url).await;
    app.batch_execute(
        "DROP ROLE IF EXISTS helper; CREATE ROLE helper LOGIN PASSWORD 'pw'; CREATE TABLE t (id int PRIMARY KEY)",
    )
    .await
    .unwrap();
    let address = url.rsplit_once('@').unwrap().1;
    let mut db = PostgresDatabase::connect(&format!("postgres://helper:pw@{address}"))
        .await
        .unwrap();
    let found = db.inspect().await.unwrap();
    assert!(found.tables.is_empty());
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.fatal && f.table.is_none() && f.advice.contains("GRANT CREATE ON DATABASE"))
    );
    assert!(!problems(&found.findings, "t", true).is_empty());
    assert!(matches!(
        db.prepare().await,
        Err(branchline_core::port::DatabaseError::Refused(_))
    ));
    drop(db);
    app.batch_execute("DROP ROLE helper").await.unwrap();
}

#[tokio::test]
async fn a_table_that_differs_from_the_plan_is_refused_by_column() {
    let mut shop = shop("CREATE TABLE t (id int PRIMARY KEY, name varchar(10))").await;
    shop.schema.tables[0].columns[1].kind = Type::Text { max: None };
    let refused = shop.db.install(&shop.schema).await.unwrap_err().to_string();
    assert!(
        refused.contains("`t`") && refused.contains("`name`"),
        "{refused}"
    );
    shop.schema.tables[0].columns.pop();
    shop.sql("ALTER TABLE t ADD extra timestamptz NOT NULL DEFAULT now()")
        .await;
    shop.db.install(&shop.schema).await.unwrap();
    shop.sql("ALTER TABLE t ALTER extra DROP DEFAULT").await;
    let refused = shop.db.install(&shop.schema).await.unwrap_err().to_string();
    assert!(refused.contains("`extra`"), "{refused}");
}

/// What the plan has no word for is told, and not taken for something that does more.
#[tokio::test]
async fn foreign_keys_travel_without_what_the_plan_has_no_word_for() {
    let url = office().await.url;
    let app = client(&url).await;
    app.batch_execute(
        "CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));
         CREATE TABLE full_match (id int PRIMARY KEY, a int, b int, FOREIGN KEY (a, b) REFERENCES parent MATCH FULL ON DELETE SET NULL);
         CREATE TABLE simple (id int PRIMARY KEY, a int, b int, FOREIGN KEY (a, b) REFERENCES parent ON DELETE SET NULL)",
    )
    .await
    .unwrap();
    let since_15: bool = app
        .query_one(
            "SELECT current_setting('server_version_num')::int >= 150000",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    if since_15 {
        app.batch_execute(
            "CREATE TABLE partly (id int PRIMARY KEY, a int NOT NULL, b int, FOREIGN KEY (a, b) REFERENCES parent ON DELETE SET NULL (b))",
        )
        .await
        .unwrap();
    }
    let mut db = PostgresDatabase::connect(&url).await.unwrap();
    let found = db.inspect().await.unwrap();
    let told = |table: &str, words: &str| {
        let of_table = |f: &&Finding| f.table.as_deref() == Some(table);
        let mut findings = found.findings.iter().filter(of_table);
        findings.any(|f| !f.fatal && f.problem.contains(words))
    };
    let action = |name: &str| {
        let table = found
            .tables
            .iter()
            .find(|table| table.name == name)
            .unwrap();
        table.foreign_keys[0].on_delete.clone()
    };
    assert!(told("full_match", "MATCH FULL"));
    assert_eq!(action("full_match"), "SET NULL");
    assert!(!told("simple", "foreign key"));
    assert_eq!(action("simple"), "SET NULL");
    if since_15 {
        assert!(told("partly", "some of its columns"));
        assert_eq!(action("partly"), "NO ACTION");
    }
}

/// Whoever reads one table for long keeps the application from no other.
#[tokio::test]
async fn uninstalling_waits_with_no_table_locked() {
    let mut shop =
        shop("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE z (id int PRIMARY KEY)").await;
    let reader = client(&shop.url).await;
    reader
        .batch_execute("BEGIN; SELECT * FROM z")
        .await
        .unwrap();
    let app = client(&shop.url).await;
    let work = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'z'::regclass AND NOT granted";
        while reader.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        app.batch_execute("SET lock_timeout TO '1ms'; INSERT INTO a VALUES (1)")
            .await
            .unwrap();
        reader.batch_execute("COMMIT").await.unwrap();
    };
    let (done, ()) = tokio::join!(shop.db.uninstall(), work);
    done.unwrap();
}
