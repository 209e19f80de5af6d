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
            Ok(machine) => {
                if let Machine::Branch(branch) = &machine {
                    self.set_joined(office, branch.state().joining.is_none());
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

    /// The head invites a branch, and the branch sets its database up.
    pub(super) fn found(&mut self, branch: usize) {
        let name = self.offices[branch].name.clone();
        let code = secret(self.seed, &format!("code of {name}"));
        let expires = Micros(i64::MAX);
        let invited = self.with_database(0, |db, _| run(seats::invite(db, &name, code, expires)));
        invited
            .expect("the head's database works")
            .expect("the branch is new");
        let enrolment = Enrolment {
            identity: self.identity(branch),
            incarnation: Incarnation(Digest::of(format!("{} {name}", self.seed).as_bytes()).0),
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
