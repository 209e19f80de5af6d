//! Tables that refer to each other and to themselves, on their way through schema versions.

use branchline_core::change::Row;
use branchline_core::port::Database;
use branchline_core::schema::{ForeignKey, Schema, Table, TableId};
use branchline_core::value::{Type, Value};

use super::evolution::{at, evolve, int, looks_like, next, schema};
use super::sample::{column, gone, id, nullable, put, reference, table};
use super::{Office, Ready, ready_with};

/// `articles(id, current_id -> revisions)`, `revisions(id, article_id -> articles, previous_id -> revisions)`
fn pair(articles: &str, revisions: &str) -> [Table; 2] {
    let mut first = table(
        0,
        articles,
        vec![
            column("id", Type::Int64),
            nullable("current_id", Type::Int64),
        ],
    );
    let mut second = table(
        0,
        revisions,
        vec![
            column("id", Type::Int64),
            column("article_id", Type::Int64),
            nullable("previous_id", Type::Int64),
        ],
    );
    first.unique = vec![vec![1]];
    first.foreign_keys = vec![reference(1, revisions, "NO ACTION")];
    second.foreign_keys = vec![
        reference(1, articles, "CASCADE"),
        reference(2, revisions, "SET NULL"),
    ];
    [first, second]
}

/// The next version, with these tables besides, and their numbers.
fn with(from: &Schema, pair: [Table; 2]) -> (Schema, TableId, TableId) {
    let names = pair.clone().map(|table| table.name);
    let to = next(from, |schema| schema.tables.extend(pair));
    let number = |name: &str| to.table_named(name).unwrap().id;
    let numbers = (number(&names[0]), number(&names[1]));
    (to, numbers.0, numbers.1)
}

impl<O: Office> Ready<O> {
    /// Follows a version, and once more; references of new tables come at the end, as after their first copy.
    async fn follow_and_bind(&mut self, office: &O, to: &Schema, dropped: &[TableId]) {
        let from = std::mem::replace(&mut self.schema, to.clone());
        for _ in 0..2 {
            let done = evolve(&mut self.db, &from, to, dropped).await;
            assert_eq!(done.refused, []);
            assert_eq!(done.unbound, Vec::<String>::new());
            self.db.add_foreign_keys(to).await.unwrap();
            looks_like(office, &mut self.db, to).await;
        }
        self.app = office.application().await;
    }

    /// Rows that refer to each other come together; what refers to nothing does not; a revision goes when its article goes.
    async fn circle_holds(&mut self, articles: TableId, revisions: TableId, number: i64) {
        let columns = self.table(revisions).columns.len();
        let revision = |id: i64, article: i64, previous: Value| {
            let mut values = vec![int(id), int(article), previous];
            values.resize(columns, Value::Null);
            Row(values)
        };
        let article = |current: Value| Row(vec![int(number), current]);
        self.apply(&[
            put(articles, article(int(number))),
            put(revisions, revision(number, number, int(number))),
        ])
        .await;
        for broken in [
            put(articles, article(int(99))),
            put(revisions, revision(number, 99, Value::Null)),
            put(revisions, revision(number, number, int(99))),
        ] {
            assert!(
                self.try_apply(std::slice::from_ref(&broken)).await.is_err(),
                "{broken:?} refers to nothing"
            );
        }
        self.apply(&[gone(articles, id(number)), gone(revisions, id(number))])
            .await;
    }
}

/// Both come in one step.
pub async fn tables_that_refer_to_each_other_come_in_one_step<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    let (to, articles, revisions) = with(&now.schema, pair("articles", "revisions"));
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 1).await;
}

/// Tables that are there are bound to each other, then more columns refer, and columns of both ends change their type
/// in one step.
pub async fn tables_are_bound_to_each_other_later<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    let whole = pair("articles", "revisions");
    let mut loose = whole.clone();
    for table in &mut loose {
        table.foreign_keys.clear();
    }
    let (to, articles, revisions) = with(&now.schema, loose);
    now.follow_and_bind(office, &to, &[]).await;
    let keys = whole.map(|table| table.foreign_keys);
    let to = next(&now.schema, |schema| {
        for (id, keys) in [articles, revisions].into_iter().zip(keys) {
            at(schema, id).foreign_keys = keys;
        }
    });
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 1).await;
    // More of the same, on columns that come with them.
    let to = next(&now.schema, |schema| {
        for (table, parent) in [("revisions", "articles"), ("revisions", "revisions")] {
            let child = schema
                .tables
                .iter_mut()
                .find(|one| one.name == table)
                .unwrap();
            let place = u16::try_from(child.columns.len()).unwrap();
            child
                .columns
                .push(nullable(&format!("also_{parent}"), Type::Int64));
            child
                .foreign_keys
                .push(reference(place, parent, "SET NULL"));
        }
    });
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 2).await;
    // A reference comes with a type that its other end gets in the same step, whichever of the two comes first.
    let small = next(&now.schema, |schema| {
        at(schema, articles).foreign_keys.clear();
        at(schema, revisions).foreign_keys.clear();
    });
    now.follow_and_bind(office, &small, &[]).await;
    let bound = to;
    let to = next(&small, |schema| {
        for id in [articles, revisions] {
            let table = at(schema, id);
            table.foreign_keys = bound.table(id).unwrap().foreign_keys.clone();
            for column in &mut table.columns {
                column.kind = Type::Int32;
            }
        }
    });
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 3).await;
}

