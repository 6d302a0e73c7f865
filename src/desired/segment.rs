//! The stored form of segments: what a service's containers are joined by.

use serde::{Deserialize, Serialize};

use super::stored_key;
use crate::{clock::UnixTime, ids::Networks, object::KeyPair};

/// How a service's containers are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentMode {
    /// A bridge of the service's own; traffic to other nodes goes over the node's device.
    Auto,
    /// The node's one shared bridge.
    Shared,
    /// A bridge and a WireGuard device of the service's own.
    Dedicated,
    /// As [`Auto`](Self::Auto), and fenced to an isolation network that has the service's name.
    Isolated,
}

impl SegmentMode {
    pub fn word(self) -> &'static str {
        match self {
            SegmentMode::Auto => "auto",
            SegmentMode::Shared => "shared",
            SegmentMode::Dedicated => "dedicated",
            SegmentMode::Isolated => "isolated",
        }
    }
}

/// One service's segment on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    pub mode: SegmentMode,
    /// Of the segment's own bridge, one for each family of the cluster; `None` exactly for a shared segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnets: Option<Networks>,
    /// `Some` exactly for a dedicated segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<Dedicated>,
    /// An attach made it, and no setup has said yet what it is to be.
    #[serde(default)]
    pub implied: bool,
    /// It was told to go and does so with its last attachment.
    #[serde(default)]
    pub leaving: bool,
    #[serde(default)]
    pub lot: Lot,
    /// When it was made.
    pub created: UnixTime,
    /// Generation at which this record last changed, but for `lot`, `implied` and `leaving`: no object depends on those.
    pub since: u64,
}

/// The WireGuard device of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedicated {
    #[serde(with = "stored_key")]
    pub key: KeyPair,
    /// UDP port.
    pub port: u16,
}

/// What the attachments of a segment have asked for, from the first after it was empty to the last.
///
/// The segment goes with the last of them when one asked for that and none asked to keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lot {
    #[serde(default)]
    pub ephemeral: bool,
    #[serde(default)]
    pub keep: bool,
}

impl Lot {
    /// The lot with one more attachment in it.
    #[must_use]
    pub fn with(self, ephemeral: bool) -> Self {
        Self { ephemeral: self.ephemeral || ephemeral, keep: self.keep || !ephemeral }
    }

    pub fn goes_with_the_last(self) -> bool {
        self.ephemeral && !self.keep
    }
}

/// The one bridge of all shared segments; exists while one of them does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedBridgeRecord {
    pub subnets: Networks,
    /// Generation at which this record last changed.
    pub since: u64,
}
