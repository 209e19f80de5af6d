//! The rows that are measured with, and the ways in which they are written.

use std::process::Command;
use std::time::{Duration, Instant};

use branchline_testkit::servers::Postgres;

/// The table.
pub const TABLE: &str =
    "CREATE TABLE sales (id uuid PRIMARY KEY, branch int, sku text, qty int, price numeric(12,2),
    sold_at timestamptz, note text)";

/// A row's values, made from a number `i`.
const VALUES: &str =
    "gen_random_uuid(), i % 40, 'SKU-' || lpad((i % 5000)::text, 6, '0'), 1 + i % 9,
    round((random() * 400)::numeric, 2), clock_timestamp(), 'counter sale'";

/// The row that is written last.
const LAST: &str = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";

/// How rows are grouped into transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A transaction for each row.
    Single,
    /// A thousand rows in each.
    Thousand,
}

impl Shape {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Single, Self::Thousand];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "1 row/tx",
            Self::Thousand => "1000 rows/tx",
        }
    }

    /// Rows in a transaction.
    pub fn rows(self) -> u32 {
        match self {
            Self::Single => 1,
            Self::Thousand => 1000,
        }
    }
}

/// Writes so many rows, the marked one last.
pub fn write(server: &Postgres, database: &str, rows: u32, shape: Shape) {
    let body = match shape {
        Shape::Single => format!(
            "DO $$ BEGIN FOR i IN 1..{} LOOP INSERT INTO sales SELECT {VALUES}; COMMIT; END LOOP; END $$",
            rows - 1
        ),
        Shape::Thousand => format!(
            "DO $$ BEGIN FOR t IN 1..{} LOOP
                INSERT INTO sales SELECT {VALUES} FROM generate_series(1, 1000) i; COMMIT; END LOOP; END $$",
            (rows - 1) / 1000
        ),
    };
    let rest = match shape {
        Shape::Single => 0,
        Shape::Thousand => (rows - 1) % 1000,
    };
    let rest = format!("INSERT INTO sales SELECT {VALUES} FROM generate_series(1, {rest}) i");
    let last = format!("INSERT INTO sales SELECT {LAST}, 1, 'SKU', 1, 1, now(), 'last'");
    server.sql(
        database,
        &[
            "SET synchronous_commit TO off",
            &body,
            &rest,
            &last,
            "SET synchronous_commit TO on",
        ],
    );
}

/// A `pgbench` script that inserts in this shape.
pub fn script(shape: Shape) -> String {
    match shape {
        Shape::Single => format!(
            "\\set i random(1, 100000)\nINSERT INTO sales SELECT {};\n",
            VALUES.replace("i %", ":i %")
        ),
        Shape::Thousand => {
            format!("INSERT INTO sales SELECT {VALUES} FROM generate_series(1, 1000) i;\n")
        }
    }
}

/// Waits until all rows are there, looking for the last one by its key before counting.
pub fn wait(
    server: &Postgres,
    database: &str,
    rows: u32,
    began: Instant,
    patience: Duration,
) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&server.url(database), tokio_postgres::NoTls)
                .await
                .expect("the database answers");
        tokio::spawn(connection);
        let look = client
            .prepare(&format!("SELECT FROM sales WHERE id = {LAST}"))
            .await
            .expect("the table is there");
        loop {
            if !client.query(&look, &[]).await.expect("a look").is_empty() {
                let seen = began.elapsed();
                let count: i64 = client
                    .query_one("SELECT count(*) FROM sales", &[])
                    .await
                    .expect("a count")
                    .get(0);
                if count >= i64::from(rows) {
                    return seen;
                }
            }
            let count: i64 = if began.elapsed() < patience {
                0
            } else {
                client
                    .query_one("SELECT count(*) FROM sales", &[])
                    .await
                    .expect("a count")
                    .get(0)
            };
            assert!(
                began.elapsed() < patience,
                "{count} of {rows} rows arrived in {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// The limit: `COPY` out of one table into an empty other one, in one pipe.
pub fn copy(from: (&Postgres, &str), to: (&Postgres, &str)) -> Duration {
    let psql = |(server, database): (&Postgres, &str), words: &str| {
        let mut psql = Command::new(server.bin("psql"));
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &server.url(database),
            "-c",
            words,
        ]);
        psql
    };
    let began = Instant::now();
    let mut out = psql(from, "COPY sales TO STDOUT")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("psql starts");
    let pipe = out.stdout.take().expect("the pipe is taken once");
    let status = psql(to, "COPY sales FROM STDIN")
        .stdin(pipe)
        .status()
        .expect("psql starts");
    let took = began.elapsed();
    assert!(
        status.success() && out.wait().is_ok_and(|status| status.success()),
        "COPY failed"
    );
    took
}
