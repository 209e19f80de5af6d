//! Coming to rest: whether everything has arrived, and what must be true then.

use super::*;

impl World {
    pub(super) fn is_even(&mut self) -> Result<(), String> {
        for index in 0..self.offices.len() {
            let Some(machine) = self.offices[index].machine.take() else {
                return Err(format!("{} does not run", self.offices[index].name));
            };
            let even = self.with_database(index, |db, _| {
                run(async {
                    db.begin(Purpose::Read).await?;
                    let even = match &machine {
                        Machine::Head(head) => head.is_even(db).await,
                        Machine::Branch(branch) => {
                            Ok(branch.state().connected && branch.is_even(db).await?)
                        }
                    };
                    db.rollback().await?;
                    even
                })
            });
            let state = match &machine {
                Machine::Head(head) => format!("last {}, {:?}", head.last(), head.branches()),
                Machine::Branch(branch) => format!("{:?}", branch.state()),
            };
            let comparing = match &machine {
                Machine::Head(head) => head.is_comparing(),
                Machine::Branch(branch) => branch.awaits_comparison(),
            };
            self.offices[index].machine = Some(machine);
            if comparing && matches!(self.phase, Phase::Rest { .. }) {
                return Err(format!(
                    "{} waits for a comparison: {state}",
                    self.offices[index].name
                ));
            }
            match even {
                Ok(true) => {}
                Ok(false) => {
                    return Err(format!("{} is not even: {state}", self.offices[index].name));
                }
                Err(error) => return Err(format!("{}: {error}", self.offices[index].name)),
            }
        }
        Ok(())
    }

    /// Looks whether the company is at rest. Returns whether the run goes on.
    pub(super) fn quiet(&mut self) -> bool {
        let even = self.is_even();
        match (self.phase, even) {
            (Phase::Storm, _) => return true,
            (Phase::Rest { since } | Phase::Verify { since }, Err(why))
                if self.now > since + REST_BOUND =>
            {
                self.fail(format!("stuck: {why}"));
                return false;
            }
            (Phase::Rest { since }, Ok(()))
                if self.now <= since + REST_BOUND && self.finish_migration() => {}
            (Phase::Rest { .. }, Ok(())) => {
                self.tell("the company is at rest");
                self.head_restored_now = false;
                if let Err(why) = super::super::oracle::at_rest(self) {
                    self.fail(why);
                    return false;
                }
                self.verified = None;
                self.phase = Phase::Verify { since: self.now };
                self.call(0, |machine, _, _| {
                    if let Machine::Head(head) = machine {
                        head.verify(false);
                    }
                    Ok(())
                });
                self.plan_work(0);
            }
            (Phase::Verify { since }, _) => {
                if let Some(verification) = self.verified.take() {
                    if let Err(why) = super::super::oracle::verification(self, &verification) {
                        self.fail(why);
                        return false;
                    }
                    if self.rounds == 0 {
                        return false;
                    }
                    self.rounds -= 1;
                    self.storm(false);
                    return true;
                }
                if self.now > since + REST_BOUND {
                    self.fail("stuck: the comparison does not end".into());
                    return false;
                }
            }
            (Phase::Rest { .. }, Err(_)) => {}
        }
        self.at(SECOND, Event::Quiet);
        true
    }
}
