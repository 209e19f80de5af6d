//! A link that can be cut, or freeze: a relay on this machine to one of its ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const WHOLE: u8 = 0;
const CUT: u8 = 1;
const FROZEN: u8 = 2;
const GONE: u8 = 3;

/// A relay. Its threads end with it.
#[derive(Debug)]
pub struct Cable {
    /// Where to connect.
    pub port: u16,
    state: Arc<AtomicU8>,
}

impl Cable {
    /// Lays a cable to a port.
    pub fn lay(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(AtomicU8::new(WHOLE));
        let here = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                match here.load(Ordering::Relaxed) {
                    GONE => return,
                    CUT => {}
                    _ => {
                        if let Ok(near) = near {
                            join(near, to, &here);
                        }
                    }
                }
            }
        });
        Self { port, state }
    }

    /// Connections break, new ones are refused.
    pub fn cut(&self) {
        self.state.store(CUT, Ordering::Relaxed);
    }

    /// Nothing passes and nobody is told.
    pub fn freeze(&self) {
        self.state.store(FROZEN, Ordering::Relaxed);
    }

    /// All is well again; what froze goes on.
    pub fn heal(&self) {
        self.state.store(WHOLE, Ordering::Relaxed);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.state.store(GONE, Ordering::Relaxed);
        // The listening thread looks when somebody comes.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn join(near: TcpStream, to: u16, state: &Arc<AtomicU8>) {
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else {
        return;
    };
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    for (from, into) in [(near, far_too), (far, near_too)] {
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            pump(&from, &into, &state);
            drop(from.shutdown(Shutdown::Both));
            drop(into.shutdown(Shutdown::Both));
        });
    }
}

fn pump(mut from: &TcpStream, mut into: &TcpStream, state: &AtomicU8) {
    let mut bytes = [0; 16 * 1024];
    if from
        .set_read_timeout(Some(Duration::from_millis(50)))
        .is_err()
    {
        return;
    }
    loop {
        match state.load(Ordering::Relaxed) {
            CUT | GONE => return,
            FROZEN => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            _ => {}
        }
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) if into.write_all(&bytes[..length]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}
