//! The text of the capture's triggers.
//!
//! Statement triggers with transition tables, one function per table and event; row triggers where the table is
//! partitioned, since writes straight into a partition do not fire its parent's statement triggers. The functions
//! run with our rights, so that the application needs none. Every name and operator in them is qualified: setting
//! `search_path` instead, as is usual, costs a sixth of what capture costs.
//!
//! Where the table's rule needs the row before a change, the old row is noted beside the key, as names and texts of
//! its columns. A column that the application drops meanwhile is noted as NULL: its writes must not fail for us.

use std::collections::BTreeSet;

use branchline_core::port::DbResult;
use branchline_core::schema::Table;
use branchline_core::value::Value;

use super::books::table_number;
use super::ddl::{ident, relation};
use super::{literal, types};

const STAMP: &str = "pg_catalog.clock_timestamp(), pg_catalog.pg_current_xact_id()";
/// All columns, with values of exactly their types: otherwise each execution pays for one more plan node.
const INTO: &str = "INSERT INTO branchline.capture (tbl, op, at, tx, key, old)";
const INSERTED: &str = "'I'::pg_catalog.\"char\"";
const WRITTEN: &str = "'U'::pg_catalog.\"char\"";
const NO_OLD: &str = "NULL::pg_catalog.text[]";
const FIXED_PATH: &str = " SET search_path TO pg_catalog, pg_temp";

/// One of the capture's triggers on a table.
pub(super) struct Trigger {
    pub(super) name: &'static str,
    pub(super) function: String,
    pub(super) body: String,
    /// `SET` clauses of the function.
    pub(super) settings: String,
    /// From the event on; `{}` stands for the relation.
    pub(super) clause: &'static str,
}

impl Trigger {
    /// Creates or replaces the function.
    pub(super) fn creation(&self) -> String {
        let Self {
            function, settings, ..
        } = self;
        let body = literal::text(&Value::Text(self.body.clone()));
        format!(
            "CREATE OR REPLACE FUNCTION branchline.{function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER{settings}
                 AS {body};
             REVOKE ALL ON FUNCTION branchline.{function}() FROM PUBLIC;"
        )
    }
}

/// The triggers that capture a table.
pub(super) fn triggers(table: &Table, partitioned: bool) -> DbResult<Vec<Trigger>> {
    let notes = Notes {
        table,
        id: table_number(table.id)?,
    };
    let settings = notes.settings();
    let trigger = |event: &str, name, clause, work: String| Trigger {
        name,
        function: format!("capture_{}_{event}", notes.id),
        body: body(&work),
        settings: settings.clone(),
        clause,
    };
    let mut truncate = trigger(
        "truncate",
        "branchline_truncate",
        "BEFORE TRUNCATE ON {} FOR EACH STATEMENT",
        notes.truncated(),
    );
    truncate.settings.push_str(FIXED_PATH);
    if partitioned {
        let (new, old) = (notes.key("NEW"), notes.key("OLD"));
        // Naming the table makes sessions plan anew once it is altered; NEW and OLD alone do not.
        let always = format!(
            " WHERE NOT EXISTS (SELECT FROM {} WHERE false)",
            relation(&table.name)
        );
        let was = notes.written(&old, &always, &format!("(SELECT OLD.*{always}) o"));
        let moved = notes.new_key(
            &new,
            &format!("{always} AND {new} OPERATOR(pg_catalog.<>) {old}"),
        );
        return Ok(vec![
            trigger(
                "insert",
                "branchline_insert",
                "AFTER INSERT ON {} FOR EACH ROW",
                format!("{INTO} {};", notes.new_key(&new, &always)),
            ),
            trigger(
                "update",
                "branchline_update",
                "AFTER UPDATE ON {} FOR EACH ROW",
                format!("{was}\n    UNION ALL {moved};"),
            ),
            trigger(
                "delete",
                "branchline_delete",
                "AFTER DELETE ON {} FOR EACH ROW",
                format!("{was};"),
            ),
            truncate,
        ]);
    }
    let (new, old) = (notes.key("n"), notes.key("o"));
    let was = notes.written(&old, " FROM old_rows o", "old_rows o");
    // EXCEPT, not an anti-join: its plan is good for one row and for a million, and plpgsql keeps the first plan.
    let moved = notes.new_key(
        "moved.key",
        &format!(
            " FROM (SELECT {new} FROM new_rows n EXCEPT SELECT {old} FROM old_rows o) AS moved(key)"
        ),
    );
    // The look before it spares the usual statement, on one row whose key stays, half of the cost; where there are
    // several rows it ends at the first two.
    let updated = format!(
        "{was};
    IF EXISTS (SELECT FROM old_rows o CROSS JOIN new_rows n WHERE {old} OPERATOR(pg_catalog.<>) {new}) THEN
        {INTO} {moved};
    END IF;"
    );
    Ok(vec![
        trigger(
            "insert",
            "branchline_insert",
            "AFTER INSERT ON {} REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
            format!("{INTO} {};", notes.new_key(&new, " FROM new_rows n")),
        ),
        trigger(
            "update",
            "branchline_update",
            "AFTER UPDATE ON {} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT",
            updated,
        ),
        trigger(
            "delete",
            "branchline_delete",
            "AFTER DELETE ON {} REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT",
            format!("{was};"),
        ),
        truncate,
    ])
}

