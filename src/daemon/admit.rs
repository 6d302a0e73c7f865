//! Turns what a client said into an edit, or into the reason why not.
//!
//! Owns the way from text to identifiers: nothing textual from a client gets past this file (B27). Leaves checks against the document to
//! [`desired`](crate::desired).
//!
//! Pure: resolving a pid or a host name is somebody else's work.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    desired::{
        AttachRequest, AttachmentId, Candidate, Edit, GivenId, NatSettings, OverlayRequest, PeerRequest, PeerScope,
        Pid, RelayServer, SearchDomains, SegmentMode, Subject, TurnServer,
    },
    ids::{BadId, Cidr, DnsName, IfName, NetworkName, ServiceName, WgPublicKey},
    object::KeyPair,
    wire::{self, AttachHandle, NatConfig, PeerSpec, Request},
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
pub enum Admitted {
    Edit(Edit),
    /// An edit that lacks a key drawn at random.
    Segment(SegmentAsked),
    /// An edit that lacks what only the machine knows.
    Attach(AttachAsked),
    /// Answers `Ok` without changing anything.
    Nothing,
    Status,
    NatStatus,
    Shutdown,
}

/// A setup of a service's segment.
#[derive(Debug, PartialEq, Eq)]
pub struct SegmentAsked {
    pub service: ServiceName,
    mode: SegmentMode,
}

impl SegmentAsked {
    /// The edit; `fresh` is used only when the segment needs a key and has none.
    pub fn edit(self, fresh: KeyPair) -> Edit {
        Edit::EnsureSegment { service: self.service, mode: self.mode, fresh }
    }
}

/// An attach of somebody who has not been looked up yet.
#[derive(Debug, PartialEq, Eq)]
pub struct AttachAsked {
    pub handle: Handle,
    service: ServiceName,
    join_global: bool,
    ephemeral: bool,
    isolation_network: Option<NetworkName>,
    dns_server: Option<IpAddr>,
    dns_domain: SearchDomains,
}

/// Whom a client means, as it said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// A process in the container: becomes [`Subject::Container`] once its namespace is found (A21).
    Process(Pid),
    /// Becomes [`Subject::Guest`] with a fresh key.
    Guest(GivenId),
    HostShared(GivenId),
}

impl AttachAsked {
    /// The edit that attaches `subject`, which is whom the handle turned out to mean.
    pub fn edit(self, subject: Subject) -> Edit {
        Edit::Attach(AttachRequest {
            subject,
            service: self.service,
            join_global: self.join_global,
            ephemeral: self.ephemeral,
            isolation_network: self.isolation_network,
            dns_server: self.dns_server,
            dns_domain: self.dns_domain,
        })
    }
}

/// Reads a request. `zone`: what all names of the overlay end in, when this node serves it.
///
/// # Errors
/// A sentence for the client that says which field is wrong and what to send instead.
pub fn admit(request: &Request, zone: Option<&DnsName>) -> Result<Admitted, String> {
    let edit = match request {
        Request::SetLocalNodeId { node_id } => Edit::SetNodeId(*node_id),
        Request::SetLocalWgPubkey { pubkey } => Edit::ClaimPublicKey(field("pubkey", pubkey)?),
        Request::SetupGlobalOverlay { .. } => Edit::EnsureOverlay(overlay_request(request)?),
        Request::TeardownGlobalOverlay => Edit::RemoveOverlay,
        Request::AddPeer { peer, scope } => Edit::EnsurePeer(peer_request(peer, peer_scope(scope)?)?),
        Request::RemovePeer { pubkey, scope } => {
            Edit::RemovePeer { scope: peer_scope(scope)?, peer: field("pubkey", pubkey)? }
        }
        Request::AddAllowedIp { pubkey, cidr, scope } => Edit::EnsureAllowedIp {
            scope: peer_scope(scope)?,
            peer: field("pubkey", pubkey)?,
            allowed_ip: field("cidr", cidr)?,
        },
        Request::RemoveAllowedIp { pubkey, cidr, scope } => Edit::RemoveAllowedIp {
            scope: peer_scope(scope)?,
            peer: field("pubkey", pubkey)?,
            allowed_ip: field("cidr", cidr)?,
        },
        Request::RegisterDns { name, ip } => Edit::EnsureDns { name: name_in_zone(name, zone)?, ip: *ip },
        Request::UnregisterDns { name } => Edit::RemoveDns(name_in_zone(name, zone)?),
        Request::WriteScopedResolver { zone, node_ip, port } => {
            Edit::EnsureResolver { zone: field("zone", zone)?, node_ip: *node_ip, port: *port }
        }
        Request::RemoveScopedResolver { zone } => Edit::RemoveResolver(field("zone", zone)?),
        Request::NatTick => return Ok(Admitted::Nothing),
        Request::Status => return Ok(Admitted::Status),
        Request::NatStatus => return Ok(Admitted::NatStatus),
        Request::Shutdown => return Ok(Admitted::Shutdown),
        Request::SetupServiceOverlay { service, mode } => {
            let service = field("service", service)?;
            return Ok(Admitted::Segment(SegmentAsked { service, mode: segment_mode(*mode) }));
        }
        Request::TeardownServiceOverlay { service } => Edit::RemoveSegment(field("service", service)?),
        // Which network the address is of follows from the service alone, so `join_global` says nothing.
        Request::AllocateIp { service, join_global: _ } => Edit::AllocateAddress(field("service", service)?),
        Request::ReleaseIp { ip } => Edit::ReleaseAddress(*ip),
        Request::AttachContainer { .. } => return attach_asked(request).map(Admitted::Attach),
        Request::DetachContainer { handle } => match attached_id(handle)? {
            Some(id) => Edit::Detach(id),
            // Nothing of that kind can be attached here, and detaching what is not attached succeeds.
            None => return Ok(Admitted::Nothing),
        },
        Request::PruneOrphanBridges { live_bridge_names } => Edit::Prune(live_names(live_bridge_names)),
    };
    Ok(Admitted::Edit(edit))
}

