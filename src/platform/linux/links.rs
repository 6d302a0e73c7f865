//! Links as the kernel describes them: found by one dump, by name or by index.
//!
//! Owns the link group check that stands before every change of anything that hangs on a link. Leaves changing links to
//! [`link_changes`](super::link_changes).
//!
//! Upholds I-03, A38 (found by name each time, changed by index).
//!
//! A veth's far end is told by two numbers: its index there, and the number that *our* namespace has for the other one. Which container that
//! is stands nowhere in the dump; see [`inside`](super::inside).

use netlink_packet_core::NlasIterator;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use nix::errno::Errno;

use super::{
    answer::{Dump, u32_at},
    errno::Fault,
    socket::Channel,
};
use crate::{
    ids::IfName,
    object::{LinkKind, LinkSpec, Mark, VethPeer},
    platform::ActionError,
};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_STP_STATE: u16 = 5;
/// `ifinfomsg` in bytes; index and flags stand at 4 and 8 (linux/rtnetlink.h).
pub(super) const IFINFO: usize = 16;
const IFF_UP: u32 = 1;

/// The kernel's words for the kinds of links that we make.
pub(super) const KIND_WIREGUARD: &str = "wireguard";
pub(super) const KIND_TUN: &str = "tun";
pub(super) const KIND_BRIDGE: &str = "bridge";
pub(super) const KIND_VETH: &str = "veth";

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FoundLink {
    pub(super) index: u32,
    /// Not an [`IfName`]: other programs' links may have any bytes.
    pub(super) name: String,
    /// Empty for hardware and loopback.
    pub(super) kind: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) group: u32,
    /// Index of the bridge (or what else has ports) that it is a port of.
    pub(super) master: Option<u32>,
    /// Of a bridge: whether the spanning tree protocol runs.
    pub(super) stp: bool,
    /// Of a veth: index of the far end, in the far end's namespace.
    pub(super) far_index: u32,
    /// Of a veth: number of the far end's namespace as seen from this one; `None` when it is this one.
    pub(super) far_nsid: Option<i32>,
}

impl FoundLink {
    pub(super) fn is_ours(&self, mark: Mark) -> bool {
        self.group == mark.link_group()
    }

    /// `master` and `peer` are what the indexes stand for, as far as it is known.
    pub(super) fn spec(&self, mark: Mark, master: Option<IfName>, peer: Option<VethPeer>) -> LinkSpec {
        let kind = match self.kind.as_str() {
            KIND_WIREGUARD => LinkKind::WireGuard,
            KIND_TUN if self.is_ours(mark) => LinkKind::WireGuard,
            KIND_BRIDGE => LinkKind::Bridge,
            KIND_VETH => LinkKind::Veth,
            other => LinkKind::Other(other.to_owned()),
        };
        LinkSpec { kind, mtu: self.mtu, up: self.up, master, stp: self.stp, peer }
    }

    /// True when nothing differs that a [`LinkSpec`] tells. Counters, carrier and the like change all the time.
    pub(super) fn is_in_state_of(&self, other: &FoundLink) -> bool {
        let state = |link: &FoundLink| (link.index, link.mtu, link.up, link.group, link.master, link.stp);
        state(self) == state(other) && self.name == other.name && self.kind == other.kind
    }

    /// What a link that is not ours is, for the person who has to resolve it.
    pub(super) fn described(&self) -> String {
        let kind = if self.kind.is_empty() { "hardware" } else { &self.kind };
        if Mark::is_overlayd_group(self.group) {
            format!("a {kind} link of another overlayd instance ({:#010x})", self.group)
        } else {
            format!("a {kind} link of another program (group {})", self.group)
        }
    }
}

/// Reads an `RTM_NEWLINK` or `RTM_DELLINK`; `None` when it is not one.
pub(super) fn parse(kind: u16, body: &[u8]) -> Option<FoundLink> {
    if kind != RTM_NEWLINK && kind != RTM_DELLINK {
        return None;
    }
    let mut link = FoundLink { index: u32_at(body, 4)?, up: u32_at(body, 8)? & IFF_UP != 0, ..FoundLink::default() };
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    for attribute in NlasIterator::new(body.get(IFINFO..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(attribute.value()),
            IFLA_MTU => link.mtu = u32_at(attribute.value(), 0)?,
            IFLA_GROUP => link.group = u32_at(attribute.value(), 0)?,
            IFLA_MASTER => link.master = Some(u32_at(attribute.value(), 0)?),
            IFLA_LINK => link.far_index = u32_at(attribute.value(), 0)?,
            IFLA_LINK_NETNSID => link.far_nsid = Some(u32_at(attribute.value(), 0)?.cast_signed()),
            IFLA_LINKINFO => read_kind(attribute.value(), &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn read_kind(nested: &[u8], link: &mut FoundLink) {
    for part in NlasIterator::new(nested).flatten() {
        match part.kind() {
            IFLA_INFO_KIND => link.kind = String::from_utf8_lossy(part.value()).trim_end_matches('\0').to_owned(),
            // The kind comes before what belongs to it.
            IFLA_INFO_DATA if link.kind == KIND_BRIDGE => {
                link.stp = NlasIterator::new(part.value())
                    .flatten()
                    .any(|option| option.kind() == IFLA_BR_STP_STATE && u32_at(option.value(), 0) != Some(0));
            }
            _ => {}
        }
    }
}

/// The request for one link by its index.
pub(super) fn by_index(index: u32) -> LinkMessage {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

/// Every link of the namespace.
pub(super) async fn dump(route: &mut Channel) -> Result<Dump<FoundLink>, Fault> {
    let mut request = LinkMessage::default();
    // Counters cost more than all the rest of a link's description.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    route.dump(RTM_GETLINK, &request, parse).await
}

/// The link with this name, or `None`.
pub(super) async fn find(route: &mut Channel, name: &IfName) -> Result<Option<FoundLink>, Fault> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_string()));
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match route.get(RTM_GETLINK, &request, parse).await {
        Ok(link) => Ok(Some(link)),
        Err(fault) if fault.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The link with this index.
pub(super) async fn find_index(route: &mut Channel, index: u32) -> Result<FoundLink, Fault> {
    route.get(RTM_GETLINK, &by_index(index), parse).await
}

/// The link with this name, after a look at its mark: what every change of something on a link begins with (I-03).
pub(super) async fn find_ours(route: &mut Channel, mark: Mark, name: &IfName) -> Result<FoundLink, ActionError> {
    match find(route, name).await {
        Ok(Some(link)) if link.is_ours(mark) => Ok(link),
        Ok(Some(link)) => Err(ActionError::Stranger(format!("{name} is {}", link.described()))),
        Ok(None) => Err(ActionError::Gone(format!("there is no link {name}"))),
        Err(fault) => Err(fault.to_action(&format!("find link {name}"))),
    }
}
