//! Everything that may break breaks, at random moments and several at a time: offices, database servers and the broker
//! are killed, the broker forgets everything, links are cut and freeze, a disk is full. Writers go on. At the end all
//! offices have every acknowledged write once.
//!
//! `BRANCHLINE_TORTURE_SECONDS` sets how long it lasts, `BRANCHLINE_TEST_SEED` what breaks.

use std::time::{Duration, Instant};

use branchline_testkit::cable::Cable;
use branchline_testkit::servers::{MariaDb, Postgres, RabbitMq};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::company::seed;
use crate::office::{Office, settle, wait_until};
use crate::sql::Db;
use disk::SmallDisk;
use ledger::{Keeper, Ledger, Watcher};

mod disk;
mod ledger;

const DEFAULT_SECONDS: u64 = 60;
/// How long the offices may take to become equal when everything works again.
const PATIENCE: Duration = Duration::from_secs(120);
/// At most so much is broken at a time.
const BROKEN_AT_ONCE: usize = 3;
/// What `run` exits with where its database cannot be reached at the start; a service manager starts it again.
const NO_DATABASE: i32 = 4;

/// What can be broken, by number of the office where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Office(usize),
    Server(usize),
    Broker,
    Cut(usize),
    Frozen(usize),
    DiskFull,
}

/// A database server of its own.
enum Server {
    Postgres(Postgres),
    Maria(MariaDb),
}

impl Server {
    fn kill(&mut self) {
        match self {
            Self::Postgres(server) => server.kill(),
            Self::Maria(server) => server.kill(),
        }
    }

    fn start_again(&mut self) {
        match self {
            Self::Postgres(server) => server.start_again(),
            Self::Maria(server) => server.start_again(),
        }
    }
}

/// The head, which is office 0, and three branches. Dropped in this order.
struct World {
    offices: Vec<Office>,
    cables: Vec<Cable>,
    broker: RabbitMq,
    servers: Vec<Server>,
    disk: Option<SmallDisk>,
    broken: Vec<Fault>,
    began: Instant,
    _folder: TempDir,
}

