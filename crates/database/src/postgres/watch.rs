//! Waking the process when something is captured, at no cost to the application under load.
//!
//! *Awake*, while much is written, the watcher asks every few milliseconds whether the capture holds anything. When little
//! is, it sets the flag that the capture's triggers look at and *sleeps*: each write notifies it, until too many do. The
//! flag is seen at the statement, not at the commit, so it keeps asking until every transaction that wrote before the flag
//! has ended, and asks slowly even then.
//!
//! A transaction that notifies cannot be prepared for a commit in two phases. Where the server allows such, nobody is told
//! to notify, and the watcher *dozes*: it asks, less often.

use std::future::poll_fn;
use std::time::Duration;

use branchline_core::port::{DatabaseError, DbResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};

use super::connection::{config, named};
use super::error::failed;
use super::tls::{Target, target};

const AWAKE: Duration = Duration::from_millis(4);
/// So many looks in a row are judged together: where few of them found anything, it goes to sleep.
const LOOKS: u32 = 25;
const FEW: u32 = 8;
/// One look in so many while the one before was not heard.
const SELDOM: u32 = 8;
/// So many notifications within this time wake it.
const MANY: usize = 20;
const MANY_WITHIN: Duration = Duration::from_millis(200);
/// How often it looks instead of sleeping, where nobody may notify.
const UNTOLD: Duration = Duration::from_millis(25);
const DOZING: Duration = Duration::from_millis(10);
const DOZING_LONG: Duration = Duration::from_millis(100);
const DOZE_IS_LONG: Duration = Duration::from_secs(2);
const ASLEEP: Duration = Duration::from_secs(1);
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
    let session = Session::open(&target).await?;
    tokio::spawn(run(target, session, wake));
    Ok(Watcher { wake: receiver })
}

/// That the receiver is gone.
struct Ended;

enum Stop {
    Ended,
    Failed(DatabaseError),
}

impl From<DatabaseError> for Stop {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(error)
    }
}

impl From<Ended> for Stop {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

async fn run(target: Target, session: Session, wake: mpsc::Sender<()>) {
    let mut session = Some(session);
    let mut backoff = BACKOFF_FIRST;
    while !wake.is_closed() {
        let stopped = match session.take() {
            Some(mut session) => {
                backoff = BACKOFF_FIRST;
                session.watch(&wake).await
            }
            None => match Session::open(&target).await {
                Ok(opened) => {
                    session = Some(opened);
                    continue;
                }
                Err(error) => Stop::Failed(error),
            },
        };
        let Stop::Failed(error) = stopped else { return };
        tracing::debug!(%error, "the watch on the database is interrupted");
        tokio::select! {
            () = wake.closed() => return,
            () = sleep(backoff.mul_f64(jitter())) => backoff = (backoff * 2).min(BACKOFF_LAST),
        }
    }
}

/// Between 0.5 and 1, so that the processes of many offices do not return at the same instant.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    0.5 + (random % 1000) as f64 / 2000.0
}

/// How long the flag holds. A process that was killed in its sleep must not cost the application a notification in
/// every transaction for ever. The flag is a sequence's value, since a trigger can read that without a query.
const NAP_SECONDS: u32 = 5;
/// How soon it is set again.
const FLAG_AGAIN: Duration = Duration::from_secs(2);

struct Session {
    client: Client,
    notified: mpsc::Receiver<()>,
    /// Whether the application may prepare transactions, which must not notify.
    two_phases: bool,
}

/// What one look at the database found.
struct Look {
    captured: bool,
    /// No transaction that wrote before the flag was set is still running.
    settled: bool,
}

