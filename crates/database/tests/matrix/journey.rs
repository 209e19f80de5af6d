//! A value goes from its engine to another, on to the third, and home; at every stop it is what it was.

use std::collections::BTreeMap;
use std::fmt::Write;

use branchline_core::change::Row;
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::{Schema, Table};
use branchline_core::value::Value;
use branchline_testkit::servers;

use super::place::{ENGINES, Engine, Place, schema};
use super::samples::{Sample, holds, samples};

/// The rows of a plan, each with the number of its sample.
type Rows = Vec<(usize, Row)>;

/// An application's table, shared as it was found.
struct Origin {
    place: Place,
    plan: Schema,
    rows: Rows,
    /// The values as SQL, by the rows' keys.
    written: BTreeMap<i64, String>,
}

fn id_of(row: &Row) -> i64 {
    match row.0[0] {
        Value::Int(id) => id,
        _ => panic!("the key is a number"),
    }
}

/// The application's table, with a column for each sample, and a row for each value.
async fn origin(engine: Engine, samples: &[Sample]) -> Origin {
    let name = if engine == Engine::MariaDb {
        "`t`"
    } else {
        "\"t\""
    };
    let mut sql = String::new();
    for sample in samples {
        write!(sql, "{};", sample.before).unwrap();
    }
    if engine == Engine::MariaDb {
        let exact = match servers::mariadb().is_mysql() {
            true => "utf8mb4_0900_bin",
            false => "utf8mb4_nopad_bin",
        };
        sql = format!(
            "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE {exact}; SET sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00';"
        );
    }
    let columns: Vec<String> = (0..)
        .zip(samples)
        .map(|(at, sample)| {
            let null = match (engine, sample.declared) {
                (Engine::MariaDb, _) => " NULL",
                (_, "named") => " DEFAULT 'd'",
                _ => "",
            };
            format!("c{at} {}{null}", sample.declared)
        })
        .collect();
    write!(
        sql,
        "CREATE TABLE {name} (id INTEGER PRIMARY KEY, {});",
        columns.join(", ")
    )
    .unwrap();
    let (mut id, mut of) = (0, BTreeMap::new());
    let (mut unreadable, mut written) = (Vec::new(), BTreeMap::new());
    for (at, sample) in samples.iter().enumerate() {
        for (value, legal) in (sample.values.iter().map(|v| (v, true)))
            .chain(sample.unreadable.iter().map(|v| (v, false)))
        {
            id += 1;
            write!(
                sql,
                "INSERT INTO {name} (id, c{at}) VALUES ({id}, {value});"
            )
            .unwrap();
            of.insert(i64::from(id), at);
            written.insert(i64::from(id), value.clone());
            if !legal {
                unreadable.push((id, sample.declared, value));
            }
        }
    }
    let mut place = Place::with(engine, &sql).await;
    let found = place.look().await;
    assert!(
        !found.tables.is_empty(),
        "{engine}: {:#?}",
        found
            .findings
            .iter()
            .filter(|f| f.fatal)
            .collect::<Vec<_>>()
    );
    let plan = schema(found.tables);
    place.share(&plan).await.unwrap();
    let (rows, listed) = place.take_all(&plan).await;
    let listed: Vec<i64> = listed
        .iter()
        .map(|one| id_of(&Row(one.key.0.clone())))
        .collect();
    let mut wrong = Vec::new();
    for (id, declared, value) in &unreadable {
        if !listed.contains(&i64::from(*id)) {
            wrong.push(format!("{engine} {declared}: {value} is sent"));
        }
    }
    for id in &listed {
        if !unreadable
            .iter()
            .any(|(other, _, _)| i64::from(*other) == *id)
        {
            wrong.push(format!(
                "{engine} {}: row {id} is not sent",
                samples[of[id]].declared
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let rows = rows
        .into_iter()
        .map(|row| (of[&id_of(&row)], row))
        .collect();
    Origin {
        place,
        plan,
        rows,
        written,
    }
}

/// Writes rows at a place that has the plan's table; returns those that it holds, as it sends them on.
async fn stop(
    place: &mut Place,
    plan: &Schema,
    rows: &[(usize, Row)],
    samples: &[Sample],
    wrong: &mut Vec<String>,
    from: &str,
) -> Rows {
    let table: &Table = &plan.tables[0];
    let mut kept = Vec::new();
    for (at, row) in rows {
        let (kind, value) = (&table.columns[at + 1].kind, &row.0[at + 1]);
        let label = || {
            let shown: String = format!("{value:?}").chars().take(60).collect();
            format!(
                "{from} -> {}, {} ({kind}) {shown}",
                place.engine, samples[*at].declared
            )
        };
        let fits = holds(place.engine, kind, value);
        let label = label();
        match place.put(plan, row).await {
            Ok(()) if fits => kept.push((*at, row.clone())),
            Ok(()) => wrong.push(format!("{label}: not refused")),
            Err(
                DatabaseError::Mismatch { message, .. }
                | DatabaseError::Constraint {
                    message,
                    foreign_key: false,
                    ..
                },
            ) if !fits => {
                assert!(!message.is_empty());
            }
            Err(error) => wrong.push(format!("{label}: {error:?}")),
        }
    }
    let (found, unreadable) = place.take_all(plan).await;
    for one in unreadable {
        wrong.push(format!("{from} -> {}: unreadable {one:?}", place.engine));
    }
    let found: BTreeMap<_, _> = found
        .into_iter()
        .map(|row| (row.0[0].clone(), row))
        .collect();
    let mut on = Vec::new();
    for (at, row) in kept {
        match found.get(&row.0[0]) {
            Some(same) if *same == row => on.push((at, row)),
            other => {
                let now = other.map(|row| &row.0[at + 1]);
                let text: String = format!("{:?} became {now:?}", row.0[at + 1])
                    .chars()
                    .take(300)
                    .collect();
                wrong.push(format!(
                    "{from} -> {}, {}: {text}",
                    place.engine, samples[at].declared
                ));
            }
        }
    }
    on
}

async fn journeys(from: Engine) {
    let samples = samples(from);
    let mut wrong = Vec::new();
    let mut held: BTreeMap<(usize, Engine), Vec<String>> = BTreeMap::new();
    let mut kinds = Vec::new();
    for by in ENGINES {
        let third = ENGINES
            .into_iter()
            .find(|one| *one != from && *one != by)
            .unwrap();
        let Origin {
            place: mut home,
            plan,
            rows,
            written,
        } = origin(from, &samples).await;
        let mut there = Place::new(by).await;
        there.share(&plan).await.unwrap();
        let way = from.to_string();
        let at_by = stop(&mut there, &plan, &rows, &samples, &mut wrong, &way).await;
        for (at, row) in &rows {
            if !at_by.iter().any(|(_, other)| id_of(other) == id_of(row)) {
                let values = held.entry((*at, by)).or_default();
                values.push(written[&id_of(row)].clone());
            }
        }
        let mut further = Place::new(third).await;
        further.share(&plan).await.unwrap();
        let way = format!("{from} -> {by}");
        let at_third = stop(&mut further, &plan, &at_by, &samples, &mut wrong, &way).await;
        let mut new = Place::new(from).await;
        new.share(&plan).await.unwrap();
        let way = format!("{from} -> {by} -> {third}");
        stop(&mut new, &plan, &at_third, &samples, &mut wrong, &way).await;
        // Home, into the very columns that the application declared, from which the values are gone meanwhile.
        home.sql("DELETE FROM t").await;
        home.take(&plan).await;
        let way = format!("{from} -> {by} -> home");
        stop(&mut home, &plan, &at_by, &samples, &mut wrong, &way).await;
        home.db.uninstall().await.unwrap();
        kinds = (plan.tables[0].columns.iter().skip(1))
            .map(|column| column.kind.to_string())
            .collect();
    }
    assert!(
        wrong.is_empty(),
        "{} values:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let mut table = String::from(
        "| declared | travels as | values tried | held elsewhere | stay here |\n|---|---|---|---|---|\n",
    );
    for (at, sample) in samples.iter().enumerate() {
        let held: Vec<String> = (ENGINES.iter())
            .filter_map(|by| Some(format!("{by}: {}", listed(held.get(&(at, *by))?))))
            .collect();
        let tried = sample.values.len() + sample.unreadable.len();
        writeln!(
            table,
            "| `{}` | {} | {tried} | {} | {} |",
            sample.declared.replace('|', "\\|"),
            kinds[at],
            held.join("; "),
            listed(&sample.unreadable)
        )
        .unwrap();
    }
    super::page::says(&format!("from {from}"), &table);
}

/// The values as the page shows them.
fn listed(values: &[String]) -> String {
    let shown = values.iter().map(|value| {
        let text: String = value.chars().take(48).collect();
        let rest = if text.len() < value.len() { "…" } else { "" };
        format!("`{}{rest}`", text.replace('`', "'").replace('|', "\\|"))
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_postgres_come_home_as_they_left() {
    journeys(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_mariadb_come_home_as_they_left() {
    journeys(Engine::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_sqlite_come_home_as_they_left() {
    journeys(Engine::Sqlite).await;
}
