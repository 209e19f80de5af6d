//! What the head says of its branches, and what it keeps of them.

use branchline_core::ed25519_dalek::SigningKey;
use branchline_core::envelope;
use branchline_core::identity::Incarnation;
use branchline_core::message::Message;
use branchline_core::output::Notice;

use crate::company::*;

#[test]
fn a_branch_that_is_heard_of_and_stands_still_is_behind_since_then() {
    let mut company = Company::new(1);
    company.write_head(&[insert(1, "one")]);
    company.settle();
    assert_eq!(company.head.branches()[0].behind_since, None);
    company.branches[0].deaf = true;
    company.write_head(&[insert(2, "two")]);
    let written = company.now;
    company.settle();
    company.let_pass(5);
    company.write_head(&[insert(3, "three")]);
    company.settle();
    let report = &company.head.branches()[0];
    assert!(report.online, "it is heard of");
    let since = report.behind_since.expect("it lacks an entry");
    assert!(!since.has_passed(1_000, written), "{since:?}, {written:?}");
    company.branches[0].deaf = false;
    company.settle();
    company.let_pass(1);
    assert_eq!(company.head.branches()[0].behind_since, None);
    company.assert_even();
}

/// Each is remembered, so that no backup from its time passes for a new office: so there are not endlessly many.
#[test]
fn a_branch_takes_a_bounded_number_of_identities() {
    let mut company = Company::new(1);
    company.restart_branch(0);
    company.settle();
    let mut sent = company.heard.iter().rev();
    let hello =
        sent.find_map(
            |(_, bytes)| match envelope::open(bytes).unwrap().read_own().unwrap() {
                Message::Hello(hello) => Some(hello),
                _ => None,
            },
        );
    let (mut hello, name) = (hello.unwrap(), company.branches[0].name.clone());
    // What `Company` gives the first branch.
    let key = SigningKey::from_bytes(&[2; 32]);
    company.cut(0);
    for number in 0..1_100u128 {
        hello.incarnation = Incarnation((1_000_000 + number).to_be_bytes());
        let bytes = envelope::seal(&name, &key, &Message::Hello(hello.clone())).unwrap();
        company.deliver_late(&bytes);
    }
    assert_eq!(company.seat_book(0).former.len(), 1_000);
    let told =
        |notice: &Notice| matches!(notice, Notice::Refused(_, why) if why.contains("identity"));
    assert!(company.notices.iter().any(told));
}
