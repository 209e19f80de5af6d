//! The configuration: what was typed ([`ConfigFile`]), then what it means ([`Settings`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use branchline_core::evolution::Follow;
use branchline_core::identity::OfficeName;
use branchline_core::retention::Retention;
use branchline_database::AnyDatabase;
use branchline_transport::amqp::QueueKind;
use serde::Deserialize;

use crate::exit::{Failure, Outcome, io};
use crate::plan::rules::{Rules, TableSection};
use crate::plan::{PlanSettings, TableList};

/// The fanout exchange that branches publish to.
pub const HEAD_EXCHANGE: &str = "HEAD_EXCHANGE";
/// The fanout exchange that the head publishes to.
pub const BRANCHES_EXCHANGE: &str = "BRANCHES_EXCHANGE";
/// What queue names begin with.
pub const QUEUE_PREFIX: &str = "branchline.";

/// A value, or the file that holds it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "this must be a text, or { file = \"NAME\" }")]
enum Secret {
    Value(String),
    File(SecretFile),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretFile {
    file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    office: OfficeSection,
    transport: TransportSection,
    #[serde(default)]
    api: ApiSection,
    #[serde(default)]
    sync: SyncSection,
    #[serde(default)]
    retention: RetentionSection,
    #[serde(default)]
    plan: PlanSection,
    #[serde(default)]
    tables: BTreeMap<String, TableSection>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanSection {
    tables: Option<String>,
    schema: Option<FollowWord>,
}

/// What a changed table means, as a word.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FollowWord {
    Follow,
    Ask,
    Refuse,
}

impl From<FollowWord> for Follow {
    fn from(word: FollowWord) -> Self {
        match word {
            FollowWord::Follow => Self::Follow,
            FollowWord::Ask => Self::Ask,
            FollowWord::Refuse => Self::Refuse,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfficeSection {
    name: OfficeName,
    role: RoleName,
    database: Option<Secret>,
}

/// Which office this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// The head.
    Head,
    /// A branch.
    Branch,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransportSection {
    amqp: Option<Secret>,
    head_exchange: Option<String>,
    branches_exchange: Option<String>,
    queue: Option<String>,
    queue_kind: Option<QueueKindName>,
    heartbeat_seconds: Option<u16>,
    listen: Option<String>,
    advertise: Option<String>,
    connect: Option<String>,
    pin: Option<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QueueKindName {
    Classic,
    Quorum,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiSection {
    listen: Option<String>,
}

/// How long an office keeps what it may be asked for again.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionSection {
    absent_days: Option<u32>,
    recovery_days: Option<u32>,
    gigabytes: Option<u32>,
}

impl RetentionSection {
    fn checked(self) -> Outcome<Retention> {
        const DAY_MS: i64 = 24 * 60 * 60 * 1000;
        let default = Retention::default();
        let days = |days: Option<u32>, or| days.map_or(or, |days| i64::from(days) * DAY_MS);
        let retention = Retention {
            absent_ms: days(self.absent_days, default.absent_ms),
            recovery_ms: days(self.recovery_days, default.recovery_ms),
            bytes: self
                .gigabytes
                .map_or(default.bytes, |gigabytes| u64::from(gigabytes) << 30),
        };
        if retention.recovery_ms > retention.absent_ms {
            return Err(Failure::usage(
                "[retention]: `recovery_days` must not exceed `absent_days`",
            ));
        }
        Ok(retention)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SyncSection {
    #[serde(default)]
    mode: Mode,
}

/// When data moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As soon as it can.
    #[default]
    Live,
    /// When asked.
    Manual,
}

impl Mode {
    /// The word for scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Manual => "manual",
        }
    }
}

/// How envelopes travel.
#[derive(Clone)]
pub enum TransportSettings {
    /// By RabbitMQ.
    Amqp(AmqpPlace),
    /// The head listens.
    Listen {
        /// Where.
        address: String,
        /// What branches are told.
        advertise: Option<String>,
        /// Certificate and key files.
        certificate: Option<(PathBuf, PathBuf)>,
    },
    /// A branch connects.
    Connect {
        /// Where the head is.
        url: String,
        /// The head's certificate, by its hash.
        pin: Option<String>,
        /// An authority's certificate file.
        ca: Option<PathBuf>,
    },
}

/// Where in a broker.
#[derive(Clone)]
pub struct AmqpPlace {
    /// The broker's address, with the user's name and password.
    pub url: String,
    /// The fanout exchange that branches publish to.
    pub head_exchange: String,
    /// The fanout exchange that the head publishes to.
    pub branches_exchange: String,
    /// This office's queue.
    pub queue: String,
    /// What kind of queues the head declares.
    pub queue_kind: QueueKind,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u16,
    /// Certificates, for `amqps://`.
    pub tls: branchline_transport::amqp::TlsFiles,
}

impl TransportSettings {
    /// The word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Amqp(_) => "amqp",
            Self::Listen { .. } | Self::Connect { .. } => "direct",
        }
    }
}

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

/// Refuses keys that would mean nothing: whoever wrote them counts on them.
fn refuse_idle(typed: &TransportSection, amqp: bool) -> Outcome<()> {
    let refuse = |told: &str| Err(Failure::usage(format!("transport.{told}")));
    match (&typed.certificate, &typed.key) {
        (Some(_), None) => return refuse("certificate needs `key` beside it"),
        (None, Some(_)) => return refuse("key needs `certificate` beside it"),
        _ => {}
    }
    if typed.pin.is_some() && typed.ca.is_some() {
        return refuse(
            "pin and `ca` cannot stand together: the certificate is known by its hash, or by an authority",
        );
    }
    let broker = [
        ("head_exchange", typed.head_exchange.is_some()),
        ("branches_exchange", typed.branches_exchange.is_some()),
        ("queue", typed.queue.is_some()),
        ("queue_kind", typed.queue_kind.is_some()),
        ("heartbeat_seconds", typed.heartbeat_seconds.is_some()),
    ];
    let (listen, connect) = (typed.listen.is_some(), typed.connect.is_some());
    let idle = |keys: &[(&'static str, bool)]| {
        let found = keys.iter().find(|(_, typed)| *typed);
        found.map(|(key, _)| *key)
    };
    if !amqp && let Some(key) = idle(&broker) {
        return refuse(&format!("{key} means something with `amqp` only"));
    }
    if !listen && typed.advertise.is_some() {
        return refuse("advertise means something with `listen` only");
    }
    if !connect && typed.pin.is_some() {
        return refuse("pin means something with `connect` only");
    }
    if listen && typed.ca.is_some() {
        return refuse("ca means nothing with `listen`: branches are known by their own keys");
    }
    if connect && typed.certificate.is_some() {
        return refuse(
            "certificate means nothing with `connect`: a branch is known by its own key",
        );
    }
    Ok(())
}

fn transport(
    file: &Path,
    office: &OfficeSection,
    typed: TransportSection,
) -> Outcome<TransportSettings> {
    let beside = |path: PathBuf| file.parent().unwrap_or(Path::new(".")).join(path);
    // One machine may run offices with and without a broker: the environment speaks to those with.
    let without_broker =
        typed.amqp.is_none() && (typed.listen.is_some() || typed.connect.is_some());
    let amqp = match from_environment("BRANCHLINE_AMQP") {
        Some(url) if !without_broker => Some(url),
        _ => reveal(file, typed.amqp.clone(), "transport.amqp")?,
    };
    let tls = branchline_transport::amqp::TlsFiles {
        ca: typed.ca.clone().map(beside),
        cert: typed.certificate.clone().map(beside),
        key: typed.key.clone().map(beside),
    };
    refuse_idle(&typed, amqp.is_some())?;
    match (amqp, typed.listen, typed.connect, office.role) {
        (Some(url), None, None, _) => Ok(TransportSettings::Amqp(AmqpPlace {
            url,
            head_exchange: typed.head_exchange.unwrap_or_else(|| HEAD_EXCHANGE.into()),
            branches_exchange: typed
                .branches_exchange
                .unwrap_or_else(|| BRANCHES_EXCHANGE.into()),
            queue: typed
                .queue
                .unwrap_or_else(|| format!("{QUEUE_PREFIX}{}", office.name)),
            queue_kind: match typed.queue_kind {
                Some(QueueKindName::Quorum) => QueueKind::Quorum,
                _ => QueueKind::Classic,
            },
            heartbeat_seconds: typed.heartbeat_seconds.unwrap_or(10),
            tls,
        })),
        (None, Some(address), None, RoleName::Head) => Ok(TransportSettings::Listen {
            address,
            advertise: typed.advertise,
            certificate: typed
                .certificate
                .zip(typed.key)
                .map(|(cert, key)| (beside(cert), beside(key))),
        }),
        (None, None, Some(url), RoleName::Branch) => Ok(TransportSettings::Connect {
            url,
            pin: typed.pin,
            ca: typed.ca.map(beside),
        }),
        _ => Err(Failure::usage(
            "[transport] needs just one of `amqp` (both), `listen` (head) and `connect` (branch)"
                .to_string(),
        )),
    }
}

/// Whether HOST or HOST:PORT is this machine by its own names. Any other name may be one that somebody else has point here.
pub fn names_this_machine(place: &str) -> bool {
    let name = match place.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    };
    let loopback = |address: std::net::IpAddr| address.is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(loopback)
}

/// Whether a broker's address sends its password and the data over a network that others may read.
pub fn is_in_the_clear(amqp: &str) -> bool {
    let Some(rest) = amqp.strip_prefix("amqp://") else {
        return false;
    };
    let place = rest.split(['/', '?']).next().unwrap_or_default();
    let host = place.rsplit_once('@').map_or(place, |(_, host)| host);
    !host.is_empty() && !names_this_machine(host)
}

/// What is told of such an address, and advised.
pub const IN_THE_CLEAR: (&str, &str) = (
    "the broker is on another machine, and what is said to it goes over the network in the clear, its password too",
    "use amqps://, unless the network between is protected otherwise",
);

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

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Outcome<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let doing = || format!("cannot write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let draft = path.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&draft).map_err(io(doing()))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        drop(std::fs::remove_file(&draft));
    }
    written.map_err(io(doing()))
}

/// Writes another list of shared tables into a configuration file; everything else there stays, comments too.
pub fn set_table_list(path: &Path, list: &str) -> Outcome<()> {
    let text = std::fs::read_to_string(path)
        .map_err(io(format_args!("cannot read {}", path.display())))?;
    write_private(path, &with_table_list(path, &text, list)?)
}

fn with_table_list(path: &Path, text: &str, list: &str) -> Outcome<String> {
    let mut document: toml_edit::DocumentMut = text
        .parse()
        .map_err(|_| Failure::usage(format!("the configuration {} is no TOML", path.display())))?;
    let plan = document
        .entry("plan")
        .or_insert_with(|| toml_edit::Item::Table(toml_edit::Table::new()));
    let Some(plan) = plan.as_table_like_mut() else {
        return Err(Failure::usage(format!(
            "configuration {}: `plan` is no table",
            path.display()
        )));
    };
    let mut value = toml_edit::Value::from(list);
    if let Some(known) = plan.get("tables").and_then(toml_edit::Item::as_value) {
        *value.decor_mut() = known.decor().clone();
    }
    plan.insert("tables", toml_edit::Item::Value(value));
    Ok(document.to_string())
}

/// The text of a new configuration file; a head's has the tables that it shares.
pub fn compose(
    name: &OfficeName,
    role: RoleName,
    database: &str,
    transport: &[(&str, String)],
    tables: Option<&str>,
) -> String {
    let quote = |text: &str| toml_edit::Value::from(text).to_string();
    let role = if role == RoleName::Head {
        "head"
    } else {
        "branch"
    };
    let mut text = format!(
        "# Branchline's configuration of one office. It may hold passwords: keep it readable to its owner only.\n\
         # A value may also be {{ file = \"...\" }}, or come from BRANCHLINE_DATABASE and BRANCHLINE_AMQP.\n\n\
         [office]\nname = {}\nrole = \"{role}\"\ndatabase = {}\n\n[transport]\n",
        quote(name.as_str()),
        quote(database),
    );
    for (key, value) in transport {
        text.push_str(&format!("{key} = {}\n", quote(value)));
    }
    text.push_str(
        "\n[api]\nlisten = \"127.0.0.1:0\"          # for commands beside `run`; 0: a free port\n\n\
         [sync]\nmode = \"live\"                   # live | manual\n",
    );
    if let Some(tables) = tables {
        text.push_str(&format!(
            "\n# Which tables are shared (names and patterns with *, separated by commas; ! excludes), and what a changed\n\
             # table means. `branchline plan` shows, adds and removes.\n\
             [plan]\ntables = {}\nschema = \"follow\"               # follow | ask | refuse\n",
            quote(tables)
        ));
        text.push_str(
            "\n# The plan's rules, for all tables and for single ones ([tables.NAME]).\n[tables.\"*\"]\n\
             direction = \"both\"              # both | up | down\n\
             conflict = \"newest\"             # newest | head | branch | merge | hold\n\
             insert = \"hold\"                 # two inserts of one key: hold | newest (the key is natural)\n",
        );
    }
    text
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

    #[test]
    fn the_list_of_tables_is_replaced_and_all_else_stays() {
        let text = "# mine\n[office]\nname = \"HO\" # here\n\n[plan] # what is shared\ntables = \"a\"   # and why\nschema = \"ask\"\n";
        let edit = |text: &str| with_table_list(Path::new("test.toml"), text, "a,\"b\"").unwrap();
        let edited = edit(text);
        assert_eq!(edited, text.replace("\"a\"", "'a,\"b\"'"));
        let without = "[office]\nname = \"HO\"\n";
        let edited = edit(without);
        assert!(
            edited.starts_with(without) && edited.contains("[plan]\ntables = "),
            "{edited}"
        );
    }

    #[test]
    fn only_this_machines_own_names_are_its() {
        for host in [
            "127.0.0.1:80",
            "127.8.9.1",
            "localhost:8080",
            "LOCALHOST",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in [
            "127.evil.com:80",
            "127.0.0.1.evil.com",
            "localhost.evil.com",
            "10.0.0.1:80",
            "[::2]:80",
            "[",
            "",
        ] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn a_broker_elsewhere_without_tls_is_noticed() {
        for clear in [
            "amqp://u:p@broker.example/v",
            "amqp://10.0.0.1:5672",
            "amqp://u:p@127.evil.com?x=1",
        ] {
            assert!(is_in_the_clear(clear), "{clear}");
        }
        for fine in [
            "amqps://u:p@broker.example/v",
            "amqp://u:p@localhost:5672/v",
            "amqp://[::1]/v",
            "amqp:///v",
        ] {
            assert!(!is_in_the_clear(fine), "{fine}");
        }
    }

    #[test]
    fn keys_that_would_mean_nothing_are_refused_by_name() {
        let listen = "listen = \"127.0.0.1:1\"\n";
        let connect = "connect = \"ws://127.0.0.1:1\"\n";
        for (role, with, keys, told) in [
            ("head", listen, "certificate = \"c\"", "needs `key`"),
            ("head", listen, "key = \"k\"", "needs `certificate`"),
            ("head", listen, "queue_kind = \"quorum\"", "queue_kind"),
            ("head", listen, "ca = \"c\"", "ca"),
            ("branch", connect, "pin = \"p\"\nca = \"c\"", "pin"),
            ("branch", connect, "queue = \"q\"", "queue"),
            ("branch", connect, "advertise = \"a:1\"", "advertise"),
            ("head", "amqp = \"amqp://h\"\n", "pin = \"p\"", "pin"),
        ] {
            let office =
                format!("[office]\nname = \"x\"\nrole = \"{role}\"\ndatabase = \"sqlite:a\"\n");
            let good = format!("{office}[transport]\n{with}");
            assert!(parse(&good).is_ok(), "{good}");
            let failure = parse(&format!("{good}{keys}")).err().unwrap();
            assert!(failure.message.contains(told), "{keys}: {failure}");
            assert_eq!(failure.code, crate::exit::USAGE);
        }
    }

    #[test]
    fn two_transports_are_refused() {
        let text = "[office]\nname = \"HO\"\nrole = \"head\"\ndatabase = \"sqlite:a\"\n[transport]\nlisten = \"127.0.0.1:1\"\namqp = \"amqp://x\"";
        assert!(parse(text).err().unwrap().message.contains("just one of"));
    }
}
