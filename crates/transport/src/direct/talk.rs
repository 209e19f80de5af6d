//! One connection's life, the same at both ends.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::registry::Standing;
use crate::link::{Event, Receipt, Workshop};
use crate::outlet::Queued;
use crate::{LinkError, MAX_ENVELOPE_BYTES};

const PING: Duration = Duration::from_secs(15);
/// Three pings of the peer are missing.
const SILENCE: Duration = Duration::from_secs(45);
const WRITE_BUFFER: usize = 128 * 1024;
/// For what is queued when a connection is ended, and again for the closing: a refusal goes out before the door is shut.
const FAREWELL: Duration = Duration::from_secs(1);

/// The limits of both ends.
pub(super) fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_ENVELOPE_BYTES))
        .max_frame_size(Some(MAX_ENVELOPE_BYTES))
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * MAX_ENVELOPE_BYTES)
}

/// Where a connection's envelopes go.
pub(super) struct Inbox<'a> {
    pub(super) workshop: &'a Workshop,
    pub(super) connection: u64,
    /// At the head: whose connection it is.
    pub(super) standing: Option<watch::Receiver<Standing>>,
}

impl Inbox<'_> {
    /// Hands an envelope to the owner; `false` when there is none any more.
    async fn arrived(&self, bytes: Bytes) -> bool {
        let sender = self
            .standing
            .as_ref()
            .and_then(|standing| match &*standing.borrow() {
                Standing::Named(name) => Some(name.clone()),
                _ => None,
            });
        let (connection, receipt) = (self.connection, Receipt::NONE);
        self.workshop
            .tell(Event::Arrived {
                bytes,
                sender,
                user: None,
                connection,
                receipt,
            })
            .await
    }
}

/// Sends what is queued and hands over what comes, until the connection ends, or `stop` does; then what is queued still
/// goes out. While the owner is busy nothing is read, but pings still go out: a slow owner is not a dead one.
pub(super) async fn talk<S>(
    socket: WebSocketStream<S>,
    parcels: mpsc::Receiver<Queued>,
    inbox: Inbox<'_>,
    stop: impl Future<Output = LinkError>,
) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, stream) = socket.split();
    let (last_words, no_more) = oneshot::channel();
    let reason = {
        let mut writing = pin!(write(&mut sink, parcels, no_more));
        tokio::select! {
            reason = stop => {
                drop(last_words);
                let _ = timeout(FAREWELL, writing).await;
                reason
            }
            reason = read(stream, inbox) => reason,
            reason = &mut writing => reason,
        }
    };
    let _ = timeout(FAREWELL, sink.close()).await;
    reason
}

async fn read(
    mut stream: impl StreamExt<Item = Result<Message, Error>> + Unpin,
    inbox: Inbox<'_>,
) -> LinkError {
    loop {
        let message = match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return sort(&error),
            Ok(None) => return LinkError::Down("the peer closed the connection".into()),
            Err(_) => {
                return LinkError::Down(format!(
                    "the peer was silent for {} seconds",
                    SILENCE.as_secs()
                ));
            }
        };
        match message {
            Message::Binary(bytes) => {
                if !inbox.arrived(bytes).await {
                    return LinkError::Closed;
                }
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            Message::Close(_) => return LinkError::Down("the peer closed the connection".into()),
            Message::Text(_) => {
                return LinkError::Down("the peer speaks something else: it sent text".into());
            }
        }
    }
}

/// Writes until nothing can come any more: the sending side is gone, or what is queued when `no_more` falls is written.
async fn write<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    mut parcels: mpsc::Receiver<Queued>,
    mut no_more: oneshot::Receiver<()>,
) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ending = false;
    loop {
        let written = tokio::select! {
            queued = parcels.recv() => match queued {
                Some(queued) => write_all(sink, queued, &mut parcels).await,
                None => return LinkError::Closed,
            },
            _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await,
            _ = &mut no_more, if !ending => {
                ending = true;
                parcels.close();
                continue;
            }
        };
        if let Err(error) = written {
            return sort(&error);
        }
    }
}

/// Writes what is queued now, then flushes once.
async fn write_all<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    first: Queued,
    parcels: &mut mpsc::Receiver<Queued>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut next = Some(first);
    while let Some(queued) = next {
        sink.feed(Message::Binary(queued.parcel.bytes)).await?;
        next = parcels.try_recv().ok();
    }
    sink.flush().await
}

fn sort(error: &Error) -> LinkError {
    match error {
        Error::Capacity(_) => LinkError::Down(format!(
            "the peer sent more than {MAX_ENVELOPE_BYTES} bytes in one envelope"
        )),
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_) => {
            LinkError::Down(format!("the peer closed the connection: {error}"))
        }
        other => LinkError::Down(format!("the connection broke: {other}")),
    }
}
