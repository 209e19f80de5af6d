//! Checks of the head's that rows here break. Their tables follow the head's in all else and do without them until no row breaks
//! them: a migration changes rows before it adds a check, and these changes come after the step.

use super::Branch;
use crate::books::BranchBook;
use crate::check::{Check, Checks};
use crate::failure::OfficeResult;
use crate::identity::Micros;
use crate::port::{Database, Evolution};
use crate::schema::{Schema, TableId};

/// How often such checks are tried again, in milliseconds: each time the database may look through their tables.
const MAKE_AGAIN_MS: i64 = 20_000;

impl BranchBook {
    /// Whether this check is known to wait.
    fn is_unmade(&self, id: TableId, check: &Check) -> bool {
        let mut unmade = self.unmade.iter().flatten();
        unmade.any(|(table, checks)| *table == id && checks.say(&check.condition))
    }
}

impl Branch {
    /// The present version as the tables here are: without the checks that rows break.
    pub(super) fn as_made(&self) -> Schema {
        let mut made = self.schema.clone();
        for table in &mut made.tables {
            let id = table.id;
            let checks = &mut table.checks.0;
            checks.retain(|check| !self.book.is_unmade(id, check));
        }
        made
    }

    /// Remembers in a book which checks could not be made, and says it of those of which it was not known.
    pub(super) fn note_unmade(
        &self,
        book: &mut BranchBook,
        to: &Schema,
        done: &Evolution,
    ) -> Vec<String> {
        let mut told = Vec::new();
        let mut unmade: Vec<(TableId, Checks)> = Vec::new();
        for (id, check, why) in &done.unmade {
            let again = to.version == self.schema.version && self.book.is_unmade(*id, check);
            if let Some(table) = to.table(*id).filter(|_| !again) {
                told.push(format!(
                    "table `{}` does without {why}; it is tried again by itself, all else goes on",
                    table.name
                ));
            }
            match unmade.iter_mut().find(|(table, _)| table == id) {
                Some((_, checks)) => checks.0.push(check.clone()),
                None => unmade.push((*id, Checks(vec![check.clone()]))),
            }
        }
        book.unmade = (!unmade.is_empty()).then_some(unmade);
        told
    }

    /// Tries again to make them.
    pub(super) async fn make_again<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if self.book.unmade.is_none() || !now.has_passed(MAKE_AGAIN_MS, self.unmade_tried) {
            return Ok(());
        }
        self.unmade_tried = now;
        self.evolve_again(db).await
    }
}
