//! What the application's tables look like, and which of them cannot be shared.

use std::collections::BTreeMap;

use branchline_core::port::{DbResult, Finding, Inspection, Origin};
use branchline_core::schema::{Column, ForeignKey, Table};
use branchline_core::value::Type;
use tokio_postgres::Row;

use super::books::get;
use super::connection::PostgresDatabase;
use super::layout::{Layout, ROOTS, mismatch};
use super::{checks, install, literal, types};

/// The tables that an application may have made; not partitions, not what belongs to an extension.
const TABLES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       pg_catalog.row_security_active(c.oid), c.relpersistence = 'u',
       EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
       c.relkind = 'p', pg_catalog.pg_get_userbyid(c.relowner)::text,
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'branchline') AND n.nspname NOT LIKE 'pg\\_%'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
                  AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass)
ORDER BY n.nspname, c.relname";

const COLUMNS: &str = "
SELECT a.attrelid, a.attname::text, a.attnum, a.attnotnull, a.attidentity <> '', a.attgenerated <> '',
       pg_catalog.pg_get_expr(d.adbin, d.adrelid), b.typname::text, n.nspname::text,
       CASE WHEN a.atttypmod <> -1 THEN a.atttypmod ELSE r.modifier END, e.typname::text, m.nspname::text,
       ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum l
             WHERE l.enumtypid = coalesce(e.oid, b.oid) ORDER BY l.enumsortorder),
       pg_catalog.format_type(a.atttypid, a.atttypmod), coalesce(NOT o.collisdeterministic, false),
       coalesce(e.typtype, b.typtype) = 'e'
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
JOIN root r ON r.oid = a.atttypid
JOIN pg_catalog.pg_type b ON b.oid = r.base JOIN pg_catalog.pg_namespace n ON n.oid = b.typnamespace
LEFT JOIN root q ON q.oid = b.typelem AND b.typcategory = 'A'
LEFT JOIN pg_catalog.pg_type e ON e.oid = q.base LEFT JOIN pg_catalog.pg_namespace m ON m.oid = e.typnamespace
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
WHERE a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

/// Primary keys and unique indexes that hold for every row, as column numbers.
const UNIQUES: &str = "
SELECT i.indrelid, i.indisprimary, (pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts]
FROM pg_catalog.pg_index i
WHERE i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indexrelid";

/// Other indexes over plain columns, as column numbers.
const INDEXES: &str = "
SELECT i.indrelid, (pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts]
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = x.relam AND m.amname = 'btree'
WHERE NOT i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indexrelid";

/// Whether a foreign key `f` sets some of its columns on delete, and leaves others; known from PostgreSQL 15 on. The plan
/// has no word for it.
const SETS_SOME: &str = "coalesce(pg_catalog.jsonb_typeof(pg_catalog.to_jsonb(f) -> 'confdelsetcols') = 'array', false)";

/// What the plan says that a foreign key `f` does on delete.
pub(super) fn on_delete() -> String {
    format!("CASE WHEN {SETS_SOME} THEN 'a' ELSE f.confdeltype::text END")
}

/// `@` stand for [`on_delete`] and [`SETS_SOME`].
const FOREIGN_KEYS: &str = "
SELECT f.conrelid, f.conkey, s.nspname::text, p.relname::text,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY AS k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.number ORDER BY k.place),
       @delete, f.confupdtype::text, f.conname::text, @some, f.confmatchtype = 'f' AND pg_catalog.cardinality(f.conkey) > 1
FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
JOIN pg_catalog.pg_namespace s ON s.oid = p.relnamespace
WHERE f.contype = 'f' AND f.conparentid = 0 ORDER BY f.oid";

/// The application's own triggers: whether before, and whether on inserted or updated rows.
const TRIGGERS: &str = "
SELECT t.tgrelid, t.tgname::text, (t.tgtype & 2) <> 0 AND (t.tgtype & 1) <> 0 AND (t.tgtype & 20) <> 0
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE NOT t.tgisinternal AND n.nspname <> 'branchline' AND t.tgenabled <> 'D' ORDER BY t.tgname";

/// The name of a table in the plan.
pub(super) fn plan_name(schema: &str, name: &str) -> String {
    if schema == "public" {
        name.to_owned()
    } else {
        format!("{schema}.{name}")
    }
}

pub(super) async fn inspect(db: &mut PostgresDatabase) -> DbResult<Inspection> {
    db.open_catalogue().await?;
    let found = look(db).await?;
    db.close(false).await?;
    Ok(found)
}

