//! Drives one office: joins the machine of the core to its database, its link, the clock and the people who ask.
//!
//! One loop, one owner of the database. Between two steps it takes requests, then arrivals as far as the machine has
//! room, then lets the machine work; when nothing is left it sleeps until something happens. After a failed step the
//! machine is read anew from the database, since the answer of a commit may have been lost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use branchline_core::branch::Branch;
use branchline_core::failure::{OfficeError, OfficeResult};
use branchline_core::head::{Head, Wiring};
use branchline_core::identity::{Micros, OfficeName};
use branchline_core::output::{Notice, Output, To};
use branchline_core::port::DatabaseError;
use branchline_core::retention::Retention;
use branchline_database::{AnyDatabase, AnyWatcher};
use branchline_transport::{Destination, Event, Link, LinkError, Parcel, Receipt};
use tokio::sync::{broadcast, mpsc};

use crate::config::Mode;
use crate::plan::PlanSettings;
use crate::request::{Request, Waiting};

mod answer;
mod question;
mod reshape;
mod status;
mod upkeep;

use reshape::Reshaping;
pub use upkeep::Upkeep;

/// How often the machine is told that time has passed.
const TICK: Duration = Duration::from_millis(50);
/// How often the tables are looked at while nothing is written: changing them wakes nobody.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait after a failed step, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The same while another transaction is in the way, at the most: it was waited for already.
const RETRY_IN_THE_WAY: Duration = Duration::from_millis(500);
/// How many events are taken in before the machine works again.
const EVENTS_PER_ROUND: usize = 64;
/// How long a stop may take to send what is still to be said.
const FAREWELL: Duration = Duration::from_secs(5);

/// The office's machine.
pub enum Machine {
    /// The head's.
    Head(Box<Head>),
    /// A branch's.
    Branch(Box<Branch>),
}

/// Everything that an office needs to run.
pub struct Parts {
    /// The database; its tables are prepared and it has an identity.
    pub db: AnyDatabase,
    /// Tells when the application wrote.
    pub watcher: AnyWatcher,
    /// The transport.
    pub link: Link,
    /// Looks after the broker's queues (head).
    pub upkeep: Upkeep,
    /// What kind of transport it is.
    pub wiring: Wiring,
    /// The word for the transport.
    pub transport: &'static str,
    /// When data moves.
    pub mode: Mode,
    /// How long what may be asked for again is kept.
    pub retention: Retention,
    /// The configuration file, where the plan stands (head).
    pub config: PathBuf,
    /// What is shared, and how (head).
    pub plan: PlanSettings,
    /// Requests of people.
    pub requests: mpsc::Receiver<Request>,
    /// What happens, for whoever listens.
    pub notices: broadcast::Sender<Notice>,
}

/// The driver of one office.
pub struct Driver {
    parts: Parts,
    machine: Machine,
    is_head: bool,
    session: [u8; 16],
    receipts: BTreeMap<u64, (Receipt, u64)>,
    /// The connection that each branch has now (head).
    connections: BTreeMap<OfficeName, u64>,
    next_token: u64,
    link: LinkView,
    upkeep: Upkeep,
    reshaping: Reshaping,
    /// When the tables were last looked at for their own sake.
    looked: Instant,
    waiting: Vec<Waiting>,
    trouble: Trouble,
    engine: (String, String),
    stopping: bool,
}

/// What the driver knows of its link.
#[derive(Default)]
struct LinkView {
    up: bool,
    since: Option<SystemTime>,
    problem: Option<LinkError>,
}

/// What went wrong lately.
#[derive(Default)]
struct Trouble {
    /// What the machine remembers may no longer be what the database says.
    stale: bool,
    problem: Option<OfficeError>,
    retry_at: Option<Instant>,
    pause: Duration,
}

