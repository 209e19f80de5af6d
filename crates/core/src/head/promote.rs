//! A branch's database becomes the head's (decision 12): the books of a head are read back from the log that the branch
//! followed, and what the branch had not got answered is judged like any branch's batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::lanes::PUBLISHED;
use super::recall::{STARTS, Standing};
use super::recent::{names_of, own_entry, rows_of};
use super::seats::SEATS;
use super::writer::{HEAD, LogWriter};
use super::{Head, Seat, holds};
use crate::books::{
    self, BranchBook, CONFLICTS, HeadBook, Hold, IdentityBook, LOG, OUTBOX, PublicKey, RowNames,
    SeatBook, SecretBytes, seat_name,
};
use crate::branch::append_record;
use crate::change::Key;
use crate::conflict::{ConflictRecord, Reason};
use crate::evolution::{Lift, Versions};
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::message::{Hello, LogBody, LogEntry, LoggedChanges, Message, Outcome, Refusal};
use crate::office::{IDENTITY, Identity, conclude};
use crate::output::Output;
use crate::port::{Database, Entry, Purpose};
use crate::schema::{Schema, TableId};
use crate::succession::{PREDECESSORS, Predecessor, Succession};

/// The record of a promotion that is not complete.
const PROMOTED: &str = "promoted";
/// Bytes read of a stream at a time.
const READ_BYTES: usize = 1024 * 1024;
/// How often the branch's batches are tried while the application writes the same rows.
const ATTEMPTS: usize = 1_000;

/// The branch that became this head, until its unanswered batches are judged.
#[derive(Clone, Debug, Encode, Decode)]
struct Promoted {
    #[n(0)]
    branch: OfficeName,
    #[n(1)]
    frozen: BatchNumber,
    /// The stream of entries that it followed, which are the log now.
    #[n(2)]
    followed: String,
}

/// What a branch leaves to the head that it becomes.
pub(crate) struct Estate<'a> {
    /// Who the head is to be.
    pub head: &'a IdentityBook,
    pub schema: &'a Schema,
    /// The versions in which entries of the log stand.
    pub versions: &'a Versions,
    /// The branch as it was.
    pub branch: &'a Identity,
    pub book: &'a BranchBook,
    /// The hash of its last answered batch.
    pub answered_chain: Digest,
    pub predecessors: &'a [Predecessor],
    /// Its own rows that are held.
    pub holds: &'a [(TableId, Key, Hold)],
    /// Decisions to list besides.
    pub records: Vec<ConflictRecord>,
}

/// The identity of the log that a head keeps.
pub async fn log_of<D: Database>(db: &mut D) -> OfficeResult<Incarnation> {
    let book: Option<HeadBook> = books::load(db, HEAD).await?;
    book.map(|book| book.incarnation).ok_or_else(|| {
        OfficeError::NotSetUp("this database belongs to a branch, not to a head".into())
    })
}

/// A seat without an office yet: made by an invitation, or read back from the log.
pub(super) fn empty_seat(secret: [u8; 32], expires: Micros) -> SeatBook {
    SeatBook {
        secret: SecretBytes(secret),
        expires,
        public_key: None,
        incarnation: Incarnation([0; 16]),
        cursor: BatchNumber::NONE,
        chain: Digest::default(),
        applied: LogPosition::NONE,
        seen: Micros(0),
        removed: false,
        holds: 0,
        former: Vec::new(),
        taken_back: None,
        taken_before: None,
    }
}

/// A seat of a branch that the log speaks of and that was not invited here: no code opens it, since none has expired later.
pub(super) fn seat_from_log() -> SeatBook {
    empty_seat([0; 32], Micros(i64::MIN))
}

/// Whether a seat was read back from the log, and its branch has not come yet.
pub(super) fn is_awaited(seat: &SeatBook) -> bool {
    seat.public_key.is_none() && !seat.removed && seat.incarnation != Incarnation([0; 16])
}

