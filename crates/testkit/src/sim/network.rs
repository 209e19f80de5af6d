//! What lies between the offices: one connection for each branch, or a broker with one queue for each office.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use branchline_core::output::Token;

/// Bytes on the way.
pub type Bytes = Arc<Vec<u8>>;

/// Which way a connection's messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the branch to the head.
    Up,
    /// From the head to the branch.
    Down,
}

/// A message in the broker.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Whose queue it lies in.
    pub to: usize,
    /// Its bytes.
    pub bytes: Bytes,
    /// The link over which it was handed out, until it is acknowledged.
    pub handed: Option<u64>,
}

/// An office's link: a branch's connection to the head, or an office's to the broker.
#[derive(Debug, Default)]
pub struct Link {
    /// Whether it stands.
    pub up: bool,
    /// Counts connections; what belongs to an earlier one is dead.
    pub epoch: u64,
    /// Nothing can connect.
    pub severed: bool,
    /// The head knows whose connection this is.
    pub named: bool,
    /// What goes into this office stays away, though the link seems to stand.
    pub deaf: bool,
    /// What comes from this office is lost, though the link seems to stand.
    pub mute: bool,
    /// In flight, up and down.
    pub flights: [VecDeque<Bytes>; 2],
    /// When the last message in flight arrives.
    pub last_arrival: [i64; 2],
}

/// A delivery that waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// The office that got it.
    pub office: usize,
    /// Whose link it came over (a branch's, where the wiring is direct).
    pub link: usize,
    /// Which connection.
    pub epoch: u64,
    /// The message in the broker.
    pub message: Option<u64>,
}

/// Everything between the offices.
#[derive(Debug, Default)]
pub struct Network {
    /// One link for each office; the head's is used with a broker only.
    pub links: Vec<Link>,
    /// Whether there is a broker.
    pub fanout: bool,
    /// Whether the broker runs.
    pub broker_up: bool,
    /// What the broker stores.
    pub stored: BTreeMap<u64, Stored>,
    /// Deliveries not yet acknowledged.
    pub deliveries: BTreeMap<Token, Delivery>,
    next: u64,
}

impl Network {
    /// A number never used before.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Puts a message into a queue.
    pub fn store(&mut self, to: usize, bytes: Bytes) -> u64 {
        let number = self.number();
        self.stored.insert(
            number,
            Stored {
                to,
                bytes,
                handed: None,
            },
        );
        number
    }

    /// Hands a delivery a token.
    pub fn hand_out(&mut self, delivery: Delivery) -> Token {
        let token = self.number();
        self.deliveries.insert(token, delivery);
        token
    }

    /// The delivery was acknowledged.
    pub fn settle(&mut self, token: Token) -> Option<Delivery> {
        let delivery = self.deliveries.remove(&token)?;
        if let Some(message) = delivery.message
            && self.links[delivery.office].epoch == delivery.epoch
        {
            self.stored.remove(&message);
        }
        Some(delivery)
    }

    /// The link broke. What was handed out and not acknowledged lies in the queue again.
    pub fn broke(&mut self, link: usize) {
        let end = &mut self.links[link];
        end.up = false;
        end.epoch += 1;
        end.named = false;
        end.deaf = false;
        end.mute = false;
        end.flights = Default::default();
        end.last_arrival = [0; 2];
        self.deliveries.retain(|_, delivery| delivery.link != link);
        for message in self
            .stored
            .values_mut()
            .filter(|message| message.to == link)
        {
            message.handed = None;
        }
    }

    /// The messages that lie in an office's queue and are not handed out.
    pub fn waiting(&self, office: usize) -> Vec<u64> {
        let waiting = self
            .stored
            .iter()
            .filter(|(_, message)| message.to == office && message.handed.is_none());
        waiting.map(|(&number, _)| number).collect()
    }
}
