//! Which overlay something belongs to, how a service is joined to it, and what a peer is.
//!
//! Owns the shapes that several requests and responses share. Leaves reading keys, networks and endpoints out of their
//! text to [`daemon::admit`](crate::daemon): a peer here may still be nonsense, also one that tries to smuggle in a line
//! of another protocol (B27).
//!
//! [`OverlayMode`] is spelled in one lower-case word, not in snake case like every other enum of the contract.

use serde::{Deserialize, Serialize};

use super::{nat::NatCandidate, tags::tags};

/// How a service's containers are joined: which bridge they sit on, and which WireGuard device carries them to other nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayMode {
    /// A bridge of the service's own; traffic to other nodes goes over the node's device.
    #[default]
    Auto,
    /// The node's one shared bridge, and the node's device.
    Shared,
    /// A bridge of its own and a device of its own, with its own key and port.
    Dedicated,
    /// As [`Auto`](Self::Auto), and fenced to an isolation network that has the service's name.
    Isolated,
}

tags!(OverlayMode,
    /// Every mode, as spelled on the wire.
    MODES,
    /// The mode as spelled on the wire.
    mode:
    Auto => "auto",
    Shared => "shared",
    Dedicated => "dedicated",
    Isolated => "isolated",
);

/// A service's overlay settings. Part of the contract's vocabulary, but of no request or response yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayConfig {
    #[serde(default)]
    pub mode: OverlayMode,
    /// The overlay that this one lies in; none, or `cluster`, is the node overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// The device that a request about peers means. Left out by senders that know only one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum PeerScope {
    /// The node's own device.
    #[default]
    Global,
    /// The device of a service in [`OverlayMode::Dedicated`].
    Service { service: String },
}

tags!(PeerScope,
    /// Every scope, as spelled on the wire.
    SCOPES,
    /// The scope as spelled on the wire.
    scope:
    Global => "global",
    Service => "service",
);

/// A WireGuard peer as a client describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// Public key in base64.
    pub public_key: String,
    /// `HOST:PORT`; the host may be a name, which is resolved by the agent.
    pub endpoint: String,
    /// Networks in CIDR form with commas between them; may be empty.
    pub allowed_ips: String,
    /// Seconds between keepalives; 0 is none.
    pub persistent_keepalive_secs: u64,
    /// Addresses at which the peer says it may be reached; left out by senders without NAT traversal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<NatCandidate>,
}
