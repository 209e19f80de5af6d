//! The branches' seats: inviting, letting in, taking out.

use super::promote::{empty_seat, is_awaited};
use super::{BranchReport, Head, Seat};
use crate::books::{self, PublicKey, SeatBook, seat_name};
use crate::envelope::join_proof;
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, Micros, OfficeName};
use crate::message::{Hello, Refusal};
use crate::office::conclude;
use crate::output::Output;
use crate::port::{Database, Purpose};
use crate::succession::Predecessor;

/// The name of the record that lists the branches.
pub(super) const SEATS: &str = "seats";
/// How many former incarnations are remembered of a branch. Not one of them may be forgotten, since a backup from its time
/// would pass for a new office and repeat what it sent; so who has had so many gets no further one.
const FORMER: usize = 1000;
/// How often it is saved when a branch was last heard of, in milliseconds.
const SAVE_SEEN_MS: i64 = 5_000;

/// The branches' names.
pub(super) async fn names<D: Database>(db: &mut D) -> OfficeResult<Vec<OfficeName>> {
    Ok(books::load(db, SEATS).await?.unwrap_or_default())
}

/// Makes a seat for a branch, or renews the invitation of one that has not joined. An error text says why not.
pub async fn invite<D: Database>(
    db: &mut D,
    branch: &OfficeName,
    secret: [u8; 32],
    expires: Micros,
) -> OfficeResult<Result<(), String>> {
    db.begin(Purpose::Apply).await?;
    let outcome = async {
        let mut all = names(db).await?;
        let former: Option<SeatBook> = books::load(db, &seat_name(branch)).await?;
        if former
            .as_ref()
            .is_some_and(|seat| seat.public_key.is_some() && !seat.removed)
        {
            return Ok(Err(format!(
                "branch `{branch}` has joined already; `branchline remove {branch}` takes it out first"
            )));
        }
        let empty = empty_seat(secret, expires);
        // How far a branch was answered that the log of a former head tells of.
        let seat = match former {
            Some(former) if is_awaited(&former) => SeatBook {
                secret: empty.secret,
                expires,
                ..former
            },
            // What still comes from an office that had the name before must not pass for the new one's.
            Some(mut former) if former.removed => {
                former.former.push(former.incarnation);
                SeatBook {
                    former: former.former,
                    ..empty
                }
            }
            _ => empty,
        };
        books::store(db, &seat_name(branch), &seat).await?;
        if !all.contains(branch) {
            all.push(branch.clone());
            books::store(db, SEATS, &all).await?;
        }
        Ok(Ok(()))
    };
    let outcome = outcome.await;
    conclude(db, outcome).await
}

/// Takes a branch out. An error text says why not.
pub async fn remove<D: Database>(
    db: &mut D,
    branch: &OfficeName,
) -> OfficeResult<Result<(), String>> {
    db.begin(Purpose::Apply).await?;
    let outcome = async {
        let Some(mut seat) = books::load::<SeatBook, D>(db, &seat_name(branch)).await? else {
            return Ok(Err(format!("there is no branch `{branch}`")));
        };
        seat.removed = true;
        books::store(db, &seat_name(branch), &seat).await?;
        db.trim(&books::staged_of(branch), u64::MAX >> 1).await?;
        Ok(Ok(()))
    };
    let outcome = outcome.await;
    conclude(db, outcome).await
}

impl Head {
    /// Reads a branch's record again, after `invite` or `remove`.
    pub async fn load_seat<D: Database>(
        &mut self,
        db: &mut D,
        branch: &OfficeName,
    ) -> OfficeResult<()> {
        let Some(book) = books::load::<SeatBook, D>(db, &seat_name(branch)).await? else {
            return Ok(());
        };
        let staged = db.extent(&books::staged_of(branch)).await?;
        let mut seat = Seat::new(book);
        if staged.entries > 0 && staged.first == seat.book.cursor.next().0 {
            seat.staged = true;
            seat.inbox.restart(staged.last);
        }
        if seat.is_enrolled() && seat.book.applied < self.book.last {
            // Since when, nobody remembers: not longer than it is away, or stands still.
            seat.lacks = Some((self.book.last, seat.book.seen));
        }
        if let Some(mut former) = self.seats.insert(branch.clone(), seat) {
            self.outputs
                .extend(former.inbox.restart(0).into_iter().map(Output::Settle));
        }
        Ok(())
    }

