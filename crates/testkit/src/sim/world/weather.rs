//! How a company begins, what storms it goes through, and how they end.

use super::*;

/// An answer is lost within so many transactions that write.
const WRITES: u32 = 8;

impl World {
    pub(super) fn set_up(&mut self) {
        let (schema, identity) = (self.schema.clone(), self.identity(0));
        let incarnation = Incarnation(Digest::of(&self.seed.to_be_bytes()).0);
        let made = self.with_database(0, |db, _| {
            run(async {
                db.create_tables(&schema).await?;
                db.add_foreign_keys(&schema).await?;
                db.prepare().await?;
                db.install(&schema).await?;
                Head::found(db, &identity, incarnation, &schema).await
            })
        });
        made.expect("the head is founded");
        let now = self.offices[0].clock(self.now);
        self.offices[0]
            .disk
            .write_now(&schema, &workload::first_stock(), now)
            .expect("the head has stock");
        self.offices[0].founded = true;
        self.offices[0].joined = true;
        self.at(0, Event::Restart(0));
        for branch in 1..self.real_offices() {
            let late = if self.one_in(2) {
                self.up_to(5 * SECOND)
            } else {
                self.up_to(SECOND)
            };
            if self.one_in(3) && self.migrations.is_none() {
                // It has rows of its own before it joins.
                let made = self.with_database(branch, |db, _| run(db.create_tables(&schema)));
                made.expect("tables");
                let made = self.with_database(branch, |db, _| run(db.add_foreign_keys(&schema)));
                made.expect("foreign keys");
                for _ in 0..self.rng.random_range(1..6) {
                    self.app(branch);
                }
            }
            self.at(late, Event::Found(branch));
        }
        for office in 0..self.offices.len() {
            let delay = self.up_to(500 * MS);
            self.at(delay, Event::Tick(office));
        }
    }

    /// Draws the faults of the next stretch of time.
    pub(super) fn storm(&mut self, first: bool) {
        // Short and hard, so that many companies can be seen; some are long.
        let most = if self.one_in(8) { 40 } else { 12 };
        let length = self.rng.random_range(4..most) * SECOND;
        self.phase = Phase::Storm;
        self.storm_end = self.now + length;
        let chance = |rng: &mut Xoshiro256PlusPlus, from: u32, to: u32| {
            if rng.random_bool(0.5) {
                rng.random_range(from..to)
            } else {
                0
            }
        };
        self.weather = Weather {
            loss: chance(&mut self.rng, 3, 40),
            duplication: chance(&mut self.rng, 3, 30),
            delay: chance(&mut self.rng, 5, 60),
            damage: chance(&mut self.rng, 10, 60),
            race: self.rng.random_bool(0.6),
        };
        let mut drawn: Vec<(&str, u32, Trouble)> = Vec::new();
        for (name, event) in [
            ("kill", Event::Kill as Trouble),
            ("arm", Event::Arm),
            ("arm more", Event::Arm),
            ("cut", Event::Cut),
            ("half cut", Event::HalfCut),
            ("jump", Event::Jump),
            ("compare", Event::Compare),
            ("restore", Event::Image),
            ("dismiss", Event::Dismiss),
            ("manual", Event::Manual),
            ("disk full", Event::Full),
            ("restore the head", |_| Event::Image(0)),
            ("promote", |_| Event::Promote),
            ("lull", |_| Event::Lull),
            ("away", Event::Away),
            ("migrate", Event::Migrate),
            ("copy", Event::Copy),
        ] {
            if self.migrations.is_none() && name == "migrate" {
                continue;
            }
            if name == "copy" && self.twin.is_none() {
                continue;
            }
            // What a person undoes is not to be undone twice.
            let undoes = matches!(name, "dismiss" | "restore" | "restore the head");
            if self.twin.is_some() && undoes {
                continue;
            }
            // A branch that left joins with its tables as they were, and a restored head does not lift what it lost.
            if self.migrations.is_some() && matches!(name, "dismiss" | "restore the head") {
                continue;
            }
            if name == "promote" && !self.promotes {
                continue;
            }
            let needs_horizon = matches!(name, "lull" | "away");
            if needs_horizon && self.retention.is_none() {
                continue;
            }
            let restores = matches!(name, "restore" | "restore the head");
            if restores && self.retention.is_some() {
                continue;
            }
            let one_in = match name {
                "restore" | "manual" | "disk full" => 5,
                "dismiss" => 8,
                "restore the head" => 4,
                "migrate" | "copy" => 1,
                _ => 2,
            };
            if self.one_in(one_in) {
                let count = self.rng.random_range(
                    1..match name {
                        "arm" | "arm more" => 40,
                        "dismiss" => 3,
                        "migrate" => 20,
                        _ => 8,
                    },
                );
                drawn.push((name, count, event));
            }
        }
        if self.network.fanout {
            for (name, event) in [
                (
                    "broker stops",
                    (|_| Event::BrokerStop) as fn(usize) -> Event,
                ),
                ("broker is emptied", |_| Event::BrokerEmpty),
            ] {
                if self.one_in(3) {
                    drawn.push((name, self.rng.random_range(1..4), event));
                }
            }
        }
        let weather = format!("{:?}", self.weather);
        let names: Vec<&str> = drawn.iter().map(|(name, _, _)| *name).collect();
        let wiring = if self.network.fanout {
            "fanout"
        } else {
            "direct"
        };
        self.tell(format!(
            "a storm of {} s: {wiring}, {weather}, {names:?}",
            length / SECOND
        ));
        for (_, count, event) in drawn {
            for _ in 0..count {
                let office = self.rng.random_range(0..self.offices.len());
                let delay = self.up_to(length);
                self.at(delay, event(office));
            }
        }
        for office in 0..self.real_offices() {
            if first && self.one_in(3) {
                self.offices[office].skew = self.rng.random_range(-SECOND * 7200..=SECOND * 7200);
            }
            let delay = self.up_to(2 * SECOND);
            self.at(delay, Event::App(office));
        }
    }

