//! What an office lists for people: what was decided, and what is set aside. Read from the database alone, so that it
//! can be told whether the office runs or not.

use std::collections::{BTreeMap, BTreeSet};

use branchline_core::books::{self, CONFLICTS, HeldAtHead, Note, Pages};
use branchline_core::change::{Effect, Key};
use branchline_core::conflict::{ConflictRecord, Reason, Resolution};
use branchline_core::failure::OfficeResult;
use branchline_core::head::holds;
use branchline_core::message::Settled;
use branchline_core::office::Identity;
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::{Schema, Table};
use serde_json::{Value, json};

/// For how many rows that do not fit the database is asked why.
const EXPLAINED: usize = 50;

/// One line of a list.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The number of a decision, or the name of a row that is set aside here: `row-` and 8 hexadecimal digits.
    pub id: String,
    /// The entry under the public interface's keys.
    pub document: Value,
    /// The decision, where there is one.
    pub decision: Option<Decision>,
}

/// A decision, and what became of it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The decision.
    pub record: ConflictRecord,
    /// How it was settled afterwards, if it was.
    pub settled: Option<Settled>,
    /// Whether the row is set aside on its account now.
    pub held: bool,
}

impl Decision {
    fn into_entry(self) -> Entry {
        let mut document = self.record.to_json_with(self.settled.as_ref());
        if let Some(fields) = document.as_object_mut() {
            fields.insert("held".into(), self.held.into());
        }
        Entry {
            id: self.record.id.to_string(),
            document,
            decision: Some(self),
        }
    }
}

/// What is set aside at this office, by its notes.
#[derive(Default)]
struct Aside {
    /// At the head: the decisions that hold a branch's row.
    decisions: BTreeSet<u64>,
    /// At a branch: rows with the head's decision, by table name and key.
    decided: BTreeSet<(String, Key)>,
    /// At a branch: how many rows do not fit here or cannot be read.
    here: usize,
}

async fn aside<D: Database>(db: &mut D, schema: &Schema, is_head: bool) -> OfficeResult<Aside> {
    let mut aside = Aside::default();
    for table in &schema.tables {
        for (key, note) in db.notes(table, None).await? {
            if is_head {
                let held: HeldAtHead = books::decode(&note)?;
                aside
                    .decisions
                    .extend(held.holds.iter().map(|hold| hold.conflict));
                continue;
            }
            match books::decode::<Note>(&note)? {
                Note::Held(..) => drop(aside.decided.insert((table.name.clone(), key))),
                Note::Unfit(..) | Note::Unreadable(..) => aside.here += 1,
                Note::Deferred(_) | Note::Unseen(_) => {}
            }
        }
    }
    Ok(aside)
}

/// How many rows are set aside at this office. As many as [`holds`] lists.
pub async fn count_held<D: Database>(
    db: &mut D,
    schema: &Schema,
    is_head: bool,
) -> OfficeResult<usize> {
    let aside = aside(db, schema, is_head).await?;
    Ok(aside.decisions.len() + aside.decided.len() + aside.here)
}

/// Tells `visit` everything that was decided, by number. The list is read a page at a time.
pub async fn conflicts<D: Database>(db: &mut D, visit: &mut impl FnMut(Entry)) -> OfficeResult<()> {
    let (schema, is_head) = begin(db).await?;
    let held = holding(db, &schema, is_head).await?;
    let mut pages = Pages::from(CONFLICTS, 1);
    while let Some(entries) = pages.next(db).await? {
        for entry in &entries {
            let record: ConflictRecord = books::decode(&entry.bytes)?;
            let decision = Decision {
                settled: holds::settled(db, record.id).await?,
                held: held.contains(&record.id),
                record,
            };
            visit(decision.into_entry());
        }
    }
    Ok(db.rollback().await?)
}

/// Tells `visit` everything that is set aside now: what the head decided so, by number, then what is set aside here by
/// itself. What is held in memory grows with the rows of one table that are set aside, not with the list of decisions.
pub async fn holds<D: Database>(db: &mut D, visit: &mut impl FnMut(Entry)) -> OfficeResult<()> {
    let (schema, is_head) = begin(db).await?;
    for conflict in holding(db, &schema, is_head).await? {
        if let Some(decision) = decision(db, conflict).await? {
            let decision = Decision {
                held: true,
                ..decision
            };
            visit(decision.into_entry());
        }
    }
    let office = Identity::load(db).await?.0.name.to_string();
    db.rollback().await?;
    let mut explained = 0;
    let tables = schema.tables.iter().filter(|_| !is_head);
    for table in tables {
        db.begin(Purpose::Read).await?;
        let notes = db.notes(table, None).await?;
        db.rollback().await?;
        for (key, note) in notes {
            let note: Note = books::decode(&note)?;
            if !matches!(note, Note::Unfit(..) | Note::Unreadable(..)) {
                continue;
            }
            let explain = explained < EXPLAINED;
            explained += 1;
            visit(row_aside(db, &schema, table, &key, &note, &office, explain).await?);
        }
    }
    Ok(())
}

