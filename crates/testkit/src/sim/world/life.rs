//! How offices come to be, die, start again and are restored.

use super::*;

impl World {
    pub(super) fn kill(&mut self, office: usize, how: &str) {
        if self.offices[office].machine.is_none() {
            return;
        }
        self.tell(format!("{} {how}", self.offices[office].name));
        self.crashes += 1;
        self.offices[office].machine = None;
        self.offices[office].disk.reopen();
        self.offices[office].working = false;
        let links = if office == 0 && !self.network.fanout {
            1..self.offices.len()
        } else {
            office..office + 1
        };
        for link in links {
            self.unlink(link);
        }
        self.check(office);
        let delay = self.up_to(2 * SECOND);
        self.at(delay, Event::Restart(office));
    }

    pub(super) fn restart(&mut self, office: usize) {
        if self.offices[office].machine.is_some() || !self.offices[office].founded {
            return;
        }
        self.offices[office].lives += 1;
        self.offices[office].working = false;
        self.offices[office].troubled = false;
        let Some(machine) = self.load(office) else {
            return;
        };
        self.offices[office].machine = Some(machine);
        self.tell(format!("{} starts", self.offices[office].name));
        self.check(office);
        self.plan_work(office);
        let delay = self.up_to(500 * MS);
        self.at(delay, Event::Connect(office));
    }

    /// Reads a machine from its database. Where a fault keeps it from that, the process begins again later.
    pub(super) fn load(&mut self, office: usize) -> Option<Machine> {
        let life = self.offices[office].lives;
        let session = Digest::of(format!("{} {office} {life}", self.seed).as_bytes()).0;
        let wiring = if self.network.fanout {
            Wiring::Fanout
        } else {
            Wiring::Direct
        };
        let mut plan = std::mem::take(&mut self.offices[office].plan);
        let loaded = self.with_plan(office, &mut plan, |db, now| {
            if office == 0 {
                run(Head::load(db, wiring, now)).map(|head| Machine::Head(Box::new(head)))
            } else {
                run(Branch::load(db, session)).map(|mut branch| {
                    branch.set_store_and_forward(wiring == Wiring::Fanout);
                    Machine::Branch(Box::new(branch))
                })
            }
        });
        let (dead, hindered) = (
            std::mem::take(&mut plan.dead),
            std::mem::take(&mut plan.hindered),
        );
        let raced = plan.raced.take();
        self.offices[office].plan = plan;
        if let Some(what) = raced {
            self.wrote(office, &what);
        }
        match loaded {
            Ok(mut machine) => {
                let moving = !self.offices[office].manual;
                match &mut machine {
                    Machine::Head(head) => head.set_moving(moving),
                    Machine::Branch(branch) => {
                        let joined = branch.state().joining.is_none();
                        branch.set_moving(moving || !joined);
                        self.set_joined(office, joined);
                    }
                }
                return Some(machine);
            }
            Err(_) if dead && self.offices[office].machine.is_some() => {
                self.kill(office, "dies while it is read anew");
            }
            Err(_) if dead || hindered => {
                self.offices[office].disk.reopen();
                if self.offices[office].machine.is_some() {
                    self.at(50 * MS, Event::Reload(office, life));
                } else {
                    self.at(SECOND, Event::Restart(office));
                }
            }
            Err(error) => self.fail(format!(
                "{} does not start: {error}",
                self.offices[office].name
            )),
        }
        None
    }

    /// The head's process reads a branch's seat again, as after `invite` and `remove`.
    fn seat_changed(&mut self, branch: usize) {
        let name = self.offices[branch].name.clone();
        let Some(mut machine) = self.offices[0].machine.take() else {
            return;
        };
        let read = self.with_database(0, |db, _| match &mut machine {
            Machine::Head(head) => run(head.load_seat(db, &name)),
            Machine::Branch(_) => Ok(()),
        });
        self.offices[0].machine = Some(machine);
        if let Err(error) = read {
            self.fail(format!("the seat of {name} cannot be read: {error}"));
        }
        self.drain(0);
    }

