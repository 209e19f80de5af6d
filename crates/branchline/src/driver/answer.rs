//! Answering people: at once where that is possible, otherwise when the office has got so far.

use std::time::Instant;

use branchline_core::failure::OfficeResult;
use branchline_core::head::BranchReport;
use branchline_core::output::Notice;
use branchline_core::port::Database;

use super::{Driver, Machine, now};
use crate::config::Mode;
use crate::exit::{self, Failure};
use crate::office::stopped;
use crate::request::{Answer, Ask, Request, Waiting};

/// How many requests wait for an answer at the most.
const WAITING: usize = 256;

/// The exit code of a comparison: equal, different, or not complete since a branch was away.
fn code_of(equal: bool, document: &serde_json::Value) -> u8 {
    let differs =
        |branch: &serde_json::Value| branch["answered"] == true && branch["equal"] == false;
    let branches = document["branches"].as_array();
    match (
        equal,
        branches.is_some_and(|branches| branches.iter().any(differs)),
    ) {
        (true, _) => 0,
        (false, true) => exit::NO,
        (false, false) => exit::UNREACHED,
    }
}

impl Driver {
    pub(super) async fn take_request(&mut self, request: Request) {
        let Request { ask, reply } = request;
        let answer = match &ask {
            Ask::Status => self.status_or_why().await,
            Ask::Reload(name) => {
                let db = &mut self.parts.db;
                let outcome = match &mut self.machine {
                    Machine::Head(head) => head.load_seat(db, name).await,
                    Machine::Branch(_) => Ok(()),
                };
                self.flush().await;
                outcome
                    .map(|()| (0, serde_json::json!({ "done": true })))
                    .map_err(Failure::from)
            }
            Ask::Stop => {
                self.stopping = true;
                Ok((0, serde_json::json!({ "stopped": true })))
            }
            Ask::Leave => self.leave().await,
            Ask::Settle { conflict, keep, .. } if self.is_head => {
                self.settle(*conflict, *keep).await
            }
            Ask::History { table, key, .. } if self.is_head => self.history(table, key).await,
            Ask::Settle { .. } | Ask::History { .. } => {
                self.begin_waiting(ask, reply);
                return;
            }
            Ask::SayRenamed(said) => self.say_renamed(said).await,
            Ask::ApplyPlan { .. } | Ask::AcceptSchema { .. } => {
                let begun = match &ask {
                    Ask::ApplyPlan { .. } => self.apply_plan().await,
                    _ => self.accept_schema().await,
                };
                match begun {
                    Ok(()) => {
                        self.begin_waiting(ask, reply);
                        return;
                    }
                    Err(failure) => Err(failure),
                }
            }
            Ask::Sync { .. } | Ask::Joined { .. } | Ask::Verify { .. } => {
                self.begin_waiting(ask, reply);
                return;
            }
        };
        // Whoever asked may have gone.
        drop(reply.send(answer));
    }

    fn begin_waiting(&mut self, ask: Ask, reply: tokio::sync::oneshot::Sender<Answer>) {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        if self.waiting.len() >= WAITING {
            let why =
                format!("{WAITING} requests wait for an answer here already; try again later");
            drop(reply.send(Err(Failure::new(exit::UNREACHED, why))));
            return;
        }
        self.set_moving(true);
        self.waiting.push(Waiting::new(ask, reply));
    }

    fn set_moving(&mut self, moving: bool) {
        match &mut self.machine {
            Machine::Head(head) => head.set_moving(moving),
            Machine::Branch(branch) => branch.set_moving(moving),
        }
    }

    async fn leave(&mut self) -> Answer {
        if let Machine::Branch(branch) = &mut self.machine {
            branch.leave()?;
        }
        self.flush().await;
        self.parts.db.uninstall().await?;
        self.stopping = true;
        Ok((0, serde_json::json!({ "left": true })))
    }

    /// Remembers outcomes that someone waits for.
    pub(super) fn note_for_waiting(&mut self, notice: &Notice) {
        if let Notice::Reply(question, answer) = notice {
            self.note_reply(*question, answer);
        }
        let document = match notice {
            Notice::Verified(verification) if verification.wanted_by.is_none() => {
                Some(verification.to_json())
            }
            Notice::VerifyResult(text) => serde_json::from_str::<serde_json::Value>(text).ok(),
            _ => None,
        };
        let Some(document) = document else {
            return;
        };
        // A comparison without repair is no answer to who wanted one.
        let repaired = document["repair"] == true;
        let code = code_of(document["equal"] == true, &document);
        for waiting in &mut self.waiting {
            if matches!(waiting.ask, Ask::Verify { repair, .. } if repair == repaired) {
                waiting.answer = Some(Ok((code, document.clone())));
            }
        }
    }

