//! The head's side: accepts connections and keeps each until it ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::door::{Crowd, Door, Place};
use super::registry::{Registry, Seat, Standing};
use super::talk::Inbox;
use super::{HANDSHAKE, PATH, loopback, talk, tls};
use crate::LinkError;
use crate::link::{Event, Link, LinkSender, Way, Workshop};

/// Open connections, at most; who comes then is turned away.
const MAX_CONNECTIONS: usize = 2000;
/// Connections that have not yet said who they are, at most; who comes then waits in the system's queue.
const MAX_UNNAMED: usize = 256;
/// How long a connection may stay unnamed.
const UNNAMED: Duration = Duration::from_secs(10);

/// Where and as whom the head listens.
#[derive(Clone)]
pub struct ServeSettings {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate chain and key, PEM. `None` speaks plainly, on loopback addresses only.
    pub certificate: Option<(String, String)>,
}

impl fmt::Debug for ServeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeSettings")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Listens; answers the link and the address that it is bound to. There is no `Up` for the listening itself: each
/// branch has its own, once [`LinkSender::name_peer`] named its connection. One that is not named within ten seconds
/// is closed.
pub async fn serve(settings: ServeSettings) -> Result<(Link, SocketAddr), LinkError> {
    let acceptor = match &settings.certificate {
        Some((cert_pem, key_pem)) => {
            Some(TlsAcceptor::from(tls::server_config(cert_pem, key_pem)?))
        }
        None if loopback(&settings.address.ip().to_string()) => None,
        None => {
            return Err(LinkError::Settings(
                "listening beyond loopback addresses needs a certificate".into(),
            ));
        }
    };
    let refused = |error| {
        LinkError::Refused(format!(
            "cannot listen on {}: {error}; free it, or change `transport.listen`",
            settings.address
        ))
    };
    let listener = TcpListener::bind(settings.address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let (workshop, events) = Workshop::new();
    let registry = Arc::new(Registry::default());
    let link = workshop.link(events, LinkSender(Way::Many(Arc::clone(&registry))));
    let hall = Hall {
        acceptor,
        registry,
        workshop: workshop.clone(),
        open: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        unnamed: Arc::new(Semaphore::new(MAX_UNNAMED)),
        crowd: Crowd::default(),
    };
    workshop.tasks.spawn(Arc::new(hall).accept(listener));
    Ok((link, bound))
}

/// Everything that connections share.
struct Hall {
    acceptor: Option<TlsAcceptor>,
    registry: Arc<Registry>,
    workshop: Workshop,
    open: Arc<Semaphore>,
    unnamed: Arc<Semaphore>,
    crowd: Crowd,
}

/// A connection's share of the unnamed ones, until it is named or ends.
struct Unnamed {
    _of_all: OwnedSemaphorePermit,
    _of_its_address: Place,
}

impl Hall {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let stop = self.workshop.stop.clone();
        let accepting = async {
            loop {
                let Ok(of_all) = Arc::clone(&self.unnamed).acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, from)) => self.admit(stream, from, of_all),
                    Err(error) => {
                        // Out of file handles, mostly: others must end first.
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.workshop.events.closed() => {}
            () = accepting => {}
        }
        self.registry.close();
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, of_all: OwnedSemaphorePermit) {
        let Some(of_its_address) = self.crowd.enter(from.ip()) else {
            tracing::info!(%from, "turned away: too many from there have not said who they are");
            return;
        };
        let unnamed = Unnamed {
            _of_all: of_all,
            _of_its_address: of_its_address,
        };
        let Ok(open) = Arc::clone(&self.open).try_acquire_owned() else {
            tracing::warn!(%from, "turned away: {MAX_CONNECTIONS} connections are open");
            return;
        };
        let hall = Arc::clone(self);
        self.workshop.tasks.spawn(async move {
            let stop = hall.workshop.stop.clone();
            let reason = tokio::select! {
                () = stop.cancelled() => return,
                reason = hall.shake_hands(stream) => reason,
            };
            match reason {
                Ok(Connection::Tls(socket)) => hall.keep(*socket, unnamed).await,
                Ok(Connection::Plain(socket)) => hall.keep(*socket, unnamed).await,
                Err(reason) => tracing::info!(%from, reason, "a connection came to nothing"),
            }
            drop(open);
        });
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<Connection, String> {
        let shaking = async {
            stream
                .set_nodelay(true)
                .map_err(|error| error.to_string())?;
            let Some(acceptor) = &self.acceptor else {
                return Ok(Connection::Plain(Box::new(
                    upgrade(Door::new(stream)).await?,
                )));
            };
            let stream = acceptor
                .accept(stream)
                .await
                .map_err(|error| error.to_string())?;
            Ok(Connection::Tls(Box::new(upgrade(Door::new(stream)).await?)))
        };
        timeout(HANDSHAKE, shaking)
            .await
            .unwrap_or_else(|_| Err("it took too long".into()))
    }

    async fn keep<S>(&self, mut socket: WebSocketStream<Door<S>>, unnamed: Unnamed)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Seat {
            connection,
            parcels,
            standing,
        } = self.registry.enter();
        socket.get_mut().watch(standing.clone());
        let inbox = Inbox {
            workshop: &self.workshop,
            connection,
            standing: Some(standing.clone()),
        };
        let reason = talk::talk(
            socket,
            parcels,
            inbox,
            self.attend(connection, standing, unnamed),
        )
        .await;
        tracing::debug!(connection, %reason, "a connection ended");
        self.registry.leave(connection, reason, self.room().await);
    }

    /// Room for one event, unless the link is stopped first.
    async fn room(&self) -> Option<mpsc::Permit<'_, Event>> {
        tokio::select! {
            () = self.workshop.stop.cancelled() => None,
            room = self.workshop.events.reserve() => room.ok(),
        }
    }

    /// Waits until the connection is named, tells so, and then until it must end.
    async fn attend(
        &self,
        connection: u64,
        mut standing: watch::Receiver<Standing>,
        unnamed: Unnamed,
    ) -> LinkError {
        match timeout(UNNAMED, standing.wait_for(|now| *now != Standing::Unnamed))
            .await
            .map(|now| now.is_ok())
        {
            Err(_) => {
                return LinkError::Down("the connection did not say whose it is in time".into());
            }
            Ok(false) => return LinkError::Closed,
            Ok(true) => {}
        }
        drop(unnamed);
        let mut told = None;
        loop {
            let now = standing.borrow_and_update().clone();
            if now == Standing::Ended {
                return LinkError::Down("the head closed the connection".into());
            }
            if let Standing::Named(name) = now
                && told.as_ref() != Some(&name)
            {
                match self.room().await {
                    Some(room) => self.registry.tell_up(connection, &name, room),
                    None => return LinkError::Closed,
                }
                told = Some(name);
            }
            tokio::select! {
                () = self.workshop.stop.cancelled() => return LinkError::Closed,
                changed = standing.changed() => if changed.is_err() { return LinkError::Closed },
            }
        }
    }
}

enum Connection {
    Tls(Box<WebSocketStream<Door<tokio_rustls::server::TlsStream<TcpStream>>>>),
    Plain(Box<WebSocketStream<Door<TcpStream>>>),
}

async fn upgrade<S>(stream: S) -> Result<WebSocketStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    accept_hdr_async_with_config(stream, only_our_path, Some(talk::limits()))
        .await
        .map_err(|error| error.to_string())
}

#[allow(clippy::result_large_err)] // the shape that the handshake asks for
fn only_our_path(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == PATH {
        return Ok(response);
    }
    let mut refused = ErrorResponse::new(None);
    *refused.status_mut() = StatusCode::NOT_FOUND;
    Err(refused)
}
