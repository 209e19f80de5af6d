//! How a branch begins: with a join code, and at each start with what its database says.

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;

use super::here::Differing;
use super::hot::Steps;
use super::take::Fresh;
use super::{BRANCH, Branch, LinkState};
use crate::books::{self, BranchBook, IdentityBook, Joining, PublicKey, STAGED, SecretBytes};
use crate::by_name::ByName;
use crate::evolution::Versions;
use crate::failure::{OfficeError, OfficeResult};
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, Micros, OfficeName};
use crate::inbox::Inbox;
use crate::office::{Fleeting, IDENTITY, Identity, conclude};
use crate::port::{Database, Purpose};
use crate::retention::Retention;
use crate::succession;

/// What a join code gives a branch to begin with.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Who the branch is to be.
    pub identity: IdentityBook,
    /// Its first incarnation.
    pub incarnation: Incarnation,
    /// The head's name.
    pub head_name: OfficeName,
    /// The head's public key.
    pub head_key: [u8; 32],
    /// The code's secret.
    pub secret: [u8; 32],
}

impl Branch {
    /// Makes this database a branch that is about to join.
    pub async fn found<D: Database>(db: &mut D, enrolment: &Enrolment) -> OfficeResult<()> {
        db.begin(Purpose::Apply).await?;
        let outcome = async {
            let book = BranchBook {
                incarnation: enrolment.incarnation,
                frozen: BatchNumber::NONE,
                chain: Digest::default(),
                answered: BatchNumber::NONE,
                cursor: LogPosition::NONE,
                head: None,
                head_name: enrolment.head_name.clone(),
                head_key: PublicKey(enrolment.head_key),
                secret: Some(SecretBytes(enrolment.secret)),
                joining: Some(Joining::default()),
                log_chain: Digest::default(),
                lineage: 0,
                compare: None,
                clock_offset: None,
                refused: Vec::new(),
                succession: None,
                lacked: None,
                unbound: None,
                lineages: None,
                left_out: None,
                uncompared: None,
                unmade: None,
            };
            books::store(db, IDENTITY, &enrolment.identity).await?;
            books::store(db, BRANCH, &book).await
        };
        let outcome = outcome.await;
        conclude(db, outcome).await
    }

    /// Reads the branch from its database. `session` is drawn anew at each start.
    pub async fn load<D: Database>(db: &mut D, session: [u8; 16]) -> OfficeResult<Self> {
        db.begin(Purpose::Read).await?;
        let outcome = Self::read(db, session).await;
        conclude(db, outcome).await
    }

    pub(super) async fn read<D: Database>(db: &mut D, session: [u8; 16]) -> OfficeResult<Self> {
        let (identity, _) = Identity::load(db).await?;
        let book: BranchBook = books::load(db, BRANCH).await?.ok_or_else(|| {
            OfficeError::NotSetUp("this database belongs to a head, not to a branch".into())
        })?;
        let schema = books::newest_schema(db).await?.unwrap_or_default();
        let head_key = VerifyingKey::from_bytes(&book.head_key.0)
            .map_err(|_| OfficeError::Books("the head's public key".into()))?;
        let staged = db.extent(STAGED).await?;
        let mut any_notes = false;
        for table in &schema.tables {
            any_notes |= !db.notes(table, None).await?.is_empty();
        }
        let mut inbox = Inbox::new(book.cursor.0);
        let staged = staged.entries > 0 && staged.first == book.cursor.next().0 && {
            inbox.restart(staged.last);
            true
        };
        let link = LinkState {
            sent: book.answered,
            known_last: book.cursor,
            ..LinkState::default()
        };
        let mut branch = Self {
            identity,
            session,
            schema,
            versions: Versions::load(db).await?,
            shape: None,
            differing: Differing::new(),
            gone: Fleeting::default(),
            stepped: false,
            head_key,
            predecessors: succession::predecessors(db).await?,
            inbox,
            staged,
            claims: ByName::default(),
            chains: BTreeMap::new(),
            fresh: Fresh::default(),
            steps: Steps::default(),
            any_notes,
            captured: true,
            emptied: Micros(0),
            marked: Micros(0),
            moving: true,
            reused: false,
            unfit_after: BTreeMap::new(),
            unfit_tried: Micros(0),
            bound_tried: Micros(0),
            unmade_tried: Micros(0),
            store_and_forward: false,
            retention: Retention::default(),
            upkept: None,
            link,
            chunk: None,
            chunk_asked: None,
            seen: None,
            passed: None,
            outputs: VecDeque::new(),
            book,
        };
        branch.read_claims(db).await?;
        Ok(branch)
    }
}
