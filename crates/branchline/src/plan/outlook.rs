//! What the plan amounts to: what is shared, what the list would add or take out, and what cannot be shared.

use branchline_core::books;
use branchline_core::evolution::{Follow, Next, preview};
use branchline_core::failure::OfficeError;
use branchline_core::port::{Database, Finding, Inspection, LeftOut, Purpose};
use branchline_core::schema::{Schema, Table};
use branchline_database::{AnyDatabase, checks};
use serde_json::{Value, json};

use super::former::Former;
use super::{Names, PlanSettings, TableList};
use crate::exit::Outcome;

/// What the head would do by a plan, without doing it.
pub struct Outlook {
    /// What is shared.
    pub present: Schema,
    /// What would be.
    pub next: Next,
    /// The tables as they are.
    pub found: Inspection,
    /// The names that tables had.
    pub former: Former,
}

impl Outlook {
    /// Looks, at the head. Everything that the list names counts as asked for.
    pub async fn at_head(db: &mut AnyDatabase, settings: &PlanSettings) -> Outcome<Self> {
        let settings = PlanSettings {
            follow: Follow::Follow,
            ..settings.clone()
        };
        let (present, former) = present(db).await?;
        let names = Names::default();
        if let Ok(mut known) = names.write() {
            known.clone_from(&former);
        }
        let plan = settings.plan(&names, std::collections::BTreeSet::new());
        let (next, found) = preview(db, &plan).await?;
        Ok(Self {
            present,
            next,
            found,
            former,
        })
    }

    /// What the list names and cannot be shared: tables with a problem, tables that are not there, and shared ones that
    /// cannot be followed.
    pub fn cannot(&self, list: Option<&TableList>) -> Vec<Finding> {
        let mut cannot = not_shareable(&self.found.findings, &self.present, list);
        for name in list.into_iter().flat_map(TableList::exact) {
            let known = |tables: &[Table]| tables.iter().any(|table| table.name == name);
            let there = known(&self.found.tables) || known(&self.present.tables);
            let told = cannot.iter().any(|one| one.table.as_deref() == Some(name));
            if !there && !told && !self.former.knows_table(name) {
                cannot.push(Finding {
                    fatal: true,
                    table: Some(name.into()),
                    problem: "there is no such table in this database".into(),
                    advice: "create it, or take it out with `branchline plan remove`".into(),
                });
            }
        }
        for (id, problem) in &self.next.stuck {
            let table = self.present.table(*id).map(|table| table.name.clone());
            cannot.push(Finding {
                fatal: true,
                table,
                problem: format!("its change is not followed: {problem}"),
                advice: "mend the table, or take it out with `branchline plan remove`".into(),
            });
        }
        cannot
    }

    /// What of the shared tables, and of those that would be, is not carried over to where they are created.
    pub fn not_carried(&self) -> Vec<LeftOut> {
        let mut not_carried = not_carried(&self.found, &self.next.schema);
        let only_present = self.found.left_out.iter().filter(|one| {
            let shared = |schema: &Schema| schema.table_named(&one.table).is_some();
            shared(&self.present) && !shared(&self.next.schema)
        });
        not_carried.extend(only_present.cloned());
        not_carried
    }

    /// Names of tables that the next version has and the present one has not.
    pub fn would_add(&self) -> Vec<&str> {
        names_without(&self.next.schema, &self.present)
    }

    /// Names of tables that would be taken out.
    pub fn would_remove(&self) -> Vec<&str> {
        names_without(&self.present, &self.next.schema)
    }
}

fn names_without<'a>(one: &'a Schema, other: &Schema) -> Vec<&'a str> {
    let tables = one.tables.iter();
    tables
        .filter(|table| other.table(table.id).is_none())
        .map(|table| table.name.as_str())
        .collect()
}

/// What of a schema's tables is not carried over from the head to where they are created.
pub fn not_carried(found: &Inspection, schema: &Schema) -> Vec<LeftOut> {
    let left_out = found.left_out.iter();
    let shared = left_out.filter(|one| schema.table_named(&one.table).is_some());
    let of_counters = schema.tables.iter().flat_map(checks::of_counters);
    shared.cloned().chain(of_counters).collect()
}

/// A document's `not_carried`, for a person.
pub fn tell_not_carried(document: &Value) -> Vec<String> {
    let left_out = document["not_carried"].as_array().into_iter().flatten();
    let told = left_out.map(|one| {
        let part = |key: &str| one[key].as_str().unwrap_or_default();
        format!(
            "not carried over to where table `{}` is created: {}: {}",
            part("table"),
            part("what"),
            part("why")
        )
    });
    told.collect()
}

/// What is shared now, and the names that tables had.
pub async fn present(db: &mut AnyDatabase) -> Outcome<(Schema, Former)> {
    db.begin(Purpose::Read).await?;
    let known = async {
        let schema = books::newest_schema(db).await?.unwrap_or_default();
        Ok::<_, OfficeError>((schema, Former::load(db).await?))
    };
    let known = known.await;
    db.rollback().await?;
    Ok(known?)
}

/// The findings that keep tables out which the list names.
pub fn not_shareable(
    findings: &[Finding],
    shared: &Schema,
    list: Option<&TableList>,
) -> Vec<Finding> {
    let named = |finding: &&Finding| {
        let table = finding.table.as_deref();
        table.is_some_and(|table| {
            shared.table_named(table).is_none() && list.is_some_and(|list| list.choose(table))
        })
    };
    let fatal = findings.iter().filter(|finding| finding.fatal);
    fatal.filter(named).cloned().collect()
}

/// A finding under the public interface's keys.
pub fn to_json(finding: &Finding) -> Value {
    json!({ "table": finding.table, "problem": finding.problem, "advice": finding.advice })
}

/// What is not carried over, under the public interface's keys.
pub fn left_out_to_json(left: &LeftOut) -> Value {
    json!({ "table": left.table, "what": left.what, "why": left.why })
}

/// A shared table under the public interface's keys.
pub fn table_to_json(table: &Table) -> Value {
    let columns = table.columns.iter().enumerate().map(|(at, column)| {
        json!({
            "name": column.name, "type": column.kind.to_string(), "nullable": column.nullable,
            "key": table.is_key(at), "default": column.default.as_ref().map(branchline_core::value::Value::to_json),
        })
    });
    let name_of = |at: u16| {
        let column = table.columns.get(usize::from(at));
        column.map(|column| column.name.as_str())
    };
    let counters = table.counters.iter();
    let counters: Vec<Value> = counters
        .map(|counter| json!({ "column": name_of(counter.column), "floor": counter.floor }))
        .collect();
    let checks = table.made_checks();
    let checks: Vec<String> = checks.map(|check| checks::told(table, check)).collect();
    let parents = table.foreign_keys.iter().map(|key| key.parent.as_str());
    json!({
        "name": table.name, "id": table.id, "direction": table.direction, "conflict": table.conflict,
        "insert": table.insert, "counters": counters, "before": table.before,
        "columns": columns.collect::<Vec<_>>(), "parents": parents.collect::<Vec<_>>(),
        "checks": checks,
    })
}
