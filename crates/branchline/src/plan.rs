//! Which tables are shared: patterns held against what the database has.

use branchline_core::port::{Finding, Inspection};
use branchline_core::schema::{Schema, Table};

use crate::config::Rules;
use crate::exit::{Failure, Outcome};

/// Builds the first schema version from the tables that the list names.
///
/// The list holds names and patterns with `*`, separated by commas; `!` excludes. Problems of tables that are not
/// chosen do not matter; those of chosen ones are all named at once.
pub fn choose(
    inspection: &Inspection,
    list: &str,
    rules: &Rules,
) -> Outcome<(Schema, Vec<Finding>)> {
    let patterns = Patterns::parse(list)?;
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
    for name in &patterns.exact {
        if !chosen.iter().any(|table| table.name == *name) {
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
        table.set_rules(rules.of(&table));
        table
            .foreign_keys
            .retain(|reference| names.contains(&reference.parent.as_str()));
        schema.tables.push(table);
    }
    schema.sort_parents_first();
    rules.check(&schema)?;
    Ok((
        schema,
        findings
            .into_iter()
            .filter(|finding| !finding.fatal)
            .collect(),
    ))
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

struct Patterns {
    exact: Vec<String>,
    wild: Vec<String>,
    excluded: Vec<String>,
}

impl Patterns {
    fn parse(list: &str) -> Outcome<Self> {
        let mut patterns = Self {
            exact: vec![],
            wild: vec![],
            excluded: vec![],
        };
        for part in list
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match part.strip_prefix('!') {
                Some(excluded) => patterns.excluded.push(excluded.to_string()),
                None if part.contains('*') => patterns.wild.push(part.to_string()),
                None => patterns.exact.push(part.to_string()),
            }
        }
        if patterns.exact.is_empty() && patterns.wild.is_empty() {
            return Err(Failure::usage(
                "--tables names no table: use `*` for all, or names separated by commas",
            ));
        }
        Ok(patterns)
    }

    fn choose(&self, table: &str) -> bool {
        let within = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, table));
        (self.exact.iter().any(|name| name == table) || within(&self.wild))
            && !within(&self.excluded)
    }
}

/// Whether a name matches a pattern in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((front, rest)) => name.strip_prefix(front).is_some_and(|tail| {
            let ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
            ends.into_iter().any(|at| matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn patterns_choose_and_exclude() {
        let cases = [
            ("*", "sales", true),
            ("sales,stock", "stock", true),
            ("sales,stock", "customers", false),
            ("*,!audit_*", "audit_log", false),
            ("shop_*", "shop_sales", true),
            ("*_log", "audit_log", true),
            ("*_log", "audit_logs", false),
        ];
        for (list, table, expected) in cases {
            assert_eq!(
                Patterns::parse(list).unwrap().choose(table),
                expected,
                "{list} {table}"
            );
        }
    }
}
