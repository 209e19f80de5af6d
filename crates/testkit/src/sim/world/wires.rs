//! How messages travel, over connections or by the broker, and how links come and go.

use super::*;

impl World {
    pub(super) fn arrive(&mut self, link: usize, way: Way, epoch: u64) {
        let end = &self.network.links[link];
        if end.epoch != epoch || !end.up {
            return;
        }
        let office = if way == Way::Up { 0 } else { link };
        if !self.has_room(office) {
            self.at(20 * MS, Event::Arrive(link, way, epoch));
            return;
        }
        let Some(bytes) = self.network.links[link].flights[way as usize].pop_front() else {
            return;
        };
        let token = self.network.hand_out(Delivery {
            office,
            link,
            epoch,
            message: None,
        });
        self.take_in(office, &bytes, token);
    }

    pub(super) fn hand(&mut self, message: u64) {
        let Some(stored) = self.network.stored.get(&message) else {
            return;
        };
        let (office, bytes) = (stored.to, stored.bytes.clone());
        let link = &self.network.links[office];
        if stored.handed.is_some() || !link.up || link.deaf {
            return;
        }
        if !self.has_room(office) {
            self.at(20 * MS, Event::Hand(message));
            return;
        }
        let epoch = link.epoch;
        if let Some(stored) = self.network.stored.get_mut(&message) {
            stored.handed = Some(epoch);
        }
        let token = self.network.hand_out(Delivery {
            office,
            link: office,
            epoch,
            message: Some(message),
        });
        self.take_in(office, &bytes, token);
    }

    pub(super) fn name(&mut self, token: Token, name: &OfficeName) {
        let Some(delivery) = self.network.deliveries.get(&token).copied() else {
            return;
        };
        if self.network.fanout || self.network.links[delivery.link].epoch != delivery.epoch {
            return;
        }
        if name.as_str().starts_with("refused.") {
            // What it answers to one that is not let in does not matter here.
            return;
        }
        if self.offices[delivery.link].name != *name {
            self.fail(format!(
                "a connection of {} was named {name}",
                self.offices[delivery.link].name
            ));
        }
        self.ends_other_connection(delivery.link);
        self.network.links[delivery.link].named = true;
        if let Some(Machine::Head(head)) = &mut self.offices[0].machine {
            head.link_up(Some(name));
        }
    }

    pub(super) fn close(&mut self, token: Token) {
        let Some(delivery) = self.network.deliveries.get(&token).copied() else {
            return;
        };
        let link = &self.network.links[delivery.link];
        if !self.network.fanout && link.epoch == delivery.epoch {
            let after = link.last_arrival[Way::Down as usize] - self.now + MS;
            self.at(after, Event::Cut(delivery.link));
        }
    }

    pub(super) fn send(&mut self, from: usize, to: &To, bytes: &Bytes) {
        self.tell_sent(from, to, bytes);
        let resend = || {
            matches!(
                envelope::open(bytes).and_then(|opened| opened.read_own()),
                Ok(Message::Resend(_))
            )
        };
        if self.offices[from].plan.sabotage == Some(Sabotage::ResendIgnored) && resend() {
            return;
        }
        // A branch and its copy read from one queue; over connections, each has one.
        let queues = if self.network.fanout {
            self.real_offices()
        } else {
            self.offices.len()
        };
        let receivers: Vec<usize> = match to {
            To::Head => vec![0],
            To::Everyone => (1..queues).collect(),
            To::Branch(name) => (1..queues)
                .filter(|&branch| self.offices[branch].name == *name)
                .collect(),
        };
        for receiver in receivers {
            if self.network.fanout {
                let reader = self.reader(receiver);
                self.publish(from, reader, bytes);
            } else {
                self.fly(from, receiver, bytes);
            }
        }
    }

    pub(super) fn tell_sent(&mut self, from: usize, to: &To, bytes: &Bytes) {
        let who = format!("{} sends {to:?}", self.offices[from].name);
        self.story.sent(self.now - EPOCH, who, bytes);
    }

    /// A message over a branch's connection: in order and whole, or not at all.
    pub(super) fn fly(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let (link, way) = if to == 0 {
            (from, Way::Up)
        } else {
            (to, Way::Down)
        };
        let latency = 1 + self.up_to(40 * MS);
        let now = self.now;
        let end = &mut self.network.links[link];
        let lost = match way {
            Way::Up => end.mute,
            Way::Down => end.deaf || !end.named,
        };
        if !end.up || lost {
            return;
        }
        let arrival = (now + latency).max(end.last_arrival[way as usize]);
        end.last_arrival[way as usize] = arrival;
        end.flights[way as usize].push_back(bytes.clone());
        let epoch = end.epoch;
        self.at(arrival - now, Event::Arrive(link, way, epoch));
    }

    /// A message by the broker: stored, perhaps lost, twice, late or out of order.
    pub(super) fn publish(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let link = &self.network.links[from];
        if !link.up || link.mute || !self.offices[to].founded || self.one_in(self.weather.loss) {
            return;
        }
        let copies = if self.one_in(self.weather.duplication) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = if self.one_in(self.weather.delay) {
                let most = if self.one_in(3) {
                    21 * 86_400 * SECOND
                } else {
                    10 * SECOND
                };
                self.up_to(most)
            } else {
                MS + self.up_to(30 * MS)
            };
            let mut bytes = bytes.clone();
            if self.one_in(self.weather.damage) {
                let mut damaged = bytes.to_vec();
                let at = self.rng.random_range(0..damaged.len());
                damaged[at] ^= 1 << self.rng.random_range(0..8_u32);
                bytes = Bytes::new(damaged);
            }
            let message = self.network.store(to, bytes);
            self.at(delay, Event::Hand(message));
        }
    }

    pub(super) fn connect(&mut self, office: usize) {
        let link = &self.network.links[office];
        if link.up || link.severed || self.offices[office].machine.is_none() {
            return;
        }
        if self.network.fanout {
            if !self.network.broker_up {
                return;
            }
        } else if office == 0 {
            for branch in 1..self.offices.len() {
                let delay = self.up_to(200 * MS);
                self.at(delay, Event::Connect(branch));
            }
            return;
        } else if self.offices[0].machine.is_none() {
            return;
        }
        self.tell(format!("{} is linked", self.offices[office].name));
        let link = &mut self.network.links[office];
        link.up = true;
        link.epoch += 1;
        self.link_up(office);
        self.plan_work(office);
        if self.network.fanout {
            for message in self.network.waiting(office) {
                let delay = MS + self.up_to(20 * MS);
                self.at(delay, Event::Hand(message));
            }
        }
    }

    pub(super) fn unlink(&mut self, link: usize) {
        let end = &self.network.links[link];
        let (was_up, named) = (end.up, end.named);
        self.network.broke(link);
        if !was_up {
            return;
        }
        let name = self.offices[link].name.clone();
        match &mut self.offices[link].machine {
            Some(Machine::Branch(branch)) => branch.link_down(),
            Some(Machine::Head(head)) => head.link_down(None),
            None => {}
        }
        if named && let Some(Machine::Head(head)) = &mut self.offices[0].machine {
            head.link_down(Some(&name));
        }
        let delay = 100 * MS + self.up_to(2 * SECOND);
        self.at(delay, Event::Connect(link));
    }
}
