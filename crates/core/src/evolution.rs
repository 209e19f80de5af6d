//! How the shared tables change while offices are away (P10): the next schema version from what the head's catalogue
//! says, and rows of one version read under another.
//!
//! Tables and columns are the same across versions where their numbers are; names and types come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::books::{self, SCHEMAS};
use crate::change::{Change, Effect, Key, Row};
use crate::conflict::ConflictRecord;
use crate::failure::{OfficeError, OfficeResult};
use crate::message::LogEntry;
use crate::office::conclude;
use crate::port::{Database, Entry, Inspection, Origin, Purpose};
use crate::schema::{Column, ColumnId, Direction, Rules, Schema, SchemaVersion, Table, TableId};
use crate::value::{Value, convert, widens};

/// The engine's own names of the head's tables and columns, as of the present version.
pub(crate) const ORIGINS: &str = "origins";
/// What a person said was renamed, until it is found.
pub(crate) const RENAMED: &str = "renamed";

/// How many rows are looked at at a time.
const ROWS: usize = 1_000;

/// What the head does when its own tables change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// The branches' tables change likewise.
    #[default]
    Follow,
    /// A person is asked first; until then nothing is sent.
    Ask,
    /// Nothing is sent until the tables are again what they were.
    Refuse,
}

/// A column or table that a person says was renamed, where the engine cannot tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The table, by its name before.
    pub table: String,
    /// The column by its name before; none where the table itself was renamed.
    pub column: Option<String>,
    /// The name now.
    pub to: String,
}

impl Renamed {
    /// What a person said, in the open transaction.
    pub(crate) async fn load<D: Database>(db: &mut D) -> OfficeResult<Vec<Self>> {
        let known = books::load::<Vec<(String, Option<String>, String)>, D>(db, RENAMED).await?;
        let known = known.unwrap_or_default().into_iter();
        Ok(known
            .map(|(table, column, to)| Self { table, column, to })
            .collect())
    }
}

/// Says by which rules a table is shared; nothing where it is not.
pub type RulesOf = dyn Fn(&Table) -> Option<Rules> + Send + Sync;

/// The head's plan: which tables are shared, by which rules, and what a changed table means.
#[derive(Clone)]
pub struct Plan {
    /// The rules of a table, or nothing where it is not shared.
    pub rules: Arc<RulesOf>,
    /// What a changed table means.
    pub follow: Follow,
}

impl Default for Plan {
    /// What is shared stays shared, with the rules that it has; nothing is added.
    fn default() -> Self {
        Self {
            rules: Arc::new(|table| (table.id != 0).then(|| table.rules())),
            follow: Follow::Follow,
        }
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("follow", &self.follow)
            .finish_non_exhaustive()
    }
}

/// The next schema version, and what its making left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// The version; its number is the present one's where nothing that branches must know has changed.
    pub schema: Schema,
    /// Tables that are gone from the head's database.
    pub dropped: Vec<TableId>,
    /// Columns added to tables that were shared before.
    pub added: Vec<(TableId, ColumnId)>,
    /// Tables whose values may have been changed by the `ALTER` itself, or about which the engine leaves a doubt.
    pub doubtful: BTreeSet<TableId>,
    /// Shared tables that cannot be followed, with the reason: they stay as they were.
    pub stuck: Vec<(TableId, String)>,
    /// What changed in the tables that were shared, in sentences.
    pub told: Vec<String>,
    /// What the plan itself adds and takes out, in sentences: nobody need be asked about that again.
    pub planned: Vec<String>,
}

impl Next {
    /// All that changed, in sentences.
    pub fn sentences(&self) -> Vec<String> {
        [self.told.as_slice(), self.planned.as_slice()].concat()
    }
}

