//! How commands behave towards shells, scripts and machines in trouble.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres};
use serde_json::Value;
use tempfile::TempDir;

use crate::items::head;
use crate::office::{BINARY, Office, wait_until};
use crate::sql::Db;

const SOON: Duration = Duration::from_secs(30);

/// The status, the header `x-exit-code` and the body of an answer; the request ends with its path.
fn curl(address: &str, request: &[&str]) -> (u16, Option<String>, String) {
    let (path, flags) = request.split_last().unwrap();
    let mut command = Command::new("curl");
    command.args(["-s", "-i", "--max-time", "30"]).args(flags);
    let ran = command.arg(format!("http://{address}{path}")).output();
    let text = String::from_utf8(ran.unwrap().stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("it answers");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let exit = head
        .lines()
        .find_map(|line| line.strip_prefix("x-exit-code: "));
    (status, exit.map(Into::into), body.into())
}

fn shell(line: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", line]).stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn a_reader_that_goes_away_is_no_panic_and_an_answer_that_is_lost_is_a_failure() {
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    let file = head.config.display();
    let ran = shell(&format!(
        "{BINARY} --config {file} status | true; exit ${{PIPESTATUS[0]}}"
    ));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(0), "{said}");
    assert_eq!(said, "");
    let ran = shell(&format!("{BINARY} --config {file} invite b1 > /dev/full"));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("standard output"), "{said}");
    let ran = shell(&format!("{BINARY} --config {file} invite b1 2>&-"));
    assert_eq!(ran.status.code(), Some(0));
}

#[test]
fn an_office_whose_log_cannot_be_written_goes_on() {
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    let mut running = Command::new(BINARY)
        .arg("--config")
        .arg(&head.config)
        .arg("run")
        .stdin(Stdio::null())
        .stderr(
            std::fs::File::options()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
        .spawn()
        .unwrap();
    wait_until("it runs", SOON, || {
        let ended = running.try_wait().unwrap();
        assert_eq!(ended, None, "it ended by itself");
        let here = head.beside("api").exists();
        here.then_some(()).ok_or_else(|| "no address".into())
    });
    head.cmd(&["invite", "b1"]).expect(0);
    head.cmd(&["status"]).expect(0);
    let stop = Command::new("kill").arg(running.id().to_string()).status();
    assert!(stop.unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn an_address_that_is_in_use_is_told() {
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    head.edit("127.0.0.1:0", &address.to_string());
    head.cmd(&["run"])
        .expect(2)
        .says(&["api.listen", &address.to_string(), "in use"]);
    let dir = folder.path().join("demo");
    let port = address.port().to_string();
    let dir = dir.to_str().unwrap();
    head.cmd(&["demo", "--once", "--dir", dir, "--port", &port])
        .expect(2)
        .says(&["--port", &port, "in use"]);
}

#[test]
fn scripts_get_every_refusal_as_a_document_with_its_exit_code() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    head.run();
    let api = head.api();
    let refused = |request: &[&str], status: u16| {
        let (got, exit, body) = curl(&api, request);
        assert_eq!(got, status, "{request:?}: {body}");
        assert_eq!(exit.as_deref(), Some("2"), "{request:?}: {body}");
        let document: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(document["code"], 2, "{document}");
        let told = document["error"].as_str().unwrap();
        assert!(!told.is_empty(), "{request:?}");
    };
    refused(&["/api/nowhere"], 404);
    refused(&["-X", "GET", "/api/sync"], 405);
    refused(&["-X", "POST", "/api/sync?timeout=soon"], 400);
    refused(&["-X", "POST", "/api/leave"], 401);
    refused(
        &["-X", "POST", "-H", "Origin: http://a.example", "/api/sync"],
        403,
    );
    let token = std::fs::read_to_string(head.beside("token")).unwrap();
    let bearer = format!("Authorization: Bearer {token}");
    let json = "Content-Type: application/json";
    let settle = [
        "-X",
        "POST",
        "-H",
        &bearer,
        "-H",
        json,
        "-d",
        "{}",
        "/api/settle",
    ];
    refused(&settle, 422);
    head.stop();
}

#[test]
fn a_join_with_another_database_leaves_the_configuration_alone() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    head.run();
    let branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    let before = std::fs::read_to_string(&branch.config).unwrap();
    let other = format!("sqlite:{}", folder.path().join("other.db").display());
    branch
        .feed(&code, &["join", "-", "--database", &other])
        .expect(2)
        .says(&["b1.toml", "another database", "b1.db", "leave"]);
    assert_eq!(std::fs::read_to_string(&branch.config).unwrap(), before);
    assert!(!folder.path().join("other.db").exists());
    branch.join(&code);
    head.stop();
}

#[test]
fn a_join_tells_what_it_waits_for() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    let mut branch = Office::sqlite(folder.path(), "b1");
    let database = branch.database.clone();
    branch.spawn_with(&["join", "-", "--database", &database], &code);
    wait_until("it tells", SOON, || {
        let log = branch.log();
        let told = log.contains("waiting for the head") && log.contains("127.0.0.1");
        told.then_some(()).ok_or(log)
    });
    head.run();
    let code = wait_until("it has joined", SOON, || {
        branch.ended().ok_or_else(|| branch.log())
    });
    assert_eq!(code, 0, "{}", branch.log());
    head.stop();
}

