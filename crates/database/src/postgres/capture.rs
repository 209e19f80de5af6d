//! What the capture holds: keys of written rows, noted by [`super::triggers`] in the application's own transaction.

use std::collections::BTreeSet;

use branchline_core::change::Key;
use branchline_core::identity::Micros;
use branchline_core::port::{Backlog, DatabaseError, DbResult};
use branchline_core::schema::Table;
use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type as Wire, to_sql_checked};

use super::books::{get, table_number};
use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::layout::{Layout, given};
use super::types;

/// Microseconds from 1970 to PostgreSQL's epoch, 2000.
const EPOCH: i64 = 946_684_800_000_000;
/// A moment as the capture stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    pub(super) fn micros(self) -> Micros {
        Micros(self.0.saturating_add(EPOCH))
    }
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Wire, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TIMESTAMPTZ
    }
}

impl ToSql for Moment {
    fn to_sql(
        &self,
        _: &Wire,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TIMESTAMPTZ
    }
    to_sql_checked!();
}

pub(super) async fn captured(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<BTreeSet<Key>> {
    let id = table_number(table.id)?;
    let Some(keys) = keys else {
        let rows = db
            .query(
                "SELECT DISTINCT key FROM branchline.capture WHERE tbl = $1",
                &[Wire::INT4],
                &[&id],
            )
            .await?;
        let mut keys = BTreeSet::new();
        for row in &rows {
            // Some could not be told when they were captured.
            let texts: Option<Vec<&str>> = get::<Vec<Option<&str>>>(row, 0)?.into_iter().collect();
            if let Some(texts) = texts {
                keys.insert(parse_key(table, &texts)?);
            }
        }
        return Ok(keys);
    };
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let layout = db.layout(&table.name).await?;
    let texts = given_key(table, &layout)?;
    // The answer is by place: the caller may spell a key otherwise than the capture does.
    let sql = format!(
        "SELECT DISTINCT given.place FROM branchline.capture c JOIN {} ON c.key = {texts} WHERE c.tbl = $1",
        given(table, 2, true)
    );
    let arrays = types::key_arrays(table, keys)?;
    let mut types = vec![Wire::INT4];
    types.extend(types::key_types(table));
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&id];
    values.extend(types::parameters(&arrays));
    let rows = db.query(&sql, &types, &values).await?;
    let place = |row| {
        Ok(usize::try_from(get::<i64>(row, 0)? - 1)
            .ok()
            .and_then(|at| keys.get(at))
            .cloned())
    };
    rows.iter()
        .filter_map(|row| place(row).transpose())
        .collect()
}

pub(super) async fn recapture(
    db: &mut PostgresDatabase,
    table: &Table,
    keys: Option<&[Key]>,
) -> DbResult<()> {
    let id = table_number(table.id)?;
    let layout = db.layout(&table.name).await?;
    let head = "INSERT INTO branchline.capture (tbl, op, at, tx, key) SELECT $1";
    let stamp = "pg_catalog.clock_timestamp(), pg_catalog.pg_current_xact_id()";
    let Some(keys) = keys else {
        let texts: Vec<String> = table
            .key_columns()
            .map(|column| types::key_text(&column.kind, &format!("r.{}", ident(&column.name))))
            .collect();
        let sql = format!(
            "{head}, 'X', {stamp}, ARRAY[{}] FROM {} r",
            texts.join(", "),
            layout.relation
        );
        db.query(&sql, &[Wire::INT4], &[&id]).await?;
        return Ok(());
    };
    let sql = format!(
        "{head}, 'U', {stamp}, {} FROM {}",
        given_key(table, &layout)?,
        given(table, 2, false)
    );
    let arrays = types::key_arrays(table, keys)?;
    let mut types = vec![Wire::INT4];
    types.extend(types::key_types(table));
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&id];
    values.extend(types::parameters(&arrays));
    db.query(&sql, &types, &values).await?;
    Ok(())
}

/// The capture's text of a given key.
fn given_key(table: &Table, layout: &Layout) -> DbResult<String> {
    let texts = table.key_columns().enumerate().map(|(at, column)| {
        let value = format!("given.k{at}::{}", layout.cast(table, column)?);
        Ok(types::key_text(&column.kind, &value))
    });
    Ok(format!(
        "ARRAY[{}]",
        texts.collect::<DbResult<Vec<_>>>()?.join(", ")
    ))
}

pub(super) async fn backlog(db: &mut PostgresDatabase) -> DbResult<Backlog> {
    let sql = "SELECT pg_catalog.count(*), pg_catalog.min(at) FROM branchline.capture";
    let rows = db.query(sql, &[], &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Backlog::default());
    };
    let oldest = get::<Option<Moment>>(row, 1)?.map(Moment::micros);
    Ok(Backlog {
        writes: get::<i64>(row, 0)?.unsigned_abs(),
        oldest,
    })
}

/// A captured key.
pub(super) fn parse_key(table: &Table, texts: &[&str]) -> DbResult<Key> {
    let values: Option<Vec<_>> = table
        .key_columns()
        .zip(texts)
        .map(|(column, text)| types::parsed(&column.kind, text))
        .collect();
    match values {
        Some(values) if values.len() == table.key.len() && texts.len() == values.len() => {
            Ok(Key(values))
        }
        _ => Err(DatabaseError::Mismatch {
            table: table.name.clone(),
            message: format!(
                "a captured key of {} values is no key of the plan's table",
                texts.len()
            ),
        }),
    }
}
