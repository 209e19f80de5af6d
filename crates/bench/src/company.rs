//! A head and one branch, each a process of the program that is measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use branchline_testkit::servers::{Postgres, free_port};

use crate::machine::{Machine, Usage, backends_cpu, fresh_database, fresh_name, output, usage};
use crate::sales::TABLE;

/// How envelopes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Straight.
    Direct,
    /// Through RabbitMQ.
    Amqp,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Amqp];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Amqp => "RabbitMQ",
        }
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The head.
    Head,
    /// The branch.
    Branch,
}

/// A head and a branch, each a process.
pub struct Offices {
    branchline: PathBuf,
    folder: PathBuf,
    processes: [Option<Child>; 2],
}

impl Offices {
    /// Founds them on these databases, the head's first, with both running and even.
    pub fn found(
        branchline: &Path,
        folder: PathBuf,
        databases: [&str; 2],
        transport: &[&str],
    ) -> Self {
        std::fs::create_dir(&folder).expect("the server's folder can be written");
        let mut offices = Self {
            branchline: branchline.to_owned(),
            folder,
            processes: [None, None],
        };
        let mut init = offices.command(Side::Head);
        init.args(["init", "--tables", "*", "--database", databases[0]]);
        output(init.args(transport));
        let code = output(offices.command(Side::Head).args(["invite", "b1"]));
        offices.start(Side::Head);
        let mut join = offices.command(Side::Branch);
        output(join.args(["join", &code, "--database", databases[1]]));
        offices.start(Side::Branch);
        output(offices.command(Side::Branch).args(["sync"]));
        offices
    }

    fn command(&self, side: Side) -> Command {
        let mut command = Command::new(&self.branchline);
        command
            .arg("--config")
            .arg(self.folder.join(format!("{side:?}.toml")))
            .stdin(Stdio::null());
        command
    }

    /// Starts an office's process.
    pub fn start(&mut self, side: Side) {
        let log = std::fs::File::create(self.folder.join(format!("{side:?}.log")))
            .expect("the folder is ours");
        let child = self
            .command(side)
            .arg("run")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.processes[side as usize] = Some(child.expect("the program starts"));
    }

    /// Stops an office's process in order.
    pub fn stop(&mut self, side: Side) {
        if let Some(mut child) = self.processes[side as usize].take() {
            output(Command::new("kill").arg(child.id().to_string()));
            child.wait().expect("it ends");
        }
    }

    /// What an office's process used so far.
    pub fn usage(&self, side: Side) -> Usage {
        self.processes[side as usize]
            .as_ref()
            .map(|child| usage(child.id()))
            .unwrap_or_default()
    }

    /// Waits until an office has taken all that its application wrote, or takes no more: a branch does not take more than
    /// it may have unanswered.
    pub fn taken(&self, side: Side, waits: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while waits() && Instant::now() < deadline && !self.is_still(side) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn is_still(&self, side: Side) -> bool {
        let before = self.usage(side).cpu;
        std::thread::sleep(Duration::from_millis(800));
        self.usage(side).cpu - before < 0.05
    }
}

impl Drop for Offices {
    fn drop(&mut self) {
        self.stop(Side::Branch);
        self.stop(Side::Head);
    }
}

/// Two offices on PostgreSQL that share `sales`.
pub struct Company<'m> {
    machine: &'m Machine,
    /// The head's database.
    pub head: String,
    /// The branch's database.
    pub branch: String,
    offices: Offices,
}

impl<'m> Company<'m> {
    /// Founds it, with both offices running and even.
    pub fn found(machine: &'m Machine, way: Way) -> Self {
        let head = fresh_database(&machine.here, "head");
        let branch = fresh_database(&machine.there, "branch");
        machine.here.sql(&head, &[TABLE]);
        let folder = machine.here.data().join("..").join(fresh_name("company"));
        let transport = match way {
            Way::Direct => ["--listen".into(), format!("127.0.0.1:{}", free_port())],
            Way::Amqp => {
                let host = machine.broker.fresh_vhost();
                ["--amqp".into(), machine.broker.admin_url_of(&host)]
            }
        };
        let databases = [machine.here.url(&head), machine.there.url(&branch)];
        let offices = Offices::found(
            &machine.branchline,
            folder,
            [&databases[0], &databases[1]],
            &[&transport[0], &transport[1]],
        );
        Self {
            machine,
            head,
            branch,
            offices,
        }
    }

    /// The server and database of one office.
    pub fn database(&self, side: Side) -> (&'m Postgres, &str) {
        match side {
            Side::Head => (&self.machine.here, &self.head),
            Side::Branch => (&self.machine.there, &self.branch),
        }
    }

    /// Starts an office's process.
    pub fn start(&mut self, side: Side) {
        self.offices.start(side);
    }

    /// Stops an office's process in order.
    pub fn stop(&mut self, side: Side) {
        self.offices.stop(side);
    }

    /// What an office's process used so far.
    pub fn usage(&self, side: Side) -> Usage {
        self.offices.usage(side)
    }

    /// Processor time so far: the head's process, the branch's, and the server processes that work for each.
    pub fn cpu(&self) -> [f64; 4] {
        let query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'branchline' AND datname = current_database()";
        let of_server = |side| {
            let (server, database) = self.database(side);
            backends_cpu(server, database, query)
        };
        [
            self.usage(Side::Head).cpu,
            self.usage(Side::Branch).cpu,
            of_server(Side::Head),
            of_server(Side::Branch),
        ]
    }

    /// Waits until an office has taken all that its application wrote, or takes no more.
    pub fn taken(&self, side: Side) {
        let (server, database) = self.database(side);
        let waiting = "SELECT EXISTS (SELECT FROM branchline.capture)";
        self.offices
            .taken(side, || server.sql(database, &[waiting]) == "t");
    }

    /// Bytes of a stream's envelopes.
    pub fn bytes(&self, side: Side, stream: &str) -> f64 {
        let (server, database) = self.database(side);
        let query = format!(
            "SELECT coalesce(sum(octet_length(bytes)), 0) FROM branchline.stream WHERE stream = '{stream}'"
        );
        server
            .sql(database, &[&query])
            .parse()
            .expect("a sum is a number")
    }
}

impl Drop for Company<'_> {
    fn drop(&mut self) {
        self.stop(Side::Branch);
        self.stop(Side::Head);
        let drop = |name: &str| format!("DROP DATABASE {name} WITH (FORCE)");
        self.machine.here.sql("postgres", &[&drop(&self.head)]);
        self.machine.there.sql("postgres", &[&drop(&self.branch)]);
    }
}
