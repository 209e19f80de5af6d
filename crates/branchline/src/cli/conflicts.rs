//! `conflicts` and `holds`: what was decided, kept whole.

use branchline_core::books::{self, CONFLICTS};
use branchline_core::conflict::{ConflictRecord, Resolution};
use branchline_core::port::{Database, Purpose};
use branchline_database::AnyDatabase;
use clap::{Args, Subcommand};

use super::Context;
use crate::config;
use crate::exit::{Failure, NO, Outcome};

/// Bytes of records read at a time.
const READ_BYTES: usize = 1024 * 1024;

/// The flags of `conflicts`.
#[derive(Debug, Args)]
pub struct Conflicts {
    #[command(subcommand)]
    action: Option<Action>,
}

/// The flags of `holds`.
#[derive(Debug, Args)]
pub struct Holds {
    #[command(subcommand)]
    action: Option<Action>,
    /// Exit with 1 when there are holds.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show one, whole.
    Show {
        /// Its number.
        id: u64,
    },
}

impl Conflicts {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let records = read(context).await?;
        present(context, &records, self.action.as_ref())?;
        Ok(0)
    }
}

impl Holds {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let mut records = read(context).await?;
        records.retain(|record| record.result == Resolution::Held);
        let any = !records.is_empty();
        present(context, &records, self.action.as_ref())?;
        Ok(if any && self.strict { NO } else { 0 })
    }
}

async fn read(context: &Context) -> Outcome<Vec<ConflictRecord>> {
    let settings = config::read(&context.config)?;
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    db.begin(Purpose::Read).await?;
    let mut records = Vec::new();
    let mut from = 1;
    loop {
        let entries = db.entries(CONFLICTS, from, READ_BYTES).await?;
        let Some(last) = entries.last().map(|entry| entry.number) else {
            break;
        };
        for entry in &entries {
            records.push(books::decode::<ConflictRecord>(&entry.bytes)?);
        }
        from = last + 1;
    }
    db.rollback().await?;
    Ok(records)
}

fn present(context: &Context, records: &[ConflictRecord], action: Option<&Action>) -> Outcome<()> {
    if let Some(Action::Show { id }) = action {
        let record = records.iter().find(|record| record.id == *id);
        let record = record
            .ok_or_else(|| Failure::new(NO, format!("there is no number {id} in this list")))?;
        let document = record.to_json();
        context.show(&document, || tell(record, &document));
        return Ok(());
    }
    let documents: Vec<serde_json::Value> = records.iter().map(ConflictRecord::to_json).collect();
    context.show(&documents.into(), || {
        let lines = records.iter().map(|record| {
            let document = record.to_json();
            let stands = document["result"]["stands"].as_str().unwrap_or_default();
            format!(
                "{:>5}  {}  {} {}  from {}: {} ({stands})",
                record.id,
                document["at"].as_str().unwrap_or_default(),
                record.table,
                record.key.to_json(),
                record.origin,
                record.reason.code()
            )
        });
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() {
            "none".into()
        } else {
            lines.join("\n")
        }
    });
    Ok(())
}

fn tell(record: &ConflictRecord, document: &serde_json::Value) -> String {
    format!(
        "{} {} of table `{}`: {}.\n  at the head: {}\n  from {} ({}): {}\n  stands: {}",
        if record.result == Resolution::Held {
            "Held row"
        } else {
            "Row"
        },
        record.key.to_json(),
        record.table,
        record.reason.sentence(),
        document["ours"],
        record.origin,
        document["at"].as_str().unwrap_or_default(),
        document["theirs"],
        document["result"]["row"],
    )
}
