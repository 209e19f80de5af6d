//! Parcels from the window to the broker, and its confirms.

use std::collections::HashSet;

use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::mpsc;

use super::WINDOW_PARCELS;
use super::connect::Broker;
use crate::link::{Event, Workshop};
use crate::outlet::{Queued, Room};
use crate::{Destination, LinkError};

/// Published in one go: several times cheaper than one by one.
const GROUP: usize = 64;
/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A publish whose confirm is awaited; it keeps its room in the window.
struct Unconfirmed {
    confirm: PublisherConfirm,
    to: Destination,
    _room: Room,
}

/// Publishes until the channel fails.
pub(super) async fn publish(
    channel: &Channel,
    broker: &Broker,
    parcels: mpsc::Receiver<Queued>,
    route: impl Fn(&Destination) -> (String, String),
    workshop: &Workshop,
) -> LinkError {
    // As long as the window: a publish never waits for its place among the unconfirmed.
    let (published, unconfirmed) = mpsc::channel(WINDOW_PARCELS);
    tokio::select! {
        error = send(channel, broker, parcels, route, published) => error,
        error = confirm(broker, unconfirmed, workshop) => error,
    }
}

async fn send(
    channel: &Channel,
    broker: &Broker,
    mut parcels: mpsc::Receiver<Queued>,
    route: impl Fn(&Destination) -> (String, String),
    published: mpsc::Sender<Unconfirmed>,
) -> LinkError {
    let mut group = Vec::with_capacity(GROUP);
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_user_id(broker.user.as_str().into());
    while parcels.recv_many(&mut group, GROUP).await > 0 {
        let publishes = group.iter().map(|queued| {
            let (exchange, key) = route(&queued.parcel.to);
            let mandatory = BasicPublishOptions {
                mandatory: true,
                ..Default::default()
            };
            channel.basic_publish(
                exchange.into(),
                key.into(),
                mandatory,
                &queued.parcel.bytes,
                properties.clone(),
            )
        });
        let confirms = join_all(publishes).await;
        for (confirm, queued) in confirms.into_iter().zip(group.drain(..)) {
            match confirm {
                Ok(confirm) => {
                    let sent = Unconfirmed {
                        confirm,
                        to: queued.parcel.to,
                        _room: queued.room,
                    };
                    if published.send(sent).await.is_err() {
                        return LinkError::Closed;
                    }
                }
                Err(error) => return broker.sort(&error, "publishing"),
            }
        }
    }
    LinkError::Closed
}

async fn confirm(
    broker: &Broker,
    mut unconfirmed: mpsc::Receiver<Unconfirmed>,
    workshop: &Workshop,
) -> LinkError {
    let mut unroutable = HashSet::new();
    while let Some(sent) = unconfirmed.recv().await {
        match sent.confirm.await {
            Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {
                unroutable.remove(&sent.to);
            }
            // RabbitMQ confirms what it could not route, too.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                if unroutable.insert(sent.to.clone()) {
                    tracing::warn!(to = ?sent.to, broker = %broker.place, "the broker has no queue for this");
                    if !workshop.tell(Event::Unroutable { to: sent.to }).await {
                        return LinkError::Closed;
                    }
                }
            }
            Ok(Confirmation::Nack(None)) => {
                tracing::debug!(to = ?sent.to, broker = %broker.place, "the broker refused a message");
            }
            Err(error) => return broker.sort(&error, "publishing"),
        }
    }
    LinkError::Closed
}
