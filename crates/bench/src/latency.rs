//! One row every 50 ms; the time runs from the commit's answer until another connection sees the row at the other side.

use std::time::{Duration, Instant};

use branchline_testkit::servers::Postgres;

use crate::Arguments;
use crate::company::{Company, Side, Way};
use crate::machine::Machine;
use crate::native::Native;
use crate::table::Figures;

const PAUSE: Duration = Duration::from_millis(50);
/// A look every so often.
const LOOK: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures all ways and directions in turn.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let rows = arguments.seconds * 5 * 20;
    for _ in 0..arguments.repetitions {
        let native = Native::found(machine);
        run(
            (&machine.here, &native.here),
            (&machine.there, &native.there),
            rows,
            "latency: native",
            figures,
        );
        drop(native);
        for way in Way::ALL {
            let company = Company::found(machine, way);
            for (from, to, direction) in [
                (Side::Head, Side::Branch, "head → branch"),
                (Side::Branch, Side::Head, "branch → head"),
            ] {
                let name = format!("latency: {}, {direction}", way.name());
                if name.contains(&arguments.only) {
                    run(
                        company.database(from),
                        company.database(to),
                        rows,
                        &name,
                        figures,
                    );
                }
            }
        }
    }
}

fn run(
    from: (&Postgres, &str),
    to: (&Postgres, &str),
    rows: u32,
    name: &str,
    figures: &mut Figures,
) {
    let (from, to) = (from.0.url(from.1), to.0.url(to.1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut seen: Vec<f64> = runtime.block_on(async {
        let (writer, connection) = tokio_postgres::connect(&from, tokio_postgres::NoTls).await.expect("the source answers");
        tokio::spawn(connection);
        let (reader, connection) = tokio_postgres::connect(&to, tokio_postgres::NoTls).await.expect("the target answers");
        tokio::spawn(connection);
        let write = "INSERT INTO sales SELECT gen_random_uuid(), 1, 'SKU-000001', 1, 9.90, now(), 'counter sale'
                     RETURNING id::text";
        let write = writer.prepare(write).await.expect("the table is there");
        let look = reader.prepare("SELECT FROM sales WHERE id = $1::text::uuid").await.expect("the table is there");
        let mut seen = Vec::new();
        for _ in 0..rows {
            let id: String = writer.query_one(&write, &[]).await.expect("an insert").get(0);
            let committed = Instant::now();
            while reader.query(&look, &[&id]).await.expect("a look").is_empty() {
                assert!(committed.elapsed() < PATIENCE, "{name}: a row did not arrive in {PATIENCE:?}");
                std::thread::sleep(LOOK);
            }
            let took = committed.elapsed();
            seen.push(took.as_secs_f64() * 1000.0);
            tokio::time::sleep(PAUSE.saturating_sub(took)).await;
        }
        seen
    });
    seen.sort_by(f64::total_cmp);
    for (share, what) in [(50, "p50 ms"), (95, "p95 ms"), (99, "p99 ms")] {
        figures.add(name, what, seen[(seen.len() - 1) * share / 100]);
    }
    eprintln!(
        "{name}: p50 {:.1} ms, p99 {:.1} ms",
        seen[seen.len() / 2],
        seen[(seen.len() - 1) * 99 / 100]
    );
}
