//! `join`: makes a database a branch and loads the first copy of the tables.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use branchline_core::books::IdentityBook;
use branchline_core::branch::{Branch, Enrolment, Renewal};
use branchline_core::identity::Incarnation;
use branchline_core::office::Identity;
use branchline_core::output::Notice;
use branchline_core::port::{Database, Inspection};
use branchline_core::succession::Offer;
use branchline_database::AnyDatabase;
use clap::Args;
use indicatif::ProgressBar;

use super::Context;
use super::init::{absolute, place};
use crate::code::{JoinCode, Route};
use crate::config::{self, RoleName, write_private};
use crate::driver::random;
use crate::exit::{Failure, Outcome, UNREACHED, io};
use crate::office::{Lock, OWN_SOON, Office};
use crate::plan::outlook;
use crate::request::{Answer, Ask};
use crate::rewrite;
use crate::say;

/// How often the link is looked at, after how long it is told that it is not up, and how long the head may be silent
/// where no `--timeout` says otherwise.
const LOOK: Duration = Duration::from_secs(1);
const TELL_AFTER: Duration = Duration::from_secs(3);
/// How long a head that is there may do nothing for the branch before that is told.
const STILL: Duration = Duration::from_secs(10);
const WITHOUT_HEAD: Duration = Duration::from_secs(60);
/// The longest time-out, in seconds.
const LONGEST: u64 = 365 * 86_400;

/// The flags of `join`.
#[derive(Debug, Args)]
pub struct Join {
    /// The join code that the head gave; `-` reads it from standard input, where no other user can see it.
    code: String,
    /// The database: postgres://USER:PASSWORD@HOST/NAME, mysql://USER:PASSWORD@HOST/NAME or sqlite:PATH (or BRANCHLINE_DATABASE).
    #[arg(long, env = "BRANCHLINE_DATABASE", hide_env_values = true)]
    database: String,
    /// Seconds after which to give up; what is loaded by then stays, and `join` goes on there. Without it: when the head
    /// is silent for 60 seconds.
    #[arg(long)]
    timeout: Option<u64>,
}

impl Join {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let line = if self.code == "-" {
            std::io::read_to_string(std::io::stdin())
                .map_err(io("cannot read the join code from standard input"))?
        } else {
            self.code.clone()
        };
        let code = JoinCode::from_line(&line)?;
        let database = absolute(&self.database)?;
        self.check_config(context, &code, &database).await?;
        let Some(_lock) = Lock::take(&context.config)? else {
            return Err(Failure::usage(
                "this office is running already; `branchline status` shows how far it is, and a new code is taken while it is stopped",
            ));
        };
        let mut db = AnyDatabase::open(&database, true).await?;
        let prepared = db.prepare().await;
        prepared.map_err(|error| Failure::from(error).at(place(&database)))?;
        let renewal = enrol(&mut db, &code).await?;
        let before = db.definitions().await?;
        drop(db);
        let there = context.config.exists();
        if renewal == Renewal::Succeeded && there {
            let text = rewrite::with_transport(&context.config, &transport_of(&code))?;
            write_private(&context.config, &text)?;
        } else if renewal != Renewal::Known || !there {
            write_private(&context.config, &compose(&code, &database))?;
        }
        let settings = config::read(&context.config)?;
        let office = Office::start(&settings, OWN_SOON).await?;
        let progress = Progress::start(&office);
        let answer = self.joined(&office).await;
        let rows = progress.finish().await;
        office.stop().await;
        let (_, status) = answer?;
        let not_carried = not_carried(&database, &before).await?;
        let succeeded = renewal == Renewal::Succeeded;
        let document = serde_json::json!({ "office": code.branch, "head": code.head, "rows": rows, "status": status, "succeeded": succeeded, "not_carried": not_carried });
        for told in outlook::tell_not_carried(&document) {
            say::say(format_args!("note: {told}"));
        }
        context.show(&document, || {
            if succeeded {
                return format!(
                    "{} follows {} now, which took the place of its former head; its rows are the same, and what it had not sent is there.\nNext: `branchline run` keeps it in sync.",
                    code.branch, code.head
                );
            }
            format!(
                "{} has joined {}: {rows} rows loaded, {} is written.\nNext: `branchline run` keeps it in sync.",
                code.branch,
                code.head,
                context.config.display()
            )
        })?;
        Ok(0)
    }

    /// Waits until the branch is complete. Tells what keeps it from the head, and gives up where nobody answers there.
    async fn joined(&self, office: &Office) -> Answer {
        let deadline = self
            .timeout
            .map(|seconds| Instant::now() + Duration::from_secs(seconds.min(LONGEST)));
        let handle = office.handle();
        let asked = handle.ask(Ask::Joined { deadline });
        tokio::pin!(asked);
        let mut heard = Instant::now();
        let mut told = BTreeSet::new();
        let (mut known, mut moved) = (serde_json::Value::Null, Instant::now());
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut asked).await {
                return answer;
            }
            let Ok((_, status)) = handle.ask(Ask::Status).await else {
                continue;
            };
            let link = &status["transport"];
            if link["connected"] == true {
                heard = Instant::now();
                let (outbox, here) = (&status["outbox"]["batches"], &status["applied"]);
                let now = serde_json::json!([outbox, here, status["joining"]]);
                if now != known {
                    (known, moved) = (now, heard);
                }
                if moved.elapsed() > STILL && told.insert(String::new()) {
                    say::say(format_args!(
                        "the head is there, and for {} s nothing came of it ({outbox} batches wait for its answer): `branchline status` and the log there tell why",
                        STILL.as_secs()
                    ));
                }
                continue;
            }
            let problem = link["problem"].as_str();
            let problem =
                problem.unwrap_or("the head does not answer; is `branchline run` up there?");
            if heard.elapsed() > TELL_AFTER && told.insert(problem.to_string()) {
                say::say(format_args!("waiting for the head: {problem}"));
            }
            if deadline.is_none() && heard.elapsed() > WITHOUT_HEAD {
                return Err(Failure::new(
                    UNREACHED,
                    format!(
                        "the head was not heard of for {} s: {problem}. Nothing is lost; `join` with the same code goes on where it was",
                        WITHOUT_HEAD.as_secs()
                    ),
                ));
            }
        }
    }

    /// A configuration that is there already must be of this same branch, on this same database.
    async fn check_config(
        &self,
        context: &Context,
        code: &JoinCode,
        database: &str,
    ) -> Outcome<()> {
        if !context.config.exists() {
            return Ok(());
        }
        let settings = config::read(&context.config)?;
        let file = context.config.display();
        if settings.role != RoleName::Branch || settings.name != code.branch {
            return Err(Failure::usage(format!(
                "{file} is the configuration of office `{}`; name another file with --config",
                settings.name
            )));
        }
        let given_is_its = async {
            let mut db = AnyDatabase::open(database, false).await.ok()?;
            let (identity, head) = Identity::load(&mut db).await.ok()?;
            (!head && identity.name == code.branch).then_some(())
        };
        if absolute(&settings.database)? == database || given_is_its.await.is_some() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{file} is the configuration of `{}` on another database ({}); `branchline leave` takes that one out first; where it is \
             gone, remove the file; for another office name another file with --config",
            settings.name,
            place(&settings.database)
        )))
    }
}

