//! What a client may ask for.
//!
//! Owns the shapes of the contract's requests. Leaves what each of them does to [`daemon::admit`](crate::daemon) and
//! `docs/WIRE.md`, and overlayd's own requests to [`agent`](super::agent).
//!
//! Upholds I-14 for the credentials inside a [`NatConfig`].
//!
//! A field with a default is not a whim: a sender older than the field leaves it out, and must mean what it meant then.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    nat::NatConfig,
    overlay::{OverlayMode, PeerScope, PeerSpec},
    tags::tags,
};

/// A request of the contract. Networks are CIDR text, public keys base64 text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Tells the agent the node's number in the cluster.
    SetLocalNodeId { node_id: u64 },
    /// Tells the agent which public key the caller believes this node has.
    SetLocalWgPubkey { pubkey: String },

    /// Brings up the node overlay, or changes a live one to these settings.
    SetupGlobalOverlay {
        deployment: String,
        instance_id: String,
        cluster_cidr: String,
        /// This node's part of the cluster network; none until one is assigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slice_cidr: Option<String>,
        /// UDP port of the node's device.
        wg_port: u16,
        /// The caller's containers reach the overlay only through a device of the host: fail when there can be none.
        #[serde(default)]
        host_adapter_mandatory: bool,
        /// None: nothing is said about NAT.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nat: Option<NatConfig>,
    },
    /// Removes the node overlay and all that hangs on it.
    TeardownGlobalOverlay,

    /// Makes a service's segment, or converts it to another mode.
    SetupServiceOverlay { service: String, mode: OverlayMode },
    /// Removes a service's segment.
    TeardownServiceOverlay { service: String },

    /// Reserves an address for a container of a service.
    AllocateIp { service: String, join_global: bool },
    /// Returns a reserved address.
    ReleaseIp { ip: IpAddr },

    /// Joins a container to a service's segment.
    AttachContainer {
        handle: AttachHandle,
        service: String,
        /// Also give it an address of the node's slice.
        join_global: bool,
        /// The segment may go when its last container leaves.
        #[serde(default)]
        ephemeral: bool,
        /// The isolation network to be fenced to; none is the open cluster network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        isolation_network: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dns_server: Option<IpAddr>,
        /// One search domain, or several with spaces between them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dns_domain: Option<String>,
    },
    /// Takes a container off the overlay and returns its addresses.
    DetachContainer { handle: AttachHandle },

    /// Adds a peer or changes it; the peer's fields lie beside `op`, not in an object of their own.
    AddPeer {
        #[serde(flatten)]
        peer: PeerSpec,
        #[serde(default)]
        scope: PeerScope,
    },
    /// Removes a peer.
    RemovePeer {
        pubkey: String,
        #[serde(default)]
        scope: PeerScope,
    },
    /// Routes one more network to a peer.
    AddAllowedIp {
        pubkey: String,
        cidr: String,
        #[serde(default)]
        scope: PeerScope,
    },
    /// Routes a network to a peer no longer.
    RemoveAllowedIp {
        pubkey: String,
        cidr: String,
        #[serde(default)]
        scope: PeerScope,
    },

    /// Adds a record to the overlay's DNS zone: A or AAAA, by the family of `ip`.
    RegisterDns { name: String, ip: IpAddr },
    /// Removes all records of a name.
    UnregisterDns { name: String },
    /// Writes the file that sends the system's questions about a zone to the overlay's resolver.
    WriteScopedResolver {
        zone: String,
        node_ip: IpAddr,
        /// UDP and TCP port of the resolver; none is 53.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// Removes that file.
    RemoveScopedResolver { zone: String },

    /// Removes segments whose bridge the caller does not list, and bridges of ours that no segment owns.
    PruneOrphanBridges { live_bridge_names: Vec<String> },

    /// Reports the state of the overlay.
    Status,
    /// Runs one round of NAT maintenance.
    NatTick,
    /// Reports the state of NAT traversal.
    NatStatus,
    /// Ends the agent after it has answered.
    Shutdown,
}

tags!(Request,
    /// Every request of the contract, as spelled on the wire.
    OPS,
    /// The request's name as spelled on the wire.
    op:
    SetLocalNodeId => "set_local_node_id",
    SetLocalWgPubkey => "set_local_wg_pubkey",
    SetupGlobalOverlay => "setup_global_overlay",
    TeardownGlobalOverlay => "teardown_global_overlay",
    SetupServiceOverlay => "setup_service_overlay",
    TeardownServiceOverlay => "teardown_service_overlay",
    AllocateIp => "allocate_ip",
    ReleaseIp => "release_ip",
    AttachContainer => "attach_container",
    DetachContainer => "detach_container",
    AddPeer => "add_peer",
    RemovePeer => "remove_peer",
    AddAllowedIp => "add_allowed_ip",
    RemoveAllowedIp => "remove_allowed_ip",
    RegisterDns => "register_dns",
    UnregisterDns => "unregister_dns",
    WriteScopedResolver => "write_scoped_resolver",
    RemoveScopedResolver => "remove_scoped_resolver",
    PruneOrphanBridges => "prune_orphan_bridges",
    Status => "status",
    NatTick => "nat_tick",
    NatStatus => "nat_status",
    Shutdown => "shutdown",
);

/// What is to be attached: how the agent gets hold of a container on this platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "platform", rename_all = "snake_case")]
pub enum AttachHandle {
    /// A process in the container's network namespace (Linux).
    LinuxPid { pid: u32 },
    /// An HCS container, and the address its runtime reserved for it (Windows).
    WindowsContainer {
        container_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ip: Option<IpAddr>,
    },
    /// A guest that runs its own WireGuard device: it is given an identity instead of a link.
    GuestManaged { id: String },
    /// A container in the host's own network: it is given an address on the node's device.
    HostShared { id: String },
}

tags!(AttachHandle,
    /// Every kind of handle, as spelled on the wire.
    PLATFORMS,
    /// The kind of handle as spelled on the wire.
    platform:
    LinuxPid => "linux_pid",
    WindowsContainer => "windows_container",
    GuestManaged => "guest_managed",
    HostShared => "host_shared",
);