/// The branch numbers its batches anew, under this incarnation.
fn number_by(seat: &mut SeatBook, incarnation: Incarnation) {
    if seat.incarnation != Incarnation([0; 16]) {
        seat.former.push(seat.incarnation);
    }
    seat.incarnation = incarnation;
    seat.cursor = BatchNumber::NONE;
    seat.chain = Digest::default();
}

/// The names of an entry's rows, as a head keeps them beside it.
pub(crate) fn names_beside(
    bytes: &[u8],
    versions: &Versions,
    head: &Arc<OfficeName>,
) -> OfficeResult<Vec<u8>> {
    let entry = own_entry(bytes)?;
    Ok(names_of(&rows_of(&entry, versions.of(&entry)?, head)))
}

/// Books of a head, as far as the log tells them.
struct Retold<'a> {
    schema: &'a Schema,
    versions: &'a Versions,
    seats: BTreeMap<OfficeName, SeatBook>,
    holds: BTreeMap<(TableId, Key, OfficeName), Hold>,
    conflicts: u64,
}

impl<'a> Retold<'a> {
    fn new(schema: &'a Schema, versions: &'a Versions) -> Self {
        Self {
            schema,
            versions,
            seats: BTreeMap::new(),
            holds: BTreeMap::new(),
            conflicts: 0,
        }
    }

    fn seat(&mut self, branch: &OfficeName) -> &mut SeatBook {
        self.seats
            .entry(branch.clone())
            .or_insert_with(seat_from_log)
    }

    async fn hear<D: Database>(&mut self, db: &mut D, entry: LogEntry) -> OfficeResult<()> {
        let (schema, was) = (self.schema, self.versions.of(&entry)?);
        let lifted = |id: TableId, key: &Key| {
            let (from, to) = was.table(id).zip(schema.table(id))?;
            Lift { from, to }.key(key).ok()
        };
        let LogBody::Changes(body) = entry.body else {
            return Ok(());
        };
        if let Some(answer) = &body.answers {
            let seat = self.seat(&answer.branch);
            if seat.incarnation != answer.incarnation && !seat.former.contains(&answer.incarnation)
            {
                number_by(seat, answer.incarnation);
            }
            if seat.incarnation == answer.incarnation && seat.cursor < answer.batch {
                seat.cursor = answer.batch;
                seat.chain = answer.chain;
            }
            for verdict in body.verdicts {
                let Some(record) = verdict.record else {
                    continue;
                };
                if verdict.outcome == Outcome::Held
                    && let Some(key) = lifted(verdict.table, &verdict.key)
                {
                    let place = (verdict.table, key, answer.branch.clone());
                    let hold = Hold {
                        branch: answer.branch.clone(),
                        conflict: record.id,
                        reason: reason_to_hold(&record, self.holds.get(&place)),
                        batch: (answer.incarnation, answer.batch),
                    };
                    self.holds.insert(place, hold);
                }
                self.list(db, &record).await?;
            }
        }
        for record in body.listed.iter().flatten() {
            self.list(db, record).await?;
        }
        for settlement in body.settlements {
            self.seat(&settlement.branch);
            if let Some(record) = &settlement.record {
                self.list(db, record).await?;
            }
            if let Some(settled) = &settlement.settled {
                let name = books::settled_name(settled.conflict);
                books::store(db, &name, settled).await?;
            }
            // That a branch was told of a hold ends none.
            if settlement.held.is_none()
                && let Some(key) = lifted(settlement.table, &settlement.key)
            {
                let place = (settlement.table, key, settlement.branch);
                self.holds.remove(&place);
            }
        }
        Ok(())
    }

    async fn list<D: Database>(&mut self, db: &mut D, record: &ConflictRecord) -> OfficeResult<()> {
        self.conflicts = self.conflicts.max(record.id);
        let entry = Entry {
            number: record.id,
            bytes: books::encode(record)?,
        };
        append_record(db, entry).await
    }
}

