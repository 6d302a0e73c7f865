//! What overlayd answers.
//!
//! Owns the shapes of the contract's responses. Leaves which request gets which to [`daemon`](crate::daemon) and
//! `docs/WIRE.md`.
//!
//! Upholds I-14: the private key in a [`GuestConfig`] is a [`SecretText`].
//!
//! No variant and no required field may ever be added: a client that cannot read a response drops the whole connection,
//! and with it every other request in flight.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::secret::SecretText;

use super::{
    nat::NatStatus,
    overlay::{OverlayMode, PeerSpec},
    tags::tags,
};

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    /// Done; there is nothing more to say.
    Ok,
    /// The reserved address.
    Ip {
        ip: IpAddr,
    },
    Attached(AttachResult),
    GuestConfig(GuestConfig),
    /// The device or the bridge that was set up.
    BridgeName {
        name: String,
    },
    Status(StatusSnapshot),
    NatStatus(NatStatus),
    /// The names of the bridges that were removed.
    PrunedBridges {
        reclaimed: Vec<String>,
    },
    ServiceOverlay(ServiceOverlay),
    /// Not done; `message` is for a person.
    Err {
        message: String,
    },
}

tags!(Response,
    /// Every response of the contract, as spelled on the wire.
    RESULTS,
    /// The response's name as spelled on the wire.
    result:
    Ok => "ok",
    Ip => "ip",
    Attached => "attached",
    GuestConfig => "guest_config",
    BridgeName => "bridge_name",
    Status => "status",
    NatStatus => "nat_status",
    PrunedBridges => "pruned_bridges",
    ServiceOverlay => "service_overlay",
    Err => "err",
);

/// Where an attached container is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachResult {
    pub ip: IpAddr,
    /// Windows: the HCN namespace as a bare lower-case GUID, without braces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_guid: Option<String>,
}

/// All that a guest needs to run its own WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    pub overlay_ip: IpAddr,
    /// Prefix length in bits of the guest's interface address.
    pub prefix_len: u8,
    /// Base64.
    pub private_key: SecretText,
    /// Base64; the same key pair's public half, by which the mesh knows the guest.
    pub public_key: String,
    /// UDP port of the guest's device.
    pub listen_port: u16,
    pub peers: Vec<PeerSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_server: Option<IpAddr>,
    /// One search domain, or several with spaces between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_domain: Option<String>,
}

/// A segment that is more than a bridge of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOverlay {
    /// The name of the bridge or of the device.
    pub name: String,
    pub mode: OverlayMode,
    /// Base64; of the service's own device, as all that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wg_public_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wg_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
}

/// The state of the overlay as last known. Before the first setup everything is absent or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusSnapshot {
    /// The node's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ip: Option<IpAddr>,
    /// The key of the node's device, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The cluster network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_cidr: Option<String>,
    /// This node's part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice_cidr: Option<String>,
    /// Peers of the node's device.
    pub peer_count: u32,
    /// Segments on this node.
    pub service_count: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerStatus>,
    /// One for each service in [`OverlayMode::Dedicated`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dedicated_services: Vec<DedicatedServiceStatus>,
}

/// A service with a device of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedicatedServiceStatus {
    pub service: String,
    pub interface: String,
    /// Base64.
    pub public_key: String,
    /// UDP port.
    pub listen_port: u16,
    pub overlay_ip: IpAddr,
    pub subnet: String,
    pub peer_count: u32,
}

/// One peer of the node's device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Base64.
    pub public_key: String,
    /// `HOST:PORT` in use; empty when none is known.
    pub endpoint: String,
    /// Networks in CIDR form with commas between them.
    pub allowed_ips: String,
    /// Unix seconds of the last handshake (a date, not an age: B2); 0 is never.
    pub last_handshake_unix_secs: i64,
}
