//! The schema versions that rows still stand in, as an office keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lift::Lift;
use crate::books::{self, SCHEMAS};
use crate::conflict::ConflictRecord;
use crate::failure::{OfficeError, OfficeResult};
use crate::message::LogEntry;
use crate::port::{Database, Entry};
use crate::schema::{Schema, SchemaVersion};

/// The schema versions that rows still stand in.
#[derive(Clone, Debug, Default)]
pub struct Versions(pub(super) BTreeMap<SchemaVersion, Arc<Schema>>);

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
