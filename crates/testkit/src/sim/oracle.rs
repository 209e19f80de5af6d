//! What must be true: some of it at every step, all of it at rest.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::books::{self, CONFLICTS, LOG, Note};
use branchline_core::change::{Effect, Key, Row};
use branchline_core::conflict::{ConflictRecord, Resolution};
use branchline_core::envelope;
use branchline_core::head::own_entry;
use branchline_core::identity::{BatchNumber, Digest, Incarnation, LogPosition, OfficeName};
use branchline_core::message::LogBody;
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::{Direction, TableId};
use branchline_core::value::{Value, convert};
use branchline_core::verify::Verification;

use super::migrations::lasting;
use super::model::{RowName, Write, WriteId};
use super::office::{Machine, run};
use super::workload::{ACCOUNTS, CARDS, RATES, STOCK, STOCK_AT_FIRST, SUM, accounts_of, maker};
use super::world::World;

/// Follows the head's log as it grows.
#[derive(Clone, Debug, Default)]
pub struct LogReader {
    last: LogPosition,
    chain: Digest,
    /// Which entry logged a write first.
    places: BTreeMap<WriteId, LogPosition>,
    /// Every decision that was ever listed; the head forgets old ones.
    records: BTreeMap<u64, ConflictRecord>,
    answered: BTreeMap<(OfficeName, Incarnation), BatchNumber>,
    /// What the log says of each row, and in which schema version.
    rows: BTreeMap<RowName, (u32, Option<Row>)>,
}

impl LogReader {
    /// What was decided about changes of these offices, both sides of it.
    pub fn decided(&self, of: impl Fn(&OfficeName) -> bool) -> BTreeSet<WriteId> {
        let records = self.records.values().filter(|record| of(&record.origin));
        let both = records.flat_map(|record| [&record.ours, &record.theirs]);
        both.filter_map(|row| row.as_ref().and_then(maker))
            .collect()
    }

    /// What was decided about changes of these offices since an earlier reading.
    pub fn decided_since(
        &self,
        earlier: &Self,
        of: impl Fn(&OfficeName) -> bool,
    ) -> BTreeSet<WriteId> {
        let mut since = self.clone();
        since
            .records
            .retain(|id, _| !earlier.records.contains_key(id));
        since.decided(of)
    }

    /// Whether this is where it has got to.
    pub fn ends_at(&self, place: LogPosition) -> bool {
        self.last == place
    }

    /// The writes that stand in the log up to this place.
    pub fn writes_through(&self, place: LogPosition) -> BTreeSet<WriteId> {
        let there = self.places.iter().filter(|(_, at)| **at <= place);
        there.map(|(write, _)| *write).collect()
    }
}

/// P5: in every office's committed rows, the sum of each office's two accounts stands.
pub fn money(world: &mut World, office: usize) -> Result<(), String> {
    if !world.offices[office].joined {
        return Ok(());
    }
    let Some(table) = world.schema.table(ACCOUNTS).cloned() else {
        return Ok(());
    };
    let rows = world.offices[office].disk.rows(&table);
    for owner in 0..world.offices.len() {
        if world.offices[owner].restored || !world.offices[owner].joined {
            continue;
        }
        let amounts: Vec<i64> = accounts_of(owner)
            .iter()
            .filter_map(|key| rows.iter().find(|row| table.key_of(row) == *key))
            .filter_map(|row| {
                if let Value::Int(amount) = row.0[2] {
                    Some(amount)
                } else {
                    None
                }
            })
            .collect();
        if !amounts.is_empty() && (amounts.len() != 2 || amounts.iter().sum::<i64>() != SUM) {
            return Err(format!(
                "half a transaction shows (P5): {} sees {amounts:?} in the accounts of {}",
                world.offices[office].name, world.offices[owner].name
            ));
        }
    }
    Ok(())
}

