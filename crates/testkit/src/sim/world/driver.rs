//! The offices' drivers: they call the machines, do what these ask for, and recover as the real driver does.

use super::*;

impl World {
    pub(super) fn work(&mut self, office: usize, life: u64) {
        if self.offices[office].lives != life {
            return;
        }
        self.offices[office].working = false;
        if self.offices[office].troubled {
            return;
        }
        let more = self.call(office, |machine, db, now| match machine {
            Machine::Head(head) => run(head.work(db, now)),
            Machine::Branch(branch) => run(branch.work(db, now)),
        });
        if more.is_some() {
            self.offices[office].failures = 0;
            self.offices[office].altered = false;
        }
        if more == Some(true) {
            self.plan_work(office);
        }
    }

    pub(super) fn tick(&mut self, office: usize) {
        if !self.offices[office].troubled {
            self.call(office, |machine, db, now| match machine {
                Machine::Head(head) => run(head.tick(db, now)),
                Machine::Branch(branch) => branch.tick(now),
            });
        }
        self.plan_work(office);
        let delay = 300 * MS + self.up_to(200 * MS);
        self.at(delay, Event::Tick(office));
    }

    pub(super) fn take_in(&mut self, office: usize, bytes: &Bytes, token: Token) {
        self.call(office, |machine, db, now| match machine {
            Machine::Head(head) => run(head.arrived(db, now, bytes, token)),
            Machine::Branch(branch) => run(branch.arrived(db, now, bytes, token)),
        });
        self.plan_work(office);
    }

    pub(super) fn has_room(&self, office: usize) -> bool {
        let machine = self.offices[office].machine.as_ref();
        self.listens(office) && machine.is_some_and(Machine::has_room)
    }

    /// Whether an office's driver takes in what arrives: not while its machine may not know what its database says.
    fn listens(&self, office: usize) -> bool {
        let office = &self.offices[office];
        !office.stale || office.plan.sabotage == Some(Sabotage::StaleListens)
    }

    /// Calls a machine, then does what it asks for. Returns nothing where the call failed.
    pub(super) fn call<T>(
        &mut self,
        office: usize,
        act: impl FnOnce(&mut Machine, &mut Faulty<'_>, Micros) -> OfficeResult<T>,
    ) -> Option<T> {
        let mut machine = self.offices[office].machine.take()?;
        let mut plan = std::mem::take(&mut self.offices[office].plan);
        let result = self.with_plan(office, &mut plan, |db, now| act(&mut machine, db, now));
        let (dead, hindered) = (plan.dead, std::mem::take(&mut plan.hindered));
        let cut_off = std::mem::take(&mut plan.cut_off);
        let raced = plan.raced.take();
        self.offices[office].plan = plan;
        self.offices[office].machine = Some(machine);
        if let Some(what) = raced {
            self.wrote(office, &format!("(in between) {what}"));
        }
        if dead {
            self.offices[office].plan.dead = false;
            self.kill(office, "dies between two database steps");
            return None;
        }
        if let Some(Machine::Branch(branch)) = &self.offices[office].machine {
            let joined = branch.state().joining.is_none();
            self.set_joined(office, joined);
        }
        if office == 0 {
            self.head_followed();
        }
        self.drain(office);
        self.check(office);
        match result {
            Ok(value) => Some(value),
            // What was asked of tables that are no longer so fails, and is looked at anew.
            Err(error) if hindered || self.offices[office].altered => {
                self.tell(format!("{}: {error}", self.offices[office].name));
                self.trouble(office, &error, cut_off);
                None
            }
            Err(error) => {
                self.fail(format!("{} failed: {error}", self.offices[office].name));
                None
            }
        }
    }

    /// A step failed: the driver waits a little, then reads the machine anew, unless it was only in somebody's way. What
    /// cuts an office off from its database may cut it off from the others too, and last.
    fn trouble(&mut self, office: usize, error: &OfficeError, cut_off: bool) {
        self.offices[office].stale |= !matches!(error, OfficeError::InTheWay(_));
        if !std::mem::replace(&mut self.offices[office].troubled, true) {
            let life = self.offices[office].lives;
            let mut pause = (50 * MS) << self.offices[office].failures.min(6);
            if cut_off {
                pause += self.up_to(3 * SECOND);
                for link in self.links_of(office) {
                    self.unlink(link);
                }
            }
            self.offices[office].failures += 1;
            self.at(pause, Event::Reload(office, life));
        }
    }

    /// The pause after a failed step is over. A stale machine is read anew from its database, within the same process.
    pub(super) fn reload(&mut self, office: usize, life: u64) {
        if self.offices[office].lives != life || self.offices[office].machine.is_none() {
            return;
        }
        if !self.offices[office].stale {
            self.offices[office].troubled = false;
            self.plan_work(office);
            return;
        }
        let Some(machine) = self.load(office) else {
            return;
        };
        self.offices[office].machine = Some(machine);
        self.offices[office].troubled = false;
        self.offices[office].stale = false;
        self.offices[office].working = false;
        self.tell(format!("{} is read anew", self.offices[office].name));
        let waiting = self.network.deliveries.iter();
        let waiting: Vec<Token> = waiting
            .filter(|(_, delivery)| delivery.office == office)
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            self.network.settle(token);
        }
        if office == 0 && !self.network.fanout {
            for link in 1..self.offices.len() {
                self.unlink(link);
            }
        } else if self.network.links[office].up {
            self.link_up(office);
        }
        self.check(office);
        self.plan_work(office);
    }

