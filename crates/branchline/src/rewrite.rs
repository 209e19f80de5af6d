//! Changing a configuration that a person may have worked on: what changes is replaced, the rest stays as it was typed.

use std::path::Path;

use branchline_core::identity::OfficeName;
use branchline_core::schema::{ConflictRule, Direction, InsertRule, Schema, Table};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table as Section, value};

use crate::exit::{Failure, Outcome, io};

/// The document in a configuration file.
fn read(file: &Path) -> Outcome<DocumentMut> {
    let text = std::fs::read_to_string(file)
        .map_err(io(format_args!("cannot read {}", file.display())))?;
    // The parser's own words would quote the line, which may hold a password.
    text.parse()
        .map_err(|_| Failure::usage(format!("the configuration {} is wrong", file.display())))
}

/// The file's text with another `[transport]`.
pub fn with_transport(file: &Path, transport: &[(&str, String)]) -> Outcome<String> {
    let mut document = read(file)?;
    set_transport(&mut document, transport);
    Ok(document.to_string())
}

/// A branch's configuration as the configuration of the head that it became, with the plan's rules as the branch knows them.
pub fn as_head(
    file: &Path,
    name: &OfficeName,
    transport: &[(&str, String)],
    schema: &Schema,
) -> Outcome<String> {
    let mut document = read(file)?;
    let mut office = document
        .get("office")
        .and_then(Item::as_table)
        .cloned()
        .unwrap_or_default();
    office.insert("name", value(name.as_str()));
    office.insert("role", value("head"));
    document.insert("office", Item::Table(office));
    set_transport(&mut document, transport);
    let mut tables = Section::new();
    tables.set_implicit(true);
    for table in &schema.tables {
        tables.insert(&table.name, Item::Table(rules_of(table)));
    }
    document.insert("tables", Item::Table(tables));
    Ok(document.to_string())
}

fn set_transport(document: &mut DocumentMut, transport: &[(&str, String)]) {
    let former = document.get("transport").and_then(Item::as_table);
    let mut section = former.cloned().unwrap_or_default();
    section.clear();
    for (key, text) in transport {
        section.insert(key, value(text.as_str()));
    }
    document.insert("transport", Item::Table(section));
}

fn rules_of(table: &Table) -> Section {
    let mut section = Section::new();
    let direction = match table.direction {
        Direction::Both => "both",
        Direction::Up => "up",
        Direction::Down => "down",
    };
    let conflict = match table.conflict {
        ConflictRule::Newest => "newest",
        ConflictRule::Head => "head",
        ConflictRule::Branch => "branch",
        ConflictRule::Merge => "merge",
        ConflictRule::Hold => "hold",
    };
    let insert = match table.insert {
        InsertRule::Hold => "hold",
        InsertRule::Newest => "newest",
    };
    section.insert("direction", value(direction));
    section.insert("conflict", value(conflict));
    section.insert("insert", value(insert));
    let mut counters = Array::new();
    let mut floors = InlineTable::new();
    for counter in &table.counters {
        let Some(column) = table.columns.get(usize::from(counter.column)) else {
            continue;
        };
        counters.push(column.name.as_str());
        if let Some(floor) = counter.floor {
            floors.insert(&column.name, floor.into());
        }
    }
    if !counters.is_empty() {
        section.insert("counters", value(counters));
    }
    if !floors.is_empty() {
        section.insert("floor", value(floors));
    }
    if table.before {
        section.insert("before", value(true));
    }
    section
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::config::{self, RoleName, TransportSettings};
    use crate::plan::former::Former;
    use branchline_core::schema::{self, Column, Counter};
    use branchline_core::value::Type;

    const BRANCH: &str = "# ours\n[office]\nname = \"b1\"\nrole = \"branch\"\ndatabase = \"sqlite:/tmp/a\" # here\n\n\
        [transport]\nconnect = \"wss://old:1/branchline\"\npin = \"aa\"\n\n[retention]\nrecovery_days = 3\n";

    fn shop() -> Table {
        let column = |name: &str| Column {
            name: name.into(),
            kind: Type::Int64,
            nullable: false,
            default: None,
            generated_key: false,
            id: 0,
        };
        Table {
            id: 1,
            name: "stock on hand".into(),
            columns: vec![column("id"), column("amount")],
            key: vec![0],
            unique: vec![],
            foreign_keys: vec![],
            direction: Direction::Both,
            conflict: ConflictRule::Merge,
            insert: InsertRule::Newest,
            counters: vec![Counter {
                column: 1,
                floor: Some(0),
            }],
            before: true,
            columns_ever: 0,
            indexes: Vec::new(),
            checks: Default::default(),
        }
    }

    #[test]
    fn a_branchs_configuration_becomes_the_heads_with_the_rules_of_the_plan() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.toml");
        std::fs::write(&file, BRANCH).unwrap();
        let mut with_rules = shop();
        let rules = schema::Rules {
            direction: with_rules.direction,
            conflict: with_rules.conflict,
            insert: with_rules.insert,
            counters: with_rules.counters.clone(),
            before: with_rules.before,
        };
        with_rules.set_rules(schema::Rules::default());
        let schema = Schema {
            tables_ever: 0,
            version: 1,
            tables: vec![shop()],
        };
        let transport = [("listen", "127.0.0.1:7443".to_string())];
        let name = OfficeName::new("HO").unwrap();
        let text = as_head(&file, &name, &transport, &schema).unwrap_or_else(|f| panic!("{f}"));
        let settings = config::parse(&file, &text).unwrap_or_else(|f| panic!("{f}\n{text}"));
        assert_eq!((settings.name, settings.role), (name, RoleName::Head));
        assert!(matches!(
            settings.transport,
            TransportSettings::Listen { .. }
        ));
        assert_eq!(
            settings.plan.rules.of(&with_rules, &Former::default()),
            rules
        );
        assert!(
            text.contains("# ours") && text.contains("recovery_days = 3"),
            "{text}"
        );
        assert!(!text.contains("pin"), "{text}");
    }

    #[test]
    fn another_transport_leaves_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.toml");
        std::fs::write(&file, BRANCH).unwrap();
        let text = with_transport(&file, &[("connect", "wss://new:2/branchline".into())]);
        let text = text.unwrap_or_else(|f| panic!("{f}"));
        let expected = BRANCH
            .replace("wss://old:1", "wss://new:2")
            .replace("pin = \"aa\"\n", "");
        assert_eq!(text, expected);
    }
}
