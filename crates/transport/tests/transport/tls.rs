//! `amqps://` with certificates on both sides, against a real broker.

use std::path::{Path, PathBuf};
use std::process::Command;

use branchline_testkit::servers::{RabbitMq, free_port};
use branchline_transport::amqp::{
    AmqpSettings, QueueKind, Role, TlsFiles, declare_head, open, probe,
};

use super::up;

fn openssl(folder: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    let done = command.args(arguments.split(' ')).current_dir(folder);
    let done = done.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

/// Two authorities, and a broker's and an office's certificate of the first.
fn certificates(folder: &Path) {
    let names = "subjectAltName=DNS:localhost\n";
    std::fs::write(folder.join("names"), names).unwrap();
    for authority in ["ca", "other"] {
        let files =
            format!("-keyout {authority}.key -out {authority}.pem -days 2 -subj /CN={authority}");
        openssl(
            folder,
            &format!("req -x509 -newkey rsa:2048 -nodes {files}"),
        );
    }
    for who in ["server", "client"] {
        let files = format!("-keyout {who}.key -out {who}.csr -subj /CN={who}");
        openssl(folder, &format!("req -newkey rsa:2048 -nodes {files}"));
        let by = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(
            folder,
            &format!("x509 -req -in {who}.csr {by} -out {who}.pem"),
        );
    }
}

#[tokio::test]
async fn a_broker_with_certificates_is_reached_and_held_to_its_own() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name);
    let shown = |name: &str| path(name).display().to_string();
    let port = free_port();
    let settings = vec![
        format!("listeners.ssl.1 = 127.0.0.1:{port}"),
        format!("ssl_options.cacertfile = {}", shown("ca.pem")),
        format!("ssl_options.certfile = {}", shown("server.pem")),
        format!("ssl_options.keyfile = {}", shown("server.key")),
        "ssl_options.verify = verify_peer".into(),
        "ssl_options.fail_if_no_peer_cert = true".into(),
    ];
    let _broker = tokio::task::spawn_blocking(move || RabbitMq::start_with(&settings))
        .await
        .unwrap();
    let office = |host: &str, ca: Option<&str>, certified: bool| AmqpSettings {
        url: format!("amqps://guest:guest@{host}:{port}/%2f"),
        head_exchange: "branchline.head".into(),
        branches_exchange: "branchline.branches".into(),
        queue: "branchline.HO".into(),
        role: Role::Head {
            branch_queue_prefix: "branchline.".into(),
        },
        queue_kind: QueueKind::Quorum,
        heartbeat_seconds: 10,
        tls: TlsFiles {
            ca: ca.map(path),
            cert: certified.then(|| path("client.pem")),
            key: certified.then(|| path("client.key")),
        },
    };
    let good = office("localhost", Some("ca.pem"), true);
    declare_head(&good).await.unwrap();
    let found = probe(&good).await;
    assert!(found.iter().all(|finding| finding.ok), "{found:?}");
    let mut head = open(good.clone()).unwrap();
    assert_eq!(up(&mut head).await, None);
    for (why, wrong) in [
        (
            "no certificate of its own",
            office("localhost", Some("ca.pem"), false),
        ),
        (
            "another authority",
            office("localhost", Some("other.pem"), true),
        ),
        (
            "the system's authorities alone",
            office("localhost", None, true),
        ),
        ("another name", office("127.0.0.1", Some("ca.pem"), true)),
    ] {
        let refused = declare_head(&wrong).await;
        println!("{why}: {refused:?}");
        let error = refused.expect_err(why);
        assert!(!error.to_string().contains("guest:guest"), "{error}");
    }
    let missing = AmqpSettings {
        tls: TlsFiles {
            ca: Some(PathBuf::from("/nowhere/ca.pem")),
            ..TlsFiles::default()
        },
        ..good
    };
    let error = declare_head(&missing)
        .await
        .expect_err("there is no such file");
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}
