//! The rules of the plan: what was written down for all tables and for single ones.

use std::collections::BTreeMap;

use branchline_core::schema::{self, ConflictRule, Counter, Direction, InsertRule, Table};
use branchline_core::value::Type;
use serde::Deserialize;

use super::former::Former;
use crate::exit::{Failure, Outcome};

/// The rules of one table, as far as they were written down.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSection {
    direction: Option<Direction>,
    conflict: Option<ConflictRule>,
    insert: Option<InsertRule>,
    counters: Option<Vec<String>>,
    floor: Option<BTreeMap<String, i64>>,
    before: Option<bool>,
}

/// The rules of the plan.
#[derive(Clone, Debug, Default)]
pub struct Rules(BTreeMap<String, TableSection>);

impl Rules {
    /// What was written down, by table; `*` is for all.
    pub fn new(sections: BTreeMap<String, TableSection>) -> Self {
        Self(sections)
    }

    /// The rules of one table: its own, under the name that it has or had, over those of `*`. Columns that it does not
    /// have, or that cannot add up, are left out; see [`Rules::check`].
    pub fn of(&self, table: &Table, former: &Former) -> schema::Rules {
        let own = former.names(table).find_map(|name| self.0.get(name));
        let pick = |section: Option<&TableSection>| section.cloned().unwrap_or_default();
        let (own, all) = (pick(own), pick(self.0.get("*")));
        let floors = own.floor.or(all.floor).unwrap_or_default();
        let named = own.counters.or(all.counters).unwrap_or_default();
        let mut counters: Vec<Counter> = Vec::new();
        for name in &named {
            let at = former.column(table, name);
            let Some(at) = at.filter(|at| adds_up(table, *at)) else {
                continue;
            };
            let Ok(column) = u16::try_from(at) else {
                continue;
            };
            if counters.iter().all(|counter| counter.column != column) {
                let floor = floors.get(name).copied();
                counters.push(Counter { column, floor });
            }
        }
        counters.sort_by_key(|counter| counter.column);
        schema::Rules {
            direction: own.direction.or(all.direction).unwrap_or_default(),
            conflict: own.conflict.or(all.conflict).unwrap_or_default(),
            insert: own.insert.or(all.insert).unwrap_or_default(),
            counters,
            before: own.before.or(all.before).unwrap_or_default(),
        }
    }

    /// Whether every table and column that the rules name is there and can do what they say.
    ///
    /// `tables` are all that may be meant: the shared ones, and what the database has. What is wrong since the tables
    /// changed after the rules were written is told, and forbids nothing; what never was right is refused.
    pub fn check(&self, tables: &[&Table], former: &Former) -> Outcome<Vec<String>> {
        let mut told = Vec::new();
        for (name, section) in self.0.iter().filter(|(name, _)| *name != "*") {
            let counters = || section.counters.iter().flatten();
            let floors = || section.floor.iter().flatten().map(|(column, _)| column);
            for column in floors() {
                if !counters().any(|counter| counter == column) {
                    return Err(Failure::usage(format!(
                        "[tables.{name}]: `floor` names `{column}`, which `counters` does not"
                    )));
                }
            }
            let meant: Vec<&Table> = tables
                .iter()
                .filter(|table| former.names(table).any(|known| known == name))
                .copied()
                .collect();
            if meant.is_empty() {
                if !former.knows_table(name) {
                    return Err(Failure::usage(format!(
                        "[tables.{name}]: table `{name}` is not shared; see the tables that `branchline plan show` lists, or leave the section out"
                    )));
                }
                told.push(format!(
                    "[tables.{name}]: table `{name}` is no longer there; leave the section out"
                ));
                continue;
            }
            for column in counters() {
                let places = meant
                    .iter()
                    .map(|table| Some((*table, former.column(table, column)?)));
                let places: Vec<(&Table, usize)> = places.flatten().collect();
                if places.iter().any(|(table, at)| adds_up(table, *at)) {
                    continue;
                }
                let wrong = if places.is_empty() {
                    format!("[tables.{name}]: table `{name}` has no column `{column}`")
                } else {
                    format!(
                        "[tables.{name}]: `{column}` cannot be a counter: it must be a whole number or a decimal outside the key"
                    )
                };
                // The column changed since the rule was written.
                if !former.knows_number(name, column) {
                    return Err(Failure::usage(wrong));
                }
                told.push(wrong);
            }
        }
        Ok(told)
    }
}

