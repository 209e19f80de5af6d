//! What the application's tables look like, and which of them cannot be shared.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::port::{DatabaseError, DbResult, Finding, Inspection};
use branchline_core::schema::{Column, ForeignKey, Schema, Table, TableId};
use branchline_core::value::Type;

use super::capture::{self, ours};
use super::cascade;
use super::checks;
use super::connection::MysqlDatabase;
use super::ddl::{UNSAYABLE, unsayable};
use super::encoding::KEY_BYTES;
use super::error::mismatch;
use super::layout::{Declared, declared};
use super::literal::default_value;
use super::types::{logical, serves};

/// A foreign key within this database.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) child: String,
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    pub(super) parent: String,
    pub(super) parent_columns: Vec<String>,
    pub(super) on_delete: String,
    pub(super) on_update: String,
}

impl Reference {
    /// Whether an action of it changes children.
    pub(super) fn acts(&self) -> bool {
        [&self.on_delete, &self.on_update]
            .iter()
            .any(|action| cascade::acts(action))
    }
}

/// What a foreign key does: its actions, and the parent's index that it uses where the catalogue names it.
pub(super) struct Rule {
    pub(super) on_delete: String,
    pub(super) on_update: String,
    pub(super) index: Option<String>,
}

/// What the foreign keys that refer to tables of this database do, by schema, table and name; of this database's own tables,
/// or of all. Asked for alone: joined to the columns, the server opens every table for every row.
pub(super) async fn rules(
    db: &mut MysqlDatabase,
    own: bool,
) -> DbResult<BTreeMap<(String, String, String), Rule>> {
    let own = if own {
        " AND CONSTRAINT_SCHEMA = DATABASE()"
    } else {
        ""
    };
    let sql = format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, DELETE_RULE, UPDATE_RULE, UNIQUE_CONSTRAINT_NAME
         FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE UNIQUE_CONSTRAINT_SCHEMA = DATABASE(){own}"
    );
    let rows = db.rows(sql).await?;
    let rule = rows.iter().map(|row| {
        let rule = Rule {
            on_delete: row.text(3),
            on_update: row.text(4),
            index: row.bytes(5).map(|_| row.text(5)),
        };
        ((row.text(0), row.text(1), row.text(2)), rule)
    });
    Ok(rule.collect())
}

/// The foreign keys of this database's tables that refer to tables of this database. MariaDB looks through the tables of
/// all databases unless it is told which it is, in just these columns.
pub(super) async fn foreign_keys(db: &mut MysqlDatabase) -> DbResult<Vec<Reference>> {
    let rows = db
        .catalogue(
            "SELECT TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME, CONSTRAINT_SCHEMA
             FROM information_schema.KEY_COLUMN_USAGE
             WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_SCHEMA = DATABASE()
             ORDER BY TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION",
        )
        .await?;
    let rules = rules(db, true).await?;
    let mut found: Vec<Reference> = Vec::new();
    for row in rows {
        let (child, name) = (row.text(0), row.text(1));
        let last = found
            .last()
            .is_some_and(|last| last.name == name && last.child == child);
        if !last {
            let place = (row.text(5), child, name);
            // One without is gone since a moment.
            let Some(rule) = rules.get(&place) else {
                continue;
            };
            let (_, child, name) = place;
            found.push(Reference {
                child,
                name,
                columns: Vec::new(),
                parent: row.text(3),
                parent_columns: Vec::new(),
                on_delete: action(&rule.on_delete),
                on_update: action(&rule.on_update),
            });
        }
        if let Some(last) = found.last_mut() {
            last.columns.push(row.text(2));
            last.parent_columns.push(row.text(4));
        }
    }
    Ok(found)
}

/// The action; `RESTRICT` and none are the same here.
fn action(rule: &str) -> String {
    match rule {
        "RESTRICT" => "NO ACTION".to_owned(),
        other => other.to_owned(),
    }
}

/// An index.
pub(super) struct Index {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    pub(super) unique: bool,
    /// It covers only the beginning of a column, or an expression; or it is of another kind.
    pub(super) partial: bool,
}

/// This office's tables as they are.
pub(super) struct Here {
    pub(super) found: Inspection,
    pub(super) declared: BTreeMap<String, Vec<Declared>>,
}

pub(super) async fn inspect(db: &mut MysqlDatabase) -> DbResult<Inspection> {
    Ok(look(db).await?.found)
}

