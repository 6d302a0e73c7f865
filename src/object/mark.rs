use std::fmt;

use serde::{Deserialize, Serialize};

/// Routing protocol number of our routes. Unassigned in `linux/rtnetlink.h` and iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 157;
/// Address protocol (`IFA_PROTO`, Linux 5.18) of our addresses; the same number, so that one search finds both.
pub const ADDRESS_PROTOCOL: u8 = ROUTE_PROTOCOL;

/// Top byte of the link group: the letter O. The lower three bytes tell instances apart.
const GROUP_PREFIX: u32 = 0x4F00_0000;
/// Bits of the group, and of a route's metric, that hold the instance.
const INSTANCE_BITS: u32 = 0x00FF_FFFF;
/// Added to the metric of a fallback route, so that every route through a device comes before it.
const FALLBACK_STEP: u32 = 0x0100_0000;

/// The proof that an object is ours, and of this instance: two agents with two state directories on one host have two marks.
///
/// It is derived from the state directory's path and not kept in the store, so that a process whose store was lost still knows its own objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(u32);

impl Mark {
    /// The mark of the instance with this identity (the canonical path of its state directory).
    pub fn of_instance(identity: &str) -> Self {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0, 0);
        hasher.write(identity.as_bytes());
        let folded = (hasher.finish() >> 40) as u32 & INSTANCE_BITS;
        Self(GROUP_PREFIX | folded)
    }

    /// Link group (`IFLA_GROUP`) of every link of this instance.
    pub fn link_group(self) -> u32 {
        self.0
    }

    /// Metric of routes that lead through a device of ours.
    pub fn route_metric(self) -> u32 {
        self.0
    }

    /// Metric of the `unreachable` route that catches what no device takes.
    pub fn fallback_metric(self) -> u32 {
        self.0 + FALLBACK_STEP
    }

    /// True for the metrics that a route of this instance can have.
    pub fn owns_metric(self, metric: u32) -> bool {
        metric == self.route_metric() || metric == self.fallback_metric()
    }

    /// True when a link group is that of *some* overlayd instance: used to name a stranger, never to act.
    pub fn is_overlayd_group(group: u32) -> bool {
        group & !INSTANCE_BITS == GROUP_PREFIX
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
