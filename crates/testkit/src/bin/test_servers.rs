//! Starts one PostgreSQL, one MariaDB and one RabbitMQ for a whole run of the tests, prints how to reach them as lines of shell, and
//! ends them when its standard input ends.

use std::io::{Read, Write};

use branchline_testkit::servers::{
    AMQP_CTL, AMQP_URL, MYSQL_URL, POSTGRES_URL, mariadb, postgres, rabbitmq,
};

fn main() -> std::io::Result<()> {
    let (postgres, mariadb, rabbitmq) = std::thread::scope(|scope| {
        let (mariadb, rabbitmq) = (scope.spawn(mariadb), scope.spawn(rabbitmq));
        (postgres(), mariadb.join(), rabbitmq.join())
    });
    let mariadb = mariadb.map_err(|_| std::io::Error::other("MariaDB did not start"))?;
    let rabbitmq = rabbitmq.map_err(|_| std::io::Error::other("RabbitMQ did not start"))?;
    let mut out = std::io::stdout();
    writeln!(out, "export {POSTGRES_URL}='{}'", postgres.url("postgres"))?;
    writeln!(out, "export {MYSQL_URL}='{}'", mariadb.url("mysql"))?;
    writeln!(out, "export {AMQP_URL}='{}'", rabbitmq.admin_url())?;
    if let Some(ctl) = rabbitmq.ctl_program() {
        writeln!(out, "export {AMQP_CTL}='{}'", ctl.display())?;
    }
    writeln!(out, "# ready")?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(|_| ())
}
