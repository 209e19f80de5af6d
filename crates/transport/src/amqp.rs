//! Envelopes over RabbitMQ: two durable fanout exchanges, one durable queue for each office.
//!
//! A parcel goes: window (`outlet`) → `publish` → exchange or queue → `consume` at the other side → event → `Settled`
//! once its receipt comes back → acknowledged. Publishing and consuming have a connection each, so that a broker that
//! blocks publishers still delivers. One loop here owns both: connect, declare, run until either fails, back off,
//! again; lapin's own recovery is not used. What was unconfirmed or unsettled when a connection went is not kept: the
//! protocol above resends (the broker is a pipe, not the record).

mod connect;
mod consume;
mod probe;
mod publish;
mod topology;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::identity::OfficeName;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;

use crate::backoff::{Backoff, STEADY};
use crate::link::{End, Event, Link, LinkSender, Way, Workshop};
use crate::outlet::{Outlet, Port};
use crate::{Destination, LinkError};

use connect::{Broker, GIVE_UP, REACH};
pub(crate) use consume::Settled;
pub use probe::{ProbeFinding, branch_permissions, probe};
pub use topology::{declare_branches, declare_head, delete_branch};

/// Unconfirmed publishes in flight, at most.
const WINDOW_PARCELS: usize = 256;
/// Their bytes, at most, unless it is one: the client library holds them twice.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Unsettled deliveries, at most: somewhat more than the inbox takes, so that the next ones are here when it is empty again.
const PREFETCH: u16 = 32;

/// How to reach the broker and what is whose there.
#[derive(Clone)]
pub struct AmqpSettings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`. With `?auth_mechanism=external` the user must be named
    /// too: it is put on every message, and RabbitMQ checks it.
    pub url: String,
    /// The fanout exchange that branches publish to.
    pub head_exchange: String,
    /// The fanout exchange that the head publishes to.
    pub branches_exchange: String,
    /// This office's own queue.
    pub queue: String,
    /// Which office this is.
    pub role: Role,
    /// The kind of the queues that are declared.
    pub queue_kind: QueueKind,
    /// Both sides notice a silent connection after about twice this.
    pub heartbeat_seconds: u16,
    /// Certificates, for `amqps://`.
    pub tls: TlsFiles,
}

/// Which office an [`AmqpSettings`] speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The head declares exchanges and queues.
    Head {
        /// A branch's queue is this followed by its name.
        branch_queue_prefix: String,
    },
    /// A branch declares nothing: its user needs no configure right.
    Branch(OfficeName),
}

/// Where RabbitMQ keeps a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// On one node.
    Classic,
    /// Replicated.
    Quorum,
}

/// PEM files for `amqps://`; read anew for every connection. The broker's name is always verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities trusted besides those of the system.
    pub ca: Option<PathBuf>,
    /// This office's certificate, with its key.
    pub cert: Option<PathBuf>,
    /// The key of `cert`.
    pub key: Option<PathBuf>,
}

impl fmt::Debug for AmqpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Broker::of(self).map_or_else(|error| error.to_string(), |broker| broker.place);
        let mut shown = f.debug_struct("AmqpSettings");
        shown
            .field("url", &place)
            .field("queue", &self.queue)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// Starts the link. Fails only for settings that can never work; everything else is told as events and tried again.
pub fn open(settings: AmqpSettings) -> Result<Link, LinkError> {
    Broker::of(&settings)?;
    let (workshop, events) = Workshop::new();
    let (port, settled) = (Arc::new(Port::new()), Arc::new(Settled::default()));
    let end = if matches!(settings.role, Role::Head { .. }) {
        End::Head
    } else {
        End::Branch
    };
    let sender = LinkSender(Way::One {
        port: Arc::clone(&port),
        end,
        settled: Some(Arc::clone(&settled)),
    });
    let link = workshop.link(events, sender);
    let keeper = Keeper {
        settings,
        workshop: workshop.clone(),
        port,
        settled,
        session: 0,
        told: None,
    };
    workshop.tasks.spawn(keeper.run());
    Ok(link)
}