/// P2: the head's log goes on without a gap, and answers every batch of an incarnation once and in order.
pub fn read_log(world: &mut World) -> Result<(), String> {
    let from = world.log.records.keys().last().map_or(0, |last| last + 1);
    let listed = world.with_database(0, |db, _| {
        run(async {
            db.begin(Purpose::Read).await?;
            let listed = db.entries(CONFLICTS, from, usize::MAX / 2).await?;
            db.rollback().await?;
            Ok::<_, branchline_core::port::DatabaseError>(listed)
        })
    });
    for entry in listed.map_err(|error| error.to_string())? {
        let record = books::decode(&entry.bytes).map_err(|error| error.to_string())?;
        world.log.records.insert(entry.number, record);
    }
    loop {
        let from = world.log.last.next().0;
        let entries = world.with_database(0, |db, _| {
            run(async {
                db.begin(Purpose::Read).await?;
                let entries = db.entries(LOG, from, 1 << 20).await?;
                db.rollback().await?;
                Ok::<_, branchline_core::port::DatabaseError>(entries)
            })
        });
        let entries = entries.map_err(|error| format!("the log cannot be read: {error}"))?;
        if entries.is_empty() {
            return Ok(());
        }
        for stored in entries {
            let entry = own_entry(&stored.bytes).map_err(|error| error.to_string())?;
            let reader = &mut world.log;
            let begins = reader.last == LogPosition::NONE;
            if begins {
                // The log of a head that was a branch begins where that had joined.
                reader.last = entry.position.previous();
                reader.chain = entry.previous;
            }
            if entry.position != reader.last.next() || stored.number != entry.position.0 {
                return Err(format!(
                    "the log has a gap: {} follows {}",
                    entry.position, reader.last
                ));
            }
            if entry.previous != reader.chain {
                return Err(format!("the log's chain breaks at {}", entry.position));
            }
            reader.last = entry.position;
            reader.chain = envelope::chain(&stored.bytes);
            let body = match entry.body {
                LogBody::Changes(body) => body,
                LogBody::Schema(step) => {
                    if let Some(migrations) = &mut world.migrations {
                        migrations.versions.insert(step.schema.version, step.schema);
                    }
                    continue;
                }
                _ => continue,
            };
            let versions = world.migrations.as_ref().map(|known| &known.versions);
            let version = versions.and_then(|versions| versions.get(&entry.schema));
            let schema = version.unwrap_or(&world.schema);
            if let Some(answer) = body.answers {
                let last = reader
                    .answered
                    .entry((answer.branch.clone(), answer.incarnation))
                    .or_default();
                // A lost part of the log comes back as it can.
                let again = world.head_restored && answer.batch > *last;
                if answer.batch != last.next() && !again {
                    return Err(format!(
                        "not exactly once (P2): log entry {} answers batch {} of {}, after batch {last}",
                        entry.position, answer.batch, answer.branch
                    ));
                }
                *last = answer.batch;
            }
            for logged in body.changes {
                let Some(table) = schema.table(logged.table) else {
                    continue;
                };
                let row = (logged.table, logged.effect.key(table));
                let content = match logged.effect {
                    Effect::Put(row) => Some(row),
                    Effect::Delete(_) => None,
                };
                if let Some(write) = content.as_ref().and_then(maker) {
                    reader.places.entry(write).or_insert(entry.position);
                }
                reader.rows.insert(row, (schema.version, content));
            }
        }
    }
}

/// What an office's database holds, for the comparison at rest.
struct Holdings {
    rows: BTreeMap<RowName, Row>,
    held: BTreeSet<RowName>,
    /// Rows of the log that the office's tables do not take, listed there as such (P6).
    unfit: BTreeSet<RowName>,
    other_notes: usize,
    records: Vec<ConflictRecord>,
}

