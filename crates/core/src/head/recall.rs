//! A head that was restored from a backup takes back from its branches what it lost (SETTLED 10).
//!
//! A branch keeps the log entries that it followed, as the head signed them. Where the restored head has written nothing
//! since, they are appended to its log just as they were, and every base, cursor and verdict in them is true again.
//! Where the head has gone on, its own continuation stands; the lost entries are logged anew behind it, held against
//! what was changed meanwhile, and the branches that followed them go back to the last place that both share.

use ed25519_dalek::VerifyingKey;

use super::recent::own_entry;
use super::writer::LogWriter;
use super::{Head, RECALL_MS, holds};
use crate::books::{self, CONFLICTS, HeadBook, LOG, RowNames};
use crate::change::Effect;
use crate::conflict::ConflictRecord;
use crate::envelope;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{Digest, LogPosition, Micros, OfficeName};
use crate::message::{
    Batch, Hello, LogBody, LogEntry, LoggedChanges, Message, Position, Recall, Recalled,
};
use crate::office::conclude;
use crate::output::{Notice, Output, Token};
use crate::port::{Database, Entry, Purpose};
use crate::schema::TableId;
use crate::succession::sealed_by;

mod adopt;
mod anew;
mod lost;
mod relogging;
mod sums;
mod taken;

use lost::Anew;
pub(super) use taken::trim_lost;

/// The name of the record that lists where the log ended at the last starts: a restored log goes on from one of them.
pub(super) const STARTS: &str = "starts";
/// The record that says that the log came back with rows that the application had written again: that one of them came and
/// went since the backup must be logged, since the log has it. It tells under which numbers that is listed, which goes into
/// the log with them.
pub(super) const LEFT: &str = "left";
/// About how many bytes of such decisions go into one entry.
const LISTED_BYTES: usize = 512 * 1024;
/// How many starts are remembered.
const STARTS_KEPT: usize = 32;
/// How soon a piece is asked for once more when the branch greets again, in milliseconds.
const ASK_AGAIN_MS: i64 = 10_000;
/// How often a piece is begun anew because the head's application was writing the same rows.
const ATTEMPTS: usize = 20;

/// How a greeting branch stands to the log.
pub(super) enum Standing {
    /// What it followed is the log's own past.
    Agrees,
    /// It followed something that this log does not have.
    Ahead,
    /// The same, and what it has was taken back already: it is to follow from here.
    GoBack(LogPosition, Digest),
    /// The log no longer goes back so far.
    BeyondHorizon,
    /// It followed something that this log does not have, and keeps nothing that this log has: it is to begin again.
    Apart,
}

/// What a branch is asked for.
#[derive(Debug)]
pub(super) struct Asking {
    /// How far the branch has come, and so where the lost part ends.
    end: (LogPosition, Digest),
    points: Vec<(LogPosition, Digest)>,
    /// The last lost entry that was given back.
    after: LogPosition,
    /// When it was asked, or gave something back.
    heard: Micros,
    /// When it was asked last.
    asked: Micros,
    /// Where lost entries are being logged anew.
    anew: Option<Anew>,
}

impl Asking {
    /// Whether the branch's next piece may still come soon.
    pub fn is_awaited(&self, now: Micros) -> bool {
        !now.has_passed(RECALL_MS, self.heard)
    }

    fn question(&self) -> Message {
        Message::Recall(Recall {
            points: self.points.clone(),
            after: self.after,
        })
    }
}

impl Head {
    /// Remembers where the log ends at this start.
    pub(super) async fn note_start<D: Database>(&self, db: &mut D) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let mut starts: Vec<LogPosition> = books::load(db, STARTS).await?.unwrap_or_default();
            if starts.last() != Some(&self.book.last) {
                starts.push(self.book.last);
                thin_out(&mut starts);
                books::store(db, STARTS, &starts).await?;
            }
            Ok(())
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// The hash of the entry at a place, where that needs no reading.
    fn chain_in_memory(&self, place: LogPosition) -> Option<Digest> {
        if place == self.book.last {
            return Some(self.book.chain);
        }
        self.tail.get(place).map(|bytes| envelope::chain(bytes))
    }

    /// The hash of the entry at a place, if the log tells it.
    async fn chain_at<D: Database>(
        &self,
        db: &mut D,
        place: LogPosition,
    ) -> OfficeResult<Option<Digest>> {
        if place >= self.book.last {
            return Ok((place == self.book.last).then_some(self.book.chain));
        }
        let next = place.next().0;
        let entries = db.entries(LOG, next, 1).await?;
        let entry = entries.first().filter(|entry| entry.number == next);
        entry
            .map(|entry| Ok(own_entry(&entry.bytes)?.previous))
            .transpose()
    }

