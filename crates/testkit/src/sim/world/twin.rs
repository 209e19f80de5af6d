//! A copy of a branch's database is started beside its original (trap 21), until a person stops one of the two: the one
//! that the head refused.

use super::*;

/// A branch and its copy.
#[derive(Debug)]
pub struct Twin {
    /// The branch, once it is copied.
    pub original: Option<usize>,
    /// The place of its copy among the offices, the last one.
    pub copy: usize,
    /// Who was refused.
    pub refused: BTreeSet<usize>,
    /// The last write before the copy was made.
    since: WriteId,
}

impl Twin {
    pub fn new(copy: usize) -> Self {
        Self {
            original: None,
            copy,
            refused: BTreeSet::new(),
            since: 0,
        }
    }

    /// The other one of the two.
    fn other(&self, office: usize) -> Option<usize> {
        let original = self.original?;
        match office {
            office if office == original => Some(self.copy),
            office if office == self.copy => Some(original),
            _ => None,
        }
    }
}

impl World {
    /// How many offices there are, without a copy of one.
    pub fn real_offices(&self) -> usize {
        self.offices.len() - usize::from(self.twin.is_some())
    }

    /// Whose keys an office's application uses.
    pub(super) fn writes_as(&self, office: usize) -> usize {
        let twin = self.twin.as_ref().filter(|twin| twin.copy == office);
        twin.and_then(|twin| twin.original).unwrap_or(office)
    }

    /// A second machine starts from the present state of a branch's database.
    pub(super) fn copy(&mut self, branch: usize) {
        let Some(twin) = self.twin.as_mut() else {
            return;
        };
        let original = &self.offices[branch];
        let ready = original.joined && original.machine.is_some();
        if branch == 0 || twin.original.is_some() || branch == twin.copy || !ready {
            return;
        }
        twin.original = Some(branch);
        twin.since = self.journal.last();
        let (copy, place) = (twin.copy, original.disk.place());
        let (name, image) = (original.name.clone(), original.disk.image());
        let (times, skew) = (original.times.clone(), original.skew);
        self.tell(format!("a copy of {name} is started beside it"));
        self.offices[branch].restored = true;
        let office = &mut self.offices[copy];
        office.disk = Disk::new(place, "copy");
        office.disk.restore(&image);
        (office.name, office.times, office.skew) = (name, times, skew);
        (office.founded, office.restored) = (true, true);
        self.at(0, Event::Restart(copy));
        for _ in 0..self.rng.random_range(0..6) {
            let delay = self.up_to(2 * SECOND);
            self.at(delay, Event::App(copy));
        }
    }

    /// One of the two is refused. Returns whether that is right.
    pub(super) fn twin_refused(&mut self, office: usize) -> bool {
        let twin = self.twin.as_mut();
        let twin = twin.filter(|twin| twin.other(office).is_some());
        twin.is_some_and(|twin| {
            twin.refused.insert(office);
            true
        })
    }

    /// Of two that read from one queue, one gets a message; which, nobody knows.
    pub(super) fn reader(&mut self, office: usize) -> usize {
        let other = self.twin.as_ref().and_then(|twin| twin.other(office));
        match other {
            Some(other) if self.rng.random_bool(0.5) => other,
            _ => office,
        }
    }

    /// The head knows one connection of each name, the last.
    pub(super) fn ends_other_connection(&mut self, office: usize) {
        let other = self.twin.as_ref().and_then(|twin| twin.other(office));
        if let Some(other) = other {
            self.network.links[other].named = false;
            self.unlink(other);
        }
    }

    /// A person stops the machine that was refused, and starts the other anew.
    pub(super) fn stop_twin(&mut self) {
        let Some(twin) = self.twin.take() else {
            return;
        };
        if let Some(original) = twin.original {
            let copy_goes = !twin.refused.contains(&original) || twin.refused.contains(&twin.copy);
            let name = self.offices[original].name.clone();
            self.kill(twin.copy, "is stopped, the copy");
            self.kill(original, "is stopped");
            if copy_goes {
                self.journal.restored(twin.copy, 0, &BTreeSet::new());
            } else {
                self.tell(format!("the copy of {name} takes its place"));
                self.journal
                    .restored(original, twin.since, &BTreeSet::new());
                let copy = self.offices.len() - 1;
                let (front, back) = self.offices.split_at_mut(copy);
                std::mem::swap(&mut front[original].disk, &mut back[0].disk);
                std::mem::swap(&mut front[original].times, &mut back[0].times);
                front[original].disk.changed = true;
            }
            for message in self.network.stored.values_mut() {
                if message.to == twin.copy {
                    (message.to, message.handed) = (original, None);
                }
            }
            self.set_joined(original, false);
        }
        self.offices[twin.copy].founded = false;
        self.set_joined(twin.copy, false);
        self.unlink(twin.copy);
        let ghost = twin.copy;
        self.agenda.retain(|_, event| event.office() != Some(ghost));
        self.offices.truncate(ghost);
        self.network.links.truncate(ghost);
        self.network
            .deliveries
            .retain(|_, delivery| delivery.office != ghost && delivery.link != ghost);
    }
}

impl Event {
    /// The office that it is about, where it is about one.
    fn office(&self) -> Option<usize> {
        Some(match *self {
            Self::App(office)
            | Self::Wake(office)
            | Self::Work(office, _)
            | Self::Tick(office)
            | Self::Arrive(office, ..)
            | Self::Connect(office)
            | Self::Cut(office)
            | Self::Mend(office)
            | Self::HalfCut(office)
            | Self::Kill(office)
            | Self::Arm(office)
            | Self::Restart(office)
            | Self::Reload(office, _)
            | Self::Jump(office)
            | Self::Compare(office)
            | Self::Found(office)
            | Self::Dismiss(office)
            | Self::Manual(office)
            | Self::Live(office)
            | Self::Full(office)
            | Self::Room(office)
            | Self::Image(office)
            | Self::Restore(office)
            | Self::Away(office)
            | Self::Rejoin(office)
            | Self::Copy(office)
            | Self::Migrate(office) => office,
            Self::Hand(_)
            | Self::Lull
            | Self::Promote
            | Self::BrokerStop
            | Self::BrokerStart
            | Self::BrokerEmpty
            | Self::Quiet => return None,
        })
    }
}
