//! `init`: makes a database the head of a company.

use branchline_core::books::IdentityBook;
use branchline_core::head::Head;
use branchline_core::identity::{Incarnation, OfficeName};
use branchline_core::port::{Database, Finding};
use branchline_database::AnyDatabase;
use clap::Args;

use super::Context;
use super::reach::{Reach, declare};
use crate::config::{
    self, IN_THE_CLEAR, RoleName, TransportSettings, is_in_the_clear, write_private,
};
use crate::driver::random;
use crate::exit::{Failure, Outcome};
use crate::office::{OWN_SOON, own};
use crate::plan::{self, outlook, rules::Rules};
use crate::say;

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
    #[command(flatten)]
    reach: Reach,
}

impl Init {
    /// Does it.
    pub async fn run(mut self, context: &Context) -> Outcome<u8> {
        let name = OfficeName::new(self.name.clone())
            .map_err(|error| Failure::usage(error.to_string()))?;
        let database = absolute(&self.database)?;
        self.reach.check()?;
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
        let transport = self.reach.transport(&context.config)?;
        let tables = Some(self.tables.as_str());
        let text = config::compose(&name, RoleName::Head, &database, &transport.keys, tables);
        let settings = config::parse(&context.config, &text)?;
        if let TransportSettings::Amqp(place) = &settings.transport
            && is_in_the_clear(&place.url)
        {
            let (problem, advice) = IN_THE_CLEAR;
            warnings.push(Finding {
                fatal: false,
                table: None,
                problem: problem.into(),
                advice: advice.into(),
            });
        }
        declare(&settings).await?;
        let prepared = db.prepare().await;
        prepared.map_err(|error| Failure::from(error).at(place(&database)))?;
        let known = branchline_core::office::Identity::load(&mut db).await.ok();
        match known {
            // It was cut short; or it runs, under another configuration.
            Some((identity, true)) if identity.name == name => own(&mut db, OWN_SOON).await?,
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
        transport.write()?;
        write_private(&context.config, &text)?;
        let tables: Vec<&str> = schema
            .tables
            .iter()
            .map(|table| table.name.as_str())
            .collect();
        let not_carried = outlook::not_carried(&inspection, &schema);
        let not_carried: Vec<_> = not_carried.iter().map(outlook::left_out_to_json).collect();
        let document = serde_json::json!({
            "office": name, "role": "head", "database": { "engine": engine, "version": version },
            "tables": tables, "config": context.config, "not_carried": not_carried,
            "warnings": warnings.iter().map(|w| serde_json::json!({ "table": w.table, "problem": w.problem, "advice": w.advice })).collect::<Vec<_>>(),
        });
        for warning in &warnings {
            say::say(format_args!("note: {}", plan::tell(warning)));
        }
        for told in outlook::tell_not_carried(&document) {
            say::say(format_args!("note: {told}"));
        }
        context.show(&document, || {
            format!(
                "{name} is the head now ({engine} {version}): {} tables are shared, capture is installed, {} is written.\n\
                 Next: `branchline invite NAME` for each branch, and `branchline run` here.",
                tables.len(),
                context.config.display()
            )
        })?;
        Ok(0)
    }
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

/// A database address as it may be shown: without user, password and parameters.
pub fn place(database: &str) -> String {
    let (scheme, rest) = database.split_once("://").unwrap_or(("", database));
    let rest = rest.split('?').next().unwrap_or_default();
    let shown = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    match scheme {
        "" => format!("database {shown}"),
        _ => format!("database {scheme}://{shown}"),
    }
}