fn holdings(world: &mut World, office: usize) -> Result<Holdings, String> {
    let mut found = Holdings {
        rows: BTreeMap::new(),
        held: BTreeSet::new(),
        unfit: BTreeSet::new(),
        other_notes: 0,
        records: Vec::new(),
    };
    let tables = world.schema.tables.clone();
    for table in &tables {
        for row in world.offices[office].disk.rows(table) {
            found.rows.insert((table.id, table.key_of(&row)), row);
        }
    }
    let (notes, records) = world
        .with_database(office, |db, _| {
            run(async {
                db.begin(Purpose::Read).await?;
                let mut notes: Vec<(TableId, Key, Vec<u8>)> = Vec::new();
                for table in &tables {
                    notes.extend(
                        db.notes(table, None)
                            .await?
                            .into_iter()
                            .map(|(key, note)| (table.id, key, note)),
                    );
                }
                let records = db.entries(CONFLICTS, 0, usize::MAX / 2).await?;
                db.rollback().await?;
                Ok::<_, branchline_core::port::DatabaseError>((notes, records))
            })
        })
        .map_err(|error| error.to_string())?;
    for record in records {
        found
            .records
            .push(books::decode(&record.bytes).map_err(|error| error.to_string())?);
    }
    for (table, key, note) in notes {
        if office == 0 {
            continue;
        }
        match books::decode::<Note>(&note).map_err(|error| error.to_string())? {
            Note::Held(..) => drop(found.held.insert((table, key))),
            Note::Unfit(..) => drop(found.unfit.insert((table, key))),
            Note::Deferred(_) | Note::Unseen(_) | Note::Unreadable(..) => found.other_notes += 1,
        }
    }
    Ok(found)
}

fn named(world: &World, row: &RowName) -> String {
    let table = world
        .schema
        .table(row.0)
        .map_or("?", |table| table.name.as_str());
    format!("{table} {}", row.1.to_json())
}

/// P1 and P3.
pub fn at_rest(world: &mut World) -> Result<(), String> {
    world.head_followed();
    read_log(world)?;
    let mut head = holdings(world, 0)?;
    let mut branches = Vec::new();
    for branch in 1..world.offices.len() {
        branches.push(holdings(world, branch)?);
    }
    head.records = world.log.records.values().cloned().collect();
    if world.head_restored {
        // Decisions that are older than the log of a branch that became the head are listed where they were made.
        for there in &branches {
            head.records.extend(there.records.iter().cloned());
        }
    }
    let head = head;
    let ids: BTreeSet<u64> = head.records.iter().map(|record| record.id).collect();
    for (branch, there) in branches.iter().enumerate() {
        let name = world.offices[branch + 1].name.clone();
        let rows: BTreeSet<&RowName> = head.rows.keys().chain(there.rows.keys()).collect();
        for row in rows {
            if head.rows.get(row) != there.rows.get(row)
                && concerns(world, branch + 1, row)
                && !there.held.contains(row)
                && !there.unfit.contains(row)
            {
                return Err(format!(
                    "no convergence (P3): {} is {:?} at the head and {:?} at {name}",
                    named(world, row),
                    head.rows.get(row),
                    there.rows.get(row)
                ));
            }
        }
        if there.other_notes > 0 {
            return Err(format!(
                "{name} is at rest with {} rows deferred",
                there.other_notes
            ));
        }
        if let Some(record) = there
            .records
            .iter()
            .find(|record| !ids.contains(&record.id))
            // A restored head may have given its number to another one.
            && !world.head_restored
        {
            return Err(format!(
                "{name} lists conflict {} that the head does not",
                record.id
            ));
        }
        for row in &there.held {
            if !head.records.iter().any(|record| named_by(record, row)) {
                return Err(format!(
                    "{} is held at {name} and not listed at the head",
                    named(world, row)
                ));
            }
        }
    }
    for (row, (version, content)) in &world.log.rows {
        if !is_as_logged(world, row, *version, content.as_ref(), head.rows.get(row)) {
            return Err(format!(
                "{} differs from its last log entry: {content:?}",
                named(world, row)
            ));
        }
    }
    if world.migrations.is_some() {
        same_tables(world)?;
        values(world, &head)?;
    }
    counters(world, &head)?;
    nothing_lost(world, &head)
}

