//! Keeps the free-port proxy as the document says: which ports of the host are held, and where they lead.
//!
//! Owns the sockets, which a kernel gives to a process and not to a node: this is the one thing of the document that a restart of the agent
//! interrupts. Leaves copying to [`proxy`](crate::proxy).
//!
//! The kernel chooses a port when it is published. It is taken before the document says so, and the document is what it is taken from
//! ever after.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::agent::Agent;
use crate::{
    desired::{AttachmentId, Document, Edit, Forward, Grant, Pid},
    ids::Protocol,
    proxy::Listening,
};

/// How often a port that another program has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

type HostPort = (Protocol, u16);

/// What the proxy's task shares with requests and reports.
#[derive(Default)]
pub struct Proxies {
    changed: Notify,
    /// Ports that were taken for an edit which is on its way.
    offered: Mutex<BTreeMap<HostPort, Listening>>,
    /// Why a port is not held, for those that are not.
    trouble: Mutex<BTreeMap<HostPort, String>>,
}

struct Running {
    to: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps that are changed by one call each: a panic elsewhere cannot leave them half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs for as long as the process lives.
pub async fn keep(agent: Arc<Agent>) {
    let mut running: BTreeMap<HostPort, Running> = BTreeMap::new();
    let mut covered = agent.covered.clone();
    let mut again = interval(TRY_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = wanted(&agent.document());
        running.retain(|port, present| wanted.get(port) == Some(&present.to) && !present.task.is_finished());
        lock(&agent.proxies.trouble).retain(|port, _| wanted.contains_key(port));
        for (port, to) in wanted {
            if !running.contains_key(&port)
                && let Some(task) = start(&agent, port, to).await
            {
                running.insert(port, Running { to, task });
            }
        }
        tokio::select! {
            () = agent.proxies.changed.notified() => {}
            // Every edit is part of some round.
            changed = covered.changed() => if changed.is_err() { return },
            _ = again.tick() => {}
        }
    }
}

fn wanted(document: &Document) -> BTreeMap<HostPort, SocketAddr> {
    let forwards = document.attachments().values().flat_map(|attachment| {
        let to = attachment.addresses.first().copied();
        attachment.forwards.iter().filter_map(move |forward| {
            Some(((forward.protocol, forward.host_port), SocketAddr::new(to?, forward.port)))
        })
    });
    forwards.collect()
}

async fn start(agent: &Agent, port: HostPort, to: SocketAddr) -> Option<JoinHandle<()>> {
    let offered = lock(&agent.proxies.offered).remove(&port);
    let opened = match offered {
        Some(listening) => Ok(listening),
        None => Listening::open(port.0, agent.settings.proxy_listen, port.1).await,
    };
    let trouble = &agent.proxies.trouble;
    match opened {
        Ok(listening) => {
            lock(trouble).remove(&port);
            Some(tokio::spawn(listening.serve(to)))
        }
        Err(error) => {
            if lock(trouble).insert(port, error.to_string()).is_none() {
                tracing::warn!(protocol = %port.0, port = port.1, %to, %error, "a published port cannot be taken; it is tried again");
            }
            None
        }
    }
}

/// Publishes a container's port; answers with the port of the host.
///
/// # Errors
/// A sentence for the client. Nothing is published.
pub async fn publish(agent: &Agent, pid: u32, protocol: Protocol, port: u16, origin: &str) -> Result<u16, String> {
    let id = Pid::new(pid).map(AttachmentId::Container).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("no port of the host could be taken: {error}");
    let listening = Listening::open(protocol, agent.settings.proxy_listen, 0).await.map_err(failed)?;
    let host_port = listening.port().map_err(failed)?;
    // Before the edit, so that the task which sees the edit finds the port taken by us and not by a stranger.
    lock(&agent.proxies.offered).insert((protocol, host_port), listening);
    let forward = Forward { protocol, port, host_port };
    let outcome = agent.editor.submit(Edit::EnsureForward { id, forward }, origin.to_owned()).await;
    agent.proxies.changed.notify_one();
    match outcome {
        Ok(committed) => match committed.grant {
            Grant::Forward(granted) => {
                if granted != host_port {
                    lock(&agent.proxies.offered).remove(&(protocol, host_port));
                }
                Ok(granted)
            }
            _ => unreachable!("a forward is granted a port"),
        },
        Err(error) => {
            lock(&agent.proxies.offered).remove(&(protocol, host_port));
            Err(error.to_string())
        }
    }
}

/// Takes a publication back. One that is none is taken back already.
///
/// # Errors
/// A sentence for the client.
pub async fn unpublish(agent: &Agent, pid: u32, protocol: Protocol, port: u16, origin: &str) -> Result<(), String> {
    let id = Pid::new(pid).map(AttachmentId::Container).map_err(|error| error.to_string())?;
    let edit = Edit::RemoveForward { id, protocol, port };
    agent.editor.submit(edit, origin.to_owned()).await.map_err(|error| error.to_string())?;
    agent.proxies.changed.notify_one();
    Ok(())
}

/// The published ports, for `overlayd status`.
pub fn report(agent: &Agent, document: &Document) -> Vec<Value> {
    let trouble = lock(&agent.proxies.trouble);
    let forwards = document
        .attachments()
        .iter()
        .flat_map(|(id, attachment)| attachment.forwards.iter().map(move |forward| (id, attachment, forward)));
    forwards
        .map(|(id, attachment, forward)| {
            json!({
                "protocol": forward.protocol,
                "host_port": forward.host_port,
                "attachment": id.to_string(),
                "service": attachment.service,
                "to": attachment.addresses.first().map(|ip| SocketAddr::new(*ip, forward.port).to_string()),
                "trouble": trouble.get(&(forward.protocol, forward.host_port)),
            })
        })
        .collect()
}
