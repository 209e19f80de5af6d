//! `schema`: the version of the shared tables, what a person says of renames, and letting a change pass.

use std::time::{Duration, Instant};

use branchline_core::evolution::{Follow, Renamed};
use branchline_core::schema::Schema;
use branchline_database::AnyDatabase;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ask::{either, text};
use super::plan::describe;
use super::{Context, SHORT};
use crate::api::NewName;
use crate::config::{self, RoleName, Settings};
use crate::exit::{Failure, Outcome};
use crate::plan::outlook::{Outlook, present, to_json};
use crate::request::Ask;

/// Seconds that an accepted change may take to be followed at the head.
const PATIENCE: u64 = 60;

/// The flags of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArguments {
    #[command(subcommand)]
    action: SchemaAction,
}

#[derive(Debug, Subcommand)]
enum SchemaAction {
    /// Show the version of the shared tables, and what changed at the head and is not followed yet.
    Show,
    /// Say that a table or a column was renamed, or will be, where the engine cannot tell that from a drop and an add (at
    /// the head).
    Rename {
        /// TABLE or TABLE.COLUMN, by the name before.
        what: String,
        /// The name now: of the table, or of the column alone.
        to: String,
    },
    /// Let the change of the tables pass that waits ([plan] schema = "ask"; at the head).
    Accept {
        /// Seconds after which to give up.
        #[arg(long, default_value_t = PATIENCE)]
        timeout: u64,
    },
}

impl SchemaArguments {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = config::read(&context.config)?;
        match self.action {
            SchemaAction::Show => show(context, &settings).await,
            SchemaAction::Rename { what, to } => rename(context, &settings, &what, &to).await,
            SchemaAction::Accept { timeout } => {
                let patience = Duration::from_secs(timeout.min(86_400));
                let path = format!("/api/schema/accept?timeout={timeout}");
                let ask = Ask::AcceptSchema {
                    deadline: Instant::now() + patience,
                };
                let asked = either(context, "POST", &path, None, patience + SHORT, ask);
                let (code, document) = asked.await?;
                context.show(&document, || describe(&document))?;
                Ok(code)
            }
        }
    }
}

async fn show(context: &Context, settings: &Settings) -> Outcome<u8> {
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    let document = match settings.role {
        RoleName::Head => {
            let outlook = Outlook::at_head(&mut db, &settings.plan).await?;
            let stuck = outlook.next.stuck.iter().map(|(id, problem)| {
                let table = outlook.present.table(*id).map(|table| &table.name);
                json!({ "table": table, "problem": problem })
            });
            let waits = settings.plan.follow != Follow::Follow && !outlook.next.told.is_empty();
            json!({
                "office": settings.name, "schema_version": outlook.present.version,
                "policy": settings.plan.policy(), "changed": outlook.next.told, "waits": waits,
                "stuck": stuck.collect::<Vec<_>>(),
                "cannot": outlook.cannot(settings.plan.tables.as_ref()).iter().map(to_json).collect::<Vec<_>>(),
            })
        }
        RoleName::Branch => {
            let (schema, _) = present(&mut db).await?;
            json!({ "office": settings.name, "schema_version": schema.version, "changed": [], "waits": false })
        }
    };
    context.show(&document, || told(&document))?;
    Ok(0)
}

fn told(document: &Value) -> String {
    let mut lines = vec![format!(
        "schema version {}",
        text(&document["schema_version"])
    )];
    let changed = document["changed"].as_array().into_iter().flatten();
    let changed: Vec<String> = changed.map(text).collect();
    if changed.is_empty() {
        lines.push("no change of the tables waits".into());
    } else {
        let way = match document["policy"].as_str() {
            Some("ask") => "`branchline schema accept` lets it pass",
            Some("refuse") => "the plan refuses it: change the tables back",
            _ => "it is followed by `branchline run`",
        };
        lines.push(format!("{}; {way}", changed.join("; ")));
    }
    lines.join("\n")
}

async fn rename(context: &Context, settings: &Settings, what: &str, to: &str) -> Outcome<u8> {
    if settings.role != RoleName::Head {
        return Err(Failure::usage(
            "tables are renamed at the head, and the branches follow; this is a branch",
        ));
    }
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    let (schema, _) = present(&mut db).await?;
    drop(db);
    let said = renamed(&schema, what, to)?;
    let body = json!(NewName {
        table: said.table.clone(),
        column: said.column.clone(),
        to: said.to.clone(),
    });
    let ask = Ask::SayRenamed(said);
    let asked = either(
        context,
        "POST",
        "/api/schema/rename",
        Some(&body),
        SHORT,
        ask,
    );
    let (code, document) = asked.await?;
    context.show(&document, || {
        format!("noted: `{what}` becomes `{to}`; it counts for the next change of the tables")
    })?;
    Ok(code)
}

/// What TABLE or TABLE.COLUMN means: a table's own name may hold a point.
fn renamed(schema: &Schema, what: &str, to: &str) -> Outcome<Renamed> {
    if to.is_empty() {
        return Err(Failure::usage("the new name is empty"));
    }
    let renamed = |table: &str, column: Option<&str>| Renamed {
        table: table.into(),
        column: column.map(String::from),
        to: to.into(),
    };
    if schema.table_named(what).is_some() {
        return Ok(renamed(what, None));
    }
    let Some((table, column)) = what.rsplit_once('.') else {
        return Err(Failure::usage(format!(
            "there is no shared table `{what}`; `branchline plan show` lists them"
        )));
    };
    let Some(found) = schema.table_named(table) else {
        return Err(Failure::usage(format!(
            "there is no shared table `{what}`, and none `{table}` with a column `{column}`; `branchline plan show` lists them"
        )));
    };
    if found.columns.iter().any(|one| one.name == column) {
        return Ok(renamed(table, Some(column)));
    }
    let way = if found.columns.iter().any(|one| one.name == to) {
        format!(
            "schema version {} was made already with `{to}` as a new column: say it before the tables are changed, or write [plan] schema = \"ask\"",
            schema.version
        )
    } else {
        "`branchline plan show` lists the columns".into()
    };
    Err(Failure::usage(format!(
        "the shared table `{table}` has no column `{column}`; {way}"
    )))
}
