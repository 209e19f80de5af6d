//! MariaDB's and MySQL's errors, sorted by what to do next.

use branchline_core::port::DatabaseError;
use mysql_async::{DriverError, Error, ServerError};

/// An error that no table is to blame for.
pub(super) fn failed(error: &Error) -> DatabaseError {
    on_table("", error)
}

/// Whether the connection can no longer be used.
pub(super) fn ends_the_connection(error: &Error) -> bool {
    // MySQL says good-bye: stopped by a person (3169), or for a long silence (4031).
    !matches!(error, Error::Server(told) if !matches!(told.code, 3169 | 4031))
}

/// Whether the server has no TLS to offer.
pub(super) fn no_tls(error: &Error) -> bool {
    matches!(error, Error::Driver(DriverError::NoClientSslFlagFromServer))
}

/// What the handshake failed of, where it did.
fn handshake(error: &Error) -> Option<&rustls::Error> {
    match error {
        Error::Io(mysql_async::IoError::Io(io)) => io.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// A name that the server's certificate is good for, where it failed of another name alone: names are checked last.
pub(super) fn other_name(error: &Error) -> Option<String> {
    let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext {
        presented,
        ..
    })) = handshake(error)
    else {
        return None;
    };
    // Written as `DnsName("db.example")` or `IpAddress(10.0.0.1)`.
    presented.iter().find_map(|name| {
        let inside = name.split_once('(')?.1.strip_suffix(')')?;
        Some(inside.trim_matches('"').replacen('*', "any", 1))
    })
}

/// Whether another row holds the value of a unique key.
pub(super) const DUPLICATE: u16 = 1062;
/// A lock was not there at once (`NOWAIT`), or not in time.
pub(super) const LOCKED: [u16; 2] = [1205, 3572];

/// An error of a statement on a table of the application.
///
/// | code | meaning here |
/// |---|---|
/// | 1205, 1213, 3572, 1412, 1020, 1969, 1317, 3024 | another transaction was in the way |
/// | 1451, 1452, 1216, 1217, 1761 | a row does not fit: foreign key |
/// | 1062, 1586, 1048, 4025, 3819, 1364, 1644, and what triggers signal | a row does not fit |
/// | 1044, 1045, 1049, 1142, 1143, 1227, 1419, 1290, ... | refused |
/// | 1040, 1053, 1129, 1203, 1226, 1927, 1021, 1114, 3032, 3168, 3169, 4031 and a broken connection | unreachable for now |
/// | SQLSTATE 22 and 42, 1292, 1366, 1265 | does not match the plan |
/// | 1005 with errno 121, 140 or 150, 1022, 1025, 1215, 1553, 1822 to 1834, SQLSTATE 0A; MySQL: 3108, 3730, 3734, 3780, 3813, 3820, 3822, 3823, 3959, 6125 | the table cannot be made so |
pub(super) fn on_table(table: &str, error: &Error) -> DatabaseError {
    let Error::Server(told) = error else {
        return match transport(error) {
            // The driver does not send it, and tells so as it tells of a broken connection.
            DatabaseError::Unreachable(words)
                if !table.is_empty() && words.contains("max_allowed_packet") =>
            {
                mismatch(
                    table,
                    "a row is larger than the server's max_allowed_packet",
                )
            }
            other => other,
        };
    };
    let message = told.message.clone();
    let constraint = |foreign_key| DatabaseError::Constraint {
        table: table.to_owned(),
        message: message.clone(),
        foreign_key,
    };
    match told.code {
        1205 | 1213 | 3572 | 1412 | 1020 | 1969 | 1317 | 3024 | 1684 => {
            DatabaseError::Busy(message)
        }
        1451 | 1452 | 1216 | 1217 | 1761 | 1762 => constraint(true),
        1062 | 1586 | 1048 | 4025 | 3819 | 1364 | 1644 => constraint(false),
        1419 => DatabaseError::Refused(format!(
            "{message}. Triggers on a server with a binary log need: SET GLOBAL log_bin_trust_function_creators = 1"
        )),
        1044 | 1045 | 1049 | 1130 | 1142 | 1143 | 1227 | 1251 | 1290 | 1370 | 1410 | 1524
        | 1698 | 1792 | 1820 | 1836 | 1862 | 3118 | 3159 | 3955 | 4151 => {
            DatabaseError::Refused(message)
        }
        1040
        | 1053
        | 1129
        | 1203
        | 1226
        | 1927
        | 1021
        | 1114
        | 1158..=1161
        | 3032
        | 3168
        | 3169
        | 4031 => DatabaseError::Unreachable(message),
        1153 | 1265 | 1292 | 1366 | 1411 if !table.is_empty() => mismatch(table, message),
        1005 | 1025 if !table.is_empty() && ill_formed(&message) => mismatch(table, message),
        1022 | 1215 | 1553 | 1822..=1834 if !table.is_empty() => mismatch(table, message),
        3108 | 3730 | 3734 | 3780 | 3813 | 3820 | 3822 | 3823 | 3959 | 6125
            if !table.is_empty() =>
        {
            mismatch(table, message)
        }
        _ if !table.is_empty()
            && ["22", "42", "0A"]
                .iter()
                .any(|class| told.state.starts_with(class)) =>
        {
            mismatch(table, message)
        }
        // What an application's trigger signals has a state of its own making: none of the standard's classes.
        1442 | 1526 | 1748 => constraint(false),
        _ if told.state == "45000"
            || told
                .state
                .starts_with(|first| matches!(first, '5'..='9' | 'I'..='Z'))
                && !told.state.starts_with("XA") =>
        {
            constraint(false)
        }
        // The storage engine: a damaged table, a broken disk.
        1030 | 1034 | 1194 | 1195 => {
            DatabaseError::Refused(format!("{message} (error {})", told.code))
        }
        code => DatabaseError::Other(format!("{message} (error {code})")),
    }
}

