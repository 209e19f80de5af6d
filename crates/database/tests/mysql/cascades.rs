//! What foreign keys do to children by themselves, which fires no trigger.

use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::ConflictRule;
use branchline_core::value::Value;

use crate::shop::{beside, gone, put, shop, text};

const FAMILY: &str = "
CREATE TABLE grand (id INT PRIMARY KEY, code VARCHAR(9) NOT NULL UNIQUE);
CREATE TABLE parent (id INT PRIMARY KEY, grand_id INT, FOREIGN KEY (grand_id) REFERENCES grand (id) ON DELETE CASCADE);
CREATE TABLE child (parent_id INT, n INT, PRIMARY KEY (parent_id, n), FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE friend (id INT PRIMARY KEY, parent_id INT, FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE SET NULL);
CREATE TABLE named (id INT PRIMARY KEY, code VARCHAR(9), FOREIGN KEY (code) REFERENCES grand (code) ON UPDATE CASCADE);
INSERT INTO grand VALUES (1, 'one'), (2, 'two');
INSERT INTO parent VALUES (10, 1), (11, 1), (20, 2);
INSERT INTO child VALUES (10, 1), (10, 2), (11, 1), (20, 1);
INSERT INTO friend VALUES (5, 10), (6, 20), (7, NULL);
INSERT INTO named VALUES (8, 'two'), (9, NULL)";

#[tokio::test]
async fn a_cascade_is_captured_down_to_the_last_child() {
    let mut shop = shop(FAMILY).await;
    shop.app("DELETE FROM grand WHERE id = 1").await;
    assert_eq!(
        shop.taken_names().await,
        [
            "+friend 5 Existing",
            "-child [10,1] Existing",
            "-child [10,2] Existing",
            "-child [11,1] Existing",
            "-grand 1 Existing",
            "-parent 10 Existing",
            "-parent 11 Existing",
        ]
    );
}

#[tokio::test]
async fn a_cascade_from_a_table_that_is_not_shared_is_captured() {
    let mut shop = shop(FAMILY).await;
    shop.schema
        .tables
        .retain(|table| !matches!(table.name.as_str(), "grand" | "parent"));
    shop.install().await;
    shop.app("DELETE FROM grand WHERE id = 1").await;
    assert_eq!(
        shop.taken_names().await,
        [
            "+friend 5 Existing",
            "-child [10,1] Existing",
            "-child [10,2] Existing",
            "-child [11,1] Existing"
        ]
    );
    shop.db.uninstall().await.unwrap();
    let left = shop.see("SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()").await;
    assert_eq!(left, []);
}

#[tokio::test]
async fn a_changed_parent_key_is_captured_with_its_children() {
    let mut shop = shop(FAMILY).await;
    for table in &mut shop.schema.tables {
        table.conflict = ConflictRule::Merge;
    }
    shop.install().await;
    shop.app("UPDATE parent SET id = 12 WHERE id = 11").await;
    let taken = shop.take().await;
    let of_child = |change: &&branchline_core::port::Taken| change.table == shop.id("child");
    let before: Vec<_> = taken
        .iter()
        .filter(of_child)
        .map(|change| change.before.clone())
        .collect();
    let image = branchline_core::change::Row(vec![Value::Int(11), Value::Int(1)]);
    assert_eq!(before, [Some(image), None]);
    shop.app("UPDATE grand SET code = 'deux' WHERE id = 2")
        .await;
    assert_eq!(
        shop.taken_names().await,
        ["+grand 2 Existing", "+named 8 Existing"]
    );
    // Nothing refers to what changes here.
    shop.app("UPDATE grand SET code = 'un' WHERE id = 1").await;
    assert_eq!(shop.taken_names().await, ["+grand 1 Existing"]);
}

/// The capture's numbers keep nobody waiting: the two transactions wait for no lock that they would not want anyhow.
#[tokio::test]
async fn a_cascade_that_waits_keeps_no_other_writer_waiting() {
    let mut shop = shop(&format!(
        "{FAMILY}; CREATE TABLE other (id INT PRIMARY KEY)"
    ))
    .await;
    shop.app("DELETE FROM named").await;
    shop.take().await;
    shop.app("BEGIN; UPDATE grand SET code = 'zwei' WHERE id = 2")
        .await;
    let deleting = beside(&shop.url, "DELETE FROM grand WHERE id IN (1, 2)").await;
    shop.app("INSERT INTO other VALUES (1)").await;
    shop.app("COMMIT").await;
    deleting.await.unwrap().unwrap();
    assert_eq!(shop.take().await.len(), 12);
}

/// A trigger may lock no row for change in a table that its statement names.
#[tokio::test]
async fn statements_that_name_the_children_too_are_captured() {
    let mut shop = shop(FAMILY).await;
    shop.app(
        "DELETE parent, friend FROM parent JOIN friend ON friend.parent_id = parent.id WHERE parent.id = 10",
    )
    .await;
    assert_eq!(shop.see("SHOW WARNINGS").await, []);
    assert_eq!(
        shop.taken_names().await,
        [
            "-child [10,1] Existing",
            "-child [10,2] Existing",
            "-friend 5 Existing",
            "-parent 10 Existing",
        ]
    );
    shop.app("UPDATE parent SET id = 12 WHERE id = (SELECT parent_id FROM child WHERE n = 1 AND parent_id = 11)")
        .await;
    assert_eq!(
        shop.taken_names().await,
        [
            "+child [12,1] Inserted",
            "+parent 12 Inserted",
            "-child [11,1] Existing",
            "-parent 11 Existing",
        ]
    );
}

/// A delete that would reach rows that its maker had not seen does not happen (SETTLED 8).
#[tokio::test]
async fn an_applied_delete_reaches_no_row_besides() {
    let mut shop = shop(FAMILY).await;
    for (table, key) in [("grand", 1), ("parent", 20)] {
        let id = shop.id(table);
        let refused = shop.apply(&[gone(id, vec![Value::Int(key)])]).await;
        assert!(
            matches!(
                refused,
                Err(DatabaseError::Constraint {
                    foreign_key: true,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    let (parent, child, friend) = (shop.id("parent"), shop.id("child"), shop.id("friend"));
    let together = [
        gone(parent, vec![Value::Int(20)]),
        gone(child, vec![Value::Int(20), Value::Int(1)]),
        gone(friend, vec![Value::Int(6)]),
    ];
    shop.apply(&together).await.unwrap();
    assert_eq!(shop.take().await, []);
    assert_eq!(shop.rows("friend").await.len(), 2);
}

/// A foreign key of a table that is not shared comes while the office runs: it is seen before anything is written.
#[tokio::test]
async fn a_foreign_key_that_comes_later_is_obeyed() {
    let mut shop = shop(
        "CREATE TABLE parent (id INT PRIMARY KEY, code VARCHAR(9) NOT NULL UNIQUE);
         INSERT INTO parent VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    )
    .await;
    shop.schema.tables.retain(|table| table.name == "parent");
    shop.apply(&[gone(1, vec![Value::Int(3)])]).await.unwrap();
    let coded = |code: &str| put(1, vec![Value::Int(2), text(code)]);
    shop.apply(&[coded("bb")]).await.unwrap();
    shop.app(
        "CREATE TABLE local (id INT PRIMARY KEY, parent_id INT, code VARCHAR(9)); INSERT INTO local VALUES (7, 1, 'bb');
         ALTER TABLE local ADD CONSTRAINT by_id FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE,
                           ADD CONSTRAINT by_code FOREIGN KEY (code) REFERENCES parent (code) ON UPDATE CASCADE",
    )
    .await;
    for change in [gone(1, vec![Value::Int(1)]), coded("b")] {
        let refused = shop.apply(&[change]).await;
        assert!(
            matches!(&refused, Err(DatabaseError::Constraint { foreign_key: true, message, .. }) if message.contains("local")),
            "{refused:?}"
        );
    }
    assert_eq!(
        shop.see("SELECT code FROM local").await,
        [Some("bb".into())]
    );
    shop.app("ALTER TABLE local DROP FOREIGN KEY by_id, DROP FOREIGN KEY by_code")
        .await;
    shop.apply(&[gone(1, vec![Value::Int(1)]), coded("b")])
        .await
        .unwrap();
}

#[tokio::test]
async fn cascades_that_cannot_be_followed_are_named() {
    let shop = &mut crate::shop::unshared(
        "CREATE TABLE tree (id INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE)",
    )
    .await;
    let found = shop.db.inspect().await.unwrap();
    let told = found
        .findings
        .iter()
        .find(|f| f.table.as_deref() == Some("tree"))
        .unwrap();
    assert!(!told.fatal && told.problem.contains("cascade"), "{told:?}");
}