/// Keeps one link alive.
struct Keeper {
    settings: AmqpSettings,
    workshop: Workshop,
    port: Arc<Port>,
    settled: Arc<Settled>,
    session: u64,
    /// What the owner last heard: `None` nothing, `Some(None)` up, `Some(Some(_))` down for this.
    told: Option<Option<LinkError>>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            self.session += 1;
            let started = Instant::now();
            let error = self.session().await;
            self.port.shut(error.clone());
            if error == LinkError::Closed {
                return;
            }
            if started.elapsed() > STEADY {
                backoff.reset();
            }
            let delay = backoff.after(&error);
            tracing::warn!(%error, ?delay, "broker link down");
            if !self.tell_down(error).await || !self.workshop.pause(delay).await {
                self.port.shut(LinkError::Closed);
                return;
            }
        }
    }

    /// One pair of connections, from dialling to its end.
    async fn session(&mut self) -> LinkError {
        let stop = self.workshop.stop.clone();
        let started = tokio::select! {
            () = stop.cancelled() => return LinkError::Closed,
            started = self.start_session() => started,
        };
        match started {
            Ok(session) => session.run(self).await,
            Err(error) => error,
        }
    }

    async fn start_session(&mut self) -> Result<Session, LinkError> {
        let broker = Broker::of(&self.settings)?;
        let mut dialling = broker.dial_pair();
        let dialled = match timeout(REACH, &mut dialling).await {
            Ok(dialled) => dialled,
            Err(_) => {
                if !self.tell_down(broker.silent()).await {
                    return Err(LinkError::Closed);
                }
                timeout(GIVE_UP, dialling)
                    .await
                    .map_err(|_| broker.silent())?
            }
        };
        let (publisher, consumer) = dialled.map_err(|_| broker.silent())??;
        let problem = |error: lapin::Error| broker.sort(&error, "opening a channel");
        let to = publisher.create_channel().await.map_err(problem)?;
        to.confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(problem)?;
        if matches!(self.settings.role, Role::Head { .. }) {
            topology::declare_on(&publisher, &broker, &self.settings).await?;
        }
        let from = consumer.create_channel().await.map_err(problem)?;
        from.basic_qos(PREFETCH, BasicQosOptions::default())
            .await
            .map_err(problem)?;
        let (queue, tag) = (self.settings.queue.as_str(), "branchline");
        let deliveries = from.basic_consume(
            queue.into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let deliveries = deliveries
            .await
            .map_err(|error| broker.sort_setup(&error, &format!("reading the queue `{queue}`")))?;
        Ok(Session {
            broker,
            publisher,
            consumer,
            to,
            from,
            deliveries,
        })
    }

    /// Tells of a failure unless the owner already knows one of this sort.
    async fn tell_down(&mut self, reason: LinkError) -> bool {
        let known = matches!(&self.told, Some(Some(told)) if told.needs_a_person() == reason.needs_a_person());
        if known {
            return true;
        }
        self.told = Some(Some(reason.clone()));
        self.workshop.tell(Event::Down { peer: None, reason }).await
    }

    /// What a destination is to the broker: exchange and routing key.
    fn route(&self, to: &Destination) -> (String, String) {
        match (&self.settings.role, to) {
            (
                Role::Head {
                    branch_queue_prefix,
                },
                Destination::Branch(name),
            ) => (String::new(), format!("{branch_queue_prefix}{name}")),
            (Role::Head { .. }, _) => (self.settings.branches_exchange.clone(), String::new()),
            (Role::Branch(_), _) => (self.settings.head_exchange.clone(), String::new()),
        }
    }
}

/// A pair of connections in use.
struct Session {
    broker: Broker,
    publisher: lapin::Connection,
    consumer: lapin::Connection,
    to: lapin::Channel,
    from: lapin::Channel,
    deliveries: lapin::Consumer,
}

impl Session {
    async fn run(self, keeper: &mut Keeper) -> LinkError {
        let Self {
            broker,
            publisher,
            consumer,
            to,
            from,
            deliveries,
        } = self;
        let (outlet, parcels) = Outlet::new(WINDOW_PARCELS, WINDOW_BYTES);
        keeper.settled.begin(keeper.session);
        let watching = [
            Self::watch(&publisher, &broker),
            Self::watch(&consumer, &broker),
        ];
        keeper.port.open(outlet);
        keeper.told = Some(None);
        if !keeper.workshop.tell(Event::Up { peer: None }).await {
            return LinkError::Closed;
        }
        tracing::info!(broker = %broker.place, "broker link up");
        let [publisher_end, consumer_end] = watching;
        let keeper = &*keeper;
        let error = tokio::select! {
            error = publish::publish(&to, &broker, parcels, |to| keeper.route(to), &keeper.workshop) => error,
            error = consume::deliver(deliveries, &broker, keeper.session, &keeper.settled, &keeper.workshop) => error,
            error = consume::acknowledge(&from, &broker, &keeper.settled) => error,
            error = publisher_end => error,
            error = consumer_end => error,
            () = keeper.workshop.stop.cancelled() => LinkError::Closed,
            () = keeper.workshop.events.closed() => LinkError::Closed,
        };
        keeper.port.shut(error.clone());
        let farewell = async {
            tokio::join!(
                publisher.close(200, "OK".into()),
                consumer.close(200, "OK".into())
            )
        };
        let _ = timeout(Duration::from_secs(2), farewell).await;
        error
    }

    /// Ends when the connection does, also while nothing is sent on it.
    fn watch(connection: &lapin::Connection, broker: &Broker) -> impl Future<Output = LinkError> {
        let (mut happenings, broker) = (connection.events_listener(), broker.clone());
        async move {
            while let Some(happening) = happenings.next().await {
                match happening {
                    lapin::Event::Error(error) => {
                        return broker.sort(&error, "using the connection");
                    }
                    lapin::Event::ConnectionBlocked(reason) => {
                        let broker = &broker.place;
                        tracing::warn!(%broker, %reason, "the broker takes no messages; free its disk or memory");
                    }
                    lapin::Event::ConnectionUnblocked => {
                        tracing::info!(broker = %broker.place, "the broker takes messages again");
                    }
                    _ => {}
                }
            }
            LinkError::Down(format!("{} closed the connection", broker.place))
        }
    }
}
