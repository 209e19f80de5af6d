//! The applications change their tables, the head's at any moment, a branch's sometimes first.

use std::sync::Arc;

use branchline_core::evolution::{Follow, Plan};
use branchline_core::schema::{Rules, Table};

use super::*;

/// New tables are shared as they come.
pub(super) fn share_all() -> Plan {
    let rules = |table: &Table| {
        Some(if table.id == 0 {
            Rules::default()
        } else {
            table.rules()
        })
    };
    Plan {
        rules: Arc::new(rules),
        follow: Follow::Follow,
    }
}

impl World {
    /// An office's application changes a table: a branch's may go ahead of the head's.
    pub(super) fn migrate(&mut self, office: usize) {
        self.head_followed();
        let all_in = self.offices.iter().all(|office| office.founded);
        let full = self.offices[office].plan.full;
        if self.head_restored_now {
            // What it lost may hold steps of its own: such a fork is scripted (`tests/identity/schema_forks.rs`).
            return;
        }
        let sqlite = |office: &Office| matches!(office.disk.store, Store::Sqlite(_));
        let widens = !self.offices.iter().any(sqlite);
        let Some(migrations) = self.migrations.as_mut().filter(|_| all_in && !full) else {
            return;
        };
        if migrations.unfollowed.is_some() {
            return;
        }
        if migrations.planned.is_none() {
            migrations.draw(&mut self.rng, &self.schema, widens);
        }
        self.make_migration(office);
    }

    fn make_migration(&mut self, office: usize) {
        let Some(migrations) = self.migrations.as_mut() else {
            return;
        };
        let Some(planned) = migrations.planned.clone() else {
            return;
        };
        // The number that the head will give it.
        migrations.ids.insert(planned.table.clone(), planned.id);
        let disk = &mut self.offices[office].disk;
        let tables = disk.tables(&migrations.ids);
        let at_head = |this: &Self| {
            this.schema
                .table(planned.id)
                .map(|table| table.name.clone())
        };
        let here = tables.table(planned.id).map(|table| table.name.clone());
        if office > 0 && !self.offices[office].joined {
            // What is there before the branch knows the plan is to be what the plan says already.
            return;
        }
        if office > 0 && planned.change != Change::CreateTable {
            // A branch's application goes ahead of the head's, not of what it has not seen.
            let first =
                matches!(&planned.change, Change::RenameColumn(name, _) if name == "payload");
            // Nor what it made itself: the head's step would bring that table in the shape that it had at first.
            let own = planned.table.starts_with("added");
            // Nor what it made of a table itself, before the head's step.
            let early = planned.column().is_some_and(|column| {
                let place = (planned.id, column.to_owned());
                !migrations.begun && migrations.early.contains(&place)
            });
            if first || own || early || here.is_none() || here != at_head(self) {
                return;
            }
        }
        let Some(migrations) = self.migrations.as_mut() else {
            return;
        };
        if !self.offices[office].disk.migrate(&planned, &tables) {
            if office == 0 {
                migrations.planned = migrations.later.take();
            }
            return;
        }
        self.offices[office].altered = true;
        migrations.begun |= office > 0;
        if office == 0 {
            migrations.made = std::mem::replace(&mut migrations.planned, migrations.later.take());
            migrations.unfollowed = Some(self.schema.version);
        } else if let Some(column) = planned.column() {
            migrations.early.insert((planned.id, column.to_owned()));
        }
        if planned.change == Change::DropTable {
            self.journal.dropped(office, planned.id);
        }
        let name = &self.offices[office].name;
        let table = &planned.table;
        self.tell(format!("{name} changes {table}: {:?}", planned.change));
        self.at(0, Event::Wake(office));
    }

    /// What a branch's application did first, the head's does too before the company comes to rest: a restored head's when
    /// its log is back. Returns whether it did.
    pub(super) fn finish_migration(&mut self) -> bool {
        self.head_followed();
        let waits = self.head_restored_now && self.is_even().is_err();
        let restored = self.head_restored_now;
        while let Some(migrations) = self.migrations.as_mut().filter(|_| !waits)
            && migrations.planned.is_some()
            && migrations.unfollowed.is_none()
        {
            if migrations.begun || !restored {
                // What came back with the log is not made again.
                self.make_migration(0);
            } else {
                migrations.planned = None;
            }
        }
        if waits {
            return false;
        }
        let mut migrations = self.migrations.iter();
        migrations.any(|migrations| migrations.unfollowed.is_some())
    }

    /// Whether the head's process has followed its tables; then theirs are the company's.
    pub(in super::super) fn head_followed(&mut self) {
        let Some(Machine::Head(head)) = &self.offices[0].machine else {
            return;
        };
        let Some(migrations) = &mut self.migrations else {
            return;
        };
        let comes_back = self.head_restored && *head.schema() != self.schema;
        if comes_back
            || migrations
                .unfollowed
                .is_some_and(|since| head.schema().version > since)
        {
            self.schema = head.schema().clone();
            migrations.followed(&self.schema);
        }
    }
}
