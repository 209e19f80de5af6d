//! `doctor`: what in this database, broker or plan will hurt, and how to mend it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use branchline_core::books::newest_schema;
use branchline_core::port::Database;
use branchline_database::AnyDatabase;
use branchline_transport::amqp::probe;

use super::Context;
use crate::config::{self, IN_THE_CLEAR, RoleName, TransportSettings, is_in_the_clear};
use crate::exit::{NO, Outcome};
use crate::office::{amqp_settings, check_rules, prepare};
use crate::plan::{self, outlook::Outlook};

/// Looks and tells. Exit code 1 when something is wrong.
pub async fn run(context: &Context) -> Outcome<u8> {
    let settings = config::read(&context.config)?;
    let mut findings = Vec::new();
    let mut db = AnyDatabase::open(&settings.database, false).await?;
    let (engine, version) = db.describe().await?;
    prepare(&mut db).await?;
    let schema = newest_schema(&mut db).await?.unwrap_or_default();
    let shared = |table: &Option<String>| {
        table
            .as_deref()
            .is_none_or(|name| schema.table_named(name).is_some())
    };
    let inspection = db.inspect().await?;
    let keys = plan::colliding_keys(&engine, &schema);
    for finding in inspection
        .findings
        .into_iter()
        .chain(keys)
        .filter(|finding| shared(&finding.table))
    {
        let level = if finding.fatal { "error" } else { "warning" };
        findings.push(serde_json::json!({
            "level": level, "where": finding.table, "problem": finding.problem, "advice": finding.advice,
        }));
    }
    for id in db.missing_capture(&schema).await? {
        let name = schema.table(id).map(|table| table.name.clone());
        findings.push(serde_json::json!({
            "level": "error", "where": name, "problem": "capture is missing or was altered: writes there are not seen",
            "advice": "start `branchline run` anew (a start puts capture back), then run `branchline verify`",
        }));
    }
    if settings.role == RoleName::Head {
        let outlook = Outlook::at_head(&mut db, &settings.plan).await?;
        for finding in outlook.cannot(settings.plan.tables.as_ref()) {
            findings.push(serde_json::json!({
                "level": "warning", "where": finding.table, "problem": finding.problem, "advice": finding.advice,
            }));
        }
        for told in check_rules(&mut db, &settings).await? {
            findings.push(serde_json::json!({
                "level": "warning", "where": null, "problem": told, "advice": "",
            }));
        }
    }
    for path in exposed(&context.config) {
        findings.push(serde_json::json!({
            "level": "warning", "where": null,
            "problem": format!("`{}` holds a secret, and other users of this machine can read it", path.display()),
            "advice": format!("make it its owner's alone: chmod 600 {}", path.display()),
        }));
    }
    if let Some(path) = open_database(&settings.database) {
        findings.push(serde_json::json!({
            "level": "warning", "where": null,
            "problem": format!("`{}` holds this office's signing key beside the rows, and every user of this machine can read it", path.display()),
            "advice": format!("keep out who need not read it: chmod o-rwx {}", path.display()),
        }));
    }
    if let TransportSettings::Amqp(place) = &settings.transport {
        if is_in_the_clear(&place.url) {
            let (problem, advice) = IN_THE_CLEAR;
            findings.push(serde_json::json!({
                "level": "warning", "where": "broker", "problem": problem, "advice": advice,
            }));
        }
        for finding in probe(&amqp_settings(&settings, place)).await {
            let level = if finding.ok { "ok" } else { "error" };
            findings.push(serde_json::json!({
                "level": level, "where": "broker", "problem": finding.message, "advice": finding.advice,
            }));
        }
    }
    let errors = findings
        .iter()
        .filter(|finding| finding["level"] == "error")
        .count();
    let document = serde_json::json!({
        "healthy": errors == 0, "database": { "engine": engine, "version": version }, "findings": findings,
    });
    context.show(&document, || {
        let mut lines: Vec<String> = findings
            .iter()
            .map(|finding| {
                let text = |key: &str| finding[key].as_str();
                let (level, problem) = (text("level"), text("problem"));
                let table = text("where").filter(|place| *place != "broker");
                let told = plan::tell_parts(table, problem.unwrap_or_default(), text("advice"));
                let told = match (table, text("where")) {
                    (None, Some(place)) => told.replacen("database", place, 1),
                    _ => told,
                };
                format!("{:<8} {told}", level.unwrap_or_default())
            })
            .collect();
        lines.push(if errors == 0 {
            "nothing is wrong".into()
        } else {
            format!("{errors} errors")
        });
        lines.join("\n")
    })?;
    Ok(if errors == 0 { 0 } else { NO })
}

/// The files with secrets that others than their owner can read: the configuration, where an address in it has a
/// password, and the files that it names for addresses and keys.
fn exposed(config: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let typed: toml::Table = toml::from_str(&text).unwrap_or_default();
    let beside = |name: &str| config.parent().unwrap_or(Path::new(".")).join(name);
    let field = |section: &str, key: &str| typed.get(section)?.get(key);
    let mut files = Vec::new();
    for address in [field("office", "database"), field("transport", "amqp")] {
        match address {
            Some(toml::Value::String(address)) if has_password(address) => {
                files.push(config.to_path_buf());
            }
            Some(toml::Value::Table(secret)) => {
                let name = secret.get("file").and_then(toml::Value::as_str);
                files.extend(name.map(beside));
            }
            _ => {}
        }
    }
    let key = field("transport", "key").and_then(toml::Value::as_str);
    files.extend(key.map(beside));
    files.dedup();
    let open = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o044 != 0)
    };
    files.into_iter().filter(|path| open(path)).collect()
}

/// The database's file, where everybody can read it. Its owner and group are the application's own matter.
fn open_database(address: &str) -> Option<PathBuf> {
    let path = PathBuf::from(address.strip_prefix("sqlite:")?);
    let file = std::fs::metadata(&path).ok()?;
    (file.permissions().mode() & 0o004 != 0).then_some(path)
}

fn has_password(address: &str) -> bool {
    let user = address
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'));
    user.is_some_and(|(user, _)| user.contains(':'))
}