/// Whether a table could not be made or renamed for what it is, not for want of space or the like: a name of a foreign
/// key that is taken (121, 152), options (140), a foreign key that does not match (150).
fn ill_formed(message: &str) -> bool {
    [121, 140, 150, 152]
        .iter()
        .any(|errno| message.contains(&format!("errno: {errno} ")))
}

pub(super) fn mismatch(table: &str, message: impl Into<String>) -> DatabaseError {
    DatabaseError::Mismatch {
        table: table.to_owned(),
        message: message.into(),
    }
}

/// The server's own code, where the server spoke.
pub(super) fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Server(ServerError { code, .. }) => Some(*code),
        _ => None,
    }
}

fn transport(error: &Error) -> DatabaseError {
    let words = chain(error);
    match error {
        Error::Io(mysql_async::IoError::Tls(_)) => DatabaseError::Refused(words),
        _ if handshake(error).is_some() => DatabaseError::Refused(words),
        Error::Io(_)
        | Error::Driver(DriverError::ConnectionClosed | DriverError::PoolDisconnected) => {
            DatabaseError::Unreachable(words)
        }
        Error::Driver(
            DriverError::NoClientSslFlagFromServer
            | DriverError::UnknownAuthPlugin { .. }
            | DriverError::MysqlOldPasswordDisabled
            | DriverError::CleartextPluginDisabled,
        ) => DatabaseError::Refused(words),
        _ => DatabaseError::Other(words),
    }
}

/// The error's words with those of its causes, each once.
fn chain(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words.push_str(": ");
            words.push_str(&inner_words);
        }
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(table: &str, code: u16, state: &str, message: &str) -> DatabaseError {
        let (state, message) = (state.to_owned(), message.to_owned());
        on_table(
            table,
            &Error::Server(ServerError {
                code,
                message,
                state,
            }),
        )
    }

    /// What a table is to blame for is not taken for a broken database, which would be tried again without end.
    #[test]
    fn refusals_of_a_table_are_its_own() {
        let in_use = "Can't create table `a`.`b` (errno: 121 \"Duplicate key on write or update\")";
        let ill = "Can't create table `a`.`b` (errno: 150 \"Foreign key constraint is incorrectly formed\")";
        let mismatches = [
            (1005, "HY000", in_use),
            (1005, "HY000", ill),
            (
                1025,
                "HY000",
                "Error on rename of './a' to './b' (errno: 152 \"Cannot delete a parent row\")",
            ),
            (1022, "23000", ""),
            (1069, "42000", ""),
            (1070, "42000", ""),
            (1071, "42000", ""),
            (1118, "42000", ""),
            (1138, "42000", ""),
            (1215, "HY000", ""),
            (1264, "22003", ""),
            (1265, "01000", ""),
            (1366, "HY000", ""),
            (1406, "22001", ""),
            (1553, "HY000", ""),
            (1822, "HY000", ""),
            (1823, "HY000", ""),
            (1824, "HY000", ""),
            (1825, "HY000", ""),
            (1826, "HY000", ""),
            (1833, "HY000", ""),
            (1846, "0A000", ""),
            (3730, "HY000", ""),
            (3780, "HY000", ""),
            (3959, "HY000", ""),
            (6125, "HY000", ""),
        ];
        for (code, state, message) in mismatches {
            let error = told("t", code, state, message);
            assert!(
                matches!(error, DatabaseError::Mismatch { .. }),
                "{code}: {error:?}"
            );
        }
        for (code, reference) in [
            (1216, true),
            (1217, true),
            (1451, true),
            (1452, true),
            (1062, false),
        ] {
            let error = told("t", code, "23000", "");
            let named = matches!(
                error,
                DatabaseError::Constraint { foreign_key, .. } if foreign_key == reference
            );
            assert!(named, "{code}: {error:?}");
        }
        let full = told(
            "t",
            1005,
            "HY000",
            "Can't create table `a`.`b` (errno: 28 \"No space left on device\")",
        );
        assert!(matches!(full, DatabaseError::Other(_)), "{full:?}");
    }
}
