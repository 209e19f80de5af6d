//! What the PostgreSQL adapter does by itself, without offices: it takes a backlog, writes and reads its rows, and looks
//! at the tables' definitions, as an office does at the begin of every take and landing.

use std::time::Instant;

use branchline_core::change::Effect;
use branchline_core::office::{BATCH_CHANGES, PORTIONS_PER_TAKE};
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::{Schema, TableId};
use branchline_database::postgres::PostgresDatabase;

use crate::Arguments;
use crate::machine::{Machine, fresh_database};
use crate::sales::{self, Shape, TABLE};
use crate::table::Figures;

/// How often the definitions are looked at.
const LOOKS: u32 = 500;
/// How many tables they are of.
const TABLES: u32 = 12;

/// What an office would write in one transaction.
type Batch = Vec<(TableId, Effect)>;

/// Measures both, as often as asked.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wanted = |name: &str| name.contains(&arguments.only);
    for _ in 0..arguments.repetitions {
        if wanted("adapter, rows") {
            runtime.block_on(rows(machine, arguments.rows, figures));
        }
        if wanted("adapter, definitions") {
            runtime.block_on(definitions(machine, figures));
        }
    }
}

/// A database whose tables are all shared and captured.
struct Captured {
    name: String,
    db: PostgresDatabase,
    schema: Schema,
}

impl Captured {
    async fn new(machine: &Machine, tables: &[&str]) -> Self {
        let name = fresh_database(&machine.here, "adapter");
        machine.here.sql(&name, tables);
        let url = machine.here.url(&name);
        let mut db = PostgresDatabase::connect(&url).await.expect("the server");
        db.prepare().await.expect("books");
        let mut schema = Schema {
            version: 1,
            tables_ever: 0,
            tables: db.inspect().await.expect("the catalogue").tables,
        };
        schema.number();
        schema.sort_parents_first();
        db.install(&schema).await.expect("triggers");
        Self { name, db, schema }
    }

    fn leave(self, machine: &Machine) {
        drop(self.db);
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        machine.here.sql("postgres", &[&drop]);
    }
}

async fn rows(machine: &Machine, count: u32, figures: &mut Figures) {
    let note = |figures: &mut Figures, what: &str, since: Instant| {
        let rate = f64::from(count) / since.elapsed().as_secs_f64();
        eprintln!("adapter, rows: {what}: {rate:.0} rows/s");
        figures.add(&format!("adapter, rows: {what}"), "rows/s", rate);
    };
    let mut source = Captured::new(machine, &[TABLE]).await;
    sales::write(&machine.here, &source.name, count, Shape::Single);
    machine.settle();
    let since = Instant::now();
    let batches = source.take_all(figures).await;
    note(figures, "taken", since);
    source.leave(machine);

    let mut target = Captured::new(machine, &[TABLE]).await;
    for what in ["written, new", "written, existing"] {
        machine.settle();
        let since = Instant::now();
        for batch in &batches {
            target.db.begin(Purpose::Apply).await.expect("a start");
            let written = target.db.write(&target.schema, batch).await;
            written.expect("rows that fit");
            target.db.commit().await.expect("a commit");
        }
        note(figures, what, since);
    }
    let table = &target.schema.tables[0];
    let since = Instant::now();
    target.db.begin(Purpose::Read).await.expect("a start");
    for batch in &batches {
        let keys: Vec<_> = batch.iter().map(|(_, effect)| effect.key(table)).collect();
        let found = target.db.read(table, &keys).await.expect("rows");
        assert_eq!(found.len(), keys.len());
    }
    target.db.rollback().await.expect("an end");
    note(figures, "read by key", since);
    target.leave(machine);
}

impl Captured {
    /// Takes the backlog in such transactions as an office does. Each should take as long as the others.
    async fn take_all(&mut self, figures: &mut Figures) -> Vec<Batch> {
        let table = self.schema.tables[0].id;
        let mut batches = Vec::new();
        let mut more = true;
        while more {
            let began = Instant::now();
            self.db.begin(Purpose::Take).await.expect("a start");
            for _ in 0..PORTIONS_PER_TAKE {
                let portion = self.db.take(&self.schema, BATCH_CHANGES).await;
                let portion = portion.expect("a portion");
                let effects = portion.changes.into_iter().map(|taken| taken.effect);
                batches.push(effects.map(|effect| (table, effect)).collect());
                more = portion.more;
                if !more {
                    break;
                }
            }
            self.db.commit().await.expect("a commit");
            if more {
                let millis = began.elapsed().as_secs_f64() * 1000.0;
                figures.add("adapter, rows: one transaction's take", "ms", millis);
            }
        }
        batches
    }
}

async fn definitions(machine: &Machine, figures: &mut Figures) {
    let tables: Vec<String> = (0..TABLES)
        .map(|at| {
            let parent = at.saturating_sub(1);
            format!(
                "CREATE TABLE t{at} (id bigint PRIMARY KEY, a text, b numeric(12,2) DEFAULT 0, c int NOT NULL, d date,
                    e uuid, f timestamptz, g text UNIQUE, h bigint REFERENCES t{parent})"
            )
        })
        .collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let mut office = Captured::new(machine, &tables).await;
    for (what, looks) in [("with a look", true), ("without", false)] {
        let since = Instant::now();
        for _ in 0..LOOKS {
            office.db.begin(Purpose::Take).await.expect("a start");
            if looks {
                office.db.shape(&office.schema).await.expect("a look");
            }
            office.db.rollback().await.expect("an end");
        }
        let millis = since.elapsed().as_secs_f64() * 1000.0 / f64::from(LOOKS);
        let name = format!("adapter, definitions: a transaction {what}");
        eprintln!("{name}: {millis:.2} ms");
        figures.add(&name, "ms", millis);
    }
    office.leave(machine);
}
