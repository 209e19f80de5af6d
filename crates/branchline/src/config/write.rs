//! Writing configuration files.

use std::path::Path;

use branchline_core::identity::OfficeName;

use super::file::RoleName;
use crate::exit::{Failure, Outcome, io};

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Outcome<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let doing = || format!("cannot write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let draft = path.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&draft).map_err(io(doing()))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        drop(std::fs::remove_file(&draft));
    }
    written.map_err(io(doing()))
}

/// Writes another list of shared tables into a configuration file; everything else there stays, comments too.
pub fn set_table_list(path: &Path, list: &str) -> Outcome<()> {
    let text = std::fs::read_to_string(path)
        .map_err(io(format_args!("cannot read {}", path.display())))?;
    write_private(path, &with_table_list(path, &text, list)?)
}

fn with_table_list(path: &Path, text: &str, list: &str) -> Outcome<String> {
    let mut document: toml_edit::DocumentMut = text
        .parse()
        .map_err(|_| Failure::usage(format!("the configuration {} is no TOML", path.display())))?;
    let plan = document
        .entry("plan")
        .or_insert_with(|| toml_edit::Item::Table(toml_edit::Table::new()));
    let Some(plan) = plan.as_table_like_mut() else {
        return Err(Failure::usage(format!(
            "configuration {}: `plan` is no table",
            path.display()
        )));
    };
    let mut value = toml_edit::Value::from(list);
    if let Some(known) = plan.get("tables").and_then(toml_edit::Item::as_value) {
        *value.decor_mut() = known.decor().clone();
    }
    plan.insert("tables", toml_edit::Item::Value(value));
    Ok(document.to_string())
}

/// The text of a new configuration file; a head's has the tables that it shares.
pub fn compose(
    name: &OfficeName,
    role: RoleName,
    database: &str,
    transport: &[(&str, String)],
    tables: Option<&str>,
) -> String {
    let quote = |text: &str| toml_edit::Value::from(text).to_string();
    let role = if role == RoleName::Head {
        "head"
    } else {
        "branch"
    };
    let mut text = format!(
        "# Branchline's configuration of one office. It may hold passwords: keep it readable to its owner only.\n\
         # A value may also be {{ file = \"...\" }}, or come from BRANCHLINE_DATABASE and BRANCHLINE_AMQP.\n\n\
         [office]\nname = {}\nrole = \"{role}\"\ndatabase = {}\n\n[transport]\n",
        quote(name.as_str()),
        quote(database),
    );
    for (key, value) in transport {
        text.push_str(&format!("{key} = {}\n", quote(value)));
    }
    text.push_str(
        "\n[api]\nlisten = \"127.0.0.1:0\"          # for commands beside `run`; 0: a free port\n\n\
         [sync]\nmode = \"live\"                   # live | manual\n",
    );
    if let Some(tables) = tables {
        text.push_str(&format!(
            "\n# Which tables are shared (names and patterns with *, separated by commas; ! excludes), and what a changed\n\
             # table means. `branchline plan` shows, adds and removes.\n\
             [plan]\ntables = {}\nschema = \"follow\"               # follow | ask | refuse\n",
            quote(tables)
        ));
        text.push_str(
            "\n# The plan's rules, for all tables and for single ones ([tables.NAME]).\n[tables.\"*\"]\n\
             direction = \"both\"              # both | up | down\n\
             conflict = \"newest\"             # newest | head | branch | merge | hold\n\
             insert = \"hold\"                 # two inserts of one key: hold | newest (the key is natural)\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_list_of_tables_is_replaced_and_all_else_stays() {
        let text = "# mine\n[office]\nname = \"HO\" # here\n\n[plan] # what is shared\ntables = \"a\"   # and why\nschema = \"ask\"\n";
        let edit = |text: &str| with_table_list(Path::new("test.toml"), text, "a,\"b\"").unwrap();
        let edited = edit(text);
        assert_eq!(edited, text.replace("\"a\"", "'a,\"b\"'"));
        let without = "[office]\nname = \"HO\"\n";
        let edited = edit(without);
        assert!(
            edited.starts_with(without) && edited.contains("[plan]\ntables = "),
            "{edited}"
        );
    }
}
