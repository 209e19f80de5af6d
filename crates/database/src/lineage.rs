//! Which of the present tables and columns is which of a schema version's: told by numbers, and by what is really there.
//!
//! A step may have been made already, by the application or before a crash. So a name counts only where a column stands
//! under it, and one column is never taken for two.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::change::Key;
use branchline_core::identity::Digest;
use branchline_core::port::DatabaseError;
use branchline_core::schema::{Column, ColumnId, Schema, Table, TableId};
use branchline_core::value::{Type, Value, convert};

/// A foreign key by the numbers of what it binds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) columns: Vec<ColumnId>,
    pub(crate) parent: TableId,
    pub(crate) parent_columns: Vec<ColumnId>,
    pub(crate) on_delete: String,
    pub(crate) on_update: String,
}

/// The foreign keys of a table, in its order; those to tables outside the schema are left out.
pub(crate) fn links(schema: &Schema, table: &Table) -> Vec<Link> {
    let link = |key: &branchline_core::schema::ForeignKey| {
        let parent = schema.table_named(&key.parent)?;
        let numbers = key.parent_columns.iter().map(|name| {
            parent
                .columns
                .iter()
                .find(|one| one.name == *name)
                .map(|one| one.id)
        });
        Some(Link {
            columns: numbers_of(table, &key.columns),
            parent: parent.id,
            parent_columns: numbers.collect::<Option<_>>()?,
            on_delete: key.on_delete.clone(),
            on_update: key.on_update.clone(),
        })
    };
    table.foreign_keys.iter().filter_map(link).collect()
}

/// The numbers of the columns at these places.
pub(crate) fn numbers_of(table: &Table, places: &[u16]) -> Vec<ColumnId> {
    let at = |&at: &u16| table.columns.get(usize::from(at)).map(|column| column.id);
    places.iter().filter_map(at).collect()
}

/// The names of the columns at these places.
pub(crate) fn names_of(table: &Table, places: &[u16]) -> Vec<String> {
    let at = |&at: &u16| {
        table
            .columns
            .get(usize::from(at))
            .map(|column| column.name.clone())
    };
    places.iter().filter_map(at).collect()
}

/// What columns are called now, or that they are gone, by number.
pub(crate) type Known = BTreeMap<ColumnId, Option<String>>;

/// What the present columns of a table become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Columns {
    /// For each column of the new version, the present column that it is made of; `None` where it is added.
    pub(crate) sources: Vec<Option<String>>,
    /// The present columns that go.
    pub(crate) drops: Vec<String>,
    /// Columns that only the new version has, and that stand there already.
    pub(crate) found: Vec<ColumnId>,
}

