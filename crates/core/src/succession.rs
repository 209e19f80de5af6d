//! When a branch has taken the place of a head that is gone: whom the new head follows, and what a branch says to it.
//!
//! The log goes on under the same incarnation, with the entries of the gone head just as it sealed them. The new head has
//! another key; offices that trust it learn from it which keys signed the log before, and up to which place.

use ed25519_dalek::VerifyingKey;
use minicbor::{Decode, Encode};

use crate::books::{self, PublicKey};
use crate::envelope::{EnvelopeError, Opened};
use crate::failure::OfficeResult;
use crate::identity::{BatchNumber, Digest, Incarnation, LogPosition, OfficeName};
use crate::message::Message;
use crate::port::Database;

/// The name of the record that lists the former heads of the log that this office keeps or follows.
pub const PREDECESSORS: &str = "predecessors";

/// A head that wrote a part of the log before the present one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Predecessor {
    /// Its name.
    #[n(0)]
    pub name: OfficeName,
    /// The key that signed its entries.
    #[n(1)]
    pub key: PublicKey,
    /// Its last entry in this log: what else it wrote is no part of it.
    #[n(2)]
    pub through: LogPosition,
    /// The hash of that entry's envelope.
    #[n(3)]
    pub chain: Digest,
}

/// What a branch says to a head that is new to it: the new head's log may not tell how far the branch was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Succession {
    /// The incarnation that the number counts in.
    #[n(0)]
    pub incarnation: Incarnation,
    /// The last batch that was answered in the part of the log that the branch has.
    #[n(1)]
    pub answered: BatchNumber,
    /// The hash of that batch's envelope.
    #[n(2)]
    pub chain: Digest,
}

/// What a person brings to a branch from its head, old or new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The head's name.
    pub head_name: OfficeName,
    /// The head's public key.
    pub head_key: [u8; 32],
    /// The code's secret.
    pub secret: [u8; 32],
    /// The incarnation of the head's log, where the code tells it.
    pub log: Option<Incarnation>,
}

/// The former heads of this office's log, oldest first.
pub async fn predecessors<D: Database>(db: &mut D) -> OfficeResult<Vec<Predecessor>> {
    Ok(books::load(db, PREDECESSORS).await?.unwrap_or_default())
}

/// The message, where a former head sealed it.
pub(crate) fn sealed_by(
    opened: &Opened<'_>,
    formers: &[Predecessor],
) -> Option<(Predecessor, Message)> {
    let mut named = formers
        .iter()
        .rev()
        .filter(|former| former.name == opened.origin);
    named.find_map(|former| {
        let key = VerifyingKey::from_bytes(&former.key.0).ok()?;
        let message = opened.verified_by(&key).ok()?;
        Some((former.clone(), message))
    })
}

/// What a former head sealed and is a part of the log that goes on, or why it is not taken.
pub(crate) fn inherited(
    opened: &Opened<'_>,
    formers: &[Predecessor],
) -> Result<Message, EnvelopeError> {
    match sealed_by(opened, formers) {
        Some((former, Message::Log(entry))) if entry.position <= former.through => {
            Ok(Message::Log(entry))
        }
        Some((former, _)) => Err(EnvelopeError::Replaced(former.name.to_string())),
        None => Err(EnvelopeError::Forged(opened.origin.to_string())),
    }
}
