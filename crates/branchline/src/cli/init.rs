//! `init`: makes a database the head of a company.

use std::path::Path;

use branchline_core::books::IdentityBook;
use branchline_core::head::Head;
use branchline_core::identity::{Incarnation, OfficeName};
use branchline_core::port::Database;
use branchline_database::AnyDatabase;
use branchline_transport::direct::make_certificate;
use clap::Args;

use super::Context;
use crate::config::{self, RoleName, TransportSettings, write_private};
use crate::driver::random;
use crate::exit::{Failure, Outcome};
use crate::office::{amqp_settings, beside};
use crate::plan::{self, rules::Rules};

/// The flags of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Which office this is; the head.
    #[arg(long, default_value = "head", value_parser = ["head"])]
    role: String,
    /// The head's name.
    #[arg(long, default_value = "HO")]
    name: String,
    /// The database: postgres://USER:PASSWORD@HOST/NAME, mysql://USER:PASSWORD@HOST/NAME or sqlite:PATH (or BRANCHLINE_DATABASE).
    #[arg(long, env = "BRANCHLINE_DATABASE", hide_env_values = true)]
    database: String,
    /// The tables to share: `*`, or names and patterns separated by commas; `!` excludes.
    #[arg(long)]
    tables: String,
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

impl Init {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let name = OfficeName::new(self.name.clone())
            .map_err(|error| Failure::usage(error.to_string()))?;
        let database = absolute(&self.database)?;
        if self.amqp.is_none() && self.listen.is_none() {
            return Err(Failure::usage(
                "say how branches reach the head: --amqp URL (RabbitMQ) or --listen HOST:PORT (no broker)",
            ));
        }
        if context.config.exists() {
            let file = context.config.display();
            return Err(Failure::usage(format!(
                "{file} exists already; remove it, or name another file with --config"
            )));
        }
        let mut db = AnyDatabase::open(&database, false).await?;
        let (engine, version) = db.describe().await?;
        let inspection = db.inspect().await?;
        let (schema, mut warnings) = plan::choose(&inspection, &self.tables, &Rules::default())?;
        warnings.extend(plan::colliding_keys(&engine, &schema));
        self.declare(context, &name).await?;
        db.prepare().await?;
        let known = branchline_core::office::Identity::load(&mut db).await.ok();
        match known {
            Some((identity, true)) if identity.name == name => {}
            Some((identity, _)) => {
                return Err(Failure::usage(format!(
                    "this database already belongs to office `{}`; `branchline leave` takes it out first",
                    identity.name
                )));
            }
            None => {
                let identity = IdentityBook {
                    name: name.clone(),
                    head: true,
                    secret_key: random()?,
                };
                let incarnation = Incarnation(*uuid::Uuid::now_v7().as_bytes());
                Head::found(&mut db, &identity, incarnation, &schema).await?;
            }
        }
        let schema = branchline_core::books::newest_schema(&mut db)
            .await?
            .unwrap_or(schema);
        db.install(&schema).await?;
        self.write_config(context, &name)?;
        let tables: Vec<&str> = schema
            .tables
            .iter()
            .map(|table| table.name.as_str())
            .collect();
        let document = serde_json::json!({
            "office": name, "role": "head", "database": { "engine": engine, "version": version },
            "tables": tables, "config": context.config,
            "warnings": warnings.iter().map(|w| serde_json::json!({ "table": w.table, "problem": w.problem, "advice": w.advice })).collect::<Vec<_>>(),
        });
        for warning in &warnings {
            eprintln!("note: {}", plan::tell(warning));
        }
        context.show(&document, || {
            format!(
                "{name} is the head now ({engine} {version}): {} tables are shared, capture is installed, {} is written.\n\
                 Next: `branchline invite NAME` for each branch, and `branchline run` here.",
                tables.len(),
                context.config.display()
            )
        });
        Ok(0)
    }

    fn write_config(&self, context: &Context, name: &OfficeName) -> Outcome<()> {
        write_private(&context.config, &self.config_text(context, name)?)
    }

    fn config_text(&self, context: &Context, name: &OfficeName) -> Outcome<String> {
        let mut transport = Vec::new();
        if let Some(url) = &self.amqp {
            transport.push(("amqp", url.clone()));
            transport.push(("head_exchange", config::HEAD_EXCHANGE.to_string()));
            transport.push(("branches_exchange", config::BRANCHES_EXCHANGE.to_string()));
            transport.push(("queue_kind", self.queue_kind.clone()));
        }
        if let Some(listen) = &self.listen {
            let (cert, key) = certificate(&context.config, listen, self.advertise.as_deref())?;
            transport.push(("listen", listen.clone()));
            if let Some(advertise) = &self.advertise {
                transport.push(("advertise", advertise.clone()));
            }
            transport.push(("certificate", cert));
            transport.push(("key", key));
        }
        Ok(config::compose(
            name,
            RoleName::Head,
            &absolute(&self.database)?,
            &transport,
            Some(&self.tables),
        ))
    }

    /// Declares exchanges and the head's queue before anything is written, so that a broker that cannot be used leaves
    /// nothing half made.
    async fn declare(&self, context: &Context, name: &OfficeName) -> Outcome<()> {
        if self.amqp.is_none() {
            return Ok(());
        }
        let text = self.config_text(context, name)?;
        let settings = config::parse(&context.config, &text)?;
        if let TransportSettings::Amqp(place) = &settings.transport {
            branchline_transport::amqp::declare_head(&amqp_settings(&settings, place)).await?;
        }
        Ok(())
    }
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

/// A database address that does not depend on where a command is started.
pub fn absolute(database: &str) -> Outcome<String> {
    AnyDatabase::check_address(database).map_err(Failure::usage)?;
    match database.strip_prefix("sqlite:") {
        Some(path) if !path.starts_with('/') && path != ":memory:" => {
            let here = std::env::current_dir().map_err(crate::exit::io("the current folder"))?;
            Ok(format!("sqlite:{}", here.join(path).display()))
        }
        _ => Ok(database.to_string()),
    }
}