/// They are renamed, others come under their former names in the same step, and both pairs get more references; then the
/// first ones are dropped and come once more under the old names.
pub async fn tables_in_a_circle_are_renamed_dropped_and_made_again<O: Office>(office: &O) {
    let mut now = ready_with(office, schema()).await;
    let (to, articles, revisions) = with(&now.schema, pair("articles", "revisions"));
    now.follow_and_bind(office, &to, &[]).await;
    let renamed = next(&now.schema, |schema| {
        for (id, name) in [(articles, "wiki_articles"), (revisions, "wiki_revisions")] {
            at(schema, id).name = name.into();
        }
        let rename = |key: &mut ForeignKey| key.parent = format!("wiki_{}", key.parent);
        for id in [articles, revisions] {
            at(schema, id).foreign_keys.iter_mut().for_each(rename);
        }
    });
    let (to, second_articles, second_revisions) = with(&renamed, pair("articles", "revisions"));
    let to = Schema {
        version: renamed.version,
        ..to
    };
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 1).await;
    now.circle_holds(second_articles, second_revisions, 1).await;
    // One more reference for each, after they were renamed.
    let to = next(&now.schema, |schema| {
        for (id, parent) in [
            (revisions, "wiki_revisions"),
            (second_revisions, "revisions"),
        ] {
            let table = at(schema, id);
            table.columns.push(nullable("merged_id", Type::Int64));
            table.foreign_keys.push(reference(3, parent, "NO ACTION"));
        }
    });
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 2).await;
    now.circle_holds(second_articles, second_revisions, 2).await;
    // The first pair goes, and so does the second; a third has the names of the first.
    let to = next(&now.schema, |schema| {
        let gone = [articles, revisions, second_articles, second_revisions];
        schema.tables.retain(|table| !gone.contains(&table.id));
    });
    let all = [articles, revisions, second_articles, second_revisions];
    now.follow_and_bind(office, &to, &all).await;
    let found = now.db.inspect().await.unwrap();
    assert!(
        !found
            .tables
            .iter()
            .any(|one| one.name.ends_with("articles")),
        "{:?}",
        found.tables
    );
    let (to, articles, revisions) = with(&now.schema, pair("wiki_articles", "wiki_revisions"));
    now.follow_and_bind(office, &to, &[]).await;
    now.circle_holds(articles, revisions, 3).await;
}

/// A row that refers to none keeps its own reference out, and no other.
pub async fn a_reference_that_cannot_be_added_keeps_no_other_out<O: Office>(office: &O) {
    let to = schema();
    let mut db = office.open().await;
    db.prepare().await.unwrap();
    db.create_tables(&to).await.unwrap();
    db.install(&to).await.unwrap();
    let mut now = Ready::<O> {
        schema: to,
        db,
        app: office.application().await,
    };
    use super::sample::{LINES, ORDERS, STAFF, line, member, order};
    use branchline_core::port::Purpose;
    now.db.begin(Purpose::Load).await.unwrap();
    let rows = [
        put(ORDERS, order(10, 99, "of nobody")),
        put(LINES, line(10, 1, "nail")),
        put(STAFF, member(1, "Ada", None)),
    ];
    now.db.write(&now.schema, &rows).await.unwrap();
    now.db.commit().await.unwrap();
    // An engine that makes its references with the tables has nothing to add.
    let refused = now.db.add_foreign_keys(&now.schema).await;
    if let Err(error) = refused {
        let told = error.to_string();
        assert!(told.contains("orders"), "it names the table: {told}");
    }
    for alone in [
        put(LINES, line(11, 1, "of no order")),
        put(STAFF, member(2, "Bob", Some(99))),
    ] {
        assert!(now.try_apply(&[alone]).await.is_err());
    }
}
