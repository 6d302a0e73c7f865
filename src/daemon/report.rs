//! What the agent tells about itself: `Status`, `NatStatus`, and the fuller report of `overlayd status`.
//!
//! Owns the words. Reads only what is known already and never waits for a round (B19).
//!
//! Upholds I-14: keys are shown by their public half.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::agent::Agent;
use crate::{
    clock::Clock,
    desired::Document,
    object::{Key, Spec, Subsystem},
    observed::{Observed, Snapshot},
    platform,
    wire::{NatCandidate, NatStatus, PeerStatus, StatusSnapshot},
};

/// Priority of a host candidate on the wire; reflexive ones have 50, relayed ones 10.
const HOST_PRIORITY: u32 = 100;

/// The contract's status: the document, enriched with what the last look at the node saw.
pub fn status(agent: &Agent) -> StatusSnapshot {
    let document = agent.document();
    let view = agent.view.read();
    let Some(overlay) = document.overlay() else {
        return StatusSnapshot::default();
    };
    let device = overlay.device_name();
    let is_up = view.snapshot.find(&Key::Link(device.clone())).is_some_and(Observed::is_ours);
    StatusSnapshot {
        interface: is_up.then(|| device.to_string()),
        node_ip: document.node_ip(),
        public_key: document.node_key().and_then(|key| key.public).map(|key| key.to_string()),
        overlay_cidr: Some(overlay.cluster.to_string()),
        slice_cidr: overlay.slice.map(|slice| slice.to_string()),
        peer_count: u32::try_from(document.peers().len()).unwrap_or(u32::MAX),
        service_count: 0,
        peers: peers(&document, &view.snapshot),
        dedicated_services: Vec::new(),
    }
}

fn peers(document: &Document, snapshot: &Snapshot) -> Vec<PeerStatus> {
    let Some(device) = document.device_name() else {
        return Vec::new();
    };
    let status = |(public_key, peer): (&crate::ids::WgPublicKey, &crate::desired::PeerRecord)| {
        let seen = snapshot.find(&Key::Peer { device: device.clone(), public_key: *public_key });
        let learned = seen.and_then(|seen| match &seen.spec {
            Spec::Peer(peer) => peer.endpoint.map(|endpoint| endpoint.address.to_string()),
            _ => None,
        });
        let declared = || peer.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
        let handshake = seen.and_then(|seen| seen.stats).and_then(|stats| stats.last_handshake);
        PeerStatus {
            public_key: public_key.to_string(),
            endpoint: learned.unwrap_or_else(declared),
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            last_handshake_unix_secs: handshake.and_then(|at| i64::try_from(at.0).ok()).unwrap_or(0),
        }
    };
    document.peers().iter().map(status).collect()
}

/// The candidates that are known without asking anybody: the host's own addresses with the device's port.
pub async fn nat_status(agent: &Agent) -> NatStatus {
    let Some(port) = agent.document().overlay().map(|overlay| overlay.port) else {
        return NatStatus::default();
    };
    let addresses = match platform::host_addresses(agent.mark).await {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::warn!(%error, "the host's addresses cannot be read; no candidates are reported");
            Vec::new()
        }
    };
    let candidate = |ip: IpAddr| NatCandidate {
        candidate_type: "host".into(),
        address: SocketAddr::new(ip, port).to_string(),
        priority: HOST_PRIORITY,
    };
    let candidates = addresses.into_iter().map(candidate).collect();
    NatStatus { candidates, peers: Vec::new(), last_refresh: agent.clock.now().unix.0 }
}

/// The report of `overlayd status`: generations, conditions, trouble.
pub fn agent_status(agent: &Agent) -> Value {
    let document = agent.document();
    let view = agent.view.read();
    let counts = view.ledger.counts();
    let objects: Vec<Value> = Subsystem::ALL
        .into_iter()
        .flat_map(|part| counts.iter().filter(move |((of, _), count)| *of == part && **count > 0))
        .map(|((part, state), count)| json!({ "kind": part.word(), "state": state, "count": count }))
        .collect();
    let troubled: Vec<Value> =
        view.ledger.troubled().iter().map(|(key, condition)| json!({ "key": key, "condition": condition })).collect();
    let own_key = document.node_key().and_then(|key| key.public);
    let claim_differs = document.node().claimed_key.is_some_and(|claimed| Some(claimed) != own_key);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "mark": agent.mark.to_string(),
        "state_dir": agent.settings.state_dir,
        "generation": document.generation(),
        "covered_generation": view.progress.covered,
        "converged_generation": view.progress.converged,
        "in_sync": view.progress.in_sync,
        "ready": view.progress.ready,
        "rounds": view.progress.rounds,
        "device": document.device_name(),
        "node_ip": document.node_ip(),
        "public_key": own_key,
        "claimed_key_differs": claim_differs,
        "peers": document.peers().len(),
        "dns_names": document.dns().len(),
        "resolvers": document.resolvers().len(),
        "objects": objects,
        "troubled": troubled,
    })
}
