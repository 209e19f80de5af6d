//! The world: a virtual clock, an agenda of what happens when, and the offices' drivers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use branchline_core::books::{self, BranchBook, IdentityBook};
use branchline_core::branch::{Branch, Enrolment, Renewal};
use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::envelope;
use branchline_core::failure::{OfficeError, OfficeResult};
use branchline_core::head::{Head, Wiring, seats};
use branchline_core::identity::{Digest, Incarnation, LogPosition, Micros, OfficeName};
use branchline_core::message::Message;
use branchline_core::office::Identity;
use branchline_core::output::{Notice, Output, To, Token};
use branchline_core::port::{Database, Purpose};
use branchline_core::retention::Retention;
use branchline_core::schema::{Direction, Schema};
use branchline_core::succession::Offer;
use branchline_core::verify::Verification;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::faults::{Faulty, Plan, Sabotage};
use super::migrations::{Change, Migrations};
use super::model::{Journal, WriteId};
use super::network::{Bytes, Delivery, Network, Way};
use super::office::{Disk, Image, Machine, Office, Place, Store, run};
use super::oracle::LogReader;
use super::report::Story;
use super::workload::{self, Business, Desk};
use super::{Engine, Options};

mod driver;
mod life;
mod migrate;
mod rest;
mod twin;
mod weather;
mod wires;

const MS: i64 = 1_000;
const SECOND: i64 = 1_000_000;
const MINUTE_MS: i64 = 60_000;
/// When the run begins, by the true clock.
const EPOCH: i64 = 1_800_000_000 * SECOND;
/// How long the company may take to come to rest.
const REST_BOUND: i64 = 900 * SECOND;
/// Until then, what was delayed for weeks has come.
const STRAGGLERS: i64 = 6 * SECOND;

/// Something on the agenda.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    App(usize),
    Wake(usize),
    Work(usize, u64),
    Tick(usize),
    Arrive(usize, Way, u64),
    Hand(u64),
    Connect(usize),
    Cut(usize),
    Mend(usize),
    HalfCut(usize),
    Kill(usize),
    Arm(usize),
    Restart(usize),
    Reload(usize, u64),
    Jump(usize),
    Compare(usize),
    Found(usize),
    Dismiss(usize),
    Manual(usize),
    Live(usize),
    Full(usize),
    Room(usize),
    Image(usize),
    Restore(usize),
    Lull,
    Away(usize),
    Promote,
    Rejoin(usize),
    Migrate(usize),
    Copy(usize),
    BrokerStop,
    BrokerStart,
    BrokerEmpty,
    Quiet,
}

/// Which faults this run has, and how hard.
#[derive(Debug, Default)]
struct Weather {
    loss: u32,
    duplication: u32,
    delay: u32,
    damage: u32,
    race: bool,
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Storm,
    Rest { since: i64 },
    Verify { since: i64 },
}

pub struct World {
    pub rng: Xoshiro256PlusPlus,
    pub now: i64,
    agenda: BTreeMap<(i64, u64), Event>,
    scheduled: u64,
    pub offices: Vec<Office>,
    pub network: Network,
    pub journal: Journal,
    pub schema: Schema,
    pub story: Story,
    pub failure: Option<String>,
    pub log: LogReader,
    pub verified: Option<Verification>,
    pub down_too: bool,
    pub business: Business,
    pub conflicts: u64,
    pub reincarnations: u64,
    pub crashes: u64,
    /// The head's database was restored in this run.
    pub head_restored: bool,
    /// The same, and the company was not at rest since.
    head_restored_now: bool,
    head_image: Option<HeadImage>,
    /// Whether a branch may take the head's place in this run, and whether one has.
    promotes: bool,
    promoted: bool,
    promoted_from: LogPosition,
    /// How long things are kept, where this run has a horizon.
    pub retention: Option<Retention>,
    /// A branch and its copy, in a run that has one.
    pub twin: Option<twin::Twin>,
    /// What changes of the tables there were, in a run in which they change.
    pub migrations: Option<Migrations>,
    weather: Weather,
    phase: Phase,
    storm_end: i64,
    rounds: u32,
    seed: u64,
    _folder: Option<tempfile::TempDir>,
}

/// A backup of the head.
struct HeadImage {
    image: Image,
    /// The last write before it.
    since: WriteId,
    log: LogReader,
    /// The head's tables then.
    schema: Schema,
    /// How often each office had been invited.
    invitations: Vec<u32>,
}

