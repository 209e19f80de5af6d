//! What only PostgreSQL's capture has.

use branchline_core::change::Effect;
use branchline_core::port::{Database, First, Purpose};
use branchline_core::schema::ConflictRule;
use branchline_core::value::Value;

use super::office::{client, int, shop};

#[tokio::test]
async fn truncate_is_captured_as_deletes() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    shop.sql("TRUNCATE t").await;
    let taken = shop.taken().await;
    assert_eq!(taken.len(), 2);
    assert!(
        taken
            .iter()
            .all(|t| matches!(t.effect, Effect::Delete(_)) && t.first == First::Existing)
    );
}

#[tokio::test]
async fn writes_to_partitions_are_captured_wherever_they_are_made() {
    let mut shop = shop(
        "CREATE TABLE p (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)",
    )
    .await;
    shop.sql("INSERT INTO p VALUES (1, 'a'), (150, 'b'); INSERT INTO p1 VALUES (2, 'c')")
        .await;
    assert_eq!(shop.taken().await.len(), 3);
    shop.sql("UPDATE p SET id = 151 WHERE id = 1").await;
    let taken = shop.taken().await;
    let gist: Vec<_> = taken
        .iter()
        .map(|t| (matches!(t.effect, Effect::Put(_)), t.first))
        .collect();
    assert_eq!(gist, [(false, First::Existing), (true, First::Inserted)]);
    shop.sql("TRUNCATE p2").await;
    assert_eq!(shop.taken().await.len(), 2);
    assert!(
        shop.db
            .missing_capture(&shop.schema)
            .await
            .unwrap()
            .is_empty()
    );
    shop.db.install(&shop.schema).await.unwrap();
    shop.db.uninstall().await.unwrap();
}

