use std::{collections::BTreeSet, fmt, net::IpAddr};

use super::super::{
    attachment::{AttachmentId, Forward, GivenId, Pid, SearchDomains},
    record::{Candidate, NatSettings},
    segment::SegmentMode,
};
use crate::{
    ids::{
        BadId, Cidr, DnsName, Endpoint, IfName, Label, Netns, NetworkName, Networks, Protocol, ServiceName,
        WgPublicKey, Zone,
    },
    object::KeyPair,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    SetNodeId(u64),
    ClaimPublicKey(WgPublicKey),
    EnsureOverlay(OverlayRequest),
    /// Removes the overlay with all that hangs on it: segments, attachments, addresses and the peers of every device.
    RemoveOverlay,
    EnsurePeer(PeerRequest),
    RemovePeer {
        scope: PeerScope,
        peer: WgPublicKey,
    },
    EnsureAllowedIp {
        scope: PeerScope,
        peer: WgPublicKey,
        allowed_ip: Cidr,
    },
    RemoveAllowedIp {
        scope: PeerScope,
        peer: WgPublicKey,
        allowed_ip: Cidr,
    },
    EnsureDns {
        name: DnsName,
        ip: IpAddr,
    },
    RemoveDns(DnsName),
    EnsureResolver {
        zone: Zone,
        node_ip: IpAddr,
        port: Option<u16>,
    },
    RemoveResolver(Zone),
    /// Makes a service's segment, or makes it what it is to be.
    EnsureSegment {
        service: ServiceName,
        mode: SegmentMode,
        /// Used only when the segment needs a key and has none.
        fresh: KeyPair,
    },
    /// Removes a segment; while something is attached to it, it only leaves with the last of that.
    RemoveSegment(ServiceName),
    /// Hands out another address with each call.
    AllocateAddress(ServiceName),
    ReleaseAddress(IpAddr),
    Attach(AttachRequest),
    Detach(AttachmentId),
    /// Detaches a container that is gone, if the attachment is still that one's.
    Bury {
        id: AttachmentId,
        netns: Netns,
    },
    /// Takes back an attach that could not be brought about, if the attachment is still as that one left it.
    Withdraw {
        id: AttachmentId,
        /// `since` of its record, as the attach granted it.
        since: u64,
    },
    /// Removes segments whose bridge is not listed, that nothing is attached to, and that are not new.
    Prune(BTreeSet<IfName>),
    /// Lets a port of the host lead to a container of a shared segment. The first port that was given stays.
    EnsureForward {
        id: AttachmentId,
        forward: Forward,
    },
    RemoveForward {
        id: AttachmentId,
        protocol: Protocol,
        /// In the container.
        port: u16,
    },
    /// Frees the addresses that have rested long enough. Only tidies: such an address is given out again in any case.
    ForgetRested,
}

/// What a driving daemon asks of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    pub subject: Subject,
    pub service: ServiceName,
    /// Also an address of the node's slice; a guest or a host-shared workload has one in any case.
    pub join_global: bool,
    pub ephemeral: bool,
    pub isolation_network: Option<NetworkName>,
    pub dns_server: Option<IpAddr>,
    pub dns_domain: SearchDomains,
}

/// Who is to be attached, as far as somebody has found out who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Container(Netns),
    Guest {
        id: GivenId,
        /// Used only when the guest has no key yet.
        fresh: KeyPair,
    },
    HostShared(GivenId),
}

impl Subject {
    /// # Errors
    /// When a container's process id is none.
    pub fn id(&self) -> Result<AttachmentId, BadId> {
        match self {
            Subject::Container(netns) => Pid::new(netns.pid).map(AttachmentId::Container),
            Subject::Guest { id, .. } => Ok(AttachmentId::Guest(id.clone())),
            Subject::HostShared(id) => Ok(AttachmentId::HostShared(id.clone())),
        }
    }
}

/// What a driving daemon asks the node overlay to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayRequest {
    pub deployment: Label,
    pub instance: Label,
    pub cluster: Networks,
    /// At most one network of each family of the cluster.
    pub slice: Option<Networks>,
    pub port: u16,
    pub host_adapter_mandatory: bool,
    pub nat: Option<NatSettings>,
}

/// The device that a peer is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum PeerScope {
    #[default]
    Node,
    /// The own device of a service, which need not exist yet.
    Service(ServiceName),
}

/// What a driving daemon asks a peer to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRequest {
    pub scope: PeerScope,
    pub public_key: WgPublicKey,
    pub endpoint: Option<Endpoint>,
    pub allowed_ips: BTreeSet<Cidr>,
    /// Seconds.
    pub keepalive: u16,
    pub candidates: Vec<Candidate>,
}

impl fmt::Display for PeerScope {
    /// Nothing for the node's device, so that a line about it reads as it always did.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerScope::Node => Ok(()),
            PeerScope::Service(service) => write!(f, " of service {service}"),
        }
    }
}

impl Edit {
    /// One line without secrets.
    pub fn summary(&self) -> String {
        match self {
            Edit::SetNodeId(id) => format!("set node id {id}"),
            Edit::ClaimPublicKey(key) => format!("claim public key {key}"),
            Edit::EnsureOverlay(wanted) => format!(
                "ensure overlay {} {} cluster {} slice {} port {}",
                wanted.deployment,
                wanted.instance,
                wanted.cluster,
                wanted.slice.map_or("none".into(), |slice| slice.to_string()),
                wanted.port
            ),
            Edit::RemoveOverlay => "remove overlay".into(),
            Edit::EnsurePeer(peer) => format!("ensure peer {}{}", peer.public_key, peer.scope),
            Edit::RemovePeer { scope, peer } => format!("remove peer {peer}{scope}"),
            Edit::EnsureAllowedIp { scope, peer, allowed_ip } => {
                format!("ensure allowed ip {allowed_ip} of peer {peer}{scope}")
            }
            Edit::RemoveAllowedIp { scope, peer, allowed_ip } => {
                format!("remove allowed ip {allowed_ip} of peer {peer}{scope}")
            }
            Edit::EnsureDns { name, ip } => format!("ensure dns {name} {ip}"),
            Edit::RemoveDns(name) => format!("remove dns {name}"),
            Edit::EnsureResolver { zone, node_ip, .. } => format!("ensure resolver {zone} {node_ip}"),
            Edit::RemoveResolver(zone) => format!("remove resolver {zone}"),
            Edit::EnsureSegment { service, mode, .. } => format!("ensure segment {service} {}", mode.word()),
            Edit::RemoveSegment(service) => format!("remove segment {service}"),
            Edit::AllocateAddress(service) => format!("allocate an address for {service}"),
            Edit::ReleaseAddress(address) => format!("release address {address}"),
            Edit::Attach(wanted) => match wanted.subject.id() {
                Ok(id) => format!("attach {id} to {}", wanted.service),
                Err(_) => format!("attach to {}", wanted.service),
            },
            Edit::Detach(id) => format!("detach {id}"),
            Edit::Bury { id, .. } => format!("bury {id}"),
            Edit::Withdraw { id, .. } => format!("withdraw the attach of {id}"),
            Edit::Prune(live) => format!("prune segments without one of {} live bridges", live.len()),
            Edit::EnsureForward { id, forward } => {
                format!("ensure forward {} {} to port {} of {id}", forward.protocol, forward.host_port, forward.port)
            }
            Edit::RemoveForward { id, protocol, port } => format!("remove forward to {protocol} port {port} of {id}"),
            Edit::ForgetRested => "forget rested addresses".into(),
        }
    }
}
