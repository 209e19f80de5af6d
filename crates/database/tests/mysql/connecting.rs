//! Connections: refused, broken, secured; and the watch.

use std::time::Duration;

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_database::mysql::{MysqlDatabase, watch};
use branchline_testkit::servers::{self, MariaDb};

use crate::shop::shop;

#[tokio::test]
async fn what_is_wrong_with_an_address_is_told_without_its_password() {
    let good = servers::mariadb().fresh_database();
    let wrong = good.replace("root:branchline", "root:mistaken");
    let nowhere = "mysql://root:mistaken@127.0.0.1:1/x".to_owned();
    let elsewhere = good.replace("/test_", "/no_such_");
    for (url, refused) in [
        (wrong, true),
        (nowhere, false),
        (elsewhere, true),
        ("mysql://h".into(), true),
    ] {
        let told = MysqlDatabase::connect(&url).await.map(|_| ()).unwrap_err();
        assert_eq!(
            matches!(told, DatabaseError::Refused(_)),
            refused,
            "{told:?}"
        );
        assert_eq!(
            matches!(told, DatabaseError::Unreachable(_)),
            !refused,
            "{told:?}"
        );
        assert!(!told.to_string().contains("mistaken"), "{told}");
    }
    let mut db = MysqlDatabase::connect(&good).await.unwrap();
    let (name, version) = db.describe().await.unwrap();
    let engine = match servers::mariadb().is_mysql() {
        true => "MySQL",
        false => "MariaDB",
    };
    assert!(name == engine && version.contains('.'), "{name} {version}");
}