    /// How a greeting branch stands to the log.
    pub(super) async fn standing<D: Database>(
        &self,
        db: &mut D,
        origin: &OfficeName,
        hello: &Hello,
    ) -> OfficeResult<Standing> {
        if hello.head.is_none() {
            return Ok(Standing::Agrees);
        }
        db.begin(Purpose::Read).await?;
        let outcome = async {
            let chain = self.chain_at(db, hello.applied).await?;
            let first = db.extent(LOG).await?.first;
            Ok((chain, first))
        };
        let outcome = outcome.await;
        let (chain, first) = conclude(db, outcome).await?;
        let ended = (hello.applied, hello.chain);
        Ok(match chain {
            Some(chain) if chain == hello.chain => Standing::Agrees,
            None if hello.applied.next().0 < first => Standing::BeyondHorizon,
            _ => {
                let taken = self.seats.get(origin);
                let taken = taken.and_then(|seat| seat.book.taken_back.as_ref());
                match taken.filter(|taken| taken.end == ended) {
                    Some(taken) if taken.apart == Some(true) => Standing::Apart,
                    Some(taken) => Standing::GoBack(taken.agreed.0, taken.agreed.1),
                    None => Standing::Ahead,
                }
            }
        })
    }

    /// Whether a batch's bases speak of another log than this one: its branch followed what this head has lost. A broker may
    /// bring such a batch before the branch's greeting, and it may still bring the branch lost entries after that.
    pub(super) async fn is_of_another_past<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
        batch: &Batch,
    ) -> OfficeResult<bool> {
        let (Some(seat), Some(ended)) = (self.seats.get(branch), batch.log) else {
            return Ok(false);
        };
        if seat.agreed == Some(ended) || self.is_beyond(ended.0) {
            return Ok(false);
        }
        let there = if let Some(chain) = self.chain_in_memory(ended.0) {
            Some(chain)
        } else {
            db.begin(Purpose::Read).await?;
            let outcome = self.chain_at(db, ended.0).await;
            conclude(db, outcome).await?
        };
        let same = there == Some(ended.1);
        if let Some(seat) = self.seats.get_mut(branch).filter(|_| same) {
            seat.agreed = Some(ended);
        }
        Ok(!same)
    }

    /// Leaves a batch to its branch, which sends it again when it has greeted; it is made to greet.
    pub(super) fn put_off(
        &mut self,
        now: Micros,
        branch: &OfficeName,
        batch: &Batch,
        token: Token,
    ) -> OfficeResult<()> {
        let why = format!(
            "batch {} of {branch} was made on entries that this log does not have; {branch} is to greet first",
            batch.number
        );
        self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
        self.outputs.push_back(Output::Settle(token));
        self.ask_for_greeting(now, branch)
    }

    /// Makes a branch greet: a place before its own tells it that the head may have been restored.
    pub(super) fn ask_for_greeting(
        &mut self,
        now: Micros,
        branch: &OfficeName,
    ) -> OfficeResult<()> {
        let position = Position {
            produced: 0,
            applied: None,
            question: 0,
            clock: now,
            session: [0; 16],
            offset: None,
            staged: None,
            chain: None,
        };
        self.tell(branch, &Message::Position(position))
    }

    /// Asks a branch for what this log lost after it had come to `end`. A branch that greets again while it gives that back
    /// is asked once more for the piece that is to come next.
    pub(super) async fn recall<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        end: (LogPosition, Digest),
    ) -> OfficeResult<()> {
        let asked = self.seats.get_mut(branch);
        let asked = asked.and_then(|seat| seat.asking.as_mut());
        if let Some(asked) = asked.filter(|asked| asked.end == end) {
            // On a slow line the answer is on its way for longer than a branch waits before it greets again.
            if !now.has_passed(ASK_AGAIN_MS, asked.asked) {
                return Ok(());
            }
            asked.asked = now;
            let question = asked.question();
            return self.tell(branch, &question);
        }
        db.begin(Purpose::Read).await?;
        let outcome = self.points(db, end.0).await;
        let points = conclude(db, outcome).await?;
        let asking = Asking {
            end,
            points,
            after: LogPosition::NONE,
            heard: now,
            asked: now,
            anew: None,
        };
        self.ask_for(branch, asking)
    }

    fn ask_for(&mut self, branch: &OfficeName, asking: Asking) -> OfficeResult<()> {
        let question = asking.question();
        self.wait_for(branch, asking);
        self.tell(branch, &question)
    }

    fn wait_for(&mut self, branch: &OfficeName, asking: Asking) {
        if let Some(seat) = self.seats.get_mut(branch) {
            seat.asking = Some(asking);
        }
    }

    /// Places to compare: where the log ended at the last starts, and from its end backwards in growing steps.
    async fn points<D: Database>(
        &self,
        db: &mut D,
        applied: LogPosition,
    ) -> OfficeResult<Vec<(LogPosition, Digest)>> {
        let mut places: Vec<LogPosition> = books::load(db, STARTS).await?.unwrap_or_default();
        let end = applied.min(self.book.last);
        places.push(end);
        places.extend(self.predecessors.iter().map(|former| former.through));
        let mut step = 1;
        while step < end.0 {
            places.push(LogPosition(end.0 - step));
            step *= 2;
        }
        places.sort_unstable();
        places.dedup();
        let mut points = Vec::new();
        for place in places.into_iter().filter(|place| *place <= end) {
            if let Some(chain) = self.chain_at(db, place).await? {
                points.push((place, chain));
            }
        }
        Ok(points)
    }

    /// Takes a piece of the lost log in. Returns whether anything was done.
    pub(super) async fn take_back<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        recalled: Recalled,
    ) -> OfficeResult<bool> {
        let asking = self.seats.get_mut(branch);
        let Some(asking) = asking.and_then(|seat| seat.asking.take()) else {
            return Ok(false);
        };
        let Some(place) = recalled.agreed else {
            return self.part_from(db, branch, recalled.end).await;
        };
        let mut points = asking.points.iter();
        let Some(agreed) = points.find(|(point, _)| *point == place).copied() else {
            // The answer to an earlier question, which came late or twice.
            self.wait_for(branch, asking);
            return Ok(false);
        };
        let first = agreed.0.max(asking.after).next();
        if recalled.entries.is_empty() && first <= recalled.end.0 {
            return self.part_from(db, branch, recalled.end).await;
        }
        let lost = self.read_lost(branch, &recalled)?;
        match lost.first() {
            None => Ok(true),
            Some((entry, _)) if entry.position != first => {
                self.wait_for(branch, asking);
                Ok(false)
            }
            Some(_) => {
                let end = recalled.end;
                self.take_piece_back(db, now, branch, asking, agreed, end, lost)
                    .await?;
                Ok(true)
            }
        }
    }

    /// The branch keeps nothing of the log that this head knows, or not all that follows: it begins again from the head's
    /// tables, and uploads what it has.
    async fn part_from<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
        end: (LogPosition, Digest),
    ) -> OfficeResult<bool> {
        self.let_go_back(db, branch, end, None).await?;
        let why = format!(
            "{branch} keeps nothing of the log that this head, which was restored or promoted, knows: it copies the tables anew, and its rows are uploaded"
        );
        self.outputs.push_back(Output::Notice(Notice::Trouble(why)));
        Ok(true)
    }

    #[allow(clippy::too_many_arguments)]
    async fn take_piece_back<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        branch: &OfficeName,
        asking: Asking,
        agreed: (LogPosition, Digest),
        end: (LogPosition, Digest),
        mut lost: Vec<(LogEntry, Vec<u8>)>,
    ) -> OfficeResult<()> {
        let Some(last) = lost.last().map(|(entry, _)| entry.position) else {
            return Ok(());
        };
        let Asking {
            points,
            anew: begun,
            ..
        } = asking;
        self.seat_strangers(db, &lost).await?;
        let mut agreed = begun.as_ref().map_or(agreed, |anew| anew.agreed);
        db.begin(Purpose::Read).await?;
        let outcome = self.skip_known(db, &mut agreed, &mut lost).await;
        conclude(db, outcome).await?;
        let follows = lost.first().is_some_and(|(entry, _)| {
            entry.position == self.book.last.next() && entry.previous == self.book.chain
        });
        let anew = match lost.first() {
            None => begun,
            Some(_) if follows && begun.is_none() => {
                self.adopt_all(db, now, &lost).await?;
                if self.book.last < last {
                    return Ok(());
                }
                agreed = (self.book.last, self.book.chain);
                None
            }
            Some((first, _)) => {
                let mut anew = begun.unwrap_or_else(|| Anew::new(agreed, first.schema));
                if !self.log_all_anew(db, now, &lost, &mut anew).await? {
                    // The application was in the way; the branch greets again.
                    return Ok(());
                }
                if last == end.0 {
                    self.let_go_back(db, branch, end, Some(anew.agreed)).await?;
                }
                Some(anew)
            }
        };
        if last >= end.0 {
            let notice = Notice::TakenBack(branch.clone(), last);
            self.outputs.push_back(Output::Notice(notice));
            return Ok(());
        }
        let points = if anew.is_some() { points } else { vec![agreed] };
        let asking = Asking {
            end,
            points,
            after: last,
            heard: now,
            asked: now,
            anew,
        };
        self.ask_for(branch, asking)
    }

    /// Leaves out what this log has by now, since another branch gave it back.
    async fn skip_known<D: Database>(
        &self,
        db: &mut D,
        agreed: &mut (LogPosition, Digest),
        lost: &mut Vec<(LogEntry, Vec<u8>)>,
    ) -> OfficeResult<()> {
        let mut known = 0;
        for (entry, bytes) in lost.iter() {
            let chain = envelope::chain(bytes);
            if self.chain_at(db, entry.position).await? != Some(chain) {
                break;
            }
            *agreed = (entry.position, chain);
            known += 1;
        }
        lost.drain(..known);
        Ok(())
    }

    /// The whole units among the entries given back. Only what this head signed counts.
    fn read_lost(
        &mut self,
        branch: &OfficeName,
        recalled: &Recalled,
    ) -> OfficeResult<Vec<(LogEntry, Vec<u8>)>> {
        let own = VerifyingKey::from_bytes(&self.identity.public_key())
            .map_err(|_| OfficeError::Books("the head's public key".into()))?;
        let mut lost: Vec<(LogEntry, Vec<u8>)> = Vec::new();
        for bytes in &recalled.entries {
            let message = envelope::open(bytes).and_then(|opened| {
                let former = || sealed_by(&opened, &self.predecessors);
                let verified = opened.verified_by(&own);
                verified.or_else(|error| former().map(|(_, message)| message).ok_or(error))
            });
            let Ok(Message::Log(entry)) = message else {
                let why = format!("{branch} gave back something that this head never wrote");
                self.outputs.push_back(Output::Notice(Notice::Dropped(why)));
                break;
            };
            if let Some((before, sealed)) = lost.last()
                && (entry.position != before.position.next()
                    || entry.previous != envelope::chain(sealed))
            {
                break;
            }
            lost.push((entry, bytes.to_vec()));
        }
        let open = |entry: &LogEntry| matches!(&entry.body, LogBody::Changes(body) if body.open);
        let whole = lost.iter().rposition(|(entry, _)| !open(entry));
        if let Some(whole) = whole {
            lost.truncate(whole + 1);
        }
        Ok(lost)
    }
}

