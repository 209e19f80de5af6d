//! A new database with tables that an application made, shared as an inspection finds them.

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, DbResult, Portion, Purpose, Taken, Unreadable};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::Value;
use branchline_database::mysql::MysqlDatabase;
use branchline_testkit::servers;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tokio::task::JoinHandle;

pub struct Shop {
    pub url: String,
    /// The application.
    pub app: Conn,
    pub db: MysqlDatabase,
    pub schema: Schema,
}

pub async fn connect(url: &str) -> Conn {
    Conn::new(Opts::from_url(url).unwrap()).await.unwrap()
}

/// Makes these tables and shares all of them.
pub async fn shop(tables: &str) -> Shop {
    let mut shop = unshared(tables).await;
    let found = shop.db.inspect().await.unwrap();
    let mut schema = Schema {
        version: 1,
        tables_ever: 0,
        tables: found.tables,
    };
    schema.sort_parents_first();
    for (at, table) in schema.tables.iter_mut().enumerate() {
        table.id = u32::try_from(at).unwrap() + 1;
    }
    shop.schema = schema;
    shop.install().await;
    shop
}

/// Makes these tables; nothing is shared yet. The collation that tells all texts apart has another name in MySQL.
pub async fn unshared(tables: &str) -> Shop {
    let tables = match servers::mariadb().is_mysql() {
        true => tables.replace("utf8mb4_nopad_bin", "utf8mb4_0900_bin"),
        false => tables.to_owned(),
    };
    let url = servers::mariadb().fresh_database();
    let mut app = connect(&url).await;
    app.query_drop("ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        .await
        .unwrap();
    if !tables.is_empty() {
        app.query_drop(tables).await.unwrap();
    }
    let db = MysqlDatabase::connect(&url).await.unwrap();
    Shop {
        url,
        app,
        db,
        schema: Schema::default(),
    }
}

/// Starts a statement of another connection, and waits until it waits for a lock.
pub async fn beside(url: &str, sql: &'static str) -> JoinHandle<mysql_async::Result<()>> {
    let (mut other, mut watcher) = (connect(url).await, connect(url).await);
    let id = other.id();
    let running = tokio::spawn(async move { other.query_drop(sql).await });
    let state = format!(
        "SELECT EXISTS (SELECT 1 FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = {id} AND trx_state = 'LOCK WAIT')
             OR EXISTS (SELECT 1 FROM information_schema.PROCESSLIST WHERE id = {id} AND state LIKE 'Waiting for table %lock')"
    );
    while watcher.query_first::<u64, _>(&state).await.unwrap() != Some(1) {
        if running.is_finished() {
            panic!("it did not wait: {:?}", running.await);
        }
        // The server tells nothing new to who asks ten times a second.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
    running
}

impl Shop {
    pub async fn install(&mut self) {
        self.db.prepare().await.unwrap();
        self.db.install(&self.schema).await.unwrap();
    }

    /// Statements of the application.
    pub async fn app(&mut self, sql: &str) {
        self.app.query_drop(sql).await.unwrap();
    }

    /// What a query of the application returns, in one column of text.
    pub async fn see(&mut self, sql: &str) -> Vec<Option<String>> {
        self.app.query(sql).await.unwrap()
    }

    pub fn table(&self, name: &str) -> &Table {
        self.schema.table_named(name).unwrap()
    }

    pub fn id(&self, name: &str) -> TableId {
        self.table(name).id
    }

    /// Takes everything, in one transaction.
    pub async fn take(&mut self) -> Vec<Taken> {
        let (taken, unreadable) = self.take_with_unreadable().await;
        assert_eq!(unreadable, []);
        taken
    }

    pub async fn take_with_unreadable(&mut self) -> (Vec<Taken>, Vec<Unreadable>) {
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        self.db.begin(Purpose::Take).await.unwrap();
        loop {
            let portion: Portion = self.db.take(&self.schema, 1000).await.unwrap();
            all.extend(portion.changes);
            unreadable.extend(portion.unreadable);
            if !portion.more {
                break;
            }
        }
        self.db.commit().await.unwrap();
        (all, unreadable)
    }

    /// Table and key of what is taken, sorted, each with `+` where a row is there now.
    pub async fn taken_names(&mut self) -> Vec<String> {
        let taken = self.take().await;
        let mut names: Vec<String> = taken
            .iter()
            .map(|change| {
                let table = self.schema.table(change.table).unwrap();
                let sign = change.effect.row().map_or('-', |_| '+');
                let key = change.effect.key(table).to_json();
                format!("{sign}{} {key} {:?}", table.name, change.first)
            })
            .collect();
        names.sort();
        names
    }

    pub async fn apply(&mut self, effects: &[(TableId, Effect)]) -> DbResult<()> {
        self.db.begin(Purpose::Apply).await?;
        match self.db.write(&self.schema, effects).await {
            Ok(()) => self.db.commit().await,
            Err(error) => {
                self.db.rollback().await?;
                Err(error)
            }
        }
    }

    pub async fn rows(&mut self, table: &str) -> Vec<Row> {
        let table = self.table(table).clone();
        self.db.begin(Purpose::Read).await.unwrap();
        let rows = self.db.chunk(&table, None, 10_000).await.unwrap();
        self.db.rollback().await.unwrap();
        rows
    }
}

pub fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

pub fn put(table: TableId, values: Vec<Value>) -> (TableId, Effect) {
    (table, Effect::Put(Row(values)))
}

pub fn gone(table: TableId, key: Vec<Value>) -> (TableId, Effect) {
    (table, Effect::Delete(Key(key)))
}
