use std::time::Duration;

use super::super::addressing::{DEFAULT_SERVICE_PREFIX_V4, DEFAULT_SERVICE_PREFIX_V6};
use crate::clock::UnixTime;

/// What an edit is considered with besides the document.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Generation that the document will have with the edit in it.
    pub next: u64,
    pub now: UnixTime,
    pub policy: &'a Policy,
}

/// What an operator may set, and the document does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Prefix lengths of the subnets that services get. A subnet that was chosen keeps its own.
    pub service_prefix_v4: u8,
    pub service_prefix_v6: u8,
    /// How long an address that was given back is not given out again.
    pub address_rest: Duration,
    /// Age that a segment without attachments must have before a list of live bridges can remove it: one that was just made is not on the
    /// list yet (B15).
    pub prune_after: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            service_prefix_v4: DEFAULT_SERVICE_PREFIX_V4,
            service_prefix_v6: DEFAULT_SERVICE_PREFIX_V6,
            address_rest: Duration::from_secs(60),
            prune_after: Duration::from_secs(60),
        }
    }
}
