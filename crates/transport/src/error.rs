//! What goes wrong with a link, sorted by what to do next.

use crate::MAX_ENVELOPE_BYTES;

/// Why a parcel was not taken, or a link is not up. Texts never hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing to do: the link mends itself, the protocol sends again.
    #[error("the link is down: {0}; it is tried again by itself")]
    Down(String),
    /// A person must act: wrong password, missing right, wrong certificate. The link still tries, slowly.
    #[error("the link is refused: {0}")]
    Refused(String),
    /// The window is full; only from [`LinkSender::try_send`](crate::LinkSender::try_send).
    #[error("the link's window is full; send again when the peer has caught up")]
    Full,
    /// A bug of the sender: envelopes are cut far below the limit.
    #[error("an envelope of {bytes} bytes exceeds the limit of {MAX_ENVELOPE_BYTES} bytes")]
    TooLarge {
        /// The size of the refused envelope.
        bytes: usize,
    },
    /// A bug of the sender: a branch sends to the head only, the head to branches only.
    #[error(
        "this end of the link does not send there: a branch sends to the head, the head to its branches"
    )]
    WrongDestination,
    /// The link was closed by its owner.
    #[error("the link was closed")]
    Closed,
    /// The settings cannot work; found before anything was tried.
    #[error("the link's settings are wrong: {0}")]
    Settings(String),
}

impl LinkError {
    /// Whether waiting alone will not mend it.
    pub fn needs_a_person(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Settings(_))
    }
}
