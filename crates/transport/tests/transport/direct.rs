use std::net::SocketAddr;
use std::time::{Duration, Instant};

use branchline_transport::direct::{
    Certificate, DialSettings, Pin, ServeSettings, Trust, dial, make_certificate, pin_of, serve,
};
use branchline_transport::{Destination, Link, LinkError, LinkSender, MAX_ENVELOPE_BYTES};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::{PATIENCE, came, down, name, next, parcel, up};

fn certificate() -> Certificate {
    make_certificate(&["localhost".into(), "127.0.0.1".into()]).unwrap()
}

async fn listen(address: &str, certificate: &Certificate) -> (Link, SocketAddr) {
    let pair = Some((certificate.cert_pem.clone(), certificate.key_pem.clone()));
    serve(ServeSettings {
        address: address.parse().unwrap(),
        certificate: pair,
    })
    .await
    .unwrap()
}

async fn listen_plainly() -> (Link, SocketAddr) {
    serve(ServeSettings {
        address: "127.0.0.1:0".parse().unwrap(),
        certificate: None,
    })
    .await
    .unwrap()
}

fn call(address: SocketAddr, trust: Trust) -> Link {
    dial(DialSettings {
        url: format!("wss://{address}/branchline"),
        trust,
    })
    .unwrap()
}

fn call_plainly(address: SocketAddr) -> Link {
    call_at(format!("ws://{address}/branchline"))
}

fn call_at(url: String) -> Link {
    dial(DialSettings {
        url,
        trust: Trust::System,
    })
    .unwrap()
}

/// Says hello and lets the head name the connection.
async fn introduce(head: &mut Link, branch: &mut Link, who: &str) -> u64 {
    assert_eq!(up(branch).await, None);
    branch
        .sender
        .send(parcel(Destination::Head, who.to_owned()))
        .await
        .unwrap();
    let hello = came(head).await;
    assert_eq!((&hello.bytes[..], &hello.sender), (who.as_bytes(), &None));
    head.sender.name_peer(hello.connection, name(who));
    assert_eq!(up(head).await, Some(name(who)));
    hello.connection
}

async fn raw(address: SocketAddr) -> tokio_tungstenite::WebSocketStream<tokio::net::TcpStream> {
    let request = format!("ws://{address}/branchline")
        .into_client_request()
        .unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap()
        .0
}

/// Waits until the peer has closed.
async fn ended(
    mut socket: impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
) {
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the connection is closed");
}

#[tokio::test]
async fn envelopes_go_both_ways_over_tls_with_a_pin() {
    let certificate = certificate();
    assert_eq!(pin_of(&certificate.cert_pem), Ok(certificate.pin));
    assert_eq!(
        certificate.pin.to_string().parse::<Pin>(),
        Ok(certificate.pin)
    );
    let (mut head, address) = listen("127.0.0.1:0", &certificate).await;
    let mut branch = call(address, Trust::Pin(certificate.pin));
    introduce(&mut head, &mut branch, "b1").await;

    branch
        .sender
        .send(parcel(Destination::Head, vec![7; MAX_ENVELOPE_BYTES]))
        .await
        .unwrap();
    let big = came(&mut head).await;
    assert_eq!(
        (big.bytes.len(), big.sender),
        (MAX_ENVELOPE_BYTES, Some(name("b1")))
    );
    head.sender
        .send(parcel(Destination::Branch(name("b1")), "one"))
        .await
        .unwrap();
    head.sender
        .send(parcel(Destination::Everyone, "all"))
        .await
        .unwrap();
    assert_eq!(came(&mut branch).await.bytes, "one");
    assert_eq!(came(&mut branch).await.bytes, "all");

    let nobody = head
        .sender
        .send(parcel(Destination::Branch(name("b2")), "one"))
        .await;
    assert!(matches!(nobody, Err(LinkError::Down(_))));
    branch.close().await;
    assert_eq!(down(&mut head).await.0, Some(name("b1")));
}

#[tokio::test]
async fn a_ca_file_vouches_for_name_and_certificate() {
    let certificate = certificate();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &certificate.cert_pem).unwrap();
    let (_head, address) = listen("127.0.0.1:0", &certificate).await;
    let mut branch = call(address, Trust::CaFile(file));
    assert_eq!(up(&mut branch).await, None);
    let mut stranger = call(address, Trust::System);
    assert!(down(&mut stranger).await.1.needs_a_person());
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let (_head, address) = listen("127.0.0.1:0", &certificate()).await;
    let mut branch = call(address, Trust::Pin(certificate().pin));
    let (_, reason) = down(&mut branch).await;
    assert!(
        matches!(&reason, LinkError::Refused(text) if text.contains("another certificate")),
        "{reason}"
    );
    assert_eq!(
        branch.sender.send(parcel(Destination::Head, "x")).await,
        Err(reason)
    );
}