/// Whether a row holds what its last log entry says, in the columns that both have.
fn is_as_logged(
    world: &World,
    (id, _): &RowName,
    version: u32,
    logged: Option<&Row>,
    present: Option<&Row>,
) -> bool {
    let Some(now) = world.schema.table(*id) else {
        return true;
    };
    let versions = world.migrations.as_ref().map(|known| &known.versions);
    let then = versions.and_then(|versions| versions.get(&version)?.table(*id));
    let (Some(then), Some(logged), Some(present)) = (then, logged, present) else {
        return logged == present;
    };
    let mut columns = now.columns.iter().zip(&present.0);
    columns.all(|(column, value)| {
        let was = then.columns.iter().position(|one| one.id == column.id);
        was.is_none_or(|at| {
            convert(&then.columns[at].kind, &column.kind, &logged.0[at]).as_ref() == Some(value)
        })
    })
}

/// P10: all offices have followed the head's tables.
fn same_tables(world: &World) -> Result<(), String> {
    for office in &world.offices {
        let schema = match &office.machine {
            Some(Machine::Head(head)) => head.schema(),
            Some(Machine::Branch(branch)) => branch.schema(),
            None => continue,
        };
        if schema.version != world.schema.version {
            return Err(format!(
                "{} is at rest with schema version {}, the company has {}",
                office.name, schema.version, world.schema.version
            ));
        }
    }
    Ok(())
}

/// P10: a column holds what the write that made the row wrote there, whatever the tables were called and however many
/// columns came and went since. Where the writer's tables lacked the column, it holds what it held before.
fn values(world: &World, head: &Holdings) -> Result<(), String> {
    let Some(migrations) = &world.migrations else {
        return Ok(());
    };
    let merged = |table: TableId| matches!(table, STOCK | CARDS);
    for (row, content) in head.rows.iter().filter(|(row, _)| !merged(row.0)) {
        let made = maker(content).and_then(|id| world.journal.write(id));
        let (Some(table), Some(made)) = (world.schema.table(row.0), made) else {
            continue;
        };
        for (column, value) in table.columns.iter().zip(&content.0).skip(2) {
            let name = lasting(&column.name);
            let early = migrations.early.contains(&(row.0, name.to_owned()));
            let wrote = made.values.get(name).filter(|_| !early);
            let right = match wrote {
                Some(wrote) => wrote == value,
                None => {
                    value.is_null()
                        || column.default.as_ref() == Some(value)
                        || world.journal.wrote(row, name, value)
                }
            };
            if !right {
                return Err(format!(
                    "the schema (P10): column {} of {} holds {value:?}, and {wrote:?} was written",
                    column.name,
                    named(world, row)
                ));
            }
        }
    }
    Ok(())
}

/// P2: a counter is what it began with and all that was added anywhere, each once. Where a database was restored, what
/// it had not sent is gone with it.
fn counters(world: &World, head: &Holdings) -> Result<(), String> {
    if world.offices.iter().any(|office| office.restored) {
        return Ok(());
    }
    for (row, content) in head.rows.iter().filter(|(row, _)| row.0 == STOCK) {
        let expected = STOCK_AT_FIRST + world.journal.counted(&row.1);
        if content.0[2] != Value::Int(expected) {
            return Err(format!(
                "not exactly once (P2): {} is {content:?}, and all that was added makes {expected}",
                named(world, row)
            ));
        }
    }
    Ok(())
}

fn named_by(record: &ConflictRecord, row: &RowName) -> bool {
    record.shape.1 == row.0 && record.key == row.1
}

