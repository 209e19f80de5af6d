//! A new database on the shared server, with the application beside it.

use std::time::{SystemTime, UNIX_EPOCH};

use branchline_core::change::{Key, Row};
use branchline_core::identity::Micros;
use branchline_core::port::{Database, Portion, Purpose, Taken};
use branchline_core::schema::{Schema, Table};
use branchline_core::value::{Type, Value};
use branchline_database::postgres::PostgresDatabase;
use branchline_testkit::conformance::sql::{Dialect, quoted, statement};
use branchline_testkit::conformance::{Application, Office, Op};
use branchline_testkit::servers;
use tokio_postgres::{Client, NoTls};

pub struct PostgresOffice {
    pub url: String,
}

pub async fn office() -> PostgresOffice {
    PostgresOffice {
        url: servers::postgres().fresh_database(),
    }
}

pub async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
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
        PostgresApplication(client(&self.url).await)
    }

    async fn objects(&self) -> Vec<String> {
        let sql = "SELECT 'namespace ' || nspname FROM pg_namespace
                   WHERE nspname NOT LIKE 'pg\\_temp%' AND nspname NOT LIKE 'pg\\_toast%'
                   UNION ALL SELECT 'class ' || relname FROM pg_class WHERE relname NOT LIKE 'pg\\_toast%'
                   UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
                   UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE oid >= 16384
                   UNION ALL SELECT 'type ' || typname FROM pg_type WHERE oid >= 16384 AND typname NOT LIKE 'pg\\_toast%' ORDER BY 1";
        let rows = client(&self.url).await.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn now(&self) -> Micros {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Micros(i64::try_from(since.as_micros()).unwrap())
    }

    fn refuses(&self, kind: &Type, value: &Value) -> bool {
        match (kind, value) {
            (_, Value::Text(text)) => text.contains('\0'),
            // Single floats travel as the value of their shortest text; what lies between would be rounded.
            (Type::Float32, Value::Float(f)) => {
                !f.is_nan() && (*f as f32).to_string().parse() != Ok(*f)
            }
            _ => false,
        }
    }
}

pub struct PostgresApplication(Client);

impl Application for PostgresApplication {
    async fn begin(&mut self) {
        self.0.batch_execute("BEGIN").await.unwrap();
    }

    async fn run(&mut self, schema: &Schema, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            let sql = statement(Dialect::Postgres, schema, op);
            self.0
                .batch_execute(&sql)
                .await
                .map_err(|e| format!("{e:?}"))?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), String> {
        self.0
            .batch_execute("COMMIT")
            .await
            .map_err(|e| format!("{e:?}"))
    }

    async fn roll_back(&mut self) {
        self.0.batch_execute("ROLLBACK").await.unwrap();
    }

    async fn define(&mut self, _: &Table, _: &Table, statements: &[(Option<Dialect>, String)]) {
        for (_, sql) in statements
            .iter()
            .filter(|(dialect, _)| dialect.is_none_or(|dialect| dialect == Dialect::Postgres))
        {
            self.0.batch_execute(sql).await.unwrap();
        }
    }

    async fn break_capture(&mut self, table: &Table) {
        let sql = format!("ALTER TABLE {} DISABLE TRIGGER USER", quoted(&table.name));
        self.0.batch_execute(&sql).await.unwrap();
    }
}

/// An office on tables of a test's own making: all that can be shared is.
pub struct Shop {
    pub url: String,
    pub db: PostgresDatabase,
    pub app: Client,
    pub schema: Schema,
}

pub async fn shop(sql: &str) -> Shop {
    shop_at(office().await.url, sql).await
}

/// The same, in this database, which is new.
pub async fn shop_at(url: String, sql: &str) -> Shop {
    let app = client(&url).await;
    app.batch_execute(sql).await.unwrap();
    let mut db = PostgresDatabase::connect(&url).await.unwrap();
    db.prepare().await.unwrap();
    let found = db.inspect().await.unwrap();
    let fatal: Vec<_> = found
        .findings
        .iter()
        .filter(|finding| finding.fatal)
        .collect();
    assert!(fatal.is_empty(), "{fatal:?}");
    let mut schema = Schema {
        version: 1,
        tables_ever: 0,
        tables: found.tables,
    };
    schema.sort_parents_first();
    for (id, table) in (1..).zip(&mut schema.tables) {
        table.id = id;
    }
    db.install(&schema).await.unwrap();
    Shop {
        url,
        db,
        app,
        schema,
    }
}

impl Shop {
    pub async fn sql(&self, sql: &str) {
        self.app.batch_execute(sql).await.unwrap();
    }

    pub fn table(&self, name: &str) -> Table {
        self.schema.table_named(name).unwrap().clone()
    }

    /// All units that one transaction takes, each whole.
    pub async fn units(&mut self, limit: usize) -> Vec<Vec<Taken>> {
        self.some_units(limit, usize::MAX).await
    }

    /// The first so many units, taken by one transaction.
    pub async fn some_units(&mut self, limit: usize, most: usize) -> Vec<Vec<Taken>> {
        self.db.begin(Purpose::Take).await.unwrap();
        let mut units = vec![Vec::new()];
        loop {
            let Portion {
                changes,
                unreadable: _,
                open,
                more,
            } = self.db.take(&self.schema, limit).await.unwrap();
            units.last_mut().unwrap().extend(changes);
            if !open && (!more || units.len() >= most) {
                break;
            }
            if !open {
                units.push(Vec::new());
            }
        }
        self.db.commit().await.unwrap();
        units
    }

    pub async fn taken(&mut self) -> Vec<Taken> {
        self.units(1000).await.concat()
    }
}

pub fn int(value: i64) -> Key {
    Key(vec![Value::Int(value)])
}

pub fn row(id: i64, text: &str) -> Row {
    Row(vec![Value::Int(id), Value::Text(text.to_owned())])
}
