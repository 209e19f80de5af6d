//! A company at work: writers and readers at every office, while everything that may break is broken.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use branchline_testkit::servers::{RabbitMq, free_port, postgres};
use tempfile::TempDir;

use crate::journal::{self, Journal, Reader, Writer};
use crate::office::{Office, settle, wait_until};
use crate::sql::{Db, as_user, tool};

const PASSWORD: &str = "Db-s3cret-47";
const SOON: Duration = Duration::from_secs(60);
const CHINOOK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../../shared/data/chinook.sql"
);
/// pgbench's own transaction keeps these sums equal.
const PGBENCH: &str = "SELECT 'accounts', (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches) \
     UNION ALL SELECT 'tellers', (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches)";

/// An empty PostgreSQL database of an ordinary user, as offices have them.
fn database(user: &str) -> String {
    let server = postgres();
    let url = server.fresh_database();
    let name = url.rsplit('/').next().unwrap();
    let user = format!("{user}_{}", std::process::id());
    let make = format!(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{user}') \
         THEN CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'; END IF; END $$"
    );
    server.sql(
        "postgres",
        &[&make, &format!("ALTER DATABASE {name} OWNER TO {user}")],
    );
    as_user(&url, &user, PASSWORD)
}

fn load_sample(url: &str) {
    let psql = postgres().bin("psql");
    let arguments = |more: [&str; 2]| {
        let mut all = vec![
            "-X".into(),
            "-q".into(),
            "-v".into(),
            "ON_ERROR_STOP=1".into(),
            "-d".into(),
            url.to_owned(),
        ];
        all.extend(more.map(String::from));
        all
    };
    let generated = "CREATE TABLE artist (artist_id integer PRIMARY KEY, name varchar(120)); \
         CREATE TABLE album (album_id integer PRIMARY KEY, title varchar(160) NOT NULL, artist_id integer NOT NULL REFERENCES artist); \
         INSERT INTO artist SELECT n, 'artist ' || n FROM generate_series(1, 275) n; \
         INSERT INTO album SELECT n, 'album ' || n, 1 + n % 275 FROM generate_series(1, 4000) n";
    let words = if Path::new(CHINOOK).exists() {
        arguments(["-f", CHINOOK])
    } else {
        arguments(["-c", generated])
    };
    tool(&psql, &words.iter().map(String::as_str).collect::<Vec<_>>());
}

/// pgbench at work at the head. It is allowed no failure: the application must not notice sync (P8).
struct Bench(Child);

impl Bench {
    fn program() -> PathBuf {
        postgres().bin("pgbench")
    }

    fn prepare(url: &str) {
        tool(&Self::program(), &["-i", "-q", "-s", "1", "-d", url]);
    }

    fn start(url: &str, rate: u32, seconds: u64, seed: u64) -> Self {
        let mut command = Command::new(Self::program());
        command.args([
            "-n",
            "-c",
            "2",
            "-R",
            &rate.to_string(),
            "-T",
            &seconds.to_string(),
        ]);
        command.args([&format!("--random-seed={seed}"), "-d", url]);
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    #[track_caller]
    fn finish(self) {
        let output = self.0.wait_with_output().unwrap();
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "pgbench: {said}{errors}");
        let failed = said
            .lines()
            .find(|line| line.contains("failed transactions"));
        assert!(
            failed.is_none_or(|line| line.contains(": 0 ")),
            "pgbench: {said}{errors}"
        );
    }
}

/// The offices of one company, and who works in them.
struct Company {
    head: Office,
    branches: Vec<Office>,
    folder: TempDir,
    began: Instant,
}

struct Work {
    writers: Vec<Writer>,
    readers: Vec<Reader>,
}