/// All rows of a new partition are captured by its parent's triggers, but for `TRUNCATE`.
#[tokio::test]
async fn a_partition_made_after_the_installation_is_captured() {
    let mut shop = shop(
        "CREATE TABLE p (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    .await;
    let look = async |shop: &mut super::office::Shop| {
        shop.db.begin(Purpose::Take).await.unwrap();
        let shape = shop.db.shape(&shop.schema).await.unwrap();
        shop.db.commit().await.unwrap();
        shape
    };
    let before = look(&mut shop).await;
    // Whoever fills it keeps nobody waiting.
    let filling = client(&shop.url).await;
    shop.sql(
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
              CREATE TABLE p3 PARTITION OF p2 FOR VALUES FROM (100) TO (150)",
    )
    .await;
    filling
        .batch_execute("BEGIN; INSERT INTO p3 VALUES (101, 'a'), (102, 'b')")
        .await
        .unwrap();
    assert_ne!(look(&mut shop).await, before, "the tables are looked at");
    let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
    assert!(missing.is_empty(), "its rows are captured: {missing:?}");
    look(&mut shop).await;
    filling.batch_execute("COMMIT").await.unwrap();
    let covered = "SELECT count(*) FROM pg_trigger WHERE tgname = 'branchline_truncate' AND tgrelid IN ('p2'::regclass, 'p3'::regclass)";
    let since = std::time::Instant::now();
    loop {
        look(&mut shop).await;
        let count: i64 = shop.app.query_one(covered, &[]).await.unwrap().get(0);
        if count == 2 {
            break;
        }
        assert!(since.elapsed().as_secs() < 20, "{count} partitions covered");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(shop.taken().await.len(), 2);
    shop.sql("TRUNCATE p3").await;
    assert_eq!(shop.taken().await.len(), 2);
    shop.sql("ALTER TABLE p3 DISABLE TRIGGER branchline_truncate")
        .await;
    let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
    assert_eq!(missing, [1], "what it had and has no more is told");
    shop.db.install(&shop.schema).await.unwrap();
    shop.sql("INSERT INTO p3 VALUES (101, 'a'); TRUNCATE p2")
        .await;
    assert_eq!(shop.taken().await.len(), 1);
}

#[tokio::test]
async fn columns_may_be_called_as_a_triggers_rows_are() {
    for partitions in [
        "",
        " PARTITION BY LIST (id); CREATE TABLE t1 PARTITION OF t DEFAULT",
    ] {
        for merged in [false, true] {
            let mut shop = shop(&format!(
                "CREATE TABLE t (id int, old text, new text, o text, n text, r text, key text, old_rows text, new_rows text,
                     PRIMARY KEY (id, old, new)){partitions}"
            ))
            .await;
            if merged {
                shop.schema.tables[0].conflict = ConflictRule::Merge;
                shop.db.install(&shop.schema).await.unwrap();
            }
            shop.sql(
                "INSERT INTO t (id, old, new, o) VALUES (1, 'a', 'b', 'c'), (2, 'a', 'b', 'c')",
            )
            .await;
            assert_eq!(shop.taken().await.len(), 2);
            shop.sql("UPDATE t SET o = 'd'; UPDATE t SET new = 'e' WHERE id = 1; DELETE FROM t WHERE id = 2").await;
            let taken = shop.taken().await;
            assert_eq!(taken.len(), 3);
            for one in &taken {
                let before = one.before.as_ref().map(|row| row.0[3].clone());
                let kept = merged && one.first == First::Existing;
                assert_eq!(before, kept.then(|| Value::Text("c".into())), "{one:?}");
            }
            shop.sql("TRUNCATE t").await;
            assert_eq!(shop.taken().await.len(), 1);
            // Where the table has another name whole rows may be noted, until the new name is known.
            shop.sql("ALTER TABLE t RENAME TO t2; INSERT INTO t2 (id, old, new) VALUES (3, 'a', 'b'); UPDATE t2 SET o = 'c'; DELETE FROM t2")
                .await;
            let told = "SELECT count(*), bool_and(key[1] IS NOT NULL OR old[2] LIKE '{%\"id\": 3,%') FROM branchline.capture";
            let told = shop.app.query_one(told, &[]).await.unwrap();
            assert!(
                told.get::<_, i64>(0) >= 3 && told.get::<_, bool>(1),
                "{partitions}"
            );
        }
    }
}

/// What Branchline may no longer read keeps it from taking, and the application from nothing.
#[tokio::test]
async fn the_application_may_give_its_table_to_another_owner() {
    for partitions in [
        "",
        " PARTITION BY LIST (id); CREATE TABLE t1 PARTITION OF t DEFAULT",
    ] {
        let url = super::office::office().await.url;
        let app = client(&url).await;
        let role = format!("sync_{}", url.rsplit('/').next().unwrap());
        app.batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, name text){partitions};
             CREATE ROLE {role} LOGIN PASSWORD 'x';
             DO $$ BEGIN EXECUTE 'GRANT CREATE ON DATABASE ' || current_database() || ' TO {role}'; END $$;
             ALTER TABLE t OWNER TO {role}; ALTER TABLE IF EXISTS t1 OWNER TO {role}"
        ))
        .await
        .unwrap();
        let (_, place) = url.split_once('@').unwrap();
        let mut shop =
            super::office::shop_at(format!("postgresql://{role}:x@{place}"), "SELECT").await;
        app.batch_execute("INSERT INTO t VALUES (1, 'a')")
            .await
            .unwrap();
        assert_eq!(shop.taken().await.len(), 1);
        app.batch_execute("ALTER TABLE t OWNER TO postgres")
            .await
            .unwrap();
        for _ in 0..7 {
            app.batch_execute("INSERT INTO t VALUES (2, 'b'); UPDATE t SET name = 'c'; DELETE FROM t WHERE id = 2")
                .await
                .unwrap();
        }
        app.batch_execute(&format!("ALTER TABLE t OWNER TO {role}"))
            .await
            .unwrap();
        assert_eq!(shop.taken().await.len(), 2);
        shop.db.uninstall().await.unwrap();
        app.batch_execute(&format!(
            "REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"
        ))
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn the_application_needs_no_rights_of_ours_and_keeps_its_lastval() {
    let mut shop =
        shop("CREATE TABLE t (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text)")
            .await;
    shop.sql(
        "DROP ROLE IF EXISTS clerk; CREATE ROLE clerk; GRANT SELECT, INSERT, UPDATE, DELETE ON t TO clerk;
         GRANT USAGE, SELECT ON SEQUENCE t_id_seq TO clerk; SET ROLE clerk",
    )
    .await;
    shop.sql("INSERT INTO t (name) VALUES ('a'), ('b')").await;
    let last: i64 = shop
        .app
        .query_one("SELECT lastval()", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(last, 2);
    shop.sql("UPDATE t SET name = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2")
        .await;
    assert!(
        shop.app
            .batch_execute("SELECT * FROM branchline.capture")
            .await
            .is_err()
    );
    shop.sql("RESET ROLE").await;
    assert_eq!(shop.taken().await.len(), 2);
    shop.sql("DROP OWNED BY clerk; DROP ROLE clerk").await;
}

#[tokio::test]
async fn keys_are_captured_alike_whatever_the_applications_settings() {
    let mut shop = shop(
        "CREATE TABLE t (at timestamptz, day date, f float8, b bytea, n numeric, PRIMARY KEY (at, day, f, b, n))",
    )
    .await;
    shop.sql(
        "SET datestyle TO 'German'; SET timezone TO 'Asia/Kolkata'; SET extra_float_digits TO -5; SET bytea_output TO 'escape';
         INSERT INTO t VALUES ('2024-01-02 03:04:05.5+00', '2024-02-03', 0.1, '\\x00ff', 1.50)",
    )
    .await;
    let taken = shop.taken().await;
    let Effect::Put(row) = &taken[0].effect else {
        panic!("the row is found by its captured key: {taken:?}")
    };
    let text = |t: &str| Value::Text(t.into());
    let expected = [
        text("2024-01-02 03:04:05.5+00"),
        text("2024-02-03"),
        Value::Float(0.1),
        Value::Bytes(vec![0, 255]),
        text("1.50"),
    ];
    assert_eq!(row.0, expected);
    shop.sql("UPDATE t SET n = 1.5; DELETE FROM t").await;
    let taken = shop.taken().await;
    assert_eq!(taken.len(), 1, "1.5 and 1.50 are one key: {taken:?}");
}

#[tokio::test]
async fn what_the_application_puts_before_the_catalogue_is_never_called_by_capture() {
    let create = "CREATE TABLE t (a text, n numeric, f float8, b bytea, i int, note text, PRIMARY KEY (a, n, f, b, i))";
    for partitions in [
        "",
        " PARTITION BY LIST (i); CREATE TABLE t1 PARTITION OF t DEFAULT",
    ] {
        for merged in [false, true] {
            let mut shop = shop(&format!("{create}{partitions}")).await;
            if merged {
                shop.schema.tables[0].conflict = ConflictRule::Merge;
                shop.db.install(&shop.schema).await.unwrap();
            }
            let mut trap = String::from("CREATE SCHEMA trap; CREATE TABLE trap.capture (x int);");
            for kind in [
                "text",
                "numeric",
                "float8",
                "bytea",
                "int4",
                "int8",
                "timestamptz",
                "anyarray",
            ] {
                for (name, symbol) in [
                    ("eq", "="),
                    ("ne", "<>"),
                    ("gt", ">"),
                    ("plus", "+"),
                    ("cat", "||"),
                ] {
                    trap.push_str(&format!(
                        "CREATE FUNCTION trap.{name}({kind}, {kind}) RETURNS bool LANGUAGE plpgsql AS
                             $$ BEGIN RAISE EXCEPTION 'called'; END $$;
                         CREATE OPERATOR trap.{symbol} (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = trap.{name});"
                    ));
                }
            }
            trap.push_str(
                "CREATE OPERATOR trap.> (LEFTARG = int8, RIGHTARG = float8, FUNCTION = trap.gt2);
                 CREATE DOMAIN trap.text AS int; CREATE DOMAIN trap.\"char\" AS int; CREATE DOMAIN trap.regclass AS int;",
            );
            let gt2 = "CREATE SCHEMA trap; CREATE FUNCTION trap.gt2(int8, float8) RETURNS bool LANGUAGE plpgsql AS
                           $$ BEGIN RAISE EXCEPTION 'called'; END $$;";
            shop.sql(&trap.replace("CREATE SCHEMA trap;", gt2)).await;
            shop.sql("SET search_path TO trap, pg_catalog, public")
                .await;
            shop.sql("INSERT INTO public.t VALUES ('a', 1.50, 0.5, '\\x00', 1, 'x'), ('b', 1, 1, '', 1, 'y')")
                .await;
            shop.sql("UPDATE public.t SET note = 'z'; UPDATE public.t SET a = pg_catalog.upper(a); DELETE FROM public.t WHERE note IS NULL")
                .await;
            assert_eq!(shop.taken().await.len(), 4);
            shop.sql("TRUNCATE public.t").await;
            assert_eq!(shop.taken().await.len(), 2);
        }
    }
}

#[tokio::test]
async fn what_commits_late_is_not_lost() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, name text)").await;
    let late = client(&shop.url).await;
    late.batch_execute("BEGIN; INSERT INTO t VALUES (1, 'late')")
        .await
        .unwrap();
    shop.sql("INSERT INTO t VALUES (2, 'soon')").await;
    let taken = shop.taken().await;
    assert_eq!(
        taken
            .iter()
            .map(|t| t.effect.key(&shop.table("t")))
            .collect::<Vec<_>>(),
        [int(2)]
    );
    late.batch_execute("COMMIT").await.unwrap();
    let taken = shop.taken().await;
    assert_eq!(
        taken
            .iter()
            .map(|t| t.effect.key(&shop.table("t")))
            .collect::<Vec<_>>(),
        [int(1)]
    );
}

