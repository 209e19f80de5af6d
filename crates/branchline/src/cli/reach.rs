//! How branches reach a head: the flags that `init` and `promote` share.

use std::path::{Path, PathBuf};

use branchline_transport::direct::make_certificate;
use clap::Args;

use crate::config::{self, Settings, TransportSettings, from_environment, write_private};
use crate::exit::{Failure, Outcome};
use crate::office::{amqp_settings, beside};

/// The flags.
#[derive(Debug, Args)]
pub struct Reach {
    /// The broker, as the head's own user: amqp://USER:PASSWORD@HOST/VHOST or amqps://... (without it and --listen:
    /// BRANCHLINE_AMQP)
    #[arg(long, conflicts_with = "listen")]
    amqp: Option<String>,
    /// Without a broker: where the head listens for branches, HOST:PORT.
    #[arg(long)]
    listen: Option<String>,
    /// What branches are told to connect to, where that differs from --listen.
    #[arg(long, requires = "listen")]
    advertise: Option<String>,
    /// Kind of the broker's queues.
    #[arg(long, default_value = "classic", value_parser = ["classic", "quorum"])]
    queue_kind: String,
}

impl Reach {
    /// Insists that one of the two is said, and that branches can do something with it.
    pub fn check(&mut self) -> Outcome<()> {
        // One machine may run heads with and without a broker: the environment speaks to those with.
        if self.amqp.is_none() && self.listen.is_none() {
            self.amqp = from_environment("BRANCHLINE_AMQP");
        }
        if self.amqp.is_none() && self.listen.is_none() {
            return Err(Failure::usage(
                "say how branches reach the head: --amqp URL (RabbitMQ) or --listen HOST:PORT (no broker)",
            ));
        }
        for (flag, address) in [("--listen", &self.listen), ("--advertise", &self.advertise)] {
            if let Some(address) = address.as_ref().filter(|address| !is_place(address)) {
                return Err(Failure::usage(format!(
                    "{flag} {address} is not HOST:PORT, such as 0.0.0.0:7443"
                )));
            }
        }
        Ok(())
    }

    /// The keys of `[transport]`, and the files that they name.
    pub fn transport(&self, config: &Path) -> Outcome<Wanted> {
        let mut transport = Vec::new();
        let mut files = Vec::new();
        if let Some(url) = &self.amqp {
            transport.push(("amqp", url.clone()));
            transport.push(("head_exchange", config::HEAD_EXCHANGE.to_string()));
            transport.push(("branches_exchange", config::BRANCHES_EXCHANGE.to_string()));
            transport.push(("queue_kind", self.queue_kind.clone()));
        }
        if let Some(listen) = &self.listen {
            files = certificate(config, listen, self.advertise.as_deref())?;
            let name = |extension| {
                let path = beside(config, extension);
                path.file_name().unwrap_or_default().display().to_string()
            };
            transport.push(("listen", listen.clone()));
            if let Some(advertise) = &self.advertise {
                transport.push(("advertise", advertise.clone()));
            }
            transport.push(("certificate", name("cert.pem")));
            transport.push(("key", name("key.pem")));
        }
        Ok(Wanted {
            keys: transport,
            files,
        })
    }
}

/// How branches will reach the head. Nothing is written until [`Wanted::write`], so that what fails before leaves nothing.
pub struct Wanted {
    /// The keys of `[transport]`.
    pub keys: Vec<(&'static str, String)>,
    files: Vec<(PathBuf, String)>,
}

impl Wanted {
    /// Writes the files that the keys name.
    pub fn write(&self) -> Outcome<()> {
        self.files
            .iter()
            .try_for_each(|(path, text)| write_private(path, text))
    }
}

/// Whether this is a host and a port.
fn is_place(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Declares exchanges and the head's queue before anything is written, so that a broker that cannot be used leaves
/// nothing half made.
pub async fn declare(settings: &Settings) -> Outcome<()> {
    if let TransportSettings::Amqp(place) = &settings.transport {
        branchline_transport::amqp::declare_head(&amqp_settings(settings, place)).await?;
    }
    Ok(())
}

/// Makes a certificate and its key, to be written beside the configuration.
fn certificate(
    config: &Path,
    listen: &str,
    advertise: Option<&str>,
) -> Outcome<Vec<(PathBuf, String)>> {
    let host = |address: &str| {
        address
            .rsplit_once(':')
            .map_or(address, |(host, _)| host)
            .trim_matches(['[', ']'])
            .to_string()
    };
    let mut names = vec![
        host(advertise.unwrap_or(listen)),
        "localhost".to_string(),
        "127.0.0.1".to_string(),
    ];
    names.dedup();
    let made = make_certificate(&names)?;
    Ok(vec![
        (beside(config, "cert.pem"), made.cert_pem),
        (beside(config, "key.pem"), made.key_pem),
    ])
}
