//! Columns that become another type. What the database's own casts make of the values must be what
//! [`branchline_core::value::convert`] makes of them at every other office, or the table is refused.

use branchline_core::port::DbResult;
use branchline_core::schema::Column;
use branchline_core::value::{Type, Value, canonical, convert, widens};
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::catalog;
use super::connection::PostgresDatabase;
use super::ddl::{self, ident, names, relation};
use super::error::on_table;
use super::evolve::{Step, alter, run};
use super::{literal, types};
use crate::lineage::{Stop, Tried, stop};

/// Values looked at together.
const PAGE: usize = 5000;

/// Gives a column its new type. Its default is dropped where it is a literal of the old one.
pub(super) async fn retype(
    db: &mut PostgresDatabase,
    step: &Step<'_>,
    column: &Column,
    live: &Column,
) -> Tried<()> {
    if catalog::same(&column.kind, &live.kind) {
        return Ok(());
    }
    let to = step.to;
    if let (Type::Enum { labels, .. }, Type::Enum { name, labels: here }) =
        (&column.kind, &live.kind)
    {
        return labelled(db, step, column, live, (name, here), labels).await;
    }
    for sql in ddl::enums(to) {
        run(db, to.id, &to.name, &sql).await?;
    }
    let name = ident(&column.name);
    let declared = ddl::declared(to, column);
    let cast = cast(&live.kind, &column.kind, &name, &declared);
    if !widens(&live.kind, &column.kind) {
        check(db, step, column, live, &cast).await?;
    }
    let default = live.default.is_some() && !live.generated_key;
    if default {
        alter(db, to, &format!("ALTER COLUMN {name} DROP DEFAULT")).await?;
    }
    alter(
        db,
        to,
        &format!("ALTER COLUMN {name} TYPE {declared} USING {cast}"),
    )
    .await
}

/// The expression that makes a value of the new type out of a column.
pub(super) fn cast(from: &Type, to: &Type, column: &str, declared: &str) -> String {
    let numeric = |kind: &Type| {
        matches!(
            kind,
            Type::Int16 | Type::Int32 | Type::Int64 | Type::Float64 | Type::Decimal { .. }
        )
    };
    let whole = |kind: &Type| matches!(kind, Type::Int16 | Type::Int32 | Type::Int64);
    match (from, to) {
        (Type::Bool, to) if whole(to) => format!("{column}::pg_catalog.int4::{declared}"),
        (from, Type::Bool) if whole(from) => format!("({column} OPERATOR(pg_catalog.<>) 0)"),
        (from, to) if numeric(from) && numeric(to) => format!("{column}::{declared}"),
        (
            Type::Date | Type::Timestamp | Type::TimestampTz,
            Type::Date | Type::Timestamp | Type::TimestampTz,
        ) => {
            format!("{column}::{declared}")
        }
        // What is spelt alike is the same: a single float is what its shortest text says.
        _ => format!("{column}::pg_catalog.text::{declared}"),
    }
}

/// Whether all values become what they become elsewhere.
async fn check(
    db: &mut PostgresDatabase,
    step: &Step<'_>,
    column: &Column,
    live: &Column,
    cast: &str,
) -> Tried<()> {
    let (table, id) = (&step.to.name, step.to.id);
    let name = ident(&column.name);
    let sql = format!(
        "DECLARE branchline_check NO SCROLL CURSOR FOR SELECT DISTINCT {}, {} FROM {} WHERE {name} IS NOT NULL",
        types::selected(&live.kind, &name),
        types::selected(&column.kind, &format!("({cast})")),
        relation(table)
    );
    run(db, id, table, &sql).await?;
    loop {
        let page = db
            .client()?
            .query(&format!("FETCH {PAGE} FROM branchline_check"), &[])
            .await;
        let page = page.map_err(|error| stop(id, on_table(table, &error)))?;
        for row in &page {
            let was = types::read_value(&live.kind, row, 0)?;
            let becomes = types::read_value(&column.kind, row, 1)?;
            let wanted = convert(&live.kind, &column.kind, &was);
            if wanted.as_ref() != Some(canonical(&column.kind, &becomes).as_ref()) {
                let shown: String = was.to_json().to_string().chars().take(60).collect();
                let reason = format!("column `{}`: {shown} is no {}", column.name, column.kind);
                return Err(Stop::Refused(id, reason));
            }
        }
        if page.len() < PAGE {
            break;
        }
    }
    db.execute("CLOSE branchline_check").await?;
    Ok(())
}

