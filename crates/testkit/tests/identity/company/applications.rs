//! What applications write, and how they change their tables.

use std::time::UNIX_EPOCH;

use branchline_core::change::Row;
use branchline_core::schema::{Column, Schema, Table, TableId};
use branchline_core::value::Type;
use branchline_testkit::conformance::Op;
use branchline_testkit::sim::office::Store;

use super::Company;

impl Company {
    pub fn write_head(&mut self, ops: &[Op]) {
        self.pass();
        self.at_head.write_now(&self.schema, ops, self.now).unwrap();
        self.head.wake();
    }

    pub fn write(&mut self, at: usize, ops: &[Op]) {
        self.pass();
        let office = &mut self.branches[at];
        let schema = office.branch.schema().clone();
        office.disk.write_now(&schema, ops, self.now).unwrap();
        office.branch.wake();
    }

    /// The application writes rows of tables as they are by now.
    pub fn write_as(&mut self, at: usize, schema: &Schema, ops: &[Op]) {
        self.now = self.now.plus_millis(10);
        let office = &mut self.branches[at];
        office.disk.write_now(schema, ops, self.now).unwrap();
        office.branch.wake();
    }

    /// Time passes between two writes. SQLite stamps them by the machine's clock, in milliseconds.
    fn pass(&mut self) {
        self.now = self.now.plus_millis(10);
        if matches!(self.at_head.store, Store::Sqlite(_)) {
            let millis = || UNIX_EPOCH.elapsed().unwrap().as_millis();
            let before = millis();
            while millis() <= before {
                std::thread::yield_now();
            }
        }
    }

    /// The head's application changes a table.
    pub fn alter_head(&mut self, id: TableId, change: impl FnOnce(&mut Table)) {
        let from = self.schema.table(id).unwrap().clone();
        let mut to = from.clone();
        change(&mut to);
        match &mut self.at_head.store {
            Store::Memory(database) => database.application().alter_now(&from, &to).unwrap(),
            Store::Sqlite(_) => self.at_head.execute(&altering(&from, &to)),
        }
        for table in &mut self.schema.tables {
            if table.id == id {
                *table = to.clone();
            }
        }
        self.schema.number();
        self.head.wake();
    }

    /// A branch's application changes a table there.
    pub fn alter(&mut self, at: usize, id: TableId, change: impl FnOnce(&mut Table)) {
        let from = self.branches[at].branch.schema().clone();
        self.alter_from(at, &from, id, change);
    }

    /// A branch's application changes a table that it has changed before.
    pub fn alter_from(
        &mut self,
        at: usize,
        from: &Schema,
        id: TableId,
        change: impl FnOnce(&mut Table),
    ) {
        let office = &mut self.branches[at];
        let from = from.table(id).unwrap();
        let mut to = from.clone();
        change(&mut to);
        let Store::Memory(database) = &mut office.disk.store else {
            panic!("only in memory");
        };
        database.application().alter_now(from, &to).unwrap();
        office.branch.wake();
    }

    /// The head's application drops a table.
    pub fn drop_at_head(&mut self, id: TableId) {
        let name = self.schema.table(id).unwrap().name.clone();
        let Store::Memory(database) = &mut self.at_head.store else {
            panic!("only in memory");
        };
        database.application().drop_now(&name).unwrap();
        self.schema.tables.retain(|table| table.id != id);
        self.head.wake();
    }

    /// The head's application creates a table with rows, before anyone can capture them. Returns the number that the
    /// head will give it.
    pub fn create_at_head(&mut self, table: Table, rows: &[Row]) -> TableId {
        self.schema.tables.push(table);
        self.schema.number();
        let table = self.schema.tables.last().unwrap().clone();
        match &mut self.at_head.store {
            Store::Memory(database) => database.application().create_now(&table).unwrap(),
            Store::Sqlite(_) => self.at_head.execute(&creating(&table)),
        }
        let ops: Vec<Op> = rows
            .iter()
            .map(|row| Op::Insert(table.id, row.clone()))
            .collect();
        self.write_head(&ops);
        table.id
    }

    /// The head's application creates a table again that it had dropped.
    pub fn bring_back(&mut self, table: Table, ops: &[Op]) {
        let Store::Memory(database) = &mut self.at_head.store else {
            panic!("only in memory");
        };
        database.application().create_now(&table).unwrap();
        self.schema.tables.insert(0, table);
        self.write_head(ops);
    }
}

fn defined(column: &Column) -> String {
    let kind = match column.kind {
        Type::Int64 => "BIGINT",
        Type::Text { .. } => "TEXT",
        _ => panic!("{column:?}"),
    };
    let null = if column.nullable { "" } else { " NOT NULL" };
    format!("{} {kind}{null}", column.name)
}

/// The statements by which an application adds and drops columns.
fn altering(from: &Table, to: &Table) -> String {
    let has = |table: &Table, column: &Column| table.columns.iter().any(|c| c.name == column.name);
    let new = to.columns.iter().filter(|column| !has(from, column));
    let gone = from.columns.iter().filter(|column| !has(to, column));
    let new = new.map(|column| format!("ALTER TABLE {} ADD COLUMN {};", to.name, defined(column)));
    let gone = gone.map(|column| format!("ALTER TABLE {} DROP COLUMN {};", to.name, column.name));
    new.chain(gone).collect()
}

fn creating(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(defined).collect();
    let key: Vec<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
    let (columns, key) = (columns.join(", "), key.join(", "));
    format!(
        "CREATE TABLE {} ({columns}, PRIMARY KEY ({key}))",
        table.name
    )
}
