//! MariaDB, or MySQL where the run names one, in a database of another character set, with an application that has few rights and odd settings.

use branchline_core::identity::Micros;
use branchline_core::schema::{Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::mysql::MysqlDatabase;
use branchline_testkit::conformance::sql::{Dialect, quoted, statement};
use branchline_testkit::conformance::{Application, Office, Op};
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder};

const APPLICATION: &str = "conformance_application";
const PASSWORD: &str = "of the application";

struct MysqlOffice {
    url: String,
}

struct MysqlApplication {
    admin: Conn,
    conn: Conn,
}

branchline_testkit::conformance_tests!(office);

async fn office() -> MysqlOffice {
    let url = servers::mariadb().fresh_database();
    let mut admin = connect(&url).await;
    let settings = format!(
        "ALTER DATABASE CHARACTER SET latin1;
         CREATE USER IF NOT EXISTS {APPLICATION}@'%' IDENTIFIED BY '{PASSWORD}'"
    );
    admin.query_drop(settings).await.unwrap();
    MysqlOffice { url }
}

async fn connect(url: &str) -> Conn {
    Conn::new(Opts::from_url(url).unwrap()).await.unwrap()
}

/// The names in one column of a query.
async fn names(conn: &mut Conn, sql: &str) -> Vec<String> {
    conn.query(sql).await.unwrap()
}

/// Lets the application write to the tables that there are.
async fn grant(admin: &mut Conn) {
    let tables = "SELECT TABLE_NAME FROM information_schema.TABLES
                      WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME NOT LIKE 'branchline%'";
    for table in names(admin, tables).await {
        let grant =
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON `{table}` TO {APPLICATION}@'%'");
        admin.query_drop(grant).await.unwrap();
    }
}

impl Office for MysqlOffice {
    type Db = MysqlDatabase;
    type App = MysqlApplication;
    const CONCURRENT_WRITERS: bool = true;
    // Of one connection, in transactions of its own, it does not; see `mysql/capture.rs`.
    const TELLS_TRANSACTIONS_APART: bool = false;

    async fn open(&self) -> MysqlDatabase {
        MysqlDatabase::connect(&self.url).await.unwrap()
    }

    async fn application(&self) -> MysqlApplication {
        let mut admin = connect(&self.url).await;
        grant(&mut admin).await;
        let opts = OptsBuilder::from_opts(Opts::from_url(&self.url).unwrap())
            .user(Some(APPLICATION))
            .pass(Some(PASSWORD));
        let mut conn = Conn::new(opts).await.unwrap();
        // The capture must state what it needs; these are settings that a real session may have.
        conn.query_drop(
            "SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH',
                 time_zone = '+05:45', collation_connection = 'utf8mb4_general_ci'",
        )
        .await
        .unwrap();
        MysqlApplication { admin, conn }
    }

    async fn objects(&self) -> Vec<String> {
        let all = "SELECT CONCAT('table ', TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('trigger ', TRIGGER_NAME) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('routine ', ROUTINE_NAME) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('event ', EVENT_NAME) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('index ', TABLE_NAME, '.', INDEX_NAME, '.', SEQ_IN_INDEX) FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('column ', TABLE_NAME, '.', COLUMN_NAME, ' ', COLUMN_TYPE) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE()
             UNION ALL SELECT CONCAT('constraint ', TABLE_NAME, '.', CONSTRAINT_NAME) FROM information_schema.TABLE_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = DATABASE()
             ORDER BY 1";
        names(&mut connect(&self.url).await, all).await
    }

    fn now(&self) -> Micros {
        super::now()
    }

    fn serves(&self, planned: &Type, found: &Type) -> bool {
        let as_text = matches!(
            planned,
            Type::Decimal { limits: None } | Type::TimeTz | Type::Interval | Type::Array(_)
        );
        match (planned, found) {
            (Type::Enum { labels: a, .. }, Type::Enum { labels: b, .. }) => a == b,
            (Type::Jsonb, Type::Json) => true,
            (_, Type::Text { max: None }) if as_text => true,
            (Type::Inet, Type::Text { .. }) => true,
            // MySQL has no type for it.
            (Type::Uuid, Type::Char { length: 36 }) => servers::mariadb().is_mysql(),
            (Type::Json | Type::Jsonb, Type::Text { max: None }) => servers::mariadb().is_mysql(),
            (a, b) => a == b,
        }
    }

    fn casts(&self, from: &Type, to: &Type) -> bool {
        // It writes truth values as numbers, and takes a single float for what it is in double precision.
        let truth = matches!(from, Type::Text { .. }) && *to == Type::Bool;
        !truth && (from, to) != (&Type::Float32, &Type::Float64)
    }

    fn refuses(&self, kind: &Type, value: &Value) -> bool {
        match (kind, value) {
            (Type::Float32 | Type::Float64, Value::Float(number)) => !number.is_finite(),
            (Type::Date | Type::Timestamp | Type::TimestampTz, Value::Text(text)) => {
                let beyond = text.ends_with("BC") || text.ends_with("infinity");
                let year = text.split('-').next().unwrap_or_default();
                let epoch = *kind == Type::TimestampTz && !("1970".."2038").contains(&year);
                beyond || year.len() > 4 || epoch
            }
            _ => false,
        }
    }
}

impl Application for MysqlApplication {
    async fn begin(&mut self) {
        self.conn.query_drop("BEGIN").await.unwrap();
    }

    async fn run(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            let statement = statement(Dialect::Mysql, schema, op);
            self.conn
                .query_drop(&statement)
                .await
                .map_err(|error| format!("{statement}: {error:?}"))?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), String> {
        self.conn
            .query_drop("COMMIT")
            .await
            .map_err(|error| format!("{error:?}"))
    }

    async fn roll_back(&mut self) {
        self.conn.query_drop("ROLLBACK").await.unwrap();
    }

    async fn define(&mut self, _: &Table, _: &Table, statements: &[(Option<Dialect>, String)]) {
        self.admin
            .query_drop("SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES'")
            .await
            .unwrap();
        for (_, sql) in statements
            .iter()
            .filter(|(dialect, _)| dialect.is_none_or(|dialect| dialect == Dialect::Mysql))
        {
            self.admin.query_drop(sql).await.unwrap();
        }
        self.admin
            .query_drop("SET SESSION sql_mode = ''")
            .await
            .unwrap();
        grant(&mut self.admin).await;
    }

    async fn break_capture(&mut self, table: &Table) {
        let triggers = format!(
            "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS
             WHERE TRIGGER_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = '{}'",
            table.name
        );
        let triggers = names(&mut self.admin, &triggers).await;
        assert!(
            !triggers.is_empty(),
            "{} has no triggers",
            quoted(&table.name)
        );
        for trigger in triggers {
            let drop = format!("DROP TRIGGER `{trigger}`");
            self.admin.query_drop(drop).await.unwrap();
        }
    }
}
