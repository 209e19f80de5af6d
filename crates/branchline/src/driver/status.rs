//! How an office is, under the public interface's keys.

use std::time::UNIX_EPOCH;

use branchline_core::books::{CONFLICTS, LOG, OUTBOX};
use branchline_core::conflict::rfc3339;
use branchline_core::failure::{OfficeError, OfficeResult};
use branchline_core::head::BranchReport;
use branchline_core::identity::{LogPosition, Micros};
use branchline_core::port::{Database, DatabaseError};
use serde_json::json;

use super::{Driver, Machine, now};
use crate::exit;
use crate::listing::count_held;
use crate::request::Answer;

impl Driver {
    /// The status; without its database an office tells what it knows, by the exit code of a database that is away.
    pub(super) async fn status_or_why(&mut self) -> Answer {
        match self.status().await {
            Ok(status) => Ok((0, status)),
            Err(OfficeError::Database(
                error @ (DatabaseError::Unreachable(_) | DatabaseError::Refused(_)),
            )) => Ok((exit::DATABASE, self.status_without_database(&error))),
            Err(error) => Err(error.into()),
        }
    }

    fn status_without_database(&self, error: &DatabaseError) -> serde_json::Value {
        let (name, role, connected, version) = match &self.machine {
            Machine::Head(head) => {
                let connected = self.parts.transport == "direct" || self.link.up;
                (head.name(), "head", connected, head.schema().version)
            }
            Machine::Branch(branch) => {
                let connected = branch.state().connected;
                (branch.name(), "branch", connected, branch.schema().version)
            }
        };
        let mut status = json!({
            "office": name, "role": role, "mode": self.parts.mode.as_str(), "schema_version": version,
            "database": { "engine": self.engine.0, "version": self.engine.1, "reachable": false },
            "in_sync": false, "pending_changes": null, "conflicts": null, "holds": null, "applied": {},
            "outbox": { "batches": null, "changes": null, "bytes": null, "oldest_seconds": null },
            "transport": self.transport_status(connected),
            "problem": error.to_string(), "at": rfc3339(now()),
        });
        if let Machine::Head(head) = &self.machine {
            let reports = head.branches().into_iter();
            let branches = reports.map(|report| branch_status(&report, head.last(), None));
            status["branches"] = branches.collect();
        }
        status
    }

    fn transport_status(&self, connected: bool) -> serde_json::Value {
        let since = self
            .link
            .since
            .map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default());
        let since = since.map(|at| rfc3339(Micros(i64::try_from(at.as_micros()).unwrap_or(0))));
        let problem = self.link.problem.as_ref().filter(|_| !self.link.up);
        json!({
            "kind": self.parts.transport, "connected": connected, "since": since,
            "problem": problem.map(ToString::to_string),
        })
    }

    pub(super) async fn status(&mut self) -> OfficeResult<serde_json::Value> {
        let backlog = self.parts.db.backlog().await?;
        let outbox = self.parts.db.extent(OUTBOX).await?;
        let conflicts = self.parts.db.extent(CONFLICTS).await?.entries;
        let oldest = seconds_since(backlog.oldest);
        let mut status = json!({
            "database": { "engine": self.engine.0, "version": self.engine.1, "reachable": true },
            "pending_changes": backlog.writes,
            "conflicts": conflicts,
            "mode": self.parts.mode.as_str(),
        });
        let mut problem = self.trouble.problem.as_ref().map(ToString::to_string);
        let (connected, details) = match &mut self.machine {
            Machine::Head(head) => {
                problem = problem.or(head.cannot_follow());
                let last = head.last();
                let reports = head.branches();
                let applied: serde_json::Map<_, _> = reports
                    .iter()
                    .map(|b| (b.name.to_string(), json!(b.cursor)))
                    .collect();
                let holds = count_held(&mut self.parts.db, head.schema(), true).await?;
                let kept = self.parts.db.extent(LOG).await?;
                let in_sync = head.is_even(&mut self.parts.db).await?;
                let direct = self.parts.transport == "direct";
                let mut branches = Vec::with_capacity(reports.len());
                for report in reports {
                    let version = match report.joined {
                        true => Some(head.version_at(&mut self.parts.db, report.applied).await?),
                        false => None,
                    };
                    branches.push(branch_status(&report, last, version));
                }
                let details = json!({
                    "office": head.name(), "role": "head", "in_sync": in_sync, "applied": applied,
                    "log": last, "log_kept": { "first": kept.first, "entries": kept.entries, "bytes": kept.bytes }, "holds": holds, "schema_version": head.schema().version,
                    "schema_waiting": head.waiting_changes(), "branches": branches,
                    "outbox": { "batches": 0, "changes": 0, "bytes": 0, "oldest_seconds": oldest },
                });
                (direct || self.link.up, details)
            }
            Machine::Branch(branch) => {
                let state = branch.state();
                let in_sync = branch.is_even(&mut self.parts.db).await?;
                let holds = count_held(&mut self.parts.db, branch.schema(), false).await?;
                let kept = self.parts.db.extent(&branch.followed()).await?;
                let unanswered = state.frozen.0 - state.answered.0;
                let bytes = if unanswered == 0 { 0 } else { outbox.bytes };
                let sent = branch.oldest_unanswered(&mut self.parts.db).await?;
                let oldest = seconds_since(backlog.oldest.into_iter().chain(sent).min());
                let details = json!({
                    "office": branch.name(), "role": "branch", "in_sync": in_sync,
                    "applied": { (branch.head_name().as_str()): state.cursor }, "known_log": state.known_last, "holds": holds,
                    "log_kept": { "first": kept.first, "entries": kept.entries, "bytes": kept.bytes },
                    "schema_version": branch.schema().version,
                    "joining": state.joining.as_ref().map(|j| json!({ "tables": j.loaded.len(), "rows": j.rows })),
                    "clock_offset_ms": state.clock_offset_ms, "refused": state.refused,
                    "outbox": {
                        "batches": unanswered, "changes": branch.unanswered_rows(), "bytes": bytes,
                        "oldest_seconds": oldest,
                    },
                });
                (state.connected, details)
            }
        };
        if let (Some(status), serde_json::Value::Object(details)) =
            (status.as_object_mut(), details)
        {
            status.extend(details);
            status.insert("transport".into(), self.transport_status(connected));
            if problem.is_some() {
                // What waits cannot be told for sure.
                status.insert("in_sync".into(), json!(false));
            }
            status.insert("problem".into(), json!(problem));
            status.insert("at".into(), json!(rfc3339(now())));
        }
        Ok(status)
    }
}

/// Whole seconds; 0 for none.
fn seconds_since(time: Option<Micros>) -> i64 {
    time.map_or(0, |time| (now().0 - time.0).max(0) / 1_000_000)
}

/// A branch under the public interface's keys.
fn branch_status(
    branch: &BranchReport,
    last: LogPosition,
    version: Option<u32>,
) -> serde_json::Value {
    let lag = last.0.saturating_sub(branch.applied.0);
    let seconds = seconds_since(branch.behind_since);
    json!({
        "name": branch.name, "joined": branch.joined, "online": branch.online,
        "last_seen": (branch.seen != Micros(0)).then(|| rfc3339(branch.seen)),
        "lag_changes": lag, "lag_seconds": seconds, "holds": branch.holds,
        "clock_offset_ms": branch.clock_offset_ms, "schema_version": version,
        "applied": branch.applied, "batches": branch.cursor,
    })
}