pub(super) async fn look(db: &mut MysqlDatabase) -> DbResult<Here> {
    db.open_catalogue().await?;
    let declared = declared(db, None).await?;
    let indexes = indexes(db).await?;
    let keys = foreign_keys(db).await?;
    let triggers = triggers(db).await?;
    let mut constraints = checks::written(db, None).await?;
    let flavour = db.flavour;
    let mut found = Inspection {
        captured: capture::captured_tables(db).await?,
        ..Inspection::default()
    };
    found.findings.push(Finding {
        fatal: false,
        table: None,
        problem: "TRUNCATE, and dropping or exchanging a partition, fire no trigger here: they are not captured."
            .to_owned(),
        advice: "Use DELETE on shared tables; after a TRUNCATE run verify.".to_owned(),
    });
    let tables = db
        .catalogue(
            "SELECT TABLE_NAME, TABLE_TYPE, COALESCE(ENGINE, ''), COALESCE(CREATE_OPTIONS, '')
             FROM information_schema.TABLES
             WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY TABLE_NAME",
        )
        .await?;
    let none = Vec::new();
    for row in tables {
        let name = row.text(0);
        if ours(&name) {
            continue;
        }
        let mut look = Look {
            name: name.clone(),
            findings: Vec::new(),
        };
        look.table_itself(&row.text(1), &row.text(2), &row.text(3));
        let own = declared.get(&name).unwrap_or(&none);
        let named = own.iter().map(|here| &here.name).chain([&name]);
        if let Some(unsayable) = unsayable(flavour, named) {
            look.fatal(
                format!("{UNSAYABLE} `{unsayable}`, which holds a grave accent."),
                "Rename it, or leave the table out.",
            );
        }
        let columns = look.columns(flavour, own);
        let (key, unique) =
            look.indexes(indexes.get(&name).map_or(&[], Vec::as_slice), own, &columns);
        for trigger in triggers.get(&name).into_iter().flatten() {
            look.warn(
                format!("The trigger `{trigger}` runs again where sync applies a change; its writes there are not captured."),
                "Let it do nothing then: IF @branchline_applying IS NULL THEN ... END IF.",
            );
        }
        if cascade::escapes(&keys, &name) {
            look.warn(
                "A foreign key's cascade reaches it by way of itself, or changes keys by way of another table: no trigger sees that.",
                "Delete or change the children by statements of their own, or run verify after it.",
            );
        }
        let foreign_keys = keys
            .iter()
            .filter(|key| key.child == name)
            .filter_map(|key| {
                Some(ForeignKey {
                    columns: places(&columns, &key.columns)?,
                    parent: key.parent.clone(),
                    parent_columns: key.parent_columns.clone(),
                    on_delete: key.on_delete.clone(),
                    on_update: key.on_update.clone(),
                })
            })
            .collect();
        let own = |key: &Reference| key.child == name;
        let mut plain: Vec<Vec<u16>> = Vec::new();
        for index in indexes.get(&name).into_iter().flatten() {
            // The index that a foreign key brings with it belongs to the key.
            let bound = keys
                .iter()
                .any(|key| own(key) && key.columns == index.columns);
            let place = places(&columns, &index.columns);
            if !index.unique && !index.partial && !bound {
                plain.extend(place.filter(|place| !plain.contains(place)));
            }
        }
        let constraints = constraints.remove(&name).unwrap_or_default();
        let declared = declared.get(&name).unwrap_or(&none);
        let checks = checks::carried(&name, &columns, declared, constraints, &mut found.left_out);
        if !look.findings.iter().any(|finding| finding.fatal) {
            found.tables.push(Table {
                id: 0,
                name,
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
                indexes: plain,
                checks,
            });
        }
        found.findings.append(&mut look.findings);
    }
    Ok(Here { found, declared })
}

pub(super) async fn indexes(db: &mut MysqlDatabase) -> DbResult<BTreeMap<String, Vec<Index>>> {
    let rows = db
        .catalogue(
            "SELECT TABLE_NAME, INDEX_NAME, COLUMN_NAME, SUB_PART IS NOT NULL OR COLUMN_NAME IS NULL OR INDEX_TYPE <> 'BTREE',
                    NON_UNIQUE = 0
             FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE()
             ORDER BY TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX",
        )
        .await?;
    let mut found: BTreeMap<String, Vec<Index>> = BTreeMap::new();
    for row in rows {
        let of_table = found.entry(row.text(0)).or_default();
        let name = row.text(1);
        if of_table.last().is_none_or(|last| last.name != name) {
            of_table.push(Index {
                name,
                columns: Vec::new(),
                unique: row.is(4),
                partial: false,
            });
        }
        if let Some(last) = of_table.last_mut() {
            last.columns.push(row.text(2));
            last.partial |= row.is(3);
        }
    }
    Ok(found)
}