/// Why a change is held at a head that has only the log's word on it: what did not travel whole is a person's matter,
/// since there is nothing to be tried again. A row that was held already is held for the first reason.
pub(crate) fn reason_to_hold(record: &ConflictRecord, before: Option<&Hold>) -> Reason {
    match (record.reason, before) {
        _ if record.lacks_rows() => Reason::AskedFor,
        (_, Some(hold)) => hold.reason,
        (Reason::AlreadyHeld, None) => Reason::AskedFor,
        (reason, None) => reason,
    }
}

/// Writes the books of the head, in the open transaction. The log is there already; an entry of the new head's own ends
/// what the former one wrote.
pub(crate) async fn found<D: Database>(
    db: &mut D,
    now: Micros,
    estate: Estate<'_>,
) -> OfficeResult<Vec<OfficeName>> {
    let (schema, book) = (estate.schema, estate.book);
    let mut retold = Retold::new(schema, estate.versions);
    let mut from = 0;
    loop {
        let entries = db.entries(LOG, from, READ_BYTES).await?;
        let Some(last) = entries.last().map(|entry| entry.number) else {
            break;
        };
        for entry in &entries {
            retold.hear(db, own_entry(&entry.bytes)?).await?;
        }
        from = last + 1;
    }
    retold.conflicts = retold.conflicts.max(last_listed(db).await?);
    let me = &estate.branch.name;
    let (own, others) = std::mem::take(&mut retold.holds)
        .into_iter()
        .partition(|((.., branch), _)| branch == me);
    retold.holds = others;
    let own: BTreeMap<_, Hold> = own;
    for (table, key, hold) in estate.holds {
        let place = (*table, key.clone(), me.clone());
        let told = own.get(&place).map(|told| told.reason);
        let hold = Hold {
            reason: told.unwrap_or(hold.reason),
            ..hold.clone()
        };
        retold.holds.insert(place, hold);
    }
    let seat = retold.seat(me);
    if seat.incarnation != book.incarnation {
        number_by(seat, book.incarnation);
    }
    *seat = SeatBook {
        public_key: Some(PublicKey(estate.branch.public_key())),
        cursor: book.answered,
        chain: estate.answered_chain,
        applied: book.cursor,
        seen: now,
        ..seat.clone()
    };
    write_holds(db, schema, &mut retold).await?;
    let mut listed = Vec::new();
    for mut record in estate.records {
        retold.conflicts += 1;
        record.id = retold.conflicts;
        retold.list(db, &record).await?;
        listed.push(record.fit_to_travel());
    }
    if retold.seats.contains_key(&estate.head.name) {
        return Err(OfficeError::NotSetUp(format!(
            "`{}` is the name of a branch; the head needs another",
            estate.head.name
        )));
    }
    let names: Vec<OfficeName> = retold.seats.keys().cloned().collect();
    for (name, seat) in &retold.seats {
        books::store(db, &seat_name(name), seat).await?;
    }
    books::store(db, SEATS, &names).await?;
    books::store(db, IDENTITY, estate.head).await?;
    books::store(db, PREDECESSORS, &estate.predecessors.to_vec()).await?;
    books::store(db, PUBLISHED, &book.cursor).await?;
    books::store(db, STARTS, &vec![book.cursor]).await?;
    let promoted = Promoted {
        branch: me.clone(),
        frozen: book.frozen,
        followed: book.followed(),
    };
    books::store(db, PROMOTED, &promoted).await?;
    let head = HeadBook {
        incarnation: book.head.unwrap_or(book.incarnation),
        last: book.cursor,
        chain: book.log_chain,
        conflicts: retold.conflicts,
    };
    let identity = Identity::from_book(estate.head);
    let mut writer = LogWriter::new(&identity, schema, head);
    let first = LoggedChanges {
        listed: (!listed.is_empty()).then_some(listed),
        ..LoggedChanges::of_the_head()
    };
    writer.append(db, LogBody::Changes(first)).await?;
    writer.finish(db).await?;
    Ok(names.into_iter().filter(|name| name != me).collect())
}

