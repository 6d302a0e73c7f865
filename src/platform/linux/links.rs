//! Links: found by one dump or by name, made with their mark, changed only while they carry it.
//!
//! Owns the link group check that stands before every change of anything that hangs on a link. Leaves WireGuard devices behind the
//! links to [`wireguard`](super::wireguard).
//!
//! Upholds I-03, I-04 (the group is in the create request), A38 (found by name each time, changed by index).
//!
//! An alias in a create request is ignored by the kernel, so it is set afterwards; it is for people and proves nothing.

use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;

use super::{
    answer::{Dump, u32_at},
    errno::Fault,
    socket::{CALL_LIMIT, Channel},
};
use crate::{
    ids::IfName,
    object::Spec,
    object::{LinkKind, LinkSpec, Mark},
    observed::{Observed, Owner},
    platform::ActionError,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_INFO_KIND: u16 = 1;
/// `ifinfomsg` in bytes; index and flags stand at 4 and 8 (linux/rtnetlink.h).
pub(super) const IFINFO: usize = 16;
const IFF_UP: u32 = 1;
/// The kernel waits for RCU grace periods when it takes a device with thousands of peers apart.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// The kernel's word for a kernel WireGuard device, and for a TUN.
pub(super) const KIND_WIREGUARD: &str = "wireguard";
pub(super) const KIND_TUN: &str = "tun";

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundLink {
    pub(super) index: u32,
    /// Not an [`IfName`]: other programs' links may have any bytes.
    pub(super) name: String,
    /// Empty for hardware and loopback.
    pub(super) kind: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) group: u32,
}

impl FoundLink {
    pub(super) fn is_ours(&self, mark: Mark) -> bool {
        self.group == mark.link_group()
    }

    pub(super) fn spec(&self, mark: Mark) -> LinkSpec {
        let kind = match self.kind.as_str() {
            KIND_WIREGUARD => LinkKind::WireGuard,
            KIND_TUN if self.is_ours(mark) => LinkKind::WireGuard,
            other => LinkKind::Other(other.to_owned()),
        };
        LinkSpec { kind, mtu: self.mtu, up: self.up, master: None, stp: false, peer: None }
    }

    pub(super) fn observed(&self, mark: Mark) -> Observed {
        Observed {
            spec: Spec::Link(self.spec(mark)),
            owner: if self.is_ours(mark) { Owner::Ours } else { Owner::Stranger(self.described()) },
            stats: None,
        }
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
    let mut link = FoundLink {
        index: u32_at(body, 4)?,
        name: String::new(),
        kind: String::new(),
        mtu: 0,
        up: u32_at(body, 8)? & IFF_UP != 0,
        group: 0,
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    for attribute in NlasIterator::new(body.get(IFINFO..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(attribute.value()),
            IFLA_MTU => link.mtu = u32_at(attribute.value(), 0)?,
            IFLA_GROUP => link.group = u32_at(attribute.value(), 0)?,
            IFLA_LINKINFO => {
                for info in NlasIterator::new(attribute.value()).flatten() {
                    if info.kind() == IFLA_INFO_KIND {
                        link.kind = text(info.value());
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
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

/// The link with this name, after a look at its mark: what every change of something on a link begins with (I-03).
pub(super) async fn find_ours(route: &mut Channel, mark: Mark, name: &IfName) -> Result<FoundLink, ActionError> {
    match find(route, name).await {
        Ok(Some(link)) if link.is_ours(mark) => Ok(link),
        Ok(Some(link)) => Err(ActionError::Stranger(format!("{name} is {}", link.described()))),
        Ok(None) => Err(ActionError::Gone(format!("there is no link {name}"))),
        Err(fault) => Err(fault.to_action(&format!("find link {name}"))),
    }
}

/// Makes a kernel WireGuard link with its mark, then gives it its state.
///
/// # Errors
/// `Unsupported` when the kernel does not know the kind.
pub(super) async fn create_wireguard(
    route: &mut Channel,
    mark: Mark,
    name: &IfName,
    spec: &LinkSpec,
) -> Result<FoundLink, ActionError> {
    let mut request = LinkMessage::default();
    request.attributes.extend([
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::Group(mark.link_group()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ]);
    match route.change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &request, CALL_LIMIT).await {
        Ok(()) => {}
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => {
            return existing(route, mark, name).await;
        }
        Err(fault) => return Err(fault.to_action(&format!("create link {name}"))),
    }
    find_ours(route, mark, name).await
}

/// The link that a create request stumbled over, if it is one that this instance would have made.
async fn existing(route: &mut Channel, mark: Mark, name: &IfName) -> Result<FoundLink, ActionError> {
    let link = match find_ours(route, mark, name).await {
        // Only an alternative name can exist without a link that is called so.
        Err(ActionError::Gone(_)) => {
            return Err(ActionError::Stranger(format!("{name} is another link's alternative name")));
        }
        other => other?,
    };
    if link.kind == KIND_WIREGUARD || link.kind == KIND_TUN {
        Ok(link)
    } else {
        Err(ActionError::Failed(format!("{name} exists with our mark but is a {} link", link.kind)))
    }
}

/// Gives a link its MTU and state, and its alias. Only what differs is changed.
pub(super) async fn settle(
    route: &mut Channel,
    mark: Mark,
    link: &FoundLink,
    spec: &LinkSpec,
) -> Result<(), ActionError> {
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    if link.mtu != spec.mtu {
        request.attributes.push(LinkAttribute::Mtu(spec.mtu));
    }
    if link.up != spec.up {
        request.header.change_mask = LinkFlags::Up;
        request.header.flags = if spec.up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    if request.header.change_mask.is_empty() && request.attributes.is_empty() {
        return Ok(());
    }
    route
        .change(RTM_NEWLINK, 0, &request, CALL_LIMIT)
        .await
        .map_err(|fault| fault.to_action(&format!("change link {} of {mark}", link.name)))
}

/// Writes the alias that people see in `ip link`. Best effort: it proves nothing.
pub(super) async fn label(route: &mut Channel, mark: Mark, link: &FoundLink) {
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    request.attributes.push(LinkAttribute::IfAlias(format!("overlayd {mark}")));
    if let Err(fault) = route.change(RTM_NEWLINK, 0, &request, CALL_LIMIT).await {
        tracing::debug!(link = link.name, reason = fault.words(), "no alias");
    }
}

/// Removes a link whose mark was seen. A link that is not there any more is removed.
pub(super) async fn delete(route: &mut Channel, link: &FoundLink) -> Result<(), ActionError> {
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    match route.change(RTM_DELLINK, 0, &request, DELETE_LIMIT).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.is_gone() => Ok(()),
        Err(fault) => Err(fault.to_action(&format!("delete link {}", link.name))),
    }
}