/// The application's own triggers on inserts, updates and deletes, by table.
async fn triggers(db: &mut MysqlDatabase) -> DbResult<BTreeMap<String, Vec<String>>> {
    let rows = db
        .catalogue(
            "SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME FROM information_schema.TRIGGERS
             WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND TRIGGER_NAME NOT LIKE 'branchline\\_%' ORDER BY 1, 2",
        )
        .await?;
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        found.entry(row.text(0)).or_default().push(row.text(1));
    }
    Ok(found)
}

/// The places of columns by name; `None` where one does not travel.
fn places(columns: &[Column], names: &[String]) -> Option<Vec<u16>> {
    let place = |name: &String| {
        let at = columns.iter().position(|column| column.name == *name)?;
        u16::try_from(at).ok()
    };
    names.iter().map(place).collect()
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

    fn table_itself(&mut self, kind: &str, engine: &str, options: &str) {
        if kind == "SYSTEM VERSIONED" {
            self.fatal(
                "It is system-versioned: its history cannot travel.",
                "ALTER TABLE ... DROP SYSTEM VERSIONING, or leave the table out.",
            );
        }
        if !engine.eq_ignore_ascii_case("InnoDB") {
            self.fatal(
                format!("Its engine is {engine}, which has no transactions."),
                "ALTER TABLE ... ENGINE = InnoDB.",
            );
        }
        if options.contains("partitioned") {
            self.warn(
                "It is partitioned: dropping, truncating or exchanging a partition is not captured.",
                "Delete rows before dropping a partition, and run verify after exchanging one.",
            );
        }
    }

    fn columns(
        &mut self,
        flavour: super::connection::Flavour,
        declared: &[Declared],
    ) -> Vec<Column> {
        let mut columns = Vec::new();
        for here in declared.iter().filter(|here| !here.generated) {
            let kind = match logical(here) {
                Ok(kind) => kind,
                Err(reason) => {
                    self.fatal(
                        format!(
                            "Column `{}` has the type {}, which cannot travel: {reason}.",
                            here.name, here.whole
                        ),
                        "Change the column to a supported type, such as text or DECIMAL, or leave the table out.",
                    );
                    continue;
                }
            };
            let timed = matches!(kind, Type::Time | Type::Timestamp | Type::TimestampTz);
            if timed && here.fraction < 6 {
                self.warn(
                    format!("Column `{}` keeps only {} digits of a second.", here.name, here.fraction),
                    "Declare it with (6), or alike in every office: a value with more digits does not fit here.",
                );
            }
            columns.push(Column {
                default: default_value(flavour, &kind, here),
                kind,
                nullable: here.nullable,
                generated_key: here.extra.contains("auto_increment"),
                id: 0,
                name: here.name.clone(),
            });
        }
        columns
    }

    fn indexes(
        &mut self,
        indexes: &[Index],
        declared: &[Declared],
        columns: &[Column],
    ) -> (Vec<u16>, Vec<Vec<u16>>) {
        let (mut key, mut unique) = (None, Vec::new());
        for index in indexes.iter().filter(|index| index.unique) {
            let of_index = |here: &&Declared| index.columns.contains(&here.name);
            let parts: Vec<&Declared> = declared.iter().filter(of_index).collect();
            if index.name == "PRIMARY" {
                key = Some(self.key(index, &parts, columns));
                continue;
            }
            if index.partial {
                self.warn(
                    format!("The unique index `{}` covers part of a value, or an expression: rows cannot exchange its values.", index.name),
                    "Make it cover whole columns.",
                );
                continue;
            }
            if parts.iter().any(|here| here.loose()) {
                self.warn(
                    format!("The unique index `{}` takes texts for equal that differ elsewhere (letter case, accents, blanks at the end).", index.name),
                    "Give its columns the collation utf8mb4_nopad_bin, or expect such rows to be held here.",
                );
            }
            unique.extend(places(columns, &index.columns));
        }
        let key = key.unwrap_or_else(|| {
            self.fatal(
                "It has no primary key, so its rows have no names.",
                "ALTER TABLE ... ADD PRIMARY KEY (...), if need be with a new UUID column.",
            );
            Vec::new()
        });
        (key, unique)
    }

    fn key(&mut self, index: &Index, parts: &[&Declared], columns: &[Column]) -> Vec<u16> {
        let Some(places) = places(columns, &index.columns).filter(|_| !index.partial) else {
            self.fatal(
                "Its primary key contains part of a column, a generated one or one of an unsupported type.",
                "Give the table a primary key of plain, whole columns.",
            );
            return Vec::new();
        };
        let mut bytes = 0;
        for here in parts {
            bytes += 8 + match here.base.as_str() {
                "char" | "varchar" => here.length.unwrap_or(0).saturating_mul(4),
                "binary" | "varbinary" => here.length.unwrap_or(0),
                "enum" => 1024,
                _ => 70,
            };
            if matches!(here.base.as_str(), "float" | "double") {
                self.fatal(
                    format!(
                        "Its primary key has the float `{}`, which names no row surely.",
                        here.name
                    ),
                    "Give the table a primary key of whole numbers, decimals, texts or uuids.",
                );
            }
            if here.loose() {
                self.warn(
                    format!("Two keys that differ only in letter case, accents or blanks at the end of `{}` are one row here and two elsewhere.", here.name),
                    "Give the column the collation utf8mb4_nopad_bin; otherwise such a row from elsewhere is held here.",
                );
            }
            if here.extra.contains("auto_increment") {
                self.warn(
                    format!("Each office's database numbers `{}` by itself: two offices will give one number twice.", here.name),
                    "Give each office a stride (auto_increment_increment = offices, auto_increment_offset = own number), or use uuids.",
                );
            }
        }
        if bytes > KEY_BYTES {
            self.fatal(
                format!("Its primary key may have more than {KEY_BYTES} bytes."),
                "Shorten the key's columns.",
            );
        }
        places
    }
}

