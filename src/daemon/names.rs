//! Keeps the addresses of endpoint host names fresh.
//!
//! Owns when a name is asked for: when it appears, when its answer expires, and when its peer has fallen silent (A34).
//! Leaves asking to [`dns`](crate::dns) and using the answer to the loop.
//!
//! An address that is still among the answers is kept, so that a name with several addresses does not move a peer with every question.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    SinkExt,
    stream::{self, StreamExt},
};

use super::agent::Agent;
use crate::{
    clock::Clock,
    dns::{Addresses, Lookup},
    ids::{DnsName, Host},
    object::Key,
    reconcile::{plan::SESSION_LIFETIME, runtime::Command},
};

/// How often the list of names and the silence of peers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shortest and longest time between two questions for one name, whatever its TTL says.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));

/// Questions that are under way at a time (I-15).
const QUESTIONS_MAX: usize = 16;

struct Known {
    ip: Option<IpAddr>,
    asked_at: Instant,
    /// When the answer has expired.
    ask_at: Instant,
}

/// Runs for as long as the process lives.
pub async fn keep_fresh(agent: Arc<Agent>) {
    let mut lookup: Option<Lookup> = None;
    let mut known: BTreeMap<DnsName, Known> = BTreeMap::new();
    loop {
        let (names, silent) = endpoint_names(&agent);
        let gone = known.len();
        known.retain(|name, _| names.contains(name));
        let mut changed = known.len() != gone;
        let due: Vec<DnsName> =
            names.into_iter().filter(|name| is_due(known.get(name), silent.contains(name))).collect();
        if !due.is_empty() {
            drop(lookup.take_if(|lookup| !lookup.is_current()));
            let lookup = lookup.get_or_insert_with(Lookup::of_host);
            let questions = due.into_iter().map(async |name| (lookup.addresses(&name).await, name));
            // One name whose servers are silent does not delay the others (A34).
            let mut answers = stream::iter(questions).buffer_unordered(QUESTIONS_MAX);
            while let Some((answer, name)) = answers.next().await {
                changed |= note(answer, name, &mut known);
            }
        }
        if changed {
            let resolved = known.iter().filter_map(|(name, known)| known.ip.map(|ip| (name.clone(), ip))).collect();
            if agent.commands.clone().send(Command::Resolved(resolved)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_due(known: Option<&Known>, is_silent: bool) -> bool {
    let Some(known) = known else { return true };
    known.ask_at <= Instant::now() || (is_silent && known.asked_at.elapsed() > ASK_AGAIN.0)
}

/// Writes an answer down; true when the address to use has changed.
fn note(answer: Result<Addresses, String>, name: DnsName, known: &mut BTreeMap<DnsName, Known>) -> bool {
    let before = known.get(&name).and_then(|known| known.ip);
    let (ip, again) = match answer {
        Ok(addresses) => {
            let ip = before.filter(|ip| addresses.ips.contains(ip)).or_else(|| addresses.ips.first().copied());
            (ip, addresses.ttl.clamp(ASK_AGAIN.0, ASK_AGAIN.1))
        }
        Err(why) => {
            if before.is_none() && !known.contains_key(&name) {
                tracing::warn!(%name, %why, "an endpoint's host name does not resolve; its peer waits for it");
            }
            // An answer that has expired is better than none.
            (before, ASK_AGAIN.0)
        }
    };
    if ip != before {
        tracing::info!(%name, ?ip, "an endpoint's host name resolves");
    }
    known.insert(name, Known { ip, asked_at: Instant::now(), ask_at: Instant::now() + again });
    ip != before
}

/// The host names in the document, and those among them whose peer has been silent for longer than a session lives.
fn endpoint_names(agent: &Agent) -> (BTreeSet<DnsName>, BTreeSet<DnsName>) {
    let document = agent.document();
    let view = agent.view.read();
    let now = agent.clock.now().unix;
    let mut names = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for (scope, public_key, peer) in document.all_peers() {
        let Some(Host::Name(name)) = peer.endpoint.as_ref().map(|endpoint| &endpoint.host) else {
            continue;
        };
        names.insert(name.clone());
        let Some(device) = document.device_of(&scope) else { continue };
        let seen = view.snapshot.find(&Key::Peer { device, public_key: *public_key });
        let handshake = seen.and_then(|seen| seen.stats).and_then(|stats| stats.last_handshake);
        if handshake.is_some_and(|at| now.since(at) > SESSION_LIFETIME) {
            silent.insert(name.clone());
        }
    }
    (names, silent)
}