/// The highest number of a listed decision that a head gave.
async fn last_listed<D: Database>(db: &mut D) -> OfficeResult<u64> {
    let mut last = 0;
    let mut from = 0;
    loop {
        let entries = db.entries(CONFLICTS, from, READ_BYTES).await?;
        let Some(end) = entries.last().map(|entry| entry.number) else {
            return Ok(last);
        };
        for entry in entries {
            if entry.number < crate::branch::MOVED_RECORDS {
                last = entry.number;
            }
        }
        from = end + 1;
    }
}

/// Puts the head's notes in the place of the branch's.
async fn write_holds<D: Database>(
    db: &mut D,
    schema: &Schema,
    retold: &mut Retold<'_>,
) -> OfficeResult<()> {
    for table in &schema.tables {
        let notes = db.notes(table, None).await?.into_keys();
        let gone: Vec<(Key, Option<Vec<u8>>)> = notes.map(|key| (key, None)).collect();
        if !gone.is_empty() {
            db.set_notes(table, &gone).await?;
        }
    }
    for ((id, key, branch), hold) in std::mem::take(&mut retold.holds) {
        if let Some(table) = schema.table(id) {
            holds::set(db, table, &key, &branch, Some(hold)).await?;
            retold.seat(&branch).holds += 1;
        }
    }
    Ok(())
}

impl Head {
    /// Judges what the branch that became this head had not got answered, if that is not done yet. The branch's seat is
    /// empty afterwards.
    pub(super) async fn end_promotion<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let outcome = books::load::<Promoted, D>(db, PROMOTED).await;
        let Some(promoted) = conclude(db, outcome).await? else {
            return Ok(());
        };
        let branch = &promoted.branch;
        for _ in 0..ATTEMPTS {
            let before = self.place_of(branch);
            if before.1 >= promoted.frozen {
                return self.empty_seat_of(db, &promoted).await;
            }
            self.hear_outbox(db, now, &promoted, before.0).await?;
            while self.judge_branch(db, now, branch).await? {}
            if self.place_of(branch) == before {
                while self.take(db, now).await? {}
            }
        }
        Err(OfficeError::Books(format!(
            "the unanswered batches of {branch} could not be judged"
        )))
    }

    fn place_of(&self, branch: &OfficeName) -> (u64, BatchNumber) {
        let seat = self.seats.get(branch);
        seat.map_or((0, BatchNumber::NONE), |seat| {
            (seat.inbox.expected(), seat.book.cursor)
        })
    }

    async fn hear_outbox<D: Database>(
        &mut self,
        db: &mut D,
        now: Micros,
        promoted: &Promoted,
        from: u64,
    ) -> OfficeResult<()> {
        db.begin(Purpose::Read).await?;
        let outcome = db.entries(OUTBOX, from, READ_BYTES).await;
        let batches = conclude(db, outcome.map_err(OfficeError::from)).await?;
        for batch in batches {
            let seat = self.seats.get(&promoted.branch);
            if !seat.is_some_and(|seat| seat.inbox.has_room()) {
                break;
            }
            self.arrived(db, now, &batch.bytes, 0).await?;
        }
        // Nobody sent them, and nobody waits for an answer.
        self.outputs
            .retain(|output| matches!(output, Output::Notice(_)));
        Ok(())
    }

    async fn empty_seat_of<D: Database>(
        &mut self,
        db: &mut D,
        promoted: &Promoted,
    ) -> OfficeResult<()> {
        let name = seat_name(&promoted.branch);
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            if let Some(mut seat) = books::load::<SeatBook, D>(db, &name).await? {
                seat.removed = true;
                books::store(db, &name, &seat).await?;
            }
            db.trim(OUTBOX, u64::MAX >> 1).await?;
            db.trim(&promoted.followed, u64::MAX >> 1).await?;
            Ok(db.set_meta(PROMOTED, None).await?)
        };
        let outcome = outcome.await;
        conclude(db, outcome).await?;
        self.load_seat(db, &promoted.branch).await?;
        self.outputs
            .retain(|output| matches!(output, Output::Notice(_)));
        Ok(())
    }

    /// Gives branches a seat that this head has not heard of, and that a part of the log speaks of that comes back. To be
    /// called before anything is taken from that part.
    pub(super) async fn seat_strangers<D: Database>(
        &mut self,
        db: &mut D,
        lost: &[(LogEntry, Vec<u8>)],
    ) -> OfficeResult<()> {
        if self.predecessors.is_empty() {
            return Ok(());
        }
        let mut strangers: Vec<OfficeName> = Vec::new();
        for (entry, _) in lost {
            if let LogBody::Changes(body) = &entry.body
                && let Some(answer) = &body.answers
                && !self.seats.contains_key(&answer.branch)
                && !strangers.contains(&answer.branch)
            {
                strangers.push(answer.branch.clone());
            }
        }
        for name in strangers {
            db.begin(Purpose::Apply).await?;
            let outcome = async {
                let mut names = super::seats::names(db).await?;
                names.push(name.clone());
                books::store(db, SEATS, &names).await?;
                books::store(db, &seat_name(&name), &seat_from_log()).await
            };
            let outcome = outcome.await;
            conclude(db, outcome).await?;
            self.load_seat(db, &name).await?;
        }
        Ok(())
    }
}

