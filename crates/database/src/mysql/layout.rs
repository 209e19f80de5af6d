//! How this database declares its tables: what statements on them need to know.

use std::collections::BTreeMap;

use branchline_core::port::DbResult;
use branchline_core::schema::{Column, Table};

use super::catalog::rules;
use super::connection::{Cells, Flavour, MysqlDatabase};
use super::ddl::ident;
use super::error::mismatch;
use super::literal::text_literal;

/// A column as declared here.
#[derive(Clone, Debug, Default)]
pub(super) struct Declared {
    pub(super) name: String,
    /// The type without its length: `varchar`.
    pub(super) base: String,
    /// The type in full: `varchar(40)`, `enum('a','b')`, `int(10) unsigned zerofill`.
    pub(super) whole: String,
    pub(super) nullable: bool,
    /// The default as the catalogue writes it.
    pub(super) default: Option<String>,
    /// Characters, or bytes of a binary type.
    pub(super) length: Option<u64>,
    pub(super) precision: Option<u16>,
    pub(super) scale: Option<u16>,
    /// Digits of a second.
    pub(super) fraction: u8,
    pub(super) collation: Option<String>,
    pub(super) extra: String,
    /// A computed column, which does not travel.
    pub(super) generated: bool,
    /// Text that the database checks to be JSON (MariaDB's `JSON`).
    pub(super) json: bool,
    /// The condition of the check that stands with it (MariaDB), in the server's words.
    pub(super) check: Option<String>,
}

impl Declared {
    pub(super) fn unsigned(&self) -> bool {
        self.whole.contains("unsigned")
    }

    /// Whether an insert must name it.
    pub(super) fn required(&self) -> bool {
        !self.nullable
            && self.default.is_none()
            && !self.generated
            && !self.extra.contains("auto_increment")
    }

    /// Whether two different texts in it can be one to the database: letter case, accents, blanks at the end.
    pub(super) fn loose(&self) -> bool {
        let exact = |collation: &str| {
            let blanks_count = collation.ends_with("nopad_bin") || collation == "utf8mb4_0900_bin";
            // `CHAR` and labels have no blanks at the end.
            let no_blanks = matches!(self.base.as_str(), "char" | "enum");
            blanks_count || (no_blanks && collation.ends_with("_bin"))
        };
        self.collation
            .as_deref()
            .is_some_and(|collation| !exact(collation))
    }
}

/// A condition that a column of the catalogue names the table; none where no name is given.
fn only(column: &str, table: Option<&str>) -> String {
    table.map_or(String::new(), |name| {
        format!(" AND {column} = {}", text_literal(name))
    })
}

/// The columns of these tables (of all, where no name is given), by table, in order.
pub(super) async fn declared(
    db: &mut MysqlDatabase,
    table: Option<&str>,
) -> DbResult<BTreeMap<String, Vec<Declared>>> {
    let sql = format!(
        "SELECT TABLE_NAME, COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IS_NULLABLE = 'YES', COLUMN_DEFAULT,
                CHARACTER_MAXIMUM_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, COLLATION_NAME, EXTRA,
                COALESCE(GENERATION_EXPRESSION, '') <> ''
         FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE(){}
         ORDER BY TABLE_NAME, ORDINAL_POSITION",
        only("TABLE_NAME", table)
    );
    let mut found: BTreeMap<String, Vec<Declared>> = BTreeMap::new();
    for row in db.catalogue(sql).await? {
        let table = row.text(0);
        found
            .entry(table)
            .or_default()
            .push(column(db.flavour, &row));
    }
    if db.flavour == Flavour::MariaDb {
        let sql = format!(
            "SELECT TABLE_NAME, CHECK_CLAUSE, LEVEL = 'Column', CONSTRAINT_NAME FROM information_schema.CHECK_CONSTRAINTS
             WHERE CONSTRAINT_SCHEMA = DATABASE() AND (LEVEL = 'Column' OR CHECK_CLAUSE LIKE 'json_valid(%'){}",
            only("TABLE_NAME", table)
        );
        for row in db.rows(sql).await? {
            let clause = row.text(1);
            for column in found.get_mut(&row.text(0)).into_iter().flatten() {
                column.json |= clause == format!("json_valid({})", ident(&column.name));
                if row.is(2) && row.text(3) == column.name {
                    column.check = Some(clause.clone());
                }
            }
        }
    }
    Ok(found)
}

fn column(flavour: Flavour, row: &Cells) -> Declared {
    let extra = row.text(11).to_lowercase();
    let default = match row.bytes(5) {
        // MariaDB writes the word for a column whose default is NULL.
        Some(b"NULL") if flavour == Flavour::MariaDb => None,
        other => other.map(|_| row.text(5)),
    };
    Declared {
        name: row.text(1),
        base: row.text(2).to_lowercase(),
        whole: row.text(3),
        nullable: row.is(4),
        default,
        length: row.number(6),
        precision: row.number(7),
        scale: row.number(8),
        fraction: row.number(9).unwrap_or(0),
        collation: row.bytes(10).map(|_| row.text(10)),
        generated: row.is(12) || extra.contains("stored generated") || extra.contains("virtual"),
        json: false,
        check: None,
        extra,
    }
}

