//! The page of types says what the tests found.

use std::path::Path;

use branchline_testkit::conformance::sample;
use branchline_testkit::servers;

use super::place::{ENGINES, Engine, Place};

/// Fails where the part of the page between `<!-- NAME -->` and `<!-- end -->` is not this, and prints what it should be.
pub fn says(name: &str, table: &str) {
    // It tells of MariaDB up to 11.4; what others have instead stands in words beside it.
    if servers::mariadb().is_mysql() || super::samples::far_timestamps() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/types.md");
    let page = std::fs::read_to_string(path).unwrap();
    let found = page
        .split_once(&format!("<!-- {name} -->\n"))
        .and_then(|(_, rest)| rest.split_once("<!-- end -->"))
        .map(|(part, _)| part);
    assert!(
        found == Some(table),
        "docs/types.md, after `<!-- {name} -->`, should say:\n{table}<!-- end -->"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_what_is_created() {
    let plan = super::place::schema(
        sample::schema()
            .tables
            .into_iter()
            .filter(|table| table.name == "wide")
            .collect(),
    );
    let mut declared = Vec::new();
    for engine in ENGINES {
        let mut office = Place::new(engine).await;
        office.share(&plan).await.unwrap();
        let columns = match engine {
            Engine::Postgres => {
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = 'wide'::regclass AND attnum > 1 ORDER BY attnum"
            }
            Engine::MariaDb => {
                "SELECT COLUMN_TYPE FROM information_schema.COLUMNS
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'wide' AND ORDINAL_POSITION > 1 ORDER BY ORDINAL_POSITION"
            }
            Engine::Sqlite => "SELECT type FROM pragma_table_info('wide') WHERE cid > 0 ORDER BY cid",
        };
        declared.push(office.see(columns).await);
    }
    let mut table =
        String::from("| travels as | PostgreSQL | MariaDB | SQLite |\n|---|---|---|---|\n");
    for (at, kind) in sample::kinds().iter().enumerate() {
        let cells: Vec<String> = declared
            .iter()
            .map(|columns| format!("`{}`", columns[at].as_deref().unwrap()))
            .collect();
        table.push_str(&format!("| {kind} | {} |\n", cells.join(" | ")));
    }
    says("created", &table);
}