#[test]
fn an_init_that_fails_leaves_no_file() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    head.run();
    let branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    let other = Office::new(folder.path(), "other", &branch.database);
    let init = |listen: &str| {
        let database = other.database.as_str();
        let flags = ["init", "--database", database, "--tables", "*", "--listen"];
        other.cmd(&[&flags[..], &[listen]].concat())
    };
    init("nonsense").expect(2).says(&["--listen", "HOST:PORT"]);
    init("127.0.0.1:99999").expect(2).says(&["HOST:PORT"]);
    init("127.0.0.1:7443").expect(2).says(&["b1", "leave"]);
    let files = std::fs::read_dir(folder.path()).unwrap();
    let left: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("other"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    head.stop();
}

#[test]
fn an_office_tells_its_status_without_its_database() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    head.invite("b1", &[]);
    head.run();
    let name = url.rsplit('/').next().unwrap();
    let close = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false");
    let cut =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    postgres().sql("postgres", &[&close, &cut]);
    let status = wait_until("the status tells of it", SOON, || {
        let ran = head.cmd(&["status", "--json"]);
        (ran.code == 4)
            .then_some(ran.out.clone())
            .ok_or(format!("{ran:?}"))
    });
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["office"], "HO", "{status}");
    assert_eq!(status["database"]["reachable"], false, "{status}");
    assert_eq!(status["in_sync"], false, "{status}");
    assert_eq!(status["branches"][0]["name"], "b1", "{status}");
    head.cmd(&["sync", "--timeout", "1"]).expect(4);
    head.cmd(&["conflicts"]).expect(4).says(&[name]);
    let open = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true");
    postgres().sql("postgres", &[&open]);
    head.wait_in_sync(SOON);
    head.stop();
}

#[test]
fn a_branch_that_is_away_is_no_difference() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let code = head.invite("b1", &[]);
    head.run();
    let branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    let ran = head.cmd(&["verify"]).expect(3);
    assert!(ran.out.contains("b1 did not answer"), "{}", ran.out);
    assert!(!ran.out.contains("DIFFERENT"), "{}", ran.out);
    let document = head.cmd(&["verify", "--json"]).expect(3).document();
    assert_eq!(document["equal"], false);
    assert_eq!(document["branches"][0]["answered"], false);
    head.stop();
}

/// Branches that come one after the other are one round of the head's.
#[test]
fn the_heads_round_does_not_want_all_branches_at_once() {
    let folder = TempDir::new().unwrap();
    let mut head = head(&folder);
    let codes = ["b1", "b2"].map(|name| head.invite(name, &[]));
    head.run();
    let branches = ["b1", "b2"].map(|name| Office::sqlite(folder.path(), name));
    for (branch, code) in branches.iter().zip(&codes) {
        branch.join(code);
    }
    head.stop();
    Db::open(&branches[0].database).run("INSERT INTO item VALUES (1, 'b1')");
    head.cmd(&["sync", "--timeout", "1"])
        .expect(3)
        .says(&["b1 (away", "b2 (away"]);
    head.spawn_with(&["sync", "--timeout", "30"], "");
    for branch in &branches {
        branch.cmd(&["sync"]).expect(0);
    }
    let ended = wait_until("the round ends", SOON, || {
        head.ended().ok_or_else(|| "it waits".into())
    });
    assert_eq!(ended, 0, "{}", head.log());
    let at_b2 = Db::open(&branches[1].database).one("SELECT name FROM item");
    assert_eq!(at_b2, "b1");
}

#[test]
fn doctor_tells_of_secrets_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let head = head(&folder);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, &head.database).unwrap();
    head.edit(
        &format!("database = \"{}\"", head.database),
        "database = { file = \"secret\" }",
    );
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let told = || {
        head.cmd(&["doctor", "--json"])
            .expect(0)
            .document()
            .to_string()
    };
    for path in [secret, head.beside("key.pem")] {
        let advice = format!("chmod 600 {}", path.display());
        open(&path, 0o600);
        assert!(!told().contains(&advice));
        open(&path, 0o644);
        assert!(told().contains(&advice), "{advice}");
    }
}
