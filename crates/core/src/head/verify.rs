//! Running comparisons: a barrier in the log, everyone's sums at it, narrower sums where they differ, and a second
//! barrier at which the rows are listed that are left. Repairing is the next room's (`repair`).
//!
//! Branches go through the narrowing each at its own pace (`compared`); lists of rows are bounded for all branches
//! together, so that memory does not grow with their number, and what does not fit is listed in further rounds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::writer::LogWriter;
use super::{Barrier, Head, LogBody};
use crate::books::HeadBook;
use crate::change::Key;
use crate::envelope;
use crate::failure::OfficeResult;
use crate::identity::{Micros, OfficeName};
use crate::message::{
    Asked, Cut, Digests, Findings, Message, Narrow, PresentRows, TableChildren, TableNodes,
    TableRows,
};
use crate::office::conclude;
use crate::output::{Notice, Output, To};
use crate::port::{Database, Purpose};
use crate::schema::TableId;
use crate::verify::{BranchVerification, Node, Sums, TableVerification, Verification, list};

mod compared;

/// How long a branch that is away is waited for, in milliseconds.
const ABSENT_WITHIN_MS: i64 = 10_000;
/// How long a branch may take to answer, in milliseconds.
const ANSWER_WITHIN_MS: i64 = 60_000;
/// How long an answer is waited for before the question is repeated, in milliseconds.
const ASK_AGAIN_MS: i64 = 5_000;
/// How many nodes of all branches wait to be listed at the most.
const NODES_WAITING: usize = 256 * 1024;
/// How many rows of all branches are listed in one round, about.
const ROUND_ROWS: u64 = 20_000;
/// How many rounds of lists follow one cut.
const ROUNDS: u32 = 64;
/// How often differing rows are looked for anew after a repair.
const PASSES: u32 = 20;
/// How many comparisons may wait.
const WANTED: usize = 64;

/// Nodes or keys by table.
pub(super) type ByTable<T> = BTreeMap<TableId, T>;

/// Comparisons wanted and the one that runs.
#[derive(Debug, Default)]
pub(super) struct Verifications {
    wanted: VecDeque<Wanted>,
    pub(super) running: Option<Running>,
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The branch that asked.
    by: Option<OfficeName>,
    pub(super) repair: bool,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The sums of one cut, narrower and narrower.
    Narrowing,
    /// Lists of rows.
    Listing,
    /// Rows that are to be repaired.
    Fetching,
}

#[derive(Debug)]
pub(super) struct Running {
    id: u64,
    pub(super) wanted: Wanted,
    pub(super) stage: Stage,
    /// The last barrier.
    pub(super) cut: Cut,
    /// When the present stage, and the last round of questions, began.
    pub(super) since: Micros,
    pub(super) asked: Micros,
    pub(super) bytes: u64,
    sums: Sums,
    /// The head's own list of this round's rows.
    listed: Vec<TableRows>,
    pub(super) branches: BTreeMap<OfficeName, Compared>,
    rounds: u32,
    passes: u32,
    /// Rows were repaired since the last cut, or will be looked at again.
    pub(super) again: bool,
}

/// The comparison with one branch.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Its answer has not come.
    pub(super) awaited: bool,
    /// It did not answer in time, or cannot.
    absent: bool,
    /// Nodes whose children were asked for.
    narrowing: ByTable<BTreeSet<Node>>,
    /// How many rows it has.
    rows: ByTable<u64>,
    /// Nodes that differ and are to be listed.
    suspects: ByTable<BTreeSet<Node>>,
    /// The nodes that are listed in this round.
    listing: ByTable<BTreeSet<Node>>,
    tables: ByTable<TableVerification>,
    /// Rows that differ and are to be repaired.
    pub(super) to_fetch: VecDeque<(TableId, Key)>,
    /// Such rows as the branch has them.
    pub(super) fetched: Option<PresentRows>,
    pub(super) repaired: ByTable<u64>,
}

impl Verifications {
    pub fn want(&mut self, by: Option<OfficeName>, repair: bool) {
        let wanted = Wanted { by, repair };
        // Who asks again while it runs, since a link broke, has its answer coming.
        let mut runs = self.running.iter();
        if wanted.by.is_some() && runs.any(|running| running.wanted == wanted) {
            return;
        }
        if !self.wanted.contains(&wanted) && self.wanted.len() < WANTED {
            self.wanted.push_back(wanted);
        }
    }
}

