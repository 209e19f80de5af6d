//! The configuration: what was typed ([`ConfigFile`]), then what it means ([`Settings`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use branchline_core::evolution::Follow;
use branchline_core::identity::OfficeName;
use branchline_core::retention::Retention;
use branchline_database::AnyDatabase;

use crate::exit::{Failure, Outcome, io};
use crate::plan::rules::{Rules, TableSection};
use crate::plan::{PlanSettings, TableList};

mod file;
mod transport;
mod write;

use file::{ConfigFile, PlanSection, Secret, SecretFile};
pub use file::{Mode, RoleName};
use transport::transport;
pub use transport::{
    AmqpPlace, BRANCHES_EXCHANGE, HEAD_EXCHANGE, IN_THE_CLEAR, QUEUE_PREFIX, TransportSettings,
    is_in_the_clear, names_this_machine,
};
pub use write::{compose, set_table_list, write_private};

/// The checked configuration.
#[derive(Clone)]
pub struct Settings {
    /// The configuration file.
    pub file: PathBuf,
    /// This office's name.
    pub name: OfficeName,
    /// Which office this is.
    pub role: RoleName,
    /// The database's address. A secret: it may hold a password.
    pub database: String,
    /// How envelopes travel.
    pub transport: TransportSettings,
    /// Where the loopback API listens.
    pub api: std::net::SocketAddr,
    /// When data moves.
    pub mode: Mode,
    /// What is shared, and how (head).
    pub plan: PlanSettings,
    /// How long what may be asked for again is kept.
    pub retention: Retention,
}

/// Reads and checks a configuration file.
pub fn read(file: &Path) -> Outcome<Settings> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let advice = "run `branchline init` (head) or `branchline join` (branch), or name another file with --config";
        Failure::usage(format!("cannot read the configuration {}: {error}; {advice}", file.display()))
    })?;
    parse(file, &text)
}

/// Checks the text of a configuration file.
pub fn parse(file: &Path, text: &str) -> Outcome<Settings> {
    let typed: ConfigFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        // Only the parser's own words: the line that it would quote may hold a password.
        Failure::usage(format!(
            "the configuration {} is wrong in line {line}: {}",
            file.display(),
            error.message()
        ))
    })?;
    check(file, typed)
        .map_err(|failure| failure.at(format_args!("configuration {}", file.display())))
}

fn check(file: &Path, typed: ConfigFile) -> Outcome<Settings> {
    let database = from_environment("BRANCHLINE_DATABASE")
        .map_or_else(|| reveal(file, typed.office.database.clone(), "office.database"), |value| Ok(Some(value)))?
        .ok_or_else(|| {
            Failure::usage("office.database is missing: write it there, or set BRANCHLINE_DATABASE in the environment")
        })?;
    AnyDatabase::check_address(&database)
        .map_err(|told| Failure::usage(format!("office.database: {told}")))?;
    let api = typed.api.listen.as_deref().unwrap_or("127.0.0.1:0");
    let api: std::net::SocketAddr = api.parse().map_err(|_| {
        Failure::usage(format!(
            "api.listen = \"{api}\" is not an address like 127.0.0.1:8080"
        ))
    })?;
    if !api.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "api.listen = \"{api}\" must be a loopback address: this interface has no login yet"
        )));
    }
    let transport = transport(file, &typed.office, typed.transport)?;
    Ok(Settings {
        file: file.to_path_buf(),
        name: typed.office.name,
        role: typed.office.role,
        database,
        transport,
        api,
        mode: typed.sync.mode,
        retention: typed.retention.checked()?,
        plan: plan(&typed.plan, typed.tables)?,
    })
}

fn plan(typed: &PlanSection, tables: BTreeMap<String, TableSection>) -> Outcome<PlanSettings> {
    let list = typed.tables.as_deref().map(TableList::parse).transpose();
    Ok(PlanSettings {
        tables: list.map_err(|failure| failure.at("plan.tables"))?,
        follow: typed.schema.map(Follow::from).unwrap_or_default(),
        rules: Rules::new(tables),
    })
}

/// A value of the environment; an empty one is none.
pub fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn reveal(file: &Path, secret: Option<Secret>, field: &str) -> Outcome<Option<String>> {
    match secret {
        None => Ok(None),
        Some(Secret::Value(value)) => Ok(Some(value)),
        Some(Secret::File(SecretFile { file: holder })) => {
            let path = file.parent().unwrap_or(Path::new(".")).join(holder);
            let text = std::fs::read_to_string(&path).map_err(io(format_args!(
                "{field} names the file {}, which cannot be read",
                path.display()
            )))?;
            Ok(Some(text.trim().to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parse(text: &str) -> Outcome<Settings> {
        super::parse(Path::new("test.toml"), text)
    }

    #[test]
    fn a_written_configuration_is_read_back() {
        let name = OfficeName::new("HO").unwrap();
        let text = compose(
            &name,
            RoleName::Head,
            "postgres://u:p@h/d",
            &[("listen", "127.0.0.1:7443".into())],
            Some("*,!audit_*"),
        );
        let settings = parse(&text).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(settings.database, "postgres://u:p@h/d");
        assert!(matches!(
            settings.transport,
            TransportSettings::Listen { .. }
        ));
        let tables = settings.plan.tables.unwrap();
        assert!(tables.choose("sales") && !tables.choose("audit_log"));
        assert_eq!(settings.plan.follow, Follow::Follow);
    }

    #[test]
    fn unknown_keys_are_named() {
        let text = "[office]\nname = \"HO\"\nrole = \"head\"\ndatabase = \"sqlite:a\"\ncolour = 1\n[transport]\nlisten = \"127.0.0.1:1\"";
        let failure = parse(text).err().unwrap();
        assert!(failure.message.contains("colour"), "{failure}");
        assert_eq!(failure.code, crate::exit::USAGE);
    }
}
