//! PostgreSQL, in a database whose settings are anything but the defaults, with an application that has few rights.

use branchline_core::identity::Micros;
use branchline_core::schema::{Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::postgres::PostgresDatabase;
use branchline_testkit::conformance::sql::{Dialect, quoted, statement};
use branchline_testkit::conformance::{Application, Office, Op};
use branchline_testkit::servers;
use tokio_postgres::{Client, NoTls};

const APPLICATION: &str = "conformance_application";

struct PostgresOffice {
    url: String,
}

struct PostgresApplication {
    client: Client,
}

branchline_testkit::conformance_tests!(office);

async fn office() -> PostgresOffice {
    let url = servers::postgres().fresh_database();
    let client = connect(&url).await;
    // The adapter must state what it needs; these are settings that a real database may have.
    let settings = [
        ("timezone", "Asia/Kathmandu"),
        ("datestyle", "SQL, DMY"),
        ("intervalstyle", "iso_8601"),
        ("extra_float_digits", "-5"),
        ("bytea_output", "escape"),
        ("search_path", "elsewhere, public"),
    ];
    let database = client
        .query_one("SELECT current_database()", &[])
        .await
        .unwrap()
        .get::<_, String>(0);
    for (name, value) in settings {
        let value = if name == "search_path" {
            value.to_owned()
        } else {
            format!("'{value}'")
        };
        client
            .batch_execute(&format!(
                "ALTER DATABASE {} SET {name} = {value}",
                quoted(&database)
            ))
            .await
            .unwrap();
    }
    let role = format!(
        "DO $$ BEGIN CREATE ROLE {APPLICATION}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APPLICATION};"
    );
    client.batch_execute(&role).await.unwrap();
    PostgresOffice { url }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    // It ends when the client is dropped.
    tokio::spawn(connection);
    client
}

impl Office for PostgresOffice {
    type Db = PostgresDatabase;
    type App = PostgresApplication;
    const CONCURRENT_WRITERS: bool = true;
    const TELLS_TRANSACTIONS_APART: bool = true;

    async fn open(&self) -> PostgresDatabase {
        PostgresDatabase::connect(&self.url).await.unwrap()
    }

    async fn application(&self) -> PostgresApplication {
        let client = connect(&self.url).await;
        client
            .batch_execute(&format!("SET ROLE {APPLICATION}"))
            .await
            .unwrap();
        PostgresApplication { client }
    }

    async fn objects(&self) -> Vec<String> {
        let all = "WITH schemas AS (
                SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'
            ), objects AS (
                SELECT 'schema ' || nspname FROM schemas
                UNION ALL SELECT 'relation ' || nspname || '.' || relname FROM pg_class JOIN schemas s ON s.oid = relnamespace
                UNION ALL SELECT 'function ' || nspname || '.' || proname FROM pg_proc JOIN schemas s ON s.oid = pronamespace
                UNION ALL SELECT 'type ' || nspname || '.' || typname FROM pg_type JOIN schemas s ON s.oid = typnamespace
                UNION ALL SELECT 'constraint ' || conname FROM pg_constraint JOIN schemas s ON s.oid = connamespace
                UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal
                UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
            ) SELECT * FROM objects ORDER BY 1";
        let rows = connect(&self.url).await.query(all, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn now(&self) -> Micros {
        super::now()
    }

    fn refuses(&self, _kind: &Type, value: &Value) -> bool {
        matches!(value, Value::Text(text) if text.contains('\0'))
    }
}

impl Application for PostgresApplication {
    async fn begin(&mut self) {
        self.client.batch_execute("BEGIN").await.unwrap();
    }

    async fn run(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            let statement = statement(Dialect::Postgres, schema, op);
            self.client
                .batch_execute(&statement)
                .await
                .map_err(|error| format!("{statement}: {error:?}"))?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), String> {
        self.client
            .batch_execute("COMMIT")
            .await
            .map_err(|error| format!("{error:?}"))
    }

    async fn roll_back(&mut self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
    }

    async fn define(&mut self, _: &Table, _: &Table, statements: &[(Option<Dialect>, String)]) {
        self.client.batch_execute("RESET ROLE").await.unwrap();
        for (_, sql) in statements
            .iter()
            .filter(|(dialect, _)| dialect.is_none_or(|dialect| dialect == Dialect::Postgres))
        {
            self.client.batch_execute(sql).await.unwrap();
        }
        self.client
            .batch_execute(&format!("SET ROLE {APPLICATION}"))
            .await
            .unwrap();
    }

    async fn break_capture(&mut self, table: &Table) {
        let name = quoted(&table.name);
        let triggers = format!(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = '{name}'::regclass AND NOT tgisinternal"
        );
        self.client.batch_execute("RESET ROLE").await.unwrap();
        let triggers = self.client.query(&triggers, &[]).await.unwrap();
        assert!(
            !triggers.is_empty(),
            "`{}` has no triggers to drop",
            table.name
        );
        for trigger in triggers {
            let drop = format!("DROP TRIGGER {} ON {name}", quoted(trigger.get(0)));
            self.client.batch_execute(&drop).await.unwrap();
        }
        self.client
            .batch_execute(&format!("SET ROLE {APPLICATION}"))
            .await
            .unwrap();
    }
}
