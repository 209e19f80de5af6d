//! What the application's tables look like, and what about them will hurt.

use branchline_core::port::{DbResult, Finding, Inspection, LeftOut};
use branchline_core::schema::{Column, ForeignKey, Table};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::catalog::Live;
use super::checks;
use super::declared::logical;
use super::error::failure;
use super::references::primary_key;
use super::sql::{KEY_COLUMNS, list, places, plain_default, quoted};
use super::triggers;

/// See [`branchline_core::port::Database::inspect`].
pub(super) fn inspect(connection: &Connection) -> DbResult<Inspection> {
    let mut inspection = Inspection {
        captured: triggers::captured_tables(connection)?,
        ..Inspection::default()
    };
    journal(connection, &mut inspection.findings)?;
    for (name, kind) in relations(connection).map_err(failure)? {
        let mut findings = Findings {
            table: &name,
            found: Vec::new(),
        };
        let table = match kind.as_str() {
            "table" => ordinary(connection, &name, &mut findings, &mut inspection.left_out)?,
            "view" => findings.fatal("it is a view", "share the tables that it reads"),
            _ => findings.fatal(
                "it is a virtual table",
                "share an ordinary table that it is filled from",
            ),
        };
        let fatal = findings.found.iter().any(|finding| finding.fatal);
        inspection.tables.extend(table.filter(|_| !fatal));
        inspection.findings.append(&mut findings.found);
    }
    Ok(inspection)
}

/// The findings on one table.
struct Findings<'a> {
    table: &'a str,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, fatal: bool, problem: &str, advice: &str) {
        self.found.push(Finding {
            fatal,
            table: Some(self.table.to_owned()),
            problem: format!("table `{}`: {problem}", self.table),
            advice: advice.to_owned(),
        });
    }

    fn fatal(&mut self, problem: &str, advice: &str) -> Option<Table> {
        self.add(true, problem, advice);
        None
    }

    fn warn(&mut self, problem: &str, advice: &str) {
        self.add(false, problem, advice);
    }
}

fn journal(connection: &Connection, findings: &mut Vec<Finding>) -> DbResult<()> {
    let mode: String = connection
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .map_err(failure)?;
    if mode != "wal" {
        findings.push(Finding {
            fatal: false,
            table: None,
            problem: format!(
                "the journal mode is `{mode}`: readers and the writer wait for each other"
            ),
            advice: "let the application run `PRAGMA journal_mode = WAL` once, if it can".into(),
        });
    }
    Ok(())
}

/// The application's tables and views by name, with SQLite's word for their kind.
pub(super) fn relations(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    connection
        .prepare(
            "SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type <> 'shadow'
             AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'branchline\\_%' ESCAPE '\\' ORDER BY name",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn ordinary(
    connection: &Connection,
    name: &str,
    findings: &mut Findings<'_>,
    left_out: &mut Vec<LeftOut>,
) -> DbResult<Option<Table>> {
    let Some(live) = Live::find(connection, name)? else {
        return Ok(findings.fatal(
            "its columns cannot be read",
            "check the database with `PRAGMA integrity_check`",
        ));
    };
    check_key(&live, findings);
    if let Some(collation) = live.foreign_collation() {
        let problem =
            format!("an index uses collation `{collation}`, which only the application has");
        findings.fatal(&problem, "rebuild the index with BINARY, NOCASE or RTRIM");
    }
    if let Some(index) = live.unwatched_index() {
        let problem = format!(
            "rows that `INSERT OR REPLACE` removes because of index `{index}` are not captured"
        );
        findings.warn(
            &problem,
            "write with `ON CONFLICT DO UPDATE`, or make the index plain",
        );
    }
    let columns = columns(&live, findings);
    check_triggers(connection, name, findings)?;
    if findings.found.iter().any(|finding| finding.fatal) {
        return Ok(None);
    }
    check_rows(connection, &live, &columns, findings)?;
    let place = |name: &str| position(&columns, name);
    let key: Vec<u16> = live
        .key()
        .iter()
        .filter_map(|column| place(&column.name))
        .collect();
    let mut unique: Vec<Vec<u16>> = live
        .unique_columns()
        .filter_map(|set| set.iter().map(|(name, _)| place(name)).collect())
        .collect();
    unique.retain(|set| *set != key);
    unique.dedup();
    let mut indexes: Vec<Vec<u16>> = Vec::new();
    for index in live.plain_indexes() {
        let index: Option<Vec<u16>> = index.iter().map(|name| place(name)).collect();
        indexes.extend(index.filter(|index| !indexes.contains(index)));
    }
    let foreign_keys = foreign_keys(connection, name, &columns).map_err(failure)?;
    let checks = checks::carried(connection, name, &columns, left_out)?;
    Ok(Some(Table {
        id: 0,
        name: name.to_owned(),
        columns,
        key,
        unique,
        foreign_keys,
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: Vec::new(),
        before: false,
        columns_ever: 0,
        indexes,
        checks,
    }))
}

fn check_key(live: &Live, findings: &mut Findings<'_>) {
    match live.key().len() {
        0 => drop(findings.fatal("it has no primary key", "add a primary key")),
        1..=KEY_COLUMNS => {}
        _ => {
            let problem = format!("its primary key has more than {KEY_COLUMNS} columns");
            findings.fatal(&problem, "use a shorter key");
        }
    }
    if let Some(collation) = live.folding_key() {
        let problem = format!(
            "its primary key has collation {collation}, under which different keys are the same"
        );
        findings.fatal(&problem, "use BINARY, SQLite's default, for key columns");
    }
}

fn columns(live: &Live, findings: &mut Findings<'_>) -> Vec<Column> {
    let mut columns = Vec::new();
    for column in live.columns.iter().filter(|column| !column.generated) {
        match logical(&column.declared) {
            Ok(kind) => columns.push(Column {
                name: column.name.clone(),
                default: column
                    .default
                    .as_deref()
                    .and_then(|sql| plain_default(&kind, sql)),
                kind,
                nullable: !column.not_null && column.key == 0,
                generated_key: column.key > 0 && live.numbers_rows(),
                id: 0,
            }),
            Err(reason) => {
                let problem = format!("column `{}`: {}", column.name, reason.problem);
                findings.fatal(&problem, &reason.advice);
            }
        }
    }
    columns
}

fn check_triggers(
    connection: &Connection,
    name: &str,
    findings: &mut Findings<'_>,
) -> DbResult<()> {
    let triggers: Vec<String> = connection
        .prepare_cached(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE
             AND name NOT LIKE 'branchline\\_%' ESCAPE '\\' ORDER BY name",
        )
        .and_then(|mut names| names.query_map([name], |row| row.get(0))?.collect())
        .map_err(failure)?;
    let fires = connection
        .db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER)
        .map_err(failure)?;
    for trigger in triggers {
        if fires {
            let problem = format!(
                "its trigger `{trigger}` also fires when changes of other offices are applied"
            );
            findings.warn(
                &problem,
                "if it writes to shared tables, move that into the application or silence triggers",
            );
        } else {
            let problem = format!(
                "its trigger `{trigger}` does not fire when changes of other offices are applied"
            );
            findings.warn(
                &problem,
                "if it keeps local tables such as a search index, rebuild them from time to time",
            );
        }
    }
    Ok(())
}

