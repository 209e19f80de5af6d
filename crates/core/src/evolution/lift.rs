//! A row, a key or a change of one version read under another.

use std::collections::BTreeSet;

use crate::change::{Change, Effect, Key, Row};
use crate::conflict::ConflictRecord;
use crate::schema::{Column, ColumnId, SchemaVersion, Table};
use crate::value::{Value, convert};

/// A row of one version read under another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifted {
    /// The row.
    pub row: Row,
    /// Columns of which the old version knows nothing; the row has their default.
    pub absent: Vec<u16>,
    /// Names of old columns that have no place any more, though the row has a value there.
    pub lost: Vec<String>,
}

/// The two shapes of a table between which rows are lifted.
#[derive(Clone, Copy, Debug)]
pub struct Lift<'a> {
    /// How rows stand.
    pub from: &'a Table,
    /// How they are to stand.
    pub to: &'a Table,
}

impl Lift<'_> {
    fn source(&self, id: ColumnId) -> Option<(usize, &Column)> {
        self.from
            .columns
            .iter()
            .enumerate()
            .find(|(_, column)| column.id == id)
    }

    /// Whether rows stand alike in both.
    pub fn is_identity(&self) -> bool {
        let shape = |table: &Table| {
            let columns: Vec<_> = table
                .columns
                .iter()
                .map(|c| (c.id, c.kind.clone()))
                .collect();
            (columns, table.key.clone())
        };
        shape(self.from) == shape(self.to)
    }

    /// Lifts a row; where a value cannot become one of the new type, says which.
    pub fn row(&self, row: &Row) -> Result<Lifted, String> {
        let mut values = Vec::with_capacity(self.to.columns.len());
        let mut absent = Vec::new();
        for (place, column) in self.to.columns.iter().enumerate() {
            let old = self.source(column.id);
            let Some((value, kind)) = old.and_then(|(at, old)| Some((row.0.get(at)?, &old.kind)))
            else {
                absent.extend(u16::try_from(place));
                values.push(column.default.clone().unwrap_or(Value::Null));
                continue;
            };
            values.push(self.value(column, kind, value)?);
        }
        let kept: BTreeSet<ColumnId> = self.to.columns.iter().map(|column| column.id).collect();
        let lost = self.from.columns.iter().zip(&row.0);
        let lost = lost.filter(|(column, value)| {
            !kept.contains(&column.id) && !value.is_null() && column.default.as_ref() != Some(value)
        });
        let lost = lost.map(|(column, _)| column.name.clone()).collect();
        Ok(Lifted {
            row: Row(values),
            absent,
            lost,
        })
    }

    /// Lifts a key.
    pub fn key(&self, key: &Key) -> Result<Key, String> {
        let lifted = self.to.key_columns().map(|column| {
            let at = self.from.key_columns().position(|old| old.id == column.id);
            let old = at.and_then(|at| Some((key.0.get(at)?, self.from.key_columns().nth(at)?)));
            let (value, old) = old.ok_or_else(|| {
                format!("column `{}` was not part of the key before", column.name)
            })?;
            self.value(column, &old.kind, value)
        });
        lifted.collect::<Result<_, _>>().map(Key)
    }

    pub(super) fn value(
        &self,
        column: &Column,
        from: &crate::value::Type,
        value: &Value,
    ) -> Result<Value, String> {
        if *from == column.kind {
            return Ok(value.clone());
        }
        convert(from, &column.kind, value).ok_or_else(|| {
            let told = value.to_json();
            format!(
                "column `{}` of table `{}` is now {}, which {told} is not",
                column.name, self.to.name, column.kind
            )
        })
    }

    /// Lifts an effect, and says what [`Lift::row`] says of it.
    pub fn effect(&self, effect: &Effect) -> Result<(Effect, Vec<u16>, Vec<String>), String> {
        match effect {
            Effect::Put(row) => {
                let lifted = self.row(row)?;
                let no_key = self.to.key.iter().find(|at| lifted.absent.contains(at));
                if no_key.is_some() {
                    return Err(format!(
                        "the key of table `{}` has a column that the row lacks",
                        self.to.name
                    ));
                }
                Ok((Effect::Put(lifted.row), lifted.absent, lifted.lost))
            }
            Effect::Delete(key) => Ok((Effect::Delete(self.key(key)?), Vec::new(), Vec::new())),
        }
    }

    /// Lifts a record of a decision, which then stands in this version.
    pub fn record(
        &self,
        record: ConflictRecord,
        version: SchemaVersion,
    ) -> Result<ConflictRecord, String> {
        let row = |row: &Option<Row>| -> Result<Option<Row>, String> {
            let lifted = row.as_ref().map(|row| self.row(row));
            Ok(lifted.transpose()?.map(|lifted| lifted.row))
        };
        let columns = self.to.columns.iter();
        Ok(ConflictRecord {
            table: self.to.name.clone(),
            columns: columns.map(|column| column.name.clone()).collect(),
            key: self.key(&record.key)?,
            ours: row(&record.ours)?,
            theirs: row(&record.theirs)?,
            before: row(&record.before)?,
            merged: row(&record.merged)?,
            shape: (version, self.to.id),
            ..record
        })
    }

    /// Lifts a change. Columns that it says nothing of are named in [`Change::absent`].
    pub fn change(&self, change: &Change) -> Result<(Change, Vec<String>), String> {
        let (effect, mut absent, lost) = self.effect(&change.effect)?;
        let before = match &change.before {
            Some(row) => Some(self.row(row)?.row),
            None => None,
        };
        // Columns that the office itself already lacked.
        for at in &change.absent {
            let id = self
                .from
                .columns
                .get(usize::from(*at))
                .map(|column| column.id);
            let place = self
                .to
                .columns
                .iter()
                .position(|column| Some(column.id) == id);
            absent.extend(place.and_then(|place| u16::try_from(place).ok()));
        }
        absent.sort_unstable();
        absent.dedup();
        let lifted = Change {
            table: self.to.id,
            effect,
            absent,
            before,
            ..change.clone()
        };
        Ok((lifted, lost))
    }
}

/// Gives the columns that a change says nothing of the values of the row that is there.
pub fn fill(change: &mut Change, present: Option<&Row>) {
    if let Some(before) = &mut change.before {
        fill_row(before, &change.absent, present);
    }
    if let Effect::Put(row) = &mut change.effect {
        fill_row(row, &change.absent, present);
    }
}

/// Gives the columns of a row of which nothing is known the values of the row that is there.
pub(crate) fn fill_row(row: &mut Row, absent: &[u16], present: Option<&Row>) {
    let Some(present) = present else {
        return;
    };
    for at in absent {
        let at = usize::from(*at);
        if let (Some(value), Some(there)) = (row.0.get_mut(at), present.0.get(at)) {
            value.clone_from(there);
        }
    }
}
