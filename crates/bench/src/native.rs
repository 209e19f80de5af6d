//! PostgreSQL's own logical replication of `sales`.

use crate::machine::{Machine, backends_cpu, fresh_database, fresh_name};
use crate::sales::TABLE;

/// A publication here and a subscription there.
pub struct Native<'m> {
    machine: &'m Machine,
    /// The publisher's database.
    pub here: String,
    /// The subscriber's database.
    pub there: String,
    subscription: String,
}

impl<'m> Native<'m> {
    /// Makes both; the subscription runs.
    pub fn found(machine: &'m Machine) -> Self {
        let here = fresh_database(&machine.here, "native");
        let there = fresh_database(&machine.there, "native");
        let subscription = fresh_name("subscription");
        machine.here.sql(
            &here,
            &[TABLE, "CREATE PUBLICATION everything FOR ALL TABLES"],
        );
        let url = machine.here.url(&here);
        let subscribe = format!(
            "CREATE SUBSCRIPTION {subscription} CONNECTION '{url}' PUBLICATION everything WITH (copy_data = false)"
        );
        machine.there.sql(&there, &[TABLE, &subscribe]);
        Self {
            machine,
            here,
            there,
            subscription,
        }
    }

    /// Lets changes flow, or stops them.
    pub fn enable(&self, enable: bool) {
        let word = if enable { "ENABLE" } else { "DISABLE" };
        self.machine.there.sql(
            &self.there,
            &[&format!("ALTER SUBSCRIPTION {} {word}", self.subscription)],
        );
        while !enable && self.machine.here.sql(&self.here, &[&self.slot("active")]) == "t" {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn slot(&self, what: &str) -> String {
        format!(
            "SELECT {what} FROM pg_replication_slots WHERE slot_name = '{}'",
            self.subscription
        )
    }

    /// Bytes that the server would send for what waits, each message with its header (25 + 5 bytes).
    pub fn bytes_waiting(&self) -> f64 {
        let query = format!(
            "SELECT coalesce(sum(length(data) + 30), 0) FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL,
             'proto_version', '1', 'publication_names', 'everything')",
            self.subscription
        );
        self.machine
            .here
            .sql(&self.here, &[&query])
            .parse()
            .expect("a sum is a number")
    }

    /// Processor time so far of the sender and the worker.
    pub fn cpu(&self) -> f64 {
        let sender = self.slot("active_pid");
        let worker = format!(
            "SELECT pid FROM pg_stat_subscription WHERE subname = '{}'",
            self.subscription
        );
        backends_cpu(&self.machine.here, &self.here, &sender)
            + backends_cpu(&self.machine.there, &self.there, &worker)
    }
}

impl Drop for Native<'_> {
    fn drop(&mut self) {
        self.machine.there.sql(
            &self.there,
            &[&format!("DROP SUBSCRIPTION {}", self.subscription)],
        );
        self.machine.there.sql(
            "postgres",
            &[&format!("DROP DATABASE {} WITH (FORCE)", self.there)],
        );
        self.machine.here.sql(
            "postgres",
            &[&format!("DROP DATABASE {} WITH (FORCE)", self.here)],
        );
    }
}
