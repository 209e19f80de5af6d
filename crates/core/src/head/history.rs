//! How a row came to be what it is, as far back as the log goes.

use super::Head;
use super::recent::{NAME_BYTES, own_entry, short};
use crate::books::{self, CONFLICTS, LOG, LOG_KEYS};
use crate::change::Key;
use crate::conflict::{ConflictRecord, rfc3339};
use crate::evolution::{Lift, Versions};
use crate::failure::OfficeResult;
use crate::identity::{LogPosition, OfficeName};
use crate::message::{LogBody, Logged, Settled, Source};
use crate::office::conclude;
use crate::port::{Database, Purpose};
use crate::schema::Table;

/// Bytes read at a time.
const READ_BYTES: usize = 1024 * 1024;
/// How many versions and decisions a history shows at the most, the newest.
const LONGEST: usize = 1_000;

/// A version of a row.
pub(super) struct Version {
    pub position: LogPosition,
    /// Whose batch brought it; none where the head made it.
    pub origin: Option<OfficeName>,
    pub logged: Logged,
}

/// The places in the log that name this row, oldest first, up to `through`.
async fn places<D: Database>(
    db: &mut D,
    table: &Table,
    key: &Key,
    through: LogPosition,
) -> OfficeResult<Vec<LogPosition>> {
    let name = short(&key.digest(table));
    let mut places = std::collections::VecDeque::new();
    let mut from = 1;
    loop {
        let entries = db.entries(LOG_KEYS, from, READ_BYTES).await?;
        let Some(last) = entries.last().map(|entry| entry.number) else {
            break;
        };
        for entry in entries.iter().filter(|entry| entry.number <= through.0) {
            if entry.bytes.as_chunks::<NAME_BYTES>().0.contains(&name) {
                places.push_back(LogPosition(entry.number));
                if places.len() > LONGEST {
                    places.pop_front();
                }
            }
        }
        if last >= through.0 {
            break;
        }
        from = last + 1;
    }
    Ok(places.into())
}

pub(super) async fn version_at<D: Database>(
    db: &mut D,
    versions: &Versions,
    table: &Table,
    key: &Key,
    position: LogPosition,
) -> OfficeResult<Option<Version>> {
    let entries = db.entries(LOG, position.0, 1).await?;
    let Some(entry) = entries.first().filter(|entry| entry.number == position.0) else {
        return Ok(None);
    };
    let entry = own_entry(&entry.bytes)?;
    let was = versions.of(&entry)?.table(table.id);
    let (LogBody::Changes(body), Some(was)) = (entry.body, was) else {
        return Ok(None);
    };
    let sender = body.answers.map(|answer| answer.branch);
    let changes = body.changes.into_iter().rev();
    // What the present table cannot tell of an earlier one's row is left out.
    let mut changes = changes
        .filter(|logged| logged.table == table.id)
        .filter_map(|logged| {
            let (effect, ..) = Lift {
                from: was,
                to: table,
            }
            .effect(&logged.effect)
            .ok()?;
            (effect.key(table) == *key).then_some(Logged { effect, ..logged })
        });
    let found = changes.next();
    Ok(found.map(|logged| Version {
        position,
        origin: match &logged.source {
            Source::Held(branch, ..) => Some(branch.clone()),
            _ => sender,
        },
        logged,
    }))
}

/// The row's last version up to this place of the log, where the log still has one.
pub(super) async fn last_before<D: Database>(
    db: &mut D,
    versions: &Versions,
    table: &Table,
    key: &Key,
    through: LogPosition,
) -> OfficeResult<Option<Logged>> {
    for position in places(db, table, key, through).await?.into_iter().rev() {
        // Names are short: another row may share it.
        if let Some(version) = version_at(db, versions, table, key, position).await? {
            return Ok(Some(version.logged));
        }
    }
    Ok(None)
}

impl Head {
    /// The history of a row as JSON of the public interface: what the log holds of it, and what was decided about it.
    pub async fn history<D: Database>(
        &self,
        db: &mut D,
        table: &str,
        key: &Key,
    ) -> OfficeResult<Result<serde_json::Value, String>> {
        let Some(table) = self.schema.table_named(table) else {
            return Ok(Err(format!("table `{table}` is not shared")));
        };
        if !table.fits_key(key) {
            let names: Vec<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
            return Ok(Err(format!(
                "that is no key of table `{}`: it has {}",
                table.name,
                names.join(", ")
            )));
        }
        db.begin(Purpose::Read).await?;
        let outcome = self.read_history(db, table, key).await;
        conclude(db, outcome).await.map(Ok)
    }

    async fn read_history<D: Database>(
        &self,
        db: &mut D,
        table: &Table,
        key: &Key,
    ) -> OfficeResult<serde_json::Value> {
        let mut versions = Vec::new();
        for position in places(db, table, key, self.book.last).await? {
            let Some(version) = version_at(db, &self.versions, table, key, position).await? else {
                continue;
            };
            let row = version.logged.effect.row();
            versions.push(serde_json::json!({
                "position": version.position,
                "at": rfc3339(version.logged.at),
                "origin": version.origin.as_ref().unwrap_or(&self.identity.name),
                "what": match (row, &version.logged.source) {
                    (None, _) => "deleted",
                    (Some(_), Source::Merged) => "merged",
                    (Some(_), _) => "written",
                },
                "row": row.map(|row| row.to_json(table)),
            }));
        }
        let mut decisions = Vec::new();
        let mut from = 1;
        loop {
            let entries = db.entries(CONFLICTS, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            for entry in &entries {
                let record: ConflictRecord = books::decode(&entry.bytes)?;
                if record.table == table.name && record.key == *key {
                    let settled = books::settled_name(record.id);
                    let settled = books::load::<Settled, D>(db, &settled).await?;
                    decisions.push(record.to_json_with(settled.as_ref()));
                }
            }
            from = last + 1;
        }
        let surplus = decisions.len().saturating_sub(LONGEST);
        decisions.drain(..surplus);
        let present = db.read(table, std::slice::from_ref(key)).await?;
        let first = db.extent(LOG).await?.first;
        Ok(serde_json::json!({
            "table": table.name,
            "key": key.to_json(),
            "row": present.get(key).map(|row| row.to_json(table)),
            "versions": versions,
            "decisions": decisions,
            "log_begins_at": first,
        }))
    }
}
