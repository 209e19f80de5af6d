//! `conflicts` and `holds`: what was decided, kept whole; what is set aside; and letting another row stand.

use std::time::{Duration, Instant};

use branchline_core::message::Keep;
use branchline_database::AnyDatabase;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::ask::{either, text};
use super::{Context, SHORT};
use crate::api::{KeepWord, Settling};
use crate::config::{self, RoleName, Settings};
use crate::exit::{Failure, NO, Outcome};
use crate::listing::{self, Entry};
use crate::request::Ask;

mod tell;

pub use tell::kept;

/// Seconds that a branch waits for its head.
const PATIENCE: u64 = 30;

/// The flags of `conflicts`.
#[derive(Debug, Args)]
pub struct Conflicts {
    #[command(subcommand)]
    action: Option<ConflictAction>,
}

#[derive(Debug, Subcommand)]
enum ConflictAction {
    /// Show one, whole.
    Show {
        /// Its number.
        id: String,
    },
    /// Let a row stand that lost, everywhere.
    Resolve {
        /// Its number.
        id: u64,
        /// The row that shall stand: this office's, the other's (at the head: the branch's; at a branch: the head's), or
        /// the one that both had changed.
        #[arg(long)]
        keep: Side,
        /// Seconds after which to give up (a branch asks the head).
        #[arg(long, default_value_t = PATIENCE)]
        timeout: u64,
    },
}

/// Whose row shall stand, seen from this office.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    Local,
    Remote,
    Base,
}

impl Side {
    fn at(self, role: RoleName) -> KeepWord {
        match (self, role) {
            (Self::Local, RoleName::Head) | (Self::Remote, RoleName::Branch) => KeepWord::Head,
            (Self::Local, RoleName::Branch) | (Self::Remote, RoleName::Head) => KeepWord::Branch,
            (Self::Base, _) => KeepWord::Base,
        }
    }
}

/// The flags of `holds`.
#[derive(Debug, Args)]
pub struct Holds {
    #[command(subcommand)]
    action: Option<HoldAction>,
    /// Exit with 1 when there are holds.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Subcommand)]
enum HoldAction {
    /// Show one, whole.
    Show {
        /// Its number or name.
        id: String,
    },
    /// Try the held row again now.
    Retry {
        /// Its number or name.
        id: String,
        /// Seconds after which to give up (a branch asks the head).
        #[arg(long, default_value_t = PATIENCE)]
        timeout: u64,
    },
    /// Let the head's row stand; the branch takes it.
    Drop {
        /// Its number or name.
        id: String,
        /// Seconds after which to give up (a branch asks the head).
        #[arg(long, default_value_t = PATIENCE)]
        timeout: u64,
    },
}

impl Conflicts {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = config::read(&context.config)?;
        match self.action {
            None => list(context, &conflicts(&settings).await?)?,
            Some(ConflictAction::Show { id }) => {
                show(context, &settings, &conflicts(&settings).await?, &id)?;
            }
            Some(ConflictAction::Resolve { id, keep, timeout }) => {
                return settle(context, id, keep.at(settings.role), timeout).await;
            }
        }
        Ok(0)
    }
}

impl Holds {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = config::read(&context.config)?;
        let holds = holds(&settings).await?;
        let (id, keep, timeout) = match self.action {
            None => {
                list(context, &holds)?;
                return Ok(if self.strict && !holds.is_empty() {
                    NO
                } else {
                    0
                });
            }
            Some(HoldAction::Show { id }) => {
                show(context, &settings, &holds, &id)?;
                return Ok(0);
            }
            Some(HoldAction::Retry { id, timeout }) => (id, KeepWord::Retry, timeout),
            Some(HoldAction::Drop { id, timeout }) => (id, KeepWord::Head, timeout),
        };
        let entry = find(&holds, &id)?;
        let Some(decision) = &entry.decision else {
            return Err(Failure::new(NO, tell::by_itself(entry)));
        };
        settle(context, decision.record.id, keep, timeout).await
    }
}

async fn conflicts(settings: &Settings) -> Outcome<Vec<Entry>> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    Ok(listing::conflicts(&mut db).await?)
}

async fn holds(settings: &Settings) -> Outcome<Vec<Entry>> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    Ok(listing::holds(&mut db).await?)
}

async fn settle(context: &Context, conflict: u64, keep: KeepWord, timeout: u64) -> Outcome<u8> {
    let patience = Duration::from_secs(timeout.min(86_400));
    let path = format!("/api/settle?timeout={timeout}");
    let body = serde_json::json!(Settling { conflict, keep });
    let ask = Ask::Settle {
        conflict,
        keep: Keep::from(keep),
        deadline: Instant::now() + patience,
    };
    let asked = either(context, "POST", &path, Some(&body), patience + SHORT, ask);
    let (code, document) = asked.await?;
    context.show(&document, || {
        format!(
            "conflict {conflict}, row {} of table `{}`: {}",
            text(&document["key"]),
            text(&document["table"]),
            kept(&document["settled"])
        )
    })?;
    Ok(code)
}

fn find<'e>(entries: &'e [Entry], id: &str) -> Outcome<&'e Entry> {
    let found = entries.iter().find(|entry| entry.id == id);
    found.ok_or_else(|| Failure::new(NO, format!("there is no number {id} in this list")))
}

fn show(context: &Context, settings: &Settings, entries: &[Entry], id: &str) -> Outcome<()> {
    let entry = find(entries, id)?;
    context.show(&entry.document, || tell::whole(entry, settings.role))
}

fn list(context: &Context, entries: &[Entry]) -> Outcome<()> {
    let documents: Vec<Value> = entries.iter().map(|entry| entry.document.clone()).collect();
    context.show(&documents.into(), || {
        let lines: Vec<String> = entries.iter().map(tell::line).collect();
        if lines.is_empty() {
            "none".into()
        } else {
            lines.join("\n")
        }
    })
}
