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
        for link in self.links_of(office) {
            self.unlink(link);
        }
        self.check(office);
        let delay = self.up_to(2 * SECOND);
        self.at(delay, Event::Restart(office));
    }

    /// The links that end at an office.
    pub(super) fn links_of(&self, office: usize) -> std::ops::Range<usize> {
        if office == 0 && !self.network.fanout {
            1..self.offices.len()
        } else {
            office..office + 1
        }
    }

    pub(super) fn restart(&mut self, office: usize) {
        if self.offices[office].machine.is_some() || !self.offices[office].founded {
            return;
        }
        self.offices[office].lives += 1;
        self.offices[office].working = false;
        self.offices[office].troubled = false;
        self.offices[office].stale = false;
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
        plan.cut_off = false;
        self.offices[office].plan = plan;
        if let Some(what) = raced {
            self.wrote(office, &what);
        }
        match loaded {
            Ok(mut machine) => {
                let moving = !self.offices[office].manual;
                if let Some(retention) = self.retention {
                    match &mut machine {
                        Machine::Head(head) => head.set_retention(retention),
                        Machine::Branch(branch) => branch.set_retention(retention),
                    }
                }
                if let (Machine::Head(head), Some(_)) = (&mut machine, &self.migrations) {
                    head.set_plan(migrate::share_all());
                }
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
        if branch == 0 || !office.joined || office.machine.is_none() || self.head_gives_back() {
            return;
        }
        if self.promoted {
            // What only it and the head that is gone had listed would go with it.
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
        let invited = self.with_database(0, |db, _| {
            run(async {
                let invited = seats::invite(db, &name, code, expires).await?;
                if invited.is_ok() {
                    return Ok(invited);
                }
                // The head was restored to before the branch's removal; the refusal says what to do.
                let removed = seats::remove(db, &name).await?;
                removed.expect("the branch has a seat");
                seats::invite(db, &name, code, expires).await
            })
        });
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
            head_key: self.head_key(),
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
        if self.head_gives_back() {
            return;
        }
        self.kill(office, "stops, since its disk is broken");
        self.tell(format!(
            "{} is restored from its backup",
            self.offices[office].name
        ));
        self.offices[office].disk.restore(&image);
        self.offices[office].restored = true;
        self.set_joined(office, false);
        self.journal.restored(office, since, &BTreeSet::new());
    }

    /// Whether the branches may still have something that the head lost: until the company was at rest again, none of
    /// them may go, or what it alone has is gone with it.
    fn head_gives_back(&self) -> bool {
        self.head_restored_now
    }

    /// A backup of the head, where all branches are in: those that are invited later would need another invitation.
    pub(super) fn image_head(&mut self) {
        let all_in = self.offices.iter().all(|office| office.joined);
        if self.retention.is_some() || !all_in || self.head_restored_now {
            return;
        }
        self.tell("a backup of the head is made");
        self.head_followed();
        self.head_image = Some(HeadImage {
            image: self.offices[0].disk.image(),
            since: self.journal.last(),
            log: self.log.clone(),
            schema: self.schema.clone(),
            invitations: self.offices.iter().map(|o| o.invitations).collect(),
        });
        let delay = self.up_to(5 * SECOND);
        self.at(delay, Event::Restore(0));
    }

    pub(super) fn restore_head(&mut self) {
        let Some(backup) = self.head_image.take() else {
            return;
        };
        let invited = self.offices.iter().map(|office| office.invitations);
        if !backup.invitations.iter().copied().eq(invited) || self.head_restored_now {
            return;
        }
        self.kill(0, "stops, since its disk is broken");
        let mut followed = LogPosition::NONE;
        for branch in 1..self.offices.len() {
            followed = followed.max(self.cursor_of(branch));
            // What it has may be the only copy.
            self.offices[branch].image = None;
        }
        let kept = self.log.writes_through(followed);
        self.tell(format!(
            "ho is restored from its backup; the branches have the log up to {followed}"
        ));
        self.offices[0].disk.restore(&backup.image);
        self.offices[0].restored = true;
        // A decision is listed at the head and at the branch whose change it was about: with a branch that left since, both
        // lists are gone.
        let left = |name: &OfficeName| {
            let mut offices = self.offices.iter();
            offices.any(|office| !office.founded && office.name == *name)
        };
        let forgotten = self.log.decided_since(&backup.log, left);
        self.journal.forgotten(&forgotten);
        self.log = backup.log;
        // What the branches give back brings later versions again, or the head makes others under their numbers.
        if let Some(migrations) = &mut self.migrations {
            let last = backup.schema.version;
            migrations.versions.retain(|version, _| *version <= last);
            migrations.unfollowed = None;
            // What a branch made first, and the head too, is to be made there again; what is under way comes after it.
            if let Some(made) = migrations.made.take() {
                let begun = std::mem::replace(&mut migrations.begun, true);
                migrations.later = migrations.planned.replace(made).filter(|_| begun);
            }
            self.schema = backup.schema;
        }
        self.head_restored = true;
        self.head_restored_now = true;
        self.journal.restored(0, backup.since, &kept);
        // Whoever comes late finds that the head has gone on.
        let late = self.rng.random_range(1..self.offices.len());
        if self.rng.random_bool(0.5) {
            self.network.links[late].severed = true;
            self.unlink(late);
            let delay = 3 * SECOND + self.up_to(3 * SECOND);
            self.at(delay, Event::Mend(late));
        }
    }

    /// How far a branch's database follows the log.
    fn cursor_of(&mut self, branch: usize) -> LogPosition {
        self.followed_by(branch).1
    }

    /// The first place of the log that a branch's database keeps, and the last.
    fn followed_by(&mut self, branch: usize) -> (LogPosition, LogPosition) {
        if !self.offices[branch].founded {
            return Default::default();
        }
        let followed = self.with_database(branch, |db, _| {
            run(async {
                db.begin(Purpose::Read).await?;
                let book = books::load::<BranchBook, _>(db, "branch").await?;
                let kept = match &book {
                    Some(book) => db.extent(&book.followed()).await?.first,
                    None => 0,
                };
                db.rollback().await?;
                let cursor = book.map_or(LogPosition::NONE, |book| book.cursor);
                Ok::<_, OfficeError>((LogPosition(kept), cursor))
            })
        });
        followed.expect("the branch's database works")
    }

    /// The head is gone, and a branch takes its place, killed now and then while it does; its office begins anew, empty.
    pub(super) fn promote(&mut self) {
        let all_in = self.offices.iter().all(|office| office.joined);
        if !all_in || self.promoted || self.head_restored_now || self.offices.len() < 3 {
            return;
        }
        let branch = self.rng.random_range(1..self.offices.len());
        let (first, last) = self.followed_by(branch);
        let mut others = (1..self.offices.len()).filter(|other| *other != branch);
        if others.any(|other| self.cursor_of(other).next() < first) {
            // What it had not heard the answers of, nobody could tell it.
            return;
        }
        self.promoted_from = last;
        self.kill(branch, "is stopped to take the head's place");
        self.promoted = true;
        let mut plan = Plan::default();
        for _ in 0..self.rng.random_range(0..4) {
            let (step, after) = (self.rng.random_range(0..300), self.rng.random_bool(0.5));
            plan.crash = Some((step, after));
            match self.promote_once(branch, &mut plan) {
                Some(true) => break,
                Some(false) => {
                    self.promoted = false;
                    return;
                }
                None => self.tell("the promotion is cut short"),
            }
            plan = Plan::default();
        }
        match self.promote_once(branch, &mut Plan::default()) {
            Some(true) => {}
            Some(false) => {
                self.promoted = false;
                return;
            }
            None => return self.fail("a promotion without a fault failed".into()),
        }
        self.kill(0, "is gone for good");
        let followed = (1..self.offices.len()).filter(|other| *other != branch);
        let followed: Vec<usize> = followed.collect();
        let furthest = followed.iter().map(|other| self.cursor_of(*other)).max();
        let kept = self
            .log
            .writes_through(furthest.unwrap_or_default().max(self.promoted_from));
        self.tell(format!(
            "{} is the head now; the others have the log up to {furthest:?}",
            self.offices[branch].name
        ));
        let fresh = Disk::new(self.offices[branch].disk.place(), "anew");
        let taken = std::mem::replace(&mut self.offices[branch].disk, fresh);
        let times = std::mem::take(&mut self.offices[branch].times);
        let office = &mut self.offices[branch];
        (office.founded, office.image, office.restored, office.manual) = (false, None, true, false);
        let head = &mut self.offices[0];
        (head.disk, head.times, head.restored) = (taken, times, true);
        head.disk.changed = true;
        self.head_image = None;
        self.set_joined(branch, false);
        // A decision is listed at the head and at the branch whose change it was about. One that left, or went back to a
        // backup, may not have it any more.
        let went = |name: &OfficeName| {
            let mut offices = self.offices.iter();
            offices.any(|office| office.restored && office.name == *name)
        };
        let forgotten = self.log.decided(went);
        self.journal.forgotten(&forgotten);
        self.log = LogReader::default();
        (self.head_restored, self.head_restored_now) = (true, true);
        self.journal.restored(0, 0, &kept);
        self.at(SECOND, Event::Restart(0));
        let delay = SECOND + self.up_to(3 * SECOND);
        self.at(delay, Event::Found(branch));
        for other in followed {
            self.offices[other].image = None;
            let delay = self.up_to(4 * SECOND);
            self.at(delay, Event::Rejoin(other));
        }
    }

    /// Returns whether it is done; none where it was cut short, and false where the branch cannot be the head.
    fn promote_once(&mut self, branch: usize, plan: &mut Plan) -> Option<bool> {
        let head = self.identity(0);
        let wiring = if self.network.fanout {
            Wiring::Fanout
        } else {
            Wiring::Direct
        };
        let done = self.with_plan(branch, plan, |db, now| {
            run(async {
                db.begin(Purpose::Read).await?;
                let identity = Identity::load(db).await;
                db.rollback().await?;
                if !identity?.1 {
                    let machine = Branch::load(db, [7; 16]).await?;
                    if let Err(why) = machine.promote(db, now, &head).await? {
                        return Ok(Err(why));
                    }
                }
                Head::load(db, wiring, now).await?;
                Ok::<_, OfficeError>(Ok(()))
            })
        });
        match done {
            Ok(Ok(())) => Some(true),
            Ok(Err(why)) => {
                self.tell(format!("it cannot be the head: {why}"));
                Some(false)
            }
            Err(_) if plan.dead || plan.hindered => {
                self.offices[branch].disk.reopen();
                None
            }
            Err(error) => {
                self.fail(format!("the promotion failed: {error}"));
                None
            }
        }
    }

    /// A branch takes the code of the head that took the former one's place.
    pub(super) fn rejoin(&mut self, branch: usize) {
        let name = self.offices[branch].name.clone();
        let code = secret(self.seed, &format!("new code of {name}"));
        let expires = Micros(i64::MAX);
        let invited = self.with_database(0, |db, _| {
            run(async {
                let invited = seats::invite(db, &name, code, expires).await?;
                let log = branchline_core::head::log_of(db).await?;
                Ok::<_, OfficeError>(invited.map(|()| log))
            })
        });
        let log = invited.expect("the head's database works");
        let log = log.expect("the branch has not come yet");
        self.seat_changed(branch);
        self.kill(branch, "is stopped to take a new code");
        let offer = Offer {
            head_name: self.offices[0].name.clone(),
            head_key: self.head_key(),
            secret: code,
            log: Some(log),
        };
        let renewal = self.with_database(branch, |db, _| run(Branch::renew(db, &offer)));
        assert_eq!(renewal.expect("the database works"), Renewal::Succeeded);
        self.tell(format!("{name} is told of the new head"));
    }

    fn head_key(&self) -> [u8; 32] {
        let key = SigningKey::from_bytes(&self.identity(0).secret_key);
        key.verifying_key().to_bytes()
    }

    pub(super) fn identity(&self, index: usize) -> IdentityBook {
        let name = self.offices[index].name.clone();
        IdentityBook {
            secret_key: if index == 0 && self.promoted {
                secret(self.seed, "the second head")
            } else {
                // An office that joins anew has another key.
                let times = self.offices[index].invitations;
                secret(self.seed, &format!("{name} {times}"))
            },
            name,
            head: index == 0,
        }
    }
}
