//! Turns what a client said into an edit, or into the reason why not.
//!
//! Owns the way from text to identifiers: nothing textual from a client gets past this file (B27). Leaves checks against the document to
//! [`desired`](crate::desired).
//!
//! Pure: resolving a pid or a host name is somebody else's work.

use std::collections::BTreeSet;

use crate::{
    desired::{Candidate, Edit, NatSettings, OverlayRequest, PeerRequest, RelayServer, TurnServer},
    ids::{BadId, Cidr, WgPublicKey},
    wire::{NatConfig, PeerScope, PeerSpec, Request},
};

/// Most NAT candidates that are kept of one peer (I-15).
const CANDIDATES_MAX: usize = 64;
/// Longest text of one candidate, bytes (I-15).
const CANDIDATE_TEXT_MAX: usize = 256;

/// Most STUN servers, and most TURN servers, that are kept (I-15).
const SERVERS_MAX: usize = 64;
/// Longest address, user name or credential of a server, bytes (I-15).
const SERVER_TEXT_MAX: usize = 1024;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one dispatch; a box would only be in the reader's way")]
pub enum Admitted {
    Edit(Edit),
    /// Answers `Ok` without changing anything.
    Nothing,
    Status,
    NatStatus,
    Shutdown,
}

/// Reads a request.
///
/// # Errors
/// A sentence for the client that says which field is wrong and what to send instead.
pub fn admit(request: &Request) -> Result<Admitted, String> {
    let edit = match request {
        Request::SetLocalNodeId { node_id } => Edit::SetNodeId(*node_id),
        Request::SetLocalWgPubkey { pubkey } => Edit::ClaimPublicKey(field("pubkey", pubkey)?),
        Request::SetupGlobalOverlay { .. } => Edit::EnsureOverlay(overlay_request(request)?),
        Request::TeardownGlobalOverlay => Edit::RemoveOverlay,
        Request::AddPeer { peer, scope } => {
            node_device("add_peer", scope)?;
            Edit::EnsurePeer(peer_request(peer)?)
        }
        Request::RemovePeer { pubkey, scope } => {
            node_device("remove_peer", scope)?;
            Edit::RemovePeer(field("pubkey", pubkey)?)
        }
        Request::AddAllowedIp { pubkey, cidr, scope } => {
            node_device("add_allowed_ip", scope)?;
            Edit::EnsureAllowedIp { peer: field("pubkey", pubkey)?, allowed_ip: field("cidr", cidr)? }
        }
        Request::RemoveAllowedIp { pubkey, cidr, scope } => {
            node_device("remove_allowed_ip", scope)?;
            Edit::RemoveAllowedIp { peer: field("pubkey", pubkey)?, allowed_ip: field("cidr", cidr)? }
        }
        Request::RegisterDns { name, ip } => Edit::EnsureDns { name: field("name", name)?, ip: *ip },
        Request::UnregisterDns { name } => Edit::RemoveDns(field("name", name)?),
        Request::WriteScopedResolver { zone, node_ip, port } => {
            Edit::EnsureResolver { zone: field("zone", zone)?, node_ip: *node_ip, port: *port }
        }
        Request::RemoveScopedResolver { zone } => Edit::RemoveResolver(field("zone", zone)?),
        Request::NatTick => return Ok(Admitted::Nothing),
        Request::Status => return Ok(Admitted::Status),
        Request::NatStatus => return Ok(Admitted::NatStatus),
        Request::Shutdown => return Ok(Admitted::Shutdown),
        Request::SetupServiceOverlay { .. } => return Err(not_built("setup_service_overlay: segments")),
        Request::TeardownServiceOverlay { .. } => return Err(not_built("teardown_service_overlay: segments")),
        Request::AllocateIp { .. } => return Err(not_built("allocate_ip: container addresses")),
        Request::ReleaseIp { .. } => return Err(not_built("release_ip: container addresses")),
        Request::AttachContainer { .. } => return Err(not_built("attach_container: containers")),
        Request::DetachContainer { .. } => return Err(not_built("detach_container: containers")),
        Request::PruneOrphanBridges { .. } => return Err(not_built("prune_orphan_bridges: segments")),
    };
    Ok(Admitted::Edit(edit))
}

fn not_built(what: &str) -> String {
    format!("not built yet: {what}")
}

fn node_device(op: &str, scope: &PeerScope) -> Result<(), String> {
    match scope {
        PeerScope::Global => Ok(()),
        PeerScope::Service { .. } => Err(not_built(&format!("{op} with scope service: dedicated devices"))),
    }
}

fn field<T: std::str::FromStr<Err = BadId>>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|error: BadId| format!("field {name:?}: {error}"))
}

fn overlay_request(request: &Request) -> Result<OverlayRequest, String> {
    let Request::SetupGlobalOverlay {
        deployment,
        instance_id,
        cluster_cidr,
        slice_cidr,
        wg_port,
        host_adapter_mandatory,
        nat,
    } = request
    else {
        unreachable!("asked for a setup only")
    };
    Ok(OverlayRequest {
        deployment: field("deployment", deployment)?,
        instance: field("instance_id", instance_id)?,
        cluster: field("cluster_cidr", cluster_cidr)?,
        slice: slice_cidr.as_deref().map(|text| field("slice_cidr", text)).transpose()?,
        port: *wg_port,
        host_adapter_mandatory: *host_adapter_mandatory,
        nat: nat.as_ref().map(nat_settings).transpose()?,
    })
}