/// P1: every write is in the rows, or was seen and followed by another, or is listed.
fn nothing_lost(world: &World, head: &Holdings) -> Result<(), String> {
    let restored = world.offices.iter().any(|office| office.restored);
    let mut listed: BTreeSet<WriteId> = BTreeSet::new();
    let mut listed_deletes: BTreeSet<RowName> = BTreeSet::new();
    let mut held: BTreeSet<WriteId> = BTreeSet::new();
    for record in &head.records {
        listed.extend(record.ours.as_ref().and_then(maker));
        listed.extend(record.theirs.as_ref().and_then(maker));
        if record.result == Resolution::Held {
            held.extend(record.theirs.as_ref().and_then(maker));
        }
        if record.ours.is_none() || record.theirs.is_none() {
            listed_deletes.insert((record.shape.1, record.key.clone()));
        }
    }
    for (row, writes) in world.journal.rows() {
        if row.0 == STOCK {
            continue;
        }
        if world.schema.table(row.0).is_none() {
            gone_with_its_table(world, row, writes, &listed)?;
            continue;
        }
        let present = head.rows.get(row);
        let present_maker = present.and_then(maker);
        if present.is_some() && !present_maker.is_some_and(|id| writes.contains(&id)) {
            return Err(format!(
                "{} holds what nobody wrote: {present:?}",
                named(world, row)
            ));
        }
        let mut tips = 0;
        for &id in writes {
            let Some(write) = world.journal.write(id) else {
                continue;
            };
            if world.journal.is_followed(id) {
                // What was written on top of it is listed: held, or decided against.
                let explained = world.journal.followers(id).iter().any(|&follower| {
                    explained(world, follower, &listed, listed_deletes.contains(row))
                });
                if present_maker == Some(id) && !restored && !explained && row.0 != RATES {
                    return Err(format!(
                        "a change was undone: {} is w{id} again, on which another write was made",
                        named(world, row)
                    ));
                }
                continue;
            }
            tips += 1;
            let lost = if write.undone {
                false
            } else if write.delete {
                let same_row =
                    |maker: WriteId| world.journal.lineage(maker) == world.journal.lineage(id);
                let inserted_again = writes.iter().any(|&later| {
                    later > id
                        && world
                            .journal
                            .write(later)
                            .is_some_and(|later| !later.delete && later.on.is_none())
                });
                // Another row under this key came after the delete, and the conflict was with that one. So is the row of a
                // branch that left and brought it when it joined again: held while the key was taken, and then let in.
                let another = |write: &WriteId| !same_row(*write) || held.contains(write);
                let mut others = writes.iter().filter(|write| listed.contains(write));
                let replaced = others.any(another) || inserted_again;
                // An insert that only the lost life of a restored office had shipped, deleted again in its next one.
                // So is a row that an office brought with it when it joined again, where the log no longer tells that it
                // was deleted meanwhile.
                let writer = world.offices.get(write.office);
                let reborn = writer.is_none_or(|office| office.restored)
                    || (restored && world.retention.is_some());
                present_maker.is_some_and(same_row)
                    && !listed_deletes.contains(row)
                    && !replaced
                    && !reborn
                    // A row that was held, and let in when the delete had freed its key.
                    && !present_maker.is_some_and(|maker| world.journal.descends(maker, &held))
            } else {
                present_maker != Some(id) && !listed.contains(&id)
            };
            if lost {
                let kind = if write.delete {
                    "the delete"
                } else {
                    "the write"
                };
                return Err(format!(
                    "lost (P1): {kind} w{id} of {} on {} is neither there nor listed; the row is {present:?}",
                    world
                        .offices
                        .get(write.office)
                        .map_or("a copy", |office| office.name.as_str()),
                    named(world, row)
                ));
            }
        }
        if tips == 0 && !writes.is_empty() {
            return Err(format!(
                "the model is wrong: {} has no last write",
                named(world, row)
            ));
        }
    }
    Ok(())
}

