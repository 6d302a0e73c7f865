//! What becomes of a request: the edit is queued, kept, waited for, and answered.
//!
//! Owns when a reply leaves and what it says about the node. Leaves reading the request to [`admit`](super::admit).
//!
//! Upholds I-01, I-12, I-15 (no wait is unbounded).
//!
//! An `Err` to a request that only declares does not take the edit back: it says that the document holds it and what is in its way. An `Err` to
//! an attach does: see [`attach`](super::attach).

use std::{sync::Arc, time::Duration};

use futures::{SinkExt, channel::oneshot};
use rand_core::{OsRng, TryRngCore};
use serde_json::json;

use super::{
    admit::{Admitted, admit},
    agent::{Agent, Stop},
    attach,
    granted::granted,
    proxies, report,
};
use crate::{
    desired::{Committed, Edit, EditError, Grant, Submission, Touched},
    ids::{ServiceName, Zone},
    object::{Key, KeyPair, Subsystem},
    reconcile::{
        ledger::Condition,
        runtime::Command,
        target::{Scope, file_of, lower, objects_of_overlay, objects_of_segment},
    },
    secret::PrivateKey,
    wire::{AgentRequest, AgentResponse, Request, Response},
};

/// Longest time that a reply waits for its round. The edit is kept in any case; a hung data plane must not hang its client (B1).
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// Longest time that a diff or a resync of the command line waits for its turn.
const ROUND_WITHIN: Duration = Duration::from_secs(15);

/// A request that was taken in and has not been answered yet.
pub enum Pending {
    Ready(Response),
    Edit(Submission, About),
    Attach(attach::Asked),
    Status,
    /// The host's addresses are read by whoever waits for the answer, not by the reader of the connection.
    NatStatus,
    Shutdown,
}

/// What the reply to an edit that touches everything answers for.
pub enum About {
    Overlay,
    Segment(ServiceName),
    /// The file of one zone.
    File(Zone),
    /// Nothing that is wanted: what the edit removed.
    Touched,
    /// The same, and what of ours belongs to nothing.
    Strays {
        /// How many had been swept before the edit was taken in.
        swept: u64,
    },
}

/// Takes a request in. Edits are queued here, so that requests of one connection are considered in the order in which they came.
pub async fn take(agent: &Arc<Agent>, request: &Request, origin: &str) -> Pending {
    let err = |message: String| Pending::Ready(Response::Err { message });
    match admit(request, agent.settings.resolver.as_ref().map(|resolver| &resolver.served.zone)) {
        Err(message) => err(message),
        Ok(Admitted::Nothing) => Pending::Ready(Response::Ok),
        Ok(Admitted::Status) => Pending::Status,
        Ok(Admitted::NatStatus) => Pending::NatStatus,
        Ok(Admitted::Shutdown) => Pending::Shutdown,
        Ok(Admitted::Segment(asked)) => match fresh_key() {
            Ok(fresh) => {
                let about = About::Segment(asked.service.clone());
                queue(agent, asked.edit(fresh), about, origin).await
            }
            Err(message) => err(message),
        },
        Ok(Admitted::Attach(asked)) => match attach::ask(agent, asked, origin).await {
            Ok(asked) => Pending::Attach(asked),
            Err(message) => err(message),
        },
        Ok(Admitted::Edit(edit)) => {
            let about = match &edit {
                Edit::EnsureOverlay(_) => About::Overlay,
                Edit::EnsureResolver { zone, .. } => About::File(zone.clone()),
                Edit::Prune(_) => About::Strays { swept: agent.view.read().swept.count() },
                _ => About::Touched,
            };
            queue(agent, edit, about, origin).await
        }
    }
}

async fn queue(agent: &Agent, edit: Edit, about: About, origin: &str) -> Pending {
    match agent.editor.enqueue(edit, origin.to_owned()).await {
        Ok(submission) => Pending::Edit(submission, about),
        Err(error) => Pending::Ready(Response::Err { message: error.to_string() }),
    }
}