/// What of the tables that were created since a look this database does not take.
async fn not_carried(database: &str, before: &Inspection) -> Outcome<Vec<serde_json::Value>> {
    let mut db = AnyDatabase::open(database, false).await?;
    let (schema, _) = outlook::present(&mut db).await?;
    let was_there = |name: &str| {
        let findings = before.findings.iter();
        before.tables.iter().any(|table| table.name == name)
            || findings
                .filter_map(|one| one.table.as_deref())
                .any(|table| table == name)
    };
    let created = schema.tables.iter().filter(|table| !was_there(&table.name));
    let left_out = created.flat_map(|table| db.left_out(table));
    Ok(left_out
        .map(|one| outlook::left_out_to_json(&one))
        .collect())
}

/// Writes who the branch is into its database, or who its head is by now.
async fn enrol(db: &mut AnyDatabase, code: &JoinCode) -> Outcome<Renewal> {
    if let Ok((identity, head)) = Identity::load(db).await {
        if !head && identity.name == code.branch {
            let offer = Offer {
                head_name: code.head.clone(),
                head_key: code.head_key,
                secret: code.secret,
                log: code.log,
            };
            return match Branch::renew(db, &offer).await? {
                Renewal::Stranger => Err(Failure::usage(format!(
                    "this database follows another head than the one of this code, and another log; `branchline leave` takes `{}` out first",
                    identity.name
                ))),
                renewal => Ok(renewal),
            };
        }
        return Err(Failure::usage(format!(
            "this database already belongs to office `{}`; `branchline leave` takes it out first",
            identity.name
        )));
    }
    let enrolment = Enrolment {
        identity: IdentityBook {
            name: code.branch.clone(),
            head: false,
            secret_key: random()?,
        },
        incarnation: Incarnation(*uuid::Uuid::now_v7().as_bytes()),
        head_name: code.head.clone(),
        head_key: code.head_key,
        secret: code.secret,
    };
    Branch::found(db, &enrolment).await?;
    Ok(Renewal::Renewed)
}

fn compose(code: &JoinCode, database: &str) -> String {
    let transport = transport_of(code);
    config::compose(&code.branch, RoleName::Branch, database, &transport, None)
}

fn transport_of(code: &JoinCode) -> Vec<(&'static str, String)> {
    match &code.route {
        Route::Amqp {
            url,
            head_exchange,
            branches_exchange,
            queue,
        } => vec![
            ("amqp", url.clone()),
            ("head_exchange", head_exchange.clone()),
            ("branches_exchange", branches_exchange.clone()),
            ("queue", queue.clone()),
        ],
        Route::Direct { url, pin } => {
            let mut transport = vec![("connect", url.clone())];
            transport.extend(pin.iter().map(|pin| ("pin", pin.clone())));
            transport
        }
    }
}

/// Shows how the first copy comes along: a bar on a terminal, plain lines elsewhere.
struct Progress {
    task: tokio::task::JoinHandle<u64>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Progress {
    fn start(office: &Office) -> Self {
        let mut notices = office.listen();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let terminal = std::io::stderr().is_terminal();
        let task = tokio::spawn(async move {
            let bar = if terminal {
                ProgressBar::new_spinner()
            } else {
                ProgressBar::hidden()
            };
            bar.enable_steady_tick(Duration::from_millis(120));
            let mut loaded = 0;
            let mut shown = String::new();
            loop {
                let notice = tokio::select! {
                    notice = notices.recv() => notice,
                    _ = &mut stopped => break,
                };
                match notice {
                    Ok(Notice::Loading { table, rows }) => {
                        loaded = rows;
                        bar.set_message(format!("{rows} rows, now {table}"));
                        if !terminal && table != shown {
                            say::say(format_args!("loading {table} ({rows} rows so far)"));
                        }
                        shown = table;
                    }
                    Ok(Notice::Joined { rows }) => loaded = rows,
                    Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
                }
            }
            bar.finish_and_clear();
            loaded
        });
        Self { task, stop }
    }

    async fn finish(self) -> u64 {
        self.stop.send(()).ok();
        self.task.await.unwrap_or(0)
    }
}
