//! What can go wrong at an office, sorted by what to do next.

use crate::envelope::EnvelopeError;
use crate::port::DatabaseError;

/// Why an office's step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfficeError {
    /// The database said no; see [`DatabaseError`] for what to do.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A message of our own could not be put into an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The books in the database cannot be read.
    #[error(
        "Branchline's own records in the database cannot be read ({0}); restore the database or join anew"
    )]
    Books(String),
    /// The database is not set up as this office.
    #[error("{0}")]
    NotSetUp(String),
}

impl OfficeError {
    /// Whether the same step may succeed later without a person.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::Database(DatabaseError::Unreachable(_) | DatabaseError::Busy(_))
        )
    }
}

/// The result of an office's step.
pub type OfficeResult<T> = Result<T, OfficeError>;