fn body(work: &str) -> String {
    format!(
        "
#variable_conflict use_column
BEGIN
    IF pg_catalog.current_setting('branchline.applying', true) OPERATOR(pg_catalog.=) '1' THEN RETURN NULL; END IF;
    {work}
    IF pg_catalog.pg_sequence_last_value('branchline.asleep_until'::pg_catalog.regclass)
        OPERATOR(pg_catalog.>) pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
    THEN PERFORM pg_catalog.pg_notify('branchline', ''); END IF;
    RETURN NULL;
END "
    )
}

/// What is noted of a table's rows.
struct Notes<'t> {
    table: &'t Table,
    id: i32,
}

impl Notes<'_> {
    /// The settings that make the noted texts one, whoever writes.
    fn settings(&self) -> String {
        let keeps = self.table.keeps_before();
        let noted = self.table.columns.iter().enumerate();
        let fixed: BTreeSet<&str> = noted
            .filter(|(at, _)| keeps || self.table.is_key(*at))
            .flat_map(|(_, column)| types::settings(&column.kind))
            .copied()
            .collect();
        fixed
            .iter()
            .map(|setting| format!(" SET {setting}"))
            .collect()
    }

    fn key(&self, row: &str) -> String {
        let texts: Vec<String> = self
            .table
            .key_columns()
            .map(|column| types::key_text(&column.kind, &format!("{row}.{}", ident(&column.name))))
            .collect();
        format!("ARRAY[{}]", texts.join(", "))
    }

    /// What is noted of rows that were not there before.
    fn new_key(&self, key: &str, from: &str) -> String {
        format!(
            "SELECT {}, {INSERTED}, {STAMP}, {key}, {NO_OLD}{from}",
            self.id
        )
    }

    /// Notes rows that were there before: their keys, and as they were where that is kept, all from `rows`.
    fn written(&self, key: &str, from: &str, rows: &str) -> String {
        let id = self.id;
        if !self.table.keeps_before() {
            return format!("{INTO} SELECT {id}, {WRITTEN}, {STAMP}, {key}, {NO_OLD}{from}");
        }
        let names = || self.table.columns.iter().map(|column| &column.name);
        let missing: Vec<String> = names()
            .map(|name| format!("NULL::pg_catalog.text AS {}", ident(name)))
            .collect();
        let texts: Vec<String> = names()
            .map(|name| {
                let label = literal::text(&Value::Text(name.clone()));
                format!("{label}, {}::pg_catalog.text", ident(name))
            })
            .collect();
        // Unqualified, a column that `o` has not is that of `missing`.
        format!(
            "{INTO} SELECT {id}, {WRITTEN}, {STAMP}, noted.key, noted.old FROM (SELECT {}) AS missing
    CROSS JOIN LATERAL (SELECT {key} AS key, ARRAY[{}]::pg_catalog.text[] AS old FROM {rows}) AS noted",
            missing.join(", "),
            texts.join(", ")
        )
    }

    fn truncated(&self) -> String {
        let mark = "branchline truncated relation";
        let work = self.written(
            &self.key("o"),
            &format!(" FROM {mark} o"),
            &format!("{mark} o"),
        );
        let (before, after) = work.split_once(mark).unwrap_or((&work, ""));
        let [before, after] =
            [before, after].map(|part| literal::text(&Value::Text(part.to_owned())));
        format!(
            "EXECUTE {before} OPERATOR(pg_catalog.||) TG_RELID::pg_catalog.regclass::pg_catalog.text
        OPERATOR(pg_catalog.||) {after};"
        )
    }
}
