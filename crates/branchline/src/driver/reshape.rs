//! Changing the plan, and the schema's policy, while the office runs (head).

use std::collections::BTreeSet;
use std::sync::PoisonError;

use branchline_core::evolution::{Follow, Plan, Renamed, preview};
use branchline_core::failure::OfficeResult;
use branchline_core::head::Head;
use branchline_core::output::Notice;
use branchline_core::port::{Database, Finding, Purpose};
use branchline_database::AnyDatabase;

use super::{Driver, Machine};
use crate::config;
use crate::exit::{Failure, NO, Outcome};
use crate::office::check_rules;
use crate::plan::former::Former;
use crate::plan::outlook::{not_shareable, to_json};
use crate::plan::{Names, PlanSettings, tell};
use crate::request::{Answer, Waiting};

/// What the driver knows of the plan besides what was written down.
#[derive(Default)]
pub(super) struct Reshaping {
    names: Names,
    /// New tables that a person asked for, until they are shared.
    named: BTreeSet<String>,
    /// What the list names and cannot be shared.
    cannot: Vec<Finding>,
}

impl Reshaping {
    /// The plan for the machine.
    pub fn plan(&self, settings: &PlanSettings) -> Plan {
        settings.plan(&self.names, self.named.clone())
    }

    /// Reads the names that tables had.
    pub async fn read_names(&mut self, db: &mut AnyDatabase) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let former = Former::load(db).await;
        db.rollback().await?;
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = former?;
        Ok(())
    }
}

impl Driver {
    fn head(&mut self) -> Outcome<&mut Head> {
        match &mut self.machine {
            Machine::Head(head) => Ok(head),
            Machine::Branch(_) => Err(Failure::usage(
                "the plan stands at the head, and changes there; this is a branch",
            )),
        }
    }

    /// Reads the plan again and gives it to the head. The present one stays where the new one is wrong.
    pub(super) async fn apply_plan(&mut self) -> Outcome<()> {
        self.head()?;
        let settings = config::read(&self.parts.config)?;
        for told in check_rules(&mut self.parts.db, &settings).await? {
            tracing::warn!("{told}");
        }
        let found = self.parts.db.definitions().await?;
        let names = found.tables.into_iter().map(|table| table.name);
        let list = settings.plan.tables.as_ref();
        self.reshaping.named = names
            .filter(|name| list.is_some_and(|list| list.choose(name)))
            .collect();
        self.parts.plan = settings.plan;
        let plan = self.reshaping.plan(&self.parts.plan);
        self.head()?.set_plan(plan);
        Ok(())
    }

    /// Lets the waiting change of the tables pass.
    pub(super) async fn accept_schema(&mut self) -> Outcome<()> {
        self.head()?;
        match self.parts.plan.follow {
            Follow::Ask => {}
            Follow::Follow => {
                return Err(Failure::new(
                    NO,
                    "nothing waits: what changes in the tables is followed by itself ([plan] schema = \"follow\")",
                ));
            }
            Follow::Refuse => {
                return Err(Failure::usage(
                    "[plan] schema = \"refuse\" lets no change of the tables pass: write \"ask\" or \"follow\" there, then run `branchline plan apply`",
                ));
            }
        }
        let plan = self.reshaping.plan(&self.parts.plan);
        let (next, _) = preview(&mut self.parts.db, &plan).await?;
        if next.told.is_empty() {
            return Err(Failure::new(NO, "no change of the tables waits"));
        }
        let Machine::Head(head) = &mut self.machine else {
            return Ok(());
        };
        Ok(head.accept_changes(&mut self.parts.db).await?)
    }

    /// Remembers what a person says of a rename.
    pub(super) async fn say_renamed(&mut self, said: &Renamed) -> Answer {
        self.head()?;
        let Machine::Head(head) = &mut self.machine else {
            return Err(Failure::usage("this is a branch"));
        };
        head.say_renamed(&mut self.parts.db, said).await?;
        let document = serde_json::json!({
            "table": said.table, "column": said.column, "to": said.to,
        });
        Ok((0, document))
    }

    /// What became of a new plan, or of an accepted change, once that is known.
    pub(super) fn reshaped(&mut self, waiting: &Waiting) -> Option<Answer> {
        let Machine::Head(head) = &self.machine else {
            return None;
        };
        if self.trouble.problem.is_some() || !head.has_followed() {
            return None;
        }
        let cannot: Vec<_> = self.reshaping.cannot.iter().map(to_json).collect();
        let document = serde_json::json!({
            "schema_version": head.schema().version,
            "changed": waiting.changed,
            "waiting": head.waiting_changes(),
            "cannot": cannot,
        });
        Some(Ok((0, document)))
    }

    /// Keeps up with what the head finds out about its tables.
    pub(super) fn note_reshape(&mut self, notice: &Notice) {
        let Machine::Head(head) = &self.machine else {
            return;
        };
        match notice {
            Notice::SchemaChanged { what, .. } => {
                self.reshaping
                    .names
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .learn(head.schema());
                for waiting in &mut self.waiting {
                    waiting.changed.push(what.clone());
                }
            }
            Notice::Inspected(findings) => {
                let list = self.parts.plan.tables.as_ref();
                let cannot = not_shareable(findings, head.schema(), list);
                for finding in &cannot {
                    if !self.reshaping.cannot.contains(finding) {
                        tracing::warn!(
                            "the list names a table that cannot be shared: {}",
                            tell(finding)
                        );
                    }
                }
                self.reshaping.cannot = cannot;
            }
            _ => {}
        }
    }
}
