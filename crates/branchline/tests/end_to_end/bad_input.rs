//! What is wrong is told: what, where, what to do, by the documented exit code, and never with a password.

use std::time::Duration;

use branchline_testkit::servers::{free_port, postgres, rabbitmq};
use tempfile::TempDir;

use crate::office::{Office, Ran, settle};
use crate::sql::{Db, as_user};

const SECRET: &str = "s3cret-zebra";

/// `init` with this database and transport.
fn init(office: &Office, database: &str, tables: &str, transport: &[&str]) -> Ran {
    let mut arguments = vec![
        "init",
        "--role",
        "head",
        "--name",
        "HO",
        "--database",
        database,
        "--tables",
        tables,
    ];
    arguments.extend(transport);
    let ran = office.cmd(&arguments);
    println!("{}: {}", ran.code, ran.err.trim());
    ran
}

#[test]
fn a_wrong_database_is_told() {
    let folder = TempDir::new().unwrap();
    let office = Office::new(folder.path(), "HO", "");
    office.hides(SECRET);
    let listen = ["--listen", "127.0.0.1:0"];
    let server = postgres();
    let url = server.fresh_database();
    let name = url.rsplit('/').next().unwrap();
    let place = url.strip_suffix(name).unwrap();

    let foreign = format!("oracle://u:{SECRET}@host/db");
    init(&office, &foreign, "*", &listen)
        .expect(2)
        .says(&["postgres://", "sqlite:"]);
    init(&office, &as_user(&url, "postgres", SECRET), "*", &listen)
        .expect(4)
        .says(&["password"]);
    init(&office, &format!("{place}nowhere"), "*", &listen)
        .expect(4)
        .says(&["nowhere"]);
    let closed = format!("postgres://u:{SECRET}@127.0.0.1:{}/db", free_port());
    init(&office, &closed, "*", &listen)
        .expect(4)
        .says(&["127.0.0.1"]);
    init(&office, "sqlite:/nowhere/at/all.db", "*", &listen)
        .expect(4)
        .says(&["/nowhere/at/all.db"]);
    init(&office, &url, "*", &listen)
        .expect(2)
        .says(&["no table"]);

    let mut db = Db::open(&url);
    db.run("CREATE TABLE keyless (a integer); CREATE TABLE item (id integer PRIMARY KEY)");
    init(&office, &url, "*", &listen)
        .expect(2)
        .says(&["keyless", "primary key", "!"]);
    init(&office, &url, "item,missing", &listen)
        .expect(2)
        .says(&["missing"]);
    init(&office, &url, "!item", &listen).expect(2);
    assert!(
        !office.config.exists(),
        "what failed leaves no configuration"
    );

    // A role without rights of its own.
    let user = format!("weak_{}", std::process::id());
    server.sql(
        "postgres",
        &[&format!("CREATE ROLE {user} LOGIN PASSWORD '{SECRET}'")],
    );
    init(&office, &as_user(&url, &user, SECRET), "item", &listen)
        .expect(2)
        .says(&[&user, "GRANT", "item"]);
}

