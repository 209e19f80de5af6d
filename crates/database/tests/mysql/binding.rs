//! Foreign keys that the server refuses, and names that are taken.

use branchline_core::port::{Database, DatabaseError, Evolution, Purpose};
use branchline_core::schema::{Column, ForeignKey, Schema, Table};
use branchline_core::value::Type;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::shop::{Shop, connect, shop};

/// Shares these tables with numbers.
async fn numbered(tables: &str, outside: &[&str]) -> Shop {
    let mut shop = shop(tables).await;
    let local = |table: &Table| outside.contains(&table.name.as_str());
    shop.schema.tables.retain(|table| !local(table));
    shop.schema.number();
    shop.install().await;
    shop
}

fn next(from: &Schema, change: impl FnOnce(&mut Schema)) -> Schema {
    let mut to = from.clone();
    to.version += 1;
    change(&mut to);
    to.number();
    to
}

fn named<'s>(schema: &'s mut Schema, name: &str) -> &'s mut Table {
    let mut tables = schema.tables.iter_mut();
    tables.find(|table| table.name == name).unwrap()
}

fn nullable(name: &str, kind: Type) -> Column {
    Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    }
}

fn reference(column: u16, parent: &str, to: &str) -> ForeignKey {
    ForeignKey {
        columns: vec![column],
        parent: parent.into(),
        parent_columns: vec![to.into()],
        on_delete: "NO ACTION".into(),
        on_update: "NO ACTION".into(),
    }
}

impl Shop {
    async fn evolve(&mut self, to: &Schema) -> Evolution {
        self.db.begin(Purpose::Load).await.unwrap();
        let done = self.db.evolve(&self.schema, to, &[]).await.unwrap();
        self.db.commit().await.unwrap();
        done
    }

    async fn references(&mut self, table: &str) -> usize {
        let found = self.db.definitions().await.unwrap();
        let table = found.tables.into_iter().find(|one| one.name == table);
        table.unwrap().foreign_keys.len()
    }
}

/// InnoDB names a foreign key after its table, `child_ibfk_1`; that another one has this name is not for us to mind.
#[tokio::test]
async fn a_name_that_is_taken_hinders_no_foreign_key() {
    let tables = "CREATE TABLE parent (id INT PRIMARY KEY);
         CREATE TABLE child (id INT PRIMARY KEY, parent_id INT);
         CREATE TABLE outside (id INT PRIMARY KEY, parent_id INT,
             CONSTRAINT child_ibfk_1 FOREIGN KEY (parent_id) REFERENCES parent (id),
             CONSTRAINT later_ibfk_1 FOREIGN KEY (parent_id) REFERENCES parent (id))";
    let mut shop = numbered(tables, &["outside"]).await;
    let to = next(&shop.schema, |schema| {
        named(schema, "child")
            .foreign_keys
            .push(reference(1, "parent", "id"));
        let mut later = named(schema, "child").clone();
        (later.id, later.name) = (0, "later".into());
        schema.tables.push(later);
    });
    assert_eq!(shop.evolve(&to).await, Evolution::default());
    shop.db.add_foreign_keys(&to).await.unwrap();
    assert_eq!(shop.references("child").await, 1);
    assert_eq!(shop.references("later").await, 1);
}

/// The parent's key is of another collation here: the step is made without that foreign key, and says so.
#[tokio::test]
async fn a_step_leaves_out_a_foreign_key_that_the_server_refuses() {
    let tables = "CREATE TABLE parent (code VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY);
         CREATE TABLE other (code VARCHAR(20) CHARACTER SET utf8mb4 PRIMARY KEY);
         CREATE TABLE child (id INT PRIMARY KEY, code VARCHAR(20) CHARACTER SET utf8mb4)";
    let mut shop = numbered(tables, &[]).await;
    let to = next(&shop.schema, |schema| {
        let child = named(schema, "child");
        child.columns.push(nullable("note", Type::Int32));
        child.foreign_keys.push(reference(1, "parent", "code"));
        child.foreign_keys.push(reference(1, "other", "code"));
    });
    for _ in 0..2 {
        let done = shop.evolve(&to).await;
        assert_eq!((&done.refused, &done.found), (&vec![], &vec![]), "{done:?}");
        assert_eq!(done.unbound.len(), 1, "{done:?}");
        for part in ["`child`", "`parent`"] {
            assert!(done.unbound[0].contains(part), "{done:?}");
        }
        assert_eq!(shop.references("child").await, 1);
        shop.schema = to.clone();
    }
    shop.app("INSERT INTO child (id, note) VALUES (1, 2)").await;
    assert_eq!(shop.taken_names().await, ["+child 1 Inserted"]);
}

