//! Keeps the free-port proxy as the document says: which ports of the host are held, and where they lead.
//!
//! Owns taking the sockets, which a kernel gives to a process and not to a node: this is the one thing of the document that a restart of the
//! agent interrupts. Leaves keeping them to [`listeners`](super::listeners), and copying to [`proxy`](crate::proxy).
//!
//! The kernel chooses a port when it is published. It is taken before the document says so, and the document is what it is taken from
//! ever after.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    agent::Agent,
    listeners::{Known, Listeners, News},
};
use crate::{
    desired::{AttachmentId, Document, Edit, Forward, Grant, Pid},
    ids::Protocol,
    proxy::Listening,
};

type HostPort = (Protocol, u16);

/// What the proxy's task shares with requests and reports.
#[derive(Default)]
pub struct Proxies {
    changed: Notify,
    /// Ports that were taken for an edit which is on its way.
    offered: Mutex<BTreeMap<HostPort, Listening>>,
    /// Which ports are held, and why others are not.
    known: Arc<Known<HostPort>>,
}

impl Proxies {
    fn offered(&self) -> MutexGuard<'_, BTreeMap<HostPort, Listening>> {
        // Each change of it is one call on the map.
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs for as long as the process lives.
pub async fn keep(agent: Arc<Agent>) {
    let mut listeners = Listeners::new(agent.proxies.known.clone(), agent.covered.clone());
    loop {
        let wanted = wanted(&agent.document());
        for (port, to) in listeners.missing(wanted).await {
            let opened = open(&agent, port).await.map(|listening| tokio::spawn(listening.serve(to)));
            if let Some(News::Shut(error)) = listeners.note(port, to, opened) {
                tracing::warn!(protocol = %port.0, port = port.1, %to, %error, "a published port cannot be taken; it is tried again");
            }
        }
        tokio::select! {
            () = agent.proxies.changed.notified() => {}
            goes_on = listeners.wait() => if !goes_on { return },
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

async fn open(agent: &Agent, port: HostPort) -> io::Result<Listening> {
    let offered = agent.proxies.offered().remove(&port);
    match offered {
        Some(listening) => Ok(listening),
        None => Listening::open(port.0, agent.settings.proxy_listen, port.1).await,
    }
}

/// Publishes a container's port; answers with the port of the host.
///
/// # Errors
/// A sentence for the client. Nothing is published.
pub async fn publish(agent: &Agent, pid: u32, protocol: Protocol, port: u16, origin: &str) -> Result<u16, String> {
    let id = Pid::new(pid).map(AttachmentId::Container).map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("no port of the host could be taken: {error}");
    let listening = Listening::open(protocol, agent.settings.proxy_listen, 0).await.map_err(failed)?;
    let host_port = listening.port().map_err(failed)?;
    // Before the edit, so that the task which sees the edit finds the port taken by us and not by a stranger.
    agent.proxies.offered().insert((protocol, host_port), listening);
    let forward = Forward { protocol, port, host_port };
    let outcome = agent.editor.submit(Edit::EnsureForward { id, forward }, origin.to_owned()).await;
    agent.proxies.changed.notify_one();
    match outcome {
        Ok(committed) => match committed.grant {
            Grant::Forward(granted) => {
                if granted != host_port {
                    agent.proxies.offered().remove(&(protocol, host_port));
                }
                Ok(granted)
            }
            _ => unreachable!("a forward is granted a port"),
        },
        Err(error) => {
            agent.proxies.offered().remove(&(protocol, host_port));
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
    let known = agent.proxies.known.lock();
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
                "trouble": known.trouble.get(&(forward.protocol, forward.host_port)),
            })
        })
        .collect()
}