/// What was written to a table that was dropped had come to the head before, or is listed. What the offices dropped
/// themselves is gone. A branch that copied the tables anew does not know that one was dropped meanwhile: there it is the
/// application's own from then on.
fn gone_with_its_table(
    world: &World,
    row: &RowName,
    writes: &[WriteId],
    listed: &BTreeSet<WriteId>,
) -> Result<(), String> {
    let is_there = |office: usize| {
        let ids = world.migrations.as_ref().map(|migrations| &migrations.ids);
        let office = world.offices.get(office).zip(ids);
        office.is_some_and(|(office, ids)| office.disk.tables(ids).table(row.0).is_some())
    };
    for &id in writes {
        let known = |write: &&Write| {
            write.office == 0 || write.undone || write.delete || is_there(write.office)
        };
        let excused = world.journal.write(id).as_ref().is_none_or(known);
        let came = world.log.places.contains_key(&id) || listed.contains(&id);
        if !excused && !came && !world.journal.is_followed(id) {
            return Err(format!(
                "lost (P1): w{id} on {} was not sent when the table was dropped, and is not listed",
                named(world, row)
            ));
        }
    }
    Ok(())
}

/// Whether a write is listed, or what was made on top of it.
fn explained(world: &World, id: WriteId, listed: &BTreeSet<WriteId>, deletes: bool) -> bool {
    let Some(write) = world.journal.write(id) else {
        return false;
    };
    write.undone
        || listed.contains(&id)
        || (write.delete && deletes)
        || world
            .journal
            .followers(id)
            .iter()
            .chain(world.journal.reborn(id))
            .any(|&follower| explained(world, follower, listed, deletes))
}

/// Whether an office is to have this row at all: of what goes up only, its own.
fn concerns(world: &World, office: usize, row: &RowName) -> bool {
    let up = world
        .schema
        .table(row.0)
        .is_some_and(|table| table.direction == Direction::Up);
    !up || matches!(row.1.0.first(), Some(Value::Int(number)) if number / 1000 == office as i64 + 1)
}

/// Whether branches follow all of a table. Of one that goes up only, a branch has the rows of others as they were when
/// it joined.
fn is_whole(world: &World, table: &str) -> bool {
    world
        .schema
        .table_named(table)
        .is_none_or(|table| table.direction != Direction::Up)
}

/// The head's own comparison must find what the oracle found: no difference.
pub fn verification(world: &World, verification: &Verification) -> Result<(), String> {
    for branch in &verification.branches {
        if !branch.answered {
            return Err(format!("{} did not answer the comparison", branch.name));
        }
        let mut compared = branch.clone();
        compared.tables.retain(|table| is_whole(world, &table.name));
        if !compared.is_equal() {
            return Err(format!(
                "the comparison finds a difference at {}: {:?}",
                branch.name, branch.tables
            ));
        }
    }
    let joined = world.offices.len() - 1;
    if verification.branches.len() != joined {
        return Err(format!(
            "the comparison speaks of {} of {joined} branches",
            verification.branches.len()
        ));
    }
    Ok(())
}

/// A comparison in the middle of a storm finds nothing to repair, and repairs nothing. A branch that went back, or that
/// copied the tables anew, asks for one because there may be something.
pub fn undisturbed(world: &World, verification: &Verification) -> Result<(), String> {
    // A branch whose application changed its tables first lacks what the head's have, a copy what its original wrote.
    let ahead = world.migrations.is_some() || world.twin.is_some();
    if world.retention.is_some() || world.head_restored || ahead {
        return Ok(());
    }
    for branch in &verification.branches {
        for table in branch
            .tables
            .iter()
            .filter(|table| is_whole(world, &table.name))
        {
            if table.differing() + table.repaired > 0 {
                return Err(format!(
                    "the comparison finds a difference at {} in the middle of a storm: {table:?}",
                    branch.name
                ));
            }
        }
    }
    Ok(())
}