/// As [`inspect`], in the transaction that is open.
pub(super) async fn look(db: &mut PostgresDatabase) -> DbResult<Inspection> {
    let mut found = Inspection {
        tables: Vec::new(),
        findings: server(db).await?,
        captured: install::captured_tables(db).await?,
        ..Inspection::default()
    };
    let columns = by_table(
        db.query(&format!("WITH {ROOTS} {COLUMNS}"), &[], &[])
            .await?,
    )?;
    let uniques = by_table(db.query(UNIQUES, &[], &[]).await?)?;
    let indexes = by_table(db.query(INDEXES, &[], &[]).await?)?;
    let foreign_keys = FOREIGN_KEYS
        .replace("@delete", &on_delete())
        .replace("@some", SETS_SOME);
    let foreign_keys = by_table(db.query(&foreign_keys, &[], &[]).await?)?;
    let triggers = by_table(db.query(TRIGGERS, &[], &[]).await?)?;
    let constraints = by_table(db.query(checks::CHECKS, &[], &[]).await?)?;
    let none = Vec::new();
    for row in db.query(TABLES, &[], &[]).await? {
        let oid: u32 = get(&row, 0)?;
        let of = |rows: &BTreeMap<u32, Vec<Row>>| rows.get(&oid).map_or(0, Vec::len) > 0;
        let name = plan_name(get(&row, 1)?, get(&row, 2)?);
        let mut look = Look {
            name,
            findings: Vec::new(),
        };
        look.table_itself(&row)?;
        let read = look.columns(columns.get(&oid).unwrap_or(&none))?;
        let (key, unique) = look.keys(uniques.get(&oid).unwrap_or(&none), &read)?;
        let foreign_keys = look.foreign_keys(foreign_keys.get(&oid).unwrap_or(&none), &read)?;
        if of(&triggers) {
            look.triggers(triggers.get(&oid).unwrap_or(&none))?;
        }
        let indexes = plain(indexes.get(&oid).unwrap_or(&none), &read)?;
        let constraints = constraints.get(&oid).unwrap_or(&none);
        let checks = checks::carried(&look.name, constraints, &read, &mut found.left_out)?;
        let fatal = look.findings.iter().any(|finding| finding.fatal);
        if !fatal {
            let origin = Origin {
                table: u64::from(oid),
                columns: read
                    .numbers
                    .iter()
                    .map(|&n| u64::from(n.unsigned_abs()))
                    .collect(),
            };
            found.origins.insert(look.name.clone(), origin);
            found.tables.push(Table {
                id: 0,
                name: look.name,
                columns: read.columns,
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
            });
        }
        found.findings.append(&mut look.findings);
    }
    Ok(found)
}

/// Indexes over columns that travel, each once.
fn plain(rows: &[Row], columns: &Columns) -> DbResult<Vec<Vec<u16>>> {
    let mut indexes = Vec::new();
    for row in rows {
        let index = columns.indexes(&get::<Vec<i16>>(row, 1)?);
        indexes.extend(index.filter(|index| !indexes.contains(index)));
    }
    Ok(indexes)
}

/// Whether our role may create our schema, and what the server's settings mean for us.
async fn server(db: &mut PostgresDatabase) -> DbResult<Vec<Finding>> {
    let sql = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
                      OR pg_catalog.to_regnamespace('branchline') IS NOT NULL,
                      pg_catalog.quote_ident(pg_catalog.current_database()), pg_catalog.quote_ident(current_user),
                      pg_catalog.current_setting('max_prepared_transactions') <> '0'";
    let rows = db.query(sql, &[], &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Vec::new());
    };
    let mut findings = Vec::new();
    if !get::<bool>(row, 0)? {
        let (database, role): (String, String) = (get(row, 1)?, get(row, 2)?);
        findings.push(Finding {
            fatal: true,
            table: None,
            problem: format!(
                "The role {role} may not create the schema `branchline` in the database {database}."
            ),
            advice: format!("Run: GRANT CREATE ON DATABASE {database} TO {role};"),
        });
    }
    if get(row, 3)? {
        findings.push(Finding {
            fatal: false,
            table: None,
            problem: "The server allows prepared transactions, which cannot notify: Branchline looks for changes 40 times a second instead of sleeping.".to_owned(),
            advice: "Where no application uses PREPARE TRANSACTION, set max_prepared_transactions to 0 and restart the server.".to_owned(),
        });
    }
    Ok(findings)
}

