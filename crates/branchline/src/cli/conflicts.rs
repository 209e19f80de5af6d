//! `conflicts` and `holds`: what was decided, kept whole; what is set aside; and letting another row stand.

use std::time::{Duration, Instant};

use branchline_core::message::Keep;
use branchline_database::AnyDatabase;
use clap::{Args, Subcommand, ValueEnum};

use super::ask::{either, text};
use super::{Context, SHORT};
use crate::api::{KeepWord, Settling};
use crate::config::{self, RoleName, Settings};
use crate::exit::{Failure, NO, Outcome};
use crate::listing::{self, Entry};
use crate::request::Ask;
use crate::say;

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
            None => {
                let mut list = List::new(context);
                conflicts(&settings, &mut |entry| list.add(&entry)).await?;
                list.end()?;
            }
            Some(ConflictAction::Show { id }) => {
                let mut found = None;
                conflicts(&settings, &mut |entry| keep_if(&mut found, entry, &id)).await?;
                show(context, &settings, found, &id)?;
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
        let mut found = None;
        let (id, keep, timeout) = match self.action {
            None => {
                let mut list = List::new(context);
                holds(&settings, &mut |entry| list.add(&entry)).await?;
                let any = list.end()? > 0;
                return Ok(if self.strict && any { NO } else { 0 });
            }
            Some(HoldAction::Show { id }) => {
                holds(&settings, &mut |entry| keep_if(&mut found, entry, &id)).await?;
                show(context, &settings, found, &id)?;
                return Ok(0);
            }
            Some(HoldAction::Retry { id, timeout }) => (id, KeepWord::Retry, timeout),
            Some(HoldAction::Drop { id, timeout }) => (id, KeepWord::Head, timeout),
        };
        holds(&settings, &mut |entry| keep_if(&mut found, entry, &id)).await?;
        let entry = found.ok_or_else(|| unknown(&id))?;
        let Some(decision) = &entry.decision else {
            return Err(Failure::new(NO, tell::by_itself(&entry)));
        };
        settle(context, decision.record.id, keep, timeout).await
    }
}

async fn conflicts(settings: &Settings, visit: &mut impl FnMut(Entry)) -> Outcome<()> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    Ok(listing::conflicts(&mut db, visit).await?)
}

async fn holds(settings: &Settings, visit: &mut impl FnMut(Entry)) -> Outcome<()> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    Ok(listing::holds(&mut db, visit).await?)
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

fn keep_if(found: &mut Option<Entry>, entry: Entry, id: &str) {
    if entry.id == id {
        *found = Some(entry);
    }
}

fn unknown(id: &str) -> Failure {
    Failure::new(NO, format!("there is no number {id} in this list"))
}

fn show(context: &Context, settings: &Settings, found: Option<Entry>, id: &str) -> Outcome<()> {
    let entry = found.ok_or_else(|| unknown(id))?;
    context.show(&entry.document, || tell::whole(&entry, settings.role))
}

/// A list that is printed as it is read: it may be longer than memory.
struct List<'c> {
    context: &'c Context,
    entries: u64,
    written: Outcome<()>,
}

impl<'c> List<'c> {
    fn new(context: &'c Context) -> Self {
        Self {
            context,
            entries: 0,
            written: Ok(()),
        }
    }

    fn add(&mut self, entry: &Entry) {
        if self.written.is_ok() {
            self.written = if self.context.json {
                let before = if self.entries == 0 { '[' } else { ',' };
                say::answer(format_args!("{before}{}", entry.document))
            } else {
                say::answer(tell::line(entry))
            };
        }
        self.entries += 1;
    }

    /// Ends the list. Returns how many entries it had.
    fn end(self) -> Outcome<u64> {
        self.written?;
        match (self.context.json, self.entries) {
            (true, 0) => say::answer("[]")?,
            (true, _) => say::answer("]")?,
            (false, 0) => say::answer("none")?,
            (false, _) => {}
        }
        Ok(self.entries)
    }
}
