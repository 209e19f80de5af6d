//! PostgreSQL's errors, sorted by what to do next.

use branchline_core::port::DatabaseError;
use tokio_postgres::Error;

/// An error that no table is to blame for.
pub(super) fn failed(error: &Error) -> DatabaseError {
    on_table("", error)
}

/// An error of a statement on a table of the application.
///
/// | SQLSTATE | meaning here |
/// |---|---|
/// | 23, 54, P0 and what triggers raise, whatever it is | a row does not fit |
/// | 40001, 40P01, 55P03, 57014 | another transaction was in the way |
/// | 28, 42501, 3D000; 55, 58, 72, F0, XX: the server itself | refused |
/// | 08, 53, 57P, closed | unreachable for now |
/// | 22, 42, 0A000 | does not match the plan |
pub(super) fn on_table(table: &str, error: &Error) -> DatabaseError {
    let Some(db) = error.as_db_error() else {
        return transport(error);
    };
    let code = db.code().code();
    let message = match db.detail() {
        Some(detail) => format!("{}: {detail}", db.message()),
        None => db.message().to_owned(),
    };
    let named = || {
        if table.is_empty() {
            db.table().unwrap_or_default().to_owned()
        } else {
            table.to_owned()
        }
    };
    match code {
        "40001" | "40P01" | "55P03" | "57014" => DatabaseError::Busy(message),
        "42501" | "3D000" | "25006" => DatabaseError::Refused(message),
        "23503" | "23001" => DatabaseError::Constraint {
            table: named(),
            message,
            foreign_key: true,
        },
        _ if code.starts_with("23") || code == "44000" => DatabaseError::Constraint {
            table: named(),
            message,
            foreign_key: false,
        },
        _ if raised(code) => DatabaseError::Constraint {
            table: named(),
            message,
            foreign_key: false,
        },
        _ if code.starts_with("28") => DatabaseError::Refused(message),
        _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("57P") => {
            DatabaseError::Unreachable(message)
        }
        _ if !table.is_empty()
            && (code.starts_with("22") || code.starts_with("42") || code == "0A000") =>
        {
            DatabaseError::Mismatch {
                table: table.to_owned(),
                message,
            }
        }
        _ => {
            let message = format!("{message} (SQLSTATE {code})");
            match code.get(..2) {
                Some("55" | "58" | "72" | "F0" | "XX") => DatabaseError::Refused(message),
                _ => DatabaseError::Other(message),
            }
        }
    }
}

/// Whether this was raised by the application's own triggers, or says that a row is too much for an index. The classes
/// that begin with 5 to 9 or I to Z are not the standard's: what is not PostgreSQL's own there is an application's.
fn raised(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    match class {
        "09" | "21" | "27" | "2F" | "38" | "39" | "54" | "P0" => true,
        "53" | "55" | "57" | "58" | "72" | "HV" | "XX" => false,
        _ => class.starts_with(|first| matches!(first, '5'..='9' | 'I'..='Z')),
    }
}

fn transport(error: &Error) -> DatabaseError {
    let words = chain(error);
    let io = std::iter::successors(std::error::Error::source(error), |e| e.source())
        .any(|cause| cause.is::<std::io::Error>());
    if words.contains("TLS handshake")
        || words.contains("authentication")
        || words.contains("invalid configuration")
    {
        DatabaseError::Refused(words)
    } else if error.is_closed()
        || io
        || words.starts_with("error connecting")
        || words.starts_with("timeout")
    {
        DatabaseError::Unreachable(words)
    } else {
        DatabaseError::Other(words)
    }
}

/// The error's words with those of its causes; tokio-postgres shows only the outermost.
fn chain(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        words.push_str(": ");
        words.push_str(&inner.to_string());
        cause = inner.source();
    }
    words
}