#[tokio::test]
async fn an_oversized_envelope_is_refused_at_both_ends() {
    let (mut head, address) = listen_plainly().await;
    let mut branch = call_plainly(address);
    introduce(&mut head, &mut branch, "b1").await;
    let bytes = MAX_ENVELOPE_BYTES + 1;
    let sent = branch
        .sender
        .send(parcel(Destination::Head, vec![0; bytes]))
        .await;
    assert_eq!(sent, Err(LinkError::TooLarge { bytes }));

    let mut hostile = raw(address).await;
    let _ = hostile.send(Message::Binary(vec![0; bytes].into())).await;
    ended(hostile).await;
    branch
        .sender
        .send(parcel(Destination::Head, "still here"))
        .await
        .unwrap();
    assert_eq!(came(&mut head).await.bytes, "still here");
}

/// Whoever has not said who it is gets the head to keep nothing of any size.
#[tokio::test]
async fn a_stranger_brings_no_more_than_a_hello() {
    let (mut head, address) = listen_plainly().await;
    let mut hostile = raw(address).await;
    let _ = hostile
        .send(Message::Binary(vec![0; 64 * 1024].into()))
        .await;
    ended(hostile).await;
    let mut branch = call_plainly(address);
    introduce(&mut head, &mut branch, "b1").await;
    let parcel = parcel(Destination::Head, vec![0; 64 * 1024]);
    branch.sender.send(parcel).await.unwrap();
    assert_eq!(came(&mut head).await.bytes.len(), 64 * 1024);
}

#[tokio::test]
async fn what_waits_for_a_slow_owner_is_bounded_by_bytes() {
    let (mut head, address) = listen_plainly().await;
    let mut branch = call_plainly(address);
    introduce(&mut head, &mut branch, "b1").await;
    let large = || parcel(Destination::Head, vec![7; MAX_ENVELOPE_BYTES]);
    let mut sent = 0;
    while sent < 12 && branch.sender.send(large()).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 12, "the head's link has read them all");
    for _ in 0..sent {
        assert_eq!(came(&mut head).await.bytes.len(), MAX_ENVELOPE_BYTES);
    }
    branch.sender.send(large()).await.unwrap();
    assert_eq!(came(&mut head).await.bytes.len(), MAX_ENVELOPE_BYTES);
}

#[tokio::test]
async fn a_refusal_is_heard_before_the_connection_is_closed() {
    for _ in 0..20 {
        let (mut head, address) = listen_plainly().await;
        let mut stranger = raw(address).await;
        stranger.send(Message::Binary("b1".into())).await.unwrap();
        let connection = came(&mut head).await.connection;
        head.sender.name_peer(connection, name("refused"));
        let reason = parcel(Destination::Branch(name("refused")), "the code was used");
        head.sender.send(reason).await.unwrap();
        head.sender.refuse(connection);
        let heard = loop {
            match stranger.next().await {
                Some(Ok(Message::Ping(_))) => {}
                other => break other,
            }
        };
        assert!(
            matches!(&heard, Some(Ok(Message::Binary(bytes))) if bytes == "the code was used"),
            "{heard:?}"
        );
        ended(stranger).await;
    }
}

#[tokio::test]
async fn the_heads_address_needs_no_path() {
    let (mut head, address) = listen_plainly().await;
    for (path, who) in [("", "b1"), ("/", "b2"), ("/branchline", "b3")] {
        let mut branch = call_at(format!("ws://{address}{path}"));
        introduce(&mut head, &mut branch, who).await;
        branch.close().await;
        assert_eq!(down(&mut head).await.0, Some(name(who)));
    }
    let elsewhere = dial(DialSettings {
        url: format!("ws://{address}/elsewhere"),
        trust: Trust::System,
    });
    assert!(matches!(elsewhere, Err(LinkError::Settings(_))));
}

#[tokio::test]
async fn a_branch_comes_back_after_the_head_restarts() {
    let certificate = certificate();
    let (mut head, address) = listen("127.0.0.1:0", &certificate).await;
    let mut branch = call(address, Trust::Pin(certificate.pin));
    introduce(&mut head, &mut branch, "b1").await;
    head.close().await;
    let (_, reason) = down(&mut branch).await;
    assert!(!reason.needs_a_person(), "{reason}");
    let started = Instant::now();
    assert!(
        branch
            .sender
            .send(parcel(Destination::Head, "lost"))
            .await
            .is_err()
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "a link that is down answers at once"
    );

    let (mut head, _) = listen(&address.to_string(), &certificate).await;
    introduce(&mut head, &mut branch, "b1").await;
    head.sender
        .send(parcel(Destination::Branch(name("b1")), "again"))
        .await
        .unwrap();
    assert_eq!(came(&mut branch).await.bytes, "again");
}

