//! What the agent tells about itself: `Status`, `NatStatus`, and the fuller report of `overlayd status`.
//!
//! Owns the words. Reads only what is known already and never waits for a round (B19).
//!
//! Upholds I-14: keys are shown by their public half.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::{agent::Agent, proxies, resolver};
use crate::{
    clock::Clock,
    desired::{Document, ResolverRecord, SegmentRecord},
    ids::{ServiceName, Zone},
    object::{Key, Spec, Subsystem},
    observed::{Observed, Snapshot},
    platform,
    wire::{DedicatedServiceStatus, NatCandidate, NatStatus, PeerStatus, StatusSnapshot},
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
        service_count: u32::try_from(document.segments().len()).unwrap_or(u32::MAX),
        peers: peers(&document, &view.snapshot),
        dedicated_services: dedicated_services(&document),
    }
}

fn dedicated_services(document: &Document) -> Vec<DedicatedServiceStatus> {
    let status = |(service, segment): (&ServiceName, &SegmentRecord)| {
        let dedicated = segment.dedicated.as_ref()?;
        let net = document.segment_net(service)?;
        Some(DedicatedServiceStatus {
            service: service.to_string(),
            interface: document.dedicated_device_name(service)?.to_string(),
            public_key: dedicated.key.public?.to_string(),
            listen_port: dedicated.port,
            overlay_ip: *net.gateways.first()?,
            subnet: net.subnets.first().to_string(),
            peer_count: u32::try_from(document.service_peers(service).len()).unwrap_or(u32::MAX),
        })
    };
    document.segments().iter().filter_map(status).collect()
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
    let candidate = |ip: IpAddr| NatCandidate {
        candidate_type: "host".into(),
        address: SocketAddr::new(ip, port).to_string(),
        priority: HOST_PRIORITY,
    };
    let candidates = host_addresses(agent).await.into_iter().map(candidate).collect();
    NatStatus { candidates, peers: Vec::new(), last_refresh: agent.clock.now().unix.0 }
}

/// The host's own addresses, the likeliest first.
pub async fn host_addresses(agent: &Agent) -> Vec<IpAddr> {
    platform::host_addresses(agent.mark).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the host's addresses cannot be read; none are told");
        Vec::new()
    })
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
    let out = document.address_counts();
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
        "segments": segments(&document),
        "attachments": document.attachments().len(),
        "addresses": { "attached": out.attached, "reserved": out.reserved, "resting": out.resting },
        "published": proxies::report(agent, &document),
        "dns": resolver::report(agent, &document),
        "resolvers": resolvers(agent, &document),
        "objects": objects,
        "troubled": troubled,
    })
}

/// The files that send the system's questions here; without a directory there are none, whatever was asked for.
fn resolvers(agent: &Agent, document: &Document) -> Vec<Value> {
    let directory = agent.settings.resolver_dir.as_deref();
    let resolver = |(zone, record): (&Zone, &ResolverRecord)| {
        json!({
            "zone": zone,
            "file": directory.map(|directory| directory.join(zone.as_str())),
            "nameserver": record.node_ip,
            "port": record.port,
        })
    };
    document.resolvers().iter().map(resolver).collect()
}

fn segments(document: &Document) -> Vec<Value> {
    let segment = |(service, segment): (&ServiceName, &SegmentRecord)| {
        let net = document.segment_net(service);
        json!({
            "service": service,
            "mode": segment.mode,
            "bridge": net.as_ref().map(|net| &net.bridge),
            "subnets": net.as_ref().map(|net| net.subnets),
            "attachments": document.attached_count(service),
            "leaving": segment.leaving,
        })
    };
    document.segments().iter().map(segment).collect()
}
