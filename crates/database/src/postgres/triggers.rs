//! The text of the capture's triggers.
//!
//! Statement triggers with transition tables, one function per table and event; row triggers where the table is
//! partitioned, since writes straight into a partition do not fire its parent's statement triggers. The functions
//! run with our rights, so that the application needs none. Every name and operator in them is qualified: setting
//! `search_path` instead, as is usual, costs a sixth of what capture costs.
//!
//! Where the table's rule needs the row before a change, the old row is noted beside the key, as names and texts of
//! its columns.
//!
//! The application may rename, drop or retype any column at any time, and its writes must not fail for us. So columns
//! are named without their table, and each has a variable of its name, which is NULL: that is what is noted of a column
//! that is gone. Where it is one of the key's, the whole row is noted as JSON beside a NULL, and [`super::rekey`] finds
//! the key in it once the new names are known. Nothing but texts is computed: any type has one.

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
/// A variable that is NULL. Every statement names it: one that names no variable at first is never given any, also not
/// once it is planned anew and a column is gone.
const NONE: &str = "\"branchline none\"";
/// The name of the trigger that a partition needs of its own.
pub(super) const TRUNCATE: &str = "branchline_truncate";
/// Other names for a row trigger's rows: the variable of a column may be called as they are.
const ROWS: &str = "    \"branchline new\" ALIAS FOR new;\n    \"branchline old\" ALIAS FOR old;\n";
const NEW: &str = "\"branchline new\"";
const OLD: &str = "\"branchline old\"";
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
        body: notes.body(&work),
        settings: settings.clone(),
        clause,
    };
    let mut truncate = trigger(
        "truncate",
        TRUNCATE,
        "BEFORE TRUNCATE ON {} FOR EACH STATEMENT",
        notes.truncated(),
    );
    truncate.settings.push_str(FIXED_PATH);
    let (key, unknown) = (notes.key(), notes.unknown());
    if partitioned {
        // Naming the table makes sessions plan anew once it is altered; NEW and OLD alone do not. As a constant it asks
        // for no right to the table: it may have got another owner.
        let name = literal::text(&Value::Text(relation(&table.name)));
        let always = format!(" WHERE {name}::pg_catalog.regclass IS NOT NULL");
        let rows = |row: &str, name: &str| format!(" FROM (SELECT {row}.*{always}) {name}");
        let was = notes.written(&rows(OLD, "o"));
        let moved = format!(
            "{INTO} {} WHERE n.old IS NOT NULL OR n.key OPERATOR(pg_catalog.<>) o.key;",
            notes.noted(
                INSERTED,
                "n.key",
                "n.old",
                &format!(
                    " FROM (SELECT {key} AS key, {} AS old{}) n CROSS JOIN (SELECT {key} AS key{}) o",
                    notes.whole("r"),
                    rows(NEW, "r"),
                    rows(OLD, "r")
                )
            )
        );
        let renamed =
            |work: &str, otherwise: &[(&str, &str)]| notes.unless_renamed(work, otherwise);
        return Ok(vec![
            trigger(
                "insert",
                "branchline_insert",
                "AFTER INSERT ON {} FOR EACH ROW",
                renamed(&notes.inserted(&rows(NEW, "n")), &[(INSERTED, NEW)]),
            ),
            trigger(
                "update",
                "branchline_update",
                "AFTER UPDATE ON {} FOR EACH ROW",
                renamed(
                    &format!("{was}\n    {moved}"),
                    &[(WRITTEN, OLD), (INSERTED, NEW)],
                ),
            ),
            trigger(
                "delete",
                "branchline_delete",
                "AFTER DELETE ON {} FOR EACH ROW",
                renamed(&was, &[(WRITTEN, OLD)]),
            ),
            truncate,
        ]);
    }
    let was = notes.written(" FROM old_rows o");
    // EXCEPT, not an anti-join: its plan is good for one row and for a million, and plpgsql keeps the first plan.
    let moved = notes.noted(
        INSERTED,
        "moved.key",
        "moved.old",
        &format!(
            " FROM (SELECT {key}, {} FROM new_rows n EXCEPT SELECT {key}, {NO_OLD} FROM old_rows) AS moved(key, old)",
            notes.whole("n")
        ),
    );
    // The look before it spares the usual statement, on one row whose key stays, half of the cost; where there are
    // several rows it ends at the first two.
    let updated = format!(
        "{was}
    IF EXISTS (SELECT FROM (SELECT {key} AS key, {unknown} AS unknown FROM old_rows) o
               CROSS JOIN (SELECT {key} AS key FROM new_rows) n
               WHERE o.key OPERATOR(pg_catalog.<>) n.key OR o.unknown OR {NONE} IS NOT NULL) THEN
        {INTO} {moved};
    END IF;"
    );
    Ok(vec![
        trigger(
            "insert",
            "branchline_insert",
            "AFTER INSERT ON {} REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
            notes.inserted(" FROM new_rows n"),
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
            was,
        ),
        truncate,
    ])
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

    /// The columns that are noted.
    fn columns(&self) -> impl Iterator<Item = &branchline_core::schema::Column> {
        let keeps = self.table.keeps_before();
        let all = self.table.columns.iter().enumerate();
        all.filter(move |(at, _)| keeps || self.table.is_key(*at))
            .map(|(_, column)| column)
    }

    fn body(&self, work: &str) -> String {
        let variables: String = self
            .columns()
            .map(|column| format!("    {} pg_catalog.text;\n", ident(&column.name)))
            .collect();
        let rows = if [NEW, OLD].iter().any(|row| work.contains(row)) {
            ROWS
        } else {
            ""
        };
        format!(
            "
#variable_conflict use_column
DECLARE
{rows}    {NONE} pg_catalog.text[];
{variables}BEGIN
    IF pg_catalog.current_setting('branchline.applying', true) OPERATOR(pg_catalog.=) '1' THEN RETURN NULL; END IF;
    {work}
    IF pg_catalog.pg_sequence_last_value('branchline.asleep_until'::pg_catalog.regclass)
        OPERATOR(pg_catalog.>) pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
    THEN PERFORM pg_catalog.pg_notify('branchline', ''); END IF;
    RETURN NULL;
END "
        )
    }

    fn key(&self) -> String {
        let texts: Vec<String> = self
            .table
            .key_columns()
            .map(|column| types::key_text(&column.kind, &ident(&column.name)))
            .collect();
        format!("ARRAY[{}]", texts.join(", "))
    }

    /// Whether the key cannot be told: a column of it has another name now.
    fn unknown(&self) -> String {
        let gone: Vec<String> = self
            .table
            .key_columns()
            .map(|column| format!("{} IS NULL", ident(&column.name)))
            .collect();
        format!("({})", gone.join(" OR "))
    }

    /// The whole row beside a NULL, where its key cannot be told; otherwise NULL.
    fn whole(&self, row: &str) -> String {
        format!(
            "CASE WHEN {} THEN ARRAY[NULL, pg_catalog.to_jsonb({row}.*)::pg_catalog.text] ELSE {NONE} END",
            self.unknown()
        )
    }

    fn noted(&self, op: &str, key: &str, old: &str, from: &str) -> String {
        format!("SELECT {}, {op}, {STAMP}, {key}, {old}{from}", self.id)
    }

    /// Notes rows that were not there before.
    fn inserted(&self, from: &str) -> String {
        let noted = self.noted(INSERTED, &self.key(), &self.whole("n"), from);
        format!("{INTO} {noted};")
    }

    /// What is noted of a row `o` as it was.
    fn image(&self) -> String {
        if !self.table.keeps_before() {
            return self.whole("o");
        }
        let texts: Vec<String> = self
            .table
            .columns
            .iter()
            .map(|column| {
                let label = literal::text(&Value::Text(column.name.clone()));
                format!("{label}, {}::pg_catalog.text", ident(&column.name))
            })
            .collect();
        format!(
            "coalesce({}, ARRAY[{}]::pg_catalog.text[])",
            self.whole("o"),
            texts.join(", ")
        )
    }

    /// Notes rows that were there before: their keys, and as they were where that is kept.
    fn written(&self, from: &str) -> String {
        let noted = self.noted(WRITTEN, &self.key(), &self.image(), from);
        format!("{INTO} {noted};")
    }

    /// What is done where the table has its name; otherwise whole rows are noted, for which no name is needed.
    fn unless_renamed(&self, work: &str, otherwise: &[(&str, &str)]) -> String {
        let name = literal::text(&Value::Text(relation(&self.table.name)));
        let whole: String = otherwise
            .iter()
            .map(|(op, row)| {
                format!(
                    "{INTO} VALUES ({}, {op}, {STAMP}, ARRAY[NULL]::pg_catalog.text[], ARRAY[NULL, pg_catalog.to_jsonb({row})::pg_catalog.text]);\n    ",
                    self.id
                )
            })
            .collect();
        format!(
            "IF pg_catalog.to_regclass({name}) IS NULL THEN
    {whole}ELSE
    {work}
    END IF;"
        )
    }

    fn truncated(&self) -> String {
        let mark = "branchline truncated relation";
        // A statement made of text sees no variables.
        let missing: Vec<String> = std::iter::once(format!("{NO_OLD} AS {NONE}"))
            .chain(
                self.columns()
                    .map(|column| format!("NULL::pg_catalog.text AS {}", ident(&column.name))),
            )
            .collect();
        let work = format!(
            "{INTO} {} FROM (SELECT {}) AS missing
    CROSS JOIN LATERAL (SELECT {} AS key, {} AS old FROM {mark} o) AS noted",
            self.noted(WRITTEN, "noted.key", "noted.old", ""),
            missing.join(", "),
            self.key(),
            self.image()
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
