//! What is set in a container: its link, addresses and routes.
//!
//! Owns the order in which that works, and what is a stranger's in there. Leaves going there to the [`visitor`](super::visitor).
//!
//! Upholds I-03 (a container's own routes and addresses stay, and its own default route is in the way), I-08 (what is there is not set again;
//! what an update takes away goes after what it brings).
//!
//! With the last address of an IPv4 network the kernel takes every route that needs it, and with a *primary* address all the others of its
//! network. So after anything was taken away, everything that is wanted is added once more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressProtocol},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use super::{
    conversation::Conversation,
    front::HostEnd,
    look::{self, SeenRoute},
    reverse_path,
    visitor::Visitor,
};
use crate::{
    object::{ADDRESS_PROTOCOL, InsideRoute, InsideSpec, ROUTE_PROTOCOL},
    platform::{
        ActionError,
        linux::{
            addresses,
            errno::Fault,
            link_actions::to_action,
            links::{FoundLink, RTM_NEWLINK},
            netns, routes, sysctls,
        },
    },
};

/// Whether the visitor is in the right place: the namespace still is the container's, and our veth leads there.
fn proven(visitor: &mut Visitor, host: HostEnd, spec: &InsideSpec) -> Result<netns::OpenNetns, ActionError> {
    let what = "enter the container";
    visitor.check_time().map_err(|fault| fault.to_action(what))?;
    let namespace = netns::open(&spec.netns).map_err(|error| to_action(&error, what))?;
    match visitor.is_known_as(&namespace, host.far_nsid) {
        Ok(true) => Ok(namespace),
        Ok(false) => Err(ActionError::Gone(format!("the far end of the veth is not in {}", spec.netns))),
        Err(fault) => Err(fault.to_action(what)),
    }
}

/// Makes the container's side as `to` says; `from` is what an earlier one had.
pub(super) fn wire(
    visitor: &mut Visitor,
    host: HostEnd,
    from: Option<&InsideSpec>,
    to: &InsideSpec,
) -> Result<(), ActionError> {
    let namespace = proven(visitor, host, to)?;
    let wired = visitor.within(&namespace, |kernel| {
        let link = look::far_end(kernel, host).map_err(|fault| fault.to_action("find the far end of the veth"))?;
        raise(kernel, &link, to)?;
        if to.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
            sysctls::prepare_ipv6(&link.name)?;
        }
        reverse_path::loosen(kernel, &link);
        furnish(kernel, &link, to)?;
        if let Some(from) = from
            && take_away(kernel, &link, from, to)?
        {
            furnish(kernel, &link, to)?;
        }
        Ok(())
    });
    wired.map_err(|fault| fault.to_action("enter the container"))?
}