/// Whether changes of this column can add up.
pub(super) fn adds_up(table: &Table, at: usize) -> bool {
    let kind = table.columns.get(at).map(|column| &column.kind);
    let number = matches!(
        kind,
        Some(Type::Int16 | Type::Int32 | Type::Int64 | Type::Decimal { .. })
    );
    number && !table.is_key(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use branchline_core::schema::Schema;

    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(toml::from_str(text).unwrap())
    }

    fn table(name: &str) -> Table {
        let column = |name: &str, kind, id| schema::Column {
            name: name.into(),
            kind,
            nullable: false,
            default: None,
            generated_key: false,
            id,
        };
        Table {
            id: 1,
            name: name.into(),
            columns: vec![
                column("id", Type::Int64, 1),
                column("quantity", Type::Int32, 2),
                column("note", Type::Text { max: None }, 3),
            ],
            key: vec![0],
            unique: vec![],
            foreign_keys: vec![],
            direction: Direction::Both,
            conflict: ConflictRule::Newest,
            insert: InsertRule::Hold,
            counters: vec![],
            before: false,
            columns_ever: 3,
            indexes: vec![],
            checks: Default::default(),
        }
    }

    /// What is known where the table was shared under these definitions.
    fn former(tables: &[&Table]) -> Former {
        let mut former = Former::default();
        for table in tables {
            former.learn(&Schema {
                version: 1,
                tables: vec![(*table).clone()],
                tables_ever: 1,
            });
        }
        former
    }

    #[test]
    fn a_tables_own_rule_goes_before_the_rule_for_all() {
        let rules = rules("[\"*\"]\nconflict = \"head\"\n[price]\ndirection = \"down\"");
        let expected = schema::Rules {
            direction: Direction::Down,
            conflict: ConflictRule::Head,
            ..schema::Rules::default()
        };
        assert_eq!(rules.of(&table("price"), &Former::default()), expected);
    }

    #[test]
    fn counters_must_be_numbers_of_the_table() {
        let stock = table("stock");
        let former = former(&[&stock]);
        let check = |section: &str| {
            let rules = rules(&format!("[stock]\n{section}"));
            rules.check(&[&stock], &former).map(|told| (rules, told))
        };
        let (rules, told) = check("counters = [\"quantity\"]\nfloor = { quantity = 0 }")
            .unwrap_or_else(|failure| panic!("{failure}"));
        assert!(told.is_empty(), "{told:?}");
        let counter = Counter {
            column: 1,
            floor: Some(0),
        };
        assert_eq!(rules.of(&stock, &former).counters, [counter]);
        for wrong in [
            "counters = [\"note\"]",
            "counters = [\"id\"]",
            "counters = [\"amount\"]",
            "floor = { quantity = 0 }",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rules_go_along_when_a_table_and_its_column_are_renamed() {
        let before = table("stock");
        let mut now = table("inventory");
        now.columns[1].name = "amount".into();
        let rules = rules(
            "[stock]\ndirection = \"up\"\ncounters = [\"quantity\"]\nfloor = { quantity = 0 }",
        );
        let former = former(&[&before]);
        let found = rules.of(&now, &former);
        assert_eq!(found.direction, Direction::Up);
        assert_eq!(
            found.counters,
            [Counter {
                column: 1,
                floor: Some(0)
            }]
        );
        assert_eq!(rules.check(&[&now], &former).unwrap(), Vec::<String>::new());
    }

    /// Nobody is locked out of an office for what its application's migration did meanwhile.
    #[test]
    fn rules_of_what_is_gone_are_told_and_forbid_nothing() {
        let before = table("stock");
        let former = former(&[&before]);
        let rules = rules("[stock]\ncounters = [\"quantity\"]");
        let told = rules.check(&[], &former).unwrap();
        assert!(told[0].contains("no longer there"), "{told:?}");
        let mut without = table("stock");
        without.columns.remove(1);
        let told = rules.check(&[&without], &former).unwrap();
        assert!(told[0].contains("no column `quantity`"), "{told:?}");
        let mut retyped = table("stock");
        retyped.columns[1].kind = Type::Text { max: None };
        let told = rules.check(&[&retyped], &former).unwrap();
        assert!(told[0].contains("cannot be a counter"), "{told:?}");
        assert!(rules.of(&retyped, &former).counters.is_empty());
        // What nobody ever knew is a slip of the pen.
        assert!(rules.check(&[], &Former::default()).is_err());
    }
}
