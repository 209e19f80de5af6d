//! The smallest company: a head on a SQLite file with one table of items, and a branch.

use branchline_testkit::servers::free_port;
use tempfile::TempDir;

use crate::office::Office;
use crate::sql::Db;

/// A head that nobody runs yet.
pub fn head(folder: &TempDir) -> Office {
    let head = Office::sqlite(folder.path(), "HO");
    Db::open(&head.database).run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)");
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    head
}

/// A head and its branch, which both run.
pub fn head_and_branch(folder: &TempDir) -> (Office, Office) {
    let mut head = head(folder);
    let code = head.invite("b1", &[]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    (head, branch)
}