impl Company {
    fn new(with_pgbench: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let url = database("head");
        load_sample(&url);
        if with_pgbench {
            Bench::prepare(&url);
        }
        let mut db = Db::open(&url);
        db.transaction(&journal::schema(4)).unwrap();
        let head = Office::new(folder.path(), "HO", &url);
        let branches = vec![
            Office::new(folder.path(), "b1", &database("branch")),
            Office::sqlite(folder.path(), "b2"),
            Office::sqlite(folder.path(), "b3"),
        ];
        for office in std::iter::once(&head).chain(&branches) {
            office.hides(PASSWORD);
        }
        Self {
            head,
            branches,
            folder,
            began: Instant::now(),
        }
    }

    fn tell(&self, what: &str) {
        println!("{:5.1} s: {what}", self.began.elapsed().as_secs_f64());
    }

    fn all(&self) -> impl Iterator<Item = &Office> {
        std::iter::once(&self.head).chain(&self.branches)
    }

    /// Joins all branches while the head runs, then runs them.
    fn open(&mut self, codes: &[String]) {
        self.head.run();
        for (branch, code) in self.branches.iter_mut().zip(codes) {
            let document = branch.join(code);
            println!(
                "{:?}: {} joined, {} rows",
                self.began.elapsed(),
                branch.name,
                document["rows"]
            );
            branch.run();
        }
        let branches: Vec<&Office> = self.branches.iter().collect();
        settle(&self.head, &branches, SOON);
    }

    fn start_work(&self, seed: u64, pause: Duration, queries: &[&str]) -> Work {
        self.tell(&format!("work begins, seed {seed}"));
        let writers = (0..)
            .zip(self.all())
            .map(|(number, office)| Writer::start(&office.database, number, seed + number, pause));
        let readers = self
            .all()
            .map(|office| Reader::start(&office.name, &office.database, queries));
        Work {
            writers: writers.collect(),
            readers: readers.collect(),
        }
    }

    /// Ends the work, and holds every office to every journal.
    #[track_caller]
    fn close(&mut self, work: Work) {
        let journals: Vec<Journal> = work.writers.into_iter().map(Writer::stop).collect();
        let commits: Vec<u64> = journals.iter().map(|journal| journal.commits).collect();
        self.tell(&format!("work ends, commits: {commits:?}"));
        let branches: Vec<&Office> = self.branches.iter().collect();
        settle(&self.head, &branches, SOON);
        self.tell("all are equal");
        work.readers.into_iter().for_each(Reader::stop);
        for office in self.all() {
            let mut db = Db::open(&office.database);
            for journal in &journals {
                journal.check(&office.name, &mut db);
            }
            journal::check_shared(&office.name, &mut db, &journals);
        }
        for office in &mut self.branches {
            office.stop();
        }
        self.head.stop();
    }
}

