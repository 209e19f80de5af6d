//! Deliveries from the broker, and their acknowledgement once the database has them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::sync::Notify;

use super::connect::Broker;
use crate::guarded::lock;
use crate::link::{Event, Receipt, Workshop};
use crate::{LinkError, MAX_ENVELOPE_BYTES};

/// The deliveries of the present connection: which are outstanding, which are settled and wait to be acknowledged.
/// Bounded by the prefetch window.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Book {
    session: u64,
    outstanding: BTreeSet<u64>,
    settled: BTreeSet<u64>,
}

impl Settled {
    /// Forgets the older connection: its deliveries come again.
    pub(super) fn begin(&self, session: u64) {
        *lock(&self.book) = Book {
            session,
            ..Book::default()
        };
    }

    fn delivered(&self, session: u64, tag: u64) -> Receipt {
        lock(&self.book).outstanding.insert(tag);
        Receipt { session, tag }
    }

    /// Marks a delivery of the present connection.
    pub(crate) fn settle(&self, receipt: &Receipt) {
        let mut book = lock(&self.book);
        if book.session == receipt.session && book.outstanding.remove(&receipt.tag) {
            book.settled.insert(receipt.tag);
            self.changed.notify_one();
        }
    }

    fn take(&self) -> Acks {
        lock(&self.book).take()
    }
}

/// What to tell the broker.
#[derive(Debug, Default, PartialEq, Eq)]
struct Acks {
    /// This and everything before it.
    up_to: Option<u64>,
    single: Vec<u64>,
}

impl Book {
    /// One acknowledgement for all that is settled below the first outstanding delivery. It must name a tag that was
    /// not acknowledged before, or the broker closes the channel.
    fn take(&mut self) -> Acks {
        let mut below = std::mem::take(&mut self.settled);
        let above = self
            .outstanding
            .first()
            .map_or_else(BTreeSet::new, |first| below.split_off(first));
        Acks {
            up_to: below.last().copied(),
            single: above.into_iter().collect(),
        }
    }
}

/// Hands deliveries to the owner until the channel fails.
pub(super) async fn deliver(
    mut deliveries: lapin::Consumer,
    broker: &Broker,
    session: u64,
    settled: &Settled,
    workshop: &Workshop,
) -> LinkError {
    while let Some(delivery) = deliveries.next().await {
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => return broker.sort(&error, "consuming"),
        };
        let receipt = settled.delivered(session, delivery.delivery_tag);
        let user = delivery
            .properties
            .user_id()
            .as_ref()
            .map(ToString::to_string);
        if delivery.data.len() > MAX_ENVELOPE_BYTES {
            tracing::warn!(
                user,
                bytes = delivery.data.len(),
                "dropped a message larger than any envelope"
            );
            settled.settle(&receipt);
            continue;
        }
        let bytes = Bytes::from(delivery.data);
        if !workshop
            .tell(Event::Arrived {
                bytes,
                sender: None,
                user,
                connection: 0,
                receipt,
            })
            .await
        {
            return LinkError::Closed;
        }
    }
    let queue = deliveries.queue();
    LinkError::Down(format!(
        "{} ended the delivery from `{queue}`; was the queue deleted?",
        broker.place
    ))
}

/// Acknowledges what is settled until the channel fails.
pub(super) async fn acknowledge(
    channel: &Channel,
    broker: &Broker,
    settled: &Settled,
) -> LinkError {
    loop {
        settled.changed.notified().await;
        let Acks { up_to, single } = settled.take();
        let all = up_to.map(|tag| channel.basic_ack(tag, BasicAckOptions { multiple: true }));
        let rest = single
            .into_iter()
            .map(|tag| channel.basic_ack(tag, BasicAckOptions { multiple: false }));
        if let Err(error) = try_join_all(all.into_iter().chain(rest)).await {
            return broker.sort(&error, "acknowledging");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(settled: &Settled, session: u64, tags: &[u64]) {
        for &tag in tags {
            settled.settle(&Receipt { session, tag });
        }
    }

    #[test]
    fn acknowledges_together_what_has_no_gap_before_it() {
        let settled = Settled::default();
        settled.begin(7);
        for tag in 1..=6 {
            let _ = settled.delivered(7, tag);
        }
        settle(&settled, 7, &[2, 1, 4, 4]);
        assert_eq!(
            settled.take(),
            Acks {
                up_to: Some(2),
                single: vec![4]
            }
        );
        settle(&settled, 7, &[3]);
        assert_eq!(
            settled.take(),
            Acks {
                up_to: Some(3),
                single: vec![]
            }
        );
        settle(&settled, 6, &[5]);
        assert_eq!(
            settled.take(),
            Acks::default(),
            "a receipt of an older connection"
        );
        settle(&settled, 7, &[5, 6]);
        assert_eq!(
            settled.take(),
            Acks {
                up_to: Some(6),
                single: vec![]
            }
        );
    }
}