impl Session {
    async fn open(target: &Target) -> DbResult<Self> {
        let (client, mut connection) = config(target)
            .connect(target.tls.clone())
            .await
            .map_err(|e| named(target, &e))?;
        let (notify, notified) = mpsc::channel(MANY);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(_) = message {
                    // Full means that enough are waiting already.
                    let _ = notify.try_send(());
                }
            }
        });
        let mut session = Self {
            client,
            notified,
            two_phases: false,
        };
        // `idle_session_timeout` is known from 14 on.
        session
            .execute(
                "SET statement_timeout TO 0; LISTEN branchline;
                 SELECT pg_catalog.set_config('idle_session_timeout', '0', false)
                 WHERE pg_catalog.current_setting('idle_session_timeout', true) IS NOT NULL",
            )
            .await?;
        // It changes with a restart of the server alone.
        let prepared = session.first("SHOW max_prepared_transactions").await?;
        session.two_phases = prepared.first() != Some(&Some("0".to_owned()));
        Ok(session)
    }

    async fn watch(&mut self, wake: &mpsc::Sender<()>) -> Stop {
        match self.turns(wake).await {
            Err(Stop::Ended) => {
                // Nobody listens any more: spare the application the notifications.
                let _ = self.set_asleep(false).await;
                Stop::Ended
            }
            Err(stop) => stop,
            Ok(never) => match never {},
        }
    }

    async fn turns(&mut self, wake: &mpsc::Sender<()>) -> Result<std::convert::Infallible, Stop> {
        self.set_asleep(false).await?;
        tell(wake)?;
        loop {
            self.awake(wake).await?;
            if self.two_phases {
                self.doze(wake).await?;
                tell(wake)?;
                continue;
            }
            self.asleep(wake).await?;
            tell(wake)?;
            self.set_asleep(false).await?;
        }
    }

    /// Returns after a while in which little was written.
    async fn awake(&mut self, wake: &mpsc::Sender<()>) -> Result<(), Stop> {
        loop {
            let (mut found, mut captured) = (0, true);
            for look in 0..LOOKS {
                // Who is told and has not heard yet, as while it takes a backlog, is seldom looked for.
                if wake.capacity() > 0 || look % SELDOM == 0 {
                    captured = self.look(None).await?.captured;
                    if captured {
                        tell(wake)?;
                    }
                }
                found += u32::from(captured);
                pause(wake, AWAKE).await?;
            }
            if found <= FEW {
                return Ok(());
            }
        }
    }

    /// Returns when something is written.
    async fn doze(&self, wake: &mpsc::Sender<()>) -> Result<(), Stop> {
        while !self.look(None).await?.captured {
            pause(wake, UNTOLD).await?;
        }
        Ok(())
    }

    /// Returns when much is written.
    async fn asleep(&mut self, wake: &mpsc::Sender<()>) -> Result<(), Stop> {
        while self.notified.try_recv().is_ok() {}
        let flagged = self.set_asleep(true).await?;
        let since = Instant::now();
        let (mut flagged_at, mut counted_from, mut count) = (since, since, 0);
        let mut look_at = since;
        loop {
            tokio::select! {
                () = wake.closed() => return Err(Stop::Ended),
                notice = self.notified.recv() => match notice {
                    // All that is written by now is taken, also what did not notify.
                    Some(()) => tell(wake)?,
                    None => return Err(DatabaseError::Unreachable("the connection is closed".to_owned()).into()),
                },
                () = sleep_until(look_at) => {
                    if flagged_at.elapsed() > FLAG_AGAIN {
                        flagged_at = Instant::now();
                        self.set_asleep(true).await?;
                    }
                    let look = self.look(Some(&flagged)).await?;
                    if look.captured {
                        tell(wake)?;
                    }
                    let wait = match (look, since.elapsed() < DOZE_IS_LONG) {
                        (Look { captured: true, .. }, _) | (Look { settled: false, .. }, true) => DOZING,
                        (Look { settled: true, .. }, _) => ASLEEP,
                        (Look { settled: false, .. }, false) => DOZING_LONG,
                    };
                    look_at = Instant::now() + wait;
                    continue;
                }
            }
            count += 1;
            while self.notified.try_recv().is_ok() {
                count += 1;
            }
            if counted_from.elapsed() > MANY_WITHIN {
                (counted_from, count) = (Instant::now(), 0);
            } else if count >= MANY {
                return Ok(());
            }
        }
    }

    /// Sets the flag, which shows at once, and returns the number of a transaction that began after that.
    async fn set_asleep(&self, asleep: bool) -> DbResult<String> {
        let until = if asleep {
            format!(
                "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::int8 + {NAP_SECONDS}"
            )
        } else {
            "0".to_owned()
        };
        self.first(&format!(
            "SELECT pg_catalog.setval('branchline.asleep_until', {until})"
        ))
        .await?;
        // Not in the same transaction: a writer that saw the flag unset must have the lower number.
        let number = self.first("SELECT pg_catalog.pg_current_xact_id()").await?;
        Ok(number.into_iter().next().flatten().unwrap_or_default())
    }

    async fn look(&self, flagged: Option<&str>) -> DbResult<Look> {
        let settled = match flagged {
            Some(number) => {
                format!(
                    "pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) > '{number}'::pg_catalog.xid8"
                )
            }
            None => "false".to_owned(),
        };
        let fields = self
            .first(&format!(
                "SELECT EXISTS (SELECT FROM branchline.capture), {settled}"
            ))
            .await?;
        let yes = |at: usize| {
            fields
                .get(at)
                .is_some_and(|field| field.as_deref() == Some("t"))
        };
        Ok(Look {
            captured: yes(0),
            settled: yes(1),
        })
    }

    async fn first(&self, sql: &str) -> DbResult<Vec<Option<String>>> {
        let messages = self
            .client
            .simple_query(sql)
            .await
            .map_err(|e| failed(&e))?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|at| row.get(at).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        });
        Ok(row.unwrap_or_default())
    }

    async fn execute(&self, sql: &str) -> DbResult<()> {
        self.client.batch_execute(sql).await.map_err(|e| failed(&e))
    }
}

fn tell(wake: &mpsc::Sender<()>) -> Result<(), Ended> {
    match wake.try_send(()) {
        Err(mpsc::error::TrySendError::Closed(())) => Err(Ended),
        // Full means that one is waiting already.
        _ => Ok(()),
    }
}

async fn pause(wake: &mpsc::Sender<()>, time: Duration) -> Result<(), Ended> {
    tokio::select! {
        () = wake.closed() => Err(Ended),
        () = sleep(time) => Ok(()),
    }
}
