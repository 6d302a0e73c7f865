//! NAT traversal as it is configured and reported.
//!
//! Owns the shapes. Leaves defaults to `nat`: a zero here means that the sender said nothing, not "0 seconds".
//!
//! Upholds I-14: TURN and relay credentials are [`SecretText`].
//!
//! Lists of a [`NatConfig`] are always written, even when empty; lists of a [`NatStatus`] are left out when empty.
//! The contract is like that.

use serde::{Deserialize, Serialize};

use crate::secret::SecretText;

/// NAT traversal as an operator configured it. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NatConfig {
    pub enabled: bool,
    /// `HOST:PORT` of servers that tell a node its outside address.
    pub stun_servers: Vec<String>,
    /// Relays of last resort.
    pub turn_servers: Vec<TurnServer>,
    /// Seconds of punching before a relay is used.
    pub hole_punch_timeout_secs: u64,
    /// Seconds from one look at the outside address to the next.
    pub stun_refresh_interval_secs: u64,
    /// Pairs of candidates tried for one peer. The contract's type is `usize`; on every 64-bit node that is the same range.
    pub max_candidate_pairs: u64,
    /// Present when this node is to be a relay for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_server: Option<RelayServer>,
}

/// A TURN server and how to be let in. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnServer {
    /// `HOST:PORT`.
    pub addr: String,
    pub username: String,
    pub credential: SecretText,
}

/// The relay that this node is to run. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayServer {
    /// UDP port; 0 lets the system choose.
    pub listen_port: u16,
    /// `HOST:PORT` at which other nodes reach this relay.
    pub external_addr: String,
    /// Sessions at a time. The contract's type is `usize`.
    pub max_sessions: u64,
    /// A secret that all nodes of the cluster share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_credential: Option<SecretText>,
}

/// An address at which a node may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatCandidate {
    /// `host`, `server-reflexive` or `relay`; other words are kept and ignored.
    pub candidate_type: String,
    /// `HOST:PORT`.
    pub address: String,
    /// The higher, the sooner it is tried.
    pub priority: u32,
}

/// What NAT traversal has found and reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// This node's own candidates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<NatCandidate>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<NatPeer>,
    /// Unix seconds at which the candidates were last gathered; 0 is never.
    #[serde(default)]
    pub last_refresh: u64,
}

/// How one peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatPeer {
    /// The peer's node id, or its public key in base64 where no node id is known.
    pub node_id: String,
    /// `direct`, `hole-punched`, `relayed` or `unreachable`.
    pub connection_type: String,
    /// `HOST:PORT` in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_endpoint: Option<String>,
}
