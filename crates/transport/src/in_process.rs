//! Links between offices of one process, for tests: a head and its branches, connected by bounded channels.

use std::sync::Arc;

use branchline_core::identity::OfficeName;
use tokio::sync::mpsc;

use crate::direct::Registry;
use crate::link::{End, Event, Link, LinkSender, Receipt, Way, Workshop};
use crate::outlet::{Outlet, Port, Queued};

const WINDOW_PARCELS: usize = 64;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// Connects a head to these branches; every link is up at once, and stays so until it is closed. The head's
/// connections are numbered from 1 in the order of the names, and named already.
pub fn connect(names: &[OfficeName]) -> (Link, Vec<Link>) {
    let (head, head_events) = Workshop::new();
    let registry = Arc::new(Registry::default());
    let head_link = head.link(head_events, LinkSender(Way::Many(Arc::clone(&registry))));
    let branches = names.iter().map(|name| {
        let (branch, branch_events) = Workshop::new();
        let port = Arc::new(Port::new());
        let sender = LinkSender(Way::One {
            port: Arc::clone(&port),
            end: End::Branch,
            settled: None,
        });
        let link = branch.link(branch_events, sender);
        let seat = registry.enter();
        registry.name(seat.connection, name.clone());
        let (outlet, up) = Outlet::new(WINDOW_PARCELS, WINDOW_BYTES);
        port.open(outlet);
        branch.tasks.spawn(forward(
            seat.parcels,
            branch.clone(),
            None,
            None,
            seat.connection,
        ));
        head.tasks.spawn(forward(
            up,
            head.clone(),
            Some(name.clone()),
            Some(name.clone()),
            seat.connection,
        ));
        link
    });
    let branches = branches.collect();
    (head_link, branches)
}

/// Hands one side's parcels to the other side as events.
async fn forward(
    mut parcels: mpsc::Receiver<Queued>,
    to: Workshop,
    peer: Option<OfficeName>,
    sender: Option<OfficeName>,
    connection: u64,
) {
    if !to.tell(Event::Up { peer }).await {
        return;
    }
    while let Some(queued) = parcels.recv().await {
        let (sender, bytes) = (sender.clone(), queued.parcel.bytes);
        if !to
            .tell(Event::Arrived {
                bytes,
                sender,
                user: None,
                connection,
                receipt: Receipt::NONE,
            })
            .await
        {
            return;
        }
    }
}
