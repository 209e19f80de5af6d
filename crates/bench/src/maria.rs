//! The backlog of `catch_up` between two MariaDB servers: Branchline beside MariaDB's own replication.

use std::time::{Duration, Instant};

use branchline_testkit::servers::{MariaDb, free_port};
use mysql_async::prelude::Queryable;

use crate::Arguments;
use crate::catch_up::{PATIENCE, note};
use crate::company::{Offices, Side};
use crate::machine::{Machine, fresh_name, usage};
use crate::sales::Shape;
use crate::table::Figures;

const TABLE: &str =
    "CREATE TABLE sales (id UUID PRIMARY KEY, branch INT, sku VARCHAR(20), qty INT, price DECIMAL(12,2),
     sold_at DATETIME(6), note VARCHAR(40))";

/// A row's values, made from a number `i`. The key is as random as PostgreSQL's.
const VALUES: &str =
    "INSERT(INSERT(MD5(CONCAT(i, RAND())), 13, 1, '4'), 17, 1, '8'), i % 40, CONCAT('SKU-', LPAD(i % 5000, 6, '0')), 1 + i % 9,
     ROUND(RAND() * 400, 2), NOW(6), 'counter sale'";

/// The row that is written last.
const LAST: &str = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";

/// The account of a replica.
const REPLICA: &str = "CREATE USER replica@'127.0.0.1' IDENTIFIED BY 'replica';
     GRANT REPLICATION SLAVE ON *.* TO replica@'127.0.0.1'";

/// As durable as by default, with a log for a replica at the one.
fn servers() -> [MariaDb; 2] {
    let common = [
        "binlog-format=ROW",
        "innodb-log-file-size=1G",
        "innodb-buffer-pool-size=1G",
    ];
    let here = [&common[..], &["log-bin=binlog", "server-id=1"]].concat();
    let there = [&common[..], &["server-id=2"]].concat();
    [&here, &there].map(|settings| MariaDb::start_with(settings))
}

/// Measures both contenders, shapes and directions in turn, as often as asked.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let servers = servers();
    servers[0].sql("mysql", REPLICA);
    let wanted = |name: &str| name.contains(&arguments.only);
    for repetition in 1..=arguments.repetitions {
        for shape in Shape::ALL {
            let name = |contender: &str| format!("MariaDB, {}: {contender}", shape.name());
            for (threads, contender) in [(0, "native"), (4, "native, 4 threads")] {
                native(
                    &servers,
                    arguments.rows,
                    shape,
                    threads,
                    &name(contender),
                    figures,
                );
            }
            for (from, direction) in [
                (Side::Head, "head → branch"),
                (Side::Branch, "branch → head"),
            ] {
                for (cold, off) in [(false, "away"), (true, "cold")] {
                    let name = name(&format!("direct, {direction}, {off}"));
                    if wanted(&name) {
                        let what = (shape, from, cold);
                        run(machine, &servers, arguments.rows, what, &name, figures);
                    }
                }
            }
            eprintln!("MariaDB {}: repetition {repetition} done", shape.name());
        }
    }
}

/// Writes so many rows, the marked one last.
fn write(server: &MariaDb, database: &str, rows: u32, shape: Shape) {
    let (each, times) = match shape {
        Shape::Single => ("(i)", rows - 1),
        Shape::Thousand => ("", (rows - 1) / 1000),
    };
    let insert = match each {
        "" => {
            format!("INSERT INTO sales SELECT {VALUES} FROM (SELECT seq AS i FROM seq_1_to_1000) s")
        }
        _ => format!("INSERT INTO sales VALUES ({VALUES})"),
    };
    let rest = match shape {
        Shape::Single => 0,
        Shape::Thousand => (rows - 1) % 1000,
    };
    // Only the backlog's making is not durable.
    let sql = format!(
        "SET GLOBAL innodb_flush_log_at_trx_commit = 0;\nDELIMITER //\n\
         BEGIN NOT ATOMIC DECLARE i INT DEFAULT 0; WHILE i < {times} DO SET i = i + 1; {insert}; END WHILE; END//\n\
         DELIMITER ;\n\
         INSERT INTO sales SELECT {VALUES} FROM (SELECT seq AS i FROM seq_1_to_1000) s LIMIT {rest};\n\
         INSERT INTO sales VALUES ({LAST}, 1, 'SKU', 1, 1, NOW(6), 'last');\n\
         SET GLOBAL innodb_flush_log_at_trx_commit = 1"
    );
    server.sql(database, &sql);
}

