//! A look through the tables for rows that cannot be read, since neither the first copy nor `verify` would show them.

use branchline_core::port::{DbResult, Finding};
use branchline_core::schema::Table;

use super::connection::MysqlDatabase;
use super::read::next_rows;

/// Rows read at a time.
const PAGE: usize = 500;

/// A finding where rows of the table cannot be read. Reads the whole table, in no transaction.
pub(super) async fn look_for_misfits(
    db: &mut MysqlDatabase,
    table: &Table,
) -> DbResult<Option<Finding>> {
    let (mut count, mut first) = (0_u64, None);
    let (mut after, mut passed) = (None, 0);
    loop {
        let page = next_rows(db, table, after.as_ref(), (PAGE, passed)).await?;
        let last = page.len() < PAGE;
        for row in page {
            match row {
                Ok(row) => (after, passed) = (Some(table.key_of(&row)), 0),
                Err(problem) => {
                    passed += 1;
                    count += 1;
                    first.get_or_insert(problem);
                }
            }
        }
        if last {
            break;
        }
    }
    Ok(first.map(|(key, problem)| Finding {
        fatal: false,
        table: Some(table.name.clone()),
        problem: format!(
            "Rows that no other engine can hold stay at this office: {count}, among them the one with key {}: {problem}.",
            key.map_or_else(|| "unknown".to_owned(), |key| key.to_json().to_string()),
        ),
        advice: "Mend them; a row is sent once it is written again.".to_owned(),
    }))
}
