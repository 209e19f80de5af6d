use branchline_transport::{Destination, LinkError, in_process};

use super::{came, name, parcel, up};

#[tokio::test]
async fn a_head_and_its_branches_talk() {
    let (mut head, mut branches) = in_process::connect(&[name("b1"), name("b2")]);
    assert!(up(&mut head).await.is_some());
    assert!(up(&mut head).await.is_some());
    head.sender
        .send(parcel(Destination::Everyone, "all"))
        .await
        .unwrap();
    head.sender
        .send(parcel(Destination::Branch(name("b2")), "one"))
        .await
        .unwrap();
    for branch in &mut branches {
        assert_eq!(up(branch).await, None);
        assert_eq!(came(branch).await.bytes, "all");
    }
    assert_eq!(came(&mut branches[1]).await.bytes, "one");
    branches[0]
        .sender
        .send(parcel(Destination::Head, "up"))
        .await
        .unwrap();
    let hello = came(&mut head).await;
    assert_eq!((hello.bytes, hello.sender), ("up".into(), Some(name("b1"))));
    let wrong = branches[0]
        .sender
        .send(parcel(Destination::Everyone, "no"))
        .await;
    assert_eq!(wrong, Err(LinkError::WrongDestination));
}
