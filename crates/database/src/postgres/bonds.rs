//! Keys, unique constraints, indexes and foreign keys on their way to another schema version.

use std::collections::BTreeSet;

use branchline_core::port::DbResult;
use branchline_core::schema::{Schema, Table, TableId};
use tokio_postgres::types::Type as Wire;

use super::books::get;
use super::catalog::{self, plan_name};
use super::connection::PostgresDatabase;
use super::ddl::{self, ident, names, relation};
use super::evolve::{Step, alter, run};
use crate::lineage::{Link, Tried, links, names_of, numbers_of};

const COLUMN_NAMES: &str = "ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(@list) WITH ORDINALITY AS k(number, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = @table AND a.attnum = k.number ORDER BY k.place)";

/// An index with the constraint that it serves.
struct Index {
    table: TableId,
    /// Its relation, quoted and qualified.
    relation: String,
    constraint: Option<String>,
    primary: bool,
    unique: bool,
    columns: Vec<String>,
}

/// A foreign key between two tables of the plan, as it stands.
struct Reference {
    child: TableId,
    name: String,
    link: Link,
    deferral: &'static str,
    /// It goes, for a while or for good.
    loose: bool,
}

/// All that binds the tables on their way, under the new names.
pub(super) struct Bonds {
    indexes: Vec<Index>,
    references: Vec<Reference>,
}

/// Foreign keys that refer to a table: which table's, and their names.
pub(super) async fn references_to(
    db: &mut PostgresDatabase,
    table: &str,
) -> DbResult<Vec<(String, String)>> {
    let sql = "SELECT s.nspname::text, c.relname::text, f.conname::text
               FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
               JOIN pg_catalog.pg_namespace q ON q.oid = p.relnamespace
               JOIN pg_catalog.pg_class c ON c.oid = f.conrelid
               JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
               WHERE f.contype = 'f' AND f.conparentid = 0 AND q.nspname = $1 AND p.relname = $2";
    let (schema, name) = names(table);
    let rows = db
        .query(sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &name])
        .await?;
    rows.iter()
        .map(|row| Ok((plan_name(get(row, 0)?, get(row, 1)?), get(row, 2)?)))
        .collect()
}

impl Bonds {
    pub(super) async fn load(
        db: &mut PostgresDatabase,
        from: &Schema,
        goal: &Schema,
        steps: &[Step<'_>],
    ) -> DbResult<Self> {
        let mut bonds = Self {
            indexes: Vec::new(),
            references: Vec::new(),
        };
        for step in steps {
            bonds.load_indexes(db, step).await?;
        }
        for step in steps {
            bonds.load_references(db, from, goal, steps, step).await?;
        }
        Ok(bonds)
    }

    async fn load_indexes(&mut self, db: &mut PostgresDatabase, step: &Step<'_>) -> DbResult<()> {
        let columns = COLUMN_NAMES
            .replace(
                "@list",
                "(pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts]",
            )
            .replace("@table", "i.indrelid");
        let sql = format!(
            "SELECT n.nspname::text, x.relname::text, k.conname::text, i.indisprimary, i.indisunique, {columns}
             FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
             JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
             JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
             LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u')
             WHERE s.nspname = $1 AND c.relname = $2 AND i.indpred IS NULL AND i.indexprs IS NULL"
        );
        let (schema, name) = names(&step.to.name);
        for row in db
            .query(&sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &name])
            .await?
        {
            self.indexes.push(Index {
                table: step.to.id,
                relation: format!("{}.{}", ident(get(&row, 0)?), ident(get(&row, 1)?)),
                constraint: get(&row, 2)?,
                primary: get(&row, 3)?,
                unique: get(&row, 4)?,
                columns: get(&row, 5)?,
            });
        }
        Ok(())
    }

