//! How branches reach a head: the flags that `init` and `promote` share.

use std::path::Path;

use branchline_transport::direct::make_certificate;
use clap::Args;

use crate::config::{self, Settings, TransportSettings, write_private};
use crate::exit::{Failure, Outcome};
use crate::office::{amqp_settings, beside};

/// The flags.
#[derive(Debug, Args)]
pub struct Reach {
    /// The broker, as the head's own user: amqp://USER:PASSWORD@HOST/VHOST or amqps://...
    #[arg(
        long,
        env = "BRANCHLINE_AMQP",
        hide_env_values = true,
        conflicts_with = "listen"
    )]
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
    /// Insists that one of the two is said.
    pub fn check(&self) -> Outcome<()> {
        if self.amqp.is_none() && self.listen.is_none() {
            return Err(Failure::usage(
                "say how branches reach the head: --amqp URL (RabbitMQ) or --listen HOST:PORT (no broker)",
            ));
        }
        Ok(())
    }

    /// The keys of `[transport]`. Makes a certificate beside the configuration where the head is to listen.
    pub fn transport(&self, config: &Path) -> Outcome<Vec<(&'static str, String)>> {
        let mut transport = Vec::new();
        if let Some(url) = &self.amqp {
            transport.push(("amqp", url.clone()));
            transport.push(("head_exchange", config::HEAD_EXCHANGE.to_string()));
            transport.push(("branches_exchange", config::BRANCHES_EXCHANGE.to_string()));
            transport.push(("queue_kind", self.queue_kind.clone()));
        }
        if let Some(listen) = &self.listen {
            let (cert, key) = certificate(config, listen, self.advertise.as_deref())?;
            transport.push(("listen", listen.clone()));
            if let Some(advertise) = &self.advertise {
                transport.push(("advertise", advertise.clone()));
            }
            transport.push(("certificate", cert));
            transport.push(("key", key));
        }
        Ok(transport)
    }
}

/// Declares exchanges and the head's queue before anything is written, so that a broker that cannot be used leaves
/// nothing half made.
pub async fn declare(settings: &Settings) -> Outcome<()> {
    if let TransportSettings::Amqp(place) = &settings.transport {
        branchline_transport::amqp::declare_head(&amqp_settings(settings, place)).await?;
    }
    Ok(())
}

/// Makes a certificate beside the configuration and returns the two files' names.
fn certificate(config: &Path, listen: &str, advertise: Option<&str>) -> Outcome<(String, String)> {
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
    let (cert, key) = (beside(config, "cert.pem"), beside(config, "key.pem"));
    write_private(&cert, &made.cert_pem)?;
    write_private(&key, &made.key_pem)?;
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    Ok((name(&cert), name(&key)))
}
