//! A branch's side: dials the head, and dials again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::talk::Inbox;
use super::tls::{self, Pin};
use super::{HANDSHAKE, PATH, WINDOW_BYTES, WINDOW_PARCELS, loopback, talk};
use crate::LinkError;
use crate::backoff::{Backoff, STEADY};
use crate::link::{End, Event, Link, LinkSender, Way, Workshop};
use crate::outlet::{Outlet, Port};

/// Where the head is and how it is known.
#[derive(Clone, Debug)]
pub struct DialSettings {
    /// `wss://host:port`, also with the path `/branchline`; `ws://` for loopback addresses only.
    pub url: String,
    /// How the head's certificate is checked.
    pub trust: Trust,
}

/// How a branch checks the head's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is exactly this one.
    Pin(Pin),
    /// One of these authorities (PEM) vouches for it and for the name.
    CaFile(PathBuf),
    /// An authority of the system vouches for it and for the name.
    System,
}

/// Starts the link. Fails only for settings that can never work.
pub fn dial(settings: DialSettings) -> Result<Link, LinkError> {
    let target = Target::of(settings)?;
    let (workshop, events) = Workshop::new();
    let port = Arc::new(Port::new());
    let sender = LinkSender(Way::One {
        port: Arc::clone(&port),
        end: End::Branch,
        settled: None,
    });
    let link = workshop.link(events, sender);
    let dialler = Dialler {
        target,
        workshop: workshop.clone(),
        port,
        connection: 0,
        told: None,
    };
    workshop.tasks.spawn(dialler.run());
    Ok(link)
}

/// A head's address, taken apart.
struct Target {
    settings: DialSettings,
    /// The whole address, as it stands in the upgrade request.
    url: String,
    host: String,
    port: u16,
    encrypted: bool,
}

impl Target {
    fn of(settings: DialSettings) -> Result<Self, LinkError> {
        let wrong = |what: &str| {
            LinkError::Settings(format!("the head's address `{}`: {what}", settings.url))
        };
        let url: Uri = settings
            .url
            .parse()
            .map_err(|_| wrong("is not a URL like wss://head.example:7443/branchline"))?;
        let encrypted = match url.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(wrong("must begin with wss://")),
        };
        let host = url.host().ok_or_else(|| wrong("names no host"))?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if !encrypted && !loopback(&host) {
            return Err(wrong("ws:// is for this machine only; use wss://"));
        }
        let path = url.path();
        if !matches!(path, "" | "/" | PATH) || url.query().is_some() {
            return Err(wrong("must end after the port, or in /branchline"));
        }
        let authority = url.authority().ok_or_else(|| wrong("names no host"))?;
        let scheme = if encrypted { "wss" } else { "ws" };
        let whole = format!("{scheme}://{authority}{PATH}");
        let port = url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self {
            settings,
            url: whole,
            host,
            port,
            encrypted,
        })
    }
}

/// Keeps a branch connected.
struct Dialler {
    target: Target,
    workshop: Workshop,
    port: Arc<Port>,
    connection: u64,
    /// What the owner last heard: `None` nothing, `Some(None)` up, `Some(Some(_))` down for this.
    told: Option<Option<LinkError>>,
}

impl Dialler {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            self.connection += 1;
            let started = Instant::now();
            let reason = self.connect().await;
            self.port.shut(reason.clone());
            if reason == LinkError::Closed {
                return;
            }
            if started.elapsed() > STEADY {
                backoff.reset();
            }
            if self.told == Some(None) {
                backoff.know();
            }
            let delay = backoff.after(&reason);
            tracing::warn!(%reason, ?delay, "link to the head down");
            let known = matches!(&self.told, Some(Some(told)) if told.needs_a_person() == reason.needs_a_person());
            if !known {
                self.told = Some(Some(reason.clone()));
                if !self.workshop.tell(Event::Down { peer: None, reason }).await {
                    break;
                }
            }
            if !self.workshop.pause(delay).await {
                break;
            }
        }
        self.port.shut(LinkError::Closed);
    }

    /// One connection, from dialling to its end.
    async fn connect(&mut self) -> LinkError {
        let stop = self.workshop.stop.clone();
        let reached = tokio::select! {
            () = stop.cancelled() => return LinkError::Closed,
            reached = timeout(HANDSHAKE, self.target.reach()) => reached,
        };
        match reached {
            Err(_) => LinkError::Down(format!("{} does not answer", self.target.settings.url)),
            Ok(Err(error)) => error,
            Ok(Ok(Reached::Tls(socket))) => self.hold(*socket).await,
            Ok(Ok(Reached::Plain(socket))) => self.hold(*socket).await,
        }
    }

    async fn hold<S>(&mut self, socket: WebSocketStream<S>) -> LinkError
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (outlet, parcels) = Outlet::new(WINDOW_PARCELS, WINDOW_BYTES);
        self.port.open(outlet);
        self.told = Some(None);
        if !self.workshop.tell(Event::Up { peer: None }).await {
            return LinkError::Closed;
        }
        tracing::info!(head = %self.target.settings.url, "link to the head up");
        let workshop = &self.workshop;
        let inbox = Inbox {
            workshop,
            connection: self.connection,
            standing: None,
        };
        let stop = async {
            tokio::select! {
                () = workshop.stop.cancelled() => LinkError::Closed,
                () = workshop.events.closed() => LinkError::Closed,
            }
        };
        talk::talk(socket, parcels, inbox, stop).await
    }
}

enum Reached {
    Tls(Box<WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>>),
    Plain(Box<WebSocketStream<TcpStream>>),
}

impl Target {
    async fn reach(&self) -> Result<Reached, LinkError> {
        let url = &self.settings.url;
        let down = |error: std::io::Error| LinkError::Down(format!("cannot reach {url}: {error}"));
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(down)?;
        stream.set_nodelay(true).map_err(down)?;
        if !self.encrypted {
            return Ok(Reached::Plain(Box::new(self.upgrade(stream).await?)));
        }
        let name = ServerName::try_from(self.host.clone());
        let name =
            name.map_err(|_| LinkError::Settings(format!("`{}` is not a host name", self.host)))?;
        let connector = TlsConnector::from(tls::client_config(&self.settings.trust)?);
        let stream = connector.connect(name, stream).await.map_err(|error| {
            match tls::is_about_trust(&error) {
                true => self.untrusted(&error),
                false => down(error),
            }
        })?;
        Ok(Reached::Tls(Box::new(self.upgrade(stream).await?)))
    }

    fn untrusted(&self, error: &std::io::Error) -> LinkError {
        LinkError::Refused(match &self.settings.trust {
            Trust::Pin(pin) => format!(
                "{} shows another certificate than the one pinned here ({pin}); if the head got a new one, join again \
                 with a new code, else someone sits in between",
                self.settings.url
            ),
            _ => format!(
                "the certificate of {} is not trusted: {error}",
                self.settings.url
            ),
        })
    }

    async fn upgrade<S>(&self, stream: S) -> Result<WebSocketStream<S>, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let url = &self.url;
        match client_async_with_config(url.as_str(), stream, Some(talk::limits())).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(answer)) => Err(LinkError::Refused(format!(
                "{url} answers HTTP {}; is it the head's address?",
                answer.status().as_u16()
            ))),
            Err(error) => Err(LinkError::Down(format!("cannot reach {url}: {error}"))),
        }
    }
}
