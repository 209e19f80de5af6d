//! An office as the commands see it: opened from its settings, run on a thread of its own, asked by requests.

use std::fs::File;
use std::net::ToSocketAddrs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use branchline_core::failure::OfficeError;
use branchline_core::head::Wiring;
use branchline_core::office::Identity;
use branchline_core::output::Notice;
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::Table;
use branchline_database::AnyDatabase;
use branchline_transport::Link;
use branchline_transport::amqp::{AmqpSettings, Role};
use branchline_transport::direct::{DialSettings, Pin, ServeSettings, Trust, dial, serve};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::config::{AmqpPlace, QUEUE_PREFIX, RoleName, Settings, TransportSettings};
use crate::driver::{Driver, Parts, Upkeep};
use crate::exit::{BUG, DATABASE, Failure, Outcome, UNREACHED, USAGE, io};
use crate::plan::outlook;
use crate::request::{Answer, Ask, Request};

/// How many requests may wait for the driver.
const REQUESTS: usize = 64;
/// How soon again a database that another process owns is asked for.
const OWN_AGAIN: Duration = Duration::from_millis(100);
/// How long it is asked for: a process that was just killed may still be going.
pub const OWN_SOON: Duration = Duration::from_secs(4);
/// The same for an office that shall run whatever happened before. A database server elsewhere lets go of a machine that
/// vanished within a minute.
pub const OWN_SURELY: Duration = Duration::from_secs(150);
/// How many notices a slow listener may lag behind.
const NOTICES: usize = 1024;

/// A running office.
pub struct Office {
    requests: mpsc::Sender<Request>,
    notices: broadcast::Sender<Notice>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Where the head listens, on the direct transport.
    pub bound: Option<std::net::SocketAddr>,
}

/// Asks a running office; cheap to copy.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// Asks and waits for the answer.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(Request { ask, reply }).await;
        sent.map_err(|_| stopped())?;
        let lost = |_| Failure::new(BUG, "the office ended before it could answer");
        answer.await.map_err(lost)?
    }
}

/// What those are told who wait for an office that was stopped.
pub fn stopped() -> Failure {
    Failure::new(
        UNREACHED,
        "the office was stopped; nothing is lost, and what was not done yet goes on when it runs again",
    )
}

impl Office {
    /// Starts the office that these settings describe. The caller holds its [`Lock`]. A database that another process
    /// owns is waited for for so long.
    pub async fn start(settings: &Settings, patience: Duration) -> Outcome<Self> {
        let (link, wiring, bound) = open_link(settings).await?;
        let (requests, received) = mpsc::channel(REQUESTS);
        let (notices, _) = broadcast::channel(NOTICES);
        let (started, ready) = oneshot::channel();
        let settings = settings.clone();
        let heard = notices.clone();
        let work = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => {
                    drop(started.send(Err(Failure::new(BUG, format!("no runtime: {error}")))));
                    return;
                }
            };
            runtime.block_on(async move {
                match open_driver(&settings, patience, link, wiring, received, heard).await {
                    Ok(driver) => {
                        drop(started.send(Ok(())));
                        driver.run().await;
                    }
                    Err(failure) => drop(started.send(Err(failure))),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("office".into())
            .spawn(work)
            .map_err(io("cannot start a thread"))?;
        let office = Self {
            requests,
            notices,
            thread: Some(thread),
            bound,
        };
        ready
            .await
            .map_err(|_| Failure::new(BUG, "the office's thread ended early"))??;
        Ok(office)
    }

    /// Something to ask it by.
    pub fn handle(&self) -> Handle {
        Handle(self.requests.clone())
    }

    /// Hears what happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Stops it and waits until it has stopped.
    pub async fn stop(self) {
        drop(self.close().await);
    }

    /// Stops it, waits until it has stopped, and says whether it had gone astray.
    pub async fn close(mut self) -> Outcome<()> {
        drop(self.handle().ask(Ask::Stop).await);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Failure::new(
                BUG,
                "the office ended by a bug; its log says where",
            )),
        }
    }
}

async fn open_driver(
    settings: &Settings,
    patience: Duration,
    link: Link,
    wiring: Wiring,
    requests: mpsc::Receiver<Request>,
    notices: broadcast::Sender<Notice>,
) -> Outcome<Driver> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    own(&mut db, patience).await?;
    prepare(&mut db).await?;
    if settings.role == RoleName::Head {
        for told in check_rules(&mut db, settings).await? {
            tracing::warn!("{told}");
        }
    }
    let watcher = branchline_database::watch(&settings.database).await?;
    let broker = match (&settings.transport, settings.role) {
        (TransportSettings::Amqp(place), RoleName::Head) => Some(amqp_settings(settings, place)),
        _ => None,
    };
    let parts = Parts {
        upkeep: Upkeep::new(broker),
        db,
        watcher,
        link,
        wiring,
        transport: settings.transport.kind(),
        mode: settings.mode,
        retention: settings.retention,
        config: settings.file.clone(),
        plan: settings.plan.clone(),
        requests,
        notices,
    };
    Ok(Driver::new(parts).await?)
}