/// The parent's key is of another character set, at the end of the first copy of a new table.
#[tokio::test]
async fn a_first_copy_leaves_out_a_foreign_key_that_the_server_refuses() {
    let tables = "CREATE TABLE parent (code VARCHAR(20) CHARACTER SET latin1 PRIMARY KEY);
         CREATE TABLE other (code VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin PRIMARY KEY)";
    let mut shop = numbered(tables, &[]).await;
    let to = next(&shop.schema, |schema| {
        for (name, parent) in [("first", "parent"), ("second", "other")] {
            let mut table = named(schema, "other").clone();
            (table.id, table.name) = (0, name.into());
            table.foreign_keys = vec![reference(0, parent, "code")];
            schema.tables.push(table);
        }
    });
    assert_eq!(shop.evolve(&to).await, Evolution::default());
    for _ in 0..2 {
        let refused = shop.db.add_foreign_keys(&to).await;
        let Err(DatabaseError::Mismatch { table, .. }) = refused else {
            panic!("a table is to blame: {refused:?}");
        };
        assert_eq!(table, "first");
        assert_eq!(shop.references("first").await, 0);
        assert_eq!(shop.references("second").await, 1);
    }
}

/// The key that served a foreign key goes; so does the one that a foreign key referred to, and the foreign key with it.
#[tokio::test]
async fn keys_that_foreign_keys_used_go() {
    let tables = "CREATE TABLE parent (id INT PRIMARY KEY, code INT NOT NULL);
         CREATE TABLE child (parent_id INT, line INT, PRIMARY KEY (parent_id, line), FOREIGN KEY (parent_id) REFERENCES parent (id))";
    let mut shop = numbered(tables, &[]).await;
    shop.app("INSERT INTO parent VALUES (1, 7); INSERT INTO child VALUES (1, 2)")
        .await;
    let line_first = next(&shop.schema, |schema| {
        named(schema, "child").key = vec![1, 0];
    });
    assert_eq!(shop.evolve(&line_first).await, Evolution::default());
    assert_eq!(shop.references("child").await, 1);
    shop.schema = line_first;
    let unbound = next(&shop.schema, |schema| {
        named(schema, "parent").key = vec![1];
        named(schema, "child").foreign_keys.clear();
    });
    assert_eq!(shop.evolve(&unbound).await, Evolution::default());
    assert_eq!(shop.references("child").await, 0);
    shop.schema = unbound;
    let keys = shop.see("SELECT COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'parent'").await;
    assert_eq!(keys, [Some("code".into())]);
}

/// A limit of characters that the column's type cannot have goes with the column, and grows with it.
#[tokio::test]
async fn a_long_text_keeps_its_limit_on_the_way() {
    let mut shop = numbered("CREATE TABLE notes (id INT PRIMARY KEY)", &[]).await;
    let text = |max| Type::Text { max: Some(max) };
    for (id, name, max) in [
        (1, "note", 3000),
        (2, "remark", 3000),
        (3, "remark", 4000),
        (4, "word", 5000),
    ] {
        let to = next(&shop.schema, |schema| {
            let columns = &mut named(schema, "notes").columns;
            match columns.get_mut(1) {
                Some(column) => (column.name, column.kind) = (name.into(), text(max)),
                None => columns.push(nullable(name, text(max))),
            }
        });
        assert_eq!(shop.evolve(&to).await, Evolution::default(), "{name} {max}");
        shop.schema = to;
        let write = |length| format!("INSERT INTO notes VALUES ({id}, REPEAT('x', {length}))");
        let beyond = shop.app.query_drop(write(max + 1)).await;
        assert!(beyond.is_err(), "{name} {max}");
        shop.app(&write(max)).await;
    }
    assert_eq!(shop.rows("notes").await.len(), 4);
}

/// A table that the server does not create is refused by name, and nothing is bound to what is not there.
#[tokio::test]
async fn nothing_is_bound_to_a_table_that_could_not_be_made() {
    let mut shop = numbered("CREATE TABLE child (id INT PRIMARY KEY, wide_id INT)", &[]).await;
    let to = next(&shop.schema, |schema| {
        let mut wide = named(schema, "child").clone();
        (wide.id, wide.name) = (0, "wide".into());
        let long = |at| nullable(&format!("c{at}"), Type::Text { max: Some(2000) });
        wide.columns.extend((0..12).map(long));
        schema.tables.push(wide);
        named(schema, "child")
            .foreign_keys
            .push(reference(1, "wide", "id"));
    });
    let done = shop.evolve(&to).await;
    let wide = to.table_named("wide").unwrap().id;
    let refused: Vec<_> = done.refused.iter().map(|(id, _)| *id).collect();
    assert_eq!(refused, [wide], "{done:?}");
    shop.app("INSERT INTO child (id, wide_id) VALUES (1, 2)")
        .await;
    assert_eq!(shop.references("child").await, 0);
}

