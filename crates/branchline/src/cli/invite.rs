//! `invite` and `remove`: branches come and go, and nothing changes at any other office.

use branchline_core::head::{log_of, seats};
use branchline_core::identity::OfficeName;
use branchline_core::office::Identity;
use branchline_core::port::Database;
use branchline_database::AnyDatabase;
use branchline_transport::amqp::{
    branch_permissions, declare_branches, declare_head, delete_branch,
};
use branchline_transport::direct::pin_of;
use clap::Args;

use super::{Context, SHORT};
use crate::api;
use crate::code::{JoinCode, Route};
use crate::config::{self, QUEUE_PREFIX, RoleName, Settings, TransportSettings};
use crate::driver::{now, random};
use crate::exit::{Failure, Outcome, io};
use crate::office::{amqp_settings, read_file};
use crate::say;

/// How long a join code may wait for its first use, in hours.
const CODE_HOURS: u64 = 72;

/// The flags of `invite`.
#[derive(Debug, Args)]
pub struct Invite {
    /// The branch's name.
    name: String,
    /// The broker's address for this branch, with its own user: amqp://USER:PASSWORD@HOST/VHOST. `-` reads it from
    /// standard input, where no other user can see the password.
    #[arg(long)]
    amqp: Option<String>,
    /// Hours until the code expires, if it is not used.
    #[arg(long, default_value_t = CODE_HOURS)]
    expires_hours: u64,
}

impl Invite {
    /// Does it.
    pub async fn run(mut self, context: &Context) -> Outcome<u8> {
        let settings = head_settings(context)?;
        if self.amqp.as_deref() == Some("-") {
            let line = std::io::read_to_string(std::io::stdin())
                .map_err(io("cannot read the broker's address from standard input"))?;
            self.amqp = Some(line.trim().to_string());
        }
        self.check_amqp()?;
        let name = OfficeName::new(self.name.clone())
            .map_err(|error| Failure::usage(error.to_string()))?;
        if name == settings.name {
            return Err(Failure::usage(format!(
                "`{name}` is the head's own name; a branch needs another"
            )));
        }
        let mut db = AnyDatabase::open(&settings.database, false).await?;
        let (identity, _) = Identity::load(&mut db).await?;
        let route = self.route(&settings, &name)?;
        if let TransportSettings::Amqp(place) = &settings.transport {
            let broker = amqp_settings(&settings, place);
            declare_head(&broker).await?;
            declare_branches(&broker, &[queue_of(&name)]).await?;
        }
        let secret: [u8; 32] = random()?;
        let hours = i64::try_from(self.expires_hours.min(24 * 365)).unwrap_or(24);
        let expires = now().plus_millis(hours * 3_600_000);
        seats::invite(&mut db, &name, secret, expires)
            .await?
            .map_err(Failure::usage)?;
        reload(context, &name).await?;
        let code = JoinCode {
            branch: name.clone(),
            head: settings.name.clone(),
            head_key: identity.public_key(),
            secret,
            route,
            log: Some(log_of(&mut db).await?),
        };
        let line = code.to_line()?;
        if matches!(settings.transport, TransportSettings::Amqp(_)) && self.amqp.is_none() {
            say::say(format_args!(
                "note: this code holds the head's own broker user and password; give the branch a user of its own with \
                 `invite {name} --amqp URL`"
            ));
        }
        if let (TransportSettings::Amqp(place), Some(_)) = (&settings.transport, &self.amqp) {
            say::say(format_args!(
                "The branch's broker user needs these rights and no others:\n  {}",
                branch_permissions("VHOST", "USER", &place.head_exchange, &queue_of(&name))
            ));
        }
        context.show(
            &serde_json::json!({ "branch": name, "code": line, "expires_hours": hours }),
            || line.clone(),
        )?;
        Ok(0)
    }

    /// Wrong addresses must not end in a code.
    fn check_amqp(&self) -> Outcome<()> {
        match &self.amqp {
            Some(url) if !url.starts_with("amqp://") && !url.starts_with("amqps://") => {
                Err(Failure::usage(
                    "--amqp: the broker's address must begin with `amqp://` or `amqps://`",
                ))
            }
            _ => Ok(()),
        }
    }

    fn route(&self, settings: &Settings, name: &OfficeName) -> Outcome<Route> {
        match &settings.transport {
            TransportSettings::Amqp(place) => Ok(Route::Amqp {
                url: self.amqp.clone().unwrap_or_else(|| place.url.clone()),
                head_exchange: place.head_exchange.clone(),
                branches_exchange: place.branches_exchange.clone(),
                queue: queue_of(name),
            }),
            TransportSettings::Listen {
                address,
                advertise,
                certificate,
            } => {
                let pin = match certificate {
                    Some((cert, _)) => Some(pin_of(&read_file(cert)?)?.to_string()),
                    None => None,
                };
                let address = advertise.as_ref().unwrap_or(address);
                let nowhere = |host: &str| address.starts_with(host);
                if nowhere("0.0.0.0:") || nowhere("[::]:") || address.ends_with(":0") {
                    return Err(Failure::usage(format!(
                        "branches cannot connect to \"{address}\": set transport.advertise = \"HOST:PORT\" in {} to the address that they reach the head by",
                        settings.file.display()
                    )));
                }
                let scheme = if pin.is_some() { "wss" } else { "ws" };
                Ok(Route::Direct {
                    url: format!("{scheme}://{address}/branchline"),
                    pin,
                })
            }
            TransportSettings::Connect { .. } => Err(Failure::usage("only the head invites")),
        }
    }
}

/// The flags of `remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The branch's name.
    name: String,
}

impl Remove {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = head_settings(context)?;
        let name = OfficeName::new(self.name.clone())
            .map_err(|error| Failure::usage(error.to_string()))?;
        let mut db = AnyDatabase::open(&settings.database, false).await?;
        seats::remove(&mut db, &name)
            .await?
            .map_err(Failure::usage)?;
        reload(context, &name).await?;
        if let TransportSettings::Amqp(place) = &settings.transport {
            delete_branch(&amqp_settings(&settings, place), &queue_of(&name)).await?;
        }
        db.rollback().await?;
        context.show(&serde_json::json!({ "removed": name }), || {
            format!("{name} is taken out; its rows stay where they are; `branchline leave` there takes away what Branchline made")
        })?;
        Ok(0)
    }
}

/// Reads the configuration and insists on a head.
fn head_settings(context: &Context) -> Outcome<Settings> {
    let settings = config::read(&context.config)?;
    if settings.role == RoleName::Head {
        Ok(settings)
    } else {
        Err(Failure::usage(format!(
            "`{}` is a branch; this command is for the head",
            settings.name
        )))
    }
}

fn queue_of(name: &OfficeName) -> String {
    format!("{QUEUE_PREFIX}{name}")
}

/// Tells the running office, if one runs, that a branch's record changed.
async fn reload(context: &Context, name: &OfficeName) -> Outcome<()> {
    if api::address(&context.config).is_some() {
        // An address left behind by a killed process answers nobody; the next start reads the record anyway.
        drop(
            api::call(
                &context.config,
                "POST",
                &format!("/api/reload/{name}"),
                SHORT,
            )
            .await,
        );
    }
    Ok(())
}
