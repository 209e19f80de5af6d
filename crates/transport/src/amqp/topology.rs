//! What the head declares: exchanges, its own queue, and a queue for each branch.

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::connect::Broker;
use super::{AmqpSettings, QueueKind, Role};
use crate::LinkError;

/// A branch's queue drops its oldest beyond this: the branch sees the gap and asks again.
const BRANCH_QUEUE_BYTES: i64 = 256 * 1024 * 1024;
/// The head's queue refuses what comes beyond this: the branches keep it and send it again.
const HEAD_QUEUE_BYTES: i64 = 1024 * 1024 * 1024;
/// Quorum queues of RabbitMQ 4 drop a message after 20 deliveries, counting lost connections, unless told otherwise.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// Declares the exchanges and the head's queue; what exists already is left as it is. The head's link does so itself
/// whenever it connects.
pub async fn declare_head(settings: &AmqpSettings) -> Result<(), LinkError> {
    if !matches!(settings.role, Role::Head { .. }) {
        return Err(LinkError::Settings(
            "only the head declares exchanges".into(),
        ));
    }
    let broker = Broker::of(settings)?;
    let connection = broker.connect_soon("declare").await?;
    let declared = declare_on(&connection, &broker, settings).await;
    leave(&connection).await;
    declared
}

/// Declares branches' queues and binds them, so that the branches themselves need no right to do so. What exists is
/// left as it is.
pub async fn declare_branches(settings: &AmqpSettings, queues: &[String]) -> Result<(), LinkError> {
    for queue in queues {
        Broker::of(&AmqpSettings {
            queue: queue.clone(),
            ..settings.clone()
        })?;
    }
    let broker = Broker::of(settings)?;
    let connection = broker.connect_soon("declare").await?;
    let declared = async {
        let channel = channel(&connection, &broker).await?;
        exchange(&channel, &broker, &settings.branches_exchange).await?;
        for queue in queues {
            let bounds = [
                (
                    "x-max-length-bytes",
                    AMQPValue::LongLongInt(BRANCH_QUEUE_BYTES),
                ),
                overflow("drop-head"),
            ];
            let arguments = arguments(settings.queue_kind, bounds);
            bound_queue(
                &channel,
                &broker,
                queue,
                &settings.branches_exchange,
                arguments,
            )
            .await?;
        }
        Ok(())
    };
    let declared = declared.await;
    leave(&connection).await;
    declared
}

/// Deletes a branch's queue with all that is in it. A queue that does not exist is no error.
pub async fn delete_branch(settings: &AmqpSettings, queue: &str) -> Result<(), LinkError> {
    let broker = Broker::of(&AmqpSettings {
        queue: queue.into(),
        ..settings.clone()
    })?;
    let connection = broker.connect_soon("declare").await?;
    let deleted = async {
        let channel = channel(&connection, &broker).await?;
        let deleted = channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await;
        let deleted = deleted
            .map_err(|error| broker.sort_setup(&error, &format!("deleting the queue `{queue}`")));
        deleted.map(|_| ())
    };
    let deleted = deleted.await;
    leave(&connection).await;
    deleted
}

/// Declares exchanges and the head's queue, on a channel of its own: a refusal closes the channel.
pub(super) async fn declare_on(
    connection: &Connection,
    broker: &Broker,
    settings: &AmqpSettings,
) -> Result<(), LinkError> {
    let channel = channel(connection, broker).await?;
    exchange(&channel, broker, &settings.head_exchange).await?;
    exchange(&channel, broker, &settings.branches_exchange).await?;
    let bounds = [
        (
            "x-max-length-bytes",
            AMQPValue::LongLongInt(HEAD_QUEUE_BYTES),
        ),
        overflow("reject-publish"),
    ];
    let arguments = arguments(settings.queue_kind, bounds);
    bound_queue(
        &channel,
        broker,
        &settings.queue,
        &settings.head_exchange,
        arguments,
    )
    .await?;
    let _ = channel.close(200, "OK".into()).await;
    Ok(())
}

async fn channel(connection: &Connection, broker: &Broker) -> Result<Channel, LinkError> {
    connection
        .create_channel()
        .await
        .map_err(|error| broker.sort(&error, "opening a channel"))
}

async fn exchange(channel: &Channel, broker: &Broker, name: &str) -> Result<(), LinkError> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let declared = channel.exchange_declare(
        name.into(),
        ExchangeKind::Fanout,
        durable,
        FieldTable::default(),
    );
    declared
        .await
        .map_err(|error| broker.sort_setup(&error, &format!("declaring the exchange `{name}`")))
}

async fn bound_queue(
    channel: &Channel,
    broker: &Broker,
    queue: &str,
    exchange: &str,
    arguments: FieldTable,
) -> Result<(), LinkError> {
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let declared = channel
        .queue_declare(queue.into(), durable, arguments)
        .await;
    declared
        .map_err(|error| broker.sort_setup(&error, &format!("declaring the queue `{queue}`")))?;
    let (plain, none) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel
        .queue_bind(queue.into(), exchange.into(), "".into(), plain, none)
        .await;
    bound.map_err(|error| {
        broker.sort_setup(
            &error,
            &format!("binding the queue `{queue}` to `{exchange}`"),
        )
    })
}

fn overflow(policy: &str) -> (&'static str, AMQPValue) {
    ("x-overflow", AMQPValue::LongString(policy.into()))
}

fn arguments(kind: QueueKind, bounds: [(&'static str, AMQPValue); 2]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in bounds {
        table.insert(key.into(), value);
    }
    if kind == QueueKind::Quorum {
        table.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        table.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongLongInt(DELIVERY_LIMIT),
        );
    }
    table
}

async fn leave(connection: &Connection) {
    let farewell = connection.close(200, "OK".into());
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), farewell).await;
}