    async fn load_references(
        &mut self,
        db: &mut PostgresDatabase,
        from: &Schema,
        goal: &Schema,
        steps: &[Step<'_>],
        step: &Step<'_>,
    ) -> DbResult<()> {
        let sql = format!(
            "SELECT f.conname::text, s.nspname::text, p.relname::text, {}, {}, {}, f.confupdtype::text,
                    f.condeferrable, f.condeferred
             FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
             JOIN pg_catalog.pg_namespace s ON s.oid = p.relnamespace
             JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace q ON q.oid = c.relnamespace
             WHERE f.contype = 'f' AND f.conparentid = 0 AND q.nspname = $1 AND c.relname = $2",
            COLUMN_NAMES.replace("@list", "f.conkey").replace("@table", "f.conrelid"),
            COLUMN_NAMES.replace("@list", "f.confkey").replace("@table", "f.confrelid"),
            catalog::on_delete(),
        );
        let (schema, name) = names(&step.to.name);
        let wanted = links(goal, step.to);
        let known = step
            .former
            .map_or_else(Vec::new, |former| links(from, former));
        for row in db
            .query(&sql, &[Wire::TEXT, Wire::TEXT], &[&schema, &name])
            .await?
        {
            let parent = plan_name(get(&row, 1)?, get(&row, 2)?);
            let Some(above) = steps.iter().find(|one| one.to.name == parent) else {
                continue;
            };
            let (Some(columns), Some(parent_columns)) = (
                numbers(step, &get::<Vec<String>>(&row, 3)?),
                numbers(above, &get::<Vec<String>>(&row, 4)?),
            ) else {
                continue;
            };
            let link = Link {
                columns,
                parent: above.to.id,
                parent_columns,
                on_delete: catalog::action(get(&row, 5)?),
                on_update: catalog::action(get(&row, 6)?),
            };
            let moved =
                |step: &Step<'_>, numbers: &[u32]| numbers.iter().any(|id| retyped(step, *id));
            let touched = moved(step, &link.columns)
                || moved(above, &link.parent_columns)
                || self.unfastens(above, &link.parent_columns);
            let loose = (known.contains(&link) && !wanted.contains(&link)) || touched;
            let deferral = match (get(&row, 7)?, get(&row, 8)?) {
                (true, true) => " DEFERRABLE INITIALLY DEFERRED",
                (true, false) => " DEFERRABLE",
                _ => "",
            };
            self.references.push(Reference {
                child: step.to.id,
                name: get(&row, 0)?,
                link,
                deferral,
                loose,
            });
        }
        Ok(())
    }

    /// Whether what makes these columns of a parent unique goes.
    fn unfastens(&self, parent: &Step<'_>, numbers_referred: &[u32]) -> bool {
        let set: BTreeSet<u32> = numbers_referred.iter().copied().collect();
        self.indexes
            .iter()
            .filter(|index| index.table == parent.to.id && index.unique && goes(parent, index))
            .any(|index| {
                numbers(parent, &index.columns)
                    .is_none_or(|found| found.into_iter().collect::<BTreeSet<_>>() == set)
            })
    }

    /// Drops the foreign keys that go, and those that are in the way.
    pub(super) async fn loosen(&self, db: &mut PostgresDatabase, steps: &[Step<'_>]) -> Tried<()> {
        for reference in self.references.iter().filter(|one| one.loose) {
            if let Some(step) = steps.iter().find(|step| step.to.id == reference.child) {
                alter(
                    db,
                    step.to,
                    &format!("DROP CONSTRAINT {}", ident(&reference.name)),
                )
                .await?;
            }
        }
        Ok(())
    }

    /// Drops a table's key, unique constraints and indexes that go.
    pub(super) async fn drop_keys(&self, db: &mut PostgresDatabase, step: &Step<'_>) -> Tried<()> {
        for index in self
            .indexes
            .iter()
            .filter(|index| index.table == step.to.id && goes(step, index))
        {
            match &index.constraint {
                Some(name) => {
                    alter(db, step.to, &format!("DROP CONSTRAINT {}", ident(name))).await?
                }
                None => {
                    run(
                        db,
                        step.to.id,
                        &step.to.name,
                        &format!("DROP INDEX {}", index.relation),
                    )
                    .await?
                }
            }
        }
        Ok(())
    }

    /// Adds the key, unique constraints and indexes that are missing.
    pub(super) async fn add_keys(&self, db: &mut PostgresDatabase, step: &Step<'_>) -> Tried<()> {
        let to = step.to;
        let stays = |index: &&Index| index.table == to.id && !goes(step, index);
        let stands = |wanted: &[String], unique: bool| {
            let mut kept = self.indexes.iter().filter(stays);
            kept.any(|index| index.columns == wanted && !index.primary && index.unique == unique)
        };
        if !self.indexes.iter().filter(stays).any(|index| index.primary) {
            alter(
                db,
                to,
                &format!("ADD PRIMARY KEY ({})", ddl::columns(to, &to.key)),
            )
            .await?;
        }
        for unique in &to.unique {
            if !stands(&names_of(to, unique), true) {
                alter(
                    db,
                    to,
                    &format!("ADD UNIQUE ({})", ddl::columns(to, unique)),
                )
                .await?;
            }
        }
        for index in &to.indexes {
            if !stands(&names_of(to, index), false) {
                let sql = format!(
                    "CREATE INDEX ON {} ({})",
                    relation(&to.name),
                    ddl::columns(to, index)
                );
                run(db, to.id, &to.name, &sql).await?;
            }
        }
        Ok(())
    }

    /// Adds the foreign keys that are missing; those of tables just created come with [`ddl::add_foreign_keys`].
    pub(super) async fn fasten(
        &self,
        db: &mut PostgresDatabase,
        goal: &Schema,
        created: &[String],
    ) -> Tried<()> {
        let waiting = ddl::waiting(db).await?;
        for table in &goal.tables {
            if created.contains(&table.name) || waiting.contains(&table.name) {
                continue;
            }
            let shared = table
                .foreign_keys
                .iter()
                .filter(|key| goal.table_named(&key.parent).is_some());
            for (key, link) in shared.zip(links(goal, table)) {
                let mut of_table = self.references.iter().filter(|one| one.child == table.id);
                let stands = of_table.clone().any(|one| !one.loose && one.link == link);
                if !stands {
                    let before = of_table.find(|one| one.link == link);
                    let sql = ddl::foreign_key(table, key, before.map_or("", |one| one.deferral));
                    run(db, table.id, &table.name, &sql).await?;
                }
            }
        }
        Ok(())
    }
}

/// The numbers of a table's columns by their new names; `None` where one is not the plan's.
fn numbers(step: &Step<'_>, named: &[String]) -> Option<Vec<u32>> {
    let drops = step.columns.drops_renamed(step.to);
    let number = |name: &String| {
        let stays = step.to.columns.iter().find(|column| column.name == *name);
        let goes = || {
            let at = drops.iter().position(|dropped| dropped == name)?;
            let was = step.columns.drops.get(at)?;
            step.former?
                .columns
                .iter()
                .find(|column| column.name == *was)
        };
        stays.or_else(goes).map(|column| column.id)
    };
    named.iter().map(number).collect()
}

/// Whether an index is one that the former version had and the new one has not, or cannot stay as it is.
fn goes(step: &Step<'_>, index: &Index) -> bool {
    let to = step.to;
    if index.primary {
        return index.columns != names_of(to, &to.key);
    }
    let Some(numbers) = numbers(step, &index.columns) else {
        return false;
    };
    let has = |table: &Table| {
        let sets = if index.unique {
            &table.unique
        } else {
            &table.indexes
        };
        sets.iter().any(|set| numbers_of(table, set) == numbers)
    };
    !has(to) && step.former.is_some_and(has)
}

fn retyped(step: &Step<'_>, id: u32) -> bool {
    let at = step.to.columns.iter().position(|column| column.id == id);
    let source = at.and_then(|at| {
        Some((
            step.to.columns.get(at)?,
            step.columns.sources.get(at)?.as_ref()?,
        ))
    });
    let Some((column, source)) = source else {
        return true;
    };
    let live = step.live.columns.iter().find(|one| one.name == *source);
    live.is_none_or(|live| !catalog::same(&column.kind, &live.kind))
}
