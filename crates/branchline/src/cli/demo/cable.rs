//! A link that can be cut: a relay on this machine between a branch and the head.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::exit::{Outcome, io};

/// A relay to the head that can be cut and healed.
pub struct Cable {
    /// Where the branch connects.
    pub address: SocketAddr,
    whole: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Cable {
    /// Lays a cable to the head.
    pub async fn lay(head: SocketAddr) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(io("the demo's relay"))?;
        let address = listener.local_addr().map_err(io("the demo's relay"))?;
        let (whole, watched) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *watched.borrow() {
                    tokio::spawn(relay(near, head, watched.clone()));
                }
            }
        });
        Ok(Self {
            address,
            whole,
            task,
        })
    }

    /// Cuts it: connections break, new ones are refused.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Heals it.
    pub fn heal(&self) {
        self.whole.send_replace(true);
    }

    /// Whether it is whole.
    pub fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut near: TcpStream, head: SocketAddr, mut whole: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(head).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = whole.wait_for(|whole| !whole) => {}
    }
}
