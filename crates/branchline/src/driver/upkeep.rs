//! Keeps the broker's side of the company in order: a broker that was wiped, or lost a branch's queue, gets its
//! queues back from the head, since branches may declare nothing (SETTLED 12).

use std::time::{Duration, Instant};

use branchline_transport::amqp::{AmqpSettings, declare_branches};

use super::{Driver, Machine, now};
use crate::config::QUEUE_PREFIX;

/// How often the queues of branches that are away are looked after.
const AGAIN: Duration = Duration::from_secs(5);

/// A branch that was not heard of for so long may have lost its queue, in microseconds.
const SILENT_MICROS: i64 = 7_000_000;

/// When the queues were last declared.
pub struct Upkeep {
    settings: Option<AmqpSettings>,
    next: Option<Instant>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Upkeep {
    /// For the head of a company with a broker; nothing to do elsewhere.
    pub fn new(settings: Option<AmqpSettings>) -> Self {
        Self {
            settings,
            next: None,
            running: None,
        }
    }
}

impl Driver {
    /// Declares the queues of all branches when the broker came up, and of those away now and then.
    pub(super) fn keep_queues(&mut self, came_up: bool) {
        let Machine::Head(head) = &self.machine else {
            return;
        };
        let Some(settings) = &self.upkeep.settings else {
            return;
        };
        let due =
            came_up || (self.link.up && self.upkeep.next.is_none_or(|next| Instant::now() > next));
        if !due
            || self
                .upkeep
                .running
                .as_ref()
                .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        self.upkeep.next = Some(Instant::now() + AGAIN);
        let branches = head.branches();
        let away = branches
            .iter()
            .filter(|branch| came_up || now().0 - branch.seen.0 > SILENT_MICROS);
        let queues: Vec<String> = away
            .map(|branch| format!("{QUEUE_PREFIX}{}", branch.name))
            .collect();
        if queues.is_empty() {
            return;
        }
        let settings = settings.clone();
        self.upkeep.running = Some(tokio::spawn(async move {
            if let Err(error) = declare_branches(&settings, &queues).await {
                tracing::debug!("the branches' queues could not be declared: {error}");
            }
        }));
    }
}