/// What only shows when the table is used: writing it needs functions that we lack, or a row has no key.
fn check_rows(
    connection: &Connection,
    live: &Live,
    columns: &[Column],
    findings: &mut Findings<'_>,
) -> DbResult<()> {
    let table = quoted(&live.name);
    let names = list(columns.iter().map(|column| quoted(&column.name)));
    let trial = format!(
        "INSERT INTO {table} ({names}) VALUES ({})",
        places(columns.len())
    );
    if let Err(error) = connection.prepare(&trial) {
        let problem = format!("Branchline cannot write to it: {error}");
        findings.fatal(
            &problem,
            "triggers, checks and indexes must work without functions of the application's own",
        );
        return Ok(());
    }
    let keyless = live
        .key()
        .iter()
        .map(|column| format!("t.{} IS NULL", quoted(&column.name)))
        .collect::<Vec<_>>();
    let keyless = format!(
        "SELECT EXISTS (SELECT 1 FROM {table} AS t WHERE {})",
        keyless.join(" OR ")
    );
    if connection
        .query_row(&keyless, [], |row| row.get(0))
        .map_err(failure)?
    {
        findings.fatal(
            "a row has NULL in its primary key",
            "give that row a key, and declare the key NOT NULL",
        );
    }
    Ok(())
}

fn foreign_keys(
    connection: &Connection,
    name: &str,
    columns: &[Column],
) -> rusqlite::Result<Vec<ForeignKey>> {
    let mut select = connection.prepare(
        "SELECT seq, \"table\", \"from\", \"to\", on_delete, on_update
         FROM pragma_foreign_key_list(?1, 'main') ORDER BY id DESC, seq",
    )?;
    let mut rows = select.query([name])?;
    let mut found: Vec<ForeignKey> = Vec::new();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(0)? == 0 {
            found.push(ForeignKey {
                columns: Vec::new(),
                parent: row.get(1)?,
                parent_columns: Vec::new(),
                on_delete: row.get(4)?,
                on_update: row.get(5)?,
            });
        }
        if let Some(reference) = found.last_mut() {
            reference
                .columns
                .extend(position(columns, &row.get::<_, String>(2)?));
            reference
                .parent_columns
                .extend(row.get::<_, Option<String>>(3)?);
        }
    }
    for reference in &mut found {
        if reference.parent_columns.is_empty() {
            reference.parent_columns = primary_key(connection, &reference.parent)?;
        }
    }
    found.retain(|reference| reference.columns.len() == reference.parent_columns.len());
    Ok(found)
}

fn position(columns: &[Column], name: &str) -> Option<u16> {
    let at = columns
        .iter()
        .position(|column| column.name.eq_ignore_ascii_case(name))?;
    u16::try_from(at).ok()
}
