//! The commands: one file for each verb.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::exit::Outcome;
use crate::say;

mod ask;
mod conflicts;
mod demo;
mod doctor;
mod history;
mod init;
mod invite;
mod join;
mod leave;
mod plan;
mod promote;
mod reach;
mod run;
mod schema;

/// Keeps the databases of a head office and its branch offices the same, two ways, over links that fail.
///
/// Exit codes: 0 done; 1 the answer is no; 2 wrong usage or configuration; 3 the peer or the broker could not be
/// reached (nothing is lost); 4 the database could not be reached or refused; 70 a bug.
#[derive(Debug, Parser)]
#[command(name = "branchline", version, max_term_width = 110)]
pub struct Arguments {
    /// The office's configuration file.
    #[arg(
        long,
        global = true,
        default_value = "branchline.toml",
        env = "BRANCHLINE_CONFIG"
    )]
    pub config: PathBuf,
    /// Say more about what happens; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print one JSON document on stdout, and nothing else.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// Whether the command is about short work that speaks by its answer, not by its log.
    pub fn shows_for_itself(&self) -> bool {
        !matches!(self.command, Command::Run)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a head and branches at work on embedded databases, with a link cut and healed.
    Demo(demo::Demo),
    /// Make a database the head of a company.
    Init(init::Init),
    /// Make a join code for a new branch (at the head).
    Invite(invite::Invite),
    /// Make a database a branch, with the code that the head gave.
    Join(join::Join),
    /// Run this office until told to stop.
    Run,
    /// One round: everything out, everything in.
    Sync(ask::Sync),
    /// Show how this office is; at the head also every branch.
    Status,
    /// Compare this office's tables with its peers', row by row, at one cut.
    Verify(ask::Verify),
    /// List what was decided where two offices changed the same row; show one; let another row stand.
    Conflicts(conflicts::Conflicts),
    /// List changes that are set aside; show one, try it again, or drop it.
    Holds(conflicts::Holds),
    /// Show how a row came to be what it is.
    History(history::History),
    /// Show what is shared; share more or fewer tables.
    Plan(plan::PlanArguments),
    /// Show the schema version; say what was renamed; let a change of the tables pass.
    Schema(schema::SchemaArguments),
    /// Say what in this database, broker or plan will hurt, and how to mend it.
    Doctor,
    /// Make this branch the head, where the head and all its backups are gone.
    ///
    /// To be run at the branch that is the furthest ahead (`status` says `applied`), while no office runs there. The
    /// log goes on: the other branches keep their rows and what they have not sent, and join with a new code each.
    Promote(promote::Promote),
    /// Take a branch out (at the head).
    Remove(invite::Remove),
    /// Take this office out: removes everything that Branchline made in the database, and nothing else.
    Leave(leave::Leave),
}

/// What commands share.
pub struct Context {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether to print JSON only.
    pub json: bool,
}

impl Context {
    /// Prints a document, or its sentence for a person.
    pub fn show(
        &self,
        document: &serde_json::Value,
        sentence: impl FnOnce() -> String,
    ) -> Outcome<()> {
        if self.json {
            say::answer(document)
        } else {
            say::answer(sentence())
        }
    }
}

/// How long a running office may take for a short answer.
pub const SHORT: Duration = Duration::from_secs(30);

/// Runs the command and returns its exit code.
pub async fn run(arguments: Arguments) -> Outcome<u8> {
    let Arguments {
        config,
        json,
        command,
        ..
    } = arguments;
    let context = Context { config, json };
    match command {
        Command::Demo(demo) => demo.run(&context).await,
        Command::Init(init) => init.run(&context).await,
        Command::Invite(invite) => invite.run(&context).await,
        Command::Join(join) => join.run(&context).await,
        Command::Run => run::run(&context).await,
        Command::Sync(sync) => sync.run(&context).await,
        Command::Status => ask::status(&context).await,
        Command::Verify(verify) => verify.run(&context).await,
        Command::Conflicts(conflicts) => conflicts.run(&context).await,
        Command::Holds(holds) => holds.run(&context).await,
        Command::History(history) => history.run(&context).await,
        Command::Plan(plan) => plan.run(&context).await,
        Command::Schema(schema) => schema.run(&context).await,
        Command::Doctor => doctor::run(&context).await,
        Command::Promote(promote) => promote.run(&context).await,
        Command::Remove(remove) => remove.run(&context).await,
        Command::Leave(leave) => leave.run(&context).await,
    }
}
