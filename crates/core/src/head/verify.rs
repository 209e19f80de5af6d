//! Running comparisons: a barrier in the log, everyone's digests at it, and a second, narrower barrier where they differ.

use std::collections::{BTreeMap, BTreeSet};

use super::writer::LogWriter;
use super::{Barrier, Head, LogBody};
use crate::failure::OfficeResult;
use crate::identity::{LogPosition, Micros, OfficeName};
use crate::message::{Digests, Message, TableDigest};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Purpose};
use crate::schema::TableId;
use crate::verify::{
    BranchVerification, TableVerification, Verification, compare_rows, differing_buckets, digest,
};

/// How long a branch that is away is waited for, in milliseconds.
const ABSENT_WITHIN_MS: i64 = 10_000;
/// How long a branch may take to answer, in milliseconds.
const ANSWER_WITHIN_MS: i64 = 60_000;

/// Comparisons wanted and the one that runs.
#[derive(Debug, Default)]
pub(super) struct Verifications {
    pub wanted: Vec<(Option<OfficeName>, Micros)>,
    running: Option<Running>,
    count: u64,
}

#[derive(Debug)]
struct Running {
    verification: u64,
    wanted_by: Option<OfficeName>,
    position: LogPosition,
    since: Micros,
    bytes: u64,
    /// Second cut: only where the sums differed.
    narrow: bool,
    ours: Vec<TableDigest>,
    awaited: BTreeSet<OfficeName>,
    answers: BTreeMap<OfficeName, Vec<TableDigest>>,
    settled: Vec<BranchVerification>,
    /// What the first cut said of branches that are looked at again.
    first: BTreeMap<String, Vec<TableVerification>>,
}

impl Head {
    /// Asks for a comparison with all branches; its outcome comes as a notice.
    pub fn verify(&mut self, now: Micros) {
        self.verifications.wanted.push((None, now));
    }

