//! How this database declares a shared table: what statements on it need to know.

use std::collections::HashMap;
use std::sync::LazyLock;

use branchline_core::change::Row;
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Column, Table};
use branchline_core::value::Value;
use futures_util::future::join;
use tokio_postgres::types::{ToSql, Type as Wire};

use super::books::get;
use super::connection::PostgresDatabase;
use super::ddl::{ident, names, relation};
use super::error::on_table;
use super::types::fraction;

/// Every type with the one that it is a domain over, or itself; nested domains are followed down.
pub(super) const ROOTS: &str = "RECURSIVE root(oid, base, modifier) AS (
    SELECT t.oid, t.oid, -1 FROM pg_catalog.pg_type t WHERE t.typtype <> 'd'
    UNION ALL
    SELECT d.oid, r.base, CASE WHEN d.typtypmod <> -1 THEN d.typtypmod ELSE r.modifier END
    FROM root r JOIN pg_catalog.pg_type d ON d.typbasetype = r.oid WHERE d.typtype = 'd')";

/// A table as declared here.
pub(super) struct Layout {
    /// Its quoted name.
    pub(super) relation: String,
    /// Whether it is the root of partitions.
    pub(super) partitioned: bool,
    /// Whether a constraint on it, or one that refers to it, can be deferred.
    pub(super) deferrable: bool,
    /// Whether it has unique constraints besides its key.
    pub(super) unique: bool,
    /// Columns that only an insert can give a value (`GENERATED ALWAYS AS IDENTITY`).
    pub(super) fixed: Vec<String>,
    /// Columns that an insert must name.
    pub(super) required: Vec<String>,
    /// The foreign keys that refer to this table.
    pub(super) children: Vec<Child>,
    /// Column names with the types that texts are cast to. Without length or precision: with them, an explicit cast
    /// would cut silently, where the assignment to the column complains.
    casts: HashMap<String, String>,
    /// Columns that keep fewer than six digits of a second, and would round what has more.
    digits: HashMap<String, usize>,
}

/// A foreign key that refers to a table.
pub(super) struct Child {
    /// Whether its action (`CASCADE`, `SET NULL`, `SET DEFAULT`) changes children when the parent is deleted.
    pub(super) follows_delete: bool,
    /// Whether its action changes children when what they refer to changes.
    pub(super) follows_update: bool,
    pub(super) relation: String,
    pub(super) columns: Vec<String>,
    pub(super) parent_columns: Vec<String>,
}

impl Child {
    fn of(row: &tokio_postgres::Row) -> DbResult<Self> {
        Ok(Self {
            relation: format!("{}.{}", ident(get(row, 0)?), ident(get(row, 1)?)),
            columns: get(row, 2)?,
            parent_columns: get(row, 3)?,
            follows_delete: get(row, 4)?,
            follows_update: get(row, 5)?,
        })
    }
}