/// Keeps the starts that lie furthest apart.
fn thin_out(starts: &mut Vec<LogPosition>) {
    while starts.len() > STARTS_KEPT {
        let gap = |around: &[LogPosition]| match around {
            [before, _, after] => after.0.saturating_sub(before.0),
            _ => u64::MAX,
        };
        let around = starts.windows(3).enumerate();
        let Some((before, _)) = around.min_by_key(|(_, around)| gap(around)) else {
            return;
        };
        starts.remove(before + 1);
    }
}

/// Lists a decision under its number, or under the next one where that is taken. Returns the number.
async fn list<D: Database>(
    db: &mut D,
    book: &mut HeadBook,
    record: &ConflictRecord,
) -> OfficeResult<u64> {
    let mut record = record.clone();
    if record.id <= book.conflicts {
        if holds::record(db, record.id).await?.as_ref() == Some(&record) {
            return Ok(record.id);
        }
        record.id = book.conflicts + 1;
    }
    book.conflicts = record.id;
    let entry = Entry {
        number: record.id,
        bytes: books::encode(&record)?,
    };
    db.append(CONFLICTS, &[entry]).await?;
    Ok(record.id)
}

/// Logs the decisions about rows that the application had written again, so that they outlast this head.
pub(super) async fn tell_left<D: Database>(
    db: &mut D,
    writer: &mut LogWriter<'_>,
) -> OfficeResult<()> {
    let left: Vec<u64> = books::load(db, LEFT).await?.unwrap_or_default();
    db.set_meta(LEFT, None).await?;
    let mut left = left.into_iter().peekable();
    while left.peek().is_some() {
        let (mut listed, mut bytes) = (Vec::new(), 0);
        while let Some(number) = left.next_if(|_| bytes < LISTED_BYTES) {
            if let Some(record) = holds::record(db, number).await? {
                let record = record.fit_to_travel();
                bytes += books::encode(&record)?.len();
                listed.push(record);
            }
        }
        let body = LoggedChanges {
            listed: Some(listed),
            ..LoggedChanges::of_the_head()
        };
        writer.append(db, LogBody::Changes(body)).await?;
    }
    Ok(())
}

fn effects_of<'e>(
    entries: impl Iterator<Item = &'e LogEntry>,
    aside: &RowNames,
    head: &Head,
) -> Vec<(TableId, Effect)> {
    let changes = entries.filter_map(|entry| match &entry.body {
        LogBody::Changes(body) => Some(&body.changes),
        LogBody::Barrier(_) | LogBody::Schema(_) => None,
    });
    changes
        .flatten()
        .filter(|logged| {
            head.schema
                .table(logged.table)
                .is_some_and(|table| !aside.contains(&(table.id, logged.effect.key(table))))
        })
        .map(|logged| (logged.table, logged.effect.clone()))
        .collect()
}
