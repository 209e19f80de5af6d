//! What capture costs the source: `pgbench` inserts with and without it, in turn, as transactions a second.

use std::process::Command;

use branchline_testkit::servers::Postgres;

use crate::Arguments;
use crate::company::{Company, Side, Way};
use crate::machine::{Machine, fresh_database, output};
use crate::native::Native;
use crate::sales::{self, Shape, TABLE};
use crate::table::Figures;

const LOADS: [(Shape, u32); 3] = [
    (Shape::Single, 2),
    (Shape::Single, 16),
    (Shape::Thousand, 2),
];

/// Measures every load, durable and not: bare, with triggers only, with the office running, and with a native slot.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let bare = fresh_database(&machine.here, "bare");
    machine.here.sql(&bare, &[TABLE]);
    let mut company = Company::found(machine, Way::Direct);
    for (durable, (shape, clients)) in [true, false]
        .into_iter()
        .flat_map(|d| LOADS.map(|load| (d, load)))
    {
        let commit = if durable { "durable" } else { "not durable" };
        let load = format!("capture, {commit}, {}, {clients} clients", shape.name());
        if !load.contains(&arguments.only) {
            continue;
        }
        for _ in 0..arguments.repetitions {
            let bench = |database: &str| {
                pgbench(
                    &machine.here,
                    database,
                    shape,
                    clients,
                    durable,
                    arguments.seconds,
                )
            };
            company.stop(Side::Head);
            company.stop(Side::Branch);
            machine.settle();
            let without = bench(&bare);
            let triggers = bench(&company.head);
            company.start(Side::Head);
            company.taken(Side::Head);
            machine.settle();
            let again = bench(&bare);
            let running = bench(&company.head);
            company.taken(Side::Head);
            let native = Native::found(machine);
            machine.settle();
            let third = bench(&bare);
            let slot = bench(&native.here);
            drop(native);
            figures.add(&load, "bare tx/s", without);
            figures.add(&load, "triggers", triggers / without);
            figures.add(&load, "head running", running / again);
            figures.add(&load, "native slot", slot / third);
            eprintln!(
                "{load}: bare {without:.0}, triggers {triggers:.0}, running {running:.0}/{again:.0}, slot {slot:.0}/{third:.0}"
            );
            machine.here.sql(&bare, &["TRUNCATE sales"]);
        }
    }
    drop(company);
    machine
        .here
        .sql("postgres", &[&format!("DROP DATABASE {bare}")]);
}

fn pgbench(
    server: &Postgres,
    database: &str,
    shape: Shape,
    clients: u32,
    durable: bool,
    seconds: u32,
) -> f64 {
    let script = server
        .data()
        .join("..")
        .join(format!("insert-{}.sql", shape.rows()));
    std::fs::write(&script, sales::script(shape)).expect("the server's folder can be written");
    let mut command = Command::new(server.bin("pgbench"));
    command.args([
        "-n",
        "-M",
        "prepared",
        "-c",
        &clients.to_string(),
        "-j",
        "2",
        "-T",
        &seconds.to_string(),
    ]);
    command.arg("-f").arg(&script).arg(server.url(database));
    command.env(
        "PGOPTIONS",
        format!(
            "-c synchronous_commit={}",
            if durable { "on" } else { "off" }
        ),
    );
    let said = output(&mut command);
    let tps = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("pgbench said no rate:\n{said}"))
}