impl Running {
    fn is_over(&self) -> bool {
        !self.branches.values().any(|compared| compared.awaited)
    }

    fn present(&mut self) -> impl Iterator<Item = &mut Compared> {
        self.branches
            .values_mut()
            .filter(|compared| !compared.absent)
    }

    fn has_suspects(&mut self) -> bool {
        self.present().any(|compared| !compared.suspects.is_empty())
    }

    /// Drops what would let memory grow with the number of branches.
    fn bound(&mut self) {
        let mut waiting = 0;
        for compared in self.branches.values_mut() {
            let nodes: usize = compared.suspects.values().map(BTreeSet::len).sum();
            waiting += nodes;
            if waiting > NODES_WAITING {
                waiting -= nodes;
                for table in std::mem::take(&mut compared.suspects).into_keys() {
                    compared.leave_out(table);
                }
            }
        }
    }
}

fn nodes(of: &ByTable<BTreeSet<Node>>) -> Vec<TableNodes> {
    let nodes = of.iter().map(|(table, nodes)| TableNodes {
        table: *table,
        nodes: nodes.iter().copied().collect(),
    });
    nodes.collect()
}

/// The log's last entry.
fn cut_at(book: &HeadBook) -> Cut {
    Cut {
        position: book.last,
        chain: book.chain,
    }
}

impl Head {
    /// Asks for a comparison with all branches, and where wanted for a repair of the rows that differ; the outcome
    /// comes as a notice.
    pub fn verify(&mut self, repair: bool) {
        self.verifications.want(None, repair);
    }

    /// Whether a comparison runs or waits for its turn.
    pub fn is_comparing(&self) -> bool {
        self.verifications.running.is_some() || !self.verifications.wanted.is_empty()
    }

    pub(super) async fn start_verification<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if self.verifications.running.is_some() {
            return Ok(());
        }
        let Some(wanted) = self.verifications.wanted.pop_front() else {
            return Ok(());
        };
        let enrolled = self.seats.iter().filter(|(_, seat)| seat.is_enrolled());
        let asked = enrolled.filter(|(name, _)| wanted.by.as_ref().is_none_or(|by| by == *name));
        let branches = asked.map(|(name, _)| (name.clone(), Compared::default()));
        self.verifications.count += 1;
        let mut running = Running {
            id: self.verifications.count,
            branches: branches.collect(),
            wanted: wanted.clone(),
            stage: Stage::Narrowing,
            cut: cut_at(&self.book),
            since: now,
            asked: now,
            bytes: 0,
            sums: Sums::default(),
            listed: Vec::new(),
            rounds: 0,
            passes: 0,
            again: false,
        };
        match self.begin_pass(db, now, &mut running).await {
            Ok(()) => self.verifications.running = Some(running),
            Err(error) => {
                self.verifications.wanted.push_front(wanted);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Looks at everything, at a new cut. Where that fails, the comparison is as it was.
    async fn begin_pass<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        running: &mut Running,
    ) -> OfficeResult<()> {
        let present = running.branches.iter().filter(|(_, c)| !c.absent);
        let asked = present.map(|(name, _)| Asked {
            branch: name.clone(),
            rows: Vec::new(),
        });
        let asked = asked.collect();
        self.set_barrier(db, now, running, asked).await?;
        db.begin(Purpose::Read).await?;
        let outcome = Sums::read(db, &self.schema).await;
        running.sums = conclude(db, outcome).await?;
        running.stage = Stage::Narrowing;
        running.rounds = 0;
        running.passes += 1;
        running.again = false;
        for compared in running.present() {
            *compared = Compared {
                awaited: true,
                repaired: std::mem::take(&mut compared.repaired),
                ..Compared::default()
            };
        }
        Ok(())
    }

    /// Lists rows of nodes that differ, at a new cut. Where that fails, it can be done again.
    async fn list_rows<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        running: &mut Running,
    ) -> OfficeResult<()> {
        running.bound();
        let mut budget = ROUND_ROWS;
        let mut asked = Vec::new();
        let mut all: ByTable<BTreeSet<Node>> = BTreeMap::new();
        for (name, compared) in &mut running.branches {
            if compared.absent {
                continue;
            }
            compared.choose(&running.sums, &mut budget);
            if !compared.listing.is_empty() {
                asked.push(Asked {
                    branch: name.clone(),
                    rows: nodes(&compared.listing),
                });
                for (table, nodes) in &compared.listing {
                    all.entry(*table).or_default().extend(nodes);
                }
            }
        }
        if !asked.is_empty() {
            self.set_barrier(db, now, running, asked).await?;
            db.begin(Purpose::Read).await?;
            let outcome = list(db, &self.schema, &nodes(&all), &BTreeMap::new()).await;
            running.listed = conclude(db, outcome).await?;
        }
        running.stage = Stage::Listing;
        running.rounds += 1;
        for compared in running.present() {
            compared.awaited = !compared.listing.is_empty();
        }
        Ok(())
    }