fn by_table(rows: Vec<Row>) -> DbResult<BTreeMap<u32, Vec<Row>>> {
    let mut sorted: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
    for row in rows {
        sorted.entry(get(&row, 0)?).or_default().push(row);
    }
    Ok(sorted)
}

/// Columns that travel, with their numbers in the catalogue beside them.
pub(super) struct Columns {
    pub(super) columns: Vec<Column>,
    numbers: Vec<i16>,
    /// Those that cannot tell rows apart, with the reason.
    unfit_as_key: BTreeMap<i16, &'static str>,
}

impl Columns {
    /// Whether different texts, or other values, in a column are equal to the server.
    pub(super) fn folds(&self, column: &Column) -> bool {
        let place = self.columns.iter().position(|one| one == column);
        let number = place.and_then(|place| self.numbers.get(place));
        number.is_none_or(|number| self.unfit_as_key.contains_key(number))
    }

    /// Column numbers as indexes; `None` where one does not travel.
    fn indexes(&self, numbers: &[i16]) -> Option<Vec<u16>> {
        let index = |number| {
            self.numbers
                .iter()
                .position(|n| n == number)
                .and_then(|at| u16::try_from(at).ok())
        };
        numbers.iter().map(index).collect()
    }
}

/// A look at one table.
struct Look {
    name: String,
    findings: Vec<Finding>,
}

impl Look {
    fn fatal(&mut self, problem: impl Into<String>, advice: impl Into<String>) {
        self.find(true, problem.into(), advice.into());
    }

    fn warn(&mut self, problem: impl Into<String>, advice: impl Into<String>) {
        self.find(false, problem.into(), advice.into());
    }

    fn find(&mut self, fatal: bool, problem: String, advice: String) {
        self.findings.push(Finding {
            fatal,
            table: Some(self.name.clone()),
            problem,
            advice,
        });
    }

    fn table_itself(&mut self, row: &Row) -> DbResult<()> {
        let (schema, name): (&str, &str) = (get(row, 1)?, get(row, 2)?);
        if schema.contains('.') || name.contains('.') {
            self.fatal(
                "Its name contains a dot, which separates schema and table.",
                "Rename the table or schema.",
            );
        }
        if !get::<bool>(row, 3)? {
            let owner: &str = get(row, 9)?;
            self.fatal(
                format!("It belongs to {owner}, and Branchline's role is no member of it: it cannot create triggers."),
                format!("Make Branchline's role a member: GRANT \"{owner}\" TO the role, or change the owner."),
            );
        }
        if get(row, 4)? {
            self.fatal(
                "Row security hides rows from Branchline's role; a hidden row looks like a deleted one.",
                "Give the role BYPASSRLS, or let it own the table without FORCE ROW LEVEL SECURITY.",
            );
        }
        if get(row, 5)? {
            self.warn(
                "It is unlogged: a crash of the server empties it.",
                "ALTER TABLE ... SET LOGGED.",
            );
        }
        if get::<bool>(row, 6)? || get::<bool>(row, 7)? {
            self.fatal(
                "It is part of an inheritance tree, in which keys are not unique.",
                "Use declarative partitioning, or leave the table out.",
            );
        }
        if get(row, 8)? {
            self.warn(
                "It is partitioned: attaching, detaching or dropping a partition is not captured.",
                "Delete rows before dropping a partition, and run verify after attaching one.",
            );
        }
        if get(row, 10)? {
            self.fatal(
                "Its primary key is deferrable, which ON CONFLICT cannot use.",
                "Make the primary key NOT DEFERRABLE.",
            );
        }
        Ok(())
    }

