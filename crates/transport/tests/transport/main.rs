//! Envelopes over real sockets and a real broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod amqp;
mod direct;
mod in_process;
mod tls;

use std::time::Duration;

use branchline_core::identity::OfficeName;
use branchline_transport::{Destination, Event, Link, LinkError, Parcel, Receipt};
use bytes::Bytes;

const PATIENCE: Duration = Duration::from_secs(40);

fn name(text: &str) -> OfficeName {
    OfficeName::new(text).unwrap()
}

fn parcel(to: Destination, bytes: impl Into<Bytes>) -> Parcel {
    Parcel {
        to,
        bytes: bytes.into(),
    }
}

/// What came, less what a test does not look at.
struct Came {
    bytes: Bytes,
    sender: Option<OfficeName>,
    user: Option<String>,
    connection: u64,
    receipt: Receipt,
}

async fn next(link: &mut Link) -> Event {
    let event = tokio::time::timeout(PATIENCE, link.events.recv()).await;
    event.expect("an event in time").expect("the link lives")
}

async fn up(link: &mut Link) -> Option<OfficeName> {
    match next(link).await {
        Event::Up { peer } => peer,
        other => panic!("expected Up, got {other:?}"),
    }
}

async fn down(link: &mut Link) -> (Option<OfficeName>, LinkError) {
    match next(link).await {
        Event::Down { peer, reason } => (peer, reason),
        other => panic!("expected Down, got {other:?}"),
    }
}

async fn came(link: &mut Link) -> Came {
    match next(link).await {
        Event::Arrived {
            bytes,
            sender,
            user,
            connection,
            receipt,
        } => Came {
            bytes,
            sender,
            user,
            connection,
            receipt,
        },
        other => panic!("expected Arrived, got {other:?}"),
    }
}
