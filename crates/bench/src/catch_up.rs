//! A backlog is written while the link is off; the time runs from the link's return until every row is there.
//!
//! *Away*: only the receiving office's process is stopped, as in an outage of the line; the sending office goes on
//! capturing. *Cold*: both are stopped. Native: the subscription is disabled.

use std::time::{Duration, Instant};

use crate::Arguments;
use crate::company::{Company, Side, Way};
use crate::machine::{Machine, fresh_database};
use crate::native::Native;
use crate::sales::{self, Shape, TABLE};
use crate::table::Figures;

/// How long rows may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Measures all ways, shapes and directions in turn, as often as asked.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    for repetition in 1..=arguments.repetitions {
        for shape in Shape::ALL {
            let name = |contender: &str| format!("catch-up, {}: {contender}", shape.name());
            let wanted = |name: &str| name.contains(&arguments.only);
            native(machine, arguments.rows, shape, &name("native"), figures);
            for way in Way::ALL {
                for from in [Side::Head, Side::Branch] {
                    for cold in [false, true] {
                        let direction = if from == Side::Head {
                            "head → branch"
                        } else {
                            "branch → head"
                        };
                        let off = if cold { "cold" } else { "away" };
                        let name = name(&format!("{}, {direction}, {off}", way.name()));
                        if wanted(&name) {
                            run(
                                machine,
                                arguments.rows,
                                shape,
                                (way, from, cold),
                                &name,
                                figures,
                            );
                        }
                    }
                }
            }
            eprintln!("catch-up {}: repetition {repetition} done", shape.name());
        }
    }
}

/// Notes how long the rows took, and the processor time.
pub fn note(figures: &mut Figures, name: &str, rows: u32, took: Duration, cpu: f64) {
    let rate = f64::from(rows) / took.as_secs_f64();
    eprintln!("{name}: {rate:.0} rows/s");
    figures.add(name, "rows/s", rate);
    figures.add(name, "CPU s per 100k", cpu * 100_000.0 / f64::from(rows));
}

fn native(machine: &Machine, rows: u32, shape: Shape, name: &str, figures: &mut Figures) {
    let native = Native::found(machine);
    native.enable(false);
    sales::write(&machine.here, &native.here, rows, shape);
    let bytes = native.bytes_waiting();
    machine.settle();
    let began = Instant::now();
    native.enable(true);
    let took = sales::wait(&machine.there, &native.there, rows, began, PATIENCE);
    // Both processes are new since the link's return.
    note(figures, name, rows, took, native.cpu());
    figures.add(name, "bytes/change", bytes / f64::from(rows));
    let copied = fresh_database(&machine.there, "copied");
    machine.there.sql(&copied, &[TABLE]);
    machine.settle();
    let took = sales::copy((&machine.here, &native.here), (&machine.there, &copied));
    figures.add(
        "COPY out of one into the other",
        "rows/s",
        f64::from(rows) / took.as_secs_f64(),
    );
    machine
        .there
        .sql("postgres", &[&format!("DROP DATABASE {copied}")]);
}

fn run(
    machine: &Machine,
    rows: u32,
    shape: Shape,
    (way, from, cold): (Way, Side, bool),
    name: &str,
    figures: &mut Figures,
) {
    let mut company = Company::found(machine, way);
    let (to, stream) = if from == Side::Head {
        (Side::Branch, "log")
    } else {
        (Side::Head, "outbox")
    };
    company.stop(to);
    if cold {
        company.stop(from);
    }
    let (server, database) = company.database(from);
    sales::write(server, database, rows, shape);
    if !cold {
        company.taken(from);
    }
    machine.settle();
    let before = company.cpu();
    let began = Instant::now();
    company.start(to);
    if cold {
        company.start(from);
    }
    let (server, database) = company.database(to);
    let took = sales::wait(server, database, rows, began, PATIENCE);
    let used: Vec<f64> = company
        .cpu()
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    note(figures, name, rows, took, used.iter().sum());
    for (part, used) in ["head", "branch", "head's server", "branch's server"]
        .iter()
        .zip(used)
    {
        eprintln!(
            "    {part}: {:.2} CPU s per 100k",
            used * 100_000.0 / f64::from(rows)
        );
    }
    figures.add(
        name,
        "bytes/change",
        company.bytes(from, stream) / f64::from(rows),
    );
    for (side, column) in [(Side::Head, "head MiB"), (Side::Branch, "branch MiB")] {
        figures.add(name, column, company.usage(side).peak);
    }
}
