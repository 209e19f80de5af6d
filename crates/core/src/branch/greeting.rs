//! Greeting the head: what both agree on, whose clock is which, and a branch that was restored from a backup.

use super::step::LOST_VERSIONS;
use super::{
    BRANCH, Branch, CLOCK_NOISE, GREET_AGAIN_MS, LONGEST_ROUND_TRIP, READ_BYTES, REISSUED,
};
use crate::books::{self, BranchBook, OUTBOX};
use crate::change::Base;
use crate::envelope;
use crate::evolution::{LostVersion, Versions};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros};
use crate::message::{Batch, Hello, Message, Welcome};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Direction, Schema, SchemaVersion, Table};
use std::collections::BTreeMap;

impl Branch {
    pub(super) fn greet(&mut self, now: Micros) -> OfficeResult<()> {
        if self.link.copied {
            return Ok(());
        }
        self.link.greeted = now;
        let public_key = self.identity.public_key();
        let proof = self
            .book
            .secret
            .as_ref()
            .map(|secret| envelope::join_proof(&secret.0, &self.identity.name, &public_key));
        let hello = Hello {
            incarnation: self.book.incarnation,
            session: self.session,
            public_key,
            proof,
            frozen: self.book.frozen,
            applied: self.book.cursor,
            head: self.book.head,
            schema: self.schema.version,
            clock: now,
            chain: self.book.log_chain,
            head_key: Some(self.book.head_key.clone()),
            succession: self.book.succession,
        };
        self.tell(&Message::Hello(hello))
    }

    /// Greets unless it did a moment ago: head and branch do not agree on something.
    pub(super) fn greet_again(&mut self, now: Micros) -> OfficeResult<()> {
        if self.link.up && now.has_passed(GREET_AGAIN_MS, self.link.greeted) {
            return self.greet(now);
        }
        Ok(())
    }