    /// All faults end; the company comes to rest.
    pub(super) fn calm(&mut self) {
        self.tell("the storm is over");
        self.phase = Phase::Rest { since: self.now };
        self.weather = Weather::default();
        let fault = |event: &Event| {
            matches!(
                event,
                Event::App(_)
                    | Event::Kill(_)
                    | Event::Arm(_)
                    | Event::Cut(_)
                    | Event::HalfCut(_)
                    | Event::Jump(_)
                    | Event::Compare(_)
                    | Event::Image(_)
                    | Event::Dismiss(_)
                    | Event::Lull
                    | Event::Promote
                    | Event::Migrate(_)
                    | Event::Copy(_)
                    | Event::Away(_)
                    | Event::Manual(_)
                    | Event::Full(_)
                    | Event::Restore(_)
                    | Event::BrokerStop
                    | Event::BrokerEmpty
            )
        };
        self.agenda.retain(|_, event| !fault(event));
        self.stop_twin();
        self.finish_migration();
        let late: Vec<_> = self
            .agenda
            .range((self.now + STRAGGLERS, 0)..)
            .filter(|(_, event)| matches!(event, Event::Hand(_)))
            .map(|(key, event)| (*key, *event))
            .collect();
        for (key, event) in late {
            self.agenda.remove(&key);
            let delay = self.up_to(STRAGGLERS);
            self.at(delay, event);
        }
        for office in &mut self.offices {
            office.plan = Plan {
                sabotage: office.plan.sabotage,
                strikes: office.plan.strikes,
                ..Plan::default()
            };
        }
        for office in 0..self.offices.len() {
            self.set_manual(office, false);
        }
        self.at(0, Event::BrokerStart);
        for link in 0..self.offices.len() {
            self.at(0, Event::Mend(link));
        }
        self.at(STRAGGLERS + 2 * SECOND, Event::Quiet);
    }

    pub(super) fn arm(&mut self, office: usize) {
        let step = self.rng.random_range(0..40);
        let after = self.rng.random_bool(0.5);
        let plan = &mut self.offices[office].plan;
        match self.rng.random_range(0..6) {
            0 | 1 => plan.crash = Some((step, after)),
            2 => plan.busy = Some(step),
            _ if self.weather.race => plan.race = Some(step),
            _ => plan.lost = Some(step % WRITES),
        }
    }
}
