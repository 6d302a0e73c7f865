//! What overlayd says without being asked.
//!
//! Owns the shapes. Leaves to `daemon` who hears them, and what is lost when nobody reads.
//!
//! An event carries no number: a client that missed some cannot know, and asks for `status` instead.

use serde::{Deserialize, Serialize};

use super::tags::tags;

/// A notification, sent to every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The last handshake of a peer became too old, or recent again.
    PeerHealthChanged { pubkey: String, healthy: bool },
    /// NAT traversal reaches a peer at another `HOST:PORT` than before.
    NatEndpointChanged { pubkey: String, endpoint: String },
}

tags!(Event,
    /// Every event, as spelled on the wire.
    EVENTS,
    /// The event's name as spelled on the wire.
    event:
    PeerHealthChanged => "peer_health_changed",
    NatEndpointChanged => "nat_endpoint_changed",
);