/// Whether this office's tables can hold what the plan's tables hold, and the other way round.
pub(super) async fn compatible(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<()> {
    match misfits(db, schema).await?.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The tables of a schema that are not so here, and why.
async fn misfits(
    db: &mut MysqlDatabase,
    schema: &Schema,
) -> DbResult<Vec<(TableId, DatabaseError)>> {
    Ok(look(db).await?.misfits(schema))
}

impl Here {
    /// The tables of a schema that are not so here, and why.
    pub(super) fn misfits(&self, schema: &Schema) -> Vec<(TableId, DatabaseError)> {
        let planned = schema.tables.iter();
        planned
            .filter_map(|planned| Some((planned.id, self.misfit(planned)?)))
            .collect()
    }

    fn misfit(&self, planned: &Table) -> Option<DatabaseError> {
        let mut tables = self.found.tables.iter();
        let Some(local) = tables.find(|table| table.name == planned.name) else {
            let mut findings = self.found.findings.iter();
            let fatal = findings.find(|f| f.fatal && f.table.as_deref() == Some(&planned.name));
            let why = fatal.map_or("the table does not exist here".to_owned(), |f| {
                format!("{} {}", f.problem, f.advice)
            });
            return Some(mismatch(&planned.name, why));
        };
        let here = self.declared.get(&planned.name);
        let fits = table_compatible(planned, local, here.map_or(&[][..], Vec::as_slice));
        fits.err().map(|why| mismatch(&planned.name, why))
    }
}

fn table_compatible(planned: &Table, local: &Table, declared: &[Declared]) -> Result<(), String> {
    let indexed: BTreeSet<&str> = (local.key.iter())
        .chain(local.unique.iter().flatten())
        .chain(local.foreign_keys.iter().flat_map(|key| &key.columns))
        .chain(planned.foreign_keys.iter().flat_map(|key| &key.columns))
        .filter_map(|&at| Some(local.columns.get(usize::from(at))?.name.as_str()))
        .collect();
    for (at, column) in planned.columns.iter().enumerate() {
        let name = &column.name;
        let Some(here) = declared
            .iter()
            .find(|here| here.name == *name && !here.generated)
        else {
            return Err(format!("column `{name}` does not exist here"));
        };
        if !serves(&column.kind, here, indexed.contains(name.as_str())) {
            let (kind, whole) = (&column.kind, &here.whole);
            return Err(format!(
                "column `{name}` is {whole} here, and {kind} in the plan"
            ));
        }
        if !planned.is_key(at) && column.nullable != here.nullable {
            let words = |nullable| {
                if nullable {
                    "may be NULL"
                } else {
                    "must not be NULL"
                }
            };
            return Err(format!(
                "column `{name}` {} here, and {} in the plan",
                words(here.nullable),
                words(column.nullable)
            ));
        }
    }
    let names = |table: &Table| {
        let names = table.key_columns().map(|column| column.name.clone());
        names.collect::<Vec<_>>().join(", ")
    };
    if names(planned) != names(local) {
        return Err(format!(
            "the primary key is ({}) here, and ({}) in the plan",
            names(local),
            names(planned)
        ));
    }
    let known = |here: &Declared| {
        planned
            .columns
            .iter()
            .any(|column| column.name == here.name)
    };
    match declared.iter().find(|here| here.required() && !known(here)) {
        Some(here) => Err(format!(
            "column `{}` is not in the plan and has neither NULL nor a default",
            here.name
        )),
        None => Ok(()),
    }
}