/// Rows that the head's take is to log as the head's own.
pub(crate) async fn recapture<D: Database>(
    db: &mut D,
    schema: &Schema,
    rows: &RowNames,
) -> OfficeResult<()> {
    for table in &schema.tables {
        let keys: Vec<Key> = rows
            .iter()
            .filter(|(id, _)| *id == table.id)
            .map(|(_, key)| key.clone())
            .collect();
        if !keys.is_empty() {
            db.recapture(table, Some(&keys)).await?;
        }
    }
    Ok(())
}

impl Head {
    /// Takes a branch's own word on how far it was answered, where it has the log's past and this head was promoted.
    /// Where it has not, and the log tells nothing of its batches either, it is not let in, which this returns.
    pub(super) fn is_told_too_little(
        &mut self,
        origin: &OfficeName,
        hello: &Hello,
        standing: &Standing,
    ) -> OfficeResult<bool> {
        let told = hello.succession.as_ref();
        let Some(told) = told.filter(|told| told.incarnation == hello.incarnation) else {
            return Ok(false);
        };
        let Some(seat) = self.seats.get_mut(origin) else {
            return Ok(false);
        };
        let unheard = seat.book.cursor == BatchNumber::NONE;
        match standing {
            Standing::Agrees if seat.book.cursor < told.answered => {
                seat.adopt_word(told);
                Ok(false)
            }
            Standing::BeyondHorizon if unheard && hello.frozen == told.answered => {
                seat.adopt_word(told);
                Ok(false)
            }
            Standing::BeyondHorizon if unheard => {
                seat.book.public_key = None;
                let refusal = Refusal {
                    session: hello.session,
                    reason: "the log of this head goes back less far than this branch was away, so that it cannot be told which of its changes were taken in; run `branchline leave` here, and join again with a new code: its rows are compared then".into(),
                    reincarnate: false,
                    incarnation: hello.incarnation,
                    cursor: told.answered,
                    copied: false,
                };
                self.tell(origin, &Message::Refusal(refusal))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl Seat {
    fn adopt_word(&mut self, told: &Succession) {
        self.book.cursor = told.answered;
        self.book.chain = told.chain;
        self.staged = false;
        // Nothing can wait: before this greeting its batches were strangers' here.
        drop(self.inbox.restart(told.answered.0));
    }
}