    fn columns(&mut self, rows: &[Row]) -> DbResult<Columns> {
        let mut read = Columns {
            columns: Vec::new(),
            numbers: Vec::new(),
            unfit_as_key: BTreeMap::new(),
        };
        for row in rows {
            if get(row, 5)? {
                continue;
            }
            let (name, number): (String, i16) = (get(row, 1)?, get(row, 2)?);
            let Some(kind) = column_type(row)? else {
                let declared: &str = get(row, 13)?;
                self.fatal(
                    format!("Column `{name}` has the type {declared}, which cannot travel."),
                    "Change the column to a supported type, such as text, or leave the table out.",
                );
                continue;
            };
            let modifier: i32 = get(row, 9)?;
            if (0..6).contains(&modifier)
                && matches!(
                    get::<&str>(row, 7)?,
                    "time" | "timetz" | "timestamp" | "timestamptz"
                )
            {
                self.warn(
                    format!("Column `{name}` keeps only {modifier} digits of a second."),
                    "Declare it alike in every office: a value with more digits does not fit here.",
                );
            }
            if get(row, 14)? {
                read.unfit_as_key
                    .insert(number, "its collation takes different texts for equal");
            }
            match kind {
                Type::Interval => {
                    read.unfit_as_key
                        .insert(number, "different intervals compare as equal");
                }
                Type::Array(_) | Type::Json | Type::Jsonb => {
                    read.unfit_as_key
                        .insert(number, "its equal values have several spellings");
                }
                _ => {}
            }
            let default: Option<&str> = get(row, 6)?;
            let drawn = default.is_some_and(|default| default.starts_with("nextval("));
            read.columns.push(Column {
                default: default.and_then(|default| literal::value(&kind, default)),
                kind,
                nullable: !get::<bool>(row, 3)?,
                generated_key: get::<bool>(row, 4)? || drawn,
                id: 0,
                name,
            });
            read.numbers.push(number);
        }
        Ok(read)
    }

    fn keys(&mut self, rows: &[Row], columns: &Columns) -> DbResult<(Vec<u16>, Vec<Vec<u16>>)> {
        let (mut key, mut unique) = (Vec::new(), Vec::new());
        for row in rows {
            let numbers: Vec<i16> = get(row, 2)?;
            if !get::<bool>(row, 1)? {
                unique.extend(columns.indexes(&numbers));
                continue;
            }
            let Some(indexes) = columns.indexes(&numbers) else {
                self.fatal(
                    "Its primary key contains a generated column or one of an unsupported type.",
                    "Give the table a primary key of plain columns.",
                );
                return Ok((Vec::new(), unique));
            };
            for number in &numbers {
                if let Some(reason) = columns.unfit_as_key.get(number) {
                    self.fatal(
                        format!("Its primary key cannot name rows at every office: {reason}."),
                        "Give the table a primary key of numbers, uuids or plain text.",
                    );
                }
            }
            key = indexes;
        }
        if key.is_empty() {
            self.fatal(
                "It has no primary key, so its rows have no names.",
                "ALTER TABLE ... ADD PRIMARY KEY (...), if need be with a new uuid column.",
            );
        }
        let generated = |at: &&u16| {
            columns
                .columns
                .get(usize::from(**at))
                .is_some_and(|column| column.generated_key)
        };
        if let Some(column) = key
            .iter()
            .find(generated)
            .and_then(|&at| columns.columns.get(usize::from(at)))
        {
            let name = column.name.clone();
            self.warn(
                format!("Each office's database numbers `{name}` by itself: two offices will give one number twice."),
                "Give each office a stride (ALTER SEQUENCE ... INCREMENT BY offices, RESTART own number), or use uuids.",
            );
        }
        Ok((key, unique))
    }

    fn foreign_keys(&mut self, rows: &[Row], columns: &Columns) -> DbResult<Vec<ForeignKey>> {
        let mut keys = Vec::new();
        for row in rows {
            if let Some(indexes) = columns.indexes(&get::<Vec<i16>>(row, 1)?) {
                let name: &str = get(row, 7)?;
                if get(row, 8)? {
                    self.warn(
                        format!("The foreign key `{name}` sets only some of its columns on delete; where Branchline creates the table it does nothing on delete."),
                        "Create the table by yourself at the other offices, if their applications delete parents.",
                    );
                }
                if get(row, 9)? {
                    self.warn(
                        format!("The foreign key `{name}` is MATCH FULL; where Branchline creates the table it is MATCH SIMPLE."),
                        "A row with some of these columns NULL that is written there is held here: create the table by yourself, or make the columns NOT NULL.",
                    );
                }
                keys.push(ForeignKey {
                    columns: indexes,
                    parent: plan_name(get(row, 2)?, get(row, 3)?),
                    parent_columns: get(row, 4)?,
                    on_delete: action(get(row, 5)?),
                    on_update: action(get(row, 6)?),
                });
            }
        }
        Ok(keys)
    }