/// A row that is set aside here by itself.
async fn row_aside<D: Database>(
    db: &mut D,
    schema: &Schema,
    table: &Table,
    key: &Key,
    note: &Note,
    office: &str,
    explain: bool,
) -> OfficeResult<Entry> {
    let theirs = match note {
        Note::Unreadable(..) => None,
        // A row that cannot be read is told without its content.
        _ => {
            db.begin(Purpose::Read).await?;
            let rows = db.read(table, std::slice::from_ref(key)).await;
            db.rollback().await?;
            rows.ok().and_then(|mut rows| rows.remove(key))
        }
    };
    let problem = match note {
        Note::Unfit(_, effect) if explain => why_unfit(db, schema, table, effect).await,
        Note::Unreadable(_, problem) => Some(problem.clone()),
        _ => None,
    };
    let name = key.digest(table);
    let name: String = name.0.iter().take(4).map(|b| format!("{b:02x}")).collect();
    let theirs = theirs.map(|row| row.to_json(table));
    let (reason, explanation, ours) = match note {
        Note::Unfit(_, effect) => (
            Reason::DoesNotFit,
            "this office's tables do not take what the head sent (a unique value is taken, a parent is missing, or a check fails); it is tried again every few seconds",
            effect.row().map(|row| row.to_json(table)),
        ),
        _ => (Reason::Unreadable, Reason::Unreadable.sentence(), None),
    };
    let id = format!("row-{name}");
    let document = json!({
        "id": id, "table": table.name, "key": key.to_json(), "reason": reason.code(), "explanation": explanation,
        "at": null, "decided_at": null, "origin": office, "base": { "log": note.first_unseen().previous() },
        "before": null, "detail": problem, "ours": ours, "theirs": theirs,
        "result": { "stands": "held", "row": theirs }, "settled": null, "held": true,
    });
    Ok(Entry {
        id,
        document,
        decision: None,
    })
}

/// One decision as it is listed.
pub async fn decision<D: Database>(db: &mut D, conflict: u64) -> OfficeResult<Option<Decision>> {
    let entries = db.entries(CONFLICTS, conflict, 1).await?;
    let Some(entry) = entries.first().filter(|entry| entry.number == conflict) else {
        return Ok(None);
    };
    Ok(Some(Decision {
        record: books::decode(&entry.bytes)?,
        settled: holds::settled(db, conflict).await?,
        held: false,
    }))
}

async fn begin<D: Database>(db: &mut D) -> OfficeResult<(Schema, bool)> {
    db.begin(Purpose::Read).await?;
    let (_, is_head) = Identity::load(db).await?;
    let schema = books::newest_schema(db).await?.unwrap_or_default();
    Ok((schema, is_head))
}

/// The decisions on whose account rows are set aside now.
async fn holding<D: Database>(
    db: &mut D,
    schema: &Schema,
    is_head: bool,
) -> OfficeResult<BTreeSet<u64>> {
    let aside = aside(db, schema, is_head).await?;
    let mut holding = aside.decisions;
    if aside.decided.is_empty() {
        return Ok(holding);
    }
    // A branch's row is held on account of the last decision about it.
    let mut last = BTreeMap::new();
    let mut pages = Pages::from(CONFLICTS, 1);
    while let Some(entries) = pages.next(db).await? {
        for entry in &entries {
            let record: ConflictRecord = books::decode(&entry.bytes)?;
            let place = (record.table, record.key);
            if record.result == Resolution::Held && aside.decided.contains(&place) {
                last.insert(place, record.id);
            }
        }
    }
    holding.extend(last.into_values());
    Ok(holding)
}

/// What the database says to a row that does not fit; nothing where it is busy, or takes the row by now.
async fn why_unfit<D: Database>(
    db: &mut D,
    schema: &Schema,
    table: &Table,
    effect: &Effect,
) -> Option<String> {
    db.begin(Purpose::Apply).await.ok()?;
    let outcome = db.write(schema, &[(table.id, effect.clone())]).await;
    db.rollback().await.ok()?;
    outcome.err().map(|error| error.to_string())
}