impl Columns {
    /// Matches a present table with the two versions. `same` tells whether a column of the second type serves for one
    /// planned with the first; `known`, what columns are called now, where that is known for certain.
    pub(crate) fn of(
        former: Option<&Table>,
        to: &Table,
        live: &Table,
        known: &Known,
        same: impl Fn(&Type, &Type) -> bool,
    ) -> Self {
        let here = |name: &str| live.columns.iter().find(|column| column.name == name);
        let before = |id: ColumnId| former?.columns.iter().find(|column| column.id == id);
        let mut sources: Vec<Option<String>> = vec![None; to.columns.len()];
        let mut claimed = BTreeSet::new();
        for (column, source) in to.columns.iter().zip(&mut sources) {
            if let Some(Some(name)) = known.get(&column.id)
                && here(name).is_some()
                && claimed.insert(name.clone())
            {
                *source = Some(name.clone());
            }
        }
        // First what kept its name, then what has its new name surely, then what may still have its old one.
        for round in 0..3 {
            for (column, source) in to.columns.iter().zip(&mut sources) {
                let Some(before) = before(column.id).filter(|one| !known.contains_key(&one.id))
                else {
                    continue;
                };
                let wanted = match round {
                    0 if before.name == column.name => &column.name,
                    1 if before.name != column.name && here(&before.name).is_none() => &column.name,
                    2 if source.is_none() && !claimed.contains(&before.name) => &before.name,
                    2 if source.is_none() => &column.name,
                    _ => continue,
                };
                if here(wanted).is_some() && claimed.insert(wanted.clone()) {
                    *source = Some(wanted.clone());
                }
            }
        }
        let mut found = Vec::new();
        for (column, source) in to.columns.iter().zip(&mut sources) {
            let Some(stands) = here(&column.name).filter(|_| before(column.id).is_none()) else {
                continue;
            };
            if claimed.contains(&column.name) {
                continue;
            }
            // A column that goes, or was renamed, had this name too: where nothing else is known, only the type can tell
            // which of the two stands there.
            let gone =
                former.and_then(|former| former.columns.iter().find(|one| one.name == column.name));
            let old = gone.is_some_and(|gone| match known.get(&gone.id) {
                Some(now) => now.as_ref() == Some(&column.name),
                None => same(&gone.kind, &stands.kind) || !same(&column.kind, &stands.kind),
            });
            if !old {
                claimed.insert(column.name.clone());
                *source = Some(column.name.clone());
                found.extend(former.map(|_| column.id));
            }
        }
        let goes = |id: ColumnId| to.columns.iter().all(|column| column.id != id);
        let drops = former
            .into_iter()
            .flat_map(|former| &former.columns)
            .filter(|column| goes(column.id))
            .filter_map(|column| match known.get(&column.id) {
                Some(name) => name.clone(),
                None => Some(column.name.clone()),
            })
            .filter(|name| here(name).is_some() && !claimed.contains(name))
            .collect();
        Self {
            sources,
            drops,
            found,
        }
    }

    /// The number of a present column, where the new version has it.
    pub(crate) fn number(&self, to: &Table, name: &str) -> Option<ColumnId> {
        let place = self
            .sources
            .iter()
            .position(|source| source.as_deref() == Some(name))?;
        to.columns.get(place).map(|column| column.id)
    }

    /// The renames to make, as present and new name. Columns that go in the way of one get a name of ours.
    pub(crate) fn renames(&self, to: &Table) -> Vec<(String, String)> {
        let taken = |name: &String| to.columns.iter().any(|column| column.name == *name);
        let goes = self
            .drops
            .iter()
            .enumerate()
            .filter(|(_, name)| taken(name));
        let goes = goes.map(|(at, name)| (name.clone(), dropped(at)));
        let renamed = to.columns.iter().zip(&self.sources);
        let renamed = renamed.filter_map(|(column, source)| {
            let source = source.as_ref().filter(|source| **source != column.name)?;
            Some((source.clone(), column.name.clone()))
        });
        goes.chain(renamed).collect()
    }

    /// The columns that go, by the names that they have after [`Self::renames`].
    pub(crate) fn drops_renamed(&self, to: &Table) -> Vec<String> {
        let taken = |name: &String| to.columns.iter().any(|column| column.name == *name);
        let name = |(at, name): (usize, &String)| {
            if taken(name) {
                dropped(at)
            } else {
                name.clone()
            }
        };
        self.drops.iter().enumerate().map(name).collect()
    }
}

fn dropped(at: usize) -> String {
    format!("branchline_dropped_{at}")
}

/// Renames in an order in which none meets a name that is taken: where all wait for each other, one steps aside.
pub(crate) fn in_order(mut renames: Vec<(String, String)>, aside: &str) -> Vec<(String, String)> {
    renames.retain(|(from, to)| from != to);
    let mut ordered = Vec::with_capacity(renames.len() + 1);
    while !renames.is_empty() {
        let free = |(_, to): &(String, String)| !renames.iter().any(|(from, _)| from == to);
        if let Some(at) = renames.iter().position(free) {
            ordered.push(renames.remove(at));
        } else if let Some(first) = renames.first_mut() {
            let name = format!("{aside}_{}", ordered.len());
            ordered.push((std::mem::replace(&mut first.0, name.clone()), name));
        }
    }
    ordered
}