    /// Tells those who still wait that the office stops.
    pub(super) fn refuse_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            drop(waiting.reply.send(Err(stopped())));
        }
        self.parts.requests.close();
        while let Ok(request) = self.parts.requests.try_recv() {
            drop(request.reply.send(Err(stopped())));
        }
    }

    /// Looks whether anyone who waits can be answered.
    pub(super) async fn answer_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut still = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            // Whoever asked has gone.
            if waiting.reply.is_closed() {
                continue;
            }
            let answer = match waiting.answer.take() {
                Some(answer) => Some(answer),
                None => self.try_answer(&mut waiting).await,
            };
            match answer {
                Some(answer) => drop(waiting.reply.send(answer)),
                None => still.push(waiting),
            }
        }
        self.waiting.extend(still);
        if self.waiting.is_empty() && self.parts.mode == Mode::Manual {
            self.set_moving(false);
        }
    }

    async fn try_answer(&mut self, waiting: &mut Waiting) -> Option<Answer> {
        let deadline = match &waiting.ask {
            Ask::Sync { deadline }
            | Ask::Verify { deadline, .. }
            | Ask::Settle { deadline, .. }
            | Ask::History { deadline, .. }
            | Ask::ApplyPlan { deadline }
            | Ask::AcceptSchema { deadline } => Some(*deadline),
            Ask::Joined { deadline } => *deadline,
            _ => None,
        };
        if let Some(refused) = self.refused() {
            return Some(Err(Failure::usage(refused)));
        }
        if matches!(waiting.ask, Ask::Joined { .. })
            && let Some(problem) = self
                .trouble
                .problem
                .as_ref()
                .filter(|problem| !problem.passes())
        {
            return Some(Err(problem.clone().into()));
        }
        if matches!(waiting.ask, Ask::Settle { .. } | Ask::History { .. }) {
            if let Some(answer) = self.ask_head(waiting).await {
                return Some(answer);
            }
            let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
            return late.then(|| Err(self.unasked(waiting)));
        }
        if matches!(
            waiting.ask,
            Ask::ApplyPlan { .. } | Ask::AcceptSchema { .. }
        ) {
            let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
            return match self.reshaped(waiting) {
                None if late => Some(Err(self.too_late(waiting).await)),
                answer => answer,
            };
        }
        let done = !matches!(waiting.ask, Ask::Verify { .. }) && self.is_even(waiting).await;
        if done {
            return Some(
                self.status()
                    .await
                    .map(|status| (0, status))
                    .map_err(Failure::from),
            );
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Some(Err(self.too_late(waiting).await));
        }
        if let Ask::Verify { repair, .. } = waiting.ask
            && let Err(error) = self.ask_for_comparison(waiting, repair).await
        {
            return Some(Err(error.into()));
        }
        None
    }

    /// Asks for the comparison that someone waits for, once: at a branch as soon as the head can hear it.
    async fn ask_for_comparison(
        &mut self,
        waiting: &mut Waiting,
        repair: bool,
    ) -> OfficeResult<()> {
        if waiting.question.is_some() {
            return Ok(());
        }
        match &mut self.machine {
            Machine::Head(head) => head.verify(repair),
            Machine::Branch(branch) if branch.state().connected => branch.verify(repair)?,
            Machine::Branch(_) => return Ok(()),
        }
        waiting.question = Some(0);
        self.flush().await;
        Ok(())
    }

    /// What was asked may be forgotten, or its answer lost: it is asked again.
    pub(super) fn ask_comparisons_again(&mut self) {
        for waiting in &mut self.waiting {
            if matches!(waiting.ask, Ask::Verify { .. }) {
                waiting.question = None;
            }
        }
    }

    fn refused(&self) -> Option<String> {
        match &self.machine {
            Machine::Branch(branch) => branch
                .state()
                .refused
                .map(|reason| format!("the head refused this branch: {reason}")),
            Machine::Head(_) => None,
        }
    }

    /// Whether both sides have everything. A branch asks the head anew until it says so.
    async fn is_even(&mut self, waiting: &mut Waiting) -> bool {
        if self.trouble.problem.is_some() {
            return false;
        }
        let db = &mut self.parts.db;
        match &mut self.machine {
            Machine::Head(head) => {
                let asked = now().plus_millis(-millis(waiting.since.elapsed()));
                head.has_heard_all(asked) && head.is_even(db).await.unwrap_or(false)
            }
            Machine::Branch(branch) => {
                if !branch.state().connected || !branch.is_even(db).await.unwrap_or(false) {
                    return false;
                }
                match waiting.question {
                    Some(question) if branch.answered_evenly(question) => return true,
                    Some(question) if !branch.was_answered(question) => return false,
                    _ => {}
                }
                waiting.question = branch.ask(now()).ok();
                self.flush().await;
                false
            }
        }
    }

    async fn too_late(&mut self, waiting: &Waiting) -> Failure {
        let pending = self
            .parts
            .db
            .backlog()
            .await
            .map_or(0, |backlog| backlog.writes);
        let place = match (&self.trouble.problem, &self.link.problem) {
            (Some(problem), _) => return problem.clone().into(),
            (None, Some(problem)) => problem.to_string(),
            (None, None) if self.is_head => "not all branches have answered".to_string(),
            (None, None) => "the head does not answer; is `branchline run` up there?".to_string(),
        };
        let waits = match &self.machine {
            Machine::Head(head) => {
                let lag = |branch: &BranchReport| head.last().0.saturating_sub(branch.applied.0);
                let tell = |branch: &BranchReport| match (branch.online, lag(branch)) {
                    (true, lag) => format!("{} ({lag} entries behind)", branch.name),
                    (false, 0) => format!("{} (away; nothing waits for it here)", branch.name),
                    (false, lag) => format!("{} (away; {lag} entries wait for it)", branch.name),
                };
                let branches = head.branches();
                let late = branches
                    .iter()
                    .filter(|branch| branch.joined && (!branch.online || lag(branch) > 0));
                format!(
                    "{pending} captured writes wait here; not even: {}",
                    late.map(tell).collect::<Vec<_>>().join(", ")
                )
            }
            Machine::Branch(branch) => {
                let state = branch.state();
                let batches = state.frozen.0 - state.answered.0;
                format!("waiting here: {pending} captured writes and {batches} unanswered batches")
            }
        };
        let seconds = waiting.since.elapsed().as_secs();
        Failure::new(
            exit::UNREACHED,
            format!("gave up after {seconds} s: {place}. Nothing is lost; {waits}"),
        )
    }
}

fn millis(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