fn seconds() -> u64 {
    std::env::var("BRANCHLINE_TORTURE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_SECONDS)
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (broker, at_head, at_first, at_second) = std::thread::scope(|scope| {
            let broker = scope.spawn(RabbitMq::start);
            let first = scope.spawn(Postgres::start);
            let second = scope.spawn(MariaDb::start);
            let head = Postgres::start();
            (
                broker.join().unwrap(),
                head,
                first.join().unwrap(),
                second.join().unwrap(),
            )
        });
        let disk = SmallDisk::mount(32 + seconds() / 4);
        let place = disk
            .as_ref()
            .map_or(folder.path(), |disk| disk.path.as_path());
        let file = format!("sqlite:{}", place.join("b3.db").display());
        let offices = vec![
            Office::new(folder.path(), "HO", &at_head.fresh_database()),
            Office::new(folder.path(), "b1", &at_first.fresh_database()),
            Office::new(folder.path(), "b2", &at_second.fresh_database()),
            Office::new(folder.path(), "b3", &file),
        ];
        let cables = offices.iter().map(|_| Cable::lay(broker.port())).collect();
        Self {
            offices,
            cables,
            broker,
            servers: vec![
                Server::Postgres(at_head),
                Server::Postgres(at_first),
                Server::Maria(at_second),
            ],
            disk,
            broken: Vec::new(),
            began: Instant::now(),
            _folder: folder,
        }
    }

    fn tell(&self, what: &str) {
        println!("{:6.1} s: {what}", self.began.elapsed().as_secs_f64());
    }

    /// The head, the plan, and the branches joined; all run.
    fn open(&mut self) {
        Db::open(&self.offices[0].database)
            .transaction(&ledger::schema(self.offices.len()))
            .unwrap();
        let urls: Vec<String> = self
            .cables
            .iter()
            .map(|cable| format!("amqp://guest:guest@127.0.0.1:{}/%2f", cable.port))
            .collect();
        self.offices[0].init("*", &["--amqp", &urls[0]]);
        let config = self.offices[0].config.clone();
        let mut plan = std::fs::read_to_string(&config).unwrap();
        plan.push_str("\n[tables.counter]\ncounters = [\"value\"]\n");
        std::fs::write(&config, plan).unwrap();
        let names: Vec<String> = self.offices.iter().map(|one| one.name.clone()).collect();
        let codes: Vec<String> = (1..self.offices.len())
            .map(|at| self.offices[0].invite(&names[at], &["--amqp", &urls[at]]))
            .collect();
        self.offices[0].run();
        for (office, code) in self.offices.iter_mut().skip(1).zip(&codes) {
            office.join(code);
            office.run();
        }
        self.tell("all have joined");
    }

    fn choose(&self, random: &mut StdRng) -> Fault {
        let office = random.random_range(0..self.offices.len());
        match random.random_range(0..100) {
            0..30 => Fault::Office(office),
            30..50 => Fault::Server(random.random_range(0..self.servers.len())),
            50..65 => Fault::Broker,
            65..80 => Fault::Cut(office),
            80..90 => Fault::Frozen(office),
            _ => Fault::DiskFull,
        }
    }

    fn wreck(&mut self, fault: Fault, random: &mut StdRng) {
        let same_cable = |other: &Fault| match (fault, *other) {
            (Fault::Cut(a) | Fault::Frozen(a), Fault::Cut(b) | Fault::Frozen(b)) => a == b,
            (a, b) => a == b,
        };
        if self.broken.iter().any(same_cable) {
            return;
        }
        match fault {
            Fault::Office(at) => {
                // It may have ended by itself a moment ago, for want of its database.
                if self.offices[at].ended().is_none() {
                    self.offices[at].kill();
                }
            }
            Fault::Server(at) => self.servers[at].kill(),
            Fault::Broker => {
                self.broker.kill();
                if random.random_bool(0.5) {
                    self.broker.forget_everything();
                    self.tell("the broker's data are deleted");
                }
            }
            Fault::Cut(at) => self.cables[at].cut(),
            Fault::Frozen(at) => self.cables[at].freeze(),
            Fault::DiskFull => match &self.disk {
                Some(disk) => disk.fill(),
                None => return,
            },
        }
        self.broken.push(fault);
        self.tell(&format!("broken: {:?}", self.broken));
    }

    fn heal(&mut self, at: usize) {
        let fault = self.broken.remove(at);
        match fault {
            Fault::Office(at) => self.offices[at].spawn(),
            Fault::Server(at) => self.servers[at].start_again(),
            Fault::Broker => self.broker.start_again(),
            Fault::Cut(at) | Fault::Frozen(at) => self.cables[at].heal(),
            Fault::DiskFull => {
                if let Some(disk) = &self.disk {
                    disk.empty();
                }
            }
        }
        self.tell(&format!("healed {fault:?}, broken: {:?}", self.broken));
    }

    /// What a service manager does: an office that ended for want of its database is started again.
    fn start_what_ended(&mut self) {
        for at in 0..self.offices.len() {
            if self.broken.contains(&Fault::Office(at)) {
                continue;
            }
            if let Some(code) = self.offices[at].ended() {
                let office = &self.offices[at];
                assert_eq!(
                    code,
                    NO_DATABASE,
                    "{} ended by itself: {}",
                    office.name,
                    office.log()
                );
                self.offices[at].spawn();
            }
        }
    }

    fn torment(&mut self, random: &mut StdRng, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            if !self.broken.is_empty()
                && (self.broken.len() >= BROKEN_AT_ONCE || random.random_bool(0.5))
            {
                self.heal(random.random_range(0..self.broken.len()));
            } else {
                let fault = self.choose(random);
                self.wreck(fault, random);
            }
            let pause = Duration::from_millis(random.random_range(50..3000));
            let until = Instant::now() + pause;
            while Instant::now() < until {
                self.start_what_ended();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        while !self.broken.is_empty() {
            self.heal(0);
        }
        self.tell("everything works again");
    }

    /// Waits until all offices answer and are equal.
    #[track_caller]
    fn settle(&mut self) {
        wait_until("all offices answer", PATIENCE, || {
            self.start_what_ended();
            let silent = self
                .offices
                .iter()
                .find(|office| office.cmd(&["status", "--json"]).code != 0);
            silent.map_or(Ok(()), |office| Err(office.name.clone()))
        });
        let branches: Vec<&Office> = self.offices.iter().skip(1).collect();
        settle(&self.offices[0], &branches, PATIENCE);
        self.tell("all are equal");
    }
}

#[test]
fn a_company_survives_everything_at_random() {
    let seed = seed();
    println!("seed {seed}, {} s", seconds());
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    world.open();
    let keepers: Vec<Keeper> = (0..)
        .zip(&world.offices)
        .map(|(number, office)| Keeper::start(&office.database, number, seed + number))
        .collect();
    let watchers: Vec<Watcher> = world
        .offices
        .iter()
        .map(|office| Watcher::start(&office.name, &office.database))
        .collect();
    world.torment(&mut random, Duration::from_secs(seconds()));
    let ledgers: Vec<Ledger> = keepers.into_iter().map(Keeper::stop).collect();
    for ledger in &ledgers {
        world.tell(&ledger.to_string());
    }
    world.settle();
    watchers.into_iter().for_each(Watcher::stop);
    for office in &world.offices {
        ledger::check(&office.name, &mut Db::open(&office.database), &ledgers);
        assert_eq!(office.status()["holds"], 0, "holds at {}", office.name);
    }
    for office in &mut world.offices {
        office.stop();
    }
}