/// A name is kept without its zone: one that ends in the zone, or in a dot, was given with it.
fn name_in_zone(text: &str, zone: Option<&DnsName>) -> Result<DnsName, String> {
    let name: DnsName = field("name", text)?;
    let Some(zone) = zone else { return Ok(name) };
    match name.within(zone) {
        Some("") => Err(format!("field \"name\": {name} is the zone itself; send a name in it")),
        Some(before) => field("name", before),
        None if text.ends_with('.') => Err(format!(
            "field \"name\": {name} is not in the zone {zone}; send it without the final dot to mean {name}.{zone}"
        )),
        None if zone.child(name.as_str()).is_none() => {
            Err(format!("field \"name\": {name}.{zone} is longer than DNS allows; send a shorter name"))
        }
        None => Ok(name),
    }
}

fn peer_scope(scope: &wire::PeerScope) -> Result<PeerScope, String> {
    match scope {
        wire::PeerScope::Global => Ok(PeerScope::Node),
        wire::PeerScope::Service { service } => field("service", service).map(PeerScope::Service),
    }
}

fn segment_mode(mode: wire::OverlayMode) -> SegmentMode {
    match mode {
        wire::OverlayMode::Auto => SegmentMode::Auto,
        wire::OverlayMode::Shared => SegmentMode::Shared,
        wire::OverlayMode::Dedicated => SegmentMode::Dedicated,
        wire::OverlayMode::Isolated => SegmentMode::Isolated,
    }
}

fn attach_asked(request: &Request) -> Result<AttachAsked, String> {
    let Request::AttachContainer { handle, service, join_global, ephemeral, isolation_network, dns_server, dns_domain } =
        request
    else {
        unreachable!("asked for an attach only")
    };
    let handle = match handle {
        AttachHandle::LinuxPid { pid } => Handle::Process(process(*pid)?),
        AttachHandle::GuestManaged { id } => Handle::Guest(field("id", id)?),
        AttachHandle::HostShared { id } => Handle::HostShared(field("id", id)?),
        AttachHandle::WindowsContainer { .. } => {
            return Err("a windows_container can be attached only on Windows; on this node send a linux_pid".into());
        }
    };
    Ok(AttachAsked {
        handle,
        service: field("service", service)?,
        join_global: *join_global,
        ephemeral: *ephemeral,
        isolation_network: isolation_network.as_deref().map(|name| field("isolation_network", name)).transpose()?,
        dns_server: *dns_server,
        dns_domain: field("dns_domain", dns_domain.as_deref().unwrap_or_default())?,
    })
}

fn attached_id(handle: &AttachHandle) -> Result<Option<AttachmentId>, String> {
    match handle {
        AttachHandle::LinuxPid { pid } => process(*pid).map(|pid| Some(AttachmentId::Container(pid))),
        AttachHandle::GuestManaged { id } => field("id", id).map(|id| Some(AttachmentId::Guest(id))),
        AttachHandle::HostShared { id } => field("id", id).map(|id| Some(AttachmentId::HostShared(id))),
        AttachHandle::WindowsContainer { .. } => Ok(None),
    }
}

fn process(pid: u32) -> Result<Pid, String> {
    Pid::new(pid).map_err(|error| format!("field \"pid\": {error}"))
}

/// A name that no link can have names no link of ours.
fn live_names(names: &[String]) -> BTreeSet<IfName> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
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

fn peer_request(peer: &PeerSpec, scope: PeerScope) -> Result<PeerRequest, String> {
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
    let too_long =
        |candidate: &&wire::NatCandidate| candidate.candidate_type.len() + candidate.address.len() > CANDIDATE_TEXT_MAX;
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
    Ok(PeerRequest { scope, public_key, endpoint, allowed_ips, keepalive, candidates: candidates.collect() })
}