impl Layout {
    pub(super) async fn load(db: &mut PostgresDatabase, table: &str) -> DbResult<Self> {
        let (schema, name) = names(table);
        let types = [Wire::TEXT, Wire::TEXT];
        let columns = format!(
            "WITH {ROOTS}
             SELECT c.relkind = 'p', a.attname::text, n.nspname::text, b.typname::text,
                    EXISTS (SELECT FROM pg_catalog.pg_constraint d
                            WHERE d.condeferrable AND c.oid IN (d.conrelid, d.confrelid)),
                    EXISTS (SELECT FROM pg_catalog.pg_index i
                            WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary),
                    a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
                    CASE WHEN b.typname IN ('time', 'timetz', 'timestamp', 'timestamptz')
                         THEN CASE WHEN a.atttypmod <> -1 THEN a.atttypmod ELSE r.modifier END END,
                    a.attidentity = 'a'
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             JOIN root r ON r.oid = a.atttypid JOIN pg_catalog.pg_type b ON b.oid = r.base
             JOIN pg_catalog.pg_namespace n ON n.oid = b.typnamespace
             JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
             WHERE s.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')"
        );
        let rows = db.query(&columns, &types, &[&schema, &name]).await?;
        let Some(first) = rows.first() else {
            return Err(mismatch(table, "the table does not exist here"));
        };
        let (partitioned, deferrable, unique) = (get(first, 0)?, get(first, 4)?, get(first, 5)?);
        let (mut casts, mut required, mut digits) = (HashMap::new(), Vec::new(), HashMap::new());
        let mut fixed = Vec::new();
        for row in &rows {
            if get(row, 8)? {
                fixed.push(get(row, 1)?);
            }
            if get(row, 6)? {
                required.push(get(row, 1)?);
            }
            let kept = get::<Option<i32>>(row, 7)?;
            if let Some(kept @ 0..=5) = kept.and_then(|kept| usize::try_from(kept).ok()) {
                digits.insert(get(row, 1)?, kept);
            }
            casts.insert(
                get::<String>(row, 1)?,
                format!("{}.{}", ident(get(row, 2)?), ident(get(row, 3)?)),
            );
        }
        let children = children(db, schema, name).await?;
        Ok(Self {
            relation: relation(table),
            partitioned,
            deferrable,
            unique,
            fixed,
            required,
            children,
            casts,
            digits,
        })
    }

    /// The type that a column's texts are cast to.
    pub(super) fn cast(&self, table: &Table, column: &Column) -> DbResult<&str> {
        let cast = self.casts.get(&column.name).map(String::as_str);
        cast.ok_or_else(|| {
            mismatch(
                &table.name,
                format!("column `{}` does not exist here", column.name),
            )
        })
    }

