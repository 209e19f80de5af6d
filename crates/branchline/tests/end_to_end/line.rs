//! A poor line between two network namespaces: late, out of order, lossy, slow, or silent. Each end is a TUN device, and
//! the packets go from one to the other by hand, so that it needs nothing of the system's own shaping.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tun_rs::{DeviceBuilder, SyncDevice};

/// The longest packet in bytes.
const LONGEST: u16 = 1_400;
/// How many packets wait in each direction at the most; more are lost, as in any router.
const QUEUE: usize = 200;

/// What a line does to the packets of each direction.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub delay: Duration,
    /// How much later than that a packet may be; packets overtake each other.
    pub jitter: Duration,
    /// The part of the packets that is lost.
    pub loss: f64,
    /// The part that comes twice.
    pub doubled: f64,
    pub bytes_per_second: u32,
}

/// A namespace with one line to ours.
pub struct Line {
    pub namespace: String,
    /// Our end's address, for who is at the other.
    pub address: String,
    ours: String,
    silent: Arc<AtomicBool>,
    /// How many packets were lost, but for those that silence swallowed.
    lost: Arc<AtomicU64>,
}

impl Line {
    /// Lays a line to a new namespace. Its faults follow from the seed. Says why where this machine does not allow it.
    pub fn lay(quality: Quality, seed: u64) -> Result<Self, String> {
        let number = std::process::id() % 10_000;
        let net = format!("10.231.{}", number % 250);
        let line = Self {
            namespace: format!("bl-{number}"),
            address: format!("{net}.1"),
            ours: format!("bl-{number}-a"),
            silent: Arc::default(),
            lost: Arc::default(),
        };
        let (namespace, ours, theirs) = (&line.namespace, &line.ours, format!("bl-{number}-b"));
        ip(&format!("netns add {namespace}"))?;
        let (here, there) = (device(ours)?, device(&theirs)?);
        ip(&format!("link set {theirs} netns {namespace}"))?;
        ip(&format!("addr add {net}.1/30 dev {ours}"))?;
        ip(&format!("link set {ours} up"))?;
        ip(&format!("-n {namespace} addr add {net}.2/30 dev {theirs}"))?;
        ip(&format!("-n {namespace} link set {theirs} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        let speaks = Arc::default();
        for (from, to, silent, seed) in [
            (&here, &there, &line.silent, seed),
            (&there, &here, &speaks, !seed),
        ] {
            let (sender, arriving) = sync_channel(QUEUE);
            let direction = Direction {
                quality,
                random: StdRng::seed_from_u64(seed),
                free: Instant::now(),
                silent: Arc::clone(silent),
                lost: Arc::clone(&line.lost),
                sender,
            };
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            std::thread::spawn(move || direction.carry(&from));
            std::thread::spawn(move || deliver(&to, &arriving));
        }
        Ok(line)
    }

    /// What our end sends vanishes; nobody is told.
    pub fn silence(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// All is as poor as before.
    pub fn speak(&self) {
        self.silent.store(false, Ordering::Relaxed);
    }

    /// How many packets were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Their devices gone, the threads end.
        drop(ip(&format!("link del {}", self.ours)));
        drop(ip(&format!("netns del {}", self.namespace)));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    match Command::new("ip").args(arguments.split(' ')).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn device(name: &str) -> Result<Arc<SyncDevice>, String> {
    let built = DeviceBuilder::new().name(name).mtu(LONGEST).build_sync();
    built
        .map(Arc::new)
        .map_err(|error| format!("{name}: {error}"))
}

/// A packet, and when it arrives.
type Packet = (Instant, Vec<u8>);

struct Direction {
    quality: Quality,
    random: StdRng,
    /// When the line has sent what is before.
    free: Instant,
    silent: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    sender: SyncSender<Packet>,
}

impl Direction {
    /// Takes packets off one end until its device is gone.
    fn carry(mut self, from: &SyncDevice) {
        let mut buffer = [0; LONGEST as usize];
        while let Ok(length) = from.recv(&mut buffer) {
            if self.silent.load(Ordering::Relaxed) {
                continue;
            }
            let copies = 1 + u32::from(self.random.random_bool(self.quality.doubled));
            for _ in 0..copies {
                let time = Duration::from_secs(1) * length as u32 / self.quality.bytes_per_second;
                self.free = self.free.max(Instant::now()) + time;
                let late = self.quality.jitter.mul_f64(self.random.random());
                let packet = (
                    self.free + self.quality.delay + late,
                    buffer[..length].to_vec(),
                );
                let lost = self.random.random_bool(self.quality.loss);
                if lost || self.sender.try_send(packet).is_err() {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Hands packets to the other end when their time has come.
fn deliver(to: &SyncDevice, arriving: &Receiver<Packet>) {
    let mut waiting: BinaryHeap<Reverse<Packet>> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while let Some(Reverse((due, _))) = waiting.peek()
            && *due <= now
            && let Some(Reverse((_, packet))) = waiting.pop()
        {
            // An end that is going down takes nothing more.
            drop(to.send(&packet));
        }
        let next = waiting
            .peek()
            .map_or(Duration::MAX, |Reverse((due, _))| *due - now);
        // What waits here counts, too: the channel alone would not bound it.
        if waiting.len() >= QUEUE {
            std::thread::sleep(next);
            continue;
        }
        match arriving.recv_timeout(next) {
            Ok(packet) => waiting.push(Reverse(packet)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
