//! `leave`: takes this office out and restores its database.

use std::time::Duration;

use branchline_core::port::Database;
use branchline_database::AnyDatabase;
use clap::Args;

use super::{Context, SHORT};
use crate::exit::Outcome;
use crate::office::{Lock, OWN_SOON, Office, beside, own};
use crate::request::Ask;
use crate::{api, config};

/// How long the head is tried to be told.
const TELL_HEAD: Duration = Duration::from_secs(3);

/// The flags of `leave`.
#[derive(Debug, Args)]
pub struct Leave {
    /// Keep the configuration file.
    #[arg(long)]
    keep_config: bool,
}

impl Leave {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = config::read(&context.config)?;
        match Lock::take_soon(&context.config).await? {
            None => drop(api::call(&context.config, "POST", "/api/leave", SHORT).await?),
            Some(_lock) => {
                let told = async {
                    let office = Office::start(&settings, OWN_SOON).await?;
                    tokio::time::sleep(TELL_HEAD.min(Duration::from_millis(500))).await;
                    let left = office.handle().ask(Ask::Leave).await;
                    office.stop().await;
                    left
                };
                if tokio::time::timeout(SHORT, told).await.is_err()
                    || self.still_there(&settings).await?
                {
                    let mut db = AnyDatabase::open(&settings.database, false).await?;
                    // What another configuration's office runs on is not ours to take away.
                    own(&mut db, OWN_SOON).await?;
                    db.uninstall().await?;
                }
            }
        }
        if !self.keep_config {
            for extension in ["cert.pem", "key.pem", "lock", "api", "token", "branch"] {
                drop(std::fs::remove_file(beside(&context.config, extension)));
            }
            drop(std::fs::remove_file(&context.config));
        }
        context.show(&serde_json::json!({ "left": settings.name }), || {
            format!("{} has left: everything that Branchline made in its database is gone, the tables and rows stay", settings.name)
        })?;
        Ok(0)
    }

    async fn still_there(&self, settings: &config::Settings) -> Outcome<bool> {
        let mut db = AnyDatabase::open(&settings.database, false).await?;
        Ok(branchline_core::office::Identity::load(&mut db)
            .await
            .is_ok())
    }
}