fn peer_request(peer: &PeerSpec) -> Result<PeerRequest, String> {
    let public_key: WgPublicKey = field("public_key", &peer.public_key)?;
    let endpoint = match peer.endpoint.trim() {
        "" => None,
        text => Some(field("endpoint", text)?),
    };
    let keepalive = u16::try_from(peer.persistent_keepalive_secs)
        .map_err(|_| "field \"persistent_keepalive_secs\": must be from 0 to 65535 seconds".to_owned())?;
    let mut allowed_ips: BTreeSet<Cidr> = BTreeSet::new();
    for text in peer.allowed_ips.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        allowed_ips.insert(field("allowed_ips", text)?);
    }
    let too_long = |candidate: &&crate::wire::NatCandidate| {
        candidate.candidate_type.len() + candidate.address.len() > CANDIDATE_TEXT_MAX
    };
    if peer.candidates.len() > CANDIDATES_MAX || peer.candidates.iter().any(|candidate| too_long(&candidate)) {
        return Err(format!(
            "field \"candidates\": at most {CANDIDATES_MAX} candidates of at most {CANDIDATE_TEXT_MAX} bytes are kept"
        ));
    }
    let candidates = peer.candidates.iter().map(|candidate| Candidate {
        candidate_type: candidate.candidate_type.clone(),
        address: candidate.address.clone(),
        priority: candidate.priority,
    });
    Ok(PeerRequest { public_key, endpoint, allowed_ips, keepalive, candidates: candidates.collect() })
}

fn nat_settings(nat: &NatConfig) -> Result<NatSettings, String> {
    check_nat(nat)?;
    let turn = |server: &crate::wire::TurnServer| TurnServer {
        addr: server.addr.clone(),
        username: server.username.clone(),
        credential: server.credential.clone(),
    };
    let relay = |server: &crate::wire::RelayServer| RelayServer {
        listen_port: server.listen_port,
        external_addr: server.external_addr.clone(),
        max_sessions: server.max_sessions,
        auth_credential: server.auth_credential.clone(),
    };
    Ok(NatSettings {
        enabled: nat.enabled,
        stun_servers: nat.stun_servers.clone(),
        turn_servers: nat.turn_servers.iter().map(turn).collect(),
        hole_punch_timeout_secs: nat.hole_punch_timeout_secs,
        stun_refresh_interval_secs: nat.stun_refresh_interval_secs,
        max_candidate_pairs: nat.max_candidate_pairs,
        relay_server: nat.relay_server.as_ref().map(relay),
    })
}

/// Only sizes: what the servers are is read when NAT traversal uses them. No text is repeated, it may be a credential.
fn check_nat(nat: &NatConfig) -> Result<(), String> {
    for (name, count) in [("stun_servers", nat.stun_servers.len()), ("turn_servers", nat.turn_servers.len())] {
        if count > SERVERS_MAX {
            return Err(format!("field \"{name}\": at most {SERVERS_MAX} servers are kept; send fewer"));
        }
    }
    let turn = nat.turn_servers.iter().flat_map(|turn| {
        [
            ("turn_servers", turn.addr.as_str()),
            ("turn_servers", turn.username.as_str()),
            ("turn_servers", turn.credential.reveal()),
        ]
    });
    let relay = nat.relay_server.iter().flat_map(|relay| {
        let credential = relay.auth_credential.as_ref().map_or("", |credential| credential.reveal());
        [("relay_server", relay.external_addr.as_str()), ("relay_server", credential)]
    });
    let stun = nat.stun_servers.iter().map(|text| ("stun_servers", text.as_str()));
    match stun.chain(turn).chain(relay).find(|(_, text)| text.len() > SERVER_TEXT_MAX) {
        Some((name, _)) => {
            Err(format!("field \"{name}\": no text may be longer than {SERVER_TEXT_MAX} bytes; send shorter ones"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: &str, allowed_ips: &str) -> PeerSpec {
        PeerSpec {
            public_key: "DFG/qOzWcxRqvXAbWHnBsQ9WmdyWoDbNLlSFJF8hW2s=".into(),
            endpoint: endpoint.into(),
            allowed_ips: allowed_ips.into(),
            persistent_keepalive_secs: 25,
            candidates: Vec::new(),
        }
    }

    #[test]
    fn allowed_ips_are_a_comma_list_that_may_hold_spaces_or_nothing() {
        let request = peer_request(&peer("192.0.2.1:51820", "10.200.0.5/32, 10.200.1.0/24,")).unwrap();
        assert_eq!(request.allowed_ips.len(), 2);
        assert!(peer_request(&peer("192.0.2.1:51820", "")).unwrap().allowed_ips.is_empty());
    }

    #[test]
    fn a_line_break_reaches_no_device() {
        for bad in [
            peer("192.0.2.1:51820\nremove=true", "10.0.0.0/8"),
            peer("192.0.2.1:51820", "10.0.0.0/8\nallowed_ip=0.0.0.0/0"),
        ] {
            assert!(peer_request(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_names_the_field_and_what_to_send() {
        let error = peer_request(&peer("192.0.2.1:51820", "10.0.0.1/8")).unwrap_err();
        assert!(error.contains("allowed_ips") && error.contains("host bits"), "{error}");
    }
}
