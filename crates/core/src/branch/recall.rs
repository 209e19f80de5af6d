//! What a branch does for a head that was restored from a backup: it gives back the log entries that the head lost, and
//! where the head went on without them, it goes back to the last place that both know (SETTLED 10).

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Note, STAGED};
use crate::envelope;
use crate::failure::OfficeResult;
use crate::head::own_entry;
use crate::identity::{BatchNumber, Digest, LogPosition, Micros};
use crate::message::{Message, Recall, Recalled};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Purpose};

/// Bytes of entries given back in one message.
const PIECE_BYTES: usize = 512 * 1024;

impl Branch {
    /// Answers with the next entries after the last place on which head and branch agree.
    pub(super) async fn recall<D: Database>(
        &mut self,
        db: &mut D,
        recall: &Recall,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let outcome = self.read_kept(db, recall).await;
        let recalled = conclude(db, outcome).await?;
        // It greets again a little later: until then the head may have it all.
        self.link.welcomed = false;
        self.tell(&Message::Recalled(recalled))
    }

    async fn read_kept<D: Database>(&self, db: &mut D, recall: &Recall) -> OfficeResult<Recalled> {
        let stream = self.book.followed();
        let mut agreed = None;
        for (place, chain) in &recall.points {
            let here = if *place == self.book.cursor {
                Some(self.book.log_chain)
            } else {
                let kept = db.entries(&stream, place.0, 1).await?;
                match kept.first() {
                    Some(entry) if entry.number == place.0 => Some(envelope::chain(&entry.bytes)),
                    // The first one that it keeps names the one before: the branch joined there.
                    Some(entry) if entry.number == place.next().0 => {
                        Some(own_entry(&entry.bytes)?.previous)
                    }
                    _ => None,
                }
            };
            if here == Some(*chain) {
                agreed = agreed.max(Some(*place));
            }
        }
        let mut recalled = Recalled {
            agreed,
            entries: Vec::new(),
            end: (self.book.cursor, self.book.log_chain),
        };
        let Some(agreed) = agreed else {
            return Ok(recalled);
        };
        let from = agreed.max(recall.after).next();
        let mut last = from.previous();
        for entry in db.entries(&stream, from.0, PIECE_BYTES).await? {
            if entry.number != last.next().0 || entry.number > self.book.cursor.0 {
                break;
            }
            last = LogPosition(entry.number);
            recalled.entries.push(entry.bytes.into());
        }
        Ok(recalled)
    }

    /// Goes back to a place from which the head's log went on otherwise than this branch followed it. The rows stay as
    /// they are: what differs comes by the head's log. What is not answered yet is issued again under a fresh
    /// incarnation, as made on nothing newer than that place. The head has its batches up to `known`.
    pub(super) async fn rewind<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        (place, chain): (LogPosition, Digest),
        known: BatchNumber,
    ) -> OfficeResult<()> {
        if place >= self.book.cursor {
            return Ok(());
        }
        let incarnation = self.fresh_incarnation(now);
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let latest = Some((place, chain));
            let book = self.reissue(db, incarnation, latest, known).await?;
            for table in &self.schema.tables {
                let mut changed = Vec::new();
                for (key, note) in db.notes(table, None).await? {
                    let note: Note = books::decode(&note)?;
                    if note.first_unseen() > place.next() {
                        let note = note.with_first_unseen(place.next());
                        changed.push((key, Some(books::encode(&note)?)));
                    }
                }
                if !changed.is_empty() {
                    db.set_notes(table, &changed).await?;
                }
            }
            db.trim(&self.book.followed(), u64::MAX >> 1).await?;
            db.trim(STAGED, u64::MAX >> 1).await?;
            let book = BranchBook {
                cursor: place,
                log_chain: chain,
                lineage: book.lineage + 1,
                compare: Some(true),
                ..book
            };
            books::store(db, BRANCH, &book).await?;
            Ok(book)
        };
        let outcome = outcome.await;
        self.book = conclude(db, outcome).await?;
        self.staged = false;
        let dropped = self.inbox.restart(place.0);
        self.outputs.extend(dropped.into_iter().map(Output::Settle));
        self.notice(Notice::Rewound(place));
        self.begin_anew(db, now).await
    }
}