fn secret(seed: u64, what: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&Digest::of(format!("{seed} {what} a").as_bytes()).0);
    bytes[16..].copy_from_slice(&Digest::of(format!("{seed} {what} b").as_bytes()).0);
    bytes
}

/// Makes a trouble happen to an office.
type Trouble = fn(usize) -> Event;

impl World {
    /// Draws a company and its weather from the seed.
    pub fn new(options: &Options) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
        let branches = rng.random_range(1..=4_usize);
        let fanout = rng.random_bool(0.5);
        // Most runs keep SQLite's files in this process's memory, some in a folder.
        let folder =
            (options.engine != Engine::Memory && options.seed.is_multiple_of(16)).then(|| {
                let shared = std::path::Path::new("/dev/shm");
                if shared.is_dir() {
                    tempfile::tempdir_in(shared)
                } else {
                    tempfile::tempdir()
                }
                .expect("a folder")
            });
        let mut offices = Vec::new();
        for index in 0..=branches {
            let sqlite = match options.engine {
                Engine::Memory => false,
                Engine::Sqlite => true,
                Engine::Mixed | Engine::Any => rng.random_bool(0.5),
            };
            let name = if index == 0 {
                "ho".to_owned()
            } else {
                format!("b{index}")
            };
            let place = match &folder {
                _ if !sqlite => Place::Memory,
                Some(folder) => Place::SqliteFile(folder.path()),
                None => Place::SqliteMemory,
            };
            let mut office = Office::new(OfficeName::new(&name).expect("a legal name"));
            office.disk = Disk::new(place, &name);
            office.plan.sabotage = options.sabotage;
            offices.push(office);
        }
        let mut network = Network::default();
        (network.fanout, network.broker_up) = (fanout, true);
        network.links.resize_with(offices.len(), Default::default);
        let promotes = rng.random_bool(0.25);
        let mut schema = workload::schema();
        schema.number();
        if promotes {
            // A branch lacks others' rows of what goes up only.
            for table in &mut schema.tables {
                if table.direction == Direction::Up {
                    table.direction = Direction::Both;
                }
            }
        }
        let mut world = Self {
            now: EPOCH,
            agenda: BTreeMap::new(),
            scheduled: 0,
            offices,
            network,
            journal: Journal::default(),
            schema,
            story: Story::new(options.loud),
            failure: None,
            log: LogReader::default(),
            verified: None,
            down_too: rng.random_bool(0.3),
            business: Business {
                families: rng.random_bool(0.5),
                unique: rng.random_bool(0.4),
                asks: rng.random_bool(0.3),
                // Decisions about large rows do not travel whole, and are lost with a head.
                bulk: rng.random_ratio(1, 12) && !promotes,
            },
            conflicts: 0,
            reincarnations: 0,
            crashes: 0,
            head_restored: false,
            head_restored_now: false,
            head_image: None,
            promotes,
            promoted: false,
            promoted_from: LogPosition::NONE,
            retention: (rng.random_bool(0.25) && !promotes).then(|| Retention {
                absent_ms: rng.random_range(30..120) * MINUTE_MS,
                recovery_ms: rng.random_range(15..30) * MINUTE_MS,
                ..Retention::default()
            }),
            twin: None,
            migrations: None,
            weather: Weather::default(),
            phase: Phase::Storm,
            storm_end: 0,
            rounds: rng.random_range(0..=1),
            seed: options.seed,
            rng,
            _folder: folder,
        };
        // Tables that nobody writes bring nothing new, and each costs its part of every copy, comparison and look.
        let unused = world.business.unused();
        let tables = &mut world.schema.tables;
        tables.retain(|table| !unused.contains(&table.id));
        if options.seed % 5 == 4 && !promotes && world.retention.is_none() {
            let copy = world.offices.len();
            world
                .offices
                .push(Office::new(OfficeName::new("copy").expect("a legal name")));
            world.network.links.push(Default::default());
            world.offices[copy].plan.sabotage = options.sabotage;
            world.twin = Some(twin::Twin::new(copy));
        }
        if options.seed % 5 == 2 && !promotes {
            world.migrations = Some(Migrations::new(&world.schema));
        }
        world.set_up();
        world.storm(true);
        world
    }

    fn tell(&mut self, what: impl AsRef<str>) {
        self.story.tell(self.now - EPOCH, what.as_ref());
    }

    /// Ends the run with a failure, unless it has failed already.
    pub fn fail(&mut self, why: String) {
        self.tell(format!("FAILED: {why}"));
        self.failure.get_or_insert(why);
    }

    fn at(&mut self, delay: i64, event: Event) {
        self.scheduled += 1;
        self.agenda
            .insert((self.now + delay.max(0), self.scheduled), event);
    }

    /// A delay of up to so many microseconds.
    fn up_to(&mut self, most: i64) -> i64 {
        self.rng.random_range(0..=most.max(1))
    }

    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && self.rng.random_ratio(1, many)
    }

    /// The database of an office without any fault, for what is done beside its machine.
    pub fn with_database<T>(
        &mut self,
        office: usize,
        act: impl FnOnce(&mut Faulty<'_>, Micros) -> T,
    ) -> T {
        let mut plan = Plan::default();
        self.with_plan(office, &mut plan, act)
    }

    fn with_plan<T>(
        &mut self,
        index: usize,
        plan: &mut Plan,
        act: impl FnOnce(&mut Faulty<'_>, Micros) -> T,
    ) -> T {
        let writes_as = self.writes_as(index);
        let office = &mut self.offices[index];
        let now = office.clock(self.now);
        let desk = Desk {
            rng: &mut self.rng,
            journal: &mut self.journal,
            schema: &self.schema,
            migrations: self.migrations.as_ref(),
            here: None,
            office: writes_as,
            writer: index,
            is_head: index == 0,
            now,
            times: &mut office.times,
            locked: Default::default(),
            down_too: self.down_too,
            business: self.business,
        };
        let mut database = Faulty::new(&mut office.disk, plan, desk);
        let done = act(&mut database, now);
        let left_open = database.is_open() && !database.plan.dead;
        if left_open {
            let name = self.offices[index].name.clone();
            self.fail(format!(
                "the application waits (P8): {name} left a transaction open"
            ));
        }
        done
    }

    /// Runs to the end.
    pub fn run(&mut self) {
        while self.failure.is_none() {
            let Some((&at, _)) = self.agenda.first_key_value() else {
                break;
            };
            if self.phase == Phase::Storm && at.0 > self.storm_end {
                self.now = self.storm_end;
                self.calm();
                continue;
            }
            let Some(((time, _), event)) = self.agenda.pop_first() else {
                break;
            };
            self.now = time;
            if !self.happen(event) {
                break;
            }
        }
    }

    /// One event. Returns whether the run goes on.
    fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::App(office) => {
                self.app(office);
                let pause = if self.one_in(5) { 3 * SECOND } else { 500 * MS };
                let delay = self.up_to(pause);
                self.at(delay, Event::App(office));
            }
            Event::Wake(office) => {
                match &mut self.offices[office].machine {
                    Some(Machine::Head(head)) => head.wake(),
                    Some(Machine::Branch(branch)) => branch.wake(),
                    None => {}
                }
                self.plan_work(office);
            }
            Event::Work(office, life) => self.work(office, life),
            Event::Tick(office) => self.tick(office),
            Event::Arrive(link, way, epoch) => self.arrive(link, way, epoch),
            Event::Hand(message) => self.hand(message),
            Event::Connect(office) => self.connect(office),
            Event::Cut(link) => {
                if link > 0 || self.network.fanout {
                    self.tell(format!("the link of {} is cut", self.offices[link].name));
                    self.network.links[link].severed = true;
                    self.unlink(link);
                    let delay = self.up_to(3 * SECOND);
                    self.at(delay, Event::Mend(link));
                }
            }
            Event::HalfCut(link) => {
                if self.network.links[link].up {
                    let deaf = self.rng.random_bool(0.5);
                    let what = if deaf {
                        "hears nothing"
                    } else {
                        "is not heard"
                    };
                    self.tell(format!("{} {what}", self.offices[link].name));
                    self.network.links[link].deaf = deaf;
                    self.network.links[link].mute = !deaf;
                    let delay = self.up_to(4 * SECOND);
                    self.at(delay, Event::Cut(link));
                }
            }
            Event::Mend(link) => {
                self.network.links[link].severed = false;
                let stuck = self.network.links[link].deaf || self.network.links[link].mute;
                if stuck {
                    self.unlink(link);
                }
                self.at(0, Event::Connect(link));
            }
            Event::Kill(office) => self.kill(office, "is killed"),
            Event::Arm(office) => self.arm(office),
            Event::Restart(office) => self.restart(office),
            Event::Reload(office, life) => self.reload(office, life),
            Event::Jump(office) => {
                let far = if self.one_in(3) { 365 * 86_400 } else { 3_600 };
                let skew = self.rng.random_range(-far * SECOND..=far * SECOND);
                self.tell(format!(
                    "the clock of {} is now {} s off",
                    self.offices[office].name,
                    skew / SECOND
                ));
                self.offices[office].skew = skew;
            }
            Event::Compare(_) => {
                self.call(0, |machine, _, _| {
                    if let Machine::Head(head) = machine {
                        head.verify(true);
                    }
                    Ok(())
                });
                self.plan_work(0);
            }
            Event::Found(branch) => self.found(branch),
            Event::Dismiss(branch) => self.dismiss(branch),
            Event::Manual(office) => {
                if self.offices[office].joined {
                    self.set_manual(office, true);
                    let delay = self.up_to(3 * SECOND);
                    self.at(delay, Event::Live(office));
                }
            }
            Event::Live(office) => self.set_manual(office, false),
            Event::Full(office) => {
                self.tell(format!("the disk of {} is full", self.offices[office].name));
                self.offices[office].plan.full = true;
                let delay = self.up_to(2 * SECOND);
                self.at(delay, Event::Room(office));
            }
            Event::Room(office) => self.offices[office].plan.full = false,
            Event::Image(0) => self.image_head(),
            Event::Image(office) => {
                if self.offices[office].founded {
                    self.tell(format!("a backup of {} is made", self.offices[office].name));
                    let image = self.offices[office].disk.image();
                    self.offices[office].image = Some((image, self.journal.last()));
                    let delay = self.up_to(5 * SECOND);
                    self.at(delay, Event::Restore(office));
                }
            }
            Event::Restore(0) => self.restore_head(),
            Event::Restore(office) => self.restore(office),
            Event::Lull => {
                self.tell("nothing happens for a while");
                for office in &mut self.offices {
                    office.skew += 20 * MINUTE_MS * MS;
                }
            }
            Event::Away(branch) => {
                if branch > 0 {
                    self.tell(format!("{} is away", self.offices[branch].name));
                    self.network.links[branch].severed = true;
                    self.unlink(branch);
                    let length = 2 * SECOND + self.up_to(8 * SECOND);
                    for _ in 0..self.rng.random_range(0..9) {
                        let delay = self.up_to(length);
                        self.at(delay, Event::Lull);
                    }
                    self.at(length, Event::Mend(branch));
                }
            }
            Event::Promote => self.promote(),
            Event::Rejoin(branch) => self.rejoin(branch),
            Event::Migrate(office) => self.migrate(office),
            Event::Copy(office) => self.copy(office),
            Event::BrokerStop => {
                self.tell("the broker stops");
                self.network.broker_up = false;
                for link in 0..self.offices.len() {
                    self.unlink(link);
                }
                let delay = self.up_to(3 * SECOND);
                self.at(delay, Event::BrokerStart);
            }
            Event::BrokerStart => {
                self.network.broker_up = true;
                for link in 0..self.offices.len() {
                    self.at(MS, Event::Connect(link));
                }
            }
            Event::BrokerEmpty => {
                self.tell("the broker is emptied");
                self.network.stored.clear();
            }
            Event::Quiet => return self.quiet(),
        }
        true
    }

    /// The application runs a transaction.
    fn app(&mut self, office: usize) {
        let index = office;
        let writes_as = self.writes_as(index);
        let office = &mut self.offices[index];
        if office.plan.full {
            return;
        }
        let mut desk = Desk {
            rng: &mut self.rng,
            journal: &mut self.journal,
            schema: &self.schema,
            migrations: self.migrations.as_ref(),
            here: None,
            office: writes_as,
            writer: index,
            is_head: index == 0,
            now: office.clock(self.now),
            times: &mut office.times,
            locked: Default::default(),
            down_too: self.down_too,
            business: self.business,
        };
        if let Some(what) = desk.transact(&mut office.disk) {
            self.wrote(index, &what);
        }
        self.check(index);
    }

    fn wrote(&mut self, office: usize, what: &str) {
        self.tell(format!("{} commits: {what}", self.offices[office].name));
        let delay = self.up_to(500 * MS);
        self.at(delay, Event::Wake(office));
    }
}