#[test]
fn a_wrong_configuration_is_told() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let head = Office::new(folder.path(), "HO", &url);
    head.hides(SECRET);
    head.cmd(&["status"]).expect(2).says(&["HO.toml", "init"]);
    head.cmd(&["invite", "b1"]).expect(2);
    head.cmd(&["dance"]).expect(2);
    init(&head, &url, "*", &[])
        .expect(2)
        .says(&["--amqp", "--listen"]);
    init(
        &head,
        &url,
        "*",
        &["--amqp", "amqp://x", "--listen", "127.0.0.1:1"],
    )
    .expect(2);
    head.init("*", &["--listen", &format!("127.0.0.1:{}", free_port())]);
    init(&head, &url, "*", &["--listen", "127.0.0.1:0"])
        .expect(2)
        .says(&["HO.toml", "exists"]);
    head.cmd(&["invite", "HO"]).expect(2);
    head.cmd(&["invite", "no/slash"]).expect(2);
    head.cmd(&["remove", "b9"]).expect(2).says(&["b9"]);

    let good = std::fs::read_to_string(&head.config).unwrap();
    let broken = |text: String, words: &[&str]| {
        std::fs::write(&head.config, text).unwrap();
        let ran = head.cmd(&["run"]);
        println!("{}: {}", ran.code, ran.err.trim());
        ran.expect(2).says(words);
    };
    broken(
        good.replace("[api]", "[api]\ncolour = 1"),
        &["HO.toml", "colour"],
    );
    broken(
        good.replace(
            "[transport]",
            &format!("[transport]\namqp = \"amqp://u:{SECRET}@h/v\""),
        ),
        &["transport", "just one"],
    );
    broken(
        good.replace("mode = \"live\"", "mode = \"sometimes\""),
        &["sometimes", "manual"],
    );
    broken(
        good.replace("127.0.0.1:0", "0.0.0.0:80"),
        &["api.listen", "loopback"],
    );
    broken(
        format!("{good}\n[tables.item]\nconflict = \"coin\""),
        &["coin", "newest"],
    );
    broken(good.replace("[office]", "[office"), &["HO.toml"]);
    broken(
        good.replace("role = \"head\"", "role = \"branch\""),
        &["transport"],
    );
    // A line that is wrong and holds a secret.
    broken(
        good.replace("database = \"", &format!("databse = \"{SECRET}")),
        &["line", "databse"],
    );
    broken(
        good.replace("database = \"", &format!("database = {SECRET}\"")),
        &["line 7"],
    );
    broken(
        good.replace("database = \"", &format!("database = \"{SECRET}:")),
        &["office.database", "postgres://"],
    );
    std::fs::write(&head.config, good).unwrap();
    head.cmd(&["status"]).expect(0);
}

#[test]
fn two_configurations_of_one_database_never_run_together() {
    let folder = TempDir::new().unwrap();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let mut head = Office::new(folder.path(), "HO", &url);
    let listen = format!("127.0.0.1:{}", free_port());
    head.init("*", &["--listen", &listen]);
    let code = head.invite("b1", &[]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    for office in [&mut head, &mut branch] {
        let copy = Office::new(folder.path(), &format!("{}-copy", office.name), "");
        std::fs::copy(&office.config, &copy.config).unwrap();
        if office.name == "HO" {
            copy.edit(&listen, "127.0.0.1:0");
        }
        let owned = ["another process", "this database"];
        copy.cmd(&["sync"]).expect(2).says(&owned);
        copy.cmd(&["leave"]).expect(2).says(&owned);
        if office.name == "HO" {
            let again = Office::new(folder.path(), "HO-again", "");
            let flags = ["--name", "HO", "--database", &url, "--tables", "*"];
            let flags = [&["init"], &flags[..], &["--listen", "127.0.0.1:0"]].concat();
            again.cmd(&flags).expect(2).says(&owned);
        }
        // It is free at once when its owner was killed.
        office.kill();
        copy.cmd(&["status"]).expect(0);
        office.run();
    }
    settle(&head, &[&branch], Duration::from_secs(60));
    branch.cmd(&["leave"]).expect(0);
    let left = std::fs::read_dir(folder.path()).unwrap();
    let left: Vec<String> = left
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("branchline"))
        .collect();
    assert!(
        left.is_empty(),
        "the lock beside the database goes: {left:?}"
    );
    head.stop();
}

#[test]
fn an_office_without_its_database_says_that_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let broker = rabbitmq();
    let head = Office::sqlite(folder.path(), "HO");
    Db::open(&head.database).run("CREATE TABLE item (id INTEGER PRIMARY KEY)");
    let amqp = broker.admin_url_of(&broker.fresh_vhost());
    head.init("*", &["--amqp", &amqp]);
    let file = folder.path().join("HO.db");
    std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
    // It ends in the middle of dialling the broker.
    for _ in 0..20 {
        let said = head.cmd(&["status"]).expect(4).err;
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
}

