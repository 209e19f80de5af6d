//! What a link over RabbitMQ carries by itself, by the kind of its queues: a head sends to one branch, which is away
//! meanwhile and comes then.

use std::time::Instant;

use branchline_core::identity::OfficeName;
use branchline_transport::amqp::{AmqpSettings, QueueKind, Role, TlsFiles, declare_branches, open};
use branchline_transport::{Destination, Event, Link, Parcel};
use bytes::Bytes;

use crate::Arguments;
use crate::machine::Machine;
use crate::table::Figures;

/// How many envelopes are sent.
const ENVELOPES: u32 = 5_000;
/// How many bytes each of them has.
const BYTES: usize = 32 * 1024;
/// The branch's queue.
const QUEUE: &str = "branchline.b1";

/// Measures both kinds of queues, as often as asked.
pub fn measure(machine: &Machine, arguments: &Arguments, figures: &mut Figures) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for _ in 0..arguments.repetitions {
        for (kind, name) in [
            (QueueKind::Classic, "broker: classic queues"),
            (QueueKind::Quorum, "broker: quorum queues"),
        ] {
            if name.contains(&arguments.only) {
                runtime.block_on(run(machine, kind, name, figures));
            }
        }
    }
}

async fn run(machine: &Machine, kind: QueueKind, name: &str, figures: &mut Figures) {
    let url = machine.broker.admin_url_of(&machine.broker.fresh_vhost());
    let settings = |queue: &str, role| AmqpSettings {
        url: url.clone(),
        head_exchange: "branchline.head".into(),
        branches_exchange: "branchline.branches".into(),
        queue: queue.into(),
        role,
        queue_kind: kind,
        heartbeat_seconds: 10,
        tls: TlsFiles::default(),
    };
    let of_head = settings(
        "branchline.HO",
        Role::Head {
            branch_queue_prefix: "branchline.".into(),
        },
    );
    let head = opened(of_head.clone()).await;
    let declared = declare_branches(&of_head, &[QUEUE.into()]).await;
    declared.expect("the branch's queue");

    let began = Instant::now();
    for _ in 0..ENVELOPES {
        let parcel = Parcel {
            to: Destination::Everyone,
            bytes: Bytes::from_static(&[7; BYTES]),
        };
        head.sender.send(parcel).await.expect("room in the window");
    }
    let sent = f64::from(ENVELOPES) / began.elapsed().as_secs_f64();

    let b1 = OfficeName::new("b1").expect("a name");
    let mut branch = opened(settings(QUEUE, Role::Branch(b1))).await;
    let began = Instant::now();
    for _ in 0..ENVELOPES {
        let Some(Event::Arrived { receipt, .. }) = branch.events.recv().await else {
            panic!("{name}: the link broke");
        };
        branch.sender.settle(receipt);
    }
    let received = f64::from(ENVELOPES) / began.elapsed().as_secs_f64();
    branch.close().await;
    head.close().await;
    eprintln!("{name}: sent {sent:.0}/s, received {received:.0}/s");
    figures.add(name, "sent/s", sent);
    figures.add(name, "received/s", received);
}

async fn opened(settings: AmqpSettings) -> Link {
    let mut link = open(settings).expect("settings that can work");
    match link.events.recv().await {
        Some(Event::Up { .. }) => link,
        other => panic!("the broker is not reached: {other:?}"),
    }
}
