//! Time and the wire: every office does its work, and what it sends is delivered.

use std::sync::Arc;

use branchline_core::envelope;
use branchline_core::output::{Output, To};

use super::{Company, End};

impl Company {
    pub fn flush(&mut self) {
        while let Some(output) = self.head.output() {
            match output {
                Output::Send(To::Branch(name), bytes) => {
                    for (at, office) in self.branches.iter().enumerate() {
                        if office.up && !office.deaf && office.name == name {
                            self.wire.push_back((End::Branch(at), Arc::clone(&bytes)));
                        }
                    }
                }
                Output::Send(_, bytes) => {
                    for (at, office) in self.branches.iter().enumerate() {
                        if office.up && !office.deaf {
                            self.wire.push_back((End::Branch(at), Arc::clone(&bytes)));
                        }
                    }
                }
                Output::Name(_, name) => self.head.link_up(Some(&name)),
                Output::Notice(notice) => self.notices.push(notice),
                _ => {}
            }
        }
        for office in &mut self.branches {
            while let Some(output) = office.branch.output() {
                match output {
                    Output::Send(_, bytes) => {
                        let message = envelope::open(&bytes).unwrap().read_own().unwrap();
                        if office.up && !(office.lose)(&message) {
                            self.wire.push_back((End::Head, bytes));
                        }
                    }
                    Output::Notice(notice) => office.notices.push(notice),
                    _ => {}
                }
            }
        }
    }

    /// One step of all, and everything on the wire delivered. Returns whether anything moved.
    pub fn step(&mut self) -> bool {
        self.step_with(false)
    }

    /// The same, where only one envelope is delivered.
    pub fn step_one_by_one(&mut self) -> bool {
        self.step_with(true)
    }

    fn step_with(&mut self, one_by_one: bool) -> bool {
        let now = self.now;
        let mut moved = on!(self.at_head, db => self.head.work(db, now)).unwrap();
        for office in &mut self.branches {
            moved |= on!(office.disk, db => office.branch.work(db, now)).unwrap();
        }
        self.flush();
        while let Some((to, bytes)) = self.wire.pop_front() {
            moved = true;
            match to {
                End::Head => {
                    on!(self.at_head, db => self.head.arrived(db, now, &bytes, 1)).unwrap();
                    self.heard.push((now, bytes));
                }
                End::Branch(at) => {
                    let office = &mut self.branches[at];
                    on!(office.disk, db => office.branch.arrived(db, now, &bytes, 1)).unwrap();
                }
            }
            self.flush();
            if one_by_one {
                break;
            }
        }
        moved
    }

    pub fn tick(&mut self, millis: i64) {
        self.now = self.now.plus_millis(millis);
        on!(self.at_head, db => self.head.tick(db, self.now)).unwrap();
        for office in &mut self.branches {
            office.branch.tick(self.now).unwrap();
        }
        self.flush();
    }

    /// Until nothing moves, for some seconds of their time.
    pub fn settle(&mut self) {
        for _ in 0..80 {
            self.tick(250);
            for round in 0.. {
                if !self.step() {
                    break;
                }
                assert!(round < 2_000, "it goes round in circles");
            }
        }
    }

    /// Time passes while the machines run.
    pub fn let_pass(&mut self, minutes: u32) {
        for _ in 0..minutes {
            self.tick(60_000);
            for _ in 0..100 {
                if !self.step() {
                    break;
                }
            }
        }
    }
}