    /// Lets a branch in, or says why not.
    pub(super) fn admit(
        &mut self,
        now: Micros,
        origin: &OfficeName,
        hello: &Hello,
        trusted: bool,
    ) -> Result<(), Refusal> {
        let cursor = self
            .seats
            .get(origin)
            .map_or(BatchNumber::NONE, |seat| seat.book.cursor);
        let refuse = |reason: String, reincarnate| {
            Err(Refusal {
                session: hello.session,
                reason,
                reincarnate,
                incarnation: hello.incarnation,
                cursor,
                copied: false,
            })
        };
        let ours = self.book.incarnation;
        let told_key = hello.head_key.as_ref();
        if let Some(key) = told_key.filter(|key| key.0 != self.identity.public_key()) {
            let followed = |former: &Predecessor| former.key == *key;
            return if self.predecessors.iter().any(followed) {
                refuse(
                    format!(
                        "this head took the place of the one that `{origin}` follows; ask for a join code made here by `branchline invite {origin}`"
                    ),
                    false,
                )
            } else {
                refuse(
                    format!(
                        "`{origin}` follows another head that took this one's place; stop this office (`branchline leave`), and let it join as a branch"
                    ),
                    false,
                )
            };
        }
        let Some(seat) = self.seats.get_mut(origin) else {
            return refuse(
                format!(
                    "the head knows no branch `{origin}`; ask for a join code made by `branchline invite {origin}`"
                ),
                false,
            );
        };
        if seat.book.removed {
            return refuse(
                format!("branch `{origin}` was taken out at the head; ask for a new join code"),
                false,
            );
        }
        if !trusted {
            let expected = join_proof(&seat.book.secret.0, origin, &hello.public_key);
            if hello.proof != Some(expected) {
                return refuse(
                    format!(
                        "the join code for `{origin}` is wrong or was replaced by a newer one; ask the head for a new one"
                    ),
                    false,
                );
            }
            if seat.book.public_key.is_some() {
                return refuse(
                    format!(
                        "the join code for `{origin}` was already used by another office; two offices cannot have one name"
                    ),
                    false,
                );
            }
            if now > seat.book.expires {
                return refuse(
                    format!("the join code for `{origin}` has expired; ask the head for a new one"),
                    false,
                );
            }
            seat.book.public_key = Some(PublicKey(hello.public_key));
        }
        if hello.head.is_some_and(|head| head != ours) {
            return refuse(
                "this branch follows another head of the same name; run `branchline leave` here and join again with a new code".into(),
                false,
            );
        }
        if seat.sessions.is_refused(hello.session) {
            let (incarnation, cursor) = (seat.book.incarnation, seat.book.cursor);
            return Err(Self::copy_refused(
                origin,
                hello.session,
                incarnation,
                cursor,
            ));
        }
        if hello.incarnation == seat.book.incarnation {
            if hello.frozen < seat.book.cursor {
                return refuse(
                    "the branch's database was restored from a backup".into(),
                    true,
                );
            }
        } else if seat.book.former.contains(&hello.incarnation) {
            // A backup from before the branch's last change of incarnation, or a greeting that took its time.
            return Err(Refusal {
                session: hello.session,
                reason: "the branch's database was restored from a backup".into(),
                reincarnate: true,
                incarnation: hello.incarnation,
                cursor: BatchNumber(u64::MAX),
                copied: false,
            });
        } else {
            if seat.book.former.len() >= FORMER {
                return refuse(
                    format!(
                        "`{origin}` has taken a new identity {FORMER} times; take it out at the head (`branchline remove {origin}`) and let it join anew"
                    ),
                    false,
                );
            }
            if seat.book.incarnation != Incarnation([0; 16]) {
                seat.book.former.push(seat.book.incarnation);
            }
            seat.book.incarnation = hello.incarnation;
            seat.book.cursor = BatchNumber::NONE;
            seat.book.chain = Digest::default();
            seat.staged = false;
            self.outputs
                .extend(seat.inbox.restart(0).into_iter().map(Output::Settle));
        }
        Ok(())
    }

    /// Saves now and then how far each branch is.
    pub(super) async fn save_seen<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        let stale = |seat: &Seat| {
            let seen = seat.book.seen > seat.seen_saved.plus_millis(SAVE_SEEN_MS);
            seat.unsaved || (seat.is_enrolled() && seen)
        };
        let published = self.lanes.to_save();
        if !self.seats.values().any(stale) && published.is_none() {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            for (name, seat) in self.seats.iter().filter(|(_, seat)| stale(seat)) {
                books::store(db, &seat_name(name), &seat.book).await?;
            }
            if let Some(published) = published {
                books::store(db, super::lanes::PUBLISHED, &published).await?;
            }
            Ok(())
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        for seat in self.seats.values_mut() {
            seat.seen_saved = seat.book.seen;
            seat.unsaved = false;
        }
        self.lanes.saved();
        Ok(())
    }

    /// What the head knows of its branches.
    pub fn branches(&self) -> Vec<BranchReport> {
        let report = |(name, seat): (&OfficeName, &Seat)| BranchReport {
            name: name.clone(),
            joined: seat.book.public_key.is_some(),
            online: seat.online,
            seen: seat.book.seen,
            applied: seat.book.applied,
            cursor: seat.book.cursor,
            holds: seat.book.holds,
            clock_offset_ms: seat.clock_offset_ms,
            behind_since: seat
                .lacks
                .filter(|(lacked, _)| *lacked > seat.book.applied)
                .map(|(_, since)| since),
        };
        self.seats
            .iter()
            .filter(|(_, seat)| !seat.book.removed)
            .map(report)
            .collect()
    }
}
