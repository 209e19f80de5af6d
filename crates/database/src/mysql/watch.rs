//! Waking the process when something is captured.
//!
//! There is nothing here that one session could wait for and another send. So the watcher asks whether the capture holds
//! a row: one read of the end of an index, every 50 ms, and less often the longer nothing comes, down to four times a
//! second. The application pays nothing for it, and waits for nothing.

use std::time::Duration;

use branchline_core::port::DbResult;
use mysql_async::prelude::Queryable;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::error::failed;
use super::session::{Session, session};
use super::tls::{Target, target};

const AWAKE: Duration = Duration::from_millis(50);
const ASLEEP: Duration = Duration::from_millis(250);
/// The pause grows by this much for each look that finds nothing.
const YAWN: Duration = Duration::from_millis(5);
/// After so long without an answer the connection is given up.
const SILENCE: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// Tells when there may be something to take. Dropping it ends the watching.
pub struct Watcher {
    /// Receives a mark when the capture is not empty, and once after each connection.
    pub wake: mpsc::Receiver<()>,
}

/// Watches a database over its own connection, and reconnects by itself when the server goes away.
pub async fn watch(url: &str) -> DbResult<Watcher> {
    let target = target(url)?;
    let (wake, receiver) = mpsc::channel(1);
    let first = session(&target).await?;
    tokio::spawn(run(target, first, wake));
    Ok(Watcher { wake: receiver })
}

async fn run(target: Target, first: Session, wake: mpsc::Sender<()>) {
    let mut next = Some(first);
    let mut backoff = BACKOFF_FIRST;
    while !wake.is_closed() {
        let opened = match next.take() {
            Some(session) => Ok(session),
            None => session(&target).await,
        };
        let error = match opened {
            Ok(session) => {
                backoff = BACKOFF_FIRST;
                match looks(session, &wake).await {
                    None => return,
                    Some(error) => failed(&error),
                }
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "the watch on the database is interrupted");
        tokio::select! {
            () = wake.closed() => return,
            () = sleep(backoff.mul_f64(jitter())) => backoff = (backoff * 2).min(BACKOFF_LAST),
        }
    }
}

/// Looks until the connection fails, or, with `None`, until nobody listens.
async fn looks(mut session: Session, wake: &mpsc::Sender<()>) -> Option<mysql_async::Error> {
    let mut pause = AWAKE;
    let mut captured = true;
    loop {
        if captured {
            pause = AWAKE;
            // Full means that a mark is waiting already.
            if let Err(mpsc::error::TrySendError::Closed(())) = wake.try_send(()) {
                return None;
            }
        } else {
            pause = (pause + YAWN).min(ASLEEP);
        }
        tokio::select! {
            () = wake.closed() => return None,
            () = sleep(pause) => {}
        }
        let asked = session
            .conn
            .query_first::<u8, _>("SELECT 1 FROM branchline_capture LIMIT 1");
        captured = match timeout(SILENCE, asked).await {
            Ok(Ok(found)) => found.is_some(),
            Ok(Err(error)) => return Some(error),
            Err(_) => return Some(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        };
    }
}

/// Between 0.5 and 1, so that the processes of many offices do not return at the same instant.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    0.5 + (random % 1000) as f64 / 2000.0
}
