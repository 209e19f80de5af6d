//! An office as a process of its machine: how it starts after a mishap, whom it lets in, what it leaves in the file
//! system, and how it ends.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use branchline_testkit::servers::{free_port, mariadb, postgres};
use serde_json::Value;
use tempfile::TempDir;

use crate::items::head;
use crate::office::{BINARY, Office, wait_until};
use crate::sql::{Db, as_user};

const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "Maria-s3cret-5";

/// The URL of this MariaDB database for a new user with the rights that docs/operating.md names, and no others.
fn by_the_book(db: &mut Db, url: &str, user: &str) -> String {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let grant = docs
        .lines()
        .find(|line| line.ends_with("ON shop.* TO branchline@'%';"))
        .unwrap();
    let name = url.rsplit('/').next().unwrap();
    if mariadb().is_mysql() {
        // The page says so: its binary log is on by default.
        db.run("SET GLOBAL log_bin_trust_function_creators = 1");
    }
    let user = format!("{user}_{}", std::process::id());
    db.run(format!("CREATE USER {user}@'%' IDENTIFIED BY '{PASSWORD}'"));
    let grant = grant
        .trim_end_matches(';')
        .replace("shop.*", &format!("{name}.*"));
    db.run(grant.replace("branchline@", &format!("{user}@")));
    as_user(url, &user, PASSWORD)
}

#[track_caller]
fn wait_for_its_address(office: &Office) {
    wait_until("it runs", SOON, || {
        let here = office.beside("api").exists();
        here.then_some(()).ok_or_else(|| office.log())
    });
}

#[test]
fn an_office_waits_for_a_database_that_a_vanished_machine_still_owns() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut vanished = Db::open(&url);
    vanished.rows("SELECT 1 FROM pg_advisory_lock(7091190276324713829)");
    head.spawn();
    wait_until("it tells", SOON, || {
        let log = head.log();
        let told = log.contains("another process owns this database");
        told.then_some(()).ok_or(log)
    });
    assert_eq!(head.ended(), None, "{}", head.log());
    drop(vanished);
    wait_for_its_address(&head);
    head.stop();
}

#[test]
fn an_office_that_waits_for_its_database_can_be_stopped() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut owner = Db::open(&url);
    owner.rows("SELECT 1 FROM pg_advisory_lock(7091190276324713829)");
    head.spawn();
    wait_until("it tells", SOON, || {
        let log = head.log();
        let told = log.contains("another process owns this database");
        told.then_some(()).ok_or(log)
    });
    head.stop();
}

#[test]
fn the_rights_that_the_documentation_names_are_enough_to_follow_the_heads_tables() {
    let folder = TempDir::new().unwrap();
    let head_url = postgres().fresh_database();
    let mut at_head = Db::open(&head_url);
    at_head.run(
        "CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'one')",
    );
    let mut head = Office::new(folder.path(), "HO", &head_url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    let code = head.invite("b1", &[]);
    head.run();
    let url = mariadb().fresh_database();
    let mut db = Db::open(&url);
    let mut branch = Office::new(folder.path(), "b1", &by_the_book(&mut db, &url, "follower"));
    branch.hides(PASSWORD);
    branch.join(&code);
    branch.run();
    at_head.run("ALTER TABLE item ALTER name TYPE varchar(20)");
    let declared = "SELECT COLUMN_TYPE FROM information_schema.COLUMNS
                    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'item' AND COLUMN_NAME = 'name'";
    wait_until("the column is what it is at the head", SOON, || {
        let kind = db.one(declared);
        (kind == "varchar(20)")
            .then_some(())
            .ok_or_else(|| kind + &branch.log())
    });
    branch.stop();
    head.stop();
}

/// A server that hears nothing from the owner of a database for a minute gives it to others.
#[test]
fn an_idle_office_is_heard_of_by_its_server() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    head.run();
    let url = mariadb().fresh_database();
    let mut db = Db::open(&url);
    let mut branch = Office::new(folder.path(), "b1", &by_the_book(&mut db, &url, "idle"));
    branch.hides(PASSWORD);
    branch.join(&code);
    branch.edit("mode = \"live\"", "mode = \"manual\"");
    branch.run();
    let (time, lock) = match mariadb().is_mysql() {
        true => ("1000 * TIME", "LEFT(SHA2(DATABASE(), 256), 40)"),
        false => ("TIME_MS", "MD5(DATABASE())"),
    };
    let silence = format!(
        "SELECT {time} FROM information_schema.PROCESSLIST WHERE ID = IS_USED_LOCK(CONCAT('branchline:', {lock}))"
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        let milliseconds: f64 = db.one(&silence).parse().unwrap();
        assert!(milliseconds < 8000.0, "silent for {milliseconds} ms");
        std::thread::sleep(Duration::from_millis(500));
    }
    branch.stop();
    head.stop();
}