/// A seed of one's own by the environment, to reproduce a run.
pub fn seed() -> u64 {
    std::env::var("BRANCHLINE_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::random::<u32>().into())
}

#[test]
fn a_company_over_rabbitmq_survives_a_lost_broker_killed_offices_and_emptied_queues() {
    let seed = seed();
    let mut broker = RabbitMq::start();
    broker.add_user("ho", "Ho-s3cret-11", "/", ".*", ".*", ".*");
    let mut company = Company::new(true);
    company.head.hides("Ho-s3cret-11");
    let warned = company.head.init(
        "*,!pgbench_history",
        &["--amqp", &broker.url("ho", "Ho-s3cret-11", "/")],
    );
    println!("init: {warned}");
    let codes: Vec<String> = company
        .branches
        .iter()
        .map(|branch| invite_with_own_user(&company.head, &broker, &branch.name))
        .collect();
    company.open(&codes);

    let bench = Bench::start(&company.head.database, 60, 25, seed);
    let work = company.start_work(
        seed,
        Duration::from_millis(40),
        &[journal::TALLY, journal::ACCOUNTS, PGBENCH],
    );
    let pause = || std::thread::sleep(Duration::from_secs(2));
    pause();
    company.tell("the broker goes");
    broker.stop();
    pause();
    company.branches[0].kill();
    company.branches[0].run();
    pause();
    broker.start_again();
    company.tell("the broker is back");
    pause();
    company.tell("a branch and the head are killed");
    company.branches[1].kill();
    company.branches[1].run();
    company.head.kill();
    pause();
    company.head.run();
    pause();
    company.tell("queues are emptied");
    for name in ["HO", "b1", "b2", "b3"] {
        broker.ctl(&["purge_queue", &format!("branchline.{name}")]);
    }
    pause();
    company.tell("a queue is deleted");
    broker.ctl(&["delete_queue", "branchline.b3"]);
    bench.finish();
    company.tell("pgbench is done");
    company.close(work);
}

/// Makes the branch's broker user with the rights that `invite` prints, and no others.
fn invite_with_own_user(head: &Office, broker: &RabbitMq, branch: &str) -> String {
    let (user, password) = (format!("user-{branch}"), format!("Mq-s3cret-{branch}"));
    head.hides(&password);
    let ran = head
        .cmd(&[
            "invite",
            branch,
            "--amqp",
            &broker.url(&user, &password, "/"),
        ])
        .expect(0);
    let rights = ran
        .err
        .lines()
        .find(|line| line.contains("set_permissions"))
        .expect("invite prints the rights");
    let quoted: Vec<&str> = rights.split('\'').skip(1).step_by(2).collect();
    let [_, _, configure, write, read] = quoted[..] else {
        panic!("rights: {rights}")
    };
    broker.add_user(&user, &password, "/", configure, write, read);
    ran.out.trim().into()
}

#[test]
fn a_company_without_a_broker_survives_killed_offices() {
    let seed = seed();
    let mut company = Company::new(false);
    let listen = format!("127.0.0.1:{}", free_port());
    company.head.init("*", &["--listen", &listen]);
    let codes: Vec<String> = company
        .branches
        .iter()
        .map(|branch| company.head.invite(&branch.name, &[]))
        .collect();
    company.open(&codes);
    let text = std::fs::read_to_string(&company.branches[0].config).unwrap();
    assert!(
        text.contains("wss://") && text.contains("pin = "),
        "TLS with a pinned certificate: {text}"
    );

    let work = company.start_work(
        seed,
        Duration::from_millis(40),
        &[journal::TALLY, journal::ACCOUNTS],
    );
    let pause = || std::thread::sleep(Duration::from_millis(1500));
    pause();
    company.head.kill();
    pause();
    company.head.run();
    pause();
    company.branches[2].kill();
    pause();
    company.branches[2].run();
    company.branches[0].kill();
    company.branches[0].run();
    company.head.stop();
    company.head.run();
    pause();
    company.close(work);
    assert!(company.folder.path().exists());
}

#[test]
fn a_broker_that_forgot_everything_is_set_up_again_by_the_head() {
    let folder = TempDir::new().unwrap();
    let mut broker = RabbitMq::start();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run("CREATE TABLE item (id integer PRIMARY KEY, name text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("item", &["--amqp", &broker.admin_url()]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let code = head.invite("b1", &[]);
    head.run();
    branch.join(&code);
    branch.run();
    let mut at_branch = Db::open(&branch.database);
    broker.kill();
    at_head.run("INSERT INTO item VALUES (1, 'head')");
    at_branch.run("INSERT INTO item VALUES (2, 'branch')");
    wait_until("the branch knows", SOON, || {
        let status = branch.status();
        if status["transport"]["connected"] == false {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let ran = branch
        .cmd(&["sync", "--timeout", "2"])
        .expect(3)
        .says(&["nothing is lost", "waiting here"]);
    println!("{}", ran.err.trim());
    assert!(
        !ran.err.contains("0 captured writes and 0 unanswered"),
        "it names what waits: {}",
        ran.err
    );
    branch.stop();
    branch
        .cmd(&["sync", "--timeout", "2"])
        .expect(3)
        .says(&["nothing is lost", "127.0.0.1"]);
    branch.run();
    broker.forget_everything();
    broker.start_again();
    settle(&head, &[&branch], SOON);
    assert_eq!(at_head.one("SELECT count(*) FROM item"), "2");
    assert_eq!(at_branch.one("SELECT count(*) FROM item"), "2");
    branch.stop();
    head.stop();
}