pub(super) fn fresh_key() -> Result<KeyPair, String> {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| format!("no random bytes for a key: {error}"))?;
    Ok(KeyPair::from_private(PrivateKey::from_random_bytes(bytes)))
}

/// What a request has come to.
pub enum Outcome {
    Is(Response),
    /// The state of the node, not read yet: a client that asks faster than it reads must not pile up copies of it.
    Status,
}

impl Outcome {
    pub fn into_response(self, agent: &Agent) -> Response {
        match self {
            Outcome::Is(response) => response,
            Outcome::Status => Response::Status(report::status(agent)),
        }
    }
}

/// Finishes a request: waits as long as its answer needs.
pub async fn finish(agent: &Arc<Agent>, pending: Pending) -> Outcome {
    Outcome::Is(match pending {
        Pending::Status => return Outcome::Status,
        Pending::Ready(response) => response,
        Pending::Shutdown => Response::Ok,
        Pending::NatStatus => Response::NatStatus(report::nat_status(agent).await),
        Pending::Attach(asked) => attach::finish(agent, asked).await,
        Pending::Edit(submission, about) => match submission.kept().await {
            Ok(committed) => applied(agent, committed, &about).await,
            Err(error) => not_kept(agent, &error),
        },
    })
}

pub(super) fn not_kept(agent: &Agent, error: &EditError) -> Response {
    let count = |word| agent.metrics.socket.edits.with_label_values(&[word]).inc();
    match error {
        EditError::NotKept(_) => count("not_kept"),
        EditError::Refused(_) => count("refused"),
        EditError::Stopping => {}
    }
    Response::Err { message: error.to_string() }
}

/// Waits until the edit was part of a round, and answers with what came of it.
async fn applied(agent: &Agent, committed: Committed, about: &About) -> Response {
    agent.metrics.socket.edits.with_label_values(&[if committed.changed { "changed" } else { "unchanged" }]).inc();
    let generation = committed.generation;
    if committed.touched != Touched::Nothing {
        if let Err(why) = round_of(agent, generation).await {
            return kept_but(generation, why);
        }
        // A stray is seen by a look that began after the edit, and an edit that changed nothing waited for none.
        if let About::Strays { .. } = about
            && let Err(why) = ask(agent, Command::Resync).await
        {
            return kept_but(generation, &why);
        }
        if let Some(trouble) = trouble(agent, &committed.touched, about) {
            return kept_but(generation, &trouble);
        }
    }
    let grant = match (committed.grant, about) {
        (Grant::Pruned(mut links), About::Strays { swept }) => {
            let strays = agent.view.read().swept.after(*swept);
            links.extend(strays.into_iter().filter(|name| !links.contains(name)).collect::<Vec<_>>());
            Grant::Pruned(links)
        }
        (grant, _) => grant,
    };
    granted(agent, grant).await
}

/// Waits for the end of a round that the edit of this generation was part of.
///
/// # Errors
/// Why there was none in time. The edit is kept in any case.
pub(super) async fn round_of(agent: &Agent, generation: u64) -> Result<(), &'static str> {
    let mut covered = agent.covered.clone();
    match tokio::time::timeout(APPLIED_WITHIN, covered.wait_for(|covered| *covered >= generation)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("overlayd is stopping; the next start finishes the work"),
        Err(_) => Err("the node has not answered in time; it will be tried again"),
    }
}

fn kept_but(generation: u64, why: &str) -> Response {
    Response::Err { message: format!("kept as generation {generation}, but not in effect yet: {why}") }
}