    pub(super) async fn welcomed<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        welcome: Welcome,
    ) -> OfficeResult<()> {
        if welcome.session != self.session || welcome.incarnation != self.book.incarnation {
            return Ok(());
        }
        self.learn_predecessors(db, &welcome).await?;
        if !self.agrees(db, &welcome).await? {
            return self.reincarnate(db, now).await;
        }
        if welcome.beyond_horizon && welcome.rewind.is_some() {
            return self.begin_again(db, now, welcome).await;
        }
        // A welcome that comes twice, or late, must not take back what was followed since.
        if welcome.beyond_horizon && welcome.last > self.book.cursor {
            if let Some(schema) = welcome.schema.clone()
                && !self.jump(db, &schema).await?
            {
                return Ok(());
            }
            self.copy_anew(db, &welcome).await?;
        }
        if let Some((place, chain)) = welcome.rewind {
            if let Some(schema) = welcome.schema.filter(|_| place <= self.book.cursor)
                && !self.jump(db, &schema).await?
            {
                return Ok(());
            }
            let known = welcome.cursor;
            return self.rewind(db, now, (place, chain), known).await;
        }
        if self.book.head.is_none() {
            self.adopt_welcome(db, &welcome).await?;
        }
        self.forget_code(db).await?;
        self.link.welcomed = true;
        self.link.refused = None;
        self.link.sent = welcome.cursor.max(self.book.answered);
        self.link.known_last = welcome.last.max(self.book.cursor);
        self.measure_clock(db, now, welcome.clock).await?;
        self.link.clock_offset_ms = self.book.clock_offset.map_or(0, |offset| offset / 1000);
        self.link.told_applied = LogPosition::NONE;
        self.link.told_staged = LogPosition::NONE;
        self.notice(Notice::Welcomed {
            last: welcome.last,
            cursor: welcome.cursor,
            clock_offset_ms: self.link.clock_offset_ms,
        });
        if self.book.compare == Some(true) && self.book.joining.is_none() {
            self.verify(true)?;
        }
        self.tell_applied()
    }

    /// The outcome of a comparison that this branch asked for. One that repairs is what a branch waits for after it
    /// went back or copied the tables anew.
    pub(super) async fn compared<D: Database>(
        &mut self,
        db: &mut D,
        result: String,
    ) -> OfficeResult<()> {
        let told: serde_json::Value = serde_json::from_str(&result).unwrap_or_default();
        if self.awaits_comparison() && told["repair"] == true {
            let book = self.book_after(&told);
            if book != self.book {
                db.begin(Purpose::Apply).await?;
                let outcome = books::store(db, BRANCH, &book).await;
                conclude(db, outcome).await?;
                self.book = book;
            }
        }
        self.notice(Notice::VerifyResult(result));
        Ok(())
    }

    /// The book after a comparison with repair: what tables here lacked has come where they are equal now. Nothing is left
    /// to compare where all are, but for those that are not what the plan says.
    fn book_after(&self, told: &serde_json::Value) -> BranchBook {
        let branches = told["branches"].as_array().into_iter().flatten();
        let mut mine = branches.filter(|branch| branch["name"] == self.identity.name.as_str());
        let tables = mine.next().and_then(|branch| branch["tables"].as_array());
        let is_equal = |table: &Table| {
            let told = tables.into_iter().flatten();
            let mut told = told.filter(|told| told["name"] == table.name.as_str());
            told.next().is_some_and(|told| told["equal"] == true)
        };
        let is_unlike = |table: &Table| self.differing.contains_key(&table.id);
        // What several branches send up is nowhere alike.
        let settled =
            self.schema.tables.iter().all(|table| {
                is_equal(table) || is_unlike(table) || table.direction == Direction::Up
            });
        let mut lacked = self.book.lacked.clone().unwrap_or_default();
        lacked.retain(|(id, _)| {
            let table = self.schema.table(*id);
            table.is_some_and(|table| is_unlike(table) || !is_equal(table))
        });
        let unlike = self.schema.tables.iter().filter(|table| is_unlike(table));
        let left_out: Vec<_> = unlike.map(|table| table.id).collect();
        BranchBook {
            compare: self.book.compare.filter(|_| !settled),
            uncompared: (self.book.uncompared)
                .map(|waits| waits && !(settled && left_out.is_empty())),
            left_out: (!left_out.is_empty()).then_some(left_out),
            lacked: (!lacked.is_empty()).then_some(lacked),
            ..self.book.clone()
        }
    }

    /// Measures the head's clock against this office's, by the way from the greeting to its answer (as NTP does, RFC
    /// 5905, section 8). An answer that took long tells little, and one that was waiting in a broker nothing.
    async fn measure_clock<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        heads: Micros,
    ) -> OfficeResult<()> {
        let known = self.book.clock_offset;
        let Some(offset) = new_offset(known, self.link.greeted, now, heads) else {
            return Ok(());
        };
        let book = BranchBook {
            clock_offset: Some(offset),
            ..self.book.clone()
        };
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, BRANCH, &book).await;
        conclude(db, outcome).await?;
        self.book = book;
        Ok(())
    }

    /// Whether the head's last batch of this branch is the one that this branch sent.
    pub(super) async fn agrees<D: Database>(
        &self,
        db: &mut D,
        welcome: &Welcome,
    ) -> OfficeResult<bool> {
        if welcome.cursor > self.book.frozen {
            return Ok(false);
        }
        if welcome.cursor <= self.book.answered {
            return Ok(true);
        }
        let entries = db.entries(OUTBOX, welcome.cursor.0, 1).await?;
        let sent = entries
            .first()
            .filter(|entry| entry.number == welcome.cursor.0);
        Ok(sent.is_none_or(|entry| envelope::chain(&entry.bytes) == welcome.chain))
    }

    /// The first welcome: the head's log is followed from here on.
    async fn adopt_welcome<D: Database>(
        &mut self,
        db: &mut D,
        welcome: &Welcome,
    ) -> OfficeResult<()> {
        let book = BranchBook {
            head: Some(welcome.head),
            cursor: welcome.last,
            log_chain: welcome.log_chain,
            secret: None,
            ..self.book.clone()
        };
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            if let Some(schema) = &welcome.schema {
                Versions::store(db, schema).await?;
            }
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        let dropped = self.inbox.restart(book.cursor.0);
        self.outputs.extend(dropped.into_iter().map(Output::Settle));
        self.book = book;
        if let Some(schema) = &welcome.schema {
            self.versions.add(schema.clone());
            self.schema = schema.clone();
        }
        Ok(())
    }

    /// Takes a fresh identity after this database was restored: numbers used twice would pass for duplicates (trap 20).
    ///
    /// Which of the unanswered batches the head already has cannot be told, so all are issued again under the new
    /// identity, with their times and bases: what the head has already is then the same, or a conflict. What the head
    /// has and this database lost comes back by the log.
    pub(super) async fn reincarnate<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        let incarnation = self.fresh_incarnation(now);
        db.begin(Purpose::Apply).await?;
        let outcome = self.reissue(db, incarnation, None, BatchNumber::NONE).await;
        self.book = conclude(db, outcome).await?;
        self.begin_anew(db, now).await
    }

    pub(super) fn fresh_incarnation(&self, now: Micros) -> Incarnation {
        let mut seed = self.book.incarnation.0.to_vec();
        seed.extend(self.session);
        seed.extend(now.0.to_be_bytes());
        Incarnation(Digest::of(&seed).0)
    }

    /// Reads what depends on the incarnation, and greets under it.
    pub(super) async fn begin_anew<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        self.reused = false;
        self.read_claims(db).await?;
        self.captured = true;
        self.link.sent = BatchNumber::NONE;
        self.notice(Notice::Reincarnated);
        if !self.link.up {
            return Ok(());
        }
        self.greet(now)
    }

    /// Writes the unanswered batches anew, numbered from 1, by way of a second stream; with bases not after `latest`. Those
    /// up to `known` are in the head's log already: what they did to counters would count twice.
    pub(super) async fn reissue<D: Database>(
        &self,
        db: &mut D,
        incarnation: Incarnation,
        latest: Option<(LogPosition, Digest)>,
        known: BatchNumber,
    ) -> OfficeResult<BranchBook> {
        let mut book = BranchBook {
            incarnation,
            frozen: BatchNumber::NONE,
            chain: Digest::default(),
            answered: BatchNumber::NONE,
            ..self.book.clone()
        };
        let lost = books::load::<(SchemaVersion, Vec<Schema>), D>(db, LOST_VERSIONS).await?;
        db.set_meta(LOST_VERSIONS, None).await?;
        let mut renumbered = BTreeMap::new();
        let mut from = self.book.answered.next();
        while from <= self.book.frozen {
            let entries = db.entries(OUTBOX, from.0, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            for entry in &entries {
                let Message::Batch(mut batch) = envelope::open(&entry.bytes)?.read_own()? else {
                    continue;
                };
                let (former, number) = (batch.number, book.frozen.next());
                renumbered.insert(former, number);
                if latest
                    .is_some_and(|(latest, _)| batch.log.is_none_or(|(place, _)| place > latest))
                {
                    batch.log = latest;
                }
                for change in &mut batch.changes {
                    if let (Base::Log(place) | Base::Own(_, place), Some((latest, _))) =
                        (&mut change.base, latest)
                    {
                        *place = latest.min(*place);
                    }
                    if let Base::Own(own, place) = change.base {
                        change.base = renumbered
                            .get(&own)
                            .map_or(Base::Log(place), |own| Base::Own(*own, place));
                    }
                }
                if let Some((since, versions)) = &lost {
                    speak_for_itself(&mut batch, *since, versions);
                }
                if former <= known {
                    self.leave_out_counters(&mut batch);
                }
                batch.incarnation = incarnation;
                batch.number = number;
                batch.previous = book.chain;
                let message = Message::Batch(batch);
                let bytes = envelope::seal(&self.identity.name, &self.identity.key, &message)?;
                book.frozen = number;
                book.chain = envelope::chain(&bytes);
                let entry = Entry {
                    number: number.0,
                    bytes,
                };
                db.append(REISSUED, &[entry]).await?;
            }
            from = BatchNumber(last).next();
        }
        db.trim(OUTBOX, u64::MAX >> 1).await?;
        let mut from = 1;
        while from <= book.frozen.0 {
            let entries = db.entries(REISSUED, from, READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.number) else {
                break;
            };
            db.append(OUTBOX, &entries).await?;
            from = last + 1;
        }
        db.trim(REISSUED, u64::MAX >> 1).await?;
        books::store(db, BRANCH, &book).await?;
        Ok(book)
    }
}