/// Where each table of the two versions stands now, by number.
pub(crate) fn tables(
    from: &Schema,
    to: &Schema,
    there: &BTreeSet<String>,
    captured: &BTreeMap<TableId, String>,
) -> BTreeMap<TableId, String> {
    let mut found: BTreeMap<TableId, String> = BTreeMap::new();
    let mut claimed = BTreeSet::new();
    let mut numbers: Vec<TableId> = to
        .tables
        .iter()
        .chain(&from.tables)
        .map(|table| table.id)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let name = |schema: &Schema, id| schema.table(id).map(|table| table.name.clone());
    // The triggers of the capture went with their table whatever it is called now.
    for round in 0..4 {
        for &id in &numbers {
            if found.contains_key(&id) {
                continue;
            }
            let (was, becomes) = (name(from, id), name(to, id));
            let candidate = match round {
                0 => captured.get(&id).cloned().filter(|_| was.is_some()),
                1 if was == becomes || becomes.is_none() => was,
                1 if was.as_ref().is_some_and(|was| !there.contains(was)) => becomes,
                2 => was,
                3 => becomes,
                _ => None,
            };
            if let Some(name) = candidate.filter(|name| there.contains(name))
                && claimed.insert(name.clone())
            {
                found.insert(id, name);
            }
        }
    }
    found
}

/// What stands in a new column that must not be NULL and has no default, until the real values come.
pub(crate) fn neutral(kind: &Type) -> Value {
    let text = |text: &str| Value::Text(text.to_owned());
    match kind {
        Type::Bool => Value::Bool(false),
        Type::Int16 | Type::Int32 | Type::Int64 => Value::Int(0),
        Type::Float32 | Type::Float64 => Value::Float(0.0),
        Type::Bytes => Value::Bytes(Vec::new()),
        Type::Decimal { .. } => text("0"),
        Type::Date => text("2000-01-01"),
        Type::Time | Type::Interval => text("00:00:00"),
        Type::TimeTz => text("00:00:00+00"),
        Type::Timestamp => text("2000-01-01 00:00:00"),
        Type::TimestampTz => text("2000-01-01 00:00:00+00"),
        Type::Uuid => text("00000000-0000-0000-0000-000000000000"),
        Type::Json | Type::Jsonb => text("null"),
        Type::Enum { labels, .. } => text(labels.first().map_or("", String::as_str)),
        Type::Array(_) => text("{}"),
        Type::Inet => text("0.0.0.0"),
        Type::Text { .. } | Type::Char { .. } => text(""),
    }
}

/// What the rows that are there hold in a new column.
pub(crate) fn filling(column: &Column, key: bool) -> Value {
    match &column.default {
        Some(value) => value.clone(),
        None if column.nullable && !key => Value::Null,
        None => neutral(&column.kind),
    }
}

/// Under which name is remembered that a table has been made what a version says. Only so is a swap of two names, which
/// shows in nothing, not made twice.
pub(crate) fn mark(id: TableId) -> String {
    format!("evolved.{id}")
}

/// What is remembered.
pub(crate) fn marked(table: &Table) -> Vec<u8> {
    // Checks may come to a version later.
    let plain = Table {
        checks: Default::default(),
        ..table.clone()
    };
    Digest::of(format!("{plain:?}").as_bytes()).0.to_vec()
}

/// Notes to set or to clear.
pub(crate) type Notes = Vec<(Key, Option<Vec<u8>>)>;

