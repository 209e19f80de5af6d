//! Starts one PostgreSQL and one RabbitMQ for a whole run of the tests, prints how to reach them as lines of shell, and
//! ends them when its standard input ends.

use std::io::{Read, Write};

use branchline_testkit::servers::{AMQP_CTL, AMQP_URL, POSTGRES_URL, postgres, rabbitmq};

fn main() -> std::io::Result<()> {
    let (postgres, rabbitmq) = std::thread::scope(|scope| {
        let rabbitmq = scope.spawn(rabbitmq);
        (postgres(), rabbitmq.join())
    });
    let rabbitmq = rabbitmq.map_err(|_| std::io::Error::other("RabbitMQ did not start"))?;
    let mut out = std::io::stdout();
    writeln!(out, "export {POSTGRES_URL}='{}'", postgres.url("postgres"))?;
    writeln!(out, "export {AMQP_URL}='{}'", rabbitmq.admin_url())?;
    if let Some(ctl) = rabbitmq.ctl_program() {
        writeln!(out, "export {AMQP_CTL}='{}'", ctl.display())?;
    }
    writeln!(out, "# ready")?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(|_| ())
}