    /// The head takes a branch out; the branch leaves, keeps its rows, and is invited again later.
    pub(super) fn dismiss(&mut self, branch: usize) {
        let office = &self.offices[branch];
        if branch == 0 || !office.joined || office.machine.is_none() {
            return;
        }
        let name = office.name.clone();
        let removed = self.with_database(0, |db, _| run(seats::remove(db, &name)));
        removed
            .expect("the head's database works")
            .expect("the branch is known");
        self.seat_changed(branch);
        self.kill(branch, "is taken out and leaves");
        let left = self.with_database(branch, |db, _| run(db.uninstall()));
        left.expect("the branch's database works");
        self.offices[branch].founded = false;
        self.offices[branch].image = None;
        self.offices[branch].restored = true;
        self.offices[branch].manual = false;
        self.set_joined(branch, false);
        self.journal.rejoined(branch);
        // Its queue goes with it, or not at once.
        if self.rng.random_bool(0.5) {
            self.network
                .stored
                .retain(|_, message| message.to != branch);
        }
        let delay = self.up_to(2 * SECOND);
        self.at(delay, Event::Found(branch));
    }

    /// The office moves data by itself, or only when asked.
    pub(super) fn set_manual(&mut self, office: usize, manual: bool) {
        if self.offices[office].manual == manual {
            return;
        }
        let how = if manual {
            "moves data when asked"
        } else {
            "moves data by itself"
        };
        self.tell(format!("{} {how}", self.offices[office].name));
        self.offices[office].manual = manual;
        match &mut self.offices[office].machine {
            Some(Machine::Head(head)) => head.set_moving(!manual),
            Some(Machine::Branch(branch)) => branch.set_moving(!manual),
            None => {}
        }
        self.plan_work(office);
    }

    /// The head invites a branch, and the branch sets its database up.
    pub(super) fn found(&mut self, branch: usize) {
        if self.offices[branch].founded {
            return;
        }
        let name = self.offices[branch].name.clone();
        self.offices[branch].invitations += 1;
        let times = self.offices[branch].invitations;
        let code = secret(self.seed, &format!("code {times} of {name}"));
        let expires = Micros(i64::MAX);
        let invited = self.with_database(0, |db, _| run(seats::invite(db, &name, code, expires)));
        invited
            .expect("the head's database works")
            .expect("the branch is new");
        self.seat_changed(branch);
        let enrolment = Enrolment {
            identity: self.identity(branch),
            incarnation: Incarnation(
                Digest::of(format!("{} {times} {name}", self.seed).as_bytes()).0,
            ),
            head_name: self.offices[0].name.clone(),
            head_key: SigningKey::from_bytes(&self.identity(0).secret_key)
                .verifying_key()
                .to_bytes(),
            secret: code,
        };
        let founded = self.with_database(branch, |db, _| {
            run(async {
                db.prepare().await?;
                Branch::found(db, &enrolment).await
            })
        });
        founded.expect("the branch is founded");
        self.tell(format!("{name} is invited and joins"));
        self.offices[branch].founded = true;
        self.restart(branch);
    }

    pub(super) fn restore(&mut self, office: usize) {
        let Some((image, since)) = self.offices[office].image.take() else {
            return;
        };
        self.kill(office, "stops, since its disk is broken");
        self.tell(format!(
            "{} is restored from its backup",
            self.offices[office].name
        ));
        self.offices[office].disk.restore(&image);
        self.offices[office].restored = true;
        self.set_joined(office, false);
        self.journal.restored(office, since);
    }

    pub(super) fn identity(&self, index: usize) -> IdentityBook {
        let name = self.offices[index].name.clone();
        IdentityBook {
            secret_key: secret(self.seed, name.as_str()),
            name,
            head: index == 0,
        }
    }
}