#[tokio::test]
async fn a_connection_that_the_server_ended_is_made_anew() {
    let mut shop = shop("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let all =
        "SELECT GROUP_CONCAT(CONCAT('KILL ', ID) SEPARATOR ';') FROM information_schema.PROCESSLIST
               WHERE DB = DATABASE() AND ID <> CONNECTION_ID()";
    let kill = shop.see(all).await.remove(0).unwrap();
    shop.app(&kill).await;
    shop.db.begin(Purpose::Apply).await.unwrap();
    shop.db.set_meta("a", Some(b"1")).await.unwrap();
    let kill = shop.see(all).await.remove(0).unwrap();
    shop.app(&kill).await;
    let broken = shop.db.commit().await.unwrap_err();
    assert!(
        matches!(broken, DatabaseError::Unreachable(_)),
        "{broken:?}"
    );
    shop.db.rollback().await.unwrap();
    shop.db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(shop.db.meta("a").await.unwrap(), None);
    shop.db.commit().await.unwrap();
}

/// A server on the way to which everything gets lost from a moment on, and nothing is closed.
async fn line_to(url: &str) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = url.split(['@', '/']).nth(3).unwrap().to_owned();
    let near_place = listener.local_addr().unwrap().to_string();
    let through = url.replace(&place, &near_place);
    let (dead, watched) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (place, mut watched) = (place.clone(), watched.clone());
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(place).await.unwrap();
                let lost = async { drop(watched.wait_for(|dead| *dead).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = lost => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (through, dead)
}

#[tokio::test]
async fn a_machine_that_vanished_owns_its_database_for_a_minute_at_the_most() {
    let url = servers::mariadb().fresh_database();
    let (through, dead) = line_to(&url).await;
    let mut vanished = MysqlDatabase::connect(&through).await.unwrap();
    assert!(vanished.own().await.unwrap());
    assert!(vanished.own().await.unwrap(), "again");
    dead.send_replace(true);
    let mut next = MysqlDatabase::connect(&url).await.unwrap();
    assert!(!next.own().await.unwrap());
    let taken = async {
        while !next.own().await.unwrap() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let minute = Duration::from_secs(75);
    tokio::time::timeout(minute, taken).await.unwrap();
}

#[tokio::test]
async fn an_idle_owner_keeps_its_database_also_when_its_connection_breaks() {
    let mut shop = shop("").await;
    assert!(shop.db.own().await.unwrap());
    let all =
        "SELECT GROUP_CONCAT(CONCAT('KILL ', ID) SEPARATOR ';') FROM information_schema.PROCESSLIST
               WHERE DB = DATABASE() AND ID <> CONNECTION_ID()";
    let kill = shop.see(all).await.remove(0).unwrap();
    shop.app(&kill).await;
    shop.db.keep_owning().await.unwrap();
    let mut second = MysqlDatabase::connect(&shop.url).await.unwrap();
    assert!(!second.own().await.unwrap());
}

#[tokio::test]
async fn the_watch_wakes_soon_after_a_write_and_outlives_the_server() {
    let mut server = tokio::task::spawn_blocking(MariaDb::start).await.unwrap();
    let url = server.fresh_database();
    let mut app = crate::shop::connect(&url).await;
    let mut db = MysqlDatabase::connect(&url).await.unwrap();
    db.prepare().await.unwrap();
    let mut watcher = watch(&url).await.unwrap();
    let soon = |watcher: &mut branchline_database::mysql::Watcher| {
        let wake = watcher.wake.try_recv();
        wake.is_ok()
    };
    watcher.wake.recv().await.unwrap();
    // Nothing is captured, so nothing wakes, however long.
    assert!(
        tokio::time::timeout(Duration::from_millis(600), watcher.wake.recv())
            .await
            .is_err()
    );
    let write = "INSERT INTO branchline_capture (tbl, op, at, tx, `key`) VALUES (1, 'I', NOW(6), 'x', '1:1')";
    mysql_async::prelude::Queryable::query_drop(&mut app, write)
        .await
        .unwrap();
    let woken = tokio::time::timeout(Duration::from_millis(1500), watcher.wake.recv()).await;
    assert_eq!(woken, Ok(Some(())));
    drop(app);
    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        server.start_again();
        server
    });
    let server = server.await.unwrap();
    while soon(&mut watcher) {}
    let woken = tokio::time::timeout(Duration::from_secs(20), watcher.wake.recv()).await;
    assert_eq!(woken, Ok(Some(())));
    drop(server);
}

fn openssl(folder: &std::path::Path, arguments: &str) {
    let done = std::process::Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[tokio::test]
async fn certificates_are_checked_as_far_as_the_url_asks() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("names"), "subjectAltName=DNS:localhost\n").unwrap();
    for authority in ["ca", "other"] {
        let made = format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout {authority}.key -out {authority}.pem -days 2 -subj /CN={authority}"
        );
        openssl(folder.path(), &made);
    }
    for name in ["server", "client"] {
        let asked = format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        );
        openssl(folder.path(), &asked);
        let signed = format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        );
        openssl(folder.path(), &signed);
    }
    // The server's account reads them.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(path("server.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let settings = [
        format!("ssl-cert={}", path("server.pem")),
        format!("ssl-key={}", path("server.key")),
        format!("ssl-ca={}", path("ca.pem")),
    ];
    let server = tokio::task::spawn_blocking(move || {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        MariaDb::start_with(&settings)
    });
    let server = server.await.unwrap();
    server.sql(
        "mysql",
        "CREATE USER secure@'%' IDENTIFIED BY 'x' REQUIRE SSL; CREATE USER known@'%' IDENTIFIED BY 'x' REQUIRE X509;
         GRANT ALL ON *.* TO secure@'%'; GRANT ALL ON *.* TO known@'%'",
    );
    let numeric = server.url("mysql").replace("root:branchline", "secure:x");
    let named = numeric.replace("127.0.0.1", "localhost");
    let known = numeric.replace("secure", "known");
    let (ca, other) = (path("ca.pem"), path("other.pem"));
    let certified = format!(
        "sslcert={}&sslkey={}",
        path("client.pem"),
        path("client.key")
    );
    for good in [
        numeric.clone(),
        format!("{numeric}?sslmode=prefer"),
        format!("{numeric}?sslmode=require"),
        format!("{numeric}?sslmode=verify-ca&sslrootcert={ca}"),
        format!("{named}?sslmode=verify-full&sslrootcert={ca}"),
        format!("{known}?sslmode=verify-ca&sslrootcert={ca}&{certified}"),
    ] {
        let db = MysqlDatabase::connect(&good).await;
        assert!(db.is_ok(), "{good}: {:?}", db.err());
    }
    for bad in [
        format!("{numeric}?sslmode=disable"),
        format!("{numeric}?sslmode=verify-full&sslrootcert={ca}"),
        format!("{named}?sslmode=verify-full&sslrootcert={other}"),
        format!("{numeric}?sslmode=verify-ca&sslrootcert={other}"),
        format!("{numeric}?sslmode=require&sslrootcert={other}"),
        format!("{named}?sslmode=verify-full"),
        format!("{known}?sslmode=require"),
        format!("{known}?sslmode=require&sslcert={}", path("client.pem")),
        format!(
            "{numeric}?sslmode=verify-ca&sslrootcert={}",
            path("absent.pem")
        ),
    ] {
        let refused = MysqlDatabase::connect(&bad).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(refused, DatabaseError::Refused(_)),
            "{bad}: {refused:?}"
        );
    }
    let without = servers::mariadb().fresh_database();
    assert!(MysqlDatabase::connect(&without).await.is_ok());
    let asked = MysqlDatabase::connect(&format!("{without}?sslmode=require")).await;
    // MySQL, and MariaDB from 11.4 on, make themselves a certificate.
    let certificate = "SHOW GLOBAL STATUS LIKE 'Ssl_server_not_after'";
    let certificate = servers::mariadb().sql("mysql", certificate);
    match certificate.ends_with("GMT") {
        true => assert!(asked.is_ok(), "{:?}", asked.err()),
        false => assert!(matches!(asked.map(|_| ()), Err(DatabaseError::Refused(_)))),
    }
    // MySQL's own way to prove a password sends it, encrypted, where there is no TLS.
    let disabled = MysqlDatabase::connect(&format!("{without}?sslmode=disable")).await;
    assert!(disabled.is_ok(), "{:?}", disabled.err());
}
