use std::time::{Duration, Instant};

use branchline_testkit::servers::{RabbitMq, rabbitmq};
use branchline_transport::amqp::{
    AmqpSettings, QueueKind, Role, TlsFiles, branch_permissions, declare_branches, declare_head,
    delete_branch, open, probe,
};
use branchline_transport::{Destination, Event, Link, LinkError};

use super::{came, down, name, next, parcel, up};

fn settings(url: String, role: Role) -> AmqpSettings {
    let queue = match &role {
        Role::Head { .. } => "branchline.HO".to_owned(),
        Role::Branch(name) => format!("branchline.{name}"),
    };
    AmqpSettings {
        url,
        head_exchange: "branchline.head".into(),
        branches_exchange: "branchline.branches".into(),
        queue,
        role,
        queue_kind: QueueKind::Classic,
        heartbeat_seconds: 10,
        tls: TlsFiles::default(),
    }
}

fn head(url: String) -> AmqpSettings {
    settings(
        url,
        Role::Head {
            branch_queue_prefix: "branchline.".into(),
        },
    )
}

fn branch(url: String, who: &str) -> AmqpSettings {
    settings(url, Role::Branch(name(who)))
}

async fn opened(settings: AmqpSettings) -> Link {
    let mut link = open(settings).unwrap();
    assert_eq!(up(&mut link).await, None);
    link
}

/// A branch's user with exactly the rights that it needs.
fn branch_user(server: &RabbitMq, vhost: &str, who: &str) -> String {
    let user = format!("{vhost}-{who}");
    server.add_user(
        &user,
        "secret",
        vhost,
        "^$",
        "^branchline\\.head$",
        &format!("^branchline\\.{who}$"),
    );
    server.url(&user, "secret", vhost)
}