    pub(super) fn link_up(&mut self, office: usize) {
        if !self.listens(office) {
            // It hears of it when it is read anew.
            return;
        }
        self.call(office, |machine, _, now| match machine {
            Machine::Head(head) => {
                head.link_up(None);
                Ok(())
            }
            Machine::Branch(branch) => branch.link_up(now),
        });
    }

    /// Does what a machine asks for.
    pub(super) fn drain(&mut self, office: usize) {
        let mut outputs = VecDeque::new();
        while let Some(output) = self.offices[office]
            .machine
            .as_mut()
            .and_then(Machine::output)
        {
            outputs.push_back(output);
        }
        for output in outputs {
            match output {
                Output::Send(to, bytes) => self.send(office, &to, &bytes),
                Output::Settle(token) => drop(self.network.settle(token)),
                Output::Name(token, name) => self.name(token, &name),
                Output::Close(token) => self.close(token),
                Output::Notice(notice) => self.notice(office, &notice),
            }
        }
    }

    pub(super) fn notice(&mut self, office: usize, notice: &Notice) {
        match notice {
            Notice::Conflict { .. } => self.conflicts += u64::from(office == 0),
            Notice::Reincarnated => self.reincarnations += 1,
            Notice::RefusedByHead(_) if self.twin_refused(office) => {}
            Notice::RefusedByHead(why) => {
                self.fail(format!("{} was refused: {why}", self.offices[office].name))
            }
            Notice::Verified(verification) if verification.repair => {
                // Nobody writes behind the back of capture here: whatever the weather, nothing differs.
                if let Err(why) = super::super::oracle::undisturbed(self, verification) {
                    self.fail(why);
                }
            }
            Notice::Verified(verification) => self.verified = Some(verification.clone()),
            _ => {}
        }
        self.tell(format!("{} says {notice:?}", self.offices[office].name));
    }

    /// Looks at what must be true at every moment, where anything was committed since the last look.
    pub(super) fn check(&mut self, office: usize) {
        if !std::mem::take(&mut self.offices[office].disk.changed) {
            return;
        }
        if let Err(why) = super::super::oracle::money(self, office) {
            self.fail(why);
        }
        // Nobody else writes the log than the head's process; where that died, it may have written first.
        let grown = match &self.offices[0].machine {
            Some(Machine::Head(head)) => !self.log.ends_at(head.last()),
            _ => true,
        };
        if office == 0
            && grown
            && let Err(why) = super::super::oracle::read_log(self)
        {
            self.fail(why);
        }
    }

    pub(super) fn set_joined(&mut self, office: usize, joined: bool) {
        if self.offices[office].joined != joined {
            self.offices[office].joined = joined;
            // Whose accounts are looked at has changed, everywhere.
            for office in &mut self.offices {
                office.disk.changed = true;
            }
        }
    }

    pub(super) fn plan_work(&mut self, office: usize) {
        if self.offices[office].machine.is_some() && !self.offices[office].working {
            self.offices[office].working = true;
            let delay = self.up_to(3 * MS);
            let life = self.offices[office].lives;
            self.at(delay, Event::Work(office, life));
        }
    }
}
