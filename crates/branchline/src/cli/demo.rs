//! `demo`: a head and branches of a small retail company in one process, with real writes at every office, a link cut
//! and healed, and a proof at the end. Nothing to install: SQLite is built in, the transport is the direct one.

use std::fs::DirBuilder;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use branchline_core::books::IdentityBook;
use branchline_core::branch::{Branch, Enrolment};
use branchline_core::head::{Head, seats};
use branchline_core::identity::{Incarnation, OfficeName};
use branchline_core::office::Identity;
use branchline_core::port::Database;
use branchline_database::AnyDatabase;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::ask::explain;
use super::run::StopSignals;
use crate::config::{Mode, RoleName, Settings, TransportSettings};
use crate::driver::{now, random};
use crate::exit::{BUG, Failure, NO, Outcome, io};
use crate::office::{OWN_SOON, Office};
use crate::plan::{self, PlanSettings};
use crate::request::Ask;
use crate::say;
use cable::Cable;
use shop::Shop;

mod cable;
mod shop;

/// How long everything runs before the link is cut, while it is cut, and after it is healed.
const ACTS: [Duration; 3] = [
    Duration::from_secs(3),
    Duration::from_secs(4),
    Duration::from_secs(3),
];
/// How often the table is drawn.
const DRAW: Duration = Duration::from_millis(500);
/// How long the offices may take to become even.
const PATIENCE: Duration = Duration::from_secs(60);

/// The flags of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Run the scenario once without waiting, prove that all offices are equal, and exit.
    #[arg(long)]
    once: bool,
    /// How many branches.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    branches: u16,
    /// Where to keep the databases (otherwise a folder that is removed at the end).
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The port of the head's loopback API (0: none).
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// A company at work.
struct Company {
    head: Office,
    branches: Vec<(String, Office, Cable)>,
    paths: Vec<(String, PathBuf)>,
}

impl Demo {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let (dir, passing) = match &self.dir {
            Some(dir) => (dir.clone(), false),
            None => (passing_folder()?, true),
        };
        let mut folder = DirBuilder::new();
        folder.mode(0o700).recursive(!passing);
        folder
            .create(&dir)
            .map_err(io(format_args!("cannot make the folder {}", dir.display())))?;
        let outcome = self.play(context, &dir).await;
        if passing {
            drop(std::fs::remove_dir_all(&dir));
        }
        outcome
    }

    async fn play(&self, context: &Context, dir: &Path) -> Outcome<u8> {
        let say = |line: String| say::say(line);
        say(format!(
            "A head (HO) and {} branches, SQLite databases in {}",
            self.branches,
            dir.display()
        ));
        let listen = SocketAddr::from(([127, 0, 0, 1], self.port));
        if let Err(error) = std::net::TcpListener::bind(listen) {
            return Err(Failure::usage(format!(
                "--port {}: {error}; name another",
                self.port
            )));
        }
        let mut signals = StopSignals::listen()?;
        let company = tokio::select! {
            company = Company::found(dir, self.branches) => company?,
            _ = signals.told() => return Err(Failure::new(NO, "stopped before it began")),
        };
        let silent = CancellationToken::new();
        let api = self.serve_api(listen, dir, &company, silent.clone());
        say("All branches have joined. Every office sells; nobody waits for the network.".into());
        let stop = Arc::new(AtomicBool::new(false));
        let mut shops = Vec::new();
        for (seed, (name, path)) in (1..).zip(&company.paths) {
            shops.push((
                name.clone(),
                Shop::start(path, name, seed, Arc::clone(&stop))?,
            ));
        }
        let view = View::new(&company);
        let interrupted = self.scenes(&company, &view, &shops, &mut signals).await?;
        stop.store(true, Ordering::Relaxed);
        let mut transactions = 0;
        for (_, shop) in shops {
            transactions += shop.finish()?;
        }
        view.finish();
        if interrupted {
            say("Stopped. Before the end: are all offices equal?".into());
        }
        let proof = tokio::select! {
            proof = company.prove() => proof,
            _ = signals.told() => Err(Failure::new(NO, "stopped before the proof")),
        };
        silent.cancel();
        if let Some(api) = api {
            drop(tokio::time::timeout(Duration::from_secs(1), api).await);
        }
        let sales = company
            .paths
            .iter()
            .map(|(_, path)| shop::sales(path))
            .collect::<Outcome<Vec<u64>>>();
        company.stop().await;
        let (code, document) = proof?;
        let sales = sales?;
        let mut document = document;
        document["transactions"] = transactions.into();
        document["sales_at_each_office"] = sales.clone().into();
        context.show(&document, || {
            format!(
                "{}\n{transactions} transactions were committed; every office holds {} sales.",
                explain(&document),
                sales.first().copied().unwrap_or_default()
            )
        })?;
        let all_alike = sales.windows(2).all(|pair| pair[0] == pair[1]);
        Ok(if code == 0 && all_alike { 0 } else { NO })
    }

    fn serve_api(
        &self,
        listen: SocketAddr,
        dir: &Path,
        company: &Company,
        stop: CancellationToken,
    ) -> Option<tokio::task::JoinHandle<()>> {
        if self.port == 0 {
            return None;
        }
        let (config, handle) = (dir.join("HO.toml"), company.head.handle());
        Some(tokio::spawn(async move {
            if let Err(failure) = crate::api::serve(&config, listen, handle, stop).await {
                tracing::error!("{failure}");
            }
        }))
    }

    /// Lets the acts pass. Returns whether a person ended them.
    async fn scenes(
        &self,
        company: &Company,
        view: &View,
        shops: &[(String, Shop)],
        signals: &mut StopSignals,
    ) -> Outcome<bool> {
        loop {
            for (act, length) in ACTS.into_iter().enumerate() {
                let (name, _, cable) = &company.branches[company.branches.len() - 1];
                match act {
                    1 => {
                        view.say(&format!("The link of {name} is cut. It goes on selling."));
                        cable.cut();
                    }
                    2 => {
                        view.say(&format!("The link of {name} is healed."));
                        cable.heal();
                    }
                    _ => {}
                }
                let end = Instant::now() + length;
                while Instant::now() < end {
                    view.draw(company, shops).await;
                    if shops.iter().any(|(_, shop)| shop.has_failed()) {
                        cable.heal();
                        return Ok(true);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(DRAW) => {}
                        _ = signals.told() => {
                            cable.heal();
                            return Ok(true);
                        }
                    }
                }
            }
            if self.once {
                return Ok(false);
            }
        }
    }
}

