//! How envelopes travel: by a broker, or directly.

use std::path::{Path, PathBuf};

use branchline_transport::amqp::QueueKind;

use super::file::{OfficeSection, QueueKindName, RoleName, TransportSection};
use super::{from_environment, reveal};
use crate::exit::{Failure, Outcome};

/// The fanout exchange that branches publish to.
pub const HEAD_EXCHANGE: &str = "HEAD_EXCHANGE";
/// The fanout exchange that the head publishes to.
pub const BRANCHES_EXCHANGE: &str = "BRANCHES_EXCHANGE";
/// What queue names begin with.
pub const QUEUE_PREFIX: &str = "branchline.";

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

pub(super) fn transport(
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Settings, parse as parse_file};
    use super::*;

    fn parse(text: &str) -> Outcome<Settings> {
        parse_file(Path::new("test.toml"), text)
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