/// Waits until all rows are there, looking for the last one by its key before counting.
fn wait(server: &MariaDb, database: &str, rows: u32, began: Instant) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let url = server.url(database);
        let mut conn = mysql_async::Conn::from_url(url)
            .await
            .expect("the database answers");
        let look = format!("SELECT COUNT(*) FROM sales WHERE id = {LAST}");
        loop {
            let last: Option<u32> = conn.query_first(&look).await.expect("a look");
            if last == Some(1) {
                let seen = began.elapsed();
                let count: Option<u32> = conn
                    .query_first("SELECT COUNT(*) FROM sales")
                    .await
                    .expect("a count");
                if count >= Some(rows) {
                    return seen;
                }
            }
            assert!(
                began.elapsed() < PATIENCE,
                "the rows did not arrive in {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Processor time so far of both servers.
fn servers_cpu(servers: &[MariaDb; 2]) -> f64 {
    let pid = |server: &MariaDb| {
        let file = server.sql("mysql", "SELECT @@pid_file");
        let pid = std::fs::read_to_string(file).unwrap_or_default();
        pid.trim().parse().ok()
    };
    let pids = servers.iter().filter_map(pid);
    pids.map(|pid| usage(pid).cpu).sum()
}

/// Puts both servers' dirty pages away, so that no run pays for the one before.
fn settle(servers: &[MariaDb; 2]) {
    for server in servers {
        server.sql("mysql", "SET GLOBAL innodb_max_dirty_pages_pct = 0");
        let deadline = Instant::now() + Duration::from_secs(30);
        let dirty = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS
                     WHERE VARIABLE_NAME = 'INNODB_BUFFER_POOL_PAGES_DIRTY'";
        while server.sql("mysql", dirty) != "0" && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        server.sql("mysql", "SET GLOBAL innodb_max_dirty_pages_pct = 90");
    }
}

/// Where the server's log ends: file and position.
fn log_end(server: &MariaDb) -> (String, f64) {
    let told = server.sql("mysql", "SHOW MASTER STATUS");
    let mut fields = told.split('\t');
    let file = fields.next().unwrap_or_default().to_owned();
    let position = fields.next().and_then(|field| field.parse().ok());
    (file, position.expect("the server writes a log"))
}

fn native(
    servers: &[MariaDb; 2],
    rows: u32,
    shape: Shape,
    threads: u32,
    name: &str,
    figures: &mut Figures,
) {
    let [here, there] = servers;
    let database = fresh_name("native");
    for server in servers {
        server.sql(
            "mysql",
            &format!("CREATE DATABASE {database}; USE {database}; {TABLE}"),
        );
    }
    let (file, position) = log_end(here);
    write(here, &database, rows, shape);
    let (ends, end) = log_end(here);
    there.sql(
        "mysql",
        &format!(
            "SET GLOBAL slave_parallel_threads = {threads};
             CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {}, MASTER_USER = 'replica',
               MASTER_PASSWORD = 'replica', MASTER_LOG_FILE = '{file}', MASTER_LOG_POS = {position}, MASTER_USE_GTID = no",
            here.port()
        ),
    );
    settle(servers);
    let before = servers_cpu(servers);
    let began = Instant::now();
    there.sql("mysql", "START SLAVE");
    let took = wait(there, &database, rows, began);
    note(figures, name, rows, took, servers_cpu(servers) - before);
    if file == ends {
        figures.add(name, "bytes/change", (end - position) / f64::from(rows));
    }
    there.sql("mysql", "STOP SLAVE; RESET SLAVE ALL");
    for server in servers {
        server.sql("mysql", &format!("DROP DATABASE {database}"));
    }
}

fn run(
    machine: &Machine,
    servers: &[MariaDb; 2],
    rows: u32,
    (shape, from, cold): (Shape, Side, bool),
    name: &str,
    figures: &mut Figures,
) {
    let names = [fresh_name("head"), fresh_name("branch")];
    for (server, database) in servers.iter().zip(&names) {
        server.sql("mysql", &format!("CREATE DATABASE {database}"));
    }
    servers[0].sql(&names[0], TABLE);
    let place = |side: Side| (&servers[side as usize], names[side as usize].as_str());
    let databases = [Side::Head, Side::Branch].map(|side| {
        let (server, database) = place(side);
        server.url(database)
    });
    let folder = machine.here.data().join("..").join(fresh_name("maria"));
    let address = format!("127.0.0.1:{}", free_port());
    let mut offices = Offices::found(
        &machine.branchline,
        folder,
        [&databases[0], &databases[1]],
        &["--listen", &address],
    );
    let (to, stream) = match from {
        Side::Head => (Side::Branch, "log"),
        Side::Branch => (Side::Head, "outbox"),
    };
    offices.stop(to);
    if cold {
        offices.stop(from);
    }
    let (source, database) = place(from);
    write(source, database, rows, shape);
    if !cold {
        let waiting = "SELECT EXISTS (SELECT 1 FROM branchline_capture)";
        offices.taken(from, || source.sql(database, waiting) == "1");
    }
    settle(servers);
    let cpu = |offices: &Offices| {
        servers_cpu(servers) + offices.usage(Side::Head).cpu + offices.usage(Side::Branch).cpu
    };
    let before = cpu(&offices);
    let began = Instant::now();
    offices.start(to);
    if cold {
        offices.start(from);
    }
    let (target, there) = place(to);
    let took = wait(target, there, rows, began);
    note(figures, name, rows, took, cpu(&offices) - before);
    let bytes =
        format!("SELECT COALESCE(SUM(size), 0) FROM branchline_stream WHERE stream = '{stream}'");
    let bytes: f64 = source
        .sql(database, &bytes)
        .parse()
        .expect("a sum is a number");
    figures.add(name, "bytes/change", bytes / f64::from(rows));
    let usage = [Side::Head, Side::Branch].map(|side| offices.usage(side).peak);
    figures.add(name, "peak MiB", usage[0].max(usage[1]));
    drop(offices);
    for (server, database) in servers.iter().zip(&names) {
        server.sql("mysql", &format!("DROP DATABASE {database}"));
    }
}
