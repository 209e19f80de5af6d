//! Captured writes, and what they come to for each row.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use branchline_core::change::Row as CoreRow;
use branchline_core::port::{DbResult, First};
use branchline_core::schema::Table;
use branchline_core::value::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type as Wire, to_sql_checked};

use super::books::get;
use super::capture::Moment;
use super::types;

/// A captured write.
pub(super) struct Write {
    pub(super) table: u32,
    first: First,
    pub(super) at: Moment,
    key: Vec<String>,
    pub(super) place: Place,
    old: Option<Image>,
}

/// A captured row: all of its writes in a unit.
pub(super) struct Net {
    pub(super) table: u32,
    pub(super) key: Vec<String>,
    pub(super) first: First,
    pub(super) at: Moment,
    /// Where its first write is captured.
    pub(super) place: Place,
    /// How it was before that, where it is known.
    pub(super) old: Option<Image>,
}

impl Write {
    /// Reads `tbl, op, at, key, ctid`.
    pub(super) fn of(row: &Row) -> DbResult<Self> {
        Ok(Self {
            table: get::<i32>(row, 0)?.unsigned_abs(),
            first: first(get(row, 1)?),
            at: get(row, 2)?,
            // One that could not be told when it was captured names no row.
            key: get::<Vec<Option<String>>>(row, 3)?
                .into_iter()
                .collect::<Option<_>>()
                .unwrap_or_default(),
            place: get(row, 4)?,
            old: None,
        })
    }

    /// As [`Self::of`], and `old`.
    pub(super) fn with_old(row: &Row) -> DbResult<Self> {
        let old = get::<Option<Vec<_>>>(row, 5)?.map(Image);
        Ok(Self {
            old,
            ..Self::of(row)?
        })
    }
}

impl Net {
    /// Reads `tbl, op, last, key, ctid`: the first write of a row, and the time of its last.
    pub(super) fn of(row: &Row) -> DbResult<Self> {
        Write::of(row).map(Self::begun)
    }

    fn begun(write: Write) -> Self {
        Self {
            table: write.table,
            key: write.key,
            first: write.first,
            at: write.at,
            place: write.place,
            old: write.old,
        }
    }
}

fn first(op: i8) -> First {
    match op as u8 {
        b'I' => First::Inserted,
        b'X' => First::Unknown,
        _ => First::Existing,
    }
}

/// One entry for each row, in order of its first write.
pub(super) fn net(writes: Vec<Write>) -> Vec<Net> {
    let mut rows: Vec<Net> = Vec::with_capacity(writes.len());
    let hashes = RandomState::new();
    let mut places: HashMap<u64, usize> = HashMap::with_capacity(writes.len());
    for write in writes {
        let mut name = hashes.hash_one((write.table, &write.key));
        loop {
            match places.get(&name).and_then(|&at| rows.get_mut(at)) {
                Some(row) if row.table == write.table && row.key == write.key => {
                    row.at = row.at.max(write.at);
                    break;
                }
                // Another row with its hash.
                Some(_) => name = name.wrapping_add(1),
                None => {
                    places.insert(name, rows.len());
                    rows.push(Net::begun(write));
                    break;
                }
            }
        }
    }
    rows
}

/// A row as it was: names and texts of its columns, in turn.
pub(super) struct Image(pub(super) Vec<Option<String>>);

impl Image {
    /// The plan's row; `None` where the table has changed so much since that it cannot be told.
    pub(super) fn row(&self, table: &Table) -> Option<CoreRow> {
        let noted: HashMap<&str, Option<&str>> = self
            .0
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [Some(name), text] => Some((name.as_str(), text.as_deref())),
                _ => None,
            })
            .collect();
        let values = table.columns.iter().enumerate().map(|(at, column)| {
            // A column that came later was NULL then.
            match noted.get(column.name.as_str()).copied().flatten() {
                Some(text) => types::parsed(&column.kind, text),
                None => (column.nullable && !table.is_key(at)).then_some(Value::Null),
            }
        });
        let row = CoreRow(values.collect::<Option<_>>()?);
        table.fits(&row).then_some(row)
    }
}

/// Where a captured write lies in the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    block: u32,
    offset: u16,
}

impl<'a> FromSql<'a> for Place {
    fn from_sql(_: &Wire, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let (block, offset) = raw
            .split_at_checked(4)
            .ok_or("a place of the wrong length")?;
        Ok(Self {
            block: u32::from_be_bytes(block.try_into()?),
            offset: u16::from_be_bytes(offset.try_into()?),
        })
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TID
    }
}

impl ToSql for Place {
    fn to_sql(
        &self,
        _: &Wire,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.block.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        Ok(IsNull::No)
    }
    fn accepts(ty: &Wire) -> bool {
        *ty == Wire::TID
    }
    to_sql_checked!();
}