#[test]
fn a_full_disk_at_the_start_is_no_wrong_configuration() {
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    symlink("/dev/full", head.beside("token.new")).unwrap();
    head.cmd(&["run"]).expect(4).says(&["token", "space"]);
}

#[test]
fn who_waits_for_an_office_that_is_stopped_is_told_so() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    head.run();
    Office::sqlite(folder.path(), "b1").join(&code);
    // It waits for the branch, which is away.
    let said = folder.path().join("said");
    let mut sync = Command::new(BINARY)
        .arg("--config")
        .arg(&head.config)
        .args(["sync", "--timeout", "100"])
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&said).unwrap();
    wait_until("it tells what it waits for", SOON, || {
        let told = said().contains("syncing: 0 captured writes and 0 unanswered");
        told.then_some(()).ok_or_else(said)
    });
    head.stop();
    assert_eq!(sync.wait().unwrap().code(), Some(3), "{}", said());
    assert!(said().contains("the office was stopped"), "{}", said());
}

fn mode(path: &Path) -> u32 {
    let file =
        std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.permissions().mode() & 0o777
}

#[test]
fn files_that_are_made_for_an_office_are_its_owners_alone() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let of_application = folder.path().join("HO.db");
    let before = mode(&of_application);
    let code = head.invite("b1", &[]);
    head.run();
    let branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    let made = folder.path().join("b1.db");
    for path in [
        made.clone(),
        folder.path().join("b1.db.branchline-lock"),
        branch.beside("lock"),
    ] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(mode(&of_application), before, "it is the application's");
    head.stop();
    let told = || {
        branch
            .cmd(&["doctor", "--json"])
            .expect(0)
            .document()
            .to_string()
    };
    let advice = format!("chmod o-rwx {}", made.display());
    assert!(!told().contains(&advice));
    std::fs::set_permissions(&made, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(told().contains(&advice));
}

#[test]
fn web_pages_are_kept_out_and_rows_are_shown_to_the_owner_only() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    head.run();
    let api = head.api();
    let status = |request: &[&str]| {
        let (path, flags) = request.split_last().unwrap();
        let mut command = Command::new("curl");
        command.args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "30",
        ]);
        let ran = command
            .args(flags)
            .arg(format!("http://{api}{path}"))
            .output();
        String::from_utf8(ran.unwrap().stdout).unwrap()
    };
    for host in ["127.evil.example", "localhost.evil.example", "evil.example"] {
        let host = format!("Host: {host}");
        assert_eq!(status(&["-H", &host, "/api/status"]), "403", "{host}");
    }
    assert_eq!(status(&["-H", "Host: localhost", "/api/status"]), "200");
    for path in ["/api/verify", "/api/repair", "/api/reload/b1", "/api/stop"] {
        assert_eq!(status(&["-X", "POST", path]), "401", "{path}");
    }
    head.cmd(&["verify"]).expect(0);
    head.stop();
}