/// What gives notes on rows the names that the rows have now.
pub(crate) fn moved_notes(former: &Table, to: &Table, notes: BTreeMap<Key, Vec<u8>>) -> Notes {
    let kinds = |table: &Table| -> Vec<(ColumnId, Type)> {
        let kind = |column: &Column| (column.id, column.kind.clone());
        table.key_columns().map(kind).collect()
    };
    let (was, becomes) = (kinds(former), kinds(to));
    if was == becomes {
        return Notes::new();
    }
    let (mut gone, mut set) = (Notes::new(), Notes::new());
    for (key, note) in notes {
        let part = |(id, kind): &(ColumnId, Type)| {
            let at = was.iter().position(|(other, _)| other == id)?;
            convert(&was.get(at)?.1, kind, key.0.get(at)?)
        };
        let named: Option<Vec<Value>> = becomes.iter().map(part).collect();
        if let Some(named) = named.map(Key).filter(|named| *named != key) {
            gone.push((key, None));
            set.push((named, Some(note)));
        }
    }
    gone.extend(set);
    gone
}

/// Why an attempt to follow a schema version ended.
pub(crate) enum Stop {
    /// This table cannot follow.
    Refused(TableId, String),
    /// Nothing can be done now.
    Failed(DatabaseError),
}

impl From<DatabaseError> for Stop {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(error)
    }
}

impl Stop {
    /// Names the column, where the reason does not.
    pub(crate) fn about(self, column: &str) -> Self {
        match self {
            Self::Refused(id, reason) if !reason.contains(column) => {
                Self::Refused(id, format!("column `{column}`: {reason}"))
            }
            other => other,
        }
    }
}

/// The result of a step of an attempt.
pub(crate) type Tried<T> = Result<T, Stop>;