/// What the head would do now by this plan, and what its tables are. Nothing is changed.
pub async fn preview<D: Database>(db: &mut D, plan: &Plan) -> OfficeResult<(Next, Inspection)> {
    db.begin(Purpose::Read).await?;
    let outcome = async {
        let present = books::newest_schema(db).await?.unwrap_or_default();
        let origins: BTreeMap<String, Origin> = books::load(db, ORIGINS).await?.unwrap_or_default();
        Ok((present, origins, Renamed::load(db).await?))
    };
    let outcome: OfficeResult<_> = outcome.await;
    let (present, origins, renamed) = conclude(db, outcome).await?;
    let found = db.definitions().await?;
    Ok((follow(&present, &origins, &found, plan, &renamed), found))
}

/// Compares the present version with what the head's database has now.
pub fn follow(
    present: &Schema,
    origins: &BTreeMap<String, Origin>,
    found: &Inspection,
    plan: &Plan,
    renamed: &[Renamed],
) -> Next {
    let mut next = Next {
        schema: Schema {
            version: present.version,
            tables: Vec::new(),
            tables_ever: present.tables_ever,
        },
        ..Next::default()
    };
    let names = match_tables(present, origins, found, renamed);
    for table in &present.tables {
        let Some(now) = names.get(&table.id) else {
            next.gone(table, found);
            continue;
        };
        let origins = (origins.get(&table.name), found.origins.get(&now.name));
        let merged = next.merge(table, now, origins, renamed);
        next.add(merged, plan);
        next.tell_rules(table);
    }
    let old: BTreeSet<&str> = names.values().map(|table| table.name.as_str()).collect();
    for table in &found.tables {
        if !old.contains(table.name.as_str()) && (plan.rules)(table).is_some() {
            next.planned.push(format!("table `{}` is new", table.name));
            next.add(table.clone(), plan);
        }
    }
    let shared: BTreeSet<String> = next.schema.tables.iter().map(|t| t.name.clone()).collect();
    for table in &mut next.schema.tables {
        table
            .foreign_keys
            .retain(|reference| shared.contains(&reference.parent));
    }
    next.schema.number();
    next.schema.sort_parents_first();
    if !same_for_branches(present, &next.schema) {
        next.schema.version = present.version + 1;
    }
    next
}

/// Whether two versions differ in nothing that a branch must know.
fn same_for_branches(one: &Schema, other: &Schema) -> bool {
    let plain = |table: &Table| {
        let mut plain = table.clone();
        plain.set_rules(Rules {
            direction: table.direction,
            before: table.keeps_before(),
            ..Rules::default()
        });
        for column in &mut plain.columns {
            // Who draws a key's numbers is each office's own affair.
            column.generated_key = false;
        }
        plain.unique.sort();
        plain.indexes.sort();
        plain.foreign_keys.sort_by(|a, b| a.columns.cmp(&b.columns));
        (table.id, plain)
    };
    let all = |schema: &Schema| schema.tables.iter().map(plain).collect::<BTreeMap<_, _>>();
    all(one) == all(other)
}

/// Which found table each shared table is now, by the shared table's number.
fn match_tables<'f>(
    present: &Schema,
    origins: &BTreeMap<String, Origin>,
    found: &'f Inspection,
    renamed: &[Renamed],
) -> BTreeMap<TableId, &'f Table> {
    let named = |name: &str| found.tables.iter().find(|table| table.name == name);
    let mut matched: BTreeMap<TableId, &Table> = BTreeMap::new();
    for table in &present.tables {
        if let Some(now) = named(&table.name) {
            matched.insert(table.id, now);
        }
    }
    let lost: Vec<&Table> = present
        .tables
        .iter()
        .filter(|table| !matched.contains_key(&table.id))
        .collect();
    for table in &lost {
        let free = |now: &&Table| !matched.values().any(|taken| taken.name == now.name);
        let said = renamed
            .iter()
            .find(|said| said.table == table.name && said.column.is_none());
        let same_origin = |now: &&Table| {
            let (was, is) = (origins.get(&table.name), found.origins.get(&now.name));
            was.zip(is).is_some_and(|(was, is)| was.table == is.table)
        };
        let alike = |now: &&Table| {
            let columns = |table: &Table| {
                let columns = table.columns.iter();
                columns
                    .map(|column| (column.name.clone(), column.kind.clone()))
                    .collect::<Vec<_>>()
            };
            columns(now) == columns(table)
        };
        // The capture goes with a table that is renamed; only a rebuild leaves nothing but the columns to go by.
        let captured = found.captured.get(&table.id);
        let captured = captured.filter(|name| {
            found
                .tables
                .iter()
                .filter(free)
                .any(|now| now.name == **name)
        });
        let guessed = |now: &&Table| {
            found.origins.is_empty() && captured.is_none() && lost.len() == 1 && alike(now)
        };
        let mut candidates = found.tables.iter().filter(free).filter(|now| {
            said.map_or_else(
                || same_origin(now) || captured == Some(&now.name) || guessed(now),
                |said| said.to == now.name,
            )
        });
        if let (Some(now), None) = (candidates.next(), candidates.next()) {
            matched.insert(table.id, now);
        }
    }
    matched
}

