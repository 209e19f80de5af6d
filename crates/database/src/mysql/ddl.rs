//! Names in SQL, and the shared tables that do not exist yet.
//!
//! Every statement here commits by itself. So what is about to be made is noted first, and each step looks at what is
//! there: a run that was interrupted is taken up by the next.

use std::collections::BTreeSet;

use branchline_core::check::is_whole;
use branchline_core::port::DbResult;
use branchline_core::schema::{Schema, Table};
use branchline_core::value::{Type, Value, canonical};

use super::capture::{patiently, prepare};
use super::checks;
use super::connection::{Flavour, MysqlDatabase};
use super::error::mismatch;
use super::literal::{default_literal, text_literal};
use super::types::INDEXED_TEXT;

/// The longest text that is declared as `VARCHAR` outside keys: all columns of a row share 65,535 bytes.
const LONGEST_VARCHAR: u32 = 2000;

/// `xxxx:...:xxxx/128`, with all that an address may have before its last part.
const LONGEST_INET: u32 = 50;

/// An identifier, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A list of the columns at these indexes, quoted.
pub(super) fn columns(table: &Table, at: &[u16]) -> String {
    let found = at
        .iter()
        .filter_map(|&at| table.columns.get(usize::from(at)));
    found
        .map(|column| ident(&column.name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Creates the tables that are missing. Which they are is noted until [`super::binding::add_foreign_keys`] completes them.
pub(super) async fn create_tables(
    db: &mut MysqlDatabase,
    schema: &Schema,
) -> DbResult<Vec<String>> {
    prepare(db).await?;
    check_names(db, schema).await?;
    let mut created = Vec::new();
    for table in &schema.tables {
        if exists(db, &table.name).await? {
            continue;
        }
        let note = text_literal(&table.name);
        db.execute(format!(
            "REPLACE INTO branchline_created (name) VALUES ({note})"
        ))
        .await?;
        let dialect = Dialect::of(db);
        patiently(db, &table.name, &dialect.create(table)).await?;
        created.push(table.name.clone());
    }
    db.forget_layouts();
    Ok(created)
}

/// Refuses names that differ in letter case alone where that is nothing here, and those that the server would alter.
async fn check_names(db: &mut MysqlDatabase, schema: &Schema) -> DbResult<()> {
    let setting = db.rows("SELECT @@lower_case_table_names").await?;
    let setting = setting.first().map_or(0, |row| row.number(0).unwrap_or(0));
    let mut tables = BTreeSet::new();
    for table in &schema.tables {
        let folded = table.name.to_lowercase();
        if setting == 1 && folded != table.name {
            return Err(mismatch(
                &table.name,
                "this server keeps the names of tables in lower case (lower_case_table_names = 1); rename it at the head, or leave it out",
            ));
        }
        if !tables.insert(folded) && setting != 0 {
            return Err(mismatch(
                &table.name,
                "another table's name differs from its name in letter case alone, which this server does not tell apart; rename one at the head, or leave it out",
            ));
        }
        let named = table.columns.iter().map(|column| &column.name);
        if let Some(name) = unsayable(db.flavour, named.chain([&table.name])) {
            return Err(mismatch(
                &table.name,
                format!("{UNSAYABLE} `{name}`; rename it at the head, or leave the table out"),
            ));
        }
        let mut columns = BTreeSet::new();
        for column in &table.columns {
            if !columns.insert(column.name.to_lowercase()) {
                return Err(mismatch(
                    &table.name,
                    format!(
                        "another column's name differs from `{}` in letter case alone, which this server does not tell apart; rename one at the head, or leave the table out",
                        column.name
                    ),
                ));
            }
        }
    }
    Ok(())
}

pub(super) const UNSAYABLE: &str = "MySQL's triggers lose the name";

/// The name that no trigger can say: MySQL alters, or does not store, one whose text quotes a grave accent.
pub(super) fn unsayable<'n>(
    flavour: Flavour,
    names: impl IntoIterator<Item = &'n String>,
) -> Option<&'n String> {
    let mut names = names.into_iter();
    names.find(|name| flavour == Flavour::MySql && name.contains('`'))
}

pub(super) async fn exists(db: &mut MysqlDatabase, name: &str) -> DbResult<bool> {
    let sql = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {}",
        text_literal(name)
    );
    Ok(!db.catalogue(sql).await?.is_empty())
}

/// The names of all tables.
pub(super) async fn tables(db: &mut MysqlDatabase) -> DbResult<BTreeSet<String>> {
    let sql = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()";
    let rows = db.catalogue(sql).await?;
    Ok(rows.iter().map(|row| row.text(0)).collect())
}

/// The places of columns that indexes or references need.
pub(super) fn indexed(table: &Table) -> BTreeSet<usize> {
    (table.key.iter())
        .chain(table.unique.iter().flatten())
        .chain(table.indexes.iter().flatten())
        .chain(table.foreign_keys.iter().flat_map(|key| &key.columns))
        .map(|&at| usize::from(at))
        .collect()
}

/// Whether the column at this place is declared `AUTO_INCREMENT`.
pub(super) fn numbers_itself(table: &Table, at: usize) -> bool {
    let column = table.columns.get(at);
    let first = table.key.first();
    let first = first.is_some_and(|&first| usize::from(first) == at);
    first && column.is_some_and(|column| column.generated_key && is_whole(&column.kind))
}

pub(super) struct Dialect {
    flavour: Flavour,
    /// Whether there is a type for UUIDs.
    uuid: bool,
}

