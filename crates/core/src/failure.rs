//! What can go wrong at an office, sorted by what to do next.

use crate::envelope::EnvelopeError;
use crate::port::DatabaseError;

/// Why an office's step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfficeError {
    /// The database said no; see [`DatabaseError`] for what to do.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Another transaction was in the way of a step that has changed nothing, neither in the database nor in memory. The
    /// machine may go on; the step is tried again by itself.
    #[error("another transaction was in the way: {0}")]
    InTheWay(String),
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
                | Self::InTheWay(_)
        )
    }
}

/// The outcome of a step that adopts what it did only once it is committed: that another transaction was in the way is no
/// more than that.
pub(crate) fn unchanged<T>(outcome: OfficeResult<T>) -> OfficeResult<T> {
    outcome.map_err(|error| match error {
        OfficeError::Database(DatabaseError::Busy(what)) => OfficeError::InTheWay(what),
        other => other,
    })
}

/// The result of an office's step.
pub type OfficeResult<T> = Result<T, OfficeError>;