#[tokio::test]
async fn what_is_for_everyone_reaches_every_named_branch_in_order() {
    let (mut head, address) = listen_plainly().await;
    let (mut one, mut two) = (call_plainly(address), call_plainly(address));
    introduce(&mut head, &mut one, "b1").await;
    introduce(&mut head, &mut two, "b2").await;
    for round in 0..20u8 {
        for number in 0..50u8 {
            head.sender
                .send(parcel(Destination::Everyone, vec![round, number]))
                .await
                .unwrap();
        }
        for branch in [&mut one, &mut two] {
            for number in 0..50u8 {
                assert_eq!(came(branch).await.bytes[..], [round, number]);
            }
        }
    }
}

#[tokio::test]
async fn a_branch_that_does_not_read_stalls_nobody() {
    let (mut head, address) = listen_plainly().await;
    let (mut slow, mut fast) = (call_plainly(address), call_plainly(address));
    introduce(&mut head, &mut slow, "slow").await;
    introduce(&mut head, &mut fast, "fast").await;
    // Far more than the slow one's windows and socket buffers hold together.
    for number in 0..600u32 {
        let mut bytes = vec![0; 256 * 1024];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        head.sender
            .send(parcel(Destination::Everyone, bytes))
            .await
            .unwrap();
        assert_eq!(came(&mut fast).await.bytes[..4], number.to_be_bytes());
    }
    let to_slow = || parcel(Destination::Branch(name("slow")), vec![0; 256 * 1024]);
    assert_eq!(fill(&head.sender, to_slow).await, LinkError::Full);
    // What the sockets still swallow makes room now and then; in the end a sender's patience ends, too.
    let stuck = async {
        loop {
            if let Err(error) = head.sender.send(to_slow()).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, stuck)
        .await
        .expect("a stuck branch hangs nobody");
    assert!(matches!(error, LinkError::Down(_)), "{error}");
    for _ in 0..40 {
        came(&mut slow).await;
    }
    head.sender.send(to_slow()).await.unwrap();
}

async fn fill(sender: &LinkSender, parcel: impl Fn() -> branchline_transport::Parcel) -> LinkError {
    for _ in 0..1000 {
        if let Err(error) = sender.try_send(parcel()) {
            return error;
        }
    }
    panic!("a window without bounds");
}

#[tokio::test]
async fn a_newer_connection_of_a_name_replaces_the_older() {
    let (mut head, address) = listen_plainly().await;
    let mut old = raw(address).await;
    old.send(Message::Binary("old".into())).await.unwrap();
    let first = came(&mut head).await.connection;
    head.sender.name_peer(first, name("b1"));
    assert_eq!(up(&mut head).await, Some(name("b1")));
    let mut branch = call_plainly(address);
    let second = introduce(&mut head, &mut branch, "b1").await;
    assert_ne!(first, second);
    ended(old).await;
    head.sender
        .send(parcel(Destination::Branch(name("b1")), "to the new one"))
        .await
        .unwrap();
    assert_eq!(came(&mut branch).await.bytes, "to the new one");

    head.sender.refuse(second);
    let Some(name) = down(&mut head).await.0 else {
        panic!("whose link went down is told")
    };
    assert_eq!(name.as_str(), "b1");
    assert!(!down(&mut branch).await.1.needs_a_person());
}

#[tokio::test]
async fn a_connection_that_stays_unnamed_is_closed() {
    let (mut head, address) = listen_plainly().await;
    let mut silent = raw(address).await;
    silent
        .send(Message::Binary("who am I".into()))
        .await
        .unwrap();
    assert_eq!(came(&mut head).await.bytes, "who am I");
    ended(silent).await;
}

#[tokio::test]
async fn plain_connections_leave_the_machine_on_no_side() {
    let remote = dial(DialSettings {
        url: "ws://192.0.2.1:80/branchline".into(),
        trust: Trust::System,
    });
    assert!(matches!(remote, Err(LinkError::Settings(_))));
    let everywhere = serve(ServeSettings {
        address: "0.0.0.0:0".parse().unwrap(),
        certificate: None,
    })
    .await;
    assert!(matches!(everywhere, Err(LinkError::Settings(_))));
    let (_head, address) = listen_plainly().await;
    let mut stranger = dial(DialSettings {
        url: format!("wss://{address}/branchline"),
        trust: Trust::System,
    })
    .unwrap();
    assert!(matches!(
        next(&mut stranger).await,
        branchline_transport::Event::Down { .. }
    ));
}
