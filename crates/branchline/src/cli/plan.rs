//! `plan`: what is shared, and sharing more or fewer tables while all runs.

use std::time::{Duration, Instant};

use branchline_core::port::{Database, Finding};
use branchline_core::schema::{Schema, Table};
use branchline_database::AnyDatabase;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ask::{either, table, text};
use super::{Context, SHORT};
use crate::api;
use crate::config::{self, RoleName, Settings};
use crate::exit::{Failure, NO, Outcome};
use crate::office::Lock;
use crate::plan::outlook::{
    Outlook, left_out_to_json, present, table_to_json, tell_not_carried, to_json,
};
use crate::plan::{PlanSettings, TableList, tell, tell_parts};
use crate::request::Ask;

/// Seconds that a new plan may take to be followed at the head.
const PATIENCE: u64 = 60;

/// The flags of `plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    #[command(subcommand)]
    action: PlanAction,
}

#[derive(Debug, Subcommand)]
enum PlanAction {
    /// Show what is shared, and by which rules; at the head also what the list would add or take out.
    Show,
    /// Share more tables (at the head): names and patterns separated by commas.
    Add(Change),
    /// Share these tables no longer (at the head). They stay where they are, with their rows.
    Remove(Change),
    /// Share by what the configuration says now (at the head).
    Apply {
        /// Seconds after which to give up.
        #[arg(long, default_value_t = PATIENCE)]
        timeout: u64,
    },
}

#[derive(Debug, Args)]
struct Change {
    /// The tables: names and patterns with `*`, separated by commas.
    list: String,
    /// Seconds after which to give up.
    #[arg(long, default_value_t = PATIENCE)]
    timeout: u64,
}

