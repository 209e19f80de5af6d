//! The story of a run: its last actions in plain words, and a fingerprint of all of them.

use std::collections::VecDeque;

/// How many actions are kept for the telling.
const KEPT: usize = 200;

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Story {
    lines: VecDeque<String>,
    fingerprint: u64,
    told: u64,
    /// Whether every action is printed as it happens.
    pub loud: bool,
}

impl Story {
    /// An empty story, told aloud or not.
    pub fn new(loud: bool) -> Self {
        Self {
            loud,
            ..Self::default()
        }
    }

    /// Notes an action at a virtual time.
    pub fn tell(&mut self, now: i64, what: &str) {
        for byte in now.to_le_bytes().iter().chain(what.as_bytes()) {
            // FNV-1a.
            self.fingerprint =
                (self.fingerprint ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.told += 1;
        let line = format!("{:>10.3} s  {what}", now as f64 / 1e6);
        if self.loud {
            println!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    /// The last actions.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    /// Equal for equal runs.
    pub fn fingerprint(&self) -> (u64, u64) {
        (self.told, self.fingerprint)
    }
}