/// The time by this machine's clock.
pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> OfficeResult<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| OfficeError::Books(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

impl Driver {
    /// Reads the machine from its database.
    pub async fn new(mut parts: Parts) -> OfficeResult<Self> {
        let session = random()?;
        let (_, is_head) = branchline_core::office::Identity::load(&mut parts.db).await?;
        let engine = parts.db.describe().await?;
        let mut reshaping = Reshaping::default();
        let machine = load(&mut parts, &mut reshaping, is_head, session).await?;
        let direct = parts.wiring == Wiring::Direct;
        let upkeep = std::mem::replace(&mut parts.upkeep, Upkeep::new(None));
        Ok(Self {
            upkeep,
            parts,
            machine,
            is_head,
            session,
            receipts: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_token: 1,
            link: LinkView {
                // Nothing tells that a listening head's link is up: it is, from now on.
                since: (is_head && direct).then(SystemTime::now),
                ..LinkView::default()
            },
            reshaping,
            looked: Instant::now(),
            waiting: Vec::new(),
            trouble: Trouble::default(),
            engine,
            stopping: false,
        })
    }

    /// Runs until asked to stop.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.stopping {
            self.take_requests().await;
            let moved = self.take_events().await;
            let more = self.step().await;
            self.answer_waiting().await;
            if more || moved {
                tokio::task::yield_now().await;
                continue;
            }
            let room = self.has_room();
            tokio::select! {
                biased;
                request = self.parts.requests.recv() => match request {
                    Some(request) => self.take_request(request).await,
                    None => self.stopping = true,
                },
                event = self.parts.link.events.recv(), if room => match event {
                    Some(event) => self.take_event(event).await,
                    None => tokio::time::sleep(TICK).await,
                },
                wake = self.parts.watcher.wake() => match wake {
                    Some(()) => self.wake(),
                    None => tokio::time::sleep(TICK).await,
                },
                _ = tick.tick() => self.tick().await,
            }
        }
        self.refuse_waiting();
        self.flush().await;
        drop(tokio::time::timeout(FAREWELL, self.parts.link.close()).await);
    }

    fn wake(&mut self) {
        match &mut self.machine {
            Machine::Head(head) => head.wake(),
            Machine::Branch(branch) => branch.wake(),
        }
    }

    /// Whether arrivals can be taken in: not by a machine that may not know what its database says, since what it answers
    /// and stores by its old books would be wrong.
    fn has_room(&self) -> bool {
        if self.trouble.stale {
            return false;
        }
        match &self.machine {
            Machine::Head(head) => head.has_room(),
            Machine::Branch(branch) => branch.has_room(),
        }
    }

    async fn take_requests(&mut self) {
        while let Ok(request) = self.parts.requests.try_recv() {
            self.take_request(request).await;
        }
    }

    async fn take_events(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..EVENTS_PER_ROUND {
            if !self.has_room() {
                break;
            }
            let Ok(event) = self.parts.link.events.try_recv() else {
                break;
            };
            self.take_event(event).await;
            moved = true;
        }
        moved
    }

    async fn take_event(&mut self, event: Event) {
        match event {
            Event::Arrived {
                bytes,
                connection,
                receipt,
                ..
            } => {
                let token = self.next_token;
                self.next_token += 1;
                self.receipts.insert(token, (receipt, connection));
                let Parts { db, .. } = &mut self.parts;
                let outcome = match &mut self.machine {
                    Machine::Head(head) => head.arrived(db, now(), &bytes, token).await,
                    Machine::Branch(branch) => branch.arrived(db, now(), &bytes, token).await,
                };
                self.flush().await;
                self.note_outcome(outcome).await;
            }
            Event::Up { peer } => {
                if peer.is_none() {
                    self.link = LinkView {
                        up: true,
                        since: Some(SystemTime::now()),
                        problem: None,
                    };
                }
                self.keep_queues(true);
                let outcome = self.machine_link_up(peer.as_ref());
                self.flush().await;
                self.note_outcome(outcome).await;
            }
            Event::Down { peer, reason } => {
                tracing::debug!(peer = ?peer, "link down: {reason}");
                if peer.is_none() {
                    if self.link.up || self.link.since.is_none() {
                        self.link.since = Some(SystemTime::now());
                    }
                    self.link.up = false;
                    self.link.problem = Some(reason);
                }
                if let Some(name) = &peer {
                    self.connections.remove(name);
                }
                self.machine_link_down(peer.as_ref());
            }
            Event::Unroutable { to } => {
                tracing::warn!("the broker has no queue for {to:?}: is that office invited?")
            }
        }
    }

    fn machine_link_up(&mut self, peer: Option<&OfficeName>) -> OfficeResult<()> {
        match &mut self.machine {
            Machine::Head(head) => {
                head.link_up(peer);
                Ok(())
            }
            Machine::Branch(branch) => {
                branch.link_up(now())?;
                self.ask_comparisons_again();
                Ok(())
            }
        }
    }

    fn machine_link_down(&mut self, peer: Option<&OfficeName>) {
        match &mut self.machine {
            Machine::Head(head) => head.link_down(peer),
            Machine::Branch(branch) => branch.link_down(),
        }
    }

    /// Lets the machine work, unless the last step failed a moment ago.
    async fn step(&mut self) -> bool {
        if let Some(at) = self.trouble.retry_at {
            if Instant::now() < at {
                return false;
            }
            self.trouble.retry_at = None;
            if let Err(error) = self.renew().await {
                self.fail(error);
                return false;
            }
        }
        let db = &mut self.parts.db;
        let outcome = match &mut self.machine {
            Machine::Head(head) => head.work(db, now()).await,
            Machine::Branch(branch) => branch.work(db, now()).await,
        };
        self.flush().await;
        match outcome {
            Ok(more) => {
                self.recovered();
                more
            }
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    async fn tick(&mut self) {
        if self.trouble.retry_at.is_some() {
            return;
        }
        self.keep_queues(false);
        if self.looked.elapsed() > LOOK {
            self.looked = Instant::now();
            self.wake();
            if let Err(error) = self.parts.db.keep_owning().await {
                self.fail(error.into());
                return;
            }
        }
        let db = &mut self.parts.db;
        let outcome = match &mut self.machine {
            Machine::Head(head) => head.tick(db, now()).await,
            Machine::Branch(branch) => branch.tick(now()),
        };
        self.flush().await;
        self.note_outcome(outcome).await;
    }

    async fn note_outcome(&mut self, outcome: OfficeResult<()>) {
        if let Err(error) = outcome {
            self.fail(error);
        }
    }

    fn recovered(&mut self) {
        if let Some(problem) = self.trouble.problem.take() {
            tracing::info!("recovered from: {problem}");
        }
        self.trouble.pause = RETRY.0;
    }

    fn fail(&mut self, error: OfficeError) {
        let in_the_way = matches!(error, OfficeError::InTheWay(_));
        let busy = matches!(error, OfficeError::Database(DatabaseError::Busy(_)));
        if self.trouble.problem.as_ref() != Some(&error) && !busy && !in_the_way {
            tracing::error!("{error}");
        }
        self.trouble.stale |= !in_the_way;
        self.trouble.pause = self.trouble.pause.max(RETRY.0);
        self.trouble.retry_at = Some(Instant::now() + self.trouble.pause);
        let longest = if in_the_way {
            RETRY_IN_THE_WAY
        } else {
            RETRY.1
        };
        self.trouble.pause = (self.trouble.pause * 2).min(longest);
        self.trouble.problem = Some(error);
    }

    /// Reads the machine anew where what it remembers may no longer be what the database says.
    async fn renew(&mut self) -> OfficeResult<()> {
        if self.trouble.stale {
            self.reload().await?;
            self.trouble.stale = false;
        }
        Ok(())
    }

    /// Reads the machine anew, and has the peers greet again.
    async fn reload(&mut self) -> OfficeResult<()> {
        let (parts, reshaping) = (&mut self.parts, &mut self.reshaping);
        self.machine = load(parts, reshaping, self.is_head, self.session).await?;
        self.ask_comparisons_again();
        for (receipt, _) in std::mem::take(&mut self.receipts).into_values() {
            self.parts.link.sender.settle(receipt);
        }
        if self.parts.wiring == Wiring::Direct && self.is_head {
            for connection in std::mem::take(&mut self.connections).into_values() {
                self.parts.link.sender.refuse(connection);
            }
        } else if self.link.up {
            self.machine_link_up(None)?;
            self.flush().await;
        }
        Ok(())
    }

    /// Does what the machine asked for.
    async fn flush(&mut self) {
        while let Some(output) = self.next_output() {
            match output {
                Output::Send(to, bytes) => {
                    let to = match to {
                        To::Everyone => Destination::Everyone,
                        To::Branch(name) => Destination::Branch(name),
                        To::Head => Destination::Head,
                    };
                    let bytes = bytes::Bytes::from_owner(SharedBytes(bytes));
                    if let Err(error) = self.parts.link.sender.send(Parcel { to, bytes }).await {
                        tracing::debug!("not sent: {error}");
                    }
                }
                Output::Settle(token) => {
                    if let Some((receipt, _)) = self.receipts.remove(&token) {
                        self.parts.link.sender.settle(receipt);
                    }
                }
                Output::Name(token, name) => {
                    if let Some((_, connection)) = self.receipts.get(&token) {
                        self.connections.insert(name.clone(), *connection);
                        self.parts.link.sender.name_peer(*connection, name);
                    }
                }
                Output::Close(token) => {
                    if let Some((_, connection)) = self.receipts.get(&token) {
                        self.connections.retain(|_, open| open != connection);
                        self.parts.link.sender.refuse(*connection);
                    }
                }
                Output::Notice(notice) => self.heed(notice),
            }
        }
    }

    fn next_output(&mut self) -> Option<Output> {
        match &mut self.machine {
            Machine::Head(head) => head.output(),
            Machine::Branch(branch) => branch.output(),
        }
    }

    fn heed(&mut self, notice: Notice) {
        crate::telemetry::log(&notice);
        self.note_reshape(&notice);
        self.note_for_waiting(&notice);
        // Nobody listening is fine.
        drop(self.parts.notices.send(notice));
    }
}

/// Bytes shared with the machine's memory of its log.
struct SharedBytes(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

async fn load(
    parts: &mut Parts,
    reshaping: &mut Reshaping,
    is_head: bool,
    session: [u8; 16],
) -> OfficeResult<Machine> {
    let moving = parts.mode == Mode::Live;
    Ok(if is_head {
        let mut head = Head::load(&mut parts.db, parts.wiring, now()).await?;
        reshaping.read_names(&mut parts.db).await?;
        head.set_plan(reshaping.plan(&parts.plan));
        head.set_retention(parts.retention);
        head.set_moving(moving);
        Machine::Head(Box::new(head))
    } else {
        let mut branch = Branch::load(&mut parts.db, session).await?;
        branch.number_questions_after(u64::from_be_bytes(random()?) >> 16);
        branch.set_retention(parts.retention);
        branch.set_store_and_forward(parts.wiring == Wiring::Fanout);
        if branch.state().joining.is_none() {
            branch.set_moving(moving);
        }
        Machine::Branch(Box::new(branch))
    })
}