/// A folder that is not there yet, by a name that nobody can have made before.
fn passing_folder() -> Outcome<PathBuf> {
    let number = u64::from_le_bytes(random()?);
    Ok(std::env::temp_dir().join(format!("branchline-demo-{number:016x}")))
}

fn settings(
    dir: &Path,
    name: &OfficeName,
    role: RoleName,
    transport: TransportSettings,
) -> Settings {
    Settings {
        file: dir.join(format!("{name}.toml")),
        name: name.clone(),
        role,
        database: address(dir, name),
        transport,
        api: SocketAddr::from(([127, 0, 0, 1], 0)),
        mode: Mode::Live,
        plan: PlanSettings::default(),
        retention: branchline_core::retention::Retention::default(),
    }
}

fn address(dir: &Path, name: &OfficeName) -> String {
    format!("sqlite:{}", file(dir, name).display())
}

fn file(dir: &Path, name: &OfficeName) -> PathBuf {
    dir.join(format!("{name}.db"))
}

fn office_name(name: &str) -> Outcome<OfficeName> {
    OfficeName::new(name).map_err(|error| Failure::new(BUG, error.to_string()))
}

impl Company {
    async fn found(dir: &Path, branches: u16) -> Outcome<Self> {
        let head_name = office_name("HO")?;
        let names: Vec<String> = (1..=branches).map(|number| format!("BO{number}")).collect();
        let mut all = vec![head_name.to_string()];
        all.extend(names.iter().cloned());
        if file(dir, &head_name).exists() {
            return Err(Failure::usage(format!(
                "{} holds an earlier demo; remove it or name another --dir",
                dir.display()
            )));
        }
        shop::found(&file(dir, &head_name), &all)?;
        let head_key = found_head(dir, &head_name).await?;
        let listen = TransportSettings::Listen {
            address: "127.0.0.1:0".into(),
            advertise: None,
            certificate: None,
        };
        let head =
            Office::start(&settings(dir, &head_name, RoleName::Head, listen), OWN_SOON).await?;
        let bound = head
            .bound
            .ok_or_else(|| Failure::new(BUG, "the head does not listen"))?;
        let mut company = Self {
            head,
            branches: Vec::new(),
            paths: vec![("HO".into(), file(dir, &head_name))],
        };
        for name in names {
            let branch = office_name(&name)?;
            let cable = Cable::lay(bound).await?;
            company.enrol(dir, &head_name, head_key, &branch).await?;
            let connect = TransportSettings::Connect {
                url: format!("ws://{}/branchline", cable.address),
                pin: None,
                ca: None,
            };
            let office =
                Office::start(&settings(dir, &branch, RoleName::Branch, connect), OWN_SOON).await?;
            let deadline = Some(Instant::now() + PATIENCE);
            office.handle().ask(Ask::Joined { deadline }).await?;
            company.paths.push((name.clone(), file(dir, &branch)));
            company.branches.push((name, office, cable));
        }
        Ok(company)
    }