    /// Whether these rows' seconds have no more digits than their columns keep.
    pub(super) fn check_digits(&self, table: &Table, rows: &[&Row]) -> DbResult<()> {
        if self.digits.is_empty() {
            return Ok(());
        }
        for (at, column) in table.columns.iter().enumerate() {
            let Some(&kept) = self.digits.get(&column.name) else {
                continue;
            };
            let over = |row: &&&Row| matches!(row.0.get(at), Some(Value::Text(text)) if fraction(text) > kept);
            if rows.iter().find(over).is_some() {
                return Err(mismatch(
                    &table.name,
                    format!(
                        "a value of column `{}` does not fit this database unaltered: the column keeps {kept} digits of a second",
                        column.name
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The condition that joins the table's rows, as `row`, with whole rows unnested as `now(c0, c1, ...)`.
    pub(super) fn row_join(&self, table: &Table, row: &str) -> DbResult<String> {
        let columns = table.columns.iter().enumerate();
        let equal = columns
            .filter(|(at, _)| table.is_key(*at))
            .map(|(at, column)| {
                let cast = self.cast(table, column)?;
                Ok(format!("{row}.{} = now.c{at}::{cast}", ident(&column.name)))
            });
        Ok(equal.collect::<DbResult<Vec<_>>>()?.join(" AND "))
    }

    /// The condition that one of these columns of `row` differs from its new value in `now`; `None` where none can.
    pub(super) fn changed(
        &self,
        table: &Table,
        row: &str,
        names: &[&String],
    ) -> DbResult<Option<String>> {
        let columns = table.columns.iter().enumerate();
        let differs = columns
            .filter(|(at, column)| !table.is_key(*at) && names.contains(&&column.name))
            .map(|(at, column)| {
                let (name, cast) = (ident(&column.name), self.cast(table, column)?);
                Ok(format!("{row}.{name} IS DISTINCT FROM now.c{at}::{cast}"))
            });
        let differs = differs.collect::<DbResult<Vec<_>>>()?;
        Ok((!differs.is_empty()).then(|| format!("({})", differs.join(" OR "))))
    }

    /// The condition that joins the table's rows, as `row`, with keys unnested as `given(k0, k1, ...)`.
    pub(super) fn key_join(&self, table: &Table, row: &str) -> DbResult<String> {
        let columns = table.key_columns().enumerate();
        let equal = columns.map(|(at, column)| {
            Ok(format!(
                "{row}.{} = given.k{at}::{}",
                ident(&column.name),
                self.cast(table, column)?
            ))
        });
        Ok(equal.collect::<DbResult<Vec<_>>>()?.join(" AND "))
    }
}

/// `unnest($1, $2, ...) AS given(k0, k1, ...)` over a table's key, its parameters counted from `first`.
pub(super) fn given(table: &Table, first: usize, ordinal: bool) -> String {
    let count = table.key.len();
    let values: Vec<String> = (first..first + count).map(|at| format!("${at}")).collect();
    let mut columns: Vec<String> = (0..count).map(|at| format!("k{at}")).collect();
    if ordinal {
        columns.push("place".to_owned());
    }
    let with = if ordinal { " WITH ORDINALITY" } else { "" };
    // Unqualified: only so does PostgreSQL take several arrays.
    format!(
        "unnest({}){with} AS given({})",
        values.join(", "),
        columns.join(", ")
    )
}

/// `unnest($1, $2, ...) AS now(c0, c1, ...)` over a table's whole rows.
pub(super) fn rows_now(table: &Table) -> String {
    let count = table.columns.len();
    let values: Vec<String> = (1..=count).map(|at| format!("${at}")).collect();
    let columns: Vec<String> = (0..count).map(|at| format!("c{at}")).collect();
    format!(
        "unnest({}) AS now({})",
        values.join(", "),
        columns.join(", ")
    )
}

/// The foreign keys that refer to the table with these names.
static CHILDREN: LazyLock<String> = LazyLock::new(|| {
    let column = |relation: &str, list: &str| {
        format!(
            "ARRAY(SELECT a.attname::text FROM pg_catalog.unnest({list}) WITH ORDINALITY AS k(number, place)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = {relation} AND a.attnum = k.number ORDER BY k.place)"
        )
    };
    format!(
        "SELECT s.nspname::text, t.relname::text, {}, {},
                f.confdeltype IN ('c', 'n', 'd'), f.confupdtype IN ('c', 'n', 'd')
         FROM pg_catalog.pg_constraint f
         JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
         JOIN pg_catalog.pg_namespace q ON q.oid = p.relnamespace
         JOIN pg_catalog.pg_class t ON t.oid = f.conrelid
         JOIN pg_catalog.pg_namespace s ON s.oid = t.relnamespace
         WHERE f.contype = 'f' AND f.conparentid = 0
           AND q.nspname = $1 AND p.relname = $2",
        column("f.conrelid", "f.conkey"),
        column("f.confrelid", "f.confkey"),
    )
});

async fn children(db: &mut PostgresDatabase, schema: &str, name: &str) -> DbResult<Vec<Child>> {
    let types = [Wire::TEXT, Wire::TEXT];
    let rows = db.query(&CHILDREN, &types, &[&schema, &name]).await?;
    rows.iter().map(Child::of).collect()
}

/// The foreign keys that refer to a table, whoever added one and however lately: none comes before the transaction ends.
pub(super) async fn children_held(db: &mut PostgresDatabase, table: &str) -> DbResult<Vec<Child>> {
    let statement = db.statement(&CHILDREN, &[Wire::TEXT, Wire::TEXT]).await?;
    let lock = format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", relation(table));
    let (schema, name) = names(table);
    let values: [&(dyn ToSql + Sync); 2] = [&schema, &name];
    let client = db.client()?;
    let (locked, found) = join(
        client.batch_execute(&lock),
        client.query(&statement, &values),
    )
    .await;
    locked.map_err(|e| on_table(table, &e))?;
    let found = found.map_err(|e| on_table(table, &e))?;
    found.iter().map(Child::of).collect()
}

pub(super) fn mismatch(table: &str, message: impl Into<String>) -> DatabaseError {
    DatabaseError::Mismatch {
        table: table.to_owned(),
        message: message.into(),
    }
}
