//! The bounded window between a sender and a connection.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio::time::timeout;

use crate::guarded::lock;
use crate::{LinkError, MAX_ENVELOPE_BYTES, Parcel};

/// How long a sender waits for room before the link counts as down for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A parcel on its way, holding its room in the window until it is dropped.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) parcel: Parcel,
    pub(crate) room: Room,
}

/// A parcel's share of the window: one of the count, and its bytes.
#[derive(Debug)]
pub(crate) struct Room(#[allow(dead_code)] [OwnedSemaphorePermit; 2]);

/// The sending end of one connection's window. The queue is as long as the count, so who has room never waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Sender<Queued>,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    byte_limit: usize,
}

impl Outlet {
    pub(crate) fn new(parcels: usize, byte_limit: usize) -> (Self, mpsc::Receiver<Queued>) {
        let (queue, taken) = mpsc::channel(parcels);
        let (count, bytes) = (
            Arc::new(Semaphore::new(parcels)),
            Arc::new(Semaphore::new(byte_limit)),
        );
        (
            Self {
                queue,
                count,
                bytes,
                byte_limit,
            },
            taken,
        )
    }

    /// Waits a bounded time for room. Parcels of one caller keep their order.
    pub(crate) async fn push(&self, parcel: Parcel) -> Result<(), LinkError> {
        let bytes = self.weight(&parcel)?;
        let room = async {
            let count = Arc::clone(&self.count).acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>(Room([
                count,
                Arc::clone(&self.bytes).acquire_many_owned(bytes).await?,
            ]))
        };
        match timeout(PATIENCE, room).await {
            Ok(Ok(room)) => self
                .queue
                .try_send(Queued { parcel, room })
                .map_err(|_| gone()),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(LinkError::Down(
                "the other side has taken nothing for several seconds".into(),
            )),
        }
    }

    /// Never waits.
    pub(crate) fn try_push(&self, parcel: Parcel) -> Result<(), LinkError> {
        let bytes = self.weight(&parcel)?;
        let sorted = |error| match error {
            TryAcquireError::NoPermits => LinkError::Full,
            TryAcquireError::Closed => gone(),
        };
        let count = Arc::clone(&self.count)
            .try_acquire_owned()
            .map_err(sorted)?;
        let bytes = Arc::clone(&self.bytes)
            .try_acquire_many_owned(bytes)
            .map_err(sorted)?;
        self.queue
            .try_send(Queued {
                parcel,
                room: Room([count, bytes]),
            })
            .map_err(|_| gone())
    }

    /// Fails everyone who waits, at once.
    pub(crate) fn shut(&self) {
        self.count.close();
        self.bytes.close();
    }

    fn weight(&self, parcel: &Parcel) -> Result<u32, LinkError> {
        let bytes = parcel.bytes.len();
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(LinkError::TooLarge { bytes });
        }
        u32::try_from(bytes.clamp(1, self.byte_limit)).map_err(|_| LinkError::TooLarge { bytes })
    }
}

fn gone() -> LinkError {
    LinkError::Down("the connection was lost".into())
}

/// The outlet of a link that has one connection at a time, or why there is none now.
#[derive(Debug)]
pub(crate) struct Port(Mutex<Result<Outlet, LinkError>>);

impl Port {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Err(LinkError::Down(
            "it is not connected yet".into(),
        ))))
    }

    pub(crate) fn open(&self, outlet: Outlet) {
        *lock(&self.0) = Ok(outlet);
    }

    pub(crate) fn shut(&self, reason: LinkError) {
        if let Ok(outlet) = std::mem::replace(&mut *lock(&self.0), Err(reason)) {
            outlet.shut();
        }
    }

    pub(crate) fn outlet(&self) -> Result<Outlet, LinkError> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Destination;

    fn parcel(bytes: usize) -> Parcel {
        Parcel {
            to: Destination::Head,
            bytes: vec![0; bytes].into(),
        }
    }

    #[tokio::test]
    async fn the_window_is_bounded_by_count_and_by_bytes() -> Result<(), LinkError> {
        let (outlet, mut taken) = Outlet::new(3, 100);
        outlet.push(parcel(60)).await?;
        assert_eq!(outlet.try_push(parcel(60)), Err(LinkError::Full));
        outlet.push(parcel(1)).await?;
        outlet.push(parcel(1)).await?;
        assert_eq!(outlet.try_push(parcel(1)), Err(LinkError::Full));
        assert!(taken.recv().await.is_some());
        outlet.try_push(parcel(60))
    }

    #[tokio::test]
    async fn a_waiting_sender_fails_when_the_connection_goes() {
        let (outlet, _taken) = Outlet::new(1, 100);
        assert_eq!(outlet.try_push(parcel(1)), Ok(()));
        let (sent, ()) = tokio::join!(outlet.push(parcel(1)), async { outlet.shut() });
        assert!(matches!(sent, Err(LinkError::Down(_))));
        assert!(matches!(
            outlet.try_push(parcel(MAX_ENVELOPE_BYTES + 1)),
            Err(LinkError::TooLarge { .. })
        ));
    }
}