impl Branch {
    fn leave_out_counters(&self, batch: &mut Batch) {
        let Some(was) = self.versions.shapes_of(batch, &self.schema) else {
            return;
        };
        batch.changes.retain(|change| {
            let table = was.table(change.table);
            let table = table.and_then(|table| self.schema.table(table.id));
            table.is_none_or(|table| table.counters.is_empty())
        });
    }
}

/// The head may have given the version of this batch's rows to other tables: the batch names its own.
fn speak_for_itself(batch: &mut Batch, since: SchemaVersion, versions: &[Schema]) {
    if let Some(lost) = &mut batch.lost {
        lost.since = lost.since.min(since);
        return;
    }
    let mut versions = versions.iter();
    let Some(schema) = versions.find(|schema| schema.version == batch.schema) else {
        return;
    };
    let used = |id| batch.changes.iter().any(|change| change.table == id);
    let tables = schema.tables.iter().filter(|table| used(table.id));
    batch.lost = Some(LostVersion {
        since,
        tables: tables.cloned().collect(),
    });
}

/// The head's clock minus this office's, in microseconds, by a greeting and its answer; none where they say nothing that
/// contradicts what is known. The answer was made at some time in between: what was known and lies there stays.
fn new_offset(known: Option<i64>, sent: Micros, received: Micros, heads: Micros) -> Option<i64> {
    let round_trip = received.0.saturating_sub(sent.0);
    if !(0..=LONGEST_ROUND_TRIP).contains(&round_trip) {
        return None;
    }
    let least = heads.0.saturating_sub(received.0);
    let most = heads.0.saturating_sub(sent.0);
    let agrees = |known: i64| {
        least.saturating_sub(CLOCK_NOISE) < known && known < most.saturating_add(CLOCK_NOISE)
    };
    if known.is_some_and(agrees) {
        return None;
    }
    Some(least.saturating_add(round_trip / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn measured(
        known: Option<i64>,
        answered_after: i64,
        round_trip: i64,
        ahead: i64,
    ) -> Option<i64> {
        let sent = 1_000 * SECOND;
        let heads = Micros(sent + answered_after + ahead);
        new_offset(known, Micros(sent), Micros(sent + round_trip), heads)
    }

    #[test]
    fn an_answer_that_took_long_does_not_move_a_clock_that_is_known() {
        // The greeting waited for three seconds until the head was there.
        assert_eq!(measured(Some(0), 3 * SECOND, 3 * SECOND, 0), None);
        // The answer did.
        assert_eq!(measured(Some(0), 0, 3 * SECOND, 0), None);
        // What was measured so is put right by a better one.
        assert_eq!(measured(Some(3 * SECOND / 2), 0, 10, 0), Some(-5));
        // Nothing better is known.
        assert_eq!(
            measured(None, 3 * SECOND, 3 * SECOND, 0),
            Some(3 * SECOND / 2)
        );
    }

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        assert_eq!(measured(Some(0), 0, 0, 60 * SECOND), Some(60 * SECOND));
        assert_eq!(
            measured(Some(0), SECOND, 2 * SECOND, -60 * SECOND),
            Some(-60 * SECOND)
        );
        assert_eq!(measured(Some(0), 0, 0, SECOND / 4), None, "that is noise");
        assert_eq!(
            measured(None, 0, 60 * SECOND, 0),
            None,
            "it waited in a broker"
        );
    }
}
