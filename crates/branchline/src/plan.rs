//! Which tables are shared: patterns held against what the database has.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use branchline_core::evolution::{Follow, Plan};
use branchline_core::port::{Finding, Inspection};
use branchline_core::schema::{Schema, Table};

use crate::exit::{Failure, Outcome};

pub mod former;
pub mod list;
pub mod outlook;
pub mod rules;

use former::Former;
pub use list::TableList;
use rules::Rules;

/// What the head's configuration says of the plan.
#[derive(Clone, Debug, Default)]
pub struct PlanSettings {
    /// Which tables are shared; where there is no list, those that are.
    pub tables: Option<TableList>,
    /// What a changed table means.
    pub follow: Follow,
    /// The rules.
    pub rules: Rules,
}

/// Names that become known while the plan is in use.
pub type Names = Arc<RwLock<Former>>;

impl PlanSettings {
    /// The plan for the head's machine. `named` are new tables that a person has just asked for: where the policy is not
    /// to follow by itself, no others are added.
    pub fn plan(&self, names: &Names, named: BTreeSet<String>) -> Plan {
        let (settings, names) = (self.clone(), Arc::clone(names));
        let rules = move |table: &Table| {
            let former = names.read().unwrap_or_else(PoisonError::into_inner);
            let asked = settings.follow == Follow::Follow || named.contains(&table.name);
            (settings.shares(table, &former) && (table.id != 0 || asked))
                .then(|| settings.rules.of(table, &former))
        };
        Plan {
            rules: Arc::new(rules),
            follow: self.follow,
        }
    }

    /// The word for what a changed table means.
    pub fn policy(&self) -> &'static str {
        match self.follow {
            Follow::Follow => "follow",
            Follow::Ask => "ask",
            Follow::Refuse => "refuse",
        }
    }

    /// Whether a table is to be shared. A shared one stays so when it is renamed, unless its new name is excluded.
    pub fn shares(&self, table: &Table, former: &Former) -> bool {
        let Some(tables) = &self.tables else {
            return table.id != 0;
        };
        !tables.excludes(&table.name) && former.names(table).any(|name| tables.choose(name))
    }
}

/// Builds the first schema version from the tables that the list names.
///
/// The list holds names and patterns with `*`, separated by commas; `!` excludes. Problems of tables that are not
/// chosen do not matter; those of chosen ones are all named at once.
pub fn choose(
    inspection: &Inspection,
    list: &str,
    rules: &Rules,
) -> Outcome<(Schema, Vec<Finding>)> {
    let patterns = TableList::parse(list).map_err(|failure| failure.at("--tables"))?;
    let concerns = |finding: &&Finding| {
        finding
            .table
            .as_deref()
            .is_none_or(|table| patterns.choose(table))
    };
    let findings: Vec<Finding> = inspection
        .findings
        .iter()
        .filter(concerns)
        .cloned()
        .collect();
    let fatal: Vec<String> = findings
        .iter()
        .filter(|finding| finding.fatal)
        .map(tell)
        .collect();
    if !fatal.is_empty() {
        return Err(Failure::usage(format!(
            "these tables cannot be shared as they are:\n  {}\nMend them, or leave them out with --tables '{list},!NAME'",
            fatal.join("\n  ")
        )));
    }
    let chosen: Vec<&Table> = inspection
        .tables
        .iter()
        .filter(|table| patterns.choose(&table.name))
        .collect();
    for name in patterns.exact() {
        if !chosen.iter().any(|table| table.name == name) {
            let known: Vec<&str> = inspection
                .tables
                .iter()
                .map(|table| table.name.as_str())
                .collect();
            return Err(Failure::usage(format!(
                "there is no table `{name}` that could be shared; there are: {}",
                known.join(", ")
            )));
        }
    }
    if chosen.is_empty() {
        return Err(Failure::usage(format!(
            "--tables '{list}' chooses no table; create the tables first"
        )));
    }
    let mut schema = Schema {
        tables_ever: 0,
        version: 1,
        tables: Vec::with_capacity(chosen.len()),
    };
    let names: Vec<&str> = chosen.iter().map(|table| table.name.as_str()).collect();
    for (number, table) in (1..).zip(&chosen) {
        let mut table = Table {
            id: number,
            ..(*table).clone()
        };
        table.set_rules(rules.of(&table, &Former::default()));
        table
            .foreign_keys
            .retain(|reference| names.contains(&reference.parent.as_str()));
        schema.tables.push(table);
    }
    schema.sort_parents_first();
    let tables: Vec<&Table> = schema.tables.iter().collect();
    rules.check(&tables, &Former::default())?;
    let known = inspection.tables.iter().map(|table| &*table.name);
    let blamed = inspection
        .findings
        .iter()
        .filter_map(|f| f.table.as_deref());
    let known: Vec<&str> = known.chain(blamed).collect();
    let idle = patterns.idle_exclusions(&known).map(|part| Finding {
        fatal: false,
        table: None,
        problem: format!("`!{part}` in the list of tables excludes none of those that are here"),
        advice: "if that is a slip of the pen, what was meant is shared".into(),
    });
    let findings = findings.into_iter().filter(|finding| !finding.fatal);
    Ok((schema, findings.chain(idle).collect()))
}

