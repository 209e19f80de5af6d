//! Opening a session: dialling the server, with TLS where it has it, and making the settings on which all else relies.

use std::time::Duration;

use branchline_core::port::{DatabaseError, DbResult};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use super::connection::Flavour;
use super::error::{failed, no_tls, other_name};
use super::tls::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What makes every statement's meaning independent of the server's and the user's settings. Only our own session.
///
/// `@branchline_applying` is what the capture's triggers look at: this connection writes to shared tables only when
/// it applies. A value of an application's own session cannot be mistaken for it.
const SESSION: &str = "SET NAMES utf8mb4;
SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION',
  time_zone = '+00:00', autocommit = 1, foreign_key_checks = 1, unique_checks = 1, sql_safe_updates = 0,
  sql_select_limit = DEFAULT, sql_auto_is_null = 0, innodb_lock_wait_timeout = 1, lock_wait_timeout = 1,
  wait_timeout = 2147483, net_read_timeout = 60, net_write_timeout = 60, max_join_size = DEFAULT, completion_type = 0;
SET @branchline_applying = 1";

/// Settings that only MariaDB has. The first: long lists in `IN` stay lists.
const SESSION_MARIADB: &str = "SET SESSION in_predicate_conversion_threshold = 0, max_statement_time = 0,
  idle_transaction_timeout = 0, idle_readonly_transaction_timeout = 0, idle_write_transaction_timeout = 0";

/// A new connection with its settings made.
pub(super) struct Session {
    pub(super) conn: Conn,
    pub(super) flavour: Flavour,
    pub(super) version: String,
    /// This server undoes the whole transaction where a lock is not to be had.
    pub(super) whole_rollback: bool,
}

pub(super) async fn session(target: &Target) -> DbResult<Session> {
    let mut conn = match dial(target, &target.opts).await? {
        Err(error) if no_tls(&error) && target.fallback.is_some() => {
            let plain = target.fallback.as_ref().unwrap_or(&target.opts);
            dial(target, plain).await?
        }
        Err(error) => match other_name(&error).and_then(|name| target.under_name(name)) {
            Some(renamed) => dial(target, &renamed).await?,
            None => Err(error),
        },
        dialled => dialled,
    }
    .map_err(|error| named(target, &error))?;
    let told: Option<(String, bool)> = conn
        .query_first("SELECT VERSION(), @@innodb_rollback_on_timeout")
        .await
        .map_err(|error| named(target, &error))?;
    let (version, whole_rollback) = told.unwrap_or_default();
    let flavour = if version.contains("MariaDB") {
        Flavour::MariaDb
    } else {
        Flavour::MySql
    };
    let mut settings = SESSION.to_owned();
    if flavour == Flavour::MariaDb {
        settings = format!("{settings}; {SESSION_MARIADB}");
    }
    conn.query_drop(settings)
        .await
        .map_err(|error| named(target, &error))?;
    Ok(Session {
        conn,
        flavour,
        version,
        whole_rollback,
    })
}

async fn dial(
    target: &Target,
    opts: &mysql_async::Opts,
) -> DbResult<Result<Conn, mysql_async::Error>> {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(opts.clone())).await;
    dialled.map_err(|_| DatabaseError::Unreachable(format!("{}: no answer", target.place)))
}

/// The error of a connection attempt, with the place that it was made to.
fn named(target: &Target, error: &mysql_async::Error) -> DatabaseError {
    match failed(error) {
        DatabaseError::Unreachable(words) => {
            DatabaseError::Unreachable(format!("{}: {words}", target.place))
        }
        DatabaseError::Refused(words) => {
            DatabaseError::Refused(format!("{}: {words}", target.place))
        }
        other => other,
    }
}
