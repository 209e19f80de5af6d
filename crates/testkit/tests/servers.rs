//! The servers that other tests stand on do what those tests assume.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpStream;

use branchline_testkit::servers::{Postgres, RabbitMq, free_port, postgres, rabbitmq};

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn the_shared_postgres_gives_each_test_an_empty_database() {
    let (one, other) = (postgres().fresh_database(), postgres().fresh_database());
    assert_ne!(one, other);
    let name = one.rsplit('/').next().unwrap();
    assert_eq!(
        postgres().sql(name, &["CREATE TABLE t (i int)", "SELECT count(*) FROM t"]),
        "0"
    );
    assert!(postgres().bin("pg_dump").exists());
}

#[test]
fn a_killed_postgres_comes_back_with_what_was_committed() {
    let mut server = Postgres::start();
    server.sql(
        "postgres",
        &["CREATE TABLE t (i int)", "INSERT INTO t VALUES (7)"],
    );
    server.kill();
    assert!(!listens(server.port()));
    server.start_again();
    assert_eq!(server.sql("postgres", &["SELECT i FROM t"]), "7");
    server.stop();
    assert!(!listens(server.port()));
    server.start_again();
    assert_eq!(server.sql("postgres", &["SELECT i FROM t"]), "7");
    let (port, data) = (server.port(), server.data());
    drop(server);
    assert!(!listens(port) && !data.exists());
}

#[test]
fn the_shared_rabbitmq_gives_each_test_a_virtual_host() {
    let vhost = rabbitmq().fresh_vhost();
    let listed = rabbitmq().ctl(&["-q", "list_permissions", "-p", &vhost]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(".*"));
    assert!(rabbitmq().url("a b", "p/w", "/").ends_with("/%2f"));
}

#[test]
fn a_killed_rabbitmq_comes_back_with_its_virtual_hosts() {
    let mut server = RabbitMq::start();
    let vhost = server.fresh_vhost();
    let vhosts = |server: &RabbitMq| {
        String::from_utf8_lossy(&server.ctl(&["-q", "list_vhosts"]).stdout).into_owned()
    };
    server.kill();
    assert!(!listens(server.port()));
    server.start_again();
    assert!(listens(server.port()) && vhosts(&server).contains(&vhost));
    server.stop_app();
    assert!(!listens(server.port()));
    server.start_app();
    assert!(listens(server.port()));
    server.stop();
    server.forget_everything();
    server.start_again();
    assert!(!vhosts(&server).contains(&vhost));
}

#[test]
fn ports_are_given_out_once() {
    let ports: std::collections::BTreeSet<u16> = (0..100).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 100);
}
