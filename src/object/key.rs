use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{BadId, Cidr, IfName, WgPublicKey, text_identifier};

/// The part of the kernel that an object lives in; dumps, coverage, hints and metric labels go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subsystem {
    Link,
    Address,
    Route,
    Sysctl,
    /// The WireGuard device behind a link: key, port, mark.
    Device,
    /// A peer of a WireGuard device.
    Peer,
}

impl Subsystem {
    pub const ALL: [Subsystem; 6] =
        [Subsystem::Link, Subsystem::Address, Subsystem::Route, Subsystem::Sysctl, Subsystem::Device, Subsystem::Peer];

    /// The word used in metric labels, diffs and logs.
    pub fn word(self) -> &'static str {
        match self {
            Subsystem::Link => "link",
            Subsystem::Address => "address",
            Subsystem::Route => "route",
            Subsystem::Sysctl => "sysctl",
            Subsystem::Device => "device",
            Subsystem::Peer => "peer",
        }
    }
}

impl fmt::Display for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A per-interface sysctl that overlayd reconciles. Never one of `all` or `default`: those belong to the host (B22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// `net.ipv4.conf.IF.rp_filter`: strict filtering drops overlay traffic that returns another way (A29).
    Ipv4RpFilter,
    /// `net.ipv6.conf.IF.accept_ra`: a tunnel never gets its addresses from a router advertisement.
    Ipv6AcceptRa,
}

impl Setting {
    pub const ALL: [Setting; 2] = [Setting::Ipv4RpFilter, Setting::Ipv6AcceptRa];

    /// Family and file name below `/proc/sys/net/<family>/conf/<interface>/`.
    pub fn path(self) -> (&'static str, &'static str) {
        match self {
            Setting::Ipv4RpFilter => ("ipv4", "rp_filter"),
            Setting::Ipv6AcceptRa => ("ipv6", "accept_ra"),
        }
    }
}

/// Which object. Its text form (`peer/zl-prod-0-g/<base64>`) is the one in diffs, logs and JSON.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Key {
    Link(IfName),
    /// Linux keeps the same address with two prefix lengths as two addresses, so the prefix is part of the key.
    Address {
        link: IfName,
        address: IpNet,
    },
    /// A route of the main table; Linux tells two routes to one destination apart by their metric.
    Route {
        destination: Cidr,
        metric: u32,
    },
    Sysctl {
        link: IfName,
        setting: Setting,
    },
    Device(IfName),
    Peer {
        device: IfName,
        public_key: WgPublicKey,
    },
}

impl Key {
    pub fn subsystem(&self) -> Subsystem {
        match self {
            Key::Link(_) => Subsystem::Link,
            Key::Address { .. } => Subsystem::Address,
            Key::Route { .. } => Subsystem::Route,
            Key::Sysctl { .. } => Subsystem::Sysctl,
            Key::Device(_) => Subsystem::Device,
            Key::Peer { .. } => Subsystem::Peer,
        }
    }

    /// The link without which the object cannot exist; `None` for links themselves and for routes, whose link is in their spec.
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Key::Link(_) | Key::Route { .. } => None,
            Key::Address { link, .. } | Key::Sysctl { link, .. } => Some(link),
            Key::Device(device) | Key::Peer { device, .. } => Some(device),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.subsystem();
        match self {
            Key::Link(name) | Key::Device(name) => write!(f, "{kind}/{name}"),
            Key::Address { link, address } => write!(f, "{kind}/{link}/{address}"),
            Key::Route { destination, metric } => write!(f, "{kind}/{destination}/{metric}"),
            Key::Sysctl { link, setting } => {
                let (family, name) = setting.path();
                write!(f, "{kind}/{link}/{family}.{name}")
            }
            Key::Peer { device, public_key } => write!(f, "{kind}/{device}/{public_key}"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::new("object key", text, "must be KIND/NAME…, as `overlayd diff --json` writes it");
        let (kind, rest) = text.split_once('/').ok_or_else(bad)?;
        if kind == "link" {
            return rest.parse().map(Key::Link);
        }
        if kind == "device" {
            return rest.parse().map(Key::Device);
        }
        if kind == "route" {
            let (destination, metric) = rest.rsplit_once('/').ok_or_else(bad)?;
            return Ok(Key::Route { destination: destination.parse()?, metric: metric.parse().map_err(|_| bad())? });
        }
        let (link, rest) = rest.split_once('/').ok_or_else(bad)?;
        let link: IfName = link.parse()?;
        match kind {
            "address" => Ok(Key::Address { link, address: rest.parse().map_err(|_| bad())? }),
            "sysctl" => {
                let (family, name) = rest.split_once('.').ok_or_else(bad)?;
                let setting =
                    Setting::ALL.into_iter().find(|setting| setting.path() == (family, name)).ok_or_else(bad)?;
                Ok(Key::Sysctl { link, setting })
            }
            "peer" => Ok(Key::Peer { device: link, public_key: rest.parse()? }),
            _ => Err(bad()),
        }
    }
}

text_identifier!(Key);