/// A table as declared here.
pub(super) struct Layout {
    /// Its quoted name.
    pub(super) relation: String,
    /// All of its columns.
    pub(super) columns: Vec<Declared>,
    /// Whether it has unique indexes besides its key.
    pub(super) unique: bool,
    /// The foreign keys that refer to this table.
    pub(super) children: Vec<Child>,
    /// The columns of foreign keys from this table to itself.
    pub(super) to_itself: Vec<Vec<(String, String)>>,
}

/// A foreign key that refers to a table.
pub(super) struct Child {
    /// Whether its action changes children when the parent is deleted.
    pub(super) follows_delete: bool,
    /// Whether its action changes children when what they refer to changes.
    pub(super) follows_update: bool,
    /// The parent's index that it uses, where the catalogue names it.
    pub(super) index: Option<String>,
    pub(super) relation: String,
    /// Its columns with the parent's that they refer to.
    pub(super) columns: Vec<(String, String)>,
}

impl Layout {
    pub(super) async fn load(db: &mut MysqlDatabase, table: &str) -> DbResult<Self> {
        let found = Self::load_of(db, Some(table)).await?.remove(table);
        found.ok_or_else(|| mismatch(table, "the table does not exist here"))
    }

    /// Of all tables, in as many statements as of one.
    pub(super) async fn load_all(db: &mut MysqlDatabase) -> DbResult<BTreeMap<String, Self>> {
        Self::load_of(db, None).await
    }

    async fn load_of(
        db: &mut MysqlDatabase,
        table: Option<&str>,
    ) -> DbResult<BTreeMap<String, Self>> {
        let mut found: BTreeMap<String, Self> = BTreeMap::new();
        for (name, columns) in declared(db, table).await? {
            let layout = Self {
                relation: ident(&name),
                columns,
                unique: false,
                children: Vec::new(),
                to_itself: Vec::new(),
            };
            found.insert(name, layout);
        }
        if found.is_empty() {
            return Ok(found);
        }
        let unique = db
            .catalogue(format!(
                "SELECT DISTINCT TABLE_NAME FROM information_schema.STATISTICS
                 WHERE TABLE_SCHEMA = DATABASE() AND NON_UNIQUE = 0 AND INDEX_NAME <> 'PRIMARY'{}",
                only("TABLE_NAME", table)
            ))
            .await?;
        for row in unique {
            if let Some(layout) = found.get_mut(&row.text(0)) {
                layout.unique = true;
            }
        }
        for (parent, key) in references(db, table).await? {
            let Some(layout) = found.get_mut(&parent) else {
                continue;
            };
            let itself = key.schema == db.database() && key.child == parent;
            if itself {
                layout.to_itself.push(key.columns.clone());
            }
            let follows = |action: &str| matches!(action, "CASCADE" | "SET NULL" | "SET DEFAULT");
            layout.children.push(Child {
                follows_delete: follows(&key.on_delete),
                follows_update: follows(&key.on_update),
                index: key.index,
                relation: format!("{}.{}", ident(&key.schema), ident(&key.child)),
                columns: key.columns,
            });
        }
        Ok(found)
    }

    /// The column of this name.
    pub(super) fn column(&self, table: &Table, column: &Column) -> DbResult<&Declared> {
        let found = self.columns.iter().find(|here| here.name == column.name);
        found.ok_or_else(|| {
            mismatch(
                &table.name,
                format!("column `{}` does not exist here", column.name),
            )
        })
    }

    /// Whether the database takes different keys of this table for one.
    pub(super) fn loose_key(&self, table: &Table) -> bool {
        let key: Vec<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
        let of_key = |here: &&Declared| key.contains(&here.name.as_str());
        self.columns.iter().filter(of_key).any(Declared::loose)
    }
}

/// A foreign key that refers to a table.
pub(super) struct Reference {
    pub(super) schema: String,
    pub(super) child: String,
    pub(super) columns: Vec<(String, String)>,
    on_delete: String,
    on_update: String,
    index: Option<String>,
}

/// The foreign keys, of any database of the server, that refer to this table (to any, where no name is given), each
/// with the name of the table that it refers to.
pub(super) async fn references(
    db: &mut MysqlDatabase,
    table: Option<&str>,
) -> DbResult<Vec<(String, Reference)>> {
    let sql = format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_COLUMN_NAME, REFERENCED_TABLE_NAME
         FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_SCHEMA = DATABASE(){}
         ORDER BY 1, 2, 3, ORDINAL_POSITION",
        only("REFERENCED_TABLE_NAME", table)
    );
    let rows = db.rows(sql).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let rules = rules(db, false).await?;
    let mut found: Vec<(String, String, Reference)> = Vec::new();
    for row in rows {
        let (schema, child, name) = (row.text(0), row.text(1), row.text(2));
        let same = |(_, last_name, last): &(String, String, Reference)| {
            *last_name == name && last.schema == schema && last.child == child
        };
        if !found.last().is_some_and(same) {
            let place = (schema, child, name);
            // One without is gone since a moment.
            let Some(rule) = rules.get(&place) else {
                continue;
            };
            let (schema, child, name) = place;
            let reference = Reference {
                schema,
                child,
                columns: Vec::new(),
                on_delete: rule.on_delete.clone(),
                on_update: rule.on_update.clone(),
                index: rule.index.clone(),
            };
            found.push((row.text(5), name, reference));
        }
        if let Some((_, _, last)) = found.last_mut() {
            last.columns.push((row.text(3), row.text(4)));
        }
    }
    let keys = found.into_iter();
    Ok(keys.map(|(parent, _, key)| (parent, key)).collect())
}
