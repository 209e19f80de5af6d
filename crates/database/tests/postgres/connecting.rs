//! What cannot be reached, and what refuses.

use branchline_core::port::{Database, DatabaseError, Purpose};
use branchline_database::postgres::PostgresDatabase;
use branchline_testkit::servers::{self, Postgres};

use super::office::{client, office};

async fn error(url: &str) -> DatabaseError {
    let error = PostgresDatabase::connect(url)
        .await
        .err()
        .expect("no connection");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    error
}

#[tokio::test]
async fn wrong_passwords_and_databases_are_refused_and_wrong_hosts_unreachable() {
    let server = servers::postgres();
    let address = server.url("postgres");
    let host = address.rsplit_once('@').unwrap().1;
    assert!(matches!(
        error(&format!("postgres://postgres:s3cret@{host}")).await,
        DatabaseError::Refused(_)
    ));
    assert!(matches!(
        error(&server.url("no_such_database")).await,
        DatabaseError::Refused(_)
    ));
    assert!(matches!(
        error("postgres://a:s3cret@127.0.0.1:9/x").await,
        DatabaseError::Unreachable(_)
    ));
    assert!(matches!(
        error("postgres://a:s3@cret@127.0.0.1:9/x").await,
        DatabaseError::Refused(_)
    ));
    assert!(matches!(
        error("mysql://a:s3cret@127.0.0.1/x").await,
        DatabaseError::Refused(_)
    ));
    assert!(matches!(
        error("postgres://a:s3cret@127.0.0.1/x?sslmode=sure").await,
        DatabaseError::Refused(_)
    ));
    let plain = error(&format!("{address}?sslmode=require")).await;
    assert!(
        matches!(plain, DatabaseError::Refused(_)),
        "a server without TLS: {plain:?}"
    );
}

#[tokio::test]
async fn a_broken_connection_is_unreachable_until_the_next_begin() {
    let url = office().await.url;
    let mut db = PostgresDatabase::connect(&url).await.unwrap();
    db.prepare().await.unwrap();
    db.begin(Purpose::Apply).await.unwrap();
    let other = client(&url).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'branchline' AND datname = current_database()";
    other.execute(kill, &[]).await.unwrap();
    let failed = db.meta("x").await;
    assert!(
        matches!(failed, Err(DatabaseError::Unreachable(_))),
        "{failed:?}"
    );
    assert!(db.commit().await.is_err());
    db.begin(Purpose::Apply).await.unwrap();
    assert_eq!(db.meta("x").await.unwrap(), None);
    db.commit().await.unwrap();
    assert_eq!(db.describe().await.unwrap().0, "PostgreSQL");
}

#[tokio::test]
async fn one_process_owns_a_database_also_after_its_connection_broke() {
    let url = office().await.url;
    let mut owner = PostgresDatabase::connect(&url).await.unwrap();
    assert!(owner.own().await.unwrap());
    assert!(owner.own().await.unwrap(), "again");
    let mut second = PostgresDatabase::connect(&url).await.unwrap();
    assert!(!second.own().await.unwrap());
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'branchline' AND datname = current_database()";
    client(&url).await.execute(kill, &[]).await.unwrap();
    let soon = std::time::Duration::from_secs(20);
    // The server may need a moment to notice.
    let back = async { while owner.begin(Purpose::Apply).await.is_err() {} };
    tokio::time::timeout(soon, back).await.unwrap();
    owner.rollback().await.unwrap();
    assert!(!second.own().await.unwrap());
    drop(owner);
    let given_up = async { while !second.own().await.unwrap() {} };
    tokio::time::timeout(soon, given_up).await.unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    openssl(
        folder.path(),
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
    );
    openssl(
        folder.path(),
        "req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 2 -subj /CN=other",
    );
    openssl(
        folder.path(),
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=db",
    );
    std::fs::write(
        folder.path().join("names"),
        "subjectAltName=DNS:localhost\n",
    )
    .unwrap();
    openssl(
        folder.path(),
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    );
    let mut server = Postgres::start_fast();
    let data = server.data();
    for (from, to) in [("server.pem", "server.crt"), ("server.key", "server.key")] {
        // Into files that belong to the server's account, in a folder that only it and root can read.
        std::fs::copy(folder.path().join(from), data.join(to)).unwrap();
        let owner = std::fs::metadata(&data).unwrap();
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        chown(data.join(to), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(data.join(to), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    server.sql("postgres", &["ALTER SYSTEM SET ssl TO on"]);
    server.stop();
    server.start_again();
    let numeric = server.url("postgres");
    let named = numeric.replace("127.0.0.1", "localhost");
    let (ca, other) = (path("ca.pem"), path("other.pem"));
    for good in [
        format!("{numeric}?sslmode=prefer"),
        format!("{numeric}?sslmode=require"),
        format!("{numeric}?sslmode=verify-ca&sslrootcert={ca}"),
        format!("{named}?sslmode=verify-full&sslrootcert={ca}"),
    ] {
        let db = PostgresDatabase::connect(&good).await;
        assert!(db.is_ok(), "{:?}", db.err());
    }
    for bad in [
        format!("{numeric}?sslmode=verify-full&sslrootcert={ca}"),
        format!("{named}?sslmode=verify-full&sslrootcert={other}"),
        format!("{numeric}?sslmode=verify-ca&sslrootcert={other}"),
        format!("{numeric}?sslmode=require&sslrootcert={other}"),
        format!("{named}?sslmode=verify-full"),
    ] {
        let refused = error(&bad).await;
        assert!(matches!(refused, DatabaseError::Refused(_)), "{refused:?}");
    }
    let client_only = client(&format!("{numeric}?sslmode=disable")).await;
    drop(client_only);
}