impl Next {
    /// A shared table was not found.
    fn gone(&mut self, table: &Table, found: &Inspection) {
        let problem = found
            .findings
            .iter()
            .find(|finding| finding.fatal && finding.table.as_deref() == Some(&table.name));
        if let Some(finding) = problem {
            self.stuck.push((table.id, finding.problem.clone()));
            self.schema.tables.push(table.clone());
        } else {
            self.told.push(format!("table `{}` is gone", table.name));
            self.dropped.push(table.id);
        }
    }

    fn add(&mut self, mut table: Table, plan: &Plan) {
        if let Some(rules) = (plan.rules)(&table) {
            table.set_rules(rules);
            self.schema.tables.push(table);
        } else {
            self.planned
                .push(format!("table `{}` is no longer shared", table.name));
        }
    }

    /// Which of a table's rules are others than they were, of those that branches must know.
    fn tell_rules(&mut self, was: &Table) {
        let Some(is) = self.schema.tables.last().filter(|is| is.id == was.id) else {
            return;
        };
        let name = &is.name;
        if is.direction != was.direction {
            self.planned.push(match is.direction {
                Direction::Both => format!("table `{name}` goes both ways"),
                Direction::Up => format!("table `{name}` goes up only"),
                Direction::Down => format!("table `{name}` goes down only"),
            });
        }
        if is.keeps_before() != was.keeps_before() {
            let told = if is.keeps_before() {
                format!("branches keep the rows of table `{name}` as they were before a change")
            } else {
                format!("branches keep the keys of table `{name}` only")
            };
            self.planned.push(told);
        }
    }

