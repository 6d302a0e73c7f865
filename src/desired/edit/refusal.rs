use std::net::IpAddr;

use super::super::{attachment::AttachmentId, segment::SegmentMode};
use crate::ids::{BadId, Cidr, DnsName, IfName, NetworkName, Networks, Protocol, ServiceName, WgPublicKey};

/// Most allowed IPs of one peer (I-15). A full routing table would be a mistake; the contract's own senders use a handful.
pub(super) const ALLOWED_IPS_MAX: usize = 16_384;
/// Most addresses of one DNS name (I-15): what fits a DNS message over TCP with room to spare.
pub(super) const DNS_ADDRESSES_MAX: usize = 1_024;

/// Most attachments of one node (I-15): as many as one nft set and one bridge are measured with, and more than a kernel has processes for.
pub(super) const ATTACHMENTS_MAX: usize = 65_536;
/// Most addresses that are handed out without an attachment (I-15).
pub(super) const RESERVED_MAX: usize = 65_536;
/// Most segments of one node, and most services with peers of their own (I-15): each is a bridge.
pub(super) const SEGMENTS_MAX: usize = 4_096;
/// Ports above the node's own that dedicated devices listen on: part of the contract.
pub(super) const DEDICATED_PORTS: u16 = 256;

/// Most ports of one attachment that are published (I-15): each is a socket.
pub(super) const FORWARDS_MAX: usize = 64;

/// A "no" to an edit; nothing was changed. Reads as a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("slice {slice} is not inside the cluster network {cluster}; send a slice of that network")]
    SliceOutsideCluster { slice: Cidr, cluster: Networks },
    #[error("network {0} is too small to hold a node address; send a prefix shorter than the full length")]
    TooSmall(Cidr),
    #[error("WireGuard port 0 cannot be listened on; send a port from 1 to 65535")]
    PortZero,
    #[error("the key is this node's own; a node is not its own peer")]
    OwnKey,
    #[error("no peer has the public key {0}; add the peer first")]
    UnknownPeer(WgPublicKey),
    #[error("a peer may have at most {ALLOWED_IPS_MAX} allowed IPs; send shorter prefixes")]
    TooManyAllowedIps,
    #[error("{0} has {DNS_ADDRESSES_MAX} addresses already; unregister the name first")]
    TooManyAddresses(DnsName),
    #[error(
        "a host-shared container is part of the host, so it cannot be fenced to isolation network {0}; attach it without one, to a \
             service that is not isolated"
    )]
    HostSharedIsolated(NetworkName),
    #[error("nothing is attached as {0}; send attach_container first")]
    UnknownAttachment(AttachmentId),
    #[error(
        "service {0} has a bridge of its own, so its containers have addresses to reach them by; only those of a shared service have \
             their ports published"
    )]
    NotShared(ServiceName),
    #[error("port 0 is none; send a port from 1 to 65535")]
    PortZeroPublished,
    #[error("{0} has {FORWARDS_MAX} published ports already; unpublish one first")]
    TooManyForwards(AttachmentId),
    #[error("{protocol} port {port} of the host leads to another container already; ask again for another port")]
    HostPortTaken { protocol: Protocol, port: u16 },
    #[error("this node has no overlay yet; send setup_global_overlay first")]
    NoOverlay,
    #[error("this node has no slice yet; send setup_global_overlay with a slice_cidr first")]
    NoSlice,
    #[error(
        "{attached} containers are attached, so the overlay can neither be renamed nor move to another cluster network; \
             send detach_container for each of them, or teardown_global_overlay, first"
    )]
    OverlayInUse { attached: usize },
    #[error("slice {slice} overlaps {subnet}, the subnet of {of}; send a slice that is free")]
    SliceOverlaps { slice: Cidr, subnet: Cidr, of: String },
    #[error(
        "address {address} of the present slice is held by {holder}; send a slice that has it, but not as its first \
             address, or send detach_container first"
    )]
    SliceInUse { address: IpAddr, holder: String },
    #[error("port {port} is that of the WireGuard device of service {service}; send another wg_port")]
    PortTaken { port: u16, service: ServiceName },
    #[error(
        "no port from {first} to {last} is free for the WireGuard device of service {service}; send \
             teardown_service_overlay for a dedicated service, or another wg_port"
    )]
    NoPort { service: ServiceName, first: u16, last: u16 },
    #[error(
        "the cluster network {cluster} has no free /{prefix_len} for service {service}; send teardown_service_overlay \
             for a service that is not needed, or set up a larger cluster network"
    )]
    NoSubnet { cluster: Cidr, prefix_len: u8, service: ServiceName },
    #[error("services {one} and {other} would both have an interface {name}; send another service name")]
    NameTaken { one: ServiceName, other: ServiceName, name: IfName },
    #[error("{attached} containers are attached to service {service} in mode {}; send detach_container for each of them \
             before another mode", mode.word())]
    SegmentInUse { service: ServiceName, mode: SegmentMode, attached: usize },
    #[error("this node has {SEGMENTS_MAX} segments already; send teardown_service_overlay first")]
    TooManySegments,
    #[error("{0}; send the pid of a process in the container")]
    NoPid(BadId),
    #[error("this node has {ATTACHMENTS_MAX} attachments already; send detach_container first")]
    TooManyAttachments,
    #[error("{RESERVED_MAX} addresses are handed out or rest; send release_ip, or try again later")]
    TooManyReserved,
    #[error("the firewall cannot tell the isolation networks {wanted} and {present} apart; send another name")]
    NetworkTaken { wanted: NetworkName, present: NetworkName },
    #[error(
        "subnet {subnet} has no free address: {in_use} are in use and {resting} rest for a while after their release; \
             send detach_container or release_ip, or try again later"
    )]
    Exhausted { subnet: Cidr, in_use: usize, resting: usize },
    #[error("address {0} was never handed out; send one that allocate_ip answered")]
    NeverHandedOut(IpAddr),
    #[error("address {0} is this node's own; send one that allocate_ip answered")]
    AddressOfNode(IpAddr),
    #[error("address {address} is that of attachment {holder}; send detach_container to give it back")]
    AddressAttached { address: IpAddr, holder: AttachmentId },
    #[error(
        "address {address} is that of guest {guest} of this node; send detach_container for it before giving it to a peer"
    )]
    AllowedIpOfGuest { address: Cidr, guest: AttachmentId },
    #[error("the key is that of guest {0} of this node; send detach_container for it before adding it as a peer")]
    KeyOfGuest(AttachmentId),
}