/// Whether an error is the table's, or the moment's.
pub(crate) fn stop(id: TableId, error: DatabaseError) -> Stop {
    match error {
        DatabaseError::Busy(_) | DatabaseError::Unreachable(_) => Stop::Failed(error),
        DatabaseError::Mismatch { message, .. } | DatabaseError::Constraint { message, .. } => {
            Stop::Refused(id, message)
        }
        other => Stop::Refused(id, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(ColumnId, &str)]) -> Table {
        let column = |&(id, name): &(ColumnId, &str)| Column {
            name: name.into(),
            kind: Type::Int64,
            nullable: true,
            default: None,
            generated_key: false,
            id,
        };
        Table {
            id: 1,
            name: "t".into(),
            columns: columns.iter().map(column).collect(),
            key: vec![0],
            unique: vec![],
            foreign_keys: vec![],
            direction: Default::default(),
            conflict: Default::default(),
            insert: Default::default(),
            counters: vec![],
            before: false,
            columns_ever: 0,
            indexes: vec![],
            checks: Default::default(),
        }
    }

    /// Versions, the present columns, and what comes of it: sources, drops, found.
    type Case<'a> = (
        &'a [(u32, &'a str)],
        &'a [(u32, &'a str)],
        &'a [&'a str],
        &'a [Option<&'a str>],
        &'a [&'a str],
        &'a [u32],
    );

    #[test]
    fn columns_are_matched_by_what_is_there() {
        let cases: &[Case<'_>] = &[
            // Nothing is done yet.
            (
                &[(1, "a"), (2, "b")],
                &[(1, "b"), (2, "c")],
                &["a", "b"],
                &[Some("a"), Some("b")],
                &[],
                &[],
            ),
            (
                &[(1, "a"), (2, "b")],
                &[(1, "b"), (2, "a")],
                &["a", "b"],
                &[Some("a"), Some("b")],
                &[],
                &[],
            ),
            // All is done.
            (
                &[(1, "a"), (2, "b")],
                &[(1, "b"), (2, "c")],
                &["b", "c"],
                &[Some("b"), Some("c")],
                &[],
                &[],
            ),
            // Half is done.
            (
                &[(1, "a"), (2, "b")],
                &[(1, "b"), (2, "c")],
                &["a", "c"],
                &[Some("a"), Some("c")],
                &[],
                &[],
            ),
            // A name passes on from a column that goes.
            (
                &[(1, "a"), (2, "b")],
                &[(2, "a")],
                &["a", "b"],
                &[Some("b")],
                &["a"],
                &[],
            ),
            (
                &[(1, "a"), (2, "b")],
                &[(2, "a")],
                &["a"],
                &[Some("a")],
                &[],
                &[],
            ),
            // Added, and added already.
            (
                &[(1, "a")],
                &[(1, "a"), (2, "b")],
                &["a"],
                &[Some("a"), None],
                &[],
                &[],
            ),
            (
                &[(1, "a")],
                &[(1, "a"), (2, "b")],
                &["a", "b"],
                &[Some("a"), Some("b")],
                &[],
                &[2],
            ),
            // Another column of the same name.
            (
                &[(1, "a"), (2, "b")],
                &[(1, "a"), (3, "b")],
                &["a", "b"],
                &[Some("a"), None],
                &["b"],
                &[],
            ),
        ];
        for (from, to, live, sources, drops, found) in cases {
            let live: Vec<_> = live.iter().map(|name| (0, *name)).collect();
            let to = table(to);
            let columns = Columns::of(
                Some(&table(from)),
                &to,
                &table(&live),
                &Known::new(),
                |a, b| a == b,
            );
            let expected = Columns {
                sources: sources.iter().map(|name| name.map(str::to_owned)).collect(),
                drops: drops.iter().map(|name| (*name).to_owned()).collect(),
                found: found.to_vec(),
            };
            assert_eq!(
                columns, expected,
                "{from:?} to {to:?} where {live:?} stands"
            );
        }
    }

    #[test]
    fn a_new_column_under_the_former_name_of_a_renamed_one_stands_already() {
        let (from, to) = (
            table(&[(1, "a"), (2, "b")]),
            table(&[(1, "a"), (2, "c"), (3, "b")]),
        );
        let known = Known::from([(1, Some("a".into())), (2, Some("c".into()))]);
        let live = table(&[(0, "a"), (0, "c"), (0, "b")]);
        let columns = Columns::of(Some(&from), &to, &live, &known, |a, b| a == b);
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(columns.sources, [name("a"), name("c"), name("b")]);
        assert_eq!(columns.found, [3]);
        assert!(columns.drops.is_empty());
    }

    #[test]
    fn renames_never_meet_a_name_that_is_taken() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        assert_eq!(
            in_order(pairs(&[("a", "b"), ("b", "c")]), "x"),
            pairs(&[("b", "c"), ("a", "b")])
        );
        assert_eq!(
            in_order(pairs(&[("a", "b"), ("b", "a")]), "x"),
            pairs(&[("a", "x_0"), ("b", "a"), ("x_0", "b")])
        );
    }

    #[test]
    fn tables_are_found_by_their_triggers_or_their_names() {
        let schema = |names: &[(u32, &str)]| Schema {
            version: 1,
            tables_ever: 0,
            tables: names
                .iter()
                .map(|(id, name)| Table {
                    id: *id,
                    name: (*name).into(),
                    ..table(&[])
                })
                .collect(),
        };
        let there = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let named = |pairs: &[(u32, &str)]| {
            pairs
                .iter()
                .map(|(id, name)| (*id, (*name).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let (from, swapped) = (schema(&[(1, "a"), (2, "b")]), schema(&[(1, "b"), (2, "a")]));
        let both = there(&["a", "b"]);
        assert_eq!(
            tables(&from, &swapped, &both, &named(&[])),
            named(&[(1, "a"), (2, "b")])
        );
        let done = named(&[(1, "b"), (2, "a")]);
        assert_eq!(tables(&from, &swapped, &both, &done), done);
        let chain = schema(&[(1, "b"), (2, "c")]);
        assert_eq!(
            tables(&from, &chain, &there(&["b", "c"]), &named(&[])),
            named(&[(1, "b"), (2, "c")])
        );
        assert_eq!(
            tables(&from, &chain, &there(&["a", "c"]), &named(&[])),
            named(&[(1, "a"), (2, "c")])
        );
    }
}
