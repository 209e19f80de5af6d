//! A look through the tables for rows that cannot be read, since neither the first copy nor `verify` would show them.

use branchline_core::port::{DbResult, Finding};
use branchline_core::schema::Table;

use super::SqliteDatabase;

/// Rows read at a time: the application's commit may wait for one page, not for the table.
const PAGE: usize = 500;

impl SqliteDatabase {
    /// A finding where rows of the table cannot be read. Reads the whole table, in no transaction.
    pub(super) fn look_for_misfits(&self, table: &Table) -> DbResult<Option<Finding>> {
        let (mut count, mut first) = (0_u64, None);
        let (mut after, mut passed) = (None, 0);
        loop {
            let page = self.read_page(table, after.as_ref(), PAGE, passed)?;
            let last = page.len() < PAGE;
            for row in page {
                match row {
                    Ok(row) => (after, passed) = (Some(table.key_of(&row)), 0),
                    Err(unreadable) => {
                        passed += 1;
                        count += 1;
                        first.get_or_insert(unreadable);
                    }
                }
            }
            if last {
                break;
            }
        }
        Ok(first.map(|first| Finding {
            fatal: false,
            table: Some(table.name.clone()),
            problem: format!(
                "table `{}`: rows that are not what their columns are declared as stay at this office: {count}, among \
                 them the one with key {}: {}",
                table.name,
                first.key.to_json(),
                first.problem
            ),
            advice: "mend them; a row is sent once it is written again".into(),
        }))
    }
}