    pub(super) async fn start_verification<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        if self.verifications.running.is_some() || self.verifications.wanted.is_empty() {
            return Ok(());
        }
        let (wanted_by, _) = self.verifications.wanted.remove(0);
        let asked: Vec<OfficeName> = match &wanted_by {
            Some(branch) => vec![branch.clone()],
            None => self
                .seats
                .iter()
                .filter(|(_, seat)| seat.is_enrolled())
                .map(|(name, _)| name.clone())
                .collect(),
        };
        self.verifications.count += 1;
        let verification = self.verifications.count;
        let running = Running {
            verification,
            wanted_by,
            position: LogPosition::NONE,
            since: now,
            bytes: 0,
            narrow: false,
            ours: Vec::new(),
            awaited: asked.iter().cloned().collect(),
            answers: BTreeMap::new(),
            settled: Vec::new(),
            first: BTreeMap::new(),
        };
        self.set_barrier(db, now, running, Vec::new()).await
    }

    async fn set_barrier<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        mut running: Running,
        detail: Vec<(TableId, Vec<u16>)>,
    ) -> OfficeResult<()> {
        while self.take(db, now).await? {}
        let barrier = Barrier {
            verification: running.verification,
            detail: detail.clone(),
            branches: running.awaited.iter().cloned().collect(),
        };
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let mut writer = LogWriter::new(&self.identity, &self.schema, self.book.clone());
            writer.append(db, LogBody::Barrier(barrier)).await?;
            writer.finish(db).await?;
            Ok((writer.book, writer.fresh))
        };
        let outcome = outcome.await;
        let (book, fresh) = conclude(db, outcome).await?;
        running.bytes += fresh
            .iter()
            .filter_map(|entry| entry.bytes.as_ref())
            .map(|bytes| bytes.len() as u64)
            .sum::<u64>();
        running.position = book.last;
        self.book = book;
        self.appended = now;
        self.tail.adopt(fresh, &mut self.recent);
        db.begin(Purpose::Read).await?;
        let outcome = digest(db, &self.schema, &detail, &BTreeMap::new()).await;
        running.ours = conclude(db, outcome).await?;
        self.verifications.running = Some(running);
        Ok(())
    }

    pub(super) fn digests_arrived(&mut self, origin: &OfficeName, digests: Digests) {
        let Some(running) = &mut self.verifications.running else {
            return;
        };
        if digests.position == running.position && running.awaited.remove(origin) {
            running.bytes += minicbor::to_vec(&digests).map_or(0, |bytes| bytes.len() as u64);
            running.answers.insert(origin.clone(), digests.tables);
        }
    }

    /// Ends the comparison that runs when all have answered, or when time is up.
    pub(super) async fn time_out_verification<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        let ready = self.verifications.running.as_ref().is_some_and(|running| {
            let away = |name: &OfficeName| self.seats.get(name).is_none_or(|seat| !seat.online);
            let patience = if running.awaited.iter().all(away) {
                ABSENT_WITHIN_MS
            } else {
                ANSWER_WITHIN_MS
            };
            running.awaited.is_empty() || now.has_passed(patience, running.since)
        });
        if !ready {
            return Ok(());
        }
        let Some(mut running) = self.verifications.running.take() else {
            return Ok(());
        };
        let mut suspects: BTreeMap<TableId, BTreeSet<u16>> = BTreeMap::new();
        let mut again = BTreeSet::new();
        for (name, tables) in std::mem::take(&mut running.answers) {
            let branch = self.compare(&running, &name, &tables, &mut suspects);
            if suspects.is_empty() || running.narrow || branch.is_equal() {
                running.settled.push(branch);
            } else {
                running.first.insert(name.to_string(), branch.tables);
                again.insert(name);
            }
        }
        running
            .settled
            .extend(running.awaited.iter().map(|name| BranchVerification {
                name: name.to_string(),
                ..BranchVerification::default()
            }));
        if again.is_empty() {
            return self.end_verification(running);
        }
        running.awaited = again;
        running.narrow = true;
        let detail = suspects
            .into_iter()
            .map(|(table, buckets)| (table, buckets.into_iter().collect()))
            .collect();
        self.set_barrier(db, now, running, detail).await
    }

    fn compare(
        &self,
        running: &Running,
        name: &OfficeName,
        theirs: &[TableDigest],
        suspects: &mut BTreeMap<TableId, BTreeSet<u16>>,
    ) -> BranchVerification {
        let mut tables = Vec::new();
        for table in &self.schema.tables {
            let find = |digests: &[TableDigest]| {
                digests
                    .iter()
                    .find(|digest| digest.table == table.id)
                    .cloned()
            };
            let (Some(ours), Some(theirs)) = (find(&running.ours), find(theirs)) else {
                continue;
            };
            let mut compared = compare_rows(table, &ours, &theirs);
            if !running.narrow {
                let buckets = differing_buckets(&ours, &theirs);
                compared.different = buckets.len() as u64;
                if !buckets.is_empty() {
                    suspects.entry(table.id).or_default().extend(buckets);
                }
            }
            tables.push(compared);
        }
        BranchVerification {
            name: name.to_string(),
            answered: true,
            tables,
        }
    }

    fn end_verification(&mut self, running: Running) -> OfficeResult<()> {
        let mut branches = running.settled;
        // A second cut looked at the tables that differed; what the first said of the others stands.
        for branch in branches.iter_mut().filter(|branch| branch.answered) {
            let first = running.first.get(&branch.name).into_iter().flatten();
            let others =
                first.filter(|table| !branch.tables.iter().any(|seen| seen.name == table.name));
            let others: Vec<TableVerification> = others.cloned().collect();
            branch.tables.extend(others);
        }
        branches.sort_by(|a, b| a.name.cmp(&b.name));
        let verification = Verification {
            id: running.verification,
            wanted_by: running.wanted_by,
            cut: running.position,
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