    async fn enrol(
        &self,
        dir: &Path,
        head: &OfficeName,
        head_key: [u8; 32],
        branch: &OfficeName,
    ) -> Outcome<()> {
        let secret: [u8; 32] = random()?;
        let mut db = AnyDatabase::open(&address(dir, head), false).await?;
        seats::invite(&mut db, branch, secret, now().plus_millis(3_600_000))
            .await?
            .map_err(Failure::usage)?;
        self.head.handle().ask(Ask::Reload(branch.clone())).await?;
        let mut db = AnyDatabase::open(&address(dir, branch), true).await?;
        db.prepare().await?;
        let enrolment = Enrolment {
            identity: IdentityBook {
                name: branch.clone(),
                head: false,
                secret_key: random()?,
            },
            incarnation: Incarnation(*uuid::Uuid::now_v7().as_bytes()),
            head_name: head.clone(),
            head_key,
            secret,
        };
        Ok(Branch::found(&mut db, &enrolment).await?)
    }

    /// Waits until all are even, then compares them.
    async fn prove(&self) -> Outcome<(u8, serde_json::Value)> {
        for (name, office, _) in &self.branches {
            let sync = Ask::Sync {
                deadline: Instant::now() + PATIENCE,
            };
            office
                .handle()
                .ask(sync)
                .await
                .map_err(|failure| failure.at(name))?;
        }
        let sync = Ask::Sync {
            deadline: Instant::now() + PATIENCE,
        };
        self.head.handle().ask(sync).await?;
        self.head
            .handle()
            .ask(Ask::Verify {
                deadline: Instant::now() + PATIENCE,
                repair: false,
            })
            .await
    }

    async fn stop(self) {
        for (_, office, _) in self.branches {
            office.stop().await;
        }
        self.head.stop().await;
    }
}

/// Makes the shop's database a head and returns its public key.
async fn found_head(dir: &Path, name: &OfficeName) -> Outcome<[u8; 32]> {
    let mut db = AnyDatabase::open(&address(dir, name), false).await?;
    let inspection = db.inspect().await?;
    let (schema, _) = plan::choose(&inspection, "*", &plan::rules::Rules::default())?;
    db.prepare().await?;
    let identity = IdentityBook {
        name: name.clone(),
        head: true,
        secret_key: random()?,
    };
    let incarnation = Incarnation(*uuid::Uuid::now_v7().as_bytes());
    Head::found(&mut db, &identity, incarnation, &schema).await?;
    db.install(&schema).await?;
    Ok(Identity::from_book(&identity).public_key())
}

/// The table: one line for each office, redrawn on a terminal, printed now and then elsewhere.
struct View {
    bars: Vec<ProgressBar>,
    lines: MultiProgress,
    terminal: bool,
}

impl View {
    fn new(company: &Company) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let lines = MultiProgress::new();
        let style = ProgressStyle::with_template("{msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bars = company
            .paths
            .iter()
            .map(|_| lines.add(ProgressBar::new_spinner().with_style(style.clone())));
        Self {
            bars: bars.collect(),
            terminal,
            lines,
        }
    }

    fn say(&self, line: &str) {
        if self.terminal {
            drop(self.lines.println(line));
        } else {
            say::say(line);
        }
    }

    async fn draw(&self, company: &Company, shops: &[(String, Shop)]) {
        let mut texts = Vec::new();
        for (index, (name, shop)) in shops.iter().enumerate() {
            let (office, link) = match index.checked_sub(1).and_then(|at| company.branches.get(at))
            {
                None => (&company.head, "listens"),
                Some((_, office, cable)) => {
                    (office, if cable.is_whole() { "linked" } else { "CUT" })
                }
            };
            let Ok((_, status)) = office.handle().ask(Ask::Status).await else {
                continue;
            };
            let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
            let waiting = number(&status["pending_changes"]) + number(&status["outbox"]["changes"]);
            let place = if index == 0 {
                number(&status["log"])
            } else {
                number(&status["applied"]["HO"])
            };
            texts.push(format!(
                "{name:<5} {link:<8} {:>6} transactions  {waiting:>5} changes waiting  log {place:>6}  conflicts {:>3}",
                shop.committed.load(Ordering::Relaxed),
                number(&status["conflicts"]),
            ));
        }
        if self.terminal {
            for (bar, text) in self.bars.iter().zip(texts) {
                bar.set_message(text);
                bar.tick();
            }
        } else {
            say::say(texts.join("\n"));
        }
    }

    fn finish(&self) {
        for bar in &self.bars {
            bar.finish();
        }
    }
}
