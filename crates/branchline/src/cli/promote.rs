//! `promote`: a branch takes the place of a head that is gone.

use branchline_core::books::IdentityBook;
use branchline_core::branch::{Branch, Promotion};
use branchline_core::head::{Head, Wiring};
use branchline_core::identity::OfficeName;
use branchline_core::office::Identity;
use branchline_core::schema::{Schema, Table};
use branchline_core::succession;
use branchline_database::AnyDatabase;
use clap::Args;

use super::Context;
use super::reach::{Reach, Wanted, declare};
use crate::config::{self, RoleName, Settings, write_private};
use crate::driver::{now, random};
use crate::exit::{Failure, Outcome};
use crate::office::{Lock, OWN_SOON, beside, own, prepare, read_file};
use crate::plan::former::Former;
use crate::rewrite;
use crate::say;

/// The flags of `promote`.
#[derive(Debug, Args)]
pub struct Promote {
    /// The head's name; without it, the name of the head that is gone.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl Promote {
    /// Does it.
    pub async fn run(mut self, context: &Context) -> Outcome<u8> {
        self.reach.check()?;
        let settings = config::read(&context.config)?;
        if settings.role == RoleName::Head {
            return Err(Failure::usage(format!(
                "`{}` is the head already",
                settings.name
            )));
        }
        let Some(_lock) = Lock::take(&context.config)? else {
            return Err(Failure::usage(
                "this office is running; stop it first (and the application for a moment, if you can)",
            ));
        };
        let mut db = AnyDatabase::open(&settings.database, false).await?;
        own(&mut db, OWN_SOON).await?;
        prepare(&mut db).await?;
        let (identity, is_head) = Identity::load(&mut db).await?;
        let (name, (text, transport), promotion) = if is_head {
            // It was cut short after the database had become the head's.
            let former = succession::predecessors(&mut db).await?;
            if former.is_empty() {
                return Err(Failure::usage(format!(
                    "this database is the head `{}` already, under another configuration",
                    identity.name
                )));
            }
            let head = Head::load(&mut db, Wiring::Direct, now()).await?;
            let written = self
                .config_text(context, &identity.name, head.schema())
                .await?;
            (identity.name, written, None)
        } else {
            let branch = Branch::load(&mut db, random()?).await?;
            let name = self.name_for(&branch)?;
            let written = self.config_text(context, &name, branch.schema()).await?;
            let head = IdentityBook {
                name: name.clone(),
                head: true,
                secret_key: random()?,
            };
            let promotion = branch.promote(&mut db, now(), &head).await?;
            let promotion = promotion.map_err(|why| {
                Failure::usage(format!("`{}` cannot be the head: {why}", settings.name))
            })?;
            Head::load(&mut db, Wiring::Direct, now()).await?;
            (name, written, Some(promotion))
        };
        // The branch's configuration stays beside the head's.
        write_private(
            &beside(&context.config, "branch"),
            &read_file(&context.config)?,
        )?;
        transport.write()?;
        write_private(&context.config, &text)?;
        tell(context, &settings, &name, promotion.as_ref())?;
        Ok(0)
    }

    fn name_for(&self, branch: &Branch) -> Outcome<OfficeName> {
        match &self.name {
            Some(name) => {
                OfficeName::new(name.clone()).map_err(|error| Failure::usage(error.to_string()))
            }
            None => Ok(branch.head_name().clone()),
        }
    }

    /// The head's configuration. That it is right, and that the broker can be used, shows before anything is done.
    async fn config_text(
        &self,
        context: &Context,
        name: &OfficeName,
        schema: &Schema,
    ) -> Outcome<(String, Wanted)> {
        let transport = self.reach.transport(&context.config)?;
        let text = rewrite::as_head(&context.config, name, &transport.keys, schema)?;
        let settings = config::parse(&context.config, &text)?;
        let tables: Vec<&Table> = schema.tables.iter().collect();
        settings.plan.rules.check(&tables, &Former::default())?;
        declare(&settings).await?;
        Ok((text, transport))
    }
}

fn tell(
    context: &Context,
    was: &Settings,
    name: &OfficeName,
    promotion: Option<&Promotion>,
) -> Outcome<()> {
    let kept = beside(&context.config, "branch");
    let mut document = serde_json::json!({
        "office": name, "role": "head", "was": was.name, "config": context.config, "former_config": kept,
    });
    if let (Some(promotion), Some(fields)) = (promotion, document.as_object_mut()) {
        fields.insert("log".into(), serde_json::json!(promotion.log));
        fields.insert("batches".into(), promotion.batches.into());
        fields.insert("branches".into(), serde_json::json!(promotion.branches));
        fields.insert("left".into(), promotion.left.into());
        fields.insert("unsure".into(), promotion.unsure.into());
        if promotion.unsure {
            say::say(format_args!(
                "note: this branch was waiting for a comparison with the former head, so that some of its rows may be older than the log says; `branchline verify` compares the others with it"
            ));
        }
        if promotion.left > 0 {
            say::say(format_args!(
                "note: {} rows do not take what the log says of them; they stand as they are, and `branchline conflicts` lists the others (reason `restored`)",
                promotion.left
            ));
        }
    }
    context.show(&document, || {
        let done = promotion.map_or_else(String::new, |promotion| {
            let named = promotion.branches.iter().map(OfficeName::as_str);
            let named: Vec<&str> = named.collect();
            format!(
                " Its log goes on after entry {}; {} batches of its own that no head had answered are taken in.\nBranches that the log tells of: {}.",
                promotion.log,
                promotion.batches,
                if named.is_empty() { "none".into() } else { named.join(", ") }
            )
        });
        format!(
            "{} is the head {name} now.{done}\n{} is the head's configuration; the branch's is kept as {}.\n\
             Next: `branchline run` here; then for each other branch `branchline invite NAME` here and `branchline join CODE` there. \
             They keep their rows and what they have not sent.\n\
             Should the old head come back: `branchline leave` there, before it runs.",
            was.name,
            context.config.display(),
            kept.display()
        )
    })
}