#[test]
fn a_wrong_broker_is_told() {
    let folder = TempDir::new().unwrap();
    let broker = rabbitmq();
    let vhost = broker.fresh_vhost();
    let url = postgres().fresh_database();
    Db::open(&url).run("CREATE TABLE item (id integer PRIMARY KEY)");
    let head = Office::new(folder.path(), "HO", &url);
    head.hides(SECRET);
    let weak = format!("weak-{vhost}");
    broker.add_user(&weak, SECRET, &vhost, "^$", "^$", "^$");
    let try_init = |amqp: &str, code: i32, words: &[&str]| {
        init(&head, &url, "*", &["--amqp", amqp])
            .expect(code)
            .says(words);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert!(left.is_empty(), "what failed leaves no file: {left:?}");
    };
    try_init(&format!("http://u:{SECRET}@host/v"), 2, &["amqp://"]);
    try_init(
        &broker.url("guest", SECRET, &vhost),
        3,
        &["password", "guest"],
    );
    try_init(
        &broker.url("guest", "guest", "nowhere"),
        3,
        &["nowhere", "vhost"],
    );
    try_init(&broker.url(&weak, SECRET, &vhost), 3, &["permissions"]);
    try_init(
        &format!("amqp://u:{SECRET}@127.0.0.1:{}/v", free_port()),
        3,
        &["127.0.0.1"],
    );

    init(&head, &url, "*", &["--amqp", &broker.admin_url_of(&vhost)]).expect(0);
    let code = head.invite("b1", &["--amqp", &broker.url(&weak, SECRET, &vhost)]);
    let branch = Office::sqlite(folder.path(), "b1");
    branch.hides(SECRET);
    let ran = branch.feed(
        &code,
        &[
            "join",
            "-",
            "--database",
            &branch.database,
            "--timeout",
            "4",
        ],
    );
    println!("{}: {}", ran.code, ran.err.trim());
    ran.expect(3).says(&["permissions"]);
    let document = branch.cmd(&["doctor", "--json"]).expect(1).document();
    assert!(
        document.to_string().contains("rabbitmqctl set_permissions"),
        "{document}"
    );
}

#[test]
fn garbage_in_the_queues_stops_nobody() {
    let folder = TempDir::new().unwrap();
    let broker = rabbitmq();
    let vhost = broker.fresh_vhost();
    let url = postgres().fresh_database();
    let mut at_head = Db::open(&url);
    at_head.run("CREATE TABLE item (id integer PRIMARY KEY, name text)");
    let mut head = Office::new(folder.path(), "HO", &url);
    head.init("*", &["--amqp", &broker.admin_url_of(&vhost)]);
    let code = head.invite("b1", &[]);
    head.run();
    let mut branch = Office::sqlite(folder.path(), "b1");
    branch.join(&code);
    branch.run();
    // More than an envelope may have, and not more than RabbitMQ 4 takes.
    let huge = vec![b'x'; 15 * 1024 * 1024 + 1];
    let garbage = [
        &b""[..],
        b"hello",
        b"\x83\x00\xff\xff\xff\xff",
        &[0xff; 4096],
        &huge,
    ];
    for exchange in ["HEAD_EXCHANGE", "BRANCHES_EXCHANGE"] {
        publish(&broker.admin_url_of(&vhost), exchange, &garbage);
    }
    at_head.run("INSERT INTO item VALUES (1, 'head')");
    let mut at_branch = Db::open(&branch.database);
    at_branch.run("INSERT INTO item VALUES (2, 'branch')");
    settle(&head, &[&branch], Duration::from_secs(60));
    assert_eq!(at_head.one("SELECT count(*) FROM item"), "2");
    assert_eq!(at_branch.one("SELECT count(*) FROM item"), "2");
    assert!(
        head.log().contains("dropped"),
        "the log tells of it: {}",
        head.log()
    );
    let left = broker.ctl(&["list_queues", "-q", "-p", &vhost, "name", "messages"]);
    println!("{}", String::from_utf8_lossy(&left.stdout));
    head.stop();
    branch.stop();
}

fn publish(url: &str, exchange: &str, messages: &[&[u8]]) {
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        for message in messages {
            let (options, properties) = (
                BasicPublishOptions::default(),
                lapin::BasicProperties::default(),
            );
            let sent = channel
                .basic_publish(exchange.into(), "".into(), options, message, properties)
                .await
                .unwrap();
            assert!(sent.await.unwrap().is_ack());
        }
        connection.close(200, "OK".into()).await.unwrap();
    });
}
