//! Waits for containers to end, and says so to the document.
//!
//! Owns one task for each container that is attached. Leaves what an end means, an address that rests and a port that goes, to
//! [`desired`](crate::desired) and the loop (A16, A19, B6).
//!
//! Nobody tells the agent of a container that died, least of all while it was not running itself: at the start every attachment in the
//! document is held against the machine, before the first round would try to put a port into a namespace that is gone.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::agent::Agent;
use crate::{
    desired::{AttachmentId, Edit, EditError, Place},
    ids::Netns,
    platform::netns::{self, Liveness},
};

/// Pause before a container that could not be looked at (no descriptors left) is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Who edits, in the log and in the journal.
const ORIGIN: &str = "end of the container";

/// The containers that a task waits for.
#[derive(Default)]
pub struct Followed(Mutex<BTreeSet<Netns>>);

impl Followed {
    /// False when it is followed already.
    fn begin(&self, netns: &Netns) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(netns.clone())
    }

    fn end(&self, netns: &Netns) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(netns);
    }
}

/// Buries the attachments whose containers ended while no agent ran, and follows the others. Comes before the first round.
pub async fn take_stock(agent: &Arc<Agent>) {
    let containers: Vec<(AttachmentId, Netns)> = agent
        .document()
        .attachments()
        .iter()
        .filter_map(|(id, attachment)| match &attachment.place {
            Place::Container { netns } => Some((id.clone(), netns.clone())),
            Place::Guest { .. } | Place::HostShared => None,
        })
        .collect();
    let mut burials = Vec::new();
    for (id, netns) in containers {
        match netns::open(&netns) {
            Err(error) if error.is_final() => {
                tracing::info!(attachment = %id, %error, "a container ended while no agent was looking");
                let edit = Edit::Bury { id, netns };
                burials.extend(agent.editor.enqueue(edit, ORIGIN.to_owned()).await.ok());
            }
            Ok(_) | Err(_) => follow(agent, id, netns),
        }
    }
    // Queued together they share a flush.
    for burial in burials {
        if let Err(error) = burial.kept().await {
            tracing::error!(%error, "an attachment of a container that has ended stays until the next start");
        }
    }
}

/// Buries the attachment when its container ends.
pub fn follow(agent: &Arc<Agent>, id: AttachmentId, netns: Netns) {
    if !agent.followed.begin(&netns) {
        return;
    }
    let agent = agent.clone();
    tokio::spawn(async move {
        wait_for_end(&netns).await;
        agent.followed.end(&netns);
        bury(&agent, id, netns).await;
    });
}

async fn wait_for_end(netns: &Netns) {
    loop {
        match Liveness::of(netns) {
            Ok(container) => return container.gone().await,
            Err(error) if error.is_final() => return,
            Err(error) => tracing::warn!(%netns, %error, "a container cannot be watched; it is tried again"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn bury(agent: &Agent, id: AttachmentId, netns: Netns) {
    // A store that cannot be written now can be written later, and until then the address is not given to anybody.
    while let Err(error) = agent.editor.submit(Edit::Bury { id: id.clone(), netns: netns.clone() }, ORIGIN.into()).await
    {
        if matches!(error, EditError::Stopping) {
            return;
        }
        tracing::error!(attachment = %id, %error, "the end of a container could not be noted; it is tried again");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