    async fn set_barrier<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        running: &mut Running,
        asked: Vec<Asked>,
    ) -> OfficeResult<()> {
        while self.take(db, now).await? {}
        let barrier = Barrier { asked };
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
            writer.append(db, LogBody::Barrier(barrier)).await?;
            writer.finish(db).await?;
            Ok((writer.book, writer.fresh))
        };
        let outcome = outcome.await;
        let (book, fresh) = conclude(db, outcome).await?;
        running.bytes += super::repair::bytes_of(&fresh);
        running.cut = cut_at(&book);
        (running.since, running.asked) = (now, now);
        self.book = book;
        self.appended = now;
        self.tail.adopt(fresh, &mut self.recent);
        Ok(())
    }

    /// A branch said what its tables were.
    pub(super) fn digests_arrived(
        &mut self,
        origin: &OfficeName,
        digests: Digests,
        bytes: usize,
    ) -> OfficeResult<()> {
        let Some(running) = &mut self.verifications.running else {
            return Ok(());
        };
        let Some(compared) = running.branches.get_mut(origin) else {
            return Ok(());
        };
        running.bytes += bytes as u64;
        if digests.cut != running.cut || !compared.awaited {
            return Ok(());
        }
        let narrowing = !compared.narrowing.is_empty();
        match (running.stage, digests.findings) {
            (_, Findings::Joining) => {
                compared.absent = true;
                compared.awaited = false;
            }
            (Stage::Narrowing, Findings::Sums(theirs)) if !narrowing => {
                compared.take_sums(&self.schema, &running.sums, &theirs);
                compared.awaited = !compared.narrowing.is_empty();
            }
            (Stage::Narrowing, Findings::Narrower(theirs)) if narrowing => {
                // The answer to a question that was repeated may come twice.
                let asked = |table: &TableChildren| {
                    let asked = compared.narrowing.get(&table.table);
                    let asked = |node: &Node| asked.is_some_and(|asked| asked.contains(node));
                    table.nodes.iter().all(|children| asked(&children.node))
                };
                if !theirs.iter().all(asked) {
                    return Ok(());
                }
                compared.take_narrower(&running.sums, &theirs);
                compared.awaited = !compared.narrowing.is_empty();
            }
            (Stage::Listing, Findings::Rows(theirs)) => {
                compared.awaited = false;
                let repair = running.wanted.repair;
                compared.take_rows(&self.schema, &running.listed, &theirs, repair);
                return Ok(());
            }
            _ => return Ok(()),
        }
        if compared.awaited {
            self.ask_narrower(origin)?;
        }
        Ok(())
    }

    fn ask_narrower(&mut self, branch: &OfficeName) -> OfficeResult<()> {
        let Some(running) = &self.verifications.running else {
            return Ok(());
        };
        let Some(compared) = running.branches.get(branch) else {
            return Ok(());
        };
        let question = Message::Narrow(Narrow {
            cut: running.cut,
            tables: nodes(&compared.narrowing),
        });
        self.ask_compared(branch, &question)
    }

    /// Sends a question about the comparison that runs.
    pub(super) fn ask_compared(
        &mut self,
        branch: &OfficeName,
        question: &Message,
    ) -> OfficeResult<()> {
        let bytes = envelope::seal(&self.identity.name, &self.identity.key, question)?;
        if let Some(running) = &mut self.verifications.running {
            running.bytes += bytes.len() as u64;
        }
        self.outputs
            .push_back(Output::Send(To::Branch(branch.clone()), bytes.into()));
        Ok(())
    }

    /// Repeats questions whose answer has not come: it, or the question, may be lost.
    fn ask_silent_again(&mut self, now: Micros) -> OfficeResult<()> {
        let Some(running) = &mut self.verifications.running else {
            return Ok(());
        };
        if !now.has_passed(ASK_AGAIN_MS, running.asked) {
            return Ok(());
        }
        running.asked = now;
        let stage = running.stage;
        let silent = running.branches.iter().filter(|(_, c)| c.awaited);
        let silent: Vec<OfficeName> = silent.map(|(name, _)| name.clone()).collect();
        for name in silent {
            match stage {
                Stage::Narrowing | Stage::Listing => self.ask_narrower(&name)?,
                Stage::Fetching => self.ask_rows(&name)?,
            }
        }
        Ok(())
    }

    /// Goes on with the comparison that runs, when all have answered or when time is up.
    pub(super) async fn advance_verification<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        self.repair_fetched(db, now).await?;
        self.ask_silent_again(now)?;
        let over = self.verifications.running.as_ref().is_some_and(|running| {
            let away = |name: &OfficeName| self.seats.get(name).is_none_or(|seat| !seat.online);
            let mut awaited = running.branches.iter().filter(|(_, c)| c.awaited);
            let patience = if awaited.all(|(name, _)| away(name)) {
                ABSENT_WITHIN_MS
            } else {
                ANSWER_WITHIN_MS
            };
            running.is_over() || now.has_passed(patience, running.since)
        });
        if !over {
            return Ok(());
        }
        let Some(mut running) = self.verifications.running.take() else {
            return Ok(());
        };
        for compared in running.branches.values_mut() {
            compared.absent |= std::mem::take(&mut compared.awaited);
        }
        running.listed.clear();
        if running.present().any(|c| !c.to_fetch.is_empty()) {
            return self.fetch_rows(now, running);
        }
        if running.has_suspects() && running.rounds < ROUNDS {
            let outcome = self.list_rows(db, now, &mut running).await;
            self.verifications.running = Some(running);
            return outcome;
        }
        if running.again && running.passes < PASSES {
            let outcome = self.begin_pass(db, now, &mut running).await;
            self.verifications.running = Some(running);
            return outcome;
        }
        self.end_verification(running)
    }

    fn fetch_rows(&mut self, now: Micros, mut running: Running) -> OfficeResult<()> {
        running.stage = Stage::Fetching;
        (running.since, running.asked) = (now, now);
        let mut asked = Vec::new();
        for (name, compared) in &mut running.branches {
            compared.awaited = !compared.absent && !compared.to_fetch.is_empty();
            if compared.awaited {
                asked.push(name.clone());
            }
        }
        self.verifications.running = Some(running);
        for name in asked {
            self.ask_rows(&name)?;
        }
        Ok(())
    }

    fn end_verification(&mut self, running: Running) -> OfficeResult<()> {
        let mut branches = Vec::new();
        for (name, mut compared) in running.branches {
            for table in std::mem::take(&mut compared.suspects).into_keys() {
                compared.leave_out(table);
            }
            let mut tables = Vec::new();
            for table in &self.schema.tables {
                let found = compared.tables.remove(&table.id);
                if let Some(found) = found.filter(|_| !compared.absent) {
                    let repaired = compared.repaired.get(&table.id).copied();
                    let repaired = repaired.unwrap_or_default();
                    tables.push(TableVerification { repaired, ..found });
                }
            }
            branches.push(BranchVerification {
                name: name.to_string(),
                answered: !compared.absent,
                tables,
            });
        }
        let verification = Verification {
            id: running.id,
            wanted_by: running.wanted.by,
            repair: running.wanted.repair,
            cut: running.cut.position,
            bytes: running.bytes,
            branches,
        };
        if let Some(branch) = &verification.wanted_by {
            let result = verification.to_json().to_string();
            self.tell(&branch.clone(), &Message::VerifyResult(result))?;
        }
        self.outputs
            .push_back(Output::Notice(Notice::Verified(verification)));
        Ok(())
    }
}
