//! A value goes from its engine to another, on to the third, and home; at every stop it is what it was.

use std::collections::BTreeMap;
use std::fmt::Write;

use branchline_core::change::Row;
use branchline_core::port::{Database, DatabaseError};
use branchline_core::schema::{Schema, Table};

use super::place::{ENGINES, Engine, Place, schema};
use super::samples::{Sample, holds, samples};

/// What became of the values of one declared type.
#[derive(Default)]
struct Score {
    passed: usize,
    held: usize,
}

/// The application's table, with a column for each sample, and a row for each value.
async fn origin(engine: Engine, samples: &[Sample]) -> (Place, Schema, Vec<(usize, Row)>) {
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
        sql = "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin; SET sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00';".into();
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
    let mut unreadable = Vec::new();
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
    let id_of = |row: &Row| match row.0[0] {
        branchline_core::value::Value::Int(id) => id,
        _ => panic!("the key is a number"),
    };
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
    (place, plan, rows)
}

/// Writes rows at a place that has the plan's table; returns those that it holds, as it sends them on.
async fn stop(
    place: &mut Place,
    plan: &Schema,
    rows: &[(usize, Row)],
    samples: &[Sample],
    wrong: &mut Vec<String>,
    from: &str,
) -> Vec<(usize, Row)> {
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
            Err(DatabaseError::Mismatch { message, .. }) if !fits => {
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
    let mut scores: BTreeMap<(usize, Engine), Score> = BTreeMap::new();
    for by in ENGINES {
        let third = ENGINES
            .into_iter()
            .find(|one| *one != from && *one != by)
            .unwrap();
        let (mut home, plan, rows) = origin(from, &samples).await;
        let mut there = Place::new(by).await;
        there.share(&plan).await.unwrap();
        let at_by = stop(
            &mut there,
            &plan,
            &rows,
            &samples,
            &mut wrong,
            &format!("{from}"),
        )
        .await;
        for (at, _) in &rows {
            scores.entry((*at, by)).or_default().held += 1;
        }
        for (at, _) in &at_by {
            let score = scores.entry((*at, by)).or_default();
            score.held -= 1;
            score.passed += 1;
        }
        let mut further = Place::new(third).await;
        further.share(&plan).await.unwrap();
        let at_third = stop(
            &mut further,
            &plan,
            &at_by,
            &samples,
            &mut wrong,
            &format!("{from} -> {by}"),
        )
        .await;
        let mut new = Place::new(from).await;
        new.share(&plan).await.unwrap();
        stop(
            &mut new,
            &plan,
            &at_third,
            &samples,
            &mut wrong,
            &format!("{from} -> {by} -> {third}"),
        )
        .await;
        // Home, into the very columns that the application declared, from which the values are gone meanwhile.
        home.sql("DELETE FROM t").await;
        home.take(&plan).await;
        stop(
            &mut home,
            &plan,
            &at_by,
            &samples,
            &mut wrong,
            &format!("{from} -> {by} -> home"),
        )
        .await;
        home.db.uninstall().await.unwrap();
    }
    let mut table = format!(
        "{:<36}{:>16}{:>16}{:>16}\n",
        format!("from {from}, to"),
        ENGINES[0],
        ENGINES[1],
        ENGINES[2]
    );
    for (at, sample) in samples.iter().enumerate() {
        write!(table, "{:<36}", sample.declared).unwrap();
        for by in ENGINES {
            let score = &scores[&(at, by)];
            let held = if score.held > 0 {
                format!("{} held", score.held)
            } else {
                String::new()
            };
            write!(table, "{:>7} {held:>8}", score.passed).unwrap();
        }
        table.push('\n');
    }
    println!("{table}");
    assert!(
        wrong.is_empty(),
        "{} values:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
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
