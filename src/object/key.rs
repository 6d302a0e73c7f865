use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{BadId, Cidr, FilePath, IfName, WgPublicKey, text_identifier};

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
    /// The container's side of a veth pair, in the container's network namespace.
    Inside,
    /// The rules of our firewall tables.
    Ruleset,
    /// An address of a container as the firewall knows it.
    Member,
    /// A rule of ours in another program's firewall table.
    Guest,
    /// A file that tells another program to leave our links alone.
    File,
    /// What the host's resolver knows of a link.
    LinkDns,
}

impl Subsystem {
    pub const ALL: [Subsystem; 12] = [
        Subsystem::Link,
        Subsystem::Address,
        Subsystem::Route,
        Subsystem::Sysctl,
        Subsystem::Device,
        Subsystem::Peer,
        Subsystem::Inside,
        Subsystem::Ruleset,
        Subsystem::Member,
        Subsystem::Guest,
        Subsystem::File,
        Subsystem::LinkDns,
    ];

    /// False for what is never removed by itself: a setting has no mark and is never restored, and a device goes with its link.
    pub fn is_removed_by_itself(self) -> bool {
        !matches!(self, Subsystem::Sysctl | Subsystem::Device)
    }

    /// The word used in metric labels, diffs and logs.
    pub fn word(self) -> &'static str {
        match self {
            Subsystem::Link => "link",
            Subsystem::Address => "address",
            Subsystem::Route => "route",
            Subsystem::Sysctl => "sysctl",
            Subsystem::Device => "device",
            Subsystem::Peer => "peer",
            Subsystem::Inside => "inside",
            Subsystem::Ruleset => "ruleset",
            Subsystem::Member => "member",
            Subsystem::Guest => "guest",
            Subsystem::File => "file",
            Subsystem::LinkDns => "link_dns",
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
    /// `net.ipv4.conf.IF.forwarding`: packets that come in here may be sent on. Set on our own links and on the host's way out, never for all.
    Ipv4Forwarding,
    /// `net.ipv6.conf.IF.force_forwarding` (Linux 6.17): the same for IPv6, where `forwarding` of a link only changes how it takes router
    /// advertisements and only that of `all` lets packets through.
    Ipv6ForceForwarding,
}

impl Setting {
    pub const ALL: [Setting; 4] =
        [Setting::Ipv4RpFilter, Setting::Ipv6AcceptRa, Setting::Ipv4Forwarding, Setting::Ipv6ForceForwarding];

    /// True for the settings that are also wanted on the host's way out, a link that is not ours (docs/decisions/0013-forwarding-link-by-link.md).
    pub fn may_be_on_uplink(self) -> bool {
        match self {
            Setting::Ipv4Forwarding | Setting::Ipv6ForceForwarding => true,
            Setting::Ipv4RpFilter | Setting::Ipv6AcceptRa => false,
        }
    }

    /// Family and file name below `/proc/sys/net/<family>/conf/<interface>/`.
    pub fn path(self) -> (&'static str, &'static str) {
        match self {
            Setting::Ipv4RpFilter => ("ipv4", "rp_filter"),
            Setting::Ipv6AcceptRa => ("ipv6", "accept_ra"),
            Setting::Ipv4Forwarding => ("ipv4", "forwarding"),
            Setting::Ipv6ForceForwarding => ("ipv6", "force_forwarding"),
        }
    }
}

/// Stands for the one ruleset in the text of its key.
const RULESET: &str = "overlayd";

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
    /// The container's side of the veth pair whose host side has this name.
    Inside(IfName),
    /// The rules of our tables: one object, because they change in one transaction.
    Ruleset,
    /// An address that the firewall tells apart.
    Member(IpAddr),
    /// The rule that lets overlay traffic of one family through another program's drop policy.
    Guest(Family),
    File(FilePath),
    /// The names that the host's resolver asks for through a link, and of whom.
    LinkDns(IfName),
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    pub fn word(self) -> &'static str {
        match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        }
    }
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
            Key::Inside(_) => Subsystem::Inside,
            Key::Ruleset => Subsystem::Ruleset,
            Key::Member(_) => Subsystem::Member,
            Key::Guest(_) => Subsystem::Guest,
            Key::File(_) => Subsystem::File,
            Key::LinkDns(_) => Subsystem::LinkDns,
        }
    }

    /// The link without which the object cannot exist; `None` for links themselves and for routes, whose link is in their spec.
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Key::Link(_) | Key::Route { .. } | Key::Ruleset | Key::Member(_) | Key::Guest(_) | Key::File(_) => None,
            Key::Address { link, .. } | Key::Sysctl { link, .. } | Key::Inside(link) | Key::LinkDns(link) => Some(link),
            Key::Device(device) | Key::Peer { device, .. } => Some(device),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.subsystem();
        match self {
            Key::Link(name) | Key::Device(name) | Key::Inside(name) | Key::LinkDns(name) => write!(f, "{kind}/{name}"),
            Key::Ruleset => write!(f, "{kind}/{RULESET}"),
            Key::Member(address) => write!(f, "{kind}/{address}"),
            Key::Guest(family) => write!(f, "{kind}/{}", family.word()),
            // The path begins with a slash of its own.
            Key::File(path) => write!(f, "{kind}{path}"),
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
        match kind {
            "link" => return rest.parse().map(Key::Link),
            "device" => return rest.parse().map(Key::Device),
            "inside" => return rest.parse().map(Key::Inside),
            "link_dns" => return rest.parse().map(Key::LinkDns),
            "ruleset" if rest == RULESET => return Ok(Key::Ruleset),
            "member" => return rest.parse().map(Key::Member).map_err(|_| bad()),
            "guest" => {
                let family = Family::ALL.into_iter().find(|family| family.word() == rest);
                return family.map(Key::Guest).ok_or_else(bad);
            }
            "file" => return format!("/{rest}").parse().map(Key::File),
            "route" => {
                let (destination, metric) = rest.rsplit_once('/').ok_or_else(bad)?;
                return Ok(Key::Route {
                    destination: destination.parse()?,
                    metric: metric.parse().map_err(|_| bad())?,
                });
            }
            _ => {}
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
