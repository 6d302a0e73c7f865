//! Attaches: who is meant is found out before, and what came of it is made sure of after.
//!
//! Owns the way from a pid to a namespace, and taking an attach back that could not be brought about: an `Err` to an attach means that
//! nothing is left behind. Leaves the addresses to [`desired`](crate::desired) and the wiring to the loop.
//!
//! Upholds B7 (an isolation that is not in effect is a failure), A21.
//!
//! An attach is taken back by a second edit. There is no undoing here, and a crash between the two edits only means that the client's next
//! try finds the container attached.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    admit::{AttachAsked, Handle},
    agent::Agent,
    answer::{fresh_key, in_words, not_kept, round_of},
    granted::granted,
    liveness,
};
use crate::{
    desired::{AttachmentId, Committed, Edit, EditError, Grant, Subject, Submission},
    object::{Key, Subsystem},
    platform::netns,
    reconcile::{
        ledger::Condition,
        target::{Facts, objects_of_attachment},
    },
    wire::Response,
};

/// An attach in the queue.
pub struct Asked {
    submission: Submission,
    subject: Subject,
    id: AttachmentId,
    origin: String,
}

/// Finds out who is meant and queues the edit.
///
/// # Errors
/// Why nobody can be attached under this handle.
pub async fn ask(agent: &Agent, asked: AttachAsked, origin: &str) -> Result<Asked, String> {
    let subject = subject(&asked.handle)?;
    let id = subject.id().map_err(|error| error.to_string())?;
    let submission = agent.editor.enqueue(asked.edit(subject.clone()), origin.to_owned()).await;
    let submission = submission.map_err(|error| error.to_string())?;
    Ok(Asked { submission, subject, id, origin: origin.to_owned() })
}

/// Whom a handle means on this machine, now.
fn subject(handle: &Handle) -> Result<Subject, String> {
    match handle {
        Handle::Process(pid) => {
            netns::identify(pid.number()).map(Subject::Container).map_err(|error| format!("not attached: {error}"))
        }
        Handle::Guest(id) => Ok(Subject::Guest { id: id.clone(), fresh: fresh_key()? }),
        Handle::HostShared(id) => Ok(Subject::HostShared(id.clone())),
    }
}

/// Waits until the attachment is in effect, or takes it back.
pub async fn finish(agent: &Arc<Agent>, asked: Asked) -> Response {
    let Asked { submission, subject, id, origin } = asked;
    let committed = match submission.kept().await {
        Ok(committed) => committed,
        Err(error) => return not_kept(agent, &error),
    };
    agent.metrics.socket.edits.with_label_values(&[if committed.changed { "changed" } else { "unchanged" }]).inc();
    if let Subject::Container(netns) = subject {
        liveness::follow(agent, id.clone(), netns);
    }
    let why = match round_of(agent, committed.generation).await {
        Ok(()) => not_in_effect(agent, &id),
        Err(why) => Some(why.to_owned()),
    };
    match why {
        None => granted(agent, committed.grant).await,
        Some(why) => withdraw(agent, id, &committed, &why, origin).await,
    }
}

/// What of the attachment is not as it should be. Unlike a declaration an attach does not wait for anything: not yet is no.
fn not_in_effect(agent: &Agent, id: &AttachmentId) -> Option<String> {
    // Always in this order: the loop takes them so.
    let document = agent.document();
    let view = agent.view.read();
    let Some(attachment) = document.attachments().get(id) else {
        return Some("its process ended while it was being attached".to_owned());
    };
    let mut needed: BTreeSet<Key> = objects_of_attachment(&document, &Facts::new(agent.mark), id);
    // A container without rules round it could reach whom it may not, and pose as another.
    if !attachment.links(id).is_empty() || attachment.network.is_some() {
        needed.insert(Key::Ruleset);
    }
    // A setting that /proc does not let through is not worth a container (A34).
    let mut needed = needed.iter().filter(|key| key.subsystem() != Subsystem::Sysctl);
    needed.find_map(|key| match view.ledger.condition(key) {
        Some(Condition::Realized) => None,
        Some(condition @ (Condition::Blocked { .. } | Condition::Failing { .. })) => in_words(key, condition),
        Some(Condition::Pending { why }) => Some(format!("{key}: {why}")),
        None => Some(format!("{key} has not been looked at")),
    })
}

async fn withdraw(agent: &Agent, id: AttachmentId, committed: &Committed, why: &str, origin: String) -> Response {
    let since = match &committed.grant {
        Grant::Attached { since, .. } => *since,
        Grant::Guest(guest) => guest.since,
        Grant::Nothing
        | Grant::Device(_)
        | Grant::Bridge(_)
        | Grant::Service(_)
        | Grant::Address(_)
        | Grant::Forward(_)
        | Grant::Pruned(_) => unreachable!("an attach grants an attachment"),
    };
    let message = match agent.editor.submit(Edit::Withdraw { id, since }, origin).await {
        Ok(withdrawn) => match round_of(agent, withdrawn.generation).await {
            Ok(()) => format!("not attached, and nothing is left behind: {why}"),
            Err(later) => format!("not attached: {why}; what was made of it is removed later: {later}"),
        },
        Err(EditError::Stopping) => format!("not attached yet: {why}"),
        Err(error) => format!("not attached: {why}; the attempt could not be taken back: {error}"),
    };
    Response::Err { message }
}
