//! Reaching the broker, and sorting what it answers.

use std::path::Path;
use std::time::Duration;

use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{AmqpSettings, TlsFiles};
use crate::LinkError;

/// For the TCP connection, and again for the broker's greeting before the link is told to be down.
pub(super) const REACH: Duration = Duration::from_secs(10);
/// A broker that greets later than this is dialled anew.
pub(super) const GIVE_UP: Duration = Duration::from_secs(120);
/// Room for the longest name that AMQP allows, less a prefix.
const MAX_NAME: usize = 180;

/// A broker's address, ready to dial.
#[derive(Clone)]
pub(super) struct Broker {
    uri: AMQPUri,
    tls: TlsFiles,
    /// The address as shown to people: without the password.
    pub(super) place: String,
    /// The user that every message carries.
    pub(super) user: String,
}

impl Broker {
    /// Checks the settings.
    pub(super) fn of(settings: &AmqpSettings) -> Result<Self, LinkError> {
        // The parser's message may hold the URL, and with it the password.
        let mut uri: AMQPUri = settings.url.parse().map_err(|_| {
            LinkError::Settings(
                "the broker's URL must look like amqp://user:password@host:5672/vhost".into(),
            )
        })?;
        // The parser silently takes `localhost` for an address in brackets.
        if let Some(host) = bracketed(&settings.url) {
            host.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        uri.query.heartbeat = Some(settings.heartbeat_seconds);
        for name in [
            &settings.head_exchange,
            &settings.branches_exchange,
            &settings.queue,
        ] {
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(LinkError::Settings(format!(
                    "`{name}` is no name for an exchange or queue: use 1 to {MAX_NAME} bytes"
                )));
            }
        }
        let user = uri.authority.userinfo.username.clone();
        if user.len() > MAX_NAME {
            return Err(LinkError::Settings(format!(
                "the broker's user name is longer than {MAX_NAME} bytes"
            )));
        }
        if settings.tls.cert.is_some() != settings.tls.key.is_some() {
            return Err(LinkError::Settings(
                "a client certificate needs both `cert` and `key`".into(),
            ));
        }
        let place = format!(
            "{}://{user}@{}:{}/{}",
            uri.scheme, uri.authority.host, uri.authority.port, uri.vhost
        );
        Ok(Self {
            uri,
            tls: settings.tls.clone(),
            place,
            user,
        })
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Dials, and waits for the broker's greeting as long as it takes.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Connection, LinkError> {
        let tls = if self.uri.scheme == AMQPScheme::AMQPS {
            self.read_tls().await?
        } else {
            OwnedTLSConfig::default()
        };
        let runtime =
            lapin::runtime::default_runtime().map_err(|error| self.sort(&error, "starting"))?;
        let named = ConnectionProperties::default()
            .with_connection_name(format!("branchline {purpose}").into());
        let dial = async move |uri: AMQPUri, runtime| {
            let reached = timeout(
                REACH,
                AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &runtime),
            )
            .await;
            Ok(reached.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??)
        };
        let connected = Connection::connector(self.uri.clone(), runtime, dial, named).await;
        connected.map_err(|error| self.sort_setup(&error, "connecting"))
    }

    /// Dials twice, once to publish and once to consume. Lapin's thread ends only with its connection, so the attempt
    /// is a task that the caller may wait for again instead of replacing it.
    pub(super) fn dial_pair(&self) -> JoinHandle<Result<(Connection, Connection), LinkError>> {
        let broker = self.clone();
        tokio::spawn(async move {
            tokio::try_join!(broker.connect("publish"), broker.connect("consume"))
        })
    }

    /// As [`connect`](Self::connect), for one-time commands.
    pub(super) async fn connect_soon(&self, purpose: &str) -> Result<Connection, LinkError> {
        timeout(REACH, self.connect(purpose))
            .await
            .map_err(|_| self.silent())?
    }

    pub(super) fn silent(&self) -> LinkError {
        LinkError::Down(format!("{} does not answer", self.place))
    }

    async fn read_tls(&self) -> Result<OwnedTLSConfig, LinkError> {
        let cert_chain = match &self.tls.ca {
            Some(file) => Some(String::from_utf8_lossy(&read(file).await?).into_owned()),
            None => None,
        };
        let identity = match (&self.tls.cert, &self.tls.key) {
            (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
                pem: read(cert).await?,
                key: read(key).await?,
            }),
            _ => None,
        };
        Ok(OwnedTLSConfig {
            identity,
            cert_chain,
        })
    }

    /// Sorts an error of a connection in use.
    pub(super) fn sort(&self, error: &lapin::Error, doing: &str) -> LinkError {
        let text = format!("{doing} at {}: {error}", self.place);
        match error.kind() {
            ErrorKind::ProtocolError(told) if matches!(told.get_id(), 403 | 404 | 530) => {
                LinkError::Refused(text)
            }
            ErrorKind::IOError(told) if told.kind() == std::io::ErrorKind::InvalidData => {
                LinkError::Refused(format!("{text}; check the certificates and the host name"))
            }
            ErrorKind::AuthProviderError(_) => LinkError::Refused(text),
            _ => LinkError::Down(text),
        }
    }

    /// Sorts an error of connecting or declaring, where the broker's answer says what a person must do.
    pub(super) fn sort_setup(&self, error: &lapin::Error, doing: &str) -> LinkError {
        let ErrorKind::ProtocolError(told) = error.kind() else {
            return self.sort(error, doing);
        };
        let advice = match told.get_id() {
            403 => "check the user's password and permissions",
            404 => {
                "it does not exist: the head declares the exchanges, and `invite` a branch's queue"
            }
            406 => "it exists with other properties: delete it, or change the settings",
            530 => "check that the vhost exists and that the user may use it",
            _ => return self.sort(error, doing),
        };
        LinkError::Refused(format!(
            "{doing} at {}: {}; {advice}",
            self.place,
            told.get_message()
        ))
    }
}

fn bracketed(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?
        .split_once(']')
        .map(|(address, _)| address)
}

async fn read(file: &Path) -> Result<Vec<u8>, LinkError> {
    let told = |error| LinkError::Refused(format!("cannot read {}: {error}", file.display()));
    tokio::fs::read(file).await.map_err(told)
}