    /// The shared table with what was found: columns keep their numbers and their order, new ones come last.
    fn merge(
        &mut self,
        was: &Table,
        now: &Table,
        origins: (Option<&Origin>, Option<&Origin>),
        renamed: &[Renamed],
    ) -> Table {
        if was.name != now.name {
            self.told
                .push(format!("table `{}` is now `{}`", was.name, now.name));
        }
        let (pairs, guessed) = match_columns(was, now, origins, renamed);
        if guessed {
            self.doubtful.insert(was.id);
        }
        let mut columns = Vec::new();
        let mut places = vec![0; now.columns.len()];
        for (at, column) in was.columns.iter().enumerate() {
            let Some(&place) = pairs.get(&at) else {
                self.told
                    .push(format!("column `{}.{}` is gone", was.name, column.name));
                continue;
            };
            let Some(found) = now.columns.get(place) else {
                continue;
            };
            if column.name != found.name {
                let told = format!(
                    "column `{}.{}` is now `{}`",
                    was.name, column.name, found.name
                );
                self.told.push(told);
            }
            if column.kind != found.kind {
                let told = format!("column `{}.{}` is now {}", was.name, found.name, found.kind);
                self.told.push(told);
                if !widens(&column.kind, &found.kind) {
                    self.doubtful.insert(was.id);
                }
            }
            if column.nullable && !found.nullable {
                // A migration fills what was empty as it forbids it.
                self.doubtful.insert(was.id);
            }
            set_place(&mut places, place, columns.len());
            columns.push(Column {
                id: column.id,
                ..found.clone()
            });
        }
        let mut columns_ever = was.columns_ever;
        for (place, found) in now.columns.iter().enumerate() {
            if pairs.values().any(|taken| *taken == place) {
                continue;
            }
            columns_ever += 1;
            self.told
                .push(format!("column `{}.{}` is new", now.name, found.name));
            self.added.push((was.id, columns_ever));
            set_place(&mut places, place, columns.len());
            columns.push(Column {
                id: columns_ever,
                ..found.clone()
            });
        }
        let moved = |list: &[u16]| -> Vec<u16> {
            let one = |at: &u16| places.get(usize::from(*at)).copied();
            list.iter().filter_map(one).collect()
        };
        let mut merged = Table {
            id: was.id,
            name: now.name.clone(),
            key: moved(&now.key),
            unique: now.unique.iter().map(|list| moved(list)).collect(),
            indexes: now.indexes.iter().map(|list| moved(list)).collect(),
            foreign_keys: now.foreign_keys.clone(),
            columns,
            columns_ever,
            ..was.clone()
        };
        for reference in &mut merged.foreign_keys {
            reference.columns = moved(&reference.columns);
        }
        // Counters are named by place; the plan names them anew, what it does not know follows the column.
        let place_of = |at: u16| {
            let id = was.columns.get(usize::from(at))?.id;
            let place = merged.columns.iter().position(|column| column.id == id)?;
            u16::try_from(place).ok()
        };
        merged.counters = was
            .counters
            .iter()
            .filter_map(|counter| {
                let column = place_of(counter.column)?;
                Some(crate::schema::Counter {
                    column,
                    ..counter.clone()
                })
            })
            .collect();
        merged
    }
}

fn set_place(places: &mut [u16], at: usize, to: usize) {
    if let (Some(place), Ok(to)) = (places.get_mut(at), u16::try_from(to)) {
        *place = to;
    }
}

/// Which found column each column is now, and whether that is a guess.
fn match_columns(
    was: &Table,
    now: &Table,
    origins: (Option<&Origin>, Option<&Origin>),
    renamed: &[Renamed],
) -> (BTreeMap<usize, usize>, bool) {
    let mut pairs = BTreeMap::new();
    let unchanged = was.columns.len() == now.columns.len()
        && was
            .columns
            .iter()
            .all(|column| now.columns.iter().any(|one| one.name == column.name));
    // A column that was made anew under the name of one that was dropped takes its place; two that swapped their names did
    // not.
    let same = |before: &Origin, after: &Origin| {
        let mut columns = after.columns.iter();
        columns.all(|origin| before.columns.contains(origin))
    };
    if let (Some(before), Some(after)) = origins
        && before.table == after.table
        && before.columns.len() == was.columns.len()
        && (!unchanged || same(before, after))
    {
        for (at, origin) in before.columns.iter().enumerate() {
            if let Some(place) = after.columns.iter().position(|one| one == origin) {
                pairs.insert(at, place);
            }
        }
        return (pairs, false);
    }
    for (at, column) in was.columns.iter().enumerate() {
        let said = renamed.iter().find(|said| {
            said.table == was.name && said.column.as_deref() == Some(column.name.as_str())
        });
        let name = said.map_or(&column.name, |said| &said.to);
        if let Some(place) = now.columns.iter().position(|one| one.name == *name) {
            pairs.insert(at, place);
        }
    }
    // One column of the same kind with another name in the same place: renamed, as far as can be told.
    let gone: Vec<usize> = (0..was.columns.len())
        .filter(|at| !pairs.contains_key(at))
        .collect();
    let fresh: Vec<usize> = (0..now.columns.len())
        .filter(|place| !pairs.values().any(|taken| taken == place))
        .collect();
    let mut guessed = false;
    if let ([at], [place]) = (gone.as_slice(), fresh.as_slice())
        && let (Some(old), Some(new)) = (was.columns.get(*at), now.columns.get(*place))
        && (&old.kind, old.nullable) == (&new.kind, new.nullable)
        && at == place
    {
        pairs.insert(*at, *place);
        guessed = true;
    }
    (pairs, guessed)
}

