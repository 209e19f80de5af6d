//! What a serving head takes from connections before it knows whose they are: little of each, and few of one address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::registry::Standing;
use crate::guarded::lock;

/// How much is read from a connection before it is named, the upgrade included. A hello takes less than a hundredth.
pub(super) const UNNAMED_BYTES: usize = 64 * 1024;
/// Unnamed connections of one address, at most. Half of all there may be, so that one address does not keep the others
/// out, and many, since all branches of a company may come back behind one address at the same moment.
const UNNAMED_OF_ONE_ADDRESS: usize = 128;

/// A connection that ends when it brings much before it is named.
pub(super) struct Door<S> {
    stream: S,
    /// How much may still come; `None` once it is named.
    left: Option<usize>,
    standing: Option<watch::Receiver<Standing>>,
}

impl<S> Door<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            left: Some(UNNAMED_BYTES),
            standing: None,
        }
    }

    /// From now on it can be known whose the connection is.
    pub(super) fn watch(&mut self, standing: watch::Receiver<Standing>) {
        self.standing = Some(standing);
    }

    fn let_in(&mut self, bytes: usize) -> io::Result<()> {
        let Some(left) = self.left else {
            return Ok(());
        };
        let named =
            |standing: &watch::Receiver<Standing>| matches!(*standing.borrow(), Standing::Named(_));
        if self.standing.as_ref().is_some_and(named) {
            self.left = None;
            return Ok(());
        }
        self.left = Some(left.checked_sub(bytes).ok_or_else(|| {
            io::Error::other(format!(
                "it brought more than {UNNAMED_BYTES} bytes before it was known whose it is"
            ))
        })?);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Door<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(self.let_in(buffer.filled().len() - before)),
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Door<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The unnamed connections, by where they come from.
#[derive(Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, until it is dropped.
pub(super) struct Place {
    crowd: Crowd,
    origin: IpAddr,
}

impl Crowd {
    /// A place for one more, unless there are too many of its address.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let origin = origin(address);
        let mut counts = lock(&self.0);
        let count = counts.entry(origin).or_default();
        if *count >= UNNAMED_OF_ONE_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place {
            crowd: self.clone(),
            origin,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.crowd.0);
        if let Some(count) = counts.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.origin);
            }
        }
    }
}

/// The address, or of IPv6 its network: one machine has as many addresses in that as it likes.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_network_leaves_room_for_others() {
        let crowd = Crowd::default();
        let address = |last: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last));
        let mut places: Vec<_> = (0..128).map(|last| crowd.enter(address(last))).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(crowd.enter(address(128)).is_none());
        assert!(crowd.enter(IpAddr::from([192, 0, 2, 1])).is_some());
        places.pop();
        assert!(crowd.enter(address(128)).is_some());
        places.clear();
        assert!(lock(&crowd.0).is_empty());
    }
}
