//! The stored form of attachments: containers, guests and host-shared workloads, and the addresses that nobody attached has.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::stored_key;
use crate::{
    clock::UnixTime,
    ids::{BadId, DnsName, IfName, Netns, NetworkName, Protocol, ServiceName, text_identifier},
    object::KeyPair,
};

/// Largest process id of Linux: `PID_MAX_LIMIT` (include/linux/threads.h). Names of veths with it still fit.
const PID_MAX: u32 = 4 * 1024 * 1024;
/// Longest id of a guest or a host-shared workload in bytes; the contract gives no bound, so one is written here (I-15).
const GIVEN_ID_MAX: usize = 255;
/// Most search domains of one attachment (I-15): more than resolvers use.
const SEARCH_DOMAINS_MAX: usize = 16;

/// A process id. Names a process only together with the rest of a [`Netns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(u32);

impl Pid {
    /// # Errors
    /// When Linux has no such process id.
    pub fn new(pid: u32) -> Result<Self, BadId> {
        if pid == 0 || pid > PID_MAX {
            return Err(BadId::new("process id", &pid.to_string(), "must be from 1 to 4194304"));
        }
        Ok(Self(pid))
    }

    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An id that the driving daemon gave; only compared and shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GivenId(String);

impl FromStr for GivenId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        if text.is_empty() || text.len() > GIVEN_ID_MAX {
            return Err(BadId::new("id", text, "must have 1 to 255 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(BadId::new("id", text, "may not hold control characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for GivenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for GivenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_identifier!(GivenId);

/// Which attachment. Its text (`pid/4711`, `guest/vm-7`) is the end of its record's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachmentId {
    /// A container, by the process that it was attached through.
    Container(Pid),
    /// A virtual machine with a WireGuard device of its own.
    Guest(GivenId),
    /// A workload in the host's own network, with an address of its own.
    HostShared(GivenId),
}

impl AttachmentId {
    /// The host's ends of a container's veth pairs: the one on its segment, and the one to the node's slice.
    pub fn links(&self) -> Option<[IfName; 2]> {
        match self {
            AttachmentId::Container(pid) => Some([veth(*pid, SEGMENT_END), veth(*pid, GLOBAL_END)]),
            AttachmentId::Guest(_) | AttachmentId::HostShared(_) => None,
        }
    }

    /// What it is called under the name of its service.
    pub fn label(&self) -> String {
        match self {
            AttachmentId::Container(pid) => pid.to_string(),
            AttachmentId::Guest(id) | AttachmentId::HostShared(id) => id.to_string(),
        }
    }

    /// The container that a link's name belongs to, if it is the name of a host end.
    pub fn of_link(name: &IfName) -> Option<Self> {
        let (pid, end) = name.as_str().strip_prefix(VETH)?.split_once('-')?;
        if end != SEGMENT_END && end != GLOBAL_END {
            return None;
        }
        let number = pid.parse().ok().filter(|number: &u32| number.to_string() == pid)?;
        Pid::new(number).ok().map(AttachmentId::Container)
    }
}

const VETH: &str = "veth-";
const SEGMENT_END: &str = "s";
const GLOBAL_END: &str = "g";

fn veth(pid: Pid, end: &str) -> IfName {
    match format!("{VETH}{pid}-{end}").parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a process id has at most seven digits"),
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachmentId::Container(pid) => write!(f, "pid/{pid}"),
            AttachmentId::Guest(id) => write!(f, "guest/{id}"),
            AttachmentId::HostShared(id) => write!(f, "host/{id}"),
        }
    }
}

impl FromStr for AttachmentId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::new("attachment", text, "must be pid/NUMBER, guest/ID or host/ID");
        let (kind, id) = text.split_once('/').ok_or_else(bad)?;
        match kind {
            "pid" => {
                let number: u32 = id.parse().map_err(|_| bad())?;
                // One attachment, one spelling: `+7` and `07` would be second keys of the same record.
                if number.to_string() != id {
                    return Err(bad());
                }
                Pid::new(number).map(AttachmentId::Container)
            }
            "guest" => id.parse().map(AttachmentId::Guest),
            "host" => id.parse().map(AttachmentId::HostShared),
            _ => Err(bad()),
        }
    }
}

/// Search domains, in the order in which they are tried; none is a list too.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SearchDomains(Vec<DnsName>);

