//! Failures as a person sees them, with the exit codes of the public interface.

use std::fmt;

use branchline_core::failure::OfficeError;
use branchline_core::port::DatabaseError;
use branchline_transport::LinkError;

/// The answer is no.
pub const NO: u8 = 1;
/// Wrong usage or configuration.
pub const USAGE: u8 = 2;
/// The peer or the broker could not be reached; nothing is lost.
pub const UNREACHED: u8 = 3;
/// The database could not be reached, or refused; or this machine lacks room for what is to be written.
pub const DATABASE: u8 = 4;
/// A bug of ours.
pub const BUG: u8 = 70;

/// A failure: what was wrong, where, what to do, and the exit code.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// The sentence.
    pub message: String,
}

/// A result that ends a command when it fails.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with this code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Names the place where it happened.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self {
            message: format!("{place}: {}", self.message),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        let code = match error {
            DatabaseError::Mismatch { .. } => USAGE,
            DatabaseError::Other(_) => BUG,
            _ => DATABASE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<OfficeError> for Failure {
    fn from(error: OfficeError) -> Self {
        match error {
            OfficeError::Database(error) => error.into(),
            OfficeError::InTheWay(what) => DatabaseError::Busy(what).into(),
            OfficeError::NotSetUp(message) => Self::usage(message),
            other => Self::new(BUG, other.to_string()),
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let code = match error {
            LinkError::Settings(_) => USAGE,
            LinkError::TooLarge { .. } | LinkError::WrongDestination => BUG,
            _ => UNREACHED,
        };
        Self::new(code, error.to_string())
    }
}

/// Wraps an I/O error with what was being done. What a person must change is wrong usage; what may pass by itself (a full
/// disk, no memory) is not.
pub fn io(doing: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    use std::io::ErrorKind as Kind;
    move |error| {
        let code = match error.kind() {
            Kind::NotFound
            | Kind::PermissionDenied
            | Kind::AlreadyExists
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::ReadOnlyFilesystem
            | Kind::InvalidFilename
            | Kind::InvalidInput
            | Kind::InvalidData
            | Kind::AddrInUse
            | Kind::AddrNotAvailable => USAGE,
            _ => DATABASE,
        };
        Failure::new(code, format!("{doing}: {error}"))
    }
}
