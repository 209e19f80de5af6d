//! Looking at the tables of this office: which of them are not what the plan says, what of them serves all the same, and
//! whether they are still captured.

use std::collections::{BTreeMap, BTreeSet};

use super::here::{Differing, Here};
use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Note};
use crate::change::Row;
use crate::evolution::recapture_filled;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::Micros;
use crate::office::conclude;
use crate::output::Notice;
use crate::port::{Database, DatabaseError, Inspection, Purpose};
use crate::schema::{Column, ColumnId, Schema, Table, TableId};

/// The record of the tables whose capture was found missing, until what went unseen of them is looked for.
pub(crate) const UNCAPTURED: &str = "uncaptured";

impl Branch {
    /// Tables that could not take a step of the schema.
    pub(super) fn refused_tables(&self) -> BTreeSet<TableId> {
        self.book.refused.iter().map(|table| table.id).collect()
    }

    /// The database where its tables differ so from the plan's.
    fn here<'d, D>(&self, db: &'d mut D, differing: Differing) -> Here<'d, D> {
        Here {
            db,
            differing,
            refused: self.refused_tables(),
        }
    }

    /// Columns of which a row here says nothing: the table lacks them, or lacked them and their values are still to come.
    pub(super) fn absent(&self, table: &Table, row: Option<&Row>) -> Vec<u16> {
        let local = self.differing.get(&table.id).and_then(Option::as_ref);
        let lacks = |column: &Column| {
            local.is_some_and(|local| !local.columns.iter().any(|one| one.id == column.id))
        };
        let lacked = self.book.lacked.as_deref().unwrap_or_default();
        let unfilled = |at: u16, column: &Column| {
            let value = row.and_then(|row| row.0.get(usize::from(at)));
            lacked.contains(&(table.id, column.id))
                && value
                    .is_none_or(|value| value.is_null() || Some(value) == column.default.as_ref())
        };
        let columns = (0u16..).zip(&table.columns);
        let absent = columns.filter(|(at, column)| lacks(column) || unfilled(*at, column));
        absent.map(|(at, _)| at).collect()
    }

    /// Columns of the plan that tables here lack.
    fn lacking(&self) -> BTreeSet<(TableId, ColumnId)> {
        let differing = self.differing.iter();
        let pairs =
            differing.filter_map(|(id, local)| Some((self.schema.table(*id)?, local.as_ref()?)));
        pairs
            .flat_map(|(table, local)| {
                let lacks = |column: &&Column| !local.columns.iter().any(|one| one.id == column.id);
                table
                    .columns
                    .iter()
                    .filter(lacks)
                    .map(|column| (table.id, column.id))
            })
            .collect()
    }

    /// Notes which columns are lacking. Where one came since it was noted, the rows are compared with the head's, which
    /// has its values; and so they are where a table that a comparison left out is what the plan says by now.
    async fn note_lacking<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let lacking = self.lacking();
        let known = self.book.lacked.clone().unwrap_or_default();
        let shared = |(id, column): &(TableId, ColumnId)| {
            let table = self.schema.table(*id);
            table.is_some_and(|table| table.columns.iter().any(|one| one.id == *column))
        };
        let known: BTreeSet<_> = known.into_iter().filter(shared).collect();
        let came: Vec<(TableId, ColumnId)> = known.difference(&lacking).copied().collect();
        let lacked: Vec<_> = known.union(&lacking).copied().collect();
        let mut book = BranchBook {
            lacked: (!lacked.is_empty()).then_some(lacked),
            ..self.book.clone()
        };
        let left_out = self.book.left_out.clone().unwrap_or_default();
        let is_unlike = |id: &TableId| self.differing.contains_key(id);
        let (left_out, alike): (Vec<_>, Vec<_>) = left_out.into_iter().partition(is_unlike);
        book.left_out = (!left_out.is_empty()).then_some(left_out);
        let compare = !came.is_empty() || !alike.is_empty();
        if compare {
            book.compare = Some(true);
        }
        if book == self.book {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            for (id, column) in &came {
                if let Some(table) = self.schema.table(*id) {
                    recapture_filled(db, table, *column).await?;
                }
            }
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.book = book;
        self.captured |= !came.is_empty();
        if compare && self.link.welcomed && self.book.joining.is_none() {
            self.verify(true)?;
        }
        Ok(())
    }

    /// Whether the tables are what they were when they were last looked at; asked first in a taking transaction.
    pub(super) async fn is_as_known<D: Database>(&self, db: &mut D) -> OfficeResult<bool> {
        Ok(self.shape == Some(db.shape(&self.schema).await?))
    }

    /// Captures the rows once more that could not be sent: the tables changed, and what the plan had no place for before may
    /// have one now.
    async fn read_again<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        if !self.any_notes {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let mut any = false;
            for table in &self.schema.tables {
                let mut keys = Vec::new();
                for (key, note) in db.notes(table, None).await? {
                    if matches!(books::decode(&note)?, Note::Unreadable(..)) {
                        keys.push(key);
                    }
                }
                if !keys.is_empty() {
                    db.recapture(table, Some(&keys)).await?;
                    any = true;
                }
            }
            Ok(any)
        };
        let outcome = outcome.await;
        self.captured |= conclude(db, outcome).await?;
        Ok(())
    }

    /// Looks at the tables, which have changed since: what of them serves, and whether they are still captured. Nothing is
    /// concluded, and false returned, while a table is gone since a moment only, by this time where one is given.
    pub(super) async fn look<D: Database>(
        &mut self,
        db: &mut D,
        now: Option<Micros>,
    ) -> OfficeResult<bool> {
        // The fingerprint comes first: what changes before the definitions are read shows the next time. It is that of the
        // tables under their names here, and taken once more where the definitions tell others than were known.
        let mut differing = self.differing.clone();
        let mut again = true;
        let (shape, uncaptured, found) = loop {
            let mut here = self.here(&mut *db, differing);
            let names = here.names(&self.schema);
            here.begin(Purpose::Read).await?;
            let outcome = async {
                let shape = here.shape(&self.schema).await?;
                let known: Option<BTreeSet<TableId>> = books::load(&mut here, UNCAPTURED).await?;
                Ok((shape, known.unwrap_or_default()))
            };
            let outcome: OfficeResult<_> = outcome.await;
            let (shape, uncaptured) = conclude(&mut here, outcome).await?;
            let found = here.definitions().await?;
            here.differing = self.compared_with(&found);
            let settled = here.names(&self.schema) == names;
            differing = here.differing;
            if settled || !std::mem::take(&mut again) {
                break (shape, uncaptured, found);
            }
        };
        let known_gone = |id: &TableId| self.differing.get(id) == Some(&None);
        let gone = differing.iter().filter(|(_, local)| local.is_none());
        let gone = gone.map(|(id, _)| *id).filter(|id| !known_gone(id));
        let gone: Vec<TableId> = gone.collect();
        if let Some(now) = now
            && self.gone.is_seen(gone, now)
        {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.differing, differing);
        self.put_capture_back(db, &found, uncaptured).await?;
        if self.differing != before {
            self.tell_differing();
        }
        let mut here = self.here(db, self.differing.clone());
        self.note_lacking(&mut here).await?;
        self.read_again(&mut here).await?;
        self.shape = Some(shape);
        Ok(true)
    }

    /// How the tables here differ from the plan's, by their names and their columns'.
    fn compared_with(&self, found: &Inspection) -> Differing {
        let mut differing = Differing::new();
        for table in &self.schema.tables {
            let refused = self.book.refused.iter().find(|one| one.id == table.id);
            let base = refused.unwrap_or(table);
            let Some(now) = present(found, base) else {
                // One that inspection cannot tell is left to what its reading says.
                let listed = found.findings.iter().any(|finding| {
                    finding.fatal && finding.table.as_deref() == Some(base.name.as_str())
                });
                if !listed {
                    differing.insert(table.id, None);
                }
                continue;
            };
            let names: BTreeSet<&str> = now.columns.iter().map(|c| c.name.as_str()).collect();
            let columns = base.columns.iter();
            let kept = columns.filter(|c| names.contains(c.name.as_str()));
            let kept: BTreeSet<ColumnId> = kept.map(|column| column.id).collect();
            if refused.is_some() || kept.len() < base.columns.len() || now.name != base.name {
                let here = narrowed(base, &kept).map(|base| Table {
                    name: now.name.clone(),
                    ..base
                });
                differing.insert(table.id, here);
            }
        }
        differing
    }

    fn tell_differing(&mut self) {
        let of = |id: &TableId| self.schema.table(*id).map(|table| table.name.clone());
        let names: Vec<String> = self.differing.keys().filter_map(of).collect();
        if !names.is_empty() {
            let what = format!(
                "the tables here are not what the plan says: {}; what they have in common with it goes on, the rest waits for the head to change likewise",
                names.join(", ")
            );
            self.notice(Notice::Trouble(what));
        }
    }

    /// Puts capture back where a rebuild took it away. Rows of such tables are captured whole: what was written to them
    /// meanwhile went unseen (SETTLED 16). That of the `uncaptured` tables was found missing before, and they were not
    /// captured whole since.
    async fn put_capture_back<D: Database>(
        &mut self,
        db: &mut D,
        found: &Inspection,
        mut uncaptured: BTreeSet<TableId>,
    ) -> OfficeResult<()> {
        let mut differing = self.differing.clone();
        let mut here = loop {
            let mut here = self.here(&mut *db, differing.clone());
            match reinstalled(&mut here, &self.schema, &mut uncaptured).await {
                Ok(()) => break self.here(db, differing),
                Err(OfficeError::Database(DatabaseError::Mismatch { table, message })) => {
                    // Its columns became other types, which do not serve for the plan's: its rows are read as they are.
                    let retyped = self.retyped(&differing, found, &table);
                    let Some((id, local)) = retyped else {
                        return Err(DatabaseError::Mismatch { table, message }.into());
                    };
                    differing.insert(id, Some(local));
                }
                Err(error) => return Err(error),
            }
        };
        self.differing.clone_from(&here.differing);
        if uncaptured.is_empty() {
            return Ok(());
        }
        let tables: Vec<&Table> = uncaptured
            .iter()
            .filter_map(|id| self.schema.table(*id))
            .collect();
        let mut book = self.book.clone();
        book.compare = Some(true);
        here.begin(Purpose::Apply).await?;
        let outcome = async {
            for table in &tables {
                here.recapture(table, None).await?;
            }
            here.set_meta(UNCAPTURED, None).await?;
            books::store(&mut here, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(&mut here, outcome).await?;
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let what = format!(
            "capture was missing on {}; it is put back, and the rows are compared with the head's",
            names.join(", ")
        );
        self.notice(Notice::Trouble(what));
        self.captured = true;
        self.book = book;
        Ok(())
    }

    /// The table of this name with the types that its columns have here; nothing where it has them already.
    fn retyped(
        &self,
        differing: &Differing,
        found: &Inspection,
        name: &str,
    ) -> Option<(TableId, Table)> {
        let local = |table: &Table| match differing.get(&table.id) {
            None => Some(table.clone()),
            Some(local) => local.clone(),
        };
        let mut all = self.schema.tables.iter().filter_map(local);
        let mut table = all.find(|table| table.name == name)?;
        let now = found.tables.iter().find(|one| one.name == name)?;
        let before = table.clone();
        for column in &mut table.columns {
            let here = now.columns.iter().find(|one| one.name == column.name)?;
            column.kind.clone_from(&here.kind);
            column.default.clone_from(&here.default);
        }
        (table != before).then_some((table.id, table))
    }
}

/// The table of this office that a shared table is: by its name, or where its capture went with it.
fn present<'f>(found: &'f Inspection, table: &Table) -> Option<&'f Table> {
    let there = |name: &str| found.tables.iter().find(|one| one.name == name);
    there(&table.name).or_else(|| there(found.captured.get(&table.id)?))
}

