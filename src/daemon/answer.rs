//! What becomes of a request: the edit is queued, kept, waited for, and answered.
//!
//! Owns when a reply leaves and what it says about the node. Leaves reading the request to [`admit`](super::admit).
//!
//! Upholds I-01, I-12, I-15 (no wait is unbounded).
//!
//! An `Err` to a request that only declares does not take the edit back: it says that the document holds it and what is in its way.

use std::{sync::Arc, time::Duration};

use futures::{SinkExt, channel::oneshot};
use serde_json::json;

use super::{
    admit::{Admitted, admit},
    agent::{Agent, Stop},
    report,
};
use crate::{
    desired::{Committed, EditError, Grant, Submission, Touched},
    object::{Key, Subsystem},
    reconcile::{ledger::Condition, runtime::Command},
    wire::{AgentRequest, AgentResponse, Request, Response},
};

/// Longest time that a reply waits for its round. The edit is kept in any case; a hung data plane must not hang its client (B1).
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// Longest time that a diff or a resync of the command line waits for its turn.
const ROUND_WITHIN: Duration = Duration::from_secs(15);

/// A request that was taken in and has not been answered yet.
pub enum Pending {
    Ready(Response),
    Edit(Submission),
    Status,
    /// The host's addresses are read by whoever waits for the answer, not by the reader of the connection.
    NatStatus,
    Shutdown,
}

/// Takes a request in. Edits are queued here, so that requests of one connection are considered in the order in which they came.
pub async fn take(agent: &Agent, request: &Request, origin: &str) -> Pending {
    let err = |message: String| Pending::Ready(Response::Err { message });
    match admit(request) {
        Err(message) => err(message),
        Ok(Admitted::Nothing) => Pending::Ready(Response::Ok),
        Ok(Admitted::Status) => Pending::Status,
        Ok(Admitted::NatStatus) => Pending::NatStatus,
        Ok(Admitted::Shutdown) => Pending::Shutdown,
        Ok(Admitted::Edit(edit)) => match agent.editor.enqueue(edit, origin.to_owned()).await {
            Ok(submission) => Pending::Edit(submission),
            Err(error) => err(error.to_string()),
        },
    }
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
pub async fn finish(agent: &Agent, pending: Pending) -> Outcome {
    Outcome::Is(match pending {
        Pending::Status => return Outcome::Status,
        Pending::Ready(response) => response,
        Pending::Shutdown => Response::Ok,
        Pending::NatStatus => Response::NatStatus(report::nat_status(agent).await),
        Pending::Edit(submission) => match submission.kept().await {
            Ok(committed) => applied(agent, committed).await,
            Err(error @ EditError::NotKept(_)) => {
                agent.metrics.socket.edits.with_label_values(&["not_kept"]).inc();
                Response::Err { message: error.to_string() }
            }
            Err(error @ EditError::Refused(_)) => {
                agent.metrics.socket.edits.with_label_values(&["refused"]).inc();
                Response::Err { message: error.to_string() }
            }
            Err(error @ EditError::Stopping) => Response::Err { message: error.to_string() },
        },
    })
}

/// Waits until the edit was part of a round, and answers with what came of it.
async fn applied(agent: &Agent, committed: Committed) -> Response {
    agent.metrics.socket.edits.with_label_values(&[if committed.changed { "changed" } else { "unchanged" }]).inc();
    let generation = committed.generation;
    if committed.touched != Touched::Nothing {
        let mut covered = agent.covered.clone();
        let round = covered.wait_for(|covered| *covered >= generation);
        match tokio::time::timeout(APPLIED_WITHIN, round).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return kept_but(generation, "overlayd is stopping; the next start finishes the work"),
            Err(_) => return kept_but(generation, "the node has not answered in time; it will be tried again"),
        }
        if let Some(trouble) = trouble(agent, &committed.touched) {
            return kept_but(generation, &trouble);
        }
    }
    match committed.grant {
        Grant::Nothing => Response::Ok,
        Grant::Device(name) => Response::BridgeName { name: name.to_string() },
    }
}

fn kept_but(generation: u64, why: &str) -> Response {
    Response::Err { message: format!("kept as generation {generation}, but not in effect yet: {why}") }
}

/// What keeps the touched objects from being realized, if anything does.
fn trouble(agent: &Agent, touched: &Touched) -> Option<String> {
    let view = agent.view.read();
    let is_meant = |key: &Key| match touched {
        Touched::Nothing => false,
        Touched::Keys(keys) => keys.contains(key),
        // A setup is about the overlay itself; one peer's failure, or a read-only /proc, is not its failure (A34).
        Touched::Everything => !matches!(key.subsystem(), Subsystem::Peer | Subsystem::Sysctl),
    };
    view.ledger.troubled().iter().filter(|(key, _)| is_meant(key)).find_map(|(key, condition)| match condition {
        Condition::Blocked { why } => Some(format!("{key} is blocked: {why}")),
        Condition::Failing { error, .. } => Some(format!("{key}: {error}")),
        Condition::Realized | Condition::Pending { .. } => None,
    })
}

/// Answers a request of overlayd's own command line.
pub async fn agent_request(agent: &Agent, request: &AgentRequest) -> AgentResponse {
    let outcome = match request {
        AgentRequest::Status => Ok(report::agent_status(agent)),
        AgentRequest::Diff => ask(agent, Command::Inspect).await.and_then(|diff| {
            diff.map(|diff| json!({ "text": diff.to_text(), "is_empty": diff.is_empty(), "diff": diff }))
        }),
        AgentRequest::Resync => ask(agent, Command::Resync).await.map(|_| report::agent_status(agent)),
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