impl SearchDomains {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &DnsName> {
        self.0.iter()
    }
}

impl FromStr for SearchDomains {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let mut names = Vec::new();
        for name in text.split_ascii_whitespace() {
            if names.len() == SEARCH_DOMAINS_MAX {
                return Err(BadId::new("search list", text, "may have at most 16 domains; send fewer"));
            }
            names.push(name.parse()?);
        }
        Ok(Self(names))
    }
}

impl fmt::Display for SearchDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.iter().map(DnsName::as_str).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Debug for SearchDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_identifier!(SearchDomains);

/// What is attached, by what tells it from its predecessor of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Place {
    Container {
        netns: Netns,
    },
    Guest {
        #[serde(with = "stored_key")]
        key: KeyPair,
    },
    HostShared,
}

/// One attached container, guest or host-shared workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    pub service: ServiceName,
    pub place: Place,
    /// Of a container from its service's subnets, else from the node's slice; one for each family.
    pub addresses: Vec<IpAddr>,
    /// Of a container that joins the node's slice too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub global: Vec<IpAddr>,
    #[serde(default)]
    pub join_global: bool,
    #[serde(default)]
    pub ephemeral: bool,
    /// The isolation network that it is fenced to: the one that was asked for, or that of an isolated segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_server: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "SearchDomains::is_empty")]
    pub dns_domain: SearchDomains,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forwards: BTreeSet<Forward>,
    /// When it was attached.
    pub created: UnixTime,
    /// Generation at which this record last changed, but for `forwards`: no object depends on those.
    pub since: u64,
}

/// A port of the host that the free-port proxy holds for a port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Forward {
    pub protocol: Protocol,
    /// In the container.
    pub port: u16,
    /// As the kernel gave it when the port was published.
    pub host_port: u16,
}

impl AttachmentRecord {
    /// Every address that it holds.
    pub fn held(&self) -> impl Iterator<Item = &IpAddr> {
        self.addresses.iter().chain(&self.global)
    }

    /// The host ends of its veth pairs.
    pub fn links(&self, id: &AttachmentId) -> Vec<IfName> {
        let Some([segment, global]) = id.links() else { return Vec::new() };
        if self.join_global { vec![segment, global] } else { vec![segment] }
    }

    /// The public key of a guest.
    pub fn guest_key(&self) -> Option<&KeyPair> {
        match &self.place {
            Place::Guest { key } => Some(key),
            Place::Container { .. } | Place::HostShared => None,
        }
    }
}

/// An address that was handed out or has just been given back. One that an attachment holds has no such record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AddressRecord {
    /// Given to the caller for a container of this service.
    Reserved {
        service: ServiceName,
        /// Generation at which it was handed out.
        since: u64,
    },
    /// Given back, and not given out again while somebody may still remember the old holder.
    Resting {
        until: UnixTime,
        /// Who held it, for a person.
        was: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_a_container_leads_back_to_it_and_nothing_else_does() {
        for pid in [1, 4711, PID_MAX] {
            let id = AttachmentId::Container(Pid::new(pid).unwrap());
            for link in id.links().unwrap() {
                assert_eq!(AttachmentId::of_link(&link), Some(id.clone()), "{link}");
            }
        }
        for other in
            ["veth-1-x", "veth-01-s", "veth-0-s", "veth-s", "veth--s", "zl-prod-0-g", "veth-9999999-s", "veth-+1-s"]
        {
            assert_eq!(AttachmentId::of_link(&other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn an_attachment_has_one_spelling() {
        for text in ["pid/1", "pid/4194304", "guest/a/b c", "host/x"] {
            assert_eq!(text.parse::<AttachmentId>().unwrap().to_string(), text);
        }
        for bad in ["pid/0", "pid/01", "pid/+1", "pid/4194305", "pid/", "guest/", "guest/a\nb", "vm/1", "pid"] {
            assert!(bad.parse::<AttachmentId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_search_list_holds_domains_with_spaces_between_and_not_too_many() {
        assert_eq!("A.example  b.example".parse::<SearchDomains>().unwrap().to_string(), "a.example b.example");
        assert!("".parse::<SearchDomains>().unwrap().is_empty());
        assert!("a..b".parse::<SearchDomains>().is_err());
        assert!(vec!["a"; 17].join(" ").parse::<SearchDomains>().is_err());
    }
}
