//! Links: made with their mark, changed only while they carry it.
//!
//! Owns every request that makes, changes or removes a link. Leaves finding links to [`links`](super::links), and which request an action needs
//! to [`link_actions`](super::link_actions).
//!
//! Upholds I-03 (a master must carry our mark; a name clash is looked at before anything else), I-04 (the group is in the create request).
//!
//! A bridge takes the smallest MTU of its ports, and 1500 with the last one gone, unless somebody *changed* its MTU once: one that it was made
//! with does not count. And it takes a port's hardware address unless it was given one of its own: with every container that came or went,
//! all others would have a gateway that they cannot reach.

use std::{hash::Hasher, os::fd::AsRawFd, time::Duration};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::{
    errno::Fault,
    links::{FoundLink, KIND_TUN, KIND_VETH, KIND_WIREGUARD, RTM_DELLINK, RTM_NEWLINK, find, find_ours},
    netns::OpenNetns,
    socket::{CALL_LIMIT, Channel},
};
use crate::{
    ids::IfName,
    object::{LinkSpec, Mark, VethPeer},
    platform::ActionError,
};

/// The kernel waits for RCU grace periods when it takes a device with thousands of peers apart.
const DELETE_LIMIT: Duration = Duration::from_secs(30);
/// First byte of a hardware address that was not given by a manufacturer (IEEE 802: locally administered, for one station).
const LOCAL_ADDRESS: u8 = 0x02;

fn named(mark: Mark, name: &IfName, kind: InfoKind) -> LinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.extend([LinkAttribute::IfName(name.to_string()), LinkAttribute::Group(mark.link_group())]);
    request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    request
}

/// Kernel addresses are random and, where udev is, replaced a moment later; one that was given stays.
fn hardware_address(mark: Mark, name: &IfName) -> LinkAttribute {
    let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0, u64::from(mark.link_group()));
    hasher.write(name.as_str().as_bytes());
    let mut bytes = hasher.finish().to_be_bytes()[..6].to_vec();
    bytes[0] = LOCAL_ADDRESS;
    LinkAttribute::Address(bytes)
}

async fn create(route: &mut Channel, request: &LinkMessage) -> Result<(), Fault> {
    route.change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, request, CALL_LIMIT).await
}

/// Makes a kernel WireGuard link with its mark, or finds the one of ours that is there.
///
/// # Errors
/// `Unsupported` when the kernel does not know the kind.
pub(super) async fn create_wireguard(
    route: &mut Channel,
    mark: Mark,
    name: &IfName,
    spec: &LinkSpec,
) -> Result<(), ActionError> {
    let mut request = named(mark, name, InfoKind::Wireguard);
    request.attributes.push(LinkAttribute::Mtu(spec.mtu));
    match create(route, &request).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => {
            existing(route, mark, name, &[KIND_WIREGUARD, KIND_TUN]).await
        }
        Err(fault) => Err(fault.to_action(&format!("create link {name}"))),
    }
}

/// Makes a bridge with its mark, down and without its MTU (see above), or finds the one of ours that is there.
pub(super) async fn create_bridge(route: &mut Channel, mark: Mark, name: &IfName) -> Result<(), ActionError> {
    let mut request = named(mark, name, InfoKind::Bridge);
    request.attributes.push(hardware_address(mark, name));
    match create(route, &request).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => {
            existing(route, mark, name, &[super::links::KIND_BRIDGE]).await
        }
        Err(fault) => Err(fault.to_action(&format!("create bridge {name}"))),
    }
}

/// Makes a veth pair in one request: marked at both ends, up, plugged into its bridge, its far end in the container. False when a veth of
/// ours was there already, wherever it leads.
pub(super) async fn create_veth(
    route: &mut Channel,
    mark: Mark,
    name: &IfName,
    spec: &LinkSpec,
    peer: &VethPeer,
    far: &OpenNetns,
) -> Result<bool, ActionError> {
    let mut far_end = LinkMessage::default();
    far_end.attributes.extend([
        LinkAttribute::IfName(peer.name.to_string()),
        LinkAttribute::Group(mark.link_group()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::NetNsFd(far.namespace().as_raw_fd()),
    ]);
    let mut request = LinkMessage::default();
    request.attributes.extend([
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::Group(mark.link_group()),
        LinkAttribute::Mtu(spec.mtu),
        hardware_address(mark, name),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far_end))),
        ]),
    ]);
    if let Some(master) = &spec.master {
        request.attributes.push(LinkAttribute::Controller(find_ours(route, mark, master).await?.index));
    }
    // A port comes up later, without IPv6.
    if spec.up && spec.master.is_none() {
        request.header.flags = LinkFlags::Up;
        request.header.change_mask = LinkFlags::Up;
    }
    let what = format!("create veth {name}");
    match create(route, &request).await {
        Ok(()) => Ok(true),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => match find(route, name).await {
            Ok(Some(_)) => existing(route, mark, name, &[KIND_VETH]).await.map(|()| false),
            Ok(None) => Err(ActionError::Stranger(format!(
                "{} already has a link named {}; it is not overlayd's and stays",
                peer.netns, peer.name
            ))),
            Err(fault) => Err(fault.to_action(&what)),
        },
        Err(fault) => Err(fault.to_action(&what)),
    }
}

/// The link that a create request stumbled over must be one that this instance would have made.
async fn existing(route: &mut Channel, mark: Mark, name: &IfName, kinds: &[&str]) -> Result<(), ActionError> {
    let link = match find_ours(route, mark, name).await {
        // Only an alternative name can exist without a link that is called so.
        Err(ActionError::Gone(_)) => {
            return Err(ActionError::Stranger(format!("{name} is another link's alternative name")));
        }
        other => other?,
    };
    if kinds.contains(&link.kind.as_str()) {
        Ok(())
    } else {
        Err(ActionError::Failed(format!("{name} exists with our mark but is a {} link", link.kind)))
    }
}

/// Gives a link its MTU, state, master and spanning tree setting. Only what differs is sent; true when something was.
pub(super) async fn settle(
    route: &mut Channel,
    mark: Mark,
    link: &FoundLink,
    spec: &LinkSpec,
) -> Result<bool, ActionError> {
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    if link.mtu != spec.mtu {
        request.attributes.push(LinkAttribute::Mtu(spec.mtu));
    }
    let master = match &spec.master {
        Some(master) => Some(find_ours(route, mark, master).await?.index),
        None => None,
    };
    if link.master != master {
        // Index 0 is the kernel's word for "none".
        request.attributes.push(LinkAttribute::Controller(master.unwrap_or(0)));
    }
    if link.stp != spec.stp {
        let state = if spec.stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        request.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(state)])),
        ]));
    }
    if link.up != spec.up {
        request.header.change_mask = LinkFlags::Up;
        request.header.flags = if spec.up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    if request.header.change_mask.is_empty() && request.attributes.is_empty() {
        return Ok(false);
    }
    let changed = route.change(RTM_NEWLINK, 0, &request, CALL_LIMIT).await;
    changed.map_err(|fault| fault.to_action(&format!("change link {} of {mark}", link.name)))?;
    Ok(true)
}

/// Writes the alias that people see in `ip link`. Best effort: it proves nothing. A create request's alias is ignored by the kernel.
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
