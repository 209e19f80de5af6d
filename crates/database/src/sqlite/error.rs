//! SQLite's result codes, sorted by what to do next.

use branchline_core::port::DatabaseError;
use rusqlite::ErrorCode;
use rusqlite::ffi;

/// The error of a statement that concerns no shared table.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(super) fn failure(error: rusqlite::Error) -> DatabaseError {
    sort(&error, None)
}

/// The error of a statement on a shared table, for `map_err`.
pub(super) fn on(table: &str) -> impl Fn(rusqlite::Error) -> DatabaseError + '_ {
    move |error| sort(&error, Some(table))
}

/// Something in a row or column that does not match the plan.
pub(super) fn mismatch(table: &str, message: impl Into<String>) -> DatabaseError {
    DatabaseError::Mismatch {
        table: table.to_owned(),
        message: message.into(),
    }
}

fn sort(error: &rusqlite::Error, table: Option<&str>) -> DatabaseError {
    let message = error.to_string();
    if let Some(table) = table.filter(|_| is_missing(&message)) {
        return mismatch(table, message);
    }
    let rusqlite::Error::SqliteFailure(cause, _) = error else {
        return DatabaseError::Other(message);
    };
    match cause.code {
        _ if is_busy(error) => DatabaseError::Busy(message),
        ErrorCode::CannotOpen | ErrorCode::DiskFull | ErrorCode::SystemIoFailure => {
            DatabaseError::Unreachable(message)
        }
        ErrorCode::ReadOnly
        | ErrorCode::PermissionDenied
        | ErrorCode::NotADatabase
        | ErrorCode::DatabaseCorrupt
        | ErrorCode::AuthorizationForStatementDenied => DatabaseError::Refused(message),
        ErrorCode::ConstraintViolation => constraint(cause.extended_code, message, table),
        ErrorCode::TooBig | ErrorCode::TypeMismatch => match table {
            Some(table) => mismatch(table, message),
            None => DatabaseError::Other(message),
        },
        _ => DatabaseError::Other(message),
    }
}

/// Whether the application has changed the table meanwhile.
fn is_missing(message: &str) -> bool {
    message.starts_with("no such table: ")
        || message.starts_with("no such column: ")
        || message.contains(" has no column named ")
}

fn constraint(code: i32, message: String, table: Option<&str>) -> DatabaseError {
    let Some(table) = table else {
        return DatabaseError::Other(message);
    };
    if code == ffi::SQLITE_CONSTRAINT_DATATYPE {
        return mismatch(table, message);
    }
    DatabaseError::Constraint {
        table: table.to_owned(),
        message,
        foreign_key: code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
    }
}

/// Whether a statement failed because a unique value is taken by another row.
pub(super) fn is_taken(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|cause| {
        matches!(
            cause.extended_code,
            ffi::SQLITE_CONSTRAINT_UNIQUE
                | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                | ffi::SQLITE_CONSTRAINT_ROWID
        )
    })
}

/// Whether another connection has the lock.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
    error
        .sqlite_error_code()
        .is_some_and(|code| busy.contains(&code))
}

/// Whether a commit failed because of a foreign key.
pub(super) fn is_foreign_key(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|cause| cause.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// Whether a statement failed because of a foreign key, or of what one restricts (which SQLite reports as a trigger's refusal).
pub(super) fn is_for_foreign_key(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Constraint {
            foreign_key,
            message,
            ..
        } => *foreign_key || message.contains("FOREIGN KEY"),
        _ => false,
    }
}
