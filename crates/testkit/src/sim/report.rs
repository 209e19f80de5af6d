//! The story of a run: its last actions in plain words, and a fingerprint of all of them.

use std::collections::VecDeque;

use branchline_core::envelope;
use branchline_core::identity::Incarnation;
use branchline_core::message::Message;

use super::network::Bytes;

/// How many actions are kept for the telling.
const KEPT: usize = 400;

/// An action, told only when somebody wants to hear it.
#[derive(Debug)]
enum Line {
    Plain(String),
    /// An envelope was sent; what it says is read when it is told.
    Sent(String, Bytes),
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Story {
    lines: VecDeque<(i64, Line)>,
    fingerprint: u64,
    told: u64,
    /// Whether every action is printed as it happens.
    pub loud: bool,
}

impl Line {
    fn words(&self, now: i64) -> Option<String> {
        let what = match self {
            Self::Plain(what) => what.clone(),
            Self::Sent(who, bytes) => format!("{who} {}", contents(bytes)?),
        };
        Some(format!("{:>10.3} s  {what}", now as f64 / 1e6))
    }
}

/// What an envelope says; nothing for what is said all the time.
fn contents(bytes: &[u8]) -> Option<String> {
    let message = envelope::open(bytes).and_then(|opened| opened.read_own());
    Some(match message.ok()? {
        Message::Batch(batch) => {
            format!(
                "batch {} of {:?}: {} changes{}",
                batch.number,
                short(&batch.incarnation),
                batch.changes.len(),
                if batch.open { ", and goes on" } else { "" }
            )
        }
        Message::Log(entry) => format!("log entry {}", entry.position),
        Message::Hello(hello) => format!(
            "hello: incarnation {}, frozen {}, applied {}",
            short(&hello.incarnation),
            hello.frozen,
            hello.applied
        ),
        Message::Welcome(welcome) => format!(
            "welcome: incarnation {}, cursor {}, last {}",
            short(&welcome.incarnation),
            welcome.cursor,
            welcome.last
        ),
        Message::Applied(_) | Message::Position(_) => return None,
        Message::Chunk(chunk) => format!(
            "chunk of table {} at {}",
            chunk.request.table, chunk.position
        ),
        other => format!("{other:?}"),
    })
}

fn short(incarnation: &Incarnation) -> String {
    incarnation.to_string()[..6].to_owned()
}

impl Story {
    /// An empty story, told aloud or not.
    pub fn new(loud: bool) -> Self {
        Self {
            loud,
            ..Self::default()
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // FNV-1a.
            self.fingerprint =
                (self.fingerprint ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn keep(&mut self, now: i64, line: Line) {
        self.print(&now.to_le_bytes());
        self.told += 1;
        if self.loud
            && let Some(line) = line.words(now)
        {
            println!("{line}");
        }
        self.lines.push_back((now, line));
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    /// Notes an action at a virtual time.
    pub fn tell(&mut self, now: i64, what: &str) {
        self.print(what.as_bytes());
        self.keep(now, Line::Plain(what.into()));
    }

    /// Notes that an envelope was sent.
    pub fn sent(&mut self, now: i64, who: String, bytes: &Bytes) {
        // Its end depends on every byte of it: it is the signature.
        self.print(&bytes[bytes.len().saturating_sub(16)..]);
        self.keep(now, Line::Sent(who, bytes.clone()));
    }

    /// The last actions.
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .iter()
            .filter_map(|(now, line)| line.words(*now))
            .collect()
    }

    /// Equal for equal runs.
    pub fn fingerprint(&self) -> (u64, u64) {
        (self.told, self.fingerprint)
    }
}