impl PlanArguments {
    /// Does it.
    pub async fn run(self, context: &Context) -> Outcome<u8> {
        let settings = config::read(&context.config)?;
        if matches!(self.action, PlanAction::Show) {
            return show(context, &settings).await;
        }
        if settings.role != RoleName::Head {
            return Err(Failure::usage(
                "the plan stands at the head, and changes there; this is a branch",
            ));
        }
        match self.action {
            PlanAction::Show => Ok(0),
            PlanAction::Add(change) => add(context, &settings, &change).await,
            PlanAction::Remove(change) => remove(context, &settings, &change).await,
            PlanAction::Apply { timeout } => {
                let (code, document) = apply(context, timeout).await?;
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
            let list = settings.plan.tables.as_ref();
            let outlook = Outlook::at_head(&mut db, &settings.plan).await?;
            let cannot: Vec<Value> = outlook.cannot(list).iter().map(to_json).collect();
            let tables = outlook.present.tables.iter().map(table_to_json);
            json!({
                "office": settings.name, "role": "head", "schema_version": outlook.present.version,
                "list": list.map(ToString::to_string), "policy": settings.plan.policy(),
                "tables": tables.collect::<Vec<_>>(), "would_add": outlook.would_add(),
                "would_remove": outlook.would_remove(), "changed": outlook.next.told, "cannot": cannot,
                "not_carried": outlook.not_carried().iter().map(left_out_to_json).collect::<Vec<_>>(),
            })
        }
        RoleName::Branch => {
            let (schema, _) = present(&mut db).await?;
            let found = db.inspect().await?;
            let there = |name: &str| {
                let told = found.findings.iter();
                found.tables.iter().any(|table| table.name == name)
                    || told.clone().any(|one| one.table.as_deref() == Some(name))
            };
            let missing = schema.tables.iter().filter(|table| !there(&table.name));
            let missing: Vec<&Table> = missing.collect();
            let left_out = missing.iter().flat_map(|table| db.left_out(table));
            let left_out: Vec<Value> = left_out.map(|left| left_out_to_json(&left)).collect();
            let missing: Vec<&str> = missing.iter().map(|table| table.name.as_str()).collect();
            let fatal = found.findings.iter().filter(|finding| {
                let table = finding.table.as_deref();
                finding.fatal && table.is_some_and(|name| schema.table_named(name).is_some())
            });
            let differs = differs(&schema, &found.tables);
            json!({
                "office": settings.name, "role": "branch", "differs": differs, "schema_version": schema.version,
                "tables": schema.tables.iter().map(table_to_json).collect::<Vec<_>>(),
                "would_create": missing, "cannot": fatal.map(to_json).collect::<Vec<_>>(),
                "not_carried": left_out,
            })
        }
    };
    context.show(&document, || shared(&document))?;
    Ok(0)
}

/// Tables here that lack columns of the plan, or have more.
fn differs(schema: &Schema, here: &[Table]) -> Vec<Value> {
    let names = |table: &Table| -> Vec<String> {
        let columns = table.columns.iter();
        columns.map(|column| column.name.clone()).collect()
    };
    let mut differs = Vec::new();
    for table in &schema.tables {
        let Some(found) = here.iter().find(|one| one.name == table.name) else {
            continue;
        };
        let (planned, there) = (names(table), names(found));
        let without = |one: &[String], other: &[String]| -> Vec<String> {
            let only = one.iter().filter(|name| !other.contains(name));
            only.cloned().collect()
        };
        let (missing, more) = (without(&planned, &there), without(&there, &planned));
        if !missing.is_empty() || !more.is_empty() {
            differs.push(json!({ "table": table.name, "missing": missing, "only_here": more }));
        }
    }
    differs
}

async fn add(context: &Context, settings: &Settings, change: &Change) -> Outcome<u8> {
    let more = changed_list(&change.list)?;
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    let before = base(&mut db, settings).await?;
    let list = before.with(&more);
    if let Some(name) = more.exact().find(|name| !list.choose(name)) {
        return Err(Failure::usage(format!(
            "the list `{list}` excludes `{name}` by a pattern: change [plan] tables in {} by hand, then run `branchline plan apply`",
            context.config.display()
        )));
    }
    let plan = PlanSettings {
        tables: Some(list.clone()),
        ..settings.plan.clone()
    };
    let outlook = Outlook::at_head(&mut db, &plan).await?;
    drop(db);
    let named: Vec<Finding> = outlook
        .cannot(Some(&list))
        .into_iter()
        .filter(|one| one.table.as_deref().is_some_and(|name| more.choose(name)))
        .collect();
    let there = |one: &&Finding| {
        let findings = outlook.found.findings.iter();
        !findings.clone().any(|other| other.table == one.table)
    };
    if let Some(absent) = named.iter().find(there) {
        return Err(Failure::usage(format!(
            "{}; nothing was changed",
            tell(absent)
        )));
    }
    let exact = more.exact().any(|name| {
        let tables = named.iter().map(|one| one.table.as_deref());
        tables.into_iter().any(|table| table == Some(name))
    });
    let not_carried = outlook.not_carried().into_iter();
    let not_carried = not_carried.filter(|one| more.choose(&one.table));
    let not_carried: Vec<Value> = not_carried.map(|one| left_out_to_json(&one)).collect();
    let (code, mut document) = replace(context, &before, &list, change.timeout, &named).await?;
    if let Some(document) = document.as_object_mut() {
        document.insert("not_carried".into(), json!(not_carried));
    }
    context.show(&document, || describe(&document))?;
    Ok(if exact { NO } else { code })
}

async fn remove(context: &Context, settings: &Settings, change: &Change) -> Outcome<u8> {
    let less = changed_list(&change.list)?;
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    let before = base(&mut db, settings).await?;
    let (schema, former) = present(&mut db).await?;
    let found = db.inspect().await?;
    drop(db);
    let unknown = |name: &&str| {
        let there = found.tables.iter().any(|table| table.name == *name);
        let meant = before.exact().any(|known| known == *name);
        schema.table_named(name).is_none() && !meant && !(there && before.choose(name))
    };
    if let Some(name) = less.exact().find(unknown) {
        return Err(Failure::usage(format!(
            "table `{name}` is not shared; `branchline plan show` lists those that are"
        )));
    }
    let mut list = before.without(&less);
    for table in schema
        .tables
        .iter()
        .filter(|table| less.choose(&table.name))
    {
        // It may be listed under a name that it had before.
        let plan = PlanSettings {
            tables: Some(list.clone()),
            ..PlanSettings::default()
        };
        if plan.shares(table, &former) {
            list.exclude(&table.name);
        }
    }
    if TableList::parse(&list.to_string()).is_err() {
        return Err(Failure::usage(
            "then nothing would be shared; `branchline leave` takes the whole office out",
        ));
    }
    let (code, document) = replace(context, &before, &list, change.timeout, &[]).await?;
    context.show(&document, || describe(&document))?;
    Ok(code)
}

/// A list of what is to be added or taken out.
fn changed_list(text: &str) -> Outcome<TableList> {
    if text.split(',').any(|part| part.trim().starts_with('!')) {
        return Err(Failure::usage(
            "exclusions (`!`) stand in the configuration's list: `plan remove NAME` adds one where it is needed",
        ));
    }
    TableList::parse(text)
}

/// The list as it is; where there is none, the tables that are shared.
async fn base(db: &mut AnyDatabase, settings: &Settings) -> Outcome<TableList> {
    if let Some(list) = &settings.plan.tables {
        return Ok(list.clone());
    }
    let (schema, _) = present(db).await?;
    let names = schema.tables.iter().map(|table| table.name.as_str());
    Ok(TableList::of(names))
}

/// Writes the new list into the configuration; a running office shares by it at once.
async fn replace(
    context: &Context,
    before: &TableList,
    list: &TableList,
    timeout: u64,
    cannot: &[Finding],
) -> Outcome<(u8, Value)> {
    config::set_table_list(&context.config, &list.to_string())?;
    let mut document = json!({
        "list": list.to_string(), "before": before.to_string(), "applied": false,
        "changed": [], "waiting": [], "cannot": cannot.iter().map(to_json).collect::<Vec<_>>(),
    });
    let mut code = 0;
    if Lock::take_soon(&context.config).await?.is_none() {
        let (said, applied) = call(context, timeout).await?;
        code = said;
        if let (Some(document), Value::Object(applied)) = (document.as_object_mut(), applied) {
            document.extend(applied);
            document.insert("applied".into(), true.into());
        }
    }
    Ok((code, document))
}

async fn call(context: &Context, timeout: u64) -> Outcome<(u8, Value)> {
    let patience = Duration::from_secs(timeout.min(86_400)) + SHORT;
    let path = format!("/api/plan?timeout={timeout}");
    api::call(&context.config, "POST", &path, patience).await
}

async fn apply(context: &Context, timeout: u64) -> Outcome<(u8, Value)> {
    let patience = Duration::from_secs(timeout.min(86_400));
    let path = format!("/api/plan?timeout={timeout}");
    let ask = Ask::ApplyPlan {
        deadline: Instant::now() + patience,
    };
    either(context, "POST", &path, None, patience + SHORT, ask).await
}

/// What became of a new plan, for a person.
pub fn describe(document: &Value) -> String {
    let mut lines = Vec::new();
    if let Some(list) = document["list"].as_str() {
        lines.push(format!("[plan] tables = \"{list}\""));
    }
    let sentences = |key: &str| {
        let all = document[key].as_array().into_iter().flatten();
        all.map(text).collect::<Vec<_>>()
    };
    let changed = sentences("changed");
    if document["applied"] == false {
        lines.push("it counts from the next `branchline run`, or `branchline plan apply`".into());
    } else if changed.is_empty() {
        lines.push("the shared tables are as before".into());
    } else {
        let version = text(&document["schema_version"]);
        let what = changed.join("; ");
        lines.push(format!(
            "schema version {version}: {what}; the branches follow"
        ));
    }
    let waiting = sentences("waiting");
    if !waiting.is_empty() {
        let what = waiting.join("; ");
        lines.push(format!(
            "nothing moves while this change of the tables waits: {what} (`branchline schema accept`)"
        ));
    }
    lines.extend(refused(document));
    lines.extend(tell_not_carried(document));
    lines.join("\n")
}

/// What cannot be shared, for a person.
fn refused(document: &Value) -> Vec<String> {
    let cannot = document["cannot"].as_array().into_iter().flatten();
    let told = cannot.map(|one| {
        let part = |key: &str| one[key].as_str();
        let problem = part("problem").unwrap_or_default();
        let told = tell_parts(part("table"), problem, part("advice"));
        format!("not shared: {told}")
    });
    told.collect()
}

fn shared(document: &Value) -> String {
    let mut rows = table(&["table", "direction", "conflict", "columns"]);
    for one in document["tables"].as_array().into_iter().flatten() {
        let columns = one["columns"].as_array().into_iter().flatten();
        let columns = columns.map(|column| {
            let key = if column["key"] == true { " (key)" } else { "" };
            let null = if column["nullable"] == true {
                ", may be empty"
            } else {
                ""
            };
            format!(
                "{}: {}{key}{null}",
                text(&column["name"]),
                text(&column["type"])
            )
        });
        let checks = one["checks"].as_array().into_iter().flatten();
        let checks = checks.map(|check| format!("check {}", text(check)));
        rows.add_row([
            text(&one["name"]),
            text(&one["direction"]),
            text(&one["conflict"]),
            columns.chain(checks).collect::<Vec<_>>().join("\n"),
        ]);
    }
    let mut lines = vec![
        format!("schema version {}", text(&document["schema_version"])),
        rows.to_string(),
    ];
    let told = [
        ("would_add", "to be shared with `branchline plan apply`"),
        (
            "would_remove",
            "to be taken out with `branchline plan apply`",
        ),
        ("would_create", "to be created here"),
        ("changed", "changed here and not followed yet"),
    ];
    for (key, what) in told {
        let all = document[key].as_array().into_iter().flatten();
        let all: Vec<String> = all.map(text).collect();
        if !all.is_empty() {
            lines.push(format!("{what}: {}", all.join("; ")));
        }
    }
    let differing = document["differs"].as_array().into_iter().flatten();
    lines.extend(differing.map(|one| {
        let list = |key: &str| {
            let all = one[key].as_array().into_iter().flatten();
            all.map(text).collect::<Vec<_>>().join(", ")
        };
        format!(
            "table `{}` is not as at the head; missing here: {}; only here: {}",
            text(&one["table"]),
            list("missing"),
            list("only_here")
        )
    }));
    lines.extend(refused(document));
    lines.extend(tell_not_carried(document));
    lines.join("\n")
}
