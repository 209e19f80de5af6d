//! The list of shared tables as a person writes it: names and patterns with `*`, separated by commas; `!` excludes.

use crate::exit::{Failure, Outcome};

/// The list, in the order in which it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableList(Vec<String>);

impl std::fmt::Display for TableList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl TableList {
    /// Reads a list; it must name something.
    pub fn parse(list: &str) -> Outcome<Self> {
        let parts = list.split(',').map(str::trim);
        let parts = parts.filter(|part| !part.is_empty()).map(String::from);
        let list = Self(parts.collect());
        if list.chosen().next().is_none() {
            return Err(Failure::usage(
                "the list names no table: use `*` for all, or names separated by commas",
            ));
        }
        Ok(list)
    }

    /// A list of just these tables.
    pub fn of<'a>(tables: impl Iterator<Item = &'a str>) -> Self {
        Self(tables.map(String::from).collect())
    }

    /// Excludes a table.
    pub fn exclude(&mut self, table: &str) {
        self.0.push(format!("!{table}"));
    }

    fn chosen(&self) -> impl Iterator<Item = &str> {
        let parts = self.0.iter().map(String::as_str);
        parts.filter(|part| !part.starts_with('!'))
    }

    /// The tables that stand in it by their name.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.chosen().filter(|part| !part.contains('*'))
    }

    fn excluded(&self) -> impl Iterator<Item = &str> {
        let excluded = self.0.iter().filter_map(|part| part.strip_prefix('!'));
        excluded.map(str::trim)
    }

    /// Whether the list excludes a table.
    pub fn excludes(&self, table: &str) -> bool {
        self.excluded().any(|pattern| matches(pattern, table))
    }

    /// What it excludes though none of these tables is called so.
    pub fn idle_exclusions<'s>(&'s self, tables: &'s [&str]) -> impl Iterator<Item = &'s str> {
        let idle = |part: &&str| !tables.iter().any(|table| matches(part, table));
        self.excluded().filter(idle)
    }

    /// Whether the list names a table and does not exclude it.
    pub fn choose(&self, table: &str) -> bool {
        self.chosen().any(|pattern| matches(pattern, table)) && !self.excludes(table)
    }

    /// The list with more in it: an exclusion of the same words goes.
    #[must_use]
    pub fn with(&self, more: &Self) -> Self {
        let mut parts = self.0.clone();
        for part in &more.0 {
            let opposite = opposite(part);
            parts.retain(|known| *known != opposite && known != part);
            parts.push(part.clone());
        }
        Self(parts)
    }

    /// The list without these: what stands there in the same words goes, and what is still chosen, by a pattern, is
    /// excluded.
    #[must_use]
    pub fn without(&self, less: &Self) -> Self {
        let mut parts = self.0.clone();
        for part in &less.0 {
            parts.retain(|known| known != part);
            let covers = |known: &String| known.contains('*') && !known.starts_with('!');
            if parts
                .iter()
                .any(|known| covers(known) && touches(known, part))
            {
                parts.push(opposite(part));
            }
        }
        Self(parts)
    }
}

fn opposite(part: &str) -> String {
    part.strip_prefix('!')
        .map_or_else(|| format!("!{part}"), String::from)
}

/// Whether a pattern may choose a table that the other one, a name or a pattern, chooses.
fn touches(pattern: &str, other: &str) -> bool {
    other.contains('*') || matches(pattern, other)
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
                TableList::parse(list).unwrap().choose(table),
                expected,
                "{list} {table}"
            );
        }
        assert!(TableList::parse("!a, ").is_err());
        let list = TableList::parse("*,!adit_*,!tmp,!log_*").unwrap();
        let idle: Vec<&str> = list
            .idle_exclusions(&["audit_log", "tmp", "log_a"])
            .collect();
        assert_eq!(idle, ["adit_*"]);
    }

    #[test]
    fn lists_grow_and_shrink_by_what_they_say() {
        let list = |text: &str| TableList::parse(text).unwrap();
        let grown = [
            ("a", "b", "a,b"),
            ("a,b", "a", "b,a"),
            ("*,!b", "b", "*,b"),
            ("a", "shop_*", "a,shop_*"),
        ];
        for (before, more, after) in grown {
            assert_eq!(
                list(before).with(&list(more)),
                list(after),
                "{before} + {more}"
            );
            let grown = list(before).with(&list(more));
            let wanted = more.replace('*', "x");
            assert!(grown.choose(&wanted), "{before} + {more}");
        }
        let shrunk = [
            ("a,b", "b", "a"),
            ("*", "b", "*,!b"),
            ("a,shop_*", "shop_*", "a"),
            ("*,b", "b", "*,!b"),
            ("*", "shop_*", "*,!shop_*"),
        ];
        for (before, less, after) in shrunk {
            let left = list(before).without(&list(less));
            assert_eq!(left, list(after), "{before} - {less}");
            assert!(!left.choose(&less.replace('*', "x")), "{before} - {less}");
        }
    }
}