fn nat_settings(nat: &NatConfig) -> Result<NatSettings, String> {
    check_nat(nat)?;
    let turn = |server: &wire::TurnServer| TurnServer {
        addr: server.addr.clone(),
        username: server.username.clone(),
        credential: server.credential.clone(),
    };
    let relay = |server: &wire::RelayServer| RelayServer {
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

    fn node_peer(peer: &PeerSpec) -> Result<PeerRequest, String> {
        peer_request(peer, PeerScope::Node)
    }

    fn attach(handle: AttachHandle, dns_domain: Option<&str>) -> Request {
        Request::AttachContainer {
            handle,
            service: "web".into(),
            join_global: true,
            ephemeral: false,
            isolation_network: Some("red".into()),
            dns_server: None,
            dns_domain: dns_domain.map(Into::into),
        }
    }

    #[test]
    fn a_name_is_kept_without_its_zone_and_one_outside_of_it_is_refused() {
        let zone: DnsName = "overlay".parse().unwrap();
        for (given, kept) in
            [("db", "db"), ("DB.overlay", "db"), ("db.overlay.", "db"), ("a.b", "a.b"), ("myoverlay", "myoverlay")]
        {
            assert_eq!(name_in_zone(given, Some(&zone)).unwrap().as_str(), kept, "{given}");
        }
        for bad in ["db.example.", "overlay", "overlay.", "a..overlay", ""] {
            assert!(name_in_zone(bad, Some(&zone)).unwrap_err().contains("name"), "{bad}");
        }
    }

    #[test]
    fn an_attach_is_read_whole_and_waits_for_the_machine_to_say_who_it_is_about() {
        let handle = AttachHandle::HostShared { id: "vm 7".into() };
        let Ok(Admitted::Attach(asked)) = admit(&attach(handle, Some("A.example b.example")), None) else { panic!() };
        let Handle::HostShared(id) = asked.handle.clone() else { panic!() };
        let Edit::Attach(wanted) = asked.edit(Subject::HostShared(id)) else { panic!() };
        assert_eq!(wanted.dns_domain.to_string(), "a.example b.example");
        assert_eq!(wanted.isolation_network.unwrap().as_str(), "red");
        assert!(wanted.join_global && !wanted.ephemeral);
    }

    #[test]
    fn what_cannot_be_attached_here_is_refused_and_is_detached_already() {
        let windows = || AttachHandle::WindowsContainer { container_id: "c".into(), ip: None };
        assert!(admit(&attach(windows(), None), None).unwrap_err().contains("only on Windows"));
        assert_eq!(admit(&Request::DetachContainer { handle: windows() }, None), Ok(Admitted::Nothing));
    }

    #[test]
    fn every_text_of_an_attach_is_checked_and_the_field_is_named() {
        let id = |id: &str| AttachHandle::GuestManaged { id: id.into() };
        for (request, name) in [
            (attach(AttachHandle::LinuxPid { pid: 0 }, None), "pid"),
            (attach(AttachHandle::LinuxPid { pid: u32::MAX }, None), "pid"),
            (attach(id(""), None), "id"),
            (attach(id("a\nb"), None), "id"),
            (attach(id("a"), Some("not/a/name")), "dns_domain"),
        ] {
            let error = admit(&request, None).unwrap_err();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn a_live_name_that_no_link_can_have_protects_nothing_and_disturbs_nothing() {
        let names = vec!["zl-prod-0-web-b".to_owned(), "a name that is far too long".into(), String::new()];
        assert_eq!(live_names(&names), BTreeSet::from(["zl-prod-0-web-b".parse().unwrap()]));
    }

    #[test]
    fn a_setup_of_a_service_becomes_an_edit_with_the_key_it_is_given() {
        let request = Request::SetupServiceOverlay { service: "web".into(), mode: wire::OverlayMode::Dedicated };
        let Ok(Admitted::Segment(asked)) = admit(&request, None) else { panic!() };
        let fresh = KeyPair::from_public(None);
        let edit = Edit::EnsureSegment { service: "web".parse().unwrap(), mode: SegmentMode::Dedicated, fresh };
        assert_eq!(asked.edit(KeyPair::from_public(None)), edit);
    }

    #[test]
    fn allowed_ips_are_a_comma_list_that_may_hold_spaces_or_nothing() {
        let request = node_peer(&peer("192.0.2.1:51820", "10.200.0.5/32, 10.200.1.0/24,")).unwrap();
        assert_eq!(request.allowed_ips.len(), 2);
        assert!(node_peer(&peer("192.0.2.1:51820", "")).unwrap().allowed_ips.is_empty());
    }

    #[test]
    fn a_line_break_reaches_no_device() {
        for bad in [
            peer("192.0.2.1:51820\nremove=true", "10.0.0.0/8"),
            peer("192.0.2.1:51820", "10.0.0.0/8\nallowed_ip=0.0.0.0/0"),
        ] {
            assert!(node_peer(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_names_the_field_and_what_to_send() {
        let error = node_peer(&peer("192.0.2.1:51820", "10.0.0.1/8")).unwrap_err();
        assert!(error.contains("allowed_ips") && error.contains("host bits"), "{error}");
    }
}