/// What keeps the objects that the reply is about from being realized, if anything does.
fn trouble(agent: &Agent, touched: &Touched, about: &About) -> Option<String> {
    let facts = agent.settings.facts(agent.mark);
    // Always in this order: the loop takes them so.
    let document = agent.document();
    let view = agent.view.read();
    let meant: Box<dyn Fn(&Key) -> bool> = match (touched, about) {
        (Touched::Nothing, _) => return None,
        (Touched::Keys(keys), _) => Box::new(|key| keys.contains(key)),
        // One service's trouble is not another's, and one peer's failure, or a read-only /proc, is not the overlay's (A34).
        (Touched::Everything, About::Overlay) => {
            let own = objects_of_overlay(&document, &facts);
            Box::new(move |key| own.contains(key) && key.subsystem() != Subsystem::Sysctl)
        }
        (Touched::Everything, About::Segment(service)) => {
            let mut own = objects_of_segment(&document, &facts, service);
            own.insert(Key::Ruleset);
            Box::new(move |key| own.contains(key) && key.subsystem() != Subsystem::Sysctl)
        }
        (Touched::Everything, About::File(zone)) => {
            let own = facts.resolver_dir.as_ref().and_then(|directory| file_of(directory, zone));
            Box::new(move |key| own.as_ref() == Some(key))
        }
        // What was to go and is still there.
        (Touched::Everything, About::Touched | About::Strays { .. }) => {
            let wanted = lower(&document, &facts, &|_: &Key| 0, &Scope::Everything);
            Box::new(move |key| wanted.wants(key).is_none() && key.subsystem() != Subsystem::Sysctl)
        }
    };
    view.ledger.troubled().iter().filter(|(key, _)| meant(key)).find_map(|(key, condition)| in_words(key, condition))
}

/// What is wrong with an object, unless it only waits for something that is not the kernel's to give.
pub(super) fn in_words(key: &Key, condition: &Condition) -> Option<String> {
    match condition {
        Condition::Blocked { why } => Some(format!("{key} is blocked: {why}")),
        Condition::Failing { error, .. } => Some(format!("{key}: {error}")),
        Condition::Realized | Condition::Pending { .. } => None,
    }
}

/// Answers a request of overlayd's own command line.
pub async fn agent_request(agent: &Agent, request: &AgentRequest, origin: &str) -> AgentResponse {
    let outcome = match request {
        AgentRequest::Status => Ok(report::agent_status(agent)),
        AgentRequest::Diff => ask(agent, Command::Inspect).await.and_then(|diff| {
            diff.map(|diff| json!({ "text": diff.to_text(), "is_empty": diff.is_empty(), "diff": diff }))
        }),
        AgentRequest::Resync => ask(agent, Command::Resync).await.map(|_| report::agent_status(agent)),
        AgentRequest::Publish { pid, protocol, port } => {
            let published = proxies::publish(agent, *pid, *protocol, *port, origin).await;
            published.map(|host_port| json!({ "host_port": host_port }))
        }
        AgentRequest::Unpublish { pid, protocol, port } => {
            proxies::unpublish(agent, *pid, *protocol, *port, origin).await.map(|()| json!({}))
        }
    };
    match outcome {
        Ok(report) => AgentResponse::Report { report },
        Err(message) => AgentResponse::Err { message },
    }
}

async fn ask<T>(agent: &Agent, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, String> {
    let (reply, answer) = oneshot::channel();
    let mut commands = agent.commands.clone();
    commands.send(command(reply)).await.map_err(|_| "overlayd is stopping".to_owned())?;
    match tokio::time::timeout(ROUND_WITHIN, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err("overlayd is stopping".into()),
        Err(_) => Err("the loop is busy and has not answered in time".into()),
    }
}

/// Takes the device down and then ends the process. Runs after the reply to `Shutdown` has left.
pub async fn shut_down(agent: &Arc<Agent>) {
    match ask(agent, Command::Suspend).await {
        Ok(true) => {}
        Ok(false) => tracing::error!("the device is not wholly down; the next start or `overlayd purge` deals with it"),
        Err(why) => tracing::error!(%why, "the device could not be taken down before the shutdown"),
    }
    agent.stop.send_replace(Some(Stop::Shutdown));
}
