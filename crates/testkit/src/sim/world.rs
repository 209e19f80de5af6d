//! The world: a virtual clock, an agenda of what happens when, and the offices' drivers.

use std::collections::{BTreeMap, VecDeque};

use branchline_core::books::IdentityBook;
use branchline_core::branch::{Branch, Enrolment};
use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::envelope;
use branchline_core::failure::OfficeResult;
use branchline_core::head::{Head, Wiring, seats};
use branchline_core::identity::{Digest, Incarnation, Micros, OfficeName};
use branchline_core::message::Message;
use branchline_core::output::{Notice, Output, To, Token};
use branchline_core::port::{Database, Purpose};
use branchline_core::schema::Schema;
use branchline_core::verify::Verification;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::faults::{Faulty, Plan, Sabotage};
use super::model::Journal;
use super::network::{Bytes, Delivery, Network, Way};
use super::office::{Disk, Machine, Office, run};
use super::oracle::LogReader;
use super::report::Story;
use super::workload::{self, Desk};
use super::{Engine, Options};

const MS: i64 = 1_000;
const SECOND: i64 = 1_000_000;
/// How long the company may take to come to rest.
const REST_BOUND: i64 = 900 * SECOND;
/// Until then, what was delayed for weeks has come.
const STRAGGLERS: i64 = 20 * SECOND;

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
    Jump(usize),
    Compare(usize),
    Found(usize),
    Image(usize),
    Restore(usize),
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
    pub conflicts: u64,
    pub reincarnations: u64,
    pub crashes: u64,
    weather: Weather,
    phase: Phase,
    storm_end: i64,
    rounds: u32,
    seed: u64,
    _folder: Option<tempfile::TempDir>,
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
        let folder = (options.engine != Engine::Memory).then(|| {
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
                Engine::Mixed => rng.random_bool(0.5),
            };
            let name = if index == 0 {
                "ho".to_owned()
            } else {
                format!("b{index}")
            };
            let folder = folder
                .as_ref()
                .map(tempfile::TempDir::path)
                .filter(|_| sqlite);
            offices.push(Office {
                disk: Disk::new(folder, &name),
                name: OfficeName::new(name).expect("a legal name"),
                machine: None,
                skew: 0,
                plan: Plan {
                    sabotage: options.sabotage,
                    ..Plan::default()
                },
                times: BTreeMap::new(),
                lives: 0,
                founded: false,
                working: false,
                image: None,
                restored: false,
                joined: false,
            });
        }
        let mut network = Network::default();
        (network.fanout, network.broker_up) = (fanout, true);
        network.links.resize_with(offices.len(), Default::default);
        let mut world = Self {
            now: 1_800_000_000 * SECOND,
            agenda: BTreeMap::new(),
            scheduled: 0,
            offices,
            network,
            journal: Journal::default(),
            schema: workload::schema(),
            story: Story::new(options.loud),
            failure: None,
            log: LogReader::default(),
            verified: None,
            down_too: rng.random_bool(0.3),
            conflicts: 0,
            reincarnations: 0,
            crashes: 0,
            weather: Weather::default(),
            phase: Phase::Storm,
            storm_end: 0,
            rounds: rng.random_range(0..=1),
            seed: options.seed,
            rng,
            _folder: folder,
        };
        world.set_up();
        world.storm(true);
        world
    }

    fn tell(&mut self, what: impl AsRef<str>) {
        self.story
            .tell(self.now - 1_800_000_000 * SECOND, what.as_ref());
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
        let office = &mut self.offices[index];
        let now = office.clock(self.now);
        let desk = Desk {
            rng: &mut self.rng,
            journal: &mut self.journal,
            schema: &self.schema,
            office: index,
            is_head: index == 0,
            now,
            times: &mut office.times,
            locked: Default::default(),
            down_too: self.down_too,
        };
        act(&mut Faulty::new(&mut office.disk, plan, desk), now)
    }

    fn identity(&self, index: usize) -> IdentityBook {
        let name = self.offices[index].name.clone();
        IdentityBook {
            secret_key: secret(self.seed, name.as_str()),
            name,
            head: index == 0,
        }
    }

    fn set_up(&mut self) {
        let (schema, identity) = (self.schema.clone(), self.identity(0));
        let incarnation = Incarnation(Digest::of(&self.seed.to_be_bytes()).0);
        let made = self.with_database(0, |db, _| {
            run(async {
                db.create_tables(&schema).await?;
                db.add_foreign_keys(&schema).await?;
                db.prepare().await?;
                db.install(&schema).await?;
                Head::found(db, &identity, incarnation, &schema).await
            })
        });
        made.expect("the head is founded");
        self.offices[0].founded = true;
        self.offices[0].joined = true;
        self.at(0, Event::Restart(0));
        for branch in 1..self.offices.len() {
            let late = if self.one_in(2) {
                self.up_to(15 * SECOND)
            } else {
                self.up_to(SECOND)
            };
            if self.one_in(3) {
                // It has rows of its own before it joins.
                let made = self.with_database(branch, |db, _| run(db.create_tables(&schema)));
                made.expect("tables");
                let made = self.with_database(branch, |db, _| run(db.add_foreign_keys(&schema)));
                made.expect("foreign keys");
                for _ in 0..self.rng.random_range(1..6) {
                    self.app(branch);
                }
            }
            self.at(late, Event::Found(branch));
        }
        for office in 0..self.offices.len() {
            let delay = self.up_to(500 * MS);
            self.at(delay, Event::Tick(office));
        }
    }

    /// Draws the faults of the next stretch of time.
    fn storm(&mut self, first: bool) {
        let length = self.rng.random_range(5..40) * SECOND;
        self.phase = Phase::Storm;
        self.storm_end = self.now + length;
        let chance = |rng: &mut Xoshiro256PlusPlus, from: u32, to: u32| {
            if rng.random_bool(0.5) {
                rng.random_range(from..to)
            } else {
                0
            }
        };
        self.weather = Weather {
            loss: chance(&mut self.rng, 3, 40),
            duplication: chance(&mut self.rng, 3, 30),
            delay: chance(&mut self.rng, 5, 60),
            race: self.rng.random_bool(0.6),
        };
        let mut drawn: Vec<(&str, u32, Trouble)> = Vec::new();
        for (name, event) in [
            ("kill", Event::Kill as Trouble),
            ("arm", Event::Arm),
            ("arm more", Event::Arm),
            ("cut", Event::Cut),
            ("half cut", Event::HalfCut),
            ("jump", Event::Jump),
            ("compare", Event::Compare),
            ("restore", Event::Image),
        ] {
            let one_in = if name == "restore" { 5 } else { 2 };
            if self.one_in(one_in) {
                let count = self
                    .rng
                    .random_range(1..if name.starts_with("arm") { 40 } else { 8 });
                drawn.push((name, count, event));
            }
        }
        if self.network.fanout {
            for (name, event) in [
                (
                    "broker stops",
                    (|_| Event::BrokerStop) as fn(usize) -> Event,
                ),
                ("broker is emptied", |_| Event::BrokerEmpty),
            ] {
                if self.one_in(3) {
                    drawn.push((name, self.rng.random_range(1..4), event));
                }
            }
        }
        let weather = format!("{:?}", self.weather);
        let names: Vec<&str> = drawn.iter().map(|(name, _, _)| *name).collect();
        let wiring = if self.network.fanout {
            "fanout"
        } else {
            "direct"
        };
        self.tell(format!(
            "a storm of {} s: {wiring}, {weather}, {names:?}",
            length / SECOND
        ));
        for (_, count, event) in drawn {
            for _ in 0..count {
                let office = self.rng.random_range(0..self.offices.len());
                let delay = self.up_to(length);
                self.at(delay, event(office));
            }
        }
        for office in 0..self.offices.len() {
            if first && self.one_in(3) {
                self.offices[office].skew = self.rng.random_range(-SECOND * 7200..=SECOND * 7200);
            }
            let delay = self.up_to(2 * SECOND);
            self.at(delay, Event::App(office));
        }
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

    /// All faults end; the company comes to rest.
    fn calm(&mut self) {
        self.tell("the storm is over");
        self.phase = Phase::Rest { since: self.now };
        self.weather = Weather::default();
        let fault = |event: &Event| {
            matches!(
                event,
                Event::App(_)
                    | Event::Kill(_)
                    | Event::Arm(_)
                    | Event::Cut(_)
                    | Event::HalfCut(_)
                    | Event::Jump(_)
                    | Event::Compare(_)
                    | Event::Image(_)
                    | Event::Restore(_)
                    | Event::BrokerStop
                    | Event::BrokerEmpty
            )
        };
        self.agenda.retain(|_, event| !fault(event));
        let late: Vec<_> = self
            .agenda
            .range((self.now + STRAGGLERS, 0)..)
            .filter(|(_, event)| matches!(event, Event::Hand(_)))
            .map(|(key, event)| (*key, *event))
            .collect();
        for (key, event) in late {
            self.agenda.remove(&key);
            let delay = self.up_to(STRAGGLERS);
            self.at(delay, event);
        }
        for office in &mut self.offices {
            office.plan = Plan {
                sabotage: office.plan.sabotage,
                strikes: office.plan.strikes,
                ..Plan::default()
            };
        }
        self.at(0, Event::BrokerStart);
        for link in 0..self.offices.len() {
            self.at(0, Event::Mend(link));
        }
        self.at(STRAGGLERS + 5 * SECOND, Event::Quiet);
    }

    /// One event. Returns whether the run goes on.
    fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::App(office) => {
                self.app(office);
                let pause = if self.one_in(5) { 3 * SECOND } else { 300 * MS };
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
                    let delay = self.up_to(8 * SECOND);
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
                    let delay = self.up_to(10 * SECOND);
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
            Event::Image(office) => {
                if office > 0 && self.offices[office].founded {
                    self.tell(format!("a backup of {} is made", self.offices[office].name));
                    let image = self.offices[office].disk.image();
                    self.offices[office].image = Some((image, self.journal.last()));
                    let delay = self.up_to(15 * SECOND);
                    self.at(delay, Event::Restore(office));
                }
            }
            Event::Restore(office) => self.restore(office),
            Event::BrokerStop => {
                self.tell("the broker stops");
                self.network.broker_up = false;
                for link in 0..self.offices.len() {
                    self.unlink(link);
                }
                let delay = self.up_to(6 * SECOND);
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
        let office = &mut self.offices[index];
        let mut desk = Desk {
            rng: &mut self.rng,
            journal: &mut self.journal,
            schema: &self.schema,
            office: index,
            is_head: index == 0,
            now: office.clock(self.now),
            times: &mut office.times,
            locked: Default::default(),
            down_too: self.down_too,
        };
        if let Some(what) = desk.transact(&mut office.disk) {
            self.wrote(index, &what);
        }
    }

    fn wrote(&mut self, office: usize, what: &str) {
        self.tell(format!("{} commits: {what}", self.offices[office].name));
        let delay = self.up_to(500 * MS);
        self.at(delay, Event::Wake(office));
        self.check_money(office);
    }

    fn check_money(&mut self, office: usize) {
        if let Err(why) = super::oracle::money(self, office) {
            self.fail(why);
        }
    }

    fn plan_work(&mut self, office: usize) {
        if self.offices[office].machine.is_some() && !self.offices[office].working {
            self.offices[office].working = true;
            let delay = self.up_to(3 * MS);
            let life = self.offices[office].lives;
            self.at(delay, Event::Work(office, life));
        }
    }

    fn arm(&mut self, office: usize) {
        let step = self.rng.random_range(0..40);
        let after = self.rng.random_bool(0.5);
        let plan = &mut self.offices[office].plan;
        match self.rng.random_range(0..6) {
            0 | 1 => plan.crash = Some((step, after)),
            2 => plan.busy = Some(step),
            _ if self.weather.race => plan.race = Some(step),
            _ => {}
        }
    }

    /// Calls a machine, then does what it asks for. Returns nothing where the call failed.
    fn call<T>(
        &mut self,
        office: usize,
        act: impl FnOnce(&mut Machine, &mut Faulty<'_>, Micros) -> OfficeResult<T>,
    ) -> Option<T> {
        let mut machine = self.offices[office].machine.take()?;
        let mut plan = std::mem::take(&mut self.offices[office].plan);
        let result = self.with_plan(office, &mut plan, |db, now| act(&mut machine, db, now));
        let (dead, hindered) = (plan.dead, std::mem::take(&mut plan.hindered));
        let raced = plan.raced.take();
        self.offices[office].plan = plan;
        self.offices[office].machine = Some(machine);
        if let Some(what) = raced {
            self.wrote(office, &format!("(in between) {what}"));
        }
        if dead {
            self.offices[office].plan.dead = false;
            self.kill(office, "dies between two database steps");
            return None;
        }
        if let Some(Machine::Branch(branch)) = &self.offices[office].machine {
            self.offices[office].joined = branch.state().joining.is_none();
        }
        self.drain(office);
        self.check(office);
        match result {
            Ok(value) => Some(value),
            Err(error) if hindered => {
                self.tell(format!("{}: {error}", self.offices[office].name));
                self.plan_work(office);
                None
            }
            Err(error) => {
                self.fail(format!("{} failed: {error}", self.offices[office].name));
                None
            }
        }
    }

    fn check(&mut self, office: usize) {
        self.check_money(office);
        if office == 0
            && let Err(why) = super::oracle::read_log(self)
        {
            self.fail(why);
        }
    }

    fn work(&mut self, office: usize, life: u64) {
        if self.offices[office].lives != life {
            return;
        }
        self.offices[office].working = false;
        let more = self.call(office, |machine, db, now| match machine {
            Machine::Head(head) => run(head.work(db, now)),
            Machine::Branch(branch) => run(branch.work(db, now)),
        });
        if more == Some(true) {
            self.plan_work(office);
        }
    }

    fn tick(&mut self, office: usize) {
        self.call(office, |machine, db, now| match machine {
            Machine::Head(head) => run(head.tick(db, now)),
            Machine::Branch(branch) => branch.tick(now),
        });
        self.plan_work(office);
        let delay = 300 * MS + self.up_to(200 * MS);
        self.at(delay, Event::Tick(office));
    }

    fn take_in(&mut self, office: usize, bytes: &Bytes, token: Token) {
        let taken = self.call(office, |machine, db, now| match machine {
            Machine::Head(head) => run(head.arrived(db, now, bytes, token)),
            Machine::Branch(branch) => run(branch.arrived(db, now, bytes, token)),
        });
        if taken.is_none() && self.offices[office].machine.is_some() {
            // The driver tries again with the same delivery.
            let delay = 50 * MS;
            if let Some(delivery) = self.network.deliveries.remove(&token) {
                match delivery.message {
                    Some(message) => {
                        if let Some(stored) = self.network.stored.get_mut(&message) {
                            stored.handed = None;
                            self.at(delay, Event::Hand(message));
                        }
                    }
                    // With a connection, it begins anew.
                    None => self.at(0, Event::Cut(delivery.link)),
                }
            }
        }
        self.plan_work(office);
    }

    fn has_room(&self, office: usize) -> bool {
        self.offices[office]
            .machine
            .as_ref()
            .is_some_and(Machine::has_room)
    }

    fn arrive(&mut self, link: usize, way: Way, epoch: u64) {
        let end = &self.network.links[link];
        if end.epoch != epoch || !end.up {
            return;
        }
        let office = if way == Way::Up { 0 } else { link };
        if !self.has_room(office) {
            self.at(20 * MS, Event::Arrive(link, way, epoch));
            return;
        }
        let Some(bytes) = self.network.links[link].flights[way as usize].pop_front() else {
            return;
        };
        let token = self.network.hand_out(Delivery {
            office,
            link,
            epoch,
            message: None,
        });
        self.take_in(office, &bytes, token);
    }

    fn hand(&mut self, message: u64) {
        let Some(stored) = self.network.stored.get(&message) else {
            return;
        };
        let (office, bytes) = (stored.to, stored.bytes.clone());
        let link = &self.network.links[office];
        if stored.handed.is_some() || !link.up || link.deaf {
            return;
        }
        if !self.has_room(office) {
            self.at(20 * MS, Event::Hand(message));
            return;
        }
        let epoch = link.epoch;
        if let Some(stored) = self.network.stored.get_mut(&message) {
            stored.handed = Some(epoch);
        }
        let token = self.network.hand_out(Delivery {
            office,
            link: office,
            epoch,
            message: Some(message),
        });
        self.take_in(office, &bytes, token);
    }

    /// Does what a machine asks for.
    fn drain(&mut self, office: usize) {
        let mut outputs = VecDeque::new();
        while let Some(output) = self.offices[office]
            .machine
            .as_mut()
            .and_then(Machine::output)
        {
            outputs.push_back(output);
        }
        for output in outputs {
            match output {
                Output::Send(to, bytes) => self.send(office, &to, &bytes),
                Output::Settle(token) => drop(self.network.settle(token)),
                Output::Name(token, name) => self.name(token, &name),
                Output::Close(token) => self.close(token),
                Output::Notice(notice) => self.notice(office, &notice),
            }
        }
    }

    fn notice(&mut self, office: usize, notice: &Notice) {
        match notice {
            Notice::Conflict { .. } => self.conflicts += u64::from(office == 0),
            Notice::Reincarnated => self.reincarnations += 1,
            Notice::RefusedByHead(why) => {
                self.fail(format!("{} was refused: {why}", self.offices[office].name))
            }
            Notice::Verified(verification) if verification.repair => {
                // Nobody writes behind the back of capture here: whatever the weather, nothing differs.
                if let Err(why) = super::oracle::undisturbed(verification) {
                    self.fail(why);
                }
            }
            Notice::Verified(verification) => self.verified = Some(verification.clone()),
            _ => {}
        }
        self.tell(format!("{} says {notice:?}", self.offices[office].name));
    }

    fn name(&mut self, token: Token, name: &OfficeName) {
        let Some(delivery) = self.network.deliveries.get(&token).copied() else {
            return;
        };
        if self.network.fanout || self.network.links[delivery.link].epoch != delivery.epoch {
            return;
        }
        if self.offices[delivery.link].name != *name {
            self.fail(format!(
                "a connection of {} was named {name}",
                self.offices[delivery.link].name
            ));
        }
        self.network.links[delivery.link].named = true;
        if let Some(Machine::Head(head)) = &mut self.offices[0].machine {
            head.link_up(Some(name));
        }
    }

    fn close(&mut self, token: Token) {
        let Some(delivery) = self.network.deliveries.get(&token).copied() else {
            return;
        };
        let link = &self.network.links[delivery.link];
        if !self.network.fanout && link.epoch == delivery.epoch {
            let after = link.last_arrival[Way::Down as usize] - self.now + MS;
            self.at(after, Event::Cut(delivery.link));
        }
    }

    fn send(&mut self, from: usize, to: &To, bytes: &Bytes) {
        self.tell_sent(from, to, bytes);
        let resend = || {
            matches!(
                envelope::open(bytes).and_then(|opened| opened.read_own()),
                Ok(Message::Resend(_))
            )
        };
        if self.offices[from].plan.sabotage == Some(Sabotage::ResendIgnored) && resend() {
            return;
        }
        let receivers: Vec<usize> = match to {
            To::Head => vec![0],
            To::Everyone => (1..self.offices.len()).collect(),
            To::Branch(name) => (1..self.offices.len())
                .filter(|&branch| self.offices[branch].name == *name)
                .collect(),
        };
        for receiver in receivers {
            if self.network.fanout {
                self.publish(from, receiver, bytes);
            } else {
                self.fly(from, receiver, bytes);
            }
        }
    }

    fn tell_sent(&mut self, from: usize, to: &To, bytes: &Bytes) {
        let Ok(message) = envelope::open(bytes).and_then(|opened| opened.read_own()) else {
            return;
        };
        let words = match &message {
            Message::Batch(batch) => {
                format!("batch {} of {:?}", batch.number, short(&batch.incarnation))
            }
            Message::Log(entry) => format!("log entry {}", entry.position),
            Message::Hello(hello) => format!(
                "hello: incarnation {}, frozen {}, applied {}",
                short(&hello.incarnation),
                hello.frozen,
                hello.applied
            ),
            Message::Welcome(welcome) => format!(
                "welcome: incarnation {}, cursor {}, last {}",
                short(&welcome.incarnation),
                welcome.cursor,
                welcome.last
            ),
            Message::Applied(_) | Message::Position(_) => return,
            Message::Chunk(chunk) => format!(
                "chunk of table {} at {}",
                chunk.request.table, chunk.position
            ),
            other => format!("{other:?}"),
        };
        self.tell(format!("{} sends {to:?} {words}", self.offices[from].name));
    }

    /// A message over a branch's connection: in order and whole, or not at all.
    fn fly(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let (link, way) = if to == 0 {
            (from, Way::Up)
        } else {
            (to, Way::Down)
        };
        let latency = 1 + self.up_to(40 * MS);
        let now = self.now;
        let end = &mut self.network.links[link];
        let lost = match way {
            Way::Up => end.mute,
            Way::Down => end.deaf || !end.named,
        };
        if !end.up || lost {
            return;
        }
        let arrival = (now + latency).max(end.last_arrival[way as usize]);
        end.last_arrival[way as usize] = arrival;
        end.flights[way as usize].push_back(bytes.clone());
        let epoch = end.epoch;
        self.at(arrival - now, Event::Arrive(link, way, epoch));
    }

    /// A message by the broker: stored, perhaps lost, twice, late or out of order.
    fn publish(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let link = &self.network.links[from];
        if !link.up || link.mute || !self.offices[to].founded || self.one_in(self.weather.loss) {
            return;
        }
        let copies = if self.one_in(self.weather.duplication) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = if self.one_in(self.weather.delay) {
                let most = if self.one_in(3) {
                    21 * 86_400 * SECOND
                } else {
                    10 * SECOND
                };
                self.up_to(most)
            } else {
                MS + self.up_to(30 * MS)
            };
            let message = self.network.store(to, bytes.clone());
            self.at(delay, Event::Hand(message));
        }
    }

    fn connect(&mut self, office: usize) {
        let link = &self.network.links[office];
        if link.up || link.severed || self.offices[office].machine.is_none() {
            return;
        }
        if self.network.fanout {
            if !self.network.broker_up {
                return;
            }
        } else if office == 0 {
            for branch in 1..self.offices.len() {
                let delay = self.up_to(200 * MS);
                self.at(delay, Event::Connect(branch));
            }
            return;
        } else if self.offices[0].machine.is_none() {
            return;
        }
        self.tell(format!("{} is linked", self.offices[office].name));
        let link = &mut self.network.links[office];
        link.up = true;
        link.epoch += 1;
        self.call(office, |machine, _, now| match machine {
            Machine::Head(head) => {
                head.link_up(None);
                Ok(())
            }
            Machine::Branch(branch) => branch.link_up(now),
        });
        self.plan_work(office);
        if self.network.fanout {
            for message in self.network.waiting(office) {
                let delay = MS + self.up_to(20 * MS);
                self.at(delay, Event::Hand(message));
            }
        }
    }

    fn unlink(&mut self, link: usize) {
        let end = &self.network.links[link];
        let (was_up, named) = (end.up, end.named);
        self.network.broke(link);
        if !was_up {
            return;
        }
        let name = self.offices[link].name.clone();
        match &mut self.offices[link].machine {
            Some(Machine::Branch(branch)) => branch.link_down(),
            Some(Machine::Head(head)) => head.link_down(None),
            None => {}
        }
        if named && let Some(Machine::Head(head)) = &mut self.offices[0].machine {
            head.link_down(Some(&name));
        }
        let delay = 100 * MS + self.up_to(2 * SECOND);
        self.at(delay, Event::Connect(link));
    }

    fn kill(&mut self, office: usize, how: &str) {
        if self.offices[office].machine.is_none() {
            return;
        }
        self.tell(format!("{} {how}", self.offices[office].name));
        self.crashes += 1;
        self.offices[office].machine = None;
        self.offices[office].disk.reopen();
        self.offices[office].working = false;
        let links = if office == 0 && !self.network.fanout {
            1..self.offices.len()
        } else {
            office..office + 1
        };
        for link in links {
            self.unlink(link);
        }
        self.check(office);
        let delay = self.up_to(5 * SECOND);
        self.at(delay, Event::Restart(office));
    }

    fn restart(&mut self, office: usize) {
        if self.offices[office].machine.is_some() || !self.offices[office].founded {
            return;
        }
        self.offices[office].lives += 1;
        self.offices[office].working = false;
        let session =
            Digest::of(format!("{} {office} {}", self.seed, self.offices[office].lives).as_bytes())
                .0;
        let wiring = if self.network.fanout {
            Wiring::Fanout
        } else {
            Wiring::Direct
        };
        let mut plan = std::mem::take(&mut self.offices[office].plan);
        let loaded = self.with_plan(office, &mut plan, |db, now| {
            if office == 0 {
                run(Head::load(db, wiring, now)).map(|head| Machine::Head(Box::new(head)))
            } else {
                run(Branch::load(db, session)).map(|mut branch| {
                    branch.set_store_and_forward(wiring == Wiring::Fanout);
                    Machine::Branch(Box::new(branch))
                })
            }
        });
        let (dead, hindered) = (
            std::mem::take(&mut plan.dead),
            std::mem::take(&mut plan.hindered),
        );
        let raced = plan.raced.take();
        self.offices[office].plan = plan;
        if let Some(what) = raced {
            self.wrote(office, &what);
        }
        match loaded {
            Ok(machine) => {
                if let Machine::Branch(branch) = &machine {
                    self.offices[office].joined = branch.state().joining.is_none();
                }
                self.offices[office].machine = Some(machine);
                self.tell(format!("{} starts", self.offices[office].name));
                self.check(office);
                self.plan_work(office);
                let delay = self.up_to(500 * MS);
                self.at(delay, Event::Connect(office));
            }
            Err(_) if dead || hindered => {
                self.offices[office].disk.reopen();
                self.at(SECOND, Event::Restart(office));
            }
            Err(error) => self.fail(format!(
                "{} does not start: {error}",
                self.offices[office].name
            )),
        }
    }

    /// The head invites a branch, and the branch sets its database up.
    fn found(&mut self, branch: usize) {
        let name = self.offices[branch].name.clone();
        let code = secret(self.seed, &format!("code of {name}"));
        let expires = Micros(i64::MAX);
        let invited = self.with_database(0, |db, _| run(seats::invite(db, &name, code, expires)));
        invited
            .expect("the head's database works")
            .expect("the branch is new");
        let enrolment = Enrolment {
            identity: self.identity(branch),
            incarnation: Incarnation(Digest::of(format!("{} {name}", self.seed).as_bytes()).0),
            head_name: self.offices[0].name.clone(),
            head_key: SigningKey::from_bytes(&self.identity(0).secret_key)
                .verifying_key()
                .to_bytes(),
            secret: code,
        };
        let founded = self.with_database(branch, |db, _| {
            run(async {
                db.prepare().await?;
                Branch::found(db, &enrolment).await
            })
        });
        founded.expect("the branch is founded");
        self.tell(format!("{name} is invited and joins"));
        self.offices[branch].founded = true;
        self.restart(branch);
    }

    fn restore(&mut self, office: usize) {
        let Some((image, since)) = self.offices[office].image.take() else {
            return;
        };
        self.kill(office, "stops, since its disk is broken");
        self.tell(format!(
            "{} is restored from its backup",
            self.offices[office].name
        ));
        self.offices[office].disk.restore(&image);
        self.offices[office].restored = true;
        self.offices[office].joined = false;
        self.journal.restored(office, since);
    }

    fn is_even(&mut self) -> Result<(), String> {
        for index in 0..self.offices.len() {
            let Some(machine) = self.offices[index].machine.take() else {
                return Err(format!("{} does not run", self.offices[index].name));
            };
            let even = self.with_database(index, |db, _| {
                run(async {
                    db.begin(Purpose::Read).await?;
                    let even = match &machine {
                        Machine::Head(head) => head.is_even(db).await,
                        Machine::Branch(branch) => {
                            Ok(branch.state().connected && branch.is_even(db).await?)
                        }
                    };
                    db.rollback().await?;
                    even
                })
            });
            let state = match &machine {
                Machine::Head(head) => format!("last {}, {:?}", head.last(), head.branches()),
                Machine::Branch(branch) => format!("{:?}", branch.state()),
            };
            self.offices[index].machine = Some(machine);
            match even {
                Ok(true) => {}
                Ok(false) => {
                    return Err(format!("{} is not even: {state}", self.offices[index].name));
                }
                Err(error) => return Err(format!("{}: {error}", self.offices[index].name)),
            }
        }
        Ok(())
    }

    /// Looks whether the company is at rest. Returns whether the run goes on.
    fn quiet(&mut self) -> bool {
        let even = self.is_even();
        match (self.phase, even) {
            (Phase::Storm, _) => return true,
            (Phase::Rest { since } | Phase::Verify { since }, Err(why))
                if self.now > since + REST_BOUND =>
            {
                self.fail(format!("stuck: {why}"));
                return false;
            }
            (Phase::Rest { .. }, Ok(())) => {
                self.tell("the company is at rest");
                if let Err(why) = super::oracle::at_rest(self) {
                    self.fail(why);
                    return false;
                }
                self.verified = None;
                self.phase = Phase::Verify { since: self.now };
                self.call(0, |machine, _, _| {
                    if let Machine::Head(head) = machine {
                        head.verify(false);
                    }
                    Ok(())
                });
                self.plan_work(0);
            }
            (Phase::Verify { since }, _) => {
                if let Some(verification) = self.verified.take() {
                    if let Err(why) = super::oracle::verification(self, &verification) {
                        self.fail(why);
                        return false;
                    }
                    if self.rounds == 0 {
                        return false;
                    }
                    self.rounds -= 1;
                    self.storm(false);
                    return true;
                }
                if self.now > since + REST_BOUND {
                    self.fail("stuck: the comparison does not end".into());
                    return false;
                }
            }
            (Phase::Rest { .. }, Err(_)) => {}
        }
        self.at(SECOND, Event::Quiet);
        true
    }
}

fn short(incarnation: &Incarnation) -> String {
    incarnation.to_string()[..6].to_owned()
}
