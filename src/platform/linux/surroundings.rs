//! What the node has besides our objects: the ways out, what its kernel can, who else configures links.
//!
//! Owns the question which link leads out. Leaves what follows from the answers to [`reconcile`](crate::reconcile).
//!
//! Upholds I-03 (of a link that is not ours, only the settings named here are ever written, and only to 1), B22.
//!
//! The way out is asked of the kernel, packet by packet as it were, and not read from the routing table: rules, metrics and tables other than
//! main decide too. Nothing is sent: the addresses are reserved for documentation and never anyone's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use netlink_packet_core::NlasIterator;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use nix::errno::Errno;

use super::{
    answer::u32_at,
    errno::Fault,
    links,
    routes::{RTA_OIF, RTM_GETROUTE, RTM_NEWROUTE, RTMSG},
    socket::Channel,
    sysctls,
};
use crate::{
    ids::IfName,
    object::{Mark, Setting},
    observed::{Neighbour, Surroundings},
    platform::ActionError,
};

/// Destinations that only a default route leads to (RFC 5737, RFC 3849).
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const RTN_UNICAST: u8 = 1;
const LOOPBACK: &str = "lo";
/// Directories that are there while a program runs.
const TRACES: [(&str, Neighbour); 2] =
    [("systemd/netif", Neighbour::Networkd), ("NetworkManager", Neighbour::NetworkManager)];

/// Looks at everything but the firewall.
pub(super) async fn look(route: &mut Channel, mark: Mark, run_dir: &Path) -> Result<Surroundings, Fault> {
    let neighbours = TRACES.into_iter().filter(|(trace, _)| run_dir.join(trace).exists()).map(|(_, who)| who);
    Ok(Surroundings {
        uplinks: uplinks(route, mark).await?,
        force_forwarding: sysctls::has_force_forwarding(),
        forwards_ipv6: sysctls::forwards_ipv6(),
        forward_drop: BTreeSet::new(),
        neighbours: neighbours.collect(),
    })
}

/// The links through which packets leave for the rest of the world; none of them is ours.
pub(super) async fn uplinks(route: &mut Channel, mark: Mark) -> Result<BTreeSet<IfName>, Fault> {
    let mut found = BTreeSet::new();
    for destination in ELSEWHERE {
        let Some(index) = output_towards(route, destination).await? else { continue };
        let link = match links::find_index(route, index).await {
            Ok(link) => link,
            // It went away since the route was asked for.
            Err(fault) if fault.is_gone() => continue,
            Err(fault) => return Err(fault),
        };
        if let (false, Ok(name)) = (link.is_ours(mark) || link.name == LOOPBACK, link.name.parse()) {
            found.insert(name);
        }
    }
    Ok(found)
}

async fn output_towards(route: &mut Channel, destination: IpAddr) -> Result<Option<u32>, Fault> {
    let mut request = RouteMessage::default();
    let (family, length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
    match route.get(RTM_GETROUTE, &request, parse_output).await {
        Ok(output) => Ok(output),
        Err(fault) => match fault.errno() {
            Some(
                Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::EACCES
                | Errno::EINVAL
                | Errno::EAGAIN
                | Errno::EOPNOTSUPP
                | Errno::EAFNOSUPPORT,
            ) => Ok(None),
            _ => Err(fault),
        },
    }
}

/// The link of an answer; nothing when packets are refused.
pub(super) fn parse_output(kind: u16, body: &[u8]) -> Option<Option<u32>> {
    if kind != RTM_NEWROUTE {
        return None;
    }
    if *body.get(7)? != RTN_UNICAST {
        return Some(None);
    }
    let mut attributes = NlasIterator::new(body.get(RTMSG..)?).flatten();
    let output = attributes.find(|attribute| attribute.kind() == RTA_OIF);
    Some(output.and_then(|output| u32_at(output.value(), 0)))
}

/// What may be written on the way out.
pub(super) fn may_set(setting: Setting, value: i64) -> bool {
    setting.may_be_on_uplink() && value == 1
}

/// Whether a link is the way out at this moment.
pub(super) async fn is_uplink(route: &mut Channel, mark: Mark, link: &IfName) -> Result<bool, ActionError> {
    let found = uplinks(route, mark).await;
    Ok(found.map_err(|fault| fault.to_action("find the way out"))?.contains(link))
}