/// A finding in sentences: where, what is wrong, what to do.
pub fn tell(finding: &Finding) -> String {
    tell_parts(
        finding.table.as_deref(),
        &finding.problem,
        Some(&finding.advice),
    )
}

/// The same, of a finding's parts.
pub fn tell_parts(table: Option<&str>, problem: &str, advice: Option<&str>) -> String {
    let place = table.map_or_else(|| "database".into(), |table| format!("table `{table}`"));
    let problem = problem
        .strip_prefix(&format!("{place}: "))
        .unwrap_or(problem);
    let sentences = [Some(problem), advice];
    let sentences = sentences.into_iter().flatten().map(sentence);
    let sentences: Vec<String> = sentences.filter(|text| !text.is_empty()).collect();
    format!("{place}: {}", sentences.join(" "))
}

/// Text with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut letters = text.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    let end = if text.ends_with(['.', '!', '?', ';']) {
        ""
    } else {
        "."
    };
    // An address stays as it is.
    if text
        .split(' ')
        .next()
        .is_some_and(|word| word.contains("://"))
    {
        return format!("{text}{end}");
    }
    format!("{}{}{end}", first.to_uppercase(), letters.as_str())
}

/// Keys that several offices will generate alike, so that their rows collide (trap 14). PostgreSQL's inspection tells of
/// its own; SQLite numbers every `INTEGER PRIMARY KEY` that is left out.
pub fn colliding_keys(engine: &str, schema: &Schema) -> Vec<Finding> {
    if engine != "sqlite" {
        return Vec::new();
    }
    let numbered = schema
        .tables
        .iter()
        .filter(|table| table.key_columns().any(|column| column.generated_key));
    let finding = |table: &Table| {
        Finding {
        fatal: false,
        table: Some(table.name.clone()),
        problem: "its key is an INTEGER PRIMARY KEY: where an application leaves it out, two offices give one number to two rows, and one is held".into(),
        advice: "give each office a range of its own, or use keys that are unique everywhere (a UUID, or a text with the office's name)".into(),
    }
    };
    numbered.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_in_whole_sentences() {
        let finding = |table: Option<&str>, problem: &str, advice: &str| Finding {
            fatal: true,
            table: table.map(String::from),
            problem: problem.into(),
            advice: advice.into(),
        };
        let cases = [
            (
                finding(
                    Some("till"),
                    "It has no key, so its rows have no names.",
                    "Give it one.",
                ),
                "table `till`: It has no key, so its rows have no names. Give it one.",
            ),
            (
                finding(Some("till"), "table `till`: column `a` is odd", "mend it"),
                "table `till`: Column `a` is odd. Mend it.",
            ),
            (
                finding(None, "the journal is slow", "run GRANT x TO y;"),
                "database: The journal is slow. Run GRANT x TO y;",
            ),
        ];
        for (finding, told) in cases {
            assert_eq!(tell(&finding), told);
        }
    }
}