impl Dialect {
    pub(super) fn of(db: &MysqlDatabase) -> Self {
        Self {
            flavour: db.flavour,
            uuid: db.mariadb_from(10, 7),
        }
    }

    /// The column at this place in `CREATE TABLE`.
    pub(super) fn column(&self, table: &Table, at: usize) -> String {
        let Some(column) = table.columns.get(at) else {
            return String::new();
        };
        let (kind, check) =
            self.declaration(&column.kind, &column.name, indexed(table).contains(&at));
        let null = if column.nullable && !table.is_key(at) {
            " NULL"
        } else {
            " NOT NULL"
        };
        let generated = if numbers_itself(table, at) {
            " AUTO_INCREMENT"
        } else {
            ""
        };
        let default = match &column.default {
            Some(value) if !column.generated_key => self.default(&column.kind, &kind, value),
            _ => String::new(),
        };
        format!(
            "{} {kind}{null}{default}{generated}{check}",
            ident(&column.name)
        )
    }

    pub(super) fn create(&self, table: &Table) -> String {
        let mut parts: Vec<String> = table
            .columns
            .iter()
            .enumerate()
            .map(|(at, _)| self.column(table, at))
            .collect();
        parts.push(format!("PRIMARY KEY ({})", columns(table, &table.key)));
        parts.extend(
            table
                .unique
                .iter()
                .map(|unique| format!("UNIQUE ({})", columns(table, unique))),
        );
        parts.extend(
            table
                .indexes
                .iter()
                .map(|index| format!("INDEX ({})", columns(table, index))),
        );
        parts.extend(checks::clauses(self.flavour, table));
        format!(
            "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4",
            ident(&table.name),
            parts.join(", ")
        )
    }

    pub(super) fn default(&self, kind: &Type, declared: &str, value: &Value) -> String {
        let canonical = canonical(kind, value).into_owned();
        let value = match (kind, canonical) {
            (Type::TimestampTz, Value::Text(text)) => {
                Value::Text(text.strip_suffix("+00").unwrap_or(&text).to_owned())
            }
            (_, other) => other,
        };
        let dated = matches!(
            kind,
            Type::Date | Type::Time | Type::Timestamp | Type::TimestampTz
        );
        let plain =
            |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && !text.ends_with("BC");
        match &value {
            Value::Text(text) if dated && !plain(text) => return String::new(),
            _ => {}
        }
        let large = declared.contains("LONGTEXT") || declared.contains("LONGBLOB");
        match default_literal(&value) {
            Some(literal) if large && self.flavour == Flavour::MySql => {
                format!(" DEFAULT ({literal})")
            }
            Some(literal) => format!(" DEFAULT {literal}"),
            None => String::new(),
        }
    }

    /// The type in `CREATE TABLE`, and a check besides. Texts are told apart byte by byte, as the other engines do.
    pub(super) fn declaration(&self, kind: &Type, name: &str, indexed: bool) -> (String, String) {
        let collation = match self.flavour {
            Flavour::MariaDb => "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
            Flavour::MySql => "CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin",
        };
        let text = if indexed {
            format!("VARCHAR({INDEXED_TEXT}) {collation}")
        } else {
            format!("LONGTEXT {collation}")
        };
        let at_most = |length: u32| {
            if indexed || length <= LONGEST_VARCHAR {
                return (format!("VARCHAR({length}) {collation}"), String::new());
            }
            let check = format!(" CHECK (CHAR_LENGTH({}) <= {length})", ident(name));
            (text.clone(), check)
        };
        let declared = match kind {
            Type::Bool => "TINYINT(1)".to_owned(),
            Type::Int16 => "SMALLINT".to_owned(),
            Type::Int32 => "INT".to_owned(),
            Type::Int64 => "BIGINT".to_owned(),
            Type::Float32 => "FLOAT".to_owned(),
            Type::Float64 => "DOUBLE".to_owned(),
            Type::Decimal {
                limits: Some((precision @ 1..=65, scale @ 0..=30)),
            } if i32::from(*scale) <= i32::from(*precision) => {
                format!("DECIMAL({precision},{scale})")
            }
            Type::Text { max: Some(max) } => return at_most(*max),
            Type::Char { length } if *length <= 255 => format!("CHAR({length}) {collation}"),
            Type::Char { length } => return at_most(*length),
            Type::Bytes if indexed => format!("VARBINARY({INDEXED_TEXT})"),
            Type::Bytes => "LONGBLOB".to_owned(),
            Type::Date => "DATE".to_owned(),
            Type::Time => "TIME(6)".to_owned(),
            Type::Timestamp => "DATETIME(6)".to_owned(),
            Type::TimestampTz => "TIMESTAMP(6)".to_owned(),
            Type::Uuid if self.uuid => "UUID".to_owned(),
            Type::Uuid => "CHAR(36) CHARACTER SET ascii COLLATE ascii_bin".to_owned(),
            Type::Json | Type::Jsonb if self.flavour == Flavour::MariaDb && !indexed => {
                "JSON".to_owned()
            }
            Type::Enum { labels, .. } => {
                let labels: Vec<String> = labels.iter().map(|label| text_literal(label)).collect();
                format!("ENUM({}) {collation}", labels.join(", "))
            }
            Type::Inet => format!("VARCHAR({LONGEST_INET}) {collation}"),
            Type::Text { max: None }
            | Type::Decimal { .. }
            | Type::TimeTz
            | Type::Interval
            | Type::Json
            | Type::Jsonb
            | Type::Array(_) => text,
        };
        (declared, String::new())
    }
}