/// Installs capture where some of it is missing, and adds those tables to the `uncaptured`.
async fn reinstalled<D: Database>(
    here: &mut Here<'_, D>,
    schema: &Schema,
    uncaptured: &mut BTreeSet<TableId>,
) -> OfficeResult<()> {
    let missing = here.missing_capture(schema).await?;
    if missing.is_empty() {
        return Ok(());
    }
    remember_uncaptured(here, &missing, uncaptured).await?;
    Ok(here.install(schema).await?)
}

/// Remembers in the database that these tables too were without capture: once it is installed, nothing else tells.
pub(crate) async fn remember_uncaptured<D: Database>(
    db: &mut D,
    missing: &[TableId],
    uncaptured: &mut BTreeSet<TableId>,
) -> OfficeResult<()> {
    let known = uncaptured.len();
    uncaptured.extend(missing);
    if uncaptured.len() == known {
        return Ok(());
    }
    db.begin(Purpose::Apply).await?;
    let outcome = books::store(db, UNCAPTURED, uncaptured).await;
    conclude(db, outcome).await
}

/// A table with only these columns; nothing where its key is not among them.
pub(super) fn narrowed(table: &Table, kept: &BTreeSet<ColumnId>) -> Option<Table> {
    let mut places = BTreeMap::new();
    let mut columns = Vec::new();
    for (at, column) in (0u16..).zip(&table.columns) {
        if kept.contains(&column.id) {
            places.insert(at, u16::try_from(columns.len()).ok()?);
            columns.push(column.clone());
        }
    }
    let moved = |list: &Vec<u16>| -> Option<Vec<u16>> {
        list.iter().map(|at| places.get(at).copied()).collect()
    };
    let mut foreign_keys = table.foreign_keys.clone();
    foreign_keys.retain_mut(|reference| match moved(&reference.columns) {
        Some(columns) => {
            reference.columns = columns;
            true
        }
        None => false,
    });
    let mut checks = table.checks.clone();
    let place = |at: u16| places.get(&at).copied();
    checks.0.retain_mut(|check| {
        let moved = check.condition.moved(&place);
        moved.map(|moved| check.condition = moved).is_some()
    });
    let mut counters = table.counters.clone();
    counters.retain_mut(|counter| match places.get(&counter.column) {
        Some(place) => {
            counter.column = *place;
            true
        }
        None => false,
    });
    Some(Table {
        key: moved(&table.key)?,
        unique: table.unique.iter().filter_map(moved).collect(),
        indexes: table.indexes.iter().filter_map(moved).collect(),
        foreign_keys,
        checks,
        counters,
        columns,
        ..table.clone()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::check::{Check, Checks, Comparison, Condition};
    use crate::value::Type;

    #[test]
    fn checks_stay_with_their_columns_in_a_table_that_lacks_some() {
        let column = |id| Column {
            name: format!("c{id}"),
            kind: Type::Int32,
            nullable: true,
            default: None,
            generated_key: false,
            id,
        };
        let positive = |at| Condition::Number(at, Comparison::Greater, 0);
        let check = |at| Check {
            name: None,
            condition: positive(at),
        };
        let table = Table {
            id: 1,
            name: "t".into(),
            columns: (1..4).map(column).collect(),
            key: vec![0],
            unique: vec![],
            foreign_keys: vec![],
            direction: Default::default(),
            conflict: Default::default(),
            insert: Default::default(),
            counters: vec![],
            before: false,
            columns_ever: 3,
            indexes: vec![],
            checks: Checks(vec![check(1), check(2)]),
        };
        let narrow = narrowed(&table, &BTreeSet::from([1, 3])).unwrap();
        assert_eq!(narrow.checks, Checks(vec![check(1)]));
    }
}