/// A command with these values in its environment, and no others of ours.
fn with_environment(values: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    for name in [
        "BRANCHLINE_CONFIG",
        "BRANCHLINE_DATABASE",
        "BRANCHLINE_AMQP",
    ] {
        command.env_remove(name);
    }
    command.envs(values.iter().copied()).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_environment_speaks_where_the_arguments_do_not() {
    let folder = TempDir::new().unwrap();
    let database = format!("sqlite:{}", folder.path().join("HO.db").display());
    Db::open(&format!("sqlite:{}", folder.path().join("HO.db").display()))
        .run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)");
    let config = folder.path().join("HO.toml").display().to_string();
    let nowhere = "amqp://u:Env-s3cret@127.0.0.1:1/v";
    let listen = format!("127.0.0.1:{}", free_port());
    let office = [
        ("BRANCHLINE_CONFIG", config.as_str()),
        ("BRANCHLINE_DATABASE", database.as_str()),
        ("BRANCHLINE_AMQP", nowhere),
    ];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = with_environment(&office, &["init", "--tables", "*"]);
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(3), "{said}");
    assert!(
        said.contains("127.0.0.1") && !said.contains("Env-s3cret"),
        "{said}"
    );
    // Said as an argument, it goes before the environment.
    let ran = with_environment(&office, &["init", "--tables", "*", "--listen", &listen]);
    assert_eq!(ran.status.code(), Some(0), "{}", text(&ran.stderr));
    let written = std::fs::read_to_string(&config).unwrap();
    assert!(
        written.contains(&listen) && !written.contains("amqp ="),
        "{written}"
    );
    let ran = with_environment(&office, &["status", "--json"]);
    assert_eq!(ran.status.code(), Some(0), "{}", text(&ran.stderr));
    let status: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(status["office"], "HO");
    let elsewhere = [office[0], ("BRANCHLINE_DATABASE", "sqlite:/nowhere/x.db")];
    let ran = with_environment(&elsewhere, &["status"]);
    assert_eq!(ran.status.code(), Some(4), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("/nowhere/x.db"));
}

#[test]
fn a_database_that_an_office_has_left_is_not_set_up_again_by_looking() {
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    std::fs::write(head.beside("branch"), "with a password").unwrap();
    head.cmd(&["leave", "--keep-config"]).expect(0);
    let ours = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%branchline%'";
    for command in ["status", "doctor", "run", "sync"] {
        head.cmd(&[command])
            .expect(2)
            .says(&["belongs to no office"]);
        assert_eq!(Db::open(&head.database).one(ours), "0", "{command}");
    }
    head.cmd(&["leave"]).expect(0);
    for name in ["branch", "key.pem", "token"] {
        assert!(!head.beside(name).exists(), "{name}");
    }
}

#[test]
fn the_demo_proves_that_all_offices_are_equal() {
    let folder = TempDir::new().unwrap();
    let ran = Command::new(BINARY)
        .args(["demo", "--once", "--branches", "2", "--json"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(0), "{said}");
    assert!(
        said.contains("BO2 is cut") && said.contains("BO2 is healed"),
        "{said}"
    );
    let proof: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(proof["equal"], true, "{proof}");
    assert_eq!(
        proof["branches"].as_array().map(Vec::len),
        Some(2),
        "{proof}"
    );
    assert!(proof["transactions"].as_u64() > Some(0), "{proof}");
    let sales = proof["sales_at_each_office"].as_array().unwrap();
    assert_eq!(sales.len(), 3, "{proof}");
    assert!(sales.iter().all(|count| count == &sales[0]), "{proof}");
    assert!(sales[0].as_u64() > Some(0), "{proof}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_ends_with_its_proof_when_it_is_told_to() {
    let folder = TempDir::new().unwrap();
    let said = folder.path().join("said");
    let mut demo = Command::new(BINARY)
        .args(["demo", "--branches", "1"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let text = || std::fs::read_to_string(&said).unwrap();
    wait_until("it plays", SOON, || {
        let plays = text().contains("All branches have joined");
        plays.then_some(()).ok_or_else(text)
    });
    let folders = std::fs::read_dir(folder.path()).unwrap();
    let made = folders
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir());
    assert_eq!(mode(&made.unwrap()), 0o700);
    let stop = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status();
    assert!(stop.unwrap().success());
    let code = wait_until("it ends", SOON, || {
        demo.try_wait().unwrap().ok_or_else(text)
    });
    assert_eq!(code.code(), Some(0), "{}", text());
    assert!(text().contains("are all offices equal"), "{}", text());
}
