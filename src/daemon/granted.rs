//! What an edit handed back, in the contract's words.

use std::net::SocketAddr;

use super::{agent::Agent, report};
use crate::{
    desired::{Document, Grant, GuestGrant, PeerRecord, SegmentMode, ServiceGrant},
    ids::WgPublicKey,
    wire::{AttachResult, GuestConfig, OverlayMode, PeerSpec, Response, ServiceOverlay},
};

/// Seconds between keepalives of a guest: it sits behind whatever its host sits behind, and mappings there live 30 s (RFC 4787 asks for 120).
const GUEST_KEEPALIVE: u64 = 25;

pub async fn granted(agent: &Agent, grant: Grant) -> Response {
    match grant {
        // The second is granted to a request outside the contract, which has an answer of its own.
        Grant::Nothing | Grant::Forward(_) => Response::Ok,
        Grant::Device(name) | Grant::Bridge(name) => Response::BridgeName { name: name.to_string() },
        Grant::Address(ip) => Response::Ip { ip },
        Grant::Attached { ip, .. } => Response::Attached(AttachResult { ip, namespace_guid: None }),
        Grant::Service(service) => Response::ServiceOverlay(service_overlay(service)),
        Grant::Guest(guest) => Response::GuestConfig(guest_config(agent, guest).await),
        Grant::Pruned(bridges) => {
            Response::PrunedBridges { reclaimed: bridges.iter().map(ToString::to_string).collect() }
        }
    }
}

fn service_overlay(service: ServiceGrant) -> ServiceOverlay {
    ServiceOverlay {
        name: service.name.to_string(),
        mode: match service.mode {
            SegmentMode::Auto => OverlayMode::Auto,
            SegmentMode::Shared => OverlayMode::Shared,
            SegmentMode::Dedicated => OverlayMode::Dedicated,
            SegmentMode::Isolated => OverlayMode::Isolated,
        },
        wg_public_key: service.public_key.map(|key| key.to_string()),
        wg_port: service.port,
        overlay_ip: service.overlay_ip,
        subnet: service.subnet.map(|subnet| subnet.to_string()),
    }
}

async fn guest_config(agent: &Agent, guest: GuestGrant) -> GuestConfig {
    // Asked for before the document is locked: the machine is slower than memory.
    let addresses = report::host_addresses(agent).await;
    let private = guest.key.private.as_ref().map(|key| key.reveal().as_str().into()).unwrap_or_default();
    GuestConfig {
        overlay_ip: guest.overlay_ip,
        prefix_len: guest.prefix_len,
        private_key: private,
        public_key: guest.key.public.map(|key| key.to_string()).unwrap_or_default(),
        listen_port: guest.listen_port,
        peers: guest_peers(&agent.document(), guest.all_peers, addresses.first().copied()),
        dns_server: guest.dns_server,
        dns_domain: (!guest.dns_domain.is_empty()).then(|| guest.dns_domain.to_string()),
    }
}

/// This node, through which everything can be reached, and where it was asked for its own peers, which have the more specific networks.
fn guest_peers(document: &Document, all: bool, host: Option<std::net::IpAddr>) -> Vec<PeerSpec> {
    let (Some(overlay), Some(own)) = (document.overlay(), document.node_key().and_then(|key| key.public)) else {
        return Vec::new();
    };
    let node = PeerSpec {
        public_key: own.to_string(),
        endpoint: host.map(|ip| SocketAddr::new(ip, overlay.port).to_string()).unwrap_or_default(),
        allowed_ips: overlay.cluster.to_string(),
        persistent_keepalive_secs: GUEST_KEEPALIVE,
        candidates: Vec::new(),
    };
    let spec = |(public_key, peer): (&WgPublicKey, &PeerRecord)| PeerSpec {
        public_key: public_key.to_string(),
        endpoint: peer.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        persistent_keepalive_secs: GUEST_KEEPALIVE,
        candidates: Vec::new(),
    };
    let others = document.peers().iter().filter(|_| all).map(spec);
    std::iter::once(node).chain(others).collect()
}
