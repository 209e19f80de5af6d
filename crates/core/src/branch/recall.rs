//! What a branch does for a head that was restored from a backup: it gives back the log entries that the head lost, and
//! where the head went on without them, it goes back to the last place that both know (SETTLED 10).

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, Joining, Note, STAGED, followed_in};
use crate::envelope;
use crate::failure::OfficeResult;
use crate::head::own_entry;
use crate::identity::{BatchNumber, Digest, LogPosition, Micros};
use crate::message::{Message, Recall, Recalled};
use crate::office::conclude;
use crate::output::{Notice, Output};
use crate::port::{Database, Entry, Purpose};

/// Bytes of entries given back in one message.
const PIECE_BYTES: usize = 512 * 1024;
/// How many streams of entries followed are kept.
const LINEAGES: usize = 16;

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
        let mut agreed = None;
        for (place, chain) in &recall.points {
            let here = if *place == self.book.cursor {
                Some(self.book.log_chain)
            } else {
                match (
                    self.kept(db, *place).await?,
                    self.kept(db, place.next()).await?,
                ) {
                    (Some(entry), _) => Some(envelope::chain(&entry.bytes)),
                    // The first one that it keeps names the one before: the branch joined there.
                    (None, Some(entry)) => Some(own_entry(&entry.bytes)?.previous),
                    (None, None) => None,
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
        let (stream, through) = self.book.followed_at(from);
        for entry in db.entries(&stream, from.0, PIECE_BYTES).await? {
            if entry.number != last.next().0 || entry.number > through.0 {
                break;
            }
            last = LogPosition(entry.number);
            recalled.entries.push(entry.bytes.into());
        }
        Ok(recalled)
    }

    /// The entry at a place, where it is kept.
    async fn kept<D: Database>(
        &self,
        db: &mut D,
        place: LogPosition,
    ) -> OfficeResult<Option<Entry>> {
        let (stream, through) = self.book.followed_at(place);
        if place > through {
            return Ok(None);
        }
        let mut entries = db.entries(&stream, place.0, 1).await?.into_iter();
        Ok(entries.find(|entry| entry.number == place.0))
    }

    /// What is kept of the log when the branch goes back to a place: all up to there.
    async fn lineages_through<D: Database>(
        &self,
        db: &mut D,
        place: LogPosition,
    ) -> OfficeResult<Option<Vec<(u64, LogPosition)>>> {
        let mut kept = Vec::new();
        let present = (self.book.lineage, place);
        for (lineage, through) in self.book.lineages.iter().flatten().chain([&present]) {
            let through = (*through).min(place);
            let stream = followed_in(*lineage);
            let extent = db.extent(&stream).await?;
            if extent.entries > 0 && extent.first <= through.0 {
                kept.push((*lineage, through));
            } else {
                db.trim(&stream, u64::MAX >> 1).await?;
            }
        }
        let surplus = kept.len().saturating_sub(LINEAGES);
        for (lineage, _) in kept.drain(..surplus) {
            db.trim(&followed_in(lineage), u64::MAX >> 1).await?;
        }
        Ok((!kept.is_empty()).then_some(kept))
    }

    /// What was sent of the first copy stands at another log's places.
    pub(super) fn drop_chunk(&mut self) {
        if let Some((_, token)) = self.chunk.take() {
            self.outputs.push_back(Output::Settle(token));
        }
        self.chunk_asked = None;
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
            db.trim(STAGED, u64::MAX >> 1).await?;
            let joining = book.joining.clone().map(|joining| Joining {
                settled: joining.settled.min(place),
                ..joining
            });
            let book = BranchBook {
                cursor: place,
                log_chain: chain,
                lineages: self.lineages_through(db, place).await?,
                lineage: book.lineage + 1,
                compare: Some(true),
                joining,
                ..book
            };
            books::store(db, BRANCH, &book).await?;
            Ok(book)
        };
        let outcome = outcome.await;
        self.book = conclude(db, outcome).await?;
        self.staged = false;
        self.drop_chunk();
        self.link.known_last = place;
        let dropped = self.inbox.restart(place.0);
        self.outputs.extend(dropped.into_iter().map(Output::Settle));
        self.notice(Notice::Rewound(place));
        self.begin_anew(db, now).await
    }
}
