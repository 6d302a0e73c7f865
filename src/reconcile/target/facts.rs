use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ids::DnsName, object::Mark, observed::Surroundings};

/// MTU of the overlay device in bytes: an Ethernet underlay of 1500 less 80 for IPv6, UDP and WireGuard (A28).
pub const DEFAULT_MTU: u32 = 1420;

/// What the translation needs to know besides the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub mark: Mark,
    /// MTU of the overlay's devices, bridges and ports, bytes: one value from end to end, so that no packet is too large half-way (B23).
    pub mtu: u32,
    /// The addresses that endpoint host names resolve to at present.
    pub resolved: BTreeMap<DnsName, IpAddr>,
    /// What the last look found around our objects.
    pub surroundings: Surroundings,
    /// Where other programs keep what they know at run time.
    pub run_dir: PathBuf,
    /// Where the system looks for a resolver of one zone; `None` where it does not.
    pub resolver_dir: Option<PathBuf>,
    /// The zone that the agent answers for; `None` when it answers for none.
    pub served: Option<Served>,
    /// True after a `Shutdown`: the devices are taken down, the document stays (the next start brings them back).
    pub suspended: bool,
}

/// How the overlay's names can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// What all names of the overlay end in.
    pub zone: DnsName,
    /// UDP and TCP.
    pub port: u16,
}

impl Facts {
    pub fn new(mark: Mark) -> Self {
        Self {
            mark,
            mtu: DEFAULT_MTU,
            resolved: BTreeMap::new(),
            surroundings: Surroundings::default(),
            run_dir: PathBuf::from("/run"),
            resolver_dir: None,
            served: None,
            suspended: false,
        }
    }
}