/// A table outside the plan refers to one that changes: what the server refuses is that table's, not the office's.
#[tokio::test]
async fn a_child_outside_the_plan_refuses_its_parent_alone() {
    let tables = "CREATE TABLE parent (id INT PRIMARY KEY); CREATE TABLE other (id INT PRIMARY KEY);
         CREATE TABLE outside (id INT PRIMARY KEY, parent_id INT, FOREIGN KEY (parent_id) REFERENCES parent (id))";
    let mut shop = numbered(tables, &["outside"]).await;
    let parent = shop.id("parent");
    let to = next(&shop.schema, |schema| {
        named(schema, "parent").columns[0].kind = Type::Text { max: Some(20) };
        named(schema, "parent").name = "parents".into();
        named(schema, "other").columns[0].kind = Type::Int64;
    });
    let done = shop.evolve(&to).await;
    let refused: Vec<_> = done.refused.iter().map(|(id, _)| *id).collect();
    assert_eq!(refused, [parent], "{done:?}");
    let found = shop.db.definitions().await.unwrap();
    let other = found.tables.iter().find(|one| one.name == "other").unwrap();
    assert_eq!(other.columns[0].kind, Type::Int64);
    assert!(found.tables.iter().any(|one| one.name == "parent"));
    // And dropped it is not either.
    let to = next(&shop.schema, |schema| {
        schema.tables.retain(|table| table.id != parent);
    });
    shop.db.begin(Purpose::Load).await.unwrap();
    let done = shop.db.evolve(&shop.schema, &to, &[parent]).await.unwrap();
    shop.db.commit().await.unwrap();
    assert_eq!(done.refused.len(), 1, "{done:?}");
}

/// Somebody who reads table `zoo` and so keeps its definition as it is.
async fn visitor(url: &str) -> Conn {
    let mut visitor = connect(url).await;
    visitor
        .query_drop("BEGIN; SELECT * FROM zoo")
        .await
        .unwrap();
    visitor
}

/// Once a query finds something, runs a statement, and lets the visitor go.
async fn once(url: &str, mut visitor: Conn, found: &str, sql: &str) {
    let mut watcher = connect(url).await;
    while watcher.query_first::<u8, _>(found).await.unwrap().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    watcher.query_drop(sql).await.unwrap();
    visitor.query_drop("COMMIT").await.unwrap();
}

/// However long the rest of the step takes.
#[tokio::test]
async fn what_a_new_foreign_key_does_is_captured_from_its_first_moment() {
    let tables = "CREATE TABLE parent (id INT PRIMARY KEY); CREATE TABLE child (id INT PRIMARY KEY, up INT); CREATE TABLE zoo (id INT PRIMARY KEY);
         INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (5, 1), (6, 2)";
    for renamed in [false, true] {
        let mut shop = numbered(tables, &[]).await;
        let to = next(&shop.schema, |schema| {
            let mut key = reference(1, "parent", "id");
            key.on_delete = "CASCADE".into();
            let child = named(schema, "child");
            child.foreign_keys.push(key);
            if renamed {
                child.columns[1].name = "parent_id".into();
            }
            let note = nullable("note", Type::Int32);
            named(schema, "zoo").columns.push(note);
        });
        let url = shop.url.clone();
        let bound = "SELECT 1 FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = DATABASE()";
        let sql = "DELETE FROM parent WHERE id = 1";
        let application = once(&url, visitor(&url).await, bound, sql);
        let (done, ()) = tokio::join!(shop.evolve(&to), application);
        assert_eq!(done, Evolution::default());
        shop.schema = to;
        let taken = shop.taken_names().await;
        let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
        let captured = taken == ["-child 5 Existing", "-parent 1 Existing"];
        // With a column's new name the triggers come a moment after the foreign key. Those before them say what they miss.
        let told = renamed && missing == [shop.id("child")];
        assert!(captured || told, "{renamed}: {taken:?} {missing:?}");
    }
}

/// A write between the change of its table and that of its triggers is not captured: the next look says so.
#[tokio::test]
async fn what_went_unseen_during_a_step_is_told() {
    let tables =
        "CREATE TABLE child (a INT PRIMARY KEY, n INT); CREATE TABLE zoo (id INT PRIMARY KEY)";
    let mut shop = numbered(tables, &[]).await;
    let to = next(&shop.schema, |schema| {
        named(schema, "child").columns[0].name = "b".into();
        let note = nullable("note", Type::Int32);
        named(schema, "zoo").columns.push(note);
    });
    let url = shop.url.clone();
    let renamed = "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'child' AND COLUMN_NAME = 'b'";
    let sql = "INSERT INTO child (b, n) VALUES (1, 1)";
    let application = once(&url, visitor(&url).await, renamed, sql);
    let (done, ()) = tokio::join!(shop.evolve(&to), application);
    assert_eq!(done, Evolution::default());
    shop.schema = to;
    let child = shop.id("child");
    let taken = shop.take().await.len();
    let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
    // Where the new triggers were quicker than the write, it is captured.
    let captured = taken == 1 && missing.is_empty();
    assert!(
        captured || (taken == 0 && missing == [child]),
        "{taken} taken, {missing:?} missing"
    );
    if captured {
        return;
    }
    shop.install().await;
    let missing = shop.db.missing_capture(&shop.schema).await.unwrap();
    assert!(missing.is_empty(), "{missing:?}");
}