#[tokio::test]
async fn envelopes_go_both_ways_with_the_least_rights() {
    for queue_kind in [QueueKind::Classic, QueueKind::Quorum] {
        let server = rabbitmq();
        let vhost = server.fresh_vhost();
        let head_settings = AmqpSettings {
            queue_kind,
            ..head(server.admin_url_of(&vhost))
        };
        let mut head = opened(head_settings.clone()).await;
        declare_branches(&head_settings, &["branchline.b1".into()])
            .await
            .unwrap();
        declare_branches(&head_settings, &["branchline.b2".into()])
            .await
            .unwrap();
        let url = branch_user(server, &vhost, "b1");
        let mut one = opened(branch(url, "b1")).await;
        let mut two = opened(branch(server.admin_url_of(&vhost), "b2")).await;

        head.sender
            .send(parcel(Destination::Everyone, "all"))
            .await
            .unwrap();
        head.sender
            .send(parcel(Destination::Branch(name("b2")), "one"))
            .await
            .unwrap();
        for link in [&mut one, &mut two] {
            let all = came(link).await;
            assert_eq!(
                (&all.bytes[..], all.user.as_deref()),
                (&b"all"[..], Some("guest"))
            );
            link.sender.settle(all.receipt);
        }
        assert_eq!(came(&mut two).await.bytes, "one");
        for number in 0..500u16 {
            one.sender
                .send(parcel(Destination::Head, number.to_be_bytes().to_vec()))
                .await
                .unwrap();
        }
        for number in 0..500u16 {
            let up = came(&mut head).await;
            assert_eq!(up.bytes[..], number.to_be_bytes());
            assert_eq!(up.user, Some(format!("{vhost}-b1")));
            head.sender.settle(up.receipt);
        }
        delete_branch(&head_settings, "branchline.b1")
            .await
            .unwrap();
        delete_branch(&head_settings, "branchline.b1")
            .await
            .unwrap();
        let (_, reason) = down(&mut one).await;
        assert!(reason.to_string().contains("branchline.b1"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_settled_comes_again_after_a_reconnect() {
    let server = rabbitmq();
    let vhost = server.fresh_vhost();
    let head_settings = head(server.admin_url_of(&vhost));
    let mut head = opened(head_settings.clone()).await;
    declare_branches(&head_settings, &["branchline.b1".into()])
        .await
        .unwrap();
    let settings = branch(server.admin_url_of(&vhost), "b1");
    let mut link = opened(settings.clone()).await;
    for number in 0..4u8 {
        head.sender
            .send(parcel(Destination::Everyone, vec![number]))
            .await
            .unwrap();
    }
    let mut stale = Vec::new();
    for number in 0..4u8 {
        let delivery = came(&mut link).await;
        assert_eq!(delivery.bytes[..], [number]);
        if number == 1 || number == 2 {
            link.sender.settle(delivery.receipt);
        } else {
            stale.push(delivery.receipt);
        }
    }
    tokio::task::block_in_place(|| wait_until_unacknowledged(&settings, 2));
    let sender = link.sender.clone();
    link.close().await;
    stale.into_iter().for_each(|receipt| sender.settle(receipt));
    let mut link = opened(settings).await;
    assert_eq!(came(&mut link).await.bytes[..], [0]);
    assert_eq!(came(&mut link).await.bytes[..], [3]);
    head.sender
        .send(parcel(Destination::Everyone, "last"))
        .await
        .unwrap();
    assert_eq!(came(&mut link).await.bytes, "last");
    head.events.close();
}

/// Asks the broker until so many messages wait for their acknowledgement.
fn wait_until_unacknowledged(settings: &AmqpSettings, left: usize) {
    let server = rabbitmq();
    let vhost = settings.url.rsplit('/').next().unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let listed = server.ctl(&[
            "-q",
            "list_queues",
            "-p",
            &vhost,
            "name",
            "messages_unacknowledged",
        ]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        if listed
            .lines()
            .any(|line| line.starts_with(&settings.queue) && line.ends_with(&format!("\t{left}")))
        {
            return;
        }
        assert!(Instant::now() < deadline, "the broker still says: {listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks_stops_and_starts_heals() {
    let server = tokio::task::block_in_place(RabbitMq::start);
    let ctl = |arguments: &[&str]| tokio::task::block_in_place(|| server.ctl(arguments));
    let settings = head(server.admin_url());
    declare_head(&settings).await.unwrap();
    declare_branches(&settings, &["branchline.b1".into()])
        .await
        .unwrap();
    let mut head = opened(settings).await;
    let mut branch = opened(branch(server.admin_url(), "b1")).await;

    ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    let blocked = async {
        loop {
            if let Err(error) = head
                .sender
                .send(parcel(Destination::Everyone, "waits"))
                .await
            {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), blocked)
        .await
        .expect("a blocked broker hangs nobody");
    assert!(matches!(error, LinkError::Down(_)), "{error}");
    ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let arrived = came(&mut branch).await;
    assert_eq!(arrived.bytes, "waits");
    branch.sender.settle(arrived.receipt);

    tokio::task::block_in_place(|| server.stop_app());
    let (_, reason) = down(&mut head).await;
    assert!(!reason.needs_a_person(), "{reason}");
    let started = Instant::now();
    assert!(
        head.sender
            .send(parcel(Destination::Everyone, "lost"))
            .await
            .is_err()
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "a link that is down answers at once"
    );
    tokio::task::block_in_place(|| server.start_app());
    assert_eq!(up(&mut head).await, None);
    head.sender
        .send(parcel(Destination::Everyone, "again"))
        .await
        .unwrap();
    loop {
        match next(&mut branch).await {
            Event::Arrived { bytes, receipt, .. } => {
                branch.sender.settle(receipt);
                if bytes == "again" {
                    return;
                }
            }
            Event::Down { .. } | Event::Up { .. } => {}
            Event::Unroutable { to } => panic!("no queue for {to:?}"),
        }
    }
}

#[tokio::test]
async fn who_has_no_right_is_refused_and_doctor_says_what_to_do() {
    let server = rabbitmq();
    let vhost = server.fresh_vhost();
    let head_settings = head(server.admin_url_of(&vhost));
    let findings = probe(&head_settings).await;
    assert!(
        findings
            .iter()
            .any(|finding| !finding.ok && finding.message.contains("branchline.head")),
        "{findings:?}"
    );
    declare_head(&head_settings).await.unwrap();
    declare_branches(&head_settings, &["branchline.b1".into()])
        .await
        .unwrap();
    let findings = probe(&head_settings).await;
    assert!(
        findings.len() == 5 && findings.iter().all(|finding| finding.ok),
        "{findings:?}"
    );

    let wrong_password = branch(server.url("guest", "wr0ng-secret", &vhost), "b1");
    let mut link = open(wrong_password.clone()).unwrap();
    let (_, reason) = down(&mut link).await;
    assert!(
        matches!(&reason, LinkError::Refused(text) if !text.contains("wr0ng-secret")),
        "{reason}"
    );
    assert_eq!(
        link.sender.send(parcel(Destination::Head, "x")).await,
        Err(reason)
    );
    assert!(!format!("{wrong_password:?}").contains("wr0ng-secret"));

    let user = format!("{vhost}-b1");
    server.add_user(&user, "secret", &vhost, "^$", "^$", "^$");
    let settings = branch(server.url(&user, "secret", &vhost), "b1");
    let mut link = open(settings.clone()).unwrap();
    let (_, reason) = down(&mut link).await;
    assert!(reason.needs_a_person(), "{reason}");
    let line = branch_permissions(&vhost, &user, "branchline.head", "branchline.b1");
    assert!(
        line.ends_with(r"'^$' '^branchline\.head$' '^branchline\.b1$'"),
        "{line}"
    );
    let findings = probe(&settings).await;
    assert!(
        findings.iter().any(|finding| finding
            .advice
            .as_ref()
            .is_some_and(|advice| advice.contains(&line))),
        "{findings:?}"
    );

    server.ctl(&[
        "set_permissions",
        "-p",
        &vhost,
        &user,
        "^$",
        "^branchline\\.head$",
        "^branchline\\.b1$",
    ]);
    assert_eq!(
        up(&mut link).await,
        None,
        "the link still tries, and heals when the right is given"
    );
    let findings = probe(&settings).await;
    assert!(findings.iter().all(|finding| finding.ok), "{findings:?}");
    let no_host = branch("amqp://guest:guest@127.0.0.1:1/x".into(), "b1");
    assert!(probe(&no_host).await.iter().all(|finding| !finding.ok));
}

#[tokio::test]
async fn a_destination_without_a_queue_is_told() {
    let server = rabbitmq();
    let vhost = server.fresh_vhost();
    let mut head = opened(head(server.admin_url_of(&vhost))).await;
    let nobody = Destination::Branch(name("nobody"));
    head.sender.send(parcel(nobody.clone(), "x")).await.unwrap();
    match next(&mut head).await {
        Event::Unroutable { to } => assert_eq!(to, nobody),
        other => panic!("expected Unroutable, got {other:?}"),
    }
}