#[tokio::test]
async fn the_application_may_still_alter_its_table() {
    let shop = shop("CREATE TABLE t (id int PRIMARY KEY, name text)").await;
    shop.sql("ALTER TABLE t ALTER COLUMN id TYPE bigint; ALTER TABLE t ALTER COLUMN name TYPE varchar(9)").await;
    shop.sql("ALTER TABLE t DROP COLUMN name; INSERT INTO t VALUES (1)")
        .await;
}

#[tokio::test]
async fn a_large_update_after_a_small_one_is_not_quadratic() {
    let mut shop = shop("CREATE TABLE t (id bigint PRIMARY KEY, name text)").await;
    shop.sql("INSERT INTO t VALUES (1, 'a'); UPDATE t SET name = 'b'; INSERT INTO t SELECT n, 'x' FROM generate_series(2, 60000) n").await;
    let before = std::time::Instant::now();
    shop.sql("UPDATE t SET id = id + 1000000").await;
    assert!(before.elapsed().as_secs() < 20, "{:?}", before.elapsed());
    assert_eq!(shop.taken().await.len(), 120_000);
}

#[tokio::test]
async fn sessions_that_wrote_before_may_write_after_the_key_was_altered() {
    let plain = "CREATE TABLE p (region int, id int, name text, PRIMARY KEY (region, id))";
    let partitioned =
        format!("{plain} PARTITION BY LIST (region); CREATE TABLE p1 PARTITION OF p DEFAULT");
    for sql in [plain, &partitioned] {
        let shop = shop(sql).await;
        let write = "INSERT INTO p VALUES (1, 1, 'a'); UPDATE p SET name = 'b'; UPDATE p SET id = 2; DELETE FROM p";
        for kind in ["int", "bigint", "text"] {
            shop.sql(&format!("ALTER TABLE p ALTER COLUMN id TYPE {kind}"))
                .await;
            for _ in 0..6 {
                shop.sql(&write.replace("= 2", "= '2'")).await;
            }
        }
    }
}