    fn triggers(&mut self, rows: &[Row]) -> DbResult<()> {
        for row in rows {
            let name: &str = get(row, 1)?;
            if get(row, 2)? {
                self.warn(
                    format!("The trigger `{name}` runs before rows are written and may alter what sync applies."),
                    "Let it leave alone what is applied: IF current_setting('branchline.applying', true) = '1' THEN RETURN NEW.",
                );
            } else {
                self.warn(
                    format!("The trigger `{name}` runs again where sync applies a change; its writes there are not captured."),
                    "Let it do nothing then: IF current_setting('branchline.applying', true) = '1' THEN RETURN NULL.",
                );
            }
        }
        Ok(())
    }
}

/// The logical type of a row of [`COLUMNS`].
fn column_type(row: &Row) -> DbResult<Option<Type>> {
    let (name, schema): (&str, &str) = (get(row, 7)?, get(row, 8)?);
    let element: Option<(&str, &str)> = get::<Option<&str>>(row, 10)?.zip(get(row, 11)?);
    let (inner, place) = element.unwrap_or((name, schema));
    let kind = if get(row, 15)? {
        Some(Type::Enum {
            name: plan_name(place, inner),
            labels: get(row, 12)?,
        })
    } else if place == "pg_catalog" {
        types::logical(inner, get(row, 9)?)
    } else {
        None
    };
    Ok(if element.is_some() {
        kind.map(|kind| Type::Array(Box::new(kind)))
    } else {
        kind
    })
}

pub(super) fn action(code: &str) -> String {
    match code {
        "c" => "CASCADE",
        "n" => "SET NULL",
        "d" => "SET DEFAULT",
        "r" => "RESTRICT",
        _ => "NO ACTION",
    }
    .to_owned()
}

/// Whether this office's table can hold what the plan's table holds, and the other way round.
pub(super) fn compatible(planned: &Table, found: &Inspection) -> DbResult<()> {
    let Some(local) = found.tables.iter().find(|table| table.name == planned.name) else {
        let fatal = found
            .findings
            .iter()
            .find(|f| f.fatal && f.table.as_deref() == Some(&planned.name));
        let why = fatal.map_or("the table does not exist here".to_owned(), |f| {
            format!("{} {}", f.problem, f.advice)
        });
        return Err(mismatch(&planned.name, why));
    };
    for (at, column) in planned.columns.iter().enumerate() {
        let name = &column.name;
        let Some(here) = local.columns.iter().find(|here| here.name == *name) else {
            return Err(mismatch(
                &planned.name,
                format!("column `{name}` does not exist here"),
            ));
        };
        if !serves(&column.kind, &here.kind) {
            let (planned_kind, kind) = (&column.kind, &here.kind);
            let message = format!("column `{name}` is {kind} here, and {planned_kind} in the plan");
            return Err(mismatch(&planned.name, message));
        }
        if !planned.is_key(at) && column.nullable != here.nullable {
            let words = |nullable| {
                if nullable {
                    "may be NULL"
                } else {
                    "must not be NULL"
                }
            };
            let message = format!(
                "column `{name}` {} here, and {} in the plan",
                words(here.nullable),
                words(column.nullable)
            );
            return Err(mismatch(&planned.name, message));
        }
    }
    let names = |table: &Table| {
        table
            .key_columns()
            .map(|column| column.name.clone())
            .collect::<Vec<_>>()
    };
    if names(planned) != names(local) {
        let message = format!(
            "the primary key is ({}) here, and ({}) in the plan",
            names(local).join(", "),
            names(planned).join(", ")
        );
        return Err(mismatch(&planned.name, message));
    }
    Ok(())
}

/// Whether rows of the plan's table can be inserted here: what the plan does not know must not be required.
pub(super) fn insertable(planned: &Table, layout: &Layout) -> DbResult<()> {
    let known = |name: &String| planned.columns.iter().any(|column| column.name == *name);
    match layout.required.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => {
            let message =
                format!("column `{name}` is not in the plan and has neither NULL nor a default");
            Err(mismatch(&planned.name, message))
        }
    }
}

/// Whether a column found with one type serves for one planned with another. The two kinds of JSON are one in canonical form.
fn serves(planned: &Type, here: &Type) -> bool {
    let json = |kind: &Type| matches!(kind, Type::Json | Type::Jsonb);
    same(planned, here) || (json(planned) && json(here))
}

/// Enums are told by their labels: engines without named enums have no name for them.
pub(super) fn same(planned: &Type, here: &Type) -> bool {
    match (planned, here) {
        (Type::Enum { labels: a, .. }, Type::Enum { labels: b, .. }) => a == b,
        (Type::Array(a), Type::Array(b)) => same(a, b),
        (a, b) => a == b,
    }
}
