//! A branch and its join codes after the first: one that was renewed, and one of a head that took the place of the head
//! that the branch followed. Such a branch keeps its rows, its outbox and its cursor, since the log goes on.

use super::{BRANCH, Branch};
use crate::books::{self, BranchBook, OUTBOX, PublicKey, STAGED, SecretBytes};
use crate::envelope::{self, EnvelopeError, Opened};
use crate::failure::{OfficeError, OfficeResult};
use crate::message::{Message, Welcome};
use crate::office::conclude;
use crate::port::{Database, Purpose};
use crate::succession::{self, Offer, PREDECESSORS, Predecessor, Succession};

/// What became of a join code at an office that is a branch already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The branch waited to be let in, and greets with this code.
    Renewed,
    /// Another head has taken the place of the one that the branch followed; it greets that one.
    Succeeded,
    /// The branch is in already; the code is not needed.
    Known,
    /// The code is of a head that keeps another log.
    Stranger,
}

impl Branch {
    /// Takes a further join code.
    pub async fn renew<D: Database>(db: &mut D, offer: &Offer) -> OfficeResult<Renewal> {
        db.begin(Purpose::Apply).await?;
        let outcome = take_code(db, offer).await;
        conclude(db, outcome).await
    }

    /// The message, where the head sealed it, or where it is an entry of the log by a former head.
    pub(super) fn verified(&self, opened: &Opened<'_>) -> Result<Message, EnvelopeError> {
        if opened.origin == self.book.head_name {
            match opened.verified_by(&self.head_key) {
                Err(EnvelopeError::Forged(_)) => {}
                verified => return verified,
            }
        }
        succession::inherited(opened, &self.predecessors)
    }

    /// The head tells who wrote its log before.
    pub(super) async fn learn_predecessors<D: Database>(
        &mut self,
        db: &mut D,
        welcome: &Welcome,
    ) -> OfficeResult<()> {
        let Some(told) = welcome.predecessors.as_ref() else {
            return Ok(());
        };
        if *told == self.predecessors {
            return Ok(());
        }
        db.begin(Purpose::Apply).await?;
        let outcome = books::store(db, PREDECESSORS, told).await;
        conclude(db, outcome).await?;
        self.predecessors.clone_from(told);
        Ok(())
    }

    /// The new head let this branch in: from here on it is known by its own key.
    pub(super) async fn forget_code<D: Database>(&mut self, db: &mut D) -> OfficeResult<()> {
        if self.book.secret.is_none() && self.book.succession.is_none() {
            return Ok(());
        }
        let book = BranchBook {
            secret: None,
            succession: None,
            ..self.book.clone()
        };
        self.keep_book(db, book).await
    }
}

async fn take_code<D: Database>(db: &mut D, offer: &Offer) -> OfficeResult<Renewal> {
    let Some(mut book) = books::load::<BranchBook, D>(db, BRANCH).await? else {
        return Ok(Renewal::Stranger);
    };
    let known = book.head_key.0 == offer.head_key;
    let followed = book.head;
    let renewal = match followed {
        None => Renewal::Renewed,
        Some(_) if known && book.secret.is_some() => Renewal::Renewed,
        Some(_) if known => return Ok(Renewal::Known),
        Some(log) if offer.log == Some(log) => Renewal::Succeeded,
        Some(_) => return Ok(Renewal::Stranger),
    };
    if renewal == Renewal::Succeeded {
        book.succession = Some(Succession {
            incarnation: book.incarnation,
            answered: book.answered,
            chain: answered_chain(db, &book).await?,
        });
        let mut formers = succession::predecessors(db).await?;
        // Until the new head tells how far the former one's part of the log goes, it ends here.
        formers.push(Predecessor {
            name: book.head_name.clone(),
            key: book.head_key.clone(),
            through: book.cursor,
            chain: book.log_chain,
        });
        books::store(db, PREDECESSORS, &formers).await?;
        // The rest of an unfinished unit may be no part of the log that goes on.
        db.trim(STAGED, u64::MAX >> 1).await?;
    }
    book.head_name = offer.head_name.clone();
    book.head_key = PublicKey(offer.head_key);
    book.secret = Some(SecretBytes(offer.secret));
    books::store(db, BRANCH, &book).await?;
    Ok(renewal)
}

/// The hash of the envelope of the last batch that was answered.
pub(super) async fn answered_chain<D: Database>(
    db: &mut D,
    book: &BranchBook,
) -> OfficeResult<crate::identity::Digest> {
    if book.answered >= book.frozen {
        return Ok(book.chain);
    }
    let next = book.answered.next().0;
    let entries = db.entries(OUTBOX, next, 1).await?;
    let entry = entries.first().filter(|entry| entry.number == next);
    let message = entry.map(|entry| envelope::open(&entry.bytes)?.read_own());
    match message.transpose()? {
        Some(Message::Batch(batch)) => Ok(batch.previous),
        _ => Err(OfficeError::Books(format!("batch {next} is missing"))),
    }
}
