//! Greeting the head: what both agree on, whose clock is which, and a branch that was restored from a backup.

use super::{
    BRANCH, Branch, CLOCK_NOISE, GREET_AGAIN_MS, LONGEST_ROUND_TRIP, READ_BYTES, REISSUED,
};
use crate::books::{self, BranchBook, OUTBOX};
use crate::change::Base;
use crate::envelope;
use crate::evolution::Versions;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros};
use crate::message::{Hello, Message, Welcome};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Entry, Purpose};
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
        // A welcome that comes twice, or late, must not take back what was followed since.
        if welcome.beyond_horizon && welcome.last > self.book.cursor {
            if let Some(schema) = welcome.schema.clone() {
                self.jump(db, schema).await?;
            }
            self.copy_anew(db, &welcome).await?;
        }
        if let Some((place, chain)) = welcome.rewind {
            if let Some(schema) = welcome.schema.filter(|_| place <= self.book.cursor) {
                self.jump(db, schema).await?;
            }
            return self.rewind(db, now, place, chain).await;
        }
        if self.book.head.is_none() {
            self.adopt_welcome(db, &welcome).await?;
        }
        self.forget_code(db).await?;
        self.link.welcomed = true;
        self.link.refused = None;
        self.link.sent = welcome.cursor.max(self.book.answered);
        self.link.known_last = self.link.known_last.max(welcome.last);
        self.measure_clock(db, now, welcome.clock).await?;
        self.link.clock_offset_ms = self.book.clock_offset.map_or(0, |offset| offset / 1000);
        self.link.told_applied = LogPosition::NONE;
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
        if self.book.compare.is_some() && told["repair"] == true && told["equal"] == true {
            let book = BranchBook {
                compare: None,
                ..self.book.clone()
            };
            db.begin(Purpose::Apply).await?;
            let outcome = books::store(db, BRANCH, &book).await;
            conclude(db, outcome).await?;
            self.book = book;
        }
        self.notice(Notice::VerifyResult(result));
        Ok(())
    }

    /// Measures the head's clock against this office's, by the way from the greeting to its answer (as NTP does, RFC
    /// 5905, section 8). An answer that took long tells little, and one that was waiting in a broker nothing.
    async fn measure_clock<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        heads: Micros,
    ) -> OfficeResult<()> {
        let (sent, round_trip) = (self.link.greeted, now.0.saturating_sub(self.link.greeted.0));
        if !(0..=LONGEST_ROUND_TRIP).contains(&round_trip) {
            return Ok(());
        }
        let offset = heads
            .0
            .saturating_sub(sent.0.saturating_add(round_trip / 2));
        let known = self.book.clock_offset;
        if known.is_some_and(|known| (known.saturating_sub(offset)).abs() < CLOCK_NOISE) {
            return Ok(());
        }
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
        let outcome = self.reissue(db, incarnation, None).await;
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
        self.claims.clear();
        self.chains.clear();
        self.fresh.clear();
        self.steps.clear();
        self.read_claims(db).await?;
        self.captured = true;
        self.link.sent = BatchNumber::NONE;
        self.notice(Notice::Reincarnated);
        if !self.link.up {
            return Ok(());
        }
        self.greet(now)
    }

    /// Writes the unanswered batches anew, numbered from 1, by way of a second stream; with bases not after `latest`.
    pub(super) async fn reissue<D: Database>(
        &self,
        db: &mut D,
        incarnation: Incarnation,
        latest: Option<(LogPosition, Digest)>,
    ) -> OfficeResult<BranchBook> {
        let mut book = BranchBook {
            incarnation,
            frozen: BatchNumber::NONE,
            chain: Digest::default(),
            answered: BatchNumber::NONE,
            ..self.book.clone()
        };
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
                let number = book.frozen.next();
                renumbered.insert(batch.number, number);
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