/// Gives an enum other labels: by adding them, or by another type in its place.
async fn labelled(
    db: &mut PostgresDatabase,
    step: &Step<'_>,
    column: &Column,
    live: &Column,
    (name, here): (&str, &[String]),
    labels: &[String],
) -> Tried<()> {
    let (to, id) = (step.to, step.to.id);
    // Another table's column of the type may have led the way.
    let present = labels_of(db, name).await?;
    if present == labels {
        return Ok(());
    }
    let mut rest = labels.iter();
    let grows = here.iter().all(|label| rest.any(|other| other == label));
    // A label cannot be used before the transaction that adds it has committed.
    let used = matches!(&column.default, Some(Value::Text(text)) if !present.contains(text));
    if grows && !used {
        let mut last: Option<&String> = None;
        for label in labels {
            if !present.contains(label) {
                let place = match last {
                    Some(last) => format!("AFTER {}", text(last)),
                    None => present
                        .first()
                        .map_or_else(String::new, |first| format!("BEFORE {}", text(first))),
                };
                let sql = format!(
                    "ALTER TYPE {} ADD VALUE {} {place}",
                    relation(name),
                    text(label)
                );
                run(db, id, &to.name, &sql).await?;
            }
            last = Some(label);
        }
        return Ok(());
    }
    let spelt: Vec<String> = labels.iter().map(|label| text(label)).collect();
    let (schema, bare) = names(name);
    let aside = "branchline_former_type";
    let columns = columns_of(db, name).await?;
    let mut sql = format!(
        "ALTER TYPE {0} RENAME TO {aside}; CREATE TYPE {0} AS ENUM ({1});",
        relation(name),
        spelt.join(", ")
    );
    for (table, column, default) in columns {
        let column = ident(&column);
        sql.push_str(&format!("ALTER TABLE {table} "));
        if default.is_some() {
            sql.push_str(&format!("ALTER COLUMN {column} DROP DEFAULT, "));
        }
        sql.push_str(&format!(
            "ALTER COLUMN {column} TYPE {} USING {column}::pg_catalog.text::{}",
            relation(name),
            relation(name)
        ));
        // Written as a literal with a cast to the former type.
        if let Some(value) = default
            .as_deref()
            .and_then(|sql| literal::value(&live.kind, sql))
        {
            sql.push_str(&format!(
                ", ALTER COLUMN {column} SET DEFAULT {}",
                literal::text(&value)
            ));
        }
        sql.push(';');
    }
    sql.push_str(&format!("DROP TYPE {}.{aside}", ident(schema)));
    tracing::debug!(name = bare, "an enum is made anew");
    run(db, id, &to.name, &sql).await
}

async fn labels_of(db: &mut PostgresDatabase, name: &str) -> DbResult<Vec<String>> {
    let sql = "SELECT e.enumlabel::text FROM pg_catalog.pg_enum e JOIN pg_catalog.pg_type t ON t.oid = e.enumtypid
               JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
               WHERE n.nspname = $1 AND t.typname = $2 ORDER BY e.enumsortorder";
    let (schema, bare) = names(name);
    let rows = db
        .query(sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &bare])
        .await?;
    rows.iter().map(|row| get(row, 0)).collect()
}

/// The columns of a type: table, name, default.
async fn columns_of(
    db: &mut PostgresDatabase,
    name: &str,
) -> DbResult<Vec<(String, String, Option<String>)>> {
    let sql = "SELECT s.nspname::text, c.relname::text, a.attname::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid)
               FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
               JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
               JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
               LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
               WHERE n.nspname = $1 AND t.typname = $2 AND a.attnum > 0 AND NOT a.attisdropped AND NOT c.relispartition";
    let (schema, bare) = names(name);
    let rows = db
        .query(sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &bare])
        .await?;
    let column = |row| {
        Ok((
            format!("{}.{}", ident(get(row, 0)?), ident(get(row, 1)?)),
            get(row, 2)?,
            get(row, 3)?,
        ))
    };
    rows.iter().map(column).collect()
}

fn text(label: &str) -> String {
    literal::text(&Value::Text(label.to_owned()))
}