/// Removes what the container's side had of ours.
pub(super) fn unwire(visitor: &mut Visitor, host: HostEnd, was: &InsideSpec) -> Result<(), ActionError> {
    let namespace = match proven(visitor, host, was) {
        Ok(namespace) => namespace,
        Err(ActionError::Gone(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let done = visitor.within(&namespace, |kernel| {
        let link = match look::far_end(kernel, host) {
            Ok(link) => link,
            Err(fault) if fault.is_gone() => return Ok(()),
            Err(fault) => return Err(fault.to_action("find the far end of the veth")),
        };
        let nothing = InsideSpec { addresses: [].into(), routes: [].into(), ..was.clone() };
        take_away(kernel, &link, was, &nothing).map(drop)
    });
    done.map_err(|fault| fault.to_action("enter the container"))?
}

/// Brings up loopback and the link: nothing can be routed over a link that is down.
fn raise(kernel: &mut Conversation, link: &FoundLink, to: &InsideSpec) -> Result<(), ActionError> {
    let what = format!("bring up {}", link.name);
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    if link.mtu != to.mtu {
        request.attributes.push(LinkAttribute::Mtu(to.mtu));
    }
    let flags = if to.up { LinkFlags::Up } else { LinkFlags::empty() };
    if link.up != to.up {
        (request.header.flags, request.header.change_mask) = (flags, LinkFlags::Up);
    }
    if !request.attributes.is_empty() || !request.header.change_mask.is_empty() {
        kernel.change(RTM_NEWLINK, 0, &request).map_err(|fault| fault.to_action(&what))?;
    }
    if to.up {
        let mut loopback = LinkMessage::default();
        loopback.header.index = look::LOOPBACK_INDEX;
        (loopback.header.flags, loopback.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        kernel.change(RTM_NEWLINK, 0, &loopback).map_err(|fault| fault.to_action("bring up lo"))?;
    }
    Ok(())
}

/// Adds every address and route that is not there.
fn furnish(kernel: &mut Conversation, link: &FoundLink, to: &InsideSpec) -> Result<(), ActionError> {
    for net in &to.addresses {
        let mut request = addresses::request(link.index, *net);
        // The address is in the document once; a probe for a second holder would only make the container wait.
        request.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(ADDRESS_PROTOCOL)));
        match kernel.change(addresses::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &request) {
            Ok(()) => {}
            Err(fault) if fault.errno() == Some(Errno::EEXIST) => {}
            Err(fault) => return Err(fault.to_action(&format!("add address {net} to {}", link.name))),
        }
    }
    for route in &to.routes {
        add_route(kernel, link, to, route)?;
    }
    Ok(())
}

fn add_route(
    kernel: &mut Conversation,
    link: &FoundLink,
    to: &InsideSpec,
    route: &InsideRoute,
) -> Result<(), ActionError> {
    let what = format!("add the route to {} through {}", route.destination, link.name);
    let request = route_request(link.index, to, route);
    match kernel.change(routes::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &request) {
        Ok(()) => return Ok(()),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => {}
        Err(fault) => return Err(fault.to_action(&what)),
    }
    let there = look::routes(kernel, route.destination.is_ipv4(), None).map_err(|fault| fault.to_action(&what))?;
    let same_place: Vec<&SeenRoute> = there
        .items
        .iter()
        .filter(|seen| seen.route.destination == route.destination && seen.metric == look::default_metric(route))
        .collect();
    if same_place.iter().any(|seen| seen.output == Some(link.index) && seen.route == *route) {
        return Ok(());
    }
    match same_place.first() {
        // The one of an earlier time, through another gateway.
        Some(seen) if seen.protocol == ROUTE_PROTOCOL && seen.output == Some(link.index) => kernel
            .change(routes::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &request)
            .map_err(|fault| fault.to_action(&what)),
        Some(seen) => Err(ActionError::Stranger(format!(
            "the container has a route of its own to {}{}; it is not overlayd's and stays",
            route.destination,
            seen.route.via.map(|via| format!(" via {via}")).unwrap_or_default(),
        ))),
        None => Err(ActionError::Failed(format!("{what}: the kernel says that it is there, and it is not"))),
    }
}

/// The whole route. A next hop in none of our networks is reached all the same: the kernel is told to believe that it is on the link.
fn route_request(index: u32, to: &InsideSpec, route: &InsideRoute) -> RouteMessage {
    let mut request = RouteMessage::default();
    let header = &mut request.header;
    header.address_family = if route.destination.is_ipv4() {
        netlink_packet_route::AddressFamily::Inet
    } else {
        netlink_packet_route::AddressFamily::Inet6
    };
    header.destination_prefix_length = route.destination.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    header.kind = RouteType::Unicast;
    header.scope =
        if route.via.is_none() && route.destination.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    let destination = route.destination.network();
    let is_default =
        destination == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || destination == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if !(is_default && route.destination.prefix_len() == 0) {
        request.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
    }
    request.attributes.push(RouteAttribute::Oif(index));
    if let Some(via) = route.via {
        request.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
        let is_near = to.addresses.iter().any(|net| net.contains(&via)) || is_link_local(&via);
        if !is_near {
            request.header.flags |= RouteFlags::Onlink;
        }
    }
    request
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Removes what `from` has and `to` does not; true when something was removed.
fn take_away(
    kernel: &mut Conversation,
    link: &FoundLink,
    from: &InsideSpec,
    to: &InsideSpec,
) -> Result<bool, ActionError> {
    let mut any = false;
    let mut removed = |outcome: Result<(), Fault>, what: String| match outcome {
        Ok(()) => {
            any = true;
            Ok(())
        }
        Err(fault) if fault.is_gone() => Ok(()),
        Err(fault) => Err(fault.to_action(&what)),
    };
    for route in from.routes.difference(&to.routes) {
        let mut request = route_request(link.index, from, route);
        // Of IPv4 routes the scope is matched too, unless it is this one.
        request.header.scope = RouteScope::NoWhere;
        request.header.flags = RouteFlags::empty();
        let outcome = kernel.change(routes::RTM_DELROUTE, 0, &request);
        removed(outcome, format!("remove the route to {} from {}", route.destination, link.name))?;
    }
    for net in from.addresses.difference(&to.addresses) {
        let outcome = kernel.change(addresses::RTM_DELADDR, 0, &addresses::request(link.index, *net));
        removed(outcome, format!("remove address {net} from {}", link.name))?;
    }
    Ok(any)
}