/// Brings our own tables in an office's database up to date. In one that belongs to no office none are made.
pub async fn prepare(db: &mut AnyDatabase) -> Outcome<()> {
    match Identity::load(db).await {
        Ok(_) => {}
        // There are no tables of ours to look into.
        Err(OfficeError::Database(DatabaseError::Mismatch { .. } | DatabaseError::Other(_))) => {
            return Err(Failure::usage(
                "this database belongs to no office (any more): run `branchline init` (head) or `branchline join` (branch)",
            ));
        }
        Err(error) => return Err(error.into()),
    }
    db.rollback().await?;
    Ok(db.prepare().await?)
}

/// Holds the plan's rules against the tables that were shared so far, and those that the database has now: who changed
/// tables while the office was down is told, not locked out.
pub async fn check_rules(db: &mut AnyDatabase, settings: &Settings) -> Outcome<Vec<String>> {
    let (schema, former) = outlook::present(db).await?;
    let found = db.definitions().await?;
    let tables: Vec<&Table> = schema.tables.iter().chain(&found.tables).collect();
    settings.plan.rules.check(&tables, &former)
}

/// Takes the database for this process, and waits for it for so long.
pub async fn own(db: &mut AnyDatabase, patience: Duration) -> Outcome<()> {
    let began = Instant::now();
    // The lock of a file goes with its process, so that who holds it lives.
    let patience = match db {
        AnyDatabase::Sqlite(_) => patience.min(OWN_SOON),
        _ => patience,
    };
    let mut told = false;
    while !db.own().await? {
        if began.elapsed() >= patience {
            let why = "another process runs an office on this database, under another configuration file; stop that one, or use its file";
            // What was waited for that long may pass all the same: no reason never to start again.
            let code = if patience > OWN_SOON { DATABASE } else { USAGE };
            return Err(Failure::new(code, why));
        }
        if !told && began.elapsed() >= OWN_SOON {
            told = true;
            tracing::warn!(
                "another process owns this database, or did until its machine vanished, which the server notices within a minute: waiting for {} seconds",
                patience.as_secs()
            );
        }
        tokio::time::sleep(OWN_AGAIN).await;
    }
    Ok(())
}

/// The broker's side of the settings.
pub fn amqp_settings(settings: &Settings, place: &AmqpPlace) -> AmqpSettings {
    AmqpSettings {
        url: place.url.clone(),
        head_exchange: place.head_exchange.clone(),
        branches_exchange: place.branches_exchange.clone(),
        queue: place.queue.clone(),
        role: match settings.role {
            RoleName::Head => Role::Head {
                branch_queue_prefix: QUEUE_PREFIX.into(),
            },
            RoleName::Branch => Role::Branch(settings.name.clone()),
        },
        queue_kind: place.queue_kind,
        heartbeat_seconds: place.heartbeat_seconds,
        tls: place.tls.clone(),
    }
}

async fn open_link(settings: &Settings) -> Outcome<(Link, Wiring, Option<std::net::SocketAddr>)> {
    match &settings.transport {
        TransportSettings::Amqp(place) => {
            let link = branchline_transport::amqp::open(amqp_settings(settings, place))?;
            Ok((link, Wiring::Fanout, None))
        }
        TransportSettings::Listen {
            address,
            certificate,
            ..
        } => {
            let wrong =
                |why: String| Failure::usage(format!("transport.listen = \"{address}\": {why}"));
            let mut found = address
                .to_socket_addrs()
                .map_err(|error| wrong(error.to_string()))?;
            let address = found
                .next()
                .ok_or_else(|| wrong("no such address".into()))?;
            let certificate = match certificate {
                None => None,
                Some((cert, key)) => Some((read_file(cert)?, read_file(key)?)),
            };
            let (link, bound) = serve(ServeSettings {
                address,
                certificate,
            })
            .await?;
            Ok((link, Wiring::Direct, Some(bound)))
        }
        TransportSettings::Connect { url, pin, ca } => {
            let trust = match (pin, ca) {
                (Some(pin), _) => {
                    let pin: Pin = pin
                        .parse()
                        .map_err(|error| Failure::usage(format!("transport.pin: {error}")))?;
                    Trust::Pin(pin)
                }
                (None, Some(ca)) => Trust::CaFile(ca.clone()),
                (None, None) => Trust::System,
            };
            Ok((
                dial(DialSettings {
                    url: url.clone(),
                    trust,
                })?,
                Wiring::Direct,
                None,
            ))
        }
    }
}

/// Reads a file that the configuration names.
pub fn read_file(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(io(format_args!("cannot read {}", path.display())))
}

/// The right to be the one process that owns an office's database.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it, or says who has it.
    pub fn take(config: &Path) -> Outcome<Option<Self>> {
        let path = beside(config, "lock");
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(io(format_args!("cannot open {}", path.display())))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(Failure::new(
                USAGE,
                format!("cannot lock {}: {error}", path.display()),
            )),
        }
    }

    /// Takes it, waiting a moment for a process that is just stopping.
    pub async fn take_soon(config: &Path) -> Outcome<Option<Self>> {
        for _ in 0..10 {
            if let Some(lock) = Self::take(config)? {
                return Ok(Some(lock));
            }
            if crate::api::answers(config).await {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(None)
    }
}

/// A file beside the configuration, named after it.
pub fn beside(config: &Path, extension: &str) -> PathBuf {
    let mut name = config.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(extension);
    config.with_file_name(name)
}