/// The schema versions that rows still stand in.
#[derive(Clone, Debug, Default)]
pub struct Versions(BTreeMap<SchemaVersion, Arc<Schema>>);

impl Versions {
    /// Reads all that this database keeps.
    pub async fn load<D: Database>(db: &mut D) -> OfficeResult<Self> {
        let mut versions = Self::default();
        for entry in db.entries(SCHEMAS, 1, usize::MAX / 2).await? {
            versions.add(books::decode(&entry.bytes)?);
        }
        Ok(versions)
    }

    /// Adds one.
    pub fn add(&mut self, schema: Schema) {
        self.0.insert(schema.version, Arc::new(schema));
    }

    /// The version with this number.
    pub fn get(&self, version: SchemaVersion) -> Option<&Schema> {
        self.0.get(&version).map(Arc::as_ref)
    }

    /// The version that an entry's rows stand in.
    pub fn of(&self, entry: &LogEntry) -> OfficeResult<&Schema> {
        self.get(entry.schema).ok_or_else(|| {
            let (place, version) = (entry.position, entry.schema);
            OfficeError::Books(format!(
                "log entry {place} stands in schema version {version}, which is not kept"
            ))
        })
    }

    /// A record of a decision with its rows as the present version has them.
    pub fn lift_record(
        &self,
        record: ConflictRecord,
        present: &Schema,
    ) -> Result<ConflictRecord, String> {
        let (version, id) = record.shape;
        if version == present.version {
            return Ok(record);
        }
        let from = self.get(version).and_then(|schema| schema.table(id));
        let (Some(from), Some(to)) = (from, present.table(id)) else {
            return Err(format!("table `{}` is not shared any more", record.table));
        };
        Lift { from, to }.record(record, present.version)
    }

    /// Keeps a version in the open transaction, in place of one with its number.
    pub async fn store<D: Database>(db: &mut D, schema: &Schema) -> OfficeResult<()> {
        let number = u64::from(schema.version);
        let last = db.extent(SCHEMAS).await?.last;
        if last >= number {
            // A head that was restored counts on from where it was.
            let mut kept = db.entries(SCHEMAS, 1, usize::MAX / 2).await?;
            kept.retain(|entry| entry.number < number);
            db.trim(SCHEMAS, u64::MAX >> 1).await?;
            db.append(SCHEMAS, &kept).await?;
        }
        let bytes = books::encode(schema)?;
        Ok(db.append(SCHEMAS, &[Entry { number, bytes }]).await?)
    }
}

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

    fn value(
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

/// Captures the rows in which a new column holds something else than its default: nobody else can know.
pub async fn recapture_filled<D: Database>(
    db: &mut D,
    table: &Table,
    column: ColumnId,
) -> OfficeResult<()> {
    let Some(place) = table.columns.iter().position(|one| one.id == column) else {
        return Ok(());
    };
    let default = table
        .columns
        .get(place)
        .and_then(|column| column.default.clone())
        .unwrap_or(Value::Null);
    let mut after: Option<Key> = None;
    loop {
        let rows = db.chunk(table, after.as_ref(), ROWS).await?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = Some(table.key_of(last));
        let filled = rows.iter().filter(|row| {
            let mut value = row.0.get(place).into_iter();
            value.any(|value| *value != default)
        });
        let keys: Vec<Key> = filled.map(|row| table.key_of(row)).collect();
        if !keys.is_empty() {
            db.recapture(table, Some(&keys)).await?;
        }
        if rows.len() < ROWS {
            return Ok(());
        }
    }
}

mod lost;
#[cfg(test)]
mod tests;

pub(crate) use lost::LostPart;
pub use lost::{LostVersion, Shapes};
