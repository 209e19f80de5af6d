//! What `doctor` asks the broker. Nothing is declared, no message is stored.

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ErrorKind, ExchangeKind};

use super::connect::{Broker, REACH};
use super::{AmqpSettings, Role};
use crate::LinkError;

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFinding {
    /// Whether all is well.
    pub ok: bool,
    /// What was found.
    pub message: String,
    /// What to do, where something is wrong.
    pub advice: Option<String>,
}

impl ProbeFinding {
    fn good(message: impl Into<String>) -> Self {
        Self {
            ok: true,
            message: message.into(),
            advice: None,
        }
    }

    fn bad(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            ok: false,
            message: message.into(),
            advice: Some(advice.into()),
        }
    }
}

/// The command that gives a branch's user exactly the rights that it needs.
pub fn branch_permissions(vhost: &str, user: &str, head_exchange: &str, queue: &str) -> String {
    let (exchange, queue) = (escape(head_exchange), escape(queue));
    format!("rabbitmqctl set_permissions -p '{vhost}' '{user}' '^$' '^{exchange}$' '^{queue}$'")
}

fn escape(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            (!c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'))
                .then_some('\\')
                .into_iter()
                .chain([c])
        })
        .collect()
}

/// Asks whether the broker can be reached, lets this office in, has its exchanges and queue, and takes its messages.
pub async fn probe(settings: &AmqpSettings) -> Vec<ProbeFinding> {
    let broker = match Broker::of(settings) {
        Ok(broker) => broker,
        Err(error) => {
            return vec![ProbeFinding::bad(
                error.to_string(),
                "correct the [amqp] settings",
            )];
        }
    };
    let connection = match broker.connect_soon("doctor").await {
        Ok(connection) => connection,
        Err(error) => return vec![unreachable(&error)],
    };
    let mut findings = vec![ProbeFinding::good(format!(
        "{} lets this office in",
        broker.place
    ))];
    let rest = Probe {
        settings,
        broker: &broker,
        connection: &connection,
    };
    match tokio::time::timeout(REACH, rest.run()).await {
        Ok(rest) => findings.extend(rest),
        Err(_) => findings.push(unreachable(&broker.silent())),
    }
    let _ = tokio::time::timeout(REACH, connection.close(200, "OK".into())).await;
    findings
}

fn unreachable(error: &LinkError) -> ProbeFinding {
    let advice = match error {
        LinkError::Refused(_) => {
            "give the user its password and rights on the vhost, or correct the URL"
        }
        _ => "start the broker, or correct the URL; look for a firewall between",
    };
    ProbeFinding::bad(error.to_string(), advice)
}

struct Probe<'a> {
    settings: &'a AmqpSettings,
    broker: &'a Broker,
    connection: &'a Connection,
}

impl Probe<'_> {
    async fn run(self) -> Vec<ProbeFinding> {
        let settings = self.settings;
        let mut findings = Vec::new();
        let target = match settings.role {
            Role::Head { .. } => {
                findings.push(self.exchange(&settings.head_exchange).await);
                &settings.branches_exchange
            }
            Role::Branch(_) => &settings.head_exchange,
        };
        findings.push(self.exchange(target).await);
        findings.push(self.queue().await);
        findings.push(self.may_publish(target).await);
        findings
    }

    /// What a person must do to give this office its rights.
    fn rights(&self) -> String {
        match self.settings.role {
            Role::Head { .. } => format!(
                "rabbitmqctl set_permissions -p '{}' '{}' '.*' '.*' '.*'",
                self.broker.vhost(),
                self.broker.user
            ),
            Role::Branch(_) => branch_permissions(
                self.broker.vhost(),
                &self.broker.user,
                &self.settings.head_exchange,
                &self.settings.queue,
            ),
        }
    }

    /// Each question has a channel of its own: a refusal closes it.
    async fn exchange(&self, name: &str) -> ProbeFinding {
        let passive = ExchangeDeclareOptions {
            passive: true,
            durable: true,
            ..Default::default()
        };
        let asked = async {
            let channel = self.connection.create_channel().await?;
            channel
                .exchange_declare(
                    name.into(),
                    ExchangeKind::Fanout,
                    passive,
                    FieldTable::default(),
                )
                .await
        };
        if let Err(error) = asked.await {
            return self.failed(&error, &format!("the exchange `{name}`"));
        }
        if matches!(self.settings.role, Role::Branch(_)) {
            return ProbeFinding::good(format!("the exchange `{name}` exists"));
        }
        // A passive question does not compare the kind. Asking again for what exists compares, and makes nothing.
        let same = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let asked = async {
            let channel = self.connection.create_channel().await?;
            channel
                .exchange_declare(
                    name.into(),
                    ExchangeKind::Fanout,
                    same,
                    FieldTable::default(),
                )
                .await
        };
        match asked.await {
            Ok(()) => ProbeFinding::good(format!("the exchange `{name}` exists, durable, fanout")),
            Err(error) => self.failed(&error, &format!("the exchange `{name}`")),
        }
    }

    async fn queue(&self) -> ProbeFinding {
        let name = self.settings.queue.as_str();
        let passive = QueueDeclareOptions {
            passive: true,
            durable: true,
            ..Default::default()
        };
        let asked = async {
            let channel = self.connection.create_channel().await?;
            channel
                .queue_declare(name.into(), passive, FieldTable::default())
                .await
        };
        match asked.await {
            Ok(queue) => {
                let (messages, readers) = (queue.message_count(), queue.consumer_count());
                ProbeFinding::good(format!(
                    "the queue `{name}` exists: {messages} messages, {readers} readers"
                ))
            }
            Err(error) => self.failed(&error, &format!("the queue `{name}`")),
        }
    }

    /// Publishes what RabbitMQ must refuse after it has checked the right to write, and before it stores anything: an
    /// expiration that is no number, from a user that is not this one.
    async fn may_publish(&self, exchange: &str) -> ProbeFinding {
        let refused = BasicProperties::default()
            .with_expiration("never".into())
            .with_user_id("-".into());
        let asked = async {
            let channel = self.connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            let options = BasicPublishOptions::default();
            channel
                .basic_publish(exchange.into(), "".into(), options, b"", refused)
                .await?
                .await
                .map(|_| ())
        };
        match asked.await {
            Ok(()) => ProbeFinding::good(format!("messages to `{exchange}` are taken")),
            Err(error) if told(&error) == Some(406) => {
                ProbeFinding::good(format!("this user may write to `{exchange}`"))
            }
            Err(error) => self.failed(&error, &format!("writing to `{exchange}`")),
        }
    }

    fn failed(&self, error: &lapin::Error, what: &str) -> ProbeFinding {
        let message = format!("{what}: {error}");
        match told(error) {
            Some(403) => ProbeFinding::bad(
                message,
                format!("give the user its rights: {}", self.rights()),
            ),
            Some(404) => ProbeFinding::bad(
                message,
                "the head declares the exchanges when it runs, and a branch's queue when it is invited",
            ),
            Some(406) => ProbeFinding::bad(
                message,
                "it exists with other properties: delete it, the head declares it anew",
            ),
            _ => ProbeFinding::bad(message, "try again; if it stays, read the broker's log"),
        }
    }
}

fn told(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(told) => Some(told.get_id()),
        _ => None,
    }
}
