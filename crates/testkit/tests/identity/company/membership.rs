//! Branches that join, join again, leave, are copied, or take the head's place.

use branchline_core::books::{self, IdentityBook, SeatBook};
use branchline_core::branch::{Branch, Enrolment, Promotion, Renewal};
use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::head::seats;
use branchline_core::identity::{Incarnation, Micros, OfficeName};
use branchline_core::port::{Database, Purpose};
use branchline_core::succession::Offer;
use branchline_testkit::sim::office::{Disk, Image, Place};

use super::{Company, Office};

impl Company {
    pub fn join(&mut self, number: u8) {
        let at = self.begin_to_join(number);
        self.settle();
        let state = self.branches[at].branch.state();
        assert!(state.joining.is_none(), "the branch has joined");
    }

    /// A branch that is let in, and whose first copy is not complete.
    pub fn join_in_part(&mut self, number: u8) {
        let at = self.begin_to_join(number);
        for _ in 0..100 {
            self.step();
            if self.branches[at].branch.state().joining.is_some()
                && !self.branches[at].branch.schema().tables.is_empty()
            {
                return;
            }
        }
        panic!("it never began");
    }

    fn begin_to_join(&mut self, number: u8) -> usize {
        let name = OfficeName::new(format!("b{number}")).unwrap();
        let secret = [100 + number; 32];
        on!(self.at_head, db => seats::invite(db, &name, secret, Micros(i64::MAX)))
            .unwrap()
            .unwrap();
        let enrolment = Enrolment {
            identity: identity(name.as_str(), false, 1 + number),
            incarnation: Incarnation([1 + number; 16]),
            head_name: OfficeName::new("ho").unwrap(),
            head_key: self.head_key(),
            secret,
        };
        let mut disk = Disk::new(self.place, name.as_str());
        let session = self.session();
        let branch = on!(disk, db => async {
            db.prepare().await.unwrap();
            Branch::found(db, &enrolment).await.unwrap();
            Branch::load(db, session).await.unwrap()
        });
        self.seat(name, disk, branch)
    }

    /// A branch takes a code of the head that is new to it.
    pub fn join_again(&mut self, at: usize) -> Renewal {
        let name = self.branches[at].name.clone();
        let secret = [self.sessions; 32];
        let (head, now) = (&mut self.head, self.now);
        let log = on!(self.at_head, db => async {
            seats::invite(db, &name, secret, now.plus_millis(60_000)).await.unwrap().unwrap();
            head.load_seat(db, &name).await.unwrap();
            head.log_incarnation()
        });
        let offer = Offer {
            head_name: OfficeName::new("ho").unwrap(),
            head_key: self.head_key(),
            secret,
            log: Some(log),
        };
        let renewal = on!(self.branches[at].disk, db => Branch::renew(db, &offer)).unwrap();
        self.branches[at].up = true;
        self.restart_branch(at);
        renewal
    }

    /// What lets a branch in, as the head has it.
    pub fn join_secret_of(&mut self, at: usize) -> SeatBook {
        self.seat_book(at)
    }

    /// The head, restored to before it knew the branch's key, is given that again.
    pub fn let_in(&mut self, at: usize, known: SeatBook) {
        let name = self.branches[at].name.clone();
        let head = &mut self.head;
        on!(self.at_head, db => async {
            db.begin(Purpose::Apply).await.unwrap();
            let record = books::seat_name(&name);
            let seat = books::load::<SeatBook, _>(db, &record).await.unwrap();
            if let Some(mut seat) = seat {
                seat.public_key = known.public_key;
                books::store(db, &record, &seat).await.unwrap();
            }
            db.commit().await.unwrap();
            head.load_seat(db, &name).await.unwrap();
        });
    }

    /// A second machine starts from this image of a branch's database.
    pub fn start_copy(&mut self, of: usize, image: &Image) -> usize {
        let name = self.branches[of].name.clone();
        let mut disk = Disk::new(Place::Memory, "copy");
        disk.restore(image);
        let session = self.session();
        let mut branch = on!(disk, db => Branch::load(db, session)).unwrap();
        branch.set_retention(self.retention);
        self.seat(name, disk, branch)
    }

    pub(super) fn seat(&mut self, name: OfficeName, disk: Disk, branch: Branch) -> usize {
        self.branches.push(Office {
            name,
            disk,
            branch,
            up: false,
            lose: |_| false,
            deaf: false,
            notices: Vec::new(),
        });
        let at = self.branches.len() - 1;
        self.connect(at);
        at
    }

    pub(super) fn session(&mut self) -> [u8; 16] {
        self.sessions += 1;
        [self.sessions; 16]
    }

    fn head_key(&self) -> [u8; 32] {
        let key = SigningKey::from_bytes(&[self.head_secret; 32]);
        key.verifying_key().to_bytes()
    }

    /// The head and its database are gone for good; this branch is to be the head. Returns why not, if not.
    pub fn try_promoting(&mut self, at: usize) -> Result<Promotion, String> {
        self.cut(at);
        let now = self.now;
        let head = identity("ho", true, self.head_secret + 100);
        let session = self.session();
        let promotion = on!(self.branches[at].disk, db => async {
            let branch = Branch::load(db, session).await.unwrap();
            branch.promote(db, now, &head).await.unwrap()
        })?;
        let mut office = self.branches.remove(at);
        self.head_secret += 100;
        self.wire.clear();
        std::mem::swap(&mut self.at_head, &mut office.disk);
        for office in &mut self.branches {
            office.up = false;
            office.branch.link_down();
        }
        self.start_head();
        Ok(promotion)
    }

    pub fn promote(&mut self, at: usize) -> Promotion {
        self.try_promoting(at).unwrap()
    }

    pub fn remove(&mut self, at: usize) {
        let name = self.branches[at].name.clone();
        on!(self.at_head, db => async {
            seats::remove(db, &name).await.unwrap().unwrap();
            self.head.load_seat(db, &name).await.unwrap();
        });
    }
}

pub(super) fn identity(name: &str, head: bool, secret: u8) -> IdentityBook {
    IdentityBook {
        name: OfficeName::new(name).unwrap(),
        head,
        secret_key: [secret; 32],
    }
}
